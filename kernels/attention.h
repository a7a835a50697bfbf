// The fused attention operator on the CPU:
//
//   s_ij = finish(sum_c term(q_ic, k_jc, e_ijc, a_c), p) + bias_ij     finish: times 1 / temperature
//   w_ij = weight(s_ij, tau_i)                           over the keys j that query i sees and the filter lets pass
//   y_i  = y_bias + sum_j w_ij m_ij (v_j + ev_ij)        m: dropout of attention
//
// forward and backward, with nothing stored per edge: backward computes scores again. It runs over rows of queries
// (dq, da, dp and the gradients of edges) and keys (dk, dv), or over tiles of long intervals (tiled.h); a row has one
// owner at a time: no atomics, the same bits on any number of threads. A query without keys gets y = y_bias and
// gradient 0. Where the score reads the key alone and all queries see all keys, one row is computed, for all; dropout
// then draws for the keys.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/matrix.h"
#include "kernels/pattern.h"
#include "kernels/random.h"
#include "kernels/score.h"

namespace heed {

template <class T>
struct Attention {
  const Pattern* pattern = nullptr;
  const Score* score = nullptr;
  const Normaliser* normaliser = nullptr;
  int heads = 1;
  View<const T> q;     // queries x heads*score_width
  View<const T> k;     // keys x heads*score_width
  View<const T> v;     // keys x heads*width
  View<const T> a;     // 1 x heads*score_width: the learned vector; only if score->reads_vector
  View<const T> p;     // score->scalars x heads: learned scalars
  View<const T> e;     // edges x heads*score_width: projected features of edges; may be none
  View<const T> bias;  // edges x heads; may be none
  View<const T> ev;    // edges x heads*width: added to the value; may be none
  // 1 x heads*width; may be none, and is on GPUs. Its gradient, the sum over dy, is the caller's business. Those of q
  // and k lose as many digits as it is larger than what it is added to.
  View<const T> y_bias;
  Dropout dropout;  // of the attention weights
  // On a GPU: q, k, v and dy are rounded to bfloat16 first, and passes over edges gather rows of half the size; sums,
  // y and all gradients are of floats. Where a score has one channel a head, q and k stay as they are. Calls that need
  // kernels for any width (topk, thresholds that are solved for, features of edges, a head of more than 256 channels)
  // read floats all the same.
  bool bf16 = false;
};
// Edges are numbered as in pattern->by_query.list, so e, bias and ev need a listed pattern.

// What backward needs of forward, and buffers that live as long as the operator's place in a model: after the first
// call nothing is allocated.
template <class T>
struct AttentionState {
  Matrix<T> tau;        // queries x heads
  Matrix<T> tau_delta;  // queries x 2*heads: tau and delta side by side, filled by backward
  // Where a score has one slope over 0 and another under it (GAT), sums over the keys with scores over 0 spare backward
  // its pass over queries: queries x (heads*width + heads), sum_j w_ij m_ij v_j and sum_j w_ij.
  Matrix<T> above;
  // Where a filter counts keys (topk), those that pass: the score of the last one, and which it is; queries x heads.
  Matrix<T> least;
  Matrix<Id> last;
  bool backward = true;  // to be set before forward: whether backward will follow, which uses `above`
  // Whether each query's y is wanted, on the CPU; null: all are. Those that are not keep what is there, or are computed
  // all the same, and their dy must be 0. At most half are wanted where this is given.
  const std::uint8_t* needed = nullptr;
  std::vector<std::uint8_t> given;              // of queries, in loops over whole rows: is dy not 0? none if most are
  Matrix<T> parts;                              // partial results of hub rows
  Matrix<T> sums;                               // per block: da and dp
  std::array<Matrix<std::uint16_t>, 4> narrow;  // q, k, v and dy as bfloat16 numbers, where the call asks for them
  std::vector<AttentionState> groups;           // of a call with so many heads that it runs as several
  // Where all rows are the same: the pattern of one, and its y and dy.
  std::shared_ptr<const Pattern> one;
  Matrix<T> shared;
};

template <class T>
struct Sink {  // where a gradient goes; none: it is not wanted
  View<T> to;
  bool add = false;  // added to what is there, or written over it
  explicit operator bool() const { return static_cast<bool>(to); }
};

template <class T>
struct AttentionGradient {
  Sink<T> dq, dk, dv, da, dp, de, dbias, dev;  // shaped like their values
};

// Throws Error where shapes do not fit, naming both sides: of a forward call, and of a backward call after it.
template <class T>
void check(const Attention<T>& x, View<const std::type_identity_t<T>> y);
template <class T>
void check(const Attention<T>& x, View<const std::type_identity_t<T>> y, View<const std::type_identity_t<T>> dy,
           const Matrix<T>& tau, const AttentionGradient<T>& g);

// y: queries x heads*width. Throws Error where shapes do not fit, naming both sides.
template <class T>
void attention(const Attention<T>& x, View<T> y, AttentionState<T>& state);

// From y and dy (queries x heads*width). `state` must come from the forward call with the same `x`.
template <class T>
void attention_gradient(const Attention<T>& x, View<const T> y, View<const T> dy, AttentionState<T>& state,
                        const AttentionGradient<T>& g);

// The weights w_ij m_ij themselves, edges x heads, for those who want to look at them; 0 where a filter lets the key
// not pass. `state` as above.
template <class T>
void attention_weights(const Attention<T>& x, const AttentionState<T>& state, View<T> weights);

// The scores s_ij alone, edges x heads (of dot: the sampled product of two dense matrices), of all keys that are seen,
// whatever the filter. v is not read.
template <class T>
void attention_scores(const Attention<T>& x, View<T> scores);

// y (+)= sum_j weight_ij x_j over the columns j of each row: the sparse product. `weights` holds one number per entry
// of rows.list (empty: all 1), picked through `edge` where it is given; `scale` one number per row (empty: all 1).
// `needed`: a mark for each row, without which y may keep what is there; null: all have one. `passes_zeros`: where many
// weights are 0, as of dropped features, what they would meet is not read.
template <class T>
struct Summand {
  View<const T> x;  // rows.cols x any
  Sink<T> y;        // rows.rows x the same
};
template <class T>
void weighted_sum(const Rows& rows, std::span<const T> weights, std::span<const Offset> edge, std::span<const T> scale,
                  std::span<const Summand<T>> sums, Matrix<T>& parts, const std::uint8_t* needed = nullptr,
                  bool passes_zeros = false);
template <class T>
void weighted_sum(const Rows& rows, std::span<const T> weights, std::span<const Offset> edge, std::span<const T> scale,
                  View<const T> x, Sink<T> y, Matrix<T>& parts) {
  const Summand<T> one{x, y};
  weighted_sum<T>(rows, weights, edge, scale, {&one, 1}, parts);
}

}  // namespace heed
