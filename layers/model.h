// A model is a function from values to values that also says which parameters it wants. It is written once, for any
// type of number, and becomes a Network when it meets a graph and its features.
//
//   Model model = stack({
//       attend({.out = 8, .heads = 8, .score = score_named("gat"), .mask = local() | self(), .dropout = 0.6}),
//       activation(Activation::elu),
//       attend({.out = 7, .score = score_named("gat")}),
//   });
//   Network<float> network(model, data.graph, data.features, 7);
#pragma once

#include <cmath>
#include <map>

#include "graph/graph.h"
#include "layers/ops.h"
#include "sampling/mask.h"

namespace heed {

// How a parameter begins: uniform in +-limit about a constant, or (start) element by element.
struct Init {
  double limit = 0, value = 0;
  std::vector<double> start = {};
};
Init glorot(Offset fan_in, Offset fan_out);  // limit sqrt(6 / (in + out)), Glorot & Bengio 2010
Init kaiming(Offset fan_in);                 // limit 1 / sqrt(in), the default of PyTorch's Linear

template <class T>
struct Shared {  // what all scopes of a network share
  Tape<T> tape;
  std::deque<Parameter<T>> parameters;
  std::map<std::string, std::shared_ptr<const Pattern>> patterns;
  const Graph* graph = nullptr;
  std::uint64_t seed = 0;
};

template <class T>
class Scope {  // what a layer sees while it is recorded
 public:
  Scope(Shared<T>& shared, std::string prefix) : shared_(&shared), prefix_(std::move(prefix)) {}

  Tape<T>& tape() { return shared_->tape; }
  const Graph& graph() const { return *shared_->graph; }
  Scope inside(const std::string& name) const { return {*shared_, prefix_ + name + "."}; }
  // A new learned matrix. Its first values depend on the seed and its place in the network.
  Var<T> parameter(const std::string& name, Offset rows, Offset cols, Init init) {
    return tape().parameter(add(name, rows, cols, init, true));
  }
  // A matrix that the layer keeps for itself.
  Parameter<T>& state(const std::string& name, Offset rows, Offset cols, double value) {
    return add(name, rows, cols, {0, value}, false);
  }
  // The mask on this network's graph, made once.
  std::shared_ptr<const Pattern> pattern(const Mask& mask) {
    auto& made = shared_->patterns[mask.key()];
    if (!made) made = mask.pattern(graph());
    return made;
  }

 private:
  Parameter<T>& add(const std::string& name, Offset rows, Offset cols, Init init, bool trained);

  Shared<T>* shared_;
  std::string prefix_;
};

class Model {
 public:
  // From a generic function object: template <class T> Var<T> operator()(Scope<T>&, Var<T>) const.
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, Model>) Model(F f)
      : single_([f](Scope<float>& scope, Var<float> x) { return f(scope, x); }),
        twice_([f](Scope<double>& scope, Var<double> x) { return f(scope, x); }) {}

  template <class T>
  Var<T> operator()(Scope<T>& scope, Var<T> x) const {
    if constexpr (std::is_same_v<T, float>)
      return single_(scope, x);
    else
      return twice_(scope, x);
  }

 private:
  std::function<Var<float>(Scope<float>&, Var<float>)> single_;
  std::function<Var<double>(Scope<double>&, Var<double>)> twice_;
};

// A model on a graph: parameters, tape, input and output. The graph and the features must outlive it.
template <class T>
class Network {
 public:
  Network(const Model& model, const Graph& graph, const Features& features, std::uint64_t seed);
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  Tape<T>& tape() { return shared_.tape; }
  std::deque<Parameter<T>>& parameters() { return shared_.parameters; }
  Parameter<T>& parameter(const std::string& name);  // throws Error with the nearest names
  Offset parameter_count() const;                    // learned numbers
  Var<T> input() const { return input_; }
  Var<T> output() const { return output_; }

 private:
  Shared<T> shared_;
  Matrix<T> dense_;  // the features, where they are dense and T is not float
  Var<T> input_, output_;
};

}  // namespace heed
