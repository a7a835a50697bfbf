#include "train/train.h"

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/task_arena.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

namespace heed {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Remembers the best validation so far, and for how long there was no gain.
class Watch {
 public:
  Watch(Stop stop, int patience) : stop_(stop), patience_(patience) {}

  bool is_best(const Evaluation& e) {
    const bool accuracy = e.accuracy >= accuracy_, loss = e.loss <= loss_;
    bool gain = false, best = false;
    switch (stop_) {
      case Stop::accuracy:  // among equals the lower loss
        gain = e.accuracy > accuracy_;
        best = gain || (accuracy && e.loss < best_loss_);
        break;
      case Stop::loss:
        gain = best = e.loss < loss_;
        break;
      case Stop::both:
        gain = accuracy || loss;
        best = accuracy && loss;
        break;
    }
    accuracy_ = std::max(accuracy_, e.accuracy);
    loss_ = std::min(loss_, e.loss);
    if (best) best_loss_ = e.loss;
    idle_ = gain ? 0 : idle_ + 1;
    return best;
  }
  bool stops() const { return patience_ > 0 && idle_ >= patience_; }

 private:
  Stop stop_;
  int patience_, idle_ = 0;
  double accuracy_ = -1, loss_ = std::numeric_limits<double>::infinity();
  double best_loss_ = std::numeric_limits<double>::infinity();
};

Run train_once(const Model& model, const Dataset& data, const TrainOptions& o, int run, Offset& parameter_count,
               std::mutex& reporting) {
  const auto start = Clock::now();
  const std::uint64_t seed = o.seed + static_cast<std::uint64_t>(run);
  const Split& split = data.splits[static_cast<std::size_t>(o.split >= 0 ? o.split : run) % data.splits.size()];
  Network<float> network(model, data.graph, data.features, seed);
  parameter_count = network.parameter_count();
  if (network.output().cols() != data.classes)
    fail("the model gives " + std::to_string(network.output().cols()) + " logits for " + std::to_string(data.classes) +
         " classes");
  Tape<float>& tape = network.tape();
  Var<float> loss = cross_entropy(network.output(), std::span<const Id>(split.train), std::span<const Id>(data.labels));
  tape.profile = o.profile;
  auto timed = [&](const char* name, auto f) {
    const auto begin = Clock::now();
    f();
    if (o.profile) (*o.profile)[name][0] += seconds_since(begin);
  };
  Adam<float> adam(network.parameters(), {.rate = o.rate, .decay = o.decay, .decoupled = o.decoupled});
  Watch watch(o.stop, o.patience);

  Run out{.seed = seed};
  for (auto& p : network.parameters()) out.parameters.push_back(p.value);
  for (int epoch = 1; epoch <= o.epochs; ++epoch) {
    tape.training = true;
    tape.step = static_cast<std::uint64_t>(epoch);
    tape.forward();
    out.train_loss = loss.value()(0, 0);
    tape.backward(loss);
    timed("optimiser", [&] { adam.step(); });
    tape.training = false;
    tape.forward();
    const Matrix<float>& logits = network.output().value();
    Evaluation valid;
    timed("evaluation", [&] { valid = evaluate(logits, data.labels, split.valid); });
    if (!std::isfinite(out.train_loss) || !std::isfinite(valid.loss))
      fail("training diverged: the loss is not finite at epoch " + std::to_string(epoch) + " of seed " +
           std::to_string(seed) + "; try a lower --rate");
    const bool best = watch.is_best(valid);
    if (best || epoch == 1) {
      out.best_epoch = epoch;
      out.valid = valid.accuracy;
      out.test = evaluate(logits, data.labels, split.test).accuracy;
      out.logits = logits;
      std::size_t at = 0;
      for (auto& p : network.parameters()) out.parameters[at++] = p.value;
    }
    out.epochs = epoch;
    if (o.on_epoch) {
      std::lock_guard lock(reporting);
      o.on_epoch({run, epoch, out.train_loss, valid.loss, valid.accuracy, best});
    }
    if (watch.stops()) break;
  }
  out.seconds = seconds_since(start);
  if (o.on_run) {
    std::lock_guard lock(reporting);
    o.on_run(run, out);
  }
  return out;
}

// Small problems leave threads waiting for each other; there, runs side by side with one thread each are faster.
constexpr Offset kSmall = 2'000'000;  // nodes and edges

}  // namespace

void check(const Dataset& data, const TrainOptions& o) {
  auto at_least = [](const char* what, double value, double least) {
    if (!(value >= least) || !std::isfinite(value))
      fail(std::string(what) + " must be at least " + std::to_string(static_cast<int>(least)));
  };
  at_least("epochs", o.epochs, 1);
  at_least("runs", o.runs, 1);
  if (o.profile && o.runs != 1) fail("a profile needs a single run, not " + std::to_string(o.runs));
  at_least("patience", o.patience, 0);
  at_least("weight decay", o.decay, 0);
  if (!(o.rate > 0) || !std::isfinite(o.rate)) fail("the learning rate must be above 0");
  if (data.splits.empty()) fail("dataset '" + data.name + "' has no split into training, validation and test nodes");
  if (o.split >= static_cast<int>(data.splits.size()))
    fail("split " + std::to_string(o.split) + " of '" + data.name + "' is not there; it has " +
         std::to_string(data.splits.size()));
  for (const Split& s : data.splits)
    if (s.train.empty() || s.valid.empty() || s.test.empty())
      fail("dataset '" + data.name + "': a split lacks training, validation or test nodes");
}

const std::vector<std::string>& stop_names() {
  static const std::vector<std::string> names{"accuracy", "loss", "both"};
  return names;
}

Stop stop_named(const std::string& name) {
  for (std::size_t i = 0; i < stop_names().size(); ++i)
    if (stop_names()[i] == name) return static_cast<Stop>(i);
  unknown("stopping rule", name, stop_names());
}

Evaluation evaluate(const Matrix<float>& logits, std::span<const Id> labels, std::span<const Id> nodes) {
  Evaluation out;
  Offset right = 0;
  for (Id i : nodes) {
    const float* row = logits.row(i);
    const float* top = std::max_element(row, row + logits.cols());
    right += top - row == labels[i];
    double total = 0;
    for (Offset c = 0; c < logits.cols(); ++c) total += std::exp(static_cast<double>(row[c]) - *top);
    out.loss += *top + std::log(total) - row[labels[i]];
  }
  const auto count = static_cast<double>(nodes.size());
  out.loss /= count;
  out.accuracy = 100.0 * static_cast<double>(right) / count;
  return out;
}

double peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

Report train(const Model& model, const Dataset& data, const TrainOptions& o) {
  check(data, o);
  const auto start = Clock::now();
  Report report;
  report.threads = o.threads > 0 ? o.threads : tbb::info::default_concurrency();
  report.runs.resize(static_cast<std::size_t>(o.runs));
  report.in_parallel = o.runs > 1 && report.threads > 1 && data.nodes() + data.graph.edges() < kSmall;
  std::mutex reporting;

  if (report.in_parallel) {
    std::atomic<int> next{0};
    std::exception_ptr error;
    std::vector<Offset> counts(static_cast<std::size_t>(o.runs));
    auto work = [&] {
      tbb::task_arena alone(1);
      for (int run = next++; run < o.runs; run = next++) try {
          alone.execute([&] { report.runs[run] = train_once(model, data, o, run, counts[run], reporting); });
        } catch (...) {
          std::lock_guard lock(reporting);
          if (!error) error = std::current_exception();
          next = o.runs;
        }
    };
    std::vector<std::thread> workers;
    for (int t = 0; t < std::min(report.threads, o.runs); ++t) workers.emplace_back(work);
    for (auto& w : workers) w.join();
    if (error) std::rethrow_exception(error);
    report.parameters = counts[0];
  } else {
    tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(report.threads));
    tbb::task_arena arena(report.threads);
    for (int run = 0; run < o.runs; ++run)
      arena.execute([&] { report.runs[run] = train_once(model, data, o, run, report.parameters, reporting); });
  }

  double square = 0, epochs = 0, inside = 0;
  for (const Run& r : report.runs) {
    report.test_mean += r.test / o.runs;
    report.valid_mean += r.valid / o.runs;
    epochs += r.epochs;
    inside += r.seconds;
  }
  for (const Run& r : report.runs) square += (r.test - report.test_mean) * (r.test - report.test_mean);
  if (o.runs > 1) report.test_std = std::sqrt(square / (o.runs - 1));
  report.epochs_mean = epochs / o.runs;
  report.epoch_ms = 1000 * inside / epochs;
  report.seconds = seconds_since(start);
  return report;
}

}  // namespace heed
