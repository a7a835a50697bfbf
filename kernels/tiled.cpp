#include "kernels/tiled.h"

#include <algorithm>

#include "kernels/parallel.h"
#include "kernels/scores.h"
#include "kernels/tiles.h"

namespace heed {
namespace {

using stages::kTile;
using stages::kTileBuffer;
using stages::kTogether;
using stages::RowState;
using stages::TileState;
using stages::Wide;

constexpr int kNear = 16;   // queries whose sums stay in the first-level cache while tiles pass by
constexpr int kTasks = 16;  // pieces of work that there should be at any time, whatever the number of threads

Id round_up(Offset n, Offset to) { return static_cast<Id>((n + to - 1) / to * to); }
Id pieces(Id n, Id each) { return (n + each - 1) / each; }

// What does not change from tile to tile. Sizes of blocks depend on the call's shapes alone.
template <class T>
struct Plan {
  static constexpr int lanes = Wide<T>::lanes;
  const Attention<T>& x;
  const Rows& rows;
  int width, values;  // channels of a head
  Id strip;           // keys that are laid out channel by channel at once
  Id block;           // queries that use them then, forward
  Id cell;            // and backward

  explicit Plan(const Attention<T>& in)
      : x(in),
        rows(in.pattern->by_query),
        width(static_cast<int>(in.q.cols / in.heads)),
        values(static_cast<int>(in.v.cols / in.heads)),
        strip(std::min(side(rows.cols), std::clamp<Id>(round_up(32768 / (width + values), kTile), kTile, 512))),
        block(std::min(side(rows.rows), std::clamp<Id>(round_up(4096 / values, kTile), kTile, 256))),
        cell(side(rows.rows)) {}

  static Id side(Id n) { return std::clamp<Id>(round_up(n / 8, kTile), kTile, 512); }
  const ScoreStages<T>& score() const { return x.score->template stages<T>(); }
  const NormaliserStages<T>& normaliser() const { return x.normaliser->template stages<T>(); }
  bool finishes() const { return x.score->finishes(); }
  View<const T> query(int h) const { return x.q.columns(h * width, width); }
  View<const T> key(int h) const { return x.k.columns(h * width, width); }
  View<const T> value(int h) const { return x.v.columns(h * values, values); }
};

template <class T>
struct Room {  // a thread's own
  alignas(64) T s[kTileBuffer], sums[kTileBuffer], dw[kTileBuffer], keep[kTileBuffer];
  alignas(64) T p[kMaxScalars * kLanes], dp[kMaxScalars * kLanes];
  T tau[kNear], delta[kNear];
  const T* a;              // width
  T *k, *dk;               // tiles x width x kTile
  T *v, *dv;               // tiles x values x kTile
  T *q, *dy;               // kNear x width, kNear x values
  T *down, *da;            // kNear x width, width: vectors
  T *sum, *total, *shift;  // block x values vectors, block vectors, block numbers
  Matrix<T> buffers[11];

  void fit(const Plan<T>& plan, int h) {
    constexpr Offset lanes = Plan<T>::lanes;
    int used = 0;
    auto take = [&](Offset n) {
      buffers[used].resize(1, n);
      return buffers[used++].data();
    };
    k = take(Offset{plan.strip} * plan.width), v = take(Offset{plan.strip} * plan.values);
    dk = take(Offset{plan.strip} * plan.width), dv = take(Offset{plan.strip} * plan.values);
    q = take(kNear * Offset{plan.width}), dy = take(kNear * Offset{plan.values});
    down = take(kNear * lanes * plan.width), da = take(lanes * plan.width);
    sum = take(plan.block * lanes * plan.values), total = take(plan.block * lanes), shift = take(plan.block);
    a = plan.x.a ? plan.x.a.row(0) + h * plan.width : nullptr;
    for (int i = 0; i < plan.x.score->scalars; ++i) std::fill_n(p + i * kLanes, kLanes, plan.x.p(i, h));
  }
};

template <class T>
Room<T>& room(const Plan<T>& plan, int h) {
  thread_local Room<T> mine;
  mine.fit(plan, h);
  return mine;
}

// Rows [first, last) of a table into tiles, and back.
template <class T>
void pack(View<const T> x, Id first, Id last, T* to) {
  for (; first < last; first += kTile, to += x.cols * kTile)
    stages::tile_pack(x, first, std::min(kTile, last - first), to);
}
template <class T>
void add_unpacked(const T* from, Id first, Id last, View<T> to) {
  for (; first < last; first += kTile, from += to.cols * kTile)
    stages::tile_unpack(from, first, std::min(kTile, last - first), to);
}
// kNear rows side by side; 0 past the last.
template <class T>
void copy_rows(View<const T> x, Id first, int count, T* to) {
  for (int i = 0; i < kNear; ++i, to += x.cols)
    if (i < count)
      std::copy_n(x.row(first + i), x.cols, to);
    else
      std::fill_n(to, x.cols, T(0));
}

// For `count` queries and the keys [key, end): visit(tile, its first key, i, seen) for the queries i .. i + kTogether
// that see some of the tile; `seen` is null where they see all of it.
template <class Visit>
void for_each_tile(const Rows& rows, Id query, int count, Id key, Id end, Visit visit) {
  Interval sight[kNear];
  const Id *out[kNear], *out_end[kNear];
  for (int i = 0; i < kNear; ++i) {
    sight[i] = i < count ? rows.interval(query + i) : Interval{0, 0};
    out[i] = out_end[i] = nullptr;
    if (i >= count || !rows.list) continue;
    auto row = rows.list->row(query + i);
    out[i] = std::lower_bound(row.data(), row.data() + row.size(), key);
    out_end[i] = row.data() + row.size();
  }
  int tile = 0;
  for (Id at = key; at < end; at += kTile, ++tile) {
    const Id stop = std::min<Id>(end, at + kTile);
    for (int i = 0; i < count; i += kTogether) {
      std::uint64_t seen[kTogether], any = 0, all = ~std::uint64_t{0};
      for (int l = 0; l < kTogether; ++l) {
        const Id from = std::max(sight[i + l][0], at), to = std::min(sight[i + l][1], stop);
        std::uint64_t bits = from < to ? ~std::uint64_t{0} >> (kTile - (to - from)) << (from - at) : 0;
        for (const Id*& j = out[i + l]; j != out_end[i + l] && *j < stop; ++j) bits &= ~(std::uint64_t{1} << (*j - at));
        seen[l] = bits, any |= bits, all &= bits;
      }
      if (any != 0) visit(tile, at, i, all == ~std::uint64_t{0} ? nullptr : seen);
    }
  }
}

// The scores of kTogether queries and a tile into w.s (-inf where a pair is not seen), the raw sums into w.sums where
// the score has a finish.
template <class T>
void score_tile(const Plan<T>& plan, Room<T>& w, const T* q, const T* k, const std::uint64_t* seen) {
  const auto& score = plan.score();
  const void* self = plan.x.score->self.get();
  score.tile_sums(self, q, k, w.a, plan.width, plan.finishes() ? w.sums : w.s);
  if (plan.finishes()) {
    if (seen) {  // a sum that is seen, in place of those that are not: nothing in them must spoil dp
      int i = 0;
      while (seen[i] == 0) ++i;
      stages::set_unseen(seen, w.sums[i * kTile + __builtin_ctzll(seen[i])], w.sums);
    }
    score.finish(self, w.sums, plan.x.score->finish(w.p, plan.width), kTileBuffer / kLanes, 1, w.s);
  }
  if (seen) stages::set_unseen(seen, T(-__builtin_inff()), w.s);
}

// Dropout's factors for kTogether queries and a tile.
template <class T>
void fill_keep(const Dropout& dropout, Id query, Id key, int h, T* keep) {
  const std::uint32_t threshold = dropout.threshold();
  const T scale = static_cast<T>(dropout.scale());
  Words first = Words{} + static_cast<std::uint32_t>(key);
  for (int l = 0; l < kLanes; ++l) first[l] += l;
  for (int i = 0; i < kTogether; ++i) {
    const std::uint64_t row = dropout.row_key(query + i);
    const Words low = Words{} + static_cast<std::uint32_t>(row), high = Words{} + static_cast<std::uint32_t>(row >> 32);
    Words column = first;
    for (int at = 0; at < kTile; at += kLanes, keep += kLanes, column += kLanes)
      drop_factors<T>(low, high, column, Words{} + static_cast<std::uint32_t>(h), threshold, scale).store(keep);
  }
}

// ---- forward ------------------------------------------------------------------------------------------------------

// Where the queries of a forward block meet a group of the keys: into y and tau, or, where each query's keys are dealt
// out to several groups, into rows of `values + 2` numbers a head: sums, shift and total.
template <class T>
void forward_block(const Plan<T>& plan, int h, Id first, Id last, Id key, Id key_end, View<T> y, Matrix<T>& tau,
                   T* part) {
  constexpr int lanes = Plan<T>::lanes;
  const Attention<T>& x = plan.x;
  Room<T>& w = room(plan, h);
  const int values = plan.values, count = round_up(last - first, kNear);
  std::fill_n(w.sum, Offset{count} * values * lanes, T(0));
  std::fill_n(w.total, count * lanes, T(0));
  std::fill_n(w.shift, count, T(-__builtin_inff()));
  key = std::max(key, plan.rows.interval(first)[0]);
  key_end = std::min(key_end, plan.rows.interval(last - 1)[1]);
  for (Id at = key; at < key_end; at += plan.strip) {
    const Id end = std::min(key_end, at + plan.strip);
    pack(plan.key(h), at, end, w.k);
    pack(plan.value(h), at, end, w.v);
    for (Id near = first; near < last; near += kNear) {
      const int rows = static_cast<int>(std::min<Id>(kNear, last - near));
      copy_rows(plan.query(h), near, rows, w.q);
      for_each_tile(plan.rows, near, rows, at, end, [&](int tile, Id j, int i, const std::uint64_t* seen) {
        const Id row = near - first + i;
        score_tile(plan, w, w.q + i * plan.width, w.k + tile * kTile * plan.width, seen);
        T rescale[kTogether], *sum = w.sum + Offset{row} * values * lanes;
        if (plan.normaliser().tile(w.s, {w.shift + row, w.total + row * lanes, rescale}))
          for (int l = 0; l < kTogether; ++l)
            for (int c = l * values * lanes; rescale[l] != 1 && c < (l + 1) * values * lanes; ++c) sum[c] *= rescale[l];
        if (x.dropout.rate > 0) {
          fill_keep(x.dropout, near + i, j, h, w.keep);
          for (int t = 0; t < kTileBuffer; ++t) w.s[t] *= w.keep[t];
        }
        stages::tile_gather(w.s, w.v + tile * kTile * values, seen, values, sum);
      });
    }
  }
  for (Id at = 0; at < last - first; at += kLanes) {
    alignas(64) T total[kLanes], closed[kLanes], factor[kLanes];
    stages::fold_wide(w.total + at * lanes, kLanes, total);
    plan.normaliser().close({w.shift + at, total, nullptr}, 1, closed, factor);
    for (int l = 0; l < std::min<Id>(kLanes, last - first - at); ++l) {
      const Id i = first + at + l;
      T* to = part ? part + (Offset{i} * x.heads + h) * (values + 2) : y.row(i) + h * values;
      stages::fold_wide(w.sum + Offset{at + l} * values * lanes, values, to);
      if (part) {
        to[values] = w.shift[at + l], to[values + 1] = total[l];
        continue;
      }
      for (int c = 0; c < values; ++c) to[c] *= factor[l];
      tau(i, h) = closed[l];
    }
  }
}

// The parts of kLanes queries or fewer, group after group.
template <class T>
void merge_parts(const Plan<T>& plan, int h, Id first, Id last, int groups, T* parts, View<T> y, Matrix<T>& tau) {
  alignas(64) T shift[2][kLanes], total[2][kLanes], rescale[2][kLanes], closed[kLanes], factor[kLanes];
  const int values = plan.values;
  auto row = [&](int g, Id i) { return parts + ((Offset{g} * plan.rows.rows + i) * plan.x.heads + h) * (values + 2); };
  auto load = [&](int g, int side) {
    for (int l = 0; l < kLanes; ++l) {
      const T* from = row(g, std::min(first + l, last - 1)) + values;
      shift[side][l] = from[0], total[side][l] = from[1];
    }
    return RowState<T>{shift[side], total[side], rescale[side]};
  };
  const RowState<T> into = load(0, 0);
  for (int g = 1; g < groups; ++g) {
    const RowState<T> from = load(g, 1);
    plan.normaliser().merge(into, from, 1);
    for (Id i = first; i < last; ++i) {
      T *to = row(0, i), *more = row(g, i);
      for (int c = 0; c < values; ++c) to[c] = to[c] * rescale[0][i - first] + more[c] * rescale[1][i - first];
    }
  }
  plan.normaliser().close(into, 1, closed, factor);
  for (Id i = first; i < last; ++i) {
    for (int c = 0; c < values; ++c) y(i, h * values + c) = row(0, i)[c] * factor[i - first];
    tau(i, h) = closed[i - first];
  }
}

// ---- backward -----------------------------------------------------------------------------------------------------

// Backward computes scores once: a cell of queries and keys gives dq to its queries and dk and dv to its keys. Cells
// run in waves, in which no two share a query or a key, so that each owns its rows meanwhile and sums have one order.
// Where one side is too short to keep all busy, the other side is dealt out to groups with copies of the short side's
// gradients.
struct Waves {
  const Rows& pattern;
  Id height, width;  // queries and keys of a cell
  Id rows, cols;     // cells
  bool split_rows;   // groups deal out the queries, else the keys
  Id groups, each;   // cells of the split side in a group
  Id waves = 0;

  Waves(const Rows& pattern, Id height, Id width, int heads)
      : pattern(pattern),
        height(height),
        width(width),
        rows(pieces(pattern.rows, height)),
        cols(pieces(pattern.cols, width)),
        split_rows(rows > cols) {
    const Id few = std::min(rows, cols), many = std::max(rows, cols);
    each = pieces(many, std::clamp<Id>(pieces(kTasks, std::max<Id>(few, 1) * heads), 1, std::max<Id>(many, 1)));
    groups = pieces(many, std::max<Id>(each, 1));
    Id widest = 0, tallest = 0;
    for (Id row = 0, below = 0; row < rows; ++row) {
      const auto [begin, end] = seen(row);
      widest = std::max(widest, end - begin);
      while (below < rows && seen(below)[0] < end) ++below;  // they share this row's last column of cells, at most
      tallest = std::max(tallest, below - row);
    }
    waves = std::max(split_rows ? widest : std::min(widest, each), split_rows ? std::min(tallest, each) : tallest);
  }

  Interval seen(Id row) const {  // the columns of cells that a row of cells needs
    const Id begin = pattern.interval(row * height)[0] / width;
    return {begin, std::max(begin, pieces(pattern.interval(std::min((row + 1) * height, pattern.rows) - 1)[1], width))};
  }
  Id tasks() const { return split_rows ? groups * each : groups * rows; }  // of a wave
  // The cell of a task in a wave, if there is one. Within a group, a wave is a diagonal.
  bool cell(Id wave, Id task, Id& group, Id& row, Id& col) const {
    group = task / (split_rows ? each : rows);
    row = split_rows ? task : task % rows;
    if (row >= rows) return false;
    const Id first = split_rows ? 0 : group * each, last = split_rows ? cols : std::min(cols, first + each);
    const Id begin = std::max(seen(row)[0], first), end = std::min(seen(row)[1], last);
    col = begin + ((wave + row - begin) % waves + waves) % waves;
    return col < end;
  }
};

template <class T>
struct Goal {  // where the gradients of a group go: added to
  View<T> dq, dk, dv;
  T* learned = nullptr;  // of a head: da, then dp
};

template <class T>
void gradient_cell(const Plan<T>& plan, int h, Id first, Id last, Id key, Id key_end, View<const T> y, View<const T> dy,
                   const Matrix<T>& tau, const Goal<T>& goal) {
  constexpr int lanes = Plan<T>::lanes;
  static const scores::Dot dot;
  const Attention<T>& x = plan.x;
  const auto& score = plan.score();
  const int width = plan.width, values = plan.values;
  const bool sums = goal.dq || goal.dk || goal.learned;
  Room<T>& w = room(plan, h);
  y = y.columns(h * values, values), dy = dy.columns(h * values, values);
  pack(plan.key(h), key, key_end, w.k);
  pack(plan.value(h), key, key_end, w.v);
  std::fill_n(w.dk, Offset{plan.strip} * width, T(0));
  std::fill_n(w.dv, Offset{plan.strip} * values, T(0));
  std::fill_n(w.da, width * lanes, T(0));
  std::fill_n(w.dp, kMaxScalars * kLanes, T(0));
  for (Id near = first; near < last; near += kNear) {
    const int rows = static_cast<int>(std::min<Id>(kNear, last - near));
    copy_rows(plan.query(h), near, rows, w.q);
    copy_rows(dy, near, rows, w.dy);
    for (int i = 0; i < kNear; ++i) {  // delta = <dy, y - y_bias>: the sum over the row of drain * dw, since drain = w
      T delta = 0;
      for (int c = 0; i < rows && c < values; ++c)
        delta += (x.y_bias ? y(near + i, c) - x.y_bias(0, h * values + c) : y(near + i, c)) * dy(near + i, c);
      w.delta[i] = delta, w.tau[i] = i < rows ? tau(near + i, h) : T(0);
    }
    std::fill_n(w.down, kNear * width * lanes, T(0));
    for_each_tile(plan.rows, near, rows, key, key_end, [&](int tile, Id j, int i, const std::uint64_t* seen) {
      const T *q = w.q + i * width, *dy = w.dy + i * values;
      const T *k = w.k + tile * kTile * width, *v = w.v + tile * kTile * values;
      score_tile(plan, w, q, k, seen);
      stages::tile_sums<scores::Dot>(&dot, dy, v, static_cast<const T*>(nullptr), values, w.dw);
      const bool drops = x.dropout.rate > 0;
      if (drops) fill_keep(x.dropout, near + i, j, h, w.keep);
      plan.normaliser().tile_gradient(w.s, w.dw, w.tau + i, w.delta + i, drops ? w.keep : nullptr);
      if (seen) stages::set_unseen(seen, T(0), w.s), stages::set_unseen(seen, T(0), w.dw);
      if (goal.dv) stages::tile_scatter(w.s, dy, seen, values, w.dv + tile * kTile * values);
      if (!sums) return;
      if (plan.finishes())
        score.finish_gradient(x.score->self.get(), w.sums, x.score->finish(w.p, width), kTileBuffer / kLanes, 1, w.dw,
                              w.dp);
      score.tile_gradient(x.score->self.get(), q, k, w.a, width, w.dw, seen, w.down + i * width * lanes,
                          w.dk + tile * kTile * width, w.da);
    });
    if (goal.dq)
      for (int i = 0; i < rows; ++i) {
        T *from = w.down + i * width * lanes, *to = goal.dq.row(near + i) + h * width;
        stages::fold_wide(from, width, from);
        for (int c = 0; c < width; ++c) to[c] += from[c];
      }
  }
  if (goal.dk) add_unpacked(w.dk, key, key_end, goal.dk.columns(h * width, width));
  if (goal.dv) add_unpacked(w.dv, key, key_end, goal.dv.columns(h * values, values));
  if (!goal.learned) return;
  stages::fold_wide(w.da, width, w.da);
  for (int c = 0; c < width; ++c) goal.learned[c] += w.da[c];
  for (int i = 0; i < x.score->scalars; ++i) stages::collect(w.dp + i * kLanes, 1, 1, goal.learned + width + i);
}

template <class T>
void clear(View<T> x) {
  parallel_pieces(x.rows, 256, [&](Offset begin, Offset end) {
    for (Offset i = begin; i < end; ++i) std::fill_n(x.row(i), x.cols, T(0));
  });
}
template <class T>
void add_copies(View<T> to, const T* from, Id copies) {  // each to.rows x to.cols
  parallel_pieces(to.rows, 64, [&](Offset begin, Offset end) {
    for (Id g = 0; g < copies; ++g)
      for (Offset i = begin; i < end; ++i)
        for (Offset c = 0; c < to.cols; ++c) to(i, c) += from[(g * to.rows + i) * to.cols + c];
  });
}
template <class T>
bool overlap(View<T> a, View<T> b) {  // false for different columns of one array
  if (!a || !b || a.rows == 0 || b.rows == 0) return false;
  if (b.data < a.data) std::swap(a, b);
  const Offset between = b.data - a.data, column = a.stride == b.stride ? between % a.stride : 0;
  return b.data < a.row(a.rows - 1) + a.cols && !(column >= a.cols && column + b.cols <= a.stride);
}

}  // namespace

bool pays_in_tiles(const Pattern& pattern) {
  const Rows& rows = pattern.by_query;
  if (rows.listed() || rows.walk) return false;
  Offset pairs = 0;
  for (Id i = 0; i < rows.rows; ++i) pairs += rows.length(i);
  return pairs >= 16 * Offset{rows.rows} && pairs >= 2 * Offset{rows.cols} && pairs > 0;
}

template <class T>
void tiled_attention(const Attention<T>& x, View<T> y, AttentionState<T>& state) {
  const Plan<T> plan(x);
  const Id queries = plan.rows.rows, keys = plan.rows.cols;
  const Id blocks = pieces(queries, plan.block);
  if (blocks == 0) return;
  const Id strips = pieces(keys, plan.strip);
  const Id wanted = std::clamp<Id>(pieces(kTasks, blocks * x.heads), 1, std::max<Id>(strips, 1));
  // Short groups: the heads' tasks, one after another, then find their keys in a cache.
  const Id each = std::clamp<Id>(pieces(strips, wanted), 1, wanted > 1 ? 16 : strips + 1);
  const int groups = static_cast<int>(std::max<Id>(pieces(strips, each), 1));
  const Offset part = Offset{queries} * x.heads * (plan.values + 2);
  state.parts.resize(groups > 1 ? groups : 0, part);
  parallel_pieces(Offset{blocks} * x.heads * groups, 1, [&](Offset task, Offset) {
    const int h = static_cast<int>(task % x.heads), g = static_cast<int>(task / x.heads % groups);
    const Id first = static_cast<Id>(task / x.heads / groups) * plan.block;
    const Id key = g * each * plan.strip;
    const Id end = static_cast<Id>(std::min<Offset>(keys, key + Offset{each} * plan.strip));
    forward_block(plan, h, first, std::min(queries, first + plan.block), key, end, y, state.tau,
                  groups > 1 ? state.parts.row(g) : nullptr);
  });
  if (groups == 1) return;
  const Offset eights = pieces(queries, kLanes);
  parallel_pieces(eights * x.heads, 4, [&](Offset begin, Offset end) {
    for (Offset t = begin; t < end; ++t) {
      const Id first = static_cast<Id>(t / x.heads) * kLanes;
      merge_parts(plan, static_cast<int>(t % x.heads), first, std::min(queries, first + kLanes), groups,
                  state.parts.data(), y, state.tau);
    }
  });
}

template <class T>
void tiled_gradient(const Attention<T>& x, View<const T> y, View<const T> dy, AttentionState<T>& state,
                    const AttentionGradient<T>& g) {
  const Plan<T> plan(x);
  const Waves waves(plan.rows, plan.cell, plan.strip, x.heads);
  const Id groups = waves.groups;
  const int scalars = x.score->scalars;
  const bool learned = (g.da && x.score->reads_vector) || g.dp;
  for (const Sink<T>* sink : {&g.dq, &g.da, &g.dp, &g.dk, &g.dv})
    if (*sink && !sink->add) clear(sink->to);

  // Copies of the short side's gradients where there are groups; of dq also where it lies in one place with another.
  const bool copy_queries =
      g.dq && ((groups > 1 && !waves.split_rows) || overlap(g.dq.to, g.dk.to) || overlap(g.dq.to, g.dv.to));
  const bool copy_keys = groups > 1 && waves.split_rows;
  const Offset dq_size = copy_queries ? x.q.rows * x.q.cols : 0;
  const Offset dk_size = copy_keys && g.dk ? x.k.rows * x.k.cols : 0;
  const Offset dv_size = copy_keys && g.dv ? x.v.rows * x.v.cols : 0;
  const Id dq_copies = waves.split_rows ? 1 : groups;
  state.parts.resize(1, dq_size * dq_copies + (dk_size + dv_size) * groups);
  T *const dq_parts = state.parts.data(), *const dk_parts = dq_parts + dq_size * dq_copies;
  T* const dv_parts = dk_parts + dk_size * groups;
  std::fill_n(state.parts.data(), state.parts.size(), T(0));

  const Offset head = plan.width + scalars;
  state.sums.resize(waves.tasks(), learned ? head * x.heads : 0);
  std::fill_n(state.sums.data(), state.sums.size(), T(0));

  for (Id wave = 0; wave < waves.waves; ++wave)
    parallel_pieces(Offset{waves.tasks()} * x.heads, 1, [&](Offset task, Offset) {
      const int h = static_cast<int>(task % x.heads);
      const Id t = static_cast<Id>(task / x.heads);
      Id group, row, col;
      if (!waves.cell(wave, t, group, row, col)) return;
      auto copy = [&](T* parts, Offset size, Id number, View<const T> like) {
        return View<T>{parts + number * size, like.rows, like.cols, like.cols};
      };
      Goal<T> goal{g.dq.to, g.dk.to, g.dv.to};
      if (dq_size > 0) goal.dq = copy(dq_parts, dq_size, waves.split_rows ? 0 : group, x.q);
      if (dk_size > 0) goal.dk = copy(dk_parts, dk_size, group, x.k);
      if (dv_size > 0) goal.dv = copy(dv_parts, dv_size, group, x.v);
      if (learned) goal.learned = state.sums.row(t) + h * head;
      const Id first = row * plan.cell, key = col * plan.strip;
      gradient_cell(plan, h, first, std::min(plan.rows.rows, first + plan.cell), key,
                    std::min(plan.rows.cols, key + plan.strip), y, dy, state.tau, goal);
    });

  if (dq_size > 0) add_copies(g.dq.to, dq_parts, dq_copies);
  if (dk_size > 0) add_copies(g.dk.to, dk_parts, groups);
  if (dv_size > 0) add_copies(g.dv.to, dv_parts, groups);
  for (Offset t = 0; t < state.sums.rows() && learned; ++t)
    for (int h = 0; h < x.heads; ++h) {
      const T* from = state.sums.row(t) + h * head;
      for (int c = 0; c < plan.width && g.da && x.score->reads_vector; ++c) g.da.to(0, h * plan.width + c) += from[c];
      for (int i = 0; i < scalars && g.dp; ++i) g.dp.to(i, h) += from[plan.width + i];
    }
}

#define HEED_INSTANTIATE(T)                                                                           \
  template void tiled_attention(const Attention<T>&, View<T>, AttentionState<T>&);                    \
  template void tiled_gradient(const Attention<T>&, View<const T>, View<const T>, AttentionState<T>&, \
                               const AttentionGradient<T>&);
HEED_INSTANTIATE(float)
HEED_INSTANTIATE(double)

}  // namespace heed
