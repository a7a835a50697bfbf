#include "datasets/market.h"

#include <algorithm>
#include <limits>

#include "datasets/parts.h"
#include "datasets/text.h"

namespace heed {
namespace fs = std::filesystem;
namespace {

struct Market {
  std::string place;
  Offset rows = 0, cols = 0;
  bool array = false, pattern = false;
  std::vector<FeatureEntry> entries;  // of coordinates
  std::vector<float> values;          // of an array, by columns
  Offset classes = -1;

  float at(Offset i, Offset c) const { return values[static_cast<std::size_t>(c * rows + i)]; }
};

Market parse_market(std::string_view text, const std::string& place) {
  Market out{.place = place, .entries = {}, .values = {}};
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  const std::string first(text.substr(0, std::min(text.find('\n'), text.size())));
  std::vector<std::string> words;
  for (std::size_t at = 0; at < first.size();) {
    auto end = std::min(first.find_first_of(" \t\r", at), first.size());
    if (end > at) words.push_back(first.substr(at, end - at));
    at = end + 1;
  }
  for (auto& word : words)
    for (char& c : word)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  auto wrong = [&](const std::string& what) { fail(place + ", line 1: " + what); };
  if (words.size() != 5 || words[0] != "%%matrixmarket" || words[1] != "matrix")
    wrong("expected '%%MatrixMarket matrix coordinate real general' or the like");
  out.array = words[2] == "array";
  out.pattern = words[3] == "pattern";
  if (!out.array && words[2] != "coordinate") wrong("'" + printable(words[2]) + "' is neither coordinate nor array");
  if (words[3] != "real" && words[3] != "integer" && words[3] != "double" && (!out.pattern || out.array))
    wrong("elements of the kind '" + printable(words[3]) + "' are not read");
  const bool symmetric = words[4] == "symmetric";
  if ((!symmetric || out.array) && words[4] != "general")
    wrong("'" + printable(words[4]) + "' is not read; general and, of coordinates, symmetric are");

  Table table(text, place);
  if (!table.next(true) || table.columns() != (out.array ? 2 : 3) || !table.header().empty())
    table.wrong(out.array ? "expected rows and columns" : "expected rows, columns and the number of entries");
  constexpr Offset kLargest = std::numeric_limits<Id>::max();
  out.rows = table.whole(0, "number of rows", 0, kLargest);
  out.cols = table.whole(1, "number of columns", 0, kLargest);
  out.classes = table.claim("classes", -1);
  const Offset claimed =
      out.array ? out.rows * out.cols : table.whole(2, "number of entries", 0, std::numeric_limits<Offset>::max());
  if (claimed > static_cast<Offset>(text.size()))
    table.wrong("claims " + std::to_string(claimed) + " entries in " + std::to_string(text.size()) + " bytes");
  if (symmetric && out.rows != out.cols) table.wrong("a symmetric matrix is square");
  const int columns = out.array ? 1 : out.pattern ? 2 : 3;
  Offset found = 0;
  while (table.next(true)) {
    if (table.columns() != columns)
      table.wrong(std::to_string(table.columns()) + " fields, but an entry has " + std::to_string(columns));
    if (++found > claimed) table.wrong("there are more entries than the " + std::to_string(claimed) + " announced");
    if (out.array) {
      out.values.push_back(table.real(0, "element"));
      continue;
    }
    FeatureEntry e{.row = static_cast<Id>(table.whole(0, "row", 1, out.rows) - 1),
                   .column = static_cast<Id>(table.whole(1, "column", 1, out.cols) - 1),
                   .value = out.pattern ? 1.0f : table.real(2, "element")};
    out.entries.push_back(e);
    if (symmetric && e.row != e.column) out.entries.push_back({.row = e.column, .column = e.row, .value = e.value});
  }
  if (found != claimed)
    fail(place + ": ends after " + std::to_string(found) + " of " + std::to_string(claimed) + " entries");
  out.classes = table.claim("classes", -1);
  return out;
}

Offset whole(const Market& m, Offset i, Offset c, Offset low, Offset high) {
  const float x = m.at(i, c);
  if (!(x >= static_cast<float>(low) && x <= static_cast<float>(high)) ||
      x != static_cast<float>(static_cast<Offset>(x)))
    fail(m.place + ": row " + std::to_string(i + 1) + ", column " + std::to_string(c + 1) + " is " + std::to_string(x) +
         ", not a whole number of " + std::to_string(low) + ".." + std::to_string(high));
  return static_cast<Offset>(x);
}

std::string graph_file(const Files& files) {
  if (!files.chosen().empty()) return files.chosen().ends_with(".mtx") ? files.chosen() : "";
  return files.has("graph.mtx") ? "graph.mtx" : "";
}

void write_array(const fs::path& path, const char* kind, const std::string& comment, Offset rows, Offset cols,
                 const auto& at) {
  Lines lines(path);
  lines.text() += std::string("%%MatrixMarket matrix array ") + kind + " general\n" + comment + std::to_string(rows) +
                  " " + std::to_string(cols) + "\n";
  for (Offset c = 0; c < cols; ++c)
    for (Offset i = 0; i < rows; ++i) {
      std::string& text = lines.text();
      append(text, at(i, c)), text += '\n';
    }
  lines.commit();
}

void write_coordinates(const fs::path& path, const Csr& a, const std::vector<float>& values) {
  Lines lines(path);
  lines.text() += std::string("%%MatrixMarket matrix coordinate ") + (values.empty() ? "pattern" : "real") +
                  " general\n" + std::to_string(a.rows) + " " + std::to_string(a.cols) + " " +
                  std::to_string(a.edges()) + "\n";
  for (Id i = 0; i < a.rows; ++i)
    for (Offset e = a.offsets[i]; e < a.offsets[i + 1]; ++e) {
      std::string& text = lines.text();
      append(text, Offset{i} + 1), text += ' ', append(text, Offset{a.ids[e]} + 1);
      if (!values.empty()) text += ' ', append(text, values[e]);
      text += '\n';
    }
  lines.commit();
}

}  // namespace

bool fits_market(const Files& files) {
  const std::string name = graph_file(files);
  return !name.empty() && files.has(name) && files.read(name).starts_with("%%MatrixMarket");
}

Dataset read_market(const Files& files) {
  const std::string file = graph_file(files);
  const bool alone = !files.chosen().empty() && files.chosen() != "graph.mtx";
  Dataset out{.name = files.title(), .labels = {}, .splits = {}};
  auto read = [&](const std::string& name) { return parse_market(files.read(name), files.place(name)); };
  auto there = [&](const char* name) { return !alone && files.has(name); };
  auto rows = [](const Market& m, Offset expected, const char* what) {
    if (m.rows != expected)
      fail(m.place + ": " + std::to_string(m.rows) + " rows, but there are " + std::to_string(expected) + " " + what);
  };
  auto is_array = [](const Market& m) {
    if (!m.array) fail(m.place + ", line 1: expected an array, not coordinates");
  };

  std::vector<Offset> labels;
  Offset classes = -1;
  if (there("labels.mtx")) {
    const Market m = read("labels.mtx");
    is_array(m);
    if (m.cols != 1) fail(m.place + ": " + std::to_string(m.cols) + " columns, but a node has one label");
    for (Offset i = 0; i < m.rows; ++i) labels.push_back(whole(m, i, 0, -1, 1 << 24));  // a float holds these exactly
    classes = m.classes;
  }
  {
    Market m = read(file);
    if (m.array) fail(m.place + ", line 1: a graph is a matrix of coordinates");
    if (m.rows != m.cols)
      fail(m.place + ": a graph of " + std::to_string(m.rows) + " x " + std::to_string(m.cols) + " nodes");
    if (labels.empty())
      check_count(m.place, "nodes", m.rows, static_cast<Offset>(m.entries.size()));
    else if (static_cast<Offset>(labels.size()) != m.rows)
      fail(files.place("labels.mtx") + ": " + std::to_string(labels.size()) + " rows, but there are " +
           std::to_string(m.rows) + " nodes");
    std::vector<Edge> edges;
    std::vector<float> weights;
    for (const auto& e : m.entries) {
      edges.push_back({.from = e.column, .to = e.row});
      if (!m.pattern) weights.push_back(e.value);
    }
    out.graph = graph_from_edges(
        static_cast<Id>(m.rows), edges,
        {.repeats = Repeats::sum_weights, .loops = Loops::keep, .direction = Direction::directed}, weights);
  }
  const Id nodes = out.nodes();
  if (there("edge_features.mtx")) {
    const Market m = read("edge_features.mtx");
    is_array(m);
    rows(m, out.graph.edges(), "edges");
    out.graph.channels = static_cast<int>(m.cols);
    for (Offset e = 0; e < m.rows; ++e)
      for (Offset c = 0; c < m.cols; ++c) out.graph.features.push_back(m.at(e, c));
  }
  if (there("features.mtx")) {
    Market m = read("features.mtx");
    rows(m, nodes, "nodes");
    if (m.array) {
      out.features.dense.resize(nodes, m.cols);
      for (Offset i = 0; i < m.rows; ++i)
        for (Offset c = 0; c < m.cols; ++c) out.features.dense(i, c) = m.at(i, c);
    } else {
      out.features = sparse_features(m.place, nodes, m.cols, std::move(m.entries), Repeats::sum_weights);
    }
  } else {
    out.features = identity_features(nodes);
  }
  if (labels.empty()) labels.assign(static_cast<std::size_t>(nodes), -1);
  set_labels(out, files.place(there("labels.mtx") ? "labels.mtx" : file), labels, classes);
  if (there("splits.mtx")) {
    const Market m = read("splits.mtx");
    is_array(m);
    rows(m, nodes, "nodes");
    if (m.rows > 0) out.splits.resize(static_cast<std::size_t>(m.cols));
    for (Offset s = 0; s < static_cast<Offset>(out.splits.size()); ++s)
      for (Id i = 0; i < nodes; ++i)
        if (auto part = static_cast<Part>(whole(m, i, s, 0, 3)); part != Part::none)
          part_of(out.splits[s], part).push_back(i);
  }
  return out;
}

void write_market(const Dataset& d, const fs::path& folder) {
  if (d.classes > 1 << 24) fail("Matrix Market's numbers hold at most 16777216 classes here");
  write_coordinates(folder / "graph.mtx", *d.graph.adjacency, d.graph.weights);
  if (d.graph.channels > 0)
    write_array(folder / "edge_features.mtx", "real", "", d.graph.edges(), d.graph.channels,
                [&](Offset e, Offset c) { return d.graph.features[e * d.graph.channels + c]; });
  if (d.features.sparse) {
    write_coordinates(folder / "features.mtx", d.features.sparse->pattern(), d.features.sparse->values);
  } else {
    write_array(folder / "features.mtx", "real", "", d.nodes(), d.channels(),
                [&](Offset i, Offset c) { return d.features.dense(i, c); });
  }
  write_array(folder / "labels.mtx", "integer", "% Classes: " + std::to_string(d.classes) + "\n", d.nodes(), 1,
              [&](Offset i, Offset) { return Offset{d.labels[i]}; });
  if (d.splits.empty()) return;
  std::vector<Part> parts;
  Offset of = -1;
  write_array(folder / "splits.mtx", "integer", "% 0 none, 1 train, 2 valid, 3 test\n", d.nodes(),
              static_cast<Offset>(d.splits.size()), [&](Offset i, Offset s) {
                if (s != of) parts = parts_of(d.splits[s], d.nodes()), of = s;
                return static_cast<Offset>(parts[i]);
              });
}

}  // namespace heed
