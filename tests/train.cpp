// Training: the optimiser against its formula, stopping, the same bits on any number of threads, and the accuracy that
// attention owes over a perceptron.
#include <oneapi/tbb/global_control.h>

#include "datasets/karate.h"
#include "datasets/sbm.h"
#include "tests/scratch.h"
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
  if (a.weights.size() != b.weights.size()) return false;
  for (std::size_t i = 0; i < a.weights.size(); ++i)
    if (a.weights[i].name != b.weights[i].name || !(a.weights[i].value == b.weights[i].value)) return false;
  return a.logits == b.logits && a.test == b.test && a.valid == b.valid && a.epochs == b.epochs &&
         a.train_loss == b.train_loss;
}

std::string message_of(const Dataset& data, const TrainOptions& o) {
  return message([&] { train(mlp({.classes = data.classes}), data, o); });
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
    OptimiserOptions o{.rule = decoupled ? Rule::adamw : Rule::adam, .rate = 0.01, .decay = 0.1};
    Optimiser<double> adam(parameters, o);
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

TEST_CASE("gradient descent with momentum, and clipping, follow their formulas") {
  for (Rule rule : {Rule::sgd, Rule::adam}) {
    auto seed = fresh_seed();
    CAPTURE(seed);
    Random random(seed);
    std::deque<Parameter<double>> clipped(2), plain(2);
    for (int i = 0; i < 2; ++i) clipped[i].value = plain[i].value = random_matrix<double>(40 * i + 2, 900, random);
    // Adam divides by the gradient's own size: where decay cancels it, what is left is rounding.
    OptimiserOptions o{.rule = rule, .rate = 0.1, .decay = rule == Rule::adam ? 0 : 0.01, .momentum = 0.8};
    Optimiser<double> free(plain, o);
    o.clip = 3;
    Optimiser<double> bound(clipped, o);
    std::vector<Matrix<double>> x{plain[0].value, plain[1].value}, m{Matrix<double>(2, 900), Matrix<double>(42, 900)};
    for (double scale : {1.0, 1e-3, 5.0}) {
      double square = 0;
      for (int i = 0; i < 2; ++i) {
        clipped[i].grad = random_matrix<double>(plain[i].value.rows(), 900, random, scale);
        for (double g : clipped[i].grad) square += g * g;
      }
      const double factor = std::min(1.0, 3 / std::sqrt(square));
      for (int i = 0; i < 2; ++i) {
        plain[i].grad = clipped[i].grad;
        for (double& g : plain[i].grad) g *= factor;
        for (Offset t = 0; t < x[i].size(); ++t) {
          m[i].data()[t] = 0.8 * m[i].data()[t] + plain[i].grad.data()[t] + 0.01 * x[i].data()[t];
          x[i].data()[t] -= 0.5 * 0.1 * m[i].data()[t];
        }
      }
      free.step(0.5);
      bound.step(0.5);
      for (int i = 0; i < 2; ++i) {
        CHECK(difference(clipped[i].value, plain[i].value) <= 1e-12);
        if (rule == Rule::sgd) CHECK(difference(plain[i].value, x[i]) <= 1e-12);
      }
    }
  }
}

TEST_CASE("schedules") {
  auto at = [](ScheduleOptions o, int epoch) { return RateFactor(o, 100)(epoch); };
  CHECK(at({}, 77) == 1);
  CHECK(at({.schedule = Schedule::linear}, 1) == 1);
  CHECK(at({.schedule = Schedule::linear}, 51) == doctest::Approx(0.5));
  CHECK(at({.schedule = Schedule::cosine}, 1) == 1);
  CHECK(at({.schedule = Schedule::cosine}, 26) == doctest::Approx((1 + std::sqrt(0.5)) / 2));
  CHECK(at({.schedule = Schedule::cosine}, 51) == doctest::Approx(0.5));
  CHECK(at({.schedule = Schedule::step, .factor = 0.1, .span = 30}, 30) == 1);
  CHECK(at({.schedule = Schedule::step, .factor = 0.1, .span = 30}, 31) == doctest::Approx(0.1));
  CHECK(at({.schedule = Schedule::step, .factor = 0.1, .span = 30}, 91) == doctest::Approx(1e-3));
  CHECK(at({.schedule = Schedule::exponential, .factor = 0.25, .span = 10}, 6) == doctest::Approx(0.5));
  CHECK(at({.warmup = 4}, 1) == 0.25);
  CHECK(at({.warmup = 4}, 4) == 1);
  CHECK(at({.schedule = Schedule::linear, .warmup = 20}, 61) == doctest::Approx(0.5));
  RateFactor plateau({.schedule = Schedule::plateau, .factor = 0.1, .span = 2}, 100);
  for (bool gained : {true, false, true, false, false, false, true, false, false}) plateau.validated(gained);
  CHECK(plateau(10) == doctest::Approx(0.01));
}

TEST_CASE("losses are PyTorch's where classes are weighed and targets smoothed") {
  // F.cross_entropy(x, y, weight=w, label_smoothing=0.1) and its gradient, in double.
  const double x[3][3] = {{0.5, -1, 2}, {1.5, 0.25, -0.75}, {-0.3, 0.8, 0.1}};
  const double dx[3][3] = {{0.05398568626890113, -0.004740253354215293, -0.04924543291468585},
                           {-0.014283592134614508, 0.013783834835195458, 0.0004997572994190263},
                           {0.08895697476047, -0.21718440761399596, 0.12822743285352592}};
  std::vector<Id> nodes{0, 1, 2}, labels{2, 0, 1};
  Tape<double> tape;
  Parameter<double> p{.value = Matrix<double>(3, 3)};
  for (int i = 0; i < 3; ++i) std::copy_n(x[i], 3, p.value.row(i));
  auto loss = cross_entropy<double>(tape.parameter(p), nodes, labels, {{0.5, 2, 1.25}, 0.1});
  tape.forward();
  tape.backward(loss);
  CHECK(loss.value()(0, 0) == doctest::Approx(0.561092139459862).epsilon(1e-12));
  for (int i = 0; i < 3; ++i)
    for (int c = 0; c < 3; ++c) CHECK(p.grad(i, c) == doctest::Approx(dx[i][c]).epsilon(1e-10));
  // F.binary_cross_entropy_with_logits on smoothed targets, divided by the weights' sum.
  Tape<double> second;
  Parameter<double> q{.value = Matrix<double>(3, 1)};
  q.value(0, 0) = 0.5, q.value(1, 0) = -1.25, q.value(2, 0) = 2;
  std::vector<Id> two{1, 1, 0};
  auto binary = binary_cross_entropy<double>(second.parameter(q), nodes, two, {{0.5, 2}, 0.1});
  second.forward();
  CHECK(binary.value()(0, 0) == doctest::Approx(1.0867724747938767).epsilon(1e-12));
}

TEST_CASE("metrics count what their definitions say") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (Offset width : {1, 2, 4}) {
    CAPTURE(width);
    Matrix<float> logits(60, width);
    for (float& x : logits)  // many equals, but for softmax, which rounds
      x = static_cast<float>(width == 4 ? random.normal() : static_cast<double>(random.below(4)));
    const Id classes = std::max<Id>(2, static_cast<Id>(width));
    std::vector<Id> labels, nodes;
    for (Id i = 0; i < 60; ++i) {
      labels.push_back(static_cast<Id>(random.below(classes)));
      if (i % 3 != 0 || i < 2 * classes) nodes.push_back(i), labels[i] = i < 2 * classes ? i % classes : labels[i];
    }
    double area = 0, f1 = 0, right = 0;
    int areas = 0, scores = 0;
    for (Id c = 0; c < classes; ++c) {
      auto score = [&](Id i) {
        const double sign = width == 1 && c == 0 ? -1 : 1;
        double total = 0;
        for (Offset k = 0; k < width; ++k) total += std::exp(static_cast<double>(logits(i, k)));
        return width == 1 ? sign * logits(i, 0) : std::exp(static_cast<double>(logits(i, c))) / total;
      };
      double pairs = 0, won = 0, tp = 0, fp = 0, fn = 0;
      for (Id i : nodes) {
        const bool guess = predicted(logits, i) == c, member = labels[i] == c;
        tp += guess && member, fp += guess && !member, fn += !guess && member;
        right += guess && member;
        if (!member) continue;
        for (Id j : nodes)
          if (labels[j] != c) ++pairs, won += std::abs(score(i) - score(j)) < 1e-9 ? 0.5 : score(i) > score(j);
      }
      if (pairs > 0) area += won / pairs, ++areas;
      if (tp + fp + fn > 0) f1 += 2 * tp / (2 * tp + fp + fn), ++scores;
    }
    CHECK(evaluate(logits, labels, nodes, Metric::roc_auc).metric == doctest::Approx(100 * area / areas));
    CHECK(evaluate(logits, labels, nodes, Metric::f1).metric == doctest::Approx(100 * f1 / scores));
    CHECK(evaluate(logits, labels, nodes).metric == doctest::Approx(100 * right / nodes.size()));
    std::vector<Id> same(60, 1);
    CHECK_THROWS_AS(evaluate(logits, same, nodes, Metric::roc_auc), Error);
  }
}

TEST_CASE("evaluation counts and measures") {
  Matrix<float> logits(3, 2);
  logits(0, 0) = 1, logits(1, 1) = 2, logits(2, 0) = 3;
  std::vector<Id> labels{0, 0, 0}, nodes{0, 1, 2};
  Evaluation e = evaluate(logits, labels, nodes);
  CHECK(e.metric == doctest::Approx(200.0 / 3));
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
  for (Stop stop : {Stop::metric, Stop::loss, Stop::both}) {
    std::vector<Epoch> seen;
    TrainOptions o{.epochs = 400, .patience = 10, .stop = stop, .rate = 0.05, .seed = 5};
    o.on_epoch = [&](const Epoch& e) { seen.push_back(e); };
    Report r = train(gcn({.classes = data.classes, .hidden = 16, .heads = 1}), data, o);
    const Run& run = r.runs[0];
    CHECK(run.epochs < 400);
    CHECK(static_cast<int>(seen.size()) == run.epochs);
    CHECK(run.valid == doctest::Approx(seen[run.best_epoch - 1].valid));
    CHECK(seen[run.best_epoch - 1].best);
    for (int e = run.best_epoch; e < run.epochs; ++e) CHECK(!seen[e].best);
    for (const Epoch& e : seen) {
      if (stop == Stop::loss) CHECK(seen[run.best_epoch - 1].valid_loss <= e.valid_loss);
      if (stop == Stop::metric) CHECK(seen[run.best_epoch - 1].valid >= e.valid);
    }
    // The logits kept are those of the best epoch.
    const Split& split = data.splits[0];
    CHECK(evaluate(run.logits, data.labels, split.valid).metric == doctest::Approx(run.valid));
    CHECK(evaluate(run.logits, data.labels, split.test).metric == doctest::Approx(run.test));
  }
}

TEST_CASE("on the generated graph attention beats a perceptron by 30 points") {
  Dataset data = sbm();
  auto mean = [&](const char* name) {
    Recipe r = recipe(name, "sbm");
    r.train.epochs = 120;
    r.train.runs = 2;
    return train(make_model(r, data.classes), data, r.train).test_mean;
  };
  double attention = mean("gat"), perceptron = mean("mlp");
  CHECK(attention >= 86);
  CHECK(attention >= perceptron + 30);
}

TEST_CASE("models with filters learn") {
  Dataset data = sbm();
  for (const char* score : {"gat topk(5)", "dot topk(8)", "pearson topk(6) above(0)"}) {
    CAPTURE(score);
    Recipe r = recipe("gat", "sbm");
    r.options.score = score;
    std::vector<double> loss;
    r.train.epochs = 60, r.train.runs = 1;
    r.train.on_epoch = [&](const Epoch& e) { loss.push_back(e.train_loss); };
    const double accuracy = train(make_model(r, data.classes), data, r.train).test_mean;
    CHECK(loss.back() < 0.7 * loss.front());
    CHECK(accuracy >= 75);
  }
}

TEST_CASE("options out of range and datasets without a split are refused") {
  Dataset data = karate();
  CHECK(message_of(data, {.epochs = 2}) == "");
  CHECK(message_of(data, {.epochs = 0}) == "epochs must be at least 1");
  CHECK(message_of(data, {.runs = 0}) == "runs must be at least 1");
  CHECK(message_of(data, {.patience = -1}) == "patience must be at least 0");
  CHECK(message_of(data, {.rate = 0}) == "the learning rate must be above 0");
  CHECK(message_of(data, {.rate = NAN}) == "the learning rate must be above 0");
  CHECK(message_of(data, {.class_weights = "1,2,3"}) == "3 class weights for 2 classes");
  CHECK(message_of(data, {.class_weights = "1,zero"}).find("not '1,zero'") != std::string::npos);
  CHECK(message_of(data, {.class_weights = "1,"}).find("not '1,'") != std::string::npos);
  CHECK(message_of(data, {.epochs = 2, .class_weights = "balanced"}) == "");
  CHECK(message_of(data, {.loss = Loss::binary_cross_entropy}).find("the model gives 2 logits") == 0);
  CHECK(message_of(data, {.split = 5}).find("split 5 of 'karate'") == 0);
  CHECK(message_of(data, {.epochs = 300, .rate = 1e30}).find("training diverged") == 0);
  Dataset alone = data;
  alone.classes = 1;
  CHECK(message_of(alone, {}) == "dataset 'karate': training needs at least 2 classes, not 1");
  data.splits.clear();
  CHECK(message_of(data, {}).find("no split") != std::string::npos);
}

TEST_SUITE_END();
