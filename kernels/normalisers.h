// The menu of normalisers: w = weight(s, tau), with one threshold tau per row and head. What couples the keys of a row
// is tau alone, so all share one backward, with delta = (sum_k drain_k dw_k) / (sum_k share_k) per row and head:
//
//   ds_j = slope_j dw_j - share_j delta      slope = dw/ds at fixed tau, drain = -dw/dtau, share ~ dtau/ds
//
// `exponential` says that slope, drain and share are all w.
// Forward runs over a row in chunks: raw(s, shift) gives weights up to a factor, `shift` is the running maximum where
// `shifts` is set and 0 elsewhere, and close() turns (shift, sum of raw weights) into tau and that factor.
// To add a normaliser, write its struct here and enter it in `Normalisers`.
#pragma once

#include <tuple>

#include "kernels/fn.h"

namespace heed {

template <class X>
struct Closed {
  X tau, factor;
};

// w = e^(s - tau), tau = log sum_k e^s_k. Here drain = w, so delta = <dy, y>: no extra pass.
struct Softmax {
  static constexpr const char* name = "softmax";
  static constexpr bool shifts = true;
  static constexpr bool couples = true;
  static constexpr bool exponential = true;
  template <class X>
  HEED_FN X raw(X s, X shift) const {
    return fn::exp(s - shift);
  }
  template <class X>
  HEED_FN Closed<X> close(X shift, X total) const {
    auto some = total > X(0);  // a row without keys: all its weights are 0
    return {select(some, shift + fn::log(total), X(__builtin_inff())), select(some, X(1) / total, X(0))};
  }
  template <class X>
  HEED_FN X weight(X s, X tau) const {
    return fn::exp(s - tau);
  }
  template <class X>
  HEED_FN X slope(X w) const {
    return w;
  }
  template <class X>
  HEED_FN X share(X w) const {
    return w;
  }
};

// w = 1 / (1 + e^-s): every key on its own, nothing couples a row.
struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr bool shifts = false;
  static constexpr bool couples = false;
  static constexpr bool exponential = false;
  template <class X>
  HEED_FN X raw(X s, X) const {
    return fn::sigmoid(s);
  }
  template <class X>
  HEED_FN Closed<X> close(X, X) const {
    return {X(0), X(1)};
  }
  template <class X>
  HEED_FN X weight(X s, X) const {
    return fn::sigmoid(s);
  }
  template <class X>
  HEED_FN X slope(X w) const {
    return w * (X(1) - w);
  }
  template <class X>
  HEED_FN X share(X) const {
    return X(0);
  }
};

using Normalisers = std::tuple<Softmax, Sigmoid>;

}  // namespace heed
