// Vec<T, L>: L numbers side by side, over the vector extensions of GCC and Clang: the compiler chooses the
// instructions. L is a constant of the code and not of the processor, and lanes are always added in one order (fold).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/fn.h"
#include "kernels/random.h"

namespace heed {

template <class T, int L>
struct RawVec {
  typedef T type __attribute__((vector_size(sizeof(T) * L)));
};

template <class T, int L>
struct Vec {
  static constexpr int lanes = L;
  using Raw = typename RawVec<T, L>::type;
  using Integer = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  using Mask = typename RawVec<Integer, L>::type;
  Raw v;

  Vec() = default;
  HEED_FN Vec(Raw raw) : v(raw) {}
  HEED_FN Vec(T x) : v(x - Raw{}) {}
  template <class S>
  requires(std::is_arithmetic_v<S> && !std::is_same_v<S, T>) HEED_FN Vec(S x) : Vec(static_cast<T>(x)) {}

  static HEED_FN Vec load(const T* from) {
    Vec out;
    std::memcpy(&out.v, from, sizeof(Raw));
    return out;
  }
  HEED_FN void store(T* to) const { std::memcpy(to, &v, sizeof(Raw)); }

  friend HEED_FN Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend HEED_FN Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend HEED_FN Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend HEED_FN Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend HEED_FN Vec operator-(Vec a) { return -a.v; }
  friend HEED_FN Mask operator>(Vec a, Vec b) { return a.v > b.v; }
  friend HEED_FN Mask operator<(Vec a, Vec b) { return a.v < b.v; }
  friend HEED_FN Vec select(Mask m, Vec yes, Vec no) { return m ? yes.v : no.v; }
  friend HEED_FN Vec sqrt_of(Vec a) {
    return map(a, [](T x) { return std::sqrt(x); });
  }
  friend HEED_FN Vec log_of(Vec a) {
    if constexpr (std::is_same_v<T, float>)
      return fast_log(a);
    else
      return map(a, [](T x) { return std::log(x); });
  }
  friend HEED_FN Vec tanh_of(Vec a) {
    if constexpr (std::is_same_v<T, float>)
      return fast_tanh(a);
    else
      return map(a, [](T x) { return std::tanh(x); });
  }
  friend HEED_FN Vec quick_tanh_of(Vec a) {
    if constexpr (std::is_same_v<T, float>)
      return rational_tanh(a);
    else
      return tanh_of(a);
  }
  friend HEED_FN Vec erf_of(Vec a) {
    if constexpr (std::is_same_v<T, float>)
      return fast_erf(a);
    else
      return map(a, [](T x) { return std::erf(x); });
  }
  friend HEED_FN Vec exp_of(Vec a) {
    if constexpr (std::is_same_v<T, float>)
      return fast_exp(a);
    else
      return map(a, [](T x) { return std::exp(x); });
  }

 private:
  template <class F>
  static HEED_FN Vec map(Vec a, F f) {
    Vec out;
    for (int l = 0; l < L; ++l) out.v[l] = f(a.v[l]);
    return out;
  }
  // log x = n log 2 + log m with m in [sqrt(1/2), sqrt(2)) (Cephes' logf; below 2 ulp). log 0 = -inf, log inf = inf.
  static HEED_FN Vec fast_log(Vec x) {
    Mask bits;
    std::memcpy(&bits, &x.v, sizeof bits);
    Mask shifted = bits - 0x3f3504f3;  // sqrt(1/2)
    Mask exponent = shifted >> 23;
    Mask mantissa = (shifted & 0x007fffff) + 0x3f3504f3;
    Vec m, n;
    std::memcpy(&m.v, &mantissa, sizeof mantissa);
    for (int l = 0; l < L; ++l) n.v[l] = static_cast<T>(exponent[l]);
    Vec f = m - Vec(1.0f), square = f * f;
    Vec p = 7.0376836292e-2f;
    p = p * f + Vec(-1.1514610310e-1f);
    p = p * f + Vec(1.1676998740e-1f);
    p = p * f + Vec(-1.2420140846e-1f);
    p = p * f + Vec(1.4249322787e-1f);
    p = p * f + Vec(-1.6668057665e-1f);
    p = p * f + Vec(2.0000714765e-1f);
    p = p * f + Vec(-2.4999993993e-1f);
    p = p * f + Vec(3.3333331174e-1f);
    Vec y = p * f * square + n * Vec(-2.12194440e-4f) - square * Vec(0.5f);
    Vec result = f + y + n * Vec(0.693359375f);
    result = select(x > Vec(0.0f), result, select(x < Vec(0.0f), Vec(__builtin_nanf("")), Vec(-__builtin_inff())));
    return select(x > Vec(3.4e38f), x, result);  // NaN compares as neither and becomes -inf: callers never pass it
  }
  template <class... C>
  static HEED_FN Vec polynomial(Vec x, float first, C... rest) {  // from the highest power down
    Vec p = first;
    ((p = p * x + Vec(rest)), ...);
    return p;
  }
  // Cephes' tanhf: an odd polynomial where |x| < 0.625, else 1 - 2 / (e^2|x| + 1). Below 3 ulp.
  static HEED_FN Vec fast_tanh(Vec x) {
    const Vec size = select(x < Vec(0.0f), -x, x), z = x * x;
    const Vec far = Vec(1.0f) - Vec(2.0f) / (fast_exp(size + size) + Vec(1.0f));
    const Vec near =
        polynomial(z, -5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f);
    return select(size < Vec(0.625f), near * z * x + x, select(x < Vec(0.0f), -far, far));
  }
  // x P(x^2) / Q(x^2), fitted for the least relative error (2e-8) over |x| < 9.02, beyond which tanh rounds to 1. Below
  // 6 ulp, and below 4 where |x| < 2.
  static HEED_FN Vec rational_tanh(Vec x) {
    const Vec end = 9.02f, one = 1.0f;
    x = select(x > end, end, select(x < -end, -end, x));
    const Vec z = x * x;
    const Vec p = polynomial(z, 1.33178098791741e-8f, 2.0582572320443757e-5f, 3.493980255735892e-3f,
                             1.337967286447182e-1f, 9.999999791950976e-1f);
    const Vec q = polynomial(z, 7.761502177773094e-7f, 3.283003181426453e-4f, 2.5870868402721212e-2f,
                             4.6712988172681497e-1f, 1.0f);
    const Vec y = x * p / q;
    return select(y > one, one, select(y < -one, -one, y));
  }
  // Cephes' erff: an odd polynomial where |x| < 1, else 1 - e^-x^2 / |x| times a polynomial in 1 / x^2. Below 3 ulp.
  static HEED_FN Vec fast_erf(Vec x) {
    const Vec size = select(x < Vec(0.0f), -x, x), z = x * x, inverse = Vec(1.0f) / size, w = inverse * inverse;
    const Vec near =
        polynomial(z, 7.853861353153693e-5f, -8.010193625184903e-4f, 5.188327685732524e-3f, -2.685381193529856e-2f,
                   1.128358514861418e-1f, -3.761262582423300e-1f, 1.128379165726710f);
    const Vec middle = polynomial(w, 2.326819970068386e-2f, -1.387039388740657e-1f, 3.687424674597105e-1f,
                                  -5.824733027278666e-1f, 6.210004621745983e-1f, -4.944515323274145e-1f,
                                  3.404879937665872e-1f, -2.741127028184656e-1f, 5.638259427386472e-1f);
    const Vec last =
        polynomial(w, -1.047766399936249e+1f, 1.297719955372516e+1f, -7.495518717768503f, 2.921019019210786f,
                   -1.015265279202700f, 4.218463358204948e-1f, -2.820767439740514e-1f, 5.641895067754075e-1f);
    const Vec far = Vec(1.0f) - fast_exp(-z) * inverse * select(size < Vec(2.0f), middle, last);
    return select(size < Vec(1.0f), near * x, select(x < Vec(0.0f), -far, far));
  }
  // e^x = 2^n e^r with |r| <= ln 2 / 2 (Cephes' expf; below 2 ulp). NaN stays NaN; under -87.3 the result is 0, above
  // 88.37, where 2^n ends, infinite.
  static HEED_FN Vec fast_exp(Vec x) {
    Vec shifted = x * Vec(1.44269504f) + Vec(12582912.0f);  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
    Vec n = shifted - Vec(12582912.0f);
    Vec r = (x - n * Vec(0.693359375f)) - n * Vec(-2.12194440e-4f);
    Vec p = 1.9875691500e-4f;
    p = p * r + Vec(1.3981999507e-3f);
    p = p * r + Vec(8.3334519073e-3f);
    p = p * r + Vec(4.1665795894e-2f);
    p = p * r + Vec(1.6666665459e-1f);
    p = p * r + Vec(5.0000001201e-1f);
    p = (p * r) * r + r + Vec(1.0f);
    typedef std::uint32_t Bits __attribute__((vector_size(sizeof(Vec))));  // whose sums may run over
    Bits bits;
    std::memcpy(&bits, &shifted.v, sizeof bits);
    Bits power = (bits << 23) + (127u << 23);
    Vec scale;
    std::memcpy(&scale.v, &power, sizeof power);
    Vec result = select(x < Vec(-87.3f), Vec(0.0f), p * scale);
    return select(x > Vec(88.37f), Vec(__builtin_inff()), result);
  }
};

// The sum of all lanes, always as ((0+4)+(2+6)) + ((1+5)+(3+7)).
template <class T, int L>
HEED_FN T fold(Vec<T, L> a) {
  if constexpr (L == 1) {
    return a.v[0];
  } else {
    Vec<T, L / 2> low, high;
    std::memcpy(&low.v, &a.v, sizeof low.v);
    std::memcpy(&high.v, reinterpret_cast<const char*>(&a.v) + sizeof low.v, sizeof high.v);
    return fold(low + high);
  }
}

// fold() of four vectors at once, with the same order of addition and half the instructions.
template <class T>
HEED_FN Vec<T, 4> fold_four(Vec<T, 8> a, Vec<T, 8> b, Vec<T, 8> c, Vec<T, 8> d) {
  using V = Vec<T, 8>;
  auto halves = [](V x, V y) {  // x's halves added in the lower half, y's in the upper one
    return V(__builtin_shufflevector(x.v, y.v, 0, 1, 2, 3, 12, 13, 14, 15)) +
           V(__builtin_shufflevector(x.v, y.v, 4, 5, 6, 7, 8, 9, 10, 11));
  };
  V ab = halves(a, b), cd = halves(c, d);
  V pairs = V(__builtin_shufflevector(ab.v, cd.v, 0, 1, 10, 11, 4, 5, 14, 15)) +
            V(__builtin_shufflevector(ab.v, cd.v, 2, 3, 8, 9, 6, 7, 12, 13));  // of a, c, b and d
  V all = pairs + V(__builtin_shufflevector(pairs.v, pairs.v, 1, 0, 3, 2, 5, 4, 7, 6));
  return Vec<T, 4>(__builtin_shufflevector(all.v, all.v, 0, 4, 2, 6));
}

// The vector with the lanes from `count` on set to `fill`.
template <class T, int L>
HEED_FN Vec<T, L> keep_first(Vec<T, L> a, int count, T fill = 0) {
  using Integer = typename Vec<T, L>::Integer;
  typename Vec<T, L>::Mask lane;
  for (int l = 0; l < L; ++l) lane[l] = l;
  return select(lane < static_cast<Integer>(count), a, Vec<T, L>(fill));
}

// The first `count` lanes alone.
template <class T>
HEED_FN void store_first(Vec<T, 8> a, int count, T* to) {
  if (count >= 8) return a.store(to);
  if (count & 4) {
    std::memcpy(to, &a.v, 4 * sizeof(T));
    a.v = __builtin_shufflevector(a.v, a.v, 4, 5, 6, 7, 4, 5, 6, 7), to += 4;
  }
  if (count & 2) {
    std::memcpy(to, &a.v, 2 * sizeof(T));
    a.v = __builtin_shufflevector(a.v, a.v, 2, 3, 2, 3, 2, 3, 2, 3), to += 2;
  }
  if (count & 1) *to = a.v[0];
}

// Lanes of dropout: 0 where the draw for (row key, column, head) says so, else `scale`.
using Words = typename RawVec<std::uint32_t, 8>::type;
template <class T, class W>
HEED_FN Vec<T, sizeof(W) / 4> drop_factors(W key_low, W key_high, W column, W head, std::uint32_t threshold, T scale) {
  using V = Vec<T, sizeof(W) / 4>;
  const W bits = drop_bits(key_low, key_high, column, head);
  if constexpr (sizeof(T) == 4) return V(bits < threshold ? V(T(0)).v : V(scale).v);
  V out;
  for (int l = 0; l < V::lanes; ++l) out.v[l] = bits[l] < threshold ? T(0) : scale;
  return out;
}

}  // namespace heed
