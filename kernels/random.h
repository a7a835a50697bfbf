// Counter-based random numbers: a number is a hash of what it is for, so nothing is stored, any thread draws the same,
// and the backward pass, the CPU and the GPU agree.
#pragma once

#include <cstdint>

#include "kernels/fn.h"

namespace heed {

// SplitMix64's finaliser (Steele, Lea & Flood 2014).
HEED_FN std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
HEED_FN std::uint64_t mix(std::uint64_t key, std::uint64_t x) { return mix(key ^ mix(x)); }

// Uniform in [0, 1): number i of the stream `key`.
HEED_FN double uniform(std::uint64_t key, std::uint64_t i) { return static_cast<double>(mix(key, i) >> 11) * 0x1p-53; }

// Standard normal (Box & Muller 1958): number i of the stream `key`.
inline double normal(std::uint64_t key, std::uint64_t i) {
  double u = 1.0 - uniform(key, 2 * i);
  double angle = 6.283185307179586 * uniform(key, 2 * i + 1);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(angle);
}

// A sequence of draws, for the places where the order of drawing is fixed.
class Random {
 public:
  explicit Random(std::uint64_t seed) : key_(mix(seed)) {}
  std::uint64_t next() { return mix(key_, count_++); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double normal() { return heed::normal(next(), 0); }
  std::uint64_t below(std::uint64_t n) {
    return static_cast<std::uint64_t>(static_cast<unsigned __int128>(next()) * n >> 64);
  }

 private:
  std::uint64_t key_;
  std::uint64_t count_ = 0;
};

// Dropout: each element of a row is kept with probability 1 - rate, and then divided by it.
struct Dropout {
  float rate = 0;         // 0 <= rate < 1; 0: nothing is dropped
  std::uint64_t key = 0;  // mixes seed, step and layer
  const std::uint64_t* key_at = nullptr;  // on a device, where the key lies that changes from step to step

  HEED_FN std::uint32_t threshold() const { return static_cast<std::uint32_t>(rate * 4294967296.0); }
  HEED_FN float scale() const { return 1.0f / (1.0f - rate); }
  HEED_FN std::uint64_t row_key(std::uint64_t i) const { return mix(key, i); }
};

// 32 well-mixed bits for (row key, column, head); dropped where they are below the threshold. Written over 32-bit
// words, so that it runs in vector lanes (two rounds of MurmurHash3's finaliser with the key's halves between them).
template <class Word>
HEED_FN Word drop_bits(Word key_low, Word key_high, Word column, Word head) {
  Word x = (column ^ key_low) * 0x85ebca6bu;
  x ^= x >> 15;
  x = (x + head * 0x9e3779b1u) * 0xc2b2ae35u;
  x ^= (x >> 13) ^ key_high;
  x *= 0x27d4eb2fu;
  return x ^ (x >> 16);
}
HEED_FN std::uint32_t drop_bits(std::uint64_t row_key, std::uint32_t column, std::uint32_t head) {
  return drop_bits<std::uint32_t>(static_cast<std::uint32_t>(row_key), static_cast<std::uint32_t>(row_key >> 32),
                                  column, head);
}

// A keyed permutation of [0, n), and its inverse: a Feistel network (Luby & Rackoff 1988) over the smallest power of 4
// that holds n; what leaves [0, n) walks on along its cycle until it is back (Black & Rogaway 2002). Nothing is stored.
class Permutation {
 public:
  HEED_FN Permutation(std::uint32_t n, std::uint64_t key) : n_(n), key_(mix(key)) {
    while ((std::uint64_t{1} << 2 * half_) < n) ++half_;
  }
  HEED_FN std::uint32_t operator()(std::uint32_t x) const {
    do {
      std::uint32_t left = x >> half_, right = x & low();
      for (int r = 0; r < kRounds; ++r) {
        const std::uint32_t next = left ^ turn(right, r);
        left = right, right = next;
      }
      x = left << half_ | right;
    } while (x >= n_);
    return x;
  }
  HEED_FN std::uint32_t inverse(std::uint32_t x) const {
    do {
      std::uint32_t left = x >> half_, right = x & low();
      for (int r = kRounds; r-- > 0;) {
        const std::uint32_t last = right ^ turn(left, r);
        right = left, left = last;
      }
      x = left << half_ | right;
    } while (x >= n_);
    return x;
  }

 private:
  static constexpr int kRounds = 6;
  HEED_FN std::uint32_t low() const { return (std::uint32_t{1} << half_) - 1; }
  HEED_FN std::uint32_t turn(std::uint32_t x, int round) const {
    return drop_bits(key_, x, static_cast<std::uint32_t>(round)) & low();
  }

  std::uint32_t n_;
  int half_ = 1;  // bits of a half
  std::uint64_t key_;
};

// Of the nodes 0..n-1 in a step: the permutation number t of those that a mask draws, and the order of which key rules
// keep the first.
HEED_FN Permutation mask_draw(std::uint32_t n, std::uint64_t stream, std::uint64_t step, int t) {
  return {n, mix(mix(stream, step), static_cast<std::uint64_t>(t))};
}
HEED_FN Permutation keys_order(std::uint32_t n, std::uint64_t stream, std::uint64_t step) {
  return {n, mix(stream, step)};
}

}  // namespace heed
