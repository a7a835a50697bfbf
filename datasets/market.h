// Matrix Market (math.nist.gov/MatrixMarket): a folder of .mtx files, or the graph's file alone. Real, integer and
// pattern; general and symmetric; indices from 1 on.
//
//   graph.mtx          nodes x nodes, coordinate: row i lists the nodes whose messages i receives; the values are the
//                      weights. Taken as it stands, loops included; repeated entries are summed.
//   features.mtx       nodes x channels, coordinate (sparse) or array (dense). None: every node is its own channel.
//   labels.mtx         nodes x 1, array, integer: classes from 0 on, -1 where unknown; "% Classes: 7" says how many.
//   splits.mtx         nodes x splits, array, integer: 0 none, 1 train, 2 valid, 3 test
//   edge_features.mtx  edges x channels, array: rows in the order of graph.mtx by rows and then columns
#pragma once

#include "datasets/dataset.h"
#include "datasets/files.h"

namespace heed {

bool fits_market(const Files& files);
Dataset read_market(const Files& files);
void write_market(const Dataset& d, const std::filesystem::path& folder);  // everything but the name

}  // namespace heed
