#include "train/metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "graph/error.h"
#include "kernels/parallel.h"

namespace heed {
namespace {

// log sum_c e^x_c
double log_total(std::span<const float> x) {
  const float top = *std::max_element(x.begin(), x.end());
  double total = 0;
  for (float value : x) total += std::exp(static_cast<double>(value) - top);
  return top + std::log(total);
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

double loss_of(std::span<const float> x, Id label, Loss loss) {
  if (loss == Loss::cross_entropy) return log_total(x) - x[label];
  if (x.size() == 1) return softplus(label == 1 ? -x[0] : x[0]);
  double sum = 0;
  for (std::size_t c = 0; c < x.size(); ++c) sum += softplus(static_cast<Id>(c) == label ? -x[c] : x[c]);
  return sum / static_cast<double>(x.size());
}

// The probability that a member scores above another; -1 where there are no members, or no others.
double area(const std::vector<double>& score, const std::vector<bool>& member) {
  std::vector<std::size_t> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return score[a] < score[b]; });
  double below = 0, area = 0, members = 0;  // others below the current score
  for (std::size_t begin = 0, end; begin < order.size(); begin = end) {
    double hits = 0, others = 0;
    for (end = begin; end < order.size() && score[order[end]] == score[order[begin]]; ++end)
      (member[order[end]] ? hits : others) += 1;
    area += hits * (below + others / 2);
    below += others, members += hits;
  }
  return members == 0 || below == 0 ? -1 : area / (members * below);
}

double roc_auc(const Matrix<float>& logits, std::span<const Id> labels, std::span<const Id> nodes) {
  std::vector<double> score(nodes.size());
  std::vector<bool> member(nodes.size());
  const Offset width = logits.cols();
  double sum = 0;
  int counted = 0;
  for (Id c = width <= 2 ? 1 : 0; c < std::max<Offset>(width, 2); ++c) {
    for (std::size_t t = 0; t < nodes.size(); ++t) {
      const float* row = logits.row(nodes[t]);
      member[t] = labels[nodes[t]] == c;
      score[t] = width == 1   ? row[0]
                 : width == 2 ? static_cast<double>(row[1]) - row[0]
                              : row[c] - log_total({row, static_cast<std::size_t>(width)});
    }
    const double a = area(score, member);
    if (a >= 0) sum += a, ++counted;
  }
  if (counted == 0)
    fail("roc_auc needs nodes of a class and nodes outside it; all " + std::to_string(nodes.size()) +
         " are of one class");
  return sum / counted;
}

double macro_f1(const Matrix<float>& logits, std::span<const Id> labels, std::span<const Id> nodes) {
  const auto classes = static_cast<std::size_t>(std::max<Offset>(logits.cols(), 2));
  std::vector<double> hits(classes), predictions(classes), members(classes);
  for (Id i : nodes) {
    const Id guess = predicted(logits, i);
    ++predictions[guess], ++members[labels[i]];
    if (guess == labels[i]) ++hits[guess];
  }
  double sum = 0;
  int counted = 0;
  for (std::size_t c = 0; c < classes; ++c) {
    if (predictions[c] + members[c] == 0) continue;
    sum += 2 * hits[c] / (predictions[c] + members[c]), ++counted;
  }
  return sum / counted;
}

}  // namespace

const std::vector<std::string>& loss_names() {
  static const std::vector<std::string> names{"cross_entropy", "binary_cross_entropy"};
  return names;
}
const std::vector<std::string>& metric_names() {
  static const std::vector<std::string> names{"accuracy", "roc_auc", "f1"};
  return names;
}
Loss loss_named(const std::string& name) { return static_cast<Loss>(choose("loss", name, loss_names())); }
Metric metric_named(const std::string& name) { return static_cast<Metric>(choose("metric", name, metric_names())); }

Id logits_for(Loss loss, Id classes) { return loss == Loss::binary_cross_entropy && classes == 2 ? 1 : classes; }

Id predicted(const Matrix<float>& logits, Id node) {
  const float* row = logits.row(node);
  if (logits.cols() == 1) return row[0] > 0 ? 1 : 0;
  return static_cast<Id>(std::max_element(row, row + logits.cols()) - row);
}

std::vector<double> probabilities(const Matrix<float>& logits, Id node, Loss loss) {
  const std::span<const float> row(logits.row(node), static_cast<std::size_t>(logits.cols()));
  auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  if (row.size() == 1) return {sigmoid(-row[0]), sigmoid(row[0])};
  std::vector<double> out(row.size());
  const double top = *std::max_element(row.begin(), row.end());
  double total = 0;
  for (std::size_t c = 0; c < row.size(); ++c) {
    out[c] = loss == Loss::cross_entropy ? std::exp(row[c] - top) : sigmoid(row[c]);
    total += out[c];
  }
  if (loss == Loss::cross_entropy)
    for (double& p : out) p /= total;
  return out;
}

Evaluation evaluate(const Matrix<float>& logits, std::span<const Id> labels, std::span<const Id> nodes, Metric metric,
                    Loss loss) {
  Evaluation out;
  double right = 0;
  std::vector<double> losses(nodes.size());  // side by side, then summed in order
  parallel_pieces(std::ssize(nodes), 128, [&](Offset begin, Offset end) {
    for (Offset t = begin; t < end; ++t)
      losses[t] = loss_of({logits.row(nodes[t]), static_cast<std::size_t>(logits.cols())}, labels[nodes[t]], loss);
  });
  for (std::size_t t = 0; t < nodes.size(); ++t) {
    right += predicted(logits, nodes[t]) == labels[nodes[t]];
    out.loss += losses[t];
  }
  const auto count = static_cast<double>(nodes.size());
  out.loss /= count;
  out.metric = 100 * (metric == Metric::roc_auc ? roc_auc(logits, labels, nodes)
                      : metric == Metric::f1    ? macro_f1(logits, labels, nodes)
                                                : right / count);
  return out;
}

}  // namespace heed
