// The CUDA machine of the fused attention operator, and the kernels of the menu's scores.
#include "kernels/attention_kernels.h"

namespace heed {

bool device_available();  // as in device.h, whose vector types are for the CPU's compiler alone
std::string why_no_device();
std::string device_name();

namespace {

class CudaMachine : public Machine {
 public:
  explicit CudaMachine(cudaStream_t stream) : stream_(stream) {
    int device = 0;
    HEED_CHECKED(cudaGetDevice(&device));
    follows_ = can_follow(kernel<warp::Pass::delta, warp::Body::any_width, Zero>);
    HEED_CHECKED(cudaEventCreate(&begin_));
    HEED_CHECKED(cudaEventCreate(&end_));
    HEED_CHECKED(cudaDeviceGetDefaultMemPool(&pool_, device));
    std::uint64_t keep = ~std::uint64_t{0};  // what was freed, for who asks next
    HEED_CHECKED(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep));
  }

  ~CudaMachine() override {
    patterns.reset();  // while their memory can be taken back
    (void)cudaStreamSynchronize(stream_);
    (void)cudaMemPoolTrimTo(pool_, 0);
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
  }

  void* allocate(std::size_t bytes) override { return device_memory(bytes, stream_); }
  // A failure here shows in the next call.
  void release(void* at) noexcept override { (void)cudaFreeAsync(at, stream_); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (bytes == 0) return;
    HEED_CHECKED(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
    HEED_CHECKED(cudaStreamSynchronize(stream_));
  }
  double milliseconds(const std::function<void()>& work) override {
    HEED_CHECKED(cudaEventRecord(begin_, stream_));
    work();
    HEED_CHECKED(cudaEventRecord(end_, stream_));
    HEED_CHECKED(cudaEventSynchronize(end_));
    float ms = 0;
    HEED_CHECKED(cudaEventElapsedTime(&ms, begin_, end_));
    return static_cast<double>(ms);
  }
  std::size_t peak_bytes() override {
    std::uint64_t bytes = 0, forget = 0;
    HEED_CHECKED(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemHigh, &bytes));
    HEED_CHECKED(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrUsedMemHigh, &forget));
    return static_cast<std::size_t>(bytes);
  }
  void run(warp::Pass pass, int score, const void* self, const warp::Call& call, Offset warps) override {
    constexpr int menu = std::tuple_size_v<Scores>;
    if (!reads_score(pass)) return run_pass(stream_, follows_, pass, Zero{}, call, warps);
    if (score >= menu) return own_kernels().at(score - menu).run(stream_, pass, self, call, warps);
    with_score<Scores>(score, self, [&](const auto& s) { run_pass(stream_, follows_, pass, s, call, warps); });
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  cudaMemPool_t pool_ = nullptr;
  bool follows_ = false;
};

}  // namespace

std::unique_ptr<Machine> cuda_machine(void* stream) {
  return std::make_unique<CudaMachine>(static_cast<cudaStream_t>(stream));
}

Machine& cuda_machine() {
  static Machine* machine = [] {  // never freed: the driver may be gone before the last of what is static
    int count = 0;
    HEED_CHECKED(cudaGetDeviceCount(&count));
    if (count == 0) fail("CUDA: there is no device");
    cudaStream_t stream = nullptr;
    HEED_CHECKED(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return new CudaMachine(stream);
  }();
  return *machine;
}

std::string why_no_device() {
  int count = 0, device = 0;
  cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaSuccess && count == 0) found = cudaErrorNoDevice;
  cudaFuncAttributes any{};
  if (found == cudaSuccess)
    found = cudaFuncGetAttributes(&any, kernel<warp::Pass::delta, warp::Body::any_width, Zero>);
  if (found == cudaSuccess) return "";
  (void)cudaGetLastError();  // having asked is no error
  std::string out = cudaGetErrorString(found);
  cudaDeviceProp properties{};
  if (count > 0 && cudaGetDevice(&device) == cudaSuccess && cudaGetDeviceProperties(&properties, device) == cudaSuccess)
    out += std::string(" (") + properties.name + ", sm_" + std::to_string(properties.major) +
           std::to_string(properties.minor) + "; built for " + HEED_CUDA_ARCHITECTURES + ")";
  (void)cudaGetLastError();
  return out;
}

bool device_available() { return why_no_device().empty(); }

std::string device_name() {
  if (!device_available()) return "none";
  int device = 0;
  cudaDeviceProp properties{};
  HEED_CHECKED(cudaGetDevice(&device));
  HEED_CHECKED(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

}  // namespace heed
