// A score of your own: a struct of four lines, or a text. Their gradients are right, and both train to one network.
#include <cmath>
#include <cstdio>

#include "heed.h"

using namespace heed;

struct Cauchy {  // s = -sum_c a_c log(1 + (q_c - k_c)^2): far channels count less than in a distance
  static constexpr const char* name = "cauchy";
  HEED_FN auto term(auto q, auto k, auto e, auto a) const { return -(a * fn::log(fn::square(q - (k + e)) + 1.0f)); }
};

int main() {
  const Dataset data = load("sbm");  // generated: six communities
  auto run_with = [&](const Score& score) {
    const Model model = stack({attend({.out = 8, .heads = 4, .score = score}), activation(Activation::elu),
                               attend({.out = data.classes, .score = score})});
    Run run = train(model, data, {.epochs = 40, .rate = 0.01, .seed = 1}).runs[0];
    std::printf("%s: gradients are %s, %.1f %% of the test nodes\n", score.name.c_str(),
                gradient_error(score) < 1e-6 ? "right" : "wrong", run.test);
    return run;
  };
  const Run compiled = run_with(make_score(Cauchy{}));
  const Run interpreted = run_with(score_named("-(a * log(square(q - (k+e)) + 1))"));

  float apart = 0, size = 0;
  for (Offset t = 0; t < compiled.logits.size(); ++t) {
    apart = std::max(apart, std::abs(compiled.logits.data()[t] - interpreted.logits.data()[t]));
    size = std::max(size, std::abs(compiled.logits.data()[t]));
  }
  std::printf("the logits %s\n", apart <= 1e-3f * size ? "agree" : "differ");
}
