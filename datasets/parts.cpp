#include "datasets/parts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

namespace heed {
namespace {

constexpr Offset kFreeIds = Offset{1} << 16;  // unused ids that cost nothing worth speaking of
constexpr Offset kIdsForEach = 64;            // and so many more for each thing that is there

}  // namespace

Features sparse_features(SparseRows x) {
  Features out;
  out.sparse = std::make_shared<Sparse>(std::make_shared<Csr>(std::move(x.pattern)), std::move(x.values));
  return out;
}

Features sparse_features(const std::string& place, Id rows, Offset columns, std::vector<FeatureEntry> entries,
                         Repeats repeats) {
  check_count(place, "channels", columns, static_cast<Offset>(entries.size()));
  std::stable_sort(entries.begin(), entries.end(), [](const FeatureEntry& a, const FeatureEntry& b) {
    return std::pair(a.row, a.column) < std::pair(b.row, b.column);
  });
  SparseRows out{.pattern = {.rows = rows, .cols = static_cast<Id>(columns)}, .values = {}};
  out.pattern.offsets.assign(static_cast<std::size_t>(rows) + 1, 0);
  for (std::size_t e = 0; e < entries.size(); ++e) {
    const FeatureEntry& x = entries[e];
    if (x.row < 0 || x.row >= rows || x.column < 0 || x.column >= columns)
      fail(place + ": feature " + std::to_string(x.column) + " of node " + std::to_string(x.row) + " is outside " +
           std::to_string(rows) + " x " + std::to_string(columns));
    if (e > 0 && entries[e - 1].row == x.row && entries[e - 1].column == x.column) {
      if (repeats == Repeats::sum_weights) out.values.back() += x.value;
      continue;
    }
    out.pattern.ids.push_back(x.column);
    out.values.push_back(x.value);
    ++out.pattern.offsets[x.row + 1];
  }
  for (Id i = 0; i < rows; ++i) out.pattern.offsets[i + 1] += out.pattern.offsets[i];
  return sparse_features(std::move(out));
}

Features identity_features(Id nodes) {
  return sparse_features(
      {.pattern = identity(nodes), .values = std::vector<float>(static_cast<std::size_t>(nodes), 1.0f)});
}

Features compact(Matrix<float> x) {
  const Offset filled = x.size() - std::count(x.begin(), x.end(), 0.0f);
  Features out;
  if (x.empty() || 10 * filled >= x.size() || x.cols() > std::numeric_limits<Id>::max()) {
    out.dense = std::move(x);
    return out;
  }
  SparseRows rows{.pattern = {.rows = static_cast<Id>(x.rows()), .cols = static_cast<Id>(x.cols())}, .values = {}};
  rows.pattern.offsets.reserve(static_cast<std::size_t>(x.rows()) + 1);
  rows.pattern.ids.reserve(static_cast<std::size_t>(filled));
  rows.values.reserve(static_cast<std::size_t>(filled));
  for (Offset i = 0; i < x.rows(); ++i) {
    for (Offset c = 0; c < x.cols(); ++c)
      if (x(i, c) != 0) {
        rows.pattern.ids.push_back(static_cast<Id>(c));
        rows.values.push_back(x(i, c));
      }
    rows.pattern.offsets.push_back(rows.pattern.edges());
  }
  return sparse_features(std::move(rows));
}

void check_finite(const std::string& place, std::span<const float> values, Offset columns) {
  for (std::size_t t = 0; t < values.size(); ++t)
    if (!std::isfinite(values[t]))
      fail(place + ": row " + std::to_string(static_cast<Offset>(t) / columns) + ", column " +
           std::to_string(static_cast<Offset>(t) % columns) + " is " + std::to_string(values[t]));
}

Matrix<float> matrix(const Array& array, Id rows) {
  if (array.shape.empty() || array.shape.size() > 2 || array.shape[0] != rows)
    fail(array.name + ": " + shape_text(array.shape) + ", but there are " + std::to_string(rows) + " rows to fill");
  auto values = array.as<float>();
  Matrix<float> out(rows, array.shape.size() == 2 ? array.shape[1] : 1);
  check_finite(array.name, values, std::max<Offset>(out.cols(), 1));
  std::copy(values.begin(), values.end(), out.begin());
  return out;
}

void set_labels(Dataset& d, const std::string& place, std::span<const Offset> labels, Offset classes) {
  if (static_cast<Offset>(labels.size()) != d.nodes())
    fail(place + ": " + std::to_string(labels.size()) + " labels for " + std::to_string(d.nodes()) + " nodes");
  const bool counted = classes >= 0;
  if (classes > std::numeric_limits<Id>::max()) fail(place + ": " + std::to_string(classes) + " classes are too many");
  Offset most = -1;
  d.labels.resize(labels.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] < -1 || labels[i] >= (counted ? classes : Offset{d.nodes()}))
      fail(place + ": node " + std::to_string(i) + " has the label " + std::to_string(labels[i]) + ", but there are " +
           (counted ? std::to_string(classes) + " classes" : "only " + std::to_string(d.nodes()) + " nodes") +
           " (-1: unknown)");
    d.labels[i] = static_cast<Id>(labels[i]);
    most = std::max(most, labels[i]);
  }
  d.classes = static_cast<Id>(counted ? classes : most + 1);
}

Id check_count(const std::string& place, const char* what, Offset count, Offset things) {
  if (count < 0 || count > kFreeIds + kIdsForEach * things || count > std::numeric_limits<Id>::max())
    fail(place + ": " + std::to_string(count) + " " + what + " are too many for " + std::to_string(things) +
         " entries; almost all ids would be unused");
  return static_cast<Id>(count);
}

Id count_nodes(const std::string& place, std::span<const Edge> edges, Offset at_least) {
  Offset nodes = at_least;
  for (auto [from, to] : edges) nodes = std::max<Offset>(nodes, Offset{std::max(from, to)} + 1);
  return check_count(place, "nodes", nodes, static_cast<Offset>(edges.size()));
}

std::vector<Id>& part_of(Split& split, Part part) {
  return part == Part::train ? split.train : part == Part::valid ? split.valid : split.test;
}

Split make_split(const std::string& place, Id nodes, std::vector<Id> train, std::vector<Id> valid,
                 std::vector<Id> test) {
  Split out{.train = std::move(train), .valid = std::move(valid), .test = std::move(test)};
  struct Member {
    Id node;
    Part part;
    std::size_t entry;
  };
  std::vector<Member> all;  // sorted by node: time goes with the split, not with the graph
  for (Part part : {Part::train, Part::valid, Part::test}) {
    std::vector<Id>& ids = part_of(out, part);
    for (std::size_t t = 0; t < ids.size(); ++t) all.push_back({ids[t], part, t});
    std::sort(ids.begin(), ids.end());
  }
  std::stable_sort(all.begin(), all.end(), [](const Member& a, const Member& b) { return a.node < b.node; });
  for (std::size_t m = 0; m < all.size(); ++m) {
    auto [node, part, entry] = all[m];
    auto where = [&, part = part, entry = entry, node = node] {
      return place + ": " + kParts[static_cast<int>(part)] + ", entry " + std::to_string(entry) + ": node " +
             std::to_string(node);
    };
    if (node < 0 || node >= nodes) fail(where() + " is outside 0.." + std::to_string(nodes - 1));
    if (m > 0 && all[m - 1].node == node)
      fail(where() + " is in " + kParts[static_cast<int>(all[m - 1].part)] + " already");
  }
  return out;
}

std::vector<Part> parts_of(const Split& split, Id nodes) {
  std::vector<Part> out(static_cast<std::size_t>(nodes), Part::none);
  Split copy = make_split("split", nodes, split.train, split.valid, split.test);
  for (Part part : {Part::train, Part::valid, Part::test})
    for (Id i : part_of(copy, part)) out[i] = part;
  return out;
}

Split split_of(std::span<const Part> parts) {
  Split out;
  for (std::size_t i = 0; i < parts.size(); ++i)
    if (parts[i] != Part::none) part_of(out, parts[i]).push_back(static_cast<Id>(i));
  return out;
}

}  // namespace heed
