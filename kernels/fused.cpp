#include "kernels/fused.h"

#include "kernels/make_score.h"

namespace heed {

const Fused* fused_kernels(const Attention<float>& x) {
  const Score& score = *x.score;
  if (x.pattern->by_query.walk || x.normaliser->kind != &detail::kind_of<normalisers::Softmax> || x.e || x.bias ||
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

namespace fused {

void Portions::begin(const Rows& rows, const Block& block, Id i) {
  const auto [begin, end] = rows.interval(i);
  next_ = block.part >= 0 ? static_cast<Id>(begin + block.begin) : begin;
  stop_ = block.part >= 0 ? static_cast<Id>(begin + block.end) : end;
  const std::span<const Id> missing = rows.list ? rows.list->row(i) : std::span<const Id>{};
  missing_ = std::lower_bound(missing.data(), missing.data() + missing.size(), next_);
  missing_end_ = missing.data() + missing.size();
}

bool Portions::fill(Edges& edges) {
  int n = 0;
  const bool adjacent = missing_ == missing_end_;
  if (adjacent) {
    n = std::clamp(stop_ - next_, 0, kTogether);
    for (int t = 0; t < n; ++t) room_[t] = next_ + t;
    next_ += n;
  }
  for (; next_ < stop_ && n < kTogether; ++next_)
    if (missing_ != missing_end_ && *missing_ == next_)
      ++missing_;
    else
      room_[n++] = next_;
  edges = {room_, n, room_ + n, adjacent};
  return n > 0;
}

}  // namespace fused
}  // namespace heed
