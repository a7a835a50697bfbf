// Communities by label propagation (Raghavan, Albert & Kumara, arXiv:0709.2938), made deterministic.
#pragma once

#include <vector>

#include "graph/csr.h"

namespace heed {

// The community of each node, numbered from 0 on in the order of their smallest nodes. Each node begins as its own;
// then, in an order that a hash of their ids gives, nodes take the label that most of their neighbours have (edges
// count in both directions; of equal ones their own, else the one whose hash with the node is least), again and again
// until none changes, 100 times at most. O(edges) each time.
std::vector<Id> communities(const Csr& a);

}  // namespace heed
