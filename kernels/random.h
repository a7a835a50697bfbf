// Counter-based random numbers: a number is a hash of what it is for, so nothing is stored, any thread draws the same,
// and the backward pass, the CPU and the GPU agree.
#pragma once

#include <cstdint>

#include "kernels/ahead.h"
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
  HEED_FN std::uint32_t operator()(std::uint32_t x) const { return go(x, false); }
  HEED_FN std::uint32_t inverse(std::uint32_t x) const { return go(x, true); }
  HEED_FN std::uint32_t go(std::uint32_t x, bool back) const {
    do {
      // Backwards the halves change places, and the rounds their order.
      std::uint32_t a = x >> half_, b = x & low();
      if (back) swap(a, b);
      for (int t = 0; t < kRounds; ++t) {
        const std::uint32_t next =
            a ^ (drop_bits(key_, b, static_cast<std::uint32_t>(back ? kRounds - 1 - t : t)) & low());
        a = b, b = next;
      }
      if (back) swap(a, b);
      x = a << half_ | b;
    } while (x >= n_);
    return x;
  }
  HEED_FN std::uint32_t count() const { return n_; }

 private:
  static constexpr int kRounds = 6;
  HEED_FN std::uint32_t low() const { return (std::uint32_t{1} << half_) - 1; }
  static HEED_FN void swap(std::uint32_t& a, std::uint32_t& b) {
    const std::uint32_t c = a;
    a = b, b = c;
  }

  std::uint32_t n_;
  int half_ = 1;  // bits of a half
  std::uint64_t key_;
};

// A map of the nodes 0..n-1 onto themselves, by a permutation pi: i to pi(i); or, of the cycle pi(0), pi(1), ...,
// pi(n - 1), pi(0), i to the node after it or before it; or to the other of a pair pi(0) pi(1), pi(2) pi(3), ..., of
// which the last node of an odd number has none and goes to itself.
enum class Turn : int { image, after, before, partner };
struct NodeMap {
  Permutation pi{1, 0};
  Turn turn = Turn::image;

  HEED_FN std::uint32_t operator()(std::uint32_t i) const { return go(i, false); }
  HEED_FN std::uint32_t inverse(std::uint32_t i) const { return go(i, true); }
  HEED_FN std::uint32_t go(std::uint32_t i, bool back) const {
    const bool turns = turn != Turn::image;
    const std::uint32_t n = pi.count();
    std::uint32_t x = i;
    // To the place in the order, on from there, and to the node at that place: of an image one of both ways.
    HEED_ONE_BY_ONE
    for (int way = turns || back ? 0 : 1; way <= (turns || !back ? 1 : 0); ++way) {
      x = pi.go(x, way == 0);
      if (!turns || way > 0) continue;
      if (turn == Turn::partner) {
        if ((x ^= 1) >= n) return i;
      } else if ((turn == Turn::after) != back) {
        x = x + 1 < n ? x + 1 : 0;
      } else {
        x = x > 0 ? x - 1 : n - 1;
      }
    }
    return x;
  }
  HEED_FN bool seen(std::uint32_t i, std::uint32_t to) const { return turn == Turn::image || to != i; }
};

// What a row of a mask draws anew in each step: `count` nodes, each by a map of its own; or, where they are `regular`,
// both neighbours on each of count / 2 cycles, and a partner where one is left.
struct Drawing {
  int count = 0;
  bool regular = false;
  std::uint64_t stream = 0;
  HEED_FN NodeMap map(std::uint32_t n, std::uint64_t step, int t) const {
    const auto key = mix(mix(stream, step), static_cast<std::uint64_t>(regular ? t / 2 : t));
    const Turn turn = t % 2 == 1 ? Turn::before : t + 1 < count ? Turn::after : Turn::partner;
    return {Permutation(n, key), regular ? turn : Turn::image};
  }
};

// Of the nodes in a step, the order of which key rules keep the first.
HEED_FN Permutation keys_order(std::uint32_t n, std::uint64_t stream, std::uint64_t step) {
  return {n, mix(stream, step)};
}

}  // namespace heed
