// Batches: the edges of a block in the portions in which they pass through the stages. Short rows travel together, so
// that what a portion costs is shared among them; a row that exceeds a portion is cut, always at the same places. What
// becomes of a row depends on the row alone, not on those that travel with it.
#pragma once

#include <algorithm>
#include <array>

#include "kernels/lanes.h"
#include "kernels/matrix.h"
#include "kernels/pattern.h"

namespace heed {

inline constexpr int kLanes = 8;   // of the vectors in the stages' buffers
inline constexpr int kChunk = 64;  // edges in a batch, at most

// Edges of one row in a batch. In the stages' buffers a segment begins at a whole vector.
struct Segment {
  Id row = 0;
  int begin = 0, end = 0;             // edges
  int vector = 0, vectors = 0;        // in a buffer of `padded` numbers an edge
  bool starts = false, ends = false;  // the row's first and last edges are here; a part of a hub never ends

  int edges() const { return end - begin; }
  int tail(int padded) const { return edges() * padded - (vectors - 1) * kLanes; }  // lanes of the last vector in use
};

struct Batch {
  int n = 0;                 // edges
  int segments = 0;          // of one row each
  int vectors = 0;           // of the buffers in use
  const Id* ids = nullptr;   // the column of each edge: in the list, or in `room`
  Offset entry = 0;          // the first edge's position in the list; the others follow
  Id rows[kChunk + kLanes];  // each edge's row
  int at[kChunk + kLanes];   // where its numbers begin in a buffer
  Segment segment[kChunk];
  bool first = true;            // of its block
  const Batch* next = nullptr;  // the one that follows in the block
  Id room[kChunk];

  void clear() { n = segments = vectors = 0; }
  // The edges of a row that follow those that are here: their columns continue `ids`.
  void append(Id row, int count, int padded, bool starts, bool ends) {
    const int first = vectors * kLanes;
    Segment& s = segment[segments++];
    s = {row, n, n + count, vectors, (count * padded + kLanes - 1) / kLanes, starts, ends};
    using Ints = typename RawVec<std::int32_t, kLanes>::type;
    Ints place{0, 1, 2, 3, 4, 5, 6, 7};
    place = place * padded + first;
    const Ints same = Ints{} + row;
    for (int t = n; t < n + count; t += kLanes, place += kLanes * padded) {  // the last ones may run into the slack
      std::memcpy(rows + t, &same, sizeof same);
      std::memcpy(at + t, &place, sizeof place);
    }
    n += count;
    vectors += s.vectors;
  }
};

// A table that stays in a core's own cache: to fetch its rows ahead costs more than it saves.
inline constexpr Offset kNearBytes = 1 << 20;
template <class T>
bool is_near(View<const T> table) {
  return table.rows * table.cols * static_cast<Offset>(sizeof(T)) <= kNearBytes;
}
inline constexpr int kAhead = 64;  // edges whose rows are on their way while a sum works on one
// Brings a cache line near: into a core's second cache. The first one can wait for fewer lines at a time: on a Zen 4
// gathers from memory took 1.5 to 1.9 times as long through it.
HEED_FN void prefetch_line(const void* at) { __builtin_prefetch(at, 0, 2); }
// And all of a row's.
template <class T>
HEED_FN void prefetch_row(View<const T> table, Id row) {
  const char* from = reinterpret_cast<const char*>(table.row(row));
  for (Offset at = 0; at < table.cols * static_cast<Offset>(sizeof(T)); at += 64) prefetch_line(from + at);
}
// What a stage does for the t-th edge of the next batch while it works on this one's.
template <class T>
HEED_FN void prefetch_next(const Batch* next, View<const T> table, int t) {
  if (next != nullptr && t < next->n) prefetch_row(table, next->ids[t]);
}

// Calls visit(row, columns, how many, starts, ends) for the portions of `limit` columns of each row that is walked.
template <class Empty, class Visit>
void for_each_walked(const Rows& rows, const Block& block, int limit, Empty empty, Visit visit) {
  const bool part = block.part >= 0;
  for (Id i = block.first; i < block.last; ++i) {
    const Offset stop = part ? block.end : rows.walk->length(i);
    Id ids[2 * kChunk];
    int count = 0;
    bool starts = true;
    for (Offset at = part ? block.begin : 0; at < stop; at += kChunk) {
      count += rows.walk->columns(i, at, std::min<Offset>(stop, at + kChunk), ids + count);
      while (count > limit) {
        visit(i, ids, limit, starts, false);
        starts = false, count -= limit;
        std::copy_n(ids + limit, count, ids);
      }
    }
    if (count > 0)
      visit(i, ids, count, starts, !part);
    else
      empty(i);
  }
}

// Calls visit(batch) for each batch of a block, at most `limit` edges at a time, and empty(row) for rows without edges.
// A batch is visited when the one after it is known. `two` is room for both.
template <class Empty, class Visit>
void for_each_batch(const Rows& rows, const Block& block, int limit, int padded, std::array<Batch, 2>& two, Empty empty,
                    Visit visit) {
  const bool part = block.part >= 0;
  int open = 0;  // the batch that is being filled; the other one waits for it
  two[0].clear(), two[1].clear();
  two[0].first = true, two[1].first = false;
  auto flush = [&] {
    Batch &filled = two[open], &waiting = two[1 - open];
    if (filled.n == 0) return;
    filled.next = nullptr;
    if (waiting.n > 0) {
      waiting.next = &filled;
      visit(waiting);
      waiting.clear();
      waiting.first = false;
    }
    open = 1 - open;
  };
  auto finish = [&] {
    flush();
    if (two[1 - open].n > 0) visit(two[1 - open]);
  };
  if (rows.listed()) {
    const Csr& list = *rows.list;
    const Offset stop = part ? list.offsets[block.first] + block.end : list.offsets[block.last];
    for (Id i = block.first; i < block.last; ++i) {
      const Offset first = list.offsets[i] + (part ? block.begin : 0), last = part ? stop : list.offsets[i + 1];
      if (first == last) {
        empty(i);
        continue;
      }
      if (two[open].n + (last - first) > limit) flush();
      for (Offset at = first; at < last;) {
        const int count = static_cast<int>(std::min<Offset>(last - at, limit));
        if (two[open].n == 0) two[open].ids = list.ids.data() + at, two[open].entry = at;
        two[open].append(i, count, padded, at == first, at + count == last && !part);
        at += count;
        if (two[open].n == limit) flush();
      }
    }
    return finish();
  }
  if (rows.walk) {
    for_each_walked(rows, block, limit, empty, [&](Id i, const Id* ids, int count, bool starts, bool ends) {
      if (two[open].n + (ends || part ? count : limit + 1) > limit) flush();
      Batch& batch = two[open];
      batch.ids = batch.room;
      std::copy_n(ids, count, batch.room + batch.n);
      batch.append(i, count, padded, starts, ends);
    });
    return finish();
  }
  for (Id i = block.first; i < block.last; ++i) {
    const auto [begin, end] = rows.interval(i);
    const Id first = part ? static_cast<Id>(begin + block.begin) : begin;
    const Id last = part ? static_cast<Id>(begin + block.end) : end;
    std::span<const Id> out = rows.list ? rows.list->row(i) : std::span<const Id>{};
    out = {std::lower_bound(out.begin(), out.end(), first), std::lower_bound(out.begin(), out.end(), last)};
    Offset left = Offset{last} - first - static_cast<Offset>(out.size());
    if (left == 0) empty(i);
    if (two[open].n + left > limit) flush();
    int count = 0;
    bool starts = true;
    auto next = out.begin();
    for (Id j = first; left > 0; ++j) {
      if (next != out.end() && *next == j) {
        ++next;
        continue;
      }
      Batch& batch = two[open];
      batch.ids = batch.room;
      batch.room[batch.n + count++] = j, --left;
      if (batch.n + count < limit && left > 0) continue;
      batch.append(i, count, padded, starts, left == 0 && !part);
      starts = false, count = 0;
      if (two[open].n == limit) flush();
    }
  }
  finish();
}

}  // namespace heed
