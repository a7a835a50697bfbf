// The fused attention operator on the GPU. Inputs and outputs are views of the host's memory: they are copied to the
// device and back. Results agree with kernels/attention.h to rounding, and have the same bits in every run.
#pragma once

#include <string>

#include "kernels/attention.h"

namespace heed {

// Whether there is a CUDA device that this build has kernels for.
bool device_available();
std::string why_no_device();  // the driver's word; empty: there is one
std::string device_name();  // "none" without one

// As `attention` and `attention_gradient`; of the state, `tau`, `least`, `last` and `above` are used. Throws Error
// where shapes do not fit, where the score or normaliser is not in the menus, where the mask asks a predicate of the
// host, and where CUDA fails.
void attention_device(const Attention<float>& x, View<float> y, AttentionState<float>& state);
void attention_gradient_device(const Attention<float>& x, View<const float> y, View<const float> dy,
                               const AttentionState<float>& state, const AttentionGradient<float>& g);

}  // namespace heed
