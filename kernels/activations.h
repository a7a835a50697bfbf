// Elementwise functions of layers. Each formula is written once and runs over lanes on the CPU, over plain numbers on a
// device, and over jets of either for its derivative.
#pragma once

#include <tuple>

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

// On a device a number chooses among them.
using List = std::tuple<Scale<float>, Relu, Elu, LeakyRelu, Gelu, Tanh, Sigmoid>;
template <class F, int at = 0>
constexpr int place() {
  if constexpr (std::is_same_v<std::tuple_element_t<at, List>, F>)
    return at;
  else
    return place<F, at + 1>();
}
template <class F>
float factor_of(const F& f) {
  if constexpr (requires { f.factor; })
    return static_cast<float>(f.factor);
  else
    return 0;
}
// visit(f) with the one of that number.
template <int at = 0, class Visit>
HEED_FN void with_activation(int number, float factor, Visit visit) {
  using F = std::tuple_element_t<at, List>;
  if (number == at) {
    F f{};
    if constexpr (at == 0) f.factor = factor;
    visit(f);
  } else if constexpr (at + 1 < std::tuple_size_v<List>) {
    with_activation<at + 1>(number, factor, visit);
  }
}

}  // namespace heed::activations
