#include "graph/csr.h"

#include <algorithm>
#include <iterator>
#include <string>

namespace heed {
namespace {

std::string shape(const Csr& a) { return std::to_string(a.rows) + " x " + std::to_string(a.cols); }

// Applies a set operation of <algorithm> row by row.
template <class Operation>
Csr row_by_row(const Csr& a, const Csr& b, Operation operation) {
  if (a.rows != b.rows || a.cols != b.cols) fail("patterns differ in shape: " + shape(a) + " and " + shape(b));
  Csr out{.rows = a.rows, .cols = a.cols};
  out.offsets.reserve(static_cast<std::size_t>(a.rows) + 1);
  for (Id i = 0; i < a.rows; ++i) {
    operation(a.row(i), b.row(i), std::back_inserter(out.ids));
    out.offsets.push_back(out.edges());
  }
  return out;
}

}  // namespace

bool Csr::contains(Id i, Id j) const {
  auto r = row(i);
  return std::binary_search(r.begin(), r.end(), j);
}

void check(const Csr& a) {
  if (a.rows < 0 || a.cols < 0) fail("pattern has a negative shape: " + shape(a));
  if (a.offsets.size() != static_cast<std::size_t>(a.rows) + 1 || a.offsets.front() != 0 ||
      a.offsets.back() != a.edges())
    fail("pattern of " + std::to_string(a.rows) + " rows: offsets must be rows + 1 numbers from 0 to the edge count");
  for (Id i = 0; i < a.rows; ++i) {
    if (a.offsets[i] > a.offsets[i + 1] || a.offsets[i + 1] > a.edges())
      fail("pattern row " + std::to_string(i) + " ends before it begins");
    Id last = -1;
    for (Id j : a.row(i)) {
      if (j < 0 || j >= a.cols)
        fail("pattern row " + std::to_string(i) + ": id " + std::to_string(j) + " is outside 0.." +
             std::to_string(a.cols - 1));
      if (j <= last)
        fail("pattern row " + std::to_string(i) + ": id " + std::to_string(j) + " after " + std::to_string(last) +
             "; ids must rise");
      last = j;
    }
  }
}

Transpose transpose(const std::shared_ptr<const Csr>& a) {
  auto t = std::make_shared<Csr>(Csr{.rows = a->cols, .cols = a->rows});
  t->offsets.assign(static_cast<std::size_t>(t->rows) + 1, 0);
  t->ids.resize(a->ids.size());
  Transpose out;
  out.edge.resize(a->ids.size());
  for (Id j : a->ids) ++t->offsets[j + 1];
  for (Id j = 0; j < t->rows; ++j) t->offsets[j + 1] += t->offsets[j];
  std::vector<Offset> next(t->offsets.begin(), t->offsets.end() - 1);
  for (Id i = 0; i < a->rows; ++i)
    for (Offset e = a->offsets[i]; e < a->offsets[i + 1]; ++e) {
      Offset at = next[a->ids[e]]++;
      t->ids[at] = i;
      out.edge[at] = e;
    }
  out.csr = *t == *a ? a : std::move(t);
  return out;
}

Csr unite(const Csr& a, const Csr& b) {
  return row_by_row(a, b, [](auto x, auto y, auto to) { std::ranges::set_union(x, y, to); });
}

Csr intersect(const Csr& a, const Csr& b) {
  return row_by_row(a, b, [](auto x, auto y, auto to) { std::ranges::set_intersection(x, y, to); });
}

Csr subtract(const Csr& a, const Csr& b) {
  return row_by_row(a, b, [](auto x, auto y, auto to) { std::ranges::set_difference(x, y, to); });
}

Csr identity(Id n) {
  Csr out{.rows = n, .cols = n};
  for (Id i = 0; i < n; ++i) {
    out.ids.push_back(i);
    out.offsets.push_back(i + 1);
  }
  return out;
}

Csr compose(const Csr& a, const Csr& b) {
  if (a.cols != b.rows) fail("patterns do not chain: " + shape(a) + " and " + shape(b));
  Csr out{.rows = a.rows, .cols = b.cols};
  out.offsets.reserve(static_cast<std::size_t>(a.rows) + 1);
  std::vector<Id> seen(static_cast<std::size_t>(b.cols), -1);  // the last row that reached a column
  for (Id i = 0; i < a.rows; ++i) {
    auto begin = out.edges();
    for (Id k : a.row(i))
      for (Id j : b.row(k))
        if (seen[j] != i) {
          seen[j] = i;
          out.ids.push_back(j);
        }
    std::sort(out.ids.begin() + begin, out.ids.end());
    out.offsets.push_back(out.edges());
  }
  return out;
}

Csr hops(const Csr& a, int k) {
  if (k < 1) fail("a neighbourhood needs at least 1 hop, not " + std::to_string(k));
  Csr out = a;
  Csr ring = a;
  for (int step = 1; step < k; ++step) {
    ring = subtract(compose(ring, a), out);
    if (ring.ids.empty()) break;
    out = unite(out, ring);
  }
  return out;
}

}  // namespace heed
