#include "kernels/sparse.h"

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

}  // namespace heed
