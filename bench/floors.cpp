// The two speeds that bound attention on graphs: streaming through memory, and fetching the rows of random nodes.
#include <algorithm>
#include <chrono>

#include "bench/bench.h"
#include "kernels/dense.h"
#include "kernels/lanes.h"
#include "kernels/parallel.h"

namespace heed::bench {
namespace {

double best_seconds(int repeats, const std::function<void()>& f) {
  double best = 1e30;
  for (int r = 0; r < repeats; ++r) best = std::min(best, seconds(f));
  return best;
}

}  // namespace

double seconds(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Times times_of(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  const double median = x[x.size() / 2];
  return {1e3 * median, (x[3 * (x.size() - 1) / 4] - x[(x.size() - 1) / 4]) / median};
}

double copy_bandwidth() {
  const Offset n = Offset{1} << 25;  // 128 MiB each
  Matrix<float> from(1, n), to(1, n);
  from.fill(1), to.fill(2);
  const double best = best_seconds(7, [&] {
    parallel_pieces(n, 1 << 16, [&](Offset begin, Offset end) {
      std::copy(from.data() + begin, from.data() + end, to.data() + begin);
    });
  });
  return 2.0 * static_cast<double>(n) * sizeof(float) / best * 1e-9;
}

double gather_bandwidth(Offset table_rows, Offset row_bytes) {
  const Offset width = std::max<Offset>(8, row_bytes / static_cast<Offset>(sizeof(float)));
  const Offset rows = std::max<Offset>(table_rows, 1), fetches = std::max<Offset>((Offset{1} << 26) / width, 1 << 16);
  Matrix<float> table(rows, width);
  table.fill(1);
  std::vector<Id> ids(static_cast<std::size_t>(fetches));
  for (Offset e = 0; e < fetches; ++e) ids[e] = static_cast<Id>(uniform(7, e) * static_cast<double>(rows));
  Matrix<float> sums(fetches / 4096 + 1, 8);
  const double best = best_seconds(5, [&] {
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
  return static_cast<double>(fetches * width) * sizeof(float) / best * 1e-9;
}

double product_rate() {
  const Offset rows = 4096, width = 256;
  Matrix<float> x(rows, width), w(width, width), y(rows, width);
  DenseRoom<float> room;
  x.fill(1), w.fill(1);
  const double best = best_seconds(
      9, [&] { product<float>(std::as_const(x).view(), std::as_const(w).view(), Sink<float>{y.view()}, room); });
  return 2.0 * static_cast<double>(rows * width * width) / best * 1e-9;
}

}  // namespace heed::bench
