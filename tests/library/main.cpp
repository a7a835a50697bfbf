// heed from outside, as a user of the library has it: a graph of Boost's becomes a Graph, a model whose score is this
// file's own learns from one node of each of two groups, and names the group of all others.
#include <boost/graph/adjacency_list.hpp>
#include <cstdio>

#include "graph/boost.h"
#include "heed.h"

struct Laplace {  // s = -sum_c a_c |q_c - k_c|
  static constexpr const char* name = "laplace";
  HEED_FN auto term(auto q, auto k, auto, auto a) const { return -a * heed::fn::abs(q - k); }
};

int main() {
  using namespace heed;
  boost::adjacency_list<boost::vecS, boost::vecS, boost::undirectedS> people(40);
  for (int i = 0; i < 40; ++i)
    for (int step : {2, 4, 6}) add_edge(i, (i + step) % 40, people);  // the even ones, and the odd ones

  Dataset data{.name = "people", .graph = graph_from_boost(people), .classes = 2};
  data.features.dense = Matrix<float>(40, 40);
  for (Id i = 0; i < 40; ++i) data.features.dense(i, i) = 1, data.labels.push_back(i % 2);
  data.splits = {{.train = {0, 1}, .valid = {2, 3}, .test = {}}};
  for (Id i = 4; i < 40; ++i) data.splits[0].test.push_back(i);
  check(data);

  Model model = stack({attend({.out = 8, .heads = 2, .score = make_score(Laplace{})}), activation(Activation::elu),
                       attend({.out = 8, .score = score_named("gatv2")}), activation(Activation::elu),
                       attend({.out = data.classes, .score = score_named("gat"), .mask = local(2) | self()})});
  const Run run = train(model, data, {.epochs = 100, .rate = 0.02, .seed = 1}).runs[0];
  int right = 0;
  save(run.weights, "people.safetensors");
  const Matrix<float> logits = predict(model, data.graph, data.features, read_safetensors("people.safetensors"));
  for (Id i = 0; i < 40; ++i) right += predicted(logits, i) == i % 2;
  std::printf("%d of 40 nodes\n", right);
  return right >= 38 ? 0 : 1;
}
