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

namespace heed::stages {

#ifdef __AVX512F__
inline constexpr int kWideBytes = 64;
#else
inline constexpr int kWideBytes = 32;
#endif
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

// From ds (0 where a pair is not seen), the gradients of the sums: dq[i][c] and da[c] are vectors, whose lanes are to
// be added up in the end; dk[c][j] are numbers. All are added to. `seen`: none where all pairs are.
template <class S, class T>
void tile_gradient(const void* self, const T* q, const T* k, const T* a, int width, const T* ds,
                   const std::uint64_t* seen, T* dq, T* dk, T* da) {
  using V = Wide<T>;
  const S score = *static_cast<const S*>(self);
  auto run = [=](auto some) {
    for (int at = 0; at < kTile; at += kAcross * V::lanes) {
      V d[kTogether][kAcross];
      typename V::Mask sees[kTogether][kAcross];
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < kAcross; ++v) {
          d[i][v] = V::load(ds + i * kTile + at + v * V::lanes);
          if constexpr (some.value) sees[i][v] = seen_lanes<T>(seen[i], at + v * V::lanes);
        }
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
            auto add = [&](V& total, V slope) {
              if constexpr (some.value)
                total = total + select(sees[i][v], d[i][v] * slope, V(T(0)));
              else
                total = total + d[i][v] * slope;
            };
            if constexpr (mask & 1) add(sum, y.d[0]);
            if constexpr (mask & 2) add(learned_sum, y.d[1]);
            if constexpr (mask & 4) add(down[v], y.d[2]);
          }
          sum.store(up);
        }
#pragma GCC unroll 4
        for (int v = 0; v < kAcross; ++v) down[v].store(to + v * V::lanes);
        if constexpr (reads_vector<S, V>) (V::load(da + c * V::lanes) + learned_sum).store(da + c * V::lanes);
      }
    }
  };
  if (seen)
    run(std::true_type{});
  else
    run(std::false_type{});
}

// ---- values -------------------------------------------------------------------------------------------------------

// to[i][c] += w[i][j] * v[c][j], lane by lane: vectors, whose lanes are to be added up in the end.
template <class T>
void tile_gather(const T* w, const T* v, const std::uint64_t* seen, int width, T* to) {
  using V = Wide<T>;
  auto run = [=](auto some) {
    for (int at = 0; at < kTile; at += kAcross * V::lanes) {
      V weight[kTogether][kAcross];
      typename V::Mask sees[kTogether][kAcross];
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
        for (int t = 0; t < kAcross; ++t) {
          weight[i][t] = V::load(w + i * kTile + at + t * V::lanes);
          if constexpr (some.value) sees[i][t] = seen_lanes<T>(seen[i], at + t * V::lanes);
        }
      for (int c = 0; c < width; ++c) {
        V value[kAcross];
#pragma GCC unroll 4
        for (int t = 0; t < kAcross; ++t) value[t] = V::load(v + c * kTile + at + t * V::lanes);
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          T* const up = to + (i * width + c) * V::lanes;
          V sum = V::load(up);
#pragma GCC unroll 4
          for (int t = 0; t < kAcross; ++t)
            if constexpr (some.value)
              sum = sum + select(sees[i][t], weight[i][t] * value[t], V(T(0)));
            else
              sum = sum + weight[i][t] * value[t];
          sum.store(up);
        }
      }
    }
  };
  if (seen)
    run(std::true_type{});
  else
    run(std::false_type{});
}

// dv[c][j] += sum_i w[i][j] * dy[i][c]
template <class T>
void tile_scatter(const T* w, const T* dy, const std::uint64_t* seen, int width, T* dv) {
  using V = Wide<T>;
  auto run = [=](auto some) {
    for (int at = 0; at < kTile; at += kAcross * V::lanes) {
      V weight[kTogether][kAcross];
      typename V::Mask sees[kTogether][kAcross];
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i)
#pragma GCC unroll 4
        for (int t = 0; t < kAcross; ++t) {
          weight[i][t] = V::load(w + i * kTile + at + t * V::lanes);
          if constexpr (some.value) sees[i][t] = seen_lanes<T>(seen[i], at + t * V::lanes);
        }
      for (int c = 0; c < width; ++c) {
        T* const to = dv + c * kTile + at;
        V down[kAcross];
#pragma GCC unroll 4
        for (int t = 0; t < kAcross; ++t) down[t] = V::load(to + t * V::lanes);
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) {
          const V own = dy[i * width + c];
#pragma GCC unroll 4
          for (int t = 0; t < kAcross; ++t)
            if constexpr (some.value)
              down[t] = down[t] + select(sees[i][t], weight[i][t] * own, V(T(0)));
            else
              down[t] = down[t] + weight[i][t] * own;
        }
#pragma GCC unroll 4
        for (int t = 0; t < kAcross; ++t) down[t].store(to + t * V::lanes);
      }
    }
  };
  if (seen)
    run(std::true_type{});
  else
    run(std::false_type{});
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
      T lane[V::lanes], top = state.shift[i];
      most.store(lane);
      const T old = top;
      for (int width = V::lanes / 2; width > 0; width /= 2)
        for (int l = 0; l < width; ++l) lane[l] = lane[l + width] > lane[l] ? lane[l + width] : lane[l];
      if (lane[0] > top) {
        top = lane[0];
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
      const V w = normaliser.raw(V::load(row + at), use);
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
        const V w = normaliser.weight(V::load(s + at), threshold);
        V d = V::load(dw + at), kept = w;
        if constexpr (drops.value) {
          const V factor = V::load(keep + at);
          d = d * factor;
          kept = w * factor;
        }
        V ds = normaliser.slope(w) * d;
        if constexpr (N::couples) ds = ds - normaliser.share(w) * mean;
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
