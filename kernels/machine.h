// Where the bodies of attention_warp.h and attention_lanes.h run: a machine has memory of its own and runs a pass over
// a number of warps. attention.cu is the one with a GPU; EmulatedMachine is the CPU in its place. What to run, over
// which arrays, is the same for both (device.cpp).
#pragma once

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/attention_lanes.h"
#include "kernels/matrix.h"

namespace heed {

struct DevicePatterns;

class Machine : public Memory {
 public:
  // `score` is a place in the machine's list of scores, `self` that score. Runs after what was begun before.
  virtual void run(warp::Pass pass, int score, const void* self, const warp::Call& call, Offset warps) = 0;
  // How long what `work` begins there takes, by the machine's own clock.
  virtual double milliseconds(const std::function<void()>& work) = 0;
  // The most bytes that were allocated at once since the last call.
  virtual std::size_t peak_bytes() = 0;

  std::shared_ptr<DevicePatterns> patterns;  // that it has been given lately
};

// For `Scores`, on a stream of the caller's (a cudaStream_t). Throws Error where there is no device.
std::unique_ptr<Machine> cuda_machine(void* stream);
// One for the process, with a stream of its own.
Machine& cuda_machine();

// The kernels of a score that is not of the menu (cuda_score.h); its place is behind the menu's.
struct OwnKernels {
  const void* kind;  // as Score::kind
  void (*run)(void* stream, warp::Pass pass, const void* self, const warp::Call& call, Offset warps);
};
void enter_own_kernels(const OwnKernels& kernels);
const std::vector<OwnKernels>& own_kernels();

// Calls body.template operator()<pass>() for the pass of that name.
template <class Body>
void with_pass(warp::Pass pass, Body body) {
  using enum warp::Pass;
  switch (pass) {
    case forward:
      return body.template operator()<forward>();
    case threshold:
      return body.template operator()<threshold>();
    case delta:
      return body.template operator()<delta>();
    case measure:
      return body.template operator()<measure>();
    case row:
      return body.template operator()<row>();
    case column:
      return body.template operator()<column>();
    case merge_forward:
      return body.template operator()<merge_forward>();
    case merge_row:
      return body.template operator()<merge_row>();
    case merge_column:
      return body.template operator()<merge_column>();
    case reduce:
      return body.template operator()<reduce>();
    case learned:
      return body.template operator()<learned>();
    case weigh:
      return body.template operator()<weigh>();
    case narrow:
      return body.template operator()<narrow>();
  }
}
// Passes that read the score; the others are the same for all.
inline constexpr bool reads_score(warp::Pass pass) {
  using enum warp::Pass;
  return pass == threshold || pass == forward || pass == measure || pass == row || pass == column;
}
// Calls f.template operator()<body>() for the body of that name, where the pass has one.
template <warp::Pass pass, class F>
void with_body(warp::Body body, F f) {
  using enum warp::Pass;
  if constexpr (pass == forward || pass == row || pass == column) {
    if (body == warp::Body::lanes) return f.template operator()<warp::Body::lanes>();
    if (body == warp::Body::plain_lanes) return f.template operator()<warp::Body::plain_lanes>();
    if (body == warp::Body::half_lanes) return f.template operator()<warp::Body::half_lanes>();
  }
  if constexpr (pass == weigh) {
    if (body == warp::Body::plain_lanes) return f.template operator()<warp::Body::plain_lanes>();
    return f.template operator()<warp::Body::lanes>();
  }
  if constexpr (pass == delta)
    if (body != warp::Body::any_width) return f.template operator()<warp::Body::lanes>();
  f.template operator()<warp::Body::any_width>();
}
// Scores that differ in what becomes of q and k before, and not in their kernels, have one set of them.
template <class S>
using KernelScore =
    std::conditional_t<std::is_same_v<S, scores::Bilinear>, scores::Dot,
                       std::conditional_t<std::is_same_v<S, scores::Pearson>, scores::Cosine, S>>;
// Calls body(score) with the entry of that number of a std::tuple type.
template <class List, int at = 0, class Body>
void with_score(int index, const void* self, Body body) {
  if constexpr (at < std::tuple_size_v<List>) {
    using S = std::tuple_element_t<at, List>;
    if (index == at)
      body(static_cast<const KernelScore<S>&>(*static_cast<const S*>(self)));
    else
      with_score<List, at + 1>(index, self, body);
  }
}

#ifndef __CUDACC__

template <class List = Scores>
class EmulatedMachine : public Machine {
 public:
  ~EmulatedMachine() override { patterns.reset(); }  // while it can take back their memory
  void* allocate(std::size_t bytes) override {       // filled with NaN: what is read must have been written
    void* at = std::malloc(bytes);
    return at ? std::memset(at, 0xff, bytes) : nullptr;
  }
  void release(void* at) noexcept override { std::free(at); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  double milliseconds(const std::function<void()>& work) override {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  std::size_t peak_bytes() override { return 0; }
  void run(warp::Pass pass, int score, const void* self, const warp::Call& call, Offset warps) override {
    with_pass(pass, [&]<warp::Pass chosen>() {
      auto run_with = [&](const auto& s) {
        with_body<chosen>(call.body, [&]<warp::Body body>() {
          for (Offset t = 0; t < warps; ++t) {
            memory_.s.forget(), memory_.dw.forget(), memory_.factors.forget();
            memory_.ids.forget(), memory_.edges.forget();
            warp::run<chosen, body>(warp_, memory_, call, s, t);
          }
        });
      };
      if constexpr (reads_score(chosen))
        with_score<List>(score, self, run_with);
      else
        run_with(Zero{});
    });
  }

 private:
  EmulatedWarp warp_;
  warp::Memory<EmulatedWarp> memory_{
      {warp_, warp::kSlots}, {warp_, warp::kSlots}, {warp_, 2 * warp::kMaxHeads}, {warp_, kWarp}, {warp_, kWarp}};
};

#endif

}  // namespace heed
