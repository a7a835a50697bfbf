#include "layers/ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "kernels/bf16.h"
#include "kernels/dense.h"
#include "kernels/parallel.h"
#include "kernels/stages.h"
#include "kernels/wide.h"

namespace heed {
namespace {

std::string shape(Offset rows, Offset cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

template <class T>
void expect(const char* operation, Var<T> x, Offset rows, Offset cols) {
  if (x.rows() != rows || x.cols() != cols)
    fail(std::string(operation) + ": got " + shape(x.rows(), x.cols()) + ", expected " + shape(rows, cols));
}

// f(t) for the vectors of n elements; the last one may run into the slack behind the buffer.
template <class T, class F>
void each_vector(Offset n, F f) {
  parallel_pieces(n, kElementGrain, [&](Offset begin, Offset end) {
    for (Offset t = begin; t < end; t += WideVec<T>::lanes) f(t);
  });
}

// f(begin, end) for the runs of elements that hold `some` rows. They are few: shorter pieces than of all.
template <class T, class F>
void each_run(const Focus::Rows& some, F f) {
  constexpr Offset run = kRunBytes / sizeof(T);
  parallel_pieces(std::ssize(some.runs), kElementGrain / run / 4, [&](Offset begin, Offset end) {
    for (Offset at = begin; at < end; ++at) f(some.runs[at], some.runs[at] + run);
  });
}
// f(t) for the vectors of y, or of its rows that matter.
template <class T, class F>
void each_vector(Var<T> y, F f) {
  const Focus::Rows* some = y.tape->focus_of(y);
  if (!some) return each_vector<T>(y.value().size(), f);
  each_run<T>(*some, [&](Offset begin, Offset end) {
    for (Offset t = begin; t < end; t += WideVec<T>::lanes) f(t);
  });
}
// f(i) for the rows of y that matter, where each is some work on `cols` numbers.
template <class T, class F>
void each_row(Var<T> y, Offset cols, F f) {
  const Focus::Rows* some = y.tape->focus_of(y);
  parallel_pieces(some ? std::ssize(some->ids) : y.rows(), row_grain(cols), [&](Offset begin, Offset end) {
    for (Offset at = begin; at < end; ++at) f(some ? some->ids[at] : at);
  });
}

template <class T>
void store(const Sink<T>& to, Offset t, WideVec<T> value) {
  if (to.add) value = value + WideVec<T>::load(to.to.data + t);
  value.store(to.to.data + t);
}

// Whether operations on T have kernels for devices, which compute in float. Each operation has two leaves: what a
// device runs (device_bodies.h), and the CPU's loops.
template <class T>
inline constexpr bool on_devices = std::is_same_v<T, float>;

// What is computed row by row.
template <class T>
std::function<void(Reach<T>&)> same_rows(Var<T> y, std::vector<Var<T>> inputs) {
  return [y, inputs = std::move(inputs)](Reach<T>& reach) {
    for (Var<T> x : inputs) x.rows() == y.rows() ? reach.need_rows_of(x, y) : reach.need(x);
  };
}

// An elementwise operation whose derivative follows from its formula.
template <class T, class F>
Var<T> elementwise(Var<T> x, F f) {
  using V = WideVec<T>;
  Var<T> y = x.tape->result(x.rows(), x.cols(), {x});
  x.tape->record(
      y,
      [=] {
        const T* from = x.value().data();
        T* to = y.value().data();
        if constexpr (on_devices<T>)
          if (x.tape->device)
            return bodies::run(*x.tape->device,
                               bodies::Link{.kind = bodies::Link::Kind::map,
                                            .a = from,
                                            .to = to,
                                            .f = activations::place<F>(),
                                            .factor = activations::factor_of(f)},
                               x.value().size());
        each_vector(y, [&](Offset t) { f(V::load(from + t)).store(to + t); });
      },
      [=] {
        Sink<T> dx = x.tape->sink_beside(x, y);
        if (!dx) return;
        const T *from = x.value().data(), *dy = y.grad().data;
        if constexpr (on_devices<T>)
          if (x.tape->device)
            return bodies::run(*x.tape->device,
                               bodies::Link{.kind = bodies::Link::Kind::map_back,
                                            .a = from,
                                            .b = dy,
                                            .to = dx.to.data,
                                            .add = dx.add,
                                            .f = activations::place<F>(),
                                            .factor = activations::factor_of(f)},
                               x.value().size());
        each_vector(y, [&](Offset t) { store(dx, t, V::load(dy + t) * f(variable<0>(V::load(from + t))).d[0]); });
      },
      "elementwise", same_rows<T>(y, {x}));
  return y;
}

template <class T>
void add_to(Tape<T>* tape, const Sink<T>& to, View<const T> from) {  // to (+)= from
  if constexpr (on_devices<T>)
    if (tape->device) {
      const Offset count = from.rows * from.cols;
      if (from.stride != from.cols || to.to.stride != to.to.cols)
        return bodies::run(*tape->device, bodies::AddTo{from, to}, count);
      return bodies::run(
          *tape->device,
          bodies::Link{.kind = bodies::Link::Kind::copy, .a = from.data, .to = to.to.data, .add = to.add}, count);
    }
  parallel_pieces(from.rows, row_grain(from.cols), [&](Offset begin, Offset end) {
    for (Offset i = begin; i < end; ++i)
      for (Offset c = 0; c < from.cols; ++c) to.to(i, c) = to.add ? to.to(i, c) + from(i, c) : from(i, c);
  });
}

template <class T>
void clear(Tape<T>* tape, View<T> x) {
  if constexpr (on_devices<T>)
    if (tape->device) return bodies::run(*tape->device, bodies::Fill{x, 0}, x.rows * x.cols);
  parallel_pieces(x.rows, row_grain(x.cols), [&](Offset begin, Offset end) {
    for (Offset i = begin; i < end; ++i) std::fill_n(x.row(i), x.cols, T(0));
  });
}

// The sums over rows, in order; over those that are needed, where the others are 0.
template <class T>
void add_column_sums(View<const T> x, const Sink<T>& to, Matrix<T>& pieces, const std::uint8_t* needed = nullptr) {
  if (!to) return;
  if (!to.add) std::fill_n(to.to.data, x.cols, T(0));
  ordered_sums(x.rows, row_grain(x.cols), x.cols, to.to.data, pieces, [&](Offset begin, Offset end, T* acc) {
    for (Offset i = begin; i < end; ++i) {
      if (needed && !needed[i]) continue;
      for (Offset c = 0; c < x.cols; ++c) acc[c] += x(i, c);
    }
  });
}

}  // namespace

template <class T>
Var<T> linear(Var<T> x, const std::vector<LinearMap<T>>& maps) {
  return linears<T>(x, {maps})[0];
}

template <class T>
std::vector<Var<T>> linears(Var<T> x, const std::vector<std::vector<LinearMap<T>>>& groups) {
  const Sparse* sparse = x.sparse();
  if (sparse && x.needs_grad()) fail("linear: a sparse value takes no gradient");
  struct Placed {  // a map, and the columns of a group's result that it fills
    LinearMap<T> map;
    Var<T> y;
    Offset first;
  };
  struct Kept {
    std::vector<Placed> all;
    std::vector<DenseMap<T>> maps;
    std::vector<Sink<T>> y, dw, db;
    std::vector<View<const T>> dy;
    std::vector<Summand<T>> sums;
    Matrix<T> sums_of_dy, dw_scaled;
    DenseRoom<T> room;
  };
  constexpr std::size_t beside = bodies::kBeside;
  auto kept = std::make_shared<Kept>();
  std::vector<Var<T>> outputs;
  bool plain = true;  // all weights as they are
  for (const auto& group : groups) {
    Offset total = 0;
    std::vector<Var<T>> inputs{x};
    for (const auto& [w, b, s] : group) {
      if (x.cols() != w.rows())
        fail("linear: x is " + shape(x.rows(), x.cols()) + ", the weight " + shape(w.rows(), w.cols()));
      if (b.tape) expect("linear's bias", b, 1, w.cols()), inputs.push_back(b);
      inputs.push_back(w);
      total += w.cols(), plain = plain && s == 1;
    }
    Var<T> y = x.tape->result(x.rows(), total, inputs);
    Offset first = 0;
    for (const auto& map : group) {
      kept->all.push_back({map, y, first});
      first += map.w.cols();
    }
    outputs.push_back(y);
  }
  auto entries = [=] { return std::span<const T>(x.value().data(), static_cast<std::size_t>(x.value().size())); };
  auto forward = [=] {
    if constexpr (on_devices<T>)
      if (DeviceOps* device = x.tape->device) {
        if (sparse) {
          for (const Placed& at : kept->all) {
            const auto [w, b, s] = at.map;
            device->weighted_sum({.rows = &sparse->by_row,
                                  .weights = entries().data(),
                                  .bias = b.tape ? b.value().data() : nullptr,
                                  .scale = static_cast<T>(s)},
                                 w.view(), {at.y.value().view().columns(at.first, w.cols()), false},
                                 kept->room.numbers);
          }
          return;
        }
        for (std::size_t begin = 0; begin < kept->all.size(); begin += beside) {
          bodies::Side weights;
          bodies::IntoSide to;
          for (const Placed& at : std::span(kept->all).subspan(begin, std::min(kept->all.size() - begin, beside))) {
            const auto [w, b, s] = at.map;
            weights.add(w.view(), 1);
            to.add({at.y.value().view().columns(at.first, w.cols()), false}, w.cols(), static_cast<T>(s),
                   b.tape ? b.value().data() : nullptr);
          }
          bodies::product(*device, {x.view()}, {weights}, x.rows(), weights.cols(), x.cols(), to);
        }
        return;
      }
    Kept& k = *kept;
    k.maps.clear(), k.y.clear(), k.sums.clear();
    for (const auto& [map, y, first] : k.all) {
      k.maps.push_back({map.w.view(), map.b.tape ? map.b.view() : View<const T>{}, static_cast<T>(map.s)});
      k.y.push_back({y.value().view().columns(first, map.w.cols()), false});
    }
    const std::uint8_t* needed = x.tape->marks_of(x);  // for any of the results
    if (!sparse) return product<T>(x.view(), k.maps, k.y, k.room, needed);
    for (std::size_t m = 0; m < k.all.size(); ++m) k.sums.push_back({k.maps[m].w, k.y[m]});
    weighted_sum<T>(sparse->by_row, entries(), {}, {}, k.sums, k.room.numbers, needed, x.tape->training);
    for (std::size_t m = 0; m < k.all.size(); ++m) {
      const auto& [w, b, s] = k.maps[m];
      const View<T> y = k.y[m].to;
      if (!b && s == 1) continue;
      parallel_pieces(y.rows, row_grain(y.cols), [&](Offset begin, Offset end) {
        for (Offset i = begin; i < end; ++i)
          for (Offset c = 0; c < y.cols; ++c) y(i, c) = s * (b ? y(i, c) + b(0, c) : y(i, c));
      });
    }
  };
  auto backward = [=] {
    if constexpr (on_devices<T>)
      if (DeviceOps* device = x.tape->device) {
        std::vector<const Placed*> arrived;
        for (const Placed& at : kept->all)
          if (at.y.arrived()) arrived.push_back(&at);
        if (sparse) {
          for (const Placed* at : arrived) {
            const auto [w, b, s] = at->map;
            const View<const T> dy = at->y.grad().columns(at->first, w.cols());
            if (const Sink<T> db = b.tape ? b.sink() : Sink<T>{})
              device->aside([&] {
                bodies::sum_rows(*device, bodies::ColumnSum{dy, static_cast<T>(s), db}, dy.rows, dy.cols);
              });
            if (const Sink<T> dw = w.sink())
              device->weighted_sum({.rows = &sparse->by_column,
                                    .weights = entries().data(),
                                    .edge = &sparse->edge,
                                    .scale = static_cast<T>(s)},
                                   dy, dw, kept->room.numbers);
          }
          return;
        }
        Sink<T> dx;
        for (std::size_t begin = 0; begin < arrived.size(); begin += beside) {
          bodies::Side gradients, scaled, weights;
          bodies::IntoSide to;
          bool learned = false, biased = false;
          for (const Placed* at : std::span(arrived).subspan(begin, std::min(arrived.size() - begin, beside))) {
            const auto [w, b, s] = at->map;
            const T factor = static_cast<T>(s);
            const View<const T> dy = at->y.grad().columns(at->first, w.cols());
            const Sink<T> dw = w.sink(), db = b.tape ? b.sink() : Sink<T>{};
            gradients.add(dy, 1), scaled.add(dy, factor), weights.add(w.view(), 1);
            to.add(dw, w.cols(), factor, nullptr, db);
            learned = learned || dw, biased = biased || db;
          }
          if (learned || biased) {  // the sums of dy are the product with a row of ones
            bodies::Factor back{x.view(), true};
            if (biased) back.ones = to.last_row = x.cols();
            device->aside([&] {
              bodies::product(*device, back, {gradients}, x.cols() + biased, gradients.cols(), x.rows(), to);
            });
          }
          if (begin == 0) dx = x.sink();
          if (!dx) continue;
          bodies::product(*device, {scaled}, {weights, true}, x.rows(), x.cols(), scaled.cols(), dx);
          dx.add = true;
        }
        return;
      }
    Kept& k = *kept;
    const std::uint8_t* needed = x.tape->marks_of(x);
    k.maps.clear(), k.dy.clear(), k.dw.clear(), k.db.clear(), k.sums.clear();
    bool learned = false, biased = false;
    for (const auto& [map, y, first] : k.all) {
      if (!y.arrived()) continue;
      k.maps.push_back({map.w.view(), {}, static_cast<T>(map.s)});
      k.dy.push_back(y.grad().columns(first, map.w.cols()));
      k.dw.push_back(map.w.sink());
      k.db.push_back(map.b.tape ? map.b.sink() : Sink<T>{});
      learned = learned || k.dw.back() || k.db.back(), biased = biased || k.db.back();
    }
    if (sparse && learned) {
      // Scaled weights take a scaled gradient: by way of a table.
      Offset total = 0, first = 0;
      for (std::size_t m = 0; m < k.maps.size(); ++m) total += k.dy[m].cols;
      if (!plain) k.dw_scaled.resize(x.cols(), total);
      for (std::size_t m = 0; m < k.maps.size(); first += k.dy[m++].cols)
        if (k.dw[m])
          k.sums.push_back(
              {k.dy[m], plain ? k.dw[m] : Sink<T>{k.dw_scaled.view().columns(first, k.dy[m].cols), false}});
      transposed_product<T>(*sparse, entries(), k.sums, k.room.numbers, needed);
      std::size_t at = 0;
      for (std::size_t m = 0; m < k.maps.size(); ++m) {
        const T s = k.maps[m].s;
        auto put = [&](const Sink<T>& to, View<const T> from) {
          for (Offset i = 0; i < from.rows; ++i)
            for (Offset c = 0; c < from.cols; ++c) to.to(i, c) = (to.add ? to.to(i, c) : T(0)) + s * from(i, c);
        };
        if (k.dw[m] && !plain) put(k.dw[m], k.sums[at++].y.to);
        if (!k.db[m]) continue;
        k.sums_of_dy.resize(1, k.dy[m].cols);
        add_column_sums(k.dy[m], Sink<T>{k.sums_of_dy.view(), false}, k.room.numbers, needed);
        put(k.db[m], std::as_const(k.sums_of_dy).view());
      }
    } else if (learned) {
      product_of_transpose<T>(x.view(), k.dy, k.maps, k.dw, biased ? k.db : std::span<const Sink<T>>{}, k.room, needed);
    }
    if (Sink<T> dx = x.tape->sink_beside(x, x)) product_by_transpose<T>(k.dy, k.maps, dx, k.room, needed);
  };
  auto reach = [=](Reach<T>& reach) {
    for (const Placed& at : kept->all) reach.need_rows_of(x, at.y), reach.need(at.map.w);
  };
  x.tape->record(outputs, forward, backward, sparse ? "sparse linear" : "linear", reach);
  return outputs;
}

template <class T>
Var<T> add_bias(Var<T> x, Var<T> b) {
  expect("bias", b, 1, x.cols());
  Var<T> y = x.tape->result(x.rows(), x.cols(), {x, b});
  auto pieces = std::make_shared<Matrix<T>>();
  const Offset n = x.rows(), width = x.cols();
  x.tape->record(
      y,
      [=] {
        if constexpr (on_devices<T>)
          if (x.tape->device)
            return bodies::run(*x.tape->device,
                               bodies::Link{.kind = bodies::Link::Kind::bias,
                                            .a = x.value().data(),
                                            .b = b.value().data(),
                                            .to = y.value().data(),
                                            .cols = width},
                               n * width);
        const Matrix<T>& X = x.value();
        Matrix<T>& Y = y.value();
        const T* bias = b.value().data();
        parallel_pieces(n, row_grain(x.cols()), [&](Offset begin, Offset end) {
          for (Offset i = begin; i < end; ++i)
            for (Offset c = 0; c < width; ++c) Y(i, c) = X(i, c) + bias[c];
        });
      },
      [=] {
        View<const T> dY = y.grad();
        if constexpr (on_devices<T>)
          if (x.tape->device) {
            if (Sink<T> db = b.sink())
              x.tape->device->aside([&] {
                bodies::sum_rows(*x.tape->device, bodies::ColumnSum{dY, 1, db}, n, width);
              });
            if (y.tape->pass_gradient(y, x)) return;
            if (Sink<T> dx = x.sink()) add_to(x.tape, dx, dY);
            return;
          }
        add_column_sums(dY, b.sink(), *pieces, y.tape->marks_of(y));
        if (y.tape->pass_gradient(y, x)) return;
        if (Sink<T> dx = x.sink()) add_to(x.tape, dx, y.grad());
      },
      "bias", same_rows<T>(y, {x, b}));
  return y;
}

template <class T>
Var<T> add(Var<T> a, Var<T> b) {
  expect("add", b, a.rows(), a.cols());
  Var<T> y = a.tape->result(a.rows(), a.cols(), {a, b});
  a.tape->record(
      y,
      [=] {
        using V = WideVec<T>;
        const T *p = a.value().data(), *q = b.value().data();
        T* to = y.value().data();
        if constexpr (on_devices<T>)
          if (a.tape->device)
            return bodies::run(*a.tape->device, bodies::Link{.kind = bodies::Link::Kind::sum, .a = p, .b = q, .to = to},
                               y.value().size());
        each_vector<T>(y.value().size(), [&](Offset t) { (V::load(p + t) + V::load(q + t)).store(to + t); });
      },
      [=] {
        if (Sink<T> da = a.sink()) add_to(a.tape, da, y.grad());
        if (Sink<T> db = b.sink()) add_to(a.tape, db, y.grad());
      },
      "add", same_rows<T>(y, {a, b}));
  return y;
}

template <class T>
Var<T> scale(Var<T> x, double factor) {
  return elementwise(x, activations::Scale<T>{static_cast<T>(factor)});
}

template <class T>
Var<T> concat(const std::vector<Var<T>>& parts) {
  if (parts.empty()) fail("concat: nothing to put together");
  Offset rows = parts[0].rows(), cols = 0;
  for (Var<T> x : parts) {
    expect("concat", x, rows, x.cols());
    cols += x.cols();
  }
  Var<T> y = parts[0].tape->result(rows, cols, parts);
  parts[0].tape->record(
      y,
      [=] {
        Offset first = 0;
        for (Var<T> x : parts) {
          add_to(x.tape, Sink<T>{y.value().view().columns(first, x.cols()), false}, x.view());
          first += x.cols();
        }
      },
      [=] {
        Offset first = 0;
        for (Var<T> x : parts) {
          if (Sink<T> dx = x.sink()) add_to(x.tape, dx, y.grad().columns(first, x.cols()));
          first += x.cols();
        }
      },
      "concat", same_rows<T>(y, parts));
  return y;
}

template <class T>
Var<T> columns(const Columns<T>& x) {
  if (x.count == x.of.cols()) return x.of;
  Var<T> y = x.of.tape->result(x.rows(), x.count, {x.of});
  x.of.tape->record(
      y,
      [=] {
        add_to(y.tape, Sink<T>{y.value().view(), false}, x.view());
      },
      [=] {
        Sink<T> dx = x.of.sink();
        if (!dx) return;
        if (!dx.add) clear(y.tape, dx.to);
        add_to(y.tape, Sink<T>{dx.to.columns(x.first, x.count), true}, y.grad());
      },
      "columns", same_rows<T>(y, {x.of}));
  return y;
}

namespace {

template <class T>
Offset head_width(const char* operation, const Columns<T>& x, int heads) {
  if (heads < 1 || x.cols() % heads != 0)
    fail(std::string(operation) + ": " + std::to_string(x.cols()) + " channels do not divide into " +
         std::to_string(heads) + " heads");
  return x.cols() / heads;
}

// The sink of some columns of a value; the others get zeros where nothing has arrived.
template <class T>
Sink<T> sink_of(const Columns<T>& x) {
  Sink<T> whole = x.of.sink();
  if (!whole || x.count == x.of.cols()) return whole;
  if (!whole.add) clear(x.of.tape, whole.to);
  return {whole.to.columns(x.first, x.count), true};
}

// The vectors of one head, in order, and nothing beyond it.
template <class T>
void write(T* to, Offset width, auto vector_at) {
  for (Offset t = 0; t < width; t += 8)
    store_first(vector_at(t), static_cast<int>(std::min<Offset>(8, width - t)), to + t);
}

// run(width), a constant of the code where it is a usual one, so that a head's vectors stay in registers.
void with_width(Offset width, auto run) {
  if (width == 8) return run(std::integral_constant<Offset, 8>{});
  if (width == 16) return run(std::integral_constant<Offset, 16>{});
  run(width);
}

// An operation on each head's channels alone: forward(x, y, width), whose result is kept for that head of that row, and
// backward(kept, y, dy, width, put), which does not look at x again. Devices know the combinations of two steps.
template <bool centres, bool units, class T, class Forward, class Backward>
Var<T> each_head(const char* name, const Columns<T>& x, int heads, Forward forward, Backward backward) {
  const Offset width = head_width(name, x, heads), total = x.cols();
  Var<T> y = x.of.tape->result(x.rows(), total, {x.of});
  auto kept = std::make_shared<Matrix<T>>(x.of.tape->device);  // rows x heads
  x.of.tape->record(
      y,
      [=] {
        View<const T> X = x.view();
        const View<T> Y = y.value().view();
        kept->resize(X.rows, heads);
        if constexpr (on_devices<T>)
          if (y.tape->device)
            return bodies::run(*y.tape->device,
                               bodies::Prepare<centres, units>{X, heads, static_cast<int>(width), Y, kept->view()},
                               X.rows * heads);
        parallel_pieces(X.rows, row_grain(total), [&](Offset begin, Offset end) {
          with_width(width, [&](auto count) {
            for (Offset i = begin; i < end; ++i)
              for (int h = 0; h < heads; ++h)
                (*kept)(i, h) = forward(X.row(i) + h * count, Y.row(i) + h * count, count);
          });
        });
      },
      [=] {
        const View<const T> dY = y.grad(), Y = y.view();
        Sink<T> dx = sink_of(x);
        if (!dx) return;
        if constexpr (on_devices<T>)
          if (y.tape->device)
            return bodies::run(*y.tape->device,
                               bodies::PrepareBack<centres, units>{y.view(), dY, std::as_const(*kept).view(), heads,
                                                                   static_cast<int>(width), dx},
                               dY.rows * heads);
        parallel_pieces(dY.rows, row_grain(total), [&](Offset begin, Offset end) {
          with_width(width, [&](auto count) {
            for (Offset i = begin; i < end; ++i)
              for (int h = 0; h < heads; ++h) {
                const Offset c = h * count;
                backward((*kept)(i, h), Y.row(i) + c, dY.row(i) + c, count,
                         [=, to = dx.to.row(i) + c, add = dx.add](auto vector_at) {
                           write<T>(to, count, [=](Offset t) {
                             return add ? Vec<T, 8>::load(to + t) + vector_at(t) : vector_at(t);
                           });
                         });
              }
          });
        });
      },
      name);
  return y;
}

template <class T>
T sum_of(Offset width, auto vector_at) {
  Vec<T, 8> sum = T(0);
  Offset t = 0;
  for (; t + 8 <= width; t += 8) sum = sum + vector_at(t);
  if (t < width) sum = sum + keep_first(vector_at(t), static_cast<int>(width - t));
  return fold(sum);
}
template <class T>
T dot(const T* a, const T* b, Offset width) {
  return sum_of<T>(width, [=](Offset t) { return Vec<T, 8>::load(a + t) * Vec<T, 8>::load(b + t); });
}
template <class T>
T mean(const T* a, Offset width) {
  return sum_of<T>(width, [=](Offset t) { return Vec<T, 8>::load(a + t); }) / static_cast<T>(width);
}
template <class T>
T inverse_root(T square) {
  const T norm = std::sqrt(square);
  return norm > 0 ? T(1) / norm : T(0);
}
// x less its mean, and whether it is constant but for rounding, which is to become 0.
template <class T>
struct Centred {
  using V = Vec<T, 8>;
  const T* x;
  T middle, square;  // of what is left, summed
  bool constant;

  Centred(const T* x, Offset width) : x(x), middle(mean(x, width)) {
    square = sum_of<T>(width, [this](Offset t) { return (*this)(t) * (*this)(t); });
    const T least = 8 * std::numeric_limits<T>::epsilon() * std::abs(middle);
    constant = !(square > static_cast<T>(width) * least * least) && none_beyond(least, width);
    if (constant) square = 0;
  }
  bool none_beyond(T least, Offset width) const {
    for (Offset t = 0; t < width; ++t)
      if (!(std::abs(x[t] - middle) <= least)) return false;
    return true;
  }
  V operator()(Offset t) const { return V::load(x + t) - V(middle); }
};

}  // namespace

template <class T>
Var<T> unit(const Columns<T>& x, int heads) {
  return each_head<false, true>(
      "unit", x, heads,
      [](const T* from, T* to, Offset width) {
        const T scale = inverse_root(dot(from, from, width));
        write<T>(to, width, [=](Offset t) { return Vec<T, 8>::load(from + t) * Vec<T, 8>(scale); });
        return scale;
      },
      [](T scale, const T* y, const T* dy, Offset width, auto put) {
        const T along = dot(y, dy, width);
        put([=](Offset t) {
          return (Vec<T, 8>::load(dy + t) - Vec<T, 8>::load(y + t) * Vec<T, 8>(along)) * Vec<T, 8>(scale);
        });
      });
}

template <class T>
Var<T> centre(const Columns<T>& x, int heads) {
  if (head_width("centre", x, heads) < 2) fail("centre: one channel a head less its mean is always 0; it takes 2");
  return each_head<true, false>(
      "centre", x, heads,
      [](const T* from, T* to, Offset width) {
        const Centred<T> rest(from, width);
        write<T>(to, width, [&](Offset t) { return rest(t) * Vec<T, 8>(rest.constant ? T(0) : T(1)); });
        return T(1);
      },
      [](T, const T*, const T* dy, Offset width, auto put) {
        const T middle = mean(dy, width);
        put([=](Offset t) { return Vec<T, 8>::load(dy + t) - Vec<T, 8>(middle); });
      });
}

// One pass over x, where the two after each other take two.
template <class T>
Var<T> centre_unit(const Columns<T>& x, int heads) {
  if (head_width("centre", x, heads) < 2) fail("centre: one channel a head less its mean is always 0; it takes 2");
  return each_head<true, true>(
      "centre and unit", x, heads,
      [](const T* from, T* to, Offset width) {
        const Centred<T> rest(from, width);
        const T scale = inverse_root(rest.square);
        write<T>(to, width, [&](Offset t) { return rest(t) * Vec<T, 8>(scale); });
        return scale;
      },
      [](T scale, const T* y, const T* dy, Offset width, auto put) {
        // As sum_t y_t = 0, the mean of dy - y <y, dy> is that of dy.
        const T middle = mean(dy, width), along = dot(y, dy, width);
        put([=](Offset t) {
          return (Vec<T, 8>::load(dy + t) - Vec<T, 8>(middle) - Vec<T, 8>::load(y + t) * Vec<T, 8>(along)) *
                 Vec<T, 8>(scale);
        });
      });
}

template <class T>
Var<T> linear_heads(const Columns<T>& x, Var<T> w, int heads) {
  const Offset width = head_width("linear heads", x, heads);
  expect("the weight of linear heads", w, width, x.cols());
  Var<T> y = x.of.tape->result(x.rows(), x.cols(), {x.of, w});
  struct Kept {  // a head each
    DenseRoom<T> room;
    Matrix<T> back;  // the weight, each head's transposed
    std::vector<View<const T>> from, dy;
    std::vector<DenseMap<T>> maps;
    std::vector<Sink<T>> to;
  };
  auto kept = std::make_shared<Kept>();
  auto in_heads = [=](auto& list, auto make) {
    list.clear();
    for (Offset c = 0; c < heads * width; c += width) list.push_back(make(c));
  };
  auto multiply = [=](View<const T> from, View<const T> by, const Sink<T>& to) {
    in_heads(kept->from, [&](Offset c) { return from.columns(c, width); });
    in_heads(kept->maps, [&](Offset c) { return DenseMap<T>{by.columns(c, width), {}, T(1)}; });
    in_heads(kept->to, [&](Offset c) { return Sink<T>{to.to.columns(c, width), to.add}; });
    product<T>(kept->from, kept->maps, kept->to, kept->room);
  };
  x.of.tape->record(
      y,
      [=] {
        if constexpr (on_devices<T>)
          if (DeviceOps* device = w.tape->device) {
            for (Offset c = 0; c < heads * width; c += width)
              bodies::product(*device, {x.view().columns(c, width)}, {w.view().columns(c, width)}, x.rows(), width,
                              width, Sink<T>{y.value().view().columns(c, width), false});
            return;
          }
        multiply(x.view(), w.view(), Sink<T>{y.value().view(), false});
      },
      [=] {
        const Sink<T> dw = w.sink(), dx = sink_of(x);
        if constexpr (on_devices<T>)
          if (DeviceOps* device = w.tape->device) {
            for (Offset c = 0; c < heads * width; c += width) {
              const View<const T> dy = y.grad().columns(c, width);
              if (dw)
                bodies::product(*device, {x.view().columns(c, width), true}, {dy}, width, width, x.rows(),
                                Sink<T>{dw.to.columns(c, width), dw.add});
              if (dx)
                bodies::product(*device, {dy}, {w.view().columns(c, width), true}, x.rows(), width, width,
                                Sink<T>{dx.to.columns(c, width), dx.add});
            }
            return;
          }
        if (dw) {
          in_heads(kept->dy, [&](Offset c) { return y.grad().columns(c, width); });
          in_heads(kept->from, [&](Offset c) { return x.view().columns(c, width); });
          in_heads(kept->maps, [&](Offset c) { return DenseMap<T>{w.view().columns(c, width), {}, T(1)}; });
          in_heads(kept->to, [&](Offset c) { return Sink<T>{dw.to.columns(c, width), dw.add}; });
          product_of_transpose<T>(kept->from, kept->dy, kept->maps, kept->to, {}, kept->room);
        }
        if (!dx) return;
        const View<const T> W = w.view();
        kept->back.resize(width, W.cols);
        for (Offset c = 0; c < W.cols; ++c)
          for (Offset t = 0; t < width; ++t) kept->back(t, c) = W(c % width, c - c % width + t);
        multiply(y.grad(), std::as_const(kept->back).view(), dx);
      },
      "linear heads");
  return y;
}

template <class T>
Var<T> permute(Var<T> x, std::vector<Id> order) {
  if (static_cast<Offset>(order.size()) != x.rows())
    fail("permute: an order of " + std::to_string(order.size()) + " rows for " + shape(x.rows(), x.cols()));
  std::vector<bool> seen(order.size());
  for (Id i : order) {
    if (i < 0 || i >= x.rows() || seen[i]) fail("permute: row " + std::to_string(i) + " is named twice or not there");
    seen[i] = true;
  }
  if (const Sparse* sparse = x.sparse()) {
    auto kept = std::make_shared<const ReorderedSparse>(reordered(*sparse, order));
    Var<T> y = x.tape->sparse_result(x);
    x.tape->node(y.id).sparse = &kept->x;
    auto entry = std::make_shared<Matrix<Offset>>();  // on the device
    x.tape->record(
        y,
        [=] {
          if constexpr (on_devices<T>)
            if (DeviceOps* device = x.tape->device) {
              if (entry->empty()) *entry = list_on<Offset>(*device, kept->entry);
              return bodies::run(*device, bodies::PickEntries{entry->data(), x.value().data(), y.value().data()},
                                 entry->size());
            }
          for (std::size_t t = 0; t < kept->entry.size(); ++t) y.value().data()[t] = x.value().data()[kept->entry[t]];
        },
        nullptr, "permute");
    return y;
  }
  auto rows = std::make_shared<const Selection>(std::move(order), static_cast<Id>(x.rows()));
  return gather<T>(x, [rows]() -> const Selection& { return *rows; });
}

template <class T>
Var<T> mean_heads(Var<T> x, int heads) {
  if (heads < 1 || x.cols() % heads != 0)
    fail("mean over heads: " + std::to_string(x.cols()) + " channels do not divide into " + std::to_string(heads) +
         " heads");
  Offset width = x.cols() / heads;
  Var<T> y = x.tape->result(x.rows(), width, {x});
  const T part = T(1) / static_cast<T>(heads);
  x.tape->record(
      y,
      [=] {
        const Matrix<T>& X = x.value();
        Matrix<T>& Y = y.value();
        if constexpr (on_devices<T>)
          if (x.tape->device)
            return bodies::run(*x.tape->device, bodies::MeanHeads{x.view(), heads, part, Y.view()}, Y.size());
        each_row(y, x.cols(), [&](Offset i) {
          for (Offset c = 0; c < width; ++c) {
            T sum = 0;
            for (int h = 0; h < heads; ++h) sum += X(i, h * width + c);
            Y(i, c) = sum * part;
          }
        });
      },
      [=] {
        View<const T> dY = y.grad();
        Sink<T> dx = x.tape->sink_beside(x, y);
        if (!dx) return;
        if constexpr (on_devices<T>)
          if (x.tape->device)
            return bodies::run(*x.tape->device, bodies::MeanHeadsBack{dY, part, dx}, x.rows() * x.cols());
        each_row(y, x.cols(), [&](Offset i) {
          for (int h = 0; h < heads; ++h) {
            T* to = dx.to.row(i) + h * width;
            for (Offset c = 0; c < width; ++c) to[c] = (dx.add ? to[c] : T(0)) + dY(i, c) * part;
          }
        });
      },
      "mean heads", same_rows<T>(y, {x}));
  return y;
}

// use.template operator()<W>() for heads of so many channels, W of them or, where W is 0, any number.
template <class Use>
static void with_width(int width, Use use) {
  if (width == 8)
    use.template operator()<8>();
  else if (width == 16)
    use.template operator()<16>();
  else
    use.template operator()<0>();
}

template <class T>
std::span<const T* const> data_of(const std::vector<Var<T>>& values, std::vector<const T*>& room) {
  room.clear();
  for (Var<T> x : values) room.push_back(x.value().data());
  return room;
}

// All vectors meet a row while it is at hand.
template <class T>
Var<T> contract(Var<T> x, const std::vector<Var<T>>& a, int heads) {
  for (Var<T> vector : a) expect("contract", vector, 1, x.cols());
  if (heads < 1 || x.cols() % heads != 0)
    fail("contract: " + std::to_string(x.cols()) + " channels do not divide into " + std::to_string(heads) + " heads");
  using V = Vec<T, 8>;
  const Offset n = x.rows(), total = x.cols();
  const int width = static_cast<int>(total / heads), count = static_cast<int>(a.size());
  std::vector<Var<T>> inputs = a;
  inputs.push_back(x);
  Var<T> y = x.tape->result(n, count * heads, inputs);
  auto pieces = std::make_shared<Matrix<T>>(), sums = std::make_shared<Matrix<T>>();
  auto room = std::make_shared<std::vector<const T*>>();
  x.tape->record(
      y,
      [=] {
        if constexpr (on_devices<T>)
          if (DeviceOps* device = x.tape->device) {
            for (int first = 0; first < count; first += bodies::kVectors) {
              bodies::Contract body{x.view(),
                                    {},
                                    heads,
                                    width,
                                    std::min(bodies::kVectors, count - first),
                                    y.value().view().columns(Offset{first} * heads, (count - first) * heads)};
              for (int r = 0; r < body.count; ++r) body.a[r] = a[first + r].value().data();
              bodies::run(*device, body, n * heads);
            }
            return;
          }
        const View<const T> X = x.view();
        const View<T> Y = y.value().view();
        const std::span<const T* const> vectors = data_of(a, *room);
        const std::uint8_t* needed = x.tape->marks_of(y);
        auto run = [&]<int W>(Offset begin, Offset end) {
          for (Offset i = begin; i < end; ++i) {
            if (needed && !needed[i]) continue;
            for (int r = 0; r < count; ++r) {
              const T *row = X.row(i), *weight = vectors[r];
              T* to = Y.row(i) + r * heads;
              auto sum = [=](int h) {
                V total = T(0);
                stages::for_each_vector<W>(width, [&](int c, int tail) {
                  V product = V::load(row + h * width + c) * V::load(weight + h * width + c);
                  total = total + (tail < 8 ? keep_first(product, tail) : product);
                });
                return total;
              };
              int h = 0;
              for (; h + 4 <= heads; h += 4) fold_four(sum(h), sum(h + 1), sum(h + 2), sum(h + 3)).store(to + h);
              for (; h < heads; ++h) to[h] = fold(sum(h));
            }
          }
        };
        parallel_pieces(n, row_grain(x.cols()), [&](Offset begin, Offset end) {
          with_width(width, [&]<int W>() { run.template operator()<W>(begin, end); });
        });
      },
      [=] {
        View<const T> dY = y.grad();
        if constexpr (on_devices<T>)
          if (DeviceOps* device = x.tape->device) {
            Sink<T> dx;
            for (int first = 0; first < count; first += bodies::kVectors) {
              const int some = std::min(bodies::kVectors, count - first);
              const View<const T> dy = dY.columns(Offset{first} * heads, some * heads);
              bodies::ContractSum sum{dy, x.view(), heads, width, total};
              bodies::ContractBack back{.dy = dy, .width = width, .count = some, .heads = heads};
              bool learned = false;
              for (int r = 0; r < some; ++r) {
                const Sink<T> da = a[first + r].sink();
                sum.da[r] = da, learned = learned || da;
                back.a[r] = a[first + r].value().data();
              }
              if (first == 0) dx = x.sink();
              if (dx)  // at once, in a chain with what came before
                bodies::run(*device,
                            bodies::Link{.kind = bodies::Link::Kind::contract_back,
                                         .to = dx.to.data,
                                         .add = dx.add,
                                         .cols = total,
                                         .contract = back},
                            n * total);
              dx.add = true;
              if (learned) device->aside([&] { bodies::sum_rows(*device, sum, n, some * total); });
            }
            return;
          }
        const View<const T> X = x.view();
        const std::span<const T* const> vectors = data_of(a, *room);
        const std::uint8_t* needed = x.tape->marks_of(y);
        bool learned = false;
        for (Var<T> vector : a) learned = learned || vector.needs_grad();
        if (learned) {
          sums->resize(1, count * total);
          sums->fill(T(0));
          ordered_sums(
              n, row_grain(x.cols()), count * total, sums->data(), *pieces, [&](Offset begin, Offset end, T* acc) {
                with_width(width, [&]<int W>() {
                  for (Offset i = begin; i < end; ++i) {
                    if (needed && !needed[i]) continue;
                    const T *d = dY.row(i), *row = X.row(i);
                    for (int r = 0; r < count; ++r)
                      for (int h = 0; h < heads; ++h)
                        stages::for_each_vector<W>(width, [&](int c, int tail) {
                          T* to = acc + r * total + h * width + c;
                          store_first(V::load(to) + V(d[r * heads + h]) * V::load(row + h * width + c), tail, to);
                        });
                  }
                });
              });
          for (int r = 0; r < count; ++r)
            if (Sink<T> da = a[r].sink()) add_to(x.tape, da, std::as_const(*sums).view().columns(r * total, total));
        }
        if (Sink<T> dx = x.tape->sink_beside(x, y))
          parallel_pieces(n, row_grain(x.cols()), [&](Offset begin, Offset end) {
            with_width(width, [&]<int W>() {
              for (Offset i = begin; i < end; ++i) {
                if (needed && !needed[i]) continue;
                const T* d = dY.row(i);
                for (int h = 0; h < heads; ++h)
                  stages::for_each_vector<W>(width, [&](int c, int tail) {
                    T* to = dx.to.row(i) + h * width + c;
                    V sum = dx.add ? V::load(to) : V(T(0));
                    for (int r = 0; r < count; ++r)
                      sum = sum + V(d[r * heads + h]) * V::load(vectors[r] + h * width + c);
                    store_first(sum, tail, to);
                  });
              }
            });
          });
      },
      "contract", same_rows<T>(y, inputs));
  return y;
}

template <class T>
Var<T> dropout(Var<T> x, double rate) {
  if (!(rate >= 0 && rate < 1)) fail("dropout must be at least 0 and below 1, not " + std::to_string(rate));
  if (rate == 0) return x;
  Tape<T>* tape = x.tape;
  Var<T> y = x.sparse() ? tape->sparse_result(x) : tape->result(x.rows(), x.cols(), {x});
  const std::uint64_t stream = tape->next_stream();
  // One row key per 1024 elements, then 32 bits for each: as in attention, written so that it vectorises.
  auto apply = [=](const T* from, T* to, bool add) {
    const Offset n = x.value().size();
    Dropout drop{static_cast<float>(rate), tape->dropout_key(stream)};
    const std::uint32_t threshold = drop.threshold();
    const T factor = drop.scale();
    if constexpr (on_devices<T>)
      if (tape->device)
        return bodies::run(*tape->device,
                           bodies::Link{.kind = bodies::Link::Kind::drop,
                                        .a = from,
                                        .to = to,
                                        .add = add,
                                        .factor = factor,
                                        .threshold = threshold,
                                        .key = tape->keys_at() + stream},
                           n);
    auto elements = [=](Offset begin, Offset end) {  // of one such block
      const std::uint64_t key = drop.row_key(static_cast<std::uint64_t>(begin) / 1024);
      using V = WideVec<T>;
      const bool adds = add;  // here, lest each store seem to change what is captured
      const T *source = from, scale = factor;
      T* const target = to;
      using W = typename RawVec<std::uint32_t, V::lanes>::type;
      W low{}, high{}, column{};
      low += static_cast<std::uint32_t>(key), high += static_cast<std::uint32_t>(key >> 32);
      for (int l = 0; l < V::lanes; ++l) column[l] = static_cast<std::uint32_t>(begin % 1024) + l;
      for (Offset t = begin; t < end; t += V::lanes, column += V::lanes) {
        V value = V::load(source + t) * drop_factors<T>(low, high, column, W{}, threshold, scale);
        if (adds) value = value + V::load(target + t);
        value.store(target + t);
      }
    };
    if (const Focus::Rows* some = tape->focus_of(y)) return each_run<T>(*some, elements);
    parallel_pieces(n, kElementGrain, [&](Offset begin, Offset end) {
      for (Offset block = begin; block < end; block += 1024) elements(block, std::min<Offset>(block + 1024, end));
    });
  };
  tape->record(
      y,
      [=] {  // outside training y is x itself
        TapeNode<T>& node = tape->node(y.id);
        node.value = tape->training ? &node.own_value : &x.value();
        if (tape->training) apply(x.value().data(), y.value().data(), false);
      },
      [=] {
        Sink<T> dx = tape->training ? tape->sink_beside(x, y) : x.sink();
        if (!dx) return;
        if (tape->training)
          apply(y.grad().data, dx.to.data, dx.add);
        else
          add_to(tape, dx, y.grad());
      },
      "dropout", same_rows<T>(y, {x}));
  return y;
}

const std::vector<std::string>& activation_names() {
  static const std::vector<std::string> names{"identity", "relu", "elu", "leaky_relu", "gelu", "tanh", "sigmoid"};
  return names;
}

Activation activation_named(const std::string& name) {
  return static_cast<Activation>(choose("activation", name, activation_names()));
}

template <class T>
Var<T> activate(Var<T> x, Activation f) {
  switch (f) {
    case Activation::identity:
      return x;
    case Activation::relu:
      return elementwise(x, activations::Relu{});
    case Activation::elu:
      return elementwise(x, activations::Elu{});
    case Activation::leaky_relu:
      return elementwise(x, activations::LeakyRelu{});
    case Activation::gelu:
      return elementwise(x, activations::Gelu{});
    case Activation::tanh:
      return elementwise(x, activations::Tanh{});
    case Activation::sigmoid:
      return elementwise(x, activations::Sigmoid{});
  }
  return x;
}

template <class T>
Var<T> layer_norm(Var<T> x, Var<T> gain, Var<T> shift, double epsilon) {
  expect("layer norm's gain", gain, 1, x.cols());
  expect("layer norm's shift", shift, 1, x.cols());
  const Offset n = x.rows(), width = x.cols();
  Var<T> y = x.tape->result(n, width, {x, gain, shift});
  auto pieces = std::make_shared<Matrix<T>>(), both = std::make_shared<Matrix<T>>();
  auto kept = std::make_shared<Matrix<T>>(x.tape->device);  // on a device: the moments of rows
  auto moments = [=](Offset i, T& mean, T& inverse) {
    const T* row = x.value().row(i);
    T sum = 0, square = 0;
    for (Offset c = 0; c < width; ++c) sum += row[c];
    mean = sum / static_cast<T>(width);
    for (Offset c = 0; c < width; ++c) square += (row[c] - mean) * (row[c] - mean);
    inverse = T(1) / std::sqrt(square / static_cast<T>(width) + static_cast<T>(epsilon));
  };
  x.tape->record(
      y,
      [=] {
        const Matrix<T>& X = x.value();
        Matrix<T>& Y = y.value();
        const Matrix<T>& G = gain.value();
        const Matrix<T>& B = shift.value();
        if constexpr (on_devices<T>)
          if (x.tape->device) {
            kept->resize(n, 2);
            return bodies::run(
                *x.tape->device,
                bodies::LayerNorm{x.view(), gain.view(), shift.view(), static_cast<T>(epsilon), Y.view(), kept->view()},
                bodies::LayerNorm::blocks(n));
          }
        parallel_pieces(n, row_grain(x.cols()), [&](Offset begin, Offset end) {
          for (Offset i = begin; i < end; ++i) {
            T mean, inverse;
            moments(i, mean, inverse);
            for (Offset c = 0; c < width; ++c) Y(i, c) = (X(i, c) - mean) * inverse * G(0, c) + B(0, c);
          }
        });
      },
      [=] {
        const Matrix<T>& X = x.value();
        View<const T> dY = y.grad();
        const Matrix<T>& G = gain.value();
        Sink<T> dgain = gain.sink(), dshift = shift.sink(), dx = x.sink();
        if constexpr (on_devices<T>)
          if (DeviceOps* device = x.tape->device) {
            const View<const T> known = std::as_const(*kept).view();
            if (dx)
              bodies::run(*device, bodies::LayerNormBack{x.view(), gain.view(), dY, known, dx},
                          bodies::LayerNormBack::blocks(n));
            if (dgain || dshift)
              bodies::sum_rows(*device, bodies::LayerNormSum{x.view(), dY, known, dgain, dshift}, n, 2 * width);
            return;
          }
        Matrix<T>& sums = *both;
        sums.resize(1, 2 * width);
        sums.fill(T(0));
        ordered_sums(n, row_grain(x.cols()), 2 * width, sums.data(), *pieces, [&](Offset begin, Offset end, T* acc) {
          for (Offset i = begin; i < end; ++i) {
            T mean, inverse, along = 0, total = 0;  // along: <g, xhat>, total: sum of g, with g = dy * gain
            moments(i, mean, inverse);
            for (Offset c = 0; c < width; ++c) {
              T hat = (X(i, c) - mean) * inverse, dy = dY(i, c);
              acc[c] += dy * hat;
              acc[width + c] += dy;
              along += dy * G(0, c) * hat;
              total += dy * G(0, c);
            }
            if (!dx) continue;
            for (Offset c = 0; c < width; ++c) {
              T hat = (X(i, c) - mean) * inverse;
              T d = inverse * (dY(i, c) * G(0, c) - (total + hat * along) / static_cast<T>(width));
              dx.to(i, c) = dx.add ? dx.to(i, c) + d : d;
            }
          }
        });
        if (dgain) add_to(x.tape, dgain, std::as_const(sums).view().columns(0, width));
        if (dshift) add_to(x.tape, dshift, std::as_const(sums).view().columns(width, width));
      },
      "layer norm", same_rows<T>(y, {x, gain, shift}));
  return y;
}

template <class T>
Var<T> batch_norm(Var<T> x, Var<T> gain, Var<T> shift, Parameter<T>& mean, Parameter<T>& variance, double epsilon) {
  const Offset n = x.rows(), width = x.cols();
  for (Var<T> v : {gain, shift}) expect("batch norm", v, 1, width);
  for (Parameter<T>* p : {&mean, &variance})
    if (p->value.rows() != 1 || p->value.cols() != width)
      fail("batch norm: running moments must be 1 x " + std::to_string(width));
  Var<T> y = x.tape->result(n, width, {x, gain, shift});
  struct Kept {
    Matrix<T> pieces, sums, mean, inverse;  // sums: 1 x 2*width
  };
  Tape<T>* tape = x.tape;
  auto on = [&] { return Matrix<T>(tape->device); };
  auto kept = std::make_shared<Kept>(Kept{on(), on(), on(), on()});
  Parameter<T>*running_mean = &mean, *running_variance = &variance;
  mean.value.move_to(tape->device), variance.value.move_to(tape->device);
  tape->record(
      y,
      [=] {
        const Matrix<T>& X = x.value();
        Matrix<T>& Y = y.value();
        const Matrix<T>& G = gain.value();
        const Matrix<T>& B = shift.value();
        Kept& k = *kept;
        k.mean.resize(1, width), k.inverse.resize(1, width), k.sums.resize(1, 2 * width);
        if constexpr (on_devices<T>)
          if (DeviceOps* device = tape->device) {
            const View<T> mean = k.mean.view(), inverse = k.inverse.view();
            const View<T> runs_mean = running_mean->value.view(), runs_variance = running_variance->value.view();
            const T small = static_cast<T>(epsilon);
            if (tape->training && n > 1) {
              bodies::sum_rows(*device, bodies::MeanSum{x.view(), mean}, n, width);
              bodies::sum_rows(*device, bodies::VarianceSum{x.view(), mean, small, inverse, runs_mean, runs_variance},
                               n, width);
            } else {
              bodies::run(*device, bodies::MomentsAtRest{runs_mean, runs_variance, small, mean, inverse}, width);
            }
            return bodies::run(*device, bodies::BatchNorm{x.view(), gain.view(), shift.view(), mean, inverse, Y.view()},
                               n * width);
          }
        if (tape->training && n > 1) {
          k.sums.fill(T(0));
          ordered_sums(n, row_grain(x.cols()), width, k.sums.data(), k.pieces, [&](Offset begin, Offset end, T* acc) {
            for (Offset i = begin; i < end; ++i)
              for (Offset c = 0; c < width; ++c) acc[c] += X(i, c);
          });
          for (Offset c = 0; c < width; ++c) k.mean(0, c) = k.sums(0, c) / static_cast<T>(n);
          ordered_sums(n, row_grain(x.cols()), width, k.sums.data() + width, k.pieces,
                       [&](Offset begin, Offset end, T* acc) {
                         for (Offset i = begin; i < end; ++i)
                           for (Offset c = 0; c < width; ++c) {
                             T d = X(i, c) - k.mean(0, c);
                             acc[c] += d * d;
                           }
                       });
          for (Offset c = 0; c < width; ++c) {
            T square = k.sums(0, width + c);
            k.inverse(0, c) = T(1) / std::sqrt(square / static_cast<T>(n) + static_cast<T>(epsilon));
            T& m = running_mean->value(0, c);
            T& v = running_variance->value(0, c);
            m += T(0.1) * (k.mean(0, c) - m);
            v += T(0.1) * (square / static_cast<T>(n - 1) - v);
          }
        } else {
          for (Offset c = 0; c < width; ++c) {
            k.mean(0, c) = running_mean->value(0, c);
            k.inverse(0, c) = T(1) / std::sqrt(running_variance->value(0, c) + static_cast<T>(epsilon));
          }
        }
        parallel_pieces(n, row_grain(x.cols()), [&](Offset begin, Offset end) {
          for (Offset i = begin; i < end; ++i)
            for (Offset c = 0; c < width; ++c) Y(i, c) = (X(i, c) - k.mean(0, c)) * k.inverse(0, c) * G(0, c) + B(0, c);
        });
      },
      [=] {
        const Matrix<T>& X = x.value();
        View<const T> dY = y.grad();
        const Matrix<T>& G = gain.value();
        Kept& k = *kept;
        Sink<T> dgain = gain.sink(), dshift = shift.sink(), dx = x.sink();
        if constexpr (on_devices<T>)
          if (DeviceOps* device = tape->device) {
            const View<T> mean = k.mean.view(), inverse = k.inverse.view(), sums = k.sums.view();
            bodies::sum_rows(*device, bodies::BatchNormSum{x.view(), dY, mean, inverse, sums, dgain, dshift}, n,
                             2 * width);
            if (dx)
              bodies::run(
                  *device,
                  bodies::BatchNormBack{x.view(), gain.view(), dY, mean, inverse, sums, tape->training && n > 1, dx},
                  n * width);
            return;
          }
        k.sums.fill(T(0));  // <dy, xhat> and the sum of dy, per channel
        ordered_sums(n, row_grain(x.cols()), 2 * width, k.sums.data(), k.pieces, [&](Offset begin, Offset end, T* acc) {
          for (Offset i = begin; i < end; ++i)
            for (Offset c = 0; c < width; ++c) {
              acc[c] += dY(i, c) * (X(i, c) - k.mean(0, c)) * k.inverse(0, c);
              acc[width + c] += dY(i, c);
            }
        });
        View<const T> sums = std::as_const(k.sums).view();
        if (dgain) add_to(tape, dgain, sums.columns(0, width));
        if (dshift) add_to(tape, dshift, sums.columns(width, width));
        if (!dx) return;
        const bool batch = tape->training && n > 1;
        parallel_pieces(n, row_grain(x.cols()), [&](Offset begin, Offset end) {
          for (Offset i = begin; i < end; ++i)
            for (Offset c = 0; c < width; ++c) {
              T g = dY(i, c);
              if (batch) {
                T hat = (X(i, c) - k.mean(0, c)) * k.inverse(0, c);
                g -= (k.sums(0, width + c) + hat * k.sums(0, c)) / static_cast<T>(n);
              }
              g *= G(0, c) * k.inverse(0, c);
              dx.to(i, c) = dx.add ? dx.to(i, c) + g : g;
            }
        });
      },
      "batch norm");
  return y;
}

template <class T>
Var<T> propagate(Var<T> x, std::shared_ptr<const Pattern> pattern, std::vector<T> weights, std::vector<T> scale) {
  if (pattern->keys() != x.rows())
    fail("propagate: the mask has " + std::to_string(pattern->keys()) + " keys, the values " +
         std::to_string(x.rows()) + " rows");
  if (!weights.empty() && !pattern->is_listed()) fail("propagate: weights need a mask that is a list");
  if (!weights.empty() && static_cast<Offset>(weights.size()) != pattern->edges())
    fail("propagate: " + std::to_string(weights.size()) + " weights for " + std::to_string(pattern->edges()) +
         " edges");
  if (!scale.empty() && static_cast<Offset>(scale.size()) != pattern->queries())
    fail("propagate: " + std::to_string(scale.size()) + " scales for " + std::to_string(pattern->queries()) +
         " queries");
  Var<T> y = x.tape->result(pattern->queries(), x.cols(), {x});
  struct Kept {
    std::vector<T> weights, scale;
    Matrix<T> parts, scaled;
    Matrix<T> weights_there, scale_there;  // on the device
  };
  auto kept = std::make_shared<Kept>(Kept{std::move(weights), std::move(scale), {}, {}, {}, {}});
  if constexpr (on_devices<T>)
    if (DeviceOps* device = x.tape->device) {
      if (!pattern->is_listed())
        fail("'propagate' under a mask that is no list has no kernel for the GPU; train with --device cpu");
      kept->scaled = Matrix<T>(device);
      kept->weights_there = list_on<T>(*device, kept->weights);
      kept->scale_there = list_on<T>(*device, kept->scale);
    }
  x.tape->record(
      y,
      [=] {
        if constexpr (on_devices<T>)
          if (DeviceOps* device = x.tape->device)
            return device->weighted_sum({.rows = &pattern->by_query,
                                         .weights = kept->weights_there.data(),
                                         .row_scale = kept->scale_there.data()},
                                        x.view(), Sink<T>{y.value().view(), false}, kept->parts);
        weighted_sum<T>(pattern->by_query, kept->weights, {}, kept->scale, x.view(), {y.value().view(), false},
                        kept->parts);
      },
      [=] {
        Sink<T> dx = x.sink();
        if (!dx) return;
        View<const T> dy = y.grad();
        if constexpr (on_devices<T>)
          if (DeviceOps* device = x.tape->device) {
            if (!kept->scale.empty()) {
              kept->scaled.resize(dy.rows, dy.cols);
              bodies::run(*device, bodies::ScaleRows{dy, kept->scale_there.data(), kept->scaled.view()},
                          dy.rows * dy.cols);
              dy = std::as_const(kept->scaled).view();
            }
            return device->weighted_sum({.rows = &pattern->by_key,
                                         .weights = kept->weights_there.data(),
                                         .edge = kept->weights.empty() ? nullptr : &pattern->edge_of_entry()},
                                        dy, dx, kept->parts);
          }
        if (!kept->scale.empty()) {
          kept->scaled.resize(dy.rows, dy.cols);
          parallel_pieces(dy.rows, row_grain(dy.cols), [&](Offset begin, Offset end) {
            for (Offset i = begin; i < end; ++i)
              for (Offset c = 0; c < dy.cols; ++c) kept->scaled(i, c) = dy(i, c) * kept->scale[i];
          });
          dy = std::as_const(kept->scaled).view();
        }
        std::span<const Offset> edge;
        if (!kept->weights.empty()) edge = pattern->edge_of_entry();
        weighted_sum<T>(pattern->by_key, kept->weights, edge, {}, dy, dx, kept->parts);
      },
      "propagate");
  return y;
}

namespace {

constexpr Offset kPickGrain = 64;

template <class T>
void copy_row(const T* from, Offset cols, T* to, bool adds) {
  if (!adds) {
    std::copy_n(from, cols, to);
    return;
  }
  for (Offset c = 0; c < cols; ++c) to[c] += from[c];
}

// to_t (+)= from_rows[t]
template <class T>
void pick(const Selection& rows, View<const T> from, const Sink<T>& to) {
  const Id* ids = rows.ids.data();
  parallel_pieces(to.to.rows, kPickGrain, [&](Offset begin, Offset end) {
    for (Offset t = begin; t < end; ++t) {
      if (t + kAhead < to.to.rows) prefetch_row(from, ids[t + kAhead]);
      copy_row(from.row(ids[t]), from.cols, to.to.row(t), to.add);
    }
  });
}
// to_i (+)= sum of the from_t with rows[t] = i
template <class T>
void put_back(const Selection& rows, View<const T> from, const Sink<T>& to) {
  const Csr& places = rows.places;
  parallel_pieces(to.to.rows, kPickGrain, [&](Offset begin, Offset end) {
    for (Offset i = begin; i < end; ++i) {
      T* into = to.to.row(i);
      const Offset first = places.offsets[i], last = places.offsets[i + 1];
      if (first == last && !to.add) std::fill_n(into, from.cols, T(0));
      for (Offset e = first; e < last; ++e) {
        if (e + kAhead < places.edges()) prefetch_row(from, places.ids[e + kAhead]);
        copy_row(from.row(places.ids[e]), from.cols, into, to.add || e > first);
      }
    }
  });
}

}  // namespace

namespace {

// A selection on the device, brought over when it is another one than before, or may be.
struct SelectionThere {
  const Selection* of = nullptr;
  Matrix<Id> ids, positions;
  Matrix<Offset> offsets;

  void follow(DeviceOps& device, const Selection& now, bool repeats) {
    if (of == &now && repeats) return;
    of = &now;
    ids = list_on<Id>(device, now.ids);
    positions = list_on<Id>(device, now.places.ids);
    offsets = list_on<Offset>(device, now.places.offsets);
  }
  void pick(DeviceOps& device, View<const float> from, const Sink<float>& to) const {
    bodies::run(device, bodies::Pick{ids.data(), from, to}, to.to.rows * from.cols);
  }
  void put_back(DeviceOps& device, View<const float> from, const Sink<float>& to) const {
    bodies::run(device, bodies::PutBack{offsets.data(), positions.data(), from, to}, to.to.rows * from.cols);
  }
};

}  // namespace

template <class T>
Var<T> gather(Columns<T> x, std::function<const Selection&()> rows) {
  if (rows().places.rows != x.rows())
    fail("gather: x has " + std::to_string(x.rows()) + " rows, the selection is of " +
         std::to_string(rows().places.rows));
  Var<T> y = x.of.tape->result(static_cast<Offset>(rows().ids.size()), x.count, {x.of});
  auto there = std::make_shared<SelectionThere>();
  x.of.tape->record(
      y,
      [=] {
        TapeNode<T>& node = y.tape->node(y.id);
        node.rows = static_cast<Offset>(rows().ids.size());
        node.own_value.resize(node.rows, node.cols);
        if constexpr (on_devices<T>)
          if (DeviceOps* device = y.tape->device) {
            there->follow(*device, rows(), y.tape->repeats);
            return there->pick(*device, x.view(), {node.own_value.view(), false});
          }
        pick<T>(rows(), x.view(), {node.own_value.view(), false});
      },
      [=] {
        Sink<T> dx = sink_of(x);
        if (!dx) return;
        if constexpr (on_devices<T>)
          if (DeviceOps* device = y.tape->device) return there->put_back(*device, y.grad(), dx);
        put_back<T>(rows(), y.grad(), dx);
      },
      "gather");
  return y;
}

template <class T>
Var<T> scatter(Var<T> x, std::function<const Selection&()> rows) {
  if (static_cast<Offset>(rows().ids.size()) != x.rows())
    fail("scatter: x has " + std::to_string(x.rows()) + " rows, the selection " + std::to_string(rows().ids.size()));
  Var<T> y = x.tape->result(rows().places.rows, x.cols(), {x});
  auto there = std::make_shared<SelectionThere>();
  x.tape->record(
      y,
      [=] {
        if constexpr (on_devices<T>)
          if (DeviceOps* device = y.tape->device) {
            there->follow(*device, rows(), y.tape->repeats);
            return there->put_back(*device, x.view(), {y.value().view(), false});
          }
        put_back<T>(rows(), x.view(), {y.value().view(), false});
      },
      [=] {
        Sink<T> dx = x.sink();
        if (!dx) return;
        if constexpr (on_devices<T>)
          if (DeviceOps* device = y.tape->device) return there->pick(*device, y.grad(), dx);
        pick<T>(rows(), y.grad(), dx);
      },
      "scatter");
  return y;
}

template <class T>
Var<T> gate(Columns<T> x, Var<T> u) {
  expect("gate", u, x.rows(), 1);
  Var<T> y = x.of.tape->result(x.rows(), x.count, {x.of, u});
  auto open = [=](Offset i) { return T(1) / (T(1) + std::exp(-u.value()(i, 0))); };
  x.of.tape->record(
      y,
      [=] {
        if constexpr (on_devices<T>)
          if (y.tape->device)
            return bodies::run(*y.tape->device, bodies::Gate{x.view(), u.view(), y.value().view()}, y.value().size());
        parallel_pieces(x.rows(), row_grain(x.count), [&](Offset begin, Offset end) {
          for (Offset i = begin; i < end; ++i) {
            const T factor = open(i);
            for (Offset c = 0; c < x.count; ++c) y.value()(i, c) = factor * x.view()(i, c);
          }
        });
      },
      [=] {
        View<const T> dy = y.grad(), from = x.view();
        Sink<T> dx = sink_of(x), du = u.sink();
        if constexpr (on_devices<T>)
          if (y.tape->device)
            return bodies::run(*y.tape->device, bodies::GateBack{from, u.view(), dy, dx, du}, from.rows);
        parallel_pieces(x.rows(), row_grain(x.count), [&](Offset begin, Offset end) {
          for (Offset i = begin; i < end; ++i) {
            const T factor = open(i);
            T sum = 0;
            for (Offset c = 0; c < x.count; ++c) {
              sum += dy(i, c) * from(i, c);
              if (dx) dx.to(i, c) = (dx.add ? dx.to(i, c) : T(0)) + factor * dy(i, c);
            }
            if (du) du.to(i, 0) = (du.add ? du.to(i, 0) : T(0)) + factor * (1 - factor) * sum;
          }
        });
      },
      "gate");
  return y;
}

template <class T>
Var<T> grow(Var<T> x, Id m) {
  const Id n = static_cast<Id>(x.rows()), width = static_cast<Id>(x.cols());
  if (m < 0 || n > std::numeric_limits<Id>::max() - m || width > std::numeric_limits<Id>::max() - m)
    fail("grow: " + shape(n, width) + " cannot have " + std::to_string(m) + " rows more");
  if (const Sparse* sparse = x.sparse()) {
    Csr pattern = sparse->pattern();
    std::vector<float> values = sparse->values;
    pattern.rows += m, pattern.cols += m;
    for (Id v = 0; v < m; ++v) {
      pattern.ids.push_back(width + v), values.push_back(1);
      pattern.offsets.push_back(pattern.edges());
    }
    auto grown = std::make_shared<const Sparse>(std::make_shared<const Csr>(std::move(pattern)), std::move(values));
    Var<T> y = x.tape->constant(*grown);
    x.tape->record(
        y, [grown] {}, nullptr);  // which keeps it alive
    return y;
  }
  Var<T> y = x.tape->result(n + m, width + m, {x});
  x.tape->record(
      y,
      [=] {
        View<T> to = y.value().view();
        if constexpr (on_devices<T>)
          if (y.tape->device) return bodies::run(*y.tape->device, bodies::Grow{x.view(), to}, to.rows * to.cols);
        clear(y.tape, to);
        add_to(y.tape, Sink<T>{View<T>{to.data, n, width, to.stride}, true}, x.view());
        for (Id v = 0; v < m; ++v) to(n + v, width + v) = 1;
      },
      [=] {
        View<const T> dy = y.grad();
        if (Sink<T> dx = x.sink()) add_to(y.tape, dx, View<const T>{dy.data, n, width, dy.stride});
      },
      "grow");
  return y;
}

namespace {

// The operands of a call, and where their gradients go.
template <class T>
struct Operands {
  AttentionVars<T> x;
  Matrix<T> de = {};

  std::array<Columns<T>, 8> all() const { return {x.q, x.a, x.p, x.e, x.bias, x.ev, x.k, x.v}; }
  std::vector<Var<T>> inputs() const {
    std::vector<Var<T>> out;
    for (const Columns<T>& c : all())
      if (c) out.push_back(c.of);
    if (x.y_bias.tape) out.push_back(x.y_bias);
    return out;
  }
  Attention<T> call(const Pattern& pattern, const Score& score, const Normaliser& normaliser, int heads,
                    Dropout dropout) const {
    Attention<T> out{&pattern,   &score,     &normaliser, heads,      x.q.view(),    x.k.view(),
                     x.v.view(), x.a.view(), x.p.view(),  x.e.view(), x.bias.view(), x.ev.view()};
    if (x.y_bias.tape) out.y_bias = x.y_bias.view();
    out.dropout = dropout;
    return out;
  }
  // Whether there are columns of a value that are no operand.
  bool uncovered(Var<T> value) const {
    const auto operands = all();
    Offset covered = 0;
    for (auto c = operands.begin(); c != operands.end(); ++c) {
      auto same = [&](const Columns<T>& other) { return other && other.of.id == c->of.id && other.first == c->first; };
      if (*c && c->of.id == value.id && std::none_of(operands.begin(), c, same)) covered += c->count;
    }
    return covered < value.cols();
  }
  // run(sinks) puts the gradients there. Those of a value's columns are written, or added to where they come again or
  // another operation was there before. So the order matters here.
  template <class Run>
  void gradient(Run run) {
    std::array<Columns<T>, 8> seen;
    std::array<Sink<T>, 8> wholes;  // of the values in `seen`
    std::size_t count = 0;
    auto sink = [&](const Columns<T>& c) {
      if (!c) return Sink<T>{};
      Sink<T> whole;
      bool again = false, known = false;
      for (std::size_t t = 0; t < count; ++t)
        if (seen[t].of.id == c.of.id) {
          whole = wholes[t], known = true;
          again = again || seen[t].first == c.first;
        }
      if (!known) {
        whole = c.of.sink();
        if (whole && !whole.add && uncovered(c.of)) clear(c.of.tape, whole.to), whole.add = true;
      }
      seen[count] = c, wholes[count++] = whole;
      return whole ? Sink<T>{whole.to.columns(c.first, c.count), whole.add || again} : whole;
    };
    AttentionGradient<T> g;
    g.dq = sink(x.q), g.da = sink(x.a), g.dp = sink(x.p), g.de = sink(x.e), g.dbias = sink(x.bias);
    g.dev = sink(x.ev), g.dk = sink(x.k), g.dv = sink(x.v);
    Sink<T> wanted = g.de;
    if (wanted.add) {  // the kernel only writes this one
      if (de.empty()) de = Matrix<T>(x.q.of.tape->device);
      de.resize(wanted.to.rows, wanted.to.cols);
      g.de = {de.view(), false};
    }
    run(g);
    if (wanted.add) add_to(x.q.of.tape, wanted, std::as_const(de).view());
  }
};

}  // namespace

template <class T>
Var<T> attention(const AttentionVars<T>& given, std::shared_ptr<const Sight> sight, const Score& score,
                 const Normaliser& normaliser, int heads, double dropout, std::function<Matrix<T>()>* weights) {
  AttentionVars<T> x = given;
  const bool queries = sight->pattern->query_order != nullptr, keys = sight->pattern->key_order != nullptr;
  struct Gathered {
    Columns<T> from;
    bool query;
    Var<T> to;
  };
  std::vector<Gathered> known;  // columns that come again are gathered once
  auto in_order = [&](Columns<T>& c, bool query) {
    for (const Gathered& g : known)
      if (g.query == query && g.from.of.id == c.of.id && g.from.first == c.first && g.from.count == c.count) {
        c = g.to;
        return;
      }
    const Columns<T> from = c;
    c = gather<T>(from, [sight, query]() -> const Selection& {
      return query ? *sight->pattern->query_order : *sight->pattern->key_order;
    });
    known.push_back({from, query, c.of});
  };
  if (queries) in_order(x.q, true);
  if (keys) in_order(x.k, false), in_order(x.v, false);
  Tape<T>* tape = x.q.of.tape;
  const bool apart = x.y_bias.tape && (queries || tape->device);  // nodes without a row of y get it, too
  if (apart) x.y_bias = {};
  struct Kept {
    std::shared_ptr<const Sight> sight;
    Score score;
    Normaliser normaliser;
    Operands<T> operands;
    AttentionState<T> state = {};
    Matrix<T> pieces = {};
  };
  auto kept = std::make_shared<Kept>(Kept{sight, score, normaliser, {x}});
  Var<T> y = tape->result(x.q.rows(), x.v.cols(), kept->operands.inputs());
  const std::uint64_t stream = tape->next_stream();
  auto call = [=] {
    auto out = kept->operands.call(*kept->sight->pattern, kept->score, kept->normaliser, heads,
                                   {tape->training ? static_cast<float>(dropout) : 0.0f, tape->dropout_key(stream),
                                    tape->device && tape->training ? tape->keys_at() + stream : nullptr});
    out.bf16 = tape->bf16;
    return out;
  };
  tape->record(
      y,
      [=] {
        kept->state.backward = tape->training && y.needs_grad();
        kept->state.needed = tape->marks_of(y);
        if constexpr (on_devices<T>)
          if (tape->device) return tape->device->attention(call(), y.value().view(), kept->state);
        attention<T>(call(), y.value().view(), kept->state);
      },
      [=] {
        if (x.y_bias.tape) add_column_sums(y.grad(), x.y_bias.sink(), kept->pieces, tape->marks_of(y));
        kept->operands.gradient([&](const AttentionGradient<T>& g) {
          if constexpr (on_devices<T>)
            if (tape->device) return tape->device->attention_gradient(call(), y.view(), y.grad(), kept->state, g);
          attention_gradient<T>(call(), y.view(), y.grad(), kept->state, g);
        });
      },
      "attention",
      [=](Reach<T>& reach) {
        const AttentionVars<T>& x = kept->operands.x;
        for (const Columns<T>& c : {x.a, x.p, x.e, x.bias, x.ev})
          if (c) reach.need(c.of);
        if (x.y_bias.tape) reach.need(x.y_bias);
        reach.need_rows_of(x.q.of, y);
        const Pattern& pattern = *kept->sight->pattern;
        std::vector<std::uint8_t> keys;
        if (const auto* queries = reach.some_of(y); queries && pattern.is_listed() && !kept->sight->changes) {
          keys.resize(static_cast<std::size_t>(pattern.keys()));
          for (Id i = 0; i < pattern.queries(); ++i)
            if ((*queries)[i])
              for (Id j : pattern.by_query.list->row(i)) keys[j] = 1;
        }
        for (const Columns<T>& c : {x.k, x.v}) keys.empty() ? reach.need(c.of) : reach.need(c.of, keys);
      });
  if (weights)
    *weights = [=] {
      const Pattern& pattern = *kept->sight->pattern;
      if (kept->state.tau.empty() && pattern.queries() > 0)
        fail("attention weights are those of the last forward, and there was none yet: network.tape().forward()");
      Matrix<T> out(pattern.is_listed() ? pattern.edges() : 0, heads);
      if (tape->device) {  // from copies on the host
        Attention<T> here = call();
        const bool rounds = std::exchange(here.bf16, false) && !kept->state.narrow[0].empty();
        std::deque<Matrix<T>> copies;
        auto fetch = [&](View<const T>& to, const Columns<T>& from, bool rounded = false) {
          if (!from) return;
          Matrix<T>& copy = copies.emplace_back(from.of.value());
          if (rounded)
            for (T& x : copy) x = from_bf16(to_bf16(static_cast<float>(x)));
          to = std::as_const(copy).view().columns(from.first, from.count);
        };
        const AttentionVars<T>& from = kept->operands.x;
        fetch(here.q, from.q, rounds), fetch(here.k, from.k, rounds), fetch(here.v, from.v), fetch(here.a, from.a);
        fetch(here.p, from.p), fetch(here.e, from.e), fetch(here.bias, from.bias), fetch(here.ev, from.ev);
        AttentionState<T> state;
        state.tau = kept->state.tau, state.least = kept->state.least, state.last = kept->state.last;
        attention_weights<T>(here, state, out.view());
        return out;
      }
      attention_weights<T>(call(), kept->state, out.view());
      return out;
    };
  if (queries) y = scatter<T>(y, [sight]() -> const Selection& { return *sight->pattern->query_order; });
  return apart ? add_bias(y, given.y_bias) : y;
}

template <class T>
Var<T> attention_scores(const AttentionVars<T>& given, std::shared_ptr<const Pattern> pattern, const Score& score,
                        int heads) {
  if (given.q.of.tape->device) fail("'scores' has no kernel for the GPU; train with --device cpu");
  if (!pattern->is_listed() || pattern->key_order)
    fail("scores: can be listed only under a mask that is a list, of all keys");
  struct Kept {
    std::shared_ptr<const Pattern> pattern;
    Score score;
    Normaliser none;
    Operands<T> operands;
    Matrix<T> zero, one;
    AttentionState<T> state = {};
  };
  AttentionVars<T> x = given;
  x.v = x.ev = {}, x.y_bias = {};
  auto kept = std::make_shared<Kept>(Kept{pattern, score, normaliser_named("none"), {x}, {}, {}});
  Tape<T>* tape = x.q.of.tape;
  Var<T> y = tape->result(pattern->edges(), heads, kept->operands.inputs());
  auto call = [=] { return kept->operands.call(*kept->pattern, kept->score, kept->none, heads, {}); };
  tape->record(
      y, [=] { attention_scores<T>(call(), y.value().view()); },
      // They are the weights w of the normaliser `none`: d loss / dw_ij is <dy_i, v_j + ev_ij> for one channel a head,
      // with dy = 1, v = 0 and y's gradient as ev.
      [=] {
        const Id queries = kept->pattern->queries(), keys = kept->pattern->keys();
        kept->zero.resize(std::max(queries, keys), heads), kept->zero.fill(T(0));
        kept->one.resize(queries, heads), kept->one.fill(T(1));
        kept->state.tau.resize(queries, heads), kept->state.tau.fill(T(0));
        const View<const T> zero = std::as_const(kept->zero).view();
        auto rows = [&](Id n) { return View<const T>{zero.data, n, zero.cols, zero.stride}; };
        Attention<T> c = call();
        c.v = rows(keys), c.ev = y.grad();
        kept->operands.gradient([&](const AttentionGradient<T>& g) {
          attention_gradient<T>(c, rows(queries), std::as_const(kept->one).view(), kept->state, g);
        });
      },
      "scores");
  return y;
}

namespace {

// What both losses check and share: the weight of each class and the sum of the rows' weights.
template <class T>
struct Targets {
  std::vector<T> weight;  // classes
  T all = 0, smoothing = 0;
};

template <class T>
Targets<T> check_targets(const char* loss, Var<T> x, Id classes, std::span<const Id> rows, std::span<const Id> labels,
                         const LossOptions& o) {
  const std::string name = std::string(loss) + ": ";
  if (rows.empty()) fail(name + "no rows to average over");
  if (static_cast<Offset>(labels.size()) != x.rows())
    fail(name + std::to_string(labels.size()) + " labels for " + std::to_string(x.rows()) + " rows");
  if (!(o.smoothing >= 0 && o.smoothing < 1)) fail(name + "the smoothing must be at least 0 and below 1");
  if (!o.class_weights.empty() && o.class_weights.size() != static_cast<std::size_t>(classes))
    fail(name + std::to_string(o.class_weights.size()) + " class weights for " + std::to_string(classes) + " classes");
  Targets<T> out{.weight = std::vector<T>(static_cast<std::size_t>(classes), T(1)),
                 .smoothing = static_cast<T>(o.smoothing)};
  for (std::size_t c = 0; c < o.class_weights.size(); ++c) {
    if (!(o.class_weights[c] > 0) || !std::isfinite(o.class_weights[c]))
      fail(name + "the weight of class " + std::to_string(c) + " must be above 0");
    out.weight[c] = static_cast<T>(o.class_weights[c]);
  }
  std::vector<bool> seen(static_cast<std::size_t>(x.rows()));
  double all = 0;
  for (Id i : rows) {
    if (i < 0 || i >= x.rows() || labels[i] < 0 || labels[i] >= classes)
      fail(name + "row " + std::to_string(i) + " is not there or has no label below " + std::to_string(classes));
    if (seen[i]) fail(name + "row " + std::to_string(i) + " stands twice in the list");
    seen[i] = true;
    all += out.weight[labels[i]];
  }
  out.all = static_cast<T>(all);
  return out;
}

Var<float> mean_loss_on_device(Var<float> x, Var<float> y, std::span<const Id> rows, std::span<const Id> labels,
                               const Targets<float>& targets, bool binary, float all) {
  DeviceOps* device = x.tape->device;
  std::vector<Id> target(static_cast<std::size_t>(x.rows()), -1);
  for (Id i : rows) target[i] = labels[i];
  struct There {
    Matrix<Id> target;
    Matrix<float> weight;
  };
  auto there =
      std::make_shared<const There>(There{list_on<Id>(*device, target), list_on<float>(*device, targets.weight)});
  auto loss = [=] {
    const float spread = targets.smoothing / static_cast<float>(x.cols());
    return bodies::LossOfRow{x.view(),
                             there->target.data(),
                             there->weight.data(),
                             1 - targets.smoothing,
                             targets.smoothing,
                             spread * std::accumulate(targets.weight.begin(), targets.weight.end(), 0.0f),
                             all,
                             binary};
  };
  x.tape->record(
      y,
      [=] {
        device->aside([&] {  // backward does not wait for it
          bodies::sum_rows(*device, bodies::LossSum{loss(), y.value().data()}, x.rows(), 1, 1);
        });
      },
      [=] {
        if (Sink<float> dx = x.sink()) bodies::run(*device, bodies::LossBack{loss(), y.grad().data, dx}, x.rows());
      },
      "loss");
  return y;
}

// value(i) is the loss of row i, gradient(i, d, dx) adds d times its gradient to the row dx.
template <class T, class Value, class Gradient>
Var<T> mean_loss(Var<T> x, std::span<const Id> rows, std::span<const Id> labels, const Targets<T>& targets, bool binary,
                 Value value, Gradient gradient) {
  Var<T> y = x.tape->result(1, 1, {x});
  const T all = binary ? targets.all * static_cast<T>(x.cols()) : targets.all;
  if constexpr (on_devices<T>)
    if (x.tape->device) return mean_loss_on_device(x, y, rows, labels, targets, binary, all);
  auto pieces = std::make_shared<Matrix<T>>();
  const Offset count = static_cast<Offset>(rows.size());
  x.tape->record(
      y,
      [=] {
        T sum = 0;
        ordered_sums(count, row_grain(x.cols()), 1, &sum, *pieces, [&](Offset begin, Offset end, T* acc) {
          for (Offset t = begin; t < end; ++t) *acc += value(rows[t]);
        });
        y.value()(0, 0) = sum / all;
      },
      [=] {
        View<const T> dY = y.grad();
        Sink<T> dx = x.sink();
        if (!dx) return;
        if (!dx.add)
          parallel_pieces(dx.to.rows, row_grain(dx.to.cols),
                          [&](Offset begin, Offset end) { std::fill(dx.to.row(begin), dx.to.row(end), T(0)); });
        const T d = dY(0, 0) / all;
        parallel_pieces(count, row_grain(x.cols()), [&](Offset begin, Offset end) {
          for (Offset t = begin; t < end; ++t) gradient(rows[t], d, dx.to.row(rows[t]));
        });
      },
      "loss",
      [=](Reach<T>& reach) {
        std::vector<std::uint8_t> read(static_cast<std::size_t>(x.rows()));
        for (Id i : rows) read[i] = 1;
        reach.need(x, read);
      });
  return y;
}

}  // namespace

template <class T>
Var<T> cross_entropy(Var<T> x, std::span<const Id> rows, std::span<const Id> labels, const LossOptions& o) {
  const Offset width = x.cols();
  const auto targets = check_targets("cross entropy", x, static_cast<Id>(width), rows, labels, o);
  const T hit = T(1) - targets.smoothing, spread = targets.smoothing / static_cast<T>(width);
  const T spread_all = spread * std::accumulate(targets.weight.begin(), targets.weight.end(), T(0));
  auto log_total = [=](Id i) {
    const T* row = x.value().row(i);
    T top = *std::max_element(row, row + width), total = 0;
    for (Offset c = 0; c < width; ++c) total += std::exp(row[c] - top);
    return top + std::log(total);
  };
  return mean_loss<T>(
      x, rows, labels, targets, false,
      [=](Id i) {
        const T* row = x.value().row(i);
        const T total = log_total(i);
        T loss = hit * targets.weight[labels[i]] * (total - row[labels[i]]);
        if (spread > 0)
          for (Offset c = 0; c < width; ++c) loss += spread * targets.weight[c] * (total - row[c]);
        return loss;
      },
      [=](Id i, T d, T* dx) {
        const T* row = x.value().row(i);
        const T total = log_total(i), mass = hit * targets.weight[labels[i]];
        for (Offset c = 0; c < width; ++c)
          dx[c] += d * ((mass + spread_all) * std::exp(row[c] - total) - spread * targets.weight[c] -
                        (c == labels[i] ? mass : T(0)));
      });
}

template <class T>
Var<T> binary_cross_entropy(Var<T> x, std::span<const Id> rows, std::span<const Id> labels, const LossOptions& o) {
  const Offset width = x.cols();
  const auto targets =
      check_targets("binary cross entropy", x, static_cast<Id>(std::max<Offset>(width, 2)), rows, labels, o);
  auto target = [=](Id i, Offset c) {
    const bool hit = width == 1 ? labels[i] == 1 : labels[i] == c;
    return (hit ? T(1) - targets.smoothing : T(0)) + targets.smoothing / 2;
  };
  return mean_loss<T>(
      x, rows, labels, targets, true,
      [=](Id i) {
        const T* row = x.value().row(i);
        T loss = 0;
        for (Offset c = 0; c < width; ++c)  // log(1 + e^x) - t x
          loss += std::max(row[c], T(0)) + std::log1p(std::exp(-std::abs(row[c]))) - target(i, c) * row[c];
        return targets.weight[labels[i]] * loss;
      },
      [=](Id i, T d, T* dx) {
        const T* row = x.value().row(i);
        for (Offset c = 0; c < width; ++c)
          dx[c] += d * targets.weight[labels[i]] * (T(1) / (T(1) + std::exp(-row[c])) - target(i, c));
      });
}

#define HEED_INSTANTIATE(T)                                                                                         \
  template Var<T> linear(Var<T>, const std::vector<LinearMap<T>>&);                                                 \
  template std::vector<Var<T>> linears(Var<T>, const std::vector<std::vector<LinearMap<T>>>&);                      \
  template Var<T> add_bias(Var<T>, Var<T>);                                                                         \
  template Var<T> add(Var<T>, Var<T>);                                                                              \
  template Var<T> scale(Var<T>, double);                                                                            \
  template Var<T> columns(const Columns<T>&);                                                                       \
  template Var<T> concat(const std::vector<Var<T>>&);                                                               \
  template Var<T> unit(const Columns<T>&, int);                                                                     \
  template Var<T> centre(const Columns<T>&, int);                                                                   \
  template Var<T> centre_unit(const Columns<T>&, int);                                                              \
  template Var<T> linear_heads(const Columns<T>&, Var<T>, int);                                                     \
  template Var<T> mean_heads(Var<T>, int);                                                                          \
  template Var<T> contract(Var<T>, const std::vector<Var<T>>&, int);                                                \
  template Var<T> dropout(Var<T>, double);                                                                          \
  template Var<T> activate(Var<T>, Activation);                                                                     \
  template Var<T> layer_norm(Var<T>, Var<T>, Var<T>, double);                                                       \
  template Var<T> batch_norm(Var<T>, Var<T>, Var<T>, Parameter<T>&, Parameter<T>&, double);                         \
  template Var<T> propagate(Var<T>, std::shared_ptr<const Pattern>, std::vector<T>, std::vector<T>);                \
  template Var<T> permute(Var<T>, std::vector<Id>);                                                                 \
  template Var<T> gather(Columns<T>, std::function<const Selection&()>);                                            \
  template Var<T> scatter(Var<T>, std::function<const Selection&()>);                                               \
  template Var<T> gate(Columns<T>, Var<T>);                                                                         \
  template Var<T> grow(Var<T>, Id);                                                                                 \
  template Var<T> attention(const AttentionVars<T>&, std::shared_ptr<const Sight>, const Score&, const Normaliser&, \
                            int, double, std::function<Matrix<T>()>*);                                              \
  template Var<T> attention_scores(const AttentionVars<T>&, std::shared_ptr<const Pattern>, const Score&, int);     \
  template Var<T> cross_entropy(Var<T>, std::span<const Id>, std::span<const Id>, const LossOptions&);              \
  template Var<T> binary_cross_entropy(Var<T>, std::span<const Id>, std::span<const Id>, const LossOptions&);
HEED_INSTANTIATE(float)
HEED_INSTANTIATE(double)

}  // namespace heed
