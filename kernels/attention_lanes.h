// The fused attention operator with the channels of all heads in the registers of a warp's lanes. A lane has 8
// neighbouring channels of one head: with fewer lanes to an edge fewer exponentials are taken, fewer sums exchanged. As
// many lanes as a row has share an edge, and the warp takes several edges side by side, each gather being whole rows in
// 16 bytes a fetch. Sums over a head's channels are exchanged between its lanes, in the same order in every pass; the
// sums over edges meet at the end of a row. Every side of the warp has a running maximum of its own until then. What
// most calls do without (filters, biases, dropout, a learned temperature, any normaliser but softmax, rows that are not
// aligned) costs instructions even when it is not there: kernels are compiled with it and without, and without it for
// rows of either storage.
#pragma once

#include "kernels/attention_warp.h"

namespace heed::warp {

inline constexpr int kVector = 8;  // channels of a lane
inline constexpr int kLoad = 4;    // channels that are fetched as one, where rows are wide
// Edges that a side of the warp has under way: more hide the memory's latency, and take registers, which leave room for
// fewer warps.
inline constexpr int kForwardEdges = 1, kBackwardEdges = 1, kWeighedEdges = 2;

struct Spot {  // of a lane
  int head, member, side;
  bool live;  // its head is there
};
HEED_WARP_FN int edge_lanes(const Call& x) { return 1 << (x.group_bits + x.head_bits); }
HEED_WARP_FN Spot spot(const Call& x, int lane) {
  const int within = lane & (edge_lanes(x) - 1), head = within >> x.group_bits;
  return {head, within & (x.group() - 1), lane >> (x.group_bits + x.head_bits), head < x.heads};
}

// How rows are read: as the array says, or known to be aligned floats, 4 in a fetch, or bfloat16 numbers, 8 in one.
enum class Load { any, wide, half };
template <Body body>
inline constexpr bool is_plain = body == Body::plain_lanes || body == Body::half_lanes;
template <Body body>
inline constexpr Load load_of = body == Body::plain_lanes  ? Load::wide
                                : body == Body::half_lanes ? Load::half
                                                           : Load::any;

// What a call asks for; `plain` ones for softmax and nothing else.
template <bool plain>
struct Rules {
  const Call& x;
  HEED_WARP_FN auto normaliser() const {
    if constexpr (plain)
      return OneNormaliser<normalisers::Softmax>{};
    else
      return x.normaliser;
  }
  HEED_WARP_FN bool filters() const { return !plain && x.filters(); }
  HEED_WARP_FN bool drops() const { return !plain && x.drops; }
  HEED_WARP_FN bool biased() const { return !plain && x.bias; }
  HEED_WARP_FN bool tempered() const { return !plain && x.tempered; }
};

// The lane's channels of row i; 0 where there is none. `put(t, value)` takes channel t.
template <class Put>
HEED_WARP_FN void read_row(const Strided<const float>& from, Id i, Spot at, int width, Put put) {
  const int c = at.member * kVector;
  if (from.half) {
    const std::uint16_t* row = from.half_row(i) + at.head * width + c;
#ifdef __CUDACC__
    auto two = [&](int t, std::uint32_t bits) { put(t, from_bf16(bits)), put(t + 1, from_bf16(bits >> 16)); };
    if (from.wide) {
      HEED_UNROLL
      for (int t = 0; t < kVector; t += kLoad) {
        uint2 value = make_uint2(0, 0);
        if (at.live && c + t < width) value = __ldg(reinterpret_cast<const uint2*>(row + t));
        two(t, value.x), two(t + 2, value.y);
      }
      return;
    }
#endif
    HEED_UNROLL
    for (int t = 0; t < kVector; ++t) put(t, at.live && c + t < width ? from_bf16(read(row + t)) : 0.0f);
    return;
  }
  const float* row = from.row(i) + at.head * width + c;
#ifdef __CUDACC__
  if (from.wide) {
    HEED_UNROLL
    for (int t = 0; t < kVector; t += kLoad) {
      float4 value = make_float4(0, 0, 0, 0);
      if (at.live && c + t < width) value = __ldg(reinterpret_cast<const float4*>(row + t));
      put(t, value.x), put(t + 1, value.y), put(t + 2, value.z), put(t + 3, value.w);
    }
    return;
  }
#endif
  HEED_UNROLL
  for (int t = 0; t < kVector; ++t) put(t, at.live && c + t < width ? read(row + t) : 0.0f);
}
// Where the lane's channels lie in row 0 of an array, for read_at. Of a lane that has none, where another's do: what it
// makes of them is left out.
template <Load load>
HEED_WARP_FN const char* column_of(const Strided<const float>& from, Spot at, int width) {
  const int c = at.member * kVector, first = at.live && c < width ? at.head * width + c : 0;
  return reinterpret_cast<const char*>(from.data) + Offset{first} * (load == Load::half ? 2 : 4);
}
HEED_WARP_FN const char* behind(const char* column, Id i, int pitch) {
#ifdef __CUDA_ARCH__
  const char* at;  // one instruction, of which the compiler makes four otherwise
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(at) : "r"(i), "r"(pitch), "l"(column));
  return at;
#else
  return column + Offset{i} * pitch;
#endif
}
// As read_row; fetches that are known to be whole have one address to compute, and nothing to ask.
template <Load load, class Put>
HEED_WARP_FN void read_at(const Strided<const float>& from, const char* column, Id i, Spot at, int width, Put put) {
  if constexpr (load == Load::any) {
    read_row(from, i, at, width, put);
  } else {
    const char* row = behind(column, i, from.stride * (load == Load::half ? 2 : 4));
#ifdef __CUDACC__
    if constexpr (load == Load::half) {
      const uint4 value = __ldg(reinterpret_cast<const uint4*>(row));
      auto two = [&](int t, std::uint32_t bits) { put(t, from_bf16(bits)), put(t + 1, from_bf16(bits >> 16)); };
      two(0, value.x), two(2, value.y), two(4, value.z), two(6, value.w);
    } else {
      HEED_UNROLL
      for (int t = 0; t < kVector; t += kLoad) {
        const float4 value = __ldg(reinterpret_cast<const float4*>(row) + t / kLoad);
        put(t, value.x), put(t + 1, value.y), put(t + 2, value.z), put(t + 3, value.w);
      }
    }
#else
    for (int t = 0; t < kVector; ++t)
      put(t, load == Load::half ? from_bf16(reinterpret_cast<const std::uint16_t*>(row)[t])
                                : reinterpret_cast<const float*>(row)[t]);
#endif
  }
}
// As these, of q, k or their like: of a score with one channel a head all lanes have that one, as channel 0.
template <Load load, class S>
HEED_WARP_FN const char* score_column_of(const Call& x, const Strided<const float>& from, Spot at) {
  if constexpr (contracts_of<S>)
    return reinterpret_cast<const char*>(from.data + (at.live ? at.head : 0));
  else
    return column_of<load>(from, at, x.score_width);
}
template <Load load, class S, class Put>
HEED_WARP_FN void read_score_at(const Call& x, const Strided<const float>& from, const char* column, Id i, Spot at,
                                Put put) {
  if constexpr (contracts_of<S>)
    put(0, read(reinterpret_cast<const float*>(behind(column, i, from.stride * 4))));
  else
    read_at<load>(from, column, i, at, x.score_width, put);
}
// What the lane's head has learned, before a block's first row.
template <class S, class Warp, class Vector>
HEED_WARP_FN void read_learned(Warp& warp, const Call& x, const S& score, bool tempered, Vector& a,
                               PerLane<Warp, Learned<S>>& p) {
  warp.lanes([&](int lane) {
    const Spot at = spot(x, lane);
    if constexpr (reads_vector<S>)
      read_score_at<Load::any, S>(x, x.a, score_column_of<Load::any, S>(x, x.a, at), 0, at,
                                  [&](int c, float value) { a[c][lane] = value; });
    p[lane] = learned_of(x, score, tempered, at.live ? at.head : 0);
  });
}
template <class Get>
HEED_WARP_FN void write_row(const Strided<float>& to, Offset i, Spot at, int width, bool add, Get get) {
  if (!at.live) return;
  const int c = at.member * kVector;
  float* row = to.row(i) + at.head * width + c;
#ifdef __CUDACC__
  if (to.wide) {
    HEED_UNROLL
    for (int t = 0; t < kVector; t += kLoad) {
      if (c + t >= width) return;
      float4 value = make_float4(get(t), get(t + 1), get(t + 2), get(t + 3));
      auto* place = reinterpret_cast<float4*>(row + t);
      if (add) {
        const float4 old = *place;
        value = make_float4(old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w);
      }
      *place = value;
    }
    return;
  }
#endif
  HEED_UNROLL
  for (int t = 0; t < kVector; ++t)
    if (c + t < width) put(row + t, get(t), add);
}

template <class S>
inline constexpr int score_channels = contracts_of<S> ? 1 : kVector;  // of a lane

// A lane's part of the sum over channels of an edge. own, other, a: the lane's channels.
template <bool own_is_query, Load load, class S, class Own, class Other, class A>
HEED_WARP_FN float score_part(const Call& x, const S& score, Spot at, Own own, Other other, A a) {
  auto one = [&](int t) {
    if constexpr (reads_vector<S>)
      return term<own_is_query>(score, own(t), other(t), Zero{}, a(t));
    else
      return term<own_is_query>(score, own(t), other(t), Zero{}, Zero{});
  };
  if constexpr (contracts_of<S>) return one(0);
  const int c = at.member * kVector;
  float part = 0;
  HEED_UNROLL
  for (int t = 0; t < kVector; ++t)
    if (load != Load::any || c + t < x.score_width) part += one(t);
  return c < x.score_width ? part : 0.0f;
}

// The derivatives of a channel's term by the row's own channel and by the learned vector.
struct Slopes {
  float own = 0, vector = 0;
};
template <bool own_is_query, class S>
HEED_WARP_FN Slopes slope(const S& score, float own, float other, float a) {
  auto of = [](auto y) {
    Slopes out;
    if constexpr (decltype(y)::mask & 1) out.own = y.d[0];
    if constexpr (decltype(y)::mask & 2) out.vector = y.d[1];
    return out;
  };
  const auto mine = variable<0>(own);
  if constexpr (reads_vector<S>)
    return of(term<own_is_query>(score, mine, Jet<float, 0>(other), Zero{}, variable<1>(a)));
  else
    return of(term<own_is_query>(score, mine, Jet<float, 0>(other), Zero{}, Zero{}));
}

// The rows of a block, and the chunks of their edges, as in attention_warp.h: visit(i, n, ids, first, last) for each
// chunk; `first` and `last` tell whether it is that of its row. Lane e < n has the column of edge e in `ids`, and those
// behind the last have its; where they are to be shared, they lie in memory.ids, too.
template <bool shares, class Warp, class Visit>
HEED_WARP_FN void each_chunk(Warp& warp, const Memory<Warp>& memory, const Call& x, const Block& block, int chunk,
                             bool want_edges, Visit visit) {
  const bool whole = block.part < 0;
  // Where the lists of all rows begin is fetched once. (Places in them fit an int: there are no more columns than ids.)
  const bool listed = x.rows.listed();
  const Offset lists = listed ? x.rows.offsets[block.first] : 0;
  PerLane<Warp, int> begins;
  warp.lanes([&](int lane) {
    const Id i = block.first + lane < block.last ? block.first + lane : block.last;
    begins[lane] = listed ? static_cast<int>(x.rows.offsets[i] - lists) : 0;
  });
  for (Id i = block.first; i < block.last; ++i) {
    const int begin = warp.pick(begins, i - block.first), next = warp.pick(begins, i - block.first + 1);
    const int end = static_cast<int>(!whole ? block.end : listed ? next - begin : x.rows.length(i));
    const Offset list = lists + begin;
    int at = whole ? 0 : static_cast<int>(block.begin);
    bool first = true;
    do {  // a row without edges has one empty chunk
      int n = end - at < chunk ? end - at : chunk;
      PerLane<Warp, Id> ids;
      if (!listed) n = gather(warp, memory, x.rows, i, at, n, want_edges);
      warp.lanes([&](int lane) {
        ids[lane] = 0;
        if (n == 0) return;
        const int mine = lane < n ? lane : n - 1;
        ids[lane] = listed ? read(x.rows.ids + list + at + mine) : memory.ids.get(lane, mine);
        if (!listed || lane >= n) return;
        const Offset entry = list + at + lane;
        if (shares) memory.ids.set(lane, lane, ids[lane]);
        if (want_edges) memory.edges.set(lane, lane, x.rows.edges ? read(x.rows.edges + entry) : entry);
      });
      if (shares || want_edges) warp.sync();
      at += chunk;
      visit(i, n, ids, first, at >= end);
      first = false;
      warp.sync();
    } while (at < end);
  }
}

inline constexpr int kSlotsAhead = 4;  // of the slots below, whose keys a lane asks for before the first is needed
// Where a score has one channel a head, its slots (edges x padded heads of a chunk) are shared among the lanes, each
// lane having one head's: an exponential is taken once, not by each lane that has channels of the head. memory.s gets
// the weights times dropout, and, where kinked, memory.dw those of scores over 0, else 0; factors[head] what the sums
// so far are multiplied with. `state`: of the lane's head, the same in all its lanes: shift, total and the total over
// 0.
struct Totals {
  float shift, total, share;
};
template <bool plain, class S, class Warp>
HEED_WARP_FN void weigh_slots(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Id i, int n,
                              PerLane<Warp, Totals>& state) {
  constexpr bool kinked = requires { score.slope_below(); };
  const float none = -__builtin_inff();
  const Rules<plain> rules{x};
  const auto normaliser = rules.normaliser();
  PerLane<Warp, float> top, sums[2], rescale;
  warp.lanes([&](int lane) {
    const int head = lane & (x.padded() - 1);
    float most = none;
    if (head < x.heads) {
      const auto learned = learned_of(x, score, rules.tempered(), head);
      const float q = read(x.q.row(i) + head);
      const char* keys = reinterpret_cast<const char*>(x.k.data + head);
      const int slots = n << x.head_bits;
      for (int first = lane; first < slots; first += kSlotsAhead * kWarp) {
        float k[kSlotsAhead];
        HEED_UNROLL
        for (int u = 0; u < kSlotsAhead; ++u) {
          const int slot = first + u * kWarp;
          const Id j = slot < slots ? memory.ids.get(lane, slot >> x.head_bits) : 0;
          k[u] = slot < slots ? read(reinterpret_cast<const float*>(behind(keys, j, x.k.stride * 4))) : 0.0f;
        }
        HEED_UNROLL
        for (int u = 0; u < kSlotsAhead; ++u) {
          const int slot = first + u * kWarp, edge = slot >> x.head_bits;
          if (slot >= slots) break;
          float sum;
          if constexpr (reads_vector<S>)
            sum = term<true>(score, q, k[u], Zero{}, read(x.a.data + head));
          else
            sum = term<true>(score, q, k[u], Zero{}, Zero{});
          float s = score_of(x, score, learned, sum);
          if (rules.biased()) s += read(x.bias.row(memory.edges.get(lane, edge)) + head);
          if (rules.filters() && !x.passes(s, i, memory.ids.get(lane, edge), head)) s = none;
          memory.s.set(lane, slot, s);
          if constexpr (kinked) memory.dw.set(lane, slot, sum);
          if (s > most) most = s;
        }
      }
    }
    top[lane] = most;
  });
  if (normaliser.shifts()) warp.max(top, x.padded(), kWarp);
  warp.lanes([&](int lane) {
    const int head = lane & (x.padded() - 1);
    float use = 0;
    rescale[lane] = 1, sums[0][lane] = sums[1][lane] = 0;
    if (normaliser.shifts()) {
      const float old = state[lane].shift, now = top[lane] > old ? top[lane] : old;
      use = now > none ? now : 0;
      rescale[lane] = fn::quick_exp(old - use);
      state[lane].shift = now;
    }
    if (head < x.heads)
      for (int slot = lane; slot < n << x.head_bits; slot += kWarp) {
        const float s = memory.s.get(lane, slot);
        float w = plain || s != none ? normaliser.raw(s, use) : 0.0f;
        const bool over = kinked && memory.dw.get(lane, slot) > 0;
        sums[0][lane] += w;
        if (over) sums[1][lane] += w;
        if (rules.drops() && s != none) w *= x.keep(i, memory.ids.get(lane, slot >> x.head_bits), head);
        memory.s.set(lane, slot, w);
        if constexpr (kinked) memory.dw.set(lane, slot, over ? w : 0.0f);
      }
  });
  warp.sum(sums, x.padded(), kWarp);
  warp.lanes([&](int lane) {
    state[lane].total = state[lane].total * rescale[lane] + sums[0][lane];
    state[lane].share = state[lane].share * rescale[lane] + sums[1][lane];
    if (lane < x.heads) memory.factors.set(lane, lane, rescale[lane]);
  });
}

template <Body body, class S, class Warp>
HEED_WARP_FN void forward_contracted(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  constexpr bool kinked = requires { score.slope_below(); };
  constexpr int together = kWeighedEdges;
  constexpr bool plain = is_plain<body>;
  constexpr Load load = load_of<body>;
  const Rules<plain> rules{x};
  const auto normaliser = rules.normaliser();
  const Block block = x.rows.blocks[t];
  const bool whole = block.part < 0;
  const int sides = kWarp >> (x.group_bits + x.head_bits);
  PerLane<Warp, float> y[kVector], above[kVector];
  PerLane<Warp, Totals> state;
  PerLane<Warp, const char*> values;
  warp.lanes([&](int lane) { values[lane] = column_of<load>(x.v, spot(x, lane), x.width); });
  each_chunk<true>(
      warp, memory, x, block, x.chunk(), rules.biased(), [&](Id i, int n, auto& ids, bool first, bool last) {
        if (first)
          warp.lanes([&](int lane) {
            state[lane] = {-__builtin_inff(), 0, 0};
            HEED_UNROLL
            for (int c = 0; c < kVector; ++c) y[c][lane] = above[c][lane] = 0;
          });
        weigh_slots<is_plain<body>>(warp, memory, x, score, i, n, state);
        warp.sync();
        if (!first)
          warp.lanes([&](int lane) {
            const Spot at = spot(x, lane);
            const float rescale = at.live ? memory.factors.get(lane, at.head) : 0.0f;
            HEED_UNROLL
            for (int c = 0; c < kVector; ++c) y[c][lane] *= rescale, above[c][lane] *= rescale;
          });
        for (int begin = 0; begin < n; begin += together * sides)
          warp.lanes([&](int lane) {
            const Spot at = spot(x, lane);
            float w[together], over[together], v[together][kVector];
            HEED_UNROLL
            for (int u = 0; u < together; ++u) {
              const int edge = begin + u * sides + at.side;
              read_at<load>(x.v, values[lane], warp.from(ids, edge), at, x.width,
                            [&](int c, float value) { v[u][c] = value; });
              const bool in = edge < n && at.live;
              w[u] = in ? memory.s.get(lane, (edge << x.head_bits) + at.head) : 0.0f;
              over[u] = kinked && in && x.raised ? memory.dw.get(lane, (edge << x.head_bits) + at.head) : 0.0f;
            }
            HEED_UNROLL
            for (int u = 0; u < together; ++u) {
              HEED_UNROLL
              for (int c = 0; c < kVector; ++c) {
                y[c][lane] += w[u] * v[u][c];
                if constexpr (kinked) above[c][lane] += over[u] * v[u][c];
              }
            }
          });
        if (!last) return;
        if (sides > 1) {
          warp.sum(y, edge_lanes(x), kWarp);
          if constexpr (kinked) warp.sum(above, edge_lanes(x), kWarp);
        }
        warp.lanes([&](int lane) {  // one head a lane
          if (lane >= x.heads) return;
          const Totals own = state[lane];
          const float total = normaliser.couples() ? own.total : 0.0f;
          float factor = 1;
          if (whole) {
            const Closed<float> end = normaliser.close(own.shift, total);
            factor = end.factor;
            x.tau.row(i)[lane] = end.tau;
          } else {
            x.part_state.row(block.part)[lane] = own.shift;
            x.part_state.row(block.part)[x.heads + lane] = total;
          }
          memory.factors.set(lane, kMaxHeads + lane, factor);
          if (kinked && x.raised)
            (whole ? x.raised_share.row(i) : x.part_state.row(block.part) + 2 * x.heads)[lane] = own.share * factor;
        });
        warp.sync();
        warp.lanes([&](int lane) {
          const Spot at = spot(x, lane);
          if (at.side != 0 || !at.live) return;
          const float factor = memory.factors.get(lane, kMaxHeads + at.head);
          const Offset row = whole ? Offset{i} : block.part;
          write_row(whole ? x.y : x.parts, row, at, x.width, false, [&](int c) { return y[c][lane] * factor; });
          if (kinked && x.raised)
            write_row(whole ? x.raised : x.part_raised, row, at, x.width, false,
                      [&](int c) { return above[c][lane] * factor; });
        });
      });
}

template <Body body, class S, class Warp>
HEED_WARP_FN void forward_lanes(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  constexpr int together = kForwardEdges, channels = score_channels<S>;
  const float none = -__builtin_inff();
  constexpr bool plain = is_plain<body>;
  constexpr Load load = load_of<body>;
  const Rules<plain> rules{x};
  const auto normaliser = rules.normaliser();
  const Block block = x.rows.blocks[t];
  const bool whole = block.part < 0;
  const int sides = kWarp >> (x.group_bits + x.head_bits);
  PerLane<Warp, float> a[channels], q[channels], y[kVector], shift, total;
  PerLane<Warp, Learned<S>> p;
  PerLane<Warp, const char*> keys, values, own;
  read_learned(warp, x, score, rules.tempered(), a, p);
  warp.lanes([&](int lane) {
    keys[lane] = score_column_of<load, S>(x, x.k, spot(x, lane));
    own[lane] = score_column_of<load, S>(x, x.q, spot(x, lane));
    values[lane] = column_of<load>(x.v, spot(x, lane), x.width);
  });
  each_chunk<false>(warp, memory, x, block, kWarp, rules.biased(), [&](Id i, int n, auto& ids, bool first, bool last) {
    if (first)
      warp.lanes([&](int lane) {
        const Spot at = spot(x, lane);
        read_score_at<load, S>(x, x.q, own[lane], i, at, [&](int c, float value) { q[c][lane] = value; });
        HEED_UNROLL
        for (int c = 0; c < kVector; ++c) y[c][lane] = 0;
        shift[lane] = none, total[lane] = 0;
      });
    // All rows of an edge are asked for before the first is read: whether they are one is known when compiled.
    auto take_in = [&]<bool one_table>() {
      for (int begin = 0; begin < n; begin += together * sides) {
        PerLane<Warp, float> s[together], v[together][kVector];
        PerLane<Warp, Id> other[together];
        warp.lanes([&](int lane) {
          const Spot at = spot(x, lane);
          float k[together][channels];
          HEED_UNROLL
          for (int u = 0; u < together; ++u) {
            const Id j = other[u][lane] = warp.from(ids, begin + u * sides + at.side);
            read_score_at<load, S>(x, x.k, keys[lane], j, at, [&](int c, float value) { k[u][c] = value; });
            if constexpr (one_table) {
              HEED_UNROLL
              for (int c = 0; c < kVector; ++c) v[u][c][lane] = k[u][c < channels ? c : 0];
            } else {
              read_at<load>(x.v, values[lane], j, at, x.width, [&](int c, float value) { v[u][c][lane] = value; });
            }
          }
          HEED_UNROLL
          for (int u = 0; u < together; ++u)
            s[u][lane] = score_part<true, load>(
                x, score, at, [&](int c) { return q[c][lane]; }, [&](int c) { return k[u][c]; },
                [&](int c) { return a[c][lane]; });
        });
        warp.sum(s, 1, x.group());
        warp.lanes([&](int lane) {
          const Spot at = spot(x, lane);
          float now[together], most = shift[lane];
          HEED_UNROLL
          for (int u = 0; u < together; ++u) {
            const int edge = begin + u * sides + at.side;
            const bool in = edge < n && at.live;
            float each = score_of(x, score, p[lane], s[u][lane]);
            if (rules.biased() && in) each += read(x.bias.row(memory.edges.get(lane, edge)) + at.head);
            const bool counts = in && (!rules.filters() || x.passes(each, i, other[u][lane], at.head));
            now[u] = counts ? each : none;
            if (now[u] > most) most = now[u];
          }
          float use = 0;
          if (normaliser.shifts()) {
            use = most > none ? most : 0;
            const float rescale = fn::quick_exp(shift[lane] - use);
            shift[lane] = most, total[lane] *= rescale;
            HEED_UNROLL
            for (int c = 0; c < kVector; ++c) y[c][lane] *= rescale;
          }
          HEED_UNROLL
          for (int u = 0; u < together; ++u) {
            float w = plain || now[u] != none ? normaliser.raw(now[u], use) : 0.0f;
            total[lane] += w;
            if (rules.drops() && now[u] != none) w *= x.keep(i, other[u][lane], at.head);
            HEED_UNROLL
            for (int c = 0; c < kVector; ++c) y[c][lane] += w * v[u][c][lane];
          }
        });
      }
    };
    if (x.one_table)
      take_in.template operator()<true>();
    else
      take_in.template operator()<false>();
    if (!last) return;
    if (sides > 1) {
      if (normaliser.shifts()) {
        PerLane<Warp, float> top;
        warp.lanes([&](int lane) { top[lane] = shift[lane]; });
        warp.max(top, edge_lanes(x), kWarp);
        warp.lanes([&](int lane) {
          const float rescale = shift[lane] > none ? fn::quick_exp(shift[lane] - top[lane]) : 0.0f;
          shift[lane] = top[lane], total[lane] *= rescale;
          HEED_UNROLL
          for (int c = 0; c < kVector; ++c) y[c][lane] *= rescale;
        });
      }
      warp.sum(total, edge_lanes(x), kWarp);
      warp.sum(y, edge_lanes(x), kWarp);
    }
    warp.lanes([&](int lane) {
      const Spot at = spot(x, lane);
      if (at.side != 0 || !at.live) return;
      const float sum = normaliser.couples() ? total[lane] : 0.0f;
      float factor = 1;
      if (whole) {
        const Closed<float> end = normaliser.close(shift[lane], sum);
        factor = end.factor;
        if (at.member == 0) x.tau.row(i)[at.head] = end.tau;
      } else if (at.member == 0) {
        x.part_state.row(block.part)[at.head] = shift[lane];
        x.part_state.row(block.part)[x.heads + at.head] = sum;
      }
      const Offset row = whole ? Offset{i} : block.part;
      write_row(whole ? x.y : x.parts, row, at, x.width, false, [&](int c) { return y[c][lane] * factor; });
    });
  });
}

// Both directions of backward. Rows are queries (dq, dbias, and the block's sums of da and dp; on the way, tau and
// delta side by side in x.both) or keys (dk and dv, one behind the other in a segment's row of x.parts).
template <bool own_is_query, Body body, class S, class Warp>
HEED_WARP_FN void backward_lanes(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  constexpr int together = kBackwardEdges, channels = score_channels<S>, scalars = scalars_of<S>;
  constexpr bool plain = is_plain<body>;
  constexpr Load load = load_of<body>;
  const Rules<plain> rules{x};
  const Block block = x.rows.blocks[t];
  const bool whole = block.part < 0;
  const int sides = kWarp >> (x.group_bits + x.head_bits);
  const Strided<const float>&own_scores = own_is_query ? x.q : x.k, &other_scores = own_is_query ? x.k : x.q;
  const Strided<const float>&own_values = own_is_query ? x.dy : x.v, &other_values = own_is_query ? x.v : x.dy;
  const bool learns = own_is_query && x.sums;
  constexpr Load load_y = plain ? Load::wide : Load::any;
  const Strided<const float> y{x.y.data, x.y.stride, x.y.wide};
  PerLane<Warp, float> a[channels], own[channels], mine[kVector], down[channels], dv[kVector];
  PerLane<Warp, float> da[channels], dp[scalars + 1], tau, delta;
  PerLane<Warp, Learned<S>> p;
  PerLane<Warp, const char*> score_column, value_column, both_column, own_score, own_value, own_y;
  read_learned(warp, x, score, rules.tempered(), a, p);
  warp.lanes([&](int lane) {
    const Spot at = spot(x, lane);
    score_column[lane] = score_column_of<load, S>(x, other_scores, at);
    value_column[lane] = column_of<load>(other_values, at, x.width);
    both_column[lane] = reinterpret_cast<const char*>(x.both.data + 2 * (at.live ? at.head : 0));
    if constexpr (own_is_query) {  // backward over keys has no registers left for these
      own_score[lane] = score_column_of<load, S>(x, own_scores, at);
      own_value[lane] = column_of<load>(own_values, at, x.width);
      own_y[lane] = column_of<load_y>(y, at, x.width);
    }
    HEED_UNROLL
    for (int c = 0; c < channels; ++c) da[c][lane] = 0;
    HEED_UNROLL
    for (int j = 0; j < scalars + 1; ++j) dp[j][lane] = 0;
  });
  each_chunk<false>(warp, memory, x, block, kWarp, rules.biased(), [&](Id r, int n, auto& ids, bool first, bool last) {
    if (first) {
      warp.lanes([&](int lane) {
        const Spot at = spot(x, lane);
        read_score_at<load, S>(x, own_scores,
                               own_is_query ? own_score[lane] : score_column_of<load, S>(x, own_scores, at), r, at,
                               [&](int c, float value) { own[c][lane] = value; });
        read_at<load>(own_values, own_is_query ? own_value[lane] : column_of<load>(own_values, at, x.width), r, at,
                      x.width, [&](int c, float value) { mine[c][lane] = value; });
        HEED_UNROLL
        for (int c = 0; c < channels; ++c) down[c][lane] = 0;
        HEED_UNROLL
        for (int c = 0; c < kVector; ++c) dv[c][lane] = 0;
        if constexpr (own_is_query) {  // delta = <dy, y>
          tau[lane] = at.live ? x.tau.row(r)[at.head] : 0.0f;
          delta[lane] = 0;
          if (x.delta_follows) {
            read_at<load_y>(y, own_y[lane], r, at, x.width,
                            [&](int c, float value) { delta[lane] += mine[c][lane] * value; });
            if (at.member * kVector >= x.width) delta[lane] = 0;
          }
        }
      });
      if constexpr (own_is_query) {
        if (x.delta_follows) warp.sum(delta, 1, x.group());
        warp.lanes([&](int lane) {
          const Spot at = spot(x, lane);
          if (!at.live) return;
          float* both = x.both.row(r) + 2 * at.head;
          if (!x.delta_follows)
            delta[lane] = both[1];
          else if (at.side == 0 && at.member == 0 && (whole || block.begin == 0))
            both[0] = tau[lane], both[1] = delta[lane];
        });
      }
    }
    auto take_in = [&]<bool one_table>() {
      for (int begin = 0; begin < n; begin += together * sides) {
        PerLane<Warp, float> sums[2][together], other[together][channels], theirs[together][kVector];  // sums: s, dw
        PerLane<Warp, float> taus[together], deltas[together];
        PerLane<Warp, Id> ends[together];
        warp.lanes([&](int lane) {
          const Spot at = spot(x, lane);
          HEED_UNROLL
          for (int u = 0; u < together; ++u) {
            const Id j = ends[u][lane] = warp.from(ids, begin + u * sides + at.side);
            read_score_at<load, S>(x, other_scores, score_column[lane], j, at,
                                   [&](int c, float value) { other[u][c][lane] = value; });
            if constexpr (one_table) {
              HEED_UNROLL
              for (int c = 0; c < kVector; ++c) theirs[u][c][lane] = other[u][c < channels ? c : 0][lane];
            } else {
              read_at<load>(other_values, value_column[lane], j, at, x.width,
                            [&](int c, float value) { theirs[u][c][lane] = value; });
            }
            if constexpr (own_is_query) {
              taus[u][lane] = tau[lane], deltas[u][lane] = delta[lane];
            } else {
              const char* both = behind(both_column[lane], j, x.both.stride * 4);
#ifdef __CUDACC__
              const float2 pair = __ldg(reinterpret_cast<const float2*>(both));
              taus[u][lane] = pair.x, deltas[u][lane] = pair.y;
#else
              taus[u][lane] = reinterpret_cast<const float*>(both)[0];
              deltas[u][lane] = reinterpret_cast<const float*>(both)[1];
#endif
            }
          }
          HEED_UNROLL
          for (int u = 0; u < together; ++u) {
            sums[0][u][lane] = score_part<own_is_query, load>(
                x, score, at, [&](int c) { return own[c][lane]; }, [&](int c) { return other[u][c][lane]; },
                [&](int c) { return a[c][lane]; });
            float part = 0;
            HEED_UNROLL
            for (int c = 0; c < kVector; ++c) part += mine[c][lane] * theirs[u][c][lane];
            sums[1][u][lane] = at.member * kVector < x.width ? part : 0.0f;
          }
        });
        if constexpr (contracts_of<S>)
          warp.sum(sums[1], 1, x.group());
        else
          warp.sum(sums, 1, x.group());
        warp.lanes([&](int lane) {
          const Spot at = spot(x, lane);
          float ws[together], ds[together];
          HEED_UNROLL
          for (int u = 0; u < together; ++u) {
            const int edge = begin + u * sides + at.side;
            const bool in = edge < n && at.live;
            ws[u] = ds[u] = 0;
            if (plain || in) {  // what is plain has no branch: of what is not there, nothing counts
              const Id j = ends[u][lane];
              float more[scalars + 1];
              const Slot slot = slot_gradient<own_is_query>(
                  x, rules, score, p[lane], sums[0][u][lane], sums[1][u][lane], taus[u][lane], deltas[u][lane],
                  own_is_query ? r : j, own_is_query ? j : r, rules.biased() ? memory.edges.get(lane, edge) : 0,
                  at.head, at.member == 0, more);
              ws[u] = in ? slot.w : 0.0f, ds[u] = in ? slot.ds : 0.0f;
              if constexpr (own_is_query) {
                HEED_UNROLL
                for (int j = 0; j < scalars; ++j) dp[j][lane] += in ? more[j] : 0.0f;
                if (rules.tempered()) dp[scalars][lane] += more[scalars];
              }
            }
          }
          HEED_UNROLL
          for (int u = 0; u < together; ++u) {
            if constexpr (!own_is_query) {
              HEED_UNROLL
              for (int c = 0; c < kVector; ++c) dv[c][lane] += ws[u] * theirs[u][c][lane];
            }
            HEED_UNROLL
            for (int c = 0; c < channels; ++c) {
              const auto value = slope<own_is_query>(score, own[c][lane], other[u][c][lane], a[c][lane]);
              down[c][lane] += ds[u] * value.own;
              if constexpr (own_is_query && reads_vector<S>) da[c][lane] += ds[u] * value.vector;
            }
          }
        });
      }
    };
    if constexpr (own_is_query && !contracts_of<S>)
      if (x.one_table) {
        take_in.template operator()<true>();
      } else {
        take_in.template operator()<false>();
      }
    else
      take_in.template operator()<false>();
    if (!last) return;
    if (sides > 1) {
      warp.sum(down, edge_lanes(x), kWarp);
      if constexpr (!own_is_query) warp.sum(dv, edge_lanes(x), kWarp);
    }
    warp.lanes([&](int lane) {
      const Spot at = spot(x, lane);
      if (at.side != 0) return;
      const Offset row = whole ? Offset{r} : block.part;
      const Into& into = own_is_query ? x.dq : x.dk;
      if (into) {
        if constexpr (contracts_of<S>) {
          if (at.live && at.member == 0)
            put((whole ? into.to : x.parts).row(row) + at.head, down[0][lane], whole && into.add);
        } else {
          write_row(whole ? into.to : x.parts, row, at, x.score_width, whole && into.add,
                    [&](int c) { return down[c < channels ? c : 0][lane]; });
        }
      }
      if (!own_is_query && x.dv) {
        Strided<float> to = x.dv.to;
        if (!whole) {
          const int behind = x.heads * x.score_width;
          to = {x.parts.data + behind, x.parts.stride, x.parts.wide && behind % kLoad == 0};
        }
        write_row(to, row, at, x.width, whole && x.dv.add, [&](int c) { return dv[c][lane]; });
      }
    });
  });
  if (!learns) return;
  if (reads_vector<S> && sides > 1) warp.sum(da, edge_lanes(x), kWarp);
  warp.sum(dp, edge_lanes(x), kWarp);
  warp.lanes([&](int lane) {
    const Spot at = spot(x, lane);
    if (at.side != 0 || !at.live) return;
    float* sums = x.sums.row(t);
    if constexpr (reads_vector<S> && contracts_of<S>) {
      if (at.member == 0) sums[at.head] = da[0][lane];
    } else if constexpr (reads_vector<S>) {
      write_row(Strided<float>{sums, 0}, 0, at, x.score_width, false,
                [&](int c) { return da[c < channels ? c : 0][lane]; });
    }
    if (at.member == 0)
      for (int j = 0; j < scalars + (rules.tempered() ? 1 : 0); ++j)
        sums[x.heads * x.score_width + j * x.heads + at.head] = dp[j][lane];
  });
}

// As delta of attention_warp.h, for kDeltaRows rows a side; and dq where forward kept what it takes.
inline constexpr int kDeltaRows = 2;
template <class Warp>
HEED_WARP_FN void delta_lanes(Warp& warp, const Call& x, Offset t) {
  auto constant = [](const Strided<float>& from) { return Strided<const float>{from.data, from.stride, from.wide}; };
  const int sides = kWarp >> (x.group_bits + x.head_bits);
  const Offset first = t * kDeltaRows * sides, after = first + kDeltaRows * sides;
  const Offset end = after < x.queries ? after : x.queries;
  for (Offset begin = first; begin < end; begin += sides) {
    PerLane<Warp, float> sums[2];
    warp.lanes([&](int lane) {
      const Spot at = spot(x, lane);
      sums[0][lane] = sums[1][lane] = 0;
      if (begin + at.side >= end) return;
      const Id i = static_cast<Id>(begin + at.side);
      float dy[kVector], y[kVector], raised[kVector];
      read_row(x.dy, i, at, x.width, [&](int c, float value) { dy[c] = value; });
      read_row(constant(x.y), i, at, x.width, [&](int c, float value) { y[c] = value; });
      if (x.raised)
        read_row(constant(x.raised), i, at, x.width, [&](int c, float value) { raised[c] = value; });
      HEED_UNROLL
      for (int c = 0; c < kVector; ++c) {
        sums[0][lane] += dy[c] * y[c];
        if (x.raised) sums[1][lane] += dy[c] * raised[c];
      }
    });
    warp.sum(sums, 1, x.group());
    warp.lanes([&](int lane) {
      const Spot at = spot(x, lane);
      const Offset i = begin + at.side;
      if (i >= end || at.member != 0 || !at.live) return;
      const float delta = sums[0][lane];
      x.both.row(i)[2 * at.head] = x.tau.row(i)[at.head];
      x.both.row(i)[2 * at.head + 1] = delta;
      if (!x.raised || !x.dq) return;
      const float share = x.raised_share.row(i)[at.head];  // dy may be NaN where the row sees no key
      put(x.dq.to.row(i) + at.head, share == 0 ? 0.0f : (1 - x.slope_below) * x.scale * (sums[1][lane] - delta * share),
          x.dq.add);
    });
  }
}

// A block of rows of a weighted sum.
template <bool wide, class Warp>
HEED_WARP_FN void weigh_lanes(Warp& warp, const Memory<Warp>& memory, const Call& x, Offset t) {
  constexpr int together = kWeighedEdges;
  const Block block = x.rows.blocks[t];
  const bool whole = block.part < 0;
  const int sides = kWarp >> (x.group_bits + x.head_bits);
  constexpr Load load = wide ? Load::wide : Load::any;
  PerLane<Warp, float> y[kVector];
  PerLane<Warp, const char*> values;
  warp.lanes([&](int lane) { values[lane] = column_of<load>(x.v, spot(x, lane), x.width); });
  each_chunk<false>(warp, memory, x, block, kWarp, x.weights != nullptr,
                    [&](Id i, int n, auto& ids, bool first, bool last) {
                      PerLane<Warp, float> weights;
                      warp.lanes([&](int lane) {
                        if (first) {
                          HEED_UNROLL
                          for (int c = 0; c < kVector; ++c) y[c][lane] = 0;
                        }
                        weights[lane] = x.weights && lane < n ? read(x.weights + memory.edges.get(lane, lane)) : 1.0f;
                      });
                      for (int begin = 0; begin < n; begin += together * sides)
                        warp.lanes([&](int lane) {
                          const Spot at = spot(x, lane);
                          float w[together], v[together][kVector];
                          HEED_UNROLL
                          for (int u = 0; u < together; ++u) {
                            const int edge = begin + u * sides + at.side;
                            read_at<load>(x.v, values[lane], warp.from(ids, edge), at, x.width,
                                          [&](int c, float value) { v[u][c] = value; });
                            const float weight = warp.from(weights, edge);
                            w[u] = edge < n ? weight : 0.0f;
                          }
                          HEED_UNROLL
                          for (int u = 0; u < together; ++u) {
                            HEED_UNROLL
                            for (int c = 0; c < kVector; ++c) y[c][lane] += w[u] * v[u][c];
                          }
                        });
                      if (!last) return;
                      if (sides > 1) warp.sum(y, edge_lanes(x), kWarp);
                      warp.lanes([&](int lane) {
                        const Spot at = spot(x, lane);
                        if (at.side != 0) return;
                        const float scale = x.row_scale ? read(x.row_scale + i) : 1.0f;
                        float bias[kVector] = {};
                        if (x.column_bias && (whole || block.begin == 0)) {
                          HEED_UNROLL
                          for (int c = 0; c < kVector; ++c)
                            if (at.member * kVector + c < x.width)
                              bias[c] = read(x.column_bias + at.member * kVector + c);
                        }
                        write_row(whole ? x.dq.to : x.parts, whole ? Offset{i} : block.part, at, x.width,
                                  whole && x.dq.add, [&](int c) { return x.scale * (y[c][lane] * scale + bias[c]); });
                      });
                    });
}

// The numbers of x.v as bfloat16, kNarrow of them an item: x.queries rows of x.width.
inline constexpr int kNarrow = 1024;
template <class Warp>
HEED_WARP_FN void narrow(Warp& warp, const Call& x, Offset t) {
  const auto width = static_cast<std::uint32_t>(x.width);
  const Offset count = x.queries * Offset{x.width};
  for (int step = 0; step < kNarrow; step += kWarp * kLoad)
    warp.lanes([&](int lane) {
      const Offset first = t * kNarrow + step + lane * kLoad;
      if (first >= count) return;
      Offset i = 0;
      int c = 0;
      if (count <= 0xffffffff) {  // division is dear, of 64 bits more so
        i = static_cast<std::uint32_t>(first) / width, c = static_cast<int>(static_cast<std::uint32_t>(first) % width);
      } else {
        i = first / width, c = static_cast<int>(first % width);
      }
#ifdef __CUDACC__
      if (x.v.wide) {
        const float4 value = __ldg(reinterpret_cast<const float4*>(x.v.row(i) + c));
        *reinterpret_cast<uint2*>(x.narrow.row(i) + c) =
            make_uint2(to_bf16(value.x) | static_cast<std::uint32_t>(to_bf16(value.y)) << 16,
                       to_bf16(value.z) | static_cast<std::uint32_t>(to_bf16(value.w)) << 16);
        return;
      }
#endif
      for (int e = 0; e < kLoad && first + e < count; ++e) {
        x.narrow.row(i)[c] = to_bf16(read(x.v.row(i) + c));
        if (++c == x.width) c = 0, ++i;
      }
    });
}

// Work item t of a pass.
template <Pass pass, Body body, class S, class Warp>
HEED_WARP_FN void run(Warp& warp, const Memory<Warp>& memory, const Call& x, const S& score, Offset t) {
  if constexpr (body != Body::any_width) {
    if constexpr (pass == Pass::delta) delta_lanes(warp, x, t);
    if constexpr (pass == Pass::weigh) weigh_lanes<body == Body::plain_lanes>(warp, memory, x, t);
    if constexpr (pass == Pass::forward && contracts_of<S>)
      forward_contracted<body>(warp, memory, x, score, t);
    else if constexpr (pass == Pass::forward)
      forward_lanes<body>(warp, memory, x, score, t);
    if constexpr (pass == Pass::row) backward_lanes<true, body>(warp, memory, x, score, t);
    if constexpr (pass == Pass::column) backward_lanes<false, body>(warp, memory, x, score, t);
    return;
  }
  if constexpr (pass == Pass::threshold) threshold(warp, memory, x, score, t);
  if constexpr (pass == Pass::measure) measure(warp, memory, x, score, t);
  if constexpr (pass == Pass::forward) forward(warp, memory, x, score, t);
  if constexpr (pass == Pass::delta) delta(warp, memory, x, t);
  if constexpr (pass == Pass::row) row(warp, memory, x, score, t);
  if constexpr (pass == Pass::column) column(warp, memory, x, score, t);
  if constexpr (pass == Pass::merge_forward) merge_forward(warp, x, t);
  if constexpr (pass == Pass::merge_row) merge_sums(warp, x, x.dq, x.heads * x.score_width, Into{}, 0, t);
  if constexpr (pass == Pass::merge_column)
    merge_sums(warp, x, x.dk, x.heads * x.score_width, x.dv, x.heads * x.width, t);
  if constexpr (pass == Pass::reduce) reduce(warp, x, t);
  if constexpr (pass == Pass::learned) learned(warp, x, t);
  if constexpr (pass == Pass::narrow) narrow(warp, x, t);
}

}  // namespace heed::warp
