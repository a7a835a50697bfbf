// Splits of the labelled nodes into training, validation and test: drawn by a seed, the same on every machine, or read
// from files.
//
//   public                       the dataset's own
//   per-class:20/500/1000        20 of training in each class, then 500 of validation and 1000 of test (Planetoid)
//   fraction:0.6/0.2/0.2         by share of the labelled nodes
//   stratified:0.6/0.2/0.2       by share of each class
//   per-class:20/500/1000:10     ten of them, each drawn anew
//   file:PATH                    from files; see read_splits
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "datasets/dataset.h"
#include "datasets/files.h"
#include "datasets/npz.h"

namespace heed {

// What a text in the notation above says. Throws Error naming what is wrong with it, or what the dataset cannot give.
std::vector<Split> make_splits(const Dataset& d, const std::string& text, std::uint64_t seed);

// `count` splits; number s of a seed is the same however many are drawn. Throws Error naming the class that is too
// small, or where too few nodes are left.
std::vector<Split> splits_per_class(const Dataset& d, Id train, Id valid, Id test, int count, std::uint64_t seed);

// Shares of the labelled nodes, or of each class where `stratified`; they sum to at most 1. Bounds between the parts
// are rounded to the nearest node.
struct Fractions {
  double train = 0.6, valid = 0.2, test = 0.2;
  bool stratified = false;
};
std::vector<Split> splits_by_fraction(const Dataset& d, const Fractions& f, int count, std::uint64_t seed);

// From a folder: train, valid (or val) and test, each a .txt or .csv of one node id a line or an .npy of ids or of a
// mask. From an .npz: see splits_of. From an .npy: splits x nodes of 0 none, 1 train, 2 valid, 3 test. From a .csv:
// columns split, node, part.
std::vector<Split> read_splits(const Files& files, Id nodes);

// The arrays train, valid (or val) and test, or train_mask(s), ...: ids, a mask, or masks of a row for each split.
std::vector<Split> splits_of(const Npz& npz, Id nodes);
std::vector<Split> splits_of(const Array& parts, Id nodes);                          // splits x nodes of 0..3
std::vector<Split> splits_of(const Files& files, const std::string& csv, Id nodes);  // columns split, node, part
std::vector<Split> splits_of_folder(const Files& files, const std::string& folder, Id nodes);

}  // namespace heed
