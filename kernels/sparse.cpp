#include "kernels/sparse.h"

#include <algorithm>
#include <string>

#include "kernels/batch.h"
#include "kernels/parallel.h"
#include "kernels/wide.h"

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

// Column by column, the rows of x come from afar. Where y stays in a core's cache, runs of rows are taken as they lie
// instead: each adds to a y of its own, and these are added up in order.
template <class T>
void transposed_product(const Sparse& pattern, std::span<const T> values, std::span<const Summand<T>> sums,
                        Matrix<T>& parts, const std::uint8_t* needed) {
  using V = WideVec<T>;
  constexpr int lanes = V::lanes;
  const Csr& list = pattern.pattern();
  Offset stride = 0;
  for (const auto& [x, y] : sums) {
    if (x.rows != pattern.rows() || y.to.rows != pattern.cols() || y.to.cols != x.cols ||
        static_cast<Offset>(values.size()) != list.edges())
      fail("transposed product: shapes do not fit");
    stride += (x.cols + lanes - 1) / lanes * lanes;
  }
  const Offset size = pattern.cols() * stride;
  // So few that adding them up costs less than what they hold.
  const Offset pieces = std::min<Offset>(32, list.edges() / std::max<Offset>(1, 8 * pattern.cols()));
  if (pieces < 2 || size * static_cast<Offset>(sizeof(T)) > kNearBytes)
    return weighted_sum<T>(pattern.by_column, values, pattern.edge, {}, sums, parts);
  parts.resize(pieces, size);
  auto row_at = [&](Offset entry) {
    return std::lower_bound(list.offsets.begin(), list.offsets.end(), entry) - list.offsets.begin();
  };
  parallel_pieces(pieces, 1, [&](Offset p, Offset) {
    T* const own = parts.row(p);
    std::fill_n(own, size, T(0));
    const Offset last = row_at((p + 1) * list.edges() / pieces);
    for (Offset i = row_at(p * list.edges() / pieces); i < last; ++i) {
      if (needed && !needed[i]) continue;
      for (Offset at = list.offsets[i]; at < list.offsets[i + 1]; at += kChunk) {
        // Of dropped features most values are 0.
        const Offset end = std::min<Offset>(list.offsets[i + 1], at + kChunk);
        T w[kChunk], *to[kChunk];
        int n = 0;
        for (Offset t = at; t < end; ++t) w[n] = values[t], to[n] = own + list.ids[t] * stride, n += w[n] != 0;
        Offset place = 0;
        for (const auto& [x, y] : sums) {
          auto add = [&, from = x.row(i)]<int count>(Offset c) {
            V some[count];
            for (int g = 0; g < count; ++g) some[g] = V::load(from + c + g * lanes);
            for (int t = 0; t < n; ++t) {
              T* sum = to[t] + place + c;
              for (int g = 0; g < count; ++g) (V::load(sum + g * lanes) + V(w[t]) * some[g]).store(sum + g * lanes);
            }
          };
          Offset c = 0;
          for (; c + 4 * lanes <= x.cols; c += 4 * lanes) add.template operator()<4>(c);
          for (; c < x.cols; c += lanes) add.template operator()<1>(c);
          place += c;
        }
      }
    }
  });
  parallel_pieces(pattern.cols(), row_grain(pieces * stride), [&](Offset begin, Offset end) {
    for (Offset j = begin; j < end; ++j) {
      const T* from = parts.data() + j * stride;
      for (const auto& [x, y] : sums)
        for (Offset c = 0; c < x.cols; c += lanes, from += lanes) {
          T* to = y.to.row(j) + c;
          V sum = y.add ? V::load(to) : V(T(0));
          for (Offset p = 0; p < pieces; ++p) sum = sum + V::load(from + p * size);
          store_first(sum, static_cast<int>(std::min<Offset>(lanes, x.cols - c)), to);
        }
    }
  });
}
template void transposed_product(const Sparse&, std::span<const float>, std::span<const Summand<float>>, Matrix<float>&,
                                 const std::uint8_t*);
template void transposed_product(const Sparse&, std::span<const double>, std::span<const Summand<double>>,
                                 Matrix<double>&, const std::uint8_t*);

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
