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
  if (body == warp::Body::lanes) return contracts_of<S> ? 20 : 16;
  if (body == warp::Body::any_width) return 24;
  if constexpr (pass == warp::Pass::row)
    return contracts_of<S> ? 28 : warp::reads_vector<S> || !linear_finish<S> ? 20 : 24;
  if (pass == warp::Pass::column) return contracts_of<S> ? 28 : 20;
  return 28;
}();

// Fetches what a work item begins with: its block, where its lists begin, and their columns. Nobody writes these, so it
// need not wait for the kernel before.
template <warp::Pass pass>
__device__ __forceinline__ void look_ahead(const warp::Call& call) {
  using enum warp::Pass;
  if constexpr (pass == forward || pass == row || pass == column || pass == weigh) {
    if (!call.rows.listed()) return;
    const Block* block = call.rows.blocks + blockIdx.x;
    const Offset at = call.rows.offsets[block->first] + threadIdx.x;
    if (at < call.rows.offsets[block->last]) asm volatile("prefetch.global.L1 [%0];" ::"l"(call.rows.ids + at));
  }
}

template <warp::Pass pass, warp::Body body, class S>
__global__ void __launch_bounds__(kWarp, kWarps<pass, body, S>)
    kernel(const __grid_constant__ warp::Call call, const __grid_constant__ S score) {
  __shared__ Shares own;
  DeviceWarp lanes;
  look_ahead<pass>(call);
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
