// Loops over fixed pieces of work. Pieces depend on the size of the problem alone, so what is summed piece by piece, in
// order, has the same bits on any number of threads.
#pragma once

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>

#include <algorithm>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

#include "kernels/matrix.h"

namespace heed {

// body(begin, end) for the pieces of [0, n) of length `grain`. A build with ThreadSanitizer is told what oneTBB, whose
// library it does not see into, makes sure of: the call comes before every piece, and every piece before the return.
template <class Body>
void parallel_pieces(Offset n, Offset grain, Body body) {
  Offset pieces = (n + grain - 1) / grain;
  if (pieces <= 1) {
    if (n > 0) body(Offset{0}, n);
    return;
  }
  auto run = [&](const auto& range) {
    for (Offset p = range.begin(); p < range.end(); ++p) body(p * grain, std::min(n, (p + 1) * grain));
  };
  const tbb::blocked_range<Offset> all(0, pieces, 1);
#ifdef __SANITIZE_THREAD__
  char fork, join;
  __tsan_release(&fork);
  tbb::parallel_for(all, [&](const auto& range) {
    __tsan_acquire(&fork);
    run(range);
    __tsan_release(&join);
  });
  __tsan_acquire(&join);
#else
  tbb::parallel_for(all, run);
#endif
}

// Elements of a cheap elementwise loop, in all or as rows of so many: some 10 us of work. Shorter pieces are not worth
// another thread's waking up.
inline constexpr Offset kElementGrain = 32768;
inline Offset row_grain(Offset cols) { return std::max<Offset>(1, kElementGrain / std::max<Offset>(1, cols)); }

// total[0..width) += the sums that body(begin, end, acc) adds to its zeroed acc, piece by piece in order.
// `pieces` is a buffer that may be kept between calls.
template <class T, class Body>
void ordered_sums(Offset n, Offset grain, Offset width, T* total, Matrix<T>& pieces, Body body) {
  Offset count = (n + grain - 1) / grain;
  pieces.resize(std::max<Offset>(count, 1), width);
  parallel_pieces(n, grain, [&](Offset begin, Offset end) {
    T* acc = pieces.row(begin / grain);
    std::fill_n(acc, width, T(0));
    body(begin, end, acc);
  });
  for (Offset p = 0; p < count; ++p)
    for (Offset c = 0; c < width; ++c) total[c] += pieces(p, c);
}

}  // namespace heed
