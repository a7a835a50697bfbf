// A score of your own on the GPU. Its struct lies in a header of yours, which a .cu file includes beside this one:
//
//   #include "cauchy.h"               // struct Cauchy
//   #include "kernels/cuda_score.h"
//   HEED_CUDA_SCORE(Cauchy)
//
// nvcc compiles its kernels there, and wherever the program runs attention with make_score(Cauchy{}) on a device, they
// are found. Programs that are linked with a library of such files must link all of it (--whole-archive).
#pragma once

#include "kernels/attention_kernels.h"
#include "kernels/traits.h"

#define HEED_CUDA_SCORE(...) HEED_CUDA_SCORE_AT(__LINE__, __VA_ARGS__)
#define HEED_CUDA_SCORE_AT(line, ...) HEED_CUDA_SCORE_NAMED(line, __VA_ARGS__)
#define HEED_CUDA_SCORE_NAMED(line, ...)                                        \
  namespace {                                                                   \
  [[maybe_unused]] const bool heed_score_of_line_##line =                       \
      (::heed::enter_own_kernels(::heed::own_kernels_of<__VA_ARGS__>()), true); \
  }

namespace heed {
namespace {

template <class S>
OwnKernels own_kernels_of() {
  static_assert(requires(const S& s, float x) { s.term(x, x, Zero{}, x); },
                "the GPU runs scores that are sums over channels");
  return {&detail::kind_of<S>,
          [](void* stream, warp::Pass pass, const void* self, const warp::Call& call, Offset warps) {
            static const bool follows = can_follow(kernel<warp::Pass::forward, warp::Body::any_width, S>);
            run_pass(static_cast<cudaStream_t>(stream), follows, pass, *static_cast<const S*>(self), call, warps);
          }};
}

}  // namespace
}  // namespace heed
