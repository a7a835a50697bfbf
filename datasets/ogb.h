// The layout of the Open Graph Benchmark's node property datasets (Hu et al. 2020, arXiv:2005.00687), packed (.csv.gz)
// or not:
//
//   raw/edge.csv            from,to, without a header
//   raw/num-node-list.csv   the number of nodes; raw/num-edge-list.csv that of edges
//   raw/node-label.csv      a class a line; nan, nothing or -1: unknown
//   raw/node-feat.csv       a row a node, if there is one; otherwise every node is its own channel
//   raw/edge-feat.csv       a row an edge, if there is one
//   split/<name>/           train.csv, valid.csv, test.csv: a node a line; a split for each such folder
//
// Every edge runs both ways, with its features, and loops are dropped. node_year and mappings are passed by.
#pragma once

#include "datasets/dataset.h"
#include "datasets/files.h"

namespace heed {

bool fits_ogb(const Files& files);
Dataset read_ogb(const Files& files);

}  // namespace heed
