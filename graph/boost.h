// A model of Boost.Graph's concepts: a `Graph`, or any square `Csr`, is handed to BGL's algorithms as it is, without a
// copy. It models VertexListGraph, EdgeListGraph, IncidenceGraph and AdjacencyGraph, with the properties vertex_index,
// edge_index (the position in `weights` and `ids`) and edge_weight (1 where the graph has none). And any BGL graph
// becomes a Graph. Needs the headers of Boost.Graph. Nothing else of heed includes this file, so who
// does not use it waits for nothing.
//
// One rule holds for both ways: BGL's edge u -> v says that u looks at v. It stands in row u, and messages run against
// it, as a citation points from the paper that reads to the one that is read. So a search from u visits what u can
// learn from, PageRank ranks whom the others look at, and a graph that came from BGL gives the same answers as before.
//   - The other direction: `reversed(graph)`, or the Csr of a transpose, which is a model, too. In-edges need that
//     transpose, so the model is not bidirectional.
//   - An undirected graph holds both directions and is shown as directed: sums over ordered pairs, such as
//     betweenness, come out twice as large as those that BGL halves for its undirected graphs.
//   - An algorithm that changes its graph, as minimum_degree_ordering does, gets a copy:
//       auto [begin, end] = edges(graph);
//       boost::adjacency_list<boost::vecS, boost::vecS, boost::directedS> copy(begin, end, num_vertices(graph));
#pragma once

#include <algorithm>
#include <boost/graph/graph_traits.hpp>
#include <boost/graph/properties.hpp>
#include <boost/iterator/counting_iterator.hpp>
#include <boost/iterator/iterator_facade.hpp>
#include <boost/property_map/property_map.hpp>
#include <concepts>
#include <limits>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "graph/graph.h"

namespace heed {

struct BoostEdge {  // first -> second; named as in a pair, because BGL's own graphs are built from pairs
  Id first = 0;
  Id second = 0;
  Offset at = 0;  // position in the adjacency
  auto operator<=>(const BoostEdge&) const = default;
};

// Runs over the edges of a row, or, skipping empty rows, over those of all rows.
template <bool all>
class BoostEdgeIterator : public boost::iterator_facade<
                              BoostEdgeIterator<all>, BoostEdge,
                              std::conditional_t<all, boost::forward_traversal_tag, boost::random_access_traversal_tag>,
                              BoostEdge, Offset> {
 public:
  BoostEdgeIterator() = default;
  BoostEdgeIterator(const Csr& csr, Id row, Offset at) : csr_(&csr), row_(row), at_(at) { find_row(); }

 private:
  friend class boost::iterator_core_access;
  BoostEdge dereference() const { return {row_, csr_->ids[at_], at_}; }
  bool equal(const BoostEdgeIterator& other) const { return at_ == other.at_; }
  void increment() { ++at_, find_row(); }
  void decrement() { --at_; }
  void advance(Offset n) { at_ += n; }
  Offset distance_to(const BoostEdgeIterator& other) const { return other.at_ - at_; }
  void find_row() {
    if constexpr (all)
      while (row_ < csr_->rows && at_ >= csr_->offsets[row_ + 1]) ++row_;
  }

  const Csr* csr_ = nullptr;
  Id row_ = 0;
  Offset at_ = 0;
};

class BoostEdgeIndex {
 public:
  using key_type = BoostEdge;
  using value_type = Offset;
  using reference = Offset;
  using category = boost::readable_property_map_tag;
  friend Offset get(BoostEdgeIndex, const BoostEdge& e) { return e.at; }
};

class BoostEdgeWeight {
 public:
  using key_type = BoostEdge;
  using value_type = float;
  using reference = float;
  using category = boost::readable_property_map_tag;
  explicit BoostEdgeWeight(const float* weights = nullptr) : weights_(weights) {}
  friend float get(const BoostEdgeWeight& map, const BoostEdge& e) { return map.weights_ ? map.weights_[e.at] : 1.0f; }

 private:
  const float* weights_;  // edges, or none
};

template <class G>
concept BoostModel = std::same_as<G, Graph> || std::same_as<G, Csr>;

namespace detail {

inline const Csr& pattern_of(const Csr& csr) { return csr; }
inline const Csr& pattern_of(const Graph& graph) { return *graph.adjacency; }
inline const float* weights_of(const Csr&) { return nullptr; }
inline const float* weights_of(const Graph& graph) { return graph.weights.empty() ? nullptr : graph.weights.data(); }

struct BoostTraits {
  struct traversal_category : boost::incidence_graph_tag,
                              boost::adjacency_graph_tag,
                              boost::vertex_list_graph_tag,
                              boost::edge_list_graph_tag {};
  using directed_category = boost::directed_tag;
  using edge_parallel_category = boost::disallow_parallel_edge_tag;
  using vertex_descriptor = Id;
  using edge_descriptor = BoostEdge;
  using vertex_iterator = boost::counting_iterator<Id>;
  using adjacency_iterator = const Id*;
  using out_edge_iterator = BoostEdgeIterator<false>;
  using edge_iterator = BoostEdgeIterator<true>;
  using in_edge_iterator = void;
  using vertices_size_type = std::size_t;
  using edges_size_type = std::size_t;
  using degree_size_type = std::size_t;
  static Id null_vertex() { return -1; }
};

}  // namespace detail

// Throws Error where the pattern is not square.
template <BoostModel G>
std::size_t num_vertices(const G& g) {
  const Csr& csr = detail::pattern_of(g);
  if (csr.rows != csr.cols)
    fail("a pattern of " + std::to_string(csr.rows) + " x " + std::to_string(csr.cols) + " is no graph");
  return static_cast<std::size_t>(csr.rows);
}

template <BoostModel G>
std::pair<boost::counting_iterator<Id>, boost::counting_iterator<Id>> vertices(const G& g) {
  return {boost::counting_iterator<Id>(0), boost::counting_iterator<Id>(static_cast<Id>(num_vertices(g)))};
}

template <BoostModel G>
std::size_t num_edges(const G& g) {
  return static_cast<std::size_t>(detail::pattern_of(g).edges());
}

template <BoostModel G>
std::pair<BoostEdgeIterator<true>, BoostEdgeIterator<true>> edges(const G& g) {
  const Csr& csr = detail::pattern_of(g);
  return {{csr, 0, 0}, {csr, csr.rows, csr.edges()}};
}

template <BoostModel G>
std::pair<BoostEdgeIterator<false>, BoostEdgeIterator<false>> out_edges(Id u, const G& g) {
  const Csr& csr = detail::pattern_of(g);
  return {{csr, u, csr.offsets[u]}, {csr, u, csr.offsets[u + 1]}};
}

template <BoostModel G>
std::size_t out_degree(Id u, const G& g) {
  return static_cast<std::size_t>(detail::pattern_of(g).degree(u));
}

template <BoostModel G>
std::pair<const Id*, const Id*> adjacent_vertices(Id u, const G& g) {
  const auto row = detail::pattern_of(g).row(u);
  return {row.data(), row.data() + row.size()};
}

template <BoostModel G>
Id source(const BoostEdge& e, const G&) {
  return e.first;
}

template <BoostModel G>
Id target(const BoostEdge& e, const G&) {
  return e.second;
}

template <BoostModel G>
boost::typed_identity_property_map<Id> get(boost::vertex_index_t, const G&) {
  return {};
}

template <BoostModel G>
Id get(boost::vertex_index_t, const G&, Id u) {
  return u;
}

template <BoostModel G>
BoostEdgeIndex get(boost::edge_index_t, const G&) {
  return {};
}

template <BoostModel G>
Offset get(boost::edge_index_t, const G&, const BoostEdge& e) {
  return e.at;
}

template <BoostModel G>
BoostEdgeWeight get(boost::edge_weight_t, const G& g) {
  return BoostEdgeWeight(detail::weights_of(g));
}

template <BoostModel G>
float get(boost::edge_weight_t tag, const G& g, const BoostEdge& e) {
  return get(get(tag, g), e);
}

// How graph_from_boost reads a graph unless told otherwise. Direction: an undirected graph gives both anyway.
inline constexpr EdgePolicy kEdgesOfBoost{.direction = Direction::directed};

// A Graph of a BGL graph that models VertexListGraph and EdgeListGraph. Its nodes are numbered in the order of
// vertices(g), so gaps that a filter left are closed. Throws Error where there are more nodes than ids.
template <class G, class WeightMap>
Graph graph_from_boost(const G& g, WeightMap weight, EdgePolicy policy = kEdgesOfBoost) {
  using Traits = boost::graph_traits<G>;
  using Vertex = typename Traits::vertex_descriptor;
  const auto [first, last] = vertices(g);
  std::vector<Vertex> order(first, last);
  if (order.size() > static_cast<std::size_t>(std::numeric_limits<Id>::max()))
    fail("a graph of " + std::to_string(order.size()) + " nodes has more than ids of 32 bits can tell apart");

  bool counted = false;  // descriptors are the numbers already
  if constexpr (std::is_integral_v<Vertex>) {
    counted = true;
    for (std::size_t i = 0; i < order.size(); ++i) counted = counted && std::cmp_equal(order[i], i);
  }
  std::map<Vertex, Id> numbers;
  if (!counted)
    for (std::size_t i = 0; i < order.size(); ++i) numbers.emplace(order[i], static_cast<Id>(i));
  auto number = [&](const Vertex& v) {
    if constexpr (std::is_integral_v<Vertex>)
      if (counted) return static_cast<Id>(v);
    return numbers.at(v);
  };

  constexpr bool weighted = !std::is_same_v<WeightMap, std::nullptr_t>;
  std::vector<Edge> list;
  std::vector<float> weights;
  for (auto [e, end] = edges(g); e != end; ++e) {
    list.push_back({.from = number(target(*e, g)), .to = number(source(*e, g))});
    if constexpr (weighted) weights.push_back(static_cast<float>(get(weight, *e)));
  }
  if (std::is_convertible_v<typename Traits::directed_category, boost::undirected_tag>)
    policy.direction = Direction::both;
  return graph_from_edges(static_cast<Id>(order.size()), list, policy, weights);
}

// Without weights.
template <class G>
Graph graph_from_boost(const G& g, EdgePolicy policy = kEdgesOfBoost) {
  return graph_from_boost(g, nullptr, policy);
}

}  // namespace heed

namespace boost {

template <class G>
requires heed::BoostModel<std::remove_const_t<G>>
struct graph_traits<G> : heed::detail::BoostTraits {
};

template <heed::BoostModel G>
struct property_map<G, vertex_index_t, void> {
  using type = typed_identity_property_map<heed::Id>;
  using const_type = type;
};
template <heed::BoostModel G>
struct property_map<G, edge_index_t, void> {
  using type = heed::BoostEdgeIndex;
  using const_type = type;
};
template <heed::BoostModel G>
struct property_map<G, edge_weight_t, void> {
  using type = heed::BoostEdgeWeight;
  using const_type = type;
};

}  // namespace boost
