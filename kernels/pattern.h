// Pattern: who sees whom. For each of the queries a set of keys, as a list or as an interval of keys less a list, so
// that nothing of size queries x keys is ever stored. Each pattern holds both directions (rows of queries for the
// forward and dq, rows of keys for dk and dv) and, for each, the blocks into which its work is cut.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "graph/csr.h"

namespace heed {

// A piece of work: whole rows [first, last), or one part of a hub row. Blocks depend on the pattern alone, never on the
// number of threads, so sums that are merged block by block have the same bits on any machine.
struct Block {
  Id first = 0, last = 0;
  Offset begin = 0, end = 0;  // of a part: positions within the row's list or interval
  Offset part = -1;           // number of the part among all parts, rising along a row; -1: whole rows
};

inline constexpr Offset kBlockEdges = 2048;  // edges (and 8 for every row) in a block
inline constexpr Offset kHubEdges = 8192;    // a longer row is cut into parts of this length

using Interval = std::array<Id, 2>;  // [begin, end)

// One direction of a pattern.
struct Rows {
  Id rows = 0, cols = 0;
  std::shared_ptr<const Csr> list;  // without intervals: the row's columns. With: those left out of the interval
  std::vector<Interval> intervals;  // none, one for all rows, or one a row
  std::vector<Block> blocks;
  Offset parts = 0;  // of hub rows, in all

  bool listed() const { return intervals.empty(); }
  Interval interval(Id i) const { return intervals.size() == 1 ? intervals[0] : intervals[i]; }
  Offset length(Id i) const {  // positions to visit, left-out ones included
    if (listed()) return list->degree(i);
    auto [begin, end] = interval(i);
    return end - begin;
  }
  void plan();  // fills blocks and parts
};

class Pattern {
 public:
  // Row i sees exactly list->row(i).
  static std::shared_ptr<const Pattern> listed(std::shared_ptr<const Csr> list);
  // Every query sees every key, but for the pairs in `without` (may be null).
  static std::shared_ptr<const Pattern> all(Id queries, Id keys, std::shared_ptr<const Csr> without = nullptr);
  // Query i sees the keys of interval i, but for the pairs in `without` (may be null). Both ends must not fall from row
  // to row (a window that slides, or grows): then the queries that see a key are an interval too. Throws Error
  // otherwise.
  static std::shared_ptr<const Pattern> sliding(Id keys, std::vector<Interval> intervals,
                                                std::shared_ptr<const Csr> without = nullptr);

  Id queries() const { return by_query.rows; }
  Id keys() const { return by_key.rows; }
  bool is_listed() const { return by_query.listed(); }
  Offset edges() const;  // pairs (query, key); counted, O(rows), for intervals

  // For a listed pattern: the position in by_query's list of each entry of by_key's. Made at the first call.
  const std::vector<Offset>& edge_of_entry() const;

  Rows by_query;  // queries x keys
  Rows by_key;    // keys x queries

 private:
  mutable std::once_flag made_;
  mutable std::vector<Offset> edge_;
};

}  // namespace heed
