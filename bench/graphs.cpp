// The graphs that kernels are timed on.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bench/bench.h"
#include "datasets/dataset.h"
#include "datasets/rmat.h"

namespace heed::bench {
namespace {

Graph grid(Id nodes) {  // each node sees its neighbours right, left, above and below
  const Id side = std::max<Id>(1, static_cast<Id>(std::sqrt(static_cast<double>(nodes))));
  std::vector<Edge> edges;
  for (Id y = 0; y < side; ++y)
    for (Id x = 0; x < side; ++x) {
      if (x + 1 < side) edges.push_back({y * side + x, y * side + x + 1});
      if (y + 1 < side) edges.push_back({y * side + x, y * side + side + x});
    }
  return graph_from_edges(side * side, edges);
}

// A hub with half of all edges, as many in as out; the other half lies anywhere.
Graph star(Id nodes, Offset edges, std::uint64_t seed) {
  const auto arms = static_cast<Id>(std::min<Offset>(edges / 4, std::numeric_limits<Id>::max() - 1));
  nodes = std::max(nodes, arms + 1);
  std::vector<Edge> list = edges_of(uniform_graph(nodes, edges - 2 * Offset{arms}, seed));
  for (Id i = 1; i <= arms; ++i) list.push_back({0, i}), list.push_back({i, 0});
  return graph_from_edges(nodes, list, {.direction = Direction::directed});
}

}  // namespace

Graph graph_of(const std::string& name, Id nodes, Offset edges, std::uint64_t seed, const std::string& data) {
  if (name == "rmat") return rmat(nodes, edges, seed);
  if (name == "uniform") return uniform_graph(nodes, edges, seed);
  if (name == "grid") return grid(nodes);
  if (name == "star") return star(nodes, edges, seed);
  try {
    check_name(name);  // of a dataset, or a path
  } catch (const Error&) {
    if (name.find('/') != std::string::npos) throw;
    std::vector<std::string> known{"rmat", "uniform", "grid", "star", "all"};
    for (const std::string& dataset : dataset_names()) known.push_back(dataset);
    unknown("graph", name, known);
  }
  return load(name, {.data = data, .seed = seed}).graph;
}

std::shared_ptr<const Pattern> pattern_of(const std::string& name, Id nodes, Offset edges, std::uint64_t seed,
                                          const std::string& data) {
  if (name == "all") return Pattern::all(nodes, nodes);
  return Pattern::listed(graph_of(name, nodes, edges, seed, data).adjacency);
}

}  // namespace heed::bench
