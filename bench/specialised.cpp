// A yardstick of the fused operator: forward attention written by hand for one score (dot or GAT), softmax and one
// shape, all in one loop over a row's edges.
#include "bench/operands.h"
#include "kernels/wide.h"

namespace heed::bench {
namespace {

using V = Vec<float, 8>;
using Wide = Vec<float, kWideLanes>;

constexpr Offset kTogether = 32;  // edges whose scores wait for their maximum

struct Call {  // what a kernel reads and writes
  const Csr& list;
  View<const float> q, k, v;
  View<float> y;    // queries x heads*width
  View<float> tau;  // queries x heads
};

void prefetch(View<const float> table, Id row) {
  for (Offset c = 0; c < table.cols; c += 16) __builtin_prefetch(table.row(row) + c);
}

// In vectors where the heads repeat: all lanes of a head get what they hold together.
template <int heads, class Combine>
V among(V x, Combine combine) {
  if constexpr (heads == 4) return combine(x, V(__builtin_shufflevector(x.v, x.v, 4, 5, 6, 7, 0, 1, 2, 3)));
  return x;
}

template <bool gat, int heads, int width>
void run_rows(const Call& x, Id first, Id last) {
  constexpr int vectors = heads * width / 8, per = width / 8, times = kWideLanes / 8, wides = vectors / times;
  static_assert((heads == 4 || heads == 8) && width % 8 == 0);
  const float none = -__builtin_inff();
  const Id* const ids = x.list.ids.data();
  const Offset end_of_all = x.list.offsets[last];
  for (Id i = first; i < last; ++i) {
    V acc[vectors], query[gat ? 1 : vectors], top = none, total = 0.0f;
    for (V& sum : acc) sum = 0.0f;
    if constexpr (gat) {
      float own[8];
      for (int l = 0; l < 8; ++l) own[l] = x.q(i, l % heads);
      query[0] = V::load(own);
    } else {
      for (int g = 0; g < vectors; ++g) query[g] = V::load(x.q.row(i) + 8 * g);
    }
    for (Offset at = x.list.offsets[i], end = x.list.offsets[i + 1]; at < end; at += kTogether) {
      const int n = static_cast<int>(std::min(kTogether, end - at)), used = (n * heads + 7) / 8;
      alignas(64) float s[kTogether * heads + 8];
      V(none).store(s + (used - 1) * 8);
      for (int t = 0; t < n; ++t) {
        if (at + t + kTogether < end_of_all) {
          const Id next = ids[at + t + kTogether];
          prefetch(x.k, next);
        }
        const float* key = x.k.row(ids[at + t]);
        if constexpr (gat) {
          std::memcpy(s + t * heads, key, sizeof(float) * heads);
        } else {
          for (int h = 0; h < heads; h += 4) {
            V sum[4];
#pragma GCC unroll 4
            for (int l = 0; l < 4; ++l) {
              sum[l] = query[(h + l) * per] * V::load(key + (h + l) * width);
#pragma GCC unroll 4
              for (int c = 1; c < per; ++c)
                sum[l] = sum[l] + query[(h + l) * per + c] * V::load(key + (h + l) * width + c * 8);
            }
            fold_four(sum[0], sum[1], sum[2], sum[3]).store(s + t * heads + h);
          }
        }
      }
      auto larger = [](V a, V b) { return select(b > a, b, a); };
      V best = top;
      for (int g = 0; g < used; ++g) {
        V z = V::load(s + 8 * g);
        if constexpr (gat) {
          z = z + query[0], z = select(z > V(0.0f), z, z * V(0.2f));
          if (g == used - 1 && (n * heads) % 8 != 0) z = keep_first(z, (n * heads) % 8, none);
          z.store(s + 8 * g);
        }
        best = larger(best, z);
      }
      best = among<heads>(best, larger);
      const V rescale = select(top > V(none), exp_of(top - best), V(0.0f));
      top = best, total = total * rescale;
      if (used % times != 0) V(none).store(s + 8 * used);
      const V tops[] = {top, top};
      const Wide shift = joined<kWideLanes>(tops);
      for (int g = 0; g < used; g += times) {
        const Wide w = exp_of(Wide::load(s + 8 * g) - shift);
        w.store(s + 8 * g);
        V each[times];
        split(w, each);
        for (V some : each) total = total + some;
      }
#pragma GCC unroll 16
      for (int g = 0; g < vectors; ++g) acc[g] = acc[g] * V(rescale.v[g / per]);
      Wide sum[wides];
#pragma GCC unroll 16
      for (int g = 0; g < wides; ++g) sum[g] = joined<kWideLanes>(acc + g * times);
      for (int t = 0; t < n; ++t) {
        const float* value = x.v.row(ids[at + t]);
        if (at + t + kTogether < end_of_all) prefetch(x.v, ids[at + t + kTogether]);
        [&]<int... g>(std::integer_sequence<int, g...>) __attribute__((always_inline)) {
          ((sum[g] = sum[g] + of_heads<kWideLanes, width, g>(s + t * heads) * Wide::load(value + kWideLanes * g)), ...);
        }(std::make_integer_sequence<int, wides>{});
      }
#pragma GCC unroll 16
      for (int g = 0; g < wides; ++g) split(sum[g], acc + g * times);
    }
    total = among<heads>(total, [](V a, V b) { return a + b; });
    const auto some = total > V(0.0f);
    const V factor = select(some, V(1.0f) / total, V(0.0f)),
            tau = select(some, top + log_of(total), V(__builtin_inff()));
    for (int g = 0; g < vectors; ++g) (acc[g] * V(factor.v[g / per])).store(x.y.row(i) + 8 * g);
    std::memcpy(x.tau.row(i), &tau.v, sizeof(float) * heads);
  }
}

using Run = void (*)(const Call&, Id, Id);
Run kernel_for(const Input& in) {
  const bool dot = in.score.name == "dot", gat = in.score.name == "gat";
  if (!(dot || gat) || in.normaliser.name != "softmax") return nullptr;
  if (in.heads == 4 && in.channels == 16) return dot ? run_rows<false, 4, 16> : run_rows<true, 4, 16>;
  if (in.heads == 8 && in.channels == 8) return dot ? run_rows<false, 8, 8> : run_rows<true, 8, 8>;
  return nullptr;
}

}  // namespace

void column_sums(const Matrix<float>& v, float* sums, Matrix<float>& pieces) {
  constexpr Offset kWidth = 64;
  if (v.cols() != kWidth) fail("column sums are written for 64 columns");
  std::fill_n(sums, v.cols(), 0.0f);
  ordered_sums(v.rows(), 2048, v.cols(), sums, pieces, [&](Offset begin, Offset end, float* acc) {
    float sum[kWidth] = {};
    for (Offset i = begin; i < end; ++i)
      for (Offset c = 0; c < kWidth; ++c) sum[c] += v(i, c);
    std::copy_n(sum, kWidth, acc);
  });
}

bool has_specialised(const Input& in) { return kernel_for(in) != nullptr; }

Work make_specialised(const Input& in) {
  struct Data {
    Operands<float> x;
    Run run;
    Matrix<float> y, tau;
  };
  auto d = std::make_shared<Data>(Data{Operands<float>(in), kernel_for(in), {}, {}});
  Work out{.forward =
               [d] {
                 const Operands<float>& x = d->x;
                 const Rows& rows = x.pattern->by_query;
                 d->y.resize(x.dy.rows(), x.dy.cols()), d->tau.resize(x.dy.rows(), x.heads);
                 const Call all{*rows.list, x.q.view(), x.k.view(), x.value().view(), d->y.view(), d->tau.view()};
                 parallel_pieces(static_cast<Offset>(rows.blocks.size()), 1, [&](Offset at, Offset) {
                   const Block& block = rows.blocks[static_cast<std::size_t>(at)];
                   const bool whole = block.part < 0;
                   if (whole || block.begin == 0) d->run(all, block.first, whole ? block.last : block.first + 1);
                 });
               },
           .backward = {},
           .edges = in.pattern->edges(),
           .data = d};
  out.verify = [d, in] {
    Operands<double> x(in);
    x.forward();
    Matrix<float> tau = d->tau;
    Matrix<double>& expected = x.state.tau;  // infinite where a query sees nobody
    for (Offset t = 0; t < tau.size(); ++t)
      if (std::isinf(tau.data()[t]) && std::isinf(expected.data()[t])) tau.data()[t] = 0, expected.data()[t] = 0;
    expect_near("y", d->y, x.y), expect_near("tau", tau, expected);
  };
  return out;
}

}  // namespace heed::bench
