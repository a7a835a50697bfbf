// The CUDA kernels of the fused attention operator: the bodies of attention_warp.h and attention_lanes.h, one for each
// score and pass, launched with a warp per work item. A thread block is one warp: items differ in length, and warps
// that end early make room for others. For nvcc alone.
#pragma once

#pragma nv_diag_suppress 128  // "loop is not reachable": what some kernels leave out, by design

#include "kernels/cuda_calls.h"
#include "kernels/machine.h"
#include "kernels/traits.h"

namespace heed {
namespace {  // each .cu file launches the kernels that it compiled

struct Shares {  // a warp's shared memory
  float s[warp::kSlots], dw[warp::kSlots], factors[2 * warp::kMaxHeads];
  Offset edges[kWarp];
  Id ids[kWarp];
};

// Warps that fit a multiprocessor, by their registers: as many as leave room for what a lane has under way. The four
// schedulers share alike, so only multiples of 4 differ.
template <warp::Pass pass, warp::Body body, class S>
inline constexpr int kWarps = [] {
  if (body == warp::Body::lanes) return 12;
  if (body == warp::Body::any_width) return 24;
  if (pass == warp::Pass::row || pass == warp::Pass::column) return 20;
  return contracts_of<S> ? 32 : 24;
}();

template <warp::Pass pass, warp::Body body, class S>
__global__ void __launch_bounds__(kWarp, kWarps<pass, body, S>)
    kernel(const __grid_constant__ warp::Call call, const __grid_constant__ S score) {
  __shared__ Shares own;
  DeviceWarp lanes;
  follow();
  warp::Memory<DeviceWarp> memory{{own.s}, {own.dw}, {own.factors}, {own.ids}, {own.edges}};
  warp::run<pass, body>(lanes, memory, call, score, Offset{blockIdx.x});
}

// A pass of a call, with the kernels of that score; of one that reads no score, with those of Zero.
template <class S>
void run_pass(cudaStream_t stream, bool follows, warp::Pass pass, const S& score, const warp::Call& call,
              Offset warps) {
  with_pass(pass, [&]<warp::Pass chosen>() {
    if constexpr (reads_score(chosen) != std::is_same_v<S, Zero>)
      with_body<chosen>(call.body, [&]<warp::Body body>() {
        launch(stream, follows, kernel<chosen, body, S>, warps, kWarp, call, score);
      });
  });
}

}  // namespace
}  // namespace heed
