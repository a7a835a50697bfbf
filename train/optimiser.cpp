#include "train/optimiser.h"

#include <cmath>

#include "kernels/parallel.h"

namespace heed {

template <class T>
Adam<T>::Adam(std::deque<Parameter<T>>& parameters, const AdamOptions& options) : options_(options) {
  for (auto& p : parameters)
    if (p.trained)
      moments_.push_back({&p, Matrix<T>(p.value.rows(), p.value.cols()), Matrix<T>(p.value.rows(), p.value.cols())});
}

template <class T>
void Adam<T>::step() {
  ++steps_;
  const auto steps = static_cast<double>(steps_);
  const T size = static_cast<T>(options_.rate / (1 - std::pow(options_.beta1, steps)));
  const T root = static_cast<T>(1 / std::sqrt(1 - std::pow(options_.beta2, steps)));
  const T beta1 = static_cast<T>(options_.beta1), beta2 = static_cast<T>(options_.beta2);
  const T epsilon = static_cast<T>(options_.epsilon);
  const T l2 = static_cast<T>(options_.decoupled ? 0 : options_.decay);
  const T shrink = static_cast<T>(options_.decoupled ? 1 - options_.rate * options_.decay : 1);
  for (Moments& m : moments_) {
    if (m.parameter->grad.size() != m.parameter->value.size()) continue;
    T* __restrict value = m.parameter->value.data();
    const T* __restrict grad = m.parameter->grad.data();
    T* __restrict first = m.first.data();
    T* __restrict second = m.second.data();
    parallel_pieces(m.parameter->value.size(), kElementGrain, [=](Offset begin, Offset end) {
      for (Offset t = begin; t < end; ++t) {
        const T g = grad[t] + l2 * value[t];
        first[t] = beta1 * first[t] + (T(1) - beta1) * g;
        second[t] = beta2 * second[t] + (T(1) - beta2) * g * g;
        value[t] = shrink * value[t] - size * first[t] / (std::sqrt(second[t]) * root + epsilon);
      }
    });
  }
}

template class Adam<float>;
template class Adam<double>;

}  // namespace heed
