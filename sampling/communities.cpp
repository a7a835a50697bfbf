#include "sampling/communities.h"

#include <algorithm>
#include <numeric>

#include "kernels/random.h"

namespace heed {

std::vector<Id> communities(const Csr& a) {
  if (a.rows != a.cols) fail("communities are those of a square pattern");
  const auto back = transpose(std::shared_ptr<const Csr>(std::shared_ptr<void>(), &a)).csr;
  auto hash = [](Id i) { return mix(static_cast<std::uint64_t>(i)); };
  // Each node prefers labels in an order of its own; in one order for all, the first label would spread everywhere.
  auto rank = [&](Id i, Id l) { return mix(hash(i), static_cast<std::uint64_t>(l)); };
  std::vector<Id> label(static_cast<std::size_t>(a.rows)), order, count(label.size()), seen;
  std::iota(label.begin(), label.end(), 0);
  order = label;
  std::sort(order.begin(), order.end(), [&](Id i, Id j) { return hash(i) < hash(j); });
  bool changed = true;
  for (int round = 0; changed && round < 100; ++round) {
    changed = false;
    for (Id i : order) {
      seen.clear();
      for (const Csr* side : {&a, back.get()})
        for (Id j : side->row(i))
          if (j != i && count[label[j]]++ == 0) seen.push_back(label[j]);
      Id best = label[i];
      for (Id l : seen)
        if (count[l] > count[best] || (count[l] == count[best] && best != label[i] && rank(i, l) < rank(i, best)))
          best = l;
      for (Id l : seen) count[l] = 0;
      changed = changed || best != label[i];
      label[i] = best;
    }
  }
  std::vector<Id> number(label.size(), -1);
  Id next = 0;
  for (Id& l : label) {
    if (number[l] < 0) number[l] = next++;
    l = number[l];
  }
  return label;
}

}  // namespace heed
