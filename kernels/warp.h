// A warp: 32 lanes that run the same code side by side. A kernel's body is written once over `Warp`, as regions of
// plain code for one lane (`lanes`) with collective steps (`sum`, `max`, `ballot`, `sync`) between them, on variables
// that each lane has for itself (`PerLane`) and memory that the lanes share (`Shared`). DeviceWarp runs the body in
// CUDA threads. EmulatedWarp runs it on the CPU, lane after lane, adds in the same order, and refuses what would be a
// race on the device: a lane that reads or overwrites what another lane touched with no `sync` in between. Lanes come
// in rising and in falling order by turns, so that a race in other memory gives other results.
#pragma once

#include <cstdint>

#include "kernels/ahead.h"
#include "kernels/fn.h"

#ifdef __CUDACC__
#define HEED_WARP_FN __device__ __forceinline__
#else
#include <bit>
#include <string>
#include <vector>

#include "graph/error.h"
#define HEED_WARP_FN inline
#endif

namespace heed {

inline constexpr int kWarp = 32;

#ifdef __CUDACC__

template <class T>
HEED_WARP_FN T read(const T* from) {
  return __ldg(from);
}  // of what nobody writes while the kernel runs

HEED_WARP_FN int count_bits(std::uint32_t mask) { return __popc(mask); }

struct DeviceWarp {
  template <class T>
  struct PerLane {
    T own;
    HEED_WARP_FN T& operator[](int) { return own; }
  };
  template <class T>
  struct Shared {
    T* at;
    HEED_WARP_FN T get(int, int i) const { return at[i]; }
    HEED_WARP_FN void set(int, int i, T value) const { at[i] = value; }
  };

  template <class F>
  HEED_WARP_FN void lanes(F body) const {
    body(static_cast<int>(threadIdx.x) % kWarp);
  }
  // Over the lanes that differ in the bits from `from` up to below `to`: the sum, the same bits in all of them.
  template <class T>
  HEED_WARP_FN void sum(PerLane<T>& x, int from, int to) const {
    for (int step = from; step < to; step *= 2) x.own += __shfl_xor_sync(~0u, x.own, step);
  }
  template <class T, int n>
  HEED_WARP_FN void sum(PerLane<T> (&x)[n], int from, int to) const {  // of each of them
    for (int step = from; step < to; step *= 2) {
      HEED_UNROLL
      for (int t = 0; t < n; ++t) x[t].own += __shfl_xor_sync(~0u, x[t].own, step);
    }
  }
  template <class T, int n, int m>
  HEED_WARP_FN void sum(PerLane<T> (&x)[m][n], int from, int to) const {
    for (int step = from; step < to; step *= 2) {
      HEED_UNROLL
      for (int t = 0; t < m * n; ++t) x[t / n][t % n].own += __shfl_xor_sync(~0u, x[t / n][t % n].own, step);
    }
  }
  HEED_WARP_FN void max(PerLane<float>& x, int from, int to) const {
    for (int step = from; step < to; step *= 2) {
      float other = __shfl_xor_sync(~0u, x.own, step);
      if (other > x.own) x.own = other;
    }
  }
  HEED_WARP_FN std::uint32_t ballot(PerLane<bool>& x) const { return __ballot_sync(~0u, x.own); }
  template <class T>
  HEED_WARP_FN T pick(PerLane<T>& x, int lane) const {  // for all: what that one has
    return __shfl_sync(~0u, x.own, lane);
  }
  template <class T>
  HEED_WARP_FN T from(PerLane<T>& x, int lane) const {  // in `lanes`, where all are: what lane % kWarp had before
    return __shfl_sync(~0u, x.own, lane);
  }
  HEED_WARP_FN void sync() const { __syncwarp(); }
};

#else

template <class T>
T read(const T* from) {
  return *from;
}

inline int count_bits(std::uint32_t mask) { return std::popcount(mask); }

struct EmulatedWarp {
  int epoch = 0;  // rises at each sync

  template <class T>
  struct PerLane {
    T all[kWarp];
    T& operator[](int lane) { return all[lane]; }
  };
  template <class T>
  struct Cell {
    T value{};
    int epoch = -1, writer = -1;
    std::uint32_t readers = 0;
    bool written = false;
  };
  template <class T>
  class Shared {
   public:
    Shared(const EmulatedWarp& warp, int size) : warp_(&warp), cells_(static_cast<std::size_t>(size)) {}
    T get(int lane, int i) const {
      Cell<T>& cell = touch(i);
      if (!cell.written)
        fail("warp: lane " + std::to_string(lane) + " reads cell " + std::to_string(i) + ", never set");
      if (cell.writer >= 0 && cell.writer != lane) race(lane, "reads", i, cell.writer);
      cell.readers |= 1u << lane;
      return cell.value;
    }
    void set(int lane, int i, T value) const {
      Cell<T>& cell = touch(i);
      if (cell.writer >= 0 && cell.writer != lane) race(lane, "sets", i, cell.writer);
      if (std::uint32_t others = cell.readers & ~(1u << lane)) race(lane, "sets", i, std::countr_zero(others));
      cell.value = value, cell.writer = lane, cell.written = true;
    }
    void forget() {  // what a new task finds in it is not to be read
      for (Cell<T>& cell : cells_) cell = {};
    }

   private:
    Cell<T>& touch(int i) const {
      Cell<T>& cell = cells_.at(static_cast<std::size_t>(i));
      if (cell.epoch != warp_->epoch) cell.epoch = warp_->epoch, cell.writer = -1, cell.readers = 0;
      return cell;
    }
    [[noreturn]] static void race(int lane, const char* what, int i, int other) {
      fail("warp: lane " + std::to_string(lane) + " " + what + " cell " + std::to_string(i) + ", which lane " +
           std::to_string(other) + " touched, with no sync in between");
    }
    const EmulatedWarp* warp_;
    mutable std::vector<Cell<T> > cells_;
  };

  template <class F>
  void lanes(F body) const {
    falls_ = !falls_;
    for (int lane = 0; lane < kWarp; ++lane) body(falls_ ? kWarp - 1 - lane : lane);
  }
  template <class T>
  void sum(PerLane<T>& x, int from, int to) const {
    for (int step = from; step < to; step *= 2) {
      PerLane<T> old = x;
      for (int lane = 0; lane < kWarp; ++lane) x[lane] = old[lane] + old[lane ^ step];
    }
  }
  template <class T, int n>
  void sum(PerLane<T> (&x)[n], int from, int to) const {
    for (auto& each : x) sum(each, from, to);
  }
  template <class T, int n, int m>
  void sum(PerLane<T> (&x)[m][n], int from, int to) const {
    for (auto& each : x) sum(each, from, to);
  }
  void max(PerLane<float>& x, int from, int to) const {
    for (int step = from; step < to; step *= 2) {
      PerLane<float> old = x;
      for (int lane = 0; lane < kWarp; ++lane)
        if (old[lane ^ step] > old[lane]) x[lane] = old[lane ^ step];
    }
  }
  template <class T>
  T pick(PerLane<T>& x, int lane) const {
    return x[lane];
  }
  template <class T>
  T from(PerLane<T>& x, int lane) const {
    return x[lane % kWarp];
  }
  std::uint32_t ballot(PerLane<bool>& x) const {
    std::uint32_t mask = 0;
    for (int lane = 0; lane < kWarp; ++lane) mask |= static_cast<std::uint32_t>(x[lane]) << lane;
    return mask;
  }
  void sync() { ++epoch; }

 private:
  mutable bool falls_ = false;
};

#endif

template <class Warp, class T>
using PerLane = typename Warp::template PerLane<T>;
template <class Warp, class T>
using WarpShared = typename Warp::template Shared<T>;

// How many of the lanes before this one are set in the mask.
HEED_WARP_FN int rank_in(std::uint32_t mask, int lane) { return count_bits(mask & ((1u << lane) - 1)); }

}  // namespace heed
