#include "tests/emulation.h"

#include "kernels/device_attention.h"

namespace heed {

void attention_warp_emulated(const Attention<float>& x, View<float> y, AttentionState<float>& state) {
  EmulatedMachine<> machine;
  attention_on(machine, x.score ? place_in_scores(*x.score) : 0, x, y, state);
}
void attention_gradient_warp_emulated(const Attention<float>& x, View<const float> y, View<const float> dy,
                                      const AttentionState<float>& state, const AttentionGradient<float>& g) {
  EmulatedMachine<> machine;
  attention_gradient_on(machine, x.score ? place_in_scores(*x.score) : 0, x, y, dy, state, g);
}

}  // namespace heed
