// The CUDA kernels of the fused attention operator: the bodies of attention_warp.h, one for each score of the menu and
// pass, launched with a warp per work item; normalisers are chosen by a uniform switch inside. A block is small, and
// its registers are bounded so that six fit a multiprocessor and nothing spills.
#include <cuda_runtime.h>

#include "kernels/machine.h"

namespace heed {

bool device_available();  // as in device.h, whose vector types are for the CPU's compiler alone
std::string device_name();

namespace {

constexpr int kWarps = 4;  // of a thread block

void checked(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  const std::string text(call);
  fail("CUDA: " + text.substr(0, text.find('(')) + ": " + cudaGetErrorString(result));
}
#define HEED_CHECKED(call) checked(call, #call)

struct Shares {  // a warp's shared memory
  float s[warp::kSlots], dw[warp::kSlots], factors[2 * warp::kMaxHeads];
  Offset edges[kWarp];
  Id ids[kWarp];
};

template <warp::Pass pass, class S>
__global__ void __launch_bounds__(kWarps* kWarp, 6)
    kernel(const __grid_constant__ warp::Call call, const __grid_constant__ S score, Offset warps) {
  __shared__ Shares all[kWarps];
  const Offset t = Offset{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (t >= warps) return;
  Shares& own = all[threadIdx.x / kWarp];
  DeviceWarp lanes;
  warp::Memory<DeviceWarp> memory{{own.s}, {own.dw}, {own.factors}, {own.ids}, {own.edges}};
  warp::run<pass>(lanes, memory, call, score, t);
}

struct Free {
  // A failure here shows in the next call.
  void operator()(void* at) const { (void)cudaFree(at); }
};

class CudaMachine : public Machine {
 public:
  void* allocate(Offset bytes) override {
    void* at = nullptr;
    HEED_CHECKED(cudaMalloc(&at, static_cast<std::size_t>(bytes)));
    blocks_.emplace_back(at);
    return at;
  }
  void copy_in(const Copy& c) override { copy(c, cudaMemcpyHostToDevice); }
  void copy_out(const Copy& c) override { copy(c, cudaMemcpyDeviceToHost); }
  void run(warp::Pass pass, int score, const void* self, const warp::Call& call, Offset warps) override {
    const auto grid = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
    with_pass(pass, [&]<warp::Pass chosen>() {
      if constexpr (reads_score(chosen))
        with_score<Scores>(score, self,
                           [&](const auto& s) { kernel<chosen><<<grid, kWarps * kWarp>>>(call, s, warps); });
      else
        kernel<chosen><<<grid, kWarps * kWarp>>>(call, Zero{}, warps);
    });
    HEED_CHECKED(cudaGetLastError());
  }

 private:
  static void copy(const Copy& c, cudaMemcpyKind kind) {
    const auto width = static_cast<std::size_t>(c.width), rows = static_cast<std::size_t>(c.rows);
    if (c.to_stride == c.width && c.from_stride == c.width)
      HEED_CHECKED(cudaMemcpy(c.to, c.from, width * rows, kind));
    else
      HEED_CHECKED(cudaMemcpy2D(c.to, static_cast<std::size_t>(c.to_stride), c.from,
                                static_cast<std::size_t>(c.from_stride), width, rows, kind));
  }
  std::vector<std::unique_ptr<void, Free>> blocks_;
};

}  // namespace

std::unique_ptr<Machine> cuda_machine() {
  int count = 0;
  HEED_CHECKED(cudaGetDeviceCount(&count));
  if (count == 0) fail("CUDA: there is no device");
  return std::make_unique<CudaMachine>();
}

bool device_available() {
  int count = 0;
  cudaFuncAttributes any{};
  bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0 &&
               cudaFuncGetAttributes(&any, kernel<warp::Pass::delta, Zero>) == cudaSuccess;
  if (!found) (void)cudaGetLastError();  // having asked is no error
  return found;
}

std::string device_name() {
  if (!device_available()) return "none";
  int device = 0;
  cudaDeviceProp properties{};
  HEED_CHECKED(cudaGetDevice(&device));
  HEED_CHECKED(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

}  // namespace heed
