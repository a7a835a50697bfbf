#include "kernels/fused.h"

#include "kernels/make_score.h"

namespace heed {

const Fused* fused_kernels(const Attention<float>& x) {
  const Score& score = *x.score;
  if (!x.pattern->is_listed() || x.normaliser->kind != &detail::kind_of<normalisers::Softmax> || x.e || x.bias ||
      x.ev || score.filter)
    return nullptr;
  if (score.contracts ? score.finishes() : x.q.cols != x.v.cols) return nullptr;
  for (int at = 0; at < kFusedShapeCount; ++at) {
    const auto [heads, width] = kFusedShapes[at];
    const Offset fewest = heads == 1 ? width - kLanes + 1 : heads * width;
    if (x.heads == heads && x.v.cols >= fewest && x.v.cols <= heads * width) return score.single.fused[at];
  }
  return nullptr;
}

}  // namespace heed
