#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "graph/error.h"

namespace heed {

const std::vector<std::string>& schedule_names() {
  static const std::vector<std::string> names{"constant", "linear", "cosine", "step", "exponential", "plateau"};
  return names;
}

Schedule schedule_named(const std::string& name) {
  return static_cast<Schedule>(choose("schedule", name, schedule_names()));
}

double RateFactor::operator()(int epoch) const {
  if (epoch <= options_.warmup) return static_cast<double>(epoch) / options_.warmup;
  const int past = epoch - options_.warmup - 1;  // epochs since the warm-up
  const double share = static_cast<double>(past) / std::max(1, epochs_ - options_.warmup);
  switch (options_.schedule) {
    case Schedule::constant:
      return 1;
    case Schedule::linear:
      return 1 - share;
    case Schedule::cosine:
      return (1 + std::cos(std::numbers::pi * share)) / 2;
    case Schedule::step:
      return std::pow(options_.factor, past / options_.span);
    case Schedule::exponential:
      return std::pow(options_.factor, static_cast<double>(past) / options_.span);
    case Schedule::plateau:
      return std::pow(options_.factor, drops);
  }
  return 1;
}

void RateFactor::validated(int epoch, bool gained) {
  if (epoch <= options_.warmup) return;
  idle = gained ? 0 : idle + 1;
  if (idle < options_.span) return;
  ++drops, idle = 0;
}

}  // namespace heed
