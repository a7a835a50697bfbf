#include "kernels/dense.h"

#include <functional>
#include <string>

#include "kernels/parallel.h"
#include "kernels/wide.h"

namespace heed {
namespace {

// A tile of the result, kTile rows x a panel's columns, stays in 6 or 12 registers.
constexpr int kTile = 6;
template <class T>
constexpr int kPanel = WideVec<T>::lanes * (sizeof(T) == 4 ? 2 : 1);
constexpr Offset kLong = 2048;  // rows that one partial sum of x^T dy takes in

void expect(const char* what, Offset a, Offset b) {
  if (a != b)
    fail(std::string("dense product: ") + what + " do not fit: " + std::to_string(a) + " and " + std::to_string(b));
}

// Rows or columns in runs of kTile, and what is left: run.template operator()<R>(first).
template <class Run>
HEED_FN void in_tiles(Offset first, Offset last, Run run) {
  for (; first + kTile <= last; first += kTile) run.template operator()<kTile>(first);
  switch (last - first) {
    case 1:
      return run.template operator()<1>(first);
    case 2:
      return run.template operator()<2>(first);
    case 3:
      return run.template operator()<3>(first);
    case 4:
      return run.template operator()<4>(first);
    case 5:
      return run.template operator()<5>(first);
  }
}

// to[r] (+)= bias + sum_t a(r, t) b[t] for R rows of the result, where number t of row r of `a` lies at
// a + r * across + t * along. N: vectors that the panel's columns fill.
template <int R, int N, class T>
struct Tile {
  using V = WideVec<T>;
  static constexpr int lanes = V::lanes;
  V sum[R][N];

  HEED_FN void begin(const DensePanel<T>& p, Offset row) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) {
        sum[r][v] = p.bias ? V::load(p.bias + lanes * v) : V(T(0));
        if (p.add) sum[r][v] = sum[r][v] + V::load(p.to.row(row + r) + lanes * v);
      }
  }
  HEED_FN void run(const T* a, Offset across, Offset along, const T* b, Offset b_stride, Offset count) {
    for (Offset t = 0; t < count; ++t, a += along, b += b_stride) {
      V from[N];
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) from[v] = V::load(b + lanes * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V factor = a[r * across];
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) sum[r][v] = sum[r][v] + factor * from[v];
      }
    }
  }
  HEED_FN void end(const DensePanel<T>& p, Offset row) const {
    if (!p.to) return end_parts(p, row);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v)
        if (p.width > lanes * v) store_first(sum[r][v], p.width - lanes * v, p.to.row(row + r) + lanes * v);
  }
  void end_parts(const DensePanel<T>& p, Offset row) const {
    alignas(64) T numbers[N * lanes];
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < N; ++v) sum[r][v].store(numbers + lanes * v);
      const T* from = numbers;
      for (const View<T>& part : p.parts)
        for (Offset c = 0; c < part.cols; ++c) part(row + r, c) = *from++;
    }
  }
};

// run.template operator()<N>() with the vectors that a panel of so many columns fills.
template <class T, class Run>
HEED_FN void in_vectors(int width, Run run) {
  if (width > WideVec<T>::lanes)
    run.template operator()<kPanel<T> / WideVec<T>::lanes>();
  else
    run.template operator()<1>();
}

// Rows [begin, end) of the panels: to (+)= bias + sum_s a_s b_s, the inner dimensions of the a_s one after the other.
template <class T>
void multiply(std::span<const DensePanel<T>> panels, Offset begin, Offset end, const std::uint8_t* needed) {
  for (const DensePanel<T>& p : panels)
    in_vectors<T>(p.width, [&]<int N>() {
      in_tiles(begin, end, [&]<int R>(Offset i) {
        if (needed && std::none_of(needed + i, needed + i + R, std::identity())) return;
        Tile<R, N, T> tile;
        tile.begin(p, i);
        const T* b = p.b;
        for (const View<const T>& part : p.a) {
          tile.run(part.row(i), part.stride, 1, b, p.stride, part.cols);
          b += part.cols * p.stride;
        }
        tile.end(p, i);
      });
    });
}

// Rows of a piece: some 5 us of work or one tile, or four times that where there are many, so that the panels come by
// less often. Their numbers should stay near meanwhile.
Offset piece(Offset rows, Offset in, Offset out) {
  const Offset near = 24576 / std::max<Offset>(1, in), worth = 250'000 / std::max<Offset>(1, in * out);
  return kTile * std::max<Offset>(1, std::min(near, std::clamp(rows / 64, worth, 4 * worth)) / kTile);
}

// Rows that are needed, side by side.
template <class T>
struct Gathered {
  Matrix<T> numbers;
  std::vector<View<const T>> x, dy;
  Offset rows = 0;

  // The next ones from `first` on, which comes to lie after them: at most `most`, before `end`.
  void take(const std::uint8_t* needed, Offset most, Offset& first, Offset end, std::span<const View<const T>> all_x,
            std::span<const View<const T>> all_dy) {
    Offset width = 0;
    for (auto tables : {all_x, all_dy})
      for (const View<const T>& table : tables) width += whole(table.cols);
    numbers.resize(most, width);
    for (rows = 0; first < end && rows < most; ++first) {
      if (!needed[first]) continue;
      T* to = numbers.row(rows++);
      for (auto tables : {all_x, all_dy})
        for (const View<const T>& table : tables)
          std::copy_n(table.row(first), table.cols, to), to += whole(table.cols);
    }
    Offset at = 0;
    for (auto [tables, views] : {std::pair{all_x, &x}, {all_dy, &dy}}) {
      views->clear();
      for (const View<const T>& table : tables) {
        views->push_back({numbers.data() + at, rows, table.cols, width});
        at += whole(table.cols);
      }
    }
  }
  static Offset whole(Offset cols) { return (cols + kPanel<T> - 1) / kPanel<T> * kPanel<T>; }
};
template <class T>
Gathered<T>& gathered() {
  thread_local Gathered<T> of_thread;
  return of_thread;
}

template <class T>
const View<const T>& of_map(std::span<const View<const T>> x, std::size_t m) {
  return x[x.size() == 1 ? 0 : m];
}

}  // namespace

template <class T>
void product(std::span<const View<const T>> x, std::span<const DenseMap<T>> maps, std::span<const Sink<T>> y,
             DenseRoom<T>& room, const std::uint8_t* needed) {
  const Offset rows = x[0].rows;
  Offset count = 0, in = 0, out = 0;
  for (std::size_t m = 0; m < maps.size(); ++m) {
    const DenseMap<T>& map = maps[m];
    const View<const T>& own = of_map(x, m);
    expect("columns of x and rows of w", own.cols, map.w.rows);
    expect("rows of the result and of x", y[m].to.rows, own.rows);
    expect("columns of the result and of w", y[m].to.cols, map.w.cols);
    if (map.bias) expect("columns of w and of the bias", map.w.cols, map.bias.cols);
    count += (map.w.cols + kPanel<T> - 1) / kPanel<T>, out += map.w.cols;
    in = std::max(in, own.cols);
  }
  // Each panel with its bias before it, in whole vectors.
  room.numbers.resize(count, (in + 1) * kPanel<T>);
  room.panels.clear(), room.parts.clear();
  room.parts.reserve(maps.size());  // panels point into it
  // Column c of a map and those after it come to lie in a panel from `place` on.
  auto put = [&](const DenseMap<T>& map, Offset c, int width, T* panel, int place) {
    const auto& [w, bias, s] = map;
    for (Offset k = -1; k < w.rows; ++k, panel += kPanel<T>) {
      const T* from = k >= 0 ? w.row(k) + c : bias ? bias.data + c : nullptr;
      for (int l = 0; l < width; ++l) panel[place + l] = from ? s * from[l] : T(0);
    }
  };
  auto panel_of = [&](std::size_t m, View<T> to, int width, bool add, bool biased) {
    T* panel = room.numbers.row(static_cast<Offset>(room.panels.size()));
    std::fill_n(panel, (of_map(x, m).cols + 1) * kPanel<T>, T(0));
    room.panels.push_back({panel + kPanel<T>, kPanel<T>, to, width, add, {&of_map(x, m), 1}, biased ? panel : nullptr});
    return panel;
  };
  for (std::size_t m = 0; m < maps.size();) {
    // Narrow maps of one x share a panel.
    std::size_t last = m;
    Offset together = 0;
    bool biased = false;
    for (; last < maps.size() && x.size() == 1 && !y[last].add; ++last) {
      if (together + maps[last].w.cols > kPanel<T>) break;
      together += maps[last].w.cols, biased = biased || maps[last].bias;
    }
    if (last > m + 1) {
      T* panel = panel_of(m, {}, static_cast<int>(together), false, biased);
      const std::size_t first = room.parts.size();
      for (int place = 0; m < last; place += static_cast<int>(maps[m++].w.cols)) {
        put(maps[m], 0, static_cast<int>(maps[m].w.cols), panel, place);
        room.parts.push_back(y[m].to);
      }
      room.panels.back().parts = std::span(room.parts).subspan(first);
      continue;
    }
    const DenseMap<T>& map = maps[m];
    for (Offset c = 0; c < map.w.cols; c += kPanel<T>) {
      const int width = static_cast<int>(std::min<Offset>(kPanel<T>, map.w.cols - c));
      put(map, c, width, panel_of(m, y[m].to.columns(c, width), width, y[m].add, bool(map.bias)), 0);
    }
    ++m;
  }
  parallel_pieces(rows, piece(rows, in, out),
                  [&](Offset begin, Offset end) { multiply<T>(room.panels, begin, end, needed); });
}

template <class T>
void product_by_transpose(std::span<const View<const T>> dy, std::span<const DenseMap<T>> maps, Sink<T> dx,
                          DenseRoom<T>& room, const std::uint8_t* needed) {
  Offset inner = 0;
  for (std::size_t m = 0; m < maps.size(); ++m) {
    expect("columns of dy and columns of w", dy[m].cols, maps[m].w.cols);
    expect("rows of dx and of dy", dx.to.rows, dy[m].rows);
    expect("columns of dx and rows of w", dx.to.cols, maps[m].w.rows);
    inner += dy[m].cols;
  }
  const Offset in = dx.to.cols, count = (in + kPanel<T> - 1) / kPanel<T>;
  room.numbers.resize(count, inner * kPanel<T>);
  room.panels.clear();
  for (Offset k = 0; k < in; k += kPanel<T>) {
    const int width = static_cast<int>(std::min<Offset>(kPanel<T>, in - k));
    T* to = room.numbers.row(k / kPanel<T>);
    room.panels.push_back({to, kPanel<T>, dx.to.columns(k, width), width, dx.add, dy});
    for (const auto& [w, bias, s] : maps)
      for (Offset c = 0; c < w.cols; ++c, to += kPanel<T>)
        for (int l = 0; l < kPanel<T>; ++l) to[l] = l < width ? s * w(k + l, c) : T(0);
  }
  parallel_pieces(dx.to.rows, piece(dx.to.rows, inner, in),
                  [&](Offset begin, Offset end) { multiply<T>(room.panels, begin, end, needed); });
}

template <class T>
void product_of_transpose(std::span<const View<const T>> x, std::span<const View<const T>> dy,
                          std::span<const DenseMap<T>> maps, std::span<const Sink<T>> dw,
                          std::span<const Sink<T>> dbias, DenseRoom<T>& room, const std::uint8_t* needed) {
  const Offset all = x[0].rows;
  Offset in = 0, out = 0;
  for (std::size_t m = 0; m < dy.size(); ++m) {
    const View<const T>& own = of_map(x, m);
    in = std::max(in, own.cols);
    expect("rows of x and rows of dy", own.rows, dy[m].rows);
    if (dw[m]) expect("rows of dw and columns of x", dw[m].to.rows, own.cols);
    if (dw[m]) expect("columns of dw and of dy", dw[m].to.cols, dy[m].cols);
    out += dy[m].cols;
  }
  // A partial sum: dw's of all maps side by side, and a row of the sums of dy.
  const Offset stride = (out + kPanel<T> - 1) / kPanel<T> * kPanel<T>, count = (all + kLong - 1) / kLong;
  room.numbers.resize(std::max<Offset>(count, 1), (in + 1) * stride);
  // Rows that are added to the tiles of dw at a time: so many that they outweigh the coming and going of the tiles, and
  // that a core's second cache holds.
  const Offset near = std::clamp<Offset>(std::max<Offset>(in * out, 65536) / std::max<Offset>(1, in + out), 64, 256);
  parallel_pieces(all, kLong, [&](Offset begin, Offset end) {
    const View<T> part{room.numbers.row(begin / kLong), in + 1, stride, stride};
    std::fill_n(part.data, (in + 1) * stride, T(0));
    Gathered<T>& some = gathered<T>();
    for (Offset first = begin; first < end;) {
      Offset rows = std::min(near, end - first), from = first;
      if (needed) {
        some.take(needed, near, first, end, x, dy);
        rows = some.rows, from = 0;
      } else {
        first += rows;
      }
      Offset at = 0;
      for (std::size_t m = 0; m < dy.size(); ++m) {
        const View<const T> d = needed ? some.dy[m] : dy[m], own = needed ? of_map<T>(some.x, m) : of_map(x, m);
        for (Offset c = 0; c < d.cols; c += kPanel<T>) {
          const int width = static_cast<int>(std::min<Offset>(kPanel<T>, d.cols - c));
          const DensePanel<T> p{d.row(from) + c, d.stride, part.columns(at + c, width), width, true, {}};
          in_vectors<T>(width, [&]<int N>() {
            in_tiles(0, own.cols, [&]<int R>(Offset k) {
              Tile<R, N, T> tile;
              tile.begin(p, k);
              tile.run(own.row(from) + k, 1, own.stride, p.b, p.stride, rows);
              tile.end(p, k);
            });
          });
        }
        T* sums = part.row(in) + at;
        if (!dbias.empty())
          for (Offset i = from; i < from + rows; ++i)
            for (Offset c = 0; c < d.cols; ++c) sums[c] += d(i, c);
        at += d.cols;
      }
    }
  });
  auto merge = [&](const Sink<T>& sink, Offset to, Offset row, Offset first, T s) {
    for (Offset c = 0; c < sink.to.cols; ++c) {
      T sum = 0;
      for (Offset p = 0; p < count; ++p) sum += room.numbers.row(p)[row * stride + first + c];
      T& d = sink.to(to, c);
      d = (sink.add ? d : T(0)) + s * sum;
    }
  };
  parallel_pieces(in + 1, std::max<Offset>(1, kElementGrain / std::max<Offset>(1, out * count)),
                  [&](Offset begin, Offset end) {
                    for (Offset i = begin; i < end; ++i) {
                      Offset first = 0;
                      for (std::size_t m = 0; m < dy.size(); ++m) {
                        if (dw[m] && i < dw[m].to.rows) merge(dw[m], i, i, first, maps[m].s);
                        if (i == in && !dbias.empty() && dbias[m]) merge(dbias[m], 0, i, first, maps[m].s);
                        first += dy[m].cols;
                      }
                    }
                  });
}

#define HEED_INSTANTIATE(T)                                                                                            \
  template void product(std::span<const View<const T>>, std::span<const DenseMap<T>>, std::span<const Sink<T>>,        \
                        DenseRoom<T>&, const std::uint8_t*);                                                           \
  template void product_by_transpose(std::span<const View<const T>>, std::span<const DenseMap<T>>, Sink<T>,            \
                                     DenseRoom<T>&, const std::uint8_t*);                                              \
  template void product_of_transpose(std::span<const View<const T>>, std::span<const View<const T>>,                   \
                                     std::span<const DenseMap<T>>, std::span<const Sink<T>>, std::span<const Sink<T>>, \
                                     DenseRoom<T>&, const std::uint8_t*);
HEED_INSTANTIATE(float)
HEED_INSTANTIATE(double)

}  // namespace heed
