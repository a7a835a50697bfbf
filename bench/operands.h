// What measurements of the fused operator share: operands drawn at random, and results held against what they must be.
#pragma once

#include <cmath>

#include "bench/bench.h"
#include "kernels/parallel.h"
#include "kernels/random.h"

namespace heed::bench {

template <class T>
Matrix<T> random_matrix(Offset rows, Offset cols, std::uint64_t key) {
  Matrix<T> out(rows, cols);
  parallel_pieces(out.size(), kElementGrain, [&](Offset begin, Offset end) {
    for (Offset t = begin; t < end; ++t) out.data()[t] = static_cast<T>(static_cast<float>(normal(key, t)));
  });
  return out;
}

// Throws Error where two results differ by more than float's rounding over long sums. What may cancel is measured
// against `floor`.
template <class T>
void expect_near(const char* what, const Matrix<float>& x, const Matrix<T>& expected, double floor = 0) {
  double error = 0, norm = floor * floor;
  for (Offset t = 0; t < expected.size(); ++t) {
    const double want = static_cast<double>(expected.data()[t]), d = static_cast<double>(x.data()[t]) - want;
    error += d * d, norm += want * want;
  }
  if (x.size() != expected.size() || !(error <= 1e-8 * norm))
    fail(std::string("verification failed: ") + what + " is off by " + std::to_string(std::sqrt(error / norm)));
}

template <class T>
struct Operands {
  Score score;
  Normaliser normaliser;
  std::shared_ptr<const Pattern> pattern;
  int heads;
  bool shared;  // key and value are one table (GATv2)
  Matrix<T> q, k, v, a, p, y, dy, dq, dk, dv, da, dp;
  AttentionState<T> state;

  explicit Operands(const Input& in)
      : score(in.score),
        normaliser(in.normaliser),
        pattern(in.pattern),
        heads(in.heads),
        shared(in.score.name == "gatv2") {
    const Offset width = in.heads * in.channels, score_width = score.contracts ? in.heads : width;
    q = random_matrix<T>(pattern->queries(), score_width, mix(in.seed, 1));
    k = random_matrix<T>(pattern->keys(), score_width, mix(in.seed, 2));
    // Scores of unit size, whatever the width: what is far out is weighed 0 by any normaliser.
    // In float for both types: rounded apart, a q + k near a kink could lie on either side.
    const float scale = 1 / std::sqrt(static_cast<float>(score_width / heads));
    auto scaled = [&](T x) { return static_cast<T>(static_cast<float>(x) * scale); };
    if (!score.contracts)
      for (T& x : q) x = scaled(x);
    if (!shared) v = random_matrix<T>(pattern->keys(), width, mix(in.seed, 3));
    dy = random_matrix<T>(pattern->queries(), width, mix(in.seed, 4));
    if (score.reads_vector) a = random_matrix<T>(1, score_width, mix(in.seed, 5));
    for (T& x : a) x = scaled(x);
    if (score.scalars > 0) p = random_matrix<T>(score.scalars, in.heads, mix(in.seed, 6));
  }
  const Matrix<T>& value() const { return shared ? k : v; }

  Attention<T> call() const {
    auto view = [](const Matrix<T>& x) { return x.empty() ? View<const T>{} : x.view(); };
    return {.pattern = pattern.get(),
            .score = &score,
            .normaliser = &normaliser,
            .heads = heads,
            .q = q.view(),
            .k = k.view(),
            .v = value().view(),
            .a = view(a),
            .p = view(p),
            .e = {},
            .bias = {},
            .ev = {},
            .dropout = {}};
  }
  void forward() {
    y.resize(dy.rows(), dy.cols());
    attention(call(), y.view(), state);
  }
  void backward() {
    const AttentionGradient<T> g = gradient();
    attention_gradient(call(), std::as_const(y).view(), std::as_const(dy).view(), state, g);
  }
  // Makes the results of both passes, which are made at their first call otherwise.
  void reserve() {
    y.resize(dy.rows(), dy.cols());
    gradient();
  }

 private:
  AttentionGradient<T> gradient() {
    AttentionGradient<T> g;
    auto sink = [](Matrix<T>& d, const Matrix<T>& value) {
      d.resize(value.rows(), value.cols());
      return value.empty() ? Sink<T>{} : Sink<T>{d.view(), false};
    };
    g.dq = sink(dq, q), g.dk = sink(dk, k), g.da = sink(da, a), g.dp = sink(dp, p);
    g.dv = shared ? Sink<T>{dk.view(), true} : sink(dv, v);
    return g;
  }
};

}  // namespace heed::bench
