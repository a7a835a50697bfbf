// Training: the optimiser against its formula, stopping, the same bits on any number of threads, and the accuracy that
// attention owes over a perceptron.
#include <oneapi/tbb/global_control.h>

#include "datasets/karate.h"
#include "datasets/sbm.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "train/recipes.h"
#include "train/sweep.h"

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
  int epoch = 0;
  for (bool gained : {true, false, true, false, false, false, true, false, false}) plateau.validated(++epoch, gained);
  CHECK(plateau(10) == doctest::Approx(0.01));
  RateFactor warm({.schedule = Schedule::plateau, .warmup = 5, .factor = 0.1, .span = 2}, 100);
  for (int e = 1; e <= 6; ++e) warm.validated(e, false);  // of which 5 do not count
  CHECK(warm(7) == 1);
}

TEST_CASE("probabilities add up to 1, however large the logits") {
  for (float large : {0.0f, 3.0f, 1e18f}) {
    Matrix<float> logits(1, 4);
    for (float& x : logits) x = large;
    logits(0, 2) += 1;
    double sum = 0;
    for (double p : probabilities(logits, 0, Loss::cross_entropy)) sum += p;
    CHECK(sum == doctest::Approx(1));
  }
}

TEST_CASE("nodes without a feature train all the same") {
  Dataset data = karate();
  data.features = {.dense = Matrix<float>(34, 0), .sparse = nullptr};
  for (const char* name : {"gat", "gcn", "sage", "mlp", "attention", "transformer"}) {
    CAPTURE(std::string(name));
    CHECK(std::isfinite(
        train(model_named(name).make({.classes = data.classes}), data, {.epochs = 3}).runs[0].train_loss));
  }
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

TEST_CASE("a mask under which nobody sees anybody is refused, alone or of some heads") {
  const Dataset data = small_blocks(1);
  auto wrong = [&](const char* mask, int heads) {
    return message([&] {
      train(attend({.out = data.classes, .heads = heads, .head_masks = head_masks_named(mask), .concat = false}), data,
            {.epochs = 1});
    });
  };
  CHECK(wrong("self - self", 1) == "under the mask 'self - self' no node of this graph sees any other, nor itself");
  CHECK(wrong("0: self; 1: local - (local | self)", 2) ==
        "under the mask 'local - (local | self)' no node of this graph sees any other, nor itself");
  CHECK(wrong("all - (all | self)", 1).find("no node") != std::string::npos);
  CHECK(wrong("0: self; 1: local", 2) == "");
}

TEST_CASE("keys that change are not judged by those of the first step") {
  std::vector<Edge> path;  // of the last nodes, which are not among the first keys
  for (Id i = 10; i + 1 < 20; ++i) path.push_back({i, i + 1}), path.push_back({i + 1, i});
  Dataset data{.name = "path", .labels = {}, .splits = {}};
  data.graph = graph_from_edges(20, path);
  data.features.dense = Matrix<float>(20, 20);
  for (Id i = 0; i < 20; ++i) data.features.dense(i, i) = 1, data.labels.push_back(i % 2);
  data.classes = 2;
  data.splits = {{.train = {10, 11, 12, 13}, .valid = {14, 15}, .test = {16, 17}}};
  auto said = [&](const char* keys, std::uint64_t seed) {
    return message([&] {
      train(attend({.out = 2, .mask = local(), .keys = keys_named(keys)}), data, {.epochs = 2, .seed = seed});
    });
  };
  CHECK(said("every(20)", 1).find("among the keys that were chosen") != std::string::npos);
  CHECK(said("learned(0.5)", 1) == "");
  for (std::uint64_t seed = 1; seed <= 10; ++seed) CHECK(said("random(0.05, step)", seed) == "");
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

TEST_CASE("a sweep's file: axes, designs, datasets, and what each says over which") {
  const Sweep s = parse_sweep(R"toml(
runs = 3
heads = 4
baseline = "dot, local"
mask = ["local", "local(2)"]
[dataset.karate]
epochs = 7
seed = 11
[dataset.sbm]
runs = 2
[design.dot]
score = "dot"
[design.free]
mask = "all"
temperature = [1, 2.5]
epochs = 9
dataset = "sbm"
[design.perceptron]
model = "mlp"
seed = [4, 8, 6]
runs = 3
)toml",
                              "s.toml");
  CHECK(s.designs == std::vector<std::string>{"dot, local", "dot, local(2)", "free, 1", "free, 2.5", "perceptron"});
  CHECK(s.datasets == std::vector<std::string>{"karate", "sbm"});
  CHECK(s.baseline == "dot, local");
  REQUIRE(s.trials.size() == 8);
  auto at = [&](const std::string& design, const std::string& dataset) {
    for (const Trial& t : s.trials)
      if (t.design == design && t.dataset == dataset) return t;
    FAIL("no such trial");
    return s.trials[0];
  };
  using Seeds = std::vector<std::uint64_t>;
  CHECK(at("dot, local", "karate").seeds == Seeds{11, 12, 13});
  CHECK(at("dot, local(2)", "sbm").seeds == Seeds{1, 2});
  CHECK(at("perceptron", "sbm").seeds == Seeds{4, 8, 6});
  CHECK(at("dot, local(2)", "karate").recipe.options.mask == "local(2)");
  CHECK(at("dot, local", "karate").recipe.options.heads == 4);
  CHECK(at("dot, local", "karate").recipe.train.epochs == 7);
  CHECK(at("dot, local", "sbm").recipe.train.epochs == 200);  // the recipe's
  CHECK(at("free, 2.5", "sbm").recipe.train.epochs == 9);
  CHECK(at("free, 2.5", "sbm").recipe.options.temperature == 2.5);
  CHECK(at("free, 1", "sbm").recipe.options.mask == "all");
  CHECK(at("perceptron", "karate").recipe.model == "mlp");  // without axes and heads of attention
  CHECK(at("free, 1", "sbm").place == "s.toml, line 13");

  const Sweep grid = parse_sweep("dataset = [\"karate\", \"sbm\"]\nscore = [\"dot\", \"gat\"]\nheads = [2, 4]\n", "g");
  CHECK(grid.designs == std::vector<std::string>{"dot, heads=2", "dot, heads=4", "gat, heads=2", "gat, heads=4"});
  CHECK(grid.trials.size() == 8);
  CHECK(parse_sweep("", "g").designs == std::vector<std::string>{"gat"});
}

TEST_CASE("a sweep's file: what is wrong is said with its line, and no large grid is ever made") {
  auto wrong = [](const std::string& text) { return message([&] { parse_sweep(text, "s.toml"); }); };
  CHECK(wrong("hiden = 8") == "s.toml, line 1: unknown option 'hiden'; did you mean hidden?");
  CHECK(wrong("\nhidden = [8, 0]") == "s.toml, line 2: hidden: must be a whole number, 1 to 65536, not '0'");
  CHECK(has(wrong("score = [\"dot\",\n \"dto\"]"), "s.toml, line 2: score: unknown score 'dto'; did you mean dot"));
  CHECK(wrong("heads = [2, 4, 2]") == "s.toml, line 1: heads: '2' is named twice");
  CHECK(wrong("heads = []") == "s.toml, line 1: heads: the list is empty");
  CHECK(has(wrong("heads = [[2]]"), "what is in a list must be a number"));
  CHECK(has(wrong("heads = {a = 2}"), "heads: must be a value or a list of values"));
  CHECK(has(wrong("heads = 1979-05-27"), "heads must be a number"));
  CHECK(wrong("runs = [1, 2]") == "s.toml, line 1: runs: must be a single value here");
  CHECK(has(wrong("threads = 2"), "s.toml, line 1: threads: is said for all runs"));
  CHECK(has(wrong("seed = [1, 2]\nruns = 3"), "s.toml, line 2: runs: there is a list of 2 seeds"));
  CHECK(has(wrong("dataset = [\"karate\", \"coar\"]"), "s.toml, line 1: dataset: unknown dataset 'coar'"));
  CHECK(has(wrong("[dataset.coar]"), "s.toml, line 1: unknown dataset 'coar'; did you mean cora?"));
  CHECK(has(wrong("[dataset.karate]\nheads = [1, 2]"), "s.toml, line 2: heads: must be a single value here"));
  CHECK(has(wrong("heads = [1, 2]\n[dataset.karate]\nheads = 1"), "s.toml, line 3: heads: is a list at the top"));
  CHECK(has(wrong("design = 3"), "s.toml, line 1: design: must be a table"));
  CHECK(has(wrong("design.a = 3"), "s.toml, line 1: a: must be a table"));
  CHECK(has(wrong("[design.\"\"]"), "a name has 1 to 200 bytes"));
  CHECK(has(wrong("[design.\"a\\u0007\"]"), "no unprintable characters"));
  CHECK(wrong("[design.a]\nmodel = \"mlp\"\nscore = \"dot\"") ==
        "s.toml, line 3: score: the model 'mlp' has no attention; 'score' does not fit it");
  CHECK(
      has(wrong("[design.a]\nheads = [1, 2]\n[design.\"a, heads=1\"]"), "line 3: two designs are called 'a, heads=1'"));
  CHECK(has(wrong("baseline = \"bot\"\n[design.dot]"), "s.toml, line 1: baseline: unknown design 'bot'"));
  CHECK(has(wrong("heads = "), "s.toml, line 1: "));
  CHECK(has(wrong("a" + std::string(20000, '.') + "b = 1"), "has more than 10000 dots"));
  CHECK_FALSE(wrong(std::string(2000, '[')).empty());
  // 1000 x 1000 combinations, 1000 runs each; and more than 64 bits hold.
  std::string list;
  for (int i = 1; i <= 1000; ++i) list += std::to_string(i) + ", ";
  CHECK(wrong("heads = [" + list + "]\nhidden = [" + list + "]\nruns = 1000") ==
        "s.toml: 1000000000 runs; a sweep has at most 100000");
  std::string many;
  for (const char* name : {"heads", "hidden", "epochs", "patience", "layers", "warmup", "clip", "schedule-span"})
    many += std::string(name) + " = [" + list + "]\n";
  CHECK(wrong(many) == "s.toml: more than 18446744073709551615 runs; a sweep has at most 100000");
}

TEST_CASE("a sweep is prepared: what only the data tells is wrong, too; splits that overlap; what a run is told") {
  auto prepared = [](const std::string& text, const Dataset& data) {
    Sweep s = parse_sweep(text, "s.toml");
    prepare(s, [&](const Recipe&) { return data; });
    return s;
  };
  auto wrong = [&](const std::string& text) { return message([&] { prepared(text, karate()); }); };
  const std::string on = "dataset = \"karate\"\n";
  CHECK(wrong(on + "[design.a]\n[design.b]\nmetric = \"f1\"") ==
        "s.toml: on karate 'a' is judged by accuracy, 'b' by f1; a dataset has one metric");
  CHECK(has(wrong(on + "[design.a]\nmask = \"before\""), "s.toml, line 2: a on karate: before needs a time"));
  CHECK(has(wrong(on + "[design.a]\nmask = \"0-3: local\""), "there are masks for 4 heads, not for 8"));
  CHECK(has(wrong(on + "[design.a]\nheads = 60000"), "wider than 65536 channels"));
  CHECK(has(wrong(on + "split = 9"), "split 9"));
  CHECK(has(wrong(on + "class-weights = \"1,2,3\""), "3 class weights for 2 classes"));

  Dataset data = karate();
  const Split whole = data.splits[0];
  CHECK(prepared(on + "runs = 4", data).trials[0].test_share == 0);  // one split
  data.splits = {whole, whole, whole};
  const double share = static_cast<double>(whole.test.size()) / static_cast<double>(whole.train.size());
  Sweep three = prepared(on + "runs = 4\nseed = 5\ntemperature = \"learned:2\"", data);
  CHECK(three.trials[0].test_share == doctest::Approx(share));
  CHECK(prepared(on + "runs = 4\nsplit = 1", data).trials[0].test_share == 0);
  CHECK(prepared(on + "runs = 1", data).trials[0].test_share == 0);
  data.splits = {{{0}, {1}, {2}}, {{3}, {4}, {5}}};
  CHECK(prepared(on + "runs = 2", data).trials[0].test_share == 0);  // nothing in common

  std::string told;
  for (const Setting& x : settings_of(three.trials[0], 3)) told += x.name + "=" + x.value + " ";
  CHECK(told == "dataset=karate temperature=learned:2 seed=8 split=0 data-seed=5 runs=1 ");

  const std::string then = identity(three);
  CHECK(difference(then, then) == "");
  CHECK(has(difference(then, identity(prepared(on + "runs = 4\nseed = 5\ntemperature = \"learned:3\"", data))),
            "made with 'temperature = \"learned:2.0\"', not with 'temperature = \"learned:3.0\"', in "
            "[design.\"gat\".\"karate\"]"));
  CHECK(has(difference(then, identity(prepared(on + "runs = 4\nseed = 5\ntemperature = \"learned:2\"", data))),
            "made with 'data = "));
}

TEST_CASE("statistics of a sweep: against scipy and statsmodels") {
  const std::vector<double> a{81.2, 80.5, 82.9, 81.7, 79.8, 83.1, 80.0, 82.4, 81.1, 80.9};
  const std::vector<double> b{80.1, 80.6, 81.0, 81.2, 79.9, 81.5, 79.1, 81.9, 80.7, 80.2};
  std::vector<double> d;
  for (std::size_t i = 0; i < a.size(); ++i) d.push_back(a[i] - b[i]);
  struct Known {
    std::size_t n;
    double share, t, p;
  };
  for (const Known& k : {Known{10, 0, 3.5621595181215167, 0.006098624561953383},
                         {10, 0.25, 1.9040543534066396, 0.0893071463664206},
                         {5, 0, 1.7296699805911635, 0.1587438247699958},
                         {5, 0.25, 1.1531133203941089, 0.31308039554611405},
                         {3, 0, 1.6632640705615838, 0.23815994063553397},
                         {3, 0.25, 1.2573094558099824, 0.3355680499306425},
                         {2, 0, 0.8333333333333433, 0.5577158767526053},
                         {2, 0.25, 0.6804138174397797, 0.6196454213072927}}) {
    const PairedTest mine = paired_t(std::span(d).first(k.n), k.share);
    CHECK(mine.t == doctest::Approx(k.t).epsilon(1e-10));
    CHECK(mine.p == doctest::Approx(k.p).epsilon(1e-10));
    CHECK(mine.pairs == static_cast<int>(k.n));
  }
  CHECK(std::isnan(paired_t({}).p));
  CHECK(std::isnan(paired_t(std::span(d).first(1)).p));
  CHECK(paired_t(std::vector<double>{0, 0, 0}).p == 1);
  CHECK(std::isnan(paired_t(std::vector<double>{0.1, 0.1, 0.1}).p));
  CHECK(spread(a).deviation == doctest::Approx(1.151038178727748).epsilon(1e-12));
  auto same = [](const std::vector<double>& x, const std::vector<double>& y) {
    REQUIRE(x.size() == y.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      CHECK((std::isnan(x[i]) ? std::isnan(y[i]) : std::abs(x[i] - y[i]) < 1e-12));
  };
  same(holm({0.01, 0.04, 0.03, 0.005, 0.5, 0.04}), {0.05, 0.12, 0.12, 0.03, 0.5, 0.12});
  same(holm({0.3, NAN, 0.9, 0.6}), {0.9, NAN, 1, 1});
  same(holm({}), {});
}

TEST_CASE("rows of a sweep: pairs by seed and split, one difference a split, failures, the best") {
  Sweep s = parse_sweep(
      "dataset = \"karate\"\nruns = 4\nbaseline = \"gat\"\n[design.gat]\n[design.gcn]\nmodel = \"gcn\"\n"
      "[design.mlp]\nmodel = \"mlp\"\nseed = 2",
      "s.toml");
  for (Trial& t : s.trials) t.splits = 2, t.test_share = 0.5, t.data = "d";
  Outcomes all = none_yet(s);
  auto set = [&](std::size_t trial, std::vector<double> tests) {
    for (std::size_t r = 0; r < 4; ++r) all[trial][r] = Outcome{.test = tests[r], .peak_mb = tests[r] / 2};
  };
  set(0, {70, 71, 72, 75}), set(1, {73, 72, 77, 75}), set(2, {10, 20, 30, 40});
  auto rows = rows_of(s, all);
  CHECK(rows[1].against.difference == doctest::Approx(((73 - 70 + 77 - 72) / 2.0 + (72 - 71 + 75 - 75) / 2.0) / 2));
  CHECK(rows[1].against.pairs == 2);
  CHECK(rows[1].against.p == doctest::Approx(paired_t(std::vector<double>{4, 0.5}, 0.5).p));
  CHECK(rows[1].p_holm == rows[1].against.p);  // the only one with a p
  CHECK(rows[0].against.pairs == 0);
  CHECK(rows[2].against.pairs == 0);  // other seeds
  CHECK((rows[1].best && !rows[0].best && !rows[2].best));
  CHECK(rows[1].peak_mb == 38.5);
  CHECK(rows[2].test.deviation == doctest::Approx(12.909944487358056));
  all[1][0]->error = "no", all[1][3].reset();
  rows = rows_of(s, all);
  CHECK((rows[1].failed == 1 && rows[1].error == "no" && rows[1].test.count == 2));
  CHECK(rows[1].against.difference == doctest::Approx((77 - 72 + 72 - 71) / 2.0));
  for (Trial& t : s.trials) t.splits = 1, t.test_share = 0;
  rows = rows_of(s, all);
  CHECK(rows[1].against.p == doctest::Approx(paired_t(std::vector<double>{1, 5}).p));
  CHECK(rows[2].against.pairs == 3);  // seeds 2, 3, 4, wherever they stand
  CHECK(rows[2].against.difference == doctest::Approx((10 - 71 + 20 - 72 + 30 - 75) / 3.0));
}

TEST_CASE("a sweep's log comes back, without a line that was cut off; what is not of the sweep is refused") {
  const Sweep s = parse_sweep("dataset = \"karate\"\nruns = 2\n[design.\"a \\\"b\\\"\"]\n[design.c]", "s.toml");
  Outcome good{
      .test = 100.0 / 3, .valid = 0.1, .epochs = 7, .epoch_ms = 1.5, .seconds = 2, .peak_mb = 9, .parameters = 5};
  const std::string text = to_line(s, {0, 1}, good) + to_line(s, {1, 0}, {.error = "line\nbreak"});
  CHECK(std::count(text.begin(), text.end(), '\n') == 2);
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    const Log log = read_log(text.substr(0, cut), "log", s);
    const std::size_t whole = text.substr(0, cut).rfind('\n');
    CHECK(log.bytes == (whole == std::string::npos ? 0 : whole + 1));
    CHECK(log.outcomes[0][1].has_value() == (log.bytes > 0));
    CHECK(log.outcomes[1][0].has_value() == (log.bytes == text.size()));
  }
  const Log log = read_log(text + to_line(s, {1, 0}, good), "log", s);
  CHECK(log.outcomes[0][1]->test == good.test);
  CHECK(log.outcomes[0][1]->parameters == 5);
  CHECK(log.outcomes[1][0]->error.empty());
  auto wrong = [&](const std::string& line) { return message([&] { read_log(text + line + "\n", "log", s); }); };
  CHECK(wrong("{") == "log, line 3: is no JSON object");
  CHECK(wrong("{\"design\": 3}") == "log, line 3: lacks a proper 'design'");
  CHECK(has(wrong(R"({"design":"x","dataset":"karate","run":0,"seed":1})"), "has no design 'x' on karate"));
  CHECK(has(wrong(R"({"design":"c","dataset":"karate","run":2,"seed":3})"), "has no such run"));
  CHECK(has(wrong(R"({"design":"c","dataset":"karate","run":1,"seed":1})"), "has no such run"));
  CHECK(has(wrong(R"({"design":"c","dataset":"karate","run":-1,"seed":1})"), "a proper 'run'"));
  CHECK(has(wrong(R"({"design":"c","dataset":"karate","run":1,"seed":2,"test":"x"})"), "a proper 'test'"));
}

TEST_CASE("a sweep's runs start as memory allows: the unknown alone, the starved once more alone") {
  const Sweep s = parse_sweep(
      "dataset = [\"karate\", \"sbm\"]\nruns = 2\n[design.a]\n[design.b]\n[design.big]\ndataset = \"sbm\"", "s.toml");
  Queue queue(s, none_yet(s), 3);  // trials: a karate, a sbm, b karate, b sbm, big sbm
  std::vector<Queue::Running> running;
  auto start = [&](double available) {
    const auto id = queue.next(available, running);
    if (id) running.push_back({*id, 0});
    return id ? std::to_string(id->trial) + "." + std::to_string(id->run) : "-";
  };
  auto end = [&](double peak, const std::string& error = "") {
    queue.ended(running[0].id, {.seconds = 10, .peak_mb = peak, .error = error});
    running.erase(running.begin());
  };
  CHECK(queue.seconds_left(running) < 0);
  CHECK(start(50) == "0.0");
  CHECK(start(1e9) == "-");  // until it is known how much that takes
  end(100);
  CHECK(queue.seconds_left(running) == doctest::Approx(9 * 10 / 3.0));
  CHECK(start(1e9) == "1.0");
  end(200);
  CHECK(start(0) == "2.0");    // nothing runs: it may
  CHECK(start(449) == "0.1");  // 1.5 x 100 are not taken yet; b on sbm wants 1.5 x 200, and this 1.1 x 100
  CHECK(start(561) == "3.0");
  CHECK(start(1e9) == "-");  // three at a time
  end(100), end(100);
  running[0].resident_mb = 900;  // has taken all that is expected, and more
  CHECK(start(111) == "2.1");
  CHECK(start(219) == "-");  // 110 are not taken yet
  running[1].resident_mb = 100;
  CHECK(start(209) == "-");
  CHECK(start(231) == "1.1");
  const RunId starved = running[0].id;
  running.erase(running.begin()), queue.again(starved);
  CHECK(queue.tried_alone(starved));
  end(100), end(200);
  CHECK(start(1e9) == "4.0");
  CHECK(start(1e9) == "3.1");
  CHECK(start(1e9) == "4.1");
  end(200), end(200);
  CHECK(start(1e9) == "-");  // what is tried again waits until nothing runs
  end(0, "failed");
  CHECK(start(0) == "3.0");
  CHECK(start(1e9) == "-");
  CHECK(queue.waiting() == 0);
}

TEST_SUITE_END();
