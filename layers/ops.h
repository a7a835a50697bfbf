// Differentiable operations on values of a tape. Shapes: n nodes, c channels; heads of a node lie together, so n x
// heads*d. All throw Error where shapes do not fit.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "layers/tape.h"

namespace heed {

// [s_1 (x w_1 + b_1) | s_2 (x w_2 + b_2) | ...]    x: n x in, dense or sparse; w: in x out_i; b: 1 x out_i, may be none
template <class T>
struct LinearMap {
  Var<T> w, b;
  double s = 1;
};
template <class T>
Var<T> linear(Var<T> x, const std::vector<LinearMap<T>>& maps);
// The same for several groups of maps, each with a result of its own: x is read once for all of them.
template <class T>
std::vector<Var<T>> linears(Var<T> x, const std::vector<std::vector<LinearMap<T>>>& groups);
template <class T>
Var<T> linear(Var<T> x, Var<T> w) {
  return linear<T>(x, std::vector<LinearMap<T>>{{w, {}, 1}});
}

// x + b for every row                   b: 1 x c
template <class T>
Var<T> add_bias(Var<T> x, Var<T> b);

template <class T>
Var<T> add(Var<T> a, Var<T> b);
template <class T>
Var<T> scale(Var<T> x, double factor);

// [x_1 | x_2 | ...]                     n x (c_1 + c_2 + ...)
template <class T>
Var<T> concat(const std::vector<Var<T>>& parts);

// Some columns as a value of their own; a whole value as it is
template <class T>
Var<T> columns(const Columns<T>& x);

// y_i = x_order[i]: the rows in another order, in which each has its place. x dense or sparse
template <class T>
Var<T> permute(Var<T> x, std::vector<Id> order);

// Mean over heads                       x: n x heads*d, result n x d
template <class T>
Var<T> mean_heads(Var<T> x, int heads);

// sum_d a_hd x_ihd for each of the vectors a in turn    x: n x heads*d, a: 1 x heads*d, result n x count*heads
template <class T>
Var<T> contract(Var<T> x, const std::vector<Var<T>>& a, int heads);
template <class T>
Var<T> contract(Var<T> x, Var<T> a, int heads) {
  return contract<T>(x, std::vector<Var<T>>{a}, heads);
}

// What scores want done to queries and keys (Prepare), for the d channels of each head; n x heads*d:
// x / |x|. The vector 0 stays 0 and takes no gradient.
template <class T>
Var<T> unit(const Columns<T>& x, int heads);
// x less its mean; d is at least 2. What is constant but for rounding becomes 0.
template <class T>
Var<T> centre(const Columns<T>& x, int heads);
// Both: unit(centre(x))
template <class T>
Var<T> centre_unit(const Columns<T>& x, int heads);
// x_h w_h                               w: d x heads*d, the matrices of the heads side by side
template <class T>
Var<T> linear_heads(const Columns<T>& x, Var<T> w, int heads);

// Each element is 0 with probability `rate`, else divided by 1 - rate; the identity outside training. On a sparse
// value it draws for the entries alone.
template <class T>
Var<T> dropout(Var<T> x, double rate);

enum class Activation { identity, relu, elu, leaky_relu, gelu, tanh, sigmoid };
const std::vector<std::string>& activation_names();
Activation activation_named(const std::string& name);
template <class T>
Var<T> activate(Var<T> x, Activation f);

// Layer Normalization, arXiv:1607.06450: over the channels of each row; gain and shift 1 x c.
template <class T>
Var<T> layer_norm(Var<T> x, Var<T> gain, Var<T> shift, double epsilon = 1e-5);

// Batch Normalization, arXiv:1502.03167: over the rows of each channel. In training it uses the batch and moves `mean`
// and `variance` (1 x c, unbiased) a tenth of the way to it; otherwise it uses those.
template <class T>
Var<T> batch_norm(Var<T> x, Var<T> gain, Var<T> shift, Parameter<T>& mean, Parameter<T>& variance,
                  double epsilon = 1e-5);

// sum over the row of weight_ij x_j, times scale_i. `weights` is one number per edge of a listed pattern, or empty for
// 1; `scale` one per query, or empty. Both are constants.
template <class T>
Var<T> propagate(Var<T> x, std::shared_ptr<const Pattern> pattern, std::vector<T> weights, std::vector<T> scale);

// Rows of x in another order, some of them or several times   y_t = x_rows[t]
// `rows` is asked at each step; there may be more or fewer of them than before.
template <class T>
Var<T> gather(Columns<T> x, std::function<const Selection&()> rows);

// The way back                          y_i = sum of the x_t with rows[t] = i
template <class T>
Var<T> scatter(Var<T> x, std::function<const Selection&()> rows);

// x_ic sigmoid(u_i)                     x: n x c, u: n x 1
template <class T>
Var<T> gate(Columns<T> x, Var<T> u);

// [x 0; 0 I]: m more rows, each with a channel of its own   x: n x c, dense or sparse, result n + m x c + m
template <class T>
Var<T> grow(Var<T> x, Id m);

// Who sees whom at this step. Where it changes, an earlier step of the tape puts the pattern here.
struct Sight {
  std::shared_ptr<const Pattern> pattern;
  bool changes = false;  // from step to step
};

// The fused operator. Absent operands are empty. Columns of one value, as linear() lays them side by side, must be the
// same or disjoint.
template <class T>
struct AttentionVars {
  Columns<T> q, k, v;  // as in Attention
  Columns<T> a, p;
  Columns<T> e, bias, ev;
  Var<T> y_bias = {};  // also of rows without keys, and of nodes that are no queries
};
// q has a row for each node (query), k and v for each node (key), in the nodes' order. Where the pattern has orders of
// its own, their rows are gathered so, and the result is put back. `weights`, where given, becomes a function that
// tells the weights of the last forward, edges x heads in the order of the pattern's list; it throws Error where that
// is none.
template <class T>
Var<T> attention(const AttentionVars<T>& x, std::shared_ptr<const Sight> sight, const Score& score,
                 const Normaliser& normaliser, int heads, double dropout = 0,
                 std::function<Matrix<T>()>* weights = nullptr);
template <class T>
Var<T> attention(const AttentionVars<T>& x, std::shared_ptr<const Pattern> pattern, const Score& score,
                 const Normaliser& normaliser, int heads, double dropout = 0) {
  return attention(x, std::make_shared<const Sight>(Sight{std::move(pattern)}), score, normaliser, heads, dropout);
}

// The scores s_ij themselves, edges x heads in the order of the pattern's list: for losses on attention (SuperGAT,
// arXiv:2204.04879), or as another call's bias. x.v and x.ev are not read; one number per edge and head is stored.
// Throws Error where the pattern is no list, or one of kept keys.
template <class T>
Var<T> attention_scores(const AttentionVars<T>& x, std::shared_ptr<const Pattern> pattern, const Score& score,
                        int heads);

struct LossOptions {
  std::vector<double> class_weights = {};  // one a class, above 0; empty: all 1
  double smoothing = 0;                    // ε, the share of the target that is spread over all classes
};

// The mean over `rows`, which are distinct, of the cross entropy between softmax(x_i) and row i's target, 1 x 1:
//   sum_i sum_c -t_ic log softmax(x_i)_c / sum_i w_yi,   t_ic = (1 - ε) w_yi [c = yi] + ε w_c / classes
// as PyTorch weighs and smooths (arXiv:1512.00567, section 7). `rows` and `labels` must outlive the tape.
template <class T>
Var<T> cross_entropy(Var<T> x, std::span<const Id> rows, std::span<const Id> labels, const LossOptions& options = {});

// The same mean of -t log σ(x) - (1 - t) log(1 - σ(x)). One column decides between the labels 0 and 1; more columns
// are one class each against all others, averaged. t is (1 - ε) [c = yi] + ε / 2.
template <class T>
Var<T> binary_cross_entropy(Var<T> x, std::span<const Id> rows, std::span<const Id> labels,
                            const LossOptions& options = {});

}  // namespace heed
