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
#include "sampling/keys.h"
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
struct Shared {   // what all scopes of a network share
  struct World {  // a graph, and the masks on it
    std::shared_ptr<const Graph> graph;
    const Features* features = nullptr;        // of its nodes; before `order`
    std::vector<Id> order;                     // in which the features' rows are the graph's nodes; empty: as they are
    std::shared_ptr<const Features> in_order;  // made when a mask first wants them
    std::map<std::string, std::shared_ptr<const Sight>> sights;
    std::map<std::string, PairSet> known;  // what stays of the masks that change from step to step
  };
  struct Look {  // at the weights of an attention, or of some heads of it
    std::string place;
    const World* world;
    int first, heads;
    std::string mask;
    std::shared_ptr<const Sight> sight;
    std::function<Matrix<T>()> weights;
    bool changes;
  };
  Tape<T> tape;
  std::deque<Parameter<T>> parameters;
  std::deque<World> worlds;
  std::vector<Look> looks;
  std::set<std::filesystem::path> files;  // that masks and keys read
  std::uint64_t seed = 0;
};

template <class T>
class Scope {  // what a layer sees while it is recorded
 public:
  Scope(Shared<T>& shared, std::shared_ptr<const Graph> graph, const Features* features, std::vector<Id> order,
        std::string prefix, Id virtual_nodes = 0)
      : shared_(&shared), world_(&shared.worlds.emplace_back()), prefix_(std::move(prefix)), virtual_(virtual_nodes) {
    world_->graph = std::move(graph), world_->features = features, world_->order = std::move(order);
  }

  Tape<T>& tape() { return shared_->tape; }
  const Graph& graph() const { return *world_->graph; }
  Scope inside(const std::string& name) const {
    Scope out = *this;
    out.prefix_ += name + ".";
    return out;
  }
  // With m nodes more than the graph has, which see all and are seen by all, whatever the mask; they come last.
  Scope with_virtual(Id m) const {
    Scope out = *this;
    out.virtual_ += m;
    return out;
  }
  Id nodes() const { return graph().nodes() + virtual_; }  // rows of what layers get and give
  // The same place in the network with the graph's nodes in another order.
  Scope in_order(std::vector<Id> order) const;
  // A new learned matrix. Its first values depend on the seed and its place in the network.
  Var<T> parameter(const std::string& name, Offset rows, Offset cols, Init init) {
    return tape().parameter(add(name, rows, cols, init, true));
  }
  // A matrix that the layer keeps for itself.
  Parameter<T>& state(const std::string& name, Offset rows, Offset cols, double value) {
    return add(name, rows, cols, {0, value}, false);
  }
  // The mask on this scope's graph, made once. Throws Error where it changes from step to step.
  std::shared_ptr<const Pattern> pattern(const Mask& mask);
  // The pairs of a mask on this scope's graph.
  PairSet pairs(const Mask& mask) const { return mask.pairs(context(mask.needs(), false)); }
  // Lets the network tell the weights of the attention at this place, heads first, first + 1, ... `changes`: who is
  // seen does, from step to step.
  void show_attention(int first, int heads, const Mask& mask, std::shared_ptr<const Sight> sight,
                      std::function<Matrix<T>()> weights, bool changes) {
    shared_->looks.push_back(
        {prefix_, world_, first, heads, mask.text(), std::move(sight), std::move(weights), changes});
  }
  // The mask, of keys alone; made once, or at each step where one of them reads the step.
  std::shared_ptr<const Sight> sight(const Mask& mask, const Keys& keys = all_keys());
  // The mask, of the keys of largest u (nodes x 1) at each step: share_of(share) of the graph's nodes.
  std::shared_ptr<const Sight> sight(const Mask& mask, double share, Var<T> u);

 private:
  Parameter<T>& add(const std::string& name, Offset rows, Offset cols, Init init, bool trained);
  MaskContext context(const Needs& needs, bool changes) const;
  std::shared_ptr<const Pattern> redrawn(const Mask& mask, const Keys& keys) const;
  std::shared_ptr<const Sight> drawn_on_device(const Mask& mask, const Keys& keys, Var<T> u);
  std::vector<Id> and_virtual(std::vector<Id> nodes) const;

  Shared<T>* shared_;
  typename Shared<T>::World* world_;
  std::string prefix_;
  Id virtual_ = 0;
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

// A model on a graph: parameters, tape, input and output. The graph and the features must outlive it, and so must the
// device, on which all of it lies where one is given: then a plain copy of a matrix fetches it.
template <class T>
class Network {
 public:
  Network(const Model& model, const Graph& graph, const Features& features, std::uint64_t seed,
          DeviceOps* device = nullptr);
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  Tape<T>& tape() { return shared_.tape; }
  std::deque<Parameter<T>>& parameters() { return shared_.parameters; }
  Parameter<T>& parameter(const std::string& name);  // throws Error with the nearest names
  Offset parameter_count() const;                    // learned numbers
  // The weights that the attend at a place ("layers.0"; "" where the model is one) gave in the last forward, with their
  // dropout if that was in training: edges x heads, in the order of `edges`, of each of which node `to` is the query
  // and `from` the key; 0 where it is not seen. Throws Error where there is no attend, or its mask is no list,
  // or there was no forward.
  Matrix<T> attention_weights(const std::string& place, std::span<const Edge> edges) const;
  // Throws Error where an attend's mask, on this graph, leaves all nodes without a key: nothing could be learned there.
  void expect_keys() const;
  const std::set<std::filesystem::path>& files() const { return shared_.files; }  // that masks and keys have read
  Var<T> input() const { return input_; }
  Var<T> output() const { return output_; }

 private:
  Shared<T> shared_;
  Matrix<T> dense_;  // the features, where they are dense and T is not float
  Var<T> input_, output_;
};

}  // namespace heed
