// As many lanes as a register of this instruction set has, where that is more than kLanes: for loops in which no lane
// meets another, so that each number's bits stay the same.
#pragma once

#include <utility>

#include "kernels/lanes.h"

namespace heed {

#ifdef __AVX512F__
inline constexpr int kWideBytes = 64;
#else
inline constexpr int kWideBytes = 32;
#endif
inline constexpr int kWideLanes = kWideBytes / sizeof(float);
template <class T>
using WideVec = Vec<T, sizeof(T) == 4 ? kWideLanes : 8>;

// Vectors of 8 side by side, as one; and apart again.
template <int lanes>
HEED_FN Vec<float, lanes> joined(const Vec<float, 8>* x) {
  if constexpr (lanes == 8)
    return x[0];
  else
    return Vec<float, lanes>(
        __builtin_shufflevector(x[0].v, x[1].v, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
template <int lanes>
HEED_FN void split(Vec<float, lanes> x, Vec<float, 8>* to) {
  if constexpr (lanes == 8) {
    to[0] = x;
  } else {
    to[0] = Vec<float, 8>(__builtin_shufflevector(x.v, x.v, 0, 1, 2, 3, 4, 5, 6, 7));
    to[1] = Vec<float, 8>(__builtin_shufflevector(x.v, x.v, 8, 9, 10, 11, 12, 13, 14, 15));
  }
}
// Vector g of `lanes` channels, for heads of `width` of them: in each lane the number of its head, of 8 in x or at it.
template <int lanes, int width, int g>
HEED_FN Vec<float, lanes> of_heads(Vec<float, 8> x) {
  if constexpr (width >= lanes)
    return x.v[g * lanes / width];
  else
    return [&]<int... l>(std::integer_sequence<int, l...>) {
      return Vec<float, lanes>(__builtin_shufflevector(x.v, x.v, (g * lanes + l) / width...));
    }(std::make_integer_sequence<int, lanes>{});
}
template <int lanes, int width, int g>
HEED_FN Vec<float, lanes> of_heads(const float* x) {
  if constexpr (width >= lanes)
    return x[g * lanes / width];
  else
    return of_heads<lanes, width, g>(Vec<float, 8>::load(x));
}

// The first `count` lanes alone.
HEED_FN void store_first(Vec<float, 16> a, int count, float* to) {
  if (count >= 16) return a.store(to);
  Vec<float, 8> half[2];
  split(a, half);
  store_first(half[0], count, to);
  if (count > 8) store_first(half[1], count - 8, to + 8);
}

}  // namespace heed
