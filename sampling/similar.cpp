#include "sampling/similar.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/dense.h"
#include "kernels/parallel.h"

namespace heed {
namespace {

constexpr double kFilled = 0.125;  // sparse features of which more is filled are faster as dense ones

// The best k so far, the worst of them in front.
struct Best {
  struct Entry {
    float cosine;
    Id node;
    bool operator<(const Entry& other) const {  // is better than
      return cosine != other.cosine ? cosine > other.cosine : node < other.node;
    }
  };
  std::vector<Entry> heap;

  void offer(float cosine, Id node, std::size_t k) {
    const Entry e{cosine, node};
    if (heap.size() == k) {
      if (k == 0 || !(e < heap.front())) return;
      std::pop_heap(heap.begin(), heap.end());
      heap.back() = e;
    } else {
      heap.push_back(e);
    }
    std::push_heap(heap.begin(), heap.end());
  }
};

// 1 / |x_i|; 0 for zero rows
float inverse_norm(const float* x, Offset count) {
  double square = 0;
  for (Offset c = 0; c < count; ++c) square += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  return square > 0 ? static_cast<float>(1 / std::sqrt(square)) : 0.0f;
}

void dense(const Matrix<float>& x, std::size_t k, std::vector<Best>& best) {
  constexpr Offset kRows = 256, kCols = 4096;
  const Offset n = x.rows();
  Matrix<float> unit(n, x.cols()), tile;
  DenseRoom<float> room;
  for (Offset i = 0; i < n; ++i) {
    const float scale = inverse_norm(x.row(i), x.cols());
    for (Offset c = 0; c < x.cols(); ++c) unit(i, c) = scale * x(i, c);
  }
  auto rows = [&](Offset first, Offset count) {
    return View<const float>{unit.row(first), count, unit.cols(), unit.cols()};
  };
  for (Offset first = 0; first < n; first += kRows) {
    const Offset count = std::min(kRows, n - first);
    for (Offset from = 0; from < n; from += kCols) {
      const Offset width = std::min(kCols, n - from);
      tile.resize(count, width);
      product_by_transpose<float>(rows(first, count), rows(from, width), Sink<float>{tile.view()}, room);
      parallel_pieces(count, 16, [&](Offset begin, Offset end) {
        for (Offset i = begin; i < end; ++i)
          for (Offset j = 0; j < width; ++j)
            if (first + i != from + j) best[first + i].offer(tile(i, j), static_cast<Id>(from + j), k);
      });
    }
  }
}

void sparse(const Sparse& x, std::size_t k, std::vector<Best>& best) {
  const Csr &rows = x.pattern(), &columns = *x.by_column.list;
  std::vector<float> scale(best.size());
  for (Id i = 0; i < rows.rows; ++i) scale[i] = inverse_norm(x.values.data() + rows.offsets[i], rows.degree(i));
  parallel_pieces(rows.rows, 64, [&](Offset begin, Offset end) {
    std::vector<float> cosine(best.size());
    for (Offset i = begin; i < end; ++i) {
      std::fill(cosine.begin(), cosine.end(), 0.0f);
      for (Offset e = rows.offsets[i]; e < rows.offsets[i + 1]; ++e) {
        const Id c = rows.ids[e];
        for (Offset t = columns.offsets[c]; t < columns.offsets[c + 1]; ++t)
          cosine[columns.ids[t]] += x.values[e] * x.values[x.edge[t]];
      }
      for (Id j = 0; j < rows.rows; ++j)
        if (j != i) best[i].offer(cosine[j] * scale[i] * scale[j], j, k);
    }
  });
}

}  // namespace

Csr most_similar(const Features& x, int k) {
  std::vector<Best> best(static_cast<std::size_t>(x.rows()));
  if (x.sparse && x.sparse->pattern().edges() > kFilled * static_cast<double>(x.rows() * x.cols()))
    dense(dense_of(*x.sparse), static_cast<std::size_t>(k), best);
  else if (x.sparse)
    sparse(*x.sparse, static_cast<std::size_t>(k), best);
  else
    dense(x.dense, static_cast<std::size_t>(k), best);
  Csr out{.rows = static_cast<Id>(x.rows()), .cols = static_cast<Id>(x.rows())};
  for (auto& b : best) {
    std::sort(b.heap.begin(), b.heap.end(), [](const auto& a, const auto& c) { return a.node < c.node; });
    for (const auto& e : b.heap) out.ids.push_back(e.node);
    out.offsets.push_back(out.edges());
  }
  return out;
}

}  // namespace heed
