// What all CUDA files share: checked calls, and kernels that are brought in while the one before them still runs.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "graph/csr.h"

namespace heed {

inline void checked(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  (void)cudaGetLastError();  // it has been told; what is not sticky is over
  const std::string text(call);
  fail("CUDA: " + text.substr(0, text.find('(')) + ": " + cudaGetErrorString(result));
}
#define HEED_CHECKED(call) ::heed::checked(call, #call)

// Zeros, in the stream's turn. Throws Error that says what was asked for and what there is.
inline void* device_memory(std::size_t bytes, cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  HEED_CHECKED(cudaStreamIsCapturing(stream, &status));
  if (status != cudaStreamCaptureStatusNone) fail("CUDA: a captured step wants new memory");
  void* at = nullptr;
  const cudaError_t result = cudaMallocAsync(&at, bytes, stream);
  if (result == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // so that others can go on
    std::size_t free = 0, all = 0;
    (void)cudaMemGetInfo(&free, &all);
    int device = 0;
    cudaMemPool_t pool = nullptr;
    std::uint64_t has = 0, uses = 0;  // what the pool keeps for who asks next is free, too
    if (cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetDefaultMemPool(&pool, device) == cudaSuccess &&
        cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &has) == cudaSuccess &&
        cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &uses) == cudaSuccess)
      free += static_cast<std::size_t>(has - uses);
    auto mib = [](std::size_t n) { return std::to_string(n >> 20) + " MiB"; };
    fail("out of memory on the GPU: " + mib(bytes) + " more are wanted, " + mib(free) + " of " + mib(all) +
         " are free; fewer heads or channels need less, and rows stored as bf16 where they are gathered");
  }
  checked(result, "cudaMallocAsync(");
  HEED_CHECKED(cudaMemsetAsync(at, 0, bytes, stream));
  return at;
}

// On Hopper a kernel may be brought in before the one before it has ended (programmatic dependent launch): most kernels
// of a small graph take no longer than that. It begins with follow(): what comes before has then ended, and is seen;
// what comes after may be brought in.
__device__ __forceinline__ void follow() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
// Whether the kernels of a file, of which this is one, begin so: where the device runs what was compiled for an older
// one, they do not.
template <class... Arguments>
bool can_follow(void (*kernel)(Arguments...)) {
  cudaFuncAttributes about{};
  HEED_CHECKED(cudaFuncGetAttributes(&about, kernel));
  return about.ptxVersion >= 90;
}
template <class... Kernel, class... Arguments>
void launch(cudaStream_t stream, bool follows, void (*kernel)(Kernel...), Offset blocks, int threads,
            const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks)), config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &attribute, config.numAttrs = follows ? 1 : 0;
  HEED_CHECKED(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace heed
