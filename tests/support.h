// What the tests share: random inputs whose seed is printed on failure, a dense reference of attention, and
// central differences.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "kernels/attention.h"
#include "kernels/fn.h"
#include "sampling/rank.h"

namespace heed::test {

// A new seed each run; HEED_SEED repeats one. Use with CAPTURE(seed).
inline std::uint64_t fresh_seed() {
  if (const char* given = std::getenv("HEED_SEED")) return std::strtoull(given, nullptr, 10);
  return std::random_device{}();
}

template <class T>
Matrix<T> random_matrix(Offset rows, Offset cols, Random& random, double scale = 1) {
  Matrix<T> out(rows, cols);
  for (T& x : out) x = static_cast<T>(scale * random.normal());
  return out;
}

// Rows of random length up to `most`; some rows are empty.
inline Csr random_pattern(Id rows, Id cols, int most, Random& random) {
  Csr out{.rows = rows, .cols = cols};
  for (Id i = 0; i < rows; ++i) {
    std::set<Id> row;
    auto n = random.below(4) == 0 ? 0 : random.below(static_cast<std::uint64_t>(most) + 1);
    for (std::uint64_t t = 0; t < n; ++t) row.insert(static_cast<Id>(random.below(static_cast<std::uint64_t>(cols))));
    out.ids.insert(out.ids.end(), row.begin(), row.end());
    out.offsets.push_back(out.edges());
  }
  return out;
}

// Row 3 sees all, and all see column 5: longer than the length at which the GPU's rows are cut.
inline Csr hubs(Id n, Random& random) {
  std::vector<std::set<Id>> rows(static_cast<std::size_t>(n));
  for (Id j = 0; j < n; ++j) rows[3].insert(j), rows[j].insert(5);
  for (int t = 0; t < 300; ++t) rows[random.below(n)].insert(static_cast<Id>(random.below(n)));
  Csr out{.rows = n, .cols = n};
  for (auto& row : rows) {
    out.ids.insert(out.ids.end(), row.begin(), row.end());
    out.offsets.push_back(out.edges());
  }
  return out;
}

// What a pattern of Pattern::redrawn means in a step, as a list whose columns are the keys that are kept.
struct Settled {
  std::shared_ptr<const Pattern> pattern;
  std::vector<Id> keys;

  Matrix<float> rows_of(View<const float> x) const {
    Matrix<float> out(static_cast<Offset>(keys.size()), x.cols);
    for (std::size_t t = 0; t < keys.size(); ++t) std::copy_n(x.row(keys[t]), x.cols, out.row(static_cast<Offset>(t)));
    return out;
  }
  void put_back(const Matrix<float>& from, const Sink<float>& sink) const {  // other keys take no gradient
    if (!sink) return;
    for (Id j = 0; !sink.add && j < sink.to.rows; ++j) std::fill_n(sink.to.row(j), sink.to.cols, 0.0f);
    for (std::size_t t = 0; t < keys.size(); ++t)
      for (Offset c = 0; c < sink.to.cols; ++c) sink.to(keys[t], c) += from(static_cast<Offset>(t), c);
  }
};
inline Settled settled(const Pattern& p, std::uint64_t step, View<const float> scores = {}) {
  const Redrawn& what = *p.by_query.redrawn;
  const auto n = static_cast<std::uint32_t>(p.keys());
  Settled out;
  if (what.by_score) {
    std::vector<double> numbers;
    for (Id j = 0; j < p.keys(); ++j) numbers.push_back(scores(j, 0));
    out.keys = largest(numbers, what.kept);
  } else {
    for (Id j = 0; j < p.keys(); ++j)
      if (what.marks ? (*what.marks)[j] != 0
                     : what.kept < 0 || keys_order(n, what.keys_stream, step).inverse(static_cast<std::uint32_t>(j)) <
                                            static_cast<std::uint32_t>(what.kept))
        out.keys.push_back(j);
  }
  Csr list{.rows = p.queries(), .cols = static_cast<Id>(out.keys.size())};
  for (Id i = 0; i < list.rows; ++i) {
    std::set<Id> row;
    const Rows& from = p.by_query;
    if (!from.intervals.empty())
      for (Id j = from.interval(i)[0]; j < from.interval(i)[1]; ++j) row.insert(j);
    if (from.list)
      for (Id j : from.list->row(i)) from.intervals.empty() ? (void)row.insert(j) : (void)row.erase(j);
    for (int t = 0; t < what.drawing.count; ++t) {
      const auto own = static_cast<std::uint32_t>(i);
      const NodeMap map = what.drawing.map(n, step, t);
      if (map.seen(own, map(own))) row.insert(static_cast<Id>(map(own)));
    }
    for (std::size_t t = 0; t < out.keys.size(); ++t)
      if (row.contains(out.keys[t])) list.ids.push_back(static_cast<Id>(t));
    list.offsets.push_back(list.edges());
  }
  out.pattern = Pattern::listed(std::make_shared<Csr>(std::move(list)));
  return out;
}

inline std::vector<Edge> random_edges(Id nodes, int count, Random& random) {
  std::vector<Edge> out;
  for (int e = 0; e < count; ++e)
    out.push_back({static_cast<Id>(random.below(nodes)), static_cast<Id>(random.below(nodes))});
  return out;
}

inline Csr random_symmetric(Id n, int edges, Random& random) {
  std::vector<std::set<Id>> rows(static_cast<std::size_t>(n));
  for (int e = 0; e < edges; ++e) {
    Id i = static_cast<Id>(random.below(n)), j = static_cast<Id>(random.below(n));
    rows[i].insert(j);
    rows[j].insert(i);
  }
  Csr out{.rows = n, .cols = n};
  for (auto& row : rows) {
    out.ids.insert(out.ids.end(), row.begin(), row.end());
    out.offsets.push_back(out.edges());
  }
  return out;
}

// A score from outside the menus: a user's finish with two learned scalars, a learned vector, and a term of e.
struct Tempered {
  static constexpr const char* name = "tempered";
  static constexpr int scalars = 2;
  HEED_FN auto term(auto q, auto k, auto e, auto a) const { return a * fn::tanh(q * k) + fn::square(q - k) * e; }
  HEED_FN auto finish(auto sum, auto p) const { return sum * p[0] + fn::sigmoid(sum * p[1]); }
};

struct Pair {
  Score score;
  Normaliser normaliser;
};
// All combinations that go together.
inline std::vector<Pair> every_pair(const std::vector<Score>& scores, const std::vector<Normaliser>& normalisers) {
  std::vector<Pair> out;
  for (const Score& score : scores)
    for (const Normaliser& normaliser : normalisers)
      if (!normaliser.nonnegative || score.nonnegative) out.push_back({score, normaliser});
  return out;
}
// Some of them: every score and every normaliser at least once, and `more` by chance.
inline std::vector<Pair> pairs_of(const std::vector<Score>& scores, const std::vector<Normaliser>& normalisers,
                                  Random& random, int more) {
  std::vector<Pair> out;
  auto any = [&](const auto& list) { return list[random.below(list.size())]; };
  auto fit = [](const Score& score, const Normaliser& normaliser) {
    return !normaliser.nonnegative || score.nonnegative;
  };
  auto enter = [&](auto draw, int tries) {
    for (int t = 0; t < tries; ++t)
      if (Pair pair = draw(); fit(pair.score, pair.normaliser)) return out.push_back(pair);
  };
  for (const Score& score : scores) enter([&] { return Pair{score, any(normalisers)}; }, 1000);
  for (const Normaliser& normaliser : normalisers) enter([&] { return Pair{any(scores), normaliser}; }, 1000);
  for (int t = 0; t < more; ++t) enter([&] { return Pair{any(scores), any(normalisers)}; }, 1000);
  return out;
}

// The score's name without its filters.
inline std::string base_name(const Score& score) { return split_filter(score.name).score; }

// How far a channel is from a kink of the score's term; far where there is none.
inline double kink_distance(const Score& score, double q, double k, double e) {
  const std::string name = base_name(score);
  if (name == "gat" || name == "gatv2" || name == "mlp") return std::abs(q + k + e);
  if (name == "laplace") return std::abs(q - k - e);
  return 1e300;
}

// Norm-wise relative difference; NaN where either side has one. What should cancel is measured against `floor`.
template <class A, class B>
double difference(const Matrix<A>& a, const Matrix<B>& b, double floor = 0) {
  REQUIRE(a.rows() == b.rows());
  REQUIRE(a.cols() == b.cols());
  double error = 0, norm = 0;
  for (Offset t = 0; t < a.size(); ++t) {
    double x = static_cast<double>(a.data()[t]), y = static_cast<double>(b.data()[t]);
    error += (x - y) * (x - y);
    norm += y * y;
  }
  norm = std::max(norm, floor * floor);
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

// Central differences of f with respect to each element of x, against `gradient`: the largest error, relative to the
// gradient's largest element, or to `scale`. `steps` elements are tried, all where x is small; each is moved by `step`,
// relative to its size where that is above 1.
template <class F>
double check_gradient(Matrix<double>& x, const Matrix<double>& gradient, F f, Random& random, int steps = 40,
                      double scale = 1e-3, double step = 1e-5) {
  double worst = 0;
  for (double g : gradient) scale = std::max(scale, std::abs(g));
  for (int t = 0; t < std::min<Offset>(steps, x.size()); ++t) {
    Offset at = x.size() <= steps ? t : static_cast<Offset>(random.below(x.size()));
    double old = x.data()[at], h = step * std::max(1.0, std::abs(old));
    x.data()[at] = old + h;
    const auto up = f();
    x.data()[at] = old - h;
    const auto down = f();
    x.data()[at] = old;
    worst = std::max(worst, std::abs(static_cast<double>((up - down) / (2 * h)) - gradient.data()[at]) / scale);
  }
  return worst;
}

}  // namespace heed::test
