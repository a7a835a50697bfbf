// The tape, its operations, and the models: values against plain loops, every gradient against central differences in
// double, the same bits on any number of threads, no dropout outside training, no allocation after the first epochs.
#include <oneapi/tbb/global_control.h>

#include <atomic>
#include <functional>
#include <numeric>

#include "layers/models.h"
#include "tests/scratch.h"
#include "tests/tape.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HEED_COUNTS_ALLOCATIONS 0
#else
#define HEED_COUNTS_ALLOCATIONS 1
#endif

#if HEED_COUNTS_ALLOCATIONS
// Every new of this program and every matrix passes here.
namespace {
std::atomic<bool> counting{false};
std::atomic<int> allocations{0};
void* counted(void* p) {
  if (counting) ++allocations;
  return p ? p : throw std::bad_alloc();
}
void* aligned(std::size_t alignment, std::size_t size) {
  void* p = nullptr;
  return posix_memalign(&p, std::max(alignment, sizeof(void*)), size) == 0 ? p : nullptr;
}
}  // namespace
void* operator new(std::size_t size) { return counted(std::malloc(size > 0 ? size : 1)); }
void* operator new[](std::size_t size) { return counted(std::malloc(size > 0 ? size : 1)); }
void* operator new(std::size_t size, std::align_val_t a) { return counted(aligned(static_cast<std::size_t>(a), size)); }
void* operator new[](std::size_t size, std::align_val_t a) {
  return counted(aligned(static_cast<std::size_t>(a), size));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) {
  if (counting) ++allocations;
  return aligned(alignment, size);
}
#endif

using namespace heed;
using namespace heed::test;

namespace {

void with_threads(int n, const std::function<void()>& body) {
  tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(n));
  body();
}

Matrix<double> away_from_zero(Offset rows, Offset cols, Random& random) {
  Matrix<double> out(rows, cols);
  for (double& x : out) do
      x = random.normal();
    while (std::abs(x) < 1e-3);
  return out;
}

std::shared_ptr<const Sparse> random_sparse(Id rows, Id cols, int most, Random& random) {
  auto pattern = std::make_shared<Csr>(random_pattern(rows, cols, most, random));
  std::vector<float> values(pattern->ids.size());
  for (float& x : values) x = static_cast<float>(random.normal());
  return std::make_shared<Sparse>(pattern, values);
}

Graph random_graph(Id nodes, int edges, int channels, bool weighted, Random& random) {
  const std::vector<Edge> list = random_edges(nodes, edges, random);
  std::vector<float> weights(weighted ? list.size() : 0), features(list.size() * static_cast<std::size_t>(channels));
  for (float& x : weights) x = static_cast<float>(0.2 + random.uniform());
  for (float& x : features) x = static_cast<float>(random.normal());
  return graph_from_edges(nodes, list, {.loops = Loops::keep, .direction = Direction::directed}, weights, features,
                          channels);
}

Features dense_features(Offset rows, Offset cols, Random& random) {
  return {.dense = random_matrix<float>(rows, cols, random), .sparse = nullptr};
}

// An operation on a tape of its own, with inputs that take gradients.
struct Bench {
  Tape<double> tape;
  std::deque<Parameter<double>> parameters;

  Parameter<double>& parameter(Matrix<double> value, bool trained = true) {
    return parameters.emplace_back(Parameter<double>{"", std::move(value), {}, trained});
  }
  Var<double> input(Matrix<double> value) { return tape.parameter(parameter(std::move(value))); }

  // The largest relative error of all gradients of `loss`.
  double worst(Var<double> loss, Random& random, int steps = 16) {
    tape.forward();
    for (int again = 0; again < 2; ++again) tape.backward(loss);  // the second finds the first one's numbers
    double out = 0;
    for (auto& p : parameters) {
      if (!p.trained) continue;
      REQUIRE(p.grad.rows() == p.value.rows());
      Matrix<double> gradient = p.grad;
      auto value = [&] {
        tape.forward();
        return loss.value()(0, 0);
      };
      out = std::max(out, check_gradient(p.value, gradient, value, random, steps));
    }
    return out;
  }
};

using Vars = std::vector<Var<double>>;
using Shapes = std::vector<std::array<Offset, 2>>;

struct Op {
  std::string name;
  Shapes inputs;
  std::function<Var<double>(Bench&, const Vars&)> apply;
  bool training = true;
  std::function<bool(const Vars&)> near_kink = {};
};

constexpr int kHeads = 3, kWidth = 5, kScoreWidth = 4;

std::vector<Op> operations(Id n, Random& random) {
  auto sparse = random_sparse(n, 9, 4, random);
  auto list = Pattern::listed(std::make_shared<Csr>(random_pattern(n, n, 6, random)));
  auto rectangle = Pattern::listed(std::make_shared<Csr>(random_pattern(n, 8, 5, random)));
  auto interval = Pattern::all(n, 8, std::make_shared<Csr>(random_pattern(n, 8, 3, random)));
  auto numbers = [&](Offset count) {
    std::vector<double> out(static_cast<std::size_t>(count));
    for (double& x : out) x = random.normal();
    return out;
  };
  auto rows = std::make_shared<std::vector<Id>>(), labels = std::make_shared<std::vector<Id>>();
  for (Id i = 0; i < n; ++i) {
    if (i == 0 || random.below(3) > 0) rows->push_back(i);
    labels->push_back(static_cast<Id>(random.below(6)));
  }
  auto two_labels = std::make_shared<std::vector<Id>>();
  for (Id label : *labels) two_labels->push_back(label % 2);
  std::vector<Id> upside_down;
  for (Id i = n; i-- > 0;) upside_down.push_back(i);
  const LossOptions weighed{.class_weights = {0.5, 2, 1, 1.25, 0.75, 3}, .smoothing = 0.1};
  const Activation relu = Activation::relu;
  std::vector<Op> out{
      {"linear", {{n, 6}, {6, 7}}, [](Bench&, const Vars& x) { return linear(x[0], x[1]); }},
      {"linear maps side by side",
       {{n, 6}, {6, 3}, {1, 3}, {6, 9}, {6, 4}, {1, 4}},
       [](Bench&, const Vars& x) {
         return linear<double>(x[0], {{x[1], x[2], 1.5}, {x[3], {}, 1}, {x[4], x[5], -2}});
       }},
      {"one weight in two maps",
       {{n, 6}, {6, 3}, {1, 3}},
       [](Bench&, const Vars& x) {
         return linear<double>(x[0], {{x[1], x[2], 1}, {x[1], x[2], 0.5}});
       }},
      {"linear maps of sparse",
       {{9, 7}, {1, 7}, {9, 2}},
       [=](Bench& b, const Vars& x) {
         return linear<double>(b.tape.constant(*sparse), {{x[0], x[1], 0.5}, {x[2], {}, 1}});
       }},
      {"linear maps apart",
       {{n, 6}, {6, 3}, {1, 3}, {6, 9}, {6, 4}},
       [](Bench&, const Vars& x) {
         return concat(linears<double>(x[0], {{{x[1], x[2], 1.5}, {x[3], {}, 1}}, {{x[4], {}, -2}}}));
       }},
      {"linear maps apart, one of them unused",
       {{n, 6}, {6, 3}},
       [](Bench&, const Vars& x) {
         return linears<double>(x[0], {{{x[1], {}, 1}}, {{x[1], {}, 3}}})[1];
       }},
      {"linear maps of sparse, apart",
       {{9, 7}, {1, 7}, {9, 2}},
       [=](Bench& b, const Vars& x) {
         return concat(linears<double>(b.tape.constant(*sparse), {{{x[0], x[1], 1}}, {{x[2], {}, 1}}}));
       }},
      {"columns",
       {{n, 7}},
       [](Bench&, const Vars& x) {
         return add(columns<double>({x[0], 1, 3}), columns<double>({x[0], 3, 3}));
       }},
      {"bias of a value that is used again",
       {{n, 7}, {1, 7}},
       [](Bench&, const Vars& x) {
         Var<double> y = scale(x[0], 0.5);
         return add(add_bias(y, x[1]), scale(y, 3));
       }},
      {"bias of a biased value",
       {{n, 7}, {1, 7}, {1, 7}},
       [](Bench&, const Vars& x) {
         Var<double> y = add_bias(scale(x[0], 2), x[1]);
         return add(add_bias(y, x[2]), y);
       }},
      {"linear of sparse", {{9, 7}}, [=](Bench& b, const Vars& x) { return linear(b.tape.constant(*sparse), x[0]); }},
      {"linear of dropped sparse",
       {{9, 7}},
       [=](Bench& b, const Vars& x) { return linear(dropout(b.tape.constant(*sparse), 0.4), x[0]); }},
      {"bias", {{n, 7}, {1, 7}}, [](Bench&, const Vars& x) { return add_bias(x[0], x[1]); }},
      {"add", {{n, 7}, {n, 7}}, [](Bench&, const Vars& x) { return add(x[0], x[1]); }},
      {"add to itself", {{n, 7}}, [](Bench&, const Vars& x) { return add(x[0], x[0]); }},
      {"product with itself", {{6, 6}}, [](Bench&, const Vars& x) { return linear(x[0], x[0]); }},
      {"scale", {{n, 7}}, [](Bench&, const Vars& x) { return scale(x[0], -1.7); }},
      {"concat", {{n, 3}, {n, 1}, {n, 8}}, [](Bench&, const Vars& x) { return concat(x); }},
      {"concat with itself",
       {{n, 3}},
       [](Bench&, const Vars& x) {
         return concat(Vars{x[0], x[0], x[0]});
       }},
      {"permute", {{n, 7}}, [=](Bench&, const Vars& x) { return permute(x[0], upside_down); }},
      {"permute of a sum", {{n, 7}}, [=](Bench&, const Vars& x) { return add(permute(x[0], upside_down), x[0]); }},
      {"linear of permuted sparse",
       {{9, 7}},
       [=](Bench& b, const Vars& x) {
         return linear(permute(dropout(b.tape.constant(*sparse), 0.4), upside_down), x[0]);
       }},
      {"unit", {{n, 12}}, [](Bench&, const Vars& x) { return unit<double>(x[0], 4); }},
      {"unit of columns, twice",
       {{n, 13}},
       [](Bench&, const Vars& x) {
         return add(unit<double>({x[0], 1, 6}, 2), unit<double>({x[0], 5, 6}, 3));
       }},
      {"centre", {{n, 12}}, [](Bench&, const Vars& x) { return centre<double>(x[0], 4); }},
      {"unit of centre", {{n, 12}}, [](Bench&, const Vars& x) { return unit<double>(centre<double>(x[0], 3), 3); }},
      {"centre and unit, of heads that fill no vector",
       {{n, 33}},
       [](Bench&, const Vars& x) { return centre_unit<double>(x[0], 3); }},
      {"linear of heads",
       {{n, 12}, {4, 12}},
       [](Bench&, const Vars& x) { return linear_heads<double>(x[0], x[1], 3); }},
      {"linear of heads of columns",
       {{n, 13}, {4, 12}},
       [](Bench&, const Vars& x) {
         return linear_heads<double>({x[0], 1, 12}, x[1], 3);
       }},
      {"mean of heads", {{n, 12}}, [](Bench&, const Vars& x) { return mean_heads(x[0], 4); }},
      {"contract", {{n, 12}, {1, 12}}, [](Bench&, const Vars& x) { return contract(x[0], x[1], 4); }},
      {"contract by several",
       {{n, 15}, {1, 15}, {1, 15}},
       [](Bench&, const Vars& x) {
         return contract<double>(x[0], {x[1], x[2], x[1]}, 3);
       }},
      {"gather and scatter",
       {{n, 7}},
       [=](Bench&, const Vars& x) {
         auto rows = std::make_shared<Selection>(std::vector<Id>{0, n / 2, 0, n - 1}, n);
         auto get = [rows]() -> const Selection& { return *rows; };
         return scatter(gather<double>({x[0], 2, 3}, get), get);
       }},
      {"gate",
       {{n, 7}, {n, 1}},
       [](Bench&, const Vars& x) {
         return gate<double>({x[0], 1, 4}, x[1]);
       }},
      {"grow", {{n, 7}}, [](Bench&, const Vars& x) { return grow(x[0], 2); }},
      {"grow of sparse",
       {{11, 7}},
       [=](Bench& b, const Vars& x) { return linear(grow(b.tape.constant(*sparse), 2), x[0]); }},
      {"dropout", {{n, 7}}, [](Bench&, const Vars& x) { return dropout(x[0], 0.4); }},
      {"dropout at rest", {{n, 7}}, [](Bench&, const Vars& x) { return dropout(x[0], 0.4); }, false},
      {"dropout of dropout", {{n, 7}}, [](Bench&, const Vars& x) { return dropout(dropout(x[0], 0.4), 0.2); }},
      {"layer norm", {{n, 7}, {1, 7}, {1, 7}}, [](Bench&, const Vars& x) { return layer_norm(x[0], x[1], x[2]); }},
      {"layer norm of dropout at rest",
       {{n, 7}, {1, 7}, {1, 7}},
       [=](Bench&, const Vars& x) { return layer_norm(dropout(activate(x[0], relu), 0.5), x[1], x[2]); },
       false},
      {"propagate", {{n, 7}}, [=](Bench&, const Vars& x) { return propagate(x[0], list, {}, {}); }},
      {"propagate with weights",
       {{n, 7}},
       [=, w = numbers(list->edges())](Bench&, const Vars& x) { return propagate(x[0], list, w, {}); }},
      {"propagate with weights and scale",
       {{8, 7}},
       [=, w = numbers(rectangle->edges()), s = numbers(n)](Bench&, const Vars& x) {
         return propagate(x[0], rectangle, w, s);
       }},
      {"propagate over intervals with scale",
       {{8, 7}},
       [=, s = numbers(n)](Bench&, const Vars& x) { return propagate(x[0], interval, {}, s); }},
      {"cross entropy", {{n, 6}}, [=](Bench&, const Vars& x) { return cross_entropy<double>(x[0], *rows, *labels); }},
      {"cross entropy, weighed and smoothed",
       {{n, 6}},
       [=](Bench&, const Vars& x) { return cross_entropy<double>(x[0], *rows, *labels, weighed); }},
      {"binary cross entropy of six",
       {{n, 6}},
       [=](Bench&, const Vars& x) { return binary_cross_entropy<double>(x[0], *rows, *labels, weighed); }},
      {"binary cross entropy of one",
       {{n, 1}},
       [=](Bench&, const Vars& x) {
         return binary_cross_entropy<double>(x[0], *rows, *two_labels, {.smoothing = 0.2});
       }},
  };
  for (const std::string& name : activation_names())
    out.push_back({name, {{n, 7}}, [f = activation_named(name)](Bench&, const Vars& x) { return activate(x[0], f); }});
  for (bool training : {true, false})
    out.push_back({training ? "batch norm" : "batch norm at rest",
                   {{n, 7}, {1, 7}, {1, 7}},
                   [mean = random_matrix<double>(1, 7, random)](Bench& b, const Vars& x) {
                     Matrix<double> variance(1, 7);
                     for (Offset c = 0; c < 7; ++c) variance(0, c) = 0.5 + mean(0, c) * mean(0, c);
                     auto& m = b.parameter(mean, false);
                     return batch_norm(x[0], x[1], x[2], m, b.parameter(variance, false));
                   },
                   training});
  if (n > 100) return out;  // long tables are for sums that are taken piece by piece
  // Attention. A score's argument near its kink means that the inputs are drawn again.
  // Kinks of normalisers are the business of the tests of kernels.
  std::vector<Normaliser> smooth;
  for (const Normaliser& normaliser : normaliser_menu())
    if (!normaliser.measures) smooth.push_back(normaliser);
  for (const Pair& pair : pairs_of(score_menu(), smooth, random, 0)) {
    const Score score = pair.score;
    const Normaliser normaliser = pair.normaliser;
    auto near_kink = [score](const Pattern& pattern, Columns<double> q, Columns<double> k, Columns<double> e) {
      const Csr& list = *pattern.by_query.list;
      for (Id i = 0; i < list.rows; ++i)
        for (Offset t = list.offsets[i]; t < list.offsets[i + 1]; ++t)
          for (Offset c = 0; c < q.cols(); ++c) {
            const double a = q.view()(i, c), b = k.view()(list.ids[t], c), f = e ? e.view()(t, c) : 0;
            // One value in both roles coincides with itself wherever it goes: no kink.
            if (kink_distance(score, a, b, f) < 1e-3 && !(a == b && f == 0)) return true;
          }
      return false;
    };
    const std::string name = "attention, " + score.name + ", " + normaliser.name;
    const Offset channels = kHeads * (score.contracts ? 1 : kScoreWidth), total = kHeads * kWidth;
    const Offset edges = rectangle->edges();
    auto vector = [=](AttentionVars<double>& in, const Vars& x, std::size_t at) {
      if (score.reads_vector) in.a = x[at++];
      if (score.scalars > 0) in.p = x[at];
    };
    auto shapes = [&](Shapes s) {
      if (score.reads_vector) s.push_back({1, channels});
      if (score.scalars > 0) s.push_back({score.scalars, kHeads});
      return s;
    };
    if (!normaliser.nonnegative)  // which takes no bias
      out.push_back(
          {name + " with all operands",
           shapes({{n, channels}, {8, channels}, {8, total}, {edges, channels}, {edges, kHeads}, {edges, total}}),
           [=](Bench&, const Vars& x) {
             AttentionVars<double> in{.q = x[0], .k = x[1], .v = x[2], .e = x[3], .bias = x[4], .ev = x[5]};
             vector(in, x, 6);
             return attention(in, rectangle, score, normaliser, kHeads, 0.3);
           },
           true, [=](const Vars& x) { return near_kink(*rectangle, x[0], x[1], x[3]); }});
    out.push_back({name + ", its scores alone",
                   shapes({{n, channels}, {8, channels}, {edges, channels}, {edges, kHeads}}),
                   [=](Bench&, const Vars& x) {
                     AttentionVars<double> in{.q = x[0], .k = x[1], .e = x[2], .bias = x[3]};
                     vector(in, x, 4);
                     return attention_scores(in, rectangle, score, kHeads);
                   },
                   true, [=](const Vars& x) { return near_kink(*rectangle, x[0], x[1], x[2]); }});
    out.push_back({name + ", its scores alone, of one value", shapes({{n, channels}}),
                   [=](Bench&, const Vars& x) {
                     AttentionVars<double> in{.q = x[0], .k = x[0]};
                     vector(in, x, 1);
                     return attention_scores(in, list, score, kHeads);
                   },
                   true, [=](const Vars& x) { return near_kink(*list, x[0], x[0], {}); }});
    out.push_back({name + " of one value", shapes({{n, channels}}),
                   [=](Bench&, const Vars& x) {
                     AttentionVars<double> in{.q = x[0], .k = x[0], .v = x[0]};
                     vector(in, x, 1);
                     return attention(in, list, score, normaliser, kHeads);
                   },
                   true, [=](const Vars& x) { return near_kink(*list, x[0], x[0], {}); }});
    if (!score.contracts)
      for (Offset spare : {0, 2})  // columns of one value, all of them or not
        out.push_back(
            {name + " of columns", shapes({{n, 2 * channels + total + spare}}),
             [=](Bench&, const Vars& x) {
               AttentionVars<double> in{
                   .q = {x[0], 0, channels}, .k = {x[0], channels + total, channels}, .v = {x[0], channels, total}};
               vector(in, x, 1);
               return add(attention(in, list, score, normaliser, kHeads), columns<double>({x[0], channels - 2, total}));
             },
             true,
             [=](const Vars& x) {
               return near_kink(*list, {x[0], 0, channels}, {x[0], channels + total, channels}, {});
             }});
    out.push_back({name + " whose feature is value too", shapes({{n, channels}, {8, channels}, {edges, channels}}),
                   [=](Bench&, const Vars& x) {
                     AttentionVars<double> in{.q = x[0], .k = x[1], .v = x[1], .e = x[2], .ev = x[2]};
                     vector(in, x, 3);
                     return attention(in, rectangle, score, normaliser, kHeads, 0.3);
                   },
                   true, [=](const Vars& x) { return near_kink(*rectangle, x[0], x[1], x[2]); }});
  }
  return out;
}

// Every parameter of a network against central differences of `loss`. A difference that straddles a kink is taken again
// over a smaller step; where it straddles none, both agree, and a wrong gradient is caught by either.
double worst_gradient(Network<double>& network, Var<double> loss, Random& random, int steps) {
  Tape<double>& tape = network.tape();
  tape.forward();
  for (int again = 0; again < 2; ++again) tape.backward(loss);
  double worst = 0;
  for (auto& p : network.parameters()) {
    if (!p.trained) continue;
    REQUIRE(p.grad.rows() == p.value.rows());
    REQUIRE(p.grad.cols() == p.value.cols());
    const Matrix<double> gradient = p.grad;
    double scale = 1e-3;
    for (double g : gradient) scale = std::max(scale, std::abs(g));
    for (Offset t = 0; t < std::min<Offset>(steps, p.value.size()); ++t) {
      Offset at = p.value.size() <= steps ? t : static_cast<Offset>(random.below(p.value.size()));
      double& x = p.value.data()[at];
      const double old = x;
      double error = 1;
      for (double h : {1e-5, 3e-7}) {
        x = old + h, tape.forward();
        double up = loss.value()(0, 0);
        x = old - h, tape.forward();
        double down = loss.value()(0, 0);
        x = old;
        error = std::min(error, std::abs((up - down) / (2 * h) - gradient.data()[at]) / scale);
        if (error <= 1e-6) break;
      }
      CAPTURE(p.name);
      CHECK(error <= 1e-6);
      worst = std::max(worst, error);
    }
  }
  return worst;
}

// Some steps of plain gradient descent.
void descend(Network<float>& network, Var<float> loss, int steps) {
  network.tape().training = true;
  for (int s = 0; s < steps; ++s) {
    network.tape().step = static_cast<std::uint64_t>(s);
    network.tape().forward();
    network.tape().backward(loss);
    for (auto& p : network.parameters())
      if (p.trained)
        for (Offset t = 0; t < p.value.size(); ++t) p.value.data()[t] -= 0.05f * p.grad.data()[t];
  }
}

struct Targets {
  std::vector<Id> rows, labels;
  Targets(Id n, Id classes, Random& random) {
    for (Id i = 0; i < n; ++i) {
      if (i == 0 || random.below(3) > 0) rows.push_back(i);
      labels.push_back(static_cast<Id>(random.below(static_cast<std::uint64_t>(classes))));
    }
  }
};

}  // namespace

TEST_SUITE_BEGIN("layers");

TEST_CASE("operations: central differences, once and twice on one tape") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  double worst = 0;
  for (Id n : {1, 11, 1100})
    for (const Op& op : operations(n, random))
      for (int times : {1, 2}) {  // the second use adds to gradients that have arrived
        CAPTURE(op.name);
        CAPTURE(n);
        CAPTURE(times);
        auto bench = std::make_unique<Bench>();
        Vars x;
        for (int tries = 0; tries < 200; ++tries) {
          bench = std::make_unique<Bench>();
          x.clear();
          for (auto [rows, cols] : op.inputs) x.push_back(bench->input(away_from_zero(rows, cols, random)));
          if (!op.near_kink || !op.near_kink(x)) break;
        }
        bench->tape.training = op.training;
        bench->tape.seed = seed;
        bench->tape.step = 5;
        Var<double> loss;
        for (int t = 0; t < times; ++t) {
          Var<double> y = op.apply(*bench, x);
          Var<double> part = inner(y, random_matrix<double>(y.rows(), y.cols(), random));
          loss = t == 0 ? part : add(loss, part);
        }
        double error = bench->worst(loss, random, n > 100 ? 6 : 16);
        CHECK(error <= 1e-6);
        worst = std::max(worst, error);
      }
  MESSAGE("worst gradient error " << worst << ", seed " << seed);
}

TEST_CASE("operations: values against plain loops") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Offset n = 13, d = 6;
  Bench b;
  auto x = b.input(random_matrix<double>(n, d, random, 3)), gain = b.input(random_matrix<double>(1, d, random));
  auto shift = b.input(random_matrix<double>(1, d, random)), w = b.input(random_matrix<double>(d, 4, random));
  const Matrix<double>&X = x.value(), &G = gain.value(), &S = shift.value(), &W = w.value();
  auto check = [&](const char* what, Var<double> y, Offset cols, auto f) {
    b.tape.forward();
    Matrix<double> expected(n, cols);
    for (Offset i = 0; i < n; ++i)
      for (Offset c = 0; c < cols; ++c) expected(i, c) = f(i, c);
    INFO(what);
    CHECK(difference(y.value(), expected) <= 1e-14);
  };
  check("linear", linear(x, w), 4, [&](Offset i, Offset c) {
    double sum = 0;
    for (Offset t = 0; t < d; ++t) sum += X(i, t) * W(t, c);
    return sum;
  });
  auto sparse = random_sparse(static_cast<Id>(n), static_cast<Id>(d), 4, random);
  check("linear of sparse", linear(b.tape.constant(*sparse), w), 4, [&](Offset i, Offset c) {
    double sum = 0;
    const Csr& csr = sparse->pattern();
    for (Offset t = csr.offsets[i]; t < csr.offsets[i + 1]; ++t) sum += sparse->values[t] * W(csr.ids[t], c);
    return sum;
  });
  check("bias", add_bias(x, gain), d, [&](Offset i, Offset c) { return X(i, c) + G(0, c); });
  check("add", add(x, x), d, [&](Offset i, Offset c) { return 2 * X(i, c); });
  check("scale", scale(x, -3), d, [&](Offset i, Offset c) { return -3 * X(i, c); });
  check("concat", concat(Vars{x, linear(x, w), x}), 2 * d + 4, [&](Offset i, Offset c) {
    if (c < d || c >= d + 4) return X(i, c < d ? c : c - d - 4);
    double sum = 0;
    for (Offset t = 0; t < d; ++t) sum += X(i, t) * W(t, c - d);
    return sum;
  });
  check("mean of heads", mean_heads(x, 3), 2,
        [&](Offset i, Offset c) { return (X(i, c) + X(i, c + 2) + X(i, c + 4)) / 3; });
  std::vector<Id> turn(static_cast<std::size_t>(n));
  for (Offset i = 0; i < n; ++i) turn[i] = static_cast<Id>((i + 2) % n);
  check("permute", permute(x, turn), d, [&](Offset i, Offset c) { return X((i + 2) % n, c); });
  check("contract", contract(x, gain, 3), 3,
        [&](Offset i, Offset h) { return X(i, 2 * h) * G(0, 2 * h) + X(i, 2 * h + 1) * G(0, 2 * h + 1); });
  auto activation = [&](const char* name, auto f) {
    check(name, activate(x, activation_named(name)), d, [&](Offset i, Offset c) { return f(X(i, c)); });
  };
  activation("identity", [](double v) { return v; });
  activation("relu", [](double v) { return v > 0 ? v : 0; });
  activation("elu", [](double v) { return v > 0 ? v : std::exp(v) - 1; });
  activation("leaky_relu", [](double v) { return v > 0 ? v : 0.01f * v; });
  activation("gelu", [](double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); });
  activation("tanh", [](double v) { return std::tanh(v); });
  activation("sigmoid", [](double v) { return 1 / (1 + std::exp(-v)); });

  auto moments = [&](bool of_rows, Offset at, double& mean, double& variance) {
    const Offset count = of_rows ? d : n;
    mean = variance = 0;
    for (Offset t = 0; t < count; ++t) mean += (of_rows ? X(at, t) : X(t, at)) / static_cast<double>(count);
    for (Offset t = 0; t < count; ++t) {
      double off = (of_rows ? X(at, t) : X(t, at)) - mean;
      variance += off * off / static_cast<double>(count);
    }
  };
  double mean = 0, variance = 0;
  check("layer norm", layer_norm(x, gain, shift), d, [&](Offset i, Offset c) {
    moments(true, i, mean, variance);
    return (X(i, c) - mean) / std::sqrt(variance + 1e-5) * G(0, c) + S(0, c);
  });
  Bench own;
  auto z = own.input(X), gain_of = own.input(G), shift_of = own.input(S);
  auto &m = own.parameter(random_matrix<double>(1, d, random), false), &v = own.parameter(Matrix<double>(1, d), false);
  v.value.fill(2);
  auto normed = batch_norm(z, gain_of, shift_of, m, v);
  for (bool training : {true, false}) {
    own.tape.training = training;
    const Matrix<double> old_mean = m.value, old_variance = v.value;
    own.tape.forward();
    Matrix<double> expected(n, d), new_mean(1, d), new_variance(1, d);
    for (Offset c = 0; c < d; ++c) {
      moments(false, c, mean, variance);
      new_mean(0, c) = 0.9 * old_mean(0, c) + 0.1 * mean;
      new_variance(0, c) = 0.9 * old_variance(0, c) + 0.1 * variance * n / (n - 1.0);
      if (!training) mean = old_mean(0, c), variance = old_variance(0, c);
      for (Offset i = 0; i < n; ++i) expected(i, c) = (X(i, c) - mean) / std::sqrt(variance + 1e-5) * G(0, c) + S(0, c);
    }
    CHECK(difference(normed.value(), expected) <= 1e-14);
    CHECK(difference(m.value, training ? new_mean : old_mean) <= 1e-14);
    CHECK(difference(v.value, training ? new_variance : old_variance) <= 1e-14);
  }

  auto csr = std::make_shared<Csr>(random_pattern(static_cast<Id>(n), static_cast<Id>(n), 5, random));
  std::vector<double> weights(csr->ids.size()), scales(static_cast<std::size_t>(n));
  for (double& t : weights) t = random.normal();
  for (double& t : scales) t = random.normal();
  check("propagate", propagate(x, Pattern::listed(csr), weights, scales), d, [&](Offset i, Offset c) {
    double sum = 0;
    for (Offset t = csr->offsets[i]; t < csr->offsets[i + 1]; ++t) sum += scales[i] * weights[t] * X(csr->ids[t], c);
    return sum;
  });
  const std::vector<Id> rows{0, 4, 12}, labels{5, -1, -1, -1, 0, 9, -1, -1, -1, -1, -1, -1, 2};
  auto loss = cross_entropy<double>(x, rows, labels);
  b.tape.forward();
  double expected = 0;
  for (Id i : rows) {
    double total = 0;
    for (Offset c = 0; c < d; ++c) total += std::exp(X(i, c));
    expected -= std::log(std::exp(X(i, labels[i])) / total) / 3;
  }
  CHECK(loss.value()(0, 0) == doctest::Approx(expected).epsilon(1e-12));
}

TEST_CASE("models: central differences of every parameter") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 9, classes = 4;
  double worst = 0;
  for (const ModelEntry& entry : model_menu())
    for (Norm norm : {Norm::none, Norm::layer, Norm::batch})
      for (bool residual : {false, true})
        for (int out_heads : {1, 3})
          for (bool sparse : {false, true})
            for (bool training : {true, false}) {
              if (!entry.attends && out_heads > 1) continue;
              CAPTURE(entry.name);
              CAPTURE(static_cast<int>(norm));
              CAPTURE(residual);
              CAPTURE(out_heads);
              CAPTURE(sparse);
              CAPTURE(training);
              Graph graph = random_graph(n, 20, 0, sparse, random);
              Features features = dense_features(n, 6, random);
              if (sparse) features = {.dense = {}, .sparse = random_sparse(n, 6, 4, random)};
              Targets targets(n, classes, random);
              Model model = entry.make({.classes = classes,
                                        .hidden = 3,
                                        .heads = 2,
                                        .out_heads = out_heads,
                                        .dropout = 0.2,
                                        .feature_dropout = 0.2,
                                        .attention_dropout = 0.3,
                                        .norm = norm,
                                        .residual = residual});
              Network<double> network(model, graph, features, random.next());
              for (auto& p : network.parameters())  // biases and gains begin as constants
                for (double& x : p.value) x += (p.trained ? 0.3 : 0.1) * std::abs(random.normal());
              auto loss = cross_entropy<double>(network.output(), targets.rows, targets.labels);
              network.tape().training = training;
              network.tape().step = 3;
              worst = std::max(worst, worst_gradient(network, loss, random, 10));
            }
  MESSAGE("worst gradient error " << worst << ", seed " << seed);
}

TEST_CASE("models: float agrees with double, in values and gradients") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 60, classes = 4;
  Graph graph = random_graph(n, 240, 0, true, random);
  Targets targets(n, classes, random);
  double worst = 0;
  int moved_on = 0;
  const double kNothing = 1e-16;  // a bias before a norm, or of keys, has no effect: its gradient is 0 but for rounding
  auto square = [](const Matrix<double>& x) {
    double sum = 0;
    for (double g : x) sum += g * g;
    return sum;
  };
  for (const ModelEntry& entry : model_menu())
    for (Norm norm : {Norm::none, Norm::layer, Norm::batch})
      for (Activation f :
           {Activation::relu, Activation::elu, Activation::gelu, Activation::tanh, Activation::sigmoid}) {
        CAPTURE(entry.name);
        CAPTURE(static_cast<int>(norm));
        CAPTURE(activation_names()[static_cast<std::size_t>(f)]);
        Model model = entry.make({.classes = classes, .out_heads = 2, .activation = f, .norm = norm, .residual = true});
        // In double, with the parameters of `of`, and features that are moved by so much: some up, others down.
        auto in_double = [&](Network<float>& of, const Features& features, double by, Offset run = 1) {
          Features moved = features;
          for (Offset t = 0; t < moved.dense.size(); ++t)
            moved.dense.data()[t] *= static_cast<float>(1 + (t / run % 2 == 0 ? by : -by));
          auto net = std::make_unique<Network<double>>(model, graph, moved, seed);
          auto loss = cross_entropy<double>(net->output(), targets.rows, targets.labels);
          for (std::size_t p = 0; p < of.parameters().size(); ++p)
            std::copy(of.parameters()[p].value.begin(), of.parameters()[p].value.end(),
                      net->parameters()[p].value.begin());
          net->tape().training = true;
          net->tape().forward(), net->tape().backward(loss);
          return net;
        };
        // Whether gradients jump: at a kink of a score or an activation, rounding decides on which side float is.
        auto jumps = [&](Network<float>& of, const Features& features) {
          for (Offset run : {1, 3, 12}) {
            const auto up = in_double(of, features, 4e-6, run), down = in_double(of, features, -4e-6, run);
            for (std::size_t p = 0; p < up->parameters().size(); ++p) {
              const Matrix<double>&x = up->parameters()[p].grad, &y = down->parameters()[p].grad;
              if (up->parameters()[p].trained && square(x) > kNothing && difference(x, y) > 5e-5) return true;
            }
          }
          return false;
        };
        Features features = dense_features(n, 12, random);
        auto made = std::make_unique<Network<float>>(model, graph, features, seed);
        for (int tries = 0; tries < 20 && jumps(*made, features); ++tries, ++moved_on) {
          features = dense_features(n, 12, random);
          made = std::make_unique<Network<float>>(model, graph, features, seed);
        }
        Network<float>& single = *made;
        const auto there = in_double(single, features, 0);
        Network<double>& twice = *there;
        auto loss = cross_entropy<float>(single.output(), targets.rows, targets.labels);
        single.tape().training = true;
        single.tape().forward(), single.tape().backward(loss);
        auto compare = [&](double error) {
          CHECK(error <= 1e-4);
          worst = std::max(worst, error);
        };
        compare(difference(single.output().value(), twice.output().value()));
        for (std::size_t p = 0; p < single.parameters().size(); ++p) {
          const Matrix<float>& x = single.parameters()[p].grad;
          const Matrix<double>& y = twice.parameters()[p].grad;
          if (!twice.parameters()[p].trained) continue;
          CAPTURE(single.parameters()[p].name);
          if (square(y) < kNothing)
            for (float g : x) CHECK(std::abs(g) < 1e-5);
          else
            compare(difference(x, y));
        }
      }
  MESSAGE("worst relative error " << worst << ", away from " << moved_on << " kinks, seed " << seed);
}

TEST_CASE("attend: central differences with edge features, projections, residual and means of heads") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 9;
  double worst = 0;
  for (const Score& score : score_menu())
    for (Projection projection :
         {Projection::by_score, Projection::one, Projection::source_target, Projection::separate})
      for (bool concat : {true, false})
        for (bool edges : {true, false}) {
          if (score.contracts && projection != Projection::by_score && projection != Projection::one) continue;
          const bool hidden = score.prepares == Prepare::hidden;
          if (hidden && projection != Projection::by_score && projection != Projection::separate) continue;
          if (random.below(2) == 0 && projection != Projection::by_score) continue;
          CAPTURE(score.name);
          CAPTURE(static_cast<int>(projection));
          CAPTURE(concat);
          CAPTURE(edges);
          Graph graph = random_graph(n, 20, 3, false, random);
          Features features = dense_features(n, 5, random);
          Model model = attend({.out = 3,
                                .heads = 2,
                                .score = score,
                                .dropout = 0.2,
                                .feature_dropout = 0.2,
                                .concat = concat,
                                .residual = concat,
                                .edges = edges,
                                .query_scale = 0.6,
                                .score_width = hidden ? 4 : 0,
                                .temperature = edges ? 1.3 : 1,
                                .learn_temperature = concat,
                                .projection = projection});
          Network<double> network(model, graph, features, random.next());
          auto y = network.output();
          auto loss = inner(y, random_matrix<double>(y.rows(), y.cols(), random));
          network.tape().training = true;
          worst = std::max(worst, worst_gradient(network, loss, random, 12));
        }
  MESSAGE("worst gradient error " << worst << ", seed " << seed);
}

TEST_CASE("by degree: the values and gradients of the model itself, in the caller's order") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 40;
  Graph graph = random_graph(n, 200, 3, true, random);
  for (Id i = 0; i < n; ++i) graph.times.push_back(random.normal());
  Features sparse{.dense = {}, .sparse = random_sparse(n, 12, 6, random)}, full = dense_features(n, 12, random);
  auto model = [](const Mask& mask) {
    return stack({attend({.out = 3, .heads = 4, .score = score_named("gatv2"), .mask = mask, .edges = true}),
                  activation(Activation::elu), attend({.out = 5, .mask = before()}), graph_convolution(5),
                  sage_convolution(4)});
  };
  const Targets targets(n, 4, random);
  for (const Features* features : {&sparse, &full}) {
    // Of the sparse features some rows are alike, whose nearest are a matter of numbers.
    const Model inner = model(local(2) | self() | (features == &full ? knn(3) : heavier(0.5)));
    Network<double> plain(inner, graph, *features, seed), sorted(by_degree(inner), graph, *features, seed);
    auto expected = cross_entropy<double>(plain.output(), targets.rows, targets.labels);
    auto loss = cross_entropy<double>(sorted.output(), targets.rows, targets.labels);
    plain.tape().forward(), plain.tape().backward(expected);
    sorted.tape().forward(), sorted.tape().backward(loss);
    CHECK(difference(sorted.output().value(), plain.output().value()) <= 1e-12);
    REQUIRE(sorted.parameters().size() == plain.parameters().size());
    for (std::size_t p = 0; p < plain.parameters().size(); ++p) {
      CHECK(sorted.parameters()[p].name == plain.parameters()[p].name);
      CHECK(sorted.parameters()[p].value == plain.parameters()[p].value);
      const Matrix<double>&got = sorted.parameters()[p].grad, &want = plain.parameters()[p].grad;
      // Keys' bias has no effect: its gradient is 0 but for rounding.
      if (plain.parameters()[p].name == "2.key.bias")
        for (double g : got) CHECK(std::abs(g) <= 1e-12);
      else
        CHECK(difference(got, want) <= 1e-11);
    }
  }
}

TEST_CASE("a mask in which nobody sees anybody: values 0, gradients 0") {
  Random random(1);
  Graph graph = random_graph(9, 20, 0, false, random);
  Features features = dense_features(9, 5, random);
  for (const Normaliser& normaliser : normaliser_menu())
    for (const Mask& mask : {local() - local(), all() - (all() | self())}) {
      CAPTURE(normaliser.name);
      CAPTURE(mask.text());
      Network<double> network(
          attend({.out = 3, .score = score_named("gaussian"), .normaliser = normaliser, .mask = mask}), graph, features,
          1);
      auto loss = inner(network.output(), random_matrix<double>(9, 3, random));
      network.tape().training = true;
      network.tape().forward(), network.tape().backward(loss);
      for (double y : network.output().value()) CHECK(y == 0);
      for (auto& p : network.parameters())
        for (double g : p.grad) CHECK(g == 0);
    }
}

TEST_CASE("unit and centre: vectors of 0 and constant vectors stay 0 and take no gradient") {
  for (bool at_once : {false, true}) {
    Bench b;
    Matrix<double> x(3, 4);
    x.fill(0);
    for (int c = 0; c < 4; ++c) x(1, c) = 0.1, x(2, c) = c;
    Var<double> in = b.input(x), y = at_once ? centre_unit<double>(in, 1) : unit<double>(centre<double>(in, 1), 1);
    Matrix<double> weights(3, 4);
    for (Offset t = 0; t < 12; ++t) weights.data()[t] = static_cast<double>(t * t);
    Var<double> loss = inner(y, weights);
    b.tape.forward(), b.tape.backward(loss);
    for (int c = 0; c < 4; ++c)
      for (Id i : {0, 1}) {
        CHECK(y.value()(i, c) == 0);
        CHECK(in.grad()(i, c) == 0);
      }
    CHECK(y.value()(2, 3) == doctest::Approx(1.5 / std::sqrt(5.0)));
  }
}

// The value of attention over `pattern` and the gradients of q, k, v, a and the bias, which it adds itself or not.
template <class T>
std::vector<Matrix<T>> biased_attention(const std::shared_ptr<const Pattern>& pattern, const char* score,
                                        const char* normaliser, int heads, Offset width, bool itself,
                                        std::uint64_t seed) {
  Random random(seed);
  const Score s = score_named(score);
  const Id n = pattern->queries();
  const Offset total = heads * width, numbers = s.contracts ? heads : total;
  Tape<T> tape;
  tape.training = true;
  std::deque<Parameter<T>> inputs;
  auto input = [&](Offset rows, Offset cols) {
    return tape.parameter(inputs.emplace_back(Parameter<T>{"", random_matrix<T>(rows, cols, random), {}, true}));
  };
  AttentionVars<T> x;
  x.q = input(n, numbers), x.k = input(pattern->keys(), numbers), x.v = input(pattern->keys(), total);
  if (s.reads_vector) x.a = input(1, numbers);
  if (s.scalars > 0) x.p = input(s.scalars, heads);
  Var<T> bias = input(1, total);
  if (itself) x.y_bias = bias;
  if (pattern->is_listed() && !s.filter) attention_scores(x, pattern, s, heads);  // which does not read it
  Var<T> y = attention(x, pattern, s, normaliser_named(normaliser), heads, 0.3);
  if (!itself) y = add_bias(y, bias);
  Var<T> loss = tape.result(1, 1, {y});
  const Matrix<T> dy = random_matrix<T>(n, total, random);
  tape.record(
      loss, [] {}, [&] { std::copy(dy.begin(), dy.end(), y.sink().to.data); });
  tape.forward(), tape.backward(loss);
  std::vector<Matrix<T>> out{y.value()};
  for (auto& p : inputs) out.push_back(p.grad);
  return out;
}

TEST_CASE("attention that adds its bias itself: the values and gradients of a bias behind it") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id hub = static_cast<Id>(3 * kHubEdges + 100);
  Csr rows{.rows = 5, .cols = hub};
  for (Id i = 0; i < 5; ++i) {  // two hubs, one of them every second node, and rows that see one or none
    for (Id j = 0; j < (i == 0 ? hub : i < 3 ? i - 1 : 0); ++j) rows.ids.push_back(j);
    for (Id j = 0; j < (i == 3 ? hub : 0); j += 2) rows.ids.push_back(j);
    rows.offsets.push_back(rows.edges());
  }
  const auto list = Pattern::listed(std::make_shared<Csr>(random_pattern(60, 50, 6, random)));
  const auto hubs = Pattern::listed(std::make_shared<Csr>(rows));
  const auto all = Pattern::all(300, 300);
  struct Case {
    std::shared_ptr<const Pattern> pattern;
    const char *score, *normaliser;
    int heads;
    Offset width;
  };
  for (const Case& c :
       {Case{list, "dot", "softmax", 4, 16}, Case{list, "gat", "softmax", 8, 8}, Case{list, "gat", "softmax", 8, 3},
        Case{list, "gatv2", "softmax", 3, 5}, Case{list, "dot", "entmax15", 2, 4}, Case{list, "gaussian", "max", 2, 4},
        Case{list, "dot topk(2)", "sigmoid", 2, 4}, Case{list, "dot", "softmax", 40, 2},
        Case{hubs, "dot", "softmax", 4, 16}, Case{hubs, "gat", "softmax", 2, 3}, Case{hubs, "dot", "sparsemax", 2, 3},
        Case{all, "dot", "softmax", 2, 8}, Case{all, "node", "softmax", 4, 16}, Case{all, "dot", "entmax15", 2, 3}}) {
    CAPTURE(c.score);
    CAPTURE(c.normaliser);
    auto compare = [&]<class T>(T, double most) {
      const auto own = biased_attention<T>(c.pattern, c.score, c.normaliser, c.heads, c.width, true, seed);
      const auto behind = biased_attention<T>(c.pattern, c.score, c.normaliser, c.heads, c.width, false, seed);
      REQUIRE(own.size() == behind.size());
      CHECK(own[0] == behind[0]);
      auto norm = [](const Matrix<T>& x, const Matrix<T>* less = nullptr) {
        double square = 0;
        for (Offset e = 0; e < x.size(); ++e) square += std::pow(x.data()[e] - (less ? less->data()[e] : T(0)), 2);
        return std::sqrt(square);
      };
      // What is subtracted is of the bias's size: of the largest gradient, not of each.
      double size = 0;
      for (std::size_t t = 1; t < own.size(); ++t) size = std::max(size, norm(behind[t]));
      CHECK(size > 0);
      for (std::size_t t = 1; t < own.size(); ++t) {
        CAPTURE(t);
        CHECK(norm(own[t], &behind[t]) <= most * size);
      }
    };
    compare(1.0f, 3e-6);
    compare(1.0, 1e-12);
  }
}

TEST_CASE("by degree: rules that number nodes mean the caller's") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 20;
  Graph graph = random_graph(n, 80, 0, false, random);
  Features features = dense_features(n, 6, random);
  Scratch files;
  std::string lines, times;
  for (Id i = 0; i < n; ++i) {
    lines += std::to_string(i) + " " + std::to_string(random.below(n)) + "\n";
    times += std::to_string(random.below(8)) + "\n";
  }
  const auto pairs_file = files.write("pairs", lines), times_file = files.write("times", times);
  for (const Mask& mask : {pairs(pairs_file) | self(), before(times_file),
                           where("odd", [](Id i, Id j) { return (i + 2 * j) % 3 == 0; }) | self()})
    for (const Keys& keys : {all_keys(), every(2, 1)}) {
      CAPTURE(mask.text());
      CAPTURE(keys.text());
      const Model inner = attend({.out = 3, .heads = 2, .mask = mask, .keys = keys});
      Network<double> plain(inner, graph, features, seed), sorted(by_degree(by_degree(inner)), graph, features, seed);
      plain.tape().forward(), sorted.tape().forward();
      CHECK(difference(sorted.output().value(), plain.output().value()) <= 1e-12);
    }
}

TEST_CASE("composition: stack, residual, concat and sum") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  Graph graph = random_graph(9, 20, 0, false, random);
  Features features = dense_features(9, 5, random);
  Model model = stack({concat({dense(4), sage_convolution(3)}), residual(activation(Activation::tanh)),
                       residual(graph_convolution(2)), sum({dense(3), dense(3, false), graph_convolution(3, false)})});
  Network<double> network(model, graph, features, seed);
  std::vector<std::string> names;
  for (auto& p : network.parameters()) names.push_back(p.name);
  CHECK(names == std::vector<std::string>{"0.0.weight", "0.0.bias", "0.1.neighbours.weight", "0.1.self.weight",
                                          "0.1.self.bias", "2.inner.weight", "2.inner.bias", "2.skip.weight",
                                          "2.skip.bias", "3.0.weight", "3.0.bias", "3.1.weight", "3.2.weight"});
  auto loss = inner(network.output(), random_matrix<double>(9, 3, random));
  CHECK(worst_gradient(network, loss, random, 20) <= 1e-6);
}

TEST_CASE("transposed product: plain loops in double, few columns and many, several tables, added to, on any threads") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (auto [rows, cols, most] :
       {std::array<Id, 3>{900, 12, 9}, {300, 3, 3}, {2000, 40, 30}, {50, 200, 8}, {9, 1, 1}}) {
    CAPTURE(rows);
    auto x = std::make_shared<Sparse>(*random_sparse(rows, cols, most, random));
    for (float& value : x->values)
      if (random.uniform() < 0.5) value = 0;  // as dropout leaves them
    for (auto widths : {std::vector<Offset>{64}, {7}, {16, 3}, {70, 1, 33}}) {
      std::vector<Matrix<float>> dy, y, more;
      for (Offset width : widths) {
        dy.push_back(random_matrix<float>(rows, width, random));
        y.emplace_back(cols, width), more.push_back(random_matrix<float>(cols, width, random));
      }
      const auto before = more;
      Matrix<float> parts;
      auto run = [&](std::vector<Matrix<float>>& to, bool add) {
        std::vector<Summand<float>> sums;
        for (std::size_t m = 0; m < to.size(); ++m) sums.push_back({std::as_const(dy[m]).view(), {to[m].view(), add}});
        transposed_product<float>(*x, x->values, sums, parts);
      };
      run(y, false), run(more, true);
      for (int threads : {1, 2, 7}) {
        auto again = y;
        with_threads(threads, [&] { run(again, false); });
        for (std::size_t m = 0; m < y.size(); ++m) CHECK(again[m] == y[m]);
      }
      const Csr& list = x->pattern();
      for (std::size_t m = 0; m < y.size(); ++m) {
        Matrix<double> expected(cols, widths[m]), sum(cols, widths[m]);
        for (Id i = 0; i < rows; ++i)
          for (Offset t = list.offsets[i]; t < list.offsets[i + 1]; ++t)
            for (Offset c = 0; c < widths[m]; ++c) expected(list.ids[t], c) += x->values[t] * double(dy[m](i, c));
        for (Offset t = 0; t < sum.size(); ++t) sum.data()[t] = expected.data()[t] + before[m].data()[t];
        CHECK(difference(y[m], expected) <= 1e-5);
        CHECK(difference(more[m], sum) <= 1e-5);
      }
    }
  }
  for (Id rows : {400, 4}) {  // in tables of their own, and column by column
    auto x = random_sparse(rows, 5, 4, random);
    Matrix<float> dy(rows, 4), fewer(rows - 1, 4), y(5, 4), parts;
    auto refused = [&](const Matrix<float>& from, std::span<const float> values) {
      const Summand<float> sum{from.view(), {y.view(), false}};
      return message([&] { transposed_product<float>(*x, values, {&sum, 1}, parts); });
    };
    const std::span<const float> values = x->values;
    CHECK(refused(dy, values).empty());
    CHECK(refused(fewer, values).find("do not fit") != std::string::npos);
    CHECK(refused(dy, values.first(values.size() - 1)).find("do not fit") != std::string::npos);
  }
}

TEST_CASE("training: the same bits on 1, 2 and 7 threads, and from a fresh tape") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 3000, classes = 5;
  std::vector<Edge> list;
  for (int e = 0; e < 9000; ++e) list.push_back({static_cast<Id>(random.below(n)), static_cast<Id>(random.below(n))});
  for (Id i = 0; i < n; ++i) list.push_back({i, 7});
  Graph graph = graph_from_edges(n, list);
  Targets targets(n, classes, random);
  for (bool sparse : {false, true})
    for (const ModelEntry& entry : model_menu()) {
      CAPTURE(sparse);
      CAPTURE(entry.name);
      Features features = dense_features(n, 20, random);
      if (sparse) features = {.dense = {}, .sparse = random_sparse(n, 20, 8, random)};
      Model model = entry.make({.classes = classes, .out_heads = 2, .norm = Norm::batch, .residual = true});
      struct Run {
        Network<float> network;
        Var<float> loss;
        Run(const Model& m, const Graph& g, const Features& f, const Targets& t)
            : network(m, g, f, 17), loss(cross_entropy<float>(network.output(), t.rows, t.labels)) {}
      };
      auto same = [](Run& a, Run& b) {
        CHECK(a.network.output().value() == b.network.output().value());
        CHECK(a.loss.value() == b.loss.value());
        for (std::size_t p = 0; p < a.network.parameters().size(); ++p) {
          CAPTURE(a.network.parameters()[p].name);
          CHECK(a.network.parameters()[p].value == b.network.parameters()[p].value);
          CHECK(a.network.parameters()[p].grad == b.network.parameters()[p].grad);
        }
      };
      Run first(model, graph, features, targets);
      with_threads(1, [&] { descend(first.network, first.loss, 3); });
      CHECK(std::isfinite(first.loss.value()(0, 0)));
      for (int threads : {2, 7}) {
        CAPTURE(threads);
        Run other(model, graph, features, targets);
        with_threads(threads, [&] { descend(other.network, other.loss, 3); });
        same(first, other);
      }
      Run fresh(model, graph, features, targets);
      for (std::size_t p = 0; p < first.network.parameters().size(); ++p)
        fresh.network.parameters()[p].value = first.network.parameters()[p].value;
      for (Run* run : {&first, &fresh}) {
        run->network.tape().training = true;
        run->network.tape().step = 99;
        run->network.tape().forward();
        run->network.tape().backward(run->loss);
      }
      same(first, fresh);
    }
}

TEST_CASE("a focus on a loss of few rows: its bits and those of all gradients, with less computed") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 400, classes = 4;
  Graph graph = random_graph(n, 600, 0, false, random);  // two steps from a few nodes are not yet most
  std::vector<Id> rows{3, 8, n - 1}, nodes(static_cast<std::size_t>(n)), labels(nodes.size());
  std::iota(nodes.begin(), nodes.end(), 0);
  for (Id& label : labels) label = static_cast<Id>(random.below(classes));
  auto gat_with = [&](Attend first, Attend second) {
    return stack({dropout(0.4), attend(first), activation(Activation::elu), dropout(0.4), attend(second)});
  };
  const Score gat = score_named("gat"), dot = score_named("scaled_dot");
  const Mask near = local() | self();
  std::map<std::string, Model> models{
      {"one layer", attend({.out = classes, .score = gat, .mask = near})},
      {"gat", gat_with({.out = 8, .heads = 8, .score = gat, .mask = near, .dropout = 0.5},
                       {.out = classes, .heads = 8, .score = gat, .mask = near, .concat = false})},
      {"dot", gat_with({.out = 16, .heads = 4, .score = dot, .mask = near},
                       {.out = 8, .score = score_named("gatv2"), .mask = near, .residual = true})},
      {"through the stages",
       gat_with({.out = 5, .heads = 3, .score = gat, .normaliser = normaliser_named("entmax15"), .mask = near},
                {.out = classes, .score = dot, .mask = near, .keys = every(2)})},
      {"redrawn", gat_with({.out = 8, .heads = 8, .score = gat, .mask = near | heed::random(2, Draw::every_step)},
                           {.out = 8, .score = gat, .mask = near})},
      {"all", gat_with({.out = 8, .heads = 8, .score = dot, .mask = all()}, {.out = 8, .score = gat, .mask = near})},
      {"forty heads",
       gat_with({.out = 2, .heads = 40, .score = dot, .mask = near}, {.out = 8, .score = gat, .mask = near})}};
  for (const ModelEntry& entry : model_menu())
    models.emplace(entry.name, entry.make({.classes = classes, .norm = Norm::batch, .residual = true}));
  for (const auto& [name, model] : models)
    for (bool sparse : {false, true}) {
      CAPTURE(name);
      CAPTURE(sparse);
      Features features = dense_features(n, 20, random);
      if (sparse) features = {.dense = {}, .sparse = random_sparse(n, 20, 8, random)};
      struct Run {
        Network<float> network;
        Var<float> every, loss;
        Run(const Model& m, const Graph& g, const Features& f) : network(m, g, f, 17) {}
      };
      auto run = [&](bool focused) {
        auto out = std::make_unique<Run>(model, graph, features);
        out->every = cross_entropy<float>(out->network.output(), nodes, labels);
        out->loss = cross_entropy<float>(out->network.output(), rows, labels);
        Tape<float>& tape = out->network.tape();
        const Focus focus = tape.focus_on(out->loss);
        for (std::uint64_t step = 1; step <= 5; ++step) {
          const bool few = step != 1 && step != 3;  // the others leave gradients in all rows
          tape.focus = focused && few ? &focus : nullptr;
          tape.training = true, tape.step = step;
          tape.forward(), tape.backward(few ? out->loss : out->every);
          for (auto& p : out->network.parameters())
            for (Offset t = 0; p.trained && t < p.value.size(); ++t) p.value.data()[t] -= 0.1f * p.grad.data()[t];
        }
        tape.focus = nullptr;
        return out;
      };
      auto whole = run(false), part = run(true);
      CHECK(std::isfinite(whole->loss.value()(0, 0)));
      CHECK(whole->loss.value() == part->loss.value());
      for (std::size_t p = 0; p < whole->network.parameters().size(); ++p) {
        CAPTURE(whole->network.parameters()[p].name);
        CHECK(whole->network.parameters()[p].value == part->network.parameters()[p].value);
        CHECK(whole->network.parameters()[p].grad == part->network.parameters()[p].grad);
      }
      for (Run* r : {whole.get(), part.get()}) r->network.tape().training = false, r->network.tape().forward();
      CHECK(whole->network.output().value() == part->network.output().value());
      if (name != "one layer") continue;
      const Focus focus = part->network.tape().focus_on(part->loss);
      part->network.tape().focus = &focus;
      Matrix<float>& logits = part->network.output().value();  // rows that nobody wants keep what they had
      logits.fill(7), part->network.tape().forward();
      CHECK(std::ranges::count(logits, 7.0f) == (n - std::ssize(rows)) * classes);
    }
}

TEST_CASE("dropout: none outside training; in training it keeps its rate and draws anew for step, seed and place") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  Graph graph = random_graph(40, 120, 0, false, random);
  Features features = dense_features(40, 6, random);
  for (const ModelEntry& entry : model_menu()) {
    CAPTURE(entry.name);
    ModelOptions options{.classes = 4, .dropout = 0.5, .feature_dropout = 0.5, .attention_dropout = 0.5};
    Network<float> drops(entry.make(options), graph, features, 3);
    options.dropout = options.feature_dropout = options.attention_dropout = 0;
    Network<float> plain(entry.make(options), graph, features, 3);
    drops.tape().forward(), plain.tape().forward();
    CHECK(drops.output().value() == plain.output().value());
    drops.tape().training = plain.tape().training = true;
    drops.tape().forward(), plain.tape().forward();
    CHECK(drops.output().value() != plain.output().value());
    drops.tape().training = plain.tape().training = false;
    drops.tape().forward(), plain.tape().forward();
    CHECK(drops.output().value() == plain.output().value());
  }

  Matrix<float> ones(500, 300);
  ones.fill(1);
  auto pattern = std::make_shared<Csr>(random_pattern(500, 5000, 600, random));
  Sparse sparse(pattern, std::vector<float>(pattern->ids.size(), 1.0f));
  for (double rate : {0.1, 0.6}) {
    Tape<float> tape;
    tape.training = true;
    tape.seed = seed;
    auto first = dropout(tape.constant(ones), rate), second = dropout(tape.constant(ones), rate);
    auto entries = dropout(tape.constant(sparse), rate);
    tape.forward();
    auto once = first.value(), other = second.value(), drawn = entries.value();
    CHECK(drawn.size() == pattern->edges());
    for (auto* y : {&once, &drawn}) {
      double kept = 0, strange = 0;
      for (float x : *y) kept += x > 0, strange += x != 0 && std::abs(x * (1 - rate) - 1) > 1e-6;
      CHECK(strange == 0);
      const double count = static_cast<double>(y->size());
      CHECK(std::abs(kept / count - (1 - rate)) < 5 * std::sqrt(rate * (1 - rate) / count));
    }
    double both = 0;
    for (Offset t = 0; t < once.size(); ++t) both += once.data()[t] > 0 && other.data()[t] > 0;
    CHECK(std::abs(both / static_cast<double>(once.size()) - (1 - rate) * (1 - rate)) < 0.01);
    tape.forward();
    CHECK(first.value() == once);
    tape.step = 1;
    tape.forward();
    CHECK(first.value() != once);
    CHECK(entries.value() != drawn);
    tape.step = 0, tape.seed = seed + 1;
    tape.forward();
    CHECK(first.value() != once);
  }
}

TEST_CASE("tape: only what was reached has a gradient, a constant takes none, and no nodes are no trouble") {
  Bench b;
  Random random(1);
  auto x = b.input(random_matrix<double>(4, 3, random)), w = b.input(random_matrix<double>(3, 2, random));
  auto unused = b.input(random_matrix<double>(3, 2, random));
  auto& still = b.parameter(random_matrix<double>(4, 3, random), false);
  auto y = add(linear(x, w), linear(b.tape.parameter(still), w));
  linear(x, unused);
  auto loss = inner(y, random_matrix<double>(4, 2, random));
  b.tape.forward();
  b.tape.backward(loss);
  CHECK(x.arrived());
  CHECK(w.arrived());
  CHECK_FALSE(unused.arrived());
  CHECK(unused.grad().rows == 0);
  CHECK(still.grad.empty());

  Graph graph = graph_from_edges(0, {});
  Features features{.dense = Matrix<float>(0, 5), .sparse = nullptr};
  for (const ModelEntry& entry : model_menu())
    for (Norm norm : {Norm::layer, Norm::batch}) {
      CAPTURE(entry.name);
      Network<float> network(entry.make({.classes = 3, .out_heads = 2, .norm = norm}), graph, features, 1);
      auto sum = inner(network.output(), Matrix<float>(0, 3));
      network.tape().training = true;
      network.tape().forward();
      network.tape().backward(sum);
      CHECK(network.output().rows() == 0);
      for (auto& p : network.parameters())
        for (float g : p.grad) CHECK(g == 0);
    }
}

TEST_CASE("shapes that do not fit are named") {
  Random random(1);
  Bench b;
  auto var = [&](Offset rows, Offset cols) { return b.input(random_matrix<double>(rows, cols, random)); };
  auto x = var(5, 6);
  auto list = Pattern::listed(std::make_shared<Csr>(identity(4)));
  CHECK(message([&] { linear(x, var(5, 2)); }) == "linear: x is 5 x 6, the weight 5 x 2");
  CHECK(message([&] { add_bias(x, var(1, 5)); }) == "bias: got 1 x 5, expected 1 x 6");
  CHECK(message([&] { add(x, var(6, 5)); }) == "add: got 6 x 5, expected 5 x 6");
  CHECK(message([&] { heed::concat(Vars{x, var(4, 2)}); }) == "concat: got 4 x 2, expected 5 x 2");
  CHECK(message([&] { heed::concat(Vars{}); }) == "concat: nothing to put together");
  CHECK(message([&] { mean_heads(x, 4); }) == "mean over heads: 6 channels do not divide into 4 heads");
  CHECK(message([&] { contract(x, var(1, 6), 4); }) == "contract: 6 channels do not divide into 4 heads");
  CHECK(message([&] { contract(x, var(2, 6), 3); }) == "contract: got 2 x 6, expected 1 x 6");
  CHECK(message([&] { heed::dropout(x, 1.0); }).find("dropout must be at least 0 and below 1, not 1") == 0);
  CHECK(message([&] { heed::dropout(x, std::nan("")); }).find("dropout must be") == 0);
  CHECK(message([&] { heed::layer_norm(x, var(1, 6), var(1, 5)); }) == "layer norm's shift: got 1 x 5, expected 1 x 6");
  CHECK(message([&] {
          heed::batch_norm(x, var(1, 6), var(1, 6), b.parameter(Matrix<double>(1, 6)),
                           b.parameter(Matrix<double>(1, 5)));
        }) == "batch norm: running moments must be 1 x 6");
  CHECK(message([&] { propagate(x, list, {}, {}); }) == "propagate: the mask has 4 keys, the values 5 rows");
  CHECK(message([&] { propagate(var(4, 2), list, {}, {1.0, 2.0}); }) == "propagate: 2 scales for 4 queries");
  CHECK(message([&] { propagate(var(4, 2), list, {1.0, 2.0}, {}); }) == "propagate: 2 weights for 4 edges");
  CHECK(message([&] {
          propagate(var(4, 2), Pattern::all(4, 4), {1.0, 2.0}, {});
        }) == "propagate: weights need a mask that is a list");
  CHECK(message([&] {  // attention looks at its operands when it runs
          Bench own;
          auto operand = own.input(Matrix<double>(4, 6));
          AttentionVars<double> in{.q = operand, .k = operand, .v = operand};
          attention(in, list, score_named("dot"), normaliser_named("softmax"), 4);
          own.tape.forward();
        }) == "attention: 6 query channels do not divide into 4 heads");
  const std::vector<Id> rows{0, 2}, labels{0, 0, 6, 0, 0}, few{0, 1};
  CHECK(message([&] { cross_entropy<double>(x, rows, labels); }) ==
        "cross entropy: row 2 is not there or has no label below 6");
  CHECK(message([&] { cross_entropy<double>(x, rows, few); }) == "cross entropy: 2 labels for 5 rows");
  CHECK(message([&] { cross_entropy<double>(x, {}, labels); }) == "cross entropy: no rows to average over");
  CHECK(message([&] { activation_named("rely"); }) == "unknown activation 'rely'; did you mean relu, elu or gelu?");

  Graph graph = graph_from_edges(4, {});
  Features features = dense_features(4, 3, random), short_of = dense_features(3, 3, random);
  auto network = [&](const Model& model, const Features& f) { Network<float> made(model, graph, f, 1); };
  CHECK(message([&] { network(dense(2), short_of); }) == "the features have 3 rows, the graph 4 nodes");
  CHECK(message([&] { network(attend({.out = 2, .edges = true}), features); }) ==
        "the layer reads edge features, but the graph has none");
  CHECK(message([&] { attend({.out = 0}); }).find("attend: needs at least 1 head and 1 channel") == 0);
  CHECK(message([&] {
          attend({.out = 2, .score = score_named("gat"), .projection = Projection::separate});
        }).find("'gat' contracts one projection") != std::string::npos);
  CHECK(message([&] { attend({.out = 1, .score = score_named("pearson")}); }) ==
        "attend: the score 'pearson' needs at least 2 channels a head");
  CHECK(message([&] {
          attend({.out = 2, .normaliser = normaliser_named("sum")});
        }).find("the normaliser 'sum' takes scores that are never negative") == 0);
  CHECK(message([&] {
          attend({.out = 2, .score = score_named("gat"), .score_width = 3});
        }).find("takes no width of its own") != std::string::npos);
  CHECK(message([&] { attend({.out = 2, .temperature = -1}); }).find("a temperature must be above 0") == 0);
  CHECK(message([&] { attend({.out = 2, .temperature = 0}); }).find("a temperature must be above 0") == 0);
  CHECK(message([&] { attend({.out = 8, .score = score_named("softdtw(3)")}); }) ==
        "the score 'softdtw': 8 channels a head do not divide into 3 steps");
  for (const char* wrong : {"softdtw()", "softdtw(0)", "softdtw(8", "softdtw(8, 0)", "softdtw(8, x)", "softdtw(8) ",
                            "softdtw(8, 1, 2)", "softdtw(8, inf)"})
    CHECK(message([&] { score_named(wrong); }).find("softdtw takes a number of steps") == 0);
  CHECK(score_named("softdtw( 4 , 0.5 )").name == "softdtw( 4 , 0.5 )");
  CHECK(message([&] {  // a mask of another graph
          network(
              attend({.out = 2,
                      .mask = Mask("mine", [](const Graph&) { return PairSet{std::make_shared<Csr>(identity(5))}; })}),
              features);
        }) == "the mask 'mine' gave no pairs of the 4 nodes");
  CHECK(message([&] {
          Bench own;
          auto operand = own.input(Matrix<double>(5, 4));
          AttentionVars<double> in{.q = operand, .k = operand, .v = operand};
          attention(in, list, score_named("dot"), normaliser_named("softmax"), 2);
          own.tape.forward();
        }) == "attention: q is 5 x 4, expected 4 x 4");
  CHECK(message([&] { network(attend({.out = 2, .keys = every(5)}), features); }) ==
        "every(5) needs at least 5 nodes; the graph has 4");
  CHECK(message([&] {
          Bench own;
          AttentionVars<double> in{.q = own.input(Matrix<double>(4, 4)), .k = own.input(Matrix<double>(4, 4))};
          attention_scores(in, Pattern::all(4, 4), score_named("dot"), 2);
        }) == "scores: can be listed only under a mask that is a list, of all keys");
  CHECK(message([&] { attend({.out = 2, .mask = local() - self(), .parts = true}); }) ==
        "attend: parts need a mask that is a union, as local | self; 'local - self' has one part");
  for (bool parts : {false, true})
    CHECK(message([&] {
            attend({.out = 2,
                    .score = score_named("gaussian"),
                    .normaliser = normaliser_named("sum"),
                    .edge_bias = !parts,
                    .parts = parts});
          }).find("biases of edges or parts may make them so") != std::string::npos);
  CHECK(message([&] { network(attend({.out = 2, .mask = all() | self(), .parts = true}), features); }) ==
        "parts need a mask that is a list");
  CHECK(message([&] {
          network(attend({.out = 2, .mask = local() | expander(2, Draw::every_step), .parts = true}), features);
        }) == "parts need a mask that does not change from step to step");
  CHECK(message([&] {
          Network<float> made(stack({dense(2), attend({.out = 2, .mask = all()})}), graph, features, 1);
          made.attention_weights("2", {});
        }) == "unknown place of an attend '2'; did you mean 1?");
  CHECK(message([&] {
          Network<float> made(attend({.out = 2}), graph, features, 1);
          made.attention_weights("", std::vector<Edge>{{0, 1}});
        }).find("there was none yet") != std::string::npos);
  CHECK(message([&] {
          Network<float> made(attend({.out = 2, .mask = all()}), graph, features, 1);
          made.tape().forward();
          made.attention_weights("", {});
        }).find("only under a mask that is a list") != std::string::npos);
  CHECK(message([&] {
          Network<float> made(attend({.out = 2}), graph, features, 1);
          made.tape().forward();
          made.attention_weights("", std::vector<Edge>{{0, 1}, {4, 1}});
        }) == "edge 1 from 4 to 1 leaves the nodes 0..3");
  CHECK(message([&] { centre<double>(x, 6); }).find("it takes 2") != std::string::npos);
  CHECK(message([&] { unit<double>(x, 4); }) == "unit: 6 channels do not divide into 4 heads");
  CHECK(message([&] { sum({}); }) == "sum: nothing to add");
  CHECK(message([&] { attend({.out = 2, .heads = 4, .head_masks = head_masks_named("0-2: local")}); }) ==
        "attend: there are masks for 3 heads, not for 4");
  CHECK(message([&] { gat({.classes = 2, .mask = "0-3: local"}); }) ==
        "attend: there are masks for 4 heads, not for 8");
  CHECK(message([&] { gat({.classes = 2, .mask = "0-3: local; 4-8: self"}); }) ==
        "the mask '0-3: local; 4-8: self' names head 8, and there are heads 0 to 7");
  CHECK(message([&] { network(attend({.out = 2, .mask = before()}), features); }).find("before needs a time") == 0);
  CHECK(message([&] { virtual_nodes(-1, dense(2)); }) == "virtual nodes: there cannot be -1");
  CHECK(message([&] { gat({.classes = 0}); }) == "a model needs at least 1 class and 1 layer");
  CHECK(message([&] { model_named("gatv3"); }) == "unknown model 'gatv3'; did you mean gatv2 or gat?");
  CHECK(message([&] {
          Network<float> made(dense(2), graph, features, 1);
          made.parameter("weights");
        }) == "unknown parameter 'weights'; did you mean weight?");
  Graph with_features = random_graph(4, 8, 2, false, random);
  CHECK(message([&] {
          Network<float> made(attend({.out = 2, .mask = all(), .edges = true}), with_features, features, 1);
        }) == "features of edges need a mask that is a list");
  CHECK(message([&] {
          Network<float> made(attend({.out = 2, .mask = local(), .keys = learned(0.5), .edges = true}), with_features,
                              features, 1);
        }) == "features of edges need a mask that does not change from step to step");
}

namespace {

using Sees = std::function<bool(int head, Id query, Id key)>;

// Attention of projected dot products, softmax over the keys that are seen: head by head, pair by pair. `open` is
// multiplied to the values (none: 1), `bias` added to the scores.
Matrix<double> dense_attention(Network<double>& network, const std::string& place, const Matrix<double>& x, int heads,
                               Offset width, const Sees& sees, const std::vector<double>& open = {},
                               const std::function<double(int head, Id query, Id key)>& bias = {}) {
  auto project = [&](const std::string& role) {
    const auto &w = network.parameter(place + role + ".weight").value,
               &b = network.parameter(place + role + ".bias").value;
    Matrix<double> out(x.rows(), heads * width);
    for (Offset i = 0; i < out.rows(); ++i)
      for (Offset c = 0; c < out.cols(); ++c) {
        out(i, c) = b(0, c);
        for (Offset t = 0; t < x.cols(); ++t) out(i, c) += x(i, t) * w(t, c);
      }
    return out;
  };
  const Matrix<double> q = project("query"), k = project("key"), v = project("value");
  Matrix<double> y(x.rows(), heads * width);
  for (Id i = 0; i < x.rows(); ++i)
    for (int h = 0; h < heads; ++h) {
      double total = 0;
      for (Id j = 0; j < x.rows(); ++j) {
        if (!sees(h, i, j)) continue;
        double score = bias ? bias(h, i, j) : 0;
        for (Offset c = h * width; c < (h + 1) * width; ++c) score += q(i, c) * k(j, c);
        total += std::exp(score);
        for (Offset c = h * width; c < (h + 1) * width; ++c)
          y(i, c) += std::exp(score) * v(j, c) * (open.empty() ? 1 : open[j]);
      }
      for (Offset c = h * width; c < (h + 1) * width && total > 0; ++c) y(i, c) /= total;
    }
  return y;
}

const std::vector<std::string>& named_masks_to_try() {
  static const std::vector<std::string> list{"self",
                                             "local(2) | self",
                                             "heavier(0.5)",
                                             "hubs(3)",
                                             "hubs(3, pagerank) - self",
                                             "knn(4)",
                                             "ppr(3)",
                                             "expander(3)",
                                             "shuffled | self",
                                             "expander(3, step)",
                                             "random(4)",
                                             "random(4, step)",
                                             "local | random(2, step)",
                                             "all",
                                             "all - local",
                                             "community",
                                             "community | local",
                                             "all - community",
                                             "before",
                                             "community & before",
                                             "(all - before) - self",
                                             "community | before",
                                             "0-1: local | self; 2: all - community; 3: random(3, step)"};
  return list;
}

}  // namespace

TEST_CASE("attend: every mask and every rule for keys against dense attention, values and gradients") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 13;
  const int heads = 4;
  const Offset width = 3;
  double worst = 0;
  const std::vector<std::string> all_keys{"all",
                                          "random(0.5)",
                                          "random(0.5, step)",
                                          "every(2)",
                                          "every(2,1)",
                                          "degree(0.3)",
                                          "random(0.3, step) - every(3)",
                                          "pagerank(0.3)",
                                          "farthest(0.3)",
                                          "learned(0.4)"};
  Scratch files;
  std::string lines, times;
  for (Id i = 0; i < n; ++i) {
    lines += std::to_string(i) + " " + std::to_string(random.below(n)) + "\n";
    times += std::to_string(random.below(5)) + "\n";
  }
  std::vector<std::string> all_masks = named_masks_to_try();
  all_masks.push_back("pairs(" + files.write("pairs", lines).string() + ") | self");
  all_masks.push_back("before(" + files.write("times", times).string() + ")");
  auto tried = [](const RuleEntry& entry, const std::vector<std::string>& list) {
    return std::ranges::any_of(list, [&](const std::string& text) { return text.find(entry.name) != text.npos; });
  };
  for (const RuleEntry& entry : mask_menu()) CHECK_MESSAGE(tried(entry, all_masks), entry.name);
  for (const RuleEntry& entry : keys_menu()) CHECK_MESSAGE(tried(entry, all_keys), entry.name);
  for (const std::string& mask : all_masks)
    for (const std::string& keys : all_keys)
      for (Id virtuals : {0, 2}) {
        if (virtuals > 0 && random.below(4) > 0) continue;
        CAPTURE(mask);
        CAPTURE(keys);
        CAPTURE(virtuals);
        Graph graph = random_graph(n, 25, 0, true, random);
        for (Id i = 0; i < n; ++i) graph.times.push_back(static_cast<double>(random.below(6)));
        Features features = dense_features(n, 5, random);
        const auto masks = head_masks_named(mask);
        const Keys rule = keys_named(keys);
        Model layer = attend({.out = width, .heads = heads, .head_masks = masks, .keys = rule});
        Network<double> network(virtual_nodes(static_cast<int>(virtuals), layer), graph, features, seed);
        Matrix<double> x(n + virtuals, 5 + virtuals);
        for (Id i = 0; i < n; ++i)
          for (Id c = 0; c < 5; ++c) x(i, c) = features.dense(i, c);
        for (Id t = 0; t < virtuals; ++t) x(n + t, 5 + t) = 1;
        for (bool training : {true, false}) {
          network.tape().training = training;
          network.tape().step = 5;
          network.tape().forward();
          const MaskContext c{.graph = graph, .features = &features, .seed = seed, .step = training ? 5u : 0u};
          std::vector<double> open;
          std::vector<Id> kept;
          if (rule.learned_share()) {
            const auto& w = network.parameter("keys.weight").value;
            std::vector<double> u(static_cast<std::size_t>(x.rows()));
            for (Id i = 0; i < x.rows(); ++i)
              for (Offset t = 0; t < x.cols(); ++t) u[i] += x(i, t) * w(t, 0);
            for (double s : u) open.push_back(1 / (1 + std::exp(-s)));
            std::vector<Id> order(static_cast<std::size_t>(n));
            std::iota(order.begin(), order.end(), 0);
            std::sort(order.begin(), order.end(), [&](Id a, Id b) { return u[a] > u[b]; });
            kept.assign(order.begin(), order.begin() + share_of(*rule.learned_share(), n));
          } else {
            kept = rule.nodes(c);
          }
          std::vector<PairSet> pairs;
          for (const HeadMask& m : masks) pairs.push_back(m.mask.pairs(c));
          auto sees = [&](int h, Id i, Id j) {
            if (j < n && std::find(kept.begin(), kept.end(), j) == kept.end()) return false;
            if (i >= n || j >= n) return true;
            for (std::size_t g = 0; g < masks.size(); ++g)
              if (h >= masks[g].first && h <= masks[g].last) return pairs[g].contains(i, j);
            return false;
          };
          Matrix<double> all = dense_attention(network, "", x, heads, width, sees, open), expected(n, all.cols());
          std::copy_n(all.begin(), expected.size(), expected.begin());
          CHECK(difference(network.output().value(), expected) <= 1e-12);
        }
        network.tape().training = true;
        auto loss = inner(network.output(), random_matrix<double>(n, heads * width, random));
        worst = std::max(worst, worst_gradient(network, loss, random, 5));
      }
  MESSAGE("worst gradient error " << worst << ", seed " << seed);
}

TEST_CASE("attend: biases of edges and parts against dense attention, and the weights in the caller's order of edges") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 13;
  const int heads = 4;
  const Offset width = 3;
  double worst = 0;
  for (const char* text :
       {"local | expander(3)", "self | local & hubs(5) | ppr(3)", "local", "(local | self) - hubs(2)",
        "0-1: local(2) | self; 2: knn(3); 3: random(4) | hubs(2) | self"})
    for (bool edges : {false, true})
      for (bool parts : {false, true})
        for (const char* keys : {"all", "every(2)"})
          for (int channels : {0, 2})
            for (Id virtuals : {0, 1}) {
              const auto masks = head_masks_named(text);
              if (!edges && (channels > 0 || !parts)) continue;
              if (parts && masks.size() == 1 && masks[0].mask.parts().size() == 1) continue;
              CAPTURE(text);
              CAPTURE(edges);
              CAPTURE(parts);
              CAPTURE(keys);
              CAPTURE(virtuals);
              Graph graph = random_graph(n, 30, channels, true, random);
              Features features = dense_features(n, 5, random);
              const Keys rule = keys_named(keys);
              const Model layer = attend({.out = width,
                                          .heads = heads,
                                          .head_masks = masks,
                                          .keys = rule,
                                          .edge_bias = edges,
                                          .parts = parts});
              Network<double> network(virtual_nodes(static_cast<int>(virtuals), layer), graph, features, seed),
                  sorted(by_degree(virtual_nodes(static_cast<int>(virtuals), layer)), graph, features, seed);
              for (std::size_t p = 0; p < network.parameters().size(); ++p) {
                auto& each = network.parameters()[p];
                if (each.name.rfind("pair_bias", 0) == 0) {
                  for (double x : each.value) CHECK(x == 0);
                  each.value = random_matrix<double>(each.value.rows(), each.value.cols(), random);
                }
                sorted.parameters()[p].value = each.value;
              }
              const MaskContext c{.graph = graph, .features = &features, .seed = seed};
              const auto kept = rule.nodes(c);
              std::vector<PairSet> pairs;
              std::vector<std::vector<PairSet>> sets;
              for (const HeadMask& m : masks) {
                pairs.push_back(m.mask.pairs(c));
                sets.emplace_back();
                for (const Mask& part : m.mask.parts()) sets.back().push_back(part.pairs(c));
              }
              auto group = [&](int h) {
                std::size_t g = 0;
                while (h > masks[g].last) ++g;
                return g;
              };
              auto sees = [&](int h, Id i, Id j) {
                if (i >= n || j >= n) return true;
                return std::binary_search(kept.begin(), kept.end(), j) && pairs[group(h)].contains(i, j);
              };
              auto bias = [&](int h, Id i, Id j) {
                const std::size_t g = group(h);
                const bool has_parts = parts && sets[g].size() > 1;
                if (i >= n || j >= n || (!edges && !has_parts)) return 0.0;
                const auto& b =
                    network.parameter(masks.size() > 1 ? "pair_bias." + std::to_string(masks[g].first) : "pair_bias")
                        .value;
                const int of = h - masks[g].first;
                double sum = 0;
                Offset at = 0;
                const auto row = graph.adjacency->row(i);
                const auto found = std::lower_bound(row.begin(), row.end(), j);
                const Offset e = graph.adjacency->offsets[i] + (found - row.begin());
                const bool is_edge = found != row.end() && *found == j;
                for (int f = 0; edges && f < std::max(channels, 1); ++f, ++at)
                  if (is_edge) sum += b(at, of) * (channels > 0 ? graph.features[e * channels + f] : graph.weights[e]);
                for (std::size_t s = 0; has_parts && s < sets[g].size(); ++s, ++at)
                  if (sets[g][s].contains(i, j)) sum += b(at, of);
                CHECK(at == b.rows());
                return sum;
              };
              Matrix<double> x(n + virtuals, 5 + virtuals);
              for (Id i = 0; i < n; ++i) std::copy_n(features.dense.row(i), 5, x.row(i));
              for (Id t = 0; t < virtuals; ++t) x(n + t, 5 + t) = 1;
              const Matrix<double> whole = dense_attention(network, "", x, heads, width, sees, {}, bias);
              Matrix<double> expected(n, whole.cols());
              std::copy_n(whole.begin(), expected.size(), expected.begin());
              network.tape().forward();
              CHECK(difference(network.output().value(), expected) <= 1e-12);

              // The weights of all pairs in any order: each head's weighted sum of values, but for those of virtual
              // nodes.
              std::vector<Edge> asked;
              for (Id i = 0; i < n; ++i)
                for (Id j = 0; j < n; ++j) asked.push_back({.from = j, .to = i});
              for (std::size_t t = asked.size(); t > 1; --t) std::swap(asked[t - 1], asked[random.below(t)]);
              const Matrix<double> w = network.attention_weights("", asked);
              REQUIRE(w.cols() == heads);
              for (std::size_t e = 0; e < asked.size(); ++e)
                for (int h = 0; h < heads; ++h) CHECK((w(e, h) > 0) == sees(h, asked[e].to, asked[e].from));
              if (virtuals == 0) {
                const auto &weight = network.parameter("value.weight").value,
                           &shift = network.parameter("value.bias").value;
                Matrix<double> sums(n, heads * width);
                for (std::size_t e = 0; e < asked.size(); ++e)
                  for (Offset t = 0; t < sums.cols(); ++t) {
                    double value = shift(0, t);
                    for (Offset s = 0; s < 5; ++s) value += x(asked[e].from, s) * weight(s, t);
                    sums(asked[e].to, t) += w(e, t / width) * value;
                  }
                CHECK(difference(sums, expected) <= 1e-12);
              }
              sorted.tape().forward();
              // Rules with chance in them draw for places, and equal ranks go by them.
              if (std::string(text) == "local" && std::string(keys) == "all")
                CHECK(difference(sorted.attention_weights("", asked), w) <= 1e-12);

              network.tape().training = true;
              auto loss = inner(network.output(), random_matrix<double>(n, heads * width, random));
              worst = std::max(worst, worst_gradient(network, loss, random, 5));
            }
  MESSAGE("worst gradient error " << worst << ", seed " << seed);
}

TEST_CASE("models: masks, keys and virtual nodes for all scores and models, in values of float and double") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 40;
  double worst = 0;
  for (const ModelEntry& entry : model_menu())
    for (const char* mask : {"", "community | local", "random(5, step)", "0-1: local; 2: all - self; 3-7: before"})
      for (const char* keys : {"all", "degree(0.5)", "learned(0.5)"})
        for (bool sparse : {false, true}) {
          if (!entry.attends && (*mask != 0 || std::string(keys) != "all")) continue;
          CAPTURE(entry.name);
          CAPTURE(mask);
          CAPTURE(keys);
          CAPTURE(sparse);
          Graph graph = random_graph(n, 90, 0, true, random);
          for (Id i = 0; i < n; ++i) graph.times.push_back(static_cast<double>(random.below(6)));
          Features features = dense_features(n, 6, random);
          if (sparse) features = {.dense = {}, .sparse = random_sparse(n, 6, 4, random)};
          Targets targets(n, 4, random);
          Model model = entry.make({.classes = 4,
                                    .hidden = 4,
                                    .attention_dropout = 0.2,
                                    .mask = mask,
                                    .keys = keys,
                                    .virtual_nodes = static_cast<int>(random.below(3))});
          Network<float> single(model, graph, features, seed);
          Network<double> twice(model, graph, features, seed);
          CHECK(single.output().rows() == n);
          for (std::size_t p = 0; p < single.parameters().size(); ++p)
            std::copy(single.parameters()[p].value.begin(), single.parameters()[p].value.end(),
                      twice.parameters()[p].value.begin());
          auto loss = cross_entropy<float>(single.output(), targets.rows, targets.labels);
          auto exact = cross_entropy<double>(twice.output(), targets.rows, targets.labels);
          single.tape().training = twice.tape().training = true;
          single.tape().step = twice.tape().step = 2;
          single.tape().forward(), single.tape().backward(loss);
          twice.tape().forward(), twice.tape().backward(exact);
          worst = std::max(worst, difference(single.output().value(), twice.output().value()));
          CHECK(std::abs(loss.value()(0, 0) - exact.value()(0, 0)) <= 1e-4);
        }
  CHECK(worst <= 1e-4);
  MESSAGE("worst relative error " << worst << ", seed " << seed);
}

TEST_CASE("masks in training: the same bits on 1, 2 and 7 threads; redrawn ones change with the step and come back") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 2500, classes = 3;
  std::vector<Edge> list = random_edges(n, 6000, random);
  for (Id i = 0; i < n; ++i) list.push_back({i, 7});
  Graph graph = graph_from_edges(n, list);
  for (Id i = 0; i < n; ++i) graph.times.push_back(random.uniform());
  Targets targets(n, classes, random);
  Features features = dense_features(n, 12, random);
  for (const auto& [mask, keys, virtuals] :
       std::vector<std::tuple<const char*, const char*, int>>{{"community", "all", 0},
                                                              {"(before & community) | local", "all", 2},
                                                              {"all - community", "every(20)", 0},
                                                              {"random(6, step) | self", "all", 0},
                                                              {"random(6, step)", "all", 0},
                                                              {"knn(5)", "random(0.3, step)", 0},
                                                              {"all", "learned(0.02)", 1},
                                                              {"0-3: expander(6); 4-7: ppr(8)", "all", 0}}) {
    CAPTURE(mask);
    CAPTURE(keys);
    Model model = gat({.classes = classes, .hidden = 4, .mask = mask, .keys = keys, .virtual_nodes = virtuals});
    Matrix<float> first, first_gradient, at_rest;
    for (int threads : {1, 2, 7}) {
      CAPTURE(threads);
      with_threads(threads, [&] {
        Network<float> network(model, graph, features, 17);
        auto loss = cross_entropy<float>(network.output(), targets.rows, targets.labels);
        network.tape().forward();
        const Matrix<float> rest = network.output().value();
        descend(network, loss, 2);
        const Matrix<float> y = network.output().value(), g = network.parameters()[0].grad;
        CHECK(std::isfinite(loss.value()(0, 0)));
        if (threads == 1) first = y, first_gradient = g, at_rest = rest;
        CHECK(y == first);
        CHECK(g == first_gradient);
        CHECK(rest == at_rest);
      });
    }
  }
  Network<double> network(attend({.out = 2, .mask = heed::random(5, Draw::every_step)}), graph, features, 3);
  std::vector<Matrix<double>> seen;
  for (auto [training, step] : {std::pair{false, 9}, {true, 1}, {true, 2}, {false, 3}, {true, 2}}) {
    network.tape().training = training;
    network.tape().step = static_cast<std::uint64_t>(step);
    network.tape().forward();
    seen.push_back(network.output().value());
  }
  CHECK(seen[0] == seen[3]);
  CHECK(seen[2] == seen[4]);
  CHECK(seen[1] != seen[2]);
  CHECK(seen[0] != seen[2]);
}

#if HEED_COUNTS_ALLOCATIONS
TEST_CASE("nothing is allocated after the first epochs") {
  Random random(5);
  Graph graph = random_graph(300, 1200, 3, false, random);
  Targets targets(300, 4, random);
  std::vector<std::pair<std::string, Model>> models;
  for (const ModelEntry& entry : model_menu())
    for (Norm norm : {Norm::none, Norm::layer, Norm::batch})
      models.emplace_back(entry.name,
                          entry.make({.classes = 4, .feature_dropout = 0.1, .norm = norm, .residual = true}));
  for (const Score& score : score_menu())
    for (const Score& each : {score, with_filter(score, {.topk = 3, .above = -1})})
      models.emplace_back(
          "edges, " + each.name,
          attend({.out = 4, .heads = 3, .score = each, .dropout = 0.1, .concat = false, .edges = true}));
  for (const char* mask :
       {"all - local", "community", "all - community", "community | local", "0: self; 1-2: community; 3-7: hubs(5)"})
    for (const char* keys : {"all", "every(2)"})
      models.emplace_back(std::string(mask) + ", " + keys, gat({.classes = 4, .mask = mask, .keys = keys}));
  models.emplace_back("virtual nodes", gat({.classes = 4, .virtual_nodes = 3}));
  for (auto& [name, model] : models)
    for (bool sparse : {false, true}) {
      CAPTURE(name);
      CAPTURE(sparse);
      Features features = dense_features(300, 20, random);
      if (sparse) features = {.dense = {}, .sparse = random_sparse(300, 20, 8, random)};
      Network<float> network(model, graph, features, 1);
      auto loss = cross_entropy<float>(network.output(), targets.rows, targets.labels);
      with_threads(1, [&] {
        descend(network, loss, 2);
        allocations = 0, counting = true;
        descend(network, loss, 2);
        counting = false;
      });
      CHECK(allocations == 0);
    }
}
#endif

TEST_SUITE_END();
