#include "train/device_epochs.h"

#include <algorithm>
#include <cmath>

namespace heed {

DeviceEpochs::DeviceEpochs(DeviceOps& device, Network<float>& network, Var<float> loss, Optimiser<float>& optimiser,
                           const Dataset& data, const Split& split, Metric metric, Loss kind)
    : device_(device),
      network_(network),
      loss_(loss),
      optimiser_(optimiser),
      data_(data),
      split_(split),
      metric_(metric),
      kind_(kind),
      valid_(list_on<Id>(device, split.valid)),
      test_(list_on<Id>(device, split.test)),
      labels_(list_on<Id>(device, data.labels)),
      numbers_(&device),
      logits_(&device),
      kept_(&device) {
  numbers_.resize(1, bodies::EvaluationSum::kNumbers);
}

void DeviceEpochs::work() {
  Tape<float>& tape = network_.tape();
  tape.training = true;
  tape.forward();
  tape.backward(loss_);
  optimiser_.move();
  tape.training = false;
  tape.forward(network_.output());  // and not the loss, whose value is that of training
  const View<const float> logits = network_.output().view();
  const bodies::EvaluationSum sum{.x = logits,
                                  .valid = valid_.data(),
                                  .test = test_.data(),
                                  .labels = labels_.data(),
                                  .valids = valid_.size(),
                                  .tests = test_.size(),
                                  .part = 1 / static_cast<float>(logits.cols),
                                  .binary = kind_ == Loss::binary_cross_entropy,
                                  .train_loss = loss_.value().data(),
                                  .bad = optimiser_.bad(),
                                  .out = numbers_.data()};
  bodies::sum_rows(device_, sum, std::max({logits.rows, valid_.size(), test_.size()}), sum.kColumns, 1);
}

DeviceEpochs::Result DeviceEpochs::run(int epoch, double factor) {
  Tape<float>& tape = network_.tape();
  tape.step = static_cast<std::uint64_t>(epoch);
  optimiser_.begin(factor);
  if (laid_out_ && tape.repeats) {
    if (!replay_) replay_ = device_.capture([&] { work(); });
    tape.begin_step();
    replay_->run();
  } else {
    work();
    laid_out_ = true;
  }
  const Matrix<double> numbers = numbers_;
  const double *n = numbers.data(), valids = static_cast<double>(valid_.size()),
               tests = static_cast<double>(test_.size());
  Result out{.train_loss = n[4], .finite = n[3] == 0 && n[5] == 0};
  if (metric_ == Metric::accuracy) {
    out.valid = {n[0] / valids, 100 * n[1] / valids};
    out.test = 100 * n[2] / tests;
    return out;
  }
  const Matrix<float> logits = network_.output().value();
  out.valid = evaluate(logits, data_.labels, split_.valid, metric_, kind_);
  out.test = evaluate(logits, data_.labels, split_.test, metric_, kind_).metric;
  return out;
}

void DeviceEpochs::keep() {
  if (kept_.empty()) {
    std::vector<bodies::Stretch> all;
    auto keep_here = [&](Matrix<float>& value, Matrix<float>& to) {
      to.resize(value.rows(), value.cols());
      bodies::cut(all, value, to.data(), nullptr, nullptr);
    };
    for (auto& p : network_.parameters()) keep_here(p.value, weights_.emplace_back(&device_));
    keep_here(network_.output().value(), logits_);
    kept_ = list_on<bodies::Stretch>(device_, all);
  }
  bodies::run(device_, bodies::CopyAll{kept_.data()}, kept_.size() * bodies::kStretch);
}

void DeviceEpochs::fetch(Matrix<float>& logits, std::vector<Weight>& weights) const {
  if (kept_.empty()) return;
  logits = logits_;
  for (std::size_t t = 0; t < weights.size(); ++t) weights[t].value = weights_[t];
}

}  // namespace heed
