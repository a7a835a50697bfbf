// Edges are 64-bit keys that sort in the order of the pattern, so one sort both drops repeats and builds it.
#include "datasets/rmat.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/random.h"

namespace heed {
namespace {

using Key = std::uint64_t;  // an edge: the node that receives in the upper half, the one that sends in the lower

Key key_of(Id to, Id from) { return static_cast<Key>(to) << 32 | static_cast<Key>(from); }

void check_size(Id nodes, Offset edges) {
  Offset pairs = nodes < 2 ? 0 : Offset{nodes} * (nodes - 1);
  if (nodes < 0 || edges < 0 || edges > pairs)
    fail("a graph of " + std::to_string(nodes) + " nodes cannot have " + std::to_string(edges) +
         " distinct edges without loops; it has room for " + std::to_string(pairs));
  if (edges > Offset{1} << 40) fail(std::to_string(edges) + " edges are more than are generated");
}

// Draws as many keys as are missing, drops repeats, and goes on so until there are `edges`, or `rounds` are over.
// `keys` is sorted before and after.
template <class Draw>
void draw_distinct(std::vector<Key>& keys, Offset edges, int rounds, Draw draw) {
  for (int round = 0; round < rounds && static_cast<Offset>(keys.size()) < edges; ++round) {
    auto old = static_cast<std::ptrdiff_t>(keys.size());
    for (Offset missing = edges - old; missing > 0; --missing) keys.push_back(draw());
    std::sort(keys.begin() + old, keys.end());
    std::inplace_merge(keys.begin(), keys.begin() + old, keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  }
}

void fill_uniformly(std::vector<Key>& keys, Id nodes, Offset edges, Random& random) {
  Offset missing = edges - static_cast<Offset>(keys.size());
  if (missing == 0) return;
  const Offset pairs = Offset{nodes} * (nodes - 1);
  if (pairs / 4 > edges) {  // most draws are new
    auto n = static_cast<std::uint64_t>(nodes);
    draw_distinct(keys, edges, 1 << 30, [&] {
      for (;;) {
        Id to = static_cast<Id>(random.below(n));
        Id from = static_cast<Id>(random.below(n));
        if (to != from) return key_of(to, from);
      }
    });
    return;
  }
  // Selection sampling (Knuth, volume 2, 3.4.2): each free pair in turn is chosen with probability missing / left.
  Offset left = pairs - static_cast<Offset>(keys.size());
  std::vector<Key> all;
  all.reserve(static_cast<std::size_t>(edges));
  auto next = keys.begin();
  for (Id to = 0; to < nodes; ++to)
    for (Id from = 0; from < nodes; ++from) {
      if (to == from) continue;
      Key key = key_of(to, from);
      if (next != keys.end() && *next == key) {
        ++next;
        all.push_back(key);
        continue;
      }
      if (static_cast<Offset>(random.below(static_cast<std::uint64_t>(left--))) >= missing) continue;
      --missing;
      all.push_back(key);
    }
  keys = std::move(all);
}

Graph graph_of(Id nodes, const std::vector<Key>& keys) {
  auto csr = std::make_shared<Csr>(Csr{.rows = nodes, .cols = nodes});
  csr->offsets.assign(static_cast<std::size_t>(nodes) + 1, 0);
  csr->ids.reserve(keys.size());
  for (Key key : keys) {
    ++csr->offsets[(key >> 32) + 1];
    csr->ids.push_back(static_cast<Id>(key & 0xffffffff));
  }
  std::partial_sum(csr->offsets.begin(), csr->offsets.end(), csr->offsets.begin());
  Graph out;
  out.adjacency = std::move(csr);
  return out;
}

}  // namespace

Graph rmat(Id nodes, Offset edges, std::uint64_t seed, const Rmat& o) {
  check_size(nodes, edges);
  if (!(o.a >= 0 && o.b >= 0 && o.c >= 0 && o.a + o.b + o.c <= 1))
    fail("R-MAT's probabilities " + std::to_string(o.a) + ", " + std::to_string(o.b) + ", " + std::to_string(o.c) +
         " must not be negative, nor more than 1 together");
  std::vector<Id> name(static_cast<std::size_t>(nodes));  // of a node, shuffled
  std::iota(name.begin(), name.end(), 0);
  Random random(mix(seed));
  for (Id i = nodes - 1; i > 0; --i) std::swap(name[i], name[random.below(static_cast<std::uint64_t>(i) + 1)]);

  const int levels = nodes < 2 ? 0 : std::bit_width(static_cast<std::uint32_t>(nodes - 1));
  auto threshold = [](double p) { return static_cast<std::uint64_t>(p * 0x1p32); };  // of 32 random bits
  const std::uint64_t a = threshold(o.a), ab = threshold(o.a + o.b), abc = threshold(o.a + o.b + o.c);
  // Draws outside the graph are drawn again, but not forever: probabilities may put every edge on the diagonal.
  Offset patience = 1000 + 64 * edges;
  auto draw = [&] {
    while (--patience > 0) {
      std::uint32_t to = 0, from = 0;
      std::uint64_t bits = 0;
      for (int level = 0; level < levels; ++level) {
        bits = level % 2 == 0 ? random.next() : bits >> 32;
        std::uint64_t x = bits & 0xffffffff;
        bool right = (x >= a && x < ab) || x >= abc;
        bool lower = x >= ab;
        to = to << 1 | static_cast<std::uint32_t>(lower);
        from = from << 1 | static_cast<std::uint32_t>(right);
      }
      auto n = static_cast<std::uint32_t>(nodes);
      if (to < n && from < n && to != from) return key_of(name[to], name[from]);
    }
    auto to = static_cast<Id>(random.below(static_cast<std::uint64_t>(nodes)));
    auto from = static_cast<Id>(random.below(static_cast<std::uint64_t>(nodes) - 1));
    return key_of(to, from < to ? from : from + 1);
  };
  std::vector<Key> keys;
  keys.reserve(static_cast<std::size_t>(edges));
  draw_distinct(keys, edges, 64, draw);
  fill_uniformly(keys, nodes, edges, random);
  return graph_of(nodes, keys);
}

Graph uniform_graph(Id nodes, Offset edges, std::uint64_t seed) {
  check_size(nodes, edges);
  Random random(mix(seed));
  std::vector<Key> keys;
  keys.reserve(static_cast<std::size_t>(edges));
  fill_uniformly(keys, nodes, edges, random);
  return graph_of(nodes, keys);
}

}  // namespace heed
