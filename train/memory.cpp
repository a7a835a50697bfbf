#include "train/memory.h"

#include <malloc.h>
#include <sys/resource.h>

#include <cstdlib>
#include <fstream>
#include <string>

namespace heed {
namespace {

double status_mb(const char* field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(field)) return std::strtod(line.c_str() + line.find(':') + 1, nullptr) / 1024;
  return 0;
}

}  // namespace

double resident_mb() { return status_mb("VmRSS"); }

double peak_rss_mb() {
  // The high-water mark of the program itself: what getrusage says includes that of the process that started it.
  if (const double peak = status_mb("VmHWM"); peak > 0) return peak;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

bool forget_peak() {
  malloc_trim(0);
  return static_cast<bool>(std::ofstream("/proc/self/clear_refs") << "5" << std::flush);
}

}  // namespace heed
