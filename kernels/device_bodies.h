// What the kernels of a device do, each body written once: CUDA runs it (device_ops.cu), and so does a plain loop on
// the CPU in tests. Two kinds:
//
//   operator()(t)                               for each index t of a count; any order
//   step(s, block, thread, shared, local)       for each of a count of blocks of kThreads threads, in steps s = 0, 1,
//                                               ... of steps(block); all threads end a step before one begins the next
//
// Long sums are cut into parts that depend on shapes alone. The block that is the last to leave its part merges them,
// in their order: no atomic sums, the same bits in every run.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "kernels/activations.h"
#include "kernels/ahead.h"
#include "kernels/device_ops.h"
#include "kernels/jet.h"

namespace heed::bodies {

template <class T>
struct Table {  // a View for device code
  T* data = nullptr;
  Offset rows = 0, cols = 0, stride = 0;

  Table() = default;
  template <class U>
  Table(View<U> x) : data(x.data), rows(x.rows), cols(x.cols), stride(x.stride) {}
  HEED_FN T& operator()(Offset i, Offset c) const { return data[i * stride + c]; }
  HEED_FN T* row(Offset i) const { return data + i * stride; }
  HEED_FN explicit operator bool() const { return data != nullptr; }
};
using In = Table<const float>;

struct Out {  // a Sink for device code
  Table<float> to;
  bool add = false;

  Out() = default;
  Out(const Sink<float>& sink) : to(sink.to), add(sink.add) {}
  Out(View<float> view) : to(view) {}
  HEED_FN explicit operator bool() const { return static_cast<bool>(to); }
  HEED_FN void put(Offset i, Offset c, float x) const {
    float& at = to(i, c);
    at = add ? at + x : x;
  }
};

struct Cell {
  Offset i, c;
};
HEED_FN Cell small_cell(Offset t, Offset cols) {  // of blocks, which are no more than 32 bits count
  const auto small = static_cast<std::uint32_t>(t), width = static_cast<std::uint32_t>(cols);
  return {small / width, small % width};
}
HEED_FN Cell cell(Offset t, Offset cols) {
  if (t <= 0xffffffff) return small_cell(t, cols);  // division is dear, of 64 bits more so
  return {t / cols, t % cols};
}

// After what was written before it, for blocks that see the ticket.
HEED_FN void publish() {
#ifdef __CUDA_ARCH__
  __threadfence();
#endif
}
HEED_FN unsigned take(unsigned* ticket) {
#ifdef __CUDA_ARCH__
  const unsigned got = atomicAdd(ticket, 1);
  __threadfence();
  return got;
#else
  return (*ticket)++;
#endif
}
template <class T>
HEED_FN T fresh(const T* at) {  // what another block has published
#ifdef __CUDA_ARCH__
  return __ldcg(at);
#else
  return *at;
#endif
}

// Elementwise.

struct Fill {
  Table<float> to;
  float value;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, to.cols);
    to(i, c) = value;
  }
};
struct AddTo {
  In from;
  Out to;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, from.cols);
    to.put(i, c, from(i, c));
  }
};
// Elementwise over whole arrays: a link, and a chain of them in one kernel. What a link writes at t, a later one may
// read at t; those that read elsewhere begin a new chain (DeviceOps::chain).
constexpr int kVectors = 4;  // of a contraction at a time
struct ContractBack {        // sum_r dy_i,r*heads+h a_r,hd, of contract's gradient
  In dy;
  const float* a[kVectors] = {};
  int width = 1, count = 0;
  Offset heads = 1;
  HEED_FN float at(Offset i, Offset c) const {
    const auto h = static_cast<std::uint32_t>(c) / static_cast<std::uint32_t>(width);
    float sum = 0;
    for (int r = 0; r < count; ++r) sum += dy(i, r * heads + h) * a[r][c];
    return sum;
  }
};
struct Link {
  enum class Kind { copy, sum, bias, map, map_back, drop, contract_back };
  Kind kind;
  const float* a = nullptr;  // copy, drop: from; the others: x
  const float* b = nullptr;  // sum: the other; bias: 1 x cols; map_back: dy
  float* to;
  bool add = false;
  Offset cols = 0;
  int f = 0;         // map, map_back: its place in activations::List
  float factor = 0;  // of Scale; of what is not dropped
  std::uint32_t threshold = 0;
  const std::uint64_t* key = nullptr;
  ContractBack contract = {};

  template <class X>
  HEED_FN X mapped(X x) const {
    X out = x;
    activations::with_activation(f, factor, [&](auto function) { out = function(x); });
    return out;
  }
  HEED_FN float drops(Offset t) const {  // as dropout() of layers/ops.h draws
    const std::uint64_t row = mix(*key, static_cast<std::uint64_t>(t) / 1024);
    return drop_bits(row, static_cast<std::uint32_t>(t % 1024), 0) < threshold ? 0.0f : factor;
  }
  HEED_FN float value(Offset t) const {
    switch (kind) {
      case Kind::copy:
        return a[t];
      case Kind::sum:
        return a[t] + b[t];
      case Kind::bias:
        return a[t] + b[cell(t, cols).c];
      case Kind::map:
        return mapped(a[t]);
      case Kind::map_back:
        return b[t] * mapped(variable<0>(a[t])).d[0];
      case Kind::drop:
        return a[t] * drops(t);
      case Kind::contract_back: {
        const auto [i, c] = cell(t, cols);
        return contract.at(i, c);
      }
    }
    return 0;
  }
  HEED_FN void operator()(Offset t) const {
    const float x = value(t);
    to[t] = add ? to[t] + x : x;
  }
};
struct Chain {
  static constexpr int kMost = 4;
  Link links[kMost];
  int count = 0;
  HEED_FN void operator()(Offset t) const {
    for (int l = 0; l < count; ++l) links[l](t);
  }
};
struct Pick {  // to_t (+)= from_ids[t]
  const Id* ids;
  In from;
  Out to;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, from.cols);
    to.put(i, c, from(ids[i], c));
  }
};
struct PutBack {  // to_i (+)= the sum of from_t over the positions t of row i
  const Offset* offsets;
  const Id* positions;
  In from;
  Out to;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, from.cols);
    float sum = to.add ? to.to(i, c) : 0.0f;
    for (Offset at = offsets[i]; at < offsets[i + 1]; ++at) sum += from(positions[at], c);
    to.to(i, c) = sum;
  }
};
struct PickEntries {
  const Offset* entry;
  const float* from;
  float* to;
  HEED_FN void operator()(Offset t) const { to[t] = from[entry[t]]; }
};
struct Grow {  // [x 0; 0 I]
  In x;
  Table<float> y;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, y.cols);
    const bool inside = i < x.rows && c < x.cols;
    y(i, c) = inside ? x(i, c) : (i >= x.rows && i - x.rows == c - x.cols ? 1.0f : 0.0f);
  }
};
struct ScaleRows {  // y_i = scale_i x_i
  In x;
  const float* scale;
  Table<float> y;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, x.cols);
    y(i, c) = scale[i] * x(i, c);
  }
};

// Heads.

struct MeanHeads {
  In x;
  int heads;
  float part;
  Table<float> y;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, y.cols);
    float sum = 0;
    for (int h = 0; h < heads; ++h) sum += x(i, h * y.cols + c);
    y(i, c) = sum * part;
  }
};
struct MeanHeadsBack {
  In dy;
  float part;
  Out dx;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, dx.to.cols);
    dx.put(i, c, dy(i, c % dy.cols) * part);
  }
};
struct Contract {  // y_i,r*heads+h = sum_d a_r,hd x_ihd
  In x;
  const float* a[kVectors];
  int heads, width, count;
  Table<float> y;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, heads);
    const float* row = x.row(i) + c * width;
    float sums[kVectors] = {};
    for (int d = 0; d < width; ++d) {
      const float value = row[d];
      HEED_UNROLL
      for (int r = 0; r < kVectors; ++r)
        if (r < count) sums[r] += a[r][c * width + d] * value;
    }
    HEED_UNROLL
    for (int r = 0; r < kVectors; ++r)
      if (r < count) y(i, r * heads + c) = sums[r];
  }
};
// x less its mean (centres), then over its norm (units), for the channels of each head.
template <bool centres, bool units>
struct Prepare {
  In x;
  int heads, width;
  Table<float> y, kept;  // kept: rows x heads, the factor
  HEED_FN void operator()(Offset t) const {
    const auto [i, h] = cell(t, heads);
    const float* from = x.row(i) + h * width;
    float* to = y.row(i) + h * width;
    float middle = 0, most = 0, square = 0;
    if (centres) {
      for (int d = 0; d < width; ++d) middle += from[d];
      middle /= static_cast<float>(width);
      for (int d = 0; d < width; ++d) most = fmaxf(most, fabsf(from[d] - middle));
      // What is constant but for rounding becomes 0.
      if (most <= 8 * 1.1920929e-7f * fabsf(middle)) {
        for (int d = 0; d < width; ++d) to[d] = 0;
        kept(i, h) = units ? 0.0f : 1.0f;
        return;
      }
    }
    if (units)
      for (int d = 0; d < width; ++d) square += (from[d] - middle) * (from[d] - middle);
    const float norm = sqrtf(square), factor = !units ? 1.0f : norm > 0 ? 1 / norm : 0.0f;
    for (int d = 0; d < width; ++d) to[d] = (from[d] - middle) * factor;
    kept(i, h) = factor;
  }
};
template <bool centres, bool units>
struct PrepareBack {
  In y, dy, kept;
  int heads, width;
  Out dx;
  HEED_FN void operator()(Offset t) const {
    const auto [i, h] = cell(t, heads);
    const float *out = y.row(i) + h * width, *d = dy.row(i) + h * width;
    float middle = 0, along = 0;
    for (int c = 0; c < width; ++c) middle += d[c], along += out[c] * d[c];
    middle = centres ? middle / static_cast<float>(width) : 0;
    if (!units) along = 0;
    for (int c = 0; c < width; ++c) dx.put(i, h * width + c, (d[c] - middle - out[c] * along) * kept(i, h));
  }
};

struct Gate {  // y_i = x_i sigmoid(u_i)
  In x, u;
  Table<float> y;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, x.cols);
    y(i, c) = x(i, c) / (1 + expf(-u(i, 0)));
  }
};
struct GateBack {  // by rows
  In x, u, dy;
  Out dx, du;
  HEED_FN void operator()(Offset i) const {
    const float factor = 1 / (1 + expf(-u(i, 0)));
    float sum = 0;
    for (Offset c = 0; c < x.cols; ++c) {
      sum += dy(i, c) * x(i, c);
      if (dx) dx.put(i, c, factor * dy(i, c));
    }
    if (du) du.put(i, 0, factor * (1 - factor) * sum);
  }
};

// Norms. Those of a layer: 32 threads a row.

struct LayerNorm {
  static constexpr int kThreads = 256, kLanes = 32, kRows = kThreads / kLanes;
  In x, gain, shift;
  float epsilon;
  Table<float> y, moments;  // moments: rows x 2, the mean and one over the deviation
  struct Shared {
    float sums[kThreads], squares[kThreads];
  };
  struct Local {
    float mean, inverse;
  };
  static Offset blocks(Offset rows) { return (rows + kRows - 1) / kRows; }
  HEED_FN int steps(Offset) const { return 3; }
  HEED_FN void step(int s, Offset block, int thread, Shared& shared, Local& local) const {
    const int lane = thread % kLanes, first = thread - lane;
    const Offset i = block * kRows + thread / kLanes;
    const auto width = static_cast<float>(x.cols);
    if (i >= x.rows) return;
    if (s == 0) {
      float sum = 0;
      for (Offset c = lane; c < x.cols; c += kLanes) sum += x(i, c);
      shared.sums[thread] = sum;
    } else if (s == 1) {
      float sum = 0, square = 0;
      for (int l = 0; l < kLanes; ++l) sum += shared.sums[first + l];
      local.mean = sum / width;
      for (Offset c = lane; c < x.cols; c += kLanes) square += (x(i, c) - local.mean) * (x(i, c) - local.mean);
      shared.squares[thread] = square;
    } else {
      float square = 0;
      for (int l = 0; l < kLanes; ++l) square += shared.squares[first + l];
      local.inverse = 1 / sqrtf(square / width + epsilon);
      for (Offset c = lane; c < x.cols; c += kLanes)
        y(i, c) = (x(i, c) - local.mean) * local.inverse * gain(0, c) + shift(0, c);
      if (lane == 0) moments(i, 0) = local.mean, moments(i, 1) = local.inverse;
    }
  }
};
struct LayerNormBack {
  static constexpr int kThreads = 256, kLanes = 32, kRows = kThreads / kLanes;
  In x, gain, dy, moments;
  Out dx;
  struct Shared {
    float along[kThreads], total[kThreads];
  };
  struct Local {};
  static Offset blocks(Offset rows) { return (rows + kRows - 1) / kRows; }
  HEED_FN int steps(Offset) const { return 2; }
  HEED_FN void step(int s, Offset block, int thread, Shared& shared, Local&) const {
    const int lane = thread % kLanes, first = thread - lane;
    const Offset i = block * kRows + thread / kLanes;
    if (i >= x.rows) return;
    const float mean = moments(i, 0), inverse = moments(i, 1);
    float along = 0, total = 0;  // <g, xhat> and the sum of g, with g = dy * gain
    if (s == 0) {
      for (Offset c = lane; c < x.cols; c += kLanes) {
        const float g = dy(i, c) * gain(0, c);
        along += g * (x(i, c) - mean) * inverse, total += g;
      }
      shared.along[thread] = along, shared.total[thread] = total;
      return;
    }
    for (int l = 0; l < kLanes; ++l) along += shared.along[first + l], total += shared.total[first + l];
    for (Offset c = lane; c < x.cols; c += kLanes) {
      const float hat = (x(i, c) - mean) * inverse;
      dx.put(i, c, inverse * (dy(i, c) * gain(0, c) - (total + hat * along) / static_cast<float>(x.cols)));
    }
  }
};
struct BatchNorm {
  In x, gain, shift, mean, inverse;
  Table<float> y;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, x.cols);
    y(i, c) = (x(i, c) - mean(0, c)) * inverse(0, c) * gain(0, c) + shift(0, c);
  }
};
struct MomentsAtRest {  // outside training: those that have run along
  In running_mean, running_variance;
  float epsilon;
  Table<float> mean, inverse;
  HEED_FN void operator()(Offset c) const {
    mean(0, c) = running_mean(0, c);
    inverse(0, c) = 1 / sqrtf(running_variance(0, c) + epsilon);
  }
};
struct BatchNormBack {
  In x, gain, dy, mean, inverse, sums;  // sums: <dy, xhat> and the sum of dy, per channel
  bool batch;
  Out dx;
  HEED_FN void operator()(Offset t) const {
    const auto [i, c] = cell(t, x.cols);
    float g = dy(i, c);
    if (batch) {
      const float hat = (x(i, c) - mean(0, c)) * inverse(0, c);
      g -= (sums(0, x.cols + c) + hat * sums(0, c)) / static_cast<float>(x.rows);
    }
    dx.put(i, c, g * gain(0, c) * inverse(0, c));
  }
};

// Sums that a block's threads make together: `columns` of them side by side (a power of 2), the others in lanes. A job
// says:
//   width                          columns of a result
//   where(block) -> {column, part, parts, first, ticket}   of its total's parts this is number `part`; they lie from
//                                  row `first` on; blocks of one total share a ticket
//   sum(block, lane, lanes, c)     what one thread gathers
//   put(block, c, total)
struct Where {
  Offset column;
  Offset part = 0, parts = 1, first = 0, ticket = 0;
};
template <class Job>
struct Reduce {
  static constexpr int kThreads = 256;
  using Number = typename Job::Number;
  Job job;
  int columns, lanes;  // kThreads together
  Number* parts;
  unsigned* tickets;
  struct Shared {
    Number sums[kThreads];
    bool last;
  };
  struct Local {
    Where at;
    Offset c;
    bool there;
  };
  static constexpr int kFan = 16;  // sums that are added in one step

  HEED_FN int levels() const { return lanes > kFan ? 2 : lanes > 1 ? 1 : 0; }
  HEED_FN int steps(Offset block) const {
    return job.where(block).parts > 1 ? 2 * levels() + 5 : levels() + 2;
  }
  HEED_FN void step(int s, Offset block, int thread, Shared& shared, Local& local) const {
    const int lane = thread / columns, levels = this->levels();
    Number& mine = shared.sums[thread];
    auto tree = [&](int level) {
      const int before = level == 1 ? lanes : lanes / kFan, after = before > kFan ? before / kFan : 1;
      if (lane >= after) return;
      Number sum = 0;
      HEED_AHEAD
      for (int from = 0; from < before; from += after) sum += shared.sums[thread + from * columns];
      mine = sum;
    };
    if (s == 0) {
      local.at = job.where(block);
      local.c = local.at.column + thread % columns, local.there = local.c < job.width;
    }
    const Where& at = local.at;
    const Offset c = local.c;
    if (s == 0) {
      mine = local.there ? job.sum(block, lane, lanes, c) : Number(0);
    } else if (s <= levels) {
      tree(s);
    } else if (s == levels + 1) {
      if (lane > 0 || !local.there) return;
      if (at.parts == 1) return job.put(block, c, mine);
      parts[(at.first + at.part) * job.width + c] = mine;
      publish();
    } else if (s == levels + 2) {
      if (thread > 0) return;
      shared.last = take(tickets + at.ticket) + 1 == at.parts;
      if (shared.last) tickets[at.ticket] = 0;
    } else if (!shared.last) {
      return;
    } else if (s == levels + 3) {
      Number sum = 0;
      if (local.there)
        for (Offset p = lane; p < at.parts; p += lanes) sum += fresh(parts + (at.first + p) * job.width + c);
      mine = sum;
    } else if (s <= 2 * levels + 3) {
      tree(s - levels - 3);
    } else if (lane == 0 && local.there) {
      job.put(block, c, mine);
    }
  }
};

// Sums over the rows of a table. A term says at(i, c) and put(c, total), and its Number; and kLong where at() is so
// long that several at once are no gain.
template <class Term>
struct OverRows {
  using Number = typename Term::Number;
  Term term;
  Offset rows, width, tiles, piece, pieces;
  int columns;
  HEED_FN Where where(Offset block) const {
    const auto [part, tile] = small_cell(block, tiles);
    return {tile * columns, part, pieces, 0, tile};
  }
  HEED_FN Number sum(Offset block, int lane, int lanes, Offset c) const {
    const Offset begin = small_cell(block, tiles).i * piece, end = begin + piece < rows ? begin + piece : rows;
    Number out = 0;
    if constexpr (requires { Term::kLong; }) {
      HEED_ONE_BY_ONE
      for (Offset i = begin + lane; i < end; i += lanes) out += term.at(i, c);
    } else {
      HEED_AHEAD
      for (Offset i = begin + lane; i < end; i += lanes) out += term.at(i, c);
    }
    return out;
  }
  HEED_FN void put(Offset, Offset c, Number total) const { term.put(c, total); }
};

// Up to so many tables side by side, read and written as one.
constexpr int kBeside = 4;
struct Side {
  int count = 0;
  const float* data[kBeside] = {};
  Offset stride[kBeside] = {}, end[kBeside] = {};
  float s[kBeside] = {};

  Side() = default;
  Side(View<const float> x) { add(x, 1); }
  void add(View<const float> x, float scale) {
    data[count] = x.data, stride[count] = x.stride, s[count] = scale;
    end[count] = cols() + x.cols;
    ++count;
  }
  HEED_FN Offset cols() const { return count > 0 ? end[count - 1] : 0; }
  struct Column {
    const float* at;  // its first number; null: it is 1 all along
    Offset stride;
    float scale;
  };
  HEED_FN Column column(Offset j) const {
    int m = 0;
    Offset begin = 0;
    while (m + 1 < count && j >= end[m]) begin = end[m++];
    return {data[m] + j - begin, stride[m], s[m]};
  }
};
struct IntoSide {
  int count = 0;
  float* data[kBeside] = {};  // null: nobody wants it
  Offset stride[kBeside] = {}, end[kBeside] = {};
  float s[kBeside] = {};
  bool adds[kBeside] = {};
  const float* bias[kBeside] = {};  // null: 0
  float* last[kBeside] = {};        // where row `last_row` goes
  bool last_adds[kBeside] = {};
  Offset last_row = -1;

  IntoSide() = default;
  IntoSide(const Sink<float>& y) { add(y, y.to.cols, 1, nullptr); }
  void add(const Sink<float>& y, Offset cols, float scale, const float* by, const Sink<float>& sums = {}) {
    data[count] = y.to.data, stride[count] = y.to.stride, adds[count] = y.add;
    s[count] = scale, bias[count] = by, last[count] = sums.to.data, last_adds[count] = sums.add;
    end[count] = (count > 0 ? end[count - 1] : 0) + cols;
    ++count;
  }
  struct Place {  // where a number goes: to (+)= scale (number + bias)
    float* to = nullptr;  // null: nowhere
    float scale = 0, before = 0, bias = 0;
  };
  HEED_FN Place place(Offset i, Offset j) const {
    int m = 0;
    Offset begin = 0;
    while (m + 1 < count && j >= end[m]) begin = end[m++];
    Place out{i == last_row ? last[m] : data[m] ? data[m] + i * stride[m] : nullptr, s[m], 0, 0};
    if (!out.to) return out;
    out.to += j - begin;
    if (bias[m]) out.bias = bias[m][j - begin];
    if (i == last_row ? last_adds[m] : adds[m]) out.before = *out.to;
    return out;
  }
};
// Terms of sums over rows.

struct ColumnSum {
  using Number = float;
  In x;
  float s;
  Out to;  // 1 x columns
  HEED_FN float at(Offset i, Offset c) const { return x(i, c); }
  HEED_FN void put(Offset c, float total) const { to.put(0, c, s * total); }
};
struct ContractSum {  // da_r,hd = sum_i dy_i,r*heads+h x_ihd
  using Number = float;
  In dy, x;
  Offset heads, width, total;
  Out da[kVectors];
  HEED_FN float at(Offset i, Offset c) const {
    const Offset r = c / total, channel = c % total;
    return dy(i, r * heads + channel / width) * x(i, channel);
  }
  HEED_FN void put(Offset c, float sum) const {
    if (const Out& to = da[c / total]) to.put(0, c % total, sum);
  }
};
struct LayerNormSum {  // of the gain, then of the shift
  using Number = float;
  In x, dy, moments;
  Out dgain, dshift;
  HEED_FN float at(Offset i, Offset c) const {
    if (c >= x.cols) return dy(i, c - x.cols);
    return dy(i, c) * (x(i, c) - moments(i, 0)) * moments(i, 1);
  }
  HEED_FN void put(Offset c, float sum) const {
    const bool shift = c >= x.cols;
    if (const Out& to = shift ? dshift : dgain) to.put(0, shift ? c - x.cols : c, sum);
  }
};
struct MeanSum {
  using Number = float;
  In x;
  Table<float> mean;
  HEED_FN float at(Offset i, Offset c) const { return x(i, c); }
  HEED_FN void put(Offset c, float sum) const { mean(0, c) = sum / static_cast<float>(x.rows); }
};
struct VarianceSum {  // and the moments that run along
  using Number = float;
  In x, mean;
  float epsilon;
  Table<float> inverse, running_mean, running_variance;
  HEED_FN float at(Offset i, Offset c) const { return (x(i, c) - mean(0, c)) * (x(i, c) - mean(0, c)); }
  HEED_FN void put(Offset c, float square) const {
    const auto n = static_cast<float>(x.rows);
    inverse(0, c) = 1 / sqrtf(square / n + epsilon);
    float &m = running_mean(0, c), &v = running_variance(0, c);
    m += 0.1f * (mean(0, c) - m);
    v += 0.1f * (square / (n - 1) - v);
  }
};
struct BatchNormSum {
  using Number = float;
  In x, dy, mean, inverse;
  Table<float> sums;
  Out dgain, dshift;
  HEED_FN float at(Offset i, Offset c) const {
    if (c >= x.cols) return dy(i, c - x.cols);
    return dy(i, c) * (x(i, c) - mean(0, c)) * inverse(0, c);
  }
  HEED_FN void put(Offset c, float sum) const {
    const bool shift = c >= x.cols;
    sums(0, c) = sum;
    if (const Out& to = shift ? dshift : dgain) to.put(0, shift ? c - x.cols : c, sum);
  }
};

// Dense products.

struct Factor {  // tables, or their transpose; column `ones` of the tables is 1 all along
  Side side;
  bool transposed = false;
  Offset ones = -1;
  HEED_FN Side::Column column(Offset j) const { return j == ones ? Side::Column{nullptr, 0, 1} : side.column(j); }
};

// c (+)= s (a b + bias), with the sum over k in pieces.
// Template arguments: rows and columns of a block, and of a thread, and how many of k it takes in a step.
template <int kTileRows, int kTileCols, int kRows, int kCols, int kAhead>
struct Product {
  static constexpr int kAcross = kTileCols / kCols, kThreads = kTileRows / kRows * kAcross, kDepth = kAhead;
  Factor a, b;  // m x k, k x n
  Offset m, n, k;
  IntoSide c;
  Offset piece, pieces;  // of k
  float* parts;          // pieces x m x n
  unsigned* tickets;     // one a tile
  struct Shared {
    float a[2][kDepth][kTileRows + 1], b[2][kDepth][kTileCols + 1];
    bool last;
  };
  struct Local {
    float sums[kRows][kCols];
    Offset tile, part, row, col, begin, end;
  };
  HEED_FN Offset tiles_across() const { return (n + kTileCols - 1) / kTileCols; }
  HEED_FN Offset tiles() const { return (m + kTileRows - 1) / kTileRows * tiles_across(); }
  HEED_FN int steps(Offset block) const {
    const Offset begin = small_cell(block, tiles()).i * piece, end = begin + piece < k ? begin + piece : k;
    return depths(begin, end) + (pieces > 1 ? 3 : 1);
  }
  HEED_FN static int depths(Offset begin, Offset end) { return static_cast<int>((end - begin + kDepth - 1) / kDepth); }

  // put(i, t, value) for what a tile has of a factor: i counts rows of a or columns of b from `tile` on, t counts along
  // k from `first` on. Neighbouring threads read what lies together in the tables' rows. A thread has one column of the
  // tables, and all that it reads of it is on its way before the first is needed.
  template <int kWide, class Put>
  HEED_FN static void load(int thread, const Factor& from, bool along_k, Offset tile, Offset tile_end, Offset first,
                           Offset stop, Put put) {
    constexpr int kEach = kWide * kDepth / kThreads;
    static_assert(kEach * kThreads == kWide * kDepth && kThreads % kWide == 0 && kThreads % kDepth == 0);
    const int across = along_k ? kDepth : kWide, mine = thread % across, begin = thread / across;
    const int step = kThreads / across;
    const Offset column = (along_k ? first : tile) + mine, row = (along_k ? tile : first) + begin;
    const bool there = column < (along_k ? stop : tile_end);
    const Offset rows = there ? (along_k ? tile_end : stop) - row : 0;  // that are left
    const Side::Column line = there ? from.column(column) : Side::Column{};
    const float* at = line.at ? line.at + row * line.stride : nullptr;
    const Offset stride = step * line.stride;
    float values[kEach];
    HEED_UNROLL
    for (int e = 0; e < kEach; ++e) {
      values[e] = e * step >= rows ? 0.0f : at ? *at : 1.0f;
      if (at) at += stride;
    }
    HEED_UNROLL
    for (int e = 0; e < kEach; ++e) {
      const int other = begin + e * step;
      put(along_k ? other : mine, along_k ? mine : other, values[e] * line.scale);
    }
  }
  HEED_FN void step(int s, Offset block, int thread, Shared& shared, Local& local) const {
    if (s == 0) {
      const auto [part, tile] = small_cell(block, tiles());
      const auto [down, across] = small_cell(tile, tiles_across());
      local.part = part, local.tile = tile, local.row = down * kTileRows, local.col = across * kTileCols;
      local.begin = part * piece, local.end = local.begin + piece < k ? local.begin + piece : k;
      HEED_UNROLL
      for (int r = 0; r < kRows; ++r) {
        HEED_UNROLL
        for (int q = 0; q < kCols; ++q) local.sums[r][q] = 0;
      }
    }
    const Offset tile = local.tile, row = local.row, col = local.col;
    const int depth = depths(local.begin, local.end), across = thread % kAcross, down = thread / kAcross * kRows;
    if (s < depth) {
      const Offset first = local.begin + Offset{s} * kDepth;
      load<kTileRows>(thread, a, !a.transposed, row, m, first, local.end,
                      [&](int i, int t, float value) { shared.a[s & 1][t][i] = value; });
      load<kTileCols>(thread, b, b.transposed, col, n, first, local.end,
                      [&](int j, int t, float value) { shared.b[s & 1][t][j] = value; });
    }
    if (s > 0 && s <= depth) {
      const int from = (s - 1) & 1;
      HEED_UNROLL
      for (int t = 0; t < kDepth; ++t) {
        float left[kRows], right[kCols];
        HEED_UNROLL
        for (int r = 0; r < kRows; ++r) left[r] = shared.a[from][t][down + r];
        HEED_UNROLL
        for (int q = 0; q < kCols; ++q) right[q] = shared.b[from][t][across + q * kAcross];
        HEED_UNROLL
        for (int r = 0; r < kRows; ++r) {
          HEED_UNROLL
          for (int q = 0; q < kCols; ++q) local.sums[r][q] += left[r] * right[q];
        }
      }
    }
    if (s < depth) return;
    if (s == depth + 1) {
      if (thread > 0) return;
      shared.last = take(tickets + tile) + 1 == static_cast<unsigned>(pieces);
      if (shared.last) tickets[tile] = 0;
      return;
    }
    if (s == depth + 2 && !shared.last) return;
    const bool parts_first = s == depth && pieces > 1;
    HEED_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Offset i = row + down + r;
      if (i >= m) break;
      auto each = [&](auto use) {
        HEED_UNROLL
        for (int q = 0; q < kCols; ++q)
          if (col + across + q * kAcross < n) use(q, col + across + q * kAcross);
      };
      if (parts_first) {
        each([&](int q, Offset j) { parts[(local.part * m + i) * n + j] = local.sums[r][q]; });
        continue;
      }
      // What a thread reads of a row is on its way before the first is needed.
      typename IntoSide::Place places[kCols];
      each([&](int q, Offset j) { places[q] = c.place(i, j); });
      if (pieces > 1) {
        each([&](int q, Offset) { local.sums[r][q] = 0; });
        constexpr int kTogether = 8;
        const float* at = parts + i * n;
        const Offset stride = m * n;
        for (Offset p = 0; p < pieces; p += kTogether) {
          float some[kTogether][kCols];
          HEED_UNROLL
          for (int u = 0; u < kTogether; ++u) {
            each([&](int q, Offset j) { some[u][q] = p + u < pieces ? fresh(at + j) : 0.0f; });
            at += stride;
          }
          HEED_UNROLL
          for (int u = 0; u < kTogether; ++u) each([&](int q, Offset) { local.sums[r][q] += some[u][q]; });
        }
      }
      each([&](int q, Offset) {
        const auto& place = places[q];
        if (place.to) *place.to = place.before + place.scale * (local.sums[r][q] + place.bias);
      });
    }
    if (parts_first) publish();
  }
};
using WideProduct = Product<64, 64, 4, 4, 16>;
using NarrowProduct = Product<64, 16, 2, 2, 64>;

// visit(c, x_ic) for the columns c of row i, of which several are fetched side by side.
template <class Visit>
HEED_FN void each_column(const In& x, Offset i, Visit visit) {
  constexpr int kTogether = 8;
  const float* row = x.row(i);
  for (Offset first = 0; first < x.cols; first += kTogether) {
    float values[kTogether];
    HEED_UNROLL
    for (int u = 0; u < kTogether; ++u) values[u] = first + u < x.cols ? row[first + u] : 0.0f;
    HEED_UNROLL
    for (int u = 0; u < kTogether; ++u)
      if (first + u < x.cols) visit(first + u, values[u]);
  }
}
HEED_FN float greatest(const In& x, Offset i) {
  float top = -__builtin_inff();
  each_column(x, i, [&](Offset c, float v) { top = c == 0 || v > top ? v : top; });
  return top;
}

// Losses. target[i]: the label of row i, or -1 where it takes no part.

struct LossOfRow {
  In x;
  const Id* target;
  const float* weight;  // a class
  float hit, smoothing, spread_all, all;
  bool binary;

  HEED_FN float binary_target(Id label, Offset c) const {
    const bool is = x.cols == 1 ? label == 1 : label == c;
    return (is ? hit : 0.0f) + smoothing / 2;
  }
  HEED_FN float log_total(Offset i) const {
    const float top = greatest(x, i);
    float total = 0;
    each_column(x, i, [&](Offset, float v) { total += expf(v - top); });
    return top + logf(total);
  }
  HEED_FN float spread() const { return smoothing / static_cast<float>(x.cols); }
  HEED_FN float value(Offset i) const {
    const Id label = target[i];
    if (label < 0) return 0;
    float loss = 0;
    if (binary) {
      each_column(x, i, [&](Offset c, float v) {  // log(1 + e^x) - t x
        loss += fmaxf(v, 0.0f) + log1pf(expf(-fabsf(v))) - binary_target(label, c) * v;
      });
      return weight[label] * loss;
    }
    const float total = log_total(i);
    loss = hit * weight[label] * (total - x(i, label));
    if (smoothing > 0)
      each_column(x, i, [&](Offset c, float v) { loss += spread() * weight[c] * (total - v); });
    return loss;
  }
  template <class Put>
  HEED_FN void gradient(Offset i, float d, Put put) const {
    const Id label = target[i];
    if (binary) {
      each_column(x, i, [&](Offset c, float v) {
        put(c, d * weight[label] * (1 / (1 + expf(-v)) - binary_target(label, c)));
      });
      return;
    }
    const float total = log_total(i), mass = hit * weight[label];
    each_column(x, i, [&](Offset c, float v) {
      put(c, d * ((mass + spread_all) * expf(v - total) - spread() * weight[c] - (c == label ? mass : 0.0f)));
    });
  }
};
struct LossSum {
  using Number = float;
  static constexpr bool kLong = true;
  LossOfRow loss;
  float* y;
  HEED_FN float at(Offset i, Offset) const { return loss.value(i); }
  HEED_FN void put(Offset, float sum) const { *y = sum / loss.all; }
};
struct LossBack {  // by rows
  LossOfRow loss;
  const float* dy;
  Out dx;
  HEED_FN void operator()(Offset i) const {
    if (loss.target[i] >= 0)
      loss.gradient(i, *dy / loss.all, [&](Offset c, float d) { dx.put(i, c, d); });
    else if (!dx.add)
      for (Offset c = 0; c < dx.to.cols; ++c) dx.to(i, c) = 0;
  }
};

// Of an epoch, what evaluate() of train/metrics.h says of accuracy, and whether all logits are finite.
struct EvaluationSum {
  using Number = double;
  In x;
  const Id *valid, *test, *labels;  // nodes of each part; a label for every node
  Offset valids, tests;
  float part;  // 1 / x.cols
  bool binary;
  const float* train_loss;
  const unsigned* bad;  // the optimiser's mark
  double* out;          // loss and hits of validation, hits of test, logits' rows not finite, train loss, `bad`

  static constexpr Offset kNumbers = 6, kColumns = 4;
  static constexpr bool kLong = true, kApart = true;  // what a column takes differs from the others
  HEED_FN float softplus(float v) const { return fmaxf(v, 0.0f) + log1pf(expf(-fabsf(v))); }
  HEED_FN float loss(Id i) const {
    const Id label = labels[i];
    float total = 0;
    if (binary) {
      if (x.cols == 1) return softplus(label == 1 ? -x(i, 0) : x(i, 0));
      each_column(x, i, [&](Offset c, float v) { total += softplus(c == label ? -v : v); });
      return total * part;
    }
    const float top = greatest(x, i);
    each_column(x, i, [&](Offset, float v) { total += expf(v - top); });
    return top + logf(total) - x(i, label);
  }
  HEED_FN double right(Id i) const {
    if (x.cols == 1) return (x(i, 0) > 0) == (labels[i] == 1);
    Offset best = 0;
    float top = 0;
    each_column(x, i, [&](Offset c, float v) {
      if (c == 0 || v > top) best = c, top = v;
    });
    return best == labels[i];
  }
  HEED_FN double at(Offset t, Offset c) const {
    if (c == 0) return t < valids ? loss(valid[t]) : 0;
    if (c == 1) return t < valids ? right(valid[t]) : 0;
    if (c == 2) return t < tests ? right(test[t]) : 0;
    if (t >= x.rows) return 0;
    bool finite = true;
    each_column(x, t, [&](Offset, float v) { finite = finite && fabsf(v) <= 3.402823466e38f; });
    return !finite;
  }
  HEED_FN void put(Offset c, double total) const {
    out[c] = total;
    if (c == 3) out[4] = *train_loss, out[5] = *bad;
  }
};

// The optimiser: all parameters in one go, kStretch numbers of one of them at a time.

constexpr Offset kStretch = 1024;
struct Stretch {
  float *value, *first, *second;
  const float* grad;
  Offset count;
  bool operator==(const Stretch&) const = default;
};
struct StepNumbers {  // what changes from step to step
  float size, root, shrink, unused = 0;
};
struct Move {
  const Stretch* stretches;
  const StepNumbers* now;
  const float* clipping;  // null: 1
  bool adam;
  float l2, momentum, beta1, beta2, epsilon;
  unsigned* bad;  // becomes 1 where a parameter is not finite any more
  HEED_FN void operator()(Offset t) const {
    const Stretch& at = stretches[t / kStretch];
    const Offset e = t % kStretch;
    if (e >= at.count) return;
    const float scale = clipping ? *clipping : 1.0f, old = at.value[e];
    float value, first;
    if (!adam) {
      first = momentum * at.first[e] + scale * at.grad[e] + l2 * old;
      value = old - now->size * first;
    } else {
      const float g = scale * at.grad[e] + l2 * old;
      first = beta1 * at.first[e] + (1 - beta1) * g;
      const float second = beta2 * at.second[e] + (1 - beta2) * g * g;
      value = now->shrink * old - now->size * first / (sqrtf(second) * now->root + epsilon);
      at.second[e] = second;
    }
    at.first[e] = first;
    at.value[e] = value;
    if (!(fabsf(value) <= 3.402823466e38f)) *bad = 1;
  }
};
struct NormSum {  // the squares in double: their range is twice that of a float
  using Number = double;
  const Stretch* stretches;
  double clip;
  float* clipping;
  HEED_FN double at(Offset t, Offset) const {
    const Stretch& s = stretches[t / kStretch];
    const double g = t % kStretch < s.count ? s.grad[t % kStretch] : 0.0f;
    return g * g;
  }
  HEED_FN void put(Offset, double square) const {
    const double norm = sqrt(square);
    *clipping = static_cast<float>(norm > clip ? clip / norm : 1);
  }
};
struct CopyAll {  // value to first
  const Stretch* stretches;
  HEED_FN void operator()(Offset t) const {
    const Stretch& at = stretches[t / kStretch];
    if (t % kStretch < at.count) at.first[t % kStretch] = at.value[t % kStretch];
  }
};

// Numbers that the host says, and the keys of all random streams of a step.
struct Put {
  std::uint64_t words[8];
  std::uint64_t* to;
  HEED_FN void operator()(Offset t) const { to[t] = words[t]; }
};
struct Keys {
  std::uint64_t seed, step;
  std::uint64_t* keys;
  Offset count;  // and behind them the step
  HEED_FN void operator()(Offset t) const {
    keys[t] = t < count ? mix(mix(mix(seed), step), static_cast<std::uint64_t>(t)) : step;
  }
};
// The `kept` largest of n numbers, of equal ones the first, as those whose key is at least a bound: five bits of the
// bound at a time, from above. bounds[p] has what is known of it before pass p.
struct Ranked {
  const float* x;
  Offset stride;
  int index_bits;
  HEED_FN std::uint64_t key(Offset i) const {
    const float number = x[i * stride] + 0.0f;  // of two zeros one
    std::uint32_t bits = 0;
    std::memcpy(&bits, &number, sizeof(bits));
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    const std::uint64_t last = (std::uint64_t{1} << index_bits) - 1;
    return std::uint64_t{bits} << index_bits | (last - static_cast<std::uint64_t>(i));
  }
};
struct BoundSum {
  using Number = std::uint64_t;  // how many keys there are from this column's bound on; above, from the next one's
  static constexpr int kColumns = 32, kBits = 5;
  Ranked ranked;
  int shift, pass;
  std::uint64_t kept;
  std::uint64_t* bounds;
  HEED_FN std::uint64_t bound(Offset c) const { return bounds[pass] + (static_cast<std::uint64_t>(c) << shift); }
  HEED_FN Number at(Offset i, Offset c) const {
    const std::uint64_t key = ranked.key(i), above = c + 1 < kColumns && key >= bound(c + 1) ? 1 : 0;
    return above << 32 | (key >= bound(c) ? 1 : 0);
  }
  HEED_FN void put(Offset c, Number counts) const {
    if ((counts & 0xffffffff) >= kept && counts >> 32 < kept) bounds[pass + 1] = bound(c);
  }
};

// Of both directions of a pattern: the maps of its draws, and which keys are kept.
struct Redraw {
  const std::uint64_t* step;
  Drawing drawing;
  std::uint32_t n;
  Id count;
  std::uint64_t keys_stream;
  NodeMap* maps[2];
  char* kept[2];  // null, both: not drawn
  Ranked ranked;  // where there are numbers, their keys from `bound` on are kept
  const std::uint64_t* bound;
  HEED_FN void operator()(Offset t) const {
    if (t < drawing.count) maps[0][t] = maps[1][t] = drawing.map(n, *step, static_cast<int>(t));
    if (t >= n || !kept[0]) return;
    kept[0][t] = kept[1][t] = bound ? ranked.key(t) >= *bound
                                    : keys_order(n, keys_stream, *step).inverse(static_cast<std::uint32_t>(t)) <
                                          static_cast<std::uint32_t>(count);
  }
};

// How many marks come before each: sums of kTally of them, sums of those, and theirs.
template <class T>
struct Tally {
  const T* from;
  Offset n;
  std::uint32_t* to;
  HEED_FN void operator()(Offset t) const {
    std::uint32_t sum = 0;
    for (Offset i = t * kTally; i < n && i < (t + 1) * kTally; ++i) sum += static_cast<std::uint32_t>(from[i]);
    to[t] = sum;
  }
};
struct Rank {
  const char* kept;
  const std::uint32_t* sums[3];
  Id* ranks[2];
  HEED_FN void operator()(Offset t) const {
    if (!kept[t]) return;
    const Offset first = t / kTally, second = first / kTally, third = second / kTally;
    std::uint32_t rank = 0;
    for (Offset i = 0; i < third; ++i) rank += sums[2][i];
    for (Offset i = third * kTally; i < second; ++i) rank += sums[1][i];
    for (Offset i = second * kTally; i < first; ++i) rank += sums[0][i];
    for (Offset i = first * kTally; i < t; ++i) rank += static_cast<std::uint32_t>(kept[i]);
    ranks[0][t] = ranks[1][t] = static_cast<Id>(rank);
  }
};

template <class... Terms>
using Sums = std::tuple<Reduce<OverRows<Terms>>...>;
template <class... Lists>
using Joined = decltype(std::tuple_cat(std::declval<Lists>()...));

using List =
    Joined<std::tuple<Chain, Fill, AddTo, Pick, PutBack, PickEntries, Grow, ScaleRows>,
           std::tuple<MeanHeads, MeanHeadsBack, Contract, Prepare<false, true>, Prepare<true, false>,
                      Prepare<true, true>, PrepareBack<false, true>, PrepareBack<true, false>, PrepareBack<true, true>>,
           std::tuple<Gate, GateBack, LayerNorm, LayerNormBack, BatchNorm, MomentsAtRest, BatchNormBack>,
           Sums<ColumnSum, ContractSum, LayerNormSum, MeanSum, VarianceSum, BatchNormSum, LossSum, EvaluationSum,
                NormSum, BoundSum>,
           std::tuple<WideProduct, NarrowProduct, LossBack, Move, CopyAll, Put, Keys, Redraw, Tally<char>,
                      Tally<std::uint32_t>, Rank>>;

template <class Body>
concept InBlocks = requires {
  Body::kThreads;
};

// The number of a body in the list.
template <class Body, int at = 0>
constexpr int place() {
  static_assert(at < std::tuple_size_v<List>, "the body is not in the list");
  if constexpr (std::is_same_v<std::tuple_element_t<at, List>, Body>)
    return at;
  else
    return place<Body, at + 1>();
}
// visit(body) with the one of that number.
template <int at = 0, class Visit>
void with_body(int body, const void* self, Visit visit) {
  if constexpr (at < std::tuple_size_v<List>) {
    if (body == at)
      visit(*static_cast<const std::tuple_element_t<at, List>*>(self));
    else
      with_body<at + 1>(body, self, visit);
  }
}

template <class Body>
void run(DeviceOps& device, const Body& body, Offset count) {
  if constexpr (std::is_same_v<Body, Link>) {
    device.chain(body, count);
  } else {
    device.flush();
    if (count > 0) device.run(place<Body>(), &body, count);
  }
}

// What follows cuts sums into pieces.

inline int side_by_side(Offset width, Offset most) {  // threads, a power of 2
  return static_cast<int>(std::bit_ceil(static_cast<std::uint64_t>(std::clamp<Offset>(width, 1, most))));
}
template <class Job>
Reduce<Job> reduction(const Job& job) {
  Reduce<Job> out{job};
  out.columns = job.columns, out.lanes = Reduce<Job>::kThreads / job.columns;
  return out;
}

// The sums of `width` columns over `rows` rows; a thread takes `each` rows, or more where there are very many.
template <class Term>
void sum_rows(DeviceOps& device, const Term& term, Offset rows, Offset width, Offset each = 8) {
  constexpr Offset kMostPieces = 1024;
  using Number = typename Term::Number;
  OverRows<Term> job{term, rows, width};
  job.columns = requires { Term::kApart; } ? 1 : side_by_side(width, 32);
  job.tiles = (width + job.columns - 1) / job.columns;
  auto body = reduction(job);
  const Offset lanes = body.lanes;
  body.job.piece = std::max(each * lanes, (rows + kMostPieces - 1) / kMostPieces);
  body.job.pieces = std::max<Offset>(1, (rows + body.job.piece - 1) / body.job.piece);
  if (body.job.pieces > 1) {
    body.parts = static_cast<Number*>(device.scratch(body.job.pieces * width * static_cast<Offset>(sizeof(Number))));
    body.tickets = device.tickets(job.tiles);
  }
  run(device, body, job.tiles * body.job.pieces);
}

// c (+)= s (a b + bias)               a: m x k, b: k x n
inline void product(DeviceOps& device, const Factor& a, const Factor& b, Offset m, Offset n, Offset k,
                    const IntoSide& c) {
  constexpr Offset kBlocks = 512, kLeast = 128;  // blocks that fill a device, and what of k is worth a piece
  if (m == 0 || n == 0) return;
  auto launch = [&]<class Body>(Body body) {
    const Offset tiles = body.tiles(), most = std::max<Offset>(1, kBlocks / tiles);
    const Offset piece = std::max(kLeast, (k + most - 1) / most);
    body.piece = (piece + Body::kDepth - 1) / Body::kDepth * Body::kDepth;
    body.pieces = std::max<Offset>(1, (k + body.piece - 1) / body.piece);
    if (body.pieces > 1) {
      body.parts = static_cast<float*>(device.scratch(body.pieces * m * n * static_cast<Offset>(sizeof(float))));
      body.tickets = device.tickets(tiles);
    }
    run(device, body, tiles * body.pieces);
  };
  if (n <= 16)
    launch(NarrowProduct{a, b, m, n, k, c});
  else
    launch(WideProduct{a, b, m, n, k, c});
}

// Draws what a pattern of Pattern::redrawn asks for, into what there is of its rows and its columns.
inline void redraw(DeviceOps& device, const Pattern& pattern, const std::uint64_t* step, View<const float> scores,
                   const DrawnThere& rows, const DrawnThere& columns) {
  const Redrawn& what = *pattern.by_query.redrawn;
  const Id n = pattern.keys();
  Redraw body{step,
              what.drawing,
              static_cast<std::uint32_t>(n),
              what.kept,
              what.keys_stream,
              {rows.maps, columns.maps},
              {rows.kept, columns.kept},
              {},
              nullptr};
  if (what.by_score && n > 0) {
    body.ranked = {scores.data, scores.stride, static_cast<int>(std::bit_width(static_cast<std::uint32_t>(n - 1)))};
    const int passes = (32 + body.ranked.index_bits + BoundSum::kBits - 1) / BoundSum::kBits;
    for (int p = 0; p < passes; ++p)
      sum_rows(device,
               BoundSum{body.ranked, std::min(59, (passes - 1 - p) * BoundSum::kBits), p,
                        static_cast<std::uint64_t>(what.kept), rows.bounds},
               n, BoundSum::kColumns);
    body.bound = rows.bounds + passes;
  }
  run(device, body, std::max<Offset>(what.drawing.count, rows.kept ? n : 0));
  if (!rows.kept || n == 0) return;
  auto after = [](Offset count) { return (count + kTally - 1) / kTally; };
  const Offset first = after(n), second = after(first), third = after(second);
  std::uint32_t* const sums[] = {rows.tallies, rows.tallies + first, rows.tallies + first + second};
  run(device, Tally<char>{rows.kept, n, sums[0]}, first);
  run(device, Tally<std::uint32_t>{sums[0], first, sums[1]}, second);
  run(device, Tally<std::uint32_t>{sums[1], second, sums[2]}, third);
  run(device, Rank{rows.kept, {sums[0], sums[1], sums[2]}, {rows.ranks, columns.ranks}}, n);
}

// Up to 64 bytes of the host's to the device, in turn with its kernels and without waiting for them.
template <class T>
void put(DeviceOps& device, const T& from, void* to) {
  static_assert(sizeof(T) % 8 == 0 && sizeof(T) <= 64 && std::is_trivially_copyable_v<T>);
  Put body{};
  std::memcpy(body.words, &from, sizeof(T));
  body.to = static_cast<std::uint64_t*>(to);
  run(device, body, sizeof(T) / 8);
}

// A table of stretches, cut from whole arrays.
template <class Matrix>
void cut(std::vector<Stretch>& out, Matrix& value, float* first, float* second, const float* grad) {
  for (Offset at = 0; at < value.size(); at += kStretch)
    out.push_back({value.data() + at, first ? first + at : nullptr, second ? second + at : nullptr,
                   grad ? grad + at : nullptr, std::min(kStretch, value.size() - at)});
}

}  // namespace heed::bodies
