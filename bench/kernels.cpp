// The kernels that heed bench times, each with the result that it must have and the bytes that it must move; and beside
// them what others would run: Eigen's sparse product, and attention in plain steps that store a number per edge and
// head.
#include <Eigen/SparseCore>
#include <cmath>

#include "bench/operands.h"
#include "kernels/dense.h"
#include "kernels/sparse.h"

namespace heed::bench {
namespace {

constexpr double kFloat = sizeof(float);

const Csr& list_of(const Input& in) { return *in.pattern->by_query.list; }
double bytes_of_list(const Rows& rows) {
  return rows.listed() ? static_cast<double>(rows.list->edges()) * sizeof(Id) + 8.0 * rows.rows : 0;
}

// ---- attention, and its single steps ------------------------------------------------------------------------------

// y and dv once more, by plain loops in double from the scores of the pairs, or from their weights; of graphs with more
// edges than kPlain, some rows of each.
constexpr Offset kPlain = 10'000'000;
void verify_plainly(const Input& in, const Operands<float>& x, const Operands<double>& exact) {
  const Csr &list = list_of(in), &keys = *in.pattern->by_key.list;
  const auto& edge = in.pattern->edge_of_entry();
  Matrix<double> w(list.edges(), in.heads);
  // A filter's choice is taken from the operator.
  const bool plain = !in.score.filter, softmax = plain && in.normaliser.name == "softmax";
  const bool sigmoid = plain && in.normaliser.name == "sigmoid";
  if (softmax || sigmoid)
    attention_scores(exact.call(), w.view());
  else
    attention_weights(exact.call(), exact.state, w.view());
  parallel_pieces(list.rows, 64, [&](Offset begin, Offset end) {
    for (Id i = static_cast<Id>(begin); i < end; ++i)
      for (int h = 0; h < in.heads; ++h) {
        double top = -__builtin_inf(), total = 0;
        for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e) top = std::max(top, w(e, h));
        for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e) {
          if (sigmoid) w(e, h) = 1 / (1 + std::exp(-w(e, h)));
          if (softmax) total += w(e, h) = std::exp(w(e, h) - top);
        }
        for (Offset e = list.offsets[i]; softmax && e < list.offsets[i + 1]; ++e) w(e, h) /= total;
      }
  });

  // sum(i, to) gives row i; every row, or one of `apart`.
  const Id apart = static_cast<Id>(1 + list.edges() / kPlain);
  auto compare = [&](const char* name, const Matrix<float>& all, auto sum) {
    Matrix<float> found((all.rows() + apart - 1) / apart, all.cols());
    Matrix<double> want(found.rows(), all.cols());
    parallel_pieces(found.rows(), 64, [&](Offset begin, Offset end) {
      for (Offset t = begin; t < end; ++t) {
        std::copy_n(all.row(t * apart), all.cols(), found.row(t));
        sum(static_cast<Id>(t * apart), want.row(t));
      }
    });
    expect_near(name, found, want);
  };
  const Offset width = in.channels;
  auto add = [&](double* to, Offset e, const double* row) {
    for (int h = 0; h < in.heads; ++h)
      for (Offset c = h * width; c < (h + 1) * width; ++c) to[c] += w(e, h) * row[c];
  };
  compare("y beside plain loops", x.y, [&](Id i, double* to) {
    for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e) add(to, e, exact.value().row(list.ids[e]));
  });
  if (exact.dv.empty()) return;
  compare("dv beside plain loops", x.dv, [&](Id j, double* to) {
    for (Offset t = keys.offsets[j]; t < keys.offsets[j + 1]; ++t) add(to, edge[t], exact.dy.row(keys.ids[t]));
  });
}

// Rows of keys gathered by each pair in forward; again, and rows of queries, in the two passes of backward.
Work make_attention(const Input& in) {
  auto x = std::make_shared<Operands<float>>(in);
  Work out{.forward = [x] { x->forward(); }, .backward = [x] { x->backward(); }, .data = x};
  out.verify = [x, in] {
    Operands<double> y(in);
    y.forward(), y.backward();
    double floor = 0;
    for (double d : y.dy) floor += d * d;
    floor = 0.01 * std::sqrt(floor);
    expect_near("y", x->y, y.y), expect_near("dv", x->dv, y.dv);
    if (!in.normaliser.measures) {  // others have kinks, on whose side float may see itself elsewhere
      expect_near("dq", x->dq, y.dq, floor), expect_near("dk", x->dk, y.dk, floor);
      expect_near("da", x->da, y.da, floor), expect_near("dp", x->dp, y.dp, floor);
    }

    if (in.pattern->is_listed()) verify_plainly(in, *x, y);
  };
  out.write = [x, in](const std::string& file) {
    write_tensors(file, in.pattern->is_listed() ? &list_of(in) : nullptr,
                  {{"q", &x->q},
                   {"k", &x->k},
                   {"v", &x->value()},
                   {"a", &x->a},
                   {"p", &x->p},
                   {"y", &x->y},
                   {"dy", &x->dy},
                   {"dq", &x->dq},
                   {"dk", &x->dk},
                   {"dv", &x->dv},
                   {"da", &x->da},
                   {"dp", &x->dp}});
  };
  const double queries = in.pattern->queries(), keys = in.pattern->keys();
  const Offset row = static_cast<Offset>(in.heads * in.channels * kFloat),
               score_row = x->score.contracts ? static_cast<Offset>(in.heads * kFloat) : row;
  const Offset pair = x->shared ? row : row + score_row;
  out.edges = in.pattern->edges();
  const auto edges = static_cast<double>(out.edges);
  out.moved_forward.streamed = bytes_of_list(in.pattern->by_query) + queries * static_cast<double>(row + score_row);
  out.moved_backward.streamed = bytes_of_list(in.pattern->by_query) + bytes_of_list(in.pattern->by_key) +
                                queries * static_cast<double>(3 * row + 2 * score_row) +
                                keys * static_cast<double>(2 * pair);
  // A product and a sum for each channel: in q k and w v; in backward q k, dy v, ds k, ds q and w dy.
  const double score_flops = x->score.contracts ? 0 : 2.0 * edges * static_cast<double>(x->q.cols()),
               value_flops = 2.0 * edges * static_cast<double>(x->dy.cols());
  out.moved_forward.flops = score_flops + value_flops;
  out.moved_backward.flops = 3 * score_flops + 2 * value_flops;
  if (!in.pattern->is_listed()) {  // every row of keys again and again from the cache
    out.moved_forward.streamed += keys * static_cast<double>(pair);
    return out;
  }
  out.moved_forward.gathers = {{edges, in.pattern->keys(), pair}};
  out.moved_backward.gathers = {
      {edges, in.pattern->keys(), pair},
      {edges, in.pattern->queries(), row + score_row + static_cast<Offset>(2 * in.heads * kFloat)}};
  return out;
}

Work make_sddmm(const Input& in) {
  struct Data {
    Operands<float> x;
    Matrix<float> s;
  };
  auto d = std::make_shared<Data>(Data{Operands<float>(in), {}});
  d->x.v = {}, d->x.dy = {};
  Work out{.forward =
               [d, in] {
                 d->s.resize(in.pattern->edges(), in.heads);
                 attention_scores(d->x.call(), d->s.view());
               },
           .backward = {},
           .edges = in.pattern->edges(),
           .data = d};
  out.verify = [d, in] {
    Operands<double> x(in);
    Matrix<double> s(in.pattern->edges(), in.heads);
    attention_scores(x.call(), s.view());
    expect_near("s", d->s, s);
  };
  const auto edges = static_cast<double>(out.edges);
  const auto row = static_cast<Offset>(static_cast<double>(d->x.k.cols()) * kFloat);
  out.moved_forward = {{{edges, in.pattern->keys(), row}},
                       bytes_of_list(in.pattern->by_query) + static_cast<double>(in.pattern->queries() * row) +
                           edges * in.heads * kFloat};
  return out;
}

// s -> w, edges x heads, row by row: softmax.
void row_softmax(const Csr& list, const Matrix<float>& s, Matrix<float>& w) {
  w.resize(s.rows(), s.cols());
  const Offset heads = s.cols();
  parallel_pieces(list.rows, 64, [&](Offset begin, Offset end) {
    for (Offset i = begin; i < end; ++i)
      for (Offset h = 0; h < heads; ++h) {
        float top = -__builtin_inff(), total = 0;
        for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e) top = std::max(top, s(e, h));
        for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e) total += w(e, h) = std::exp(s(e, h) - top);
        for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e) w(e, h) /= total;
      }
  });
}

Work make_row_softmax(const Input& in) {
  struct Data {
    std::shared_ptr<const Pattern> pattern;
    Matrix<float> s, w;
  };
  auto d = std::make_shared<Data>(Data{in.pattern, random_matrix<float>(in.pattern->edges(), in.heads, in.seed), {}});
  Work out{.forward = [d] { row_softmax(*d->pattern->by_query.list, d->s, d->w); },
           .backward = {},
           .edges = in.pattern->edges(),
           .data = d};
  out.verify = [d, in] {
    Matrix<double> w(d->s.rows(), d->s.cols());
    const Csr& list = list_of(in);
    for (Id i = 0; i < list.rows; ++i)
      for (Offset h = 0; h < w.cols(); ++h) {
        double total = 0;
        for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e)
          total += w(e, h) = std::exp(static_cast<double>(d->s(e, h)));
        for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e) w(e, h) /= total;
      }
    expect_near("w", d->w, w);
  };
  out.moved_forward.streamed = 8.0 * list_of(in).rows + 2 * static_cast<double>(d->s.size()) * kFloat;
  return out;
}

// What the fused operator saves: scores, weights and the sum one after the other, with an array of edges x heads.
Work make_plain(const Input& in) {
  struct Data {
    Operands<float> x;
    Matrix<float> s, w, y;
  };
  auto d = std::make_shared<Data>(Data{Operands<float>(in), {}, {}, {}});
  const bool named = in.normaliser.name == "softmax" || in.normaliser.name == "sigmoid";
  if (!named) d->x.forward();  // other weights come from its thresholds
  d->x.dy = {};
  Work out = make_attention(in);  // for what it must move
  out.backward = {}, out.write = {}, out.moved_backward = {}, out.data = d;
  out.forward = [d, in, named] {
    const Csr& list = list_of(in);
    d->s.resize(in.pattern->edges(), in.heads);
    if (named) attention_scores(d->x.call(), d->s.view());
    if (!named) {
      d->w.resize(d->s.rows(), d->s.cols());
      attention_weights(d->x.call(), d->x.state, d->w.view());
    } else if (in.normaliser.name == "softmax") {
      row_softmax(list, d->s, d->w);
    } else {
      d->w.resize(d->s.rows(), d->s.cols());
      parallel_pieces(d->s.size(), kElementGrain, [&](Offset begin, Offset end) {
        for (Offset t = begin; t < end; ++t) d->w.data()[t] = 1 / (1 + std::exp(-d->s.data()[t]));
      });
    }
    const Matrix<float>& v = d->x.value();
    d->y.resize(list.rows, v.cols());
    parallel_pieces(list.rows, 64, [&](Offset begin, Offset end) {
      for (Offset i = begin; i < end; ++i) {
        float* y = d->y.row(i);
        std::fill_n(y, v.cols(), 0.0f);
        for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e)
          for (int h = 0; h < in.heads; ++h)
            for (Offset c = h * in.channels; c < (h + 1) * in.channels; ++c) y[c] += d->w(e, h) * v(list.ids[e], c);
      }
    });
  };
  out.verify = [d, in] {
    Operands<double> x(in);
    x.forward();
    expect_near("y", d->y, x.y);
  };
  return out;
}

Work make_specialised_beside(const Input& in) {
  Work out = make_specialised(in);
  out.moved_forward = make_attention(in).moved_forward;
  return out;
}

// ---- products -----------------------------------------------------------------------------------------------------

struct Product {  // y = A x, A the pattern with weights
  std::shared_ptr<const Pattern> pattern;
  Matrix<float> x, y, parts;
  std::vector<float> weights;

  explicit Product(const Input& in)
      : pattern(in.pattern), x(random_matrix<float>(in.pattern->keys(), in.heads * in.channels, mix(in.seed, 1))) {
    for (Offset e = 0; e < in.pattern->edges(); ++e) weights.push_back(static_cast<float>(uniform(in.seed, e)));
  }
  void verify() const {
    const Csr& list = *pattern->by_query.list;
    Matrix<double> want(list.rows, x.cols());
    for (Id i = 0; i < list.rows; ++i)
      for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e)
        for (Offset c = 0; c < x.cols(); ++c) want(i, c) += static_cast<double>(weights[e]) * x(list.ids[e], c);
    expect_near("y", y, want);
  }
};

Work product_work(const Input& in, const std::shared_ptr<Product>& d, std::function<void()> forward) {
  const auto edges = static_cast<double>(in.pattern->edges());
  const auto row = static_cast<Offset>(static_cast<double>(d->x.cols()) * kFloat);
  return {
      .forward = std::move(forward),
      .backward = {},
      .verify = [d] { d->verify(); },
      .write =
          [d](const std::string& file) {
            Matrix<float> weights(1, d->pattern->edges());
            std::copy(d->weights.begin(), d->weights.end(), weights.begin());
            write_tensors(file, d->pattern->by_query.list.get(), {{"weights", &weights}, {"x", &d->x}, {"y", &d->y}});
          },
      .moved_forward = {{{edges, in.pattern->keys(), row}},
                        bytes_of_list(in.pattern->by_query) + edges * kFloat +
                            static_cast<double>(in.pattern->queries() * row)},
      .moved_backward = {},
      .edges = in.pattern->edges(),
      .data = d};
}

Work make_spmm(const Input& in) {
  auto d = std::make_shared<Product>(in);
  return product_work(in, d, [d] {
    d->y.resize(d->pattern->queries(), d->x.cols());
    weighted_sum<float>(d->pattern->by_query, d->weights, {}, {}, std::as_const(d->x).view(), {d->y.view(), false},
                        d->parts);
  });
}

Work make_eigen_spmm(const Input& in) {
  using Dense = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  auto d = std::make_shared<Product>(in);
  auto a =
      std::make_shared<Eigen::SparseMatrix<float, Eigen::RowMajor, Offset>>(in.pattern->queries(), in.pattern->keys());
  const Csr& list = list_of(in);
  a->reserve(list.edges());
  for (Id i = 0; i < list.rows; ++i) {
    a->startVec(i);
    for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e) a->insertBack(i, list.ids[e]) = d->weights[e];
  }
  a->finalize();
  return product_work(in, d, [d, a] {
    d->y.resize(d->pattern->queries(), d->x.cols());
    Eigen::Map<const Dense> x(d->x.data(), d->x.rows(), d->x.cols());
    Eigen::Map<Dense>(d->y.data(), d->y.rows(), d->y.cols()).noalias() = *a * x;
  });
}

// Sparse features (2048 channels, about 20 a node) times a weight, and the weight's gradient.
Work make_sparse_dense(const Input& in) {
  constexpr Id kChannels = 2048, kFilled = 20;
  struct Data {
    Sparse x;
    Matrix<float> w, y, dy, dw, parts, more;
  };
  const Id nodes = in.pattern->queries();
  auto list = std::make_shared<Csr>(Csr{.rows = nodes, .cols = kChannels});
  std::vector<float> values;
  for (Id i = 0; i < nodes; ++i) {
    Id c = -1;
    for (int t = 0; t < kFilled; ++t) {  // steps of 1 to 203, so that they rise
      c += 1 + static_cast<Id>(uniform(in.seed, Offset{i} * kFilled + t) * 2 * kChannels / (kFilled + 1));
      if (c >= kChannels) break;
      list->ids.push_back(c);
      values.push_back(static_cast<float>(normal(mix(in.seed, 1), Offset{i} * kFilled + t)));
    }
    list->offsets.push_back(list->edges());
  }
  const Offset width = in.heads * in.channels;
  auto d = std::make_shared<Data>(Data{Sparse(list, values),
                                       random_matrix<float>(kChannels, width, mix(in.seed, 2)),
                                       {},
                                       random_matrix<float>(nodes, width, mix(in.seed, 3)),
                                       {},
                                       {},
                                       {}});
  Work out{.forward =
               [d] {
                 d->y.resize(d->x.rows(), d->w.cols());
                 weighted_sum<float>(d->x.by_row, d->x.values, {}, {}, std::as_const(d->w).view(), {d->y.view(), false},
                                     d->parts);
               },
           .backward =
               [d] {
                 d->dw.resize(d->w.rows(), d->w.cols());
                 const Summand<float> sum{std::as_const(d->dy).view(), {d->dw.view(), false}};
                 transposed_product<float>(d->x, d->x.values, {&sum, 1}, d->more);
               },
           .edges = list->edges(),
           .data = d};
  out.verify = [d] {
    const Csr& list = d->x.pattern();
    Matrix<double> y(d->y.rows(), d->y.cols()), dw(d->dw.rows(), d->dw.cols());
    for (Id i = 0; i < list.rows; ++i)
      for (Offset e = list.offsets[i]; e < list.offsets[i + 1]; ++e)
        for (Offset c = 0; c < y.cols(); ++c) {
          y(i, c) += static_cast<double>(d->x.values[e]) * d->w(list.ids[e], c);
          dw(list.ids[e], c) += static_cast<double>(d->x.values[e]) * d->dy(i, c);
        }
    expect_near("y", d->y, y), expect_near("dw", d->dw, dw);
  };
  const auto edges = static_cast<double>(list->edges());
  const auto row = static_cast<Offset>(static_cast<double>(width) * kFloat);
  const double listed = edges * (sizeof(Id) + kFloat), rows = static_cast<double>(nodes * row);
  out.moved_forward = {{{edges, kChannels, row}}, listed + rows};
  out.moved_backward = {{{edges, nodes, row}}, listed + edges * sizeof(Offset) + static_cast<double>(kChannels * row)};
  return out;
}

// 64 channels a node times a weight, and both gradients.
Work make_dense(const Input& in) {
  constexpr Offset kIn = 64;
  struct Data {
    Matrix<float> x, w, y, dy, dx, dw;
    DenseRoom<float> room;
  };
  const Offset nodes = in.pattern->queries(), width = in.heads * in.channels;
  auto d = std::make_shared<Data>(Data{random_matrix<float>(nodes, kIn, mix(in.seed, 1)),
                                       random_matrix<float>(kIn, width, mix(in.seed, 2)),
                                       {},
                                       random_matrix<float>(nodes, width, mix(in.seed, 3)),
                                       {},
                                       {},
                                       {}});
  Work out{.forward =
               [d] {
                 d->y.resize(d->x.rows(), d->w.cols());
                 product<float>(std::as_const(d->x).view(), std::as_const(d->w).view(), Sink<float>{d->y.view()},
                                d->room);
               },
           .backward =
               [d] {
                 d->dx.resize(d->x.rows(), d->x.cols()), d->dw.resize(d->w.rows(), d->w.cols());
                 const auto dy = std::as_const(d->dy).view();
                 product_by_transpose<float>(dy, std::as_const(d->w).view(), Sink<float>{d->dx.view()}, d->room);
                 product_of_transpose<float>(std::as_const(d->x).view(), dy, Sink<float>{d->dw.view()}, d->room);
               },
           .data = d};
  out.verify = [d] {
    Matrix<double> y(d->y.rows(), d->y.cols()), dx(d->x.rows(), d->x.cols()), dw(d->w.rows(), d->w.cols());
    for (Offset i = 0; i < y.rows(); ++i)
      for (Offset k = 0; k < kIn; ++k)
        for (Offset c = 0; c < y.cols(); ++c) {
          y(i, c) += static_cast<double>(d->x(i, k)) * d->w(k, c);
          dx(i, k) += static_cast<double>(d->dy(i, c)) * d->w(k, c);
          dw(k, c) += static_cast<double>(d->x(i, k)) * d->dy(i, c);
        }
    expect_near("y", d->y, y), expect_near("dx", d->dx, dx), expect_near("dw", d->dw, dw);
  };
  out.moved_forward.streamed = static_cast<double>(nodes * (kIn + width)) * kFloat;
  out.moved_backward.streamed = 2 * out.moved_forward.streamed;
  out.moved_forward.flops = 2.0 * static_cast<double>(nodes * kIn * width);
  out.moved_backward.flops = 2 * out.moved_forward.flops;
  return out;
}

}  // namespace

const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> list{
      {"attention", "the fused operator", true, true, true, make_attention},
      {"plain", "attention in plain steps that store edges x heads, forward only", true, true, false, make_plain,
       [](const Input& in) { return !in.score.filter; }},
      {"specialised", "dot and GAT under softmax, 4 x 16 or 8 x 8: one loop that is written for it, forward only", true,
       true, false, make_specialised_beside, has_specialised},
      {"sddmm", "the scores alone, edges x heads", true, false, false, make_sddmm},
      {"row_softmax", "softmax over the rows of an array of edges x heads", false, false, false, make_row_softmax},
      {"spmm", "a sparse matrix times a dense one", false, false, false, make_spmm},
      {"eigen_spmm", "the same by Eigen, which uses one thread", false, false, false, make_eigen_spmm},
      {"sparse_dense", "sparse features (2048 channels, 20 of them filled) times a weight; its gradient", false, false,
       true, make_sparse_dense},
      {"dense", "64 channels a node times a weight; both gradients", false, false, true, make_dense},
  };
  return list;
}

}  // namespace heed::bench
