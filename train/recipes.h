// What a model is trained with on a dataset when nothing else is said.
#pragma once

#include "layers/models.h"
#include "train/train.h"

namespace heed {

struct Recipe {
  ModelOptions model;
  TrainOptions train;
  bool normalise_features = false;  // rows of X sum to 1
};

// On cora, citeseer and pubmed, GAT's is the paper's (arXiv:1710.10903, section 3.3): 8 heads x 8, dropout 0.6 on
// input, projected features and attention; stopping on validation loss after 100 epochs without a gain.
Recipe recipe(const std::string& model, const std::string& dataset);

}  // namespace heed
