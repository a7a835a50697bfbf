// The functions from which scores and normalisers are written. Each formula is written once, over numbers of any kind:
// a plain float or double (a GPU thread's view), a vector of lanes (lanes.h, the CPU's view), or a Jet of either
// (jet.h, a value with its partial derivatives). `Zero` is an operand that is known to be absent: it costs nothing.
#pragma once

#include <cmath>
#include <type_traits>

#ifdef __CUDACC__
#define HEED_FN __host__ __device__ __forceinline__
#ifdef __CUDA_ARCH__
#define HEED_UNROLL _Pragma("unroll")
#else
#define HEED_UNROLL
#endif
#else
#define HEED_FN __attribute__((always_inline)) inline
#define HEED_UNROLL _Pragma("GCC unroll 4")
#endif

namespace heed {

struct Zero {};
template <class X>
HEED_FN X operator+(X x, Zero) {
  return x;
}
template <class X>
requires(!std::is_same_v<X, Zero>) HEED_FN X operator+(Zero, X x) { return x; }
template <class X>
HEED_FN X operator-(X x, Zero) {
  return x;
}
template <class X>
requires(!std::is_same_v<X, Zero>) HEED_FN X operator-(Zero, X x) { return -x; }
HEED_FN Zero operator-(Zero) { return {}; }
template <class X>
HEED_FN Zero operator*(X, Zero) {
  return {};
}
template <class X>
requires(!std::is_same_v<X, Zero>) HEED_FN Zero operator*(Zero, X) { return {}; }

// Elementary operations for plain numbers; lanes.h and jet.h overload them for their types.
template <class X>
requires std::is_arithmetic_v<X> HEED_FN X select(bool condition, X yes, X no) { return condition ? yes : no; }
template <class X>
requires std::is_arithmetic_v<X> HEED_FN X exp_of(X x) { return std::exp(x); }
template <class X>
HEED_FN X quick_exp_of(X x) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<X, float>) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * 1.44269504f));
    return power;
  }
#endif
  return exp_of(x);
}
template <class X>
requires std::is_arithmetic_v<X> HEED_FN X log_of(X x) { return std::log(x); }
template <class X>
HEED_FN X quick_log_of(X x) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<X, float>) {
    float power;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power * 0.69314718f;
  }
#endif
  return log_of(x);
}
template <class X>
requires std::is_arithmetic_v<X> HEED_FN X sqrt_of(X x) { return std::sqrt(x); }
template <class X>
requires std::is_arithmetic_v<X> HEED_FN X tanh_of(X x) { return std::tanh(x); }
template <class X>
requires std::is_arithmetic_v<X> HEED_FN X quick_tanh_of(X x) { return std::tanh(x); }
template <class X>
requires std::is_arithmetic_v<X> HEED_FN X erf_of(X x) { return std::erf(x); }

template <class X>
HEED_FN X sigmoid_of(X x) {
  return X(1) / (X(1) + exp_of(-x));
}

// What the authors of scores call. At a kink the derivative is the one of the side x <= 0.
namespace fn {

template <class X>
HEED_FN X exp(X x) {
  return exp_of(x);
}
template <class X>  // for x <= 0 that is no larger than a few tens where the result matters: on GPUs within |x| + 2 ulp
HEED_FN X quick_exp(X x) {
  return quick_exp_of(x);
}
template <class X>
HEED_FN X log(X x) {
  return log_of(x);
}
template <class X>  // for x > 0, where an error of 2e-7 is none: on GPUs
HEED_FN X quick_log(X x) {
  return quick_log_of(x);
}
template <class X>
HEED_FN X sqrt(X x) {
  return sqrt_of(x);
}
template <class X>
HEED_FN X tanh(X x) {
  return tanh_of(x);
}
template <class X>  // in lanes of float within 6 ulp, and as good as 1 where it is within 1e-6 of it: for channels of scores
HEED_FN X quick_tanh(X x) {
  return quick_tanh_of(x);
}
template <class X>
HEED_FN X erf(X x) {
  return erf_of(x);
}
template <class X>
HEED_FN X sigmoid(X x) {
  return sigmoid_of(x);
}
template <class X>
HEED_FN X square(X x) {
  return x * x;
}
template <class X>
HEED_FN X abs(X x) {
  return select(x > X(0), x, select(x < X(0), -x, X(0)));
}
template <class X>
HEED_FN X relu(X x) {
  return select(x > X(0), x, X(0));
}
template <class X>
HEED_FN X leaky(X x, float slope) {
  return select(x > X(0), x, x * X(slope));
}

}  // namespace fn
}  // namespace heed
