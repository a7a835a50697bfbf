// The epochs of a training on a device: a step of the optimiser, then the evaluation. The first epoch lays out all
// memory; from the second on an epoch is one replay, where the model does the same in each. Only a few numbers come
// back.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "datasets/dataset.h"
#include "layers/model.h"
#include "train/metrics.h"
#include "train/optimiser.h"
#include "train/safetensors.h"

namespace heed {

class DeviceEpochs {
 public:
  struct Result {
    double train_loss = 0;
    Evaluation valid;
    double test = 0;     // the metric
    bool finite = true;  // all logits and parameters
  };
  // All must outlive it.
  DeviceEpochs(DeviceOps& device, Network<float>& network, Var<float> loss, Optimiser<float>& optimiser,
               const Dataset& data, const Split& split, Metric metric, Loss kind);

  Result run(int epoch, double factor);
  void keep();  // the weights and the logits as they are now
  // What was kept last. `weights` are the network's.
  void fetch(Matrix<float>& logits, std::vector<Weight>& weights) const;

 private:
  void work();

  DeviceOps& device_;
  Network<float>& network_;
  Var<float> loss_;
  Optimiser<float>& optimiser_;
  const Dataset& data_;
  const Split& split_;
  Metric metric_;
  Loss kind_;
  Matrix<Id> valid_, test_, labels_;
  Matrix<double> numbers_;
  std::unique_ptr<Replay> replay_;
  bool laid_out_ = false;

  Matrix<float> logits_;
  std::deque<Matrix<float>> weights_;
  Matrix<bodies::Stretch> kept_;
};

}  // namespace heed
