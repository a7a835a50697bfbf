#include "kernels/dense.h"

#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#include <string>

#include "kernels/parallel.h"

namespace heed {
namespace {

// Rows of a tile: a multiple of 256, of at least some 10 us of work where a row multiplies in x out numbers.
Offset tile(Offset in, Offset out) {
  return 256 * std::max<Offset>(1, (Offset{1} << 12) / std::max<Offset>(1, in * out));
}
constexpr Offset kLong = 2048;  // rows that one partial sum of x^T dy takes in

template <class T>
using Dense = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

template <class T>
auto map(View<T> x, Offset first, Offset count) {
  using Plain = Dense<std::remove_const_t<T>>;
  using Kept = std::conditional_t<std::is_const_v<T>, const Plain, Plain>;
  return Eigen::Map<Kept, 0, Eigen::OuterStride<>>(x.row(first), count, x.cols, Eigen::OuterStride<>(x.stride));
}

void expect(bool fits, const char* what, Offset a, Offset b) {
  if (!fits)
    fail(std::string("dense product: ") + what + " do not fit: " + std::to_string(a) + " and " + std::to_string(b));
}

}  // namespace

template <class T>
void product(View<const T> x, View<const T> w, Sink<T> y, View<const T> bias) {
  expect(x.cols == w.rows, "columns of x and rows of w", x.cols, w.rows);
  expect(y.to.rows == x.rows && y.to.cols == w.cols, "the result and its factors", y.to.cols, w.cols);
  if (bias) expect(bias.cols == w.cols, "columns of w and of the bias", w.cols, bias.cols);
  parallel_pieces(x.rows, tile(w.rows, w.cols), [&](Offset begin, Offset end) {
    auto to = map(y.to, begin, end - begin);
    if (bias && y.add)
      to.rowwise() += map(bias, 0, 1).row(0);
    else if (bias)
      to.rowwise() = map(bias, 0, 1).row(0);
    if (y.add || bias)
      to.noalias() += map(x, begin, end - begin) * map(w, 0, w.rows);
    else
      to.noalias() = map(x, begin, end - begin) * map(w, 0, w.rows);
  });
}

template <class T>
void product_by_transpose(View<const T> dy, View<const T> w, Sink<T> dx) {
  expect(dy.cols == w.cols, "columns of dy and columns of w", dy.cols, w.cols);
  expect(dx.to.rows == dy.rows && dx.to.cols == w.rows, "the result and its factors", dx.to.cols, w.rows);
  parallel_pieces(dy.rows, tile(w.rows, w.cols), [&](Offset begin, Offset end) {
    auto to = map(dx.to, begin, end - begin);
    if (dx.add)
      to.noalias() += map(dy, begin, end - begin) * map(w, 0, w.rows).transpose();
    else
      to.noalias() = map(dy, begin, end - begin) * map(w, 0, w.rows).transpose();
  });
}

template <class T>
void product_of_transpose(View<const T> x, View<const T> dy, Sink<T> dw, Matrix<T>& parts, Sink<T> db) {
  expect(x.rows == dy.rows, "rows of x and rows of dy", x.rows, dy.rows);
  expect(dw.to.rows == x.cols && dw.to.cols == dy.cols, "the result and its factors", dw.to.rows, x.cols);
  Offset size = x.cols * dy.cols, count = (x.rows + kLong - 1) / kLong;
  parts.resize(std::max<Offset>(count, 1), size + dy.cols);
  parallel_pieces(x.rows, kLong, [&](Offset begin, Offset end) {
    View<T> part{parts.row(begin / kLong), x.cols, dy.cols, dy.cols};
    map(part, 0, x.cols).noalias() = map(x, begin, end - begin).transpose() * map(dy, begin, end - begin);
    if (db) map(View<T>{part.row(x.cols), 1, dy.cols, dy.cols}, 0, 1) = map(dy, begin, end - begin).colwise().sum();
  });
  auto merge = [&](T* to, bool add, Offset row) {
    if (!add) std::fill_n(to, dy.cols, T(0));
    for (Offset p = 0; p < count; ++p) {
      const T* from = parts.row(p) + row * dy.cols;
      for (Offset c = 0; c < dy.cols; ++c) to[c] += from[c];
    }
  };
  parallel_pieces(x.cols, row_grain(dy.cols), [&](Offset begin, Offset end) {
    for (Offset i = begin; i < end; ++i) merge(dw.to.row(i), dw.add, i);
  });
  if (db) merge(db.to.row(0), db.add, x.cols);
}

#define HEED_INSTANTIATE(T)                                                    \
  template void product(View<const T>, View<const T>, Sink<T>, View<const T>); \
  template void product_by_transpose(View<const T>, View<const T>, Sink<T>);   \
  template void product_of_transpose(View<const T>, View<const T>, Sink<T>, Matrix<T>&, Sink<T>);
HEED_INSTANTIATE(float)
HEED_INSTANTIATE(double)

}  // namespace heed
