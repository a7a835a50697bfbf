#include "kernels/sparse.h"

#include <algorithm>
#include <string>

namespace heed {

Sparse::Sparse(std::shared_ptr<const Csr> pattern, std::vector<float> entries) : values(std::move(entries)) {
  if (static_cast<Offset>(values.size()) != pattern->edges())
    fail("a sparse matrix of " + std::to_string(pattern->edges()) + " entries got " + std::to_string(values.size()) +
         " values");
  Transpose back = transpose(pattern);
  by_row = {.rows = pattern->rows, .cols = pattern->cols, .list = pattern, .intervals = {}, .blocks = {}};
  by_column = {.rows = pattern->cols, .cols = pattern->rows, .list = back.csr, .intervals = {}, .blocks = {}};
  edge = std::move(back.edge);
  by_row.plan();
  by_column.plan();
}

Matrix<float> dense_of(const Sparse& x) {
  const Csr& pattern = x.pattern();
  Matrix<float> out(pattern.rows, pattern.cols);
  for (Id i = 0; i < pattern.rows; ++i)
    for (Offset t = pattern.offsets[i]; t < pattern.offsets[i + 1]; ++t) out(i, pattern.ids[t]) = x.values[t];
  return out;
}

ReorderedSparse reordered(const Sparse& x, std::span<const Id> order) {
  const Csr& old = x.pattern();
  auto csr = std::make_shared<Csr>(Csr{.rows = old.rows, .cols = old.cols});
  std::vector<Offset> entry;
  std::vector<float> values;
  for (Id i : order) {
    for (Offset t = old.offsets[i]; t < old.offsets[i + 1]; ++t) {
      csr->ids.push_back(old.ids[t]);
      entry.push_back(t);
      values.push_back(x.values[t]);
    }
    csr->offsets.push_back(csr->edges());
  }
  return {Sparse(std::move(csr), std::move(values)), std::move(entry)};
}

Features reordered(const Features& x, std::span<const Id> order) {
  if (x.sparse) return {.dense = {}, .sparse = std::make_shared<const Sparse>(reordered(*x.sparse, order).x)};
  Features out;
  out.dense.resize(x.dense.rows(), x.dense.cols());
  for (Offset i = 0; i < out.dense.rows(); ++i) std::copy_n(x.dense.row(order[i]), x.dense.cols(), out.dense.row(i));
  return out;
}

}  // namespace heed
