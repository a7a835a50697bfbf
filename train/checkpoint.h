// What of a model outlives the process: its weights, and where a training stood. Both are one safetensors file:
//
//   1. the weights under the names of the model's parameters, those of the best epoch. So every checkpoint is a model.
//   2. while the training is not over, under "train.now.", "train.first." and "train.second." and the same names: the
//      weights of the last epoch and the optimiser's moments.
//   3. metadata "heed.config" (the resolved options, TOML), "heed.classes", "heed.data" (the fingerprint of the data
//      and of the files that masks read) and "heed.state" (epoch, seed, validation so far; JSON). Random numbers are
//      functions of the seed and the epoch, so this is all that a training depends on: it goes on to the same bits.
#pragma once

#include <filesystem>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "datasets/dataset.h"
#include "layers/model.h"
#include "train/optimiser.h"
#include "train/safetensors.h"

namespace heed {

struct TrainState {
  std::uint64_t seed = 0;
  int epoch = 0;  // the last one that was done
  bool done = false;
  long steps = 0;            // of the optimiser
  int drops = 0, rests = 0;  // of the schedule
  // The best of validation so far: the metric, the loss, the loss at the best epoch, and epochs without a gain.
  double metric = -1, loss = std::numeric_limits<double>::infinity(), best_loss = loss;
  int idle = 0;
  int best_epoch = 0;
  double valid = 0, test = 0, train_loss = 0, seconds = 0;
};

std::string to_text(const TrainState& state);
TrainState state_from(const std::string& text, const std::string& file);  // throws Error naming the file

std::vector<Weight> weights_of(Network<float>& network);
// Throws Error where a parameter has no tensor of its shape in the file, or the file has a tensor (but those under
// "train.") that is no parameter. A `prefix` stands before the names in the file.
void assign(Network<float>& network, const Safetensors& file, const std::string& prefix = "");

// A model's weights alone: save(report.runs[0].weights, "cora.safetensors").
void save(const std::vector<Weight>& weights, const std::filesystem::path& path);

// The model's logits on a graph, nodes x logits, with the weights of a file, and features as the training had them. Of
// what `heed train` wrote, read_model (recipes.h) knows model, seed and features. Random masks and keys are drawn from
// `seed`, which should be the training's. Throws Error where a logit is not finite.
Matrix<float> predict(const Model& model, const Graph& graph, const Features& features, const Safetensors& weights,
                      std::uint64_t seed = 1, Device device = Device::cpu);

// "2708 nodes, 10556 edges, 1433 channels, 7 classes, 0123456789abcdef": the sizes, and a hash of everything in the
// data and the split.
std::string fingerprint(const Dataset& data, const Split& split);
// "pairs.txt 0123456789abcdef, times.txt ...": the name and a hash of each file. Throws Error where one cannot be read.
std::string fingerprint(const std::set<std::filesystem::path>& files);

}  // namespace heed
