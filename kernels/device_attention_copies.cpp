// The fused operator on views of a device's memory, by way of the host's: every array comes over and goes back.
#include <vector>

#include "kernels/device.h"
#include "kernels/device_ops.h"

namespace heed {
namespace {

class Copies {  // views of the host's in place of views of the device's
 public:
  explicit Copies(DeviceOps& device) : device_(device) {}

  View<const float> read(View<const float> x) { return x ? View<const float>(fetch(x)) : x; }
  Sink<float> sink(const Sink<float>& to) {
    if (!to) return {};
    for (const auto& [there, here] : back_)
      if (there.data == to.to.data) return {here, to.add};  // where an earlier gradient went, too
    back_.push_back({to.to, fetch({to.to.data, to.to.rows, to.to.cols, to.to.stride})});
    return {back_.back().here, to.add};
  }
  View<float> written(View<float> to) { return sink({to, false}).to; }
  void put_back() {
    for (const auto& [there, here] : back_)
      for (Offset i = 0; i < here.rows; ++i) copy(there.row(i), here.row(i), here.cols);
  }
  Attention<float> call(const Attention<float>& x) {
    Attention<float> out = x;
    for (auto member : {&Attention<float>::q, &Attention<float>::k, &Attention<float>::v, &Attention<float>::a,
                        &Attention<float>::p, &Attention<float>::e, &Attention<float>::bias, &Attention<float>::ev})
      out.*member = read(x.*member);
    if (x.dropout.key_at) device_.copy(&out.dropout.key, x.dropout.key_at, sizeof(out.dropout.key));
    return out;
  }

 private:
  struct Back {
    View<float> there, here;
  };
  void copy(float* to, const float* from, Offset count) {
    device_.copy(to, from, sizeof(float) * static_cast<std::size_t>(count));
  }
  View<float> fetch(View<const float> x) {
    Matrix<float>& here = matrices_.emplace_back(x.rows, x.cols);
    if (x.stride == x.cols)
      copy(here.data(), x.data, here.size());
    else
      for (Offset i = 0; i < x.rows; ++i) copy(here.row(i), x.row(i), x.cols);
    return here.view();
  }
  DeviceOps& device_;
  std::deque<Matrix<float>> matrices_;
  std::vector<Back> back_;
};

}  // namespace

void attention_on_device(DeviceOps& device, const Attention<float>& x, View<float> y, AttentionState<float>& state) {
  Copies copies(device);
  AttentionState<float> here;
  attention_device(copies.call(x), copies.written(y), here);
  copies.put_back();
  state.tau = here.tau, state.least = here.least, state.last = here.last;
}

void attention_gradient_on_device(DeviceOps& device, const Attention<float>& x, View<const float> y,
                                  View<const float> dy, AttentionState<float>& state,
                                  const AttentionGradient<float>& g) {
  Copies copies(device);
  AttentionState<float> here;
  here.tau = state.tau, here.least = state.least, here.last = state.last;
  // Sinks may be columns of one value, and lie over each other (dq and dk): they come back in the order of the call.
  const AttentionGradient<float> to{copies.sink(g.dq), copies.sink(g.dk), copies.sink(g.dv),    copies.sink(g.da),
                                    copies.sink(g.dp), copies.sink(g.de), copies.sink(g.dbias), copies.sink(g.dev)};
  attention_gradient_device(copies.call(x), copies.read(y), copies.read(dy), here, to);
  copies.put_back();
}

}  // namespace heed
