// The stages of the fused operator, for one chunk of at most kChunk edges of one row. The row's own vector meets the
// vectors of its neighbours through an array of pointers; all heads of a node lie together. Scores and weights travel
// in buffers of n x padded numbers, where `padded` is the head count rounded up to a power of two, or to a multiple of
// 8: so elementwise stages run over whole vectors whatever the number of heads.
//
// Every stage is a template over the width of a head (0: known at run time only). Widths differ in speed, never in
// bits: lanes and order of addition are the same.
#pragma once

#include "kernels/jet.h"
#include "kernels/lanes.h"

namespace heed::stages {

inline constexpr int kLanes = 8;
template <class T>
using Lanes = Vec<T, kLanes>;

inline int padded_heads(int heads) {
  if (heads > 4) return (heads + 7) / 8 * 8;
  return heads > 2 ? 4 : heads;
}
inline int vectors(int n, int padded) { return (n * padded + kLanes - 1) / kLanes; }
inline int period(int padded) { return padded < kLanes ? 1 : padded / kLanes; }  // vectors until the heads repeat

// Repeats `heads` numbers so that elementwise stages can read them: period(padded) vectors.
template <class T>
void spread(const T* from, int heads, int padded, T* to) {
  int count = period(padded) * kLanes;
  for (int l = 0; l < count; ++l) to[l] = l % padded < heads ? from[l % padded] : T(0);
}
// Adds up what elementwise stages collected in period(padded) vectors: to[h] += the sum of head h's lanes.
template <class T>
void collect(const T* from, int heads, int padded, T* to) {
  int count = period(padded) * kLanes;
  for (int l = 0; l < count; ++l)
    if (l % padded < heads) to[l % padded] += from[l];
}
// n rows of `heads` numbers into an n x padded buffer whose unused lanes are 0.
template <class T>
void gather(const T* const* rows, int n, int heads, int padded, T* to) {
  for (int j = 0; j < n; ++j) {
    for (int h = 0; h < heads; ++h) to[j * padded + h] = rows[j][h];
    for (int h = heads; h < padded; ++h) to[j * padded + h] = T(0);
  }
  for (int l = n * padded; l < vectors(n, padded) * kLanes; ++l) to[l] = T(0);
}

template <class T>
struct Chunk {  // what the stages of a score read
  int n = 0;    // edges
  int heads = 1;
  int padded = 1;
  int width = 1;                    // channels of a head
  const T* own = nullptr;           // heads x width, the row's
  const T* const* other = nullptr;  // n rows of heads x width
  const T* const* edge = nullptr;   // n rows of heads x width, or none
  const T* a = nullptr;             // heads x width, or none
};

template <class T>
struct ChunkGradient {        // what the backward stages write
  const T* ds = nullptr;      // n x padded
  T* down = nullptr;          // heads x width, added to: the own side's
  T* da = nullptr;            // heads x width, added to; may be none
  T* const* dedge = nullptr;  // n rows of heads x width, written; may be none
};

// ---- sums over channels -------------------------------------------------------------------------------------------

// Calls body.template operator()<lanes>(channel, tail) for the vectors of one head; tail < kLanes in the last one.
template <int W, class Body>
HEED_FN void for_each_vector(int width, Body body) {
  if constexpr (W == 0) {
    int c = 0;
    for (; c + kLanes <= width; c += kLanes) body(c, kLanes);
    if (c < width) body(c, width - c);
  } else {
#pragma GCC unroll 16
    for (int c = 0; c < W; c += kLanes) body(c, W - c < kLanes ? W - c : kLanes);
  }
}

// to[j][h] = sum(j, h) for the sums of vectors of lanes, four heads at a time where that fits.
template <class T, class Sum, class Put>
HEED_FN void fold_heads(int n, int heads, Sum sum, Put put) {
  for (int j = 0; j < n; ++j) {
    int h = 0;
    for (; h + 4 <= heads; h += 4) {
      auto four = fold_four(sum(j, h), sum(j, h + 1), sum(j, h + 2), sum(j, h + 3));
      for (int l = 0; l < 4; ++l) put(j, h + l, four.v[l]);
    }
    for (; h < heads; ++h) put(j, h, fold(sum(j, h)));
  }
}

// to[j][h] (+)= sum_c own[h][c] * other[j][h][c]
template <class T, int W>
void dots(const T* own, const T* const* other, int n, int heads, int padded, int width, bool add, T* to) {
  if constexpr (W > 0) width = W;
  auto sum = [=](int j, int h) {
    Lanes<T> total = T(0);
    for_each_vector<W>(width, [&](int c, int tail) {
      Lanes<T> product = Lanes<T>::load(own + h * width + c) * Lanes<T>::load(other[j] + h * width + c);
      total = total + (tail < kLanes ? keep_first(product, tail) : product);
    });
    return total;
  };
  if (add)
    fold_heads<T>(n, heads, sum, [=](int j, int h, T value) { to[j * padded + h] += value; });
  else
    fold_heads<T>(n, heads, sum, [=](int j, int h, T value) { to[j * padded + h] = value; });
}

// G vectors of `to` that begin at channel c: to += sum_j w[j][head] * rows[j]
template <class T, int W, int G>
HEED_FN void add_group(T* to, const T* w, const T* const* rows, int n, int padded, int c, int head) {
  constexpr int lanes = W > 0 && W < kLanes ? W : kLanes;
  using V = Vec<T, lanes>;
  V sum[G];
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) sum[g] = V::load(to + c + g * lanes);
  for (int j = 0; j < n; ++j) {
    const T* x = rows[j] + c;
    const T* wj = w + j * padded + head;
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) sum[g] = sum[g] + V(wj[W > 0 ? g * lanes / W : 0]) * V::load(x + g * lanes);
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) sum[g].store(to + c + g * lanes);
}

// to[h][c] += sum_j w[j][h] * rows[j][h][c]
template <class T, int W>
void add_rows(T* to, const T* w, const T* const* rows, int n, int heads, int padded, int width) {
  if constexpr (W > 0) {
    constexpr int lanes = W < kLanes ? W : kLanes;
    int total = heads * W, c = 0;
    for (; c + 8 * lanes <= total; c += 8 * lanes) add_group<T, W, 8>(to, w, rows, n, padded, c, c / W);
    if (c + 4 * lanes <= total) add_group<T, W, 4>(to, w, rows, n, padded, c, c / W), c += 4 * lanes;
    if (c + 2 * lanes <= total) add_group<T, W, 2>(to, w, rows, n, padded, c, c / W), c += 2 * lanes;
    if (c < total) add_group<T, W, 1>(to, w, rows, n, padded, c, c / W);
  } else {
    for (int h = 0; h < heads; ++h) {
      int end = (h + 1) * width, c = h * width;
      for (; c + 8 * kLanes <= end; c += 8 * kLanes) add_group<T, 0, 8>(to, w, rows, n, padded, c, h);
      for (; c + 2 * kLanes <= end; c += 2 * kLanes) add_group<T, 0, 2>(to, w, rows, n, padded, c, h);
      for (; c + kLanes <= end; c += kLanes) add_group<T, 0, 1>(to, w, rows, n, padded, c, h);
      if (c < end) {
        Lanes<T> sum = T(0);
        for (int j = 0; j < n; ++j) sum = sum + Lanes<T>(w[j * padded + h]) * Lanes<T>::load(rows[j] + c);
        for (int l = 0; c + l < end; ++l) to[c + l] += sum.v[l];
      }
    }
  }
}

// ---- the score's own stages ---------------------------------------------------------------------------------------

// The score's operands in the roles that the row plays: the own side is the query in a row pass, the key in a column
// pass. As jets, variable 0 is the own side, 1 the learned vector, 2 the edge's feature.
template <bool own_is_query, class S, class Own, class Other, class E, class A>
HEED_FN auto term(const S& score, Own own, Other other, E e, A a) {
  if constexpr (own_is_query)
    return score.term(own, other, e, a);
  else
    return score.term(other, own, e, a);
}

template <class S, class V>
inline constexpr bool reads_vector = (partials<decltype(std::declval<S>().term(V{}, V{}, Zero{}, variable<1>(V{})))> >>
                                          1 &
                                      1) != 0;

// to[j][h] = sum_c term(...)
template <class S, class T, bool own_is_query, int W>
void score_sums(const void* self, const Chunk<T>& x, T* to) {
  using V = Lanes<T>;
  const S& score = *static_cast<const S*>(self);
  auto run = [&](auto with_edge) {
    constexpr bool has_edge = decltype(with_edge)::value;
    auto edge = [&](int j, int c) {
      if constexpr (has_edge)
        return V::load(x.edge[j] + c);
      else
        return Zero{};
    };
    auto learned = [&](int c) {
      if constexpr (reads_vector<S, V>)
        return V::load(x.a + c);
      else
        return Zero{};
    };
    if constexpr (W == 1) {  // one channel a head: lanes run over heads and edges
      alignas(64) T own[256], other[kLanes], e[kLanes], a[256];
      int count = vectors(x.n, x.padded), round = period(x.padded);
      spread(x.own, x.heads, x.padded, own);
      if constexpr (reads_vector<S, V>) spread(x.a, x.heads, x.padded, a);
      (void)other, (void)e, (void)a;
      gather(x.other, x.n, x.heads, x.padded, to);
      alignas(64) T edges[has_edge ? 64 * 32 : 1];
      if constexpr (has_edge) gather(x.edge, x.n, x.heads, x.padded, edges);
      for (int t = 0; t < count; ++t) {
        int r = t % round * kLanes;
        auto et = [&] {
          if constexpr (has_edge)
            return V::load(edges + t * kLanes);
          else
            return Zero{};
        }();
        auto at = [&] {
          if constexpr (reads_vector<S, V>)
            return V::load(a + r);
          else
            return Zero{};
        }();
        term<own_is_query>(score, V::load(own + r), V::load(to + t * kLanes), et, at).store(to + t * kLanes);
      }
    } else {
      const int width = W > 0 ? W : x.width;
      auto sum = [&](int j, int h) {
        V total = T(0);
        for_each_vector<W>(width, [&](int c, int tail) {
          int at = h * width + c;
          V value = term<own_is_query>(score, V::load(x.own + at), V::load(x.other[j] + at), edge(j, at), learned(at));
          total = total + (tail < kLanes ? keep_first(value, tail) : value);
        });
        return total;
      };
      fold_heads<T>(x.n, x.heads, sum, [&](int j, int h, T value) { to[j * x.padded + h] = value; });
    }
  };
  if (x.edge)
    run(std::true_type{});
  else
    run(std::false_type{});
}

// From ds, the gradient of the sums: own side, learned vector and edge features.
template <class S, class T, bool own_is_query, int W>
void score_gradient(const void* self, const Chunk<T>& x, const ChunkGradient<T>& g) {
  using V = Lanes<T>;
  const S& score = *static_cast<const S*>(self);
  auto run = [&](auto with_edge) {
    constexpr bool has_edge = decltype(with_edge)::value;
    auto evaluate = [&](V own, V other, V e, V a) {
      auto edge = [&] {
        if constexpr (has_edge)
          return variable<2>(e);
        else
          return Zero{};
      }();
      auto learned = [&] {
        if constexpr (reads_vector<S, V>)
          return variable<1>(a);
        else
          return Zero{};
      }();
      return term<own_is_query>(score, variable<0>(own), Jet<V, 0>(other), edge, learned);
    };
    constexpr unsigned mask = decltype(evaluate(V{}, V{}, V{}, V{}))::mask;
    if constexpr (W == 1) {
      int count = vectors(x.n, x.padded), round = period(x.padded);
      alignas(64) T own[256], a[256], other[64 * 32], e[has_edge ? 64 * 32 : 1];
      alignas(64) T down[256], da[256];
      spread(x.own, x.heads, x.padded, own);
      if constexpr (mask & 2) spread(x.a, x.heads, x.padded, a);
      gather(x.other, x.n, x.heads, x.padded, other);
      if constexpr (has_edge) gather(x.edge, x.n, x.heads, x.padded, e);
      for (int l = 0; l < round * kLanes; ++l) down[l] = da[l] = T(0);
      for (int t = 0; t < count; ++t) {
        int r = t % round * kLanes, at = t * kLanes;
        V et = has_edge ? V::load(e + (has_edge ? at : 0)) : V(T(0));
        V av = (mask & 2) ? V::load(a + r) : V(T(0));
        auto y = evaluate(V::load(own + r), V::load(other + at), et, av);
        V ds = V::load(g.ds + at);
        if constexpr (mask & 1) (V::load(down + r) + ds * y.d[0]).store(down + r);
        if constexpr (mask & 2) (V::load(da + r) + ds * y.d[1]).store(da + r);
        if constexpr (has_edge) {
          if constexpr (mask & 4)
            (ds * y.d[2]).store(e + at);
          else
            V(T(0)).store(e + at);
        }
      }
      if (g.down) collect(down, x.heads, x.padded, g.down);
      if (g.da) collect(da, x.heads, x.padded, g.da);
      if constexpr (has_edge)
        if (g.dedge)
          for (int j = 0; j < x.n; ++j)
            for (int h = 0; h < x.heads; ++h) g.dedge[j][h] = e[j * x.padded + h];
    } else {
      const int width = W > 0 ? W : x.width;
      constexpr int G = W >= 4 * kLanes ? 4 : W >= 2 * kLanes ? 2 : 1;  // vectors held in registers
      for (int h = 0; h < x.heads; ++h)
        for (int c = 0; c < width; c += G * kLanes) {
          int at = h * width + c;
          int tail = width - c < kLanes ? width - c : kLanes;
          V own[G], a[G], down[G], da[G];
#pragma GCC unroll 8
          for (int i = 0; i < G; ++i) {
            own[i] = V::load(x.own + at + i * kLanes);
            if constexpr (mask & 2) a[i] = V::load(x.a + at + i * kLanes);
            down[i] = da[i] = T(0);
          }
          for (int j = 0; j < x.n; ++j) {
            V ds = g.ds[j * x.padded + h];
#pragma GCC unroll 8
            for (int i = 0; i < G; ++i) {
              int k = at + i * kLanes;
              V e = T(0);
              if constexpr (has_edge) e = V::load(x.edge[j] + k);
              auto y = evaluate(own[i], V::load(x.other[j] + k), e, a[i]);
              if constexpr (mask & 1) down[i] = down[i] + ds * y.d[0];
              if constexpr (mask & 2) da[i] = da[i] + ds * y.d[1];
              if constexpr (has_edge)
                if (g.dedge) {
                  V de = T(0);
                  if constexpr (mask & 4) de = ds * y.d[2];
                  if (tail == kLanes)
                    de.store(g.dedge[j] + k);
                  else
                    for (int l = 0; l < tail; ++l) g.dedge[j][k + l] = de.v[l];
                }
            }
          }
          auto add = [&](T* to, const V& value) {
            if (tail == kLanes)
              (V::load(to) + value).store(to);
            else
              for (int l = 0; l < tail; ++l) to[l] += value.v[l];
          };
#pragma GCC unroll 8
          for (int i = 0; i < G; ++i) {
            if (g.down) add(g.down + at + i * kLanes, down[i]);
            if constexpr (mask & 2)
              if (g.da) add(g.da + at + i * kLanes, da[i]);
          }
        }
    }
  };
  if (x.edge)
    run(std::true_type{});
  else
    run(std::false_type{});
}

// s = finish(sum, p), elementwise; `p` holds S::scalars runs of period(padded) vectors.
template <class S, class T>
void score_finish(const void* self, const T* sums, const T* p, int n, int padded, T* to) {
  using V = Lanes<T>;
  const S& score = *static_cast<const S*>(self);
  int count = vectors(n, padded), round = period(padded);
  for (int t = 0; t < count; ++t) {
    V scalar[S::scalars];
    for (int i = 0; i < S::scalars; ++i) scalar[i] = V::load(p + (i * round + t % round) * kLanes);
    score.finish(V::load(sums + t * kLanes), scalar).store(to + t * kLanes);
  }
}

// ds becomes the gradient of the sums; dp (like p) is added to. Edges at or after n must have ds = 0.
template <class S, class T>
void score_finish_gradient(const void* self, const T* sums, const T* p, int n, int padded, T* ds, T* dp) {
  using V = Lanes<T>;
  const S& score = *static_cast<const S*>(self);
  int count = vectors(n, padded), round = period(padded);
  for (int t = 0; t < count; ++t) {
    Jet<V, 0b1111> scalar[S::scalars];
    for (int i = 0; i < S::scalars; ++i) {
      scalar[i] = Jet<V, 0b1111>(V::load(p + (i * round + t % round) * kLanes));
      scalar[i].d[i + 1] = V(T(1));
    }
    Jet<V, 0b1111> sum(V::load(sums + t * kLanes));
    sum.d[0] = V(T(1));
    auto y = score.finish(sum, scalar);
    V d = V::load(ds + t * kLanes);
    if (dp)
      for (int i = 0; i < S::scalars; ++i) {
        T* at = dp + (i * round + t % round) * kLanes;
        (V::load(at) + d * y.d[i + 1]).store(at);
      }
    (d * y.d[0]).store(ds + t * kLanes);
  }
}

// ---- the normaliser's stages --------------------------------------------------------------------------------------

template <class T>
struct RowState {  // each period(padded) vectors
  T* shift;        // running maximum, -inf at first
  T* total;        // sum of raw weights
  T* rescale;      // what the sums so far must be multiplied with
};

// Scores become raw weights, in place; the state takes them in.
template <class N, class T>
void normaliser_raw(T* s, int n, int padded, const RowState<T>& state) {
  using V = Lanes<T>;
  const N normaliser{};
  int count = vectors(n, padded), round = period(padded);
  int tail = n * padded - (count - 1) * kLanes;  // lanes in use in the last vector
  const T none = -__builtin_inff();
  if (tail < kLanes) keep_first(V::load(s + (count - 1) * kLanes), tail, none).store(s + (count - 1) * kLanes);
  for (int r = 0; r < round; ++r) {
    V old = V::load(state.shift + r * kLanes), shift = old, use = T(0), total = T(0);
    if constexpr (N::shifts) {
      for (int t = r; t < count; t += round) {
        V x = V::load(s + t * kLanes);
        shift = select(x > shift, x, shift);
      }
      // Lanes that hold the same head share the maximum.
      for (int step = padded; step < kLanes; step *= 2) {
        V other;
        for (int l = 0; l < kLanes; ++l) other.v[l] = shift.v[l ^ step];
        shift = select(other > shift, other, shift);
      }
      use = select(shift > V(none), shift, V(T(0)));
    }
    for (int t = r; t < count; t += round) {
      V w = normaliser.raw(V::load(s + t * kLanes), use);
      w.store(s + t * kLanes);
      total = total + (t == count - 1 && tail < kLanes ? keep_first(w, tail) : w);
    }
    if constexpr (N::couples) {
      for (int step = padded; step < kLanes; step *= 2) {
        V other;
        for (int l = 0; l < kLanes; ++l) other.v[l] = total.v[l ^ step];
        total = total + other;
      }
      V rescale = T(1);
      if constexpr (N::shifts) rescale = select(old > V(none), exp_of(old - use), V(T(0)));
      rescale.store(state.rescale + r * kLanes);
      (V::load(state.total + r * kLanes) * rescale + total).store(state.total + r * kLanes);
      shift.store(state.shift + r * kLanes);
    }
  }
}

// State `from` joins `into`; into.rescale and from.rescale say how each side's sums enter the union.
template <class N, class T>
void normaliser_merge(const RowState<T>& into, const RowState<T>& from, int padded) {
  const T none = -__builtin_inff();
  for (int l = 0; l < period(padded) * kLanes; ++l) {
    T a = into.shift[l], b = from.shift[l], shift = a > b ? a : b;
    into.rescale[l] = from.rescale[l] = T(1);
    if constexpr (N::shifts) {
      into.rescale[l] = a > none ? std::exp(a - shift) : T(0);
      from.rescale[l] = b > none ? std::exp(b - shift) : T(0);
    }
    into.total[l] = into.total[l] * into.rescale[l] + from.total[l] * from.rescale[l];
    into.shift[l] = shift;
  }
}

// tau and the factor of the finished row, `heads` numbers each; `tau` and `factor` have room for whole vectors.
template <class N, class T>
void normaliser_close(const RowState<T>& state, int padded, T* tau, T* factor) {
  using V = Lanes<T>;
  for (int at = 0; at < period(padded) * kLanes; at += kLanes) {
    auto x = N{}.close(V::load(state.shift + at), V::load(state.total + at));
    x.tau.store(tau + at);
    x.factor.store(factor + at);
  }
}

// Scores become weights and dw becomes ds, in place. `tau` and `delta` are n x padded where `per_edge`, else one row
// spread over period(padded) vectors. `keep` (n x padded, or none) holds dropout's factors. ds is 0 past the n edges.
template <class N, class T>
void normaliser_gradient(T* s, T* dw, const T* tau, const T* delta, bool per_edge, const T* keep, int n, int padded) {
  using V = Lanes<T>;
  const N normaliser{};
  int count = vectors(n, padded), round = period(padded);
  int tail = n * padded - (count - 1) * kLanes;
  for (int t = 0; t < count; ++t) {
    int at = t * kLanes, r = per_edge ? at : t % round * kLanes;
    V w = normaliser.weight(V::load(s + at), V::load(tau + r));
    V d = V::load(dw + at);
    V kept = w;
    if (keep) {
      V factor = V::load(keep + at);
      d = d * factor;
      kept = w * factor;
    }
    V ds = normaliser.slope(w) * d;
    if constexpr (N::couples) ds = ds - normaliser.share(w) * V::load(delta + r);
    if (t == count - 1 && tail < kLanes) ds = keep_first(ds, tail);
    kept.store(s + at);
    ds.store(dw + at);
  }
}

}  // namespace heed::stages
