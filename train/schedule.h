// How the learning rate changes from epoch to epoch: a factor on --rate.
#pragma once

#include <string>
#include <vector>

namespace heed {

enum class Schedule {
  constant,
  linear,       // in a line, to reach 0 after the last epoch
  cosine,       // the same along half a cosine (arXiv:1608.03983, eq. 5, without restarts)
  step,         // times `factor` every `span` epochs
  exponential,  // the same smoothly: factor^(epoch / span)
  plateau,      // times `factor` whenever validation gained nothing for `span` epochs
};
const std::vector<std::string>& schedule_names();
Schedule schedule_named(const std::string& name);  // throws Error with the nearest names

struct ScheduleOptions {
  Schedule schedule = Schedule::constant;
  int warmup = 0;  // epochs in which the rate first rises in a line; the schedule begins after them
  double factor = 0.5;
  int span = 50;  // epochs
};

class RateFactor {
 public:
  RateFactor(const ScheduleOptions& options, int epochs) : options_(options), epochs_(epochs) {}

  double operator()(int epoch) const;  // 1, 2, ..., epochs
  void validated(int epoch, bool gained);  // after each

  int drops = 0, idle = 0;  // of a plateau: what later factors depend on

 private:
  ScheduleOptions options_;
  int epochs_;
};

}  // namespace heed
