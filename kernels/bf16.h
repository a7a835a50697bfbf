// bfloat16: the upper half of a float, rounded to the nearest, ties to even. Storage alone: what is computed with them
// are floats.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/fn.h"

namespace heed {

template <class To, class From>
HEED_FN To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

HEED_FN std::uint16_t to_bf16(float x) {
  const std::uint32_t bits = same_bits<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // stays NaN
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
HEED_FN float from_bf16(std::uint32_t lower) { return same_bits<float>(lower << 16); }  // of the lower 16 bits

}  // namespace heed
