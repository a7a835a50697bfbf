// What a dataset looks like, in numbers.
#pragma once

#include <vector>

#include "datasets/dataset.h"

namespace heed {

struct Statistics {
  Id nodes = 0, isolated = 0;  // isolated: no edge to or from another node
  Offset directed = 0;         // edges as stored, loops too
  Offset undirected = 0;       // pairs of nodes with an edge either way
  Offset loops = 0;
  bool symmetric = true;                  // every edge runs both ways
  Offset degree_min = 0, degree_max = 0;  // of neighbours either way, loops apart
  double degree_mean = 0, degree_median = 0;
  Id components = 0, largest = 0;  // weakly connected; nodes of the largest
  double homophily = 0;  // share of the edges, loops apart, between nodes of one class, of those with both labels known
  std::vector<Offset> of_class;  // labelled nodes
  Offset unlabelled = 0;
  Offset channels = 0, filled = 0;  // features that are not zero
  double fill = 0;                  // their share
  bool sparse = false;              // as they are held
};
Statistics statistics(const Dataset& d);

}  // namespace heed
