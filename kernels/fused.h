// Whole rows in one loop: attention under softmax over lists and intervals, for the shapes that most models have
// (kFusedShapes). Where the stages pass a batch of edges through buffers, a row stays in registers from its scores to
// its sums, so a row of few edges costs half as much. What they compute is the same up to the order of additions.
// Everything else goes through the stages.
#pragma once

#include <algorithm>

#include "kernels/attention.h"
#include "kernels/normalisers.h"
#include "kernels/scores.h"
#include "kernels/stages.h"
#include "kernels/traits.h"
#include "kernels/wide.h"

namespace heed {

struct FusedForward {
  const Attention<float>& x;
  Finish<float> finish;
  View<float> y, tau;
  View<float> above;  // AttentionState::above, or none
  const std::uint8_t* needed;  // AttentionState::needed, or null
};

struct FusedBackward {
  const Attention<float>& x;
  Finish<float> finish;
  View<const float> dy;
  View<const float> tau_delta;  // queries x 2*heads
  const AttentionGradient<float>& to;
  const std::uint8_t* given;  // AttentionState::given, or null
};

// Each runs over the rows of a block. Those that are whole are finished; what a part of a hub gives goes into `part`:
struct Fused {
  // the sums for y, and for `above` and its weights where it is kept, each in whole vectors; and the state
  void (*forward)(const FusedForward&, const Block&, float* part, const stages::RowState<float>& state) = nullptr;
  // dk and dv, of rows of keys: sums for dk, then for dv, in whole vectors
  void (*keys)(const FusedBackward&, const Block&, float* part) = nullptr;
  // dq: sums for it. da (heads*width) and dp (runs of 8) are added to, unless null. None: the stages do it.
  void (*queries)(const FusedBackward&, const Block&, float* part, float* da, float* dp) = nullptr;
};

// The kernels for this call; none: it goes through the stages.
const Fused* fused_kernels(const Attention<float>& x);
inline const Fused* fused_kernels(const Attention<double>&) { return nullptr; }  // it checks gradients of the stages

namespace fused {

using V = stages::Lanes<float>;
using Wide = Vec<float, kWideLanes>;
using normalisers::Softmax;

inline constexpr int kTogether = 32;  // edges of a row whose rows stay in the first-level cache from stage to stage
inline constexpr float kNone = -__builtin_inff();

// Some edges of a row. Vectors of numbers hold those of all heads, of 8 / heads edges at once.
struct Edges {
  const Id* ids;  // in the list, or listed for the purpose
  int n;          // at most kTogether
  const Id* last;
  bool adjacent = false;  // ids rise by 1

  // Of a lane without an edge: the last one's.
  Id operator()(int t) const { return ids[std::min(t, n - 1)]; }
  // How many have one that comes kAhead later, in whichever row; and that one's row, fetched.
  int followed() const { return static_cast<int>(std::clamp<std::ptrdiff_t>(last - ids - kAhead, 0, n)); }
  template <int bytes>
  HEED_FN void fetch(View<const float> table, int t) const {
    fetch_row<bytes>(table.row(ids[t + kAhead]));
  }
  template <int bytes>
  static HEED_FN void fetch_row(const float* row) {
    const char* from = reinterpret_cast<const char*>(row);
#pragma GCC unroll 8
    for (int at = 0; at < bytes; at += 64) prefetch_line(from + at);
  }
};

// Those of them that are marked, which come together in `room`.
HEED_FN Edges those(const Edges& edges, const std::uint8_t* marked, Id* room) {
  int n = 0;
  for (int t = 0; t < edges.n; ++t) room[n] = edges.ids[t], n += marked[edges.ids[t]] != 0;
  return {room, n, room + n};
}

// The vector of the edges from t on: a number a head of a table's rows; or one number of each edge.
template <int heads>
HEED_FN V numbers(View<const float> table, const Edges& edges, int t) {
  if constexpr (heads == 8) return V::load(table.row(edges.ids[t]));
  if constexpr (heads == 4) {
    const auto a = Vec<float, 4>::load(table.row(edges.ids[t])).v, b = Vec<float, 4>::load(table.row(edges(t + 1))).v;
    return V(__builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7));
  }
  V out;
  if constexpr (heads == 1)
    for (int l = 0; l < kLanes; ++l) out.v[l] = *table.row(edges(t + l));
  return out;
}
template <int heads, class Of>
HEED_FN Words words(Of of) {
  if constexpr (heads == 8) return Words{} + of(0);
  Words out;
  for (int l = 0; l < kLanes; ++l) out[l] = of(l / heads);
  return out;
}
template <int heads>  // of one row
HEED_FN V repeated(const float* row) {
  if constexpr (heads == 8) return V::load(row);
  if constexpr (heads == 1) return V(row[0]);
  const auto x = Vec<float, 4>::load(row).v;
  return V(__builtin_shufflevector(x, x, 0, 1, 2, 3, 0, 1, 2, 3));
}

// Dropout's factors of the edges from t on.
template <int heads, bool row_is_query>
HEED_FN V keep(const Dropout& dropout, std::uint64_t row, const Edges& edges, int t) {
  Words head;
  for (int l = 0; l < kLanes; ++l) head[l] = l % heads;
  const std::uint32_t threshold = dropout.threshold();
  if constexpr (row_is_query) {  // `row`: the query's key
    const Words other = words<heads>([&](int e) { return static_cast<std::uint32_t>(edges(t + e)); });
    return drop_factors<float>(Words{} + static_cast<std::uint32_t>(row),
                               Words{} + static_cast<std::uint32_t>(row >> 32), other, head, threshold,
                               dropout.scale());
  }
  std::uint64_t key[kLanes / heads];
  for (int e = 0; e < kLanes / heads; ++e) key[e] = dropout.row_key(edges(t + e));
  return drop_factors<float>(words<heads>([&](int e) { return static_cast<std::uint32_t>(key[e]); }),
                             words<heads>([&](int e) { return static_cast<std::uint32_t>(key[e] >> 32); }),
                             Words{} + static_cast<std::uint32_t>(row), head, threshold, dropout.scale());
}

// Eight heads of fewer than 8 channels lie across vectors: channel c of each, and the sums over all channels.
template <int width, int c>
HEED_FN V channel(const V* x) {
  auto out = x[0].v;
  auto join = [&]<int g, int... h>(std::integer_sequence<int, h...>) __attribute__((always_inline)) {
    constexpr auto from = [](int head) {
      const int at = head * width + c;
      return at / kLanes == g ? kLanes + at % kLanes : (g == 1 && at < kLanes ? at : head);
    };
    out = __builtin_shufflevector(out, x[g].v, from(h)...);
  };
  [&]<int... g>(std::integer_sequence<int, g...>) __attribute__((always_inline)) {
    (join.template operator()<g + 1>(std::make_integer_sequence<int, kLanes>{}), ...);
  }(std::make_integer_sequence<int, width - 1>{});
  return out;
}
template <int width>
HEED_FN V over_heads(const V* x) {
  return [&]<int... c>(std::integer_sequence<int, c...>) { return (channel<width, c>(x) + ...); }(
      std::make_integer_sequence<int, width>{});
}
// use.template operator()<g>() for vectors 0, 1, ...
template <int count, class Use>
HEED_FN void for_vectors(Use use) {
  [&]<int... g>(std::integer_sequence<int, g...>) __attribute__((always_inline)) {
    (use.template operator()<g>(), ...);
  }(std::make_integer_sequence<int, count>{});
}

// to[t][h] = sum_c term(...) of the row's own vectors, in registers, with another row for each edge; `learned`: a, or
// null. Of one head the last vector holds `tail` channels.
template <class S, int heads, int width, bool own_is_query>
HEED_FN void sums(const S& score, const V* mine, const float* learned, View<const float> other, const Edges& edges,
                  int tail, float* to) {
  constexpr int per = std::max(width / kLanes, 1), vectors = heads * width / kLanes;
  auto part = [&](const float* row, int i) {
    V value;
    if constexpr (stages::reads_vector<S, V>)
      value =
          stages::term<own_is_query>(score, mine[i], V::load(row + i * kLanes), Zero{}, V::load(learned + i * kLanes));
    else
      value = stages::term<own_is_query>(score, mine[i], V::load(row + i * kLanes), Zero{}, Zero{});
    return heads == 1 && i == per - 1 ? keep_first(value, tail) : value;
  };
  auto sum = [&](const float* row, int first) {
    V out = V(0.0f) + part(row, first);
#pragma GCC unroll 4
    for (int i = 1; i < per; ++i) out = out + part(row, first + i);
    return out;
  };
  constexpr int bytes = vectors * kLanes * 4;
  const int followed = edges.followed();
  // Inline: calls of what does nothing but fetch are taken for useless and left out.
  auto fetch = [&](int t) __attribute__((always_inline)) {
    if (t < followed) edges.fetch<bytes>(other, t);
  };
  if constexpr (width < kLanes) {
    for (int t = 0; t < edges.n; ++t) {
      fetch(t);
      const float* row = stages::one_address(other.row(edges.ids[t]));
      V parts[vectors];
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i) parts[i] = part(row, i);
      over_heads<width>(parts).store(to + t * heads);
    }
  } else if constexpr (heads == 1) {
    for (int t = 0; t < edges.n; t += 4) {
      V four[4];
#pragma GCC unroll 4
      for (int e = 0; e < 4; ++e) fetch(t + e), four[e] = sum(other.row(edges(t + e)), 0);
      fold_four(four[0], four[1], four[2], four[3]).store(to + t);
    }
  } else {
    for (int t = 0; t < edges.n; ++t) {
      fetch(t);
      const float* row = stages::one_address(other.row(edges.ids[t]));
#pragma GCC unroll 2
      for (int h = 0; h < heads; h += 4)
        fold_four(sum(row, h * per), sum(row, (h + 1) * per), sum(row, (h + 2) * per), sum(row, (h + 3) * per))
            .store(to + t * heads + h);
    }
  }
}

// sum[g] += w[t][head of g] * row t, and `also` of other weights, if there are such, while the row is at hand.
// `fetches`: rows to come, too, so that their misses lie beside these sums.
template <int heads, int width, bool fetches = false, bool two = false>
HEED_FN void add(const float* w, View<const float> table, const Edges& edges, V* sum, const float* others = nullptr,
                 V* also = nullptr) {
  constexpr int lanes = heads * width % kWideLanes == 0 ? kWideLanes : kLanes, vectors = lanes / kLanes;
  constexpr int all = heads * width / lanes, group = two && all % 4 == 0 ? 4 : std::min(all, 8);  // in registers
  static_assert(all % group == 0);
  const int followed = fetches ? edges.followed() : 0;
#pragma GCC unroll 4
  for (int first = 0; first < all; first += group) {
    Vec<float, lanes> sums[group], second[group];
#pragma GCC unroll 8
    for (int g = 0; g < group; ++g) {
      sums[g] = joined<lanes>(sum + (first + g) * vectors);
      if constexpr (two) second[g] = joined<lanes>(also + (first + g) * vectors);
    }
    for (int t = 0; t < edges.n; ++t) {
      const float* row = stages::one_address(table.row(edges.ids[t]) + first * lanes);
      const int at = t * heads + first * lanes / width;
      if (fetches && t < followed) edges.fetch<group * lanes * 4>(table.columns(first * lanes, group * lanes), t);
      for_vectors<group>([&]<int g>() __attribute__((always_inline)) {
        const auto x = Vec<float, lanes>::load(row + g * lanes);
        sums[g] = sums[g] + of_heads<lanes, width, g>(w + at) * x;
        if constexpr (two) second[g] = second[g] + of_heads<lanes, width, g>(others + at) * x;
      });
    }
#pragma GCC unroll 8
    for (int g = 0; g < group; ++g) {
      split(sums[g], sum + (first + g) * vectors);
      if constexpr (two) split(second[g], also + (first + g) * vectors);
    }
  }
}

template <int heads, int width>
HEED_FN void load(const float* row, V* to) {
#pragma GCC unroll 16
  for (int g = 0; g < heads * width / kLanes; ++g) to[g] = V::load(row + g * kLanes);
}
template <int count>
HEED_FN void clear(V* to) {
#pragma GCC unroll 16
  for (int g = 0; g < count; ++g) to[g] = V(0.0f);
}
// A table larger than caches is written past them, whole lines at a time: else each line would be read first. Until
// drain(), others may not see what went there.
inline constexpr Offset kLarge = Offset{32} << 20;
HEED_FN bool goes_past(View<float> table) {
  constexpr Offset line = 64 / sizeof(float);
#if defined(__AVX__) && !defined(__CUDA_ARCH__)
  return table.rows * table.stride * Offset{sizeof(float)} > kLarge && table.stride % line == 0 &&
         table.cols % line == 0 && reinterpret_cast<std::uintptr_t>(table.data) % 64 == 0;
#endif
  return false;
}
HEED_FN void store_past(V x, float* to) {
#if defined(__AVX__) && !defined(__CUDA_ARCH__)
  asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<V::Raw*>(to)) : "x"(x.v));
#endif
}
HEED_FN void drain() {
#if defined(__AVX__) && !defined(__CUDA_ARCH__)
  asm volatile("sfence" ::: "memory");
#endif
}
// row = row where `adds`, or 0, + sum * factor[head]. `past`: what goes_past() said of the row's table.
template <int heads, int width>
HEED_FN void put(const V* sum, V factor, float* row, bool adds, int tail, bool past = false) {
  constexpr int vectors = heads * width / kLanes;
  for_vectors<vectors>([&]<int g>() __attribute__((always_inline)) {
    V x = sum[g] * of_heads<kLanes, width, g>(factor);
    if (adds) x = x + V::load(row + g * kLanes);
    if (past && !adds)
      store_past(x, row + g * kLanes);
    else if (heads == 1 && g == vectors - 1)
      store_first(x, tail, row + g * kLanes);
    else
      x.store(row + g * kLanes);
  });
}
HEED_FN bool any(V::Mask lanes) {
  std::int32_t out = 0;
  for (int l = 0; l < kLanes; ++l) out |= lanes[l];
  return out != 0;
}
inline constexpr auto larger = [](auto a, decltype(a) b) __attribute__((always_inline)) { return select(b > a, b, a); };
HEED_FN V plus(V a, V b) { return a + b; }

// The edges of row i in the block, some at a time.
class Portions {
 public:
  HEED_FN Portions(const Rows& rows, const Block& block, Id i) : listed_(rows.listed()) {
    if (listed_) {
      const Csr& list = *rows.list;
      const Offset from = list.offsets[i];
      const bool part = block.part >= 0;
      at_ = list.ids.data() + from + (part ? block.begin : 0);
      end_ = list.ids.data() + (part ? from + block.end : list.offsets[i + 1]);
      last_ = list.ids.data() + list.ids.size();
    } else {
      begin(rows, block, i);
    }
  }
  HEED_FN bool take(Edges& edges) {
    if (!listed_) return fill(edges);
    if (at_ == end_) return false;
    edges = {at_, static_cast<int>(std::min<Offset>(kTogether, end_ - at_)), last_};
    at_ += edges.n;
    return true;
  }

 private:
  void begin(const Rows& rows, const Block& block, Id i);  // of an interval less a list
  bool fill(Edges& edges);

  bool listed_;
  const Id *at_, *end_, *last_;       // in a list
  Id next_, stop_;                    // in an interval
  const Id *missing_, *missing_end_;  // what it lacks from next_ on
  Id room_[kTogether];
};
// Calls use(edges, whether they are the first) for each; returns whether there were any. `use` is to be inline, lest
// what a row keeps in registers pass through memory.
template <class Use>
HEED_FN bool for_each_portion(const Rows& rows, const Block& block, Id i, Use use) {
  Portions portions(rows, block, i);
  Edges edges;
  bool any = false;
  for (; portions.take(edges); any = true) use(edges, !any);
  return any;
}

// The finish of a score, for wide scores: a factor for each head where it is linear, else the stage.
struct Finisher {
  const Score& score;
  const Finish<float>& f;
  int heads;
  bool scales = score.finishes() && score.linear, runs = score.finishes() && !score.linear;
  V factor = 1.0f, total = 0.0f;  // total: of ds times the sum, where it scales

  HEED_FN Finisher(const Attention<float>& x, const Finish<float>& finish)
      : score(*x.score), f(finish), heads(x.heads) {
    if (!scales) return;
    alignas(64) float one[kLanes];
    V(1.0f).store(one);
    score.single.finish(score.self.get(), one, f, 1, heads, one);
    factor = V::load(one);
  }
  void add_total(float* dp) const {
    if (!scales || !dp) return;
    alignas(64) float one[kLanes], ds[kLanes];
    V(1.0f).store(one), total.store(ds);
    score.single.finish_gradient(score.self.get(), one, f, 1, heads, ds, dp);
  }
};

template <class S>  // no score of the menu has one channel a head and a learned vector besides
inline constexpr bool knows = !(contracts_of<S> && stages::reads_vector<S, V>);

// width: channels of a head; of one head alone, as many as its vectors hold
template <class S, int heads, int width>
struct Kernels {
  static constexpr bool contracts = contracts_of<S>;
  static constexpr bool kinked = requires(const S& score) { score.slope_below(); };
  static constexpr int vectors = heads * width / kLanes, bytes = vectors * kLanes * 4;
  static constexpr int room = kTogether * heads + kLanes;

  static int used(const Edges& edges) { return (edges.n * heads + kLanes - 1) / kLanes; }
  static int last_lanes(const Edges& edges) { return edges.n * heads - (used(edges) - 1) * kLanes; }
  static int tail(Offset channels) { return heads == 1 ? static_cast<int>(channels) - (width - kLanes) : kLanes; }
  static const S& self(const Attention<float>& x) { return *static_cast<const S*>(x.score->self.get()); }

  static void forward(const FusedForward& f, const Block& block, float* part, const stages::RowState<float>& state) {
    if constexpr (kinked)
      if (f.above) return forward_rows<true>(f, block, part, state);
    forward_rows<false>(f, block, part, state);
  }
  // A full portion of an interval whose numbers and values lie as its edges do: no id is read, and the rows come while
  // the exponentials are computed. The same bits as any other portion's.
  static HEED_FN void add_stream(const S& score, V mine, const float* numbers, const float* row, V* acc, V& top,
                                 V& total, bool starts) {
    constexpr int lanes = heads * width % kWideLanes == 0 ? kWideLanes : kLanes, parts = heads * width / lanes;
    constexpr int count = kTogether * heads, rows = kWideLanes / heads, halves = kWideLanes / kLanes;
    auto wide = [](V x) {
      const V both[] = {x, x};
      return joined<kWideLanes>(both);
    };
    const Wide own = wide(mine);
    auto score_at = [&](int l) { return stages::term<true>(score, own, Wide::load(numbers + l), Zero{}, Zero{}); };
    V half[halves], best = top, more = 0.0f;
    Wide most = kNone;  // the scores are cheap: each is computed twice, and none is kept
    for (int l = 0; l < count; l += kWideLanes) most = larger(most, score_at(l));
    split(most, half);
    for (V some : half) best = larger(best, some);
    best = stages::among_heads(best, heads, larger);
    const V use = select(best > V(kNone), best, V(0.0f));
    const Wide shift = wide(use);
    alignas(64) float w[count + kLanes];
    for (int l = 0; l < count; l += kWideLanes) {
      const char* to_come = reinterpret_cast<const char*>(row + l * width);
#pragma GCC unroll 16
      for (int at = 0; at < rows * bytes; at += 64) __builtin_prefetch(to_come + at);
      __builtin_prefetch(numbers + count + l);
      const Wide some = raw_weight(Softmax{}, score_at(l), shift);
      some.store(w + l), split(some, half);
      for (V x : half) more = more + x;
    }
    if (starts) {
      total = more;
    } else if (!any(best > top)) {
      total = total + more;
    } else {
      const V rescale = select(top > V(kNone), exp_of(top - use), V(0.0f));
      total = total * rescale + more;
      for_vectors<vectors>([&]<int g>() __attribute__((always_inline)) {
        acc[g] = acc[g] * of_heads<kLanes, width, g>(rescale);
      });
    }
    top = best;
    Vec<float, lanes> sum[parts];
#pragma GCC unroll 8
    for (int g = 0; g < parts; ++g) sum[g] = joined<lanes>(acc + g * (lanes / kLanes));
    for (int t = 0; t < kTogether; ++t, row += heads * width)
      for_vectors<parts>([&]<int g>() __attribute__((always_inline)) {
        sum[g] = sum[g] + of_heads<lanes, width, g>(w + t * heads) * Vec<float, lanes>::load(row + g * lanes);
      });
#pragma GCC unroll 8
    for (int g = 0; g < parts; ++g) split(sum[g], acc + g * (lanes / kLanes));
  }
  template <bool keeps>  // sums over scores above 0, too
  static void forward_rows(const FusedForward& f, const Block& block, float* part,
                           const stages::RowState<float>& state) {
    const Attention<float>& x = f.x;
    const S score = self(x);
    const Rows& rows = x.pattern->by_query;
    const View<const float> q = x.q, k = x.k, v = x.v;
    const Finisher finisher(x, f.finish);
    const bool drops = x.dropout.rate > 0, streams = !drops && k.stride == heads && v.stride == heads * width;
    const int last = tail(v.cols);
    const bool past = goes_past(f.y), above_past = keeps && goes_past(f.above.columns(0, f.y.cols));
    for (Id i = block.first; i < block.last; ++i) {
      if (f.needed && !f.needed[i]) continue;
      V mine[contracts ? 1 : vectors], acc[vectors], up[keeps ? vectors : 1];
      V top = kNone, total = 0.0f, share = 0.0f;
      if constexpr (contracts)
        mine[0] = repeated<heads>(q.row(i));
      else
        load<heads, width>(q.row(i), mine);
      clear<vectors>(acc);
      if constexpr (keeps) clear<vectors>(up);
      const std::uint64_t key = drops ? x.dropout.row_key(i) : 0;
      for_each_portion(rows, block, i, [&](const Edges& edges, bool starts) __attribute__((always_inline)) {
        if constexpr (contracts && !keeps)
          if (streams && edges.adjacent && edges.n == kTogether) {
            add_stream(score, mine[0], k.row(edges.ids[0]), v.row(edges.ids[0]), acc, top, total, starts);
            return;
          }
        alignas(64) float s[room], above[keeps ? room : 1];
        const int count = used(edges), end = count * kLanes;
        V(0.0f).store(s + end - kLanes);
        V best = top;
        if constexpr (!contracts) {
          sums<S, heads, width, true>(score, mine, x.a.data, k, edges, last, s);
          if (finisher.runs) x.score->single.finish(x.score->self.get(), s, f.finish, count, heads, s);
          if (finisher.scales)
            for (int l = 0; l < end; l += kLanes) (V::load(s + l) * finisher.factor).store(s + l);
        } else {
          for (int t = 0, followed = edges.followed(); t < followed; ++t) edges.fetch<64>(k, t);
          auto score_at = [&](int l) {
            return stages::term<true>(score, mine[0], numbers<heads>(k, edges, l / heads), Zero{}, Zero{});
          };
          for (int l = 0; l + kLanes < end; l += kLanes) {
            const V z = score_at(l);
            z.store(s + l), best = larger(best, z);
          }
          score_at(end - kLanes).store(s + end - kLanes);
        }
        const int lanes = last_lanes(edges);
        if (lanes < kLanes) keep_first(V::load(s + end - kLanes), lanes, kNone).store(s + end - kLanes);
        for (int l = contracts ? end - kLanes : 0; l < end; l += kLanes) best = larger(best, V::load(s + l));
        if (end % kWideLanes != 0) V(kNone).store(s + end);
        best = stages::among_heads(best, heads, larger);
        const V use = select(best > V(kNone), best, V(0.0f));
        V more = 0.0f, raised = 0.0f;
        constexpr int halves = kWideLanes / kLanes;
        const V uses[] = {use, use};
        const Wide shift = joined<kWideLanes>(uses);
        auto add_to = [](V& sum, Wide x) {
          V each[halves];
          split(x, each);
          for (V half : each) sum = sum + half;
        };
        for (int l = 0; l < end; l += kWideLanes) {
          // As they were stored: a wider load would wait until all stores before it have reached the cache.
          const V stored[] = {V::load(s + l), V::load(s + l + kLanes)};
          const Wide z = joined<kWideLanes>(stored), w = raw_weight(Softmax{}, z, shift);
          w.store(s + l), add_to(more, w);
          if constexpr (keeps) {
            const Wide some = select(z > Wide(0.0f), w, Wide(0.0f));
            some.store(above + l), add_to(raised, some);
          }
        }
        if (starts) {
          total = more, share = raised;
        } else if (!any(best > top)) {  // the rule in rows of many edges
          total = total + more, share = share + raised;
        } else {
          const V rescale = select(top > V(kNone), exp_of(top - use), V(0.0f));
          total = total * rescale + more, share = share * rescale + raised;
          for_vectors<vectors>([&]<int g>() __attribute__((always_inline)) {
            const V factor = of_heads<kLanes, width, g>(rescale);
            acc[g] = acc[g] * factor;
            if constexpr (keeps) up[g] = up[g] * factor;
          });
        }
        top = best;
        if (drops)
          for (int l = 0; l < end; l += kLanes) {
            const V kept = keep<heads, true>(x.dropout, key, edges, l / heads);
            (V::load(s + l) * kept).store(s + l);
            if constexpr (keeps) (V::load(above + l) * kept).store(above + l);
          }
        // Where v is k, its rows were fetched for the scores: an end here leaves none to come.
        const Edges fetching = v.data == k.data ? Edges{edges.ids, edges.n, edges.ids} : edges;
        add<heads, width, true, keeps>(s, v, fetching, acc, above, up);
      });
      total = stages::among_heads(total, heads, plus), share = stages::among_heads(share, heads, plus);
      if (block.part >= 0) {
        constexpr Offset size = vectors * kLanes;
        top.store(state.shift), total.store(state.total);
        put<heads, width>(acc, V(1.0f), part, false, kLanes);
        if constexpr (keeps) put<heads, width>(up, V(1.0f), part + size, false, kLanes), share.store(part + 2 * size);
        continue;
      }
      const auto row = closed(Softmax{}, top, total);
      std::memcpy(f.tau.row(i), &row.tau.v, sizeof(float) * heads);
      put<heads, width>(acc, row.factor, f.y.row(i), false, last, past);
      if constexpr (keeps) {
        put<heads, width>(up, row.factor, f.above.row(i), false, last, above_past);
        share = share * row.factor;
        std::memcpy(f.above.row(i) + f.y.cols, &share.v, sizeof(float) * heads);
      }
    }
    if (past || above_past) drain();
  }

  // The middle of backward: from scores and <dy, v> (`dw`) to weights in s, and ds for use(l, ds), which still finds in
  // s what was there. tau and delta: of the edges from t on.
  template <bool row_is_query, class ScoreOf, class Tau, class Delta, class Use>
  static HEED_FN void gradient(const Dropout& dropout, std::uint64_t row, const Edges& edges, float* s, float* dw,
                               ScoreOf score_of, Tau tau, Delta delta, Use use) {
    const int end = used(edges) * kLanes, lanes = last_lanes(edges);
    const bool drops = dropout.rate > 0;
    for (int l = 0; l < end; l += kLanes) {
      const int t = l / heads;
      const V w = exp_of(score_of(l) - tau(t));
      V d = V::load(dw + l), kept = w;
      if (drops) {
        const V factor = keep<heads, row_is_query>(dropout, row, edges, t);
        d = d * factor, kept = w * factor;
      }
      V ds = w * d - w * delta(t);
      if (l + kLanes == end && lanes < kLanes) ds = keep_first(ds, lanes);
      use(l, ds);
      kept.store(s + l);
    }
  }

  // own += ds * dterm/dmine, learned += ds * dterm/da (unless null), of wide scores
  template <bool own_is_query>
  static HEED_FN void pull(const S& score, const V* mine, const float* a, View<const float> other, const Edges& edges,
                           const float* ds, V* own, float* learned) {
    constexpr int lanes = heads * width % kWideLanes == 0 ? kWideLanes : kLanes, each = lanes / kLanes;
    using L = Vec<float, lanes>;
    auto term_of = [&](L mine, const float* row, L a) {
      if constexpr (stages::reads_vector<S, V>)
        return stages::term<own_is_query>(score, variable<0>(mine), Jet<L, 0>(L::load(row)), Zero{}, variable<1>(a));
      else
        return stages::term<own_is_query>(score, variable<0>(mine), Jet<L, 0>(L::load(row)), Zero{}, Zero{});
    };
    constexpr unsigned mask = partials<decltype(term_of(L{}, nullptr, L{}))>;  // what the term depends on
    constexpr int all = heads * width / lanes, group = std::min(all, own_is_query && (mask & 2) ? 4 : 8);
    static_assert(all % group == 0);
#pragma GCC unroll 4
    for (int first = 0; first < all; first += group) {
      L self[group], down[group], da[group], av[group];
#pragma GCC unroll 8
      for (int g = 0; g < group; ++g) {
        self[g] = joined<lanes>(mine + (first + g) * each), down[g] = joined<lanes>(own + (first + g) * each);
        da[g] = av[g] = 0.0f;
        if constexpr (stages::reads_vector<S, V>) av[g] = L::load(a + (first + g) * lanes);
      }
      for (int t = 0; t < edges.n; ++t) {
        const float* row = stages::one_address(other.row(edges.ids[t]) + first * lanes);
        const float* of_edge = ds + t * heads + first * lanes / width;
        for_vectors<group>([&]<int g>() __attribute__((always_inline)) {
          const L d = of_heads<lanes, width, g>(of_edge);
          const auto y = term_of(self[g], row + g * lanes, av[g]);
          if constexpr (mask & 1) down[g] = down[g] + d * y.d[0];
          if constexpr (own_is_query && (mask & 2)) da[g] = da[g] + d * y.d[1];
        });
      }
#pragma GCC unroll 8
      for (int g = 0; g < group; ++g) {
        split(down[g], own + (first + g) * each);
        if constexpr (own_is_query && (mask & 2))
          if (learned) (L::load(learned + (first + g) * lanes) + da[g]).store(learned + (first + g) * lanes);
      }
    }
  }

  static HEED_FN auto contracted_term(const S& score, V key, V query) {
    return stages::term<false>(score, variable<0>(key), Jet<V, 0>(query), Zero{}, Zero{});
  }
  static constexpr unsigned contracted_mask = [] {
    if constexpr (contracts)
      return partials<decltype(contracted_term(std::declval<const S&>(), V{}, V{}))>;
    else
      return 0u;
  }();

  static void keys(const FusedBackward& b, const Block& block, float* part) {
    const Attention<float>& x = b.x;
    const S score = self(x);
    const Rows& rows = x.pattern->by_key;
    const View<const float> q = x.q, dy = b.dy, thresholds = b.tau_delta, deltas = thresholds.columns(heads, heads);
    const Finisher finisher(x, b.finish);
    const bool finishes = finisher.runs, has_dk = bool(b.to.dk), has_dv = bool(b.to.dv);
    // Of one table in both roles, dv is added to what dk has just left there.
    const bool dk_past = !contracts && !b.to.dv.add && goes_past(b.to.dk.to), dv_past = goes_past(b.to.dv.to);
    const int last = tail(x.v.cols);
    for (Id j = block.first; j < block.last; ++j) {
      V mine[contracts ? 1 : vectors], value[vectors], down[contracts ? 1 : vectors], sum[vectors];
      if constexpr (contracts)
        mine[0] = repeated<heads>(x.k.row(j)), down[0] = 0.0f;
      else
        load<heads, width>(x.k.row(j), mine), clear<vectors>(down);
      load<heads, width>(x.v.row(j), value), clear<vectors>(sum);
      const bool any = for_each_portion(rows, block, j, [&](const Edges& of_row, bool) __attribute__((always_inline)) {
        Id few[kTogether];
        const Edges edges = b.given ? those(of_row, b.given, few) : of_row;
        if (edges.n == 0) return;
        alignas(64) float s[room], raw[room], dw[room];
        const int end = used(edges) * kLanes;
        const int followed = edges.followed();
        for (int t = 0; t < followed; ++t) edges.fetch<64>(thresholds, t);
        V(0.0f).store(dw + end - kLanes);
        if constexpr (!contracts) {
          float* const to = finishes ? raw : s;
          V(0.0f).store(to + end - kLanes);
          sums<S, heads, width, false>(score, mine, x.a.data, q, edges, last, to);
          if (finishes) x.score->single.finish(x.score->self.get(), raw, b.finish, end / kLanes, heads, s);
        } else {
          for (int t = 0; t < followed; ++t) edges.fetch<64>(q, t);
        }
        if (has_dk)
          sums<scores::Dot, heads, width, false>({}, value, nullptr, dy, edges, last, dw);
        else
          for (int t = 0; t < followed; ++t) edges.fetch<bytes>(dy, t);
        auto score_of = [&](int l) {
          if constexpr (!contracts)
            return V::load(s + l) * finisher.factor;
          else
            return stages::term<false>(score, mine[0], numbers<heads>(q, edges, l / heads), Zero{}, Zero{});
        };
        auto tau = [&](int t) { return numbers<heads>(thresholds, edges, t); };
        auto delta = [&](int t) { return numbers<heads>(deltas, edges, t); };
        gradient<false>(x.dropout, j, edges, s, dw, score_of, tau, delta, [&](int l, V ds) {
          if constexpr (!contracts) {
            (ds * finisher.factor).store(dw + l);
          } else if constexpr (contracted_mask & 1) {
            const auto y = contracted_term(score, mine[0], numbers<heads>(q, edges, l / heads));
            const V part = ds * y.d[0];
            const int lanes = last_lanes(edges);  // beside them q may hold what is no number
            down[0] = down[0] + (l + kLanes == end && lanes < kLanes ? keep_first(part, lanes) : part);
          }
        });
        if constexpr (!contracts)
          if (has_dk) {
            if (finishes)
              x.score->single.finish_gradient(x.score->self.get(), raw, b.finish, end / kLanes, heads, dw, nullptr);
            pull<false>(score, mine, x.a.data, q, edges, dw, down, nullptr);
          }
        if (has_dv) add<heads, width>(s, dy, edges, sum);
      });
      if constexpr (contracts) down[0] = stages::among_heads(down[0], heads, plus);
      if (block.part >= 0) {
        if constexpr (contracts)
          down[0].store(part);
        else
          put<heads, width>(down, V(1.0f), part, false, kLanes);
        put<heads, width>(sum, V(1.0f), part + (contracts ? kLanes : vectors * kLanes), false, kLanes);
        continue;
      }
      if (has_dk && (any || !b.to.dk.add)) {
        float* to = b.to.dk.to.row(j);
        if constexpr (contracts) {
          for (int h = 0; h < heads; ++h) to[h] = b.to.dk.add ? to[h] + down[0].v[h] : down[0].v[h];
        } else {
          put<heads, width>(down, V(1.0f), to, b.to.dk.add, last, dk_past);
        }
      }
      if (has_dv && (any || !b.to.dv.add))
        put<heads, width>(sum, V(1.0f), b.to.dv.to.row(j), b.to.dv.add, last, dv_past);
    }
    if (dk_past || dv_past) drain();
  }

  static void queries(const FusedBackward& b, const Block& block, float* part, float* da, float* dp) {
    const Attention<float>& x = b.x;
    const S score = self(x);
    const Rows& rows = x.pattern->by_query;
    const View<const float> k = x.k, v = x.v;
    Finisher finisher(x, b.finish);
    const bool finishes = finisher.runs, past = goes_past(b.to.dq.to);
    const int last = tail(x.v.cols);
    for (Id i = block.first; i < block.last; ++i) {
      V mine[vectors], dy[vectors], down[vectors];
      load<heads, width>(x.q.row(i), mine), load<heads, width>(b.dy.row(i), dy), clear<vectors>(down);
      const V tau = repeated<heads>(b.tau_delta.row(i)), delta = repeated<heads>(b.tau_delta.row(i) + heads);
      const std::uint64_t key = x.dropout.rate > 0 ? x.dropout.row_key(i) : 0;
      const bool any = for_each_portion(rows, block, i, [&](const Edges& edges, bool) __attribute__((always_inline)) {
        if (b.given && !b.given[i]) return;
        alignas(64) float s[room], raw[room], dw[room];
        const int end = used(edges) * kLanes;
        float* const to = finishes ? raw : s;
        V(0.0f).store(dw + end - kLanes), V(0.0f).store(to + end - kLanes);
        sums<S, heads, width, true>(score, mine, x.a.data, k, edges, last, to);
        if (finishes) x.score->single.finish(x.score->self.get(), raw, b.finish, end / kLanes, heads, s);
        sums<scores::Dot, heads, width, true>({}, dy, nullptr, v, edges, last, dw);
        auto score_of = [&](int l) { return V::load(s + l) * finisher.factor; };
        auto same = [](V of_row) { return [of_row](int) { return of_row; }; };
        gradient<true>(x.dropout, key, edges, s, dw, score_of, same(tau), same(delta), [&](int l, V ds) {
          (ds * finisher.factor).store(dw + l);
          finisher.total = finisher.total + ds * V::load(s + l);
        });
        if (finishes) x.score->single.finish_gradient(x.score->self.get(), raw, b.finish, end / kLanes, heads, dw, dp);
        pull<true>(score, mine, x.a.data, k, edges, dw, down, da);
      });
      if (block.part >= 0) {
        put<heads, width>(down, V(1.0f), part, false, kLanes);
        continue;
      }
      const Sink<float>& dq = b.to.dq;
      if (dq && (any || !dq.add)) put<heads, width>(down, V(1.0f), dq.to.row(i), dq.add, last, past);
    }
    if (past) drain();
    finisher.add_total(dp);
  }

  static constexpr Fused make() {
    Fused out{forward, keys, nullptr};
    if constexpr (!contracts) out.queries = queries;
    return out;
  }
  static constexpr Fused all = make();
};

template <class S, std::size_t... at>
void enter(const Fused** to, std::index_sequence<at...>) {
  auto one = [&]<std::size_t i>() {
    constexpr FusedShape shape = kFusedShapes[i];
    if constexpr (shape.width >= kLanes || contracts_of<S>) to[i] = &Kernels<S, shape.heads, shape.width>::all;
  };
  (one.template operator()<at>(), ...);
}

}  // namespace fused
}  // namespace heed
