// A Graph as BGL sees it: the concepts, the conversions both ways, and BGL's algorithms on a Graph as it is, each
// beside a reference of a few lines that knows nothing of BGL.
#include "graph/boost.h"

#include <array>
#include <boost/graph/adjacency_list.hpp>
#include <boost/graph/betweenness_centrality.hpp>
#include <boost/graph/breadth_first_search.hpp>
#include <boost/graph/connected_components.hpp>
#include <boost/graph/dijkstra_shortest_paths.hpp>
#include <boost/graph/filtered_graph.hpp>
#include <boost/graph/graph_concepts.hpp>
#include <boost/graph/minimum_degree_ordering.hpp>
#include <boost/graph/page_rank.hpp>
#include <limits>
#include <numeric>
#include <queue>

#include "tests/support.h"

using namespace heed;
using namespace heed::test;

namespace {

BOOST_CONCEPT_ASSERT((boost::VertexListGraphConcept<Graph>));
BOOST_CONCEPT_ASSERT((boost::EdgeListGraphConcept<Graph>));
BOOST_CONCEPT_ASSERT((boost::IncidenceGraphConcept<Graph>));
BOOST_CONCEPT_ASSERT((boost::AdjacencyGraphConcept<Graph>));
BOOST_CONCEPT_ASSERT((boost::ReadablePropertyGraphConcept<Graph, Id, boost::vertex_index_t>));
BOOST_CONCEPT_ASSERT((boost::ReadablePropertyGraphConcept<Graph, BoostEdge, boost::edge_index_t>));
BOOST_CONCEPT_ASSERT((boost::ReadablePropertyGraphConcept<Graph, BoostEdge, boost::edge_weight_t>));
BOOST_CONCEPT_ASSERT((boost::VertexListGraphConcept<Csr>));
BOOST_CONCEPT_ASSERT((boost::EdgeListGraphConcept<Csr>));
BOOST_CONCEPT_ASSERT((boost::IncidenceGraphConcept<Csr>));
BOOST_CONCEPT_ASSERT((boost::AdjacencyGraphConcept<Csr>));
BOOST_CONCEPT_ASSERT((boost::ReadablePropertyGraphConcept<Csr, BoostEdge, boost::edge_weight_t>));

using Changeable = boost::adjacency_list<boost::vecS, boost::vecS, boost::directedS>;
using Weighted = boost::property<boost::edge_weight_t, double>;

Graph random_graph(Id n, int edges, Direction direction, Random& random) {
  std::vector<float> weights(static_cast<std::size_t>(edges));
  for (float& w : weights) w = static_cast<float>(1 + random.below(9));
  return graph_from_edges(n, random_edges(n, edges, random), {.direction = direction}, weights);
}

// Steps from `start` to every node, -1 where there is no way.
std::vector<int> distances(const Csr& a, Id start) {
  std::vector<int> out(static_cast<std::size_t>(a.rows), -1);
  std::queue<Id> open({start});
  for (out[start] = 0; !open.empty(); open.pop())
    for (Id j : a.row(open.front()))
      if (out[j] < 0) out[j] = out[open.front()] + 1, open.push(j);
  return out;
}

// What eliminating the nodes in `order` adds to the pattern.
int fill_in(const Csr& a, const std::vector<Id>& order) {
  std::vector<std::set<Id>> near(static_cast<std::size_t>(a.rows));
  for (Id i = 0; i < a.rows; ++i) near[i].insert(a.row(i).begin(), a.row(i).end());
  int fill = 0;
  for (Id v : order) {
    for (Id i : near[v]) {
      near[i].erase(v);
      for (Id j : near[v])
        if (i != j) fill += near[i].insert(j).second;
    }
  }
  return fill / 2;
}

// BGL 1.74 looks at one list of degrees more than it has; a further node, isolated and so the first in order, is room.
std::vector<Id> minimum_degree_order(const Graph& graph) {
  auto [begin, end] = edges(graph);
  Changeable copy(begin, end, num_vertices(graph) + 1);
  const auto n = num_vertices(copy);
  std::vector<int> degree(n), inverse(n), order(n), size(n, 1);
  auto map = [&](std::vector<int>& to) {
    return boost::make_iterator_property_map(to.begin(), get(boost::vertex_index, copy));
  };
  boost::minimum_degree_ordering(copy, map(degree), inverse.data(), order.data(), map(size), 0,
                                 get(boost::vertex_index, copy));
  std::vector<Id> out(order.begin(), order.end());
  std::erase(out, graph.nodes());
  return out;
}

}  // namespace

TEST_SUITE_BEGIN("graph");

TEST_CASE("BGL sees every edge once, from the row to what it lists, with its number and weight") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 20; ++round) {
    const Graph graph = random_graph(static_cast<Id>(1 + random.below(20)), 30, Direction::directed, random);
    const Csr& csr = *graph.adjacency;
    CHECK(num_vertices(graph) == static_cast<std::size_t>(graph.nodes()));
    CHECK(num_edges(graph) == static_cast<std::size_t>(graph.edges()));
    auto [v, v_end] = vertices(graph);
    CHECK(std::distance(v, v_end) == graph.nodes());
    Offset at = 0;
    for (auto [e, end] = edges(graph); e != end; ++e, ++at) {
      const Id u = source(*e, graph);
      CHECK(at >= csr.offsets[u]);
      CHECK(at < csr.offsets[u + 1]);
      CHECK(target(*e, graph) == csr.ids[at]);
      CHECK(get(boost::edge_index, graph, *e) == at);
      CHECK(get(boost::edge_weight, graph, *e) == graph.weights[at]);
      CHECK(get(boost::edge_weight, csr, *e) == 1);
    }
    CHECK(at == graph.edges());
    at = 0;
    for (Id u = 0; u < graph.nodes(); ++u) {
      CHECK(out_degree(u, graph) == static_cast<std::size_t>(csr.degree(u)));
      auto [begin, end] = out_edges(u, graph);
      REQUIRE(end - begin == csr.degree(u));
      auto [near, near_end] = adjacent_vertices(u, graph);
      CHECK(std::vector<Id>(near, near_end) == std::vector<Id>(csr.row(u).begin(), csr.row(u).end()));
      for (; begin != end; ++begin, ++at) CHECK((*begin == BoostEdge{u, csr.ids[at], at}));
    }
  }
  const Csr none;
  auto [e, end] = edges(none);
  CHECK(e == end);
  CHECK(num_vertices(none) == 0);
  CHECK_THROWS_WITH_AS(num_vertices(Csr{.rows = 0, .cols = 2}), "a pattern of 0 x 2 is no graph", Error);
}

TEST_CASE("a BGL graph becomes a Graph and still gives the same edges and weights") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const EdgePolicy whole{.loops = Loops::keep, .direction = Direction::directed};
  auto compare = [&](auto bgl, auto number, bool undirected) {
    const auto n = num_vertices(bgl);
    std::map<std::pair<Id, Id>, float> expected;  // of a repeated edge the first counts
    for (auto [e, end] = edges(bgl); e != end; ++e) {
      const Id u = number(source(*e, bgl)), v = number(target(*e, bgl));
      const auto weight = static_cast<float>(get(boost::edge_weight, bgl, *e));
      expected.try_emplace({u, v}, weight);
      if (undirected) expected.try_emplace({v, u}, weight);
    }
    const Graph graph = graph_from_boost(bgl, get(boost::edge_weight, bgl), whole);
    check(*graph.adjacency);
    CHECK(num_vertices(graph) == n);
    std::map<std::pair<Id, Id>, float> seen;
    for (auto [e, end] = edges(graph); e != end; ++e)
      seen[{source(*e, graph), target(*e, graph)}] = get(boost::edge_weight, graph, *e);
    CHECK(seen == expected);
    const Graph plain = graph_from_boost(bgl, whole);
    CHECK(*plain.adjacency == *graph.adjacency);
    CHECK(plain.weights.empty());
    Graph without = graph_from_boost(bgl);
    for (Id i = 0; i < without.nodes(); ++i) CHECK_FALSE(without.adjacency->contains(i, i));
    CHECK(*graph_from_boost(graph, whole).adjacency == *graph.adjacency);  // a Graph is a BGL graph, too
  };
  for (int round = 0; round < 10; ++round) {
    const int n = static_cast<int>(1 + random.below(12));
    auto fill = [&](auto& g) {
      auto [begin, end] = vertices(g);
      std::vector v(begin, end);
      for (int e = 0; e < 25; ++e) add_edge(v[random.below(n)], v[random.below(n)], 1.0 + random.below(50), g);
    };
    using boost::no_property;
    boost::adjacency_list<boost::vecS, boost::vecS, boost::directedS, no_property, Weighted> directed(n);
    fill(directed);
    compare(
        directed, [](auto v) { return static_cast<Id>(v); }, false);
    boost::adjacency_list<boost::listS, boost::vecS, boost::undirectedS, no_property, Weighted> undirected(n);
    fill(undirected);
    compare(
        undirected, [](auto v) { return static_cast<Id>(v); }, true);
    boost::adjacency_list<boost::vecS, boost::listS, boost::bidirectionalS, no_property, Weighted> nodes_in_a_list(n);
    fill(nodes_in_a_list);
    auto [begin, end] = vertices(nodes_in_a_list);
    auto place = [first = begin, last = end](auto v) {
      return static_cast<Id>(std::distance(first, std::find(first, last, v)));
    };
    const Graph listed = graph_from_boost(nodes_in_a_list, whole);
    std::set<std::pair<Id, Id>> pairs;
    for (auto [e, stop] = edges(nodes_in_a_list); e != stop; ++e)
      pairs.emplace(place(source(*e, nodes_in_a_list)), place(target(*e, nodes_in_a_list)));
    CHECK(static_cast<Offset>(pairs.size()) == listed.edges());
    for (auto [u, v] : pairs) CHECK(listed.adjacency->contains(u, v));
  }

  // A filter leaves gaps among the numbers; the nodes that stay close them.
  Changeable path(6);
  for (int i = 0; i < 5; ++i) add_edge(i, i + 1, path);
  std::function<bool(std::size_t)> even = [](std::size_t v) { return v != 1; };
  const Graph rest = graph_from_boost(boost::filtered_graph(path, boost::keep_all{}, even));
  CHECK(rest.nodes() == 5);
  CHECK(rest.edges() == 3);
  for (Id i = 1; i < 4; ++i) CHECK(rest.adjacency->contains(i, i + 1));
  CHECK(transpose(graph_from_boost(path, {.direction = Direction::both}).adjacency).edge.size() == 10);
}

TEST_CASE("reversed: every edge turns with its weight and features, twice is nothing") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  std::vector<Edge> list;
  std::vector<float> weights, features;
  for (int e = 0; e < 60; ++e) {
    list.push_back({static_cast<Id>(random.below(15)), static_cast<Id>(random.below(15))});
    weights.push_back(static_cast<float>(e));
    features.insert(features.end(), {static_cast<float>(e), static_cast<float>(-e)});
  }
  const Graph graph = graph_from_edges(15, list, {.direction = Direction::directed}, weights, features, 2);
  const Graph back = reversed(graph), twice = reversed(back);
  check(*back.adjacency);
  const auto turned = edges_of(back);
  REQUIRE(back.edges() == graph.edges());
  for (std::size_t t = 0; t < turned.size(); ++t) {
    const auto origin = static_cast<std::size_t>(back.weights[t]);
    CHECK(list[origin].from == turned[t].to);
    CHECK(list[origin].to == turned[t].from);
    CHECK(back.features[2 * t] == back.weights[t]);
    CHECK(back.features[2 * t + 1] == -back.weights[t]);
  }
  CHECK(*twice.adjacency == *graph.adjacency);
  CHECK(twice.weights == graph.weights);
  CHECK(twice.features == graph.features);
  const Graph both = random_graph(9, 20, Direction::both, random);
  CHECK(reversed(both).adjacency == both.adjacency);
}

TEST_CASE("connected components") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 20; ++round) {
    const Graph graph = random_graph(static_cast<Id>(1 + random.below(40)), 20, Direction::both, random);
    const auto n = static_cast<std::size_t>(graph.nodes());
    std::vector<int> component(n);
    const int count = boost::connected_components(graph, component.data());
    int expected = 0;
    std::vector<int> first(n, -1);  // the smallest node of each one's component
    for (Id i = 0; i < graph.nodes(); ++i) {
      if (first[i] >= 0) continue;
      ++expected;
      const auto reach = distances(*graph.adjacency, i);
      for (std::size_t j = 0; j < n; ++j)
        if (reach[j] >= 0) first[j] = i;
    }
    CHECK(count == expected);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) CHECK((component[i] == component[j]) == (first[i] == first[j]));
  }
}

TEST_CASE("PageRank: power iteration on a matrix") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 10; ++round) {
    const Graph graph = random_graph(25, 80, Direction::directed, random);
    const Csr& csr = *graph.adjacency;
    std::vector<double> rank(25), expected(25, 1.0 / 25);
    auto map = boost::make_iterator_property_map(rank.begin(), get(boost::vertex_index, graph));
    boost::graph::page_rank(graph, map, boost::graph::n_iterations(30), 0.85);
    Matrix<double> step(25, 25);  // a node gives its rank in equal parts to those that its row lists
    for (Id i = 0; i < 25; ++i)
      for (Id j = 0; j < 25; ++j) step(j, i) = csr.contains(i, j) ? 1.0 / static_cast<double>(csr.degree(i)) : 0;
    for (int t = 0; t < 30; ++t) {
      std::vector<double> next(25, 0.15);
      for (Id j = 0; j < 25; ++j)
        for (Id i = 0; i < 25; ++i) next[j] += 0.85 * step(j, i) * expected[i];
      expected = next;
    }
    for (std::size_t i = 0; i < 25; ++i) CHECK(rank[i] == doctest::Approx(expected[i]).epsilon(1e-9));
  }
  // The direction: two papers that cite a third one make it matter.
  const std::vector<Edge> citations{{.from = 2, .to = 0}, {.from = 2, .to = 1}};  // what 2 found reaches 0 and 1
  const Graph graph = graph_from_edges(3, citations, {.direction = Direction::directed});
  std::array<double, 3> rank{};
  auto map = boost::make_iterator_property_map(rank.begin(), get(boost::vertex_index, graph));
  boost::graph::page_rank(graph, map, boost::graph::n_iterations(20), 0.85);
  CHECK(rank[2] > rank[0]);
  CHECK(rank[0] == rank[1]);
}

TEST_CASE("breadth-first search and Dijkstra follow what a node looks at") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 20; ++round) {
    const Graph graph = random_graph(static_cast<Id>(1 + random.below(30)), 45, Direction::directed, random);
    const auto n = static_cast<std::size_t>(graph.nodes());
    const Id start = static_cast<Id>(random.below(n));
    for (const Graph& g : {graph, reversed(graph)}) {
      std::vector<int> steps(n, -1);
      steps[start] = 0;
      boost::breadth_first_search(
          g, start,
          boost::visitor(boost::make_bfs_visitor(boost::record_distances(steps.data(), boost::on_tree_edge{}))));
      CHECK(steps == distances(*g.adjacency, start));
    }

    const float far = std::numeric_limits<float>::max();
    std::vector<float> length(n), shortest(n, far);
    boost::dijkstra_shortest_paths(graph, start, boost::distance_map(length.data()));
    shortest[start] = 0;
    for (std::size_t pass = 0; pass < n; ++pass)  // Bellman and Ford's
      for (Id i = 0; i < graph.nodes(); ++i)
        for (Offset e = graph.adjacency->offsets[i]; e < graph.adjacency->offsets[i + 1]; ++e)
          if (shortest[i] < far)
            shortest[graph.adjacency->ids[e]] =
                std::min(shortest[graph.adjacency->ids[e]], shortest[i] + graph.weights[e]);
    CHECK(length == shortest);
  }
}

TEST_CASE("betweenness: shortest paths counted pair by pair") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (Direction direction : {Direction::directed, Direction::both}) {
    const Graph graph = random_graph(18, 35, direction, random);
    const std::size_t n = 18;
    std::vector<double> central(n), between_edges(num_edges(graph));
    boost::brandes_betweenness_centrality(
        graph, boost::make_iterator_property_map(central.begin(), get(boost::vertex_index, graph)),
        boost::make_iterator_property_map(between_edges.begin(), get(boost::edge_index, graph)));
    std::vector<std::vector<int>> steps;
    for (Id s = 0; s < 18; ++s) steps.push_back(distances(*graph.adjacency, s));
    Matrix<double> paths(18, 18);  // shortest ones, counted by walks of their length
    for (Id s = 0; s < 18; ++s) {
      std::vector<double> walks(n);
      walks[s] = 1;
      for (int length = 0; length < 18; ++length) {
        std::vector<double> next(n);
        for (Id i = 0; i < 18; ++i) {
          if (steps[s][i] == length) paths(s, i) = walks[i];
          for (Id j : graph.adjacency->row(i)) next[j] += walks[i];
        }
        walks = next;
      }
    }
    auto on_the_way = [&](Id s, Id v, Id w, Id t, int more) {  // share of paths s..v, `more` steps, w..t
      if (steps[s][t] < 0 || steps[s][v] < 0 || steps[w][t] < 0) return 0.0;
      return steps[s][v] + more + steps[w][t] == steps[s][t] ? paths(s, v) * paths(w, t) / paths(s, t) : 0.0;
    };
    for (Id v = 0; v < 18; ++v) {
      double expected = 0;
      for (Id s = 0; s < 18; ++s)
        for (Id t = 0; t < 18; ++t)
          if (s != t && s != v && t != v) expected += on_the_way(s, v, v, t, 0);
      CHECK(central[v] == doctest::Approx(expected));
    }
    for (auto [e, end] = edges(graph); e != end; ++e) {
      double expected = 0;
      for (Id s = 0; s < 18; ++s)
        for (Id t = 0; t < 18; ++t)
          if (s != t) expected += on_the_way(s, source(*e, graph), target(*e, graph), t, 1);
      CHECK(between_edges[get(boost::edge_index, graph, *e)] == doctest::Approx(expected));
    }
  }
}

TEST_CASE("minimum degree ordering, on a copy that it may change: no fill on trees, little elsewhere") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  int fill = 0, natural_fill = 0;
  for (int round = 0; round < 20; ++round) {
    const Id n = static_cast<Id>(2 + random.below(40));
    std::vector<Edge> tree;
    for (Id i = 1; i < n; ++i) tree.push_back({static_cast<Id>(random.below(i)), i});
    std::vector<Id> natural(static_cast<std::size_t>(n));
    std::iota(natural.begin(), natural.end(), 0);
    for (bool is_tree : {true, false}) {
      const Graph graph = is_tree ? graph_from_edges(n, tree) : random_graph(n, 2 * n, Direction::both, random);
      const std::vector<Id> order = minimum_degree_order(graph);
      CHECK(std::is_permutation(order.begin(), order.end(), natural.begin(), natural.end()));
      const int found = fill_in(*graph.adjacency, order);
      if (is_tree) CHECK(found == 0);
      if (!is_tree) fill += found, natural_fill += fill_in(*graph.adjacency, natural);
    }
  }
  CHECK(fill < natural_fill);
}

TEST_SUITE_END();
