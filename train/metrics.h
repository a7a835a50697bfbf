// How good logits are: the loss that training minimises, and the metric that is reported.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "graph/csr.h"
#include "kernels/matrix.h"

namespace heed {

enum class Loss { cross_entropy, binary_cross_entropy };
enum class Metric { accuracy, roc_auc, f1 };
const std::vector<std::string>& loss_names();
const std::vector<std::string>& metric_names();
Loss loss_named(const std::string& name);  // both throw Error with the nearest names
Metric metric_named(const std::string& name);

// What a loss wants of a model's output: one logit a class, but a single one for two classes and binary cross entropy.
Id logits_for(Loss loss, Id classes);

struct Evaluation {
  double loss = 0;    // the mean, without class weights and smoothing
  double metric = 0;  // percent
};

// Of the rows `nodes` of the logits, n x classes or n x 1 (label 1 against 0).
//   accuracy  share of the nodes whose largest logit is their label's; the first of equal logits counts
//   f1        2 TP / (2 TP + FP + FN), the mean over the classes that are a label or a prediction of some node
//   roc_auc   the probability that a node of a class scores above one that is not, equals counting half (Mann-Whitney);
//             for more than two classes the mean over those that have both, each against all others, by softmax
// Throws Error where roc_auc has no class with nodes on both sides.
Evaluation evaluate(const Matrix<float>& logits, std::span<const Id> labels, std::span<const Id> nodes,
                    Metric metric = Metric::accuracy, Loss loss = Loss::cross_entropy);

Id predicted(const Matrix<float>& logits, Id node);
// 1 x classes; what predicted() goes by, as probabilities under the loss: softmax, or sigmoids (of one logit: 1 - p,
// p).
std::vector<double> probabilities(const Matrix<float>& logits, Id node, Loss loss);

}  // namespace heed
