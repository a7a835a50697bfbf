#include "datasets/csv.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "datasets/parts.h"
#include "datasets/splits.h"
#include "datasets/text.h"

namespace heed {
namespace fs = std::filesystem;
namespace {

constexpr Offset kLargest = std::numeric_limits<Id>::max();

// {"node": [channels]}, read token by token: nothing is kept but the entries.
class JsonFeatures : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit JsonFeatures(std::string file) : file_(std::move(file)) {}

  std::vector<FeatureEntry> entries;
  Offset nodes = 0, channels = 0;

  bool start_object(std::size_t) override {
    if (depth_++ != 0) refuse("an object");
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool key(std::string& text) override {
    Offset id = 0;
    if (!heed::parse(text, id) || id < 0 || id >= kLargest)
      fail(file_ + ": the key '" + printable(text) + "' is not a node");
    node_ = static_cast<Id>(id);
    nodes = std::max(nodes, id + 1);
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_++ != 1) refuse("an array");
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool number_unsigned(std::uint64_t x) override {
    if (depth_ != 2) refuse("a number");
    if (x >= static_cast<std::uint64_t>(kLargest)) refuse(std::to_string(x));
    entries.push_back({.row = node_, .column = static_cast<Id>(x), .value = 1});
    channels = std::max(channels, static_cast<Offset>(x) + 1);
    return true;
  }
  bool number_integer(std::int64_t x) override { refuse(std::to_string(x)); }
  bool number_float(double, const std::string& text) override { refuse(printable(text)); }
  bool null() override { refuse("null"); }
  bool boolean(bool) override { refuse("a truth value"); }
  bool string(std::string&) override { refuse("a text"); }
  bool binary(nlohmann::json::binary_t&) override { refuse("bytes"); }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    fail(file_ + ", byte " + std::to_string(at) + ": is not JSON of the form {\"node\": [channels]}");
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    fail(file_ + (node_ < 0 ? "" : ", node " + std::to_string(node_)) + ": " + what +
         " stands where {\"node\": [channels]} has something else");
  }

  std::string file_;
  int depth_ = 0;
  Id node_ = -1;
};

bool ends(std::string_view stem, std::initializer_list<const char*> with) {
  return std::ranges::any_of(with, [&](const char* end) { return stem.ends_with(end); });
}

std::vector<Offset> read_labels(const Files& files, const std::string& name, Offset& classes) {
  const std::string text = files.read(name);
  Table table(text, files.place(name));
  int label = -1, node = -1;
  for (const char* title : {"label", "target", "class"})
    if (label < 0) label = table.column(title);
  for (const char* title : {"node", "id"})
    if (node < 0) node = table.column(title);
  if (table.header().size() == 1)
    for (const char* none : {"na", "none", "null", "unknown"})
      if (table.header()[0] == none) table.wrong("a label is a whole number; one that is not known is -1, or nothing");
  std::vector<std::pair<Offset, Offset>> lines;
  std::vector<Offset> at;  // the line of each
  while (table.next()) {
    if (label < 0) label = table.columns() - 1;
    if (node < 0 && table.columns() > 1 && label != 0) node = 0;
    const Offset id = node < 0 ? static_cast<Offset>(lines.size()) : table.whole(node, "node", 0, kLargest - 1);
    lines.emplace_back(id, table[label].empty() ? -1 : table.whole(label, "label", -1, kLargest - 1));
    at.push_back(table.line());
  }
  Offset nodes = table.claim("nodes", static_cast<Offset>(lines.size()));
  if (nodes == 0) fail(files.place(name) + ": holds no line with a node's label");
  check_count(files.place(name), "nodes", nodes, static_cast<Offset>(lines.size()));
  classes = table.claim("classes", -1);
  std::vector<Offset> out(static_cast<std::size_t>(nodes), -1);
  std::vector<bool> seen(out.size());
  for (std::size_t t = 0; t < lines.size(); ++t) {
    auto [id, y] = lines[t];
    const std::string where = files.place(name) + ", line " + std::to_string(at[t]) + ": node " + std::to_string(id);
    if (id >= nodes) fail(where + " is outside 0.." + std::to_string(nodes - 1) + "; every node has a line");
    if (seen[id]) fail(where + " has a label already");
    const Offset most = classes >= 0 ? classes : nodes;
    if (y >= most) fail(where + " has the label " + std::to_string(y) + ", outside 0.." + std::to_string(most - 1));
    seen[id] = true;
    out[id] = y;
  }
  return out;
}

struct NodeTable {  // features as read
  std::vector<FeatureEntry> entries;
  std::vector<float> dense;  // in the order of `order`, or of the nodes
  std::vector<Id> order;
  Offset nodes = 0, channels = 0;
  bool sparse = false;
  Repeats repeats = Repeats::sum_weights;
};

NodeTable read_features(const Files& files, const std::string& name) {
  NodeTable out;
  const std::string text = files.read(name);
  if (name.ends_with(".json")) {
    JsonFeatures json(files.place(name));
    nlohmann::json::sax_parse(text, &json);
    return {.entries = std::move(json.entries),
            .dense = {},
            .order = {},
            .nodes = json.nodes,
            .channels = json.channels,
            .sparse = true,
            .repeats = Repeats::keep_first};
  }
  Table table(text, files.place(name));
  int node = -1;
  for (const char* title : {"node", "id"})
    if (node < 0) node = table.column(title);
  const int channel = table.column("channel"), value = table.column("value");
  out.sparse = node >= 0 && channel >= 0 && value >= 0;
  while (table.next()) {
    if (out.sparse) {
      FeatureEntry e{.row = static_cast<Id>(table.whole(node, "node", 0, kLargest - 1)),
                     .column = static_cast<Id>(table.whole(channel, "channel", 0, kLargest - 1)),
                     .value = table.real(value, "feature")};
      out.nodes = std::max<Offset>(out.nodes, Offset{e.row} + 1);
      out.channels = std::max<Offset>(out.channels, Offset{e.column} + 1);
      out.entries.push_back(e);
    } else {
      if (node >= 0) out.order.push_back(static_cast<Id>(table.whole(node, "node", 0, kLargest - 1)));
      for (int c = 0; c < table.columns(); ++c)
        if (c != node) out.dense.push_back(table.real(c, "feature"));
      out.channels = table.columns() - (node >= 0);
      ++out.nodes;
    }
  }
  if (out.sparse) {
    out.nodes = std::max(out.nodes, table.claim("nodes", 0));
    const Offset channels = table.claim("channels", out.channels);
    if (channels < out.channels)
      fail(files.place(name) + ": channel " + std::to_string(out.channels - 1) + " of " + std::to_string(channels));
    out.channels = channels;
  }
  return out;
}

Features assemble(const std::string& place, NodeTable x, Id nodes) {
  if (x.nodes > nodes || (!x.sparse && x.nodes != nodes))
    fail(place + ": features of " + std::to_string(x.nodes) + " nodes, but the graph has " + std::to_string(nodes));
  if (x.sparse) return sparse_features(place, nodes, x.channels, std::move(x.entries), x.repeats);
  Features out;
  out.dense.resize(nodes, x.channels);
  std::vector<bool> seen(static_cast<std::size_t>(nodes));
  for (Offset row = 0; row < nodes; ++row) {
    const Offset i = x.order.empty() ? row : x.order[row];
    if (i >= nodes || seen[i])
      fail(place + ": row " + std::to_string(row) + " is of node " + std::to_string(i) +
           (i >= nodes ? ", outside 0.." + std::to_string(nodes - 1) : ", which has a row already"));
    seen[i] = true;
    std::copy_n(x.dense.begin() + row * x.channels, x.channels, out.dense.row(i));
  }
  return out;
}

struct Edges {
  std::vector<Edge> list;
  std::vector<float> weights, features;
  int channels = 0;
  EdgePolicy policy;
  Offset claimed = 0;  // nodes
};

Edges read_edges(const Files& files, const std::string& name, const std::optional<Id>& nodes) {
  Edges out;
  const std::string text = files.read(name);
  if (text.empty()) fail(files.place(name) + ": is empty; a graph without edges has a header: from,to");
  Table table(text, files.place(name));
  const auto& header = table.header();
  if (header.size() >= 2 && header[0] == "from" && header[1] == "to")
    out.policy = {.loops = Loops::keep, .direction = Direction::directed};
  int weight = table.column("weight");
  if (header.size() == 1) table.wrong("an edge is two nodes, and then its weight and features");
  const Offset most = (nodes ? Offset{*nodes} : kLargest) - 1;
  const char* node = nodes ? "node that has a line of labels" : "node";
  while (table.next()) {
    if (table.columns() < 2) table.wrong("an edge is two nodes, and then its weight and features");
    if (header.empty() && table.columns() > 2) {
      if (table.columns() > 3) table.wrong("more than three columns need a header that names them");
      weight = 2;
    }
    out.list.push_back(
        {.from = static_cast<Id>(table.whole(0, node, 0, most)), .to = static_cast<Id>(table.whole(1, node, 0, most))});
    if (weight >= 2) out.weights.push_back(table.real(weight, "weight"));
    out.channels = table.columns() - 2 - (weight >= 2);
    for (int c = 2; c < table.columns(); ++c)
      if (c != weight) out.features.push_back(table.real(c, "feature of an edge"));
  }
  if (out.list.empty() && header.size() > 2) out.channels = static_cast<int>(header.size()) - 2 - (weight >= 2);
  out.claimed = table.claim("nodes", 0);
  const auto found = static_cast<Offset>(out.list.size());
  if (const Offset edges = table.claim("edges", 0); !header.empty() && found < edges)
    fail(files.place(name) + ": ends after " + std::to_string(found) + " of " + std::to_string(edges) + " edges");
  return out;
}

}  // namespace

Tables find_tables(const Files& files) {
  Tables out;
  std::vector<std::string> texts;
  auto take = [&](std::string& role, const std::string& name) {
    if (!role.empty()) fail(files.folder() + ": " + role + " and " + name + " may both be meant; keep one of them");
    role = name;
  };
  const auto& chosen = files.chosen();
  for (const auto& name : files.list()) {
    const auto dot = name.rfind('.');
    if (dot == std::string::npos || !files.has(name)) continue;
    const std::string stem = name.substr(0, dot), ending = name.substr(dot);
    const bool table = ending == ".csv" || ending == ".tsv" || ending == ".txt";
    if (!table && !(ending == ".json" && ends(stem, {"features"}))) continue;
    if (name == chosen) continue;
    if (ends(stem, {"features"}))
      take(out.features, name);
    else if (ends(stem, {"labels", "label", "target", "targets"}))
      take(out.labels, name);
    else if (stem == "splits")
      take(out.splits, name);
    else if (ends(stem, {"edges"}) && chosen.empty())
      take(out.edges, name);
    else
      texts.push_back(name);
  }
  if (chosen.ends_with(".csv") || chosen.ends_with(".tsv") || chosen.ends_with(".txt")) out.edges = chosen;
  if (out.edges.empty() && !out.labels.empty())
    for (const auto& name : texts)
      if (out.labels.starts_with(name.substr(0, name.rfind('.')))) take(out.edges, name);
  return out;
}

Dataset csv(const Files& files, const Tables& tables) {
  Dataset out{.name = files.title(), .labels = {}, .splits = {}};
  Offset classes = -1;
  std::optional<Id> nodes;
  std::vector<Offset> labels;
  NodeTable x;
  if (!tables.labels.empty()) {
    labels = read_labels(files, tables.labels, classes);
    nodes = static_cast<Id>(labels.size());
  }
  if (!tables.features.empty()) {
    x = read_features(files, tables.features);
    if (!nodes && !x.sparse) nodes = static_cast<Id>(x.nodes);
  }
  {
    Edges edges = read_edges(files, tables.edges, nodes);
    if (!nodes) {
      const Offset things = static_cast<Offset>(edges.list.size() + x.entries.size());
      check_count(files.place(tables.edges), "nodes", std::max(x.nodes, edges.claimed), things);
      nodes = count_nodes(files.place(tables.edges), edges.list, std::max(x.nodes, edges.claimed));
    }
    out.graph = graph_from_edges(*nodes, edges.list, edges.policy, edges.weights, edges.features, edges.channels);
  }
  out.features = tables.features.empty() ? identity_features(*nodes)
                                         : assemble(files.place(tables.features), std::move(x), *nodes);
  if (tables.labels.empty()) labels.assign(static_cast<std::size_t>(*nodes), -1);
  set_labels(out, files.place(tables.labels), labels, classes);
  if (!tables.splits.empty()) out.splits = splits_of(files, tables.splits, *nodes);
  return out;
}

bool fits_csv(const Files& files) { return !find_tables(files).edges.empty(); }
Dataset read_csv(const Files& files) { return csv(files, find_tables(files)); }

void write_csv(const Dataset& d, const fs::path& folder) {
  for (std::size_t s = 0; s < d.splits.size(); ++s)
    if (d.splits[s].train.empty() && d.splits[s].valid.empty() && d.splits[s].test.empty())
      fail("the tables of csv cannot hold a split without nodes, which split " + std::to_string(s) + " is");
  {
    Lines lines(folder / "edges.csv");
    lines.text() += "# Nodes: " + std::to_string(d.nodes()) + " Edges: " + std::to_string(d.graph.edges()) + "\nfrom,to";
    if (!d.graph.weights.empty()) lines.text() += ",weight";
    for (int c = 0; c < d.graph.channels; ++c) lines.text() += ",feature_" + std::to_string(c);
    lines.text() += "\n";
    const Csr& a = *d.graph.adjacency;
    for (Id i = 0; i < a.rows; ++i)
      for (Offset e = a.offsets[i]; e < a.offsets[i + 1]; ++e) {
        std::string& text = lines.text();
        append(text, Offset{a.ids[e]}), text += ',', append(text, Offset{i});
        if (!d.graph.weights.empty()) text += ',', append(text, d.graph.weights[e]);
        for (int c = 0; c < d.graph.channels; ++c)
          text += ',', append(text, d.graph.features[e * d.graph.channels + c]);
        text += '\n';
      }
    lines.commit();
  }
  {
    Lines lines(folder / "features.csv");
    if (d.features.sparse) {
      const Csr& x = d.features.sparse->pattern();
      lines.text() +=
          "# Nodes: " + std::to_string(x.rows) + " Channels: " + std::to_string(x.cols) + "\nnode,channel,value\n";
      for (Id i = 0; i < x.rows; ++i)
        for (Offset e = x.offsets[i]; e < x.offsets[i + 1]; ++e) {
          std::string& text = lines.text();
          append(text, Offset{i}), text += ',', append(text, Offset{x.ids[e]}), text += ',';
          append(text, d.features.sparse->values[e]);
          text += '\n';
        }
    } else {
      lines.text() += "node";
      for (Offset c = 0; c < d.channels(); ++c) lines.text() += ",feature_" + std::to_string(c);
      lines.text() += "\n";
      for (Offset i = 0; i < d.nodes(); ++i) {
        std::string& text = lines.text();
        append(text, Offset{i});
        for (Offset c = 0; c < d.channels(); ++c) text += ',', append(text, d.features.dense(i, c));
        text += '\n';
      }
    }
    lines.commit();
  }
  {
    Lines lines(folder / "labels.csv");
    lines.text() +=
        "# Nodes: " + std::to_string(d.nodes()) + " Classes: " + std::to_string(d.classes) + "\nnode,label\n";
    for (Id i = 0; i < d.nodes(); ++i) {
      std::string& text = lines.text();
      append(text, Offset{i}), text += ',', append(text, Offset{d.labels[i]}), text += '\n';
    }
    lines.commit();
  }
  if (d.splits.empty()) return;
  Lines lines(folder / "splits.csv");
  lines.text() += "split,node,part\n";
  for (std::size_t s = 0; s < d.splits.size(); ++s) {
    Split copy = d.splits[s];
    for (Part part : {Part::train, Part::valid, Part::test})
      for (Id i : part_of(copy, part)) {
        std::string& text = lines.text();
        append(text, static_cast<Offset>(s)), text += ',', append(text, Offset{i}), text += ',';
        text += kParts[static_cast<int>(part)], text += '\n';
      }
  }
  lines.commit();
}

}  // namespace heed
