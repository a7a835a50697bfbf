// The fused operator over patterns of intervals, in tiles of queries and keys. attention.cpp sends calls here for which
// that pays, checked and with at most stages::kMaxHeads heads.
#pragma once

#include "kernels/attention.h"

namespace heed {

// Whether the pattern's intervals are so long that tiles are faster than rows.
bool pays_in_tiles(const Pattern& pattern);

// Whether no query has a say and all see the same keys: then all rows are one, dropout draws for the keys alone, and
// the CPU computes it once.
template <class T>
bool rows_are_one(const Attention<T>& x) {
  const Rows& rows = x.pattern->by_query;
  return !x.score->reads_query && rows.rows > 1 && rows.intervals.size() == 1 && !rows.list;
}

template <class T>
void tiled_attention(const Attention<T>& x, View<T> y, AttentionState<T>& state);

template <class T>
void tiled_gradient(const Attention<T>& x, View<const T> y, View<const T> dy, AttentionState<T>& state,
                    const AttentionGradient<T>& g);

}  // namespace heed
