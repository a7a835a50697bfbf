// Jet: a value with some of its partial derivatives, so that a formula written once also gives its exact gradient
// (forward-mode differentiation). The set bits of M say which partials exist: combining two jets unites the sets, and
// a partial that cannot exist costs nothing. X is a plain number or a vector of lanes.
#pragma once

#include "kernels/fn.h"

namespace heed {

template <class X, unsigned M>
struct Jet {
  static constexpr unsigned mask = M;
  static constexpr int kPartials = 4;
  X v;
  X d[kPartials];  // d[i] is there where bit i of M is set

  Jet() = default;
  HEED_FN explicit Jet(X value) : v(value) {
    for (int i = 0; i < kPartials; ++i)
      if (M >> i & 1) d[i] = X(0);
  }
  template <class S>
  requires(std::is_arithmetic_v<S> && !std::is_same_v<S, X>) HEED_FN explicit Jet(S value) : Jet(X(value)) {}
};

// The variable number `i`: its partial by itself is 1.
template <int i, class X>
HEED_FN Jet<X, 1u << i> variable(X x) {
  Jet<X, 1u << i> out;
  out.v = x;
  out.d[i] = X(1);
  return out;
}

template <class Y>
inline constexpr unsigned partials = 0;
template <class X, unsigned M>
inline constexpr unsigned partials<Jet<X, M>> = M;

// value = f, and each partial = f's slope in a times a's partial (+ the same for b where it is a jet).
template <class X, unsigned A>
HEED_FN Jet<X, A> chain(Jet<X, A> a, X value, X slope) {
  Jet<X, A> out;
  out.v = value;
  HEED_UNROLL
  for (int i = 0; i < Jet<X, A>::kPartials; ++i)
    if (A >> i & 1) out.d[i] = slope * a.d[i];
  return out;
}

template <class X, unsigned A, unsigned B, class Both, class First, class Second>
HEED_FN Jet<X, A | B> join(Jet<X, A> a, Jet<X, B> b, X value, Both both, First first, Second second) {
  Jet<X, A | B> out;
  out.v = value;
  HEED_UNROLL
  for (int i = 0; i < Jet<X, A>::kPartials; ++i) {
    if ((A >> i & 1) && (B >> i & 1))
      out.d[i] = both(a.d[i], b.d[i]);
    else if (A >> i & 1)
      out.d[i] = first(a.d[i]);
    else if (B >> i & 1)
      out.d[i] = second(b.d[i]);
  }
  return out;
}

template <class X, unsigned A, unsigned B>
HEED_FN Jet<X, A | B> operator+(Jet<X, A> a, Jet<X, B> b) {
  return join(
      a, b, a.v + b.v, [](X x, X y) { return x + y; }, [](X x) { return x; }, [](X y) { return y; });
}
template <class X, unsigned A, unsigned B>
HEED_FN Jet<X, A | B> operator-(Jet<X, A> a, Jet<X, B> b) {
  return join(
      a, b, a.v - b.v, [](X x, X y) { return x - y; }, [](X x) { return x; }, [](X y) { return -y; });
}
template <class X, unsigned A, unsigned B>
HEED_FN Jet<X, A | B> operator*(Jet<X, A> a, Jet<X, B> b) {
  return join(
      a, b, a.v * b.v, [=](X x, X y) { return x * b.v + a.v * y; }, [=](X x) { return x * b.v; },
      [=](X y) { return a.v * y; });
}
template <class X, unsigned A, unsigned B>
HEED_FN Jet<X, A | B> operator/(Jet<X, A> a, Jet<X, B> b) {
  X quotient = a.v / b.v;
  return join(
      a, b, quotient, [=](X x, X y) { return (x - quotient * y) / b.v; }, [=](X x) { return x / b.v; },
      [=](X y) { return -(quotient * y) / b.v; });
}
template <class X, unsigned A>
HEED_FN Jet<X, A> operator-(Jet<X, A> a) {
  return chain(a, -a.v, X(-1));
}

// A jet with something that has no partials. Std::type_identity lets a plain float meet a jet of lanes.
#define HEED_JET_MIXED(op)                                                \
  template <class X, unsigned A>                                          \
  HEED_FN Jet<X, A> operator op(Jet<X, A> a, std::type_identity_t<X> b) { \
    return a op Jet<X, 0>(b);                                             \
  }                                                                       \
  template <class X, unsigned A>                                          \
  HEED_FN Jet<X, A> operator op(std::type_identity_t<X> a, Jet<X, A> b) { \
    return Jet<X, 0>(a) op b;                                             \
  }
HEED_JET_MIXED(+)
HEED_JET_MIXED(-)
HEED_JET_MIXED(*)
HEED_JET_MIXED(/)
#undef HEED_JET_MIXED

template <class X, unsigned A, unsigned B>
HEED_FN auto operator>(Jet<X, A> a, Jet<X, B> b) {
  return a.v > b.v;
}
template <class X, unsigned A, unsigned B>
HEED_FN auto operator<(Jet<X, A> a, Jet<X, B> b) {
  return a.v < b.v;
}

template <class Condition, class X, unsigned A>
HEED_FN Jet<X, A> select(Condition condition, Jet<X, A> yes, Jet<X, A> no) {
  Jet<X, A> out;
  out.v = select(condition, yes.v, no.v);
  HEED_UNROLL
  for (int i = 0; i < Jet<X, A>::kPartials; ++i)
    if (A >> i & 1) out.d[i] = select(condition, yes.d[i], no.d[i]);
  return out;
}
template <class X, unsigned A>
HEED_FN Jet<X, A> exp_of(Jet<X, A> a) {
  X value = exp_of(a.v);
  return chain(a, value, value);
}
template <class X, unsigned A>
HEED_FN Jet<X, A> log_of(Jet<X, A> a) {
  return chain(a, log_of(a.v), X(1) / a.v);
}
template <class X, unsigned A>
HEED_FN Jet<X, A> sqrt_of(Jet<X, A> a) {  // the slope at 0 is taken as 0
  X root = sqrt_of(a.v);
  return chain(a, root, select(root > X(0), X(0.5f) / root, X(0)));
}
template <class X, unsigned A>
HEED_FN Jet<X, A> tanh_of(Jet<X, A> a) {
  X value = tanh_of(a.v);
  return chain(a, value, X(1) - value * value);
}
template <class X, unsigned A>
HEED_FN Jet<X, A> quick_tanh_of(Jet<X, A> a) {
  X value = quick_tanh_of(a.v);
  return chain(a, value, X(1) - value * value);
}
template <class X, unsigned A>
HEED_FN Jet<X, A> sigmoid_of(Jet<X, A> a) {
  X value = sigmoid_of(a.v);
  return chain(a, value, value * (X(1) - value));
}
template <class X, unsigned A>
HEED_FN Jet<X, A> erf_of(Jet<X, A> a) {
  return chain(a, erf_of(a.v), X(1.1283791670955126) * exp_of(-(a.v * a.v)));
}

}  // namespace heed
