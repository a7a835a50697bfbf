// Stochastic gradient descent with momentum; Adam (arXiv:1412.6980) with its weight decay in the gradient (L2), or
// beside it (AdamW, arXiv:1711.05101). All as PyTorch defines them.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "layers/tape.h"

namespace heed {

enum class Rule { adam, adamw, sgd };
const std::vector<std::string>& rule_names();
Rule rule_named(const std::string& name);  // throws Error with the nearest names

struct OptimiserOptions {
  Rule rule = Rule::adam;
  double rate = 5e-3;
  double decay = 5e-4;    // weight decay
  double momentum = 0.9;  // of sgd
  double beta1 = 0.9;     // of Adam
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double clip = 0;  // the gradient of all parameters together is scaled down to this Euclidean norm; 0: never
};

template <class T>
class Optimiser {
 public:
  Optimiser(std::deque<Parameter<T>>& parameters, const OptimiserOptions& options);
  // Moves every trained parameter whose gradient exists, at `factor` times the rate.
  void step(double factor = 1);

  // What a later step depends on, besides the parameters: how many steps there were, and one matrix (sgd) or two for
  // each trained parameter.
  struct Moments {
    Parameter<T>* parameter;
    Matrix<T> first, second;
  };
  long steps = 0;
  std::vector<Moments> moments;

 private:
  T clipping();

  OptimiserOptions options_;
};

}  // namespace heed
