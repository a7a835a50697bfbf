#include "datasets/ogb.h"

#include <limits>
#include <optional>

#include "datasets/parts.h"
#include "datasets/splits.h"
#include "datasets/text.h"

namespace heed {
namespace {

constexpr Offset kLargest = std::numeric_limits<Id>::max();

// The one number of a file; none where the file is not there.
std::optional<Offset> count_in(const Files& files, const std::string& name) {
  if (!files.has(name)) return {};
  const std::string text = files.read(name);
  Table table(text, files.place(name));
  if (!table.next() || table.columns() != 1) fail(files.place(name) + ": expected one number");
  const Offset out = table.whole(0, "count", 0, kLargest);
  if (table.next()) table.wrong("a second graph; a dataset is one graph");
  return out;
}

// A row for each of `rows` things.
Matrix<float> read_matrix(const Files& files, const std::string& name, Offset rows, const char* things) {
  const std::string text = files.read(name);
  Table table(text, files.place(name));
  std::vector<float> values;
  Offset found = 0;
  int columns = 0;
  for (; table.next(); ++found) {
    columns = table.columns();
    for (int c = 0; c < columns; ++c) values.push_back(table.real(c, "feature"));
  }
  if (found != rows)
    fail(files.place(name) + ": " + std::to_string(found) + " rows, but there are " + std::to_string(rows) + " " +
         things);
  Matrix<float> out(rows, columns);
  std::copy(values.begin(), values.end(), out.begin());
  return out;
}

}  // namespace

bool fits_ogb(const Files& files) { return files.chosen().empty() && files.has("raw/edge.csv"); }

Dataset read_ogb(const Files& files) {
  Dataset out{.name = files.title(), .labels = {}, .splits = {}};
  const std::string label_file = "raw/node-label.csv", edge_file = "raw/edge.csv";
  std::vector<Offset> labels;
  {
    const std::string text = files.read(label_file);
    Table table(text, files.place(label_file));
    while (table.next()) {
      if (table.columns() != 1)
        table.wrong(std::to_string(table.columns()) + " labels; a dataset for node classification has one a node");
      const bool known = table[0] != "nan" && !table[0].empty();
      labels.push_back(known ? table.whole(0, "label", -1, kLargest - 1) : -1);
    }
  }
  const auto count = static_cast<Offset>(labels.size());
  if (count > kLargest) fail(files.place(label_file) + ": " + std::to_string(count) + " nodes are too many");
  const auto nodes = static_cast<Id>(count);
  if (auto claimed = count_in(files, "raw/num-node-list.csv"); claimed && *claimed != nodes)
    fail(files.place("raw/num-node-list.csv") + ": " + std::to_string(*claimed) + " nodes, but " +
         files.place(label_file) + " has " + std::to_string(nodes));

  std::vector<Edge> edges;
  {
    const std::string text = files.read(edge_file);
    Table table(text, files.place(edge_file));
    while (table.next()) {
      if (table.columns() != 2) table.wrong("an edge is two nodes");
      edges.push_back({.from = table.node(0, nodes), .to = table.node(1, nodes)});
    }
  }
  if (auto claimed = count_in(files, "raw/num-edge-list.csv"); claimed && *claimed != static_cast<Offset>(edges.size()))
    fail(files.place("raw/num-edge-list.csv") + ": " + std::to_string(*claimed) + " edges, but " +
         files.place(edge_file) + " has " + std::to_string(edges.size()));
  Matrix<float> edge_features;
  if (files.has("raw/edge-feat.csv"))
    edge_features = read_matrix(files, "raw/edge-feat.csv", static_cast<Offset>(edges.size()), "edges");
  out.graph = graph_from_edges(nodes, edges, {}, {}, {edge_features.begin(), edge_features.end()},
                               static_cast<int>(edge_features.cols()));
  out.features = files.has("raw/node-feat.csv") ? compact(read_matrix(files, "raw/node-feat.csv", nodes, "nodes"))
                                                : identity_features(nodes);
  set_labels(out, files.place(label_file), labels);
  for (const auto& name : files.list("split"))
    if (!files.list("split/" + name).empty())
      for (auto& split : splits_of_folder(files, "split/" + name, nodes)) out.splits.push_back(std::move(split));
  return out;
}

}  // namespace heed
