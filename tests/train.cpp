// Training: the optimiser against its formula, stopping, the same bits on any number of threads, and the accuracy that
// attention owes over a perceptron.
#include <oneapi/tbb/global_control.h>

#include "datasets/karate.h"
#include "datasets/sbm.h"
#include "tests/support.h"
#include "train/recipes.h"

using namespace heed;
using namespace heed::test;

namespace {

Dataset small_blocks(std::uint64_t seed) {
  Sbm o;
  o.nodes = 600;
  o.valid = 100;
  o.test = 200;
  o.seed = seed;
  return sbm(o);
}

bool same_bits(const Run& a, const Run& b) {
  if (a.parameters.size() != b.parameters.size()) return false;
  for (std::size_t i = 0; i < a.parameters.size(); ++i)
    if (!(a.parameters[i] == b.parameters[i])) return false;
  return a.logits == b.logits && a.test == b.test && a.valid == b.valid && a.epochs == b.epochs &&
         a.train_loss == b.train_loss;
}

std::string message_of(const Dataset& data, const TrainOptions& o) {
  try {
    train(mlp({.classes = data.classes}), data, o);
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

}  // namespace

TEST_SUITE_BEGIN("train");

TEST_CASE("Adam and AdamW follow their formulas") {
  for (bool decoupled : {false, true}) {
    auto seed = fresh_seed();
    CAPTURE(seed);
    Random random(seed);
    std::deque<Parameter<double>> parameters(1);
    parameters[0].value = random_matrix<double>(3, 5, random);
    AdamOptions o{.rate = 0.01, .decay = 0.1, .decoupled = decoupled};
    Adam<double> adam(parameters, o);
    Matrix<double> x = parameters[0].value, m(3, 5), v(3, 5);
    for (int step = 1; step <= 7; ++step) {
      parameters[0].grad = random_matrix<double>(3, 5, random);
      for (Offset t = 0; t < x.size(); ++t) {
        double g = parameters[0].grad.data()[t] + (decoupled ? 0 : o.decay * x.data()[t]);
        m.data()[t] = 0.9 * m.data()[t] + 0.1 * g;
        v.data()[t] = 0.999 * v.data()[t] + 0.001 * g * g;
        double hat_m = m.data()[t] / (1 - std::pow(0.9, step)), hat_v = v.data()[t] / (1 - std::pow(0.999, step));
        x.data()[t] = (decoupled ? x.data()[t] * (1 - o.rate * o.decay) : x.data()[t]) -
                      o.rate * hat_m / (std::sqrt(hat_v) + 1e-8);
      }
      adam.step();
      CHECK(difference(parameters[0].value, x) <= 1e-12);
    }
  }
}

TEST_CASE("evaluation counts and measures") {
  Matrix<float> logits(3, 2);
  logits(0, 0) = 1, logits(1, 1) = 2, logits(2, 0) = 3;
  std::vector<Id> labels{0, 0, 0}, nodes{0, 1, 2};
  Evaluation e = evaluate(logits, labels, nodes);
  CHECK(e.accuracy == doctest::Approx(200.0 / 3));
  double expected = (std::log(1 + std::exp(-1.0)) + std::log(1 + std::exp(2.0)) + std::log(1 + std::exp(-3.0))) / 3;
  CHECK(e.loss == doctest::Approx(expected));
}

TEST_CASE("a whole training has the same bits on 1, 2 and 7 threads, from run to run, and with runs side by side") {
  auto seed = fresh_seed() % 100000;
  CAPTURE(seed);
  Dataset data = small_blocks(seed);
  for (const auto& entry : model_menu()) {
    CAPTURE(entry.name);
    Model model = entry.make({.classes = data.classes, .attention_dropout = 0.3, .norm = Norm::batch});
    TrainOptions o{.epochs = 12, .seed = seed, .runs = 3};
    auto with = [&](int threads) {
      o.threads = threads;
      return train(model, data, o);
    };
    Report one = with(1), two = with(2), seven = with(7), again = with(1);
    CHECK(!one.in_parallel);
    CHECK(seven.in_parallel);
    for (int r = 0; r < 3; ++r) {
      CHECK(same_bits(one.runs[r], two.runs[r]));
      CHECK(same_bits(one.runs[r], seven.runs[r]));
      CHECK(same_bits(one.runs[r], again.runs[r]));
    }
    CHECK(!same_bits(one.runs[0], one.runs[1]));
    o.runs = 1;
    Report alone_two = with(2), alone_seven = with(7);  // one run, its loops cut over the threads
    CHECK(!alone_seven.in_parallel);
    CHECK(same_bits(one.runs[0], alone_two.runs[0]));
    CHECK(same_bits(one.runs[0], alone_seven.runs[0]));
  }
}

TEST_CASE("training stops when validation gains nothing, and keeps the best epoch") {
  Dataset data = small_blocks(3);
  for (Stop stop : {Stop::accuracy, Stop::loss, Stop::both}) {
    std::vector<Epoch> seen;
    TrainOptions o{.epochs = 400, .patience = 10, .stop = stop, .rate = 0.05, .seed = 5};
    o.on_epoch = [&](const Epoch& e) { seen.push_back(e); };
    Report r = train(gcn({.classes = data.classes, .hidden = 16, .heads = 1}), data, o);
    const Run& run = r.runs[0];
    CHECK(run.epochs < 400);
    CHECK(static_cast<int>(seen.size()) == run.epochs);
    CHECK(run.valid == doctest::Approx(seen[run.best_epoch - 1].valid_accuracy));
    CHECK(seen[run.best_epoch - 1].best);
    for (int e = run.best_epoch; e < run.epochs; ++e) CHECK(!seen[e].best);
    for (const Epoch& e : seen) {
      if (stop == Stop::loss) CHECK(seen[run.best_epoch - 1].valid_loss <= e.valid_loss);
      if (stop == Stop::accuracy) CHECK(seen[run.best_epoch - 1].valid_accuracy >= e.valid_accuracy);
    }
    // The logits kept are those of the best epoch.
    const Split& split = data.splits[0];
    CHECK(evaluate(run.logits, data.labels, split.valid).accuracy == doctest::Approx(run.valid));
    CHECK(evaluate(run.logits, data.labels, split.test).accuracy == doctest::Approx(run.test));
  }
}

TEST_CASE("on the generated graph attention beats a perceptron by 30 points") {
  Dataset data = sbm();
  auto mean = [&](const char* name) {
    Recipe r = recipe(name, "sbm");
    r.model.classes = data.classes;
    r.train.epochs = 120;
    r.train.runs = 2;
    return train(model_named(name).make(r.model), data, r.train).test_mean;
  };
  double attention = mean("gat"), perceptron = mean("mlp");
  CHECK(attention >= 86);
  CHECK(attention >= perceptron + 30);
}

TEST_CASE("options out of range and datasets without a split are refused") {
  Dataset data = karate();
  CHECK(message_of(data, {.epochs = 2}) == "accepted");
  CHECK(message_of(data, {.epochs = 0}) == "epochs must be at least 1");
  CHECK(message_of(data, {.runs = 0}) == "runs must be at least 1");
  CHECK(message_of(data, {.patience = -1}) == "patience must be at least 0");
  CHECK(message_of(data, {.rate = 0}) == "the learning rate must be above 0");
  CHECK(message_of(data, {.rate = NAN}) == "the learning rate must be above 0");
  CHECK(message_of(data, {.split = 5}).find("split 5 of 'karate'") == 0);
  CHECK(message_of(data, {.epochs = 300, .rate = 1e30}).find("training diverged") == 0);
  data.splits.clear();
  CHECK(message_of(data, {}).find("no split") != std::string::npos);
}

TEST_SUITE_END();
