// Zachary's karate club (Zachary 1977, "An information flow model for conflict and fission in small groups"): the
// smallest graph on which anything can be seen to work.
#pragma once

#include "datasets/dataset.h"

namespace heed {

// 34 members, 78 friendships, unweighted. Class 0 stayed with the instructor (node 0), class 1 left with the president
// (node 33): the clubs that were joined, so node 8 is of class 0. Features are the identity, sparse. Training knows the
// two leaders and one friend of each; validation are ten others, test the rest.
Dataset karate();

}  // namespace heed
