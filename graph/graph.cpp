#include "graph/graph.h"

#include <algorithm>
#include <numeric>
#include <string>

namespace heed {

Graph graph_from_edges(Id nodes, std::span<const Edge> edges, EdgePolicy policy, std::span<const float> weights,
                       std::span<const float> features, int channels) {
  if (nodes < 0) fail("a graph cannot have " + std::to_string(nodes) + " nodes");
  if (!weights.empty() && weights.size() != edges.size())
    fail(std::to_string(weights.size()) + " weights for " + std::to_string(edges.size()) + " edges");
  if (channels < 0 || features.size() != edges.size() * static_cast<std::size_t>(channels))
    fail(std::to_string(features.size()) + " edge features for " + std::to_string(edges.size()) + " edges x " +
         std::to_string(channels) + " channels");

  struct Entry {
    Id to, from;
    Offset origin;  // position in the list
  };
  std::vector<Entry> entries;
  entries.reserve(edges.size() * (policy.direction == Direction::both ? 2 : 1));
  for (std::size_t e = 0; e < edges.size(); ++e) {
    auto [from, to] = edges[e];
    for (Id id : {from, to})
      if (id < 0 || id >= nodes)
        fail("edge " + std::to_string(e) + " names node " + std::to_string(id) + ", but the graph's nodes are 0.." +
             std::to_string(nodes - 1));
    if (from == to && policy.loops == Loops::drop) continue;
    entries.push_back({to, from, static_cast<Offset>(e)});
    if (policy.direction == Direction::both && from != to) entries.push_back({from, to, static_cast<Offset>(e)});
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return std::pair(a.to, a.from) < std::pair(b.to, b.from); });

  Graph out;
  out.channels = channels;
  auto csr = std::make_shared<Csr>(Csr{.rows = nodes, .cols = nodes});
  csr->offsets.assign(static_cast<std::size_t>(nodes) + 1, 0);
  for (std::size_t e = 0; e < entries.size(); ++e) {
    const Entry& x = entries[e];
    float weight = weights.empty() ? 1.0f : weights[x.origin];
    if (e > 0 && entries[e - 1].to == x.to && entries[e - 1].from == x.from) {
      if (!weights.empty() && policy.repeats == Repeats::sum_weights) out.weights.back() += weight;
      continue;
    }
    csr->ids.push_back(x.from);
    ++csr->offsets[x.to + 1];
    if (!weights.empty()) out.weights.push_back(weight);
    if (channels > 0)
      out.features.insert(out.features.end(), features.begin() + x.origin * channels,
                          features.begin() + (x.origin + 1) * channels);
  }
  for (Id i = 0; i < nodes; ++i) csr->offsets[i + 1] += csr->offsets[i];
  out.adjacency = std::move(csr);
  return out;
}

std::vector<Edge> edges_of(const Graph& graph) {
  std::vector<Edge> out;
  out.reserve(graph.adjacency->ids.size());
  for (Id i = 0; i < graph.nodes(); ++i)
    for (Id j : graph.adjacency->row(i)) out.push_back({.from = j, .to = i});
  return out;
}

Graph reversed(const Graph& graph) {
  Transpose t = transpose(graph.adjacency);
  Graph out;
  out.adjacency = std::move(t.csr);
  out.channels = graph.channels;
  out.times = graph.times;
  out.weights.reserve(graph.weights.size());
  out.features.reserve(graph.features.size());
  for (Offset e : t.edge) {
    if (!graph.weights.empty()) out.weights.push_back(graph.weights[e]);
    const auto feature = graph.features.begin() + e * graph.channels;
    out.features.insert(out.features.end(), feature, feature + graph.channels);
  }
  return out;
}

Graph reordered(const Graph& graph, std::span<const Id> order) {
  const Csr& old = *graph.adjacency;
  const Id n = old.rows;
  if (static_cast<Offset>(order.size()) != n)
    fail("an order of " + std::to_string(order.size()) + " nodes for a graph of " + std::to_string(n));
  std::vector<Id> place(order.size(), -1);
  for (Id i = 0; i < n; ++i) {
    const Id node = order[i];
    if (node < 0 || node >= n || place[node] >= 0)
      fail("position " + std::to_string(i) + " of the order names node " + std::to_string(node) +
           (node < 0 || node >= n ? ", but the graph's nodes are 0.." + std::to_string(n - 1) : " again"));
    place[node] = i;
  }
  Graph out;
  out.channels = graph.channels;
  if (!graph.times.empty())
    for (Id node : order) out.times.push_back(graph.times[node]);
  out.weights.reserve(graph.weights.size());
  out.features.reserve(graph.features.size());
  auto csr = std::make_shared<Csr>(Csr{.rows = n, .cols = n});
  csr->ids.reserve(old.ids.size());
  std::vector<std::pair<Id, Offset>> row;  // column and edge
  for (Id node : order) {
    row.clear();
    for (Offset e = old.offsets[node]; e < old.offsets[node + 1]; ++e) row.emplace_back(place[old.ids[e]], e);
    std::sort(row.begin(), row.end());
    for (auto [column, e] : row) {
      csr->ids.push_back(column);
      if (!graph.weights.empty()) out.weights.push_back(graph.weights[e]);
      const auto feature = graph.features.begin() + e * graph.channels;
      out.features.insert(out.features.end(), feature, feature + graph.channels);
    }
    csr->offsets.push_back(csr->edges());
  }
  out.adjacency = std::move(csr);
  return out;
}

std::vector<Id> order_by_degree(const Csr& adjacency) {
  std::vector<Offset> degree(static_cast<std::size_t>(adjacency.rows));
  for (Id i = 0; i < adjacency.rows; ++i) degree[i] = adjacency.degree(i);
  for (Id j : adjacency.ids) ++degree[j];
  std::vector<Id> order(degree.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](Id a, Id b) { return degree[a] > degree[b]; });
  return order;
}

}  // namespace heed
