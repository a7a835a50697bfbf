// What this process holds in memory. Linux counts the most it ever held, and forgets it on demand.
#include <malloc.h>

#include <cstdlib>
#include <fstream>

#include "bench/bench.h"

namespace heed::bench {
namespace {

double status_mb(const char* field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(field)) return std::strtod(line.c_str() + line.find(':') + 1, nullptr) / 1024;
  return 0;
}

}  // namespace

double resident_mb() { return status_mb("VmRSS"); }
double peak_mb() { return status_mb("VmHWM"); }

bool forget_peak() {
  malloc_trim(0);
  return static_cast<bool>(std::ofstream("/proc/self/clear_refs") << "5" << std::flush);
}

}  // namespace heed::bench
