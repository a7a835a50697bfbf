// The fused operator: every score x filter x normaliser x kind of mask against a dense reference and central
// differences, equal bits for any number of threads and any compiled width, and the shapes that it refuses.
#include <oneapi/tbb/global_control.h>

#include <functional>

#include "kernels/dense.h"
#include "kernels/formula.h"
#include "kernels/fused.h"
#include "kernels/gradient_check.h"
#include "kernels/lanes.h"
#include "kernels/make_score.h"
#include "kernels/tiled.h"
#include "tests/scratch.h"
#include "tests/support.h"

using namespace heed;
using namespace heed::test;

namespace {

struct SameScore {
  const char *formula, *name;  // of the menu
};
constexpr SameScore kFormulas[] = {{"q*(k+e)", "dot"},
                                   {"sum(q*(k+e)) / sqrt(d)", "scaled_dot"},
                                   {"p0 * sum(q * (k + e))", "cosine"},
                                   {"a*leaky(q+k+e, 0.2)", "gatv2"},
                                   {"a*tanh(q+k+e)", "bahdanau"},
                                   {"sum(a*relu(q+k+e)) + p0:0", "mlp"},
                                   {"-square(q-(k+e))", "sqeuclidean"},
                                   {"-sqrt(sum(square(q-(k+e))))", "euclidean"},
                                   {"exp(-sum(square(q-(k+e))) * (exp(p0:0 * -2) * .5))", "gaussian"},
                                   {"-(a*abs(q-(k+e)))", "laplace"}};

Score renamed(Score score, const char* name) {  // to what the reference and the ranges of inputs know
  score.name = name;
  return score;
}

std::vector<Score> scores_under_test() {
  auto out = score_menu();
  for (auto [formula, name] : {kFormulas[3], kFormulas[8]}) out.push_back(renamed(score_formula(formula), name));
  out.push_back(renamed(with_temperature(score_formula(kFormulas[2].formula), 1.3, true), "cosine"));
  out.push_back(make_score(Tempered{}));
  out.push_back(with_temperature(score_named("gat"), 0.7));
  out.push_back(with_temperature(score_named("sqeuclidean"), 1.5, true));
  out.push_back(with_temperature(make_score(Tempered{}), 1.2, true));
  for (const char* name : {"dot topk(3)", "gat topk(2)", "gatv2 above(0.1)", "gaussian topk(4) above(0.3)",
                           "node topk(3)", "softdtw topk(2)"})
    out.push_back(score_named(name));
  out.push_back(make_score(scores::SoftDtw{.steps = 1, .gamma = 0.5f}));
  return out;
}
std::vector<Pair> pairs_under_test(Random& random, int more = 0) {
  return pairs_of(scores_under_test(), normaliser_menu(), random, more);
}

enum class Mask { list, symmetric, range, sliding, without, rectangular, empty, hub, hub_key, features };
constexpr Mask kMasks[] = {Mask::list,        Mask::symmetric, Mask::range, Mask::sliding, Mask::without,
                           Mask::rectangular, Mask::empty,     Mask::hub,   Mask::hub_key, Mask::features};

constexpr Id kHub = static_cast<Id>(kHubEdges + 4000);  // some parts; the largest score may lie in any
constexpr Offset parts_of(Offset edges) { return (edges + kHubEdges - 1) / kHubEdges; }

std::shared_ptr<const Pattern> make_pattern(Mask mask, Random& random) {
  auto list = [](Csr csr) { return Pattern::listed(std::make_shared<Csr>(std::move(csr))); };
  switch (mask) {
    case Mask::list:
    case Mask::features:
      return list(random_pattern(9, 9, 5, random));
    case Mask::symmetric:
      return list(random_symmetric(10, 20, random));
    case Mask::range:
      return Pattern::all(7, 7);
    case Mask::sliding:
      return Pattern::sliding(12, {{0, 3}, {0, 3}, {1, 6}, {6, 6}, {6, 12}, {9, 12}});
    case Mask::without:
      return Pattern::all(18, 21, std::make_shared<Csr>(random_pattern(18, 21, 9, random)));
    case Mask::rectangular:
      return list(random_pattern(6, 13, 8, random));
    case Mask::empty:
      return list(Csr{.rows = 4, .cols = 5, .offsets = {0, 0, 0, 0, 0}, .ids = {}});
    case Mask::hub:
      return Pattern::all(2, kHub);
    case Mask::hub_key:
      return Pattern::all(kHub, 2);
  }
  return nullptr;
}

template <class T>
struct Case {  // one call with everything it reads, and all its gradients
  std::shared_ptr<const Pattern> pattern;
  Score score;
  Normaliser normaliser;
  int heads, score_width, width;
  Matrix<T> q, k, v, a, p, e, bias, ev, y, dy;
  Matrix<T> dq, dk, dv, da, dp, de, dbias, dev;
  AttentionState<T> state;
  Dropout dropout;

  Attention<T> call() const {
    auto view = [](const Matrix<T>& x) { return x.empty() ? View<const T>{} : x.view(); };
    return {pattern.get(), &score,  &normaliser, heads,      q.view(), k.view(), v.view(),
            view(a),       view(p), view(e),     view(bias), view(ev), {},       dropout};
  }
  void forward() {
    y.resize(q.rows(), v.cols());
    attention(call(), y.view(), state);
  }
  void backward() {
    AttentionGradient<T> g;
    auto sink = [](Matrix<T>& d, const Matrix<T>& value) {
      d.resize(value.rows(), value.cols());
      d.fill(T(7));  // must be written over
      return value.empty() ? Sink<T>{} : Sink<T>{d.view(), false};
    };
    g.dq = sink(dq, q), g.dk = sink(dk, k), g.dv = sink(dv, v), g.da = sink(da, a), g.dp = sink(dp, p);
    g.de = sink(de, e), g.dbias = sink(dbias, bias), g.dev = sink(dev, ev);
    attention_gradient<T>(call(), std::as_const(y).view(), std::as_const(dy).view(), state, g);
  }
  long double loss() {  // long: the rounding of so many additions, and of the sum, would show in a difference
    forward();
    long double sum = 0;
    for (Offset t = 0; t < y.size(); ++t)
      sum += static_cast<long double>(y.data()[t]) * static_cast<long double>(dy.data()[t]);
    return sum;
  }
};

template <class T>
Case<T> make_case(const Score& score, const Normaliser& normaliser, Mask mask, int heads, int score_width, int width,
                  Random& random) {
  Case<T> c;
  c.pattern = make_pattern(mask, random);
  c.score = score;
  c.normaliser = normaliser;
  c.heads = heads;
  c.score_width = score.contracts ? 1 : score_width;
  c.width = width;
  Offset channels = heads * c.score_width;
  c.q = random_matrix<T>(c.pattern->queries(), channels, random);
  c.k = random_matrix<T>(c.pattern->keys(), channels, random);
  c.v = random_matrix<T>(c.pattern->keys(), heads * width, random);
  c.dy = random_matrix<T>(c.pattern->queries(), heads * width, random);
  // Far points would all have the same weight, 0 or 1.
  const std::string name = base_name(score);
  const bool distance = name == "sqeuclidean" || name == "euclidean" || name == "gaussian" || name == "softdtw";
  const T near = distance ? T(1) / std::sqrt(static_cast<T>(c.score_width)) : T(1);
  for (auto* table : {&c.q, &c.k})
    for (T& x : *table) x *= near;
  if (mask == Mask::hub || mask == Mask::hub_key) {
    // So many pairs that some would lie at a kink: the hub alone decides the side, at a distance.
    for (T& x : mask == Mask::hub ? c.k : c.q) x *= T(0.2);
    for (T& x : mask == Mask::hub ? c.q : c.k) x += T(x > 0 ? 1 : -1) * T(distance ? 0.5 : 2);
  }
  // A hub's scores are much alike: small ones, lest all weights lie where a sigmoid is flat and differences are noise.
  if (score.reads_vector)
    c.a = random_matrix<T>(1, channels, random, mask == Mask::hub || mask == Mask::hub_key ? 0.2 : 1);
  if (score.scalars > 0) c.p = random_matrix<T>(score.scalars, heads, random);
  if (name == "gaussian" || score.tempered)  // logarithms
    for (int h = 0; h < heads; ++h) c.p(score.scalars - 1, h) = T(0.7 + 0.2 * random.normal());
  if (mask == Mask::features) {
    c.e = random_matrix<T>(c.pattern->edges(), channels, random, near);
    if (!normaliser.nonnegative) c.bias = random_matrix<T>(c.pattern->edges(), heads, random);
    c.ev = random_matrix<T>(c.pattern->edges(), heads * width, random);
  }
  return c;
}

// Whether the pattern holds (i, j), and the number of that edge; independent of the operator's own iteration.
bool sees(const Pattern& pattern, Id i, Id j, Offset& edge) {
  const Rows& rows = pattern.by_query;
  edge = -1;
  if (rows.listed()) {
    for (Offset t = rows.list->offsets[i]; t < rows.list->offsets[i + 1]; ++t)
      if (rows.list->ids[t] == j) edge = t;
    return edge >= 0;
  }
  auto [begin, end] = rows.interval(i);
  return j >= begin && j < end && !(rows.list && rows.list->contains(i, j));
}

// Scores by name, in plain scalar double: what the papers say. p is a column.
double reference_score(const Score& score, const double* q, const double* k, const double* e, const double* a,
                       const double* p, int width) {
  auto leaky = [](double x) { return x > 0 ? x : 0.2f * x; };
  auto sum = [&](auto term) {
    double total = 0;
    for (int c = 0; c < width; ++c) total += term(q[c], k[c], e[c], a[c]);
    return total;
  };
  auto dot = [](double q, double k, double e, double) { return q * (k + e); };
  auto apart = [](double q, double k, double e, double) { return (q - k - e) * (q - k - e); };
  const std::string name = base_name(score);
  double s = 0;
  int scalars = 0;
  if (name == "dot" || name == "bilinear")
    s = sum(dot);
  else if (name == "scaled_dot")
    s = sum(dot) / std::sqrt(width);
  else if (name == "cosine" || name == "pearson")
    s = sum(dot) * p[scalars++];
  else if (name == "gat")
    s = leaky(q[0] + k[0] + e[0]);
  else if (name == "gatv2")
    s = sum([&](double q, double k, double e, double a) { return a * leaky(q + k + e); });
  else if (name == "bahdanau")
    s = sum([&](double q, double k, double e, double a) { return a * std::tanh(q + k + e); });
  else if (name == "mlp")
    s = sum([&](double q, double k, double e, double a) { return a * std::max(0.0, q + k + e); }) + p[scalars++];
  else if (name == "node")
    s = k[0] + e[0];
  else if (name == "sqeuclidean")
    s = -sum(apart);
  else if (name == "euclidean")
    s = -std::sqrt(sum(apart));
  else if (name == "gaussian")
    s = std::exp(-sum(apart) / (2 * std::exp(p[scalars++] * 2)));
  else if (name == "laplace")
    s = sum([&](double q, double k, double e, double a) { return -a * std::abs(q - k - e); });
  else if (name == "softdtw") {
    const auto& own = *static_cast<const scores::SoftDtw*>(score.self.get());
    const int n = own.steps > 0 ? own.steps : width, c = width / n;
    Matrix<double> r(n + 1, n + 1);
    r.fill(1e9), r(0, 0) = 0;
    for (int i = 1; i <= n; ++i)
      for (int j = 1; j <= n; ++j) {
        double cost = 0;
        for (int t = 0; t < c; ++t) cost += std::pow(q[(i - 1) * c + t] - k[(j - 1) * c + t] - e[(j - 1) * c + t], 2);
        const double least = std::min({r(i - 1, j), r(i, j - 1), r(i - 1, j - 1)});
        double total = 0;
        for (double x : {r(i - 1, j), r(i, j - 1), r(i - 1, j - 1)}) total += std::exp((least - x) / own.gamma);
        r(i, j) = cost + least - own.gamma * std::log(total);
      }
    s = -r(n, n);
  } else if (name == "tempered") {
    s = sum([](double q, double k, double e, double a) { return a * std::tanh(q * k) + (q - k) * (q - k) * e; });
    s = s * p[0] + 1 / (1 + std::exp(-s * p[1]));
    scalars = 2;
  } else {
    FAIL("the reference does not know the score " << name);
  }
  return s * score.scale * (score.tempered ? std::exp(-p[scalars]) : 1);
}

template <class T>
double reference_score(const Case<T>& c, Id i, Id j, Offset edge, int h) {
  std::vector<double> all[4], p;
  for (Offset x = h * c.score_width; x < (h + 1) * c.score_width; ++x) {
    all[0].push_back(c.q(i, x)), all[1].push_back(c.k(j, x));
    all[2].push_back(c.e.empty() ? 0 : c.e(edge, x)), all[3].push_back(c.a.empty() ? 0 : c.a(0, x));
  }
  for (Offset t = 0; t < c.p.rows(); ++t) p.push_back(c.p(t, h));
  return reference_score(c.score, all[0].data(), all[1].data(), all[2].data(), all[3].data(), p.data(), c.score_width) +
         (c.bias.empty() ? 0 : c.bias(edge, h));
}

// The weights of scores, by name. `distance` becomes that of the nearest score from a kink, where there is one.
std::vector<double> reference_weights(const std::string& name, std::vector<double> s, double* distance) {
  double top = -1e300, total = 0;
  for (double x : s) top = std::max(top, x);
  auto each = [&](auto f) {
    for (double& x : s) x = f(x);
    return s;
  };
  auto threshold = [&](auto weight) {  // where the weights add up to 1
    double low = top - 2, high = top;
    for (int t = 0; t < 100; ++t) {
      const double middle = (low + high) / 2;
      double sum = 0;
      for (double x : s) sum += weight(x - middle);
      (sum > 1 ? low : high) = middle;
    }
    for (double x : s) *distance = std::min(*distance, std::abs(x - low));
    return low;
  };
  auto linear = [](double x) { return std::max(x, 0.0); };
  auto squared = [](double x) { return std::pow(std::max(x, 0.0) / 2, 2); };
  if (name == "softmax" || name == "softmax_sink") {
    for (double x : s) total += std::exp(x - top);
    if (name == "softmax_sink") total += std::exp(-top);
    return each([&](double x) { return std::exp(x - top) / total; });
  }
  if (name == "sigmoid") return each([](double x) { return 1 / (1 + std::exp(-x)); });
  if (name == "tanh") return each([](double x) { return std::tanh(x); });
  if (name == "none") return s;
  if (name == "mean") return each([&](double) { return 1.0 / static_cast<double>(s.size()); });
  if (name == "max") {
    double second = -1e300;
    for (double x : s)
      if (x < top) second = std::max(second, x);
    if (s.size() > 1) *distance = std::min(*distance, std::count(s.begin(), s.end(), top) > 1 ? 0 : top - second);
    return each([&](double x) { return std::exp(x - top); });
  }
  if (name == "sum") {
    for (double x : s) total += x;
    return each([&](double x) { return x / total; });
  }
  if (name == "sparsemax") return each([&, tau = threshold(linear)](double x) { return linear(x - tau); });
  if (name == "entmax15") return each([&, tau = threshold(squared)](double x) { return squared(x - tau); });
  FAIL("the reference does not know the normaliser " << name);
  return s;
}

// Which of a row's scores count. `cut` becomes the distance of the nearest one from where that would change.
std::vector<bool> passing(const Filter& filter, const std::vector<double>& s, double* cut) {
  std::vector<std::size_t> order(s.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return s[a] > s[b]; });
  const std::size_t most = filter.topk > 0 ? static_cast<std::size_t>(filter.topk) : s.size();
  std::vector<bool> out(s.size());
  for (std::size_t t = 0; t < std::min(most, s.size()); ++t) {
    out[order[t]] = s[order[t]] > filter.above;
    *cut = std::min(*cut, std::abs(s[order[t]] - filter.above));
  }
  if (most < s.size()) *cut = std::min(*cut, s[order[most - 1]] - s[order[most]]);
  return out;
}

template <class T>
struct Reference {
  Matrix<double> y;
  double kink = 1e300;  // distance of the nearest score or channel from one
  double cut = 1e300;   // of a score from where a filter would keep another
  double largest = 1;   // score
};
template <class T>
Reference<T> reference_of(const Case<T>& c) {
  Reference<T> out;
  out.y.resize(c.q.rows(), c.v.cols());
  out.y.fill(0);
  const Rows& rows = c.pattern->by_query;
  const bool one_row = base_name(c.score) == "node" && rows.intervals.size() == 1 && !rows.list;
  for (Id i = 0; i < c.q.rows(); ++i)
    for (int h = 0; h < c.heads; ++h) {
      std::vector<double> s;
      std::vector<Id> keys;
      std::vector<Offset> edges;
      for (Id j = 0; j < c.k.rows(); ++j) {
        Offset edge;
        if (!sees(*c.pattern, i, j, edge)) continue;
        s.push_back(reference_score(c, i, j, edge, h)), keys.push_back(j), edges.push_back(edge);
        out.largest = std::max(out.largest, std::abs(s.back()));
        double squares = 0;
        for (Offset x = h * c.score_width; x < (h + 1) * c.score_width; ++x) {
          const double e = c.e.empty() ? 0 : c.e(edge, x);
          out.kink = std::min(out.kink, kink_distance(c.score, c.q(i, x), c.k(j, x), e));
          squares += std::pow(c.q(i, x) - c.k(j, x) - e, 2);
        }
        // A distance has a kink at 0; of several channels it bends too sharply for differences well before.
        if (base_name(c.score) == "euclidean")
          out.kink = std::min(out.kink, std::sqrt(squares) / (c.score_width > 1 ? 20 : 1));
      }
      const auto passes = passing(c.score.filter, s, &out.cut);
      auto keep = [&](auto& list) {
        std::size_t n = 0;
        for (std::size_t t = 0; t < passes.size(); ++t)
          if (passes[t]) list[n++] = list[t];
        list.resize(n);
      };
      keep(s), keep(keys), keep(edges);
      s = reference_weights(c.normaliser.name, s, &out.kink);
      for (std::size_t t = 0; t < s.size(); ++t) {
        double w = s[t];
        if (c.dropout.rate > 0) {
          auto bits = drop_bits(c.dropout.row_key(one_row ? 0 : i), keys[t], h);
          w = bits < c.dropout.threshold() ? 0 : w * c.dropout.scale();
        }
        for (int x = h * c.width; x < (h + 1) * c.width; ++x)
          out.y(i, x) += w * (c.v(keys[t], x) + (c.ev.empty() ? 0 : c.ev(edges[t], x)));
      }
    }
  out.kink = std::min(out.kink, out.cut);
  return out;
}
template <class T>
Matrix<double> dense_reference(const Case<T>& c) {
  return reference_of(c).y;
}
// In float, errors of scores become those of weights.
template <class T>
double float_tolerance(const Reference<T>& reference) {
  return 1e-6 * std::max(10.0, reference.largest);
}

// Checks y against the reference and, unless that is at a kink, all gradients against central differences; the errors
// join the worst so far.
void check_case(Case<double>& c, const Reference<double>& reference, bool hub, Random& random, double& worst_value,
                double& worst_gradient) {
  c.forward();
  double value = difference(c.y, dense_reference(c));
  CHECK(value <= 1e-12);
  if (reference.kink < 1e-3) return;  // differences mean nothing there
  worst_value = std::max(worst_value, value);
  c.backward();
  int steps = hub ? 2 : 12;
  double size = 0;
  for (double each : c.dy) size += each * each;
  auto check = [&](const std::string& name, Matrix<double>& x, const Matrix<double>& gradient) {
    if (x.empty()) return;
    CAPTURE(name);
    // A scalar in which all pairs have a part may have no effect but rounding; a hub's sums round 12 000 terms.
    const double least = hub ? 1e-2 : 1e-3;
    const double cancels = name == "dp" ? std::max(least, 1e-2 * std::sqrt(size)) : least;
    // Where they cancel, that rounding is all a difference sees, and a longer step divides it by more. What the square
    // of the step adds stays below 1e-7, and no score moves by as much as the kink is away.
    double error = check_gradient(
        x, gradient, [&] { return c.loss(); }, random, steps, cancels, hub ? 1e-4 : 1e-5);
    CHECK(error <= 1e-6);
    worst_gradient = std::max(worst_gradient, error);
  };
  check("dq", c.q, c.dq), check("dk", c.k, c.dk), check("dv", c.v, c.dv), check("da", c.a, c.da);
  check("dp", c.p, c.dp), check("de", c.e, c.de), check("dbias", c.bias, c.dbias), check("dev", c.ev, c.dev);
}

void with_threads(int n, const std::function<void()>& body) {
  tbb::global_control limit(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(n));
  body();
}

}  // namespace

TEST_SUITE_BEGIN("kernels");

TEST_CASE("attention: dense reference and central differences, in double") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  double worst_value = 0, worst_gradient = 0;
  // Every score with every normaliser, under some of the masks and shapes; with $HEED_FULL under all of them, which
  // takes minutes.
  const bool full = std::getenv("HEED_FULL") != nullptr;
  for (const auto& [score, normaliser] : every_pair(scores_under_test(), normaliser_menu()))
    for (Mask mask : kMasks)
      for (auto [heads, score_width, width] : {std::array{1, 5, 7}, std::array{3, 16, 4}, std::array{8, 1, 16}}) {
        const bool hub = mask == Mask::hub || mask == Mask::hub_key;
        if (!full && random.below(hub ? 36 : 4) > 0) continue;
        if (hub && heads == 3) continue;
        const float rate = hub || random.below(2) == 0 ? 0 : 0.4f;
        auto c = make_case<double>(score, normaliser, mask, heads, score_width, width, random);
        auto reference = reference_of(c);
        for (int tries = 0; reference.kink < 1e-3 && tries < (hub ? 4 : 200); ++tries) {
          c = make_case<double>(score, normaliser, mask, heads, score_width, width, random);
          reference = reference_of(c);
        }
        c.dropout = {rate, random.next()};
        CAPTURE(score.name);
        CAPTURE(normaliser.name);
        CAPTURE(static_cast<int>(mask));
        CAPTURE(heads);
        CAPTURE(rate);
        check_case(c, reference, hub, random, worst_value, worst_gradient);
      }
  MESSAGE("worst value error " << worst_value << ", worst gradient error " << worst_gradient << ", seed " << seed);
}

TEST_CASE("filters: every normaliser over every kind of mask, against the reference and central differences") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  double worst_value = 0, worst_gradient = 0;
  int compared = 0;
  for (const Normaliser& normaliser : normaliser_menu())
    for (Mask mask : kMasks)
      for (const Filter& filter :
           {Filter{.topk = 1}, Filter{.topk = 3}, Filter{.above = 0.1}, Filter{.topk = 2, .above = 0.2}}) {
        const bool hub = mask == Mask::hub || mask == Mask::hub_key;
        if (hub && random.below(4) > 0) continue;
        constexpr std::array<int, 3> kSizes[] = {{1, 5, 7}, {3, 16, 4}, {8, 1, 16}};
        auto [heads, score_width, width] = kSizes[random.below(hub ? 1 : 3)];
        Case<double> c;
        Reference<double> reference;
        for (int tries = 0; tries == 0 || (reference.kink < 1e-3 && tries < (hub ? 4 : 200)); ++tries) {
          Score score = scores_under_test()[random.below(score_menu().size())];
          if (normaliser.nonnegative) score = score_named("gaussian");
          c = make_case<double>(with_filter(score, filter), normaliser, mask, heads, score_width, width, random);
          c.dropout = {hub || tries % 2 == 0 ? 0 : 0.4f, random.next()};
          reference = reference_of(c);
        }
        CAPTURE(c.score.name);
        CAPTURE(normaliser.name);
        CAPTURE(static_cast<int>(mask));
        CAPTURE(heads);
        CAPTURE(c.dropout.rate);
        check_case(c, reference, hub, random, worst_value, worst_gradient);
        compared += reference.kink >= 1e-3;
      }
  CHECK(compared > 200);
  MESSAGE("worst value error " << worst_value << ", worst gradient error " << worst_gradient << " of " << compared
                               << ", seed " << seed);
}

TEST_CASE("filters: the pass over keys keeps what forward kept, in every compiled width") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  auto run = [&]<class T>(T) {
    for (const Score& score : scores_under_test())
      for (int width : {1, 5, 8, 16, 32, 64})
        for (bool features : {false, true}) {
          if (base_name(score) == "softdtw" && width > 8) continue;
          const int heads = 1 + static_cast<int>(random.below(5));
          auto c = make_case<T>(score, normaliser_named("mean"), Mask::list, heads, width, 4, random);
          c.score.filter = {.topk = 1};
          CAPTURE(score.name);
          CAPTURE(width);
          CAPTURE(heads);
          CAPTURE(features);
          c.pattern = Pattern::listed(std::make_shared<Csr>(random_pattern(200, 150, 90, random)));
          const Csr& csr = *c.pattern->by_query.list;
          const Offset channels = c.q.cols();
          c.q = random_matrix<T>(200, channels, random), c.k = random_matrix<T>(150, channels, random);
          c.v = Matrix<T>(150, heads * 4), c.dy = Matrix<T>(200, heads * 4);
          c.v.fill(1), c.dy.fill(1);
          if (features) c.e = random_matrix<T>(csr.edges(), channels, random);
          c.forward(), c.backward();
          int rows = 0, wrong = 0;
          for (Id i = 0; i < csr.rows; ++i) {
            rows += csr.degree(i) > 0;
            for (Offset x = 0; x < c.y.cols(); ++x) wrong += c.y(i, x) != (csr.degree(i) > 0);
          }
          for (Offset x = 0; x < c.dv.cols(); ++x) {
            T sum = 0;
            for (Id j = 0; j < 150; ++j) sum += c.dv(j, x);
            wrong += sum != static_cast<T>(rows);
          }
          CHECK(wrong == 0);
        }
  };
  run(1.0f), run(1.0);
}

TEST_CASE("filters: equal scores count by the order of keys, in lists, in parts of hubs and in walks") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  auto row = std::make_shared<Csr>(Csr{.rows = 1, .cols = 90});
  for (Id j = 0; j < 90; ++j) row->ids.push_back(j);
  row->offsets.push_back(90);
  for (const auto& pattern : {Pattern::listed(row), Pattern::all(1, 90), Pattern::all(2, kHub),
                              Pattern::drawn(300, {.count = 90, .stream = random.next()})})
    for (Id k : {1, 7, 80}) {
      CAPTURE(k);
      auto c = make_case<float>(with_filter(score_named("dot"), {.topk = k}), normaliser_named("none"), Mask::list, 1,
                                3, 2, random);
      c.pattern = pattern;
      c.q = Matrix<float>(pattern->queries(), 3), c.k = Matrix<float>(pattern->keys(), 3);
      c.q.fill(0.5f), c.k.fill(0.5f);
      for (Id j = 3; j < 6; ++j) c.k(j, 0) = 2;  // these are better, wherever they are seen
      c.v = random_matrix<float>(pattern->keys(), 2, random), c.dy = Matrix<float>(pattern->queries(), 2);
      for (Id i = 0; i < pattern->queries(); i += 61) {
        c.dy.fill(0), c.dy(i, 0) = 1;
        c.forward(), c.backward();
        std::vector<Id> seen;
        if (const auto& walk = pattern->by_query.walk)
          for (Offset at = 0; at < walk->length(i); at += kChunk) {
            Id ids[kChunk];
            seen.insert(seen.end(), ids,
                        ids + walk->columns(i, at, std::min<Offset>(walk->length(i), at + kChunk), ids));
          }
        else
          for (Id j = 0; j < pattern->keys(); ++j) seen.push_back(j);
        std::sort(seen.begin(), seen.end(), [](Id a, Id b) {
          const bool first = a >= 3 && a < 6, second = b >= 3 && b < 6;
          return first != second ? first : a < b;
        });
        Matrix<float> expected(pattern->keys(), 2);
        for (std::size_t t = 0; t < std::min<std::size_t>(k, seen.size()); ++t)
          expected(seen[t], 0) = seen[t] >= 3 && seen[t] < 6 ? 1.5f : 0.75f;
        CHECK(c.dv == expected);
      }
    }
}

TEST_CASE("filters: those that keep everything change no bit, those that keep nothing give 0, and NaN is seen") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const auto& [score, normaliser] : pairs_of(score_menu(), normaliser_menu(), random, 0))
    for (Mask mask : {Mask::features, Mask::range, Mask::hub}) {
      CAPTURE(score.name);
      CAPTURE(normaliser.name);
      CAPTURE(static_cast<int>(mask));
      auto c = make_case<float>(score, normaliser, mask, 3, 8, 8, random);
      c.dropout = {0.3f, seed};
      auto filtered = [&](const Filter& filter) {
        auto d = c;
        d.score = with_filter(score, filter);
        d.forward(), d.backward();
        return d;
      };
      auto all = {&Case<float>::y,  &Case<float>::dq, &Case<float>::dk,    &Case<float>::dv, &Case<float>::da,
                  &Case<float>::dp, &Case<float>::de, &Case<float>::dbias, &Case<float>::dev};
      c.forward(), c.backward();
      for (const Filter& filter :
           {Filter{.topk = 50'000}, Filter{.above = -1e30}, Filter{.topk = kHub, .above = -1e30}}) {
        const auto d = filtered(filter);
        if (!pays_in_tiles(*c.pattern)) {
          // GAT's dq comes from forward's sums, but from a pass of its own under a filter that counts keys.
          const bool other = score.kinked && filter.topk > 0;
          if (other) CHECK(difference(d.dq, c.dq, 1) <= 1e-5);
          for (auto part : all)
            if (!other || part != &Case<float>::dq) CHECK(c.*part == d.*part);
        } else {
          for (auto part : all) CHECK(difference(d.*part, c.*part, 1) <= 1e-3);
        }
      }
      const auto none = filtered({.above = 1e30});
      for (auto part : all) CHECK(std::count((none.*part).begin(), (none.*part).end(), 0.0f) == (none.*part).size());
    }
  for (const char* normaliser : {"softmax", "sigmoid", "none"})
    for (const char* name : {"dot topk(2)", "dot above(1e30)", "dot topk(2) above(1e30)"}) {
      auto c = make_case<float>(score_named(name), normaliser_named(normaliser), Mask::range, 2, 4, 4, random);
      c.q(3, 1) = NAN;
      c.forward();
      CHECK(std::isnan(c.y(3, 0)));
      CHECK(!std::isnan(c.y(2, 0)));
    }
}

TEST_CASE("filters: what follows a score") {
  for (const auto& [text, score, topk, above] : {std::tuple{"dot topk(8)", "dot", 8, -INFINITY},
                                                 {"gat above(0.1)", "gat", 0, 0.1f},
                                                 {"pearson \t topk ( 4 ) above(-1e-3)", "pearson", 4, -1e-3f},
                                                 {"a*leaky(q + k, 0.2) topk(3)", "a*leaky(q + k, 0.2)", 3, -INFINITY},
                                                 {"a * leaky(q + k, 0.2)", "a * leaky(q + k, 0.2)", 0, -INFINITY},
                                                 {"a - (q + k)", "a - (q + k)", 0, -INFINITY},
                                                 {"dot topk(8) topk(5) above(1) above(2)", "dot", 5, 2},
                                                 {"leaky(q)", "leaky(q)", 0, -INFINITY},
                                                 {"", "", 0, -INFINITY}}) {
    const FilteredText found = split_filter(text);
    CHECK(found.score == score);
    CHECK(found.filter.topk == topk);
    CHECK(static_cast<float>(found.filter.above) == static_cast<float>(above));
  }
  for (const char* name : {"dot topk(8)", "gat above(0.1)", "mlp topk(3) above(-1e-12)", "softdtw topk(2147483647)"}) {
    CHECK(score_named(name).name == name);
    CHECK(static_cast<bool>(score_named(name).filter));
  }
  CHECK(with_filter(score_named("dot"), {.topk = 3, .above = 0.5}).name == "dot topk(3) above(0.5)");
  CHECK(score_named("dot").name == "dot");
  CHECK(!score_named("dot").filter);
  auto refused = [](const char* name) { return message([&] { score_named(name); }); };
  CHECK(refused("dot topk(0)") == "column 10: topk(k) takes a whole number of 1 to 2147483647, not '0'");
  CHECK(refused("dot topk(2.5)") == "column 10: topk(k) takes a whole number of 1 to 2147483647, not '2.5'");
  CHECK(refused("dot topk(2147483648)").find("not '2147483648'") != std::string::npos);
  CHECK(refused("dot topk()") == "column 10: topk(k) takes a whole number of 1 to 2147483647, not ''");
  CHECK(refused("dot topk").find("topk(k) takes a whole number") != std::string::npos);
  CHECK(refused("gat above(nan)") == "column 11: above(x) takes a number, not 'nan'");
  CHECK(refused("gat above(inf)") == "column 11: above(x) takes a number, not 'inf'");
  CHECK(refused("gat above(x)") == "column 11: above(x) takes a number, not 'x'");
  CHECK(refused("gat topp(3)") == "column 5: unknown filter 'topp'; did you mean topk?");
  CHECK(refused("gatt topk(3)") == "unknown score 'gatt'; did you mean gat or gatv2?");
  CHECK(message([] { with_filter(score_named("dot"), {.topk = -1}); }).find("not -1") != std::string::npos);
  CHECK(message([] { with_filter(score_named("dot"), {.above = NAN}); }).find("not nan") != std::string::npos);
  CHECK(filter_menu().size() == 2);
}

TEST_CASE("attention: float agrees with the dense reference, and all compiled widths have the same bits") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const auto& [score, normaliser] : pairs_under_test(random))
    for (int width : {4, 8, 16, 32, 64}) {
      CAPTURE(score.name);
      CAPTURE(normaliser.name);
      CAPTURE(width);
      auto c = make_case<float>(score, normaliser, Mask::features, 3, width, width, random);
      c.dropout = {0.3f, seed};
      c.forward(), c.backward();
      const auto reference = reference_of(c);
      if (reference.cut > float_tolerance(reference))  // otherwise another key may be kept
        CHECK(difference(c.y, reference.y) <= float_tolerance(reference));
      // Zero channels added to each head change nothing, but the width without a kernel of its own runs.
      int wider = width + 8 - (width == 4 ? 3 : 0);
      if (score.name == "tempered" || score.name == "scaled_dot" || base_name(score) == "softdtw") continue;
      auto widen = [&](const Matrix<float>& x, int from, int to) {
        Matrix<float> out(x.rows(), x.cols() / from * to);
        for (Offset i = 0; i < x.rows(); ++i)
          for (Offset t = 0; t < x.cols(); ++t) out(i, t / from * to + t % from) = x(i, t);
        return out;
      };
      auto d = c;
      d.score_width = score.contracts ? 1 : wider;
      d.width = wider;
      for (auto* x : {&d.q, &d.k, &d.a, &d.e})
        if (!x->empty()) *x = widen(*x, c.score_width, d.score_width);
      for (auto* x : {&d.v, &d.ev, &d.dy}) *x = widen(*x, width, wider);
      d.forward(), d.backward();
      CHECK(d.y == widen(c.y, width, wider));
      CHECK(d.dv == widen(c.dv, width, wider));
      CHECK(d.dk == widen(c.dk, c.score_width, d.score_width));
      CHECK(d.dq == widen(c.dq, c.score_width, d.score_width));
    }
}

TEST_CASE("attention: the same bits on 1, 2 and 7 threads") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const auto& [score, normaliser] : pairs_under_test(random)) {
    const bool whole = normaliser.name == "softmax";  // rows in one loop
    auto c = make_case<float>(score, normaliser, Mask::list, whole ? 4 : 2, whole ? 16 : 8, 16, random);
    // Rows around a hub of 20000 edges, so that parts are merged in both directions.
    Id n = 20500;
    std::vector<std::set<Id>> rows(static_cast<std::size_t>(n));
    for (Id j = 0; j < 20000; ++j) rows[3].insert(j), rows[j].insert(5);
    for (int e = 0; e < 60000; ++e) rows[random.below(n)].insert(static_cast<Id>(random.below(n)));
    Csr csr{.rows = n, .cols = n};
    for (auto& row : rows) {
      csr.ids.insert(csr.ids.end(), row.begin(), row.end());
      csr.offsets.push_back(csr.edges());
    }
    c.pattern = Pattern::listed(std::make_shared<Csr>(csr));
    CHECK(c.pattern->by_query.parts == parts_of(20'000));
    CHECK(c.pattern->by_key.parts == parts_of(20'000));
    c.q = random_matrix<float>(n, c.q.cols(), random), c.k = random_matrix<float>(n, c.k.cols(), random);
    c.v = random_matrix<float>(n, c.v.cols(), random), c.dy = random_matrix<float>(n, c.v.cols(), random);
    c.dropout = {0.25f, 99};
    with_threads(1, [&] { c.forward(), c.backward(); });
    for (int threads : {2, 7}) {
      CAPTURE(threads);
      auto d = c;
      with_threads(threads, [&] { d.forward(), d.backward(); });
      CHECK(c.y == d.y);
      CHECK(c.dq == d.dq);
      CHECK(c.dk == d.dk);
      CHECK(c.dv == d.dv);
      CHECK(c.da == d.da);
      CHECK(c.dp == d.dp);
    }
  }
}

namespace {

// The pairs of a pattern of intervals as a list, which runs through other code.
std::shared_ptr<const Pattern> as_list(const Pattern& pattern) {
  Csr csr{.rows = pattern.queries(), .cols = pattern.keys()};
  for (Id i = 0; i < csr.rows; ++i) {
    auto [begin, end] = pattern.by_query.interval(i);
    for (Id j = begin; j < end; ++j)
      if (!pattern.by_query.list || !pattern.by_query.list->contains(i, j)) csr.ids.push_back(j);
    csr.offsets.push_back(csr.edges());
  }
  return Pattern::listed(std::make_shared<Csr>(std::move(csr)));
}

enum class Shape { wide, tall, sliding, growing, banded, two_queries, few_keys };
constexpr Shape kShapes[] = {Shape::wide,   Shape::tall,        Shape::sliding, Shape::growing,
                             Shape::banded, Shape::two_queries, Shape::few_keys};

// Intervals of many tiles, less pairs at the borders of tiles, a whole tile, a whole row and a whole column.
std::shared_ptr<const Pattern> many_tiles(Shape shape, Random& random) {
  const bool tall = shape == Shape::tall || shape == Shape::few_keys;
  const bool hub = shape == Shape::two_queries || shape == Shape::few_keys;
  const Id few = !hub ? 203 : tall ? 20 : 2, many = hub ? 1500 : 670;
  const Id queries = tall ? many : few, keys = tall ? few : many;
  std::vector<Interval> rows;
  for (Id i = 0; i < queries; ++i) {
    const Id at = i * (keys - 1) / queries;
    if (shape == Shape::sliding)
      rows.push_back({at / 3 * 2, std::min(keys, at / 3 * 2 + 70)});
    else if (shape == Shape::growing)
      rows.push_back({0, at});
    else if (shape == Shape::banded)  // and some see nothing
      rows.push_back({std::min(keys, i / 40 * 130 + (i % 40 < 35 ? 0 : 130)), std::min(keys, i / 40 * 130 + 130)});
    else
      rows.push_back({0, keys});
  }
  std::vector<std::set<Id>> out(static_cast<std::size_t>(queries));
  for (Id i = 0; i < queries; ++i) {
    for (Id j : {0, 1, 62, 63, 64, 65, 127, 128, 511, 512, 513, 669})
      if (j < keys - 1 && random.below(2) == 0) out[i].insert(j);
    for (Id j = 64; j < 128 && i % 5 < 2 && keys > 128; ++j) out[i].insert(j);
    if (i % 64 == 17)
      for (Id j = 0; j < keys; ++j) out[i].insert(j);
    if (keys > 90) out[i].insert(90);
  }
  Csr without{.rows = queries, .cols = keys};
  for (auto& row : out) {
    without.ids.insert(without.ids.end(), row.begin(), row.end());
    without.offsets.push_back(without.edges());
  }
  auto pattern = Pattern::sliding(keys, std::move(rows), std::make_shared<Csr>(std::move(without)));
  REQUIRE(pays_in_tiles(*pattern));
  return pattern;
}

template <class T>
Case<T> case_of_tiles(const Score& score, const Normaliser& normaliser, Shape shape, int heads, int score_width,
                      int width, Random& random) {
  auto c = make_case<T>(score, normaliser, Mask::range, heads, score_width, width, random);
  c.pattern = many_tiles(shape, random);
  for (auto* x : {&c.q, &c.dy}) *x = random_matrix<T>(c.pattern->queries(), x->cols(), random);
  for (auto* x : {&c.k, &c.v}) *x = random_matrix<T>(c.pattern->keys(), x->cols(), random);
  // So that the few best scores lie on both sides of the kink: on one alone dq cancels to what rounding left of it.
  if (base_name(score) == "gat" && (normaliser.solves || score.filter.topk > 0)) {
    const bool hub = shape == Shape::two_queries || shape == Shape::few_keys;
    for (T& z : c.q) z = hub ? z / 100 : z / 5 - T(2.6);
    const Id step = c.k.rows() / 15;
    for (Id j = 0; hub && j < c.k.rows(); ++j)
      for (int h = 0; h < heads; ++h) {
        const T near = T(0.03) + std::abs(c.k(j, h)) / 15;
        c.k(j, h) = j == 5 * step ? near : j % step == 0 ? -near : T(-8);
      }
  }
  return c;
}

template <class T>
std::vector<std::pair<std::string, Matrix<T> Case<T>::*>> results() {
  return {{"y", &Case<T>::y},   {"dq", &Case<T>::dq}, {"dk", &Case<T>::dk},
          {"dv", &Case<T>::dv}, {"da", &Case<T>::da}, {"dp", &Case<T>::dp}};
}

}  // namespace

TEST_CASE("attention: intervals of many tiles give what a list of the same pairs gives") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  int turn = 0;
  for (const auto& [score, normaliser] : pairs_under_test(random))
    for (Shape shape : kShapes) {
      if (random.below(base_name(score) == "softdtw" ? 9 : 3) > 0) continue;
      constexpr std::array<int, 3> kSizes[] = {{1, 16, 24}, {3, 5, 1}, {8, 8, 5}, {2, 1, 16}, {3, 24, 8}};
      auto [heads, score_width, width] = kSizes[turn++ % 5];
      const bool kinked = base_name(score) == "gatv2" || base_name(score) == "mlp";
      if (kinked && score_width == 1) score_width = 5;  // one channel has one kink, and all its best scores lie beyond
      auto run = [&]<class T>(T tolerance) {
        auto c = case_of_tiles<T>(score, normaliser, shape, heads, score_width, width, random);
        c.dropout = {turn % 2 == 0 ? 0.0f : 0.3f, seed};
        CAPTURE(score.name);
        CAPTURE(normaliser.name);
        CAPTURE(static_cast<int>(shape));
        CAPTURE(heads);
        CAPTURE(sizeof(T));
        auto d = c;
        d.pattern = as_list(*c.pattern);
        c.forward(), c.backward();
        d.forward(), d.backward();
        double size = 0;
        for (T x : c.dy) size += static_cast<double>(x * x);
        for (auto [name, part] : results<T>()) {  // what all pairs have a part in may cancel
          CAPTURE(name);
          CHECK(difference(c.*part, d.*part, name == "dp" ? 0.02 * std::sqrt(size) : 0) <= tolerance);
        }
      };
      run(1e-10), run(5e-4f);  // sums that nearly cancel, as da and dp may, are off by more than a rounding
    }
}

TEST_CASE("plans: blocks in proportion to rows and not to pairs, and long rows that stay whole") {
  const auto all = Pattern::all(40'000, 40'000);
  CHECK(all->by_query.blocks.size() <= 40'000);
  CHECK(all->by_query.parts == 0);
  const auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id keys = kHub, queries = static_cast<Id>(kHubParts + 10);  // just enough for whole rows
  auto c = make_case<float>(with_filter(score_named("dot"), {.topk = 2}), normaliser_named("softmax"), Mask::list, 1, 8,
                            8, random);
  for (auto* x : {&c.k, &c.v}) *x = random_matrix<float>(keys, 8, random);
  for (auto* x : {&c.q, &c.dy}) *x = random_matrix<float>(queries, 8, random);
  c.pattern = Pattern::all(queries, keys);
  CHECK(c.pattern->by_query.parts == 0);
  auto d = c;  // the first rows alone, which are cut
  d.pattern = Pattern::all(3, keys);
  CHECK(d.pattern->by_query.parts == 3 * parts_of(keys));
  for (auto* x : {&d.q, &d.dy}) x->resize(3, 8);
  c.forward(), c.backward();
  d.forward(), d.backward();
  for (auto part : {&Case<float>::y, &Case<float>::dq}) {
    (c.*part).resize(3, 8);
    CHECK(difference(c.*part, d.*part) <= 1e-6);
  }
}

TEST_CASE("attention: intervals have the same bits on 1, 2, 7 and 16 threads, whatever was computed before") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const auto& [score, normaliser] : pairs_under_test(random))
    for (Shape shape : kShapes) {
      if (random.below(3) > 0) continue;
      CAPTURE(score.name);
      CAPTURE(normaliser.name);
      CAPTURE(static_cast<int>(shape));
      auto c = case_of_tiles<float>(score, normaliser, shape, 3, 8, 16, random);
      c.dropout = {0.25f, 99};
      with_threads(1, [&] { c.forward(), c.backward(); });
      for (int threads : {1, 2, 7, 16}) {
        CAPTURE(threads);
        auto d = c, poison = c;
        for (auto* x : {&poison.q, &poison.k, &poison.v, &poison.dy}) x->fill(NAN);
        with_threads(threads, [&] {
          poison.forward(), poison.backward();
          d.forward(), d.backward();
        });
        for (auto [name, part] : results<float>()) {
          CAPTURE(name);
          CHECK(c.*part == d.*part);
        }
      }
    }
}

TEST_CASE("attention: what no pair sees is not read, be it NaN") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const auto& [score, normaliser] : pairs_under_test(random))
    for (Shape shape : kShapes) {
      if (random.below(3) > 0) continue;
      CAPTURE(score.name);
      CAPTURE(normaliser.name);
      CAPTURE(static_cast<int>(shape));
      auto c = case_of_tiles<float>(score, normaliser, shape, 2, 8, 8, random);
      const auto list = as_list(*c.pattern);
      if (random.below(2) == 0) c.pattern = list;
      c.dropout = {0.25f, seed};
      auto d = c;
      for (Id i = 0; i < c.q.rows(); ++i)
        if (list->by_query.length(i) == 0)
          for (auto* x : {&d.q, &d.dy}) std::fill_n(x->row(i), x->cols(), NAN);
      for (Id j = 0; j < c.k.rows(); ++j)
        if (list->by_key.length(j) == 0)
          for (auto* x : {&d.k, &d.v}) std::fill_n(x->row(j), x->cols(), NAN);
      c.forward(), c.backward();
      d.forward(), d.backward();
      for (auto [name, part] : results<float>()) {
        CAPTURE(name);
        CHECK(c.*part == d.*part);
      }
    }
}

TEST_CASE("attention: over intervals too, gradients are added where asked, also of one table in several roles") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (Shape shape : kShapes) {
    CAPTURE(static_cast<int>(shape));
    auto c = case_of_tiles<double>(scores_under_test().back(), normaliser_named("softmax"), shape, 3, 8, 8, random);
    if (shape == Shape::growing) {  // one table of nodes is query, key and value
      c.pattern = Pattern::all(900, 900);
      c.q = random_matrix<double>(900, c.q.cols(), random), c.k = c.v = c.q;
      c.dy = random_matrix<double>(900, c.dy.cols(), random);
    }
    c.forward(), c.backward();
    auto before = c;
    AttentionGradient<double> g;
    auto again = [](Matrix<double>& x) { return Sink<double>{x.view(), true}; };
    g.dq = again(c.dq), g.dk = again(c.dk), g.dv = again(c.dv), g.da = again(c.da), g.dp = again(c.dp);
    attention_gradient<double>(c.call(), std::as_const(c.y).view(), std::as_const(c.dy).view(), c.state, g);
    for (auto [name, part] : results<double>()) {
      CAPTURE(name);
      if (name == std::string("y")) continue;
      for (double& x : before.*part) x *= 2;
      CHECK(difference(c.*part, before.*part) <= 1e-14);
    }
    if (shape != Shape::growing) continue;
    Matrix<double> sum(900, c.q.cols()), expected(900, c.q.cols());
    for (Offset t = 0; t < sum.size(); ++t)
      expected.data()[t] = (before.dq.data()[t] + before.dk.data()[t] + before.dv.data()[t]) / 2;
    g = {.dq = {sum.view(), false}, .dk = {sum.view(), true}, .dv = {sum.view(), true}};
    for (int threads : {1, 2, 7, 16}) {
      CAPTURE(threads);
      auto last = sum;
      sum.fill(7);
      with_threads(threads, [&] {
        attention_gradient<double>(c.call(), std::as_const(c.y).view(), std::as_const(c.dy).view(), c.state, g);
      });
      if (threads > 1) CHECK(sum == last);
    }
    CHECK(difference(sum, expected) <= 1e-13);
  }
}

TEST_CASE("attention: a row that sees nothing gives 0 and takes no gradient; so does a bias of minus infinity") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const Score& score : score_menu()) {
    auto c = make_case<float>(score, normaliser_named("softmax"), Mask::features, 2, 8, 8, random);
    Csr csr = *c.pattern->by_query.list;
    for (Offset t = csr.offsets[2]; t < csr.offsets[3]; ++t)
      for (int h = 0; h < 2; ++h) c.bias(t, h) = -__builtin_inff();
    c.forward(), c.backward();
    for (Id i = 0; i < csr.rows; ++i)
      if (i == 2 || csr.degree(i) == 0)
        for (Offset x = 0; x < c.y.cols(); ++x) CHECK(c.y(i, x) == 0);
    for (const auto* m : {&c.y, &c.dq, &c.dk, &c.dv, &c.de, &c.dev})
      for (float x : *m) CHECK(std::isfinite(x));
    for (Offset x = 0; x < c.dq.cols(); ++x) CHECK(c.dq(2, x) == 0);
  }
}

TEST_CASE("attention: rows of any length between empty ones, and nothing of an earlier call reaches the next") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const auto& [score, normaliser] : pairs_under_test(random))
    for (int heads : {1, 2, 3, 4, 5, 8, 9}) {
      CAPTURE(score.name);
      CAPTURE(normaliser.name);
      CAPTURE(heads);
      auto c = make_case<float>(score, normaliser, Mask::list, heads, 8, 8, random);
      Csr csr{.rows = 40, .cols = 300};
      for (Id i = 0; i < csr.rows; ++i) {
        std::set<Id> row;
        for (auto n = random.below(3) == 0 ? 0 : random.below(random.below(4) == 0 ? 250 : 9); row.size() < n;)
          row.insert(static_cast<Id>(random.below(300)));
        csr.ids.insert(csr.ids.end(), row.begin(), row.end());
        csr.offsets.push_back(csr.edges());
      }
      c.pattern = Pattern::listed(std::make_shared<Csr>(csr));
      for (auto* x : {&c.q, &c.dy}) *x = random_matrix<float>(csr.rows, x->cols(), random, 0.5);
      for (auto* x : {&c.k, &c.v}) *x = random_matrix<float>(csr.cols, x->cols(), random, 0.5);
      c.dropout = {random.below(2) == 0 ? 0.0f : 0.3f, seed};
      c.forward(), c.backward();
      const auto reference = reference_of(c);
      if (reference.cut > float_tolerance(reference)) CHECK(difference(c.y, reference.y) <= float_tolerance(reference));
      if (!score.contracts) {  // one table is key and value, and both gradients are added to what is there
        auto d = c;
        Matrix<float> both = random_matrix<float>(csr.cols, c.k.cols(), random), expected = both, dq = c.dq;
        for (Offset t = 0; t < both.size(); ++t) expected.data()[t] += c.dk.data()[t] + c.dv.data()[t];
        AttentionGradient<float> g{.dq = {dq.view(), true}, .dk = {both.view(), true}, .dv = {both.view(), true}};
        attention_gradient<float>(d.call(), std::as_const(d.y).view(), std::as_const(d.dy).view(), d.state, g);
        CHECK(difference(both, expected) <= 1e-6);
        for (float& x : dq) x /= 2;
        CHECK(difference(dq, c.dq) <= 1e-6);
      }
      auto poison = c;
      poison.pattern = Pattern::all(csr.rows, csr.cols);
      poison.v.fill(NAN), poison.q.fill(NAN), poison.k.fill(NAN);
      poison.forward(), poison.backward();
      auto again = c;
      again.forward(), again.backward();
      CHECK(again.y == c.y);
      CHECK(again.dq == c.dq);
      CHECK(again.dk == c.dk);
      CHECK(again.dv == c.dv);
      CHECK(again.da == c.da);
      CHECK(again.dp == c.dp);
    }
}

TEST_CASE("attention: a list of all pairs, hubs among them, gives what the range gives; and backward without a hint") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const auto& [score, normaliser] : pairs_under_test(random))
    for (Mask mask : {Mask::hub, Mask::hub_key, Mask::range}) {
      CAPTURE(score.name);
      CAPTURE(normaliser.name);
      CAPTURE(static_cast<int>(mask));
      auto c = make_case<double>(score, normaliser, mask, 2, 3, 5, random);
      for (auto* x : {&c.q, &c.k}) *x = random_matrix<double>(x->rows(), x->cols(), random);  // of either sign
      if (score.reads_query) c.dropout = {0.2f, seed};  // otherwise a range draws for the keys
      c.forward(), c.backward();
      const Id queries = c.pattern->queries(), keys = c.pattern->keys();
      Csr all{.rows = queries, .cols = keys};
      for (Id i = 0; i < queries; ++i) {
        for (Id j = 0; j < keys; ++j) all.ids.push_back(j);
        all.offsets.push_back(all.edges());
      }
      auto list = Pattern::listed(std::make_shared<Csr>(std::move(all)));
      for (bool hint : {true, false}) {
        CAPTURE(hint);
        auto d = c;
        d.pattern = list;
        d.state.backward = hint;
        d.forward(), d.backward();
        CHECK(difference(d.y, c.y) <= 1e-12);
        CHECK(difference(d.dq, c.dq, score.filter ? 1 : 0) <= 1e-10);  // of the best of a hub on one side of a kink: 0
        CHECK(difference(d.dk, c.dk) <= 1e-10);
        CHECK(difference(d.dv, c.dv) <= 1e-12);
        if (!c.da.empty()) CHECK(difference(d.da, c.da) <= 1e-10);
        if (!c.dp.empty()) CHECK(difference(d.dp, c.dp, 1e-2) <= 1e-10);
      }
    }
}

namespace {

struct Aside {  // a score that looks at no query, channel by channel
  static constexpr const char* name = "aside";
  HEED_FN auto term(auto, auto k, auto e, auto a) const { return a * (k + e); }
};
struct Bent : scores::Cosine {  // whose finish reads a member, and goes before its base's factor
  using Sum = scores::Dot;
  static constexpr const char* name = "bent";
  float bend = 0.3f;
  template <class X>
  HEED_FN X finish(X sum, const X* p, int) const {
    return fn::tanh(sum * X(bend)) * p[0];
  }
};

}  // namespace

TEST_CASE("attention: rows that run whole give what the stages give, of any length and in every shape") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  // Queries of no keys, some, hundreds, and a hub in parts; then the same of keys. What no pair sees is NaN.
  std::vector<std::set<Id>> rows(300);
  for (Id i = 0; i < 300; ++i)
    for (Id t = i % 5 == 0 ? 0 : static_cast<Id>(random.below(i % 20 == 1 ? 300 : 40)); t > 0; --t)
      rows[i].insert(static_cast<Id>(random.below(t % 2 == 0 ? 200 : kHub)));
  for (Id j = 0; j < kHub; j += 1 + static_cast<Id>(j % 7 == 3)) rows[7].insert(j);
  auto one = std::make_shared<Csr>(Csr{.rows = 300, .cols = kHub});
  for (const auto& row : rows) {
    one->ids.insert(one->ids.end(), row.begin(), row.end());
    one->offsets.push_back(one->edges());
  }
  // And intervals that slide, of which `one` is missing: of no keys, some, and a hub.
  std::vector<Interval> intervals;
  for (Id i = 0, end = 0; i < 300; ++i) {
    const Id begin = i * 5;
    if (i % 3 > 0) end = std::max(end, begin + static_cast<Id>(random.below(60)));
    end = i < 299 ? std::max(begin, end) : kHub;
    intervals.push_back({begin, end});
  }
  auto two = std::make_shared<Csr>(Csr{.rows = 300, .cols = kHub});  // what is left
  for (Id i = 0; i < 300; ++i) {
    const auto [begin, end] = intervals[i];
    for (Id j = begin; j < end; ++j)
      if (!rows[i].contains(j)) two->ids.push_back(j);
    two->offsets.push_back(two->edges());
  }
  auto none = std::make_shared<Csr>(Csr{.rows = 4, .cols = 4, .offsets = {0, 0, 0, 0, 0}, .ids = {}});
  const struct {
    std::shared_ptr<const Pattern> pattern;
    std::shared_ptr<const Csr> by_query, by_key;
  } patterns[] = {{Pattern::listed(one), one, transpose(one).csr},
                  {Pattern::listed(transpose(one).csr), transpose(one).csr, one},
                  {Pattern::sliding(kHub, intervals, one), two, transpose(two).csr},
                  {Pattern::listed(none), none, none}};
  CHECK(patterns[0].pattern->by_query.parts > 1);
  CHECK(patterns[1].pattern->by_key.parts > 1);
  CHECK(patterns[2].pattern->by_query.parts > 1);
  int turn = 0;
  std::vector<Score> scores;
  for (const Score& score : score_menu())
    if (score.single.fused[0]) scores.push_back(score);
  scores.push_back(make_score(Aside{}));
  scores.push_back(make_score(Bent{}));
  scores.push_back(with_temperature(score_named("dot"), 1.3, true));
  scores.push_back(with_temperature(score_named("gatv2"), 0.8));
  for (const Score& score : scores)
    for (auto [heads, width] :
         {std::pair{4, 16}, {8, 8}, {1, 8}, {4, 8}, {8, 16}, {4, 32}, {1, 7}, {1, 1}, {1, 16}, {1, 9},
          {8, 1}, {8, 2}, {8, 3}, {8, 4}, {8, 5}, {8, 6}, {8, 7}}) {
      if (heads == 8 && width < 8 && !score.contracts) continue;  // these go through the stages
      for (float rate : {0.0f, 0.0f, 0.0f, 0.0f, 0.3f, 0.3f, 0.3f, 0.3f}) {
        CAPTURE(score.name);
        CAPTURE(heads);
        CAPTURE(width);
        CAPTURE(rate);
        CAPTURE(turn);
        auto c = make_case<float>(score, normaliser_named("softmax"), Mask::list, heads, width, width, random);
        const auto& [pattern, by_query, by_key] = patterns[turn++ % 4];
        c.pattern = pattern;
        c.dropout = {rate, seed};
        for (auto* x : {&c.q, &c.dy}) *x = random_matrix<float>(c.pattern->queries(), x->cols(), random);
        for (auto* x : {&c.k, &c.v}) *x = random_matrix<float>(c.pattern->keys(), x->cols(), random);
        for (auto* x : {&c.q, &c.k})  // so that sums of two are exact, and no kink parts float from double
          for (float& value : *x) value = std::round(value * 64) / 128;
        auto hide = [&](const Csr& seen, std::initializer_list<Matrix<float>*> tables) {
          for (Id i = 0; i < seen.rows; ++i)
            if (seen.degree(i) == 0)
              for (auto* table : tables) std::fill_n(table->row(i), table->cols(), std::nanf(""));
        };
        const bool few = turn % 3 == 0;  // rows of dy are not 0, as where the loss is of few nodes
        for (Offset i = 0; i < c.dy.rows() && few; ++i)
          if (i % 11 != 7) std::fill_n(c.dy.row(i), c.dy.cols(), 0.0f);
        hide(*by_query, {&c.q, &c.dy}), hide(*by_key, {&c.k, &c.v});
        CHECK(fused_kernels(c.call()) != nullptr);
        auto d = make_case<double>(score, normaliser_named("softmax"), Mask::list, heads, width, width, random);
        d.pattern = c.pattern, d.dropout = c.dropout;
        for (auto [to, from] :
             {std::pair{&d.q, &c.q}, {&d.k, &c.k}, {&d.v, &c.v}, {&d.a, &c.a}, {&d.p, &c.p}, {&d.dy, &c.dy}}) {
          to->resize(from->rows(), from->cols());
          std::copy(from->begin(), from->end(), to->begin());
        }
        c.forward(), c.backward(), d.forward(), d.backward();
        if (few && turn % 4 == 1) CHECK(!c.state.given.empty());
        double incoming = 0;
        for (float g : c.dy) incoming += std::isnan(g) ? 0 : g * g;
        incoming = std::sqrt(incoming);
        CHECK(difference(c.y, d.y) <= 1e-5);
        CHECK(difference(c.dv, d.dv, incoming) <= 1e-5);
        CHECK(difference(c.dq, d.dq) <= 1e-5);
        CHECK(difference(c.dk, d.dk) <= 1e-5);
        // Sums over thousands of pairs, which may cancel: beside the gradient that came in.
        if (!c.da.empty()) CHECK(difference(c.da, d.da, incoming) <= 5e-6);
        if (!c.dp.empty()) CHECK(difference(c.dp, d.dp, incoming) <= 5e-6);
        const Matrix<float> y = c.y;
        c.state.backward = false;
        c.forward();
        CHECK(c.y == y);
        // Added to what is there; and each alone.
        for (auto sink :
             {&AttentionGradient<float>::dq, &AttentionGradient<float>::dk, &AttentionGradient<float>::dv}) {
          const auto& once = sink == &AttentionGradient<float>::dq   ? c.dq
                             : sink == &AttentionGradient<float>::dk ? c.dk
                                                                     : c.dv;
          Matrix<float> twice = once, expected = once;
          for (float& x : expected) x *= 2;
          AttentionGradient<float> g;
          g.*sink = {twice.view(), true};
          attention_gradient<float>(c.call(), std::as_const(c.y).view(), std::as_const(c.dy).view(), c.state, g);
          CHECK(difference(twice, expected) <= 1e-6);
        }
        c.bias.resize(one->edges(), heads);
        CHECK(fused_kernels(c.call()) == nullptr);
      }
    }
}

TEST_CASE("attention: tables that are written past the caches hold what others do") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 140'000;  // 36 MB of 64 numbers a row
  auto list = std::make_shared<Csr>(Csr{.rows = n, .cols = n});
  for (Id i = 0; i < n; ++i) {
    std::set<Id> row;
    for (Id t = i % 4; t > 0; --t) row.insert(static_cast<Id>(random.below(n)));
    list->ids.insert(list->ids.end(), row.begin(), row.end());
    list->offsets.push_back(list->edges());
  }
  for (const char* name : {"dot", "gat", "gatv2"}) {
    CAPTURE(name);
    auto c = make_case<float>(score_named(name), normaliser_named("softmax"), Mask::list, 4, 16, 16, random);
    auto d = make_case<double>(score_named(name), normaliser_named("softmax"), Mask::list, 4, 16, 16, random);
    c.pattern = d.pattern = Pattern::listed(list);
    for (auto [to, from] : {std::pair{&d.q, &c.q}, {&d.k, &c.k}, {&d.v, &c.v}, {&d.dy, &c.dy}, {&d.a, &c.a}}) {
      if (from != &c.a) *from = random_matrix<float>(n, from->cols(), random);
      if (from == &c.q || from == &c.k)  // so that sums of two are exact, and no kink parts float from double
        for (float& x : *from) x = std::round(x * 64) / 128;
      to->resize(from->rows(), from->cols());
      std::copy(from->begin(), from->end(), to->begin());
    }
    CHECK(fused_kernels(c.call()) != nullptr);
    c.forward(), c.backward(), d.forward(), d.backward();
    CHECK(difference(c.y, d.y) <= 1e-5);
    CHECK(difference(c.dq, d.dq) <= 1e-5);
    CHECK(difference(c.dk, d.dk) <= 1e-5);
    CHECK(difference(c.dv, d.dv) <= 1e-5);
    // The same bits in rows that begin anywhere; and in one table in both roles, where dv is added to dk.
    Matrix<float> odd(n, 65), both(n, 64);
    const View<float> there{odd.data() + 1, n, 64, 65};
    AttentionState<float> state;
    attention<float>(c.call(), there, state);
    bool same = true;
    for (Id i = 0; i < n; ++i) same = same && std::equal(c.y.row(i), c.y.row(i) + 64, there.row(i));
    CHECK(same);
    if (c.dk.cols() != 64) continue;
    AttentionGradient<float> g;
    g.dk = {both.view(), false}, g.dv = {both.view(), true};
    attention_gradient<float>(c.call(), std::as_const(c.y).view(), std::as_const(c.dy).view(), c.state, g);
    same = true;
    for (Offset t = 0; t < both.size(); ++t) same = same && both.data()[t] == c.dk.data()[t] + c.dv.data()[t];
    CHECK(same);
  }
}

TEST_CASE("attention: an interval has the bits of the list of its pairs, wherever its largest score is") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const std::string& name : std::vector<std::string>{"node", "gat"})
    for (auto [heads, width] :
         {std::pair{4, 16}, {8, 8}, {1, 8}, {4, 8}, {8, 16}, {4, 32}, {1, 16}, {8, 1}, {8, 3}, {8, 5}, {8, 7}})
      for (double slope : {-0.1, 0.0, 0.1})  // of the scores along the interval
        for (bool backward : {false, true}) {
          CAPTURE(name);
          CAPTURE(heads);
          CAPTURE(width);
          CAPTURE(slope);
          auto c = make_case<float>(score_named(name), normaliser_named("softmax"), Mask::list, heads, 1, width, random);
          const Id keys = 40 + static_cast<Id>(random.below(3 * kHub)), first = static_cast<Id>(random.below(80));
          c.pattern = Pattern::sliding(keys, {{0, keys / 2}, {keys / 3, keys}}, nullptr);
          for (auto* x : {&c.q, &c.dy}) *x = random_matrix<float>(2, x->cols(), random);
          for (auto* x : {&c.k, &c.v}) *x = random_matrix<float>(keys, x->cols(), random);
          for (Id j = 0; j < keys; ++j)
            for (float& k : std::span(c.k.row(j), heads)) k = j < first ? -INFINITY : k + static_cast<float>(slope * j);
          auto d = c;
          d.pattern = as_list(*c.pattern);
          c.state.backward = d.state.backward = backward;
          c.forward(), d.forward();
          CHECK(c.y == d.y);
          CHECK(c.state.tau == d.state.tau);
        }
}

TEST_CASE("attention: gradients are added where asked, and many heads equal groups of heads") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  auto c = make_case<double>(score_named("gatv2"), normaliser_named("softmax"), Mask::list, 40, 3, 5, random);
  c.forward(), c.backward();
  CHECK(difference(c.y, dense_reference(c)) <= 1e-12);
  CHECK(check_gradient(
            c.q, c.dq, [&] { return c.loss(); }, random) <= 1e-6);
  CHECK(check_gradient(
            c.a, c.da, [&] { return c.loss(); }, random) <= 1e-6);
  c.forward();
  auto before = c.dk;
  AttentionGradient<double> g;
  g.dk = {c.dk.view(), true};
  attention_gradient<double>(c.call(), std::as_const(c.y).view(), std::as_const(c.dy).view(), c.state, g);
  for (double& x : before) x *= 2;
  CHECK(difference(c.dk, before) <= 1e-14);
}

TEST_CASE("attention: weights on request are the ones it used") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const Score& score : scores_under_test()) {
    auto c = make_case<double>(score, normaliser_named("softmax"), Mask::features, 3, 4, 4, random);
    c.dropout = {0.3f, seed};
    c.forward();
    Matrix<double> w(c.pattern->edges(), 3);
    attention_weights(c.call(), c.state, w.view());
    Matrix<double> y(c.y.rows(), c.y.cols());
    const Csr& csr = *c.pattern->by_query.list;
    for (Id i = 0; i < csr.rows; ++i)
      for (Offset t = csr.offsets[i]; t < csr.offsets[i + 1]; ++t)
        for (Offset x = 0; x < y.cols(); ++x) y(i, x) += w(t, x / 4) * (c.v(csr.ids[t], x) + c.ev(t, x));
    CHECK(difference(y, c.y) <= 1e-12);
  }
}

TEST_CASE("attention: scores on request are what the papers say, and the weights come from them") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const Score& score : scores_under_test())
    for (auto [mask, heads] : {std::pair{Mask::features, 3}, {Mask::features, 40}, {Mask::hub, 3}}) {
      CAPTURE(score.name);  // 40 heads run as two groups, a hub's row as some parts
      auto c = make_case<double>(score, normaliser_named("softmax"), mask, heads, 4, 4, random);
      if (mask == Mask::hub) {
        Csr all{.rows = 2, .cols = kHub};
        for (Id i = 0; i < 2; ++i) {
          for (Id j = 0; j < kHub; ++j) all.ids.push_back(j);
          all.offsets.push_back(all.edges());
        }
        c.pattern = Pattern::listed(std::make_shared<Csr>(std::move(all)));
        REQUIRE(c.pattern->by_query.parts == 2 * parts_of(kHub));
      }
      c.forward();
      Matrix<double> s(c.pattern->edges(), heads), w(c.pattern->edges(), heads);
      attention_scores(c.call(), s.view());
      attention_weights(c.call(), c.state, w.view());
      Matrix<double> expected(s.rows(), heads), weights(s.rows(), heads);
      const Csr& csr = *c.pattern->by_query.list;
      for (Id i = 0; i < csr.rows; ++i)
        for (int h = 0; h < heads; ++h) {
          const Offset begin = csr.offsets[i], end = csr.offsets[i + 1];
          std::vector<double> row;
          for (Offset t = begin; t < end; ++t) {
            expected(t, h) = reference_score(c, i, csr.ids[t], t, h);
            row.push_back(s(t, h));
          }
          double total = 0, cut = 0;
          const auto passes = passing(score.filter, row, &cut);
          for (Offset t = begin; t < end; ++t) total += weights(t, h) = passes[t - begin] ? std::exp(s(t, h)) : 0;
          for (Offset t = begin; t < end && total > 0; ++t) weights(t, h) /= total;
        }
      CHECK(difference(s, expected) <= 1e-12);
      CHECK(difference(w, weights) <= 1e-12);
    }
}

TEST_CASE("softdtw: series of several channels, a hard minimum far from a soft one, and what does not divide") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int steps : {1, 2, 3, 6, 12}) {
    CAPTURE(steps);
    const Score score = make_score(scores::SoftDtw{.steps = steps, .gamma = 0.8f});
    auto c = make_case<double>(score, normaliser_named("sigmoid"), Mask::features, 2, 12, 3, random);
    c.forward(), c.backward();
    CHECK(difference(c.y, dense_reference(c)) <= 1e-12);
    for (auto [x, gradient] : {std::pair{&c.q, &c.dq}, {&c.k, &c.dk}, {&c.e, &c.de}})
      CHECK(check_gradient(
                *x, *gradient, [&] { return c.loss(); }, random, 12) <= 1e-6);
  }
  // One step is the squared distance.
  auto c = make_case<float>(make_score(scores::SoftDtw{.steps = 1}), normaliser_named("softmax"), Mask::list, 2, 8, 8,
                            random);
  auto d = c;
  d.score = score_named("sqeuclidean");
  c.forward(), d.forward();
  CHECK(difference(c.y, d.y) <= 1e-5);
  CHECK(message([&] {
          auto e = make_case<float>(make_score(scores::SoftDtw{.steps = 5}), normaliser_named("softmax"), Mask::list, 2,
                                    8, 8, random);
          e.forward();
        }) == "the score 'softdtw': 8 channels a head do not divide into 5 steps");
}

TEST_CASE("conventions: coincident points take no gradient, keys that share a maximum share its gradient") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const char* name : {"euclidean", "laplace", "sqeuclidean", "gaussian"}) {
    CAPTURE(name);
    auto c = make_case<float>(score_named(name), normaliser_named("sigmoid"), Mask::range, 2, 4, 4, random);
    for (Id i = 0; i < c.k.rows(); ++i) std::copy_n(c.q.row(0), c.q.cols(), c.k.row(i));
    for (Id i = 0; i < c.q.rows(); ++i) std::copy_n(c.q.row(0), c.q.cols(), c.q.row(i));
    c.forward(), c.backward();
    for (const auto* m : {&c.dq, &c.dk})
      for (float x : *m) CHECK(x == 0);
  }
  // Three keys, two of them alike and best: each takes half of what the third one's weight costs them.
  auto c = make_case<double>(score_named("dot"), normaliser_named("max"), Mask::range, 1, 2, 1, random);
  c.pattern = Pattern::all(1, 3);
  for (auto* x : {&c.q, &c.dy}) *x = random_matrix<double>(1, x->cols(), random);
  for (auto* x : {&c.k, &c.v}) *x = random_matrix<double>(3, x->cols(), random);
  const double length = c.q(0, 0) * c.q(0, 0) + c.q(0, 1) * c.q(0, 1);
  for (Id j = 0; j < 3; ++j)
    for (int x = 0; x < 2; ++x) c.k(j, x) = c.q(0, x) * (j == 2 ? 0.5 : 1) / length;
  c.forward(), c.backward();
  const double w = std::exp(-0.5), ds = w * c.dy(0, 0) * c.v(2, 0);
  for (int x = 0; x < 2; ++x) {
    CHECK(c.dk(2, x) == doctest::Approx(ds * c.q(0, x)));
    for (Id j : {0, 1})
      CHECK(c.dk(j, x) ==
            doctest::Approx((c.dy(0, 0) * c.v(j, 0) - c.dy(0, 0) * (c.v(0, 0) + c.v(1, 0) + w * c.v(2, 0)) / 2) *
                            c.q(0, x)));
  }
}

TEST_CASE("scores, normalisers and temperatures that do not go together are refused") {
  Random random(1);
  auto refused = [&](const Score& score, const Normaliser& normaliser) {
    return message([&] { make_case<float>(score, normaliser, Mask::list, 2, 4, 4, random).forward(); });
  };
  for (const Score& score : score_menu())
    CHECK(refused(score, normaliser_named("sum")) ==
          (score.nonnegative ? ""
                             : "the normaliser 'sum' takes scores that are never negative, as gaussian's; those of '" +
                                   score.name + "' have signs"));
  auto c = make_case<float>(score_named("gaussian"), normaliser_named("sum"), Mask::features, 2, 4, 4, random);
  c.bias = random_matrix<float>(c.pattern->edges(), 2, random);
  CHECK(message([&] { c.forward(); }).find("a bias may make them so") != std::string::npos);
  CHECK(message([] { with_temperature(score_named("dot"), 0); }).find("above 0") != std::string::npos);
  CHECK(message([] { with_temperature(with_temperature(score_named("dot"), 1, true), 1, true); }) ==
        "the score 'dot' has a learned temperature already");
  for (const Score& score : score_menu()) CHECK(std::string(score.about.formula) != "");
  for (const Normaliser& normaliser : normaliser_menu()) CHECK(std::string(normaliser.about.formula) != "");
}

TEST_CASE("functions of lanes are within a few ulp") {
  using V = Vec<float, 8>;
  double worst = 0, worst_quick = 0;
  auto off = [](float x, double y) {
    const float size = std::abs(static_cast<float>(y));
    return std::abs(x - y) / std::max(std::nextafter(size, HUGE_VALF) - size, 1e-38f);
  };
  for (float x = -12; x < 12; x += 1e-3f) {
    worst = std::max(worst, off(tanh_of(V(x)).v[3], std::tanh(static_cast<double>(x))));
    worst_quick = std::max(worst_quick, off(quick_tanh_of(V(x)).v[3], std::tanh(static_cast<double>(x))));
    CHECK(std::abs(quick_tanh_of(V(x)).v[3]) <= 1);
    worst = std::max(worst, off(erf_of(V(x)).v[3], std::erf(static_cast<double>(x))));
    worst = std::max(worst, off(exp_of(V(x)).v[3], std::exp(static_cast<double>(x))));
  }
  for (float x = -87.29f; x < 88.37f; x += 1e-3f)
    worst = std::max(worst, off(exp_of(V(x)).v[3], std::exp(static_cast<double>(x))));
  CHECK(worst <= 3);
  CHECK(worst_quick <= 6);
  const float infinite = __builtin_inff();
  for (float x : {88.38f, 90.0f, 1e9f, 1e38f, infinite}) {
    CHECK(exp_of(V(x)).v[0] == infinite);
    CHECK(exp_of(V(-x)).v[0] == 0);
  }
  CHECK(std::isnan(exp_of(V(NAN)).v[0]));
  CHECK(tanh_of(V(-infinite)).v[0] == -1);
  CHECK(quick_tanh_of(V(-infinite)).v[0] == -1);
  CHECK(std::isnan(quick_tanh_of(V(NAN)).v[0]));
  CHECK(erf_of(V(infinite)).v[0] == 1);
  CHECK(std::isnan(tanh_of(V(NAN)).v[0]));
  CHECK(std::isnan(erf_of(V(NAN)).v[0]));
}

TEST_CASE("attention: dropout keeps its rate, and every head and edge draws for itself") {
  Dropout dropout{0.3f, 12345};
  int dropped = 0, together = 0, trials = 0;
  for (Id i = 0; i < 200; ++i)
    for (std::uint32_t j = 0; j < 200; ++j) {
      bool first = drop_bits(dropout.row_key(i), j, 0) < dropout.threshold();
      bool second = drop_bits(dropout.row_key(i), j, 1) < dropout.threshold();
      dropped += first, together += first && second, ++trials;
    }
  CHECK(std::abs(dropped / double(trials) - 0.3) < 0.01);
  CHECK(std::abs(together / double(trials) - 0.09) < 0.01);
}

TEST_CASE("attention: shapes that do not fit are named") {
  Random random(1);
  auto message = [&](auto break_it) {
    auto c = make_case<float>(score_named("gatv2"), normaliser_named("softmax"), Mask::list, 2, 4, 4, random);
    break_it(c);
    return test::message([&] { c.forward(); });
  };
  CHECK(message([](auto&) {}) == "");
  CHECK(message([](auto& c) { c.k.resize(8, 8); }) == "attention: k is 8 x 8, expected 9 x 8");
  CHECK(message([](auto& c) { c.heads = 3; }).find("do not divide into 3 heads") != std::string::npos);
  CHECK(message([](auto& c) { c.dropout.rate = 1; }).find("below 1") != std::string::npos);
  CHECK(message([](auto& c) { c.a = {}; }).find("a is 0 x 0, expected 1 x 8") != std::string::npos);
  CHECK(message([](auto& c) {
          c.pattern = Pattern::all(9, 9);
          c.bias.resize(81, 2);
        }).find("a mask that is a list") != std::string::npos);
  CHECK_THROWS_WITH_AS(score_named("gatv3"), "unknown score 'gatv3'; did you mean gatv2 or gat?", Error);
}

TEST_CASE("weighted sum: dense reference, transposed too, and the same bits on any number of threads") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (Offset width : {1, 7, 8, 33, 64, 200}) {
    const bool hub = width == 7 || width == 64;
    auto csr = std::make_shared<Csr>(hub ? random_pattern(40, 2 * kHub, 2 * kHub, random)
                                         : random_pattern(40, 30, 20, random));
    const Id cols = csr->cols;
    auto x = random_matrix<double>(cols, width, random);
    auto w = random_matrix<double>(csr->edges(), 1, random);
    auto scale = random_matrix<double>(40, 1, random);
    auto pattern = Pattern::listed(csr);
    Matrix<double> y(40, width), expected(40, width), parts;
    for (Id i = 0; i < 40; ++i)
      for (Offset t = csr->offsets[i]; t < csr->offsets[i + 1]; ++t)
        for (Offset c = 0; c < width; ++c) expected(i, c) += scale(i, 0) * w(t, 0) * x(csr->ids[t], c);
    std::span<const double> weights(w.data(), w.size()), scales(scale.data(), 40);
    weighted_sum<double>(pattern->by_query, weights, {}, scales, std::as_const(x).view(), {y.view()}, parts);
    CHECK(difference(y, expected) <= 1e-13);
    // <dy, A x> = <At dy, x>
    auto dy = random_matrix<double>(40, width, random);
    Matrix<double> dx(cols, width), unscaled(40, width);
    weighted_sum<double>(pattern->by_query, weights, {}, {}, std::as_const(x).view(), {unscaled.view()}, parts);
    weighted_sum<double>(pattern->by_key, weights, pattern->edge_of_entry(), {}, std::as_const(dy).view(), {dx.view()},
                         parts);
    double left = 0, right = 0;
    for (Offset t = 0; t < dy.size(); ++t) left += dy.data()[t] * unscaled.data()[t];
    for (Offset t = 0; t < x.size(); ++t) right += dx.data()[t] * x.data()[t];
    CHECK(left == doctest::Approx(right));
  }
}

TEST_CASE("dense products: plain loops in double, of any shape, several maps at once, strided and added to") {
  const auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  auto any = [&](int most) { return static_cast<Offset>(1 + random.below(static_cast<std::uint64_t>(most))); };
  for (int round = 0; round < 60; ++round) {
    const Offset n = round % 10 == 0 ? 4099 : any(200), in = any(70);
    const std::size_t count = static_cast<std::size_t>(any(3));
    const bool add = random.below(2) == 0, biased = random.below(2) == 0, own = random.below(2) == 0;
    const std::string name = std::to_string(n) + " x " + std::to_string(in) + ", " + std::to_string(count) + " maps";
    CAPTURE(name);
    CAPTURE(own);  // each map has an x of its own, other columns and fewer
    CAPTURE(add);
    CAPTURE(biased);
    Offset out = 0;
    std::vector<Offset> first;
    for (std::size_t m = 0; m < count; ++m) first.push_back(out), out += any(40);
    auto width = [&](std::size_t m) { return (m + 1 < count ? first[m + 1] : out) - first[m]; };
    // Tables wider than what is used of them, so that rows have a stride.
    auto x = random_matrix<float>(n, in + 3, random), w = random_matrix<float>(in, out, random);
    auto bias = random_matrix<float>(1, out, random), y = random_matrix<float>(n, out, random);
    auto dy = random_matrix<float>(n, out, random), dx = random_matrix<float>(n, in + 2, random);
    auto dw = random_matrix<float>(in, out, random), db = random_matrix<float>(1, out, random);
    Matrix<double> y0(n, out), dx0(n, in), dw0(in, out), db0(1, out);
    auto old = [&](float value) { return add ? static_cast<double>(value) : 0.0; };
    std::vector<DenseMap<float>> maps;
    std::vector<Sink<float>> ys, dws, dbs;
    std::vector<View<const float>> xs, dys;
    for (Offset i = 0; i < n; ++i)
      for (Offset k = 0; k < in; ++k) dx0(i, k) = old(dx(i, k + 1));
    for (std::size_t m = 0; m < count; ++m) {
      const double s = m == 0 ? 1 : -0.5;
      const Offset inner = own ? std::max<Offset>(1, in - static_cast<Offset>(m)) : in;
      if (own || m == 0) xs.push_back(std::as_const(x).view().columns(2 - static_cast<Offset>(m), inner));
      const View<const float> X = xs.back();
      auto rows = [&](auto view) { return view.rows = inner, view; };
      maps.push_back({rows(std::as_const(w).view().columns(first[m], width(m))),
                      biased ? std::as_const(bias).view().columns(first[m], width(m)) : View<const float>{},
                      static_cast<float>(s)});
      ys.push_back({y.view().columns(first[m], width(m)), add});
      dys.push_back(std::as_const(dy).view().columns(first[m], width(m)));
      dws.push_back({rows(dw.view().columns(first[m], width(m))), add});
      dbs.push_back({db.view().columns(first[m], width(m)), add});
      for (Offset c = first[m]; c < first[m] + width(m); ++c) {
        db0(0, c) = old(db(0, c));
        for (Offset k = 0; k < in; ++k) dw0(k, c) = k < inner ? old(dw(k, c)) : dw(k, c);
        for (Offset i = 0; i < n; ++i) {
          y0(i, c) = old(y(i, c)) + (biased ? s * bias(0, c) : 0);
          db0(0, c) += s * dy(i, c);
          for (Offset k = 0; k < inner; ++k) {
            y0(i, c) += s * X(i, k) * w(k, c);
            dw0(k, c) += s * X(i, k) * dy(i, c);
          }
          for (Offset k = 0; k < in; ++k) dx0(i, k) += s * dy(i, c) * w(k, c);
        }
      }
    }
    const auto around = dx;
    DenseRoom<float> room;
    product<float>(xs, maps, ys, room);
    product_of_transpose<float>(xs, dys, maps, dws, dbs, room);
    for (auto& map : maps) map.w.rows = in;
    product_by_transpose<float>(dys, maps, Sink<float>{dx.view().columns(1, in), add}, room);
    // Of so many sums of normal numbers: a few of them alone may cancel.
    auto spread = [](Offset numbers, Offset terms) { return std::sqrt(static_cast<double>(numbers * terms)); };
    CHECK(difference(y, y0, spread(n * out, in)) <= 1e-6);
    CHECK(difference(dw, dw0, spread(in * out, n)) <= 2e-6);
    CHECK(difference(db, db0, spread(out, n)) <= 2e-6);
    Matrix<double> inner(n, in);
    for (Offset i = 0; i < n; ++i) {
      for (Offset k = 0; k < in; ++k) inner(i, k) = dx(i, k + 1);
      CHECK(dx(i, 0) == around(i, 0));  // nothing is written beside the columns
      CHECK(dx(i, in + 1) == around(i, in + 1));
    }
    CHECK(difference(inner, dx0, spread(n * in, out)) <= 1e-6);
  }
  Matrix<float> x(3, 4), w(5, 2), y(3, 2);
  DenseRoom<float> room;
  CHECK_THROWS_WITH_AS(product<float>(std::as_const(x).view(), std::as_const(w).view(), Sink<float>{y.view()}, room),
                       "dense product: columns of x and rows of w do not fit: 4 and 5", Error);
}

TEST_CASE("walks: as the list of the same pairs, hubs in parts and rows without keys among them") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id keys = 16'900, n = 300;
  const std::vector<Interval> intervals{{0, 4000}, {0, keys}, {10, keys}, {17, keys}, {9000, keys}};
  auto without = std::make_shared<Csr>(random_pattern(5, keys, 300, random));
  auto more =
      std::make_shared<Csr>(Csr{.rows = 5, .cols = keys, .offsets = {0, 2, 2, 2, 3, 4}, .ids = {4000, 5000, 3, 8}});
  const auto salt = random.next();
  auto some = [salt](Id i, Id j) { return mix(salt, static_cast<std::uint64_t>(j + i)) % 5 > 1; };
  auto late = [](Id i, Id j) { return i != 3 && j > 9000; };  // whole parts see nothing, and row 3 what is beside it
  std::vector<std::shared_ptr<const Pattern>> walks{
      Pattern::mixed(keys, intervals, without, more, some),
      Pattern::mixed(keys, intervals, nullptr, more, late),
      Pattern::mixed(keys, intervals, without, nullptr, late),
      Pattern::mixed(keys, intervals, without, more, {}),
      Pattern::drawn(n, {.count = 7, .regular = true, .stream = random.next()}),
      Pattern::drawn(n, {.count = 90, .stream = random.next()})};
  for (const auto& walk : walks) {
    Csr same{.rows = walk->queries(), .cols = walk->keys()};
    for (Id i = 0; i < same.rows; ++i) {
      Id ids[kChunk];
      const Offset begin = same.edges(), length = walk->by_query.length(i);
      for (Offset at = 0; at < length; at += kChunk) {
        const int count = walk->by_query.walk->columns(i, at, std::min<Offset>(length, at + kChunk), ids);
        same.ids.insert(same.ids.end(), ids, ids + count);
      }
      std::sort(same.ids.begin() + begin, same.ids.end());
      same.offsets.push_back(same.edges());
    }
    check(same);
    CHECK(walk->edges() == same.edges());
    auto list = Pattern::listed(std::make_shared<Csr>(same));
    for (const Normaliser& normaliser : normaliser_menu())
      for (const char* name : {"dot", "gat", "gatv2", "gaussian", "dot topk(5)", "gaussian topk(70) above(0.5)"}) {
        const Score score = score_named(name);
        if (normaliser.nonnegative && !score.nonnegative) continue;
        CAPTURE(normaliser.name);
        CAPTURE(name);
        const Offset channels = score.contracts ? 3 : 12;
        auto q = random_matrix<double>(walk->queries(), channels, random, 0.3);
        auto k = random_matrix<double>(walk->keys(), channels, random, 0.3);
        auto v = random_matrix<double>(walk->keys(), 12, random), a = random_matrix<double>(1, channels, random, 0.3);
        auto dy = random_matrix<double>(walk->queries(), 12, random);
        auto p = random_matrix<double>(std::max(1, score.scalars), 3, random, 0.2);
        Matrix<double> found[2][4];
        for (int side : {0, 1}) {
          Attention<double> x{(side == 0 ? walk : list).get(), &score, &normaliser, 3, q.view(), k.view(), v.view()};
          if (score.reads_vector) x.a = a.view();
          if (score.scalars > 0) x.p = p.view();
          x.dropout = {0.2f, 9};
          auto& [y, dq, dk, dv] = found[side];
          y.resize(walk->queries(), 12), dq.resize(q.rows(), q.cols()), dk.resize(k.rows(), k.cols()),
              dv.resize(v.rows(), v.cols());
          AttentionState<double> state;
          attention(x, y.view(), state);
          AttentionGradient<double> g;
          g.dq = {dq.view()}, g.dk = {dk.view()}, g.dv = {dv.view()};
          attention_gradient<double>(x, std::as_const(y).view(), std::as_const(dy).view(), state, g);
        }
        for (int t = 0; t < 4; ++t) {
          CAPTURE(t);
          CAPTURE(&walk - walks.data());
          // GAT's dq is 0 but for rounding where no pair that counts meets the kink.
          CHECK(difference(found[0][t], found[1][t], t == 1 ? 1 : 0) <= 1e-12);
        }
      }
  }
  CHECK(message([] { Pattern::drawn(5, {.count = 257}); }) == "a row draws 0 to 256 keys, not 257");
}

namespace {

template <class X>
HEED_FN X crooked(X x) {  // the identity, whose slope is given as 1.001
  return x;
}
template <class X, unsigned M>
HEED_FN Jet<X, M> crooked(Jet<X, M> x) {
  return chain(x, x.v, X(1.001));
}
struct Crooked {
  static constexpr const char* name = "crooked";
  HEED_FN auto term(auto q, auto k, auto e, auto) const { return q * (crooked(k) + e); }
};
struct Lopsided {
  static constexpr const char* name = "lopsided";
  static constexpr bool symmetric = true;  // it is not
  HEED_FN auto term(auto q, auto k, auto e, auto) const { return fn::square(q) * (k + e); }
};

}  // namespace

TEST_CASE("gradient_error: small for every score, large where a slope or a promise is wrong") {
  double worst = 0;
  for (const Score& score : scores_under_test()) worst = std::max(worst, gradient_error(score));
  CHECK(worst <= 1e-6);
  CHECK(gradient_error(make_score(Crooked{})) > 1e-4);
  CHECK(gradient_error(make_score(Lopsided{})) > 1e-4);
  MESSAGE("worst gradient error " << worst);
}

// ---- formulas -----------------------------------------------------------------------------------------------------

TEST_CASE("formulas: those of the menu's scores give their numbers, values and all gradients") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  double worst = 0;
  int same = 0, all = 0;
  auto compare = [&]<class T>(T, Mask mask, int heads, int width, double tolerance) {
    for (auto [formula, name] : kFormulas) {
      CAPTURE(formula);
      CAPTURE(static_cast<int>(mask));
      CAPTURE(heads);
      CAPTURE(width);
      auto c = make_case<T>(score_named(name), normaliser_named("softmax_sink"), mask, heads, width, 8, random);
      c.dropout = {0.2f, seed};
      auto d = c;
      d.score = score_named(formula);
      CHECK(d.score.name == formula);
      CHECK(d.score.reads_vector == c.score.reads_vector);
      CHECK(d.score.reads_query);
      CHECK(d.score.start == c.score.start);
      CHECK(d.score.nonnegative == c.score.nonnegative);
      CHECK(d.score.has_finish == c.score.has_finish);
      c.forward(), c.backward(), d.forward(), d.backward();
      for (auto part : {&Case<T>::y, &Case<T>::dq, &Case<T>::dk, &Case<T>::dv, &Case<T>::da, &Case<T>::dp, &Case<T>::de,
                        &Case<T>::dbias, &Case<T>::dev}) {
        const double error = difference(d.*part, c.*part, 1);  // of what should cancel, rounding is left
        CHECK(error <= tolerance);
        worst = std::max(worst, error / tolerance);
        same += d.*part == c.*part, ++all;
      }
    }
  };
  for (Mask mask : {Mask::list, Mask::features, Mask::without, Mask::rectangular})
    for (auto [heads, width] : {std::array{1, 5}, {3, 16}, {8, 1}, {4, 8}, {1, 64}, {5, 33}, {9, 8}, {33, 70}}) {
      compare(float{}, mask, heads, width, 1e-6 * std::max(4, width));
      compare(double{}, mask, heads, width, 1e-13);
    }
  compare(float{}, Mask::features, 3, 2500, 1e-4);  // channels in pieces
  compare(double{}, Mask::features, 2, 4097, 1e-12);
  compare(double{}, Mask::hub_key, 3, 9, 1e-12);
  MESSAGE("worst error " << worst << " of what is allowed; the same bits in " << same << " of " << all << ", seed "
                         << seed);
}

namespace {

// A formula made up, as text and as a function of long doubles, which also says how far it stays from kinks.
struct Made {
  std::string text;
  std::function<long double(const long double* x, long double& kink)> value;  // x: q, k, e, a, or sum, p0, p1, p2
};
Made made_up(const std::vector<std::string>& names, int depth, Random& random) {
  using L = long double;
  auto number = [&] { return (1 + static_cast<int>(random.below(30))) / 16.0; };
  auto text_of = [](double x) { return std::to_string(x); };
  if (depth == 0 || random.below(8) == 0) {
    if (random.below(5) == 0) {
      const double c = number();
      return {text_of(c), [c](const L*, L&) { return L(c); }};
    }
    const std::size_t at = random.below(names.size());
    return {names[at], [at](const L* x, L&) { return x[at]; }};
  }
  const Made f = made_up(names, depth - 1, random);
  auto unary = [&](const std::string& name, auto of) {
    return Made{name + "(" + f.text + ")", [f, of](const L* x, L& kink) { return of(f.value(x, kink), kink); }};
  };
  switch (random.below(15)) {
    case 0:
      return unary("tanh", [](L x, L&) { return std::tanh(x); });
    case 1:
      return unary("sigmoid", [](L x, L&) { return 1 / (1 + std::exp(-x)); });
    case 2:
      return unary("erf", [](L x, L&) { return std::erf(x); });
    case 3:
      return unary("abs", [](L x, L& kink) { return kink = std::min(kink, std::abs(x)), std::abs(x); });
    case 4:
      return unary("relu", [](L x, L& kink) { return kink = std::min(kink, std::abs(x)), std::max(x, L(0)); });
    case 5:
      return unary("-", [](L x, L&) { return -x; });
    case 6: {
      const float slope = static_cast<float>(number());
      return {"leaky(" + f.text + ", " + text_of(slope) + ")", [f, slope](const L* x, L& kink) {
                const L y = f.value(x, kink);
                return kink = std::min(kink, std::abs(y)), y > 0 ? y : slope * y;
              }};
    }
    case 7:
      return {"exp(tanh(" + f.text + "))", [f](const L* x, L& kink) { return std::exp(std::tanh(f.value(x, kink))); }};
    case 8:
      return {"log(1.5 + square(" + f.text + "))", [f](const L* x, L& kink) {
                const L y = f.value(x, kink);
                return std::log(1.5L + y * y);
              }};
    case 9:
      return {"sqrt(0.5+(" + f.text + ")*(" + f.text + "))", [f](const L* x, L& kink) {
                const L y = f.value(x, kink);
                return std::sqrt(0.5L + y * y);
              }};
    default:
      break;
  }
  const Made g = made_up(names, depth - 1, random);
  const char sign = "+-*/"[random.below(4)];
  const std::string right = sign == '/' ? "(0.75 + square(" + g.text + "))" : "(" + g.text + ")";
  return {"(" + f.text + ")" + sign + right, [f, g, sign](const L* x, L& kink) {
            const L a = f.value(x, kink), b = g.value(x, kink);
            return sign == '+' ? a + b : sign == '-' ? a - b : sign == '*' ? a * b : a / (0.75L + b * b);
          }};
}

}  // namespace

TEST_CASE("formulas: random ones against plain evaluation and central differences, in double") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  double worst_value = 0, worst_gradient = 0;
  int done = 0, refused = 0;
  while (done < 150) {
    const Made term = made_up({"q", "k", "e", "a"}, 4, random);
    const int scalars = static_cast<int>(random.below(4));
    std::vector<std::string> names{"sum(" + term.text + ")", "p0", "p1", "p2"};
    names.resize(static_cast<std::size_t>(1 + scalars));
    Made finish = made_up(names, 2, random);
    const auto first = finish.text.find("sum(");
    const bool plain = random.below(3) == 0;
    if (!plain && (first == std::string::npos || finish.text.find("sum(", first + 1) != std::string::npos)) continue;
    const std::string text = plain ? term.text : finish.text;
    if (text.size() > 1000) continue;
    CAPTURE(text);
    Score score;
    try {
      score = score_formula(text);
    } catch (const Error& error) {  // it may depend on no node, and such; on what it must be, other tests say
      const std::string why = error.what();
      CHECK_MESSAGE((why.find("depend") != std::string::npos || why.find("and no p") != std::string::npos), why);
      ++refused;
      continue;
    }
    const Mask mask = random.below(2) == 0 ? Mask::features : Mask::list;
    auto c = make_case<double>(score, normaliser_named("none"), mask, 1 + static_cast<int>(random.below(5)),
                               1 + static_cast<int>(random.below(19)), 2, random);
    const Csr& list = *c.pattern->by_query.list;
    Matrix<double> s(list.edges(), c.heads), expected(list.edges(), c.heads);
    c.bias = {};
    long double kink = 1e300L;
    double largest = 1;
    for (Id i = 0; i < list.rows; ++i)
      for (Offset t = list.offsets[i]; t < list.offsets[i + 1]; ++t)
        for (int h = 0; h < c.heads; ++h) {
          long double x[4] = {};
          for (Offset at = h * c.score_width; at < (h + 1) * c.score_width; ++at) {
            const long double channel[4] = {c.q(i, at), c.k(list.ids[t], at), c.e.empty() ? 0 : c.e(t, at),
                                            c.a.empty() ? 0 : c.a(0, at)};
            const long double value = term.value(channel, kink);
            largest = std::max(largest, static_cast<double>(std::abs(value)));
            x[0] += value;
          }
          for (Offset p = 0; p < c.p.rows(); ++p) x[1 + p] = c.p(p, h);
          expected(t, h) = static_cast<double>(plain ? x[0] : finish.value(x, kink));
          largest = std::max({largest, std::abs(expected(t, h)), static_cast<double>(std::abs(x[0]))});
        }
    if (kink < 1e-3L || !(largest < 50)) continue;
    attention_scores(c.call(), s.view());
    const double value = difference(s, expected, 1);
    CHECK(value <= 1e-12);
    worst_value = std::max(worst_value, value);
    c.forward(), c.backward();
    auto check = [&](const char* name, Matrix<double>& x, const Matrix<double>& gradient) {
      if (x.empty()) return;
      CAPTURE(name);
      const double error = check_gradient(
          x, gradient, [&] { return c.loss(); }, random, 10, 1);
      CHECK(error <= 1e-6);
      worst_gradient = std::max(worst_gradient, error);
    };
    check("dq", c.q, c.dq), check("dk", c.k, c.dk), check("da", c.a, c.da), check("dp", c.p, c.dp);
    check("de", c.e, c.de);
    ++done;
  }
  CHECK(refused < 150);
  MESSAGE("worst value error " << worst_value << ", worst gradient error " << worst_gradient << ", " << refused
                               << " refused, seed " << seed);
}

TEST_CASE("formulas: what a handle declares is found from the text") {
  auto of = [](const char* text) { return score_formula(text); };
  CHECK(of("k").reads_query == false);
  CHECK(of("k + 0*q").reads_query == false);
  CHECK(of("q*e + k").reads_query == true);
  CHECK(of("a*k").reads_vector == true);
  CHECK(of("q*k").reads_vector == false);
  CHECK(of("q*k").has_finish == false);
  CHECK(of("sum(q*k)").has_finish == false);
  CHECK(of("  sum(q*k) + 0 ").has_finish == false);
  CHECK(of("  sum(q*k) / 2 ").name == "sum(q*k) / 2");
  CHECK(of("p1:-0.5*sum(q*k) + p0").start == std::vector<float>{1, -0.5f});
  CHECK(of("p0:2*sum(q*k) + p0").start == std::vector<float>{2});
  CHECK(of("p0*sum(q*k) + p0:2 + p0").start == std::vector<float>{2});
  for (const char* text : {"exp(q*k)", "square(q-k)", "(q-k)*(q-k)", "abs(q)+2*relu(k)", "exp(sum(q-k))",
                           "d*sigmoid(k)", "sqrt(sum(square(q-k)))/(1+exp(p0))", "abs(q)/(1+square(k))"})
    CHECK_MESSAGE(of(text).nonnegative, text);
  for (const char* text : {"q*k", "abs(q)-1", "p0*sum(exp(q*k))", "-exp(q)", "exp(q)-exp(k)", "tanh(q)",
                           "log(1+abs(q))", "leaky(q, 0.2)", "exp(q)*k"})
    CHECK_MESSAGE(!of(text).nonnegative, text);
  auto c = [&] {
    Random random(1);
    return make_case<float>(of("exp(q*k)"), normaliser_named("sum"), Mask::list, 2, 4, 4, random);
  }();
  CHECK(message([&] { c.forward(); }) == "");
  c.score = of("q*k");
  CHECK(message([&] { c.forward(); }).find("'sum' takes scores that are never negative") != std::string::npos);
  c.score = of("q*k/(d-4)"), c.normaliser = normaliser_named("softmax");
  CHECK(message([&] { c.forward(); }) == "the score 'q*k/(d-4)' is not finite for 4 channels a head");
}

TEST_CASE("formulas: sums that are 0 and slopes that are infinite stay with the pairs they belong to") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (const char* text : {"p0 / sum(square(q-k))", "log(sum(abs(q*k))) * p0", "sqrt(sum(square(q-k)))"})
    for (int heads : {1, 3, 4}) {
      CAPTURE(text);
      auto c = make_case<double>(score_formula(text), normaliser_named("tanh"), Mask::list, heads, 5, 4, random);
      c.forward(), c.backward();
      for (const auto* m : {&c.y, &c.dq, &c.dk, &c.dp})
        for (double x : *m) CHECK(std::isfinite(x));
    }
}

TEST_CASE("formulas: what is wrong is said with its column") {
  auto why = [](const std::string& text) { return message([&] { score_formula(text); }); };
  auto is = [&](const std::string& text, const std::string& what) {
    CAPTURE(text);
    CHECK(why(text) == "the formula" + what);
  };
  is("", ", column 1: expected a number, a name or '(' before the end");
  is("q*", ", column 3: expected a number, a name or '(' before the end");
  is("q*(k", ", column 5: expected ')' before the end");
  is("q k", ", column 3: expected '+', '-', '*', '/' or the end, not 'k'");
  is("q*k)", ", column 4: expected '+', '-', '*', '/' or the end, not ')'");
  is("a*leeky(q, 0.2)", ", column 3: unknown name 'leeky'; did you mean leaky?");
  is("x*q", ", column 1: unknown name 'x'; did you mean q, k or e?");
  is("a*leaky(q+k)", ", column 12: expected ',' before ')'");
  is("a*leaky(q, k)", ", column 12: the slope of leaky must be a number");
  is("exp(q, k)", ", column 6: expected ')' before ','");
  is("exp q", ", column 5: expected '(' before 'q'");
  is("q/0", ", column 2: division by 0");
  is("q / (1 - 1)", ", column 3: division by 0");
  is("q*log(0)", ", column 3: this is not a finite number");
  is("q*1e99", ", column 3: this number is out of range");
  is("q*1e999", ", column 3: this number is out of range");
  is("q*1e30*1e30", ": its slopes are too large for numbers");
  is("q/e", ": e is 0 where edges have no features, and must be allowed to be");
  is("q*log(e)", ": e is 0 where edges have no features, and must be allowed to be");
  is("1+2", " depends on none of q, k and e");
  is("a*d", " depends on none of q, k and e");
  is("q-q+0*k", " depends on none of q, k and e");
  is("p0*sum(3)", " depends on none of q, k and e");
  is("p0+0*sum(q)", " does not depend on its sum");
  is("p0*q*k", ", column 1: learned scalars stand outside the sum over channels, as in p0 * sum(q*k)");
  is("sum(q*k*p1)", ", column 9: learned scalars stand outside the sum over channels, as in p0 * sum(q*k)");
  is("q*sum(k)", ", column 1: q, k, e and a stand inside sum(...) where there is one");
  is("sum(q)+sum(k)", ", column 8: sum(...) stands once; put all that is summed inside it");
  is("sum(q*sum(k))", ", column 7: sum(...) does not stand inside sum(...)");
  is("p1*sum(q*k)", " has p1 and no p0");
  is("p0:1*sum(q*k)+p0:2", ", column 18: it begins at another number elsewhere");
  is("p0:x*sum(q*k)", ", column 4: expected a number before 'x'");
  is("p3*sum(q)", ", column 1: unknown name 'p3'; did you mean p0, p1 or p2?");
  is("q*\xff", ", column 3: expected a number, a name or '(' before '?'");
  is(std::string("q\0k", 3), ", column 2: expected '+', '-', '*', '/' or the end, not '?'");
  is(std::string(1000000, 'q'), " has 1000000 characters; it may have 1000");
  is(std::string(10000, '(') + "q", " has 10001 characters; it may have 1000");
  for (const char* open : {"(", "-", "exp(", "-("}) {
    std::string deep;
    while (deep.size() < 900) deep += open;
    CHECK(why(deep + "q").find("more than 100 parentheses and signs inside each other") != std::string::npos);
  }
  std::string wide = "q";
  while (wide.size() < 990) wide += "*k+q";
  CHECK(why(wide) == "");
  std::string nested = "q";
  while (nested.size() < 650) nested = "square(" + nested + "*k)";
  CHECK(why(nested) == "");  // its derivatives share what they have in common
  CHECK(message([] { score_named("gatt-2"); }).find("; or was it the score gatv2") != std::string::npos);
  CHECK(message([] { score_named("scaled-dot"); }).find("; or was it the score scaled_dot?") != std::string::npos);
  CHECK(message([] { score_named("gatt2"); }) == "unknown score 'gatt2'; did you mean gatv2 or gat?");
  CHECK(score_named("k").name == "k");
  CHECK(message([] { score_named("a"); }).find("unknown score 'a'") == 0);
}

TEST_SUITE_END();
