// Elementwise functions of layers. Each formula is written once and runs over lanes on the CPU, over plain numbers on a
// device, and over jets of either for its derivative.
#pragma once

#include "kernels/fn.h"

namespace heed::activations {

template <class T>
struct Scale {
  T factor;
  template <class V>
  HEED_FN V operator()(V x) const {
    return x * V(factor);
  }
};
struct Relu {
  template <class V>
  HEED_FN V operator()(V x) const {
    return fn::relu(x);
  }
};
struct Elu {  // arXiv:1511.07289
  template <class V>
  HEED_FN V operator()(V x) const {
    return select(x > V(0), x, fn::exp(x) - V(1));
  }
};
struct LeakyRelu {
  template <class V>
  HEED_FN V operator()(V x) const {
    return fn::leaky(x, 0.01f);
  }
};
struct Gelu {  // arXiv:1606.08415
  template <class V>
  HEED_FN V operator()(V x) const {
    return x * (V(0.5) + V(0.5) * fn::erf(x * V(0.70710678118654752)));
  }
};
struct Tanh {
  template <class V>
  HEED_FN V operator()(V x) const {
    return fn::tanh(x);
  }
};
struct Sigmoid {
  template <class V>
  HEED_FN V operator()(V x) const {
    return fn::sigmoid(x);
  }
};

}  // namespace heed::activations
