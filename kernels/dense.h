// Dense products of a layer's shape: very many rows, few columns. Such products touch memory more than they multiply,
// so that maps of one input run together and read it once, and tiles of rows meet panels of the weights that stay in
// the first-level cache. Long sums are split at a constant and merged in order: the same bits on any number of threads.
#pragma once

#include <span>
#include <vector>

#include "kernels/attention.h"

namespace heed {

// Some columns, and what they need of the weights.
template <class T>
struct DensePanel {
  const T* b;  // its row t, at b + t * stride, meets column t of the other factor
  Offset stride;
  View<T> to;  // whose first `width` columns are meant; none: those of `parts`
  int width;
  bool add;
  std::span<const View<const T>> a;  // the other factor, its columns one after the other
  const T* bias = nullptr;           // that begins the sums
  std::span<const View<T>> parts{};  // results whose columns lie in it, one after the other
};
template <class T>
struct DenseRoom {  // buffers that are kept between calls
  Matrix<T> numbers;
  std::vector<DensePanel<T>> panels;
  std::vector<View<T>> parts;
};

template <class T>
struct DenseMap {      // y = s (x w + bias)
  View<const T> w;     // in x out
  View<const T> bias;  // 1 x out; may be none
  T s = 1;
};

// All throw Error where shapes do not fit. `needed`: a mark for each of the n rows, without which a row of the results
// may be left as it is, and is 0 in dy; null: all have one.

// y_m (+)= s_m (x_m w_m + bias_m)            x_m: n x in, one for each map, or one for all; y_m: n x out_m
template <class T>
void product(std::span<const View<const T>> x, std::span<const DenseMap<T>> maps, std::span<const Sink<T>> y,
             DenseRoom<T>& room, const std::uint8_t* needed = nullptr);

// dx (+)= sum_m s_m dy_m w_m^T               dy_m: n x out_m, dx: n x in
template <class T>
void product_by_transpose(std::span<const View<const T>> dy, std::span<const DenseMap<T>> maps, Sink<T> dx,
                          DenseRoom<T>& room, const std::uint8_t* needed = nullptr);

// dw_m (+)= s_m x_m^T dy_m, and dbias_m (+)= s_m times the sums of dy_m's columns; sinks may be none
template <class T>
void product_of_transpose(std::span<const View<const T>> x, std::span<const View<const T>> dy,
                          std::span<const DenseMap<T>> maps, std::span<const Sink<T>> dw,
                          std::span<const Sink<T>> dbias, DenseRoom<T>& room, const std::uint8_t* needed = nullptr);

// The same for one x.
template <class T>
void product(View<const T> x, std::span<const DenseMap<T>> maps, std::span<const Sink<T>> y, DenseRoom<T>& room,
             const std::uint8_t* needed = nullptr) {
  product<T>({&x, 1}, maps, y, room, needed);
}
template <class T>
void product_of_transpose(View<const T> x, std::span<const View<const T>> dy, std::span<const DenseMap<T>> maps,
                          std::span<const Sink<T>> dw, std::span<const Sink<T>> dbias, DenseRoom<T>& room,
                          const std::uint8_t* needed = nullptr) {
  product_of_transpose<T>({&x, 1}, dy, maps, dw, dbias, room, needed);
}
// And for one map without a bias.
template <class T>
void product(View<const T> x, View<const T> w, Sink<T> y, DenseRoom<T>& room) {
  const DenseMap<T> map{w};
  product<T>({&x, 1}, {&map, 1}, {&y, 1}, room);
}
template <class T>
void product_by_transpose(View<const T> dy, View<const T> w, Sink<T> dx, DenseRoom<T>& room) {
  const DenseMap<T> map{w};
  product_by_transpose<T>({&dy, 1}, {&map, 1}, dx, room);
}
template <class T>
void product_of_transpose(View<const T> x, View<const T> dy, Sink<T> dw, DenseRoom<T>& room) {
  const DenseMap<T> map{{dw.to.data, dw.to.rows, dw.to.cols, dw.to.stride}};
  product_of_transpose<T>({&x, 1}, {&dy, 1}, {&map, 1}, {&dw, 1}, {}, room);
}

}  // namespace heed
