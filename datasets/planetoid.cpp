// Nodes 0..rows(allx)-1 have their rows in allx and ally; row k of tx and ty is that of node test.index[k]. The keys of
// the graph say how many nodes there are, so an id in test.index can claim no more.
#include "datasets/planetoid.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <memory>

#include "datasets/files.h"
#include "datasets/pickle.h"

namespace heed {
namespace {

constexpr Id kValid = 500;  // nodes of the public validation set, right after those of training

struct Labels {
  std::vector<Id> of_row;  // -1: none
  Id classes = 0;
};

// rows x classes, each row with at most one 1.
Labels read_labels(const Files& files, const std::string& name, Id rows) {
  const std::string place = files.place(name);
  Pickle pickle(files.read(name), place);
  Array array = pickle.array(pickle.root());
  if (array.shape.size() != 2 || array.shape[0] != rows || array.shape[1] > std::numeric_limits<Id>::max())
    fail(array.name + ": expected labels of " + std::to_string(rows) + " rows and one column a class, found " +
         shape_text(array.shape));
  Labels out{.of_row = std::vector<Id>(static_cast<std::size_t>(rows), -1), .classes = static_cast<Id>(array.shape[1])};
  auto one_hot = array.as<std::int32_t>();
  for (Id i = 0; i < rows; ++i)
    for (Id c = 0; c < out.classes; ++c) {
      std::int32_t x = one_hot[static_cast<std::size_t>(i) * out.classes + c];
      if (x == 0) continue;
      if (x != 1 || out.of_row[i] != -1)
        fail(place + ": row " + std::to_string(i) + " is not the mark of one class: column " + std::to_string(c) +
             " holds " + std::to_string(x) +
             (out.of_row[i] < 0 ? "" : ", column " + std::to_string(out.of_row[i]) + " 1"));
      out.of_row[i] = c;
    }
  return out;
}

SparseRows read_features(const Files& files, const std::string& name) {
  Pickle pickle(files.read(name), files.place(name));
  return pickle.csr_matrix(pickle.root());
}

// One node id a line.
std::vector<Id> read_ids(const Files& files, const std::string& name) {
  std::string text = files.read(name);
  std::vector<Id> out;
  Offset line = 0;
  for (std::size_t at = 0; at < text.size(); ++line) {
    std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view word = std::string_view(text).substr(at, end - at);
    while (!word.empty() && (word.back() == '\r' || word.back() == ' ')) word.remove_suffix(1);
    at = end + 1;
    if (word.empty() && at >= text.size()) break;
    Id id = 0;
    auto [rest, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc{} || rest != word.data() + word.size() || id < 0)
      fail(files.place(name) + ", line " + std::to_string(line + 1) + ": '" + printable(word) + "' is not a node id");
    out.push_back(id);
  }
  return out;
}

// {node: [neighbours]}, with every node of the graph as a key.
Graph read_graph(const Files& files, const std::string& name) {
  const std::string place = files.place(name);
  Pickle pickle(files.read(name), place);
  auto items = pickle.dict(pickle.root());
  if (items.size() / 2 > static_cast<std::size_t>(std::numeric_limits<Id>::max()))
    fail(place + ": " + std::to_string(items.size() / 2) + " nodes are too many");
  Id nodes = static_cast<Id>(items.size() / 2);
  auto node = [&](Pickle::Ref r) {
    std::int64_t id = pickle.integer(r);
    if (id < 0 || id >= nodes)
      fail(pickle.place(r) + ": node " + std::to_string(id) + " is outside 0.." + std::to_string(nodes - 1));
    return static_cast<Id>(id);
  };
  std::vector<bool> seen(static_cast<std::size_t>(nodes));
  std::vector<Edge> edges;
  for (std::size_t i = 0; i < items.size(); i += 2) {
    Id from = node(items[i]);
    if (seen[from]) fail(pickle.place(items[i]) + ": node " + std::to_string(from) + " is listed twice");
    seen[from] = true;
    auto neighbours = pickle.list(items[i + 1]);
    // Each neighbour takes a byte at least, unless lists are shared to claim more edges than the file can hold.
    if (edges.size() + neighbours.size() > pickle.bytes())
      fail(pickle.place(items[i]) + ": more than " + std::to_string(pickle.bytes()) + " neighbours in as many bytes");
    for (Pickle::Ref r : neighbours) edges.push_back({from, node(r)});
  }
  return graph_from_edges(nodes, edges);
}

}  // namespace

Dataset planetoid(const Files& files, const std::string& name) {
  auto file = [&](const char* part) { return "ind." + name + "." + part; };
  auto place = [&](const char* part) { return files.place(file(part)); };
  SparseRows x = read_features(files, file("x"));
  SparseRows allx = read_features(files, file("allx"));
  SparseRows tx = read_features(files, file("tx"));
  Labels y = read_labels(files, file("y"), x.pattern.rows);
  Labels ally = read_labels(files, file("ally"), allx.pattern.rows);
  Labels ty = read_labels(files, file("ty"), tx.pattern.rows);
  std::vector<Id> test = read_ids(files, file("test.index"));
  Dataset out{
      .name = name, .graph = read_graph(files, file("graph")), .labels = {}, .classes = ally.classes, .splits = {}};

  Id nodes = out.nodes();
  Id known = allx.pattern.rows;  // the nodes 0..known-1; the others are those of the test set
  for (const auto& [part, cols] : {std::pair{"x", x.pattern.cols}, {"tx", tx.pattern.cols}})
    if (cols != allx.pattern.cols)
      fail(place(part) + ": " + std::to_string(cols) + " columns, but " + place("allx") + " has " +
           std::to_string(allx.pattern.cols));
  for (const auto& [part, classes] : {std::pair{"y", y.classes}, {"ty", ty.classes}})
    if (classes != ally.classes)
      fail(place(part) + ": " + std::to_string(classes) + " classes, but " + place("ally") + " has " +
           std::to_string(ally.classes));
  if (known > nodes)
    fail(place("graph") + ": " + std::to_string(nodes) + " nodes, but " + place("allx") + " has " +
         std::to_string(known) + " rows");
  if (x.pattern.rows > known || known - x.pattern.rows < kValid)
    fail(place("x") + ": " + std::to_string(x.pattern.rows) + " nodes of training and " + std::to_string(kValid) +
         " of validation are more than the " + std::to_string(known) + " rows of " + place("allx"));
  if (static_cast<Id>(test.size()) != tx.pattern.rows)
    fail(place("test.index") + ": " + std::to_string(test.size()) + " nodes, but " + place("tx") + " has " +
         std::to_string(tx.pattern.rows) + " rows");

  std::vector<Id> row_of(static_cast<std::size_t>(nodes), -1);  // of tx
  for (std::size_t k = 0; k < test.size(); ++k) {
    std::string where = place("test.index") + ", line " + std::to_string(k + 1) + ": node ";
    if (test[k] < known || test[k] >= nodes)
      fail(where + std::to_string(test[k]) + " is outside " + std::to_string(known) + ".." + std::to_string(nodes - 1));
    if (row_of[test[k]] >= 0) fail(where + std::to_string(test[k]) + " is listed twice");
    row_of[test[k]] = static_cast<Id>(k);
  }

  auto pattern = std::make_shared<Csr>(Csr{.rows = nodes, .cols = allx.pattern.cols});
  std::vector<float> values;
  for (Id i = 0; i < nodes; ++i) {
    bool inside = i < known;
    const SparseRows& from = inside ? allx : tx;
    Id row = inside ? i : row_of[i];
    if (row >= 0) {
      auto ids = from.pattern.row(row);
      pattern->ids.insert(pattern->ids.end(), ids.begin(), ids.end());
      values.insert(values.end(), from.values.begin() + from.pattern.offsets[row],
                    from.values.begin() + from.pattern.offsets[row + 1]);
    }
    pattern->offsets.push_back(pattern->edges());
    out.labels.push_back(row < 0 ? -1 : inside ? ally.of_row[row] : ty.of_row[row]);
  }
  out.features.sparse = std::make_shared<Sparse>(std::move(pattern), std::move(values));

  Split split;
  for (Id i = 0; i < x.pattern.rows; ++i) split.train.push_back(i);
  for (Id i = x.pattern.rows; i < x.pattern.rows + kValid; ++i) split.valid.push_back(i);
  split.test = std::move(test);
  std::sort(split.test.begin(), split.test.end());
  out.splits.push_back(std::move(split));
  return out;
}

namespace {

// The <name> of the files ind.<name>.x, or of the chosen one; "" if there is none.
std::string name_in(const Files& files) {
  auto middle = [](const std::string& file) {
    const auto dot = file.find('.', 4);
    return file.starts_with("ind.") && dot != std::string::npos ? file.substr(4, dot - 4) : "";
  };
  if (!files.chosen().empty()) return middle(files.chosen());
  std::string found;
  for (const auto& file : files.list()) {
    if (!file.starts_with("ind.") || !file.ends_with(".allx")) continue;
    if (!found.empty())
      fail(files.folder() + " holds several datasets; name a file of one of them: ind." + found + ".x, " + "ind." +
           middle(file) + ".x");
    found = middle(file);
  }
  return found;
}

}  // namespace

bool fits_planetoid(const Files& files) {
  const std::string name = name_in(files);
  return !name.empty() && files.has("ind." + name + ".allx");
}

Dataset read_planetoid(const Files& files) { return planetoid(files, name_in(files)); }

}  // namespace heed
