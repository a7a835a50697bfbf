// Models for node classification, one function each. All are built alike: per layer dropout, convolution, norm and
// activation, where the last convolution gives the logits, n x classes. The parameters of the l-th convolution are
// named "layers.l.", those of the norm after it "norms.l.".
#pragma once

#include <string>
#include <vector>

#include "layers/layers.h"

namespace heed {

enum class Norm { none, layer, batch };
const std::vector<std::string>& norm_names();
Norm norm_named(const std::string& name);  // throws Error with the nearest names

struct ModelOptions {
  Offset classes = 0;
  int layers = 2;
  Offset hidden = 8;               // channels of a head
  int heads = 8;                   // of hidden layers; models without attention have one head of `hidden` channels
  int out_heads = 1;               // of the last layer, averaged
  double dropout = 0.6;            // of each layer's input
  double input_dropout = -1;       // of the first layer's; below 0: as the others
  double feature_dropout = 0;      // of the projected values
  double attention_dropout = 0.6;  // of the attention weights
  std::string score;               // of attention; empty: the model's own
  std::string normaliser;          // likewise
  Offset score_width = 0;          // channels of a head that scores read; 0: as many as values have
  double temperature = 1;          // scores are divided by it
  bool learn_temperature = false;
  Activation activation = Activation::elu;
  Norm norm = Norm::none;  // before the activation of hidden layers
  bool residual = false;   // each convolution adds a linear map of its input
  std::string mask = "";   // of attention, for mask_named or head_masks_named; empty: the model's own
  std::string keys = "all";
  int virtual_nodes = 0;
  bool edges = false, edge_bias = false, parts = false;  // of attention, as in Attend
};

Model gat(const ModelOptions& options);    // arXiv:1710.10903
Model gatv2(const ModelOptions& options);  // arXiv:2105.14491
Model transformer(
    const ModelOptions& options);  // UniMP's convolution, arXiv:2009.03509; nodes see their neighbours alone
Model attention(const ModelOptions& options);  // scaled dot products, over a node and its neighbours
Model gcn(const ModelOptions& options);        // arXiv:1609.02907
Model sage(const ModelOptions& options);       // arXiv:1706.02216
Model mlp(const ModelOptions& options);        // no graph: the control

struct ModelEntry {
  std::string name, about;
  bool attends;  // has heads and attention dropout
  Model (*make)(const ModelOptions&);
};
const std::vector<ModelEntry>& model_menu();
const ModelEntry& model_named(const std::string& name);  // throws Error with the nearest names

}  // namespace heed
