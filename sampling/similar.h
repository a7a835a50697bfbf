// Nodes with similar features: exact nearest neighbours by cosine, block by block.
#pragma once

#include "kernels/sparse.h"

namespace heed {

// For each node the k others whose features have the largest cosine with its own (0 where one of them is zero); of
// equal ones the first. Fewer where there are fewer nodes. Dense features, and sparse ones of which more than an eighth
// is filled, take a product of 256 nodes with 4096 at a time; others meet only where they share a channel. O(n^2
// channels) or O(n^2 + pairs of entries in a channel) time, in parallel, O(n (k + channels)) or O(n k) memory, and the
// same bits on any number of threads.
Csr most_similar(const Features& x, int k);

}  // namespace heed
