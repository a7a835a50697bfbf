#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/parallel.h"

namespace heed {
namespace {

using stages::Chunk;
using stages::ChunkGradient;
using stages::kLanes;
using stages::RowState;

constexpr int kMaxHeads = 32;  // more heads run as several calls over strided views
constexpr int kBuffer = kChunk * kMaxHeads;
constexpr int kHeadBuffer = kMaxHeads + kLanes;
constexpr int kMaxScalars = 3;

// A chunk's rows should stay in the first-level cache between the stages that read them.
int chunk_edges(Offset bytes_per_edge) {
  return static_cast<int>(std::clamp<Offset>(Offset{16384} / std::max<Offset>(bytes_per_edge, 1) / 8 * 8, 16, kChunk));
}

template <class T>
using AddRows = void (*)(T*, const T*, const T* const*, int, int, int, int);
template <class T>
using Dots = void (*)(const T*, const T* const*, int, int, int, int, bool, T*);

template <class T>
AddRows<T> add_rows_for(int width) {
  if constexpr (std::is_same_v<T, float>) switch (width) {
      case 4:
        return stages::add_rows<T, 4>;
      case 8:
        return stages::add_rows<T, 8>;
      case 16:
        return stages::add_rows<T, 16>;
      case 32:
        return stages::add_rows<T, 32>;
    }
  return stages::add_rows<T, 0>;
}
template <class T>
Dots<T> dots_for(int width) {
  if constexpr (std::is_same_v<T, float>) switch (width) {
      case 8:
        return stages::dots<T, 8>;
      case 16:
        return stages::dots<T, 16>;
      case 32:
        return stages::dots<T, 32>;
      case 64:
        return stages::dots<T, 64>;
    }
  return stages::dots<T, 0>;
}
int width_index(int width) {
  for (int i = 1; i < kScoreWidthCount; ++i)
    if (kScoreWidths[i] == width) return i;
  return 0;
}

std::string shape(Offset rows, Offset cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

template <class T>
void expect(const char* what, const View<T>& x, Offset rows, Offset cols) {
  if (x.rows != rows || x.cols != cols)
    fail(std::string("attention: ") + what + " is " + shape(x.rows, x.cols) + ", expected " + shape(rows, cols));
}

// What does not change from row to row.
template <class T>
struct Plan {
  const Attention<T>& x;
  int heads, padded, score_width, width;
  AddRows<T> add_values;
  Dots<T> dot_values;
  int score_index;
  T spread_p[kMaxScalars * kHeadBuffer];

  explicit Plan(const Attention<T>& in)
      : x(in),
        heads(in.heads),
        padded(stages::padded_heads(in.heads)),
        score_width(static_cast<int>(in.q.cols / in.heads)),
        width(static_cast<int>(in.v.cols / in.heads)),
        add_values(add_rows_for<T>(width)),
        dot_values(dots_for<T>(width)),
        score_index(width_index(score_width)) {
    int round = stages::period(padded) * kLanes;
    for (int i = 0; i < x.score->scalars; ++i) stages::spread(x.p.row(i), heads, padded, spread_p + i * round);
  }

  const ScoreStages<T>& score() const { return x.score->template stages<T>(); }
  const NormaliserStages<T>& normaliser() const { return x.normaliser->template stages<T>(); }
};

template <class T>
void point(const T** to, std::type_identity_t<View<const T>> table, const Id* ids, int n) {
  Offset bytes = table.cols * static_cast<Offset>(sizeof(T));
  for (int j = 0; j < n; ++j) {
    to[j] = table.row(ids[j]);
    for (Offset at = 0; at < bytes; at += 64) __builtin_prefetch(reinterpret_cast<const char*>(to[j]) + at);
  }
}

// One row's scores: pointers of the chunk's rows, and the first stage's buffers.
template <class T>
struct Scratch {
  Id ids[kChunk];
  const T* other[kChunk];  // keys' k in a row pass, queries' q in a column pass
  const T* value[kChunk];  // keys' v, or queries' dy
  const T* edge[kChunk];
  const T* edge_value[kChunk];
  T* dedge[kChunk];
  const T* tau_rows[kChunk];
  alignas(64) T s[kBuffer], sums[kBuffer], dw[kBuffer], keep[kBuffer], tau[kBuffer], delta[kBuffer];
  alignas(64) T state[3 * kHeadBuffer], other_state[3 * kHeadBuffer];
  alignas(64) T dp[kMaxScalars * kHeadBuffer];
  Matrix<T> rows;  // accumulators
};

template <class T>
Scratch<T>& scratch() {
  thread_local Scratch<T> mine;
  return mine;
}

template <class T>
RowState<T> row_state(T* at, int padded) {
  int round = stages::period(padded) * kLanes;
  return {at, at + round, at + 2 * round};
}

template <class T>
void begin_state(const RowState<T>& state, int padded) {
  for (int l = 0; l < stages::period(padded) * kLanes; ++l) {
    state.shift[l] = -__builtin_inff();
    state.total[l] = T(0);
    state.rescale[l] = T(1);
  }
}

// Dropout's factors of a chunk. In a row pass `row` is the query and `ids` are keys; in a column pass the reverse.
template <class T>
void fill_keep(const Dropout& dropout, bool row_is_query, Id row, const Id* ids, int n, int padded, T* keep) {
  const std::uint32_t threshold = dropout.threshold();
  const T scale = static_cast<T>(dropout.scale());
  Words low{}, high{}, column{}, head{};
  if (row_is_query) {
    const std::uint64_t key = dropout.row_key(row);
    low += static_cast<std::uint32_t>(key), high += static_cast<std::uint32_t>(key >> 32);
  } else {
    column += static_cast<std::uint32_t>(row);
  }
  for (int l = 0; l < kLanes; ++l) head[l] = l % padded;
  const int edges = padded < kLanes ? kLanes / padded : 1;  // in one vector
  for (int j = 0, at = 0; j < n; j += edges) {
    if (row_is_query) {
      if (edges == 1)
        column = Words{} + static_cast<std::uint32_t>(ids[j]);
      else
        for (int l = 0; l < kLanes; ++l) column[l] = ids[std::min(j + l / padded, n - 1)];
    } else {
      for (int i = 0; i < edges; ++i) {
        const std::uint64_t key = dropout.row_key(ids[std::min(j + i, n - 1)]);
        const auto key_low = static_cast<std::uint32_t>(key), key_high = static_cast<std::uint32_t>(key >> 32);
        if (edges == 1)
          low = Words{} + key_low, high = Words{} + key_high;
        else
          for (int l = i * padded; l < (i + 1) * padded; ++l) low[l] = key_low, high[l] = key_high;
      }
    }
    Words h = head;
    for (int first = 0; first < std::max(padded, kLanes); first += kLanes, at += kLanes, h += kLanes)
      drop_factors<T>(low, high, column, h, threshold, scale).store(keep + at);
  }
}

// The first stage: scores of a chunk into w.s, the raw sums into w.sums where the score has a finish.
// `entry` numbers the chunk's edges: entry(j).
template <bool row_is_query, class T, class Entry>
void score_chunk(const Plan<T>& plan, Scratch<T>& w, Id row, int n, Entry entry) {
  const Attention<T>& x = plan.x;
  const auto& score = plan.score();
  if (x.e)
    for (int j = 0; j < n; ++j) w.edge[j] = x.e.row(entry(j));
  Chunk<T> chunk{n,
                 plan.heads,
                 plan.padded,
                 plan.score_width,
                 row_is_query ? x.q.row(row) : x.k.row(row),
                 w.other,
                 x.e ? w.edge : nullptr,
                 x.a.data};
  T* sums = score.finish ? w.sums : w.s;
  score.sums[row_is_query][plan.score_index](x.score->self.get(), chunk, sums);
  if (score.finish) score.finish(x.score->self.get(), sums, plan.spread_p, n, plan.padded, w.s);
  if (x.bias)
    for (int j = 0; j < n; ++j)
      for (int h = 0; h < plan.heads; ++h) w.s[j * plan.padded + h] += x.bias(entry(j), h);
}

template <class T>
void scale_heads(T* acc, const T* factor, int heads, int width) {
  for (int h = 0; h < heads; ++h)
    for (int c = 0; c < width; ++c) acc[h * width + c] *= factor[h];
}

// Weighted sums of the part [begin, end) of a row into acc (heads*width, zero before); the state takes it in.
template <class T>
void forward_part(const Plan<T>& plan, Scratch<T>& w, Id i, Offset begin, Offset end, int step,
                  const RowState<T>& state, T* acc) {
  const Attention<T>& x = plan.x;
  bool first = true;
  for_each_chunk(x.pattern->by_query, i, begin, end, step, w.ids, [&](const Id* ids, Offset position, int n) {
    point(w.other, x.k, ids, n);
    point(w.value, x.v, ids, n);
    auto entry = [&](int j) { return position + j; };
    score_chunk<true>(plan, w, i, n, entry);
    plan.normaliser().raw(w.s, n, plan.padded, state);
    if (!first && x.normaliser->couples) scale_heads(acc, state.rescale, plan.heads, plan.width);
    if (x.dropout.rate > 0) {
      fill_keep(x.dropout, true, i, ids, n, plan.padded, w.keep);
      for (int l = 0; l < n * plan.padded; ++l) w.s[l] *= w.keep[l];
    }
    plan.add_values(acc, w.s, w.value, n, plan.heads, plan.padded, plan.width);
    if (x.ev) {
      for (int j = 0; j < n; ++j) w.edge_value[j] = x.ev.row(entry(j));
      plan.add_values(acc, w.s, w.edge_value, n, plan.heads, plan.padded, plan.width);
    }
    first = false;
  });
}

template <class T>
void finish_row(const Plan<T>& plan, const RowState<T>& state, const T* acc, Id i, View<T> y, Matrix<T>& tau) {
  alignas(64) T closed[kHeadBuffer], factor[kHeadBuffer];
  plan.normaliser().close(state, plan.padded, closed, factor);
  std::copy_n(closed, plan.heads, tau.row(i));
  T* to = y.row(i);
  for (int h = 0; h < plan.heads; ++h)
    for (int c = 0; c < plan.width; ++c) to[h * plan.width + c] = acc[h * plan.width + c] * factor[h];
}

// Runs whole(block) for blocks of whole rows and part(block) for parts of hubs, then merge(first, count) for the parts
// of each hub in order.
template <class Whole, class Part, class Merge>
void for_each_block(const Rows& rows, Whole whole, Part part, Merge merge) {
  const auto& blocks = rows.blocks;
  parallel_pieces(static_cast<Offset>(blocks.size()), 1, [&](Offset at, Offset) {
    const auto b = static_cast<std::size_t>(at);
    if (blocks[b].part < 0)
      whole(b);
    else
      part(b);
  });
  if (rows.parts == 0) return;
  for (std::size_t b = 0; b < blocks.size();) {
    std::size_t last = b + 1;
    if (blocks[b].part >= 0) {
      while (last < blocks.size() && blocks[last].part >= 0 && blocks[last].first == blocks[b].first) ++last;
      merge(b, last);
    }
    b = last;
  }
}

Offset lane_round(Offset n) { return (n + kLanes - 1) / kLanes * kLanes; }

// More than kMaxHeads heads: the call again for each group, over strided views.
template <class T, class V>
View<V> head_group(View<V> x, int heads, int first, int count) {
  if (!x) return x;
  Offset width = x.cols / heads;
  return x.columns(first * width, count * width);
}
template <class T, class Call>
bool in_head_groups(const Attention<T>& x, Call call) {
  if (x.heads <= kMaxHeads) return false;
  for (int first = 0; first < x.heads; first += kMaxHeads) {
    int count = std::min(kMaxHeads, x.heads - first);
    Attention<T> part = x;
    part.heads = count;
    for (View<const T>* view : {&part.q, &part.k, &part.v, &part.a, &part.p, &part.e, &part.bias, &part.ev})
      *view = head_group<T>(*view, x.heads, first, count);
    part.dropout.key = mix(x.dropout.key, static_cast<std::uint64_t>(first));
    call(part, first, count);
  }
  return true;
}

template <class T>
AttentionState<T>& group_state(AttentionState<T>& state, int first) {
  const auto at = static_cast<std::size_t>(first / kMaxHeads);
  if (state.groups.size() <= at) state.groups.resize(at + 1);
  return state.groups[at];
}

}  // namespace

template <class T>
void check(const Attention<T>& x, View<const std::type_identity_t<T>> y) {
  if (x.pattern == nullptr || x.score == nullptr || x.normaliser == nullptr)
    fail("attention: needs a pattern, a score and a normaliser");
  if (x.heads < 1) fail("attention: " + std::to_string(x.heads) + " heads");
  Offset queries = x.pattern->queries(), keys = x.pattern->keys();
  if (x.q.cols % x.heads != 0 || x.q.cols == 0)
    fail("attention: " + std::to_string(x.q.cols) + " query channels do not divide into " + std::to_string(x.heads) +
         " heads");
  if (x.v.cols % x.heads != 0 || x.v.cols == 0)
    fail("attention: " + std::to_string(x.v.cols) + " value channels do not divide into " + std::to_string(x.heads) +
         " heads");
  expect("q", x.q, queries, x.q.cols);
  expect("k", x.k, keys, x.q.cols);
  expect("v", x.v, keys, x.v.cols);
  expect("y", y, queries, x.v.cols);
  if (x.score->contracts && x.q.cols != x.heads)
    fail("attention: the score '" + x.score->name + "' takes one channel a head, not " +
         std::to_string(x.q.cols / x.heads));
  if (x.score->reads_vector) expect("a", x.a, 1, x.q.cols);
  if (x.score->scalars > 0) expect("p", x.p, x.score->scalars, x.heads);
  if (!(x.dropout.rate >= 0 && x.dropout.rate < 1))
    fail("attention: dropout must be at least 0 and below 1, not " + std::to_string(x.dropout.rate));
  if (!x.e && !x.bias && !x.ev) return;
  if (!x.pattern->is_listed()) fail("attention: features and biases of edges need a mask that is a list");
  Offset edges = x.pattern->edges();
  if (x.e) expect("e", x.e, edges, x.q.cols);
  if (x.bias) expect("bias", x.bias, edges, x.heads);
  if (x.ev) expect("ev", x.ev, edges, x.v.cols);
}

template <class T>
void check(const Attention<T>& x, View<const std::type_identity_t<T>> y, View<const std::type_identity_t<T>> dy,
           const Matrix<T>& tau, const AttentionGradient<T>& g) {
  check(x, y);
  expect("dy", dy, y.rows, y.cols);
  if (tau.rows() != y.rows || tau.cols() != x.heads) fail("attention: backward before forward");
  auto same = [](const char* what, const Sink<T>& sink, View<const T> value) {
    if (sink) expect(what, sink.to, value.rows, value.cols);
  };
  same("dq", g.dq, x.q), same("dk", g.dk, x.k), same("dv", g.dv, x.v), same("da", g.da, x.a), same("dp", g.dp, x.p);
  same("de", g.de, x.e), same("dbias", g.dbias, x.bias), same("dev", g.dev, x.ev);
  if (g.de && g.de.add) fail("attention: the gradient of edge features is written, not added to");
}

template <class T>
void attention(const Attention<T>& x, View<T> y, AttentionState<T>& state) {
  check<T>(x, y);
  state.tau.resize(y.rows, x.heads);
  if (in_head_groups(x, [&](const Attention<T>& part, int first, int count) {
        AttentionState<T>& own = group_state(state, first);
        attention(part, y.columns(first * (y.cols / x.heads), count * (y.cols / x.heads)), own);
        for (Offset i = 0; i < y.rows; ++i) std::copy_n(own.tau.row(i), count, state.tau.row(i) + first);
      }))
    return;

  const Plan<T> plan(x);
  const Rows& rows = x.pattern->by_query;
  const int step = chunk_edges((x.k.cols + x.v.cols) * static_cast<Offset>(sizeof(T)));
  const Offset total = lane_round(x.v.cols);
  const Offset state_size = 3 * stages::period(plan.padded) * kLanes;
  state.parts.resize(rows.parts, rows.parts > 0 ? total + state_size : 0);

  for_each_block(
      rows,
      [&](std::size_t b) {
        Scratch<T>& w = scratch<T>();
        w.rows.resize(1, total);
        auto row = row_state(w.state, plan.padded);
        const Block& block = rows.blocks[b];
        for (Id i = block.first; i < block.last; ++i) {
          begin_state(row, plan.padded);
          std::fill_n(w.rows.data(), total, T(0));
          forward_part(plan, w, i, 0, rows.length(i), step, row, w.rows.data());
          finish_row(plan, row, w.rows.data(), i, y, state.tau);
        }
      },
      [&](std::size_t b) {
        const Block& block = rows.blocks[b];
        T* acc = state.parts.row(block.part);
        auto row = row_state(acc + total, plan.padded);
        begin_state(row, plan.padded);
        std::fill_n(acc, total, T(0));
        forward_part(plan, scratch<T>(), block.first, block.begin, block.end, step, row, acc);
      },
      [&](std::size_t first, std::size_t last) {
        T* acc = state.parts.row(rows.blocks[first].part);
        auto into = row_state(acc + total, plan.padded);
        for (std::size_t b = first + 1; b < last; ++b) {
          T* more = state.parts.row(rows.blocks[b].part);
          auto from = row_state(more + total, plan.padded);
          plan.normaliser().merge(into, from, plan.padded);
          for (int h = 0; h < plan.heads; ++h)
            for (int c = h * plan.width; c < (h + 1) * plan.width; ++c)
              acc[c] = acc[c] * into.rescale[h] + more[c] * from.rescale[h];
        }
        finish_row(plan, into, acc, rows.blocks[first].first, y, state.tau);
      });
}

namespace {

// delta_i = <dy_i, y_i> per head: the sum over the row of drain * dw, since drain = w. It lies beside tau, so that the
// column pass fetches one row for both.
template <class T>
void fill_delta(const Plan<T>& plan, View<const T> y, View<const T> dy, AttentionState<T>& state) {
  state.tau_delta.resize(y.rows, 2 * plan.heads);
  parallel_pieces(y.rows, 256, [&](Offset begin, Offset end) {
    for (Offset i = begin; i < end; ++i) {
      const T* row = dy.row(i);
      T* to = state.tau_delta.row(i);
      std::copy_n(state.tau.row(i), plan.heads, to);
      plan.dot_values(y.row(i), &row, 1, plan.heads, plan.heads, plan.width, false, to + plan.heads);
    }
  });
}

template <class T>
void put(T* to, const T* from, Offset n, bool add) {
  if (add)
    for (Offset c = 0; c < n; ++c) to[c] += from[c];
  else
    std::copy_n(from, n, to);
}

// The middle of backward, alike in both directions: from scores and <dy, v> to weights (w.s) and ds (w.dw).
// tau and delta are spread over a row's heads, or per edge.
template <bool row_is_query, class T>
void gradient_chunk(const Plan<T>& plan, Scratch<T>& w, Id row, const Id* ids, int n, const T* tau, const T* delta) {
  const Attention<T>& x = plan.x;
  for (int j = 0; j < n; ++j)
    for (int h = plan.heads; h < plan.padded; ++h) w.dw[j * plan.padded + h] = w.s[j * plan.padded + h] = T(0);
  for (int l = n * plan.padded; l < stages::vectors(n, plan.padded) * kLanes; ++l) w.dw[l] = w.s[l] = T(0);
  if (x.dropout.rate > 0) fill_keep(x.dropout, row_is_query, row, ids, n, plan.padded, w.keep);
  plan.normaliser().gradient(w.s, w.dw, tau, delta, !row_is_query, x.dropout.rate > 0 ? w.keep : nullptr, n,
                             plan.padded);
}

// Row pass over the part [begin, end) of query i; `down` (heads*score_width), `da` and `dp` are added to.
template <class T>
void row_part(const Plan<T>& plan, Scratch<T>& w, const AttentionState<T>& state, View<const T> dy, Id i, Offset begin,
              Offset end, int step, const AttentionGradient<T>& g, T* down, T* da, T* dp) {
  const Attention<T>& x = plan.x;
  const auto& score = plan.score();
  alignas(64) T tau[kHeadBuffer], delta[kHeadBuffer];
  stages::spread(state.tau_delta.row(i), plan.heads, plan.padded, tau);
  stages::spread(state.tau_delta.row(i) + plan.heads, plan.heads, plan.padded, delta);
  for_each_chunk(x.pattern->by_query, i, begin, end, step, w.ids, [&](const Id* ids, Offset position, int n) {
    point(w.other, x.k, ids, n);
    point(w.value, x.v, ids, n);
    auto entry = [&](int j) { return position + j; };
    score_chunk<true>(plan, w, i, n, entry);
    plan.dot_values(dy.row(i), w.value, n, plan.heads, plan.padded, plan.width, false, w.dw);
    if (x.ev) {
      for (int j = 0; j < n; ++j) w.edge_value[j] = x.ev.row(entry(j));
      plan.dot_values(dy.row(i), w.edge_value, n, plan.heads, plan.padded, plan.width, true, w.dw);
    }
    gradient_chunk<true>(plan, w, i, ids, n, tau, delta);
    if (g.dbias)
      for (int j = 0; j < n; ++j)
        for (int h = 0; h < plan.heads; ++h) {
          T& to = g.dbias.to(entry(j), h);
          to = (g.dbias.add ? to : T(0)) + w.dw[j * plan.padded + h];
        }
    if (score.finish) score.finish_gradient(x.score->self.get(), w.sums, plan.spread_p, n, plan.padded, w.dw, dp);
    Chunk<T> chunk{n, plan.heads, plan.padded, plan.score_width, x.q.row(i), w.other, x.e ? w.edge : nullptr, x.a.data};
    if (g.de)
      for (int j = 0; j < n; ++j) w.dedge[j] = g.de.to.row(entry(j));
    score.gradient[1][plan.score_index](x.score->self.get(), chunk, {w.dw, down, da, g.de ? w.dedge : nullptr});
    // After de: where one table is feature and value at once, dev is added to it.
    if (g.dev)
      for (int j = 0; j < n; ++j)
        for (int h = 0; h < plan.heads; ++h)
          for (int c = h * plan.width; c < (h + 1) * plan.width; ++c) {
            T& to = g.dev.to(entry(j), c);
            T value = w.s[j * plan.padded + h] * dy(i, c);
            to = g.dev.add ? to + value : value;
          }
  });
}

// Column pass over the part [begin, end) of key j: `down` (heads*score_width) and `value` (heads*width) are added to.
template <class T>
void column_part(const Plan<T>& plan, Scratch<T>& w, const AttentionState<T>& state, View<const T> dy, Id key,
                 Offset begin, Offset end, int step, bool want_k, T* down, T* value) {
  const Attention<T>& x = plan.x;
  const auto& score = plan.score();
  const Rows& rows = x.pattern->by_key;
  const Offset* edges = x.e || x.bias || x.ev ? x.pattern->edge_of_entry().data() : nullptr;
  for_each_chunk(rows, key, begin, end, step, w.ids, [&](const Id* ids, Offset position, int n) {
    point(w.tau_rows, state.tau_delta.view(), ids, n);
    point(w.other, x.q, ids, n);
    point(w.value, dy, ids, n);
    auto entry = [&](int t) { return edges[position + t]; };
    score_chunk<false>(plan, w, key, n, entry);
    stages::gather(w.tau_rows, n, plan.heads, plan.padded, w.tau);
    for (int t = 0; t < n; ++t) w.tau_rows[t] += plan.heads;
    stages::gather(w.tau_rows, n, plan.heads, plan.padded, w.delta);
    if (want_k) {
      plan.dot_values(x.v.row(key), w.value, n, plan.heads, plan.padded, plan.width, false, w.dw);
      if (x.ev)
        for (int t = 0; t < n; ++t) {
          const T* row = w.value[t];
          plan.dot_values(x.ev.row(entry(t)), &row, 1, plan.heads, plan.padded, plan.width, true,
                          w.dw + t * plan.padded);
        }
    } else {
      std::fill_n(w.dw, n * plan.padded, T(0));
    }
    gradient_chunk<false>(plan, w, key, ids, n, w.tau, w.delta);
    if (value) plan.add_values(value, w.s, w.value, n, plan.heads, plan.padded, plan.width);
    if (!want_k) return;
    if (score.finish)
      score.finish_gradient(x.score->self.get(), w.sums, plan.spread_p, n, plan.padded, w.dw, static_cast<T*>(nullptr));
    Chunk<T> chunk{n,       plan.heads, plan.padded, plan.score_width, x.k.row(key), w.other, x.e ? w.edge : nullptr,
                   x.a.data};
    score.gradient[0][plan.score_index](x.score->self.get(), chunk, {w.dw, down, nullptr, nullptr});
  });
}

}  // namespace

template <class T>
void attention_gradient(const Attention<T>& x, View<const T> y, View<const T> dy, AttentionState<T>& state,
                        const AttentionGradient<T>& g) {
  check(x, y, dy, state.tau, g);
  if (in_head_groups(x, [&](const Attention<T>& part, int first, int count) {
        AttentionState<T>& own = group_state(state, first);
        own.tau.resize(y.rows, count);
        for (Offset i = 0; i < y.rows; ++i) std::copy_n(state.tau.row(i) + first, count, own.tau.row(i));
        AttentionGradient<T> some = g;
        for (Sink<T>* sink : {&some.dq, &some.dk, &some.dv, &some.da, &some.dp, &some.de, &some.dbias, &some.dev})
          sink->to = head_group<T>(sink->to, x.heads, first, count);
        attention_gradient(part, head_group<T>(y, x.heads, first, count), head_group<T>(dy, x.heads, first, count), own,
                           some);
      }))
    return;
  if (g.da && !x.score->reads_vector && !g.da.add)
    for (Offset i = 0; i < g.da.to.rows; ++i) std::fill_n(g.da.to.row(i), g.da.to.cols, T(0));

  const Plan<T> plan(x);
  fill_delta(plan, y, dy, state);
  const Offset channels = x.q.cols, score_total = lane_round(channels), value_total = lane_round(x.v.cols);
  const int round = stages::period(plan.padded) * kLanes;
  const int step = chunk_edges((x.k.cols + x.v.cols) * static_cast<Offset>(sizeof(T)));

  const bool learned = (g.da && x.score->reads_vector) || g.dp;
  if (g.dq || learned || g.de || g.dbias || g.dev) {
    const Rows& rows = x.pattern->by_query;
    const Offset scalars = Offset{x.score->scalars} * round;
    state.parts.resize(rows.parts, rows.parts > 0 ? score_total : 0);
    state.sums.resize(static_cast<Offset>(rows.blocks.size()), learned ? score_total + scalars : 0);
    auto learned_sums = [&](std::size_t b, T*& da, T*& dp) {
      da = dp = nullptr;
      if (!learned) return;
      T* at = state.sums.row(static_cast<Offset>(b));
      std::fill_n(at, score_total + scalars, T(0));
      if (x.score->reads_vector) da = at;
      if (scalars > 0) dp = at + score_total;
    };
    for_each_block(
        rows,
        [&](std::size_t b) {
          Scratch<T>& w = scratch<T>();
          w.rows.resize(1, score_total);
          T *da, *dp, *down = w.rows.data();
          learned_sums(b, da, dp);
          for (Id i = rows.blocks[b].first; i < rows.blocks[b].last; ++i) {
            std::fill_n(down, score_total, T(0));
            row_part(plan, w, state, dy, i, 0, rows.length(i), step, g, down, da, dp);
            if (g.dq) put(g.dq.to.row(i), down, channels, g.dq.add);
          }
        },
        [&](std::size_t b) {
          const Block& block = rows.blocks[b];
          T *da, *dp, *down = state.parts.row(block.part);
          learned_sums(b, da, dp);
          std::fill_n(down, score_total, T(0));
          row_part(plan, scratch<T>(), state, dy, block.first, block.begin, block.end, step, g, down, da, dp);
        },
        [&](std::size_t first, std::size_t last) {
          if (!g.dq) return;
          T* down = state.parts.row(rows.blocks[first].part);
          for (std::size_t b = first + 1; b < last; ++b)
            put(down, state.parts.row(rows.blocks[b].part), channels, true);
          put(g.dq.to.row(rows.blocks[first].first), down, channels, g.dq.add);
        });
    if (learned) {  // block by block, in order
      if (g.da && !g.da.add) std::fill_n(g.da.to.row(0), channels, T(0));
      if (g.dp && !g.dp.add)
        for (int i = 0; i < x.score->scalars; ++i) std::fill_n(g.dp.to.row(i), plan.heads, T(0));
      for (Offset b = 0; b < state.sums.rows(); ++b) {
        const T* at = state.sums.row(b);
        if (g.da && x.score->reads_vector) put(g.da.to.row(0), at, channels, true);
        if (g.dp)
          for (int i = 0; i < x.score->scalars; ++i)
            stages::collect(at + score_total + i * round, plan.heads, plan.padded, g.dp.to.row(i));
      }
    }
  }

  if (g.dk || g.dv) {
    const Rows& rows = x.pattern->by_key;
    const bool want_k = static_cast<bool>(g.dk);
    const Offset total = score_total + value_total;
    if (x.e || x.bias || x.ev) x.pattern->edge_of_entry();
    state.parts.resize(rows.parts, rows.parts > 0 ? total : 0);
    auto write = [&](Id j, const T* down) {
      if (g.dk) put(g.dk.to.row(j), down, channels, g.dk.add);
      if (g.dv) put(g.dv.to.row(j), down + score_total, x.v.cols, g.dv.add);
    };
    for_each_block(
        rows,
        [&](std::size_t b) {
          Scratch<T>& w = scratch<T>();
          w.rows.resize(1, total);
          T* down = w.rows.data();
          for (Id j = rows.blocks[b].first; j < rows.blocks[b].last; ++j) {
            std::fill_n(down, total, T(0));
            column_part(plan, w, state, dy, j, 0, rows.length(j), step, want_k, down,
                        g.dv ? down + score_total : nullptr);
            write(j, down);
          }
        },
        [&](std::size_t b) {
          const Block& block = rows.blocks[b];
          T* down = state.parts.row(block.part);
          std::fill_n(down, total, T(0));
          column_part(plan, scratch<T>(), state, dy, block.first, block.begin, block.end, step, want_k, down,
                      g.dv ? down + score_total : nullptr);
        },
        [&](std::size_t first, std::size_t last) {
          T* down = state.parts.row(rows.blocks[first].part);
          for (std::size_t b = first + 1; b < last; ++b) put(down, state.parts.row(rows.blocks[b].part), total, true);
          write(rows.blocks[first].first, down);
        });
  }
}

namespace {

// Scores of all listed edges, chunk by chunk: use(i, ids, position, n) finds them in the scratch.
template <class T, class Use>
void list_scores(const Plan<T>& plan, Use use) {
  const Attention<T>& x = plan.x;
  const Rows& rows = x.pattern->by_query;
  parallel_pieces(static_cast<Offset>(rows.blocks.size()), 1, [&](Offset b, Offset) {
    const Block& block = rows.blocks[static_cast<std::size_t>(b)];
    Scratch<T>& w = scratch<T>();
    for (Id i = block.first; i < block.last; ++i) {
      const bool part = block.part >= 0;
      for_each_chunk(rows, i, part ? block.begin : 0, part ? block.end : rows.length(i), kChunk, w.ids,
                     [&](const Id* ids, Offset position, int n) {
                       point(w.other, x.k, ids, n);
                       score_chunk<true>(plan, w, i, n, [&](int j) { return position + j; });
                       use(w, i, ids, position, n);
                     });
    }
  });
}

// Checks a call whose result is listed, edges x heads.
template <class T>
void check_listed(const Attention<T>& x, const char* what, View<T> to) {
  check<T>(x, {x.q.data, x.pattern->queries(), x.v.cols, 0});
  if (!x.pattern->is_listed())
    fail(std::string("attention: ") + what + " can be listed only under a mask that is a list");
  expect(what, to, x.pattern->edges(), x.heads);
}

}  // namespace

template <class T>
void attention_scores(const Attention<T>& in, View<T> scores) {
  Attention<T> x = in;
  x.v = x.k, x.ev = {};
  check_listed(x, "scores", scores);
  if (in_head_groups(x, [&](const Attention<T>& part, int first, int count) {
        attention_scores(part, scores.columns(first, count));
      }))
    return;
  const Plan<T> plan(x);
  list_scores(plan, [&](Scratch<T>& w, Id, const Id*, Offset position, int n) {
    for (int j = 0; j < n; ++j) std::copy_n(w.s + j * plan.padded, plan.heads, scores.row(position + j));
  });
}

template <class T>
void attention_weights(const Attention<T>& x, const AttentionState<T>& state, View<T> weights) {
  check_listed(x, "weights", weights);
  if (in_head_groups(x, [&](const Attention<T>& part, int first, int count) {
        AttentionState<T> own;
        own.tau.resize(state.tau.rows(), count);
        for (Offset i = 0; i < state.tau.rows(); ++i) std::copy_n(state.tau.row(i) + first, count, own.tau.row(i));
        attention_weights(part, own, weights.columns(first, count));
      }))
    return;
  const Plan<T> plan(x);
  list_scores(plan, [&](Scratch<T>& w, Id i, const Id* ids, Offset position, int n) {
    alignas(64) T tau[kHeadBuffer], delta[kHeadBuffer] = {};
    stages::spread(state.tau.row(i), plan.heads, plan.padded, tau);
    std::fill_n(w.dw, n * plan.padded, T(0));
    gradient_chunk<true>(plan, w, i, ids, n, tau, delta);
    for (int j = 0; j < n; ++j) std::copy_n(w.s + j * plan.padded, plan.heads, weights.row(position + j));
  });
}

template <class T>
void weighted_sum(const Rows& rows, std::span<const T> weights, std::span<const Offset> edge, std::span<const T> scale,
                  View<const T> x, Sink<T> y, Matrix<T>& parts) {
  expect("x of a sparse product", x, rows.cols, x.cols);
  expect("y of a sparse product", y.to, rows.rows, x.cols);
  if (rows.listed() && !weights.empty() &&
      static_cast<Offset>((edge.empty() ? weights.size() : edge.size())) != rows.list->edges())
    fail("sparse product: " + std::to_string(weights.size()) + " weights for " + std::to_string(rows.list->edges()) +
         " entries");
  if (!rows.listed() && !weights.empty()) fail("sparse product: weights need a pattern that is a list");
  const Offset total = lane_round(x.cols);
  parts.resize(rows.parts, rows.parts > 0 ? total : 0);
  auto sum = [&](Id i, Offset begin, Offset end, T* acc) {
    Scratch<T>& w = scratch<T>();
    std::fill_n(acc, total, T(0));
    for_each_chunk(rows, i, begin, end, kChunk, w.ids, [&](const Id* ids, Offset position, int n) {
      point(w.value, x, ids, n);
      for (int j = 0; j < n; ++j)
        w.s[j] = weights.empty() ? T(1) : weights[edge.empty() ? position + j : edge[position + j]];
      stages::add_rows<T, 0>(acc, w.s, w.value, n, 1, 1, static_cast<int>(x.cols));
    });
  };
  auto write = [&](Id i, T* acc) {
    if (!scale.empty())
      for (Offset c = 0; c < x.cols; ++c) acc[c] *= scale[i];
    put(y.to.row(i), acc, x.cols, y.add);
  };
  for_each_block(
      rows,
      [&](std::size_t b) {
        Scratch<T>& w = scratch<T>();
        w.rows.resize(1, total);
        for (Id i = rows.blocks[b].first; i < rows.blocks[b].last; ++i) {
          sum(i, 0, rows.length(i), w.rows.data());
          write(i, w.rows.data());
        }
      },
      [&](std::size_t b) {
        const Block& block = rows.blocks[b];
        sum(block.first, block.begin, block.end, parts.row(block.part));
      },
      [&](std::size_t first, std::size_t last) {
        T* acc = parts.row(rows.blocks[first].part);
        for (std::size_t b = first + 1; b < last; ++b) put(acc, parts.row(rows.blocks[b].part), total, true);
        write(rows.blocks[first].first, acc);
      });
}

#define HEED_INSTANTIATE(T)                                                                                \
  template void check(const Attention<T>&, View<const T>);                                                 \
  template void check(const Attention<T>&, View<const T>, View<const T>, const Matrix<T>&,                 \
                      const AttentionGradient<T>&);                                                        \
  template void attention(const Attention<T>&, View<T>, AttentionState<T>&);                               \
  template void attention_gradient(const Attention<T>&, View<const T>, View<const T>, AttentionState<T>&,  \
                                   const AttentionGradient<T>&);                                           \
  template void attention_scores(const Attention<T>&, View<T>);                                            \
  template void attention_weights(const Attention<T>&, const AttentionState<T>&, View<T>);                 \
  template void weighted_sum(const Rows&, std::span<const T>, std::span<const Offset>, std::span<const T>, \
                             View<const T>, Sink<T>, Matrix<T>&);
HEED_INSTANTIATE(float)
HEED_INSTANTIATE(double)

}  // namespace heed
