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
Optimiser<T>::Optimiser(std::deque<Parameter<T>>& parameters, const OptimiserOptions& options, DeviceOps* device)
    : options_(options), device_(device), cut_there_(device), now_there_(device), clipping_(device), bad_(device) {
  auto zeros = [&](Offset rows, Offset cols) {
    Matrix<T> out(device);
    out.resize(rows, cols);
    if (device) out.fill(T(0));
    return out;
  };
  for (auto& p : parameters) {
    if (!p.trained) continue;
    Moments& m = moments.emplace_back();
    m.parameter = &p;
    m.first = zeros(p.value.rows(), p.value.cols());
    if (options.rule != Rule::sgd) m.second = zeros(p.value.rows(), p.value.cols());
  }
  if (!device) return;
  now_there_.resize(1, 1), clipping_.resize(1, 1), bad_.resize(1, 1);
  bad_.fill(0);
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
void Optimiser<T>::begin(double factor) {
  ++steps;
  const bool adam = options_.rule != Rule::sgd, decoupled = options_.rule == Rule::adamw;
  const double rate = options_.rate * factor;
  now_.shrink = static_cast<T>(decoupled ? 1 - rate * options_.decay : 1);
  now_.size = static_cast<T>(adam ? rate / (1 - std::pow(options_.beta1, static_cast<double>(steps))) : rate);
  now_.root = static_cast<T>(1 / std::sqrt(1 - std::pow(options_.beta2, static_cast<double>(steps))));
  if constexpr (std::is_same_v<T, float>)
    if (device_) bodies::put(*device_, bodies::StepNumbers{now_.size, now_.root, now_.shrink}, now_there_.data());
}

template <class T>
void Optimiser<T>::move_there() {
  if constexpr (std::is_same_v<T, float>) {
    std::vector<bodies::Stretch> cut;
    for (Moments& m : moments)
      if (m.parameter->grad.size() == m.parameter->value.size())
        bodies::cut(cut, m.parameter->value, m.first.data(), m.second.data(), m.parameter->grad.data());
    if (cut != cut_) cut_ = cut, cut_there_ = list_on<bodies::Stretch>(*device_, cut);
    const Offset count = cut_there_.size() * bodies::kStretch;
    if (options_.clip > 0)
      bodies::sum_rows(*device_, bodies::NormSum{cut_there_.data(), options_.clip, clipping_.data()}, count, 1);
    bodies::run(*device_,
                bodies::Move{.stretches = cut_there_.data(),
                             .now = now_there_.data(),
                             .clipping = options_.clip > 0 ? clipping_.data() : nullptr,
                             .adam = options_.rule != Rule::sgd,
                             .l2 = static_cast<float>(options_.rule == Rule::adamw ? 0 : options_.decay),
                             .momentum = static_cast<float>(options_.momentum),
                             .beta1 = static_cast<float>(options_.beta1),
                             .beta2 = static_cast<float>(options_.beta2),
                             .epsilon = static_cast<float>(options_.epsilon),
                             .bad = bad_.data()},
                count);
  }
}

template <class T>
void Optimiser<T>::move() {
  if (device_) return move_there();
  const bool adam = options_.rule != Rule::sgd, decoupled = options_.rule == Rule::adamw;
  const T scale = clipping();
  const T l2 = static_cast<T>(decoupled ? 0 : options_.decay);
  const T momentum = static_cast<T>(options_.momentum);
  const T beta1 = static_cast<T>(options_.beta1), beta2 = static_cast<T>(options_.beta2);
  const T epsilon = static_cast<T>(options_.epsilon);
  const auto [size, root, shrink] = now_;
  for (Moments& m : moments) {
    if (m.parameter->grad.size() != m.parameter->value.size()) continue;
    T* __restrict value = m.parameter->value.data();
    const T* __restrict grad = m.parameter->grad.data();
    T* __restrict first = m.first.data();
    T* __restrict second = m.second.data();
    parallel_pieces(m.parameter->value.size(), kElementGrain / 4,  // a root and a quotient each
                    [=, size = size, root = root, shrink = shrink](Offset begin, Offset end) {
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
