#include "train/train.h"

#include <fcntl.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/task_arena.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>

#include "graph/files.h"
#include "train/checkpoint.h"
#include "train/device_epochs.h"

namespace heed {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr const char* kThere = " is there already; --resume goes on with it, another folder begins anew";

// Remembers the best validation so far, and for how long there was no gain, in the state that checkpoints keep.
struct Verdict {
  bool gain, best;
};
Verdict judge(TrainState& s, Stop stop, const Evaluation& e) {
  const bool metric = e.metric >= s.metric, loss = e.loss <= s.loss;
  Verdict out{};
  switch (stop) {
    case Stop::metric:  // among equals the lower loss
      out.gain = e.metric > s.metric;
      out.best = out.gain || (metric && e.loss < s.best_loss);
      break;
    case Stop::loss:
      out.gain = out.best = e.loss < s.loss;
      break;
    case Stop::both:
      out.gain = metric || loss;
      out.best = metric && loss;
      break;
  }
  s.metric = std::max(s.metric, e.metric);
  s.loss = std::min(s.loss, e.loss);
  if (out.best) s.best_loss = e.loss;
  s.idle = out.gain ? 0 : s.idle + 1;
  return out;
}

std::vector<double> class_weights(const std::string& text, const Dataset& data, const Split& split) {
  if (text.empty()) return {};
  std::vector<double> out;
  if (text == "balanced") {
    std::vector<double> count(static_cast<std::size_t>(data.classes));
    for (Id i : split.train) ++count[data.labels[i]];
    const auto there = static_cast<double>(std::count_if(count.begin(), count.end(), [](double n) { return n > 0; }));
    for (double n : count) out.push_back(n > 0 ? static_cast<double>(split.train.size()) / (there * n) : 1);
    return out;
  }
  const char* at = text.data();
  const char* end = at + text.size();
  for (bool more = true; more; ++at) {
    double value = 0;
    const auto [rest, error] = std::from_chars(at, end, value);
    if (error != std::errc{} || !(value > 0) || !std::isfinite(value) || (rest != end && *rest != ','))
      fail("class weights are \"balanced\" or numbers above 0, separated by commas, not '" + text + "'");
    out.push_back(value);
    more = rest != end;
    at = rest;
  }
  if (out.size() != static_cast<std::size_t>(data.classes))
    fail(std::to_string(out.size()) + " class weights for " + std::to_string(data.classes) + " classes");
  return out;
}

// A learning curve: a line an epoch. As long as it is open, its lock keeps other processes out of the run.
class Curve {
 public:
  explicit Curve(const std::filesystem::path& path) : path_(path.string()) {
    file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0) refuse();
    if (flock(file_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
    close(file_);
    fail(path_ + ": another training is writing this run");
  }
  Curve(const Curve&) = delete;
  Curve& operator=(const Curve&) = delete;
  ~Curve() { close(file_); }

  void keep(int lines) {  // the first ones; a curve that was taken away begins anew
    const std::string old = read_file(path_);
    std::size_t end = 0;
    for (int n = 0; n < lines && !old.empty(); ++n) {
      end = old.find('\n', end) + 1;
      if (end == 0)
        fail(path_ + ": ends after " + std::to_string(n) + " of " + std::to_string(lines) +
             " epochs; without the file, the curve begins where the training goes on");
    }
    if (ftruncate(file_, static_cast<off_t>(end)) != 0) refuse();
  }
  void add(const Epoch& e) {
    nlohmann::ordered_json line{{"epoch", e.epoch},
                                {"train_loss", e.train_loss},
                                {"valid_loss", e.valid_loss},
                                {"valid", e.valid},
                                {"rate", e.rate},
                                {"best", e.best}};
    if ((errno = write_all(file_, line.dump() + "\n")) != 0) refuse();
  }

 private:
  [[noreturn]] void refuse() { fail("cannot write " + path_ + ": " + std::strerror(errno)); }

  std::string path_;
  int file_ = -1;
};

bool is_there(const std::filesystem::path& path) {
  std::error_code error;
  const bool out = std::filesystem::exists(path, error);
  if (error) fail(path.string() + ": " + error.message());
  return out;
}

// One training, which can be laid down in a file and taken up again.
class Training {
 public:
  Training(const Model& model, const Dataset& data, const TrainOptions& o, int run, DeviceOps* device)
      : data_(data),
        o_(o),
        split_(data.splits[static_cast<std::size_t>(o.split >= 0 ? o.split : run) % data.splits.size()]),
        network_(model, data.graph, data.features, o.seed + static_cast<std::uint64_t>(run), device),
        factor_(o.schedule, o.epochs) {
    state_.seed = o.seed + static_cast<std::uint64_t>(run);
    run_.seed = state_.seed;
    network_.expect_keys();
    const Id logits = logits_for(o.loss, data.classes);
    if (network_.output().cols() != logits)
      fail("the model gives " + std::to_string(network_.output().cols()) + " logits; " + std::to_string(data.classes) +
           " classes and " + loss_names()[static_cast<std::size_t>(o.loss)] + " want " + std::to_string(logits));
    const LossOptions options{class_weights(o.class_weights, data, split_), o.label_smoothing};
    loss_ = (o.loss == Loss::cross_entropy ? cross_entropy<float> : binary_cross_entropy<float>)(network_.output(),
                                                                                                 split_.train,
                                                                                                 data.labels, options);
    if (!device) focus_ = network_.tape().focus_on(loss_);
    network_.tape().profile = o.profile;
    network_.tape().bf16 = device && o.storage == Storage::bf16;
    optimiser_.emplace(
        network_.parameters(),
        OptimiserOptions{.rule = o.optimiser, .rate = o.rate, .decay = o.decay, .momentum = o.momentum, .clip = o.clip},
        device);
    if (device) there_.emplace(*device, network_, loss_, *optimiser_, data, split_, o.metric, o.loss);
    run_.weights = weights_of(network_);
    if (o.checkpoints.folder.empty()) return;
    file_ = checkpoint_path(o.checkpoints, state_.seed);
    fingerprint_ = fingerprint(data_, split_);
    if (const std::string files = fingerprint(network_.files()); !files.empty()) fingerprint_ += ", " + files;
    if (o.checkpoints.config) config_ = o.checkpoints.config(state_.seed);
    curve_.emplace(std::filesystem::path(file_).replace_extension(".jsonl"));
    if (is_there(file_)) restore();
    if (!state_.done) curve_->keep(state_.epoch);
    if (!config_.empty()) write_file(std::filesystem::path(file_).replace_extension(".toml"), config_);
  }

  Offset parameter_count() const { return network_.parameter_count(); }

  // report(epoch) is called after each.
  template <class Report>
  Run run(int number, Report report) {
    const auto start = Clock::now();
    const double before = state_.seconds;
    if (!state_.done && o_.interrupted != nullptr && *o_.interrupted)
      throw Interrupted("interrupted before epoch " + std::to_string(state_.epoch + 1));
    while (!state_.done) {
      Epoch e = epoch();
      e.run = number;
      state_.seconds = before + seconds_since(start);
      if (curve_) curve_->add(e);
      report(e);
      state_.done = state_.epoch >= o_.epochs || (o_.patience > 0 && state_.idle >= o_.patience);
      const bool interrupted = o_.interrupted != nullptr && *o_.interrupted;
      const Checkpoints& c = o_.checkpoints;
      if (!file_.empty() && (state_.done || interrupted || state_.epoch % c.every == 0)) save();
      if (interrupted && !state_.done) throw Interrupted("interrupted after epoch " + std::to_string(state_.epoch));
    }
    if (there_) there_->fetch(run_.logits, run_.weights);
    run_.epochs = state_.epoch, run_.best_epoch = state_.best_epoch;
    run_.valid = state_.valid, run_.test = state_.test, run_.train_loss = state_.train_loss;
    run_.seconds = state_.seconds;
    return std::move(run_);
  }

 private:
  template <class F>
  void timed(const char* name, F f) {
    const auto begin = Clock::now();
    f();
    if (o_.profile) (*o_.profile)[name][0] += seconds_since(begin);
  }

  Epoch epoch() {
    Tape<float>& tape = network_.tape();
    const int epoch = ++state_.epoch;
    const double factor = factor_(epoch);
    Evaluation valid;
    DeviceEpochs::Result result;
    if (there_) {
      result = there_->run(epoch, factor);
      state_.train_loss = result.train_loss, valid = result.valid;
    } else {
      tape.training = true;
      tape.step = static_cast<std::uint64_t>(epoch);
      tape.focus = &focus_;
      tape.forward();
      state_.train_loss = loss_.value()(0, 0);
      tape.backward(loss_);
      tape.focus = nullptr;
      timed("optimiser", [&] { optimiser_->step(factor); });
      tape.training = false;
      tape.forward(network_.output());
      timed("evaluation",
            [&] { valid = evaluate(network_.output().value(), data_.labels, split_.valid, o_.metric, o_.loss); });
    }
    if (!std::isfinite(state_.train_loss) || !std::isfinite(valid.loss))
      diverged("the loss", epoch, epoch > 1 || std::isfinite(state_.train_loss));
    const Verdict verdict = judge(state_, o_.stop, valid);
    factor_.validated(epoch, verdict.gain);
    const bool best = verdict.best || epoch == 1;
    if (best) {
      // Losses may be finite where an activation lets no NaN pass, or no node of theirs has one.
      if (!there_ || !result.finite) {
        if (!finite(network_.output().value())) diverged("a logit", epoch);
        for (auto& p : network_.parameters())
          if (!finite(p.value)) diverged(p.name, epoch);
      }
      state_.best_epoch = epoch;
      state_.valid = valid.metric;
      keep_best(result);
    }
    return {0, epoch, state_.train_loss, valid.loss, valid.metric, o_.rate * factor, verdict.best};
  }

  void keep_best(const DeviceEpochs::Result& result) {
    if (there_) {
      state_.test = result.test;
      return there_->keep();
    }
    const Matrix<float>& logits = network_.output().value();
    state_.test = evaluate(logits, data_.labels, split_.test, o_.metric, o_.loss).metric;
    run_.logits = logits;
    std::size_t at = 0;
    for (auto& p : network_.parameters()) run_.weights[at++].value = p.value;
  }

  [[noreturn]] void diverged(const std::string& what, int epoch, bool stepped = true) const {
    fail("training diverged: " + what + " is not finite at epoch " + std::to_string(epoch) + " of seed " +
         std::to_string(state_.seed) +
         (stepped ? "; try a lower --rate" : ", before the first step: scores or features make it so, not --rate"));
  }
  static bool finite(const Matrix<float>& x) {
    if (x.memory()) return finite(Matrix<float>(x));
    return std::all_of(x.begin(), x.end(), [](float each) { return std::isfinite(each); });
  }

  void save() {
    state_.steps = optimiser_->steps;
    state_.drops = factor_.drops, state_.rests = factor_.idle;
    if (there_) there_->fetch(run_.logits, run_.weights);
    std::vector<Weight> all = run_.weights;
    if (!state_.done) {
      for (Weight& w : weights_of(network_)) all.push_back({"train.now." + w.name, std::move(w.value)});
      for (const auto& m : optimiser_->moments) {
        all.push_back({"train.first." + m.parameter->name, m.first});
        if (m.second.size() > 0) all.push_back({"train.second." + m.parameter->name, m.second});
      }
    }
    std::map<std::string, std::string> metadata{{"format", "heed"},
                                                {"heed.version", HEED_VERSION},
                                                {"heed.classes", std::to_string(data_.classes)},
                                                {"heed.data", fingerprint_},
                                                {"heed.state", to_text(state_)}};
    if (!config_.empty()) metadata["heed.config"] = config_;
    o_.checkpoints.write(file_, to_safetensors(all, metadata));
  }

  void restore() {
    const std::string name = file_.string();
    if (!o_.checkpoints.resume) fail(name + kThere);
    const Safetensors file = read_safetensors(file_);
    auto metadata = [&](const char* key) {
      const auto at = file.metadata.find(key);
      if (at == file.metadata.end()) fail(name + ": no checkpoint of a training, it lacks the metadata '" + key + "'");
      return at->second;
    };
    if (!config_.empty()) same_lines(name, metadata("heed.config"), config_);
    if (const std::string was = metadata("heed.data"); was != fingerprint_) {
      // Graphs that agree in all numbers differ in their hashes, or those of files: the last words.
      const bool same_numbers = was.substr(0, was.rfind(", ")) == fingerprint_.substr(0, fingerprint_.rfind(", "));
      auto shown = [&](const std::string& text) { return same_numbers ? text.substr(text.rfind(", ") + 2) : text; };
      fail(name + ": made on other data: " + printable(shown(was)) + "; these are " + shown(fingerprint_));
    }
    const std::uint64_t seed = state_.seed;
    state_ = state_from(metadata("heed.state"), name);
    if (state_.seed != seed) fail(name + ": made with seed " + std::to_string(state_.seed));
    optimiser_->steps = state_.steps;
    factor_.drops = state_.drops, factor_.idle = state_.rests;
    // The logits of the best epoch are those of its weights.
    assign(network_, file);
    run_.weights = weights_of(network_);
    network_.tape().forward();
    run_.logits = network_.output().value();
    if (state_.done) return;
    for (auto& m : optimiser_->moments) {
      take(file, "train.first." + m.parameter->name, m.first);
      if (m.second.size() > 0) take(file, "train.second." + m.parameter->name, m.second);
    }
    assign(network_, file, "train.now.");
  }

  static void take(const Safetensors& file, const std::string& name, Matrix<float>& to) {
    const Matrix<float>* from = file.find(name);
    if (from == nullptr || from->rows() != to.rows() || from->cols() != to.cols())
      fail(file.file + ": the tensor '" + name + "' is missing or has another shape");
    to = *from;
  }

  // Throws Error naming the first option that differs.
  static void same_lines(const std::string& name, const std::string& then, const std::string& now) {
    std::istringstream a(then), b(now);
    for (std::string x, y;;) {
      const bool more_a = static_cast<bool>(std::getline(a, x)), more_b = static_cast<bool>(std::getline(b, y));
      if (!more_a && !more_b) return;
      if (more_a != more_b || x != y)
        fail(name + ": made with '" + (more_a ? printable(x) : "") + "', not with '" + (more_b ? y : "") +
             "'; the same options go on with it, another folder begins anew");
    }
  }

  const Dataset& data_;
  const TrainOptions& o_;
  const Split& split_;
  Network<float> network_;
  RateFactor factor_;
  Var<float> loss_;
  Focus focus_;  // of its rows: what a training step computes
  std::optional<Optimiser<float>> optimiser_;
  std::optional<DeviceEpochs> there_;  // where it trains on a device
  TrainState state_;
  Run run_;
  std::filesystem::path file_;  // empty: no checkpoints
  std::string fingerprint_, config_;
  std::optional<Curve> curve_;
};

// Small problems leave threads waiting for each other; there, runs side by side with one thread each are faster.
constexpr Offset kSmall = 300'000;  // nodes and edges

}  // namespace

void check(const Dataset& data, const TrainOptions& o) {
  auto at_least = [](const char* what, double value, double least) {
    if (!(value >= least) || !std::isfinite(value))
      fail(std::string(what) + " must be at least " + std::to_string(static_cast<int>(least)));
  };
  at_least("epochs", o.epochs, 1);
  at_least("runs", o.runs, 1);
  if (o.profile && o.runs != 1) fail("a profile needs a single run, not " + std::to_string(o.runs));
  if (o.profile && (o.device != Device::cpu || o.device_ops))
    fail("a profile tells of the CPU alone; use --device cpu");
  if (o.storage != Storage::fp32 && o.device == Device::cpu && !o.device_ops)
    fail("rows are stored as bf16 on a GPU alone; use --device cuda, or --storage fp32");
  at_least("patience", o.patience, 0);
  at_least("weight decay", o.decay, 0);
  at_least("clip", o.clip, 0);
  at_least("warmup", o.schedule.warmup, 0);
  at_least("schedule span", o.schedule.span, 1);
  at_least("epochs between checkpoints", o.checkpoints.every, 1);
  if (!(o.rate > 0) || !std::isfinite(o.rate)) fail("the learning rate must be above 0");
  if (!(o.momentum >= 0 && o.momentum < 1)) fail("the momentum must be at least 0 and below 1");
  if (!(o.schedule.factor > 0 && o.schedule.factor <= 1)) fail("the schedule's factor must be above 0 and at most 1");
  if (!(o.label_smoothing >= 0 && o.label_smoothing < 1)) fail("label smoothing must be at least 0 and below 1");
  if (data.classes == 0) fail("dataset '" + data.name + "': no node has a label, and so there is nothing to learn");
  if (data.classes < 2)
    fail("dataset '" + data.name + "': training needs at least 2 classes, not " + std::to_string(data.classes));
  if (o.seed > static_cast<std::uint64_t>(INT64_MAX) - static_cast<std::uint64_t>(o.runs - 1))
    fail("the seed of the last run is above " + std::to_string(INT64_MAX));
  if (data.splits.empty())
    fail("dataset '" + data.name +
         "' has no split into training, validation and test nodes; --splits draws one, as in --splits "
         "stratified:0.6/0.2/0.2");
  if (o.split >= static_cast<int>(data.splits.size()))
    fail("split " + std::to_string(o.split) + " of '" + data.name + "' is not there; it has " +
         std::to_string(data.splits.size()));
  for (const Split& s : data.splits)
    if (s.train.empty() || s.valid.empty() || s.test.empty())
      fail("dataset '" + data.name + "': a split lacks training, validation or test nodes");
  check(data);
  class_weights(o.class_weights, data, data.splits[0]);
  if (o.checkpoints.folder.empty() || o.checkpoints.resume) return;
  for (int r = 0; r < o.runs; ++r) {
    const auto path = checkpoint_path(o.checkpoints, o.seed + static_cast<std::uint64_t>(r));
    if (is_there(path)) fail(path.string() + kThere);
  }
}

const std::vector<std::string>& stop_names() {
  static const std::vector<std::string> names{"metric", "loss", "both"};
  return names;
}

Stop stop_named(const std::string& name) {
  return name == "accuracy" ? Stop::metric : static_cast<Stop>(choose("stopping rule", name, stop_names()));
}

std::filesystem::path checkpoint_path(const Checkpoints& c, std::uint64_t seed) {
  return c.folder / (c.name + "-" + std::to_string(seed) + ".safetensors");
}

Report train(const Model& model, const Dataset& data, const TrainOptions& o) {
  check(data, o);
  const auto start = Clock::now();
  const std::unique_ptr<DeviceOps> opened = o.device_ops ? nullptr : open_device(o.device);
  DeviceOps* const device = o.device_ops ? o.device_ops : opened.get();
  Report report;
  report.threads = o.threads > 0 ? o.threads : tbb::info::default_concurrency();
  report.runs.resize(static_cast<std::size_t>(o.runs));
  report.in_parallel = !device && o.runs > 1 && report.threads > 1 && data.nodes() + data.graph.edges() < kSmall;
  std::mutex reporting;
  if (!o.checkpoints.folder.empty()) {
    std::error_code error;
    std::filesystem::create_directories(o.checkpoints.folder, error);
    if (error) fail("cannot write " + o.checkpoints.folder.string() + ": " + error.message());
  }
  auto train_once = [&](int run, Offset& parameters) {
    Training training(model, data, o, run, device);
    parameters = training.parameter_count();
    Run out = training.run(run, [&](const Epoch& e) {
      if (!o.on_epoch) return;
      std::lock_guard lock(reporting);
      o.on_epoch(e);
    });
    if (o.on_run) {
      std::lock_guard lock(reporting);
      o.on_run(run, out);
    }
    report.runs[static_cast<std::size_t>(run)] = std::move(out);
  };

  if (report.in_parallel) {
    std::atomic<int> next{0};
    std::exception_ptr error;
    std::vector<Offset> counts(static_cast<std::size_t>(o.runs));
    auto work = [&] {
      tbb::task_arena alone(1);
      for (int run = next++; run < o.runs; run = next++) try {
          alone.execute([&] { train_once(run, counts[run]); });
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
    for (int run = 0; run < o.runs; ++run) arena.execute([&] { train_once(run, report.parameters); });
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
