// Training on a device against training on the CPU: every operation of the tape, forward and backward, the optimiser,
// and whole trainings. The CPU stands in for a device always (emulated_ops.h); where there is one with CUDA, it has to
// do the same.
#include <numeric>

#include "datasets/sbm.h"
#include "kernels/device.h"
#include "layers/models.h"
#include "tests/emulated_ops.h"
#include "tests/scratch.h"
#include "tests/support.h"
#include "train/checkpoint.h"
#include "train/device_epochs.h"
#include "train/train.h"

using namespace heed;
using namespace heed::test;

namespace {

// visit(name, device) for every device there is. `kernels`: one, too, that runs attention's kernels, slowly.
void on_each_device(const std::function<void(const std::string&, DeviceOps&)>& visit, bool kernels = false) {
  {
    EmulatedOps emulated;
    visit("emulated", emulated);
  }
  if (kernels) {
    EmulatedKernels emulated;
    visit("emulated kernels", emulated);
  }
  if (!device_available()) {
    static bool said = false;
    if (!said) MESSAGE("no device: skipped");
    said = true;
    return;
  }
  const auto device = open_device(Device::cuda);
  visit("cuda", *device);
}

struct Op {
  std::string name;
  std::vector<std::array<Offset, 2>> shapes;  // of the parameters
  std::function<Var<float>(Tape<float>&, const std::vector<Var<float>>&)> build;
};

constexpr Id kRows = 700;  // enough for sums in several parts

struct World {  // what operations read besides
  Sparse sparse;
  std::shared_ptr<const Pattern> pattern, hub, mutual;  // hub: row 3 and column 5 are full; mutual: symmetric
  Selection some;
  std::vector<Id> order;
  std::vector<float> weights, scale;

  explicit World(Random& random)
      : pattern(Pattern::listed(std::make_shared<Csr>(random_pattern(kRows, kRows, 12, random)))),
        hub(Pattern::listed(std::make_shared<Csr>(hubs(kRows, random)))),
        mutual(Pattern::listed(std::make_shared<Csr>(random_symmetric(kRows, 2000, random)))),
        some({}, kRows),
        order(kRows) {
    auto csr = std::make_shared<Csr>(random_pattern(kRows, 40, 30, random));
    std::vector<float> values;
    for (std::size_t t = 0; t < csr->ids.size(); ++t) values.push_back(static_cast<float>(random.normal()));
    sparse = Sparse(csr, values);
    std::vector<Id> ids;
    for (int t = 0; t < 500; ++t) ids.push_back(static_cast<Id>(random.below(kRows)));
    some = Selection(ids, kRows);
    std::iota(order.begin(), order.end(), 0);
    for (Id i = kRows - 1; i > 0; --i) std::swap(order[i], order[random.below(static_cast<std::uint64_t>(i) + 1)]);
    for (Offset e = 0; e < pattern->edges(); ++e) weights.push_back(static_cast<float>(random.normal()));
    for (Id i = 0; i < kRows; ++i) scale.push_back(static_cast<float>(random.normal()));
  }
};

std::vector<Op> operations(const World& w, std::deque<Parameter<float>>& kept) {
  using Vars = const std::vector<Var<float>>&;
  using Maps = std::vector<LinearMap<float>>;
  auto x = [](Offset cols) { return std::array<Offset, 2>{kRows, cols}; };
  std::vector<Op> out;
  auto enter = [&](std::string name, std::vector<std::array<Offset, 2>> shapes, auto build) {
    out.push_back({std::move(name), std::move(shapes), build});
  };
  enter("linear, narrow", {x(30), {30, 7}}, [](auto&, Vars v) { return linear(v[0], v[1]); });
  enter("linear, wide", {x(70), {70, 130}}, [](auto&, Vars v) { return linear(v[0], v[1]); });
  enter("linear with bias and scale", {x(9), {9, 20}, {1, 20}, {9, 5}}, [](auto&, Vars v) {
    return linear<float>(v[0], Maps{{v[1], v[2], 0.7}, {v[3], {}, 1}});
  });
  enter("linear of five maps", {x(9), {9, 20}, {1, 20}, {9, 5}, {9, 3}, {9, 2}, {9, 40}, {1, 40}}, [](auto&, Vars v) {
    return linear<float>(v[0], Maps{{v[1], v[2], 0.7}, {v[3], {}, 1}, {v[4], {}, 2}, {v[5], {}, 1}, {v[6], v[7], 3}});
  });
  enter("linears", {x(9), {9, 20}, {1, 20}, {9, 5}, {1, 5}}, [](auto&, Vars v) {
    auto both = linears<float>(v[0], {{{v[1], v[2], 1}}, {{v[3], v[4], 2}}});
    return concat<float>({both[1], both[0]});
  });
  enter("sparse linear", {{40, 70}}, [&](auto& tape, Vars v) { return linear(tape.constant(w.sparse), v[0]); });
  enter("sparse linear, of 66 columns", {{40, 64}, {40, 2}}, [&](auto& tape, Vars v) {
    auto both = linears<float>(tape.constant(w.sparse), {{{v[0], {}, 1}}, {{v[1], {}, 1}}});
    return concat<float>({both[0], both[1]});
  });
  enter("sparse linear with bias and scale", {{40, 7}, {1, 7}, {40, 3}}, [&](auto& tape, Vars v) {
    return linear<float>(dropout(tape.constant(w.sparse), 0.4), Maps{{v[0], v[1], 0.3}, {v[2], {}, 1}});
  });
  enter("permuted sparse linear", {{40, 7}},
        [&](auto& tape, Vars v) { return linear(permute(tape.constant(w.sparse), w.order), v[0]); });
  enter("linear of grown sparse", {{43, 7}},
        [&](auto& tape, Vars v) { return linear(grow(tape.constant(w.sparse), 3), v[0]); });
  enter("bias", {x(7), {1, 7}}, [](auto&, Vars v) { return add_bias(v[0], v[1]); });
  enter("add", {x(7), x(7)}, [](auto&, Vars v) { return add(v[0], v[1]); });
  enter("scale", {x(7)}, [](auto&, Vars v) { return scale(v[0], -1.5); });
  enter("concat", {x(7), x(4)}, [](auto&, Vars v) { return concat<float>({v[0], v[1], v[0]}); });
  enter("columns", {x(9)}, [](auto&, Vars v) { return columns<float>({scale(v[0], 2), 3, 5}); });
  enter("permute", {x(7)}, [&](auto&, Vars v) { return permute(v[0], w.order); });
  enter("mean heads", {x(12)}, [](auto&, Vars v) { return mean_heads(v[0], 3); });
  enter("contract", {x(24), {1, 24}, {1, 24}}, [](auto&, Vars v) {
    return contract<float>(v[0], std::vector<Var<float>>{v[1], v[2]}, 3);
  });
  enter("contract, of many", {x(6), {1, 6}, {1, 6}, {1, 6}, {1, 6}, {1, 6}},
        [](auto&, Vars v) { return contract<float>(v[0], std::vector<Var<float>>(v.begin() + 1, v.end()), 2); });
  enter("contract, to as many channels as before", {x(6), {1, 6}, {1, 6}}, [](auto&, Vars v) {
    return activate(contract<float>(v[0], std::vector<Var<float>>{v[1], v[2]}, 3), Activation::elu);
  });
  enter("unit", {x(12)}, [](auto&, Vars v) { return unit<float>({v[0], 2, 9}, 3); });
  enter("centre", {x(12)}, [](auto&, Vars v) { return centre<float>({v[0], 2, 9}, 3); });
  enter("centre and unit", {x(12)}, [](auto&, Vars v) { return centre_unit<float>({v[0], 2, 9}, 3); });
  enter("linear heads", {x(12), {3, 9}}, [](auto&, Vars v) { return linear_heads<float>({v[0], 2, 9}, v[1], 3); });
  enter("dropout", {x(7)}, [](auto&, Vars v) { return dropout(v[0], 0.3); });
  for (const std::string& f : activation_names())
    enter(f, {x(7)}, [f](auto&, Vars v) { return activate(v[0], activation_named(f)); });
  enter("layer norm", {x(40), {1, 40}, {1, 40}}, [](auto&, Vars v) { return layer_norm(v[0], v[1], v[2]); });
  enter("batch norm", {x(40), {1, 40}, {1, 40}}, [&kept](auto&, Vars v) {
    Parameter<float>* moments[2];
    for (auto& m : moments) m = &kept.emplace_back(), m->value.resize(1, 40), m->value.fill(1);
    return batch_norm(v[0], v[1], v[2], *moments[0], *moments[1]);
  });
  enter("propagate", {x(7)}, [&](auto&, Vars v) { return propagate<float>(v[0], w.pattern, {}, {}); });
  enter("propagate, weighed", {x(33)}, [&](auto&, Vars v) { return propagate(v[0], w.pattern, w.weights, w.scale); });
  enter("gather", {x(9)}, [&](auto&, Vars v) {
    return gather<float>({v[0], 1, 7}, [&]() -> const Selection& { return w.some; });
  });
  enter("scatter", {{500, 7}},
        [&](auto&, Vars v) { return scatter<float>(v[0], [&]() -> const Selection& { return w.some; }); });
  enter("gate", {x(9), x(1)}, [](auto&, Vars v) { return gate<float>({v[0], 1, 7}, v[1]); });
  enter("grow", {x(5)}, [](auto&, Vars v) { return grow(v[0], 3); });
  for (const char* name : {"gat", "dot", "gatv2"}) {
    const Score score = score_named(name);
    const Offset q = score.contracts ? 4 : 12;
    enter("attention, " + score.name, {x(q), x(q), x(12), {1, 12}}, [&, score](auto&, Vars v) {
      AttentionVars<float> in{.q = v[0], .k = v[1], .v = v[2]};
      if (score.reads_vector) in.a = v[3];
      return attention<float>(in, w.pattern, score, normaliser_named("softmax"), 4, 0.4);
    });
  }
  for (const auto& pattern : {w.pattern, w.hub})
    enter("attention, of one value", {x(12)}, [pattern](auto&, Vars v) {
      AttentionVars<float> in{.q = v[0], .k = v[0], .v = v[0]};
      return attention<float>(in, pattern, score_named("scaled_dot"), normaliser_named("softmax"), 4, 0);
    });
  enter("attention, of one value for keys and values", {x(12), x(12), {1, 12}}, [&](auto&, Vars v) {
    AttentionVars<float> in{.q = v[0], .k = v[1], .v = v[1], .a = v[2]};
    return attention<float>(in, w.hub, score_named("gatv2"), normaliser_named("softmax"), 4, 0);
  });
  for (auto [score, normaliser] : {std::pair{"gatv2 topk(4)", "softmax"}, {"gatv2", "entmax15"}})
    enter("attention, of one value for keys and values, any width", {x(12), x(12), {1, 12}},
          [&, score, normaliser](auto&, Vars v) {
            AttentionVars<float> in{.q = v[0], .k = v[1], .v = v[1], .a = v[2]};
            return attention<float>(in, w.hub, score_named(score), normaliser_named(normaliser), 4, 0);
          });
  // Both directions of a symmetric list are one list, and its edges have other numbers in each.
  enter("attention, edges of a symmetric list",
        {x(12), x(12), {1, 12}, {w.mutual->edges(), 12}, {w.mutual->edges(), 4}}, [&](auto&, Vars v) {
          AttentionVars<float> in{.q = v[0], .k = v[1], .v = v[1], .a = v[2], .e = v[3], .bias = v[4]};
          return attention<float>(in, w.mutual, score_named("gatv2"), normaliser_named("softmax"), 4, 0);
        });
  enter("propagate, weights of a symmetric list", {x(12)}, [&](auto&, Vars v) {
    std::vector<float> weights;
    for (Offset e = 0; e < w.mutual->edges(); ++e) weights.push_back(static_cast<float>(e % 7) - 3);
    return propagate<float>(v[0], w.mutual, weights, {});
  });
  enter("attention, of one value for what edges add", {x(12), x(12), x(12), {w.hub->edges(), 12}}, [&](auto&, Vars v) {
    AttentionVars<float> in{.q = v[0], .k = v[1], .v = v[2], .e = v[3], .ev = v[3]};
    return attention<float>(in, w.hub, score_named("dot"), normaliser_named("softmax"), 4, 0);
  });
  return out;
}

struct Results {
  std::vector<Matrix<float>> values, gradients;
};

Results results(const Op& op, const std::vector<Matrix<float>>& start, DeviceOps* device, bool twice, bool training,
                const LossOptions& options, bool binary) {
  Tape<float> tape;
  tape.device = device;
  tape.seed = 5, tape.step = 3, tape.training = training;
  std::deque<Parameter<float>> parameters;
  std::vector<Var<float>> vars;
  for (const auto& value : start) {
    auto& p = parameters.emplace_back();
    p.value = value;
    vars.push_back(tape.parameter(p));
  }
  Var<float> y = op.build(tape, vars);
  if (twice) y = add(y, op.build(tape, vars));
  std::vector<Id> rows, labels;
  for (Id i = 0; i < y.rows(); ++i) labels.push_back(i % static_cast<Id>(y.cols()));
  for (Id i = 0; i < y.rows(); i += 1 + i % 3) rows.push_back(i);
  Var<float> loss = (binary ? binary_cross_entropy<float> : cross_entropy<float>)(y, rows, labels, options);
  Results out;
  for (int pass = 0; pass < (twice ? 2 : 1); ++pass) {  // what a step leaves behind must not disturb the next
    tape.forward();
    tape.backward(loss);
  }
  out.values = {y.value(), loss.value()};
  for (auto& p : parameters) out.gradients.push_back(p.grad);
  return out;
}

Dataset blocks(bool sparse, Id classes = 5) {
  Sbm o;
  o.nodes = 400, o.valid = 100, o.test = 150, o.seed = 3;
  Dataset out = sbm(o);
  if (sparse) {
    auto csr = std::make_shared<Csr>(Csr{.rows = out.nodes(), .cols = static_cast<Id>(out.channels())});
    std::vector<float> values;
    for (Id i = 0; i < csr->rows; ++i) {
      for (Id c = 0; c < csr->cols; ++c)
        if (const float v = out.features.dense(i, c); std::abs(v) > 0.5f) csr->ids.push_back(c), values.push_back(v);
      csr->offsets.push_back(csr->edges());
    }
    out.features = {.dense = {}, .sparse = std::make_shared<const Sparse>(csr, values)};
  }
  if (classes < out.classes) {
    for (Id& label : out.labels) label %= classes;
    out.classes = classes;
  }
  return out;
}

struct Trained {
  Report report;
  std::vector<Epoch> epochs;
};
Trained trained(const Model& model, const Dataset& data, TrainOptions o, DeviceOps* device) {
  Trained out;
  o.device_ops = device;
  o.on_epoch = [&](const Epoch& e) { out.epochs.push_back(e); };
  out.report = train(model, data, o);
  return out;
}

void agree(const Trained& found, const Trained& expected, double most) {
  REQUIRE(found.epochs.size() == expected.epochs.size());
  for (std::size_t e = 0; e < expected.epochs.size(); ++e) {
    CAPTURE(e);
    CHECK(std::abs(found.epochs[e].train_loss - expected.epochs[e].train_loss) <= most);
    CHECK(std::abs(found.epochs[e].valid_loss - expected.epochs[e].valid_loss) <= most);
    CHECK(std::abs(found.epochs[e].valid - expected.epochs[e].valid) <= 2.5);  // of 100 nodes, two at the border
  }
  const Run &a = found.report.runs.back(), &b = expected.report.runs.back();
  if (a.best_epoch != b.best_epoch) return;  // losses may be equal but for rounding
  CHECK(std::abs(a.test - b.test) <= 2);
  CHECK(difference(a.logits, b.logits) <= 100 * most);
  REQUIRE(a.weights.size() == b.weights.size());
  for (std::size_t t = 0; t < a.weights.size(); ++t) {
    CHECK(a.weights[t].name == b.weights[t].name);
    CHECK(a.weights[t].value.memory() == nullptr);
  }
}

bool same_bits(const Run& a, const Run& b) {
  bool out = a.logits == b.logits && a.test == b.test && a.valid == b.valid && a.train_loss == b.train_loss &&
             a.epochs == b.epochs && a.weights.size() == b.weights.size();
  for (std::size_t t = 0; out && t < a.weights.size(); ++t) out = a.weights[t].value == b.weights[t].value;
  return out;
}

const ModelOptions kGat{
    .classes = 5, .hidden = 8, .heads = 4, .dropout = 0.3, .feature_dropout = 0.2, .attention_dropout = 0.3};

}  // namespace

TEST_SUITE_BEGIN("device");

TEST_CASE("operations on a device agree with the CPU's, in values and gradients, and repeat their bits") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const World world(random);
  std::deque<Parameter<float>> kept;
  auto compare = [&](const std::string& name, DeviceOps& device) {
    CAPTURE(name);
    for (const Op& op : operations(world, kept))
      for (bool twice : {false, true})
        for (bool training : {true, false}) {
          CAPTURE(op.name);
          CAPTURE(twice);
          CAPTURE(training);
          std::vector<Matrix<float>> start;
          for (auto [rows, cols] : op.shapes)
            start.push_back(random_matrix<float>(rows, cols, random, rows == kRows ? 1 : 0.4));
          const bool binary = twice == training;
          LossOptions loss;
          if (twice) loss.smoothing = 0.1;
          const Results expected = results(op, start, nullptr, twice, training, loss, binary);
          const Results found = results(op, start, &device, twice, training, loss, binary);
          const Results again = results(op, start, &device, twice, training, loss, binary);
          for (std::size_t t = 0; t < found.values.size(); ++t) {
            CHECK(difference(found.values[t], expected.values[t]) <= 2e-5);
            CHECK(found.values[t] == again.values[t]);
          }
          for (std::size_t t = 0; t < found.gradients.size(); ++t) {
            CAPTURE(t);
            CHECK(difference(found.gradients[t], expected.gradients[t], 1e-4) <= 2e-4);
            CHECK(found.gradients[t] == again.gradients[t]);
          }
        }
    kept.clear();
  };
  on_each_device(compare, true);
}

TEST_CASE("a GAT that trains on a device has the CPU's losses for 20 epochs") {
  for (bool sparse : {false, true}) {
    const Dataset data = blocks(sparse);
    const TrainOptions o{.epochs = 20, .seed = 7};
    const Trained expected = trained(gat(kGat), data, o, nullptr);
    on_each_device([&](const std::string& name, DeviceOps& device) {
      CAPTURE(name);
      CAPTURE(sparse);
      const Trained found = trained(gat(kGat), data, o, &device), again = trained(gat(kGat), data, o, &device);
      agree(found, expected, 1e-4);
      CHECK(same_bits(found.report.runs[0], again.report.runs[0]));
    });
  }
}

TEST_CASE("models, losses, metrics and optimisers train on a device as on the CPU") {
  struct Case {
    std::string name;
    Model model;
    TrainOptions options;
    Id classes = 5;
  };
  const ModelOptions wide{.classes = 5,
                          .hidden = 24,
                          .heads = 1,
                          .dropout = 0.2,
                          .attention_dropout = 0,
                          .activation = Activation::relu,
                          .norm = Norm::layer,
                          .residual = true};
  auto with = [](ModelOptions o, auto change) {
    change(o);
    return o;
  };
  const std::vector<Case> cases{
      {"gat, norm and residual", gat(wide), {}},
      // Not with Adam, which makes steps of its size from the rounding that is the gradient of a bias under the norm.
      {"gatv2, batch norm",
       gatv2(with(wide, [](auto& o) { o.norm = Norm::batch, o.heads = 3, o.hidden = 8; })),
       {.optimiser = Rule::sgd, .rate = 0.05}},
      {"transformer", transformer(wide), {.optimiser = Rule::adamw}},
      {"gcn", gcn(wide), {.clip = 0.1}},
      {"sage", sage(wide), {.optimiser = Rule::sgd, .rate = 0.05}},
      {"mlp, balanced", mlp(wide), {.class_weights = "balanced", .label_smoothing = 0.1}},
      {"f1, output heads", gat(with(kGat, [](auto& o) { o.out_heads = 3; })), {.metric = Metric::f1}},
      {"one logit", gat(with(kGat, [](auto& o) { o.classes = 1; })), {.loss = Loss::binary_cross_entropy}, 2},
      {"logits of classes", gat(kGat), {.loss = Loss::binary_cross_entropy}},
      {"cosine",
       attention(with(kGat, [](auto& o) { o.score = "cosine"; })),
       {.schedule = {.schedule = Schedule::cosine}}},
      {"pearson", attention(with(kGat, [](auto& o) { o.score = "pearson", o.score_width = 5; })), {}},
      {"bilinear", attention(with(kGat, [](auto& o) { o.score = "bilinear", o.learn_temperature = true; })), {}},
      {"reordered", by_degree(gat(kGat)), {}},
      {"virtual nodes", gat(with(kGat, [](auto& o) { o.virtual_nodes = 2; })), {}},
      {"masks of each step", gat(with(kGat, [](auto& o) { o.mask = "local | random(3, step)", o.heads = 2; })), {}},
      {"learned keys", attention(with(kGat, [](auto& o) { o.keys = "learned(0.5)"; })), {}},
  };
  for (bool sparse : {false, true})
    for (const Case& c : cases) {
      CAPTURE(c.name);
      CAPTURE(sparse);
      const Dataset data = blocks(sparse, c.classes);
      TrainOptions o = c.options;
      o.epochs = 5, o.seed = 11;
      const Trained expected = trained(c.model, data, o, nullptr);
      auto compare = [&](const std::string& name, DeviceOps& device) {
        CAPTURE(name);
        agree(trained(c.model, data, o, &device), expected, 5e-4);
      };
      on_each_device(compare, !sparse);
    }
}

TEST_CASE("an epoch that is replayed has the bits of one that is not, and copies nothing but its result") {
  const Dataset data = blocks(true);
  auto run = [&](DeviceOps& device, bool replayed, EmulatedOps* counts) {
    Network<float> network(gat(kGat), data.graph, data.features, 5, &device);
    Var<float> loss = cross_entropy<float>(network.output(), data.splits[0].train, data.labels);
    Optimiser<float> adam(network.parameters(), {}, &device);
    CHECK(network.tape().repeats);
    network.tape().repeats = replayed;
    DeviceEpochs epochs(device, network, loss, adam, data, data.splits[0], Metric::accuracy, Loss::cross_entropy);
    std::vector<double> losses;
    for (int e = 1; e <= 8; ++e) {
      const int copies = counts ? counts->copies : 0, kernels = counts ? counts->kernels : 0;
      const auto result = epochs.run(e, 1);
      losses.push_back(result.train_loss), losses.push_back(result.valid.loss), losses.push_back(result.test);
      CHECK(result.finite);
      if (counts && e > 2) CHECK(counts->copies - copies == 1);
      if (counts && e == 8 && replayed)
        MESSAGE("kernels in an epoch, besides attention's: " << counts->kernels - kernels);
    }
    Matrix<float> weights = network.parameters()[0].value;
    return std::pair{losses, weights};
  };
  on_each_device([&](const std::string& name, DeviceOps& device) {
    CAPTURE(name);
    auto* counts = dynamic_cast<EmulatedOps*>(&device);
    const auto replayed = run(device, true, counts), plain = run(device, false, counts);
    CHECK(replayed.first == plain.first);
    CHECK(replayed.second == plain.second);
  });
}

// What the device draws itself is what the CPU's new patterns hold, and an epoch stays one replay without copies.
TEST_CASE("masks and keys that are drawn anew in each step, inside the replay") {
  const Dataset data = blocks(true);
  struct Design {
    const char *mask, *keys;
    bool repeats;
  };
  for (const Design& d : {Design{"random(4, step)", "all", true},
                          {"local | self | random(3, step)", "all", true},
                          {"local | self", "random(0.6, step)", true},
                          {"all", "random(0.3, step)", true},
                          {"local | self | random(2, step)", "random(0.8, step)", true},
                          {"local | expander(4, step)", "all", true},
                          {"expander(5, step)", "every(2)", true},
                          {"local | self | random(2, step)", "degree(0.7)", true},
                          {"local | self", "learned(0.5)", true},
                          {"local | expander(3, step)", "learned(0.7)", true},
                          {"random(2, step) | random(3, step)", "all", false},
                          {"community", "learned(0.5)", false}}) {
    CAPTURE(std::string(d.mask));
    CAPTURE(std::string(d.keys));
    const Model model = stack({attend({.out = 4, .heads = 2, .score = score_named("gatv2"), .mask = mask_named(d.mask),
                                       .keys = keys_named(d.keys)}),
                               activation(Activation::elu), dense(5)});
    auto run = [&](DeviceOps* device, EmulatedOps* counts) {
      Network<float> network(model, data.graph, data.features, 5, device);
      Var<float> loss = cross_entropy<float>(network.output(), data.splits[0].train, data.labels);
      Optimiser<float> adam(network.parameters(), {}, device);
      std::vector<double> losses;
      if (!device) {
        for (int e = 1; e <= 6; ++e) {
          network.tape().training = true, network.tape().step = static_cast<std::uint64_t>(e);
          network.tape().forward();
          network.tape().backward(loss);
          adam.step(1);
          losses.push_back(loss.value()(0, 0));
          network.tape().training = false;
          network.tape().forward();
          losses.push_back(evaluate(network.output().value(), data.labels, data.splits[0].valid, Metric::accuracy,
                                    Loss::cross_entropy)
                               .loss);
        }
        return losses;
      }
      CHECK(network.tape().repeats == d.repeats);
      DeviceEpochs epochs(*device, network, loss, adam, data, data.splits[0], Metric::accuracy, Loss::cross_entropy);
      for (int e = 1; e <= 6; ++e) {
        const int copies = counts ? counts->copies : 0;
        const auto result = epochs.run(e, 1);
        losses.push_back(result.train_loss), losses.push_back(result.valid.loss);
        if (counts && e > 2 && d.repeats) CHECK(counts->copies - copies == 1);
      }
      return losses;
    };
    const auto here = run(nullptr, nullptr);
    auto compare = [&](const std::string& name, DeviceOps& device) {
      CAPTURE(name);
      const auto there = run(&device, dynamic_cast<EmulatedOps*>(&device));
      for (std::size_t t = 0; t < here.size(); ++t) CHECK(there[t] == doctest::Approx(here[t]).epsilon(1e-4));
    };
    on_each_device(compare, true);
  }
}

TEST_CASE("a matrix that lies on a device stays there, whatever it is given") {
  on_each_device([](const std::string& name, DeviceOps& device) {
    CAPTURE(name);
    Matrix<float> there(&device), here(2, 3);
    there.resize(2, 3);
    here.fill(5);
    const float* at = there.data();
    there = Matrix<float>(here);  // a parameter's new value
    CHECK(there.memory() == &device);
    CHECK(there.data() == at);
    CHECK(Matrix<float>(there) == here);
    here = Matrix<float>(&device);  // but one of the host takes what it is given
    CHECK(here.memory() == &device);
  });
}

TEST_CASE("a training with rows stored as bfloat16") {
  const Dataset data = blocks(false);
  TrainOptions o{.epochs = 5, .seed = 11};
  EmulatedKernels device;
  const Trained floats = trained(gat(kGat), data, o, &device);
  o.storage = Storage::bf16;
  const Trained rounded = trained(gat(kGat), data, o, &device);
  const double apart = difference(rounded.report.runs[0].logits, floats.report.runs[0].logits);
  CHECK(apart > 1e-5);
  CHECK(apart < 2e-2);
  CHECK(message([&] { train(gat(kGat), data, o); }).find("rows are stored as bf16 on a GPU alone") == 0);
  CHECK(storage_named("bf16") == Storage::bf16);
  CHECK(message([] { storage_named("bf61"); }).find("bf16") != std::string::npos);
}

TEST_CASE("a training on a device goes on from its checkpoint to the same bits, and several run one after the other") {
  const Dataset data = blocks(true);
  on_each_device([&](const std::string& name, DeviceOps& device) {
    CAPTURE(name);
    Scratch scratch;
    TrainOptions o{.epochs = 12, .seed = 7, .runs = 2};
    const Trained whole = trained(gat(kGat), data, o, &device);
    std::atomic<bool> stop{false};
    o.device_ops = &device;
    o.checkpoints.folder = scratch.path / "runs";
    o.interrupted = &stop;
    o.on_epoch = [&](const Epoch& e) { stop = e.epoch == 5 && e.run == 1; };
    CHECK_THROWS_AS(train(gat(kGat), data, o), Interrupted);
    stop = false;
    o.checkpoints.resume = true;
    o.on_epoch = {};
    const Report resumed = train(gat(kGat), data, o);
    for (std::size_t r : {0, 1}) CHECK(same_bits(resumed.runs[r], whole.report.runs[r]));
    CHECK(!resumed.in_parallel);
  });
}

TEST_CASE("what a device's network tells: its attention's weights, and its logits") {
  const Dataset data = blocks(false);
  std::vector<Edge> edges;
  const Csr& list = *data.graph.adjacency;
  for (Id i = 0; i < list.rows; ++i)
    for (Id j : list.row(i)) edges.push_back({j, i});
  Network<float> here(gat(kGat), data.graph, data.features, 5);
  here.tape().training = true, here.tape().step = 2;
  here.tape().forward();
  on_each_device([&](const std::string& name, DeviceOps& device) {
    CAPTURE(name);
    Network<float> there(gat(kGat), data.graph, data.features, 5, &device);
    there.tape().training = true, there.tape().step = 2;
    there.tape().forward();
    const Matrix<float> logits = there.output().value();
    CHECK(difference(logits, here.output().value()) <= 1e-5);
    const Matrix<float> weights = there.attention_weights("layers.0", edges);
    CHECK(difference(weights, here.attention_weights("layers.0", edges)) <= 1e-5);
  });
}

TEST_CASE("a training that diverges on a device says of what") {
  const Dataset data = blocks(false);
  on_each_device([&](const std::string& name, DeviceOps& device) {
    CAPTURE(name);
    TrainOptions o{.epochs = 20, .optimiser = Rule::sgd, .rate = 1e30, .device_ops = &device};
    CHECK(message([&] { train(mlp({.classes = 5}), data, o); }).find("training diverged: ") == 0);
  });
}

TEST_CASE("what no device can do is refused in one line") {
  EmulatedOps device;
  Tape<float> tape;
  tape.device = &device;
  const Matrix<float> x(4, 3);
  Var<float> v = tape.constant(x);
  auto all = Pattern::all(4, 4);
  CHECK(message([&] { propagate<float>(v, all, {}, {}); }) ==
        "'propagate' under a mask that is no list has no kernel for the GPU; train with --device cpu");
  CHECK(message([&] { attention_scores<float>({.q = v, .k = v}, all, score_named("dot"), 1); }) ==
        "'scores' has no kernel for the GPU; train with --device cpu");
  CHECK(message([&] { device_named("gpu"); }).find("device 'gpu'") != std::string::npos);
  Profile profile;
  TrainOptions o{.profile = &profile};
  o.device_ops = &device;
  CHECK(message([&] { train(mlp({.classes = 5}), blocks(false), o); }) ==
        "a profile tells of the CPU alone; use --device cpu");
  if (device_available()) {
    const auto cuda = open_device(Device::cuda);
    Matrix<float> huge(cuda.get()), small(cuda.get());
    CHECK(message([&] { huge.resize(Offset{1} << 22, Offset{1} << 20); }).find("out of memory on the GPU") == 0);
    small.resize(3, 3);
    CHECK(Matrix<float>(small) == Matrix<float>(3, 3));
  } else {
    CHECK(message([&] { open_device(Device::cuda); }).find("device 'cuda': ") == 0);
  }
}

TEST_SUITE_END();
