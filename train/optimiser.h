// Stochastic gradient descent with momentum; Adam (arXiv:1412.6980) with its weight decay in the gradient (L2), or
// beside it (AdamW, arXiv:1711.05101). All as PyTorch defines them. On a device one kernel moves all parameters.
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
  // Parameters on a device need it here, too.
  Optimiser(std::deque<Parameter<T>>& parameters, const OptimiserOptions& options, DeviceOps* device = nullptr);
  // Moves every trained parameter whose gradient exists, at `factor` times the rate.
  void step(double factor = 1) { begin(factor), move(); }
  // Its two halves: what differs from step to step is worked out, and told to the device; and the rest, which may be
  // replayed there.
  void begin(double factor);
  void move();

  // What a later step depends on, besides the parameters: how many steps there were, and one matrix (sgd) or two for
  // each trained parameter.
  struct Moments {
    Parameter<T>* parameter;
    Matrix<T> first, second;
  };
  long steps = 0;
  std::vector<Moments> moments;

  // On a device: where a number lies that is above 0 once a parameter has been moved to what is not finite.
  const unsigned* bad() const { return bad_.data(); }

 private:
  struct Numbers {  // of the step
    T size, root, shrink;
  };
  T clipping();
  void move_there();

  OptimiserOptions options_;
  Numbers now_{};

  DeviceOps* device_;
  std::vector<bodies::Stretch> cut_;  // of the parameters, as the device knows it
  Matrix<bodies::Stretch> cut_there_;
  Matrix<bodies::StepNumbers> now_there_;
  Matrix<float> clipping_;
  Matrix<unsigned> bad_;
};

}  // namespace heed
