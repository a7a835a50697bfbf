#include "train/optimiser.h"

#include <algorithm>
#include <cmath>

#include "kernels/parallel.h"

namespace heed {

const std::vector<std::string>& rule_names() {
  static const std::vector<std::string> names{"adam", "adamw", "sgd"};
  return names;
}

Rule rule_named(const std::string& name) { return static_cast<Rule>(choose("optimiser", name, rule_names())); }

template <class T>
Optimiser<T>::Optimiser(std::deque<Parameter<T>>& parameters, const OptimiserOptions& options) : options_(options) {
  for (auto& p : parameters) {
    if (!p.trained) continue;
    Moments& m = moments.emplace_back();
    m.parameter = &p;
    m.first.resize(p.value.rows(), p.value.cols());
    if (options.rule != Rule::sgd) m.second.resize(p.value.rows(), p.value.cols());
  }
}

// What the gradients are multiplied with. The squares are summed in double: their range is twice that of a float.
template <class T>
T Optimiser<T>::clipping() {
  if (options_.clip <= 0) return 1;
  double square = 0;
  Matrix<double> pieces;
  for (const Moments& m : moments) {
    const Matrix<T>& grad = m.parameter->grad;
    ordered_sums(grad.size(), kElementGrain, 1, &square, pieces, [&](Offset begin, Offset end, double* acc) {
      for (Offset t = begin; t < end; ++t) *acc += static_cast<double>(grad.data()[t]) * grad.data()[t];
    });
  }
  const double norm = std::sqrt(square);
  return static_cast<T>(norm > options_.clip ? options_.clip / norm : 1);
}

template <class T>
void Optimiser<T>::step(double factor) {
  ++steps;
  const bool adam = options_.rule != Rule::sgd, decoupled = options_.rule == Rule::adamw;
  const double rate = options_.rate * factor;
  const T scale = clipping();
  const T l2 = static_cast<T>(decoupled ? 0 : options_.decay);
  const T shrink = static_cast<T>(decoupled ? 1 - rate * options_.decay : 1);
  const T momentum = static_cast<T>(options_.momentum);
  const T beta1 = static_cast<T>(options_.beta1), beta2 = static_cast<T>(options_.beta2);
  const T epsilon = static_cast<T>(options_.epsilon);
  const T size = static_cast<T>(adam ? rate / (1 - std::pow(options_.beta1, static_cast<double>(steps))) : rate);
  const T root = static_cast<T>(1 / std::sqrt(1 - std::pow(options_.beta2, static_cast<double>(steps))));
  for (Moments& m : moments) {
    if (m.parameter->grad.size() != m.parameter->value.size()) continue;
    T* __restrict value = m.parameter->value.data();
    const T* __restrict grad = m.parameter->grad.data();
    T* __restrict first = m.first.data();
    T* __restrict second = m.second.data();
    parallel_pieces(m.parameter->value.size(), kElementGrain, [=](Offset begin, Offset end) {
      if (!adam) {
        for (Offset t = begin; t < end; ++t) {
          first[t] = momentum * first[t] + scale * grad[t] + l2 * value[t];
          value[t] -= size * first[t];
        }
        return;
      }
      for (Offset t = begin; t < end; ++t) {
        const T g = scale * grad[t] + l2 * value[t];
        first[t] = beta1 * first[t] + (T(1) - beta1) * g;
        second[t] = beta2 * second[t] + (T(1) - beta2) * g * g;
        value[t] = shrink * value[t] - size * first[t] / (std::sqrt(second[t]) * root + epsilon);
      }
    });
  }
}

template class Optimiser<float>;
template class Optimiser<double>;

}  // namespace heed
