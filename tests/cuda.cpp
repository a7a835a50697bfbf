// The GPU's kernels against the operator of the CPU: every score x normaliser x kind of mask, forward and backward. The
// kernels' bodies run in an emulated warp always, which also refuses races between lanes, and on a device where one is.
#include <functional>

#include "kernels/bf16.h"
#include "kernels/device.h"
#include "kernels/device_attention.h"
#include "kernels/device_bodies.h"
#include "kernels/make_score.h"
#include "tests/emulated_ops.h"
#include "tests/emulation.h"
#include "tests/examples/own_score.h"
#include "tests/scratch.h"
#include "tests/support.h"

using namespace heed;
using namespace heed::test;

namespace {

struct Engine {  // what runs the kernels
  std::string name;
  std::function<void(const Attention<float>&, View<float>, AttentionState<float>&)> forward;
  std::function<void(const Attention<float>&, View<const float>, View<const float>, const AttentionState<float>&,
                     const AttentionGradient<float>&)>
      backward;
};
const Engine kEmulated{"emulated",
                       [](const auto& x, auto y, auto& state) {
                         attention_on(*emulated_machine(), x.score ? place_in_scores(*x.score) : 0, x, y, state);
                       },
                       [](const auto& x, auto y, auto dy, const auto& state, const auto& g) {
                         attention_gradient_on(*emulated_machine(), x.score ? place_in_scores(*x.score) : 0, x, y, dy,
                                               state, g);
                       }};
const Engine kDevice{"device", attention_device, attention_gradient_device};
const Engine kTempered{"emulated",
                       [](const auto& x, auto y, auto& state) {
                         attention_on(*emulated_machine_tempered(), 0, x, y, state);
                       },
                       [](const auto& x, auto y, auto dy, const auto& state, const auto& g) {
                         attention_gradient_on(*emulated_machine_tempered(), 0, x, y, dy, state, g);
                       }};

struct Machines {  // the emulated one, and the device's where there is one
  std::unique_ptr<Machine> emulated = emulated_machine();
  std::vector<Machine*> all{emulated.get()};

  Machines() {
    if (device_available()) all.push_back(&cuda_machine());
  }
};

struct Results {
  Matrix<float> y, tau, dq, dk, dv, da, dp, de, dbias, dev;

  template <class Visit>
  static void each(Visit visit) {
    visit("y", &Results::y, 1e-5), visit("tau", &Results::tau, 1e-5);
    visit("dq", &Results::dq, 1e-4), visit("dk", &Results::dk, 1e-4), visit("dv", &Results::dv, 1e-4);
    visit("da", &Results::da, 1e-4), visit("dp", &Results::dp, 1e-4), visit("de", &Results::de, 1e-4);
    visit("dbias", &Results::dbias, 1e-4), visit("dev", &Results::dev, 1e-4);
  }
};

struct Case {  // one call with everything it reads
  std::shared_ptr<const Pattern> pattern;
  Score score;
  Normaliser normaliser;
  int heads;
  Matrix<float> q, k, v, a, p, e, bias, ev, dy;
  Dropout dropout;
  bool bf16 = false;
  bool add = false;  // gradients are added to what is there
  std::string wanted = "dq dk dv da dp de dbias dev";

  Attention<float> call() const {
    auto view = [](const Matrix<float>& x) { return x.empty() ? View<const float>{} : x.view(); };
    return {pattern.get(), &score,  &normaliser, heads,    q.view(), k.view(), v.view(), view(a),
            view(p),       view(e), view(bias),  view(ev), {},       dropout,  bf16};
  }
  AttentionGradient<float> sinks(Results& to) const {
    auto sink = [&](const char* name, Matrix<float>& d, const Matrix<float>& value) {
      if (value.empty() || wanted.find(name) == std::string::npos) return Sink<float>{};
      d.resize(value.rows(), value.cols());
      d.fill(7);  // must be written over, or kept
      return Sink<float>{d.view(), add && name != std::string("de")};
    };
    return {sink("dq", to.dq, q), sink("dk", to.dk, k), sink("dv", to.dv, v),          sink("da", to.da, a),
            sink("dp", to.dp, p), sink("de", to.de, e), sink("dbias", to.dbias, bias), sink("dev", to.dev, ev)};
  }
  Case rounded() const {  // as the kernels store it with bf16; those for any width do not
    Case out = *this;
    out.bf16 = false;
    if (score.filter.topk > 0 || normaliser.solves || normaliser.measures) return out;
    for (auto* x : {&out.v, &out.dy, &out.q, &out.k})
      if (!score.contracts || x == &out.v || x == &out.dy)
        for (float& each : *x) each = from_bf16(to_bf16(each));
    return out;
  }
  Results on_cpu() const {
    Results out;
    AttentionState<float> state;
    out.y.resize(q.rows(), v.cols());
    attention(call(), out.y.view(), state);
    attention_gradient<float>(call(), std::as_const(out.y).view(), dy.view(), state, sinks(out));
    out.tau = state.tau;
    return out;
  }
  Results on(const Engine& engine) const {
    Results out;
    out.y.resize(q.rows(), v.cols());
    out.y.fill(7);
    AttentionState<float> state;
    engine.forward(call(), out.y.view(), state);
    engine.backward(call(), std::as_const(out.y).view(), dy.view(), state, sinks(out));
    out.tau = state.tau;
    return out;
  }
};

enum class Mask {
  list,
  range,
  sliding,
  without,
  rectangular,
  empty,
  none,
  features,
  hub,
  hub_range,
  hub_features,
  drawn
};
constexpr Mask kMasks[] = {Mask::list, Mask::range, Mask::sliding,  Mask::without,   Mask::rectangular,  Mask::empty,
                           Mask::none, Mask::hub,   Mask::features, Mask::hub_range, Mask::hub_features, Mask::drawn};

std::shared_ptr<const Pattern> make_pattern(Mask mask, Random& random) {
  auto list = [](Csr csr) { return Pattern::listed(std::make_shared<Csr>(std::move(csr))); };
  switch (mask) {
    case Mask::list:
      return list(random_pattern(19, 19, 50, random));
    case Mask::features:
      return list(random_pattern(60, 60, 50, random));
    case Mask::range:
      return Pattern::all(37, 37);
    case Mask::sliding:
      return Pattern::sliding(12, {{0, 3}, {0, 3}, {1, 6}, {6, 6}, {6, 12}, {9, 12}});
    case Mask::without:
      return Pattern::all(50, 71, std::make_shared<Csr>(random_pattern(50, 71, 60, random)));
    case Mask::rectangular:
      return list(random_pattern(6, 90, 70, random));
    case Mask::empty:
      return list(Csr{.rows = 4, .cols = 5, .offsets = {0, 0, 0, 0, 0}, .ids = {}});
    case Mask::none:
      return list(Csr{.rows = 0, .cols = 5, .offsets = {0}, .ids = {}});
    case Mask::hub:
      return list(hubs(1100, random));
    case Mask::hub_features:
      return list(hubs(1100, random));
    case Mask::hub_range:
      return Pattern::all(3, 1300, std::make_shared<Csr>(random_pattern(3, 1300, 600, random)));
    case Mask::drawn:
      return Pattern::drawn(40, {.count = 35, .regular = random.below(2) > 0, .stream = random.next()});
  }
  return nullptr;
}

Case make_case(const Score& score, const Normaliser& normaliser, Mask mask, int heads, int score_width, int width,
               Random& random) {
  Case c{make_pattern(mask, random), score, normaliser, heads, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  Offset channels = heads * (score.contracts ? 1 : score_width);
  double scale = score.contracts ? 1 : 1 / std::sqrt(score_width);
  c.q = random_matrix<float>(c.pattern->queries(), channels, random, scale);
  c.k = random_matrix<float>(c.pattern->keys(), channels, random);
  c.v = random_matrix<float>(c.pattern->keys(), heads * width, random);
  c.dy = random_matrix<float>(c.pattern->queries(), heads * width, random);
  // Near enough to be seen: a gaussian of points 64 normal channels apart is e^-60, and `sum` divides by what is left
  // of such weights, so that the rounding of the exponents would be all that is compared.
  if (score.nonnegative)
    for (auto* x : {&c.q, &c.k})
      for (float& each : *x) each *= 0.4f;
  // Parameters are not near 0, and those of a head do not cancel: else a row's scores hardly differ, sparsemax
  // subtracts them from their like to get weights of a thousandth, and their rounding would be all that is compared.
  if (score.reads_vector) c.a = random_matrix<float>(1, channels, random);
  for (float& each : c.a) each += std::copysign(0.3f, each);
  if (score.scalars > 0) c.p = random_matrix<float>(score.scalars, heads, random, 0.2);
  for (int p = score.scalars; p-- > 0;)
    for (int h = 0; h < heads; ++h) c.p(p, h) = std::copysign(0.1f + std::abs(c.p(p, h)), c.p(0, h));
  if (mask == Mask::features || mask == Mask::hub_features) {
    c.e = random_matrix<float>(c.pattern->edges(), channels, random);
    if (!normaliser.nonnegative) c.bias = random_matrix<float>(c.pattern->edges(), heads, random);
    c.ev = random_matrix<float>(c.pattern->edges(), heads * width, random);
  }
  if (score.filter)  // so that scores are exact, many are equal, and the same keys count everywhere
    for (auto* x : {&c.q, &c.k, &c.e, &c.bias})
      for (float& each : *x) each = std::round(2 * each) / 2;
  return c;
}

double norm(const Matrix<float>& x) {
  double sum = 0;
  for (float each : x) sum += static_cast<double>(each) * static_cast<double>(each);
  return std::sqrt(sum);
}

// Of what is finite. Gradients may cancel to nothing but rounding (GAT's dq, where no pair meets the kink), and so may
// a value: the mean of a hub's thousands of keys. A scalar's gradient has a part of every pair, whose roundings grow
// with their spread.
double error_of(const Case& c, const std::string& name, Matrix<float> found, Matrix<float> expected, double most) {
  for (Offset t = 0; t < expected.size() && found.size() == expected.size(); ++t)
    if (std::isinf(expected.data()[t])) expected.data()[t] = found.data()[t] = 0;
  const double spread = name == "dp" ? 2 * std::sqrt(static_cast<double>(c.k.rows())) : 1;
  const double floor =
      most < 5e-5 ? 0.01 * std::sqrt(static_cast<double>(expected.size())) : 0.01 * spread * norm(c.dy);
  const double size = norm(expected);
  return difference(found, expected) * (size > 0 ? size : 1) / std::max({size, floor, 1e-30});
}

// Where a key's weight under sparsemax is 0, or a score the row's maximum, but for rounding, a gradient may be there on
// one side alone.
bool is_edge_case(const Case& c, const Engine& engine) {
  if (c.normaliser.name != "sparsemax" && c.normaliser.name != "max") return false;
  const Results one = c.on_cpu(), other = c.on(engine);
  bool agree = true;
  Results::each([&](const std::string& name, auto member, double most) {
    if (most > 5e-5) agree = agree && error_of(c, name, other.*member, one.*member, most) <= most;
  });
  return !agree;
}

void compare(const Case& c, const Engine& engine, double& worst_value, double& worst_gradient) {
  CAPTURE(engine.name);
  CAPTURE(c.score.name);
  CAPTURE(c.normaliser.name);
  CAPTURE(c.heads);
  CAPTURE(c.q.cols());
  CAPTURE(c.v.cols());
  CAPTURE(c.dropout.rate);
  const Results expected = (c.bf16 ? c.rounded() : c).on_cpu(), found = c.on(engine);
  const Results again = engine.name == "device" || c.heads == 3 ? c.on(engine) : found;
  Results::each([&](const std::string& name, auto member, double most) {
    CAPTURE(name);
    const Matrix<float>&want = expected.*member, &have = found.*member;
    for (Offset t = 0; t < want.size() && have.size() == want.size(); ++t)
      if (std::isinf(want.data()[t])) CHECK(have.data()[t] == want.data()[t]);  // tau of a row without keys
    const double error = error_of(c, name, have, want, most);
    CAPTURE(norm(want));
    CHECK(error <= most);
    CHECK(have == again.*member);
    (most < 5e-5 ? worst_value : worst_gradient) = std::max(most < 5e-5 ? worst_value : worst_gradient, error);
  });
}

void compare_all(const std::vector<Score>& scores, const Engine& engine) {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  double worst_value = 0, worst_gradient = 0;
  int cases = 0, drawn = 0, redrawn = 0;
  const int widths[] = {1, 5, 16};
  for (const auto& [score, normaliser] : pairs_of(scores, normaliser_menu(), random, 0))
    for (Mask mask : kMasks) {
      CAPTURE(static_cast<int>(mask));
      for (int heads : {1, 3, 8})
        for (int w : {0, 1, 2})
          for (float rate : {0.0f, 0.4f}) {
            if (engine.name == "emulated" && random.below(3) > 0) continue;
            bool large = mask == Mask::hub || mask == Mask::hub_features;
            if (large && engine.name == "emulated" && (cases++ + w) % 3 != 0) continue;
            auto draw = [&] {
              auto c = make_case(score, normaliser, mask, heads, widths[(w + heads) % 3], widths[w], random);
              c.dropout = {rate, random.next()};
              return c;
            };
            auto c = draw();
            ++drawn;
            for (; redrawn < drawn && is_edge_case(c, engine); ++redrawn) c = draw();
            compare(c, engine, worst_value, worst_gradient);
          }
    }
  for (const Score& score : scores)  // more heads than a warp has lanes, and heads wider than its lanes hold
    for (Mask mask : {Mask::features, Mask::without}) {
      if (engine.name == "emulated" && scores.size() > 3 && random.below(3) > 0) continue;
      auto c = make_case(score, normaliser_named("softmax"), mask, 40, 3, 2, random);
      c.dropout = {0.3f, random.next()};
      compare(c, engine, worst_value, worst_gradient);
      for (int width : {129, 270})
        compare(make_case(score, normaliser_named("softmax"), mask, 2, 70, width, random), engine, worst_value,
                worst_gradient);
      for (auto wanted : {"dq", "dk", "dv", "da", "dp", "de", "dbias", "dev", "dq dk", "none"}) {
        c = make_case(score, normaliser_named("softmax"), mask, 3, 5, 7, random);
        c.wanted = wanted;
        c.add = true;
        compare(c, engine, worst_value, worst_gradient);
      }
    }
  for (Mask mask : {Mask::hub, Mask::hub_range}) {  // sums of segments added to what is there
    auto c = make_case(scores.back(), normaliser_named("softmax"), mask, 3, 5, 7, random);
    c.add = true;
    compare(c, engine, worst_value, worst_gradient);
  }
  CHECK(redrawn <= 2 + drawn / 200);  // or it is no matter of chance
  MESSAGE(engine.name << ": worst value error " << worst_value << ", worst gradient error " << worst_gradient
                      << ", redrawn " << redrawn << " of " << drawn << ", seed " << seed);
}

}  // namespace

TEST_SUITE_BEGIN("cuda");

std::vector<Score> scores_of_the_gpu() {
  std::vector<Score> out;
  for (const Score& score : score_menu())
    if (score.stages<float>().tile_sums) out.push_back(score);
  for (auto filtered : {"dot topk(3)", "sqeuclidean topk(20) above(-4)", "dot above(0.25)"})
    out.push_back(score_named(filtered));
  out.push_back(with_temperature(score_named("gat"), 0.7));
  out.push_back(with_temperature(score_named("gatv2"), 1.5, true));
  out.push_back(with_temperature(score_named("mlp"), 1.5, true));
  return out;
}

TEST_CASE("kernels in an emulated warp agree with the CPU, and repeat their bits") {
  compare_all(scores_of_the_gpu(), kEmulated);
}

TEST_CASE("a score with learned scalars, in an emulated warp") { compare_all({make_score(Tempered{})}, kTempered); }

TEST_CASE("kernels on the device agree with the CPU, and repeat their bits") {
  if (!device_available()) {
    MESSAGE("no device: skipped");
    return;
  }
  MESSAGE("device: " << device_name());
  compare_all(scores_of_the_gpu(), kDevice);
  compare_all({make_score(Cauchy{})}, kDevice);  // of own_score.cu
}

TEST_CASE("each kernel once on the device") {  // few enough for a sanitizer
  if (!device_available()) {
    MESSAGE("no device: skipped");
    return;
  }
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  double value = 0, gradient = 0;
  int cases = 0;
  auto scores = scores_of_the_gpu();
  scores.push_back(make_score(Cauchy{}));
  for (const Score& score : scores) {
    const Normaliser& any = normaliser_named(score.nonnegative ? "sum" : "sigmoid");
    auto run = [&](const char* normaliser, Mask mask, int width, float rate) {
      auto c = make_case(score, normaliser ? normaliser_named(normaliser) : any, mask, 3, width, width, random);
      c.dropout = {rate, random.next()};
      compare(c, kDevice, value, gradient);
      ++cases;
    };
    run("softmax", Mask::list, 8, 0);       // lanes that ask for nothing
    run("softmax", Mask::list, 5, 0.4f);    // rows that are not aligned, dropout
    run(nullptr, Mask::without, 8, 0);      // another normaliser, intervals
    run("entmax15", Mask::features, 5, 0);  // any width: thresholds, measures, features of edges
    run("softmax", Mask::drawn, 70, 0.4f);
    auto c = make_case(score, normaliser_named("softmax"), Mask::list, 3, 8, 8, random);
    c.bf16 = true;
    compare(c, kDevice, value, gradient);
  }
  auto c = make_case(score_named("gatv2"), normaliser_named("softmax"), Mask::hub, 4, 8, 8, random);
  compare(c, kDevice, value, gradient);  // merges of segments
  MESSAGE(cases << " cases, worst value error " << value << ", worst gradient error " << gradient);
}

// What is stored as bfloat16 is rounded and then treated as any float: so the CPU finds the same from rounded operands.
TEST_CASE("rows stored as bfloat16") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  double worst_value = 0, worst_gradient = 0, off_value = 0, off_gradient = 0;
  for (const Engine& engine : {kEmulated, kDevice}) {
    if (engine.name == "device" && !device_available()) continue;
    for (const Score& score : scores_of_the_gpu())
      for (Mask mask : {Mask::list, Mask::without, Mask::rectangular, Mask::hub})
        for (int width : {5, 8, 70}) {
          if (mask == Mask::hub && (width != 8 || random.below(4) > 0) && engine.name == "emulated") continue;
          const bool plain = width == 8 && random.below(2) > 0;
          const Normaliser& normaliser = normaliser_named(score.nonnegative ? "sum" : plain ? "softmax" : "sigmoid");
          auto c = make_case(score, normaliser, mask, 3, width, width, random);
          if (!plain) c.dropout = {0.4f, random.next()};
          const Results floats = c.on_cpu(), rounded = c.rounded().on_cpu();
          Results::each([&](const std::string& name, auto member, double most) {
            double& off = most < 5e-5 ? off_value : off_gradient;
            off = std::max(off, error_of(c, name, rounded.*member, floats.*member, most));
          });
          c.bf16 = true;
          const Results found = c.on(engine), again = c.on(engine);
          CAPTURE(engine.name);
          CAPTURE(score.name);
          CAPTURE(normaliser.name);
          CAPTURE(static_cast<int>(mask));
          CAPTURE(width);
          CAPTURE(plain);
          Results::each([&](const std::string& name, auto member, double most) {
            CAPTURE(name);
            const double error = error_of(c, name, found.*member, rounded.*member, most);
            CHECK(error <= most);
            CHECK(found.*member == again.*member);
            double& worst = most < 5e-5 ? worst_value : worst_gradient;
            worst = std::max(worst, error);
          });
        }
  }
  CHECK(off_value <= 1e-2);
  CHECK(to_bf16(1.00390625f) == 0x3f80);  // ties to even
  CHECK(to_bf16(1.01171875f) == 0x3f82);
  CHECK(std::isnan(from_bf16(to_bf16(std::numeric_limits<float>::signaling_NaN()))));
  CHECK(from_bf16(to_bf16(-std::numeric_limits<float>::infinity())) == -std::numeric_limits<float>::infinity());
  MESSAGE("beside rounded operands: worst value error " << worst_value << ", worst gradient error " << worst_gradient
                                                        << "; beside floats: " << off_value << ", " << off_gradient
                                                        << "; seed " << seed);
  auto c = make_case(score_named("dot"), normaliser_named("softmax"), Mask::list, 2, 4, 4, random);
  auto call = c.call();
  call.bf16 = true;
  AttentionState<float> state;
  Matrix<float> y(c.q.rows(), c.v.cols());
  CHECK(message([&] { attention(call, y.view(), state); }) == "attention: rows are stored as bfloat16 on a GPU alone");
  const Matrix<float> bias(1, c.v.cols());
  call.bf16 = false, call.y_bias = bias.view();
  CHECK(message([&] { attention_on(*emulated_machine(), 0, call, y.view(), state); }) ==
        "attention: a bias is added to y on the CPU alone");
}

TEST_CASE("what is drawn anew on a device: masks beside a list, and keys") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Machines machines;
  double value = 0, gradient = 0;
  const Id n = 300;
  auto list = [&](Csr csr) { return Pattern::listed(std::make_shared<Csr>(std::move(csr))); };
  for (Machine* machine : machines.all)
    for (int kind = 0; kind < 9; ++kind) {
      CAPTURE(kind);
      const std::shared_ptr<const Pattern> fixed =
          kind == 0   ? nullptr
          : kind == 4 ? Pattern::all(n, n, std::make_shared<Csr>(random_pattern(n, n, 9, random)))
          : kind == 5 ? list(hubs(n, random))
                      : list(random_pattern(n, n, 9, random));
      Redrawn what;
      if (kind != 3 && kind != 4)
        what.drawing = {.count = kind >= 6 ? 1 + static_cast<int>(random.below(8)) : 7,
                        .regular = kind >= 6,
                        .stream = random.next()};
      if (kind >= 2 && kind != 6) what.kept = 120, what.keys_stream = random.next();
      if (kind >= 7) what.by_score = true;
      if (kind == 6) {
        std::vector<char> marks(static_cast<std::size_t>(n));
        for (char& mark : marks) mark = random.below(3) > 0;
        what.marks = std::make_shared<const std::vector<char>>(std::move(marks));
      }
      const auto pattern = Pattern::redrawn(n, fixed, what);
      for (std::uint64_t step : {0, 1, 5})
        for (auto [score, normaliser] : {std::pair{"gatv2", "softmax"}, {"gat", "softmax"}, {"dot topk(2)", "softmax"},
                                         {"scaled_dot", "entmax15"}, {"cosine", "sigmoid"}}) {
          CAPTURE(step);
          CAPTURE(std::string(score));
          // The draws of this step, as a device makes them: here, and brought there.
          EmulatedOps ops;
          Matrix<float> scores = random_matrix<float>(n, 1, random);
          for (float& each : scores) each = std::round(4 * each) / 4;  // many are equal
          std::vector<NodeMap> maps(static_cast<std::size_t>(what.drawing.count));
          std::vector<char> kept(static_cast<std::size_t>(n));
          std::uint64_t bounds[kBounds] = {};
          std::vector<Id> ranks(static_cast<std::size_t>(n));
          std::vector<std::uint32_t> tallies(static_cast<std::size_t>(tally_room(n)));
          const DrawnThere here{maps.data(), what.kept >= 0 ? kept.data() : nullptr, ranks.data(), tallies.data(),
                                bounds};
          bodies::redraw(ops, *pattern, &step, std::as_const(scores).view(), here, here);
          for (const Rows* rows : {&pattern->by_query, &pattern->by_key}) {
            const DrawnThere there = drawn_there(*machine, *rows);
            machine->copy(there.maps, maps.data(), maps.size() * sizeof(NodeMap));
            if (there.kept) machine->copy(there.kept, kept.data(), kept.size());
            if (there.ranks) machine->copy(there.ranks, ranks.data(), ranks.size() * sizeof(Id));
          }
          auto c = make_case(score_named(score), normaliser_named(normaliser), Mask::drawn, 3, 8, 8, random);
          for (auto* x : {&c.q, &c.k, &c.v, &c.dy}) *x = random_matrix<float>(n, x->cols(), random);
          if (c.score.filter)
            for (auto* x : {&c.q, &c.k})
              for (float& each : *x) each = std::round(2 * each) / 2;
          c.dropout = {step == 5 ? 0.4f : 0.0f, random.next()};
          const Settled list = settled(*pattern, step, std::as_const(scores).view());
          Case on_list = c;
          on_list.pattern = list.pattern;
          on_list.k = list.rows_of(std::as_const(c.k).view()), on_list.v = list.rows_of(std::as_const(c.v).view());
          Results expected = on_list.on_cpu();
          for (auto member : {&Results::dk, &Results::dv}) {
            Matrix<float> all(n, (expected.*member).cols());
            list.put_back(expected.*member, {all.view()});
            expected.*member = all;
          }
          const int place = place_in_scores(c.score);
          c.pattern = pattern;
          const Engine engine{"redrawn",
                              [&](const auto& x, auto y, auto& state) { attention_on(*machine, place, x, y, state); },
                              [&](const auto& x, auto y, auto dy, const auto& state, const auto& g) {
                                attention_gradient_on(*machine, place, x, y, dy, state, g);
                              }};
          const Results found = c.on(engine);
          Results::each([&](const std::string& name, auto member, double most) {
            CAPTURE(name);
            const double error = error_of(c, name, found.*member, expected.*member, most);
            CHECK(error <= most);
            (most < 5e-5 ? value : gradient) = std::max(most < 5e-5 ? value : gradient, error);
          });
        }
    }
  MESSAGE("redrawn: worst value error " << value << ", worst gradient error " << gradient << ", seed " << seed);
  CHECK(message([&] {
          Pattern::redrawn(n, Pattern::all(n, n), {.drawing = {.count = 3}});
        }).find("goes beside a list") != std::string::npos);
  AttentionState<float> state;
  auto c = make_case(score_named("dot"), normaliser_named("softmax"), Mask::drawn, 2, 4, 4, random);
  c.pattern = Pattern::redrawn(40, nullptr, {.drawing = {.count = 3}});
  Matrix<float> y(40, 8);
  CHECK(message([&] { attention(c.call(), y.view(), state); }) == "attention: patterns are redrawn on a GPU alone");
}

TEST_CASE("weighted sums over a pattern's rows") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Machines machines;
  for (Machine* machine : machines.all)
    for (Mask mask : {Mask::list, Mask::rectangular, Mask::empty, Mask::hub})
      for (int width : {1, 7, 64, 300})
        for (bool by_key : {false, true})
          for (int kind : {0, 1, 2, 3}) {
            CAPTURE(width);
            CAPTURE(by_key);
            CAPTURE(kind);
            if (mask == Mask::hub && kind != 3) continue;
            const auto pattern = make_pattern(mask, random);
            const Rows& rows = by_key ? pattern->by_key : pattern->by_query;
            Matrix<float> x = random_matrix<float>(rows.cols, width, random), parts, parts_there;
            Matrix<float> weights = random_matrix<float>(1, kind & 1 ? pattern->edges() : 0, random);
            Matrix<float> scale = random_matrix<float>(1, kind & 2 ? rows.rows : 0, random);
            Matrix<float> y = random_matrix<float>(rows.rows, width, random);
            auto there_too = [&](const Matrix<float>& from) {
              Matrix<float> out(machine);
              out = from;
              return out;
            };
            Matrix<float> x_there = there_too(x), w_there = there_too(weights), s_there = there_too(scale);
            Matrix<float> y_there = there_too(y);
            auto span = [](const Matrix<float>& m) { return std::span(m.data(), static_cast<std::size_t>(m.size())); };
            std::span<const Offset> edge;
            if (by_key && !weights.empty()) edge = pattern->edge_of_entry();
            weighted_sum<float>(rows, span(weights), edge, span(scale), std::as_const(x).view(), {y.view(), true},
                                parts);
            weighted_sum_there(*machine,
                               {.rows = &rows,
                                .weights = weights.empty() ? nullptr : w_there.data(),
                                .edge = by_key && !weights.empty() ? &pattern->edge_of_entry() : nullptr,
                                .row_scale = scale.empty() ? nullptr : s_there.data()},
                               std::as_const(x_there).view(), {y_there.view(), true}, parts_there);
            CHECK(difference(Matrix<float>(y_there), y) < 1e-5);
          }
}

TEST_CASE("a row whose biases are all minus infinity gives 0 and takes no gradient") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  auto c = make_case(score_named("gatv2"), normaliser_named("softmax"), Mask::hub_features, 2, 8, 8, random);
  const Csr& csr = *c.pattern->by_query.list;
  for (Id i : {3, 7})
    for (Offset t = csr.offsets[i]; t < csr.offsets[i + 1]; ++t)
      for (int h = 0; h < 2; ++h) c.bias(t, h) = -__builtin_inff();
  for (const Engine& engine : {kEmulated, kDevice}) {
    if (engine.name == "device" && !device_available()) continue;
    CAPTURE(engine.name);
    Results r = c.on(engine);
    for (Id i : {3, 7})
      for (Offset x = 0; x < r.y.cols(); ++x) {
        CHECK(r.y(i, x) == 0);
        CHECK(r.dq(i, x) == 0);
      }
    for (const auto* m : {&r.y, &r.dq, &r.dk, &r.dv, &r.da, &r.de, &r.dev})
      for (float x : *m) REQUIRE(std::isfinite(x));
  }
}

TEST_CASE("arrays may be columns of larger ones") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  auto c = make_case(score_named("dot"), normaliser_named("softmax"), Mask::without, 2, 4, 4, random);
  auto wide_k = random_matrix<float>(c.k.rows(), 20, random);
  Matrix<float> wide_y(c.q.rows(), 30), y(c.q.rows(), 8);
  wide_y.fill(7);
  auto call = c.call();
  call.k = std::as_const(wide_k).view().columns(5, 8);
  AttentionState<float> state;
  attention(call, y.view(), state);
  for (const Engine& engine : {kEmulated, kDevice}) {
    if (engine.name == "device" && !device_available()) continue;
    AttentionState<float> found;
    engine.forward(call, wide_y.view().columns(11, 8), found);
    for (Offset i = 0; i < y.rows(); ++i)
      for (Offset x = 0; x < 30; ++x)
        CHECK(wide_y(i, x) == doctest::Approx(x >= 11 && x < 19 ? y(i, x - 11) : 7).epsilon(1e-4));
  }
}

TEST_CASE("what the kernels refuse") {
  Random random(1);
  auto c = make_case(score_named("gatv2"), normaliser_named("softmax"), Mask::list, 2, 4, 4, random);
  auto run = [&](const auto& x) { return message([&] { x.on(kEmulated); }); };
  CHECK(run(c) == "");
  auto d = c;
  d.k.resize(8, 8);
  CHECK(run(d) == "attention: k is 8 x 8, expected 19 x 8");
  d = c, d.a = {};
  CHECK(run(d).find("a is 0 x 0, expected 1 x 8") != std::string::npos);
  d = c, d.score = make_score(Tempered{}), d.p = random_matrix<float>(2, 2, random);
  CHECK(run(d).find("'tempered' has no kernel for the GPU") != std::string::npos);
  d = c, d.score = score_named("softdtw");
  CHECK(run(d).find("'softdtw' has no kernel for the GPU") != std::string::npos);
  d = c, d.score = score_named("a*tanh(q+k)");
  CHECK(run(d) == "attention: the score 'a*tanh(q+k)' has no kernel for the GPU");
  if (!device_available()) CHECK(message([&] { c.on(kDevice); }) != "");
  // A score of the menu's struct with other parameters is no other score.
  d = c, d.score = make_score(scores::GatV2{.slope = 0.7f});
  double value = 0, gradient = 0;
  compare(d, kEmulated, value, gradient);
  CHECK(!(d.on(kEmulated).y == c.on(kEmulated).y));
}

TEST_CASE("the emulated warp refuses races") {
  EmulatedWarp warp;
  EmulatedWarp::Shared<float> cells(warp, 64);
  CHECK(message([&] { cells.get(0, 1); }) == "warp: lane 0 reads cell 1, never set");
  warp.lanes([&](int lane) { cells.set(lane, lane, 1); });
  CHECK(cells.get(4, 4) == 1);
  CHECK(message([&] { cells.get(3, 4); }) ==
        "warp: lane 3 reads cell 4, which lane 4 touched, with no sync in "
        "between");
  warp.sync();
  CHECK(cells.get(3, 4) == 1);
  CHECK(message([&] { cells.set(5, 4, 2); }).find("lane 5 sets cell 4, which lane 3 touched") != std::string::npos);
  EmulatedWarp::PerLane<float> x;
  warp.lanes([&](int lane) { x[lane] = static_cast<float>(lane); });
  warp.sum(x, 4, 32);
  warp.lanes([&](int lane) { CHECK(x[lane] == 8 * (lane % 4) + 112); });
}

TEST_SUITE_END();
