// Two families of public datasets in .npz archives.
#pragma once

#include "datasets/dataset.h"
#include "datasets/files.h"

namespace heed {

// gnn-benchmark (Shchur et al. 2018, arXiv:1811.05868): Amazon's and the coauthors' graphs. CSR arrays adj_* and attr_*
// and `labels`; texts and objects are passed by. Every edge runs both ways, loops are dropped, features stay sparse.
// The split lies beside it in an .npz of ids or masks: `split`, or the one file that ends in "split.npz"; none is none.
Dataset gnn_benchmark(const Files& files, const std::string& name, const std::string& split = "");

// The heterophilous graphs of Platonov et al. 2023 (arXiv:2302.11640): node_features, node_labels, edges (each once)
// and masks, a row for each split. Features become sparse where fewer than a tenth are not zero.
Dataset heterophilous(const Files& files, const std::string& name);

bool fits_gnn_benchmark(const Files& files);
bool fits_heterophilous(const Files& files);
Dataset read_gnn_benchmark(const Files& files);
Dataset read_heterophilous(const Files& files);

}  // namespace heed
