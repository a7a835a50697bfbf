// The two speeds that bound attention on graphs: streaming through memory, and fetching the rows of random nodes.
#include <algorithm>
#include <chrono>

#include "bench/bench.h"
#include "kernels/lanes.h"
#include "kernels/matrix.h"
#include "kernels/parallel.h"

namespace heed::bench {
namespace {

template <class F>
double best_seconds(int repeats, F f) {
  double best = 1e30;
  for (int r = 0; r < repeats; ++r) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

Floors measure_floors(long table_rows, long row_bytes) {
  constexpr Offset kPiece = 1 << 16;
  Floors out{};
  {
    const Offset n = Offset{1} << 25;  // 128 MiB each
    Matrix<float> from(1, n), to(1, n);
    from.fill(1), to.fill(2);
    double seconds = best_seconds(7, [&] {
      parallel_pieces(n, kPiece, [&](Offset begin, Offset end) {
        std::copy(from.data() + begin, from.data() + end, to.data() + begin);
      });
    });
    out.copy = 2.0 * static_cast<double>(n) * sizeof(float) / seconds * 1e-9;
  }
  const Offset width = std::max<Offset>(8, row_bytes / static_cast<Offset>(sizeof(float)));
  const Offset rows = std::max<long>(table_rows, 1), fetches = Offset{1} << 22;
  Matrix<float> table(rows, width);
  table.fill(1);
  std::vector<Id> ids(static_cast<std::size_t>(fetches));
  for (Offset e = 0; e < fetches; ++e) ids[e] = static_cast<Id>(uniform(7, e) * static_cast<double>(rows));
  Matrix<float> sums(fetches / 4096 + 1, 8);
  double seconds = best_seconds(5, [&] {
    parallel_pieces(fetches, 4096, [&](Offset begin, Offset end) {
      Vec<float, 8> sum = 0.0f;
      for (Offset e = begin; e < end; ++e) {
        if (e + 8 < end)
          for (Offset c = 0; c < width; c += 16) __builtin_prefetch(table.row(ids[e + 8]) + c);
        const float* row = table.row(ids[e]);
        for (Offset c = 0; c + 8 <= width; c += 8) sum = sum + Vec<float, 8>::load(row + c);
      }
      sum.store(sums.row(begin / 4096));
    });
  });
  out.gather = static_cast<double>(fetches * width) * sizeof(float) / seconds * 1e-9;
  return out;
}

}  // namespace heed::bench
