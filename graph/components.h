// Weakly connected components, by union and find: near-linear time, no recursion.
#pragma once

#include <vector>

#include "graph/csr.h"

namespace heed {

// The component of each node, numbered from 0 on in the order of their smallest nodes. Directions do not count.
std::vector<Id> components(const Csr& a);

}  // namespace heed
