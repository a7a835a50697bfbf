// A sparse matrix of node features: a pattern, the values of its entries, and the way back by columns, which the
// gradient of a product needs.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/attention.h"

namespace heed {

struct Sparse {  // rows x cols
  Rows by_row;   // the pattern, cut into blocks
  Rows by_column;
  std::vector<Offset> edge;   // entry of by_row for each entry of by_column
  std::vector<float> values;  // entries

  Sparse() = default;
  Sparse(std::shared_ptr<const Csr> pattern, std::vector<float> values);
  Offset rows() const { return by_row.rows; }
  Offset cols() const { return by_row.cols; }
  const Csr& pattern() const { return *by_row.list; }
};

Matrix<float> dense_of(const Sparse& x);

// y (+)= X^T x for each summand, where X is `pattern` with `values` as its entries: x rows x any, y cols x the same.
// Entries of 0 are passed over, whatever stands in x. `parts`, up to 32 MB, is a buffer that may be kept between calls.
// `needed`: a mark for each row of X, without which the row of x is 0; null: all have one. Throws Error where shapes do
// not fit.
template <class T>
void transposed_product(const Sparse& pattern, std::span<const T> values, std::span<const Summand<T>> sums,
                        Matrix<T>& parts, const std::uint8_t* needed = nullptr);

// The same matrix with its rows in another order, in which each has its place: row i of the result is row order[i].
// entry[t] is the entry of `x` that became entry t.
struct ReorderedSparse {
  Sparse x;
  std::vector<Offset> entry;
};
ReorderedSparse reordered(const Sparse& x, std::span<const Id> order);

// What a dataset knows of its nodes: nodes x channels, dense or sparse.
struct Features {
  Matrix<float> dense;  // empty where sparse is set
  std::shared_ptr<const Sparse> sparse;

  Offset rows() const { return sparse ? sparse->rows() : dense.rows(); }
  Offset cols() const { return sparse ? sparse->cols() : dense.cols(); }
};
Features reordered(const Features& x, std::span<const Id> order);

}  // namespace heed
