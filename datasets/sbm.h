// The contextual stochastic block model (Deshpande, Sen, Montanari & Mossel 2018, arXiv:1807.08882): a random graph
// whose classes show both in its edges and, weakly, in its features, so that only the two together tell them well. It
// is what heed trains on when no data is at hand.
#pragma once

#include <cstdint>

#include "datasets/dataset.h"

namespace heed {

// With these numbers the mean degree is 6 and 0.7 of the edges join nodes of one class.
struct Sbm {
  Id nodes = 3000;
  Id classes = 6;
  double within = 25.2;  // an edge between nodes of one class has probability within / nodes
  double across = 2.16;  // between nodes of two classes, across / nodes
  Id channels = 64;
  double signal = 160;  // mu: of the class in the features
  Id train = 20;        // nodes of training in each class
  Id valid = 500;
  Id test = 1000;
  std::uint64_t seed = 1;
};

// Node i has class y_i = i mod classes, shuffled, and features x_i = sqrt(p) (sqrt(mu/n) u_{y_i} + z_i), where n is the
// number of nodes, p of channels, and u and z are drawn from N(0, I/p). Takes time in proportion to nodes and edges.
Dataset sbm(const Sbm& options = {});

}  // namespace heed
