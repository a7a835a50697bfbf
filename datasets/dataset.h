// A dataset for node classification: a graph, features, labels and splits; and `load`, which finds one by name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "datasets/download.h"
#include "graph/graph.h"
#include "kernels/sparse.h"

namespace heed {

struct Split {  // node ids, rising, no node in two parts
  std::vector<Id> train, valid, test;
};

struct Dataset {
  std::string name;
  Graph graph;
  Features features;       // nodes x channels
  std::vector<Id> labels;  // per node; -1: unknown
  Id classes = 0;
  std::vector<Split> splits;

  Id nodes() const { return graph.nodes(); }
  Offset channels() const { return features.cols(); }
};

struct LoadOptions {
  std::filesystem::path data;  // where to look first; then $HEED_DATA, then the cache
  std::uint64_t seed = 1;      // of generated datasets
  bool download = false;       // a public dataset that is found nowhere, into the cache; never with $HEED_OFFLINE
  DownloadProgress progress;   // of a download
};

// A dataset by its name, or from the folder or file at a path, whose format is known by its contents (formats.h). Names
// come first: a folder `cora` right here is "./cora". Throws Error where the name is unknown (with the nearest names),
// the files are missing (naming the places looked at), broken (naming file and place) or cannot be downloaded (naming
// the URL).
Dataset load(const std::string& name, const LoadOptions& options = {});
void check_name(const std::string& name);  // throws Error where it is neither known nor a path to something

class Files;

// All names that `load` knows. A new dataset is one more entry in the list in dataset.cpp.
struct DatasetEntry {
  const char* name;
  const char* description;  // one line
  const char* folder;       // of its files, in a place for datasets; they may also lie right there
  const char* probe;        // the file that tells that they are there; "": generated
  Dataset (*read)(const DatasetEntry& entry, const Files& files);
  Dataset (*generate)(const LoadOptions& options) = nullptr;
};
const std::vector<DatasetEntry>& datasets();
std::vector<std::string> dataset_names();

// Throws Error naming the first thing that does not fit: sizes, labels outside the classes, weights or features that
// are not finite, splits that overlap, leave the graph or hold nodes without a label.
void check(const Dataset& dataset);

// Every row of X divided by its sum of absolute values, zero rows left alone.
Features normalise_rows(const Features& x);

}  // namespace heed
