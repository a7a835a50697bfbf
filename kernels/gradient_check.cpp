#include "kernels/gradient_check.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention.h"

namespace heed {

double gradient_error(const Score& score) {
  constexpr int kHeads = 2, kNodes = 4;
  constexpr double kStep = 1e-5;
  const Offset channels = kHeads * (score.contracts ? 1 : 6);
  Csr all{.rows = kNodes, .cols = kNodes};
  for (Id i = 0; i < kNodes; ++i) {
    for (Id j = 0; j < kNodes; ++j) all.ids.push_back(j);
    all.offsets.push_back(all.edges());
  }
  const auto pattern = Pattern::listed(std::make_shared<const Csr>(std::move(all)));
  const Normaliser none = normaliser_named("none");  // y is linear in the scores
  Random random(1);
  auto draw = [&](Offset rows, Offset cols, double size = 0.5) {
    Matrix<double> out(rows, cols);
    for (double& x : out) x = size * random.normal();
    return out;
  };
  Matrix<double> q = draw(kNodes, channels), k = draw(kNodes, channels), v = draw(kNodes, kHeads);
  Matrix<double> e = draw(pattern->edges(), channels), a = draw(1, channels), p = draw(score.scalars, kHeads, 0.1);
  for (int i = 0; i < score.scalars; ++i)
    for (int h = 0; h < kHeads; ++h) p(i, h) += score.start[static_cast<std::size_t>(i)];
  Matrix<double> y(kNodes, kHeads), dy = draw(kNodes, kHeads);
  AttentionState<double> state;
  double worst = 0;
  for (const bool edges : {false, true}) {  // scores may have stages of their own for either
    auto loss = [&] {
      Attention<double> x{pattern.get(), &score, &none, kHeads, q.view(), k.view(), v.view()};
      if (edges) x.e = e.view();
      if (score.reads_vector) x.a = a.view();
      if (score.scalars > 0) x.p = p.view();
      attention(x, y.view(), state);
      double sum = 0;
      for (Offset t = 0; t < y.size(); ++t) sum += y.data()[t] * dy.data()[t];
      return std::pair{sum, x};
    };
    Matrix<double> dq = q, dk = k, de = e, da = a, dp = p;
    AttentionGradient<double> g{.dq = {dq.view()}, .dk = {dk.view()}};
    if (edges) g.de = {de.view()};
    if (score.reads_vector) g.da = {da.view()};
    if (score.scalars > 0) g.dp = {dp.view()};
    attention_gradient<double>(loss().second, std::as_const(y).view(), std::as_const(dy).view(), state, g);

    for (auto [x, gradient] : {std::pair{&q, &dq}, {&k, &dk}, {&e, &de}, {&a, &da}, {&p, &dp}}) {
      if ((x == &e && !edges) || (x == &a && !score.reads_vector) || x->empty()) continue;
      double largest = 1e-3;
      for (double each : *gradient) largest = std::max(largest, std::abs(each));
      for (Offset t = 0; t < x->size(); ++t) {
        double& at = x->data()[t];
        const double old = at;
        at = old + kStep;
        const double up = loss().first;
        at = old - kStep;
        const double down = loss().first;
        at = old;
        const double error = std::abs((up - down) / (2 * kStep) - gradient->data()[t]) / largest;
        worst = std::max(worst, std::isfinite(error) ? error : INFINITY);
      }
    }
  }
  return worst;
}

}  // namespace heed
