// Masks and keys against brute-force sets of pairs, in both directions of the pattern that they become; the names that
// users give them; and the blocks into which a pattern's work is cut: every position once, hubs in parts, the same on
// any number of threads.
#include <oneapi/tbb/global_control.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/batch.h"
#include "sampling/communities.h"
#include "sampling/draw.h"
#include "sampling/keys.h"
#include "sampling/mask.h"
#include "sampling/rank.h"
#include "sampling/similar.h"
#include "tests/scratch.h"
#include "tests/support.h"

using namespace heed;
using namespace heed::test;

namespace {

using Pairs = std::set<std::pair<Id, Id>>;

// What one direction of a pattern visits, block by block and batch by batch. Fails where a pair is visited twice, a
// segment is not where it says, or a row's edges do not follow each other from its start to its end.
Pairs visited(const Rows& rows, int limit = kChunk, int padded = 1) {
  Pairs out;
  std::array<Batch, 2> two;
  for (const Block& block : rows.blocks) {
    bool open = false, first = true;
    const Batch* announced = nullptr;
    std::vector<Id> order;  // of the rows that start, and of those without edges
    for_each_batch(
        rows, block, limit, padded, two, [&](Id i) { order.push_back(i); },
        [&](const Batch& batch) {
          CHECK(batch.first == first);
          CHECK((first || announced == &batch));
          announced = batch.next;
          if (batch.next) CHECK(batch.next->n >= 1);
          CHECK(batch.n >= 1);
          CHECK(batch.n <= limit);
          first = false;
          int edge = 0, vector = 0;
          for (int g = 0; g < batch.segments; ++g) {
            const Segment& s = batch.segment[g];
            CHECK(s.begin == edge);
            CHECK(s.end > s.begin);
            CHECK(s.vector == vector);
            CHECK((s.vectors - 1) * kLanes < s.edges() * padded);
            CHECK(s.vectors * kLanes >= s.edges() * padded);
            CHECK(s.starts == !open);
            open = !s.ends;
            if (s.starts) order.push_back(s.row);
            for (int t = s.begin; t < s.end; ++t) {
              CHECK(batch.rows[t] == s.row);
              CHECK(batch.at[t] == s.vector * kLanes + (t - s.begin) * padded);
              CHECK(out.emplace(s.row, batch.ids[t]).second);
              if (rows.listed()) CHECK(rows.list->ids[batch.entry + t] == batch.ids[t]);
            }
            edge = s.end, vector += s.vectors;
          }
          CHECK(edge == batch.n);
          CHECK(vector == batch.vectors);
        });
    std::sort(order.begin(), order.end());
    CHECK(announced == nullptr);
    if (block.part < 0) {
      CHECK(!open);
      std::vector<Id> expected(static_cast<std::size_t>(block.last - block.first));
      std::iota(expected.begin(), expected.end(), block.first);
      CHECK(order == expected);
    }
  }
  return out;
}

Pairs turned(const Pairs& a) {
  Pairs out;
  for (auto [i, j] : a) out.emplace(j, i);
  return out;
}

// Positions as nodes.
Pairs named(const Pairs& positions, const Selection* rows, const Selection* cols) {
  Pairs out;
  for (auto [i, j] : positions) CHECK(out.emplace(rows ? rows->ids[i] : i, cols ? cols->ids[j] : j).second);
  return out;
}

void check_pattern(const Pattern& pattern, const Pairs& expected) {
  const Selection *queries = pattern.query_order.get(), *keys = pattern.key_order.get();
  CHECK(named(visited(pattern.by_query), queries, keys) == expected);
  CHECK(named(visited(pattern.by_key, 3), keys, queries) == turned(expected));
  CHECK(pattern.edges() == static_cast<Offset>(expected.size()));
  if (!pattern.is_listed()) return;
  auto& edge = pattern.edge_of_entry();
  const Csr &forth = *pattern.by_query.list, &back = *pattern.by_key.list;
  for (Id j = 0; j < back.rows; ++j)
    for (Offset t = back.offsets[j]; t < back.offsets[j + 1]; ++t) {
      CHECK(forth.ids[edge[t]] == j);
      CHECK(edge[t] >= forth.offsets[back.ids[t]]);
      CHECK(edge[t] < forth.offsets[back.ids[t] + 1]);
    }
}

Pairs everything(Id n) {
  Pairs out;
  for (Id i = 0; i < n; ++i)
    for (Id j = 0; j < n; ++j) out.emplace(i, j);
  return out;
}

Graph random_graph(Id n, int edges, bool directed, Random& random) {
  return graph_from_edges(n, random_edges(n, edges, random),
                          {.loops = random.below(2) == 0 ? Loops::keep : Loops::drop,
                           .direction = directed ? Direction::directed : Direction::both});
}

struct Both {  // a mask, and the pairs that it must mean
  Mask mask;
  Pairs pairs;
};

Pairs pairs_of(const Csr& csr) {
  Pairs out;
  for (Id i = 0; i < csr.rows; ++i)
    for (Id j : csr.row(i)) out.emplace(i, j);
  return out;
}
template <class Test>
Pairs pairs_where(Id n, Test test) {
  Pairs out;
  for (Id i = 0; i < n; ++i)
    for (Id j = 0; j < n; ++j)
      if (test(i, j)) out.emplace(i, j);
  return out;
}

// `wide`: masks that no list could hold come often.
Both random_mask(const Graph& graph, int depth, Random& random, bool wide = false) {
  const Id n = graph.nodes();
  if (depth == 0 || random.below(5) == 0) switch (wide && random.below(3) > 0 ? 4 + random.below(4) : random.below(4)) {
      case 4: {
        const auto label = communities(*graph.adjacency);
        return {community(), pairs_where(n, [&](Id i, Id j) { return label[i] == label[j]; })};
      }
      case 5: {
        const auto& t = graph.times;
        return {before(), pairs_where(n, [&](Id i, Id j) { return t[j] <= t[i]; })};
      }
      case 6: {
        const auto salt = random.next();
        auto test = [salt](Id i, Id j) { return mix(salt, static_cast<std::uint64_t>(i * 1000 + j)) % 3 > 0; };
        return {where("odd", test), pairs_where(n, test)};
      }
      case 7: {  // another labelling, which meets communities in no order
        std::vector<Id> label(static_cast<std::size_t>(n));
        for (Id& l : label) l = static_cast<Id>(random.below(3));
        return {Mask("groups", [label](const Graph& g) { return same_label(g.nodes(), label); }),
                pairs_where(n, [&](Id i, Id j) { return label[i] == label[j]; })};
      }
      case 0:
        return {all(), everything(n)};
      case 1: {
        Pairs diagonal;
        for (Id i = 0; i < n; ++i) diagonal.emplace(i, i);
        return {self(), diagonal};
      }
      case 2: {
        const int k = static_cast<int>(1 + random.below(3));
        Pairs reach, ring;
        for (const Edge& e : edges_of(graph)) ring.emplace(e.to, e.from);
        const Pairs step = ring;
        for (int s = 0; s < k; ++s) {
          reach.insert(ring.begin(), ring.end());
          Pairs next;
          for (auto [i, j] : ring)
            for (auto [from, to] : step)
              if (from == j) next.emplace(i, to);
          ring = next;
        }
        return {local(k), reach};
      }
      default: {
        auto csr = std::make_shared<const Csr>(random_pattern(n, n, 5, random));
        return {Mask("own", [csr](const Graph&) { return PairSet{csr}; }), pairs_of(*csr)};
      }
    }
  Both a = random_mask(graph, depth - 1, random, wide), b = random_mask(graph, depth - 1, random, wide);
  Pairs out;
  switch (random.below(3)) {
    case 0:
      out = a.pairs;
      out.insert(b.pairs.begin(), b.pairs.end());
      return {a.mask | b.mask, out};
    case 1:
      for (auto p : a.pairs)
        if (b.pairs.contains(p)) out.insert(p);
      return {a.mask & b.mask, out};
    default:
      for (auto p : a.pairs)
        if (!b.pairs.contains(p)) out.insert(p);
      return {a.mask - b.mask, out};
  }
}

}  // namespace

TEST_SUITE_BEGIN("sampling");

TEST_CASE("masks: random expressions against sets of pairs, in both directions") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  int lists = 0, intervals = 0;
  for (int round = 0; round < 300; ++round) {
    Graph graph = random_graph(static_cast<Id>(1 + random.below(14)), static_cast<int>(random.below(30)),
                               random.below(2) == 0, random);
    Both both = random_mask(graph, 4, random);
    CAPTURE(both.mask.text());
    auto pattern = both.mask.pattern(graph);
    ++(pattern->is_listed() ? lists : intervals);
    CHECK(pattern->queries() == graph.nodes());
    CHECK(pattern->keys() == graph.nodes());
    check_pattern(*pattern, both.pairs);
    // Twice the complement is the mask itself.
    check_pattern(*(all() - (all() - both.mask)).pattern(graph), both.pairs);
    check_pattern(*(both.mask - both.mask).pattern(graph), {});
    check_pattern(*(both.mask | (all() - both.mask)).pattern(graph), everything(graph.nodes()));
  }
  CHECK(lists > 20);
  CHECK(intervals > 20);
}

TEST_CASE("masks: communities, times and tests in random expressions, with kept keys and virtual nodes") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  int lists = 0, intervals = 0, walks = 0, ordered = 0;
  for (int round = 0; round < 600; ++round) {
    const Id n = static_cast<Id>(1 + random.below(14));
    Graph graph = random_graph(n, static_cast<int>(random.below(20)), random.below(2) == 0, random);
    for (Id i = 0; i < n; ++i) graph.times.push_back(static_cast<double>(random.below(5)));
    Both both = random_mask(graph, static_cast<int>(random.below(4)), random, true);
    CAPTURE(both.mask.text());
    auto pattern = both.mask.pattern(graph);
    ++(pattern->is_listed() ? lists : pattern->by_query.walk ? walks : intervals);
    ordered += pattern->query_order != nullptr;
    check_pattern(*pattern, both.pairs);
    check_pattern(*(all() - both.mask).pattern(graph), pairs_where(n, [&](Id i, Id j) {
      return !both.pairs.contains({i, j});
    }));
    std::vector<Id> kept;
    for (Id i = 0; i < n; ++i)
      if (random.below(2) == 0) kept.push_back(i);
    auto is_kept = [&](Id j) { return std::binary_search(kept.begin(), kept.end(), j); };
    auto some = both.mask.pattern(MaskContext{graph}, &kept);
    CHECK(some->key_order->places.rows == n);
    check_pattern(*some, pairs_where(n, [&](Id i, Id j) { return is_kept(j) && both.pairs.contains({i, j}); }));
    const Id m = static_cast<Id>(1 + random.below(3));
    auto sees = [&](Id i, Id j) { return i >= n || j >= n || both.pairs.contains({i, j}); };
    check_pattern(*both.mask.pattern(MaskContext{graph}, nullptr, m), pairs_where(n + m, sees));
    for (Id v = 0; v < m; ++v) kept.push_back(n + v);
    check_pattern(*both.mask.pattern(MaskContext{graph}, &kept, m),
                  pairs_where(n + m, [&](Id i, Id j) { return is_kept(j) && sees(i, j); }));
  }
  for (int count : {lists, intervals, walks, ordered}) CHECK(count > 20);
}

TEST_CASE("masks: what is sorted runs as intervals, at nothing of size nodes x nodes") {
  Random random(7);
  const Id n = 60'000;  // 3.6e9 pairs
  Graph graph = graph_from_edges(n, random_edges(n, 60'000, random));
  for (Id i = 0; i < n; ++i) graph.times.push_back(static_cast<double>(random.below(1000)));
  for (const Mask& mask : {community(), before(), community() & before(), community() - before(), all() - before(),
                           all() - community(), all() - local(), (community() & before()) - local()}) {
    CAPTURE(mask.text());
    auto pattern = mask.pattern(graph);
    CHECK_FALSE(pattern->is_listed());
    CHECK(pattern->by_query.walk == nullptr);
    CHECK(pattern->keys() <= 2 * n);
    if (pattern->by_query.list) CHECK(pattern->by_query.list->edges() <= graph.edges());
  }
  CHECK((local() - community()).pattern(graph)->is_listed());
  CHECK((local() & before()).pattern(graph)->is_listed());
  auto both = (community() | local()).pattern(graph);  // intervals, and the neighbours in other communities
  CHECK(both->by_query.walk != nullptr);
  CHECK(both->edges() == community().pattern(graph)->edges() + (local() - community()).pattern(graph)->edges());
}

TEST_CASE("masks: lists by rule") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 40; ++round) {
    const Id n = static_cast<Id>(1 + random.below(40));
    const auto list = random_edges(n, static_cast<int>(random.below(100)), random);
    std::vector<float> weights(list.size());
    for (float& w : weights) w = static_cast<float>(random.normal());
    Graph graph = graph_from_edges(n, list, {.direction = Direction::directed}, weights);
    const Csr& a = *graph.adjacency;
    auto csr = [&](const Mask& mask, const MaskContext& c) {
      auto pattern = mask.pattern(c);
      CHECK(pattern->is_listed());
      check(*pattern->by_query.list);
      return *pattern->by_query.list;
    };
    const MaskContext plain{.graph = graph, .seed = seed};

    const Csr heavy = csr(heavier(0.25), plain);
    for (Id i = 0; i < n; ++i)
      for (Offset e = a.offsets[i]; e < a.offsets[i + 1]; ++e)
        CHECK(heavy.contains(i, a.ids[e]) == (graph.weights[e] > 0.25f));
    CHECK(intersect(heavy, a) == heavy);

    const int m = static_cast<int>(1 + random.below(6));
    const Csr top = csr(hubs(m), plain);
    for (Id i = 0; i < n; ++i) {
      CHECK(top.degree(i) == std::min<Offset>(m, n));
      for (Id j = 0; j < n; ++j)  // who is left out has no higher degree
        if (!top.contains(i, j))
          for (Id hub : top.row(i)) CHECK((a.degree(hub) > a.degree(j) || (a.degree(hub) == a.degree(j) && hub < j)));
    }

    const Csr drawn = csr(heed::random(m), plain);
    for (Id i = 0; i < n; ++i) CHECK(drawn.degree(i) == std::min<Offset>(m, n));
    CHECK(drawn == csr(heed::random(m), plain));
    if (n > 20) CHECK_FALSE(drawn == csr(heed::random(m), {.graph = graph, .seed = seed + 1}));

    const Csr renamed = csr(shuffled(), plain);
    CHECK(renamed == csr(shuffled(), plain));
    if (n > 20 && a.edges() > 20) {
      CHECK_FALSE(renamed == a);
      CHECK_FALSE(renamed == csr(shuffled(), {.graph = graph, .seed = seed + 1}));
    }
    // The same graph under other names: as many pairs as at first, and degrees, two-hop degrees and loops as often.
    auto shape = [](const Csr& x) {
      const Csr two = compose(x, x);
      std::vector<std::array<Offset, 3>> rows;
      for (Id i = 0; i < x.rows; ++i) rows.push_back({x.degree(i), two.degree(i), x.contains(i, i)});
      std::sort(rows.begin(), rows.end());
      return rows;
    };
    check(renamed);
    CHECK(shape(renamed) == shape(a));

    const Csr regular = csr(expander(m), plain);
    auto symmetric = std::make_shared<const Csr>(regular);
    CHECK(transpose(symmetric).csr == symmetric);
    int short_of = 0;
    for (Id i = 0; i < n; ++i) {
      CHECK_FALSE(regular.contains(i, i));
      short_of += static_cast<int>(std::min<Offset>(m, n - 1) - regular.degree(i));
    }
    if (n > 3 * m) CHECK(short_of == (m < n - 1 && m % 2 == 1 && n % 2 == 1));
    const Mask moving = expander(m, Draw::every_step);
    CHECK(moving.needs().step);
    const auto now = moving.pairs({.graph = graph, .seed = seed, .step = 3}).pairs;
    CHECK(transpose(now).csr == now);
    Offset seen = 0;
    for (Id i = 0; i < n; ++i) {
      CHECK_FALSE(now->contains(i, i));
      CHECK(now->degree(i) <= std::min<Offset>(m, n - 1));
      seen += now->degree(i);
    }
    if (n > 20) CHECK(seen > Offset{n} * m / 2);  // not many coincide
    if (n > 3 * m && m > 1) {
      const Csr reach = hops(regular, n);
      CHECK(reach.edges() == Offset{n} * n);  // one piece
    }
  }
}

TEST_CASE("masks: nearest neighbours by cosine, dense and sparse, against all pairs") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (Id n : {1, 3, 50, 600}) {
    Graph graph = graph_from_edges(n, {});
    const Id channels = n == 50 ? 12 : 60;  // much filled, and little
    const int k = 5;
    auto pattern = std::make_shared<Csr>(random_pattern(n, channels, 6, random));
    std::vector<float> values(pattern->ids.size());
    for (float& x : values) x = static_cast<float>(1 + random.below(5));
    Features sparse{.dense = {}, .sparse = std::make_shared<Sparse>(pattern, values)};
    Features dense{.dense = Matrix<float>(n, channels), .sparse = nullptr};
    for (Id i = 0; i < n; ++i)
      for (Offset e = pattern->offsets[i]; e < pattern->offsets[i + 1]; ++e)
        dense.dense(i, pattern->ids[e]) = values[e];
    auto cosine = [&](Id i, Id j) {
      double dot = 0, x = 0, y = 0;
      for (Id c = 0; c < channels; ++c) {
        const double p = dense.dense(i, c), q = dense.dense(j, c);
        dot += p * q, x += p * p, y += q * q;
      }
      return x > 0 && y > 0 ? dot / std::sqrt(x * y) : 0;
    };
    for (const Features* features : {&dense, &sparse}) {
      const auto mask = knn(k).pattern({.graph = graph, .features = features});
      const Csr& found = *mask->by_query.list;
      for (Id i = 0; i < n; ++i) {
        CHECK(found.degree(i) == std::min<Offset>(k, n - 1));
        CHECK_FALSE(found.contains(i, i));
        double worst = 2, best_left_out = -2;
        for (Id j = 0; j < n; ++j)
          if (found.contains(i, j))
            worst = std::min(worst, cosine(i, j));
          else if (j != i)
            best_left_out = std::max(best_left_out, cosine(i, j));
        CHECK(worst >= best_left_out - 1e-6);
      }
      for (int threads : {1, 2, 7}) {
        tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(threads));
        CHECK(most_similar(*features, k) == found);
      }
    }
  }
  Graph graph = graph_from_edges(3, {});
  CHECK(message([&] { knn(2).pattern(graph); }) == "knn(2) needs features of the nodes, which there are not");
}

TEST_CASE("masks: PageRank and its personalised kind against dense linear algebra") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 10; ++round) {
    const Id n = static_cast<Id>(2 + random.below(20));
    Graph graph = random_graph(n, 40, true, random);
    const Csr& a = *graph.adjacency;
    std::vector<double> rank(static_cast<std::size_t>(n), 1.0 / n);
    const auto back = transpose(graph.adjacency).csr;
    for (int step = 0; step < 400; ++step) {
      std::vector<double> next(rank.size(), 0.15 / n);
      for (Id j = 0; j < n; ++j)
        for (Id i = 0; i < n; ++i)
          next[i] += 0.85 * rank[j] * (back->degree(j) == 0 ? 1.0 / n : a.contains(i, j) ? 1.0 / back->degree(j) : 0.0);
      rank = next;
    }
    const auto found = pagerank(a);
    for (Id i = 0; i < n; ++i) CHECK(found[i] == doctest::Approx(rank[i]).epsilon(1e-8));

    const int k = static_cast<int>(1 + random.below(5));
    const Csr top = top_by_ppr(a, k);
    check(top);
    for (Id i = 0; i < n; ++i) {
      std::vector<double> walk(static_cast<std::size_t>(n)), end(walk.size());
      walk[i] = 1;
      for (int step = 0; step < 300; ++step) {
        std::vector<double> next(walk.size());
        for (Id u = 0; u < n; ++u) {
          end[u] += walk[u] * (a.degree(u) > 0 ? 0.15 : 1.0);
          for (Id v : a.row(u)) next[v] += 0.85 * walk[u] / static_cast<double>(a.degree(u));
        }
        walk = next;
      }
      CHECK_FALSE(top.contains(i, i));
      double worst = 2;
      for (Id j : top.row(i)) worst = std::min(worst, end[j]);
      for (Id j = 0; j < n; ++j)
        if (j != i && !top.contains(i, j)) {
          CHECK(end[j] <= (top.degree(i) == k ? worst : 0) + 2e-3);
        }
    }
    for (int threads : {1, 2, 7}) {
      tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(threads));
      CHECK(top_by_ppr(a, k) == top);
      CHECK(pagerank(a) == found);
    }
  }
}

TEST_CASE("masks: label propagation finds planted groups, and the same ones again") {
  Random random(11);
  const Id n = 400, groups = 4;
  std::vector<Edge> list;
  for (Id i = 0; i < n; ++i)
    for (int t = 0; t < 12; ++t)
      list.push_back({static_cast<Id>(t < 11 ? random.below(n / groups) * groups + i % groups : random.below(n)), i});
  Graph graph = graph_from_edges(n, list);
  const auto label = communities(*graph.adjacency);
  CHECK(label == communities(*graph.adjacency));
  int agree = 0;
  for (Id i = 0; i < n; ++i)
    for (Id j = 0; j < n; ++j) agree += (label[i] == label[j]) == (i % groups == j % groups);
  CHECK(agree > n * n * 9 / 10);
  CHECK(communities(Csr{.rows = 3, .cols = 3, .offsets = {0, 0, 0, 0}, .ids = {}}) == std::vector<Id>{0, 1, 2});
}

TEST_CASE("masks: draws of every step are permutations, anew at each, whose transpose is the inverse") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (std::uint32_t n : {1u, 2u, 5u, 16u, 17u, 1000u}) {
    const Permutation order(n, random.next());
    std::set<std::uint32_t> seen;
    for (std::uint32_t x = 0; x < n; ++x) {
      CHECK(order(x) < n);
      CHECK(order.inverse(order(x)) == x);
      seen.insert(order(x));
    }
    CHECK(seen.size() == n);
  }
  std::vector<int> count(25);  // where 3 of 5 go, over many keys
  for (int t = 0; t < 5000; ++t) ++count[Permutation(5, random.next())(3)];
  for (int c = 0; c < 5; ++c) CHECK(std::abs(count[c] - 1000) < 200);

  for (Id n : {1, 4, 30, 300}) {
    Graph graph = random_graph(n, 2 * n, false, random);
    const bool regular = random.below(2) > 0;
    CAPTURE(regular);
    const Mask mask = regular ? expander(6, Draw::every_step) : heed::random(6, Draw::every_step);
    CHECK(mask.needs().step);
    Pairs before_that;
    for (std::uint64_t step : {0, 1, 2}) {
      const MaskContext c{.graph = graph, .seed = seed, .step = step};
      auto pattern = mask.pattern(c);
      CHECK(pattern->by_query.walk != nullptr);
      CHECK(pattern->by_query.list == nullptr);
      const Pairs drawn = visited(pattern->by_query);
      check_pattern(*pattern, drawn);
      CHECK(static_cast<Offset>(drawn.size()) <= 6 * Offset{n});
      CHECK(static_cast<Offset>(drawn.size()) >= (regular && n == 1 ? 0 : n));
      CHECK(pairs_of(*mask.pairs(c).pairs) == drawn);  // as a list, for compositions
      Pairs with_neighbours = pairs_of(*graph.adjacency);
      with_neighbours.insert(drawn.begin(), drawn.end());
      check_pattern(*(mask | local()).pattern(c), with_neighbours);
      if (n >= 30) CHECK(drawn != before_that);
      before_that = drawn;
    }
  }
  Graph graph = graph_from_edges(5, {});
  CHECK(message([&] { heed::random(257, Draw::every_step); }) == "random(m, step) draws at most 256 keys, not 257");
  CHECK(message([&] { expander(257, Draw::every_step); }) == "expander(d, step) draws at most 256 keys, not 257");
}

TEST_CASE("masks: files of pairs and times, and what is wrong with them") {
  Scratch files;
  Graph graph = graph_from_edges(4, {});
  auto good = files.write("good", "\xef\xbb\xbf# query key\n0 1\n\n 3\t2 # why\r\n0 1\n0 3");
  CHECK(pairs_of(*pairs(good).pattern(graph)->by_query.list) == Pairs{{0, 1}, {0, 3}, {3, 2}});
  auto wrong = [&](const std::string& text, bool times = false) {
    auto path = files.write("bad", text);
    std::string all = message([&] { (times ? before(path) : pairs(path)).pattern(graph); });
    CHECK(all.find(path.string()) == 0);
    return all.substr(std::min(all.size(), path.string().size()));
  };
  CHECK(wrong("0 1\n0 4\n") == ", line 2: expected nodes of 0..3, not '0 4'");
  CHECK(wrong("0 1 2") == ", line 1: expected 'query key', not '0 1 2'");
  CHECK(wrong("\n\n0") == ", line 3: expected 'query key', not '0'");
  CHECK(wrong("0 x") == ", line 1: expected 'query key', not '0 x'");
  CHECK(wrong("-1 0") == ", line 1: expected nodes of 0..3, not '-1 0'");
  CHECK(wrong("0 99999999999") == ", line 1: expected 'query key', not '0 99999999999'");
  CHECK(wrong("1\n2\nnan\n3", true) == ", line 3: expected a number, not 'nan'");
  CHECK(wrong("1\n2\n", true) == ": 2 times for 4 nodes");
  CHECK(has(message([&] { pairs(files.path / "none").pattern(graph); }), "none"));
  auto times = files.write("times", "2\n1\n3\n1.5\n");
  Graph timed = graph;
  timed.times = {2, 1, 3, 1.5};
  CHECK(before(times).pattern(graph)->edges() == 10);
  CHECK(before().pattern(timed)->edges() == 10);
  CHECK(message([&] { before().pattern(graph); }) ==
        "before needs a time for each of the 4 nodes: graph.times has 0; or name a file of them, before(times.txt)");
  timed.times[2] = std::nan("");
  CHECK(message([&] { before().pattern(timed); }) == "the time of node 2 is not finite");
}

TEST_CASE("masks and keys by name: their text comes back, and errors name the column") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const char* text : {"self",
                           "local",
                           "local(3)",
                           "heavier(0.5)",
                           "heavier(-2)",
                           "hubs(4)",
                           "hubs(4, pagerank)",
                           "knn(5)",
                           "ppr(16)",
                           "expander(8)",
                           "expander(8, step)",
                           "random(4)",
                           "random(4, step)",
                           "shuffled",
                           "pairs(a/b.txt)",
                           "pairs(\"a (b), c.txt\")",
                           "all",
                           "community",
                           "before",
                           "before(t.txt)",
                           "local(2) | self",
                           "(all - local) - self",
                           "(local & community) | (all - before)"})
    CHECK(mask_named(text).text() == text);
  CHECK(mask_named("local|self").text() == "local | self");
  CHECK(mask_named(" all - local & self | ( hubs( 2 ) ) ").text() == "((all - local) & self) | hubs(2)");
  CHECK(mask_named("all - local - self").text() == "(all - local) - self");
  CHECK(mask_named("local(1)").key() == local().key());
  CHECK(mask_menu().size() == 13);
  for (const RuleEntry& entry : mask_menu()) CHECK(entry.usage.rfind(entry.name, 0) == 0);
  auto wrong = [](const std::string& text) { return message([&] { mask_named(text); }); };
  CHECK(wrong("loca") == "column 1: unknown mask 'loca'; did you mean local?");
  CHECK(wrong("local | expnder(4)") == "column 9: unknown mask 'expnder'; did you mean expander?");
  CHECK(wrong("") == "column 1: expected a name or '(' before the end");
  CHECK(wrong("local |") == "column 8: expected a name or '(' before the end");
  CHECK(wrong("local self") == "column 7: expected '|', '&', '-' or the end, not 's'");
  CHECK(wrong("(local") == "column 7: expected ')' before the end");
  CHECK(wrong("local(2") == "column 8: expected ',' or ')' before the end");
  CHECK(wrong("local(") == "column 7: expected an argument before the end");
  CHECK(mask_named("local() | all()").text() == mask_named("local | all").text());
  CHECK(wrong("pairs(\"a)") == "column 7: the quotation has no end");
  CHECK(wrong("self | local(0)") == "column 14: local(k) takes a whole number of 1 to 1000000000, not '0'");
  CHECK(wrong("local(2.5)") == "column 7: local(k) takes a whole number of 1 to 1000000000, not '2.5'");
  CHECK(wrong("heavier(x)") == "column 9: heavier(w) takes a number, not 'x'");
  CHECK(wrong("self(1)") == "column 1: 'self' has 1 argument; it is written self");
  CHECK(wrong("knn") == "column 1: 'knn' has 0 arguments; it is written knn(k)");
  CHECK(wrong("hubs(2, degree)") ==
        "column 9: hubs(m) or hubs(m, pagerank) takes 'pagerank' here, or nothing, not "
        "'degree'");
  CHECK(wrong(std::string(200, '(')) == "column 101: more than 100 parentheses inside each other");
  CHECK(wrong(std::string(2001, ' ')) == "column 2001: an expression has at most 2000 characters");
  CHECK(wrong("local\n") == "column 6: expected '|', '&', '-' or the end, not '?'");

  auto heads = head_masks_named("0-3: local | self; 4: hubs(2) ;5-7:expander(8)");
  REQUIRE(heads.size() == 3);
  CHECK((heads[0].first == 0 && heads[0].last == 3 && heads[0].mask.text() == "local | self"));
  CHECK((heads[1].first == 4 && heads[1].last == 4 && heads[1].mask.text() == "hubs(2)"));
  CHECK((heads[2].first == 5 && heads[2].last == 7 && heads[2].mask.text() == "expander(8)"));
  CHECK(head_masks_named("local")[0].last == kEveryHead);
  CHECK(head_masks_named("0: pairs(a;b:c); 1: self").size() == 2);
  CHECK(head_masks_named("0: pairs(\"a(b;c\"); 1: self").size() == 2);
  CHECK(head_masks_named("0: pairs(\"a)b;c\"); 1: self").size() == 2);
  auto wrong_heads = [](const std::string& text) { return message([&] { head_masks_named(text); }); };
  CHECK(wrong_heads("0-3: local; 5: self") == "column 13: the next head without a mask is 4, not 5");
  CHECK(wrong_heads("0-3: local; 3: self") == "column 13: the next head without a mask is 4, not 3");
  CHECK(wrong_heads("0-3: local; 4: slf") == "column 16: unknown mask 'slf'; did you mean self or all?");
  CHECK(wrong_heads("0-x: local") == "column 1: expected heads and a mask, as in '0-3: local', not '0-x: local'");
  CHECK(wrong_heads("0: local;") == "column 10: expected heads and a mask, as in '0-3: local', not ''");
  CHECK(wrong_heads("3-0: local") == "column 1: expected heads and a mask, as in '0-3: local', not '3-0: local'");

  // Whatever is typed, there is an answer or an Error.
  const std::string letters = "local(2)|&-self all,\";0-3: ()";
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (auto t = random.below(20); t > 0; --t) text += letters[random.below(letters.size())];
    message([&] { head_masks_named(text); });
    message([&] { keys_named(text); });
  }
}

TEST_CASE("keys: every rule, compositions, and what they refuse") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const char* text : {"all", "random(0.5)", "random(0.25, step)", "every(2)", "every(2, 1)", "degree(0.3)",
                           "pagerank(0.3)", "farthest(0.3)", "learned(0.3)", "(degree(0.2) | every(3)) - every(2)"})
    CHECK(keys_named(text).text() == text);
  CHECK(keys_menu().size() == 7);
  CHECK(keys_named("every(1)").every_node());
  for (int round = 0; round < 60; ++round) {
    const Id n = static_cast<Id>(3 + random.below(40));
    Graph graph = random_graph(n, static_cast<int>(random.below(80)), false, random);
    const Csr& a = *graph.adjacency;
    const MaskContext c{.graph = graph, .seed = seed, .step = 3};
    const double share = 0.05 + 0.9 * random.uniform();
    const auto count = static_cast<std::size_t>(std::ceil(share * n));
    auto is_in = [](const std::vector<Id>& list, Id i) { return std::binary_search(list.begin(), list.end(), i); };
    for (const Keys& keys : {heed::random_keys(share), heed::random_keys(share, Draw::every_step), by_degree(share),
                             by_pagerank(share), farthest(share)}) {
      CAPTURE(keys.text());
      CHECK(keys.nodes(c).size() == count);
      CHECK(keys.nodes(c) == keys.nodes(c));
      if (n >= 30 && share > 0.3 && share < 0.7) {
        const MaskContext later{.graph = graph, .seed = seed, .step = 4};
        CHECK((keys.nodes(c) != keys.nodes(later)) == keys.needs().step);
      }
    }
    const auto top = by_degree(share).nodes(c);
    for (Id i = 0; i < n; ++i)
      for (Id j = 0; j < n; ++j)
        if (is_in(top, i) && !is_in(top, j)) CHECK(a.degree(i) >= a.degree(j));
    const auto spread = farthest(share).nodes(c);  // no node is farther from the chosen than they are from each other
    auto hops_between = [&](Id from) {
      std::vector<int> distance(static_cast<std::size_t>(n), 1000);
      distance[from] = 0;
      for (int step = 0; step < n; ++step)
        for (Id i = 0; i < n; ++i)
          for (Id j : a.row(i)) distance[j] = std::min(distance[j], distance[i] + 1);
      return distance;
    };
    int nearest_pair = 1000, farthest_left = 0;
    std::vector<int> to_chosen(static_cast<std::size_t>(n), 1000);
    for (Id i : spread) {
      const auto d = hops_between(i);
      for (Id j = 0; j < n; ++j) {
        if (is_in(spread, j) && j != i) nearest_pair = std::min(nearest_pair, d[j]);
        to_chosen[j] = std::min(to_chosen[j], d[j]);
      }
    }
    farthest_left = *std::max_element(to_chosen.begin(), to_chosen.end());
    if (spread.size() > 1) CHECK(nearest_pair >= farthest_left);
    std::vector<Id> odd;
    for (Id i = 1; i < n; i += 2) odd.push_back(i);
    CHECK(every(2, 1).nodes(c) == odd);
    CHECK((all_keys() - every(2)).nodes(c) == odd);
    CHECK((every(2) | every(2, 1)).nodes(c) == all_keys().nodes(c));
    CHECK((every(2) & every(2, 1)).nodes(c).empty());
  }
  auto wrong = [](const std::string& text) { return message([&] { keys_named(text); }); };
  CHECK(wrong("evry(2)") == "column 1: unknown keys 'evry'; did you mean every?");
  CHECK(wrong("degree(0)") == "column 8: degree(share) takes a share above 0, at most 1, not '0'");
  CHECK(wrong("random(1.5)") ==
        "column 8: random(share) or random(share, step) takes a share above 0, at most 1, not '1.5'");
  CHECK(wrong("every(0)") ==
        "column 7: every(step) or every(step, first) takes a whole number of 1 to 1000000000, not "
        "'0'");
  CHECK(wrong("every(2) | learned(0.5)") == "'learned(0.5)' stands alone: it does not compose with other keys");
  CHECK(has(message([] { by_degree(0); }), "degree(share) needs a share above 0"));
  Graph graph = graph_from_edges(4, {});
  CHECK(message([&] { every(5).nodes({.graph = graph}); }) == "every(5) needs at least 5 nodes; the graph has 4");
  CHECK(message([&] { every(2, 7).nodes({.graph = graph}); }) == "every(2, 7) needs at least 8 nodes; the graph has 4");
  CHECK(every(4, 3).nodes({.graph = graph}) == std::vector<Id>{3});
  CHECK(has(message([&] { learned(0.5).nodes({.graph = graph}); }), "by the layer that learns it"));
  Keys strange("strange", {}, [](const MaskContext&) { return std::vector<Id>{2, 1}; });
  CHECK(has(message([&] { strange.nodes({.graph = graph}); }), "the keys 'strange' are not rising nodes of 0..3"));
}

TEST_CASE("masks: what `all` makes large is never a list, and the neighbours share the graph's own") {
  Random random(3);
  Graph graph = random_graph(50, 100, false, random);
  CHECK_FALSE(all().pattern(graph)->is_listed());
  CHECK(all().pattern(graph)->by_query.list == nullptr);
  auto far = (all() - local()).pattern(graph);
  CHECK_FALSE(far->is_listed());
  CHECK(far->by_query.list->edges() == graph.edges());
  CHECK(far->by_query.intervals.size() == 1);
  CHECK(far->edges() == 2500 - graph.edges());
  CHECK(local().pattern(graph)->by_query.list == graph.adjacency);
  CHECK(local().pattern(graph)->by_key.list == graph.adjacency);
  CHECK(((all() - self()) & local()).pattern(graph)->is_listed());
  CHECK(message([&] { far->edge_of_entry(); }) == "a pattern of intervals has no edges to number");
  Graph none = graph_from_edges(0, {});
  for (const Mask& mask : {all(), local(), self(), local(3) | self(), all() - local()}) {
    CHECK(mask.pattern(none)->edges() == 0);
    CHECK(mask.pattern(none)->queries() == 0);
  }
}

TEST_CASE("masks: the parts of a union") {
  auto texts = [](const Mask& mask) {
    std::string out;
    for (const Mask& part : mask.parts()) out += part.text() + "; ";
    return out;
  };
  CHECK(texts(local()) == "local; ");
  CHECK(texts(local() | self() | (hubs(2) & local())) == "local; self; hubs(2) & local; ");
  CHECK(texts(local() | (self() | hubs(2))) == "local; self; hubs(2); ");
  CHECK(texts((local() | self()) - hubs(2)) == "(local | self) - hubs(2); ");
  CHECK(texts(mask_named("local | expander(8, step)")) == "local; expander(8, step); ");
}

TEST_CASE("masks: their text is the expression") {
  CHECK(self().text() == "self");
  CHECK(local().text() == "local");
  CHECK(local(2).text() == "local(2)");
  CHECK(all().text() == "all");
  CHECK((local(2) | self()).text() == "local(2) | self");
  CHECK((all() - (local() | self())).text() == "all - (local | self)");
  CHECK(((all() - local()) & (self() | local(3))).text() == "(all - local) & (self | local(3))");
  CHECK((all() - local() - self()).text() == "(all - local) - self");
  CHECK(message([] { local(0); }) == "local(k) needs at least 1 hop, not 0");
}

TEST_CASE("sliding intervals: both directions against brute force, and what they refuse") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 200; ++round) {
    const Id queries = static_cast<Id>(random.below(12)), keys = static_cast<Id>(random.below(12));
    std::vector<Id> begins, ends;
    for (Id i = 0; i < queries; ++i) {
      begins.push_back(static_cast<Id>(random.below(static_cast<std::uint64_t>(keys) + 1)));
      ends.push_back(static_cast<Id>(random.below(static_cast<std::uint64_t>(keys) + 1)));
    }
    std::sort(begins.begin(), begins.end());
    std::sort(ends.begin(), ends.end());
    std::vector<Interval> intervals;
    for (Id i = 0; i < queries; ++i) intervals.push_back({std::min(begins[i], ends[i]), ends[i]});
    std::shared_ptr<const Csr> without;
    if (random.below(2) == 0) without = std::make_shared<Csr>(random_pattern(queries, keys, keys > 0 ? 5 : 0, random));
    Pairs expected;
    for (Id i = 0; i < queries; ++i)
      for (Id j = intervals[i][0]; j < intervals[i][1]; ++j)
        if (!without || !without->contains(i, j)) expected.emplace(i, j);
    check_pattern(*Pattern::sliding(keys, intervals, without), expected);
  }
  CHECK(message([] { Pattern::sliding(5, {{0, 6}}); }) == "interval 0 [0, 6) is outside 0..5");
  CHECK(message([] { Pattern::sliding(5, {{0, 2}, {3, 2}}); }) == "interval 1 [3, 2) is outside 0..5");
  CHECK(message([] { Pattern::sliding(5, {{1, 2}, {0, 2}}); }) == "interval 1 begins or ends before the one above it");
  CHECK(message([] { Pattern::sliding(5, {{0, 3}, {0, 2}}); }) == "interval 1 begins or ends before the one above it");
  CHECK(message([] { Pattern::all(2, 3, std::make_shared<Csr>(identity(3))); }) ==
        "the pairs left out are 3 x 3, the pattern 2 x 3");
}

TEST_CASE("block plans: every position once, hubs in parts, blocks of even cost, on any number of threads") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 3000;
  const Id hub = static_cast<Id>(2 * kHubEdges + 100);
  std::vector<Interval> growing;
  for (Id i = 0; i < 40; ++i) growing.push_back({0, i * 600});
  Csr hubs{.rows = n, .cols = hub};
  for (Id i = 0; i < n; ++i) {
    std::set<Id> row;
    for (int t = 0; t < 8; ++t) row.insert(static_cast<Id>(random.below(static_cast<std::uint64_t>(hub))));
    if (i == 0 || i == 1 || i == 1700 || i == n - 1) {
      const Id length = static_cast<Id>(i == 1 ? kHubEdges + 1 : i == 1700 ? kHubEdges : hub);
      row.clear();
      for (Id j = 0; j < length; ++j) row.insert(j);
    }
    hubs.ids.insert(hubs.ids.end(), row.begin(), row.end());
    hubs.offsets.push_back(hubs.edges());
  }
  auto list = std::make_shared<const Csr>(std::move(hubs));
  for (auto make : std::vector<std::function<std::shared_ptr<const Pattern>()>>{
           [&] { return Pattern::listed(list); }, [&] { return Pattern::all(5, hub); },
           [&] { return Pattern::sliding(40 * 600, growing); },
           [&] { return Pattern::listed(std::make_shared<Csr>(identity(5000))); },
           [&] { return Pattern::listed(std::make_shared<Csr>(random_pattern(2000, 10, 0, random))); }}) {
    auto pattern = make();
    for (const Rows* rows : {&pattern->by_query, &pattern->by_key}) {
      Id row = 0;     // the next row to come
      Offset at = 0;  // and the position in it
      Offset parts = 0;
      for (const Block& block : rows->blocks) {
        CHECK(block.first == row);
        if (block.part < 0) {
          CHECK(at == 0);
          REQUIRE(block.last > block.first);
          Offset cost = 0;
          for (Id i = block.first; i < block.last; ++i) {
            CHECK(rows->length(i) <= kHubEdges);
            cost += rows->length(i) + 8;
          }
          if (block.last - block.first > 1) CHECK(cost <= kBlockEdges);
          row = block.last;
          continue;
        }
        CHECK(block.part == parts++);
        CHECK(block.last == block.first + 1);
        CHECK(rows->length(row) > kHubEdges);
        CHECK(block.begin == at);
        CHECK(block.end > block.begin);
        CHECK(block.end - block.begin <= kHubEdges);
        at = block.end;
        if (at == rows->length(row)) ++row, at = 0;
      }
      CHECK(row == rows->rows);
      CHECK(at == 0);
      CHECK(rows->parts == parts);
    }
  }
  auto same = [](const Rows& a, const Rows& b) {
    return a.parts == b.parts && std::ranges::equal(a.blocks, b.blocks, [](const Block& x, const Block& y) {
             return x.first == y.first && x.last == y.last && x.begin == y.begin && x.end == y.end && x.part == y.part;
           });
  };
  auto pattern = Pattern::listed(list);
  CHECK(pattern->by_query.parts == 8);
  for (std::size_t threads : {1, 2, 7}) {
    tbb::global_control limit(tbb::global_control::max_allowed_parallelism, threads);
    auto other = Pattern::listed(list);
    CHECK(same(pattern->by_query, other->by_query));
    CHECK(same(pattern->by_key, other->by_key));
  }
}

TEST_CASE("batches: every pair once, whatever the limit, the padding, the part and what is left out") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 200; ++round) {
    const Id keys = static_cast<Id>(1 + random.below(200));
    auto without = std::make_shared<Csr>(random_pattern(3, keys, 30, random));
    Id first = static_cast<Id>(random.below(static_cast<std::uint64_t>(keys)));
    std::vector<Interval> intervals{{0, keys}, {first, keys}, {first, keys}};
    auto pattern = round % 2 == 0 ? Pattern::sliding(keys, intervals, without) : Pattern::listed(without);
    Rows rows = pattern->by_query;
    if (rows.length(1) > 0 && round % 3 == 0) {  // the row in the middle as a hub of two parts
      const Offset length = rows.length(1), cut = static_cast<Offset>(random.below(length));
      rows.blocks = {{.first = 0, .last = 1},
                     {.first = 1, .last = 2, .begin = 0, .end = cut, .part = 0},
                     {.first = 1, .last = 2, .begin = cut, .end = length, .part = 1},
                     {.first = 2, .last = 3}};
    }
    const int limit = static_cast<int>(1 + random.below(kChunk));
    const int padded = std::array{1, 2, 4, 8, 24}[random.below(5)];
    Pairs expected;
    for (Id i = 0; i < 3; ++i)
      for (Id j = 0; j < keys; ++j) {
        const bool listed = without->contains(i, j);
        if (round % 2 == 0 ? j >= intervals[i][0] && !listed : listed) expected.emplace(i, j);
      }
    CHECK(visited(rows, limit, padded) == expected);
  }
}

TEST_SUITE_END();
