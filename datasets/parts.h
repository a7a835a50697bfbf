// What readers make datasets from: features from entries or arrays, labels that fit their classes, splits from masks
// and lists of ids. All throw Error, opened by the place given.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "datasets/array.h"
#include "datasets/dataset.h"

namespace heed {

struct FeatureEntry {
  Id row = 0, column = 0;
  float value = 0;
};

// A matrix whose entries come in any order; of repeated ones the first is kept or all are summed.
Features sparse_features(const std::string& place, Id rows, Offset columns, std::vector<FeatureEntry> entries,
                         Repeats repeats);
Features sparse_features(SparseRows x);
Features identity_features(Id nodes);  // for graphs without features: every node is its own

// The one rule by which features that a file stores in full become sparse: fewer than a tenth are not zero.
Features compact(Matrix<float> x);

// rows x channels or, of rows elements, rows x 1. Refuses numbers that are not finite, naming row and column.
Matrix<float> matrix(const Array& array, Id rows);
void check_finite(const std::string& place, std::span<const float> values, Offset columns);

// Labels 0..classes-1, and -1 where unknown. Without `classes` (-1) there are as many as the largest label says, but
// not more than nodes.
void set_labels(Dataset& d, const std::string& place, std::span<const Offset> labels, Offset classes = -1);

// A count that a file claims, or that its largest id means, must be in proportion to the things that it holds: memory
// goes with it.
Id check_count(const std::string& place, const char* what, Offset count, Offset things);
// The number of nodes of a list of edges where nothing else tells: the largest id and one more.
Id count_nodes(const std::string& place, std::span<const Edge> edges, Offset at_least = 0);

// Sorts the ids and refuses a node that is outside the graph or there twice, in a part or in two.
Split make_split(const std::string& place, Id nodes, std::vector<Id> train, std::vector<Id> valid,
                 std::vector<Id> test);

enum class Part : std::uint8_t { none, train, valid, test };
inline constexpr const char* kParts[] = {"none", "train", "valid", "test"};
std::vector<Id>& part_of(Split& split, Part part);
// A part for each node. Refuses a node in two parts.
std::vector<Part> parts_of(const Split& split, Id nodes);
Split split_of(std::span<const Part> parts);

}  // namespace heed
