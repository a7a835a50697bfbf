// A graph: who is connected to whom, with optional weights and features of the edges.
//
// Row i of `adjacency` lists the nodes j whose messages i receives: an edge "from -> to" of a directed graph stands
// in row `to`. An undirected graph holds both directions.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "graph/csr.h"

namespace heed {

enum class Repeats { keep_first, sum_weights };  // what a repeated edge means; the pattern never holds it twice
enum class Loops { keep, drop };                 // what an edge from a node to itself means
enum class Direction { directed, both };         // both: every edge also runs backwards

struct EdgePolicy {
  Repeats repeats = Repeats::keep_first;
  Loops loops = Loops::drop;
  Direction direction = Direction::both;
};

struct Edge {
  Id from = 0;
  Id to = 0;
};

struct Graph {
  std::shared_ptr<const Csr> adjacency = std::make_shared<Csr>();  // nodes x nodes
  std::vector<float> weights;                                      // edges, in adjacency's order; empty: all 1
  std::vector<float> features;                                     // edges x channels, row-major; may be empty
  int channels = 0;                                                // of an edge's features
  std::vector<double> times = {};                                  // of the nodes; may be empty

  Id nodes() const { return adjacency->rows; }
  Offset edges() const { return adjacency->edges(); }  // directed ones: an undirected edge counts twice
};

// Builds a graph from a list of edges, with `weights` (one an edge, or none) and `features` (edges x channels, or
// none) in the list's order. Of a repeated edge the first keeps its features. Throws Error naming the edge whose node
// is outside 0..nodes-1.
Graph graph_from_edges(Id nodes, std::span<const Edge> edges, EdgePolicy policy = {},
                       std::span<const float> weights = {}, std::span<const float> features = {}, int channels = 0);

// The edges of a graph in adjacency's order.
std::vector<Edge> edges_of(const Graph& graph);

// Every edge the other way round, with its weight and features; nodes keep their times. The pattern is shared where it
// is symmetric.
Graph reversed(const Graph& graph);

// The same graph with its nodes in another order: node i of the result is node order[i]. Throws Error where `order`
// does not name each node once.
Graph reordered(const Graph& graph, std::span<const Id> order);

// All nodes by falling degree (edges in and out), equal ones by number. What is touched most then lies together.
std::vector<Id> order_by_degree(const Csr& adjacency);

}  // namespace heed
