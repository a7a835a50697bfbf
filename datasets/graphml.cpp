#include "datasets/graphml.h"

#include <algorithm>
#include <pugixml.hpp>
#include <set>
#include <string_view>
#include <unordered_map>

#include "datasets/parts.h"
#include "datasets/text.h"

namespace heed {
namespace {

enum class Role { other, label, feature, split, weight, edge_feature, classes, sparse };
struct Key {
  Role role = Role::other;
  int number = 0;  // of the features or splits
  std::string_view name;
  pugi::xml_node otherwise = {};  // what elements without data have; may be none
};

bool is_feature(std::string_view name) {
  return name.starts_with("feature") ||
         (name.size() > 1 && name[0] == 'x' && name.find_first_not_of("0123456789", 1) == std::string_view::npos);
}

std::string_view text_of(const pugi::xml_node& node) {
  std::string_view text = node.child_value();
  while (!text.empty() && static_cast<unsigned char>(text.front()) <= ' ') text.remove_prefix(1);
  while (!text.empty() && static_cast<unsigned char>(text.back()) <= ' ') text.remove_suffix(1);
  return text;
}

// The one file that is meant: the one that was named, unless its ending says that it is something else, or the one
// .graphml of the folder; "" if there is none.
std::string file_of(const Files& files) {
  if (!files.chosen().empty()) {
    for (const char* other : {".csv", ".tsv", ".txt", ".json", ".mtx", ".npz", ".npy"})
      if (files.chosen().ends_with(other)) return "";
    return files.chosen();
  }
  std::string found;
  for (const auto& name : files.list()) {
    if (!name.ends_with(".graphml")) continue;
    if (!found.empty()) fail(files.folder() + " holds several graphs; name one of them: " + found + ", " + name);
    found = name;
  }
  return found;
}

class Reader {
 public:
  Reader(const Files& files, const std::string& name)
      : place_(files.place(name)), text_(files.read(name)), out_{.name = files.title(), .labels = {}, .splits = {}} {}

  Dataset read() {
    pugi::xml_document document;
    auto result = document.load_buffer_inplace(text_.data(), text_.size(), pugi::parse_default, pugi::encoding_utf8);
    if (!result) fail(place_ + ", byte " + std::to_string(result.offset) + ": " + result.description());
    const pugi::xml_node root = document.child("graphml"), graph = root.child("graph");
    if (!graph) fail(place_ + ": holds no <graphml> with a <graph> in it");
    if (graph.next_sibling("graph")) wrong(graph.next_sibling("graph"), "a second graph; a dataset is one graph");
    if (const std::string_view way = graph.attribute("edgedefault").value();
        !way.empty() && way != "directed" && way != "undirected")
      wrong(graph, "edgedefault is '" + printable(way) + "', neither directed nor undirected");
    for (auto key : root.children("key")) read_key(key);
    if (graph.child("hyperedge")) wrong(graph.child("hyperedge"), "a hyperedge; edges join two nodes");
    each_datum(graph, Role::classes, Role::sparse, [&](const pugi::xml_node& data, const Key& key) {
      if (key.role == Role::classes && (!parse(text_of(data), classes_) || classes_ < 0))
        wrong(data, "'" + printable(text_of(data)) + "' is not a number of classes");
      if (key.role == Role::sparse) sparse_ = text_of(data) == "true";
    });
    Offset nodes = 0;
    for (auto node : graph.children("node")) read_node(node, nodes++);
    for (auto edge : graph.children("edge")) read_edge(edge, graph);
    return assemble();
  }

 private:
  [[noreturn]] void wrong(const pugi::xml_node& at, const std::string& what) const {
    fail(place_ + ", byte " + std::to_string(at.offset_debug()) + ": " + what);
  }

  void read_key(const pugi::xml_node& node) {
    const std::string_view of = node.attribute("for").value(), name = node.attribute("attr.name").value();
    Key key{.name = name, .otherwise = node.child("default")};
    if (of == "node" && name == "label")
      key.role = Role::label;
    else if (of == "node" && is_feature(name))
      key.role = Role::feature, key.number = channels_++;
    else if (of == "node" && name.starts_with("split"))
      key.role = Role::split, key.number = splits_++;
    else if (of == "edge" && name == "weight")
      key.role = Role::weight;
    else if (of == "edge" && is_feature(name))
      key.role = Role::edge_feature, key.number = edge_channels_++;
    else if (of == "graph" && name == "classes")
      key.role = Role::classes;
    else if (of == "graph" && name == "sparse")
      key.role = Role::sparse;
    if (key.role != Role::other && !named_.emplace(of, name).second)
      wrong(node, "a second key of a " + printable(of) + "'s '" + printable(name) + "'");
    const auto [at, is_new] = keys_.emplace(node.attribute("id").value(), key);
    if (!is_new) wrong(node, std::string("the key '") + printable(node.attribute("id").value()) + "' is there twice");
    if (key.role != Role::other && key.otherwise) defaults_.push_back(&at->second);
  }

  const Key& key_of(const pugi::xml_node& data) const {
    auto found = keys_.find(data.attribute("key").value());
    if (found == keys_.end())
      wrong(data, std::string("the key '") + printable(data.attribute("key").value()) + "' is not declared");
    return found->second;
  }

  // visit(data, key) for all data of an element, and then for the defaults of the keys, among roles `first` to `last`,
  // that it lacks.
  template <class Visit>
  void each_datum(const pugi::xml_node& of, Role first, Role last, Visit visit) {
    std::vector<const Key*> has;
    for (auto data : of.children("data")) {
      const Key& key = key_of(data);
      visit(data, key);
      if (!defaults_.empty()) has.push_back(&key);
    }
    std::ranges::sort(has);
    for (const Key* key : defaults_)
      if (key->role >= first && key->role <= last && !std::ranges::binary_search(has, key))
        visit(key->otherwise, *key);
  }

  float number(const pugi::xml_node& data, const Key& key) const {
    float out = 0;
    if (!parse(text_of(data), out))
      wrong(data, printable(key.name) + " is '" + printable(text_of(data)) + "', not a finite number");
    return out;
  }

  void read_node(const pugi::xml_node& node, Offset i) {
    check_count(place_, "nodes", i + 1, i + 1);
    if (!node.attribute("id")) wrong(node, "a node without an id");
    if (!ids_.emplace(node.attribute("id").value(), static_cast<Id>(i)).second)
      wrong(node, std::string("the node '") + printable(node.attribute("id").value()) + "' is there twice");
    if (node.child("graph")) wrong(node.child("graph"), "a graph within a node; a dataset is one graph");
    labels_.push_back(-1);
    each_datum(node, Role::label, Role::split, [&](const pugi::xml_node& data, const Key& key) {
      if (key.role == Role::label) {
        if (!parse(text_of(data), labels_.back()) || labels_.back() < -1)
          wrong(data, "the label '" + printable(text_of(data)) + "' is not a class, which is a whole number from 0 on");
      } else if (key.role == Role::feature) {
        const FeatureEntry entry{.row = static_cast<Id>(i), .column = key.number, .value = number(data, key)};
        if (entry.value != 0 || data.parent() == node) entries_.push_back(entry);
        if (entries_.size() > 64 * text_.size())
          wrong(node, "defaults of the features make more of them than such a file can mean");
      } else if (key.role == Role::split) {
        const auto text = text_of(data);
        auto at = std::find(std::begin(kParts), std::end(kParts), text);
        if (at == std::end(kParts)) wrong(data, "'" + printable(text) + "' is none of train, valid and test");
        if (at != std::begin(kParts))
          parts_.push_back({key.number, static_cast<Part>(at - std::begin(kParts)), static_cast<Id>(i)});
      }
    });
  }

  Id end_of(const pugi::xml_node& edge, const char* end) const {
    auto found = ids_.find(edge.attribute(end).value());
    if (found == ids_.end())
      wrong(edge,
            std::string("the ") + end + " '" + printable(edge.attribute(end).value()) + "' of an edge is no node");
    return found->second;
  }

  void read_edge(const pugi::xml_node& node, const pugi::xml_node& graph) {
    const Edge edge{.from = end_of(node, "source"), .to = end_of(node, "target")};
    const std::string_view own = node.attribute("directed").value(), all = graph.attribute("edgedefault").value();
    const bool directed = own.empty() ? all == "directed" : own == "true";
    float weight = 1;
    std::vector<std::pair<int, float>> found;
    each_datum(node, Role::weight, Role::edge_feature, [&](const pugi::xml_node& data, const Key& key) {
      if (key.role == Role::weight) weight = number(data, key), weighted_ = true;
      if (key.role == Role::edge_feature) found.emplace_back(key.number, number(data, key));
    });
    std::ranges::stable_sort(found, {}, &std::pair<int, float>::first);
    std::vector<float> features;
    for (auto [channel, value] : found)
      if (channel == static_cast<int>(features.size())) features.push_back(value);
    if (static_cast<int>(found.size()) != edge_channels_ || features.size() != found.size())
      wrong(node, "an edge with " + std::to_string(found.size()) + " of " + std::to_string(edge_channels_) +
                      " features, or one of them twice");
    for (int way = 0; way < (directed || edge.from == edge.to ? 1 : 2); ++way) {
      edges_.push_back(way == 0 ? edge : Edge{.from = edge.to, .to = edge.from});
      weights_.push_back(weight);
      edge_features_.insert(edge_features_.end(), features.begin(), features.end());
    }
  }

  Dataset assemble() {
    const auto nodes = static_cast<Id>(labels_.size());
    if (!weighted_) weights_.clear();
    out_.graph = graph_from_edges(nodes, edges_, {.loops = Loops::keep, .direction = Direction::directed}, weights_,
                                  edge_features_, edge_channels_);
    order_entries();
    const Offset filled = std::ranges::count_if(entries_, [](const FeatureEntry& e) { return e.value != 0; });
    if (channels_ == 0 && !sparse_ && nodes > 0) {
      out_.features = identity_features(nodes);
    } else if (sparse_ || 10 * filled < Offset{nodes} * channels_) {
      if (!sparse_) std::erase_if(entries_, [](const FeatureEntry& e) { return e.value == 0; });
      out_.features = sparse_features({.pattern = pattern(nodes), .values = values()});
    } else {
      out_.features.dense.resize(nodes, channels_);
      for (const auto& e : entries_) out_.features.dense(e.row, e.column) = e.value;
    }
    set_labels(out_, place_, labels_, classes_);
    out_.splits.resize(static_cast<std::size_t>(splits_));
    for (auto [split, part, node] : parts_) part_of(out_.splits[split], part).push_back(node);
    for (std::size_t s = 0; s < out_.splits.size(); ++s) {
      Split& x = out_.splits[s];
      x = make_split(place_ + ": split " + std::to_string(s), nodes, x.train, x.valid, x.test);
    }
    return std::move(out_);
  }

  void order_entries() {
    std::stable_sort(entries_.begin(), entries_.end(), [](const FeatureEntry& a, const FeatureEntry& b) {
      return std::pair(a.row, a.column) < std::pair(b.row, b.column);
    });
    auto same = [](const FeatureEntry& a, const FeatureEntry& b) { return a.row == b.row && a.column == b.column; };
    if (auto twice = std::adjacent_find(entries_.begin(), entries_.end(), same); twice != entries_.end())
      fail(place_ + ": feature " + std::to_string(twice->column) + " of node " + std::to_string(twice->row) +
           " is there twice");
  }

  // There is a declaration for each channel, so their number is in proportion to the file.
  Csr pattern(Id nodes) const {
    Csr out{.rows = nodes, .cols = channels_};
    out.offsets.assign(static_cast<std::size_t>(nodes) + 1, 0);
    for (const auto& e : entries_) {
      out.ids.push_back(e.column);
      ++out.offsets[e.row + 1];
    }
    for (Id i = 0; i < nodes; ++i) out.offsets[i + 1] += out.offsets[i];
    return out;
  }
  std::vector<float> values() const {
    std::vector<float> out;
    for (const auto& e : entries_) out.push_back(e.value);
    return out;
  }

  struct Member {
    int split;
    Part part;
    Id node;
  };
  std::string place_;
  std::string text_;  // keys and ids lie in here
  Dataset out_;
  std::unordered_map<std::string_view, Key> keys_;
  std::vector<const Key*> defaults_;  // of keys that mean something, in their order
  std::set<std::pair<std::string_view, std::string_view>> named_;
  std::unordered_map<std::string_view, Id> ids_;
  int channels_ = 0, edge_channels_ = 0, splits_ = 0;
  Offset classes_ = -1;
  bool sparse_ = false, weighted_ = false;
  std::vector<Offset> labels_;
  std::vector<FeatureEntry> entries_;
  std::vector<Member> parts_;
  std::vector<Edge> edges_;
  std::vector<float> weights_, edge_features_;
};

}  // namespace

bool fits_graphml(const Files& files) {
  const std::string name = file_of(files);
  return !name.empty() && files.has(name) && files.read(name).find("<graphml") != std::string::npos;
}

Dataset read_graphml(const Files& files) {
  const std::string name = file_of(files);
  if (name.empty()) fail(files.folder() + ": no .graphml is in it");
  return Reader(files, name).read();
}

void write_graphml(const Dataset& d, const std::filesystem::path& file) {
  if (d.channels() == 0) fail("GraphML cannot say that the nodes have no features");
  if (!d.features.sparse &&
      10 * (d.features.dense.size() - std::ranges::count(d.features.dense, 0.0f)) < d.features.dense.size())
    fail("GraphML cannot say that features of which fewer than a tenth are not zero are dense; make them sparse");
  Lines lines(file);
  auto key = [&](const char* of, const std::string& id, const std::string& name, const char* type) {
    lines.text() +=
        "  <key id=\"" + id + "\" for=\"" + of + "\" attr.name=\"" + name + "\" attr.type=\"" + type + "\"/>\n";
  };
  lines.text() +=
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<graphml xmlns=\"http://graphml.graphdrawing.org/xmlns\">\n";
  key("graph", "c", "classes", "int");
  if (d.features.sparse) key("graph", "z", "sparse", "boolean");
  key("node", "y", "label", "int");
  for (Offset c = 0; c < d.channels(); ++c)
    key("node", "x" + std::to_string(c), "feature_" + std::to_string(c), "float");
  for (std::size_t s = 0; s < d.splits.size(); ++s)
    key("node", "s" + std::to_string(s), "split_" + std::to_string(s), "string");
  if (!d.graph.weights.empty()) key("edge", "w", "weight", "float");
  for (int c = 0; c < d.graph.channels; ++c)
    key("edge", "e" + std::to_string(c), "feature_" + std::to_string(c), "float");
  lines.text() += "  <graph edgedefault=\"directed\">\n    <data key=\"c\">" + std::to_string(d.classes) + "</data>\n";
  if (d.features.sparse) lines.text() += "    <data key=\"z\">true</data>\n";

  auto value = [&](std::string& text, char of, Offset number, float x) {
    text += "<data key=\"", text += of, append(text, number), text += "\">", append(text, x), text += "</data>";
  };
  std::vector<std::vector<std::pair<std::size_t, Part>>> member(static_cast<std::size_t>(d.nodes()));
  for (std::size_t s = 0; s < d.splits.size(); ++s) {
    Split copy = d.splits[s];
    for (Part part : {Part::train, Part::valid, Part::test})
      for (Id i : part_of(copy, part)) member[i].emplace_back(s, part);
  }
  for (Id i = 0; i < d.nodes(); ++i) {
    std::string& text = lines.text();
    text += "    <node id=\"", append(text, Offset{i}), text += "\"><data key=\"y\">";
    append(text, Offset{d.labels[i]}), text += "</data>";
    if (d.features.sparse) {
      const Csr& x = d.features.sparse->pattern();
      for (Offset e = x.offsets[i]; e < x.offsets[i + 1]; ++e) value(text, 'x', x.ids[e], d.features.sparse->values[e]);
    } else {
      for (Offset c = 0; c < d.channels(); ++c) value(text, 'x', c, d.features.dense(i, c));
    }
    for (auto [s, part] : member[i]) {
      text += "<data key=\"s", append(text, static_cast<Offset>(s)), text += "\">";
      text += kParts[static_cast<int>(part)], text += "</data>";
    }
    text += "</node>\n";
  }
  const Csr& a = *d.graph.adjacency;
  for (Id i = 0; i < a.rows; ++i)
    for (Offset e = a.offsets[i]; e < a.offsets[i + 1]; ++e) {
      std::string& text = lines.text();
      text += "    <edge source=\"", append(text, Offset{a.ids[e]}), text += "\" target=\"";
      append(text, Offset{i}), text += "\">";
      if (!d.graph.weights.empty()) text += "<data key=\"w\">", append(text, d.graph.weights[e]), text += "</data>";
      for (int c = 0; c < d.graph.channels; ++c) value(text, 'e', c, d.graph.features[e * d.graph.channels + c]);
      text += "</edge>\n";
    }
  lines.text() += "  </graph>\n</graphml>\n";
  lines.commit();
}

}  // namespace heed
