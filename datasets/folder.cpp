#include "datasets/folder.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "datasets/npz.h"
#include "datasets/parts.h"
#include "datasets/splits.h"

namespace heed {
namespace fs = std::filesystem;
namespace {

constexpr const char* kPage = "dataset.json";
constexpr const char* kFormat = "heed dataset";
constexpr int kVersion = 1;

using Json = nlohmann::ordered_json;

Csr read_csr(const Array& offsets, const Array& ids, Offset rows, Offset cols) {
  if (offsets.shape != std::vector<Offset>{rows + 1})
    fail(offsets.name + ": " + shape_text(offsets.shape) + ", but there are " + std::to_string(rows) +
         " rows, and so one more offset");
  if (ids.shape.size() != 1) fail(ids.name + ": " + shape_text(ids.shape) + ", but ids are one row");
  Csr out{.rows = static_cast<Id>(rows),
          .cols = static_cast<Id>(cols),
          .offsets = offsets.as<Offset>(),
          .ids = ids.as<Id>()};
  try {
    check(out);
  } catch (const Error& e) {
    fail(offsets.name + " and " + ids.name + ": " + e.what());
  }
  return out;
}

std::vector<float> read_floats(const Array& array, const std::vector<Offset>& shape) {
  if (array.shape != shape)
    fail(array.name + ": " + shape_text(array.shape) + ", but there should be " + shape_text(shape));
  auto out = array.as<float>();
  check_finite(array.name, out, shape.size() > 1 ? std::max<Offset>(shape[1], 1) : 1);
  return out;
}

}  // namespace

bool fits_folder(const Files& files) { return (files.chosen().empty() || files.chosen() == kPage) && files.has(kPage); }

Dataset read_folder(const Files& files) {
  const std::string page = files.place(kPage);
  const Json json = Json::parse(files.read(kPage), nullptr, false);
  if (!json.is_object()) fail(page + ": is not a JSON object");
  if (!json.contains("format") || json["format"] != kFormat) fail(page + ": its format is not '" + kFormat + "'");
  auto number = [&](const char* key, Offset low, Offset high) {
    if (!json.contains(key) || !json[key].is_number_integer()) fail(page + ": no whole number '" + key + "'");
    if (json[key].is_number_unsigned() && json[key].get<std::uint64_t>() > static_cast<std::uint64_t>(high))
      fail(page + ": '" + key + "' is too large");
    const auto x = json[key].get<std::int64_t>();
    if (x < low) fail(page + ": '" + key + "' is " + std::to_string(x));
    return x;
  };
  constexpr Offset kLargest = std::numeric_limits<Id>::max();
  if (auto version = number("version", 0, kLargest); version != kVersion)
    fail(page + ": version " + std::to_string(version) + " of the format; this heed reads version " +
         std::to_string(kVersion));
  const Offset nodes = number("nodes", 0, kLargest), classes = number("classes", 0, kLargest);
  if (!json.contains("name") || !json["name"].is_string()) fail(page + ": no text 'name'");

  Dataset out{.name = printable(json["name"].get<std::string>()), .labels = {}, .splits = {}};
  auto array = [&](const std::string& name) { return parse_npy(files.read(name), files.place(name)); };
  Csr adjacency = read_csr(array("offsets.npy"), array("ids.npy"), nodes, nodes);
  const Offset edges = adjacency.edges();
  if (json.contains("edges") && number("edges", 0, std::numeric_limits<Offset>::max()) != edges)
    fail(page + ": claims " + json["edges"].dump() + " edges; the arrays hold " + std::to_string(edges));
  out.graph.adjacency = std::make_shared<Csr>(std::move(adjacency));
  if (files.has("times.npy")) {
    const Array times = array("times.npy");
    if (times.shape != std::vector<Offset>{nodes})
      fail(times.name + ": " + shape_text(times.shape) + ", but there should be " + shape_text({nodes}));
    out.graph.times = times.as<double>();
    for (std::size_t i = 0; i < out.graph.times.size(); ++i)
      if (!std::isfinite(out.graph.times[i])) fail(times.name + ": entry " + std::to_string(i) + " is not finite");
  }
  if (files.has("weights.npy")) out.graph.weights = read_floats(array("weights.npy"), {edges});
  if (files.has("edge_features.npy")) {
    const Array x = array("edge_features.npy");
    if (x.shape.size() != 2 || x.shape[1] > kLargest / 2)
      fail(x.name + ": " + shape_text(x.shape) + ", but features are edges x channels");
    out.graph.channels = static_cast<int>(x.shape[1]);
    out.graph.features = read_floats(x, {edges, x.shape[1]});
  }
  if (files.has("feature_ids.npy")) {
    const Array ids = array("feature_ids.npy");
    const Offset channels = number("channels", 0, kLargest);
    check_count(page, "channels", channels, nodes + ids.size());
    SparseRows x{.pattern = read_csr(array("feature_offsets.npy"), ids, nodes, channels), .values = {}};
    x.values = read_floats(array("feature_values.npy"), {x.pattern.edges()});
    out.features = sparse_features(std::move(x));
  } else {
    const Array x = array("features.npy");
    if (x.shape.size() != 2) fail(x.name + ": " + shape_text(x.shape) + ", but features are nodes x channels");
    out.features.dense = matrix(x, static_cast<Id>(nodes));
  }
  const Array labels = array("labels.npy");
  set_labels(out, labels.name, labels.as<Offset>(), classes);
  if (files.has("splits.npy")) out.splits = splits_of(array("splits.npy"), out.nodes());
  return out;
}

void write_folder(const Dataset& d, const fs::path& folder) {
  auto write = [&]<class T>(const char* name, const std::vector<Offset>& shape, const std::vector<T>& elements) {
    write_npy(folder / name, shape, std::span<const T>(elements));
  };
  const Csr& a = *d.graph.adjacency;
  const Offset nodes = d.nodes();
  write("offsets.npy", {nodes + 1}, a.offsets);
  write("ids.npy", {a.edges()}, a.ids);
  if (!d.graph.times.empty()) write("times.npy", {nodes}, d.graph.times);
  if (!d.graph.weights.empty()) write("weights.npy", {a.edges()}, d.graph.weights);
  if (d.graph.channels > 0) write("edge_features.npy", {a.edges(), d.graph.channels}, d.graph.features);
  if (d.features.sparse) {
    const Csr& x = d.features.sparse->pattern();
    write("feature_offsets.npy", {nodes + 1}, x.offsets);
    write("feature_ids.npy", {x.edges()}, x.ids);
    write("feature_values.npy", {x.edges()}, d.features.sparse->values);
  } else {
    const auto& x = d.features.dense;
    write_npy(folder / "features.npy", {nodes, x.cols()}, std::span<const float>(x.data(), x.size()));
  }
  write("labels.npy", {nodes}, d.labels);
  if (!d.splits.empty()) {
    std::vector<std::uint8_t> codes;
    for (const Split& split : d.splits)
      for (Part part : parts_of(split, d.nodes())) codes.push_back(static_cast<std::uint8_t>(part));
    write("splits.npy", {static_cast<Offset>(d.splits.size()), nodes}, codes);
  }
  const Json page{{"format", kFormat},    {"version", kVersion}, {"name", d.name},          {"nodes", nodes},
                  {"classes", d.classes}, {"edges", a.edges()},  {"channels", d.channels()}};
  write_file(folder / kPage, page.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace heed
