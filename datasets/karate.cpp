// The 78 friendships are those of Zachary's matrix, each pair once.
#include "datasets/karate.h"

#include <algorithm>
#include <array>
#include <memory>

namespace heed {

Dataset karate() {
  constexpr std::array<Edge, 78> friends{{
      {0, 1},   {0, 2},   {0, 3},   {0, 4},   {0, 5},   {0, 6},   {0, 7},   {0, 8},   {0, 10},  {0, 11},
      {0, 12},  {0, 13},  {0, 17},  {0, 19},  {0, 21},  {0, 31},  {1, 2},   {1, 3},   {1, 7},   {1, 13},
      {1, 17},  {1, 19},  {1, 21},  {1, 30},  {2, 3},   {2, 7},   {2, 8},   {2, 9},   {2, 13},  {2, 27},
      {2, 28},  {2, 32},  {3, 7},   {3, 12},  {3, 13},  {4, 6},   {4, 10},  {5, 6},   {5, 10},  {5, 16},
      {6, 16},  {8, 30},  {8, 32},  {8, 33},  {9, 33},  {13, 33}, {14, 32}, {14, 33}, {15, 32}, {15, 33},
      {18, 32}, {18, 33}, {19, 33}, {20, 32}, {20, 33}, {22, 32}, {22, 33}, {23, 25}, {23, 27}, {23, 29},
      {23, 32}, {23, 33}, {24, 25}, {24, 27}, {24, 31}, {25, 31}, {26, 29}, {26, 33}, {27, 33}, {28, 31},
      {28, 33}, {29, 32}, {29, 33}, {30, 32}, {30, 33}, {31, 32}, {31, 33}, {32, 33},
  }};
  constexpr std::array<Id, 17> instructors{0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 19, 21};
  constexpr Id members = 34;

  Dataset out{.name = "karate", .graph = graph_from_edges(members, friends), .labels = {}, .classes = 2, .splits = {}};
  out.labels.assign(members, 1);
  for (Id i : instructors) out.labels[i] = 0;
  out.features.sparse =
      std::make_shared<Sparse>(std::make_shared<Csr>(identity(members)), std::vector<float>(members, 1.0f));
  Split split{.train = {0, 1, 32, 33}, .valid = {2, 5, 8, 11, 14, 17, 20, 23, 26, 29}, .test = {}};
  for (Id i = 0; i < members; ++i)
    if (!std::ranges::binary_search(split.train, i) && !std::ranges::binary_search(split.valid, i))
      split.test.push_back(i);
  out.splits.push_back(std::move(split));
  return out;
}

}  // namespace heed
