// Compressed sparse rows: the one sparse pattern of heed. Row i lists, in rising order and without repeats,
// the columns that it touches. Offsets are 64 bits wide, ids 32, so 2^31 nodes and any number of edges fit.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/error.h"

namespace heed {

using Id = std::int32_t;
using Offset = std::int64_t;

struct Csr {
  Id rows = 0;
  Id cols = 0;
  std::vector<Offset> offsets{0};  // rows + 1
  std::vector<Id> ids;             // edges, rising within a row

  Offset edges() const { return static_cast<Offset>(ids.size()); }
  Offset degree(Id i) const { return offsets[i + 1] - offsets[i]; }
  std::span<const Id> row(Id i) const { return {ids.data() + offsets[i], ids.data() + offsets[i + 1]}; }
  bool contains(Id i, Id j) const;
  bool operator==(const Csr&) const = default;
};

// Row j of `csr` lists the rows i that touch column j; edge[t] is the position of entry t in the original.
struct Transpose {
  std::shared_ptr<const Csr> csr;
  std::vector<Offset> edge;  // edges
};

// Throws Error naming the first row that is not rising, out of range or ends before it begins.
void check(const Csr& a);

// O(rows + cols + edges). `csr` is `a` itself, shared, where the pattern is symmetric.
Transpose transpose(const std::shared_ptr<const Csr>& a);

// Sets of (row, column) pairs. Both sides must have one shape; throws Error otherwise.
Csr unite(const Csr& a, const Csr& b);
Csr intersect(const Csr& a, const Csr& b);
Csr subtract(const Csr& a, const Csr& b);

Csr identity(Id n);                       // (i, i) for all i
Csr compose(const Csr& a, const Csr& b);  // (i, j) where a path i -a-> k -b-> j exists
Csr hops(const Csr& a, int k);            // (i, j) where j is reached from i by a path of 1 to k edges

}  // namespace heed
