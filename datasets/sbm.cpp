// Edges are drawn by the gaps between them, pairs within classes and across them each in one sweep.
#include "datasets/sbm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/random.h"

namespace heed {
namespace {

enum Stream : std::uint64_t { kLabels, kWithin, kAcross, kMeans, kNoise };

// Calls visit(i, j) for each pair j < i of 0..n-1 with probability p, independently, by drawing the gaps between the
// chosen pairs (Batagelj & Brandes 2005): O(n + pairs chosen).
template <class Visit>
void choose_pairs(Id n, double p, Random& random, Visit visit) {
  if (p <= 0) return;
  const double pairs = 0.5 * n * (n - 1.0);
  Id i = 1;
  Offset j = -1;
  while (i < n) {
    double gap = std::floor(std::log1p(-random.uniform()) / std::log1p(-p));  // p = 1: 0
    if (gap >= pairs) return;
    j += 1 + static_cast<Offset>(gap);
    while (i < n && j >= i) j -= i++;
    if (i < n) visit(i, static_cast<Id>(j));
  }
}

}  // namespace

Dataset sbm(const Sbm& o) {
  if (o.nodes < 1 || o.classes < 1 || o.channels < 1 || o.train < 0 || o.valid < 0 || o.test < 0)
    fail("a block model of " + std::to_string(o.nodes) + " nodes, " + std::to_string(o.classes) + " classes, " +
         std::to_string(o.channels) + " channels, split " + std::to_string(o.train) + " / " + std::to_string(o.valid) +
         " / " + std::to_string(o.test) + ": the first three must be positive, the others not negative");
  for (const auto& [what, x] : {std::pair{"within", o.within}, {"across", o.across}})
    if (!(x >= 0 && x <= o.nodes))
      fail("a block model of " + std::to_string(o.nodes) + " nodes: " + what + " = " + std::to_string(x) +
           " is outside 0.." + std::to_string(o.nodes));
  if (!(o.signal >= 0 && o.signal <= std::numeric_limits<float>::max()))
    fail("a block model's signal cannot be " + std::to_string(o.signal));
  if (Offset{o.train} * o.classes + o.valid + o.test > o.nodes || o.train > o.nodes / o.classes)
    fail("a block model of " + std::to_string(o.nodes) + " nodes is too small for " + std::to_string(o.train) +
         " nodes of training in each of " + std::to_string(o.classes) + " classes, " + std::to_string(o.valid) +
         " of validation and " + std::to_string(o.test) + " of test");

  auto stream = [&](Stream s) { return mix(mix(o.seed), s); };
  Dataset out{.name = "sbm", .labels = {}, .classes = o.classes, .splits = {}};
  for (Id i = 0; i < o.nodes; ++i) out.labels.push_back(i % o.classes);
  Random shuffle(stream(kLabels));
  for (Id i = o.nodes - 1; i > 0; --i)
    std::swap(out.labels[i], out.labels[shuffle.below(static_cast<std::uint64_t>(i) + 1)]);

  std::vector<std::vector<Id>> members(static_cast<std::size_t>(o.classes));
  for (Id i = 0; i < o.nodes; ++i) members[out.labels[i]].push_back(i);
  std::vector<Edge> edges;
  Random within(stream(kWithin));
  for (const auto& group : members)
    choose_pairs(static_cast<Id>(group.size()), o.within / o.nodes, within, [&](Id i, Id j) {
      edges.push_back({group[i], group[j]});
    });
  Random across(stream(kAcross));
  choose_pairs(o.nodes, o.across / o.nodes, across, [&](Id i, Id j) {
    if (out.labels[i] != out.labels[j]) edges.push_back({i, j});
  });
  out.graph = graph_from_edges(o.nodes, edges);

  // sqrt(p) and the 1/p in the variances cancel: the means and the noise are standard normal.
  const double strength = std::sqrt(o.signal / o.nodes);
  Matrix<float> means(o.classes, o.channels);  // u
  for (Offset i = 0; i < means.size(); ++i) means.data()[i] = static_cast<float>(normal(stream(kMeans), i));
  out.features.dense.resize(o.nodes, o.channels);
  for (Id i = 0; i < o.nodes; ++i)
    for (Id c = 0; c < o.channels; ++c)
      out.features.dense(i, c) = static_cast<float>(
          strength * means(out.labels[i], c) + normal(stream(kNoise), static_cast<std::uint64_t>(i) * o.channels + c));

  // Labels are shuffled, so the first nodes are as good as any.
  Split split;
  std::vector<Id> taken(static_cast<std::size_t>(o.classes), 0);
  for (Id i = 0; i < o.nodes; ++i) {
    if (taken[out.labels[i]] < o.train) {
      ++taken[out.labels[i]];
      split.train.push_back(i);
    } else if (static_cast<Id>(split.valid.size()) < o.valid) {
      split.valid.push_back(i);
    } else if (static_cast<Id>(split.test.size()) < o.test) {
      split.test.push_back(i);
    }
  }
  out.splits.push_back(std::move(split));
  return out;
}

}  // namespace heed
