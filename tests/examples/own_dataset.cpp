// A dataset of your own, made in memory: trained on, saved, and predicted from the file.
#include <cstdio>

#include "heed.h"

using namespace heed;

int main() {
  constexpr Id kNodes = 600, kClasses = 3;
  Random random(7);
  Dataset data{.name = "rings", .labels = {}, .classes = kClasses, .splits = {}};

  std::vector<Edge> edges;  // three rings with chords, and a few edges between them
  for (Id i = 0; i < kNodes; ++i) {
    edges.push_back({i, (i + kClasses) % kNodes}), edges.push_back({i, (i + 7 * kClasses) % kNodes});
    if (i % 10 == 0) edges.push_back({i, static_cast<Id>(random.below(kNodes))});
  }
  data.graph = graph_from_edges(kNodes, edges);

  data.features.dense = Matrix<float>(kNodes, 8);  // noise, with a hint of the class
  for (Id i = 0; i < kNodes; ++i) {
    for (float& x : std::span(data.features.dense.row(i), 8)) x = static_cast<float>(random.normal());
    data.features.dense(i, i % kClasses) += 0.8f;
    data.labels.push_back(i % kClasses);
  }

  Split split;
  for (Id i = 0; i < kNodes; ++i) (i < 90 ? split.train : i < 150 ? split.valid : split.test).push_back(i);
  data.splits = {split};
  check(data);  // says what does not fit, if anything

  const Model model = gatv2({.classes = kClasses, .hidden = 8, .heads = 4});
  const Run run = train(model, data, {.epochs = 100, .rate = 0.01, .seed = 1}).runs[0];
  save(run.weights, "rings.safetensors");
  const Matrix<float> logits = predict(model, data.graph, data.features, read_safetensors("rings.safetensors"));
  int right = 0;
  for (Id i : split.test) right += predicted(logits, i) == data.labels[i];
  std::printf("trained: %.1f %%, predicted from rings.safetensors: %.1f %% of %zu nodes\n", run.test,
              100.0 * right / static_cast<double>(split.test.size()), split.test.size());
}
