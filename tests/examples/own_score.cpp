// A score of your own: a struct of four lines, or a text. Their gradients are right, and both train to one network;
// with own_score.cu the struct does so on a GPU, too.
#include <cmath>
#include <cstdio>

#include "heed.h"
#include "tests/examples/own_score.h"

using namespace heed;

int main() {
  const Dataset data = load("sbm");  // generated: six communities
  auto run_with = [&](const Score& score, Device device = Device::cpu) {
    const Model model = stack({attend({.out = 8, .heads = 4, .score = score}), activation(Activation::elu),
                               attend({.out = data.classes, .score = score})});
    Run run = train(model, data, {.epochs = 40, .rate = 0.01, .seed = 1, .device = device}).runs[0];
    std::printf("%s: gradients are %s, %.1f %% of the test nodes\n", score.name.c_str(),
                gradient_error(score) < 1e-6 ? "right" : "wrong", run.test);
    return run;
  };
  const Run compiled = run_with(make_score(Cauchy{}));
  const Run interpreted = run_with(score_named("-(a * log(square(q - (k+e)) + 1))"));

  auto compare = [&](const char* name, const Run& other) {
    float apart = 0, size = 0;
    for (Offset t = 0; t < compiled.logits.size(); ++t) {
      apart = std::max(apart, std::abs(compiled.logits.data()[t] - other.logits.data()[t]));
      size = std::max(size, std::abs(compiled.logits.data()[t]));
    }
    std::printf("%s: the logits %s\n", name, apart <= 1e-3f * size ? "agree" : "differ");
  };
  compare("as a text", interpreted);
  if (device_available())
    compare("on the GPU", run_with(make_score(Cauchy{}), Device::cuda));
  else
    std::printf("no GPU: skipped\n");
}
