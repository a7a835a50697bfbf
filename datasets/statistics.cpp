#include "datasets/statistics.h"

#include <algorithm>

#include "graph/components.h"

namespace heed {

Statistics statistics(const Dataset& d) {
  Statistics out{.nodes = d.nodes(), .directed = d.graph.edges(), .of_class = {}};
  const auto back = transpose(d.graph.adjacency);
  out.symmetric = back.csr == d.graph.adjacency;
  std::vector<Offset> degrees;
  degrees.reserve(static_cast<std::size_t>(d.nodes()));
  Offset ends = 0, known = 0, same = 0;
  for (Id i = 0; i < d.nodes(); ++i) {
    auto in = d.graph.adjacency->row(i), from = back.csr->row(i);
    Offset degree = 0;
    for (std::size_t a = 0, b = 0; a < in.size() || b < from.size(); ++degree) {  // the union of two rising rows
      const Id j = b == from.size() || (a < in.size() && in[a] <= from[b]) ? in[a] : from[b];
      a += a < in.size() && in[a] == j;
      b += b < from.size() && from[b] == j;
      if (j == i) --degree;
    }
    for (Id j : in) {
      if (j == i) ++out.loops;
      if (j == i || d.labels[i] < 0 || d.labels[j] < 0) continue;
      ++known;
      same += d.labels[i] == d.labels[j];
    }
    degrees.push_back(degree);
    ends += degree;
    out.isolated += degree == 0;
  }
  out.undirected = ends / 2;
  out.homophily = known > 0 ? static_cast<double>(same) / static_cast<double>(known) : 0;
  if (!degrees.empty()) {
    std::ranges::sort(degrees);
    const std::size_t half = degrees.size() / 2;
    out.degree_min = degrees.front(), out.degree_max = degrees.back();
    out.degree_mean = static_cast<double>(ends) / static_cast<double>(degrees.size());
    out.degree_median = degrees.size() % 2 == 1 ? static_cast<double>(degrees[half])
                                                : static_cast<double>(degrees[half - 1] + degrees[half]) / 2;
    std::vector<Id> sizes;
    for (Id c : components(*d.graph.adjacency)) {
      if (c >= static_cast<Id>(sizes.size())) sizes.resize(static_cast<std::size_t>(c) + 1);
      ++sizes[c];
    }
    out.components = static_cast<Id>(sizes.size());
    out.largest = *std::ranges::max_element(sizes);
  }
  out.of_class.assign(static_cast<std::size_t>(d.classes), 0);
  for (Id y : d.labels) ++(y < 0 ? out.unlabelled : out.of_class[y]);
  out.channels = d.channels();
  out.sparse = d.features.sparse != nullptr;
  auto count = [](auto begin, auto end) { return (end - begin) - std::count(begin, end, 0.0f); };
  out.filled = out.sparse ? count(d.features.sparse->values.begin(), d.features.sparse->values.end())
                          : count(d.features.dense.begin(), d.features.dense.end());
  const double all = static_cast<double>(d.nodes()) * static_cast<double>(d.channels());
  out.fill = all > 0 ? static_cast<double>(out.filled) / all : 0;
  return out;
}

}  // namespace heed
