// Which nodes matter: PageRank, for all and as seen from each node.
#pragma once

#include <vector>

#include "graph/csr.h"

namespace heed {

// PageRank (Page, Brin, Motwani & Winograd 1999): r_i = (1 - d)/n + d sum over the j in row i of r_j / (rows that hold
// j), and what nodes in no row have is spread over all. Power iteration to 1e-12 in the sum of differences.
// O(edges) an iteration, about 170 of them.
std::vector<double> pagerank(const Csr& a, double damping = 0.85);

std::vector<double> degrees(const Csr& a);  // the length of each row

// The `count` positions with the largest values, rising; of equal values the first positions. O(n).
std::vector<Id> largest(const std::vector<double>& values, Id count);

// For each row the k columns other than itself of largest personalised PageRank, that is of walks from row to row that
// stop at each node with probability 0.15, by forward push (Andersen, Chung & Lang 2006) until no node holds more than
// 1e-5 of a walk for each of its neighbours; as PPRGo, arXiv:2007.01570. Fewer where fewer are reached.
// O(1e5 / 0.15) a row at most, in parallel; the same bits on any number of threads.
Csr top_by_ppr(const Csr& a, int k);

}  // namespace heed
