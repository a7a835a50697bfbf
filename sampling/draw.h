// Random patterns, drawn by counter: a key gives the same one on any machine and any number of threads.
#pragma once

#include <cstdint>

#include "graph/csr.h"

namespace heed {

// Each row holds min(m, n) distinct nodes, uniform (Floyd's sampling: Bentley & Floyd 1987). O(n m^2).
Csr random_rows(Id n, Id m, std::uint64_t key);

// A random regular graph of degree d, symmetric, without loops: d/2 random cycles through all nodes, and for odd d a
// random matching, as in Friedman (2008), with which such graphs are expanders almost surely; where an edge comes
// twice, two nodes change places. Of an odd number of nodes, an odd d leaves one with d - 1; d of n - 1 or more gives
// all pairs. O(n d).
Csr random_regular(Id n, Id d, std::uint64_t key);

// The pairs (pi(i), pi(j)) of the pairs (i, j) of a square pattern, for a keyed permutation pi (random.h): the same
// graph with its nodes renamed, so that who is joined with whom says nothing of the nodes any more. O(edges log degree).
Csr renamed(const Csr& a, std::uint64_t key);

}  // namespace heed
