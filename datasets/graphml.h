// GraphML (graphml.graphdrawing.org), one graph in one file. Nodes are numbered in the order in which they stand,
// whatever their ids. Keys, by attr.name:
//
//   node   label           a class, from 0 on; -1 or nothing: unknown
//          feature*, x<n>  numbers: a channel for each such key, in the order of the keys; what a node lacks is the
//                          key's <default>, or 0. They become sparse where fewer than a tenth are not zero. No such
//                          key: every node is its own.
//          split*          train, valid or test: a split for each such key
//   edge   weight          where it lacks, the key's <default>, or 1
//          feature*, x<n>  numbers, which every edge has, or the key a <default> for
//   graph  classes         how many; otherwise the largest label says
//          sparse          true: the features are sparse, and what a node has is stored, zeros too
//
// Labels and splits have defaults, too. Nested graphs and hyperedges throw Error. Edges run as edgedefault or their own
// `directed` say; loops are kept. The file's entities are not expanded and nothing that it names is ever opened.
#pragma once

#include "datasets/dataset.h"
#include "datasets/files.h"

namespace heed {

bool fits_graphml(const Files& files);
Dataset read_graphml(const Files& files);

// Everything but the name. Throws Error where the nodes have no channel at all, or the features are dense and mostly
// zero, which would be read as sparse.
void write_graphml(const Dataset& d, const std::filesystem::path& file);

}  // namespace heed
