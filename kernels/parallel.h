// Loops over fixed pieces of work. Pieces depend on the size of the problem alone, so what is summed piece by piece, in
// order, has the same bits on any number of threads.
#pragma once

#include <algorithm>

#include "kernels/matrix.h"

namespace heed {

namespace detail {
void parallel_pieces(Offset n, Offset grain, const void* body, void (*run)(const void*, Offset begin, Offset end));
}

// body(begin, end) for the pieces of [0, n) of length `grain`.
template <class Body>
void parallel_pieces(Offset n, Offset grain, const Body& body) {
  if (n > grain)
    detail::parallel_pieces(n, grain, &body, [](const void* self, Offset begin, Offset end) {
      (*static_cast<const Body*>(self))(begin, end);
    });
  else if (n > 0)
    body(Offset{0}, n);
}

// Elements of a cheap elementwise loop, in all or as rows of so many: some 10 us of work. Shorter pieces are not worth
// another thread's waking up.
inline constexpr Offset kElementGrain = 32768;
inline Offset row_grain(Offset cols) { return std::max<Offset>(1, kElementGrain / std::max<Offset>(1, cols)); }

// total[0..width) += the sums that body(begin, end, acc) adds to its zeroed acc, piece by piece in order.
// `pieces` is a buffer that may be kept between calls.
template <class T, class Body>
void ordered_sums(Offset n, Offset grain, Offset width, T* total, Matrix<T>& pieces, const Body& body) {
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
