// The citation networks of Yang, Cohen & Salakhutdinov 2016 (arXiv:1603.08861): Cora, CiteSeer and PubMed in the eight
// files of their Planetoid release, with its public split.
#pragma once

#include <string>

#include "datasets/dataset.h"
#include "datasets/files.h"

namespace heed {

// Reads ind.<name>.{x,y,tx,ty,allx,ally,graph,test.index} from a folder. The graph is undirected and simple: loops and
// repeats are dropped. Features stay sparse. A node in none of the files (CiteSeer has 15) has no features and the
// label -1. Throws Error naming the file and the place in it.
Dataset planetoid(const Files& files, const std::string& name);

bool fits_planetoid(const Files& files);
Dataset read_planetoid(const Files& files);  // of the one name in it

}  // namespace heed
