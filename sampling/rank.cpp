#include "sampling/rank.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

#include "kernels/parallel.h"

namespace heed {

std::vector<double> pagerank(const Csr& a, double damping) {
  if (a.rows != a.cols) fail("PageRank is that of a square pattern");
  const auto n = static_cast<std::size_t>(a.rows);
  std::vector<double> rank(n, n > 0 ? 1.0 / static_cast<double>(n) : 0), share(n), next(n);
  std::vector<Offset> out(n);  // rows that hold a node
  for (Id j : a.ids) ++out[j];
  for (int step = 0; step < 1000; ++step) {
    double loose = 0, change = 0;
    for (std::size_t j = 0; j < n; ++j) {
      if (out[j] == 0) loose += rank[j];
      share[j] = out[j] > 0 ? rank[j] / static_cast<double>(out[j]) : 0;
    }
    const double base = (1 - damping + damping * loose) / static_cast<double>(n);
    parallel_pieces(a.rows, 4096, [&](Offset begin, Offset end) {
      for (Offset i = begin; i < end; ++i) {
        double sum = 0;
        for (Id j : a.row(static_cast<Id>(i))) sum += share[j];
        next[i] = base + damping * sum;
      }
    });
    for (std::size_t i = 0; i < n; ++i) change += std::abs(next[i] - rank[i]);
    rank.swap(next);
    if (change < 1e-12) break;
  }
  return rank;
}

std::vector<double> degrees(const Csr& a) {
  std::vector<double> out(static_cast<std::size_t>(a.rows));
  for (Id i = 0; i < a.rows; ++i) out[i] = static_cast<double>(a.degree(i));
  return out;
}

std::vector<Id> largest(const std::vector<double>& values, Id count) {
  std::vector<Id> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto middle = ids.begin() + std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(ids.size()));
  std::nth_element(ids.begin(), middle, ids.end(),
                   [&](Id i, Id j) { return values[i] != values[j] ? values[i] > values[j] : i < j; });
  ids.erase(middle, ids.end());
  std::sort(ids.begin(), ids.end());
  return ids;
}

Csr top_by_ppr(const Csr& a, int k) {
  if (a.rows != a.cols) fail("personalised PageRank is that of a square pattern");
  constexpr double kStop = 0.15, kRest = 1e-5;
  const auto n = static_cast<std::size_t>(a.rows);
  std::vector<std::vector<Id>> best(n);
  parallel_pieces(a.rows, 64, [&](Offset begin, Offset end) {
    // Walks that ended at a node, and those on their way there: zeros again after each row.
    thread_local std::vector<double> arrived, rest;
    thread_local std::vector<char> waits;
    if (arrived.size() < n) arrived.resize(n), rest.resize(n), waits.resize(n);
    std::vector<Id> touched;
    std::deque<Id> queue;
    for (Offset row = begin; row < end; ++row) {
      auto give = [&](Id i, double share) {
        if (rest[i] == 0 && arrived[i] == 0) touched.push_back(i);
        rest[i] += share;
        if (waits[i] || rest[i] <= kRest * static_cast<double>(std::max<Offset>(a.degree(i), 1))) return;
        waits[i] = true;
        queue.push_back(i);
      };
      give(static_cast<Id>(row), 1);
      while (!queue.empty()) {
        const Id i = queue.front();
        queue.pop_front();
        waits[i] = false;
        const double here = rest[i];
        rest[i] = 0;
        arrived[i] += a.degree(i) > 0 ? kStop * here : here;
        for (Id j : a.row(i)) give(j, (1 - kStop) * here / static_cast<double>(a.degree(i)));
      }
      std::vector<Id>& top = best[row];
      for (Id i : touched)
        if (i != row && arrived[i] > 0) top.push_back(i);
      const auto last = top.begin() + std::min<std::ptrdiff_t>(k, static_cast<std::ptrdiff_t>(top.size()));
      std::partial_sort(top.begin(), last, top.end(),
                        [&](Id i, Id j) { return arrived[i] != arrived[j] ? arrived[i] > arrived[j] : i < j; });
      top.erase(last, top.end());
      std::sort(top.begin(), top.end());
      for (Id i : touched) arrived[i] = rest[i] = 0;
      touched.clear();
    }
  });
  Csr out{.rows = a.rows, .cols = a.cols};
  for (const auto& top : best) {
    out.ids.insert(out.ids.end(), top.begin(), top.end());
    out.offsets.push_back(out.edges());
  }
  return out;
}

}  // namespace heed
