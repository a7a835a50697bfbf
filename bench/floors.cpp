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

namespace {

// Sums of rows of `width` numbers: four at a time, lest they wait for each other. ids: kAhead more than are summed.
template <int width>
void sum_rows(View<const float> table, const Id* ids, Offset count, float* to) {
  constexpr int lanes = std::min(width, kWideLanes), vectors = width / lanes, rows = std::max(1, 4 / vectors);
  using V = Vec<float, lanes>;
  V sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (Offset e = 0; e + rows <= count; e += rows)
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const float *to_come = table.row(ids[e + r + kAhead]), *row = table.row(ids[e + r]);
#pragma GCC unroll 16
      for (int c = 0; c < width; c += 16) prefetch_line(to_come + c);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v)
        sum[(r * vectors + v) % 4] = sum[(r * vectors + v) % 4] + V::load(row + v * lanes);
    }
  (sum[0] + sum[1] + (sum[2] + sum[3])).store(to);
}

template <int width>
double gather_of(Offset rows) {
  constexpr Offset fetches = std::max<Offset>((Offset{1} << 26) / width, 1 << 16), piece = 4096;
  Matrix<float> table(rows, width), sums(fetches / piece, kWideLanes);
  table.fill(1);
  std::vector<Id> ids(static_cast<std::size_t>(fetches + kAhead));
  for (std::size_t e = 0; e < ids.size(); ++e) ids[e] = static_cast<Id>(uniform(7, e) * static_cast<double>(rows));
  const double best = best_seconds(5, [&] {
    parallel_pieces(fetches, piece, [&](Offset begin, Offset end) {
      sum_rows<width>(std::as_const(table).view(), ids.data() + begin, end - begin, sums.row(begin / piece));
    });
  });
  return static_cast<double>(fetches * width) * sizeof(float) / best * 1e-9;
}

}  // namespace

double gather_bandwidth(Offset table_rows, Offset row_bytes) {
  const Offset rows = std::max<Offset>(table_rows, 1), width = row_bytes / static_cast<Offset>(sizeof(float));
  return width < 8     ? gather_of<4>(rows)
         : width < 16  ? gather_of<8>(rows)
         : width < 32  ? gather_of<16>(rows)
         : width < 64  ? gather_of<32>(rows)
         : width < 128 ? gather_of<64>(rows)
         : width < 256 ? gather_of<128>(rows)
                       : gather_of<256>(rows);
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
