#include "layers/model.h"

namespace heed {

Init glorot(Offset fan_in, Offset fan_out) { return {.limit = std::sqrt(6.0 / static_cast<double>(fan_in + fan_out))}; }
Init kaiming(Offset fan_in) { return {.limit = 1 / std::sqrt(static_cast<double>(fan_in))}; }

template <class T>
Parameter<T>& Scope<T>::add(const std::string& name, Offset rows, Offset cols, Init init, bool trained) {
  const std::uint64_t key = mix(mix(shared_->seed), shared_->parameters.size());
  Parameter<T>& p = shared_->parameters.emplace_back();
  p.name = prefix_ + name;
  p.trained = trained;
  p.value.resize(rows, cols);
  for (Offset t = 0; t < p.value.size(); ++t)
    p.value.data()[t] = static_cast<T>(init.value + init.limit * (2 * uniform(key, static_cast<std::uint64_t>(t)) - 1));
  for (std::size_t t = 0; t < init.start.size(); ++t) p.value.data()[t] = static_cast<T>(init.start[t]);
  return p;
}

template <class T>
Network<T>::Network(const Model& model, const Graph& graph, const Features& features, std::uint64_t seed) {
  if (features.rows() != graph.nodes())
    fail("the features have " + std::to_string(features.rows()) + " rows, the graph " + std::to_string(graph.nodes()) +
         " nodes");
  shared_.graph = &graph;
  shared_.seed = seed;
  shared_.tape.seed = seed;
  if (features.sparse) {
    input_ = shared_.tape.constant(*features.sparse);
  } else if constexpr (std::is_same_v<T, float>) {
    input_ = shared_.tape.constant(features.dense);
  } else {
    dense_.resize(features.rows(), features.cols());
    std::copy(features.dense.begin(), features.dense.end(), dense_.begin());
    input_ = shared_.tape.constant(dense_);
  }
  Scope<T> scope(shared_, "");
  output_ = model(scope, input_);
}

template <class T>
Parameter<T>& Network<T>::parameter(const std::string& name) {
  std::vector<std::string> names;
  for (auto& p : shared_.parameters) {
    if (p.name == name) return p;
    names.push_back(p.name);
  }
  unknown("parameter", name, names);
}

template <class T>
Offset Network<T>::parameter_count() const {
  Offset count = 0;
  for (const auto& p : shared_.parameters)
    if (p.trained) count += p.value.size();
  return count;
}

template class Scope<float>;
template class Scope<double>;
template class Network<float>;
template class Network<double>;

}  // namespace heed
