#include "kernels/parallel.h"

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

// The one loop of oneTBB: compiled for each body, it would nearly double the time to build layers/ops.cpp.
// A build with ThreadSanitizer is told what oneTBB, whose library it does not see into, makes sure of: the call comes
// before every piece, and every piece before the return.
void heed::detail::parallel_pieces(Offset n, Offset grain, const void* body,
                                   void (*run)(const void*, Offset begin, Offset end)) {
  const tbb::blocked_range<Offset> all(0, (n + grain - 1) / grain, 1);
  auto pieces = [&](const auto& range) {
    for (Offset p = range.begin(); p < range.end(); ++p) run(body, p * grain, std::min(n, (p + 1) * grain));
  };
#ifdef __SANITIZE_THREAD__
  char fork, join;
  __tsan_release(&fork);
  tbb::parallel_for(all, [&](const auto& range) {
    __tsan_acquire(&fork);
    pieces(range);
    __tsan_release(&join);
  });
  __tsan_acquire(&join);
#else
  tbb::parallel_for(all, pieces);
#endif
}
