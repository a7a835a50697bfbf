// Adam (arXiv:1412.6980) with its weight decay in the gradient (L2) or beside it (AdamW, arXiv:1711.05101).
#pragma once

#include <deque>
#include <vector>

#include "layers/tape.h"

namespace heed {

struct AdamOptions {
  double rate = 5e-3;
  double decay = 5e-4;     // weight decay
  bool decoupled = false;  // AdamW
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
};

template <class T>
class Adam {
 public:
  Adam(std::deque<Parameter<T>>& parameters, const AdamOptions& options);
  // Moves every trained parameter whose gradient exists.
  void step();

 private:
  struct Moments {
    Parameter<T>* parameter;
    Matrix<T> first, second;
  };
  AdamOptions options_;
  std::vector<Moments> moments_;
  long steps_ = 0;
};

}  // namespace heed
