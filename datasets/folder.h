// heed's own format: a folder of NumPy arrays and a page that says what they are. It holds a dataset exactly, and is
// read as fast as the disk gives it.
//
//   dataset.json        {"format": "heed dataset", "version": 1, "name": "cora", "nodes": 2708, "classes": 7}
//                       and, for a check, "edges": 10556
//   offsets.npy         int64, nodes + 1: row i of the adjacency is ids[offsets[i]..offsets[i + 1])
//   ids.npy             int32, edges, rising within a row: the nodes whose messages a node receives
//   weights.npy         float32, edges; not there: all 1
//   times.npy           float64, nodes, for the mask `before`; not there: none
//   edge_features.npy   float32, edges x channels; not there: none
//   features.npy        float32, nodes x channels; or, where they are sparse, in its place
//   feature_offsets.npy, feature_ids.npy, feature_values.npy, and "channels" in dataset.json
//   labels.npy          int32, nodes; -1: unknown
//   splits.npy          uint8, splits x nodes: 0 none, 1 train, 2 valid, 3 test; not there: no split
//
// dataset.json is written last, and the folder appears under its name when it is whole.
#pragma once

#include "datasets/dataset.h"
#include "datasets/files.h"

namespace heed {

bool fits_folder(const Files& files);
Dataset read_folder(const Files& files);
void write_folder(const Dataset& d, const std::filesystem::path& folder);

}  // namespace heed
