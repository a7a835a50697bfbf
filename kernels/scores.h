// The menu of scores. A score is a sum over channels, s = finish(sum_c term(q_c, k_c, e_c, a_c), p):
//   q, k  the query's and the key's channel          e  the edge's feature (absent: Zero)
//   a     a learned vector per head                  p  learned scalars per head (only with `scalars` and `finish`)
// `term` is written once, for numbers of any kind; its gradient follows from the same code (jet.h), on the CPU in
// vectors of lanes and on the GPU. To add a score, write its struct here and enter it in `Scores`.
#pragma once

#include <tuple>

#include "kernels/fn.h"

namespace heed {

// s = q . (k + e)                                  "Attention Is All You Need", arXiv:1706.03762 (unscaled);
struct Dot {  //                                    with edge features: UniMP, arXiv:2009.03509, eq. 3
  static constexpr const char* name = "dot";
  HEED_FN auto term(auto q, auto k, auto e, auto) const { return q * (k + e); }
};

// s = leaky(a1 . Wx_i + a2 . Wx_j + a3 . We e)     Graph Attention Networks, arXiv:1710.10903, eq. 3.
struct Gat {  // q, k and e arrive contracted: one channel per head, computed once per node
  static constexpr const char* name = "gat";
  static constexpr bool contracts = true;
  float slope = 0.2f;
  HEED_FN float slope_below() const { return slope; }  // ds/dq is this where s <= 0, and 1 where s > 0
  HEED_FN auto term(auto q, auto k, auto e, auto) const { return fn::leaky(q + k + e, slope); }
};

// s = a . leaky(q + k + e)                         How Attentive are Graph Attention Networks?, arXiv:2105.14491, eq. 7
struct GatV2 {
  static constexpr const char* name = "gatv2";
  float slope = 0.2f;
  HEED_FN auto term(auto q, auto k, auto e, auto a) const { return a * fn::leaky(q + k + e, slope); }
};

using Scores = std::tuple<Dot, Gat, GatV2>;

}  // namespace heed
