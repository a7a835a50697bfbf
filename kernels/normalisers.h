// The menu of normalisers: w = weight(s, tau), with one threshold tau per row and head. What couples the keys of a row
// is tau alone, so all share one backward, with delta = (sum_k drain_k dw_k) / (sum_k share_k) per row and head:
//
//   ds_j = slope_j dw_j - share_j delta      slope = dw/ds at fixed tau, drain = -dw/dtau, share ~ dtau/ds
//
// There are three kinds:
//   Alone       every key on its own: weight and slope are all.
//   running     (couples) forward goes over a row in chunks: raw(s, shift) gives weights up to a factor, `shift` is the
//               running maximum where `shifts` is set and 0 elsewhere, and close() turns (shift, sum of raw weights)
//               into tau and that factor. raw(-inf) is 0.
//   solved      (solves) tau = solve(scores, n), from the scores that are less than `reach` under the greatest.
// Where drain is w and all shares add up to 1 or stand as they are, delta = <dy, y> costs no pass over the edges;
// others declare `measures` and have a drain. `exponential` says that slope, drain and share are w, and that weights
// add up to 1. To add a normaliser, write its struct here and enter it in `Normalisers`.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>

#include "kernels/fn.h"
#include "kernels/score.h"

namespace heed {

template <class X>
struct Closed {
  X tau, factor;
};

namespace normalisers {

struct Traits {
  static constexpr bool shifts = false, couples = false, exponential = false, measures = false, solves = false;
  static constexpr bool nonnegative = false;
};
struct Alone : Traits {
  template <class X>
  HEED_FN X share(X, X, X) const {
    return X(0);
  }
};
template <class X>
HEED_FN X infinity() {
  return X(__builtin_inff());
}

// w = e^(s - tau), tau = log sum_k e^s_k
struct Softmax : Traits {
  static constexpr const char* name = "softmax";
  static constexpr About about{"e^(s - t), t = log sum e^s", "Bridle 1990", "1 exponential an edge"};
  static constexpr bool shifts = true, couples = true, exponential = true;
  template <class X>
  HEED_FN X raw(X s, X shift) const {
    return fn::quick_exp(s - shift);
  }
  template <class X>
  HEED_FN Closed<X> close(X shift, X total) const {
    auto some = total > X(0);  // a row without keys: all its weights are 0
    return {select(some, shift + fn::quick_log(total), infinity<X>()), select(some, X(1) / total, X(0))};
  }
  template <class X>
  HEED_FN X weight(X s, X tau) const {
    return fn::quick_exp(s - tau);
  }
  template <class X>
  HEED_FN X slope(X, X w, X) const {
    return w;
  }
  template <class X>
  HEED_FN X share(X, X w, X) const {
    return w;
  }
};

// w = e^(s - tau), tau = log(1 + sum_k e^s_k): softmax with one more key of score 0 and value 0, so that a row may
struct SoftmaxSink : Softmax {  // attend to nothing
  static constexpr const char* name = "softmax_sink";
  static constexpr About about{"e^(s - t), t = log(1 + sum e^s)", "arXiv:2309.17453", "as softmax"};
  static constexpr bool exponential = false;
  template <class X>
  HEED_FN Closed<X> close(X shift, X total) const {
    const X top = select(shift > X(0), shift, X(0)), scale = fn::exp(shift - top);
    const X all = select(total > X(0), total * scale, X(0)) + fn::exp(-top);
    return {top + fn::log(all), scale / all};
  }
};

// w = 1 / (1 + e^-s)
struct Sigmoid : Alone {
  static constexpr const char* name = "sigmoid";
  static constexpr About about{"1 / (1 + e^-s)", "arXiv:2409.04431", "1 exponential an edge"};
  template <class X>
  HEED_FN X weight(X s, X) const {
    return fn::sigmoid(s);
  }
  template <class X>
  HEED_FN X slope(X, X w, X) const {
    return w * (X(1) - w);
  }
};

// w = tanh s: keys may repel, as FAGCN's
struct Tanh : Alone {
  static constexpr const char* name = "tanh";
  static constexpr About about{"tanh s", "FAGCN, arXiv:2101.00797", "1 exponential an edge"};
  template <class X>
  HEED_FN X weight(X s, X) const {
    return fn::tanh(s);
  }
  template <class X>
  HEED_FN X slope(X, X w, X) const {
    return X(1) - w * w;
  }
};

// w = s
struct None : Alone {
  static constexpr const char* name = "none";
  static constexpr About about{"s", "", "nothing"};
  template <class X>
  HEED_FN X weight(X s, X) const {
    return s;
  }
  template <class X>
  HEED_FN X slope(X, X, X) const {
    return X(1);
  }
};

// w = e^(s - max_k s_k): the best key gets 1. Keys that share the maximum share its gradient.
struct Max : Softmax {
  static constexpr const char* name = "max";
  static constexpr About about{"e^(s - t), t = max s", "", "as softmax; backward has a pass more"};
  static constexpr bool exponential = false, measures = true;
  template <class X>
  HEED_FN Closed<X> close(X shift, X total) const {
    auto some = total > X(0);
    return {select(some, shift, infinity<X>()), select(some, X(1), X(0))};
  }
  template <class X>
  HEED_FN X drain(X, X w, X) const {
    return w;
  }
  template <class X>
  HEED_FN X share(X s, X, X tau) const {  // s is the very score that forward compared
    return select(s < tau, X(0), X(1));
  }
};

// w = s / tau, tau = sum_k s_k, of scores that are never negative; 0 where all are 0
struct Sum : Traits {
  static constexpr const char* name = "sum";
  static constexpr About about{"s / t, t = sum s, of s >= 0", "Nadaraya 1964, Watson 1964", "1 addition an edge"};
  static constexpr bool couples = true, nonnegative = true;
  static constexpr float kLeast = 1e-30f;  // sums below it count as 0
  template <class X>
  HEED_FN X raw(X s, X) const {
    return select(s > X(0), s, X(0));
  }
  template <class X>
  HEED_FN Closed<X> close(X, X total) const {
    return {total, share(total, total, total)};
  }
  template <class X>
  HEED_FN X weight(X s, X tau) const {
    return s * share(s, s, tau);
  }
  template <class X>
  HEED_FN X slope(X, X, X tau) const {
    return share(tau, tau, tau);
  }
  template <class X>
  HEED_FN X share(X, X, X tau) const {
    return select(tau > X(kLeast), X(1) / tau, X(0));
  }
};

// w = 1 / n, whatever the scores
struct Mean : Traits {
  static constexpr const char* name = "mean";
  static constexpr About about{"1 / n", "arXiv:1706.02216, section 3.3", "nothing; scores take no gradient"};
  static constexpr bool couples = true;
  template <class X>
  HEED_FN X raw(X s, X) const {
    return select(s > -infinity<X>(), X(1), X(0));
  }
  template <class X>
  HEED_FN Closed<X> close(X, X total) const {
    auto some = total > X(0);
    return {total, select(some, X(1) / total, X(0))};
  }
  template <class X>
  HEED_FN X weight(X s, X tau) const {
    return raw(s, s) / tau;
  }
  template <class X>
  HEED_FN X slope(X, X, X) const {
    return X(0);
  }
  template <class X>
  HEED_FN X share(X, X, X) const {
    return X(0);
  }
};

struct Solved : Traits {
  static constexpr bool couples = true, measures = true, solves = true;
};

// w = (s - tau)+ with sum_k w_k = 1: the nearest point of the simplex. Keys with w = 0 take no part.
struct Sparsemax : Solved {
  static constexpr const char* name = "sparsemax";
  static constexpr About about{"(s - t)+, t: sum w = 1", "arXiv:1602.02068, algorithm 1",
                               "a sort of the best keys a row"};
  static constexpr double reach = 1;
  template <class X>
  HEED_FN X weight(X s, X tau) const {
    return fn::relu(s - tau);
  }
  template <class X>
  HEED_FN X slope(X, X w, X) const {
    return select(w > X(0), X(1), X(0));
  }
  template <class X>
  HEED_FN X share(X s, X w, X tau) const {
    return slope(s, w, tau);
  }
  template <class X>
  HEED_FN X drain(X s, X w, X tau) const {
    return slope(s, w, tau);
  }
  // Of scores in falling order, the greatest being 0.
  static double solve(const double* s, std::size_t n) {
    double sum = 0, tau = 0;
    for (std::size_t k = 0; k < n; ++k) {
      sum += s[k];
      const double next = (sum - 1) / static_cast<double>(k + 1);
      if (s[k] <= next) break;
      tau = next;
    }
    return tau;
  }
};

// w = ((s - tau) / 2)+^2 with sum_k w_k = 1
struct Entmax15 : Solved {
  static constexpr const char* name = "entmax15";
  static constexpr About about{"((s - t) / 2)+^2, t: sum w = 1", "arXiv:1905.05702, algorithm 2",
                               "a sort of the best keys a row"};
  static constexpr double reach = 2;
  template <class X>
  HEED_FN X weight(X s, X tau) const {
    return fn::square(slope(s, s, tau));
  }
  template <class X>
  HEED_FN X slope(X s, X, X tau) const {
    return fn::relu((s - tau) * X(0.5f));
  }
  template <class X>
  HEED_FN X share(X s, X w, X tau) const {
    return slope(s, w, tau);
  }
  template <class X>
  HEED_FN X drain(X s, X w, X tau) const {
    return slope(s, w, tau);
  }
  static double solve(const double* s, std::size_t n) {
    double mean = 0, spread = 0, tau = 0;  // of s/2 so far: the mean, and the sum of squares about it
    for (std::size_t k = 0; k < n; ++k) {
      const double z = s[k] / 2, count = static_cast<double>(k + 1), step = z - mean;
      mean += step / count;
      spread += step * (z - mean);
      const double rest = (1 - spread) / count;
      const double next = mean - std::sqrt(rest > 0 ? rest : 0);
      if (z <= next) break;
      tau = 2 * next;
    }
    return tau;
  }
};

}  // namespace normalisers

using Normalisers = std::tuple<normalisers::Softmax, normalisers::SoftmaxSink, normalisers::Sigmoid, normalisers::Tanh,
                               normalisers::None, normalisers::Max, normalisers::Sum, normalisers::Mean,
                               normalisers::Sparsemax, normalisers::Entmax15>;

}  // namespace heed
