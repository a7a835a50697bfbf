// The fused attention operator on a machine of the caller's, whose list of scores holds x.score's struct at place
// `score`. As `attention` and `attention_gradient` of attention.h; of the state, `tau`, `least`, `last` and `above` are
// results.
#pragma once

#include "kernels/attention.h"
#include "kernels/device_ops.h"
#include "kernels/machine.h"

namespace heed {

// The place among `Scores` of the struct that `mine` was made from, or behind them, of a user's own with kernels
// (cuda_score.h). Throws Error where it is none of these.
int place_in_scores(const Score& mine);

// All views are of the machine's memory, and so are the state's matrices from then on. After the first call with a
// pattern and shapes nothing is allocated or copied, so that calls can be captured in a CUDA graph. x.dropout.key_at,
// where it is set, lies there too, and is what counts.
void attention_there(Machine& machine, int score, const Attention<float>& x, View<float> y,
                     AttentionState<float>& state);
void attention_gradient_there(Machine& machine, int score, const Attention<float>& x, View<const float> y,
                              View<const float> dy, AttentionState<float>& state, const AttentionGradient<float>& g);

// What is redrawn of a pattern's direction.
DrawnThere drawn_there(Machine& machine, const Rows& rows);

// y (+)= scale (row_scale_i sum_j weight_ij x_j + bias) over the columns j of listed rows. `parts` is room that is kept
// between calls.
void weighted_sum_there(Machine& machine, const WeightedRows& w, View<const float> x, Sink<float> y,
                        Matrix<float>& parts);

// Attention for views of the host's memory, which are copied there and back.
void attention_on(Machine& machine, int score, const Attention<float>& x, View<float> y, AttentionState<float>& state);
void attention_gradient_on(Machine& machine, int score, const Attention<float>& x, View<const float> y,
                           View<const float> dy, const AttentionState<float>& state, const AttentionGradient<float>& g);

}  // namespace heed
