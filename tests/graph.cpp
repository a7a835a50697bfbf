// Patterns and graphs against brute force over sets of pairs: transposition, set algebra, neighbourhoods, what the
// policies for edges mean, and the messages for those that are no good.
#include "graph/graph.h"

#include <algorithm>
#include <map>
#include <queue>

#include "tests/scratch.h"
#include "tests/support.h"

using namespace heed;
using namespace heed::test;

namespace {

using Pairs = std::set<std::pair<Id, Id>>;

Pairs pairs_of(const Csr& a) {
  Pairs out;
  for (Id i = 0; i < a.rows; ++i)
    for (Id j : a.row(i)) out.emplace(i, j);
  return out;
}

}  // namespace

TEST_SUITE_BEGIN("graph");

TEST_CASE("check names the row and the id") {
  auto of = [](Csr a) { return message([&] { check(a); }); };
  const Csr good{.rows = 3, .cols = 4, .offsets = {0, 2, 2, 3}, .ids = {0, 3, 1}};
  auto with = [&](auto change) {
    Csr a = good;
    change(a);
    return of(a);
  };
  const std::string offsets = "pattern of 3 rows: offsets must be rows + 1 numbers from 0 to the edge count";
  CHECK(of(good) == "");
  CHECK(of({}) == "");
  CHECK(with([](Csr& a) { a.cols = -1; }) == "pattern has a negative shape: 3 x -1");
  CHECK(with([](Csr& a) { a.rows = -3; }) == "pattern has a negative shape: -3 x 4");
  CHECK(with([](Csr& a) { a.offsets.pop_back(); }) == offsets);
  CHECK(with([](Csr& a) { a.offsets.clear(); }) == offsets);
  CHECK(with([](Csr& a) { a.offsets.front() = 1; }) == offsets);
  CHECK(with([](Csr& a) { a.ids.push_back(2); }) == offsets);
  CHECK(with([](Csr& a) { a.offsets[2] = 1; }) == "pattern row 1 ends before it begins");
  CHECK(with([](Csr& a) { a.offsets[2] = 4; }) == "pattern row 1 ends before it begins");
  CHECK(with([](Csr& a) { a.offsets[1] = -1; }) == "pattern row 0 ends before it begins");
  CHECK(with([](Csr& a) { a.ids[1] = 4; }) == "pattern row 0: id 4 is outside 0..3");
  CHECK(with([](Csr& a) { a.ids[2] = -2; }) == "pattern row 2: id -2 is outside 0..3");
  CHECK(with([](Csr& a) { a.ids[0] = 3; }) == "pattern row 0: id 3 after 3; ids must rise");
  CHECK(with([](Csr& a) { a.ids = {2, 1, 1}; }) == "pattern row 0: id 1 after 2; ids must rise");
}

TEST_CASE("transposition: brute force, edge numbers, and a symmetric pattern is shared") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const std::vector<std::array<Id, 2>> shapes{{0, 0}, {0, 5}, {5, 0}, {1, 1}, {7, 7}, {4, 11}, {11, 4}, {60, 50}};
  for (auto [rows, cols] : shapes)
    for (int most : {0, 3, 20}) {
      CAPTURE(rows);
      CAPTURE(cols);
      auto a = std::make_shared<const Csr>(random_pattern(rows, cols, cols > 0 ? most : 0, random));
      Transpose t = transpose(a);
      check(*a), check(*t.csr);
      Pairs expected;
      for (auto [i, j] : pairs_of(*a)) expected.emplace(j, i);
      CHECK(t.csr->rows == cols);
      CHECK(t.csr->cols == rows);
      CHECK(pairs_of(*t.csr) == expected);
      REQUIRE(static_cast<Offset>(t.edge.size()) == a->edges());
      for (Id j = 0; j < cols; ++j)
        for (Offset e = t.csr->offsets[j]; e < t.csr->offsets[j + 1]; ++e) {
          const Id i = t.csr->ids[e];
          CHECK(a->ids[t.edge[e]] == j);
          CHECK(t.edge[e] >= a->offsets[i]);
          CHECK(t.edge[e] < a->offsets[i + 1]);
        }
      CHECK((t.csr == a) == (*t.csr == *a));
      CHECK(*transpose(t.csr).csr == *a);
    }
  auto symmetric = std::make_shared<const Csr>(random_symmetric(20, 40, random));
  CHECK(transpose(symmetric).csr == symmetric);
  auto none = std::make_shared<const Csr>(Csr{.rows = 4, .cols = 4, .offsets = {0, 0, 0, 0, 0}, .ids = {}});
  CHECK(transpose(none).csr == none);
}

TEST_CASE("set algebra, composition and membership against sets of pairs") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 60; ++round) {
    const Id rows = static_cast<Id>(random.below(12)), cols = static_cast<Id>(1 + random.below(12));
    const Csr a = random_pattern(rows, cols, 6, random), b = random_pattern(rows, cols, 6, random);
    const Csr c = random_pattern(cols, 9, 6, random);
    const Pairs A = pairs_of(a), B = pairs_of(b), C = pairs_of(c);
    Pairs both, either = A, without, chained;
    either.insert(B.begin(), B.end());
    for (auto p : A) (B.contains(p) ? both : without).insert(p);
    for (auto [i, k] : A)
      for (auto [l, j] : C)
        if (k == l) chained.emplace(i, j);
    for (const auto& [result, expected] : {std::pair(unite(a, b), either), std::pair(intersect(a, b), both),
                                           std::pair(subtract(a, b), without), std::pair(compose(a, c), chained)}) {
      CHECK(message([&] { check(result); }) == "");
      CHECK(result.rows == rows);
      CHECK(pairs_of(result) == expected);
    }
    for (Id i = 0; i < rows; ++i)
      for (Id j = 0; j < cols; ++j) CHECK(a.contains(i, j) == A.contains({i, j}));
  }
  CHECK(pairs_of(identity(3)) == Pairs{{0, 0}, {1, 1}, {2, 2}});
  CHECK(identity(0) == Csr{});
  const Csr small = identity(3), large = identity(4);
  for (auto operation : {unite, intersect, subtract})
    CHECK(message([&] { operation(small, large); }) == "patterns differ in shape: 3 x 3 and 4 x 4");
  CHECK(message([&] { compose(small, large); }) == "patterns do not chain: 3 x 3 and 4 x 4");
}

TEST_CASE("hops against breadth-first search") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 20; ++round) {
    const Id n = static_cast<Id>(1 + random.below(25));
    const Csr a = random_pattern(n, n, 2, random);
    for (int k : {1, 2, 3, 5, 100}) {
      Pairs expected;
      for (Id i = 0; i < n; ++i) {
        std::map<Id, int> distance;  // i itself is reached by a way that leads back
        std::queue<Id> open;
        for (Id j : a.row(i)) distance[j] = 1, open.push(j);
        for (; !open.empty(); open.pop())
          for (Id j : a.row(open.front()))
            if (!distance.contains(j)) distance[j] = distance[open.front()] + 1, open.push(j);
        for (auto [j, steps] : distance)
          if (steps <= k) expected.emplace(i, j);
      }
      CAPTURE(k);
      CHECK(pairs_of(hops(a, k)) == expected);
    }
  }
  CHECK(message([&] { hops(identity(2), 0); }) == "a neighbourhood needs at least 1 hop, not 0");
}

TEST_CASE("graph from edges: every policy against a map from pairs to positions") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (Repeats repeats : {Repeats::keep_first, Repeats::sum_weights})
    for (Loops loops : {Loops::keep, Loops::drop})
      for (Direction direction : {Direction::directed, Direction::both})
        for (int channels : {0, 3})
          for (bool weighted : {false, true})
            for (int count : {0, 1, 90}) {
              const Id n = 8;
              std::vector<Edge> edges;
              std::vector<float> weights, features;
              for (int e = 0; e < count; ++e) {
                edges.push_back({static_cast<Id>(random.below(n)), static_cast<Id>(random.below(n))});
                if (weighted) weights.push_back(static_cast<float>(random.below(16)));  // sums are exact
                for (int c = 0; c < channels; ++c) features.push_back(static_cast<float>(random.normal()));
              }
              Graph graph = graph_from_edges(n, edges, {repeats, loops, direction}, weights, features, channels);
              std::map<std::pair<Id, Id>, std::pair<std::size_t, float>> expected;  // (to, from): first edge, weight
              for (std::size_t e = 0; e < edges.size(); ++e) {
                auto [from, to] = edges[e];
                if (from == to && loops == Loops::drop) continue;
                auto enter = [&](Id row, Id column) {
                  const float weight = weighted ? weights[e] : 1;
                  auto [at, fresh] = expected.try_emplace({row, column}, e, weight);
                  if (!fresh && repeats == Repeats::sum_weights) at->second.second += weight;
                };
                enter(to, from);
                if (direction == Direction::both && from != to) enter(from, to);
              }
              check(*graph.adjacency);
              CHECK(graph.nodes() == n);
              CHECK(graph.channels == channels);
              REQUIRE(graph.edges() == static_cast<Offset>(expected.size()));
              CHECK(graph.weights.size() == (weighted ? expected.size() : 0));
              CHECK(graph.features.size() == expected.size() * static_cast<std::size_t>(channels));
              auto listed = edges_of(graph);
              std::size_t t = 0;
              for (const auto& [pair, origin] : expected) {
                CHECK(std::pair(listed[t].to, listed[t].from) == pair);
                if (weighted) CHECK(graph.weights[t] == origin.second);
                for (int c = 0; c < channels; ++c)
                  CHECK(graph.features[t * channels + c] == features[origin.first * channels + c]);
                ++t;
              }
              if (direction == Direction::both) CHECK(transpose(graph.adjacency).csr == graph.adjacency);
            }
}

TEST_CASE("graph from edges: what does not fit is named") {
  const std::vector<Edge> edges{{0, 1}, {1, 2}, {2, 3}};
  const std::vector<float> two{1, 2};
  CHECK(graph_from_edges(0, {}).nodes() == 0);
  CHECK(graph_from_edges(5, {}).edges() == 0);
  CHECK(message([&] { graph_from_edges(3, edges); }) == "edge 2 names node 3, but the graph's nodes are 0..2");
  CHECK(message([&] {
          graph_from_edges(4, std::vector<Edge>{{0, 1}, {-7, 1}});
        }) == "edge 1 names node -7, but the graph's nodes are 0..3");
  CHECK(message([&] { graph_from_edges(-1, {}); }) == "a graph cannot have -1 nodes");
  CHECK(message([&] { graph_from_edges(4, edges, {}, two); }) == "2 weights for 3 edges");
  CHECK(message([&] { graph_from_edges(4, edges, {}, {}, two, 1); }) == "2 edge features for 3 edges x 1 channels");
  CHECK(message([&] { graph_from_edges(4, edges, {}, {}, {}, -1); }) == "0 edge features for 3 edges x -1 channels");
  CHECK(message([&] { graph_from_edges(4, edges, {}, {}, two, 0); }) == "2 edge features for 3 edges x 0 channels");
}

TEST_CASE("reordered: the same edges under other numbers; by degree, it falls") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int channels : {0, 2})
    for (int count : {0, 1, 60}) {
      const Id n = 11;
      std::vector<Edge> edges;
      for (int e = 0; e < count; ++e)
        edges.push_back({static_cast<Id>(random.below(n)), static_cast<Id>(random.below(n))});
      std::vector<float> weights, features;
      for (int e = 0; e < count; ++e) weights.push_back(static_cast<float>(random.normal()));
      for (int e = 0; e < count * channels; ++e) features.push_back(static_cast<float>(random.normal()));
      const EdgePolicy policy{.loops = Loops::keep, .direction = Direction::directed};
      const Graph graph = graph_from_edges(n, edges, policy, weights, features, channels);
      const auto order = order_by_degree(*graph.adjacency);
      std::vector<Id> place(order.size());
      for (Id i = 0; i < n; ++i) place[order[i]] = i;
      std::vector<Offset> degree(order.size());
      for (auto [from, to] : edges_of(graph)) ++degree[from], ++degree[to];
      for (Id i = 1; i < n; ++i) {
        CHECK(degree[order[i - 1]] >= degree[order[i]]);
        if (degree[order[i - 1]] == degree[order[i]]) CHECK(order[i - 1] < order[i]);
      }
      for (Edge& e : edges) e = {place[e.from], place[e.to]};
      const Graph expected = graph_from_edges(n, edges, policy, weights, features, channels);
      const Graph got = reordered(graph, order);
      CHECK(*got.adjacency == *expected.adjacency);
      CHECK(got.weights == expected.weights);
      CHECK(got.features == expected.features);
      CHECK(got.channels == channels);
    }
  const Graph pair = graph_from_edges(2, std::vector<Edge>{{0, 1}});
  CHECK(message([&] { reordered(pair, std::vector<Id>{0}); }) == "an order of 1 nodes for a graph of 2");
  CHECK(message([&] { reordered(pair, std::vector<Id>{1, 1}); }) == "position 1 of the order names node 1 again");
  CHECK(message([&] {
          reordered(pair, std::vector<Id>{0, 2});
        }) == "position 1 of the order names node 2, but the graph's nodes are 0..1");
}

TEST_CASE("unknown names bring the nearest ones") {
  const std::vector<std::string> names{"softmax", "sparsemax", "sigmoid"};
  CHECK(nearest("softmx", names) == std::vector<std::string>{"softmax"});
  CHECK(nearest("zebra", names).empty());
  CHECK(message([&] { unknown("normaliser", "sofmax", names); }) ==
        "unknown normaliser 'sofmax'; did you mean softmax?");
  CHECK(message([&] { unknown("normaliser", "x", names); }) ==
        "unknown normaliser 'x'; there are softmax, sparsemax and sigmoid");
}

TEST_SUITE_END();
