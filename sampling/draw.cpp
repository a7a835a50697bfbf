#include "sampling/draw.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "graph/error.h"
#include "kernels/random.h"

namespace heed {

Csr random_rows(Id n, Id m, std::uint64_t key) {
  m = std::min(m, n);
  Csr out{.rows = n, .cols = n};
  out.ids.reserve(static_cast<std::size_t>(n) * static_cast<std::size_t>(m));
  for (Id i = 0; i < n; ++i) {
    Random random(mix(key, static_cast<std::uint64_t>(i)));
    const auto begin = static_cast<std::ptrdiff_t>(out.ids.size());
    for (Id last = n - m; last < n; ++last) {
      const auto j = static_cast<Id>(random.below(static_cast<std::uint64_t>(last) + 1));
      const bool there = std::find(out.ids.begin() + begin, out.ids.end(), j) != out.ids.end();
      out.ids.push_back(there ? last : j);
    }
    std::sort(out.ids.begin() + begin, out.ids.end());
    out.offsets.push_back(out.edges());
  }
  return out;
}

Csr random_regular(Id n, Id d, std::uint64_t key) {
  if (d >= n - 1) {
    Csr all{.rows = n, .cols = n};
    for (Id i = 0; i < n; ++i) {
      for (Id j = 0; j < n; ++j)
        if (j != i) all.ids.push_back(j);
      all.offsets.push_back(all.edges());
    }
    return all;
  }
  const auto size = static_cast<std::size_t>(n);
  std::vector<std::vector<Id>> row(size);
  Random random(key);
  auto joined = [&](Id i, Id j) { return i == j || std::find(row[i].begin(), row[i].end(), j) != row[i].end(); };
  // One cycle or matching at a time: the pairs (order[t], order[t + 1]) for every t, or for every other one.
  for (Id done = 0; done < d; done += 2) {
    const bool cycle = d - done >= 2;
    const std::size_t pairs = cycle ? size : size / 2 * 2;
    std::vector<Id> order(size);
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t t = size; t > 1; --t) std::swap(order[t - 1], order[random.below(t)]);
    auto second = [&](std::size_t t) { return (t + 1) % size; };
    auto is_pair = [&](std::size_t t) { return t < pairs && (cycle || t % 2 == 0); };
    auto clashes = [&](std::size_t at) {  // of the pairs in which the node at a place stands
      const std::size_t before = (at + size - 1) % size;
      return (is_pair(at) && joined(order[at], order[second(at)])) +
             (is_pair(before) && joined(order[before], order[at]));
    };
    // A pair that is there already: its second node changes places with a random one, if that mends more than it harms.
    for (std::size_t t = 0, tries = 0; t < pairs && tries < 100 * size;) {
      if (!is_pair(t) || !joined(order[t], order[second(t)])) {
        ++t;
        continue;
      }
      ++tries;
      const std::size_t a = second(t), b = random.below(size);
      const int old = clashes(a) + clashes(b);
      std::swap(order[a], order[b]);
      if (clashes(a) + clashes(b) >= old)
        std::swap(order[a], order[b]);
      else
        t = 0;
    }
    for (std::size_t t = 0; t < pairs; ++t)
      if (is_pair(t) && !joined(order[t], order[second(t)])) {
        row[order[t]].push_back(order[second(t)]);
        row[order[second(t)]].push_back(order[t]);
      }
  }
  Csr out{.rows = n, .cols = n};
  for (auto& r : row) {
    std::sort(r.begin(), r.end());
    out.ids.insert(out.ids.end(), r.begin(), r.end());
    out.offsets.push_back(out.edges());
  }
  return out;
}

Csr renamed(const Csr& a, std::uint64_t key) {
  if (a.rows != a.cols) fail("only the nodes of a square pattern have new names");
  Csr out{.rows = a.rows, .cols = a.cols};
  out.ids.reserve(a.ids.size());
  const Permutation pi(static_cast<std::uint32_t>(std::max(a.rows, 1)), key);
  for (Id i = 0; i < a.rows; ++i) {
    const auto begin = static_cast<std::ptrdiff_t>(out.ids.size());
    for (Id j : a.row(static_cast<Id>(pi.inverse(static_cast<std::uint32_t>(i)))))
      out.ids.push_back(static_cast<Id>(pi(static_cast<std::uint32_t>(j))));
    std::sort(out.ids.begin() + begin, out.ids.end());
    out.offsets.push_back(out.edges());
  }
  return out;
}

}  // namespace heed
