#include "datasets/npz_datasets.h"

#include <algorithm>

#include "datasets/npz.h"
#include "datasets/parts.h"
#include "datasets/splits.h"

namespace heed {
namespace {

bool is_split(const std::string& name) { return name.ends_with("split.npz"); }

// The archives that may be the dataset itself.
std::vector<std::string> archives(const Files& files) {
  if (!files.chosen().empty()) return {files.chosen()};
  auto out = files.list();
  std::erase_if(out, [](const std::string& name) { return !name.ends_with(".npz") || is_split(name); });
  return out;
}

// The one of them that holds an array of this name; "" if none does.
std::string holder_of(const Files& files, const char* array) {
  std::string found;
  for (const auto& name : archives(files)) {
    if (!name.ends_with(".npz") || !files.has(name)) continue;
    const auto arrays = npz_names(files.read(name), files.place(name));
    if (std::find(arrays.begin(), arrays.end(), array) == arrays.end()) continue;
    if (!found.empty()) fail(files.folder() + " holds several datasets; name one of them: " + found + ", " + name);
    found = name;
  }
  return found;
}

}  // namespace

Dataset gnn_benchmark(const Files& files, const std::string& name, const std::string& split) {
  Dataset out{.name = files.title(), .labels = {}, .splits = {}};
  {
    const Npz npz = parse_npz(files.read(name), files.place(name));
    auto rows = [&](const std::string& of) {
      return sparse_rows(npz[of + "_indptr"].name, npz[of + "_shape"].as<Offset>(), npz[of + "_indptr"],
                         npz[of + "_indices"], npz[of + "_data"]);
    };
    {
      SparseRows a = rows("adj");
      const Id nodes = a.pattern.rows;
      if (a.pattern.cols != nodes)
        fail(npz["adj_shape"].name + ": an adjacency of " + std::to_string(nodes) + " x " +
             std::to_string(a.pattern.cols) + " is not square");
      check_finite(npz["adj_data"].name, a.values, std::max<Offset>(a.pattern.edges(), 1));
      std::vector<Edge> edges;
      edges.reserve(a.pattern.ids.size());
      for (Id i = 0; i < nodes; ++i)
        for (Id j : a.pattern.row(i)) edges.push_back({.from = i, .to = j});
      if (std::ranges::all_of(a.values, [](float w) { return w == 1; })) a.values.clear();
      out.graph = graph_from_edges(nodes, edges, {}, a.values);
    }
    if (npz.contains("attr_indptr")) {
      SparseRows x = rows("attr");
      if (x.pattern.rows != out.nodes())
        fail(npz["attr_shape"].name + ": features of " + std::to_string(x.pattern.rows) + " nodes, but there are " +
             std::to_string(out.nodes()));
      for (Id i = 0; i < x.pattern.rows; ++i)
        check_finite(npz["attr_data"].name + ", node " + std::to_string(i),
                     std::span(x.values).subspan(x.pattern.offsets[i], x.pattern.degree(i)),
                     std::max<Offset>(x.pattern.degree(i), 1));
      out.features = sparse_features(std::move(x));
    } else {
      out.features = identity_features(out.nodes());
    }
    set_labels(out, npz["labels"].name, npz["labels"].as<Offset>());
  }
  std::string beside = split;
  if (beside.empty())
    for (const auto& other : files.list()) {
      if (!is_split(other) || other == name) continue;
      if (!beside.empty())
        fail(files.folder() + ": the split may be " + beside + " or " + other + "; keep one of them");
      beside = other;
    }
  if (!beside.empty() && files.has(beside))
    out.splits = splits_of(parse_npz(files.read(beside), files.place(beside)), out.nodes());
  return out;
}

Dataset heterophilous(const Files& files, const std::string& name) {
  const Npz npz = parse_npz(files.read(name), files.place(name));
  Dataset out{.name = files.title(), .labels = {}, .splits = {}};
  auto labels = npz["node_labels"].as<Offset>();
  const Array& edges = npz["edges"];
  if (edges.shape.size() != 2 || edges.shape[1] != 2)
    fail(edges.name + ": " + shape_text(edges.shape) + ", but an edge is a row of two nodes");
  if (labels.size() > static_cast<std::size_t>(std::numeric_limits<Id>::max()))
    fail(npz["node_labels"].name + ": " + std::to_string(labels.size()) + " nodes are too many");
  const auto nodes = static_cast<Id>(labels.size());
  const auto ids = edges.as<Offset>();
  std::vector<Edge> list;
  list.reserve(ids.size() / 2);
  for (std::size_t e = 0; e < ids.size(); ++e) {
    if (ids[e] < 0 || ids[e] >= nodes)
      fail(edges.name + ": row " + std::to_string(e / 2) + " names node " + std::to_string(ids[e]) +
           ", but the nodes are 0.." + std::to_string(nodes - 1));
    if (e % 2 == 1) list.push_back({.from = static_cast<Id>(ids[e - 1]), .to = static_cast<Id>(ids[e])});
  }
  out.graph = graph_from_edges(nodes, list);
  out.features = compact(matrix(npz["node_features"], nodes));
  set_labels(out, npz["node_labels"].name, labels);
  out.splits = splits_of(npz, nodes);
  return out;
}

bool fits_gnn_benchmark(const Files& files) { return !holder_of(files, "adj_indptr").empty(); }
bool fits_heterophilous(const Files& files) { return !holder_of(files, "node_features").empty(); }
Dataset read_gnn_benchmark(const Files& files) { return gnn_benchmark(files, holder_of(files, "adj_indptr")); }
Dataset read_heterophilous(const Files& files) { return heterophilous(files, holder_of(files, "node_features")); }

}  // namespace heed
