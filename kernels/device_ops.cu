// The device of device_ops.h with CUDA: one stream, on which all work comes one after the other; replays are CUDA
// graphs.
#include "kernels/cuda_calls.h"

#pragma nv_diag_suppress 554  // of View<const T>, whose conversion to itself is never called

#include "kernels/device_attention.h"
#include "kernels/device_bodies.h"

namespace heed {

std::string why_no_device();  // as in device.h

namespace {

constexpr int kThreads = 128;  // of a block, where bodies run by the index

template <class Body>
__global__ void __launch_bounds__(kThreads) each(const __grid_constant__ Body body, Offset count) {
  follow();
  const Offset t = Offset{blockIdx.x} * kThreads + threadIdx.x;
  if (t < count) body(t);
}

template <class Body>  // said that one block is enough, the compiler takes registers rather than spill
__global__ void __launch_bounds__(Body::kThreads, 1) in_blocks(const __grid_constant__ Body body) {
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
    HEED_CHECKED(cudaStreamCreateWithFlags(&beside_, cudaStreamNonBlocking));
    HEED_CHECKED(cudaEventCreateWithFlags(&reached_, cudaEventDisableTiming));
    HEED_CHECKED(cudaMallocHost(&near_, kNear));
    follows_ = can_follow(each<bodies::Fill>);
    machine_ = cuda_machine(stream_);
  }
  ~CudaOps() override {
    (void)cudaStreamSynchronize(stream_);
    release_rooms();
    machine_.reset();
    (void)cudaFreeHost(near_);
    (void)cudaEventDestroy(reached_);
    (void)cudaStreamDestroy(beside_);
    (void)cudaStreamDestroy(stream_);
  }

  void* allocate(std::size_t bytes) override { return device_memory(bytes, stream_); }
  void release(void* at) noexcept override {
    try {
      flush();  // what waits may want this memory
    } catch (const Error&) {
    }
    (void)cudaFreeAsync(at, stream_);  // a failure here shows in the next call
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
      // What has come from the other stream is waited for to its end.
      const bool follows = follows_ && !crossed_;
      cudaStream_t stream = aside_now_ ? beside_ : stream_;
      if constexpr (bodies::InBlocks<Body>)
        launch(stream, follows, in_blocks<Body>, count, Body::kThreads, chosen);
      else
        launch(stream, follows, each<Body>, (count + kThreads - 1) / kThreads, kThreads, chosen, count);
      crossed_ = false;
    });
  }

  std::unique_ptr<Replay> capture(const std::function<void()>& work) override {
    flush();
    join();
    HEED_CHECKED(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    capturing_ = true;
    cudaGraph_t graph = nullptr;
    try {
      work();
      flush();
      join();
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

  void weighted_sum(const WeightedRows& w, View<const float> x, Sink<float> y, Matrix<float>& parts) override {
    on_machine([&] { weighted_sum_there(*machine_, w, x, y, parts); });
  }
  void attention(const Attention<float>& x, View<float> y, AttentionState<float>& state) override {
    on_machine([&] { attention_there(*machine_, place_in_scores(*x.score), x, y, state); });
  }
  void attention_gradient(const Attention<float>& x, View<const float> y, View<const float> dy,
                          AttentionState<float>& state, const AttentionGradient<float>& g) override {
    on_machine([&] { attention_gradient_there(*machine_, place_in_scores(*x.score), x, y, dy, state, g); });
  }
  void redraw(const Pattern& pattern, const std::uint64_t* step, View<const float> scores) override {
    bodies::redraw(*this, pattern, step, scores, drawn_there(*machine_, pattern.by_query),
                   drawn_there(*machine_, pattern.by_key));
  }

 private:
  static constexpr std::size_t kNear = 4096;

  // What the machine begins on its own, on the stream that it knows.
  template <class Work>
  void on_machine(Work work) {
    flush();
    const bool aside = std::exchange(aside_now_, false);
    if (aside) cross(beside_, stream_), crossed_ = true;
    if (const bodies::Chain none{}; crossed_) run(bodies::place<bodies::Chain>(), &none, 1);
    work();
    if (aside) cross(stream_, beside_), aside_now_ = crossed_ = true;
  }
  // A stream of its own where a replay is made, in which both come to lie beside each other.
  void turn_aside(bool there) override {
    if (!capturing_) return;
    if (there) cross(stream_, beside_);
    aside_now_ = there, crossed_ = there;
  }
  void wait_for_aside() override {
    if (!capturing_) return;
    cross(beside_, stream_);
    crossed_ = true;
  }
  void cross(cudaStream_t from, cudaStream_t to) {
    HEED_CHECKED(cudaEventRecord(reached_, from));
    HEED_CHECKED(cudaStreamWaitEvent(to, reached_, 0));
  }

  static bool on_device(const void* at) {
    cudaPointerAttributes about{};
    HEED_CHECKED(cudaPointerGetAttributes(&about, at));
    return about.type == cudaMemoryTypeDevice;
  }

  cudaStream_t stream_ = nullptr, beside_ = nullptr;
  cudaEvent_t reached_ = nullptr;
  bool aside_now_ = false, crossed_ = false;
  std::unique_ptr<Machine> machine_;  // for attention
  void* near_ = nullptr;
  bool capturing_ = false;
  bool follows_ = false;
};

}  // namespace

std::unique_ptr<DeviceOps> open_device(Device device) {
  if (device == Device::cpu) return nullptr;
  if (const std::string why = why_no_device(); !why.empty())
    fail("device 'cuda': " + why + "; train with --device cpu");
  return std::make_unique<CudaOps>();
}

}  // namespace heed
