// The operator on a machine of the caller's, whose list of scores holds x.score's struct at place `score`.
#pragma once

#include "kernels/attention.h"
#include "kernels/machine.h"

namespace heed {

// The place among `Scores` of the struct that `mine` was made from. Throws Error where it is none of them.
int place_in_scores(const Score& mine);

void attention_on(Machine& machine, int score, const Attention<float>& x, View<float> y, AttentionState<float>& state);
void attention_gradient_on(Machine& machine, int score, const Attention<float>& x, View<const float> y,
                           View<const float> dy, const AttentionState<float>& state, const AttentionGradient<float>& g);

}  // namespace heed
