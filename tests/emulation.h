// The GPU's kernels for the menu's scores, run by the CPU, 32 lanes in turn: as attention_device of kernels/device.h,
// but slow. Throws Error where lanes race.
#pragma once

#include "kernels/attention.h"

namespace heed {

void attention_warp_emulated(const Attention<float>& x, View<float> y, AttentionState<float>& state);
void attention_gradient_warp_emulated(const Attention<float>& x, View<const float> y, View<const float> dy,
                                      const AttentionState<float>& state, const AttentionGradient<float>& g);

}  // namespace heed
