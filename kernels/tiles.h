// The stages of the fused operator where a query's keys are an interval: a few queries meet a tile of keys at once.
// Keys lie channel by channel, so that lanes run over keys: scores need no sum across lanes, channels are added one by
// one for any score and width, and what a tile holds is used by many queries. Buffers hold kTogether x kTile numbers,
// one row a query, of one head.
//
// Where a query does not see all keys of a tile, bits say which; what lies in the other lanes, NaN included, never
// reaches a sum.
#pragma once

#include <cstdint>

#include "kernels/scores.h"
#include "kernels/stages.h"
#include "kernels/wide.h"

namespace heed::stages {

template <class T>
using Wide = Vec<T, kWideBytes / sizeof(T)>;

inline constexpr int kTile = 64;                          // keys; one bit each of a word
inline constexpr int kTogether = 4;                       // queries that share what is read of a tile
inline constexpr int kAcross = kWideBytes == 64 ? 4 : 2;  // vectors of keys that are summed side by side
inline constexpr int kTileBuffer = kTogether * kTile;

template <class T>
HEED_FN typename Wide<T>::Mask seen_lanes(std::uint64_t seen, int first) {
  using V = Wide<T>;
  typename V::Mask lane, all = typename V::Mask{} + static_cast<typename V::Integer>(seen >> first);
  for (int l = 0; l < V::lanes; ++l) lane[l] = typename V::Integer{1} << l;
  return (all & lane) != 0;
}

// The numbers of pairs that are not seen become `value`.
template <class T>
void set_unseen(const std::uint64_t* seen, T value, T* s) {
  using V = Wide<T>;
  for (int i = 0; i < kTogether; ++i)
    for (int at = 0; at < kTile; at += V::lanes) {
      T* to = s + i * kTile + at;
      select(seen_lanes<T>(seen[i], at), V::load(to), V(value)).store(to);
    }
}

// to[i] = the sum of the lanes of from[i], i < n.
template <class T>
void fold_wide(const T* from, int n, T* to) {
  using V = Wide<T>;
  using Eight = Vec<T, 8>;
  auto narrow = [](const T* at) {
    if constexpr (V::lanes == 4) {
      Eight out;
      for (int l = 0; l < 4; ++l) out.v[l] = at[l], out.v[l + 4] = T(0);
      return out;
    } else {
      Eight sum = Eight::load(at);
      if constexpr (V::lanes == 16) sum = sum + Eight::load(at + 8);
      return sum;
    }
  };
  int i = 0;
  for (; i + 4 <= n; i += 4, from += 4 * V::lanes)
    fold_four(narrow(from), narrow(from + V::lanes), narrow(from + 2 * V::lanes), narrow(from + 3 * V::lanes))
        .store(to + i);
  for (; i < n; ++i, from += V::lanes) to[i] = fold(narrow(from));
}

// out[i][j] = row j's number i
template <class T>
HEED_FN void transpose_four(Vec<T, 4> a, Vec<T, 4> b, Vec<T, 4> c, Vec<T, 4> d, Vec<T, 4>* out) {
  auto low_ab = __builtin_shufflevector(a.v, b.v, 0, 4, 1, 5), high_ab = __builtin_shufflevector(a.v, b.v, 2, 6, 3, 7);
  auto low_cd = __builtin_shufflevector(c.v, d.v, 0, 4, 1, 5), high_cd = __builtin_shufflevector(c.v, d.v, 2, 6, 3, 7);
  out[0] = __builtin_shufflevector(low_ab, low_cd, 0, 1, 4, 5);
  out[1] = __builtin_shufflevector(low_ab, low_cd, 2, 3, 6, 7);
  out[2] = __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5);
  out[3] = __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7);
}

// The largest lane.
template <class T>
HEED_FN T largest(Wide<T> x) {
  auto larger = [](auto p, auto q) { return select(q > p, q, p); };
  if constexpr (Wide<T>::lanes == 4) {
    T out = x.v[0];
    for (int l = 1; l < 4; ++l) out = x.v[l] > out ? x.v[l] : out;
    return out;
  } else {
    Lanes<T> eight;
    if constexpr (Wide<T>::lanes == 16)
      eight = larger(Lanes<T>(__builtin_shufflevector(x.v, x.v, 0, 1, 2, 3, 4, 5, 6, 7)),
                     Lanes<T>(__builtin_shufflevector(x.v, x.v, 8, 9, 10, 11, 12, 13, 14, 15)));
    else
      eight = Lanes<T>(x.v);
    return among_heads(eight, 1, larger).v[0];
  }
}

// s[i][j] = sum_c term(q[i][c], k[c][j]): kTogether queries x width, and width x kTile of the keys.
template <class S, class T>
void tile_sums(const void* self, const T* q, const T* k, const T* a, int width, T* s) {
  using V = Wide<T>;
  const S score = *static_cast<const S*>(self);
  for (int at = 0; at < kTile; at += kAcross * V::lanes) {
    V sum[kTogether][kAcross];
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v) sum[i][v] = T(0);
    for (int c = 0; c < width; ++c) {
      V key[kAcross];
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v) key[v] = V::load(k + c * kTile + at + v * V::lanes);
      auto learned = [&] {
        if constexpr (reads_vector<S, V>)
          return V(a[c]);
        else
          return Zero{};
      }();
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        const V own = q[i * width + c];
#pragma GCC unroll 4
        for (int v = 0; v < kAcross; ++v) sum[i][v] = sum[i][v] + score.term(own, key[v], Zero{}, learned);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v) sum[i][v].store(s + i * kTile + at + v * V::lanes);
  }
}

// Calls body(std::true_type) where some pairs are not seen. What varies goes to it as arguments: through a closure, GCC
// would read it again after each store.
template <class Body, class... Arguments>
HEED_FN void where_seen(const std::uint64_t* seen, Body body, Arguments... arguments) {
  if (seen)
    body(std::true_type{}, seen, arguments...);
  else
    body(std::false_type{}, seen, arguments...);
}

// The numbers of kTogether queries and kAcross vectors of keys, and which of them are seen.
template <class T, bool some>
struct Pairs {
  using V = Wide<T>;
  V value[kTogether][kAcross];
  typename V::Mask sees[kTogether][kAcross];

  HEED_FN Pairs(const T* from, const std::uint64_t* seen, int at) {
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kAcross; ++v) {
        value[i][v] = V::load(from + i * kTile + at + v * V::lanes);
        if constexpr (some) sees[i][v] = seen_lanes<T>(seen[i], at + v * V::lanes);
      }
  }
  HEED_FN void add(int i, int v, V factor, V& sum) const {  // sum += value * factor
    if constexpr (some)
      sum = sum + select(sees[i][v], value[i][v] * factor, V(T(0)));
    else
      sum = sum + value[i][v] * factor;
  }
};

// From ds (0 where a pair is not seen), the gradients of the sums: dq[i][c] and da[c] are vectors, whose lanes are to
// be added up in the end; dk[c][j] are numbers. All are added to. `seen`: none where all pairs are.
template <class S, class T>
void tile_gradient(const void* self, const T* q, const T* k, const T* a, int width, const T* ds,
                   const std::uint64_t* seen, T* dq, T* dk, T* da) {
  using V = Wide<T>;
  auto run = [](auto some, const std::uint64_t* seen, S score, const T* q, const T* k, const T* a, int width,
                const T* ds, T* dq, T* dk, T* da) {
    for (int at = 0; at < kTile; at += kAcross * V::lanes) {
      const Pairs<T, some.value> d(ds, seen, at);
      for (int c = 0; c < width; ++c) {
        V key[kAcross], down[kAcross], learned_sum = T(0);
        T* const to = dk + c * kTile + at;
#pragma GCC unroll 4
        for (int v = 0; v < kAcross; ++v) {
          key[v] = V::load(k + c * kTile + at + v * V::lanes);
          down[v] = V::load(to + v * V::lanes);
        }
        auto learned = [&] {
          if constexpr (reads_vector<S, V>)
            return variable<1>(V(a[c]));
          else
            return Zero{};
        }();
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          const V own = q[i * width + c];
          T* const up = dq + (i * width + c) * V::lanes;
          V sum = V::load(up);
#pragma GCC unroll 4
          for (int v = 0; v < kAcross; ++v) {
            auto y = score.term(variable<0>(own), variable<2>(key[v]), Zero{}, learned);
            constexpr unsigned mask = decltype(y)::mask;
            if constexpr (mask & 1) d.add(i, v, y.d[0], sum);
            if constexpr (mask & 2) d.add(i, v, y.d[1], learned_sum);
            if constexpr (mask & 4) d.add(i, v, y.d[2], down[v]);
          }
          sum.store(up);
        }
#pragma GCC unroll 4
        for (int v = 0; v < kAcross; ++v) down[v].store(to + v * V::lanes);
        if constexpr (reads_vector<S, V>) (V::load(da + c * V::lanes) + learned_sum).store(da + c * V::lanes);
      }
    }
  };
  where_seen(seen, run, *static_cast<const S*>(self), q, k, a, width, ds, dq, dk, da);
}

// ---- values -------------------------------------------------------------------------------------------------------

// to[i][c] += w[i][j] * v[c][j], lane by lane: vectors, whose lanes are to be added up in the end.
template <class T>
void tile_gather(const T* w, const T* v, const std::uint64_t* seen, int width, T* to) {
  using V = Wide<T>;
  auto run = [](auto some, const std::uint64_t* seen, const T* w, const T* v, int width, T* to) {
    for (int at = 0; at < kTile; at += kAcross * V::lanes) {
      const Pairs<T, some.value> weight(w, seen, at);
      for (int c = 0; c < width; ++c) {
        V value[kAcross];
#pragma GCC unroll 4
        for (int t = 0; t < kAcross; ++t) value[t] = V::load(v + c * kTile + at + t * V::lanes);
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          T* const up = to + (i * width + c) * V::lanes;
          V sum = V::load(up);
#pragma GCC unroll 4
          for (int t = 0; t < kAcross; ++t) weight.add(i, t, value[t], sum);
          sum.store(up);
        }
      }
    }
  };
  where_seen(seen, run, w, v, width, to);
}

// dv[c][j] += sum_i w[i][j] * dy[i][c]
template <class T>
void tile_scatter(const T* w, const T* dy, const std::uint64_t* seen, int width, T* dv) {
  using V = Wide<T>;
  auto run = [](auto some, const std::uint64_t* seen, const T* w, const T* dy, int width, T* dv) {
    for (int at = 0; at < kTile; at += kAcross * V::lanes) {
      const Pairs<T, some.value> weight(w, seen, at);
      for (int c = 0; c < width; ++c) {
        T* const to = dv + c * kTile + at;
        V down[kAcross];
#pragma GCC unroll 4
        for (int t = 0; t < kAcross; ++t) down[t] = V::load(to + t * V::lanes);
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          const V own = dy[i * width + c];
#pragma GCC unroll 4
          for (int t = 0; t < kAcross; ++t) weight.add(i, t, own, down[t]);
        }
#pragma GCC unroll 4
        for (int t = 0; t < kAcross; ++t) down[t].store(to + t * V::lanes);
      }
    }
  };
  where_seen(seen, run, w, dy, width, dv);
}

// kTile rows of a table, or the first `count` of them, channel by channel (0 past the last).
template <class T>
void tile_pack(View<const T> x, Offset first, int count, T* to) {
  using V = Vec<T, 4>;
  const int width = static_cast<int>(x.cols);
  for (int j = 0; j < kTile; j += 4) {
    const T* row[4];
    int c = 0;
    for (int l = 0; l < 4; ++l) {
      const Offset at = first + j + l;
      row[l] = j + l < count ? x.row(at) : nullptr;
      if (at + kTile < x.rows) prefetch_row(x, static_cast<Id>(at + kTile));  // for the next tile
    }
    for (; j + 4 <= count && c + 4 <= width; c += 4) {
      V out[4];
      transpose_four(V::load(row[0] + c), V::load(row[1] + c), V::load(row[2] + c), V::load(row[3] + c), out);
      for (int l = 0; l < 4; ++l) out[l].store(to + (c + l) * kTile + j);
    }
    for (; c < width; ++c)
      for (int l = 0; l < 4; ++l) to[c * kTile + j + l] = row[l] ? row[l][c] : T(0);
  }
}
// And back: added to the table.
template <class T>
void tile_unpack(const T* from, Offset first, int count, View<T> x) {
  using V = Vec<T, 4>;
  const int width = static_cast<int>(x.cols);
  for (int j = 0; j < count; j += 4) {
    int c = 0;
    for (; j + 4 <= count && c + 4 <= width; c += 4) {
      V in[4], out[4];
      for (int l = 0; l < 4; ++l) in[l] = V::load(from + (c + l) * kTile + j);
      transpose_four(in[0], in[1], in[2], in[3], out);
      for (int l = 0; l < 4; ++l) {
        T* to = x.row(first + j + l) + c;
        (V::load(to) + out[l]).store(to);
      }
    }
    for (; c < width; ++c)
      for (int l = 0; l < std::min(4, count - j); ++l) x(first + j + l, c) += from[c * kTile + j + l];
  }
}

// ---- the normaliser -----------------------------------------------------------------------------------------------

template <class T>
struct TileState {  // of kTogether queries: what the tiles so far leave to the next one
  T* shift;         // running maxima, -inf at first
  T* total;         // sums of raw weights, a vector each, whose lanes are to be added up in the end
  T* rescale;       // what the queries' sums so far must be multiplied with: 1 for most
};

// Scores become raw weights, in place; pairs that are not seen hold -inf. True where some rescale is not 1.
template <class N, class T>
bool normaliser_tile(T* s, const TileState<T>& state) {
  using V = Wide<T>;
  const N normaliser{};
  const T none = -__builtin_inff();
  bool moves = false;
  for (int i = 0; i < kTogether; ++i) {
    T* const row = s + i * kTile;
    V use = T(0), total = V::load(state.total + i * V::lanes);
    state.rescale[i] = T(1);
    if constexpr (N::shifts) {
      V most = V::load(row);
      for (int at = V::lanes; at < kTile; at += V::lanes) {
        const V x = V::load(row + at);
        most = select(x > most, x, most);
      }
      const T old = state.shift[i], here = largest<T>(most), top = here > old ? here : old;
      if (here > old) {
        state.shift[i] = top;
        if (N::couples && old > none) {
          const V factor = exp_of(V(old - top));
          state.rescale[i] = factor.v[0];
          total = total * factor;
          moves = true;
        }
      }
      use = top > none ? top : T(0);
    }
    for (int at = 0; at < kTile; at += V::lanes) {
      const V w = raw_weight(normaliser, V::load(row + at), use);
      w.store(row + at);
      total = total + w;
    }
    total.store(state.total + i * V::lanes);
  }
  return moves;
}

// Scores become weights and dw becomes ds, in place, from each query's tau and delta. `keep` (or none) holds dropout's
// factors.
template <class N, class T>
void normaliser_tile_gradient(T* s, T* dw, const T* tau, const T* delta, const T* keep) {
  using V = Wide<T>;
  const N normaliser{};
  auto run = [=](auto drops) {
    for (int i = 0; i < kTogether; ++i) {
      const V threshold = tau[i], mean = delta[i];
      for (int at = i * kTile; at < (i + 1) * kTile; at += V::lanes) {
        const V score = V::load(s + at), w = normaliser.weight(score, threshold);
        V d = V::load(dw + at), kept = w;
        if constexpr (drops.value) {
          const V factor = V::load(keep + at);
          d = d * factor;
          kept = w * factor;
        }
        V ds = normaliser.slope(score, w, threshold) * d;
        if constexpr (N::couples) ds = ds - normaliser.share(score, w, threshold) * mean;
        kept.store(s + at);
        ds.store(dw + at);
      }
    }
  };
  if (keep)
    run(std::true_type{});
  else
    run(std::false_type{});
}

}  // namespace heed::stages
