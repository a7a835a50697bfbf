// Full-batch training for node classification: Adam on the cross entropy of the training nodes, validation after every
// epoch, early stopping, and the weights of the best epoch at the end.
//
//   Dataset cora = load("cora");
//   Report r = train(gat({.classes = cora.classes}), cora, {.epochs = 200, .seed = 1});
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "datasets/dataset.h"
#include "layers/model.h"
#include "train/optimiser.h"

namespace heed {

enum class Stop { accuracy, loss, both };  // what of validation must gain; both: as GAT's authors do
const std::vector<std::string>& stop_names();
Stop stop_named(const std::string& name);

struct Epoch {  // what is known after one
  int run = 0, epoch = 0;
  double train_loss = 0, valid_loss = 0, valid_accuracy = 0;  // accuracies in percent
  bool best = false;
};

struct Run {
  std::uint64_t seed = 0;
  double test = 0, valid = 0;  // accuracy in percent, at the best epoch
  double train_loss = 0;       // of the last epoch
  int epochs = 0, best_epoch = 0;
  double seconds = 0;
  std::vector<Matrix<float>> parameters;  // of the best epoch, in the network's order
  Matrix<float> logits;                   // nodes x classes, of the best epoch
};

struct TrainOptions {
  int epochs = 200;
  int patience = 0;  // epochs without a gain before it stops; 0: never
  Stop stop = Stop::loss;
  double rate = 5e-3;
  double decay = 5e-4;     // weight decay
  bool decoupled = false;  // AdamW
  std::uint64_t seed = 1;  // of the first run; run r has seed + r
  int runs = 1;
  int split = -1;   // which of the dataset's splits; -1: run r takes split r, round and round
  int threads = 0;  // 0: all
  std::function<void(const Epoch&)> on_epoch = {};   // both are called by one thread at a time
  std::function<void(int, const Run&)> on_run = {};  // run r has ended
  Profile* profile = nullptr;                        // of one run: where its time went, by operation
};

struct Report {
  std::vector<Run> runs;
  double test_mean = 0, test_std = 0, valid_mean = 0, epochs_mean = 0;  // std: n - 1; 0 for one run
  double epoch_ms = 0;    // mean time of an epoch (training step and evaluation) of one run
  double seconds = 0;     // of everything
  Offset parameters = 0;  // learned numbers
  int threads = 0;
  bool in_parallel = false;  // runs side by side, one thread each
};

// Throws Error where the dataset has no split with training, validation and test nodes, or an option is out of range.
void check(const Dataset& data, const TrainOptions& options);

// Throws as `check` does, where the model gives another number of logits than there are classes, and where the loss
// stops being finite.
// The result has the same bits for any number of threads.
Report train(const Model& model, const Dataset& data, const TrainOptions& options = {});

struct Evaluation {
  double loss = 0;      // mean cross entropy
  double accuracy = 0;  // percent; the first of equal logits counts
};
Evaluation evaluate(const Matrix<float>& logits, std::span<const Id> labels, std::span<const Id> nodes);

// The largest resident size of this process so far, in MiB.
double peak_rss_mb();

}  // namespace heed
