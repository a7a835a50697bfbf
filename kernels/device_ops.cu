// The device of device_ops.h with CUDA: one stream, on which all work comes one after the other; replays are CUDA
// graphs. On Hopper a kernel is brought in while the one before it still runs, and waits for its end: most kernels of a
// small graph take no longer than that takes (programmatic dependent launch).
#include <cuda_runtime.h>

#pragma nv_diag_suppress 554  // of View<const T>, whose conversion to itself is never called

#include "kernels/device_attention.h"
#include "kernels/device_bodies.h"

namespace heed {

bool device_available();  // as in device.h

namespace {

constexpr int kThreads = 128;  // of a block, where bodies run by the index

void checked(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  (void)cudaGetLastError();  // it has been told; what is not sticky is over
  const std::string text(call);
  fail("CUDA: " + text.substr(0, text.find('(')) + ": " + cudaGetErrorString(result));
}
#define HEED_CHECKED(call) checked(call, #call)

// What comes before has ended, and is seen; what comes after may be brought in.
__device__ __forceinline__ void follow() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

template <class Body>
__global__ void __launch_bounds__(kThreads) each(const __grid_constant__ Body body, Offset count) {
  follow();
  const Offset t = Offset{blockIdx.x} * kThreads + threadIdx.x;
  if (t < count) body(t);
}

template <class Body>
__global__ void __launch_bounds__(Body::kThreads) in_blocks(const __grid_constant__ Body body) {
  __shared__ typename Body::Shared shared;
  typename Body::Local local;
  follow();
  const Offset block = blockIdx.x;
  const int steps = body.steps(block);
  for (int s = 0; s < steps; ++s) {
    if (s > 0) __syncthreads();
    body.step(s, block, static_cast<int>(threadIdx.x), shared, local);
  }
}

class Graph : public Replay {
 public:
  Graph(DeviceOps& device, cudaGraph_t graph, cudaStream_t stream) : device_(device), stream_(stream) {
    const cudaError_t result = cudaGraphInstantiate(&ready_, graph, 0);
    (void)cudaGraphDestroy(graph);
    checked(result, "cudaGraphInstantiate(");
  }
  ~Graph() override { (void)cudaGraphExecDestroy(ready_); }
  void run() override {
    device_.flush();
    HEED_CHECKED(cudaGraphLaunch(ready_, stream_));
  }

 private:
  DeviceOps& device_;
  cudaStream_t stream_;
  cudaGraphExec_t ready_ = nullptr;
};

class CudaOps : public DeviceOps {
 public:
  CudaOps() {
    HEED_CHECKED(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    HEED_CHECKED(cudaMallocHost(&near_, kNear));
    int device = 0, major = 0;
    HEED_CHECKED(cudaGetDevice(&device));
    HEED_CHECKED(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    follows_ = major >= 9;
    machine_ = cuda_machine(stream_);
  }
  ~CudaOps() override {
    (void)cudaStreamSynchronize(stream_);
    release_rooms();
    machine_.reset();
    (void)cudaFreeHost(near_);
    (void)cudaStreamDestroy(stream_);
  }

  void* allocate(std::size_t bytes) override {
    if (capturing_) fail("CUDA: a captured step wants new memory");
    void* at = nullptr;
    const cudaError_t result = cudaMalloc(&at, bytes);
    if (result == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();  // else it shows in the next call
      std::size_t free = 0, all = 0;
      (void)cudaMemGetInfo(&free, &all);
      fail("out of memory on the GPU: " + megabytes(bytes) + " more are wanted, " + megabytes(free) + " of " +
           megabytes(all) + " are free");
    }
    checked(result, "cudaMalloc(");
    HEED_CHECKED(cudaMemsetAsync(at, 0, bytes, stream_));
    return at;
  }
  void release(void* at) noexcept override {
    try {
      flush();  // what waits may want this memory
    } catch (const Error&) {
    }
    (void)cudaStreamSynchronize(stream_);
    (void)cudaFree(at);  // a failure here shows in the next call
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes == 0) return;
    if (capturing_) fail("CUDA: a captured step wants to copy");
    flush();
    if (bytes > kNear || !on_device(from)) {
      HEED_CHECKED(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
      HEED_CHECKED(cudaStreamSynchronize(stream_));
      return;
    }
    // Few numbers: by way of memory that the device writes itself.
    HEED_CHECKED(cudaMemcpyAsync(near_, from, bytes, cudaMemcpyDefault, stream_));
    HEED_CHECKED(cudaStreamSynchronize(stream_));
    if (on_device(to))
      HEED_CHECKED(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
    else
      std::memcpy(to, near_, bytes);
  }

  void run(int body, const void* self, Offset count) override {
    bodies::with_body(body, self, [&](const auto& chosen) {
      using Body = std::remove_cvref_t<decltype(chosen)>;
      if constexpr (bodies::InBlocks<Body>)
        launch(in_blocks<Body>, count, Body::kThreads, chosen);
      else
        launch(each<Body>, (count + kThreads - 1) / kThreads, kThreads, chosen, count);
    });
  }

  std::unique_ptr<Replay> capture(const std::function<void()>& work) override {
    flush();
    HEED_CHECKED(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    capturing_ = true;
    cudaGraph_t graph = nullptr;
    try {
      work();
      flush();
    } catch (...) {
      capturing_ = false;
      forget();
      (void)cudaStreamEndCapture(stream_, &graph);
      if (graph != nullptr) (void)cudaGraphDestroy(graph);
      (void)cudaGetLastError();
      throw;
    }
    capturing_ = false;
    HEED_CHECKED(cudaStreamEndCapture(stream_, &graph));
    return std::make_unique<Graph>(*this, graph, stream_);
  }
  bool capturing() const override { return capturing_; }
  void* stream() override { return stream_; }

  void attention(const Attention<float>& x, View<float> y, AttentionState<float>& state) override {
    flush();
    attention_there(*machine_, place_in_scores(*x.score), x, y, state);
  }
  void attention_gradient(const Attention<float>& x, View<const float> y, View<const float> dy,
                          AttentionState<float>& state, const AttentionGradient<float>& g) override {
    flush();
    attention_gradient_there(*machine_, place_in_scores(*x.score), x, y, dy, state, g);
  }

 private:
  static constexpr std::size_t kNear = 4096;

  template <class... Kernel, class... Arguments>
  void launch(void (*kernel)(Kernel...), Offset blocks, int threads, const Arguments&... arguments) {
    cudaLaunchAttribute follows{};
    follows.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    follows.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks)), config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = stream_;
    config.attrs = &follows, config.numAttrs = follows_ ? 1 : 0;
    HEED_CHECKED(cudaLaunchKernelEx(&config, kernel, arguments...));
  }
  static std::string megabytes(std::size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }
  static bool on_device(const void* at) {
    cudaPointerAttributes about{};
    HEED_CHECKED(cudaPointerGetAttributes(&about, at));
    return about.type == cudaMemoryTypeDevice;
  }

  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Machine> machine_;  // for attention
  void* near_ = nullptr;
  bool capturing_ = false;
  bool follows_ = false;
};

}  // namespace

std::unique_ptr<DeviceOps> open_device(Device device) {
  if (device == Device::cpu) return nullptr;
  if (!device_available())
    fail("device 'cuda': there is no CUDA device that this build has kernels for; train with --device cpu");
  return std::make_unique<CudaOps>();
}

}  // namespace heed
