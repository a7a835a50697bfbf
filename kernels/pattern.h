// Pattern: who sees whom. For each of the queries a set of keys: a list, an interval of keys less a list, or what a
// rule works out on the way (a walk), so that nothing of size queries x keys is ever stored. Each pattern holds both
// directions (rows of queries for the forward and dq, rows of keys for dk and dv) and, for each, the blocks into which
// its work is cut.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "graph/csr.h"
#include "kernels/random.h"

namespace heed {

// A piece of work: whole rows [first, last), or one part of a hub row. Blocks depend on the pattern alone, never on the
// number of threads, so sums that are merged block by block have the same bits on any machine.
struct Block {
  Id first = 0, last = 0;
  Offset begin = 0, end = 0;  // of a part: positions within the row's list or interval
  Offset part = -1;           // number of the part among all parts, rising along a row; -1: whole rows
};

inline constexpr Offset kBlockEdges = 2048;  // edges (and 8 for every row) in a block
inline constexpr Offset kHubEdges = 1024;    // a longer row is cut into equal parts, none above it,
inline constexpr Offset kHubParts = 4096;    // unless they would be more: where many rows are long, each is enough work

using Interval = std::array<Id, 2>;  // [begin, end)

// Row i holds map_1(i), map_2(i), ..., each column once; backwards the inverse maps'.
struct Draws {
  std::vector<NodeMap> maps;
  bool inverse = false;
};

// Rows whose columns are worked out when they are visited. A column stands in a row once.
struct Walk {
  virtual ~Walk() = default;
  virtual Offset length(Id i) const = 0;  // positions in row i; not every one need have a column
  // Writes the columns at the positions [first, last) of row i, in their order, and returns how many there are.
  virtual int columns(Id i, Offset first, Offset last, Id* out) const = 0;
  virtual const Draws* draws() const { return nullptr; }  // where this is what the walk is
};

// What a device draws anew in each step (DeviceOps::redraw), so that the host makes no list. The CPU does not: it gets
// a new pattern instead.
struct Redrawn {
  Drawing drawing = {};           // what row i holds beside its list
  Id kept = -1;                   // seen are so many keys alone; -1: all
  bool by_score = false;          // those of the largest numbers that redraw() is given; else:
  std::uint64_t keys_stream = 0;  // the first ones in keys_order(n, keys_stream, step)
  std::shared_ptr<const std::vector<char>> marks =
      nullptr;  // keys that are seen in all steps, where they are not drawn
};

// One direction of a pattern.
struct Rows {
  Id rows = 0, cols = 0;
  std::shared_ptr<const Csr> list;  // without intervals: the row's columns. With: those left out of the interval
  std::vector<Interval> intervals;  // none, one for all rows, or one a row
  std::vector<Block> blocks;
  Offset parts = 0;                            // of hub rows, in all
  std::shared_ptr<const Walk> walk = nullptr;  // in place of list and intervals
  std::shared_ptr<const Redrawn> redrawn = nullptr;
  bool of_keys = false;  // where there is one: which direction this is

  bool listed() const { return intervals.empty() && !walk && !redrawn; }
  Interval interval(Id i) const { return intervals.size() == 1 ? intervals[0] : intervals[i]; }
  Offset length(Id i) const {  // positions to visit, left-out ones included
    if (walk) return walk->length(i);
    const Offset drawn = redrawn ? redrawn->drawing.count : 0;
    if (intervals.empty()) return drawn + (list ? list->degree(i) : 0);
    auto [begin, end] = interval(i);
    return drawn + end - begin;
  }
  void plan();  // fills blocks and parts
};

// Some rows of a table, in an order of their own: row t is the table's row ids[t], which may come several times.
struct Selection {
  std::vector<Id> ids;
  Csr places;  // table's rows x positions: where each row went

  Selection(std::vector<Id> ids, Id table);  // throws Error where an id is outside the table
};

class Pattern {
 public:
  // Row i sees exactly list->row(i).
  static std::shared_ptr<Pattern> listed(std::shared_ptr<const Csr> list);
  // Every query sees every key, but for the pairs in `without` (may be null).
  static std::shared_ptr<Pattern> all(Id queries, Id keys, std::shared_ptr<const Csr> without = nullptr);
  // Query i sees the keys of interval i, but for the pairs in `without` (may be null). Both ends must not fall from row
  // to row (a window that slides, or grows): then the queries that see a key are an interval too. Throws Error
  // otherwise.
  static std::shared_ptr<Pattern> sliding(Id keys, std::vector<Interval> intervals,
                                          std::shared_ptr<const Csr> without = nullptr);
  // As sliding, but of the interval's keys only those for which sees(i, j) holds (empty: all), and the pairs in `more`
  // (may be null), which lie in no interval, beside them. A walk: nothing is listed, and `sees` is asked once a visit.
  static std::shared_ptr<Pattern> mixed(Id keys, std::vector<Interval> intervals, std::shared_ptr<const Csr> without,
                                        std::shared_ptr<const Csr> more, std::function<bool(Id, Id)> sees);
  // Query i of n sees what the drawing's maps (random.h) make of it; of those that coincide, one. A key's queries are
  // the inverse maps'. A walk: neither lists nor sorting. At most kMostDraws.
  static std::shared_ptr<Pattern> drawn(Id n, const Drawing& drawing, std::uint64_t step = 0);
  static constexpr int kMostDraws = 256;
  // For a device: the pairs of `fixed` (null: none; a list where there are draws) with what is drawn of n nodes.
  static std::shared_ptr<Pattern> redrawn(Id n, std::shared_ptr<const Pattern> fixed, const Redrawn& what);

  Id queries() const { return by_query.rows; }
  Id keys() const { return by_key.rows; }
  bool is_listed() const { return by_query.listed(); }
  // Pairs (query, key); counted, O(rows), for intervals, and O(positions) for a walk. Of what is redrawn, all that
  // might be drawn.
  Offset edges() const;

  // For a listed pattern: the position in by_query's list of each entry of by_key's. Made at the first call.
  const std::vector<Offset>& edge_of_entry() const;

  Rows by_query;  // queries x keys
  Rows by_key;    // keys x queries

  // Where rows are intervals only in an order that a mask chose, or only some keys are kept: the node at each position.
  // by_query and by_key count positions; whoever calls the operator gathers q, k and v so, and puts y back. Null: as
  // they come.
  std::shared_ptr<const Selection> query_order, key_order;

 private:
  mutable std::once_flag made_;
  mutable std::vector<Offset> edge_;
};

}  // namespace heed
