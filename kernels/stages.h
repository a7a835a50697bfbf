// The stages of the fused operator, for one batch of edges. Each row's own vector meets the vectors of its neighbours;
// all heads of a node lie together. Scores and weights travel in buffers of `padded` numbers an edge, where `padded` is
// the head count rounded up to a power of two, or to a multiple of 8: so elementwise stages run over whole vectors
// whatever the number of heads. What lies in the lanes of no head and of no edge means nothing.
//
// Every stage is a template over the width of a head (0: known at run time only). Widths differ in speed, never in
// bits: lanes and order of addition are the same.
#pragma once

#include <algorithm>
#include <functional>

#include "kernels/batch.h"
#include "kernels/matrix.h"
#include "kernels/traits.h"
#include "kernels/wide.h"

namespace heed::stages {

template <class T>
using Lanes = Vec<T, kLanes>;

inline constexpr int kMaxHeads = 32;  // more heads run as several calls over strided views
inline constexpr int kBuffer = kChunk * kMaxHeads;
inline constexpr int kHeadBuffer = kMaxHeads + kLanes;

inline int padded_heads(int heads) {
  if (heads > 4) return (heads + 7) / 8 * 8;
  return heads > 2 ? 4 : heads;
}
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
// Sets the lanes of no edge to 0, before the others are filled: what is computed there must not become NaN.
template <class T>
void clear_tails(const Batch& batch, int padded, T* buffer) {
  if (padded >= kLanes) return;
  for (int g = 0; g < batch.segments; ++g)
    Lanes<T>(T(0)).store(buffer + (batch.segment[g].vector + batch.segment[g].vectors - 1) * kLanes);
}
// The rows `ids` of a table, `padded` numbers of each, into a buffer. Past a row's end comes whatever lies there.
template <class T>
void gather(View<const T> table, const Id* ids, const int* at, int n, int padded, T* to, const Batch* next = nullptr) {
  if (next)
    for (int t = 0; t < next->n; ++t) prefetch_row(table, next->ids[t]);
  auto run = [&]<int count>() {
    for (int t = 0; t < n; ++t) std::memcpy(to + at[t], table.row(ids[t]), sizeof(T) * count);
  };
  switch (padded) {
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    case 4:
      return run.template operator()<4>();
    case 8:
      return run.template operator()<8>();
  }
  for (int t = 0; t < n; ++t) std::memcpy(to + at[t], table.row(ids[t]), sizeof(T) * static_cast<std::size_t>(padded));
}
// The rows of a table that the batch's segments belong to, once for each edge, as gather leaves them.
template <class T>
void repeat(View<const T> table, const Batch& batch, int padded, T* to) {
  auto fill = [&](const Segment& s, Lanes<T> x) {
    for (int v = s.vector; v < s.vector + s.vectors; ++v) x.store(to + v * kLanes);
  };
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& s = batch.segment[g];
    const T* row = table.row(s.row);
    if (padded == 1) {
      fill(s, row[0]);
    } else if (padded == 2) {
      const auto x = Vec<T, 2>::load(row).v;
      fill(s, Lanes<T>(__builtin_shufflevector(x, x, 0, 1, 0, 1, 0, 1, 0, 1)));
    } else if (padded == 4) {
      const auto x = Vec<T, 4>::load(row).v;
      fill(s, Lanes<T>(__builtin_shufflevector(x, x, 0, 1, 2, 3, 0, 1, 2, 3)));
    } else {
      for (int t = s.begin; t < s.end; ++t) std::memcpy(to + batch.at[t], row, sizeof(T) * padded);
    }
  }
}
// In each vector every lane becomes the combination of those that hold the same head.
template <class T, class Combine>
HEED_FN Lanes<T> among_heads(Lanes<T> x, int padded, Combine combine) {
  using V = Lanes<T>;
  if (padded < 8) x = combine(x, V(__builtin_shufflevector(x.v, x.v, 4, 5, 6, 7, 0, 1, 2, 3)));
  if (padded < 4) x = combine(x, V(__builtin_shufflevector(x.v, x.v, 2, 3, 0, 1, 6, 7, 4, 5)));
  if (padded < 2) x = combine(x, V(__builtin_shufflevector(x.v, x.v, 1, 0, 3, 2, 5, 4, 7, 6)));
  return x;
}

template <class T>
struct Target {             // where the sum over a segment goes: to = from + sum
  const T* from = nullptr;  // none: 0
  T* to = nullptr;
};

// For each segment and head: to = (from + sum_t buffer[t][h]) * factor[h]. `factors` as in add_rows.
template <class T>
void add_edges(const T* buffer, const Batch& batch, int heads, int padded, const std::type_identity_t<T>* factors,
               const Target<T>* targets) {
  const int round = period(padded);
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& s = batch.segment[g];
    const Target<T>& to = targets[g];
    for (int r = 0; r < round; ++r) {
      Lanes<T> sum = T(0);
      for (int v = s.vector + r; v < s.vector + s.vectors; v += round) sum = sum + Lanes<T>::load(buffer + v * kLanes);
      sum = among_heads(sum, padded, [](Lanes<T> p, Lanes<T> q) { return p + q; });
      for (int l = 0, h = r * kLanes; l < kLanes && h < heads; ++l, ++h) {
        const T total = (to.from ? to.from[h] : T(0)) + sum.v[l];
        to.to[h] = factors && s.ends ? total * factors[(g * round + r) * kLanes + l] : total;
      }
    }
  }
}

template <class T>
struct Chunk {  // what the stages of a score read
  const Batch* batch = nullptr;
  const Batch* next = nullptr;  // whose rows of `other` are to be fetched meanwhile; or none
  int heads = 1;
  int padded = 1;
  int width = 1;                  // channels of a head
  View<const T> own;              // rows x heads*width
  View<const T> other;            // columns x heads*width
  View<const T> edge;             // entries x heads*width, or none
  const Offset* entry = nullptr;  // which of them belongs to each edge of the batch
  const T* a = nullptr;           // heads x width, or none
  // Room. With one channel a head, score_sums leaves each edge's numbers here, and score_gradient takes them up.
  T *own_buffer = nullptr, *other_buffer = nullptr, *edge_buffer = nullptr;
};

template <class T>
struct ChunkGradient {              // what the backward stages write
  T* ds = nullptr;                  // a buffer, 0 in the lanes of no edge
  const Target<T>* down = nullptr;  // for each segment, heads x width: the own side's
  T* da = nullptr;                  // heads x width, added to; may be none
  View<T> dedge;                    // entries x heads*width, written; may be none
};

// ---- sums over channels -------------------------------------------------------------------------------------------

// The address itself. Of several vectors that begin a constant number of channels after it, the compiler would
// otherwise keep each one's distance from the table in a register of its own, and spill them.
template <class T>
HEED_FN const T* one_address(const T* at) {
  asm("" : "+r"(at));
  return at;
}

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

// to[t][h] (+)= fold(sum(rows(t), h)), the sum of a vector's lanes; four at a time, of several heads or several edges.
template <bool add, class T, class Rows, class Sum>
HEED_FN void fold_heads(const Batch& batch, int heads, Rows rows, Sum sum, T* to) {
  auto put = [&](T* place, T value) { *place = add ? *place + value : value; };
  if (heads == 1) {
    int t = 0;
    for (; t + 4 <= batch.n; t += 4) {
      auto four = fold_four(sum(rows(t), 0), sum(rows(t + 1), 0), sum(rows(t + 2), 0), sum(rows(t + 3), 0));
      for (int l = 0; l < 4; ++l) put(to + batch.at[t + l], four.v[l]);
    }
    for (; t < batch.n; ++t) put(to + batch.at[t], fold(sum(rows(t), 0)));
    return;
  }
  for (int t = 0; t < batch.n; ++t) {
    const auto edge = rows(t);
    T* row = to + batch.at[t];
    int h = 0;
    for (; h + 4 <= heads; h += 4) {
      auto four = fold_four(sum(edge, h), sum(edge, h + 1), sum(edge, h + 2), sum(edge, h + 3));
      if constexpr (add) four = four + Vec<T, 4>::load(row + h);
      four.store(row + h);
    }
    for (; h < heads; ++h) put(row + h, fold(sum(edge, h)));
  }
}

// As fold_heads, for heads that come in fours and are narrow: the own side's vectors stay in registers as long as its
// row remains the same. product(own vector, the other's, the learned one's) is what channels add; the latter two are
// addresses. `a` may be null.
template <bool add, int W, class T, class Rows, class Product>
HEED_FN void fold_runs(const Batch& batch, int heads, View<const T> own, const Id* own_ids, Rows rows, const T* a,
                       Product product, T* to) {
  using V = Lanes<T>;
  constexpr int per = W / kLanes;
  if (!a) a = own.data;  // not read, and no address begins at null
  for (int h = 0; h < heads; h += 4)
    for (int t = 0; t < batch.n;) {
      const Id id = own_ids[t];
      const T* from = own.row(id) + h * W;
      V mine[4 * per];
#pragma GCC unroll 8
      for (int i = 0; i < 4 * per; ++i) mine[i] = V::load(from + i * kLanes);
      do {
        const T *row = one_address(rows(t, h == 0) + h * W), *learned = one_address(a + h * W);
        V sum[4];
#pragma GCC unroll 8
        for (int i = 0; i < 4 * per; ++i) {
          V part = product(mine[i], row + i * kLanes, learned + i * kLanes);
          sum[i / per] = i % per == 0 ? V(T(0)) + part : sum[i / per] + part;
        }
        auto four = fold_four(sum[0], sum[1], sum[2], sum[3]);
        T* place = to + batch.at[t] + h;
        if constexpr (add) four = four + Vec<T, 4>::load(place);
        four.store(place);
      } while (++t < batch.n && own_ids[t] == id);
    }
}
template <int W>
bool folds_runs(int heads) {
  return (W == 8 || W == 16) && heads % 4 == 0;
}

// to[t][h] (+)= sum_c own[h][c] * other[h][c] over row own_ids[t] of one table and row other_ids[t] of the other; where
// those are null, the row of the edge's column. Rows of `next` are fetched meanwhile, here and below, unless it is
// null.
template <class T, int W>
void dots(View<const T> own, const Id* own_ids, View<const T> other, const Offset* other_ids, const Batch& batch,
          const Batch* next, int heads, int width, bool add, T* to) {
  if constexpr (W > 0) width = W;
  auto run = [&](auto numbered) {
    struct Rows {
      const T *own, *other;
    };
    auto rows = [=, ids = batch.ids](int t) {
      prefetch_next(next, other, t);
      return Rows{own.row(own_ids[t]), numbered ? other.row(other_ids[t]) : other.row(ids[t])};
    };
    if constexpr (W == 8 || W == 16)
      if (folds_runs<W>(heads)) {
        auto row = [=, ids = batch.ids](int t, bool visit) {
          if (visit) prefetch_next(next, other, t);
          return numbered ? other.row(other_ids[t]) : other.row(ids[t]);
        };
        auto product = [](Lanes<T> mine, const T* row, const T*) { return mine * Lanes<T>::load(row); };
        if (add) return fold_runs<true, W, T>(batch, heads, own, own_ids, row, nullptr, product, to);
        return fold_runs<false, W, T>(batch, heads, own, own_ids, row, nullptr, product, to);
      }
    auto sum = [width](const Rows& r, int h) {
      Lanes<T> total = T(0);
      const T *own = r.own + h * width, *other = r.other + h * width;
      for_each_vector<W>(width, [&](int c, int tail) {
        Lanes<T> product = Lanes<T>::load(own + c) * Lanes<T>::load(other + c);
        total = total + (tail < kLanes ? keep_first(product, tail) : product);
      });
      return total;
    };
    if (add)
      fold_heads<true>(batch, heads, rows, sum, to);
    else
      fold_heads<false>(batch, heads, rows, sum, to);
  };
  if (other_ids)
    run(std::true_type{});
  else
    run(std::false_type{});
}

// G vectors that begin at channel c: to = (from + sum_t w[t][head] * row t) * factor[head]
template <class T, int W, int G, class Row>
HEED_FN void add_group(const Target<T>& x, const T* factor, const T* w, int n, int padded, const Row& row, Offset c,
                       Offset head) {
  constexpr bool wide = sizeof(T) == 4 && W % kWideLanes == 0 && G * kLanes % kWideLanes == 0;
  constexpr int lanes = W > 0 && W < kLanes ? W : (wide ? kWideLanes : kLanes);
  constexpr int count = wide ? G * kLanes / lanes : G;
  using V = Vec<T, lanes>;
  V sum[count];
#pragma GCC unroll 16
  for (int g = 0; g < count; ++g) sum[g] = x.from ? V::load(x.from + c + g * lanes) : V(T(0));
  for (int t = 0; t < n; ++t) {
    const T* from = one_address(row(t, c == 0) + c);
    const T* wt = w + t * padded + head;
#pragma GCC unroll 16
    for (int g = 0; g < count; ++g) sum[g] = sum[g] + V(wt[W > 0 ? g * lanes / W : 0]) * V::load(from + g * lanes);
  }
#pragma GCC unroll 16
  for (int g = 0; g < count; ++g) {
    if (factor) sum[g] = sum[g] * V(factor[head + (W > 0 ? g * lanes / W : 0)]);
    sum[g].store(x.to + c + g * lanes);
  }
}

// The channels [c, end) of one head, of any number.
template <class T, class Row>
HEED_FN void add_channels(const Target<T>& to, const T* factor, const T* w, int n, int padded, const Row& row, Offset c,
                          Offset end, Offset head) {
  for (; c + 8 * kLanes <= end; c += 8 * kLanes) add_group<T, 0, 8>(to, factor, w, n, padded, row, c, head);
  for (; c + 2 * kLanes <= end; c += 2 * kLanes) add_group<T, 0, 2>(to, factor, w, n, padded, row, c, head);
  for (; c + kLanes <= end; c += kLanes) add_group<T, 0, 1>(to, factor, w, n, padded, row, c, head);
  if (c == end) return;
  Lanes<T> sum = to.from ? Lanes<T>::load(to.from + c) : Lanes<T>(T(0));
  for (int t = 0; t < n; ++t) sum = sum + Lanes<T>(w[t * padded + head]) * Lanes<T>::load(row(t, c == 0) + c);
  if (factor) sum = sum * Lanes<T>(factor[head]);
  store_first(sum, static_cast<int>(end - c), to.to + c);
}

// For each segment and head: to = (from + sum_t w[t][h] * rows[t][h]) * factor[h]. `rows` are those of the batch's
// columns, or `ids` where they are given. `factors` holds period(padded) vectors a segment, for those that end their
// row; none: 1.
template <class T, int W>
void add_rows(const Target<T>* targets, const T* factors, const T* w, View<const T> rows, const Offset* ids,
              const Batch& batch, const Batch* next, int heads, int padded, int width) {
  // Inline, lest a segment wait for its own arguments on their way through memory.
  auto segment = [&](const Target<T>& to, const T* factor, const T* w, int n, auto row) __attribute__((always_inline)) {
    if constexpr (W > 0) {
      constexpr int lanes = W < kLanes ? W : kLanes;
      Offset total = heads * W, c = 0;
      for (; c + 8 * lanes <= total; c += 8 * lanes) add_group<T, W, 8>(to, factor, w, n, padded, row, c, c / W);
      if (c + 4 * lanes <= total) add_group<T, W, 4>(to, factor, w, n, padded, row, c, c / W), c += 4 * lanes;
      if (c + 2 * lanes <= total) add_group<T, W, 2>(to, factor, w, n, padded, row, c, c / W), c += 2 * lanes;
      if (c < total) add_group<T, W, 1>(to, factor, w, n, padded, row, c, c / W);
    } else {
      for (int h = 0; h < heads; ++h) add_channels(to, factor, w, n, padded, row, h * width, (h + 1) * width, h);
    }
  };
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& s = batch.segment[g];
    const T* ws = w + s.vector * kLanes;
    const T* factor = factors && s.ends ? factors + g * period(padded) * kLanes : nullptr;
    if (ids)
      segment(targets[g], factor, ws, s.edges(),
              [=, first = ids + s.begin](int t, bool) { return rows.row(first[t]); });
    else
      segment(targets[g], factor, ws, s.edges(), [=, first = batch.ids + s.begin, begin = s.begin](int t, bool visit) {
        if (visit) prefetch_next(next, rows, begin + t);
        return rows.row(first[t]);
      });
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

// One channel a head: the edges' numbers of a table in a buffer, so that lanes run over heads and edges.
template <class T>
void gather_edges(const Chunk<T>& x, T* to) {
  for (int t = 0; t < x.batch->n; ++t)
    std::memcpy(to + x.batch->at[t], x.edge.row(x.entry[t]), sizeof(T) * static_cast<std::size_t>(x.heads));
}

// to[t][h] = sum_c term(...)
template <class S, class T, bool own_is_query, int W>
void score_sums(const void* self, const Chunk<T>& x, T* to) {
  using V = Lanes<T>;
  const S score = *static_cast<const S*>(self);
  const Batch& batch = *x.batch;
  auto run = [&](auto with_edge) {
    constexpr bool has_edge = decltype(with_edge)::value;
    auto learned = [](const T* a) {
      if constexpr (reads_vector<S, V>)
        return V::load(a);
      else
        return Zero{};
    };
    auto edge = [](const T* e) {
      if constexpr (has_edge)
        return V::load(e);
      else
        return Zero{};
    };
    if constexpr (W == 1) {
      T *own = x.own_buffer, *other = x.other_buffer, *e = x.edge_buffer, a[kHeadBuffer];
      const int round = period(x.padded);
      for (T* buffer : {other, e}) clear_tails(batch, x.padded, buffer);
      repeat(x.own, batch, x.padded, own);
      gather(x.other, batch.ids, batch.at, batch.n, x.padded, other, x.next);
      if constexpr (has_edge) gather_edges(x, e);
      if constexpr (reads_vector<S, V>) spread(x.a, x.heads, x.padded, a);
      (void)a;
      for (int i = 0; i < batch.vectors; ++i) {
        const int at = i * kLanes;
        V value = term<own_is_query>(score, V::load(own + at), V::load(other + at), edge(e + at),
                                     learned(a + i % round * kLanes));
        value.store(to + at);
      }
    } else {
      const int width = W > 0 ? W : x.width;
      struct Rows {
        const T *own, *other, *edge;
      };
      auto rows = [x](int t) {
        prefetch_next(x.next, x.other, t);
        return Rows{x.own.row(x.batch->rows[t]), x.other.row(x.batch->ids[t]),
                    has_edge ? x.edge.row(x.entry[t]) : x.own.data};
      };
      if constexpr ((W == 8 || W == 16) && !has_edge)
        if (folds_runs<W>(x.heads)) {
          auto row = [=](int t, bool visit) {
            if (visit) prefetch_next(x.next, x.other, t);
            return x.other.row(x.batch->ids[t]);
          };
          auto product = [=](V mine, const T* row, const T* a) {
            return term<own_is_query>(score, mine, V::load(row), Zero{}, learned(a));
          };
          return fold_runs<false, W>(batch, x.heads, x.own, batch.rows, row, x.a, product, to);
        }
      auto sum = [=, a = x.a ? x.a : x.own.data](const Rows& r, int h) {
        V total = T(0);
        const int at = h * width;
        const T *own = r.own + at, *other = r.other + at, *e = r.edge + at, *vector = a + at;
        for_each_vector<W>(width, [&](int c, int tail) {
          V value = term<own_is_query>(score, V::load(own + c), V::load(other + c), edge(e + c), learned(vector + c));
          total = total + (tail < kLanes ? keep_first(value, tail) : value);
        });
        return total;
      };
      fold_heads<false>(batch, x.heads, rows, sum, to);
    }
  };
  if (x.edge)
    run(std::true_type{});
  else if constexpr (!own_is_query && symmetric_of<S>)
    score_sums<S, T, true, W>(self, x, to);
  else
    run(std::false_type{});
}

// From ds, the gradient of the sums: own side, learned vector and edge features.
template <class S, class T, bool own_is_query, int W>
void score_gradient(const void* self, const Chunk<T>& x, const ChunkGradient<T>& g) {
  using V = Lanes<T>;
  const S score = *static_cast<const S*>(self);
  const Batch& batch = *x.batch;
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
      T *own = x.own_buffer, *other = x.other_buffer, *e = x.edge_buffer, a[kHeadBuffer], da[kHeadBuffer];
      const int round = period(x.padded);
      if constexpr (mask & 2) {
        spread(x.a, x.heads, x.padded, a);
        std::fill_n(da, round * kLanes, T(0));
      }
      for (int i = 0; i < batch.vectors; ++i) {
        const int r = i % round * kLanes, at = i * kLanes;
        V et = T(0);
        if constexpr (has_edge) et = V::load(e + at);
        V av = (mask & 2) ? V::load(a + r) : V(T(0));
        auto y = evaluate(V::load(own + at), V::load(other + at), et, av);
        V ds = V::load(g.ds + at);
        if constexpr (mask & 1) (ds * y.d[0]).store(own + at);
        if constexpr (mask & 2) (V::load(da + r) + ds * y.d[1]).store(da + r);
        if constexpr (has_edge) {
          if constexpr (mask & 4)
            (ds * y.d[2]).store(e + at);
          else
            V(T(0)).store(e + at);
        }
      }
      if constexpr (!(mask & 1)) std::fill_n(own, batch.vectors * kLanes, T(0));
      add_edges(own, batch, x.heads, x.padded, nullptr, g.down);
      if constexpr (mask & 2)
        if (g.da) collect(da, x.heads, x.padded, g.da);
      if constexpr (has_edge)
        if (g.dedge)
          for (int t = 0; t < batch.n; ++t) std::copy_n(e + batch.at[t], x.heads, g.dedge.row(x.entry[t]));
    } else {
      // Groups of vectors that stay in registers: of several heads where these are narrow.
      auto group = [&]<int G>(Offset at, int head, int tail) {
        V a[G], da[G];
#pragma GCC unroll 8
        for (int i = 0; i < G; ++i) {
          a[i] = da[i] = T(0);
          if constexpr (mask & 2) a[i] = V::load(x.a + at + i * kLanes);
        }
        for (int r = 0; r < batch.segments; ++r) {
          const Segment& s = batch.segment[r];
          const T* ds = g.ds + s.vector * kLanes + head;
          const T* row = x.own.row(s.row) + at;
          V own[G], down[G];
#pragma GCC unroll 8
          for (int i = 0; i < G; ++i) own[i] = V::load(row + i * kLanes), down[i] = T(0);
          for (int t = s.begin; t < s.end; ++t, ds += x.padded) {
            const T* other = one_address(x.other.row(batch.ids[t]) + at);
#pragma GCC unroll 8
            for (int i = 0; i < G; ++i) {
              const int k = i * kLanes;
              V e = T(0), d = ds[W > 0 ? k / (W > 0 ? W : 1) : 0];
              if constexpr (has_edge) e = V::load(x.edge.row(x.entry[t]) + at + k);
              auto y = evaluate(own[i], V::load(other + k), e, a[i]);
              if constexpr (mask & 1) down[i] = down[i] + d * y.d[0];
              if constexpr (mask & 2) da[i] = da[i] + d * y.d[1];
            }
          }
          const Target<T>& to = g.down[r];
#pragma GCC unroll 8
          for (int i = 0; i < G; ++i) {
            const int k = at + i * kLanes;
            store_first(to.from ? V::load(to.from + k) + down[i] : down[i], tail, to.to + k);
          }
        }
        if constexpr (mask & 2)
          if (g.da)
#pragma GCC unroll 8
            for (int i = 0; i < G; ++i) {
              T* to = g.da + at + i * kLanes;
              store_first(V::load(to) + da[i], tail, to);
            }
      };
      if constexpr (W > 0) {
        const int total = x.heads * W;
        int c = 0;
        for (; c + 4 * kLanes <= total; c += 4 * kLanes) group.template operator()<4>(c, c / W, kLanes);
        if (c + 2 * kLanes <= total) group.template operator()<2>(c, c / W, kLanes), c += 2 * kLanes;
        if (c < total) group.template operator()<1>(c, c / W, kLanes);
      } else {
        for (int h = 0; h < x.heads; ++h)
          for (int c = 0; c < x.width; c += kLanes)
            group.template operator()<1>(h * x.width + c, h, std::min(x.width - c, kLanes));
      }
      // A loop of its own, lest products that it shares with the sums above keep them from fused multiply-adds.
      if constexpr (has_edge && own_is_query)
        if (g.dedge)
          for (int t = 0; t < batch.n; ++t)
            for (int h = 0; h < x.heads; ++h) {
              const int width = W > 0 ? W : x.width, at = h * width;
              const T *own = x.own.row(batch.rows[t]) + at, *other = x.other.row(batch.ids[t]) + at;
              const T* e = x.edge.row(x.entry[t]) + at;
              T* to = g.dedge.row(x.entry[t]) + at;
              const V ds = g.ds[batch.at[t] + h];
              for_each_vector<W>(width, [&](int c, int tail) {
                V a = T(0), de = T(0);
                if constexpr (mask & 2) a = V::load(x.a + at + c);
                auto y = evaluate(V::load(own + c), V::load(other + c), V::load(e + c), a);
                if constexpr (mask & 4) de = ds * y.d[2];
                store_first(de, tail, to + c);
              });
            }
    }
  };
  if (x.edge)
    run(std::true_type{});
  else if constexpr (!own_is_query && symmetric_of<S>)
    score_gradient<S, T, true, W>(self, x, g);
  else
    run(std::false_type{});
}

// s = scale e^-t finish(sum, p, width), elementwise; `p` holds runs of period(padded) vectors.
template <class S, class T>
void score_finish(const void* self, const T* sums, const Finish<T>& f, int vectors, int padded, T* to) {
  using V = Lanes<T>;
  const S& score = *static_cast<const S*>(self);
  const int round = period(padded);
  for (int r = 0; r < round; ++r) {  // the heads of which scalars are the same
    V scalar[scalars_of<S> + 1], factor = V(f.scale);
    for (int i = 0; i < scalars_of<S> + f.tempered; ++i) scalar[i] = V::load(f.p + (i * round + r) * kLanes);
    if (f.tempered) factor = factor * exp_of(-scalar[scalars_of<S>]);
    for (int t = r; t < vectors; t += round)
      (finished(score, V::load(sums + t * kLanes), scalar, f.width) * factor).store(to + t * kLanes);
  }
}

// ds becomes the gradient of the sums; dp (like p) is added to.
template <class S, class T>
void score_finish_gradient(const void* self, const T* sums, const Finish<T>& f, int vectors, int padded, T* ds, T* dp) {
  using V = Lanes<T>;
  constexpr int scalars = scalars_of<S>;
  using X = Jet<V, (2u << scalars) - 1>;  // by the sum, and by each scalar
  const S& score = *static_cast<const S*>(self);
  const int round = period(padded);
  for (int r = 0; r < round; ++r) {
    auto place = [&](int i) { return (i * round + r) * kLanes; };
    X scalar[scalars + 1];
    V factor = V(f.scale), total[scalars + 1];
    for (int i = 0; i < scalars; ++i) {
      scalar[i] = X(V::load(f.p + place(i)));
      scalar[i].d[i + 1] = V(T(1));
    }
    for (V& sum : total) sum = T(0);
    if (f.tempered) factor = factor * exp_of(-V::load(f.p + place(scalars)));
    for (int t = r; t < vectors; t += round) {
      X sum(V::load(sums + t * kLanes));
      sum.d[0] = V(T(1));
      const X y = finished(score, sum, scalar, f.width);
      const V d = V::load(ds + t * kLanes) * factor;
      for (int i = 0; i < scalars; ++i) total[i] = total[i] + d * y.d[i + 1];
      total[scalars] = total[scalars] - d * y.v;
      (d * y.d[0]).store(ds + t * kLanes);
    }
    if (!dp) continue;
    for (int i = 0; i < scalars + f.tempered; ++i) (V::load(dp + place(i)) + total[i]).store(dp + place(i));
  }
}

// ---- the normaliser's stages --------------------------------------------------------------------------------------

template <class T>
struct RowState {  // of a row that is cut: what its edges so far leave to the next ones; each period(padded) vectors
  T* shift;        // running maximum, -inf at first
  T* total;        // sum of raw weights
  T* rescale;      // what the sums so far must be multiplied with
};

// Scores become raw weights, in place. A segment that ends its row gets tau and factor (period(padded) vectors each);
// one that does not leaves its state, which the next one takes up.
template <class N, class T>
void normaliser_raw(T* s, const Batch& batch, int padded, const RowState<T>& state, T* tau, T* factor) {
  using V = Lanes<T>;
  const N normaliser{};
  const int round = period(padded);
  const T none = -__builtin_inff();
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& segment = batch.segment[g];
    T* const first = s + segment.vector * kLanes;
    const int count = segment.vectors, tail = segment.tail(padded);
    if (tail < kLanes) {
      T* last = first + (count - 1) * kLanes;
      keep_first(V::load(last), tail, none).store(last);
    }
    for (int r = 0; r < round; ++r) {
      V old = none, before = T(0);
      if (!segment.starts) old = V::load(state.shift + r * kLanes), before = V::load(state.total + r * kLanes);
      V shift = old, use = T(0), total = T(0);
      if constexpr (N::shifts) {
        for (int t = r; t < count; t += round) {
          V x = V::load(first + t * kLanes);
          shift = select(x > shift, x, shift);
        }
        shift = among_heads(shift, padded, [](V p, V q) { return select(q > p, q, p); });
        use = select(shift > V(none), shift, V(T(0)));
      }
      for (int t = r; t < count; t += round) {
        V w = raw_weight(normaliser, V::load(first + t * kLanes), use);
        w.store(first + t * kLanes);
        total = total + (t == count - 1 && tail < kLanes ? keep_first(w, tail) : w);
      }
      if constexpr (N::couples) {
        total = among_heads(total, padded, [](V p, V q) { return p + q; });
        if (!segment.starts) {
          V rescale = T(1);
          if constexpr (N::shifts) rescale = select(old > V(none), exp_of(old - use), V(T(0)));
          rescale.store(state.rescale + r * kLanes);
          total = before * rescale + total;
        }
      }
      if (segment.ends) {
        auto x = closed(normaliser, shift, total);
        x.tau.store(tau + (g * round + r) * kLanes);
        x.factor.store(factor + (g * round + r) * kLanes);
      } else {
        shift.store(state.shift + r * kLanes);
        total.store(state.total + r * kLanes);
      }
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

// tau and the factor of the finished row: period(padded) vectors each.
template <class N, class T>
void normaliser_close(const RowState<T>& state, int padded, T* tau, T* factor) {
  using V = Lanes<T>;
  for (int at = 0; at < period(padded) * kLanes; at += kLanes) {
    auto x = closed(N{}, V::load(state.shift + at), V::load(state.total + at));
    x.tau.store(tau + at);
    x.factor.store(factor + at);
  }
}

// The lanes of no edge become 0.
template <class T>
void clear_unused(T* buffer, const Batch& batch, int padded) {
  using V = Lanes<T>;
  if (padded >= kLanes) return;
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& segment = batch.segment[g];
    const int tail = segment.tail(padded), at = (segment.vector + segment.vectors - 1) * kLanes;
    if (tail < kLanes) keep_first(V::load(buffer + at), tail).store(buffer + at);
  }
}

// Scores become weights and dw becomes ds, in place, from buffers of tau and delta. `keep` (or none) holds dropout's
// factors. ds is 0 in the lanes of no edge.
template <class N, class T>
void normaliser_gradient(T* s, T* dw, const T* tau, const T* delta, const T* keep, const Batch& batch, int padded) {
  using V = Lanes<T>;
  const N normaliser{};
  auto run = [&](auto drops) {
    for (int at = 0; at < batch.vectors * kLanes; at += kLanes) {
      const V score = V::load(s + at), threshold = V::load(tau + at), w = normaliser.weight(score, threshold);
      V d = V::load(dw + at), kept = w;
      if constexpr (decltype(drops)::value) {
        V factor = V::load(keep + at);
        d = d * factor;
        kept = w * factor;
      }
      V ds = normaliser.slope(score, w, threshold) * d;
      if constexpr (N::couples) ds = ds - normaliser.share(score, w, threshold) * V::load(delta + at);
      kept.store(s + at);
      ds.store(dw + at);
    }
  };
  if (keep)
    run(std::true_type{});
  else
    run(std::false_type{});
  clear_unused(dw, batch, padded);
}

// Scores become weights, in place, from a buffer of tau.
template <class N, class T>
void normaliser_weigh(T* s, const T* tau, int vectors) {
  using V = Lanes<T>;
  for (int at = 0; at < vectors * kLanes; at += kLanes) N{}.weight(V::load(s + at), V::load(tau + at)).store(s + at);
}

// The terms of delta: scores become shares and dw becomes drain times dw, in place. 0 in the lanes of no edge.
template <class N, class T>
void normaliser_measure(T* s, T* dw, const T* tau, const T* keep, const Batch& batch, int padded) {
  using V = Lanes<T>;
  const N normaliser{};
  for (int at = 0; at < batch.vectors * kLanes; at += kLanes) {
    const V score = V::load(s + at), threshold = V::load(tau + at), w = normaliser.weight(score, threshold);
    V d = V::load(dw + at);
    if (keep) d = d * V::load(keep + at);
    (normaliser.drain(score, w, threshold) * d).store(dw + at);
    normaliser.share(score, w, threshold).store(s + at);
  }
  clear_unused(s, batch, padded), clear_unused(dw, batch, padded);
}

// tau of a row from its scores, or those of them that may count.
template <class N, class T>
T normaliser_solve(const T* s, std::size_t n) {
  thread_local std::vector<double> best;
  best.clear();
  double top = -__builtin_inf();
  for (std::size_t t = 0; t < n; ++t) top = std::max<double>(top, s[t]);
  if (!(top > -__builtin_inf())) return T(__builtin_inff());
  for (std::size_t t = 0; t < n; ++t)
    if (s[t] - top > -N::reach) best.push_back(s[t] - top);
  std::sort(best.begin(), best.end(), std::greater<>());
  return static_cast<T>(top + N::solve(best.data(), best.size()));
}

}  // namespace heed::stages
