// Full-batch training for node classification: a loss on the training nodes, validation after every epoch, early
// stopping, and the weights of the best epoch at the end.
//
//   Dataset cora = load("cora");
//   Report r = train(gat({.classes = cora.classes}), cora, {.epochs = 200, .seed = 1});
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/dataset.h"
#include "graph/files.h"
#include "layers/model.h"
#include "train/metrics.h"
#include "train/optimiser.h"
#include "train/safetensors.h"
#include "train/schedule.h"

namespace heed {

enum class Stop { metric, loss, both };  // what of validation must gain; both: as GAT's authors do
const std::vector<std::string>& stop_names();
Stop stop_named(const std::string& name);  // "accuracy" is metric, too

struct Epoch {  // what is known after one
  int run = 0, epoch = 0;
  double train_loss = 0, valid_loss = 0, valid = 0;  // valid: the metric in percent
  double rate = 0;
  bool best = false;
};

struct Run {
  std::uint64_t seed = 0;
  double test = 0, valid = 0;  // the metric in percent, at the best epoch
  double train_loss = 0;       // of the last epoch
  int epochs = 0, best_epoch = 0;
  double seconds = 0;
  std::vector<Weight> weights;  // of the best epoch, in the network's order
  Matrix<float> logits;         // nodes x logits, of the best epoch
};

// Of run s: <folder>/<name>-<seed>.safetensors, its checkpoint and in the end its model (train/checkpoint.h), .toml,
// its options, and .jsonl, its learning curve, one JSON object an epoch.
struct Checkpoints {
  std::filesystem::path folder = {};  // empty: none are written
  std::string name = "model";
  int every = 50;       // epochs; one more is written at the end, and when the training is interrupted
  bool resume = false;  // runs go on from the checkpoints that are there, and runs that are done are not repeated
  std::function<std::string(std::uint64_t seed)> config = {};                              // a run's options as TOML
  std::function<void(const std::filesystem::path&, std::string_view)> write = write_file;  // whole or not at all
};
std::filesystem::path checkpoint_path(const Checkpoints& checkpoints, std::uint64_t seed);

struct TrainOptions {
  int epochs = 200;
  int patience = 0;  // epochs without a gain before it stops; 0: never
  Stop stop = Stop::loss;
  Loss loss = Loss::cross_entropy;
  Metric metric = Metric::accuracy;
  // One a class; "balanced": in inverse proportion to the training nodes of a class, 1 on average over these nodes;
  // or numbers separated by commas; "": all 1.
  std::string class_weights = "";
  double label_smoothing = 0;
  Rule optimiser = Rule::adam;
  double rate = 5e-3;
  double decay = 5e-4;    // weight decay
  double momentum = 0.9;  // of sgd
  double clip = 0;        // largest Euclidean norm of the whole gradient; 0: any
  ScheduleOptions schedule = {};
  std::uint64_t seed = 1;  // of the first run; run r has seed + r
  int runs = 1;
  int split = -1;                   // which of the dataset's splits; -1: run r takes split r, round and round
  int threads = 0;                  // 0: all
  Device device = Device::cpu;      // where it trains, one run after the other; results agree to rounding
  DeviceOps* device_ops = nullptr;  // one that is open already, in place of `device`
  Storage storage = Storage::fp32;  // on a device, of the rows that attention gathers; predict() gathers floats
  Checkpoints checkpoints = {};
  const std::atomic<bool>* interrupted = nullptr;    // once true, training ends after the epoch with Interrupted
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

struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws Error where the dataset has no split with training, validation and test nodes, or an option is out of range or
// does not fit the dataset.
void check(const Dataset& data, const TrainOptions& options);

// Throws as `check` does; where the model gives another number of logits than logits_for() says; where the loss stops
// being finite; where a checkpoint cannot be written, is there although nothing is to be resumed, or was made with
// other options, another model or other data; where the device is not there, its memory is too small, or an operation
// of the model has no kernel for it. Throws Interrupted as `interrupted` says, when all checkpoints are written. The
// result has the same bits for any number of threads, interrupted or not.
Report train(const Model& model, const Dataset& data, const TrainOptions& options = {});

}  // namespace heed
