// The fused attention operator as seen by one warp: the bodies of the GPU's kernels, forward and backward, written over
// `Warp` (warp.h) so that CUDA and the CPU's emulation run the very same code, for any score, normaliser and width.
// attention_lanes.h has the faster ones for widths that fit the lanes' registers.
//
// A warp takes a block of whole rows, or a segment of a hub's row, and passes over its edges in chunks. The scores of a
// chunk lie in shared memory as edges x padded heads (at most kSlots); so a lane always meets one head in the
// elementwise stage. Sums over channels and sums over edges are shared among the lanes as the widths allow. Nothing is
// stored per edge, and every output has one owner: no atomics, the same bits in every run.
#pragma once

#include <cstring>
#include <tuple>
#include <utility>

#include "kernels/ahead.h"
#include "kernels/bf16.h"
#include "kernels/filter.h"
#include "kernels/jet.h"
#include "kernels/normalisers.h"
#include "kernels/pattern.h"
#include "kernels/random.h"
#include "kernels/scores.h"
#include "kernels/traits.h"
#include "kernels/warp.h"

namespace heed::warp {

inline constexpr int kSlots = 256;    // edges x padded heads of a chunk
inline constexpr int kMaxHeads = 32;  // more heads run as several calls
inline constexpr int kUnroll = 4;     // sums over channels that a lane has under way
inline constexpr Offset kReduceRows = 64;

template <class T>
struct Strided {  // rows of an array; row i begins at data + i * stride
  T* data = nullptr;
  int stride = 0;
  bool wide = false;  // each head of a row begins at a multiple of 4 numbers' size and is as long
  bool half = false;  // the numbers are bfloat16, as half_row has them
  HEED_FN T* row(Offset i) const { return data + i * stride; }
  HEED_FN T* row(Id i) const { return data + Offset{i} * stride; }  // one multiplication of 32 bits
  HEED_FN const std::uint16_t* half_row(Id i) const {
    return reinterpret_cast<const std::uint16_t*>(data) + Offset{i} * stride;
  }
  HEED_FN explicit operator bool() const { return data != nullptr; }
};
struct Into {  // where a gradient goes
  Strided<float> to;
  bool add = false;
  HEED_FN explicit operator bool() const { return static_cast<bool>(to); }
};

struct Hub {  // a row that was cut, and its segments' numbers
  Id row = 0;
  Offset first = 0, count = 0;
};

// One direction of a pattern, as in pattern.h.
struct Seen {
  const Offset* offsets = nullptr;  // of the row's list, or of those left out of the interval; may be null
  const Id* ids = nullptr;
  const Id* intervals = nullptr;       // [begin, end) pairs; null: a list
  Offset interval_stride = 0;          // 2, or 0 where all rows share one
  const NodeMap* draws = nullptr;      // columns of the row beside its list: theirs, or their inverses'
  int drawn = 0;
  bool inverse = false;
  const char* kept = nullptr;  // of each column, whether it counts; where `of_rows`, of each row
  bool of_rows = false;
  const Id* ranks = nullptr;  // where given, of a key that counts: how many come before it, by which dropout knows it
  const Offset* edges = nullptr;  // the number of the edge of each entry; null: the entry's own
  const Block* blocks = nullptr;  // the warps' work
  const Hub* hubs = nullptr;

  HEED_FN Offset fixed_length(Offset i) const {  // without what is drawn
    if (intervals == nullptr) return offsets ? offsets[i + 1] - offsets[i] : 0;
    const Id* at = intervals + i * interval_stride;
    return at[1] - at[0];
  }
  HEED_FN Offset length(Offset i) const { return fixed_length(i) + drawn; }
  HEED_FN bool listed() const {  // and all that is listed counts
    return intervals == nullptr && draws == nullptr && kept == nullptr;
  }
};

// f of the normaliser at a place in the menu. What is uniform in a warp is a switch at run time, lest kernels be
// compiled for each.
template <int at = 0, class F>
HEED_WARP_FN auto at_normaliser(int index, F f) {
  if constexpr (at + 1 < std::tuple_size_v<Normalisers>)
    if (index != at) return at_normaliser<at + 1>(index, f);
  return f(std::tuple_element_t<at, Normalisers>{});
}
struct Weighed {  // what backward asks of a normaliser; share is 0 where nothing couples
  float w, slope, share;
};
template <class N>
struct OneNormaliser {  // of one that is known, with what the bodies call
  static HEED_WARP_FN bool shifts() { return N::shifts; }
  static HEED_WARP_FN bool couples() { return N::couples; }
  static HEED_WARP_FN bool solves() { return N::solves; }
  static HEED_WARP_FN float reach() {
    if constexpr (N::solves)
      return static_cast<float>(N::reach);
    else
      return 0.0f;
  }
  // Where tau is solved for, the shift is tau.
  static HEED_WARP_FN float raw(float s, float shift) {
    if constexpr (N::solves)
      return N{}.weight(s, shift);
    else
      return raw_weight(N{}, s, shift);
  }
  static HEED_WARP_FN Closed<float> close(float shift, float total) {
    if constexpr (N::solves)
      return {shift, 1.0f};
    else
      return closed(N{}, shift, total);
  }
  static HEED_WARP_FN float drain(float s, float w, float tau) {
    if constexpr (N::measures)
      return N{}.drain(s, w, tau);
    else
      return w;
  }
  static HEED_WARP_FN float weight(float s, float tau) { return N{}.weight(s, tau); }
  static HEED_WARP_FN float share(float s, float w, float tau) { return N{}.share(s, w, tau); }
  static HEED_WARP_FN Weighed weighed(float s, float tau) {
    const float w = N{}.weight(s, tau);
    return {w, N{}.slope(s, w, tau), N::couples ? N{}.share(s, w, tau) : 0.0f};
  }
};
struct AnyNormaliser {
  int index = 0;

  template <class F>
  HEED_WARP_FN auto of(F f) const {
    return at_normaliser(index, [&](auto n) { return f(OneNormaliser<decltype(n)>{}); });
  }
  HEED_WARP_FN bool shifts() const {
    return of([](auto n) { return n.shifts(); });
  }
  HEED_WARP_FN bool couples() const {
    return of([](auto n) { return n.couples(); });
  }
  HEED_WARP_FN bool solves() const {
    return of([](auto n) { return n.solves(); });
  }
  HEED_WARP_FN float reach() const {
    return of([](auto n) { return n.reach(); });
  }
  HEED_WARP_FN float raw(float s, float shift) const {
    return of([=](auto n) { return n.raw(s, shift); });
  }
  HEED_WARP_FN Closed<float> close(float shift, float total) const {
    return of([=](auto n) { return n.close(shift, total); });
  }
  HEED_WARP_FN float drain(float s, float w, float tau) const {
    return of([=](auto n) { return n.drain(s, w, tau); });
  }
  HEED_WARP_FN float weight(float s, float tau) const {
    return of([=](auto n) { return n.weight(s, tau); });
  }
  HEED_WARP_FN Weighed weighed(float s, float tau) const {
    return of([=](auto n) { return n.weighed(s, tau); });
  }
  HEED_WARP_FN float share(float s, float w, float tau) const {
    return of([=](auto n) { return n.share(s, w, tau); });
  }
};

// Which bodies run: for any width, or those of attention_lanes.h, where a row's heads fit the lanes of a warp.
// The last two are for what most calls ask for, with rows of floats or of bfloat16 numbers.
enum class Body { any_width, lanes, plain_lanes, half_lanes };

// What a pass reads and writes; arrays are shaped as in attention.h. Heads are at most kMaxHeads.
struct Call {
  Seen rows;
  int heads = 1, head_bits = 0;  // padded heads: 2^head_bits >= heads
  int score_width = 1, width = 1;
  AnyNormaliser normaliser;
  Strided<const float> q, k, v, a, p, e, bias, ev;
  Body body = Body::any_width;
  int group_bits = 0;      // of the number of lanes that have a head, in lanes
  bool one_table = false;  // v is k
  bool drops = false;
  std::uint64_t drop_key = 0;
  const std::uint64_t* drop_key_at = nullptr;  // where it lies, if it changes from step to step
  int drop_group = -1;                         // of a call that runs as several: its first head, mixed into the key
  int drop_head = 0;                           // the head of this group's first one
  std::uint32_t drop_below = 0;
  float keep_scale = 1;
  bool drops_keys = false;  // one draw for all queries
  Id topk = 0;              // the filter, as in filter.h
  float above = -__builtin_inff();
  float scale = 1;        // of scores
  bool tempered = false;  // by a learned temperature, whose logarithm is the last row of p
  Strided<float> y, tau;
  Strided<float> both;         // queries x heads x (tau, delta), of backward
  bool delta_follows = false;  // from y and dy: the row pass may fill `both`
  // Where a score has one slope over 0 and another under it (GAT): sum_j w_ij m_ij v_j and sum_j w_ij over the keys with
  // scores over 0, from which dq follows without a pass over edges (fill_delta of attention.cpp).
  Strided<float> raised, raised_share;  // queries x heads*width, queries x heads
  float slope_below = 0;
  Strided<float> least;  // what keys are compared to, where the filter counts them
  Strided<Id> last;
  Strided<const float> dy;
  Into dq, dk, dv, da, dp, de, dbias, dev;
  const float* weights = nullptr;  // of a weighted sum of rows of v, into dq: one an edge; null: 1
  const float *row_scale = nullptr, *column_bias = nullptr;
  Strided<std::uint16_t> narrow;  // where the rows of v go as bfloat16 numbers
  Offset queries = 0;
  Strided<float> parts;       // partial results of segments
  Strided<float> part_state;  // 3*heads: shift, total and raised_share of each segment
  Strided<float> part_raised;
  Strided<float> sums;        // per block: heads*score_width of da, then scalars x heads of dp; none: not wanted
  Strided<float> reduced;     // the same rows, fewer
  Offset sum_rows = 0;
  int sum_cols = 0;

  HEED_FN bool filters() const { return topk > 0 || above > -__builtin_inff(); }
  HEED_FN bool passes(float s, Id query, Id key, int head) const {
    return topk > 0 ? counts(s, key, least.row(query)[head], last.row(query)[head]) : counts(s, key, above, Id{-1});
  }
  HEED_FN int padded() const { return 1 << head_bits; }
  HEED_FN int group() const { return 1 << group_bits; }
  HEED_FN int chunk() const { return kSlots >> head_bits < kWarp ? kSlots >> head_bits : kWarp; }  // edges
  HEED_WARP_FN float keep(Id query, Id key, int head) const {
    std::uint64_t stream = drop_key_at ? read(drop_key_at) : drop_key;
    if (drop_group >= 0) stream = mix(stream, static_cast<std::uint64_t>(drop_group));
    if (rows.ranks) key = read(rows.ranks + key);
    auto bits = drop_bits(mix(stream, drops_keys ? 0 : query), static_cast<std::uint32_t>(key),
                          static_cast<std::uint32_t>(drop_head + head));
    return bits < drop_below ? 0.0f : keep_scale;
  }
};

enum class Pass {
  threshold,
  forward,
  delta,
  measure,
  row,
  column,
  merge_forward,
  merge_row,
  merge_column,
  reduce,
  learned,
  weigh,
  narrow
};

template <class Warp>
struct Memory {                 // what the lanes of a warp share
  WarpShared<Warp, float> s, dw;    // kSlots
  WarpShared<Warp, float> factors;  // 2 x kMaxHeads
  WarpShared<Warp, Id> ids;         // kWarp: the chunk's columns
  WarpShared<Warp, Offset> edges;   // kWarp: and their edges' numbers
};

template <class S>
inline constexpr bool reads_vector =
    (partials<decltype(std::declval<S>().term(float{}, float{}, Zero{}, variable<1>(float{})))> >> 1 & 1) != 0;
template <bool own_is_query, class S, class Own, class Other, class E, class A>
HEED_FN auto term(const S& score, Own own, Other other, E e, A a) {
  if constexpr (own_is_query)
    return score.term(own, other, e, a);
  else
    return score.term(other, own, e, a);
}

// The least power of two that covers n, at most a warp.
HEED_WARP_FN int group_of(int n) {
  int group = 1;
  while (group < n && group < kWarp) group *= 2;
  return group;
}

// ---- the columns of a row -----------------------------------------------------------------------------------------

HEED_WARP_FN bool stands_in_list(const Seen& rows, Id i, Id j) {
  if (rows.offsets == nullptr) return false;
  Offset low = rows.offsets[i], high = rows.offsets[i + 1], end = high;
  while (low < high) {
    Offset middle = (low + high) / 2;
    if (read(rows.ids + middle) < j)
      low = middle + 1;
    else
      high = middle;
  }
  return low < end && read(rows.ids + low) == j;
}

// Columns at `count` positions of row i from `at` on, those that count, into memory.ids; returns how many.
template <class Warp>
HEED_WARP_FN int gather(Warp& warp, const Memory<Warp>& memory, const Seen& rows, Id i, Offset at, int count,
                        bool want_edges) {
  if (rows.listed()) {
    const Offset base = rows.offsets[i] + at;
    warp.lanes([&](int lane) {
      if (lane >= count) return;
      memory.ids.set(lane, lane, read(rows.ids + base + lane));
      if (want_edges) memory.edges.set(lane, lane, rows.edges ? read(rows.edges + base + lane) : base + lane);
    });
    warp.sync();
    return count;
  }
  const Offset fixed = rows.fixed_length(i);
  PerLane<Warp, bool> seen;
  PerLane<Warp, Id> mine;
  warp.lanes([&](int lane) {
    const Offset place = at + lane;
    seen[lane] = lane < count && !(rows.of_rows && rows.kept != nullptr && !read(rows.kept + i));
    if (!seen[lane]) return;
    if (place >= fixed) {  // of maps that agree, the first one's, if it is not in the list
      const auto from = static_cast<std::uint32_t>(i);
      std::uint32_t to = 0;
      HEED_ONE_BY_ONE
      for (Offset t = place - fixed; t >= 0 && seen[lane]; --t) {
        const NodeMap map = rows.draws[t];
        const std::uint32_t drawn = map.go(from, rows.inverse);
        if (t == place - fixed)
          to = drawn, seen[lane] = map.seen(from, to);
        else
          seen[lane] = drawn != to;
      }
      mine[lane] = static_cast<Id>(to);
      seen[lane] = seen[lane] && !stands_in_list(rows, i, mine[lane]);
    } else if (rows.intervals == nullptr) {
      mine[lane] = read(rows.ids + rows.offsets[i] + place);
    } else {
      mine[lane] = static_cast<Id>(rows.intervals[i * rows.interval_stride] + place);
      seen[lane] = !stands_in_list(rows, i, mine[lane]);
    }
    if (rows.kept != nullptr && !rows.of_rows) seen[lane] = seen[lane] && read(rows.kept + mine[lane]);
  });
  const std::uint32_t mask = warp.ballot(seen);
  warp.lanes([&](int lane) {
    if (seen[lane]) memory.ids.set(lane, rank_in(mask, lane), mine[lane]);
  });
  warp.sync();
  return count_bits(mask);
}

// ---- sums ---------------------------------------------------------------------------------------------------------

// to[edge][head] = sum over the head's channels c of f(lane, edge, c). A group of lanes shares a sum; lanes and order
// depend on the width alone, so a score has the same bits in every pass.
template <class Warp, class F>
HEED_WARP_FN void sum_channels(Warp& warp, const Call& x, int n, int width, const WarpShared<Warp, float>& to, F f) {
  const int slots = n << x.head_bits, group = group_of(width), together = kWarp / group;
  for (int first = 0; first < slots; first += kUnroll * together) {
    PerLane<Warp, float> sum[kUnroll];
    warp.lanes([&](int lane) {
      const int member = lane % group;
      HEED_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        int slot = first + u * together + lane / group;
        int edge = slot >> x.head_bits, head = slot & (x.padded() - 1);
        float part = 0;
        if (slot < slots && head < x.heads)
          for (int c = member; c < width; c += group) part += f(lane, edge, head * width + c);
        sum[u][lane] = part;
      }
    });
    HEED_UNROLL
    for (int u = 0; u < kUnroll; ++u) warp.sum(sum[u], 1, group);
    warp.lanes([&](int lane) {
      if (lane % group != 0) return;
      HEED_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        int slot = first + u * together + lane / group;
        if (slot < slots) to.set(lane, slot, sum[u][lane]);
      }
    });
  }
}

// For each of heads x width channels: A sums over the chunk's edges. begin(lane, c, head) gives what adds an edge's
// share, add(edge, sums); finish(lane, c, head, sums) takes the result, always in the same lane.
template <int A, class Warp, class Begin, class Finish>
HEED_WARP_FN void sum_edges(Warp& warp, const Call& x, int n, int width, Begin begin, Finish finish) {
  const int channels = x.heads * width, group = group_of(channels), together = kWarp / group;
  for (int first = 0; first < channels; first += group) {
    PerLane<Warp, float> sum[A];
    warp.lanes([&](int lane) {
      float part[A] = {};
      const int c = first + lane % group;
      if (c < channels) {
        auto add = begin(lane, c, c / width);
        for (int edge = lane / group; edge < n; edge += together) add(edge, part);
      }
      HEED_UNROLL
      for (int t = 0; t < A; ++t) sum[t][lane] = part[t];
    });
    HEED_UNROLL
    for (int t = 0; t < A; ++t) warp.sum(sum[t], group, kWarp);
    warp.lanes([&](int lane) {
      const int c = first + lane;
      if (lane >= group || c >= channels) return;
      float all[A];
      HEED_UNROLL
      for (int t = 0; t < A; ++t) all[t] = sum[t][lane];
      finish(lane, c, c / width, all);
    });
  }
}

HEED_WARP_FN void put(float* to, float value, bool add) { *to = add ? *to + value : value; }

// ---- scores -------------------------------------------------------------------------------------------------------

// memory.s = sum_c term(...) of the chunk, row r being the query or the key.
template <bool own_is_query, class S, class Warp>
HEED_WARP_FN void score_sums(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Id r, int n) {
  const float* own = own_is_query ? x.q.row(r) : x.k.row(r);
  const Strided<const float>& other = own_is_query ? x.k : x.q;
  auto run = [&](auto with_edge) {
    sum_channels(warp, x, n, x.score_width, memory.s, [&](int lane, int edge, int c) {
      auto e = [&] {
        if constexpr (decltype(with_edge)::value)
          return read(x.e.row(memory.edges.get(lane, edge)) + c);
        else
          return Zero{};
      }();
      auto a = [&] {
        if constexpr (reads_vector<S>)
          return read(x.a.data + c);
        else
          return Zero{};
      }();
      return term<own_is_query>(score, read(own + c), read(other.row(memory.ids.get(lane, edge)) + c), e, a);
    });
  };
  if (x.e)
    run(std::true_type{});
  else
    run(std::false_type{});
}

// What a score has learned for a head, and what its temperature multiplies scores with; of one that finishes with a
// factor, that, its derivatives by what was learned, and both together.
template <class S>
struct Learned {
  float p[scalars_of<S> + 1] = {}, tempering = 1, factor = 1, slopes[scalars_of<S> + 1] = {}, both = 1;
};
template <class S>
inline constexpr bool has_factor = has_finish<S>&& linear_finish<S>;
template <class S>
HEED_WARP_FN Learned<S> learned_of(const Call& x, const S& score, bool tempered, int head) {
  Learned<S> out;
  HEED_UNROLL
  for (int t = 0; t < scalars_of<S>; ++t) out.p[t] = read(x.p.row(t) + head);
  out.tempering = tempered ? x.scale * fn::exp(-read(x.p.row(scalars_of<S>) + head)) : x.scale;
  if constexpr (has_factor<S> && scalars_of<S> == 0) {
    out.factor = score.factor(out.p, x.score_width);
  } else if constexpr (has_factor<S>) {
    Jet<float, 0b1111> p[scalars_of<S>];
    HEED_UNROLL
    for (int t = 0; t < scalars_of<S>; ++t) {
      p[t] = Jet<float, 0b1111>(out.p[t]);
      p[t].d[t] = 1;
    }
    const auto factor = score.factor(p, x.score_width);
    out.factor = factor.v;
    HEED_UNROLL
    for (int t = 0; t < scalars_of<S>; ++t) out.slopes[t] = factor.d[t];
  }
  out.both = out.factor * out.tempering;
  return out;
}

// Not joined with a sum that follows: a score has the same bits in every kernel, whatever the compiler makes of it, and
// topk and max ask for equal ones.
HEED_FN float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
// From the sum over channels to the score, but for biases.
template <class S>
HEED_WARP_FN float score_of(const Call& x, const S& score, const Learned<S>& learned, float sum) {
  if constexpr (has_factor<S>) return rounded_product(sum, learned.both);
  return rounded_product(finished(score, sum, learned.p, x.score_width), learned.tempering);
}
template <class S, class Warp>
HEED_WARP_FN float score_of(const Memory<Warp>& memory, const Call& x, const S& score, int lane, int edge, int head,
                            float sum) {
  float s = score_of(x, score, learned_of(x, score, x.tempered, head), sum);
  if (x.bias) s += read(x.bias.row(memory.edges.get(lane, edge)) + head);
  return s;
}

// ---- forward ------------------------------------------------------------------------------------------------------

// Scores become raw weights times dropout, in place; the row's state (one head a lane) takes them in. Leaves in
// memory.factors what the sums so far, and then the new ones too, are multiplied with; the latter is 1 but for the last
// chunk of a whole row, whose tau is written.
template <class S, class Warp>
HEED_WARP_FN void take_in(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Id i, int n,
                          bool closes, PerLane<Warp, float>& shift, PerLane<Warp, float>& total) {
  const float none = -__builtin_inff();
  const int slots = n << x.head_bits;
  PerLane<Warp, float> top, sum, rescale;
  warp.lanes([&](int lane) {
    const int head = lane & (x.padded() - 1);
    float most = none;
    if (head < x.heads)
      for (int slot = lane; slot < slots; slot += kWarp) {
        const int edge = slot >> x.head_bits;
        float s = score_of(memory, x, score, lane, edge, head, memory.s.get(lane, slot));
        if (x.filters() && !x.passes(s, i, memory.ids.get(lane, edge), head)) s = none;
        memory.s.set(lane, slot, s);
        if (s > most) most = s;
      }
    top[lane] = most;
  });
  if (x.normaliser.shifts()) warp.max(top, x.padded(), kWarp);
  warp.lanes([&](int lane) {
    const int head = lane & (x.padded() - 1);
    float use = 0, part = 0;
    rescale[lane] = 1;
    if (x.normaliser.shifts()) {
      float old = shift[lane], now = top[lane] > old ? top[lane] : old;
      use = now > none ? now : 0;
      rescale[lane] = old > none ? fn::exp(old - use) : 0;
      shift[lane] = now;
    } else if (x.normaliser.solves()) {
      use = shift[lane] = head < x.heads ? x.tau.row(i)[head] : 0;
    }
    if (head < x.heads)
      for (int slot = lane; slot < slots; slot += kWarp) {
        const float s = memory.s.get(lane, slot);
        float w = x.filters() && s == none ? 0.0f : x.normaliser.raw(s, use);
        part += w;
        if (x.drops) w *= x.keep(i, memory.ids.get(lane, slot >> x.head_bits), head);
        memory.s.set(lane, slot, w);
      }
    sum[lane] = part;
  });
  if (x.normaliser.couples()) warp.sum(sum, x.padded(), kWarp);
  warp.lanes([&](int lane) {
    if (x.normaliser.couples()) total[lane] = total[lane] * rescale[lane] + sum[lane];
    if (lane >= x.heads) return;
    float factor = 1;
    if (closes) {
      const Closed<float> end = x.normaliser.close(shift[lane], total[lane]);
      factor = end.factor;
      x.tau.row(i)[lane] = end.tau;
    }
    memory.factors.set(lane, lane, rescale[lane]);
    memory.factors.set(lane, kMaxHeads + lane, factor);
  });
}

template <class S, class Warp>
HEED_WARP_FN void forward(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  const Block block = x.rows.blocks[t];
  const bool whole = block.part < 0;
  for (Id i = block.first; i < block.last; ++i) {
    const Offset end = whole ? x.rows.length(i) : block.end;
    Offset at = whole ? 0 : block.begin;
    float* to = whole ? x.y.row(i) : x.parts.row(block.part);
    PerLane<Warp, float> shift, total;
    warp.lanes([&](int lane) { shift[lane] = -__builtin_inff(), total[lane] = 0; });
    bool first = true;
    do {  // a row without edges has one empty chunk
      const int count = static_cast<int>(end - at < x.chunk() ? end - at : x.chunk());
      at += count;
      const int n = gather(warp, memory, x.rows, i, at - count, count, x.e || x.bias || x.ev);
      score_sums<true>(warp, memory, x, score, i, n);
      warp.sync();
      take_in(warp, memory, x, score, i, n, whole && at >= end, shift, total);
      warp.sync();
      sum_edges<1>(
          warp, x, n, x.width,
          [&](int lane, int c, int head) {
            return [&, lane, c, head](int edge, float* sum) {
              float value = read(x.v.row(memory.ids.get(lane, edge)) + c);
              if (x.ev) value += read(x.ev.row(memory.edges.get(lane, edge)) + c);
              sum[0] += memory.s.get(lane, (edge << x.head_bits) + head) * value;
            };
          },
          [&](int lane, int c, int head, const float* sum) {
            float before = first ? 0.0f : to[c] * memory.factors.get(lane, head);
            to[c] = (before + sum[0]) * memory.factors.get(lane, kMaxHeads + head);
          });
      warp.sync();
      first = false;
    } while (at < end);
    if (!whole)
      warp.lanes([&](int lane) {
        if (lane >= x.heads) return;
        x.part_state.row(block.part)[lane] = shift[lane];
        x.part_state.row(block.part)[x.heads + lane] = total[lane];
      });
  }
}

HEED_WARP_FN Offset tiles(Offset channels) { return (channels + kWarp - 1) / kWarp; }

// Of 32 columns of an item each, the item and the column of a lane.
struct Column {
  Offset item;
  int c;
};
HEED_WARP_FN Column column_of(Offset t, int channels, int lane) {
  const auto wide = static_cast<std::uint32_t>(tiles(channels));
  if (t > 0xffffffff) return {t / wide, static_cast<int>(t % wide) * kWarp + lane};
  const auto small = static_cast<std::uint32_t>(t);  // division is dear, of 64 bits more so
  return {small / wide, static_cast<int>(small % wide) * kWarp + lane};
}
inline constexpr int kMerged = 8;  // rows that are fetched side by side
// fetch(u, row) for up to kMerged rows from `first` on, the last one again where there are fewer.
template <class Fetch>
HEED_WARP_FN void fetch_rows(Offset first, Offset end, Fetch fetch) {
  HEED_UNROLL
  for (int u = 0; u < kMerged; ++u) fetch(u, first + u < end ? first + u : end - 1);
}
HEED_WARP_FN float column_sum(const Strided<float>& x, Offset begin, Offset end, int c) {
  float sum = 0;
  for (Offset first = begin; first < end; first += kMerged) {
    float values[kMerged];
    fetch_rows(first, end, [&](int u, Offset row) { values[u] = x.row(row)[c]; });
    HEED_UNROLL
    for (int u = 0; u < kMerged; ++u)
      if (first + u < end) sum += values[u];
  }
  return sum;
}

// A hub's segments become its row: a warp for 32 channels of a hub, segments in rising order.
HEED_WARP_FN void merge_channel(const Call& x, const Hub& hub, int c) {
  const float none = -__builtin_inff();
  const int head = c / x.width;
  const bool shifts = x.normaliser.shifts();
  float shift = none, total = 0, sum = 0, above = 0, share = 0;
  for (Offset first = hub.first, end = hub.first + hub.count; first < end; first += kMerged) {
    float tops[kMerged], totals[kMerged], sums[kMerged], aboves[kMerged], shares[kMerged];
    fetch_rows(first, end, [&](int u, Offset part) {
      const float* state = x.part_state.row(part);
      tops[u] = state[head], totals[u] = state[x.heads + head], sums[u] = x.parts.row(part)[c];
      aboves[u] = x.raised ? x.part_raised.row(part)[c] : 0.0f;
      shares[u] = x.raised ? state[2 * x.heads + head] : 0.0f;
    });
    float most = shift;
    HEED_UNROLL
    for (int u = 0; u < kMerged; ++u)
      if (first + u < end && tops[u] > most) most = tops[u];
    const float before = !shifts ? 1.0f : shift > none ? fn::exp(shift - most) : 0.0f;
    total *= before, sum *= before, above *= before, share *= before;
    shift = most;
    HEED_UNROLL
    for (int u = 0; u < kMerged; ++u) {
      if (first + u >= end) continue;
      const float rescale = !shifts ? 1.0f : tops[u] > none ? fn::exp(tops[u] - shift) : 0.0f;
      total += totals[u] * rescale, sum += sums[u] * rescale;
      above += aboves[u] * rescale, share += shares[u] * rescale;
    }
  }
  if (!shifts) shift = x.normaliser.solves() ? x.part_state.row(hub.first)[head] : none;
  const Closed<float> end = x.normaliser.close(shift, total);
  x.y.row(hub.row)[c] = sum * end.factor;
  if (x.raised) x.raised.row(hub.row)[c] = above * end.factor;
  if (c % x.width != 0) return;
  x.tau.row(hub.row)[head] = end.tau;
  if (x.raised) x.raised_share.row(hub.row)[head] = share * end.factor;
}
template <class Warp>
HEED_WARP_FN void merge_forward(Warp& warp, const Call& x, Offset t) {
  const int channels = x.heads * x.width;
  warp.lanes([&](int lane) {
    const Column at = column_of(t, channels, lane);
    if (at.c < channels) merge_channel(x, x.rows.hubs[at.item], at.c);
  });
}

// ---- what takes a look at whole rows first ------------------------------------------------------------------------

// Calls visit(n) for the chunks of row i as often as it is called itself, with their scores in memory.s, and does not
// compute those of a row of one chunk again.
template <class S, class Warp>
struct RowScores {
  Warp& warp;
  const Memory<Warp>& memory;
  const Call& x;
  const S& score;
  Id i;
  int kept = -1;  // the edges of the only chunk

  template <class Visit>
  HEED_WARP_FN void operator()(Visit visit) {
    const Offset end = x.rows.length(i);
    Offset at = 0;
    do {
      const int count = static_cast<int>(end - at < x.chunk() ? end - at : x.chunk());
      int n = kept;
      if (n < 0) {
        n = gather(warp, memory, x.rows, i, at, count, x.e || x.bias || x.ev);
        score_sums<true>(warp, memory, x, score, i, n);
        warp.sync();
        each(n, [&](int lane, int slot, int head) {
          memory.s.set(lane, slot,
                       score_of(memory, x, score, lane, slot >> x.head_bits, head, memory.s.get(lane, slot)));
        });
      }
      visit(n);
      at += count;
      if (end <= x.chunk())
        kept = n;
      else
        warp.sync();
    } while (at < end);
  }
  // use(lane, slot, head) for the slots of a chunk of n edges, each always in the same lane.
  template <class Use>
  HEED_WARP_FN void each(int n, Use use) {
    warp.lanes([&](int lane) {
      const int head = lane & (x.padded() - 1);
      if (head < x.heads)
        for (int slot = lane; slot < n << x.head_bits; slot += kWarp) use(lane, slot, head);
    });
  }
};

// A key's place in the order of all keys of its row, the best ones highest; NaN among the best.
HEED_WARP_FN std::uint64_t rank_of(float s, Id key) {
  s = s == s ? s + 0.0f : __builtin_inff();  // -0 is 0
  std::uint32_t bits;
  std::memcpy(&bits, &s, sizeof bits);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<std::uint64_t>(bits) << 32 | static_cast<std::uint32_t>(~key);
}

// What the topk best keys of each head are not below: found bit by bit, as few keys share their first bits.
template <class S, class Warp>
HEED_WARP_FN void find_bounds(Warp& warp, const Memory<Warp>& memory, const Call& x, RowScores<S, Warp>& scores, Id i) {
  PerLane<Warp, std::uint64_t> found, next;
  PerLane<Warp, int> have, count;
  PerLane<Warp, bool> open;
  warp.lanes([&](int lane) { found[lane] = next[lane] = 0, have[lane] = 0; });
  for (int bit = 64; bit >= 0; --bit) {  // first, all are counted
    warp.lanes([&](int lane) {
      count[lane] = 0;
      if (bit < 64) next[lane] = found[lane] | std::uint64_t{1} << bit;
    });
    scores([&](int n) {
      scores.each(n, [&](int lane, int slot, int) {
        const Id key = memory.ids.get(lane, slot >> x.head_bits);
        count[lane] += rank_of(memory.s.get(lane, slot), key) >= next[lane];
      });
    });
    warp.sum(count, x.padded(), kWarp);
    warp.lanes([&](int lane) {
      if (bit == 64 || (have[lane] > x.topk && count[lane] >= x.topk))
        found[lane] = next[lane], have[lane] = count[lane];
      open[lane] = have[lane] > x.topk;
    });
    if (warp.ballot(open) == 0) break;
  }
  warp.lanes([&](int lane) {
    if (lane >= x.heads) return;
    float least = -__builtin_inff();
    Id last = 0x7fffffff;
    if (found[lane] != 0) {
      auto bits = static_cast<std::uint32_t>(found[lane] >> 32);
      bits = bits >> 31 ? bits & 0x7fffffffu : ~bits;
      std::memcpy(&least, &bits, sizeof least);
      const std::uint32_t key = ~static_cast<std::uint32_t>(found[lane]);
      last = key > 0x7fffffffu ? 0x7fffffff : static_cast<Id>(key);
    }
    if (!(least > x.above) && x.above > -__builtin_inff()) least = x.above, last = -1;
    x.least.row(i)[lane] = least, x.last.row(i)[lane] = last;
  });
}

// tau with sum_k w_k = 1, by Newton's steps from a tau under which the best key's weight alone is 1. The sum is convex
// and falls with tau, so that steps never pass the root; they end where rounding stops them.
template <class S, class Warp>
HEED_WARP_FN void solve(Warp& warp, const Memory<Warp>& memory, const Call& x, RowScores<S, Warp>& scores, Id i) {
  const float none = -__builtin_inff();
  PerLane<Warp, float> tau, weights, drains;
  PerLane<Warp, bool> moves;
  auto passes = [&](int lane, int slot, int head, float s) {
    return !x.filters() || x.passes(s, i, memory.ids.get(lane, slot >> x.head_bits), head);
  };
  warp.lanes([&](int lane) { tau[lane] = none; });
  scores([&](int n) {
    scores.each(n, [&](int lane, int slot, int head) {
      const float s = memory.s.get(lane, slot);
      if (s > tau[lane] && passes(lane, slot, head, s)) tau[lane] = s;
    });
  });
  warp.max(tau, x.padded(), kWarp);
  warp.lanes([&](int lane) { tau[lane] = tau[lane] > none ? tau[lane] - x.normaliser.reach() : __builtin_inff(); });
  for (int step = 0; step < 100; ++step) {
    warp.lanes([&](int lane) { weights[lane] = drains[lane] = 0; });
    scores([&](int n) {
      scores.each(n, [&](int lane, int slot, int head) {
        const float s = memory.s.get(lane, slot);
        if (!passes(lane, slot, head, s)) return;
        const float w = x.normaliser.weight(s, tau[lane]);
        weights[lane] += w, drains[lane] += x.normaliser.drain(s, w, tau[lane]);
      });
    });
    warp.sum(weights, x.padded(), kWarp), warp.sum(drains, x.padded(), kWarp);
    warp.lanes([&](int lane) {
      const float next = drains[lane] > 0 ? tau[lane] + (weights[lane] - 1) / drains[lane] : tau[lane];
      moves[lane] = next > tau[lane];
      tau[lane] = next;
    });
    if (warp.ballot(moves) == 0) break;
  }
  warp.lanes([&](int lane) {
    if (lane < x.heads) x.tau.row(i)[lane] = tau[lane];
  });
}

template <class S, class Warp>
HEED_WARP_FN void threshold(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  const Block block = x.rows.blocks[t];
  for (Id i = block.first; i < block.last; ++i) {
    RowScores<S, Warp> scores{warp, memory, x, score, i};
    if (x.topk > 0) find_bounds(warp, memory, x, scores, i), warp.sync();
    if (x.normaliser.solves()) solve(warp, memory, x, scores, i);
    warp.sync();
  }
}

// ---- backward -----------------------------------------------------------------------------------------------------

// tau_i and, beside it, delta_i = <dy_i, y_i> per head; a warp takes a chunk of rows.
template <class Warp>
HEED_WARP_FN void delta(Warp& warp, const Memory<Warp>& memory, const Call& x, Offset t) {
  const Offset first = t * x.chunk();
  const int n = static_cast<int>(x.queries - first < x.chunk() ? x.queries - first : x.chunk());
  sum_channels(warp, x, n, x.width, memory.s,
               [&](int, int row, int c) { return read(x.dy.row(first + row) + c) * read(x.y.row(first + row) + c); });
  warp.sync();
  warp.lanes([&](int lane) {
    const int head = lane & (x.padded() - 1);
    if (head >= x.heads) return;
    for (int slot = lane; slot < n << x.head_bits; slot += kWarp) {
      const Offset i = first + (slot >> x.head_bits);
      x.both.row(i)[2 * head] = x.tau.row(i)[head];
      x.both.row(i)[2 * head + 1] = memory.s.get(lane, slot);
    }
  });
}

// memory.dw = <dy_i, v_j> of a chunk of query i.
template <class Warp>
HEED_WARP_FN void value_gradients(Warp& warp, const Memory<Warp>& memory, const Call& x, Id i, int n) {
  sum_channels(warp, x, n, x.width, memory.dw, [&](int lane, int edge, int c) {
    float value = read(x.v.row(memory.ids.get(lane, edge)) + c);
    if (x.ev) value += read(x.ev.row(memory.edges.get(lane, edge)) + c);
    return read(x.dy.row(i) + c) * value;
  });
}

// delta_i = (sum_j drain_j dw_j) / (sum_j share_j) per head, where drain is not w.
template <class S, class Warp>
HEED_WARP_FN void measure(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  const Block block = x.rows.blocks[t];
  for (Id i = block.first; i < block.last; ++i) {
    RowScores<S, Warp> scores{warp, memory, x, score, i};
    PerLane<Warp, float> drained, shares;
    warp.lanes([&](int lane) { drained[lane] = shares[lane] = 0; });
    scores([&](int n) {
      value_gradients(warp, memory, x, i, n);
      warp.sync();
      scores.each(n, [&](int lane, int slot, int head) {
        const Id key = memory.ids.get(lane, slot >> x.head_bits);
        const float s = memory.s.get(lane, slot), tau = x.tau.row(i)[head], w = x.normaliser.weight(s, tau);
        if (x.filters() && !x.passes(s, i, key, head)) return;
        const float keep = x.drops ? x.keep(i, key, head) : 1.0f;
        drained[lane] += x.normaliser.drain(s, w, tau) * (memory.dw.get(lane, slot) * keep);
        shares[lane] += x.normaliser.share(s, w, tau);
      });
    });
    warp.sum(drained, x.padded(), kWarp), warp.sum(shares, x.padded(), kWarp);
    warp.lanes([&](int lane) {
      if (lane >= x.heads) return;
      x.both.row(i)[2 * lane] = x.tau.row(i)[lane];
      x.both.row(i)[2 * lane + 1] = shares[lane] > 0 ? drained[lane] / shares[lane] : 0.0f;
    });
    warp.sync();
  }
}

// The middle of backward for an edge and head, alike in both directions: from the sum over channels and dw = <dy, v>,
// the weight times dropout and the gradient of the sum. dp gets what the row pass adds to the learned scalars'.
struct Slot {
  float w = 0, ds = 0;
};
template <bool own_is_query, class Rules, class S>
HEED_WARP_FN Slot slot_gradient(const Call& x, const Rules& rules, const S& score, const Learned<S>& learned, float sum,
                                float dw, float tau, float delta, Id query, Id key, Offset edge, int head, bool writes,
                                float (&dp)[scalars_of<S> + 1]) {
  const auto normaliser = rules.normaliser();
  float s = score_of(x, score, learned, sum);
  if (rules.biased()) s += read(x.bias.row(edge) + head);
  const auto [w, slope, share] = normaliser.weighed(s, tau);
  const float keep = rules.drops() ? x.keep(query, key, head) : 1.0f;
  float ds = slope * (dw * keep);
  if (normaliser.couples()) ds -= share * delta;
  const bool counts = !rules.filters() || x.passes(s, query, key, head);
  if (!counts) ds = 0;
  if constexpr (own_is_query)
    if (rules.biased() && x.dbias && writes) put(x.dbias.to.row(edge) + head, ds, x.dbias.add);
  if constexpr (has_factor<S>) {
    if constexpr (own_is_query) {
      HEED_UNROLL
      for (int j = 0; j < scalars_of<S>; ++j) dp[j] = ds * learned.tempering * sum * learned.slopes[j];
      dp[scalars_of<S>] = -ds * sum * learned.both;
    }
    return {counts ? w * keep : 0.0f, ds * learned.both};
  }
  ds *= learned.tempering;
  if constexpr (has_finish<S>) {
    Jet<float, 0b1111> p[scalars_of<S> + 1], from(sum);
    from.d[0] = 1;
    HEED_UNROLL
    for (int j = 0; j < scalars_of<S>; ++j) {
      p[j] = Jet<float, 0b1111>(learned.p[j]);
      p[j].d[j + 1] = 1;
    }
    const auto y = finished(score, from, p, x.score_width);
    if constexpr (own_is_query) {
      HEED_UNROLL
      for (int j = 0; j < scalars_of<S>; ++j) dp[j] = ds * y.d[j + 1];
      dp[scalars_of<S>] = -ds * y.v;
    }
    ds *= y.d[0];
  } else if constexpr (own_is_query) {
    dp[0] = -ds * sum;
  }
  return {counts ? w * keep : 0.0f, ds};
}
struct CallRules {  // what a call asks for, looked up
  const Call& x;
  HEED_WARP_FN AnyNormaliser normaliser() const { return x.normaliser; }
  HEED_WARP_FN bool filters() const { return x.filters(); }
  HEED_WARP_FN bool drops() const { return x.drops; }
  HEED_WARP_FN bool biased() const { return static_cast<bool>(x.bias); }
};

// Over the slots of a chunk: sums (memory.s) and dw become weights times dropout (memory.s) and the gradient of the
// sums (memory.dw).
template <bool own_is_query, class S, class Warp>
HEED_WARP_FN void slot_gradients(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Id r, int n,
                                 PerLane<Warp, float>* dp) {
  warp.lanes([&](int lane) {
    const int head = lane & (x.padded() - 1);
    if (head >= x.heads) return;
    for (int slot = lane; slot < n << x.head_bits; slot += kWarp) {
      const int edge = slot >> x.head_bits;
      const Id other = memory.ids.get(lane, edge), query = own_is_query ? r : other, key = own_is_query ? other : r;
      float more[scalars_of<S> + 1];
      const float* both = x.both.row(query) + 2 * head;
      const Slot out = slot_gradient<own_is_query>(
          x, CallRules{x}, score, learned_of(x, score, x.tempered, head), memory.s.get(lane, slot),
          memory.dw.get(lane, slot), both[0], both[1], query, key, x.bias ? memory.edges.get(lane, edge) : 0, head,
          true, more);
      if constexpr (own_is_query) {
        HEED_UNROLL
        for (int j = 0; j < scalars_of<S>; ++j) dp[j][lane] += more[j];
        if (x.tempered) dp[scalars_of<S>][lane] += more[scalars_of<S>];
      }
      memory.s.set(lane, slot, out.w);
      memory.dw.set(lane, slot, out.ds);
    }
  });
}

// From memory.dw, the gradient of the sums: the own side's into `down` and the learned vector's into `da` (heads x
// score_width each, one may be null), and each edge's features' where x.de is wanted. Adds where told so.
template <bool own_is_query, class S, class Warp>
HEED_WARP_FN void score_gradients(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Id r, int n,
                                  float* down, bool add_down, float* da, bool add_da) {
  const float* own = own_is_query ? x.q.row(r) : x.k.row(r);
  const Strided<const float>& other = own_is_query ? x.k : x.q;
  auto run = [&](auto with_edge) {
    constexpr bool has_edge = decltype(with_edge)::value;
    auto evaluate = [&score](float mine, float theirs, float e, float a) {
      auto edge = [&] {
        if constexpr (has_edge)
          return variable<2>(e);
        else
          return Zero{};
      }();
      auto learned = [&] {
        if constexpr (reads_vector<S>)
          return variable<1>(a);
        else
          return Zero{};
      }();
      return term<own_is_query>(score, variable<0>(mine), Jet<float, 0>(theirs), edge, learned);
    };
    constexpr unsigned mask = decltype(evaluate(0.0f, 0.0f, 0.0f, 0.0f))::mask;
    sum_edges<2>(
        warp, x, n, x.score_width,
        [&](int lane, int c, int head) {
          const float mine = read(own + c), a = reads_vector<S> ? read(x.a.data + c) : 0.0f;
          return [&, lane, c, head, mine, a](int edge, float* sum) {
            float e = 0;
            if constexpr (has_edge) e = read(x.e.row(memory.edges.get(lane, edge)) + c);
            const auto y = evaluate(mine, read(other.row(memory.ids.get(lane, edge)) + c), e, a);
            const float ds = memory.dw.get(lane, (edge << x.head_bits) + head);
            if constexpr (mask & 1) sum[0] += ds * y.d[0];
            if constexpr (own_is_query && (mask & 2)) sum[1] += ds * y.d[1];
            if constexpr (own_is_query && has_edge)
              if (x.de) {
                float de = 0;
                if constexpr (mask & 4) de = ds * y.d[2];
                x.de.to.row(memory.edges.get(lane, edge))[c] = de;
              }
          };
        },
        [&](int, int c, int, const float* sum) {
          if (down) put(down + c, sum[0], add_down);
          if (own_is_query && reads_vector<S> && da) put(da + c, sum[1], add_da);
        });
  };
  if (x.e)
    run(std::true_type{});
  else
    run(std::false_type{});
}

// A block of queries: dq, the gradients of edges, and the block's sums of da and dp.
template <class S, class Warp>
HEED_WARP_FN void row(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  const Block block = x.rows.blocks[t];
  const bool whole = block.part < 0;
  const int channels = x.heads * x.score_width;
  float* sums = x.sums ? x.sums.row(t) : nullptr;
  PerLane<Warp, float> dp[scalars_of<S> + 1];
  warp.lanes([&](int lane) {
    for (auto& part : dp) part[lane] = 0;
  });
  bool add_sums = false;
  for (Id i = block.first; i < block.last; ++i) {
    const Offset end = whole ? x.rows.length(i) : block.end;
    Offset at = whole ? 0 : block.begin;
    float* down = !x.dq ? nullptr : whole ? x.dq.to.row(i) : x.parts.row(block.part);
    bool add = whole && x.dq.add;
    do {
      const int count = static_cast<int>(end - at < x.chunk() ? end - at : x.chunk());
      const int n = gather(warp, memory, x.rows, i, at, count, x.e || x.bias || x.ev);
      score_sums<true>(warp, memory, x, score, i, n);
      value_gradients(warp, memory, x, i, n);
      warp.sync();
      slot_gradients<true>(warp, memory, x, score, i, n, dp);
      warp.sync();
      if (x.dq || x.de || (reads_vector<S> && sums))
        score_gradients<true>(warp, memory, x, score, i, n, down, add, sums, add_sums);
      if (x.dev)  // after de, which may be the same place
        sum_edges<1>(
            warp, x, n, x.width,
            [&](int lane, int c, int head) {
              return [&, lane, c, head](int edge, float*) {
                float w = memory.s.get(lane, (edge << x.head_bits) + head);
                put(x.dev.to.row(memory.edges.get(lane, edge)) + c, w * read(x.dy.row(i) + c), x.dev.add);
              };
            },
            [](int, int, int, const float*) {});
      warp.sync();
      add = add_sums = true;
      at += count;
    } while (at < end);
  }
  if (!sums) return;
  HEED_UNROLL
  for (int j = 0; j < scalars_of<S> + 1; ++j) {
    if (j == scalars_of<S> && !x.tempered) break;
    warp.sum(dp[j], x.padded(), kWarp);
    warp.lanes([&](int lane) {
      if (lane < x.heads) sums[channels + j * x.heads + lane] = dp[j][lane];
    });
  }
}

// A block of keys: dk and dv. A segment of a hub has both in one row of x.parts.
template <class S, class Warp>
HEED_WARP_FN void column(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  const Block block = x.rows.blocks[t];
  const bool whole = block.part < 0;
  for (Id j = block.first; j < block.last; ++j) {
    const Offset end = whole ? x.rows.length(j) : block.end;
    Offset at = whole ? 0 : block.begin;
    float* dk = !x.dk ? nullptr : whole ? x.dk.to.row(j) : x.parts.row(block.part);
    float* dv = !x.dv ? nullptr : whole ? x.dv.to.row(j) : x.parts.row(block.part) + x.heads * x.score_width;
    bool add_k = whole && x.dk.add, add_v = whole && x.dv.add;
    do {
      const int count = static_cast<int>(end - at < x.chunk() ? end - at : x.chunk());
      const int n = gather(warp, memory, x.rows, j, at, count, x.e || x.bias || x.ev);
      score_sums<false>(warp, memory, x, score, j, n);
      sum_channels(warp, x, n, dk ? x.width : 0, memory.dw, [&](int lane, int edge, int c) {
        float value = read(x.v.row(j) + c);
        if (x.ev) value += read(x.ev.row(memory.edges.get(lane, edge)) + c);
        return value * read(x.dy.row(memory.ids.get(lane, edge)) + c);
      });
      warp.sync();
      slot_gradients<false>(warp, memory, x, score, j, n, static_cast<PerLane<Warp, float>*>(nullptr));
      warp.sync();
      if (dk) score_gradients<false>(warp, memory, x, score, j, n, dk, add_k, static_cast<float*>(nullptr), false);
      warp.sync();
      if (dv)  // after dk, which may be the same place
        sum_edges<1>(
            warp, x, n, x.width,
            [&](int lane, int c, int head) {
              return [&, lane, c, head](int edge, float* sum) {
                float w = memory.s.get(lane, (edge << x.head_bits) + head);
                sum[0] += w * read(x.dy.row(memory.ids.get(lane, edge)) + c);
              };
            },
            [&](int, int c, int, const float* sum) { put(dv + c, sum[0], add_v); });
      warp.sync();
      add_k = add_v = true;
      at += count;
    } while (at < end);
  }
}

// A hub's segments become its rows of one or two gradients that lie one behind the other in x.parts.
template <class Warp>
HEED_WARP_FN void merge_sums(Warp& warp, const Call& x, const Into& first, int first_cols, const Into& second,
                             int second_cols, Offset t) {
  // The two may be one place, the second added to the first: one lane has both.
  const int most = first_cols > second_cols ? first_cols : second_cols;
  warp.lanes([&](int lane) {
    const auto [item, c] = column_of(t, most, lane);
    if (c >= most) return;
    const Hub hub = x.rows.hubs[item];
    auto merge = [&](const Into& into, int cols, int behind) {
      if (!into || c >= cols) return;
      put(into.to.row(hub.row) + c, column_sum(x.parts, hub.first, hub.first + hub.count, behind + c), into.add);
    };
    merge(first, first_cols, 0), merge(second, second_cols, first_cols);
  });
}

// Each kReduceRows rows of x.sums become one row of x.reduced: a warp for 32 columns of one such run.
template <class Warp>
HEED_WARP_FN void reduce(Warp& warp, const Call& x, Offset t) {
  warp.lanes([&](int lane) {
    const auto [run, c] = column_of(t, x.sum_cols, lane);
    const Offset begin = run * kReduceRows;
    const Offset end = begin + kReduceRows < x.sum_rows ? begin + kReduceRows : x.sum_rows;
    if (c < x.sum_cols) x.reduced.row(run)[c] = column_sum(x.sums, begin, end, c);
  });
}

// The one row that is left becomes da and dp.
template <class Warp>
HEED_WARP_FN void learned(Warp& warp, const Call& x, Offset t) {
  const int channels = x.heads * x.score_width;
  warp.lanes([&](int lane) {
    const int c = static_cast<int>(t) * kWarp + lane;
    if (c >= x.sum_cols) return;
    if (c < channels) {
      if (x.da) put(x.da.to.data + c, x.sums.data[c], x.da.add);
    } else if (x.dp) {
      const int at = c - channels;
      put(x.dp.to.row(at / x.heads) + at % x.heads, x.sums.data[c], x.dp.add);
    }
  });
}

}  // namespace heed::warp
