// The interpreter of formulas. A step runs over the rows of some edges, all heads and channels side by side, so that to
// find out what it does costs little beside doing it. The sums over channels and over edges have the lanes and the
// order of stages.h: the formula of a compiled score gives that one's numbers.
#include <algorithm>
#include <cmath>

#include "graph/error.h"
#include "kernels/formula.h"
#include "kernels/program.h"
#include "kernels/stages.h"
#include "kernels/tiles.h"

namespace heed {
namespace {

using formula::Formula;
using formula::kVariables;
using formula::Out;
using formula::Program;
using formula::Step;
using stages::Chunk;
using stages::ChunkGradient;
using stages::Lanes;
using stages::Target;

constexpr int kRun = 512;      // numbers that a step runs over, about: some registers of them in the first-level cache
constexpr int kWidest = 2048;  // of a wider head, channels come in pieces of so many
constexpr Offset kSame[kChunk] = {};

template <class T>
struct Rows {  // row t begins at base + at[t]
  const T* base = nullptr;
  const Offset* at = kSame;
  const T* operator[](int t) const { return base + at[t]; }
  Rows from(int t, int channel) const { return {base + channel, at + t}; }
};

// A thread's own; it grows to what is needed and stays.
template <class T>
struct Room {
  std::vector<Rows<T>> rows;
  std::vector<double> numbers;
  std::vector<T> values;
  Offset own[kChunk], other[kChunk], edge[kChunk], registers[kChunk];
  alignas(64) T down[kWidest + kLanes], learned[kWidest + kLanes];
  Lanes<T> carry[kChunk];
};
template <class T>
Room<T>& room() {
  thread_local Room<T> mine;
  return mine;
}

// A program at work on n rows of `count` numbers at most.
template <class T>
class Frame {
 public:
  Frame(const Program& program, int n, int count, int width) : program_(program), room_(room<T>()) {
    const std::size_t fixed = program.fixed.size(), first = kVariables + fixed;
    const auto registers = static_cast<std::size_t>(program.registers);
    stride_ = (Offset{count} + kLanes - 1) / kLanes * kLanes, block_ = stride_ * n;
    const std::size_t total = fixed * static_cast<std::size_t>(stride_) +
                              registers * static_cast<std::size_t>(block_) + kLanes;  // a head may end within a vector
    if (room_.values.size() < total) room_.values.resize(total);
    if (room_.rows.size() < first + registers) room_.rows.resize(first + registers);
    if (room_.numbers.size() < fixed) room_.numbers.resize(fixed);
    program.fix(width, room_.numbers.data());
    T* at = room_.values.data();
    for (std::size_t i = 0; i < fixed; ++i, at += stride_) {
      std::fill_n(at, stride_, static_cast<T>(room_.numbers[i]));
      room_.rows[kVariables + i] = {at, kSame};
    }
    first_ = at;
    for (std::size_t i = 0; i < registers; ++i, at += block_) room_.rows[first + i] = {at, room_.registers};
    for (int t = 0; t < n; ++t) room_.registers[t] = t * stride_;
  }

  Rows<T>& operator[](int place) { return room_.rows[static_cast<std::size_t>(place)]; }

  void run(int n) {
    const int first = kVariables + static_cast<int>(program_.fixed.size());
    for (const Step& step : program_.steps) {
      const Rows<T> x = (*this)[step.a], y = (*this)[step.b];
      T* const to = first_ + (step.to - first) * block_;
      formula::with_op(step.op, [&, stride = stride_](auto arity, auto f) {
        const bool solid = x.at == room_.registers && y.at == room_.registers;
        const int rows = solid ? 1 : n;
        const Offset length = solid ? n * stride : stride;
        for (int t = 0; t < rows; ++t) each<arity.value>(x[t], y[t], step.c, to + t * stride, length, f);
      });
    }
  }

 private:
  const Program& program_;
  Room<T>& room_;
  Offset stride_, block_;
  T* first_;

  template <int arity, class F>
  static void each(const T* x, const T* y, double c, T* to, Offset length, F f) {
    using V = Lanes<T>;
#pragma GCC unroll 4
    for (Offset i = 0; i < length; i += kLanes) {
      const V a = V::load(x + i);
      f(a, arity > 1 ? V::load(y + i) : a, c).store(to + i);
    }
  }
};

struct Piece {  // of the channels of all heads
  int head, heads;
  int first, count;
  bool starts, ends;  // with its heads' first and last channels
};
template <class Visit>
void for_each_piece(int heads, int width, Visit visit) {
  if (width <= kWidest) {
    const int together = kWidest / width;
    for (int h = 0; h < heads; h += together) {
      const int n = std::min(together, heads - h);
      visit(Piece{h, n, h * width, n * width, true, true});
    }
    return;
  }
  for (int h = 0; h < heads; ++h)
    for (int c = 0; c < width; c += kWidest) {
      const int n = std::min(kWidest, width - c);
      visit(Piece{h, 1, h * width + c, n, c == 0, c + n == width});
    }
}

// Calls use(std::integral_constant<int, W>) for the widths of a head that pay.
template <class T, class Use>
void with_width(int width, Use use) {
  if constexpr (std::is_same_v<T, float>) {
    if (width == 8) return use(std::integral_constant<int, 8>{});
    if (width == 16) return use(std::integral_constant<int, 16>{});
  }
  use(std::integral_constant<int, 0>{});
}

// The rows of a chunk's tables from edge t on, as a program's variables.
template <class T, bool own_is_query>
class Operands {
 public:
  explicit Operands(const Chunk<T>& x) : x_(x), room_(room<T>()) {
    for (int t = 0; t < x.batch->n; ++t) {
      room_.own[t] = x.batch->rows[t] * x.own.stride;
      room_.other[t] = x.batch->ids[t] * x.other.stride;
      if (x.edge) room_.edge[t] = x.entry[t] * x.edge.stride;
    }
  }
  void set(Frame<T>& frame, int t, int channel) const {
    frame[own_is_query ? 0 : 1] = {x_.own.data + channel, room_.own + t};
    frame[own_is_query ? 1 : 0] = {x_.other.data + channel, room_.other + t};
    if (x_.edge) frame[2] = {x_.edge.data + channel, room_.edge + t};
    if (x_.a) frame[3] = {x_.a + channel, kSame};
  }

 private:
  const Chunk<T>& x_;
  Room<T>& room_;
};

// to[t][h] = +-sum_c x[t][h][c] (* y[t][h][c]), four sums at a time, as stages::fold_heads; by one code for all widths,
// so that a product and a sum become one instruction for all or for none.
template <bool product, class T, class Visit>
void fold_rows(Rows<T> x, Rows<T> y, int n, int heads, int width, bool negative, const int* at, T* to, Visit visit) {
  using V = Lanes<T>;
  const T sign = negative ? T(-1) : T(1);
  auto sum = [=](int t, int h) {
    const T *xs = x[t] + h * width, *ys = y[t] + h * width;
    V total = T(0);
    stages::for_each_vector<0>(width, [&](int c, int tail) {
      V value = V::load(xs + c);
      if constexpr (product) value = value * V::load(ys + c);
      total = total + (tail < kLanes ? keep_first(value, tail) : value);
    });
    return total;
  };
  int t = 0;
  if (heads == 1)
    for (; t + 4 <= n; t += 4) {
      const auto four = fold_four(sum(t, 0), sum(t + 1, 0), sum(t + 2, 0), sum(t + 3, 0)) * Vec<T, 4>(sign);
      for (int l = 0; l < 4; ++l) to[at[t + l]] = four.v[l], visit(t + l);
    }
  for (; t < n; ++t) {
    visit(t);
    T* const row = to + at[t];
    int h = 0;
    for (; h + 4 <= heads; h += 4)
      (fold_four(sum(t, h), sum(t, h + 1), sum(t, h + 2), sum(t, h + 3)) * Vec<T, 4>(sign)).store(row + h);
    for (; h < heads; ++h) row[h] = fold(sum(t, h)) * sign;
  }
}

// A head's channels in pieces: the sums so far wait in `carry`.
template <class T>
void carry_rows(Rows<T> x, const Rows<T>* y, int n, const Piece& piece, bool negative, const int* at, Lanes<T>* carry,
                T* to) {
  using V = Lanes<T>;
  for (int t = 0; t < n; ++t) {
    V total = piece.starts ? V(T(0)) : carry[t];
    stages::for_each_vector<0>(piece.count, [&](int c, int tail) {
      V value = V::load(x[t] + c);
      if (y) value = value * V::load((*y)[t] + c);
      total = total + (tail < kLanes ? keep_first(value, tail) : value);
    });
    carry[t] = total;
    if (piece.ends) to[at[t]] = negative ? -fold(total) : fold(total);
  }
}

template <class T, bool own_is_query>
void formula_sums(const void* self, const Chunk<T>& x, T* to) {
  const Batch& batch = *x.batch;
  const Program& program = static_cast<const Formula*>(self)->term[bool(x.edge)].sum;
  const Operands<T, own_is_query> operands(x);
  const Out first = program.outs[0];
  const bool product = program.outs.size() > 1;
  for_each_piece(x.heads, x.width, [&](const Piece& piece) {
    const int most = std::clamp(kRun / piece.count, 1, kChunk);
    Frame<T> frame(program, most, piece.count, x.width);
    for (int t = 0; t < batch.n; t += most) {
      const int n = std::min(most, batch.n - t), *at = batch.at + t;
      auto visit = [&, fetches = piece.head == 0 && piece.starts](int i) {
        if (fetches) prefetch_next(x.next, x.other, t + i);
      };
      if (first.place < 0) {
        for (int i = 0; i < n; ++i) visit(i), std::fill_n(to + at[i] + piece.head, piece.heads, T(0));
        continue;
      }
      operands.set(frame, t, piece.first);
      frame.run(n);
      const Rows<T> one = frame[first.place], two = product ? frame[program.outs[1].place] : one;
      T* const place = to + piece.head;
      if (!piece.starts || !piece.ends) {
        carry_rows(one, product ? &two : nullptr, n, piece, first.negative, at, room<T>().carry + t, place);
        continue;
      }
      auto fold = [&](auto multiplies) {
        fold_rows<multiplies.value>(one, two, n, piece.heads, x.width, first.negative, at, place, visit);
      };
      product ? fold(std::true_type{}) : fold(std::false_type{});
    }
  });
}

// Where sums over edges begin, what is added to them in the end, and where they go; none: 0.
template <class T>
struct Sum {
  const T *start = nullptr, *plus = nullptr;
  T* to = nullptr;
};

// to = plus + (start +- sum_t ds[t][h] rows[t][h]) for the heads of a piece.
template <int W, class T>
void add_scaled(Rows<T> rows, bool negative, int n, const T* ds, const int* at, int heads, int width, const Sum<T>& x) {
  using V = Lanes<T>;
  const T sign = negative ? T(-1) : T(1);
  auto group = [&]<int G>(int c, int h, int tail) {
    V sum[G];
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) sum[i] = x.start ? V::load(x.start + c + i * kLanes) : V(T(0));
    for (int t = 0; t < n; ++t) {
      const T *row = rows[t] + c, *d = ds + at[t] + h;
#pragma GCC unroll 8
      for (int i = 0; i < G; ++i)
        sum[i] = sum[i] + V(d[W > 0 ? i * kLanes / (W > 0 ? W : 1) : 0] * sign) * V::load(row + i * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) {
      const int k = c + i * kLanes;
      if (x.plus) sum[i] = V::load(x.plus + k) + sum[i];
      store_first(sum[i], tail, x.to + k);
    }
  };
  if constexpr (W > 0) {
    const int total = heads * W;
    int c = 0;
    for (; c + 4 * kLanes <= total; c += 4 * kLanes) group.template operator()<4>(c, c / W, kLanes);
    for (; c < total; c += kLanes) group.template operator()<1>(c, c / W, kLanes);
  } else {
    for (int h = 0; h < heads; ++h) {
      int c = h * width;
      const int end = c + width;
      for (; c + 4 * kLanes <= end; c += 4 * kLanes) group.template operator()<4>(c, h, kLanes);
      for (; c < end; c += kLanes) group.template operator()<1>(c, h, std::min(end - c, kLanes));
    }
  }
}

template <class T, bool own_is_query>
void formula_gradient(const void* self, const Chunk<T>& x, const ChunkGradient<T>& g) {
  using V = Lanes<T>;
  const Batch& batch = *x.batch;
  const formula::Term& term = static_cast<const Formula*>(self)->term[bool(x.edge)];
  const Program& program = own_is_query ? term.row : term.column;
  const Operands<T, own_is_query> operands(x);
  const Out own = program.outs[0];
  const Out learned = own_is_query && g.da ? program.outs[1] : Out{};
  Room<T>& w = room<T>();
  for_each_piece(x.heads, x.width, [&](const Piece& piece) {
    const int most = std::clamp(kRun / piece.count, 1, kChunk), width = piece.count / piece.heads;
    Frame<T> frame(program, most, piece.count, x.width);
    int segment = 0;
    for (int first = 0; first < batch.n; first += most) {
      const int n = std::min(most, batch.n - first), last = first + n;
      const T* const ds = g.ds + piece.head;
      operands.set(frame, first, piece.first);
      frame.run(n);
      auto add = [&](Out out, int begin, int end, const Sum<T>& sum) {
        const Rows<T> rows = frame[out.place].from(begin - first, 0);
        with_width<T>(x.width, [&](auto w) {
          add_scaled<w.value>(rows, out.negative, end - begin, ds, batch.at + begin, piece.heads, width, sum);
        });
      };
      for (; segment < batch.segments && batch.segment[segment].begin < last; ++segment) {
        const Segment& s = batch.segment[segment];
        const int begin = std::max(s.begin, first), end = std::min(s.end, last);
        const bool starts = begin == s.begin, ends = end == s.end;
        const T* const from = g.down[segment].from ? g.down[segment].from + piece.first : nullptr;
        T* const to = g.down[segment].to + piece.first;
        if (own.place >= 0)
          add(own, begin, end, {starts ? nullptr : w.down, ends ? from : nullptr, ends ? to : w.down});
        else if (ends && from == nullptr)
          std::fill_n(to, piece.count, T(0));
        else if (ends && from != to)
          std::copy_n(from, piece.count, to);
        if (!ends) break;
      }
      if (learned.place >= 0) {
        T* const to = g.da + piece.first;
        const bool ends = last == batch.n;
        add(learned, first, last, {first == 0 ? nullptr : w.learned, ends ? to : nullptr, ends ? to : w.learned});
      }
      if (own_is_query && g.dedge) {
        const Out edge = program.outs[2];
        for (int t = first; t < last; ++t) {
          T* const to = g.dedge.row(x.entry[t]) + piece.first;
          if (edge.place < 0) {
            std::fill_n(to, piece.count, T(0));
            continue;
          }
          const T* const row = frame[edge.place][t - first];
          for (int h = 0; h < piece.heads; ++h) {
            const T d = ds[batch.at[t] + h];
            stages::for_each_vector<0>(width, [&](int c, int tail) {
              store_first(V(edge.negative ? -d : d) * V::load(row + h * width + c), tail, to + h * width + c);
            });
          }
        }
      }
    }
  });
}

// ---- tiles --------------------------------------------------------------------------------------------------------

using stages::kTile;
using stages::kTogether;
constexpr int kTileChannels = kRun / (kTogether * kTile);

// Calls use(frame, first channel, count) for a few channels of a tile at a time, whose row t = channel * kTogether + i
// holds the keys of query i.
template <class T, class Use>
void for_each_tile(const Program& program, const T* q, const T* k, const T* a, int width, Use use) {
  constexpr int rows = kTileChannels * kTogether;
  Frame<T> frame(program, rows, kTile, width);
  alignas(64) T own[rows * kTile], learned[kTileChannels * kTile];
  Offset at_own[rows], at_key[rows];
  for (int t = 0; t < rows; ++t) at_own[t] = t * kTile, at_key[t] = t / kTogether * kTile;
  for (int first = 0; first < width; first += kTileChannels) {
    const int channels = std::min(kTileChannels, width - first), n = channels * kTogether;
    for (int t = 0; t < n; ++t) std::fill_n(own + t * kTile, kTile, q[t % kTogether * width + first + t / kTogether]);
    for (int c = 0; c < channels && a; ++c) std::fill_n(learned + c * kTile, kTile, a[first + c]);
    frame[0] = {own, at_own}, frame[1] = {k + first * kTile, at_key}, frame[3] = {learned, at_key};
    frame.run(n);
    use(frame, first, channels);
  }
}

template <class T>
void formula_tile_sums(const void* self, const T* q, const T* k, const T* a, int width, T* s) {
  using V = Lanes<T>;
  const Program& program = static_cast<const Formula*>(self)->term[0].sum;
  const Out one = program.outs[0];
  std::fill_n(s, kTogether * kTile, T(0));
  if (one.place < 0) return;
  const bool product = program.outs.size() > 1;
  const V sign = one.negative ? T(-1) : T(1);
  auto run = [&](auto multiplies) {
    for_each_tile(program, q, k, a, width, [&](Frame<T>& frame, int, int channels) {
      const Rows<T> xs = frame[one.place], ys = product ? frame[program.outs[1].place] : xs;
      for (int t = 0; t < channels * kTogether; ++t) {
        const T *x = xs[t], *y = ys[t];
        T* const to = s + t % kTogether * kTile;
        for (int j = 0; j < kTile; j += kLanes) {
          V value = V::load(x + j) * sign;
          if constexpr (multiplies.value) value = value * V::load(y + j);
          (V::load(to + j) + value).store(to + j);
        }
      }
    });
  };
  product ? run(std::true_type{}) : run(std::false_type{});
}

template <class T>
void formula_tile_gradient(const void* self, const T* q, const T* k, const T* a, int width, const T* ds,
                           const std::uint64_t* seen, T* dq, T* dk, T* da) {
  using V = stages::Wide<T>;
  constexpr int across = stages::kAcross;
  alignas(64) static constexpr T zeros[kTile] = {};
  const Program& program = static_cast<const Formula*>(self)->term[0].both;
  const Out own = program.outs[0], learned = da ? program.outs[1] : Out{}, key = program.outs[2];
  for_each_tile(program, q, k, a, width, [&](Frame<T>& frame, int first, int channels) {
    auto rows_of = [&](Out out) { return out.place < 0 ? Rows<T>{zeros, kSame} : frame[out.place]; };
    auto run = [&](auto some, auto learns, Rows<T> owns, Rows<T> keys, Rows<T> vectors) {
      const V own_sign = own.negative ? -1 : 1, key_sign = key.negative ? -1 : 1, sign = learned.negative ? -1 : 1;
      for (int at = 0; at < kTile; at += across * V::lanes) {
        const stages::Pairs<T, some.value> d(ds, seen, at);
        for (int c = 0; c < channels; ++c) {
          T* const to = dk + (first + c) * kTile + at;
          V down[across], learned_sum = T(0);
#pragma GCC unroll 4
          for (int v = 0; v < across; ++v) down[v] = V::load(to + v * V::lanes);
#pragma GCC unroll 4
          for (int i = 0; i < kTogether; ++i) {
            const int t = c * kTogether + i;
            T* const up = dq + (i * width + first + c) * V::lanes;
            V sum = V::load(up);
#pragma GCC unroll 4
            for (int v = 0; v < across; ++v) {
              const int j = at + v * V::lanes;
              d.add(i, v, V::load(owns[t] + j) * own_sign, sum);
              d.add(i, v, V::load(keys[t] + j) * key_sign, down[v]);
              if constexpr (learns.value) d.add(i, v, V::load(vectors[t] + j) * sign, learned_sum);
            }
            sum.store(up);
          }
#pragma GCC unroll 4
          for (int v = 0; v < across; ++v) down[v].store(to + v * V::lanes);
          if constexpr (learns.value) {
            T* const vector = da + (first + c) * V::lanes;
            (V::load(vector) + learned_sum).store(vector);
          }
        }
      }
    };
    auto with_learned = [&](auto some) {
      if (learned.place < 0) return run(some, std::false_type{}, rows_of(own), rows_of(key), rows_of(learned));
      run(some, std::true_type{}, rows_of(own), rows_of(key), rows_of(learned));
    };
    seen ? with_learned(std::true_type{}) : with_learned(std::false_type{});
  });
}

// ---- the finish ---------------------------------------------------------------------------------------------------

// A finish runs over a row of sums at a time; the learned scalars of the heads repeat along it.
template <class T, class Use>
void run_finish(const Program& program, const T* sums, const Finish<T>& f, int scalars, int vectors, int padded,
                Use use) {
  const int round = stages::period(padded) * kLanes, total = vectors * kLanes;
  const int most = std::min(kRun / round * round, total);
  Frame<T> frame(program, 1, most, f.width);
  T p[kMaxScalars][kRun];
  for (int i = 0; i < scalars; ++i) {
    for (int l = 0; l < most; ++l) p[i][l] = f.p[i * round + l % round];
    frame[1 + i] = {p[i], kSame};
  }
  for (int at = 0; at < total; at += most) {
    frame[0] = {sums + at, kSame};
    frame.run(1);
    use(frame, at, std::min(most, total - at));
  }
}

// The values of an output from number `at` of a row on.
template <class T>
Lanes<T> value_of(Frame<T>& frame, Out out, int at) {
  if (out.place < 0) return T(0);
  const auto x = Lanes<T>::load(frame[out.place][0] + at);
  return out.negative ? -x : x;
}

template <class T>
void formula_finish(const void* self, const T* sums, const Finish<T>& f, int vectors, int padded, T* to) {
  using V = Lanes<T>;
  const Formula& formula = *static_cast<const Formula*>(self);
  const int scalars = static_cast<int>(formula.start.size()), round = stages::period(padded) * kLanes;
  run_finish(formula.finish, sums, f, scalars, vectors, padded, [&](Frame<T>& frame, int first, int count) {
    for (int l = 0; l < count; l += kLanes) {
      V s = value_of(frame, formula.finish.outs[0], l) * V(f.scale);
      if (f.tempered) s = s * exp_of(-V::load(f.p + scalars * round + l % round));
      s.store(to + first + l);
    }
  });
}

template <class T>
void formula_finish_gradient(const void* self, const T* sums, const Finish<T>& f, int vectors, int padded, T* ds,
                             T* dp) {
  using V = Lanes<T>;
  const Formula& formula = *static_cast<const Formula*>(self);
  const auto& outs = formula.finish_gradient.outs;
  const int scalars = static_cast<int>(formula.start.size()), round = stages::period(padded) * kLanes;
  run_finish(formula.finish_gradient, sums, f, scalars, vectors, padded, [&](Frame<T>& frame, int first, int count) {
    for (int l = 0; l < count; l += kLanes) {
      V d = V::load(ds + first + l) * V(f.scale);
      // What takes no gradient passes none on, even where the slope is infinite: in lanes of no edge, among others.
      auto times = [&](const Out& slope) {
        return select(typename V::Mask(d.v != V(T(0)).v), d * value_of(frame, slope, l), V(T(0)));
      };
      auto add = [&](int i, V value) {
        T* const to = dp + i * round + l % round;
        if (dp) (V::load(to) + value).store(to);
      };
      if (f.tempered) {
        d = d * exp_of(-V::load(f.p + scalars * round + l % round));
        add(scalars, -times(outs.back()));
      }
      for (int i = 0; i < scalars; ++i) add(i, times(outs[static_cast<std::size_t>(i) + 1]));
      times(outs[0]).store(ds + first + l);
    }
  });
}

// Throws Error where a head's width makes some number infinite, as in 1/(d-1).
void check_width(const void* self, int width) {
  const Formula& formula = *static_cast<const Formula*>(self);
  std::vector<double>& numbers = room<double>().numbers;
  auto refuse = [&] {
    fail("the score '" + formula.text + "' is not finite for " + std::to_string(width) + " channels a head");
  };
  auto check = [&](const Program& program) {
    if (numbers.size() < program.fixed.size()) numbers.resize(program.fixed.size());
    program.fix(width, numbers.data());
    for (std::size_t i = 0; i < program.fixed.size(); ++i)
      if (!std::isfinite(static_cast<float>(numbers[i]))) refuse();
    for (const Step& step : program.steps)
      if (step.op == formula::Op::div && step.b >= kVariables &&
          step.b < kVariables + static_cast<int>(program.fixed.size()) &&
          numbers[static_cast<std::size_t>(step.b - kVariables)] == 0)
        refuse();
  };
  for (const auto& term : formula.term) check(term.sum), check(term.row), check(term.column);
  check(formula.finish), check(formula.finish_gradient);
}

template <class T>
ScoreStages<T> formula_stages() {
  ScoreStages<T> out;
  for (int at = 0; at < kScoreWidthCount; ++at) {
    out.sums[0][at] = formula_sums<T, false>, out.sums[1][at] = formula_sums<T, true>;
    out.gradient[0][at] = formula_gradient<T, false>, out.gradient[1][at] = formula_gradient<T, true>;
  }
  out.tile_sums = formula_tile_sums<T>;
  out.tile_gradient = formula_tile_gradient<T>;
  out.finish = formula_finish<T>;
  out.finish_gradient = formula_finish_gradient<T>;
  return out;
}

constexpr char kKind = 0;  // its address stands for all formulas

}  // namespace

Score score_formula(const std::string& text) {
  auto formula = std::make_shared<const Formula>(formula::parse(text));
  Score out;
  out.name = formula->text;
  out.about = {.formula = formula->text.c_str(), .paper = "a formula", .cost = "interpreted; CPU"};
  out.reads_query = formula->reads_query, out.reads_vector = formula->reads_vector;
  out.scalars = static_cast<int>(formula->start.size());
  out.start = formula->start;
  out.nonnegative = formula->nonnegative;
  out.has_finish = formula->has_finish;
  out.kind = &kKind;
  out.check_width = check_width;
  out.single = formula_stages<float>();
  out.twice = formula_stages<double>();
  out.self = std::move(formula);
  return out;
}

}  // namespace heed
