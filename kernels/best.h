// The best keys of a row, for `topk`: in one order of all keys, by score and then by place, so that they are the same
// whatever way a row is cut and visited. What is kept of them is the last one alone, to which scores that are computed
// again are compared: they have the same bits.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "kernels/filter.h"
#include "kernels/stages.h"

namespace heed {

template <class T>
class Best {
 public:
  void begin(int heads, const Filter& filter) {
    most_ = static_cast<std::size_t>(filter.topk), above_ = static_cast<T>(filter.above);
    heads_ = static_cast<std::size_t>(heads);
    for (auto& kept : kept_) kept.clear();
  }
  void add(int h, T s, Id place) {
    auto& kept = kept_[static_cast<std::size_t>(h)];
    const Key key{s == s ? s : T(__builtin_inff()), place};
    if (kept.size() == most_) {
      if (!before(key, kept.front())) return;
      std::pop_heap(kept.begin(), kept.end(), before);
      kept.back() = key;
      std::push_heap(kept.begin(), kept.end(), before);
    } else {
      kept.push_back(key);
      if (kept.size() == most_) std::make_heap(kept.begin(), kept.end(), before);  // the last one is in front
    }
  }
  void add(const Best& other) {
    for (std::size_t h = 0; h < heads_; ++h)
      for (const Key& key : other.kept_[h]) add(static_cast<int>(h), key.s, key.place);
  }
  // What each head's keys are compared to, heads numbers each.
  void bounds(T* least, Id* last) const {
    for (std::size_t h = 0; h < heads_; ++h) {
      const auto& kept = kept_[h];
      least[h] = kept.size() < most_ ? T(-__builtin_inff()) : kept.front().s;
      last[h] = kept.size() < most_ ? std::numeric_limits<Id>::max() : kept.front().place;
      if (!(least[h] > above_) && above_ > T(-__builtin_inff())) least[h] = above_, last[h] = -1;
    }
  }

 private:
  struct Key {
    T s;
    Id place;
  };
  static bool before(const Key& a, const Key& b) { return a.s > b.s || (a.s == b.s && a.place < b.place); }

  std::size_t most_ = 0, heads_ = 0;
  T above_ = 0;
  std::array<std::vector<Key>, stages::kMaxHeads> kept_;
};

}  // namespace heed
