// A mask of your own: who sees whom, as a test of two nodes or as a list of pairs, composed like any other.
#include <cstdio>

#include "heed.h"

using namespace heed;

int main() {
  const Dataset data = load("sbm");  // generated: six communities
  const Csr& edges = *data.graph.adjacency;

  // A test: of the nodes around, those that have as many neighbours, give or take three.
  const Mask alike = where("alike", [&](Id i, Id j) { return std::abs(edges.degree(i) - edges.degree(j)) <= 3; });

  // A list: a node sees the one that comes after it in the data.
  const Mask next("next", [](const Graph& graph) {
    std::vector<Edge> out;
    for (Id i = 0; i + 1 < graph.nodes(); ++i) out.push_back({.from = i + 1, .to = i});
    return PairSet{graph_from_edges(graph.nodes(), out, {.direction = Direction::directed}).adjacency};
  });

  for (const Mask& mask : {local() | self(), (local(2) & alike) | self(), local() | next, next}) {
    const Model model = stack({attend({.out = 8, .heads = 2, .score = score_named("gatv2"), .mask = mask}),
                               activation(Activation::elu), attend({.out = data.classes, .mask = mask})});
    const Report report = train(model, data, {.epochs = 30, .rate = 0.01, .seed = 1});
    std::printf("%s: %lld pairs, %.1f %% of the test nodes\n", mask.text().c_str(),
                static_cast<long long>(mask.pattern(data.graph)->edges()), report.test_mean);
  }
}
