// The two speeds that bound attention on graphs: streaming through memory, and fetching the rows of random nodes.
#include <algorithm>
#include <chrono>

#include "bench/bench.h"
#include "kernels/batch.h"
#include "kernels/dense.h"
#include "kernels/parallel.h"
#include "kernels/wide.h"

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
  const Offset width = std::max<Offset>(1, row_bytes / static_cast<Offset>(sizeof(float)));
  const Offset rows = std::max<Offset>(table_rows, 1), fetches = std::max<Offset>((Offset{1} << 26) / width, 1 << 16);
  Matrix<float> table(rows, width);
  table.fill(1);
  std::vector<Id> ids(static_cast<std::size_t>(fetches));
  for (Offset e = 0; e < fetches; ++e) ids[e] = static_cast<Id>(uniform(7, e) * static_cast<double>(rows));
  const View<const float> from = std::as_const(table).view();
  Matrix<float> sums(fetches / 4096 + 1, kWideLanes);
  auto gather = [&](auto width) {
    parallel_pieces(fetches, 4096, [&](Offset begin, Offset end) {
      using V = WideVec<float>;
      constexpr Offset lanes = V::lanes, together = 4 * lanes;  // four sums, lest they wait for each other
      V sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      for (Offset e = begin; e < end; ++e) {
        if (e + kAhead < fetches)
          for (Offset c = 0; c < width; c += 16) prefetch_line(from.row(ids[e + kAhead]) + c);
        const float* row = from.row(ids[e]);
        Offset c = 0;
        for (; c + together <= width; c += together)
#pragma GCC unroll 4
          for (Offset g = 0; g < 4; ++g) sum[g] = sum[g] + V::load(row + c + g * lanes);
        for (; c < width; c += lanes) sum[0] = sum[0] + V::load(row + c);
      }
      for (int g = 1; g < 4; ++g) sum[0] = sum[0] + sum[g];
      sum[0].store(sums.row(begin / 4096));
    });
  };
  // Compiled for the width that most rows have.
  const double best =
      best_seconds(5, [&] { width == 64 ? gather(std::integral_constant<Offset, 64>{}) : gather(width); });
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
