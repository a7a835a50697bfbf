#include "graph/components.h"

#include <algorithm>
#include <numeric>

namespace heed {

std::vector<Id> components(const Csr& a) {
  if (a.rows != a.cols) fail("components are those of a square pattern");
  std::vector<Id> root(static_cast<std::size_t>(a.rows));
  std::iota(root.begin(), root.end(), 0);
  auto find = [&](Id i) {
    while (root[i] != i) i = root[i] = root[root[i]];  // halves the path on the way
    return i;
  };
  for (Id i = 0; i < a.rows; ++i)
    for (Id j : a.row(i)) {
      const Id x = find(i), y = find(j);
      root[std::max(x, y)] = std::min(x, y);  // so that the root is the smallest node
    }
  std::vector<Id> out(root.size());
  Id count = 0;
  for (Id i = 0; i < a.rows; ++i) {
    const Id r = find(i);
    out[i] = r == i ? count++ : out[r];
  }
  return out;
}

}  // namespace heed
