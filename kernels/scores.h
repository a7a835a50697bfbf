// The menu of scores. A score is a sum over channels, s = finish(sum_c term(q_c, k_c, e_c, a_c), p, width):
//   q, k  the query's and the key's channel          e  the edge's feature (absent: Zero); it is added to the key
//   a     a learned vector per head                  p  learned scalars per head, `scalars` of them, from `start` on
// `term` is written once, for numbers of any kind; its gradient follows from the same code (jet.h), on the CPU in
// vectors of lanes and on the GPU. `finish` may be absent, or be `factor(p, width)` where it is the sum times that
// number. To add a score, write its struct here and enter it in `Scores`. What a struct may declare besides:
//   Sum          a base without members whose term it shares, and so the compiled sums
//   prepares     what becomes of q and k first, once per node: a layer's business, the kernels see the result
//   contracts    q, k and e arrive contracted: one channel per head, computed once per node
//   nonnegative  s >= 0 always
//   symmetric    without e, term gives the same bits with q and k exchanged, so one compiled stage serves both sides
// At coincident points and at kinks the gradient is 0 or that of one side.
#pragma once

#include <tuple>

#include "kernels/fn.h"
#include "kernels/score.h"

namespace heed {
namespace scores {

// s = q . (k + e)                                  "Attention Is All You Need", arXiv:1706.03762 (unscaled);
struct Dot {  //                                    with edge features: UniMP, arXiv:2009.03509, eq. 3
  static constexpr const char* name = "dot";
  static constexpr bool symmetric = true;
  static constexpr About about{"q . k", "arXiv:1706.03762", "d multiply-adds an edge"};
  HEED_FN auto term(auto q, auto k, auto e, auto) const { return q * (k + e); }
};

// s = q . (k + e) / sqrt(d)                        arXiv:1706.03762, eq. 1
struct ScaledDot : Dot {
  using Sum = Dot;
  static constexpr const char* name = "scaled_dot";
  static constexpr About about{"q . k / sqrt(d)", "arXiv:1706.03762, eq. 1", "as dot"};
  template <class X>
  HEED_FN X factor(const X*, int width) const {
    return X(1) / fn::sqrt(X(width));
  }
};

// s = q . (W k + e), W a d x d matrix per head     Luong et al., arXiv:1508.04025, "general"
struct Bilinear : Dot {
  using Sum = Dot;
  static constexpr const char* name = "bilinear";
  static constexpr Prepare prepares = Prepare::bilinear;
  static constexpr About about{"q . W k", "arXiv:1508.04025, section 3.1", "as dot, and d x d a node"};
};

// s = p q/|q| . (k/|k| + e)                        AGNN, arXiv:1803.03735; the vector 0 stays 0
struct Cosine : Dot {
  using Sum = Dot;
  static constexpr const char* name = "cosine";
  static constexpr Prepare prepares = Prepare::unit;
  static constexpr int scalars = 1;
  static constexpr float start[] = {1};
  static constexpr About about{"p cos(q, k)", "arXiv:1803.03735", "as dot, and a norm a node"};
  template <class X>
  HEED_FN X factor(const X* p, int) const {
    return p[0];
  }
};

// s = p corr(q, k): the cosine of q and k less their means over the channels of a head, which must be two or more
struct Pearson : Cosine {
  using Sum = Dot;
  static constexpr const char* name = "pearson";
  static constexpr Prepare prepares = Prepare::centre_unit;
  static constexpr About about{"p corr(q, k)", "Pearson 1895", "as dot, and a mean and a norm a node"};
};

// s = leaky(a1 . Wx_i + a2 . Wx_j + a3 . We e)     Graph Attention Networks, arXiv:1710.10903, eq. 3.
struct Gat {
  static constexpr const char* name = "gat";
  static constexpr bool symmetric = true;
  static constexpr bool contracts = true;
  static constexpr About about{"leaky(a1 . x_i + a2 . x_j)", "arXiv:1710.10903, eq. 3", "1 addition an edge"};
  float slope = 0.2f;
  HEED_FN float slope_below() const { return slope; }  // ds/dq is this where s <= 0, and 1 where s > 0
  HEED_FN auto term(auto q, auto k, auto e, auto) const { return fn::leaky(q + k + e, slope); }
};

// s = a . leaky(q + k + e)                         How Attentive are Graph Attention Networks?, arXiv:2105.14491, eq. 7
struct GatV2 {
  static constexpr const char* name = "gatv2";
  static constexpr bool symmetric = true;
  static constexpr About about{"a . leaky(q + k)", "arXiv:2105.14491, eq. 7",
                               "d multiply-adds and comparisons an edge"};
  float slope = 0.2f;
  HEED_FN auto term(auto q, auto k, auto e, auto a) const { return a * fn::leaky(q + k + e, slope); }
};

// s = a . tanh(q + k + e)                          Bahdanau et al., arXiv:1409.0473, appendix A.1.2
struct Bahdanau {
  static constexpr const char* name = "bahdanau";
  static constexpr bool symmetric = true;
  static constexpr About about{"a . tanh(q + k)", "arXiv:1409.0473, A.1.2", "d hyperbolic tangents an edge"};
  HEED_FN auto term(auto q, auto k, auto e, auto a) const { return a * fn::quick_tanh(q + k + e); }
};

// s = a . relu(W1q x_i + W1k x_j + b1 + e) + p     a perceptron with one hidden layer over both nodes, whose first
struct Mlp {  //                                    layer is computed once per node: q and k are its halves
  static constexpr const char* name = "mlp";
  static constexpr bool symmetric = true;
  static constexpr Prepare prepares = Prepare::hidden;
  static constexpr int scalars = 1;
  static constexpr float start[] = {0};
  static constexpr About about{"a . relu(W1 [x_i, x_j] + b) + p", "Rosenblatt 1958", "as gatv2"};
  HEED_FN auto term(auto q, auto k, auto e, auto a) const { return a * fn::relu(q + k + e); }
  HEED_FN auto finish(auto sum, const auto* p, int) const { return sum + p[0]; }
};

// s = a . x_j: a weight of the key alone           DeepSets pooling, as Li et al., arXiv:1511.05493, eq. 7. With a
struct Node {  //                                   mask of all pairs it is one context for all, computed once.
  static constexpr const char* name = "node";
  static constexpr bool contracts = true;
  static constexpr About about{"a . x_j", "arXiv:1511.05493, eq. 7", "nothing an edge; O(n) over all pairs"};
  HEED_FN auto term(auto, auto k, auto e, auto) const { return k + e; }
};

// s = -|q - (k + e)|^2
struct SquaredEuclidean {
  static constexpr const char* name = "sqeuclidean";
  static constexpr bool symmetric = true;
  static constexpr About about{"-|q - k|^2", "L2 attention, arXiv:2006.04710", "2d operations an edge"};
  HEED_FN auto term(auto q, auto k, auto e, auto) const { return -fn::square(q - (k + e)); }
};

// s = -|q - (k + e)|                               0 where the two coincide, with gradient 0
struct Euclidean : SquaredEuclidean {
  using Sum = SquaredEuclidean;
  static constexpr const char* name = "euclidean";
  static constexpr About about{"-|q - k|", "arXiv:1805.09786, in flat space", "as sqeuclidean"};
  HEED_FN auto finish(auto sum, const auto*, int) const { return -fn::sqrt(-sum); }
};

// s = exp(-|q - (k + e)|^2 / (2 e^2p)): the kernel itself, of a width e^p learned per head, between 0 and 1. With the
struct Gaussian : SquaredEuclidean {  // normaliser `sum` it is kernel regression (Nadaraya 1964, Watson 1964).
  using Sum = SquaredEuclidean;
  static constexpr const char* name = "gaussian";
  static constexpr bool nonnegative = true;
  static constexpr int scalars = 1;
  static constexpr float start[] = {0};
  static constexpr About about{"exp(-|q - k|^2 / 2s^2), s = e^p", "Nadaraya 1964, Watson 1964", "as sqeuclidean"};
  HEED_FN auto finish(auto sum, const auto* p, int) const { return fn::exp(sum * (fn::exp(p[0] * -2.0f) * 0.5f)); }
};

// s = -a . |q - (k + e)|                           Laplace attention, Attentive Neural Processes, arXiv:1901.05761
struct Laplace {
  static constexpr const char* name = "laplace";
  static constexpr bool symmetric = true;
  static constexpr About about{"-a . |q - k|", "arXiv:1901.05761", "2d operations an edge"};
  HEED_FN auto term(auto q, auto k, auto e, auto a) const { return -(a * fn::abs(q - (k + e))); }
};

// ---- scores that need whole vectors -------------------------------------------------------------------------------

// A score that is no sum over channels has `value` and `grad` over the two vectors of a head, in numbers of any kind
// that can be added, compared with select and so on, with `room(width)` numbers to work in. It runs on the CPU, row by
// row.

// s = -softDTW(q, k + e): both vectors are series of `steps` steps of width/steps channels (0 steps: of one channel
// each); R is the least cost of aligning them, with a soft minimum. Cuturi & Blondel 2017, arXiv:1703.01541, eq. 1 and
// algorithms 1 and 2.
struct SoftDtw {
  static constexpr const char* name = "softdtw";
  static constexpr About about{"-softDTW(q, k); softdtw(steps, gamma): of steps of d / steps channels",
                               "arXiv:1703.01541, eq. 1", "steps^2 exponentials an edge, slow; CPU"};
  int steps = 0;
  float gamma = 1;  // above 0

  int count(int width) const { return steps > 0 ? steps : width; }
  static constexpr int kMostSteps = 4096;  // 50 million numbers to work in
  // Throws Error where a head's channels do not divide into the steps, or there are more.
  void check(int width) const {
    if (steps < 0 || width % count(width) != 0 || count(width) > kMostSteps) refuse_steps(steps, width);
  }
  int room(int width) const { return 3 * (count(width) + 2) * (count(width) + 2); }

  template <class X>
  X value(const X* q, const X* k, int width, X* room) const {
    return -align(q, k, width, room);
  }
  // From the room that value() has filled: the gradients, written.
  template <class X>
  void grad(const X* q, const X* k, int width, X* room, X* dq, X* dk) const {
    const int n = count(width), c = width / n, stride = n + 2;
    X *r = room, *d = room + stride * stride, *e = d + stride * stride;
    for (int t = 0; t < width; ++t) dq[t] = dk[t] = X(0);
    for (int i = n; i >= 1; --i)
      for (int j = n; j >= 1; --j) {
        X sum = X(i == n && j == n ? 1 : 0);
        auto from = [&](int at) { sum = sum + e[at] * fn::exp((r[at] - r[i * stride + j] - d[at]) / X(gamma)); };
        if (i < n) from((i + 1) * stride + j);
        if (j < n) from(i * stride + j + 1);
        if (i < n && j < n) from((i + 1) * stride + j + 1);
        e[i * stride + j] = sum;
        for (int t = 0; t < c; ++t) {
          const X slope = sum * (q[(i - 1) * c + t] - k[(j - 1) * c + t]) * X(2);
          dq[(i - 1) * c + t] = dq[(i - 1) * c + t] - slope;
          dk[(j - 1) * c + t] = dk[(j - 1) * c + t] + slope;
        }
      }
  }

 private:
  [[noreturn]] static void refuse_steps(int steps, int width);

  // r[i][j] = d[i][j] + softmin(r[i-1][j], r[i][j-1], r[i-1][j-1])
  template <class X>
  X align(const X* q, const X* k, int width, X* room) const {
    const int n = count(width), c = width / n, stride = n + 2;
    X *r = room, *d = room + stride * stride;
    auto lesser = [](X x, X y) { return select(y < x, y, x); };
    for (int i = 1; i <= n; ++i)
      for (int j = 1; j <= n; ++j) {
        X cost = X(0);
        for (int t = 0; t < c; ++t) cost = cost + fn::square(q[(i - 1) * c + t] - k[(j - 1) * c + t]);
        X &to = r[i * stride + j], &up = r[(i - 1) * stride + j], &left = r[i * stride + j - 1];
        d[i * stride + j] = to = cost;
        if (i == 1 && j > 1) to = cost + left;
        if (j == 1 && i > 1) to = cost + up;
        if (i == 1 || j == 1) continue;
        const X across = r[(i - 1) * stride + j - 1], least = lesser(lesser(up, left), across);
        auto part = [&](X x) { return fn::exp((least - x) / X(gamma)); };
        to = cost + (least - fn::log(part(up) + part(left) + part(across)) * X(gamma));
      }
    return r[n * stride + n];
  }
};

}  // namespace scores

using Scores = std::tuple<scores::Dot, scores::ScaledDot, scores::Bilinear, scores::Cosine, scores::Pearson,
                          scores::Gat, scores::GatV2, scores::Bahdanau, scores::Mlp, scores::Node,
                          scores::SquaredEuclidean, scores::Euclidean, scores::Gaussian, scores::Laplace>;
using VectorScores = std::tuple<scores::SoftDtw>;

}  // namespace heed
