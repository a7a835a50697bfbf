// Random directed graphs of a given size, for benchmarks: R-MAT (Chakrabarti, Zhan & Faloutsos 2004, "R-MAT: a
// recursive model for graph mining"), whose degrees are as skewed as those of real networks, and uniform ones.
#pragma once

#include <cstdint>

#include "graph/graph.h"

namespace heed {

// Each edge falls through the adjacency matrix, halved both ways at each level, into the upper left quarter with
// probability a, the upper right with b, the lower left with c, the lower right with the rest.
struct Rmat {
  double a = 0.57, b = 0.19, c = 0.19;
};

// Exactly `edges` distinct directed edges without loops; node ids are shuffled, so that hubs are spread over them. What
// R-MAT itself cannot place, since its draws repeat (a graph that is nearly full), is placed uniformly. Throws Error
// where there are not as many pairs of nodes.
Graph rmat(Id nodes, Offset edges, std::uint64_t seed, const Rmat& options = {});

// The same contract, every set of edges equally likely.
Graph uniform_graph(Id nodes, Offset edges, std::uint64_t seed);

}  // namespace heed
