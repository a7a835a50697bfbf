#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/best.h"
#include "kernels/fused.h"
#include "kernels/normalisers.h"
#include "kernels/parallel.h"
#include "kernels/stages.h"
#include "kernels/tiled.h"

namespace heed {
namespace {

using stages::Chunk;
using stages::ChunkGradient;
using stages::kBuffer;
using stages::kHeadBuffer;
using stages::kMaxHeads;
using stages::RowState;
using stages::Target;

// A batch's rows should stay in the first-level cache between the stages that read them, beside those of the next one.
int batch_edges(Offset bytes_per_edge) {
  return static_cast<int>(std::clamp<Offset>(Offset{16384} / std::max<Offset>(bytes_per_edge, 1) / 8 * 8, 16, kChunk));
}

template <class T>
using AddRows = void (*)(const Target<T>*, const T*, const T*, View<const T>, const Offset*, const Batch&, const Batch*,
                         int, int, int);
template <class T>
using Dots = void (*)(View<const T>, const Id*, View<const T>, const Offset*, const Batch&, const Batch*, int, int,
                      bool, T*);

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

template <class T>
RowState<T> begin_state(T* at, int round) {
  std::fill_n(at, round, T(-__builtin_inff()));
  std::fill_n(at + round, round, T(0));
  std::fill_n(at + 2 * round, round, T(1));
  return {at, at + round, at + 2 * round};
}
template <class T>
RowState<T> state_at(T* at, int round) {
  return {at, at + round, at + 2 * round};
}

// What does not change from row to row.
template <class T>
struct Plan {
  const Attention<T>& x;
  int heads, padded, round, score_width, width, limit;
  AddRows<T> add_values;
  Dots<T> dot_values;
  int score_index;
  const Fused* fused;  // in place of the stages; or none
  T spread_p[kMaxScalars * kHeadBuffer];
  T tau_of_none[kHeadBuffer];  // tau of a row without edges
  T least[kHeadBuffer];        // what a filter that counts no keys compares scores to
  Id last[kHeadBuffer];

  explicit Plan(const Attention<T>& in)
      : x(in),
        heads(in.heads),
        padded(stages::padded_heads(in.heads)),
        round(stages::period(padded) * kLanes),
        score_width(static_cast<int>(in.q.cols / in.heads)),
        width(static_cast<int>(in.v.cols / in.heads)),
        limit(batch_edges((in.k.cols + in.v.cols) * static_cast<Offset>(sizeof(T)))),
        add_values(add_rows_for<T>(width)),
        dot_values(dots_for<T>(width)),
        score_index(width_index(score_width)),
        fused(fused_kernels(in)) {
    for (int i = 0; i < x.score->scalars; ++i) stages::spread(x.p.row(i), heads, padded, spread_p + i * round);
    T state[3 * kHeadBuffer], factor[kHeadBuffer];
    if (x.normaliser->solves)
      std::fill_n(tau_of_none, kHeadBuffer, T(__builtin_inff()));
    else
      normaliser().close(begin_state(state, round), padded, tau_of_none, factor);
    std::fill_n(least, kHeadBuffer, static_cast<T>(x.score->filter.above));
    std::fill_n(last, kHeadBuffer, Id{-1});
  }

  const ScoreStages<T>& score() const { return x.score->template stages<T>(); }
  const NormaliserStages<T>& normaliser() const { return x.normaliser->template stages<T>(); }
  bool finishes() const { return x.score->finishes(); }
  bool filters() const { return static_cast<bool>(x.score->filter); }
  bool selects() const { return x.score->filter.topk > 0; }
  Finish<T> finish() const { return x.score->finish(spread_p, score_width); }
  // The next batch, whose values are to be fetched; none where they are the keys, which are on their way.
  const Batch* next_values(const Batch& batch) const { return x.v.data == x.k.data ? nullptr : batch.next; }
  // Whether forward keeps what spares backward the pass over queries:
  //   dq_i = sum_j ds_ij (ds/dq)_ij = (1 - below) (<dy_i, sum_above w m v> - delta_i sum_above w), as sum_j ds_ij = 0.
  // A filter that counts keys keeps its own numbers of each row, which with these would be too many.
  bool one_pass() const { return x.score->kinked && x.normaliser->exponential && !reads_edges() && !selects(); }
  bool reads_edges() const { return x.e || x.bias || x.ev; }
};

// The rows of a block's first batch, and those of the next one for which the stages, busy with this one, have no turn.
template <class T>
HEED_FN void prefetch(const Batch& batch, std::initializer_list<View<const T>> tables) {
  for (View<const T> table : tables) {
    if (batch.first)
      for (int t = 0; t < batch.n; ++t) prefetch_row(table, batch.ids[t]);
    if (batch.next)
      for (int t = batch.n; t < batch.next->n; ++t) prefetch_row(table, batch.next->ids[t]);
  }
}

template <class T>
struct Scratch {  // a thread's own
  std::array<Batch, 2> batches;
  Offset entry[kChunk];
  Target<T> down[kChunk], value[kChunk];
  alignas(64) T s[kBuffer], sums[kBuffer], dw[kBuffer], keep[kBuffer], tau[kBuffer], delta[kBuffer];
  alignas(64) T own[kBuffer], edge[kBuffer], other[kBuffer];
  alignas(64) T state[3 * kHeadBuffer];
  Matrix<T> sum;  // of a row that is cut
  Best<T> best;   // keys of one that is whole
  alignas(64) T counted[kBuffer];
};

template <class T>
Scratch<T>& scratch() {
  thread_local Scratch<T> mine;
  return mine;
}

// The numbers of consecutive edges in the lanes of a buffer's vector.
Words edge_lanes(const std::uint32_t* from, int padded) {
  if (padded >= kLanes) return Words{} + *from;
  Words x;
  std::memcpy(&x, from, sizeof x);
  if (padded == 4) return __builtin_shufflevector(x, x, 0, 0, 0, 0, 1, 1, 1, 1);
  if (padded == 2) return __builtin_shufflevector(x, x, 0, 0, 1, 1, 2, 2, 3, 3);
  return x;
}

// Dropout's factors of a batch. In a row pass its rows are queries and its columns keys; in a column pass the reverse.
template <class T>
void fill_keep(const Dropout& dropout, bool row_is_query, const Batch& batch, int padded, T* keep) {
  const std::uint32_t threshold = dropout.threshold();
  const T scale = static_cast<T>(dropout.scale());
  const int edges = padded < kLanes ? kLanes / padded : 1;  // in one vector
  Words head{};
  for (int l = 0; l < kLanes; ++l) head[l] = l % padded;
  std::uint32_t low[kChunk + kLanes], high[kChunk + kLanes];  // a query's key; or in `low` the column
  for (int t = 0; t < batch.n; ++t) {
    const std::uint64_t key = row_is_query ? batch.ids[t] : dropout.row_key(batch.ids[t]);
    low[t] = static_cast<std::uint32_t>(key), high[t] = static_cast<std::uint32_t>(key >> 32);
  }
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& s = batch.segment[g];
    const std::uint64_t own = row_is_query ? dropout.row_key(s.row) : s.row;
    const Words own_low = Words{} + static_cast<std::uint32_t>(own);
    const Words own_high = Words{} + static_cast<std::uint32_t>(own >> 32);
    T* to = keep + s.vector * kLanes;
    for (int t = s.begin; t < s.end; t += edges) {
      const Words other = edge_lanes(low + t, padded);
      Words h = head;
      for (int first = 0; first < std::max(padded, kLanes); first += kLanes, to += kLanes, h += kLanes)
        (row_is_query ? drop_factors<T>(own_low, own_high, other, h, threshold, scale)
                      : drop_factors<T>(other, edge_lanes(high + t, padded), own_low, h, threshold, scale))
            .store(to);
    }
  }
}

// Which of the edges' arrays belongs to each edge of the batch.
template <bool row_is_query, class T>
const Offset* entries(const Plan<T>& plan, const Batch& batch, Scratch<T>& w) {
  if (!plan.reads_edges()) return nullptr;
  if (row_is_query)
    std::iota(w.entry, w.entry + batch.n, batch.entry);
  else
    std::copy_n(plan.x.pattern->edge_of_entry().data() + batch.entry, batch.n, w.entry);
  return w.entry;
}

template <bool row_is_query, class T>
Chunk<T> chunk_of(const Plan<T>& plan, const Batch& batch, Scratch<T>& w, const Offset* entry) {
  const Attention<T>& x = plan.x;
  return {&batch,
          batch.next,
          plan.heads,
          plan.padded,
          plan.score_width,
          row_is_query ? x.q : x.k,
          row_is_query ? x.k : x.q,
          x.e,
          entry,
          x.a.data,
          w.own,
          w.other,
          w.edge};
}

// The first stage: the scores of a batch into w.s, the raw sums into w.sums where the score has a finish.
template <bool row_is_query, class T>
void score_batch(const Plan<T>& plan, const Batch& batch, Scratch<T>& w, const Offset* entry) {
  const Attention<T>& x = plan.x;
  const auto& score = plan.score();
  T* sums = plan.finishes() ? w.sums : w.s;
  if (plan.finishes()) stages::clear_tails(batch, plan.padded, sums);
  score.sums[row_is_query][plan.score_index](x.score->self.get(), chunk_of<row_is_query>(plan, batch, w, entry), sums);
  if (plan.finishes()) score.finish(x.score->self.get(), sums, plan.finish(), batch.vectors, plan.padded, w.s);
  if (x.bias)
    for (int t = 0; t < batch.n; ++t)
      for (int h = 0; h < plan.heads; ++h) w.s[batch.at[t] + h] += x.bias(entry[t], h);
}

// Where a filter counts keys, what they are compared to: here for rows that lie in this batch, by fill_bounds for
// others.
template <class T>
void select_batch(const Plan<T>& plan, const Batch& batch, Scratch<T>& w, AttentionState<T>& state) {
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& s = batch.segment[g];
    if (!s.starts || !s.ends) continue;
    w.best.begin(plan.heads, plan.x.score->filter);
    for (int t = s.begin; t < s.end; ++t)
      for (int h = 0; h < plan.heads; ++h) w.best.add(h, w.s[batch.at[t] + h], batch.ids[t]);
    w.best.bounds(state.least.row(s.row), state.last.row(s.row));
  }
}

// The filter: scores that do not count become -inf, which no threshold sees. `clear_filtered` then sets to 0 what a
// stage of the normaliser made of them: this is all that normalisers have to do with filters.
template <bool row_is_query, class T>
void filter_batch(const Plan<T>& plan, const Batch& batch, Scratch<T>& w, const AttentionState<T>& state) {
  if (!plan.filters()) return;
  for (int t = 0; t < batch.n; ++t) {
    const Id query = row_is_query ? batch.rows[t] : batch.ids[t], key = row_is_query ? batch.ids[t] : batch.rows[t];
    const T* least = plan.selects() ? state.least.row(query) : plan.least;
    const Id* last = plan.selects() ? state.last.row(query) : plan.last;
    T *s = w.s + batch.at[t], *counted = w.counted + batch.at[t];
    for (int h = 0; h < plan.heads; ++h) {
      const bool is = counts(s[h], key, least[h], last[h]);
      counted[h] = is ? T(1) : T(0);
      s[h] = is ? s[h] : T(-__builtin_inff());
    }
  }
}
template <class T>
void clear_filtered(const Plan<T>& plan, const Batch& batch, const Scratch<T>& w, T* buffer) {
  using V = stages::Lanes<T>;
  if (!plan.filters()) return;
  for (int l = 0; l < batch.vectors * kLanes; l += kLanes)
    select(V::load(w.counted + l) > V(T(0)), V::load(buffer + l), V(T(0))).store(buffer + l);
}

template <class T>
void scale_heads(T* acc, const T* factor, int heads, int width) {
  for (int h = 0; h < heads; ++h)
    for (int c = 0; c < width; ++c) acc[h * width + c] *= factor[h];
}

Offset lane_round(Offset n) { return (n + kLanes - 1) / kLanes * kLanes; }

// What forward sums up over a row: y, and where `above` is kept the two sums over scores above 0. Each has its place in
// the sums of a row that is cut.
template <class T>
struct Outputs {
  View<T> y, above;
  Offset size;  // of a row of y, in whole vectors

  Outputs(View<T> to, Matrix<T>* kept) : y(to), size(lane_round(to.cols)) {
    if (kept) above = kept->view();
  }
  Offset room(int heads) const { return above ? 2 * size + lane_round(heads) : size; }
  // use(sum, row, width): each output's place in `sums`, its row i and the width of a head
  template <class Use>
  void each(const Plan<T>& plan, T* sums, Id i, Use use) const {
    use(sums, y.row(i), plan.width);
    if (!above) return;
    use(sums + size, above.row(i), plan.width);
    use(sums + 2 * size, above.row(i) + y.cols, 1);
  }
};

// The scores of one row that may count for its threshold, head by head.
template <class T>
class Candidates {
 public:
  Candidates() = default;
  explicit Candidates(const Plan<T>& plan)
      : reach_(static_cast<T>(plan.x.normaliser->reach)),
        top_(static_cast<std::size_t>(plan.heads), T(-__builtin_inff())),
        kept_(static_cast<std::size_t>(plan.heads)) {}
  void add(int h, T s, Id) { add(h, s); }
  void add(int h, T s) {
    const auto at = static_cast<std::size_t>(h);
    if (!(s > top_[at] - reach_)) return;
    kept_[at].push_back(s);
    top_[at] = std::max(top_[at], s);
  }
  void add(const Candidates& other) {
    for (std::size_t h = 0; h < kept_.size(); ++h)
      for (T s : other.kept_[h]) add(static_cast<int>(h), s);
  }
  void solve(const Plan<T>& plan, T* tau) const {
    for (std::size_t h = 0; h < kept_.size(); ++h) tau[h] = plan.normaliser().solve(kept_[h].data(), kept_[h].size());
  }

 private:
  T reach_ = 0;
  std::vector<T> top_;
  std::vector<std::vector<T>> kept_;
};

// Scores become weights where tau is solved for: here for rows that lie in this batch, by fill_thresholds for others.
template <class T>
void weigh_batch(const Plan<T>& plan, const Batch& batch, Scratch<T>& w, Matrix<T>& tau) {
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& s = batch.segment[g];
    if (s.starts && s.ends)
      for (int h = 0; h < plan.heads; ++h) {
        T row[kChunk];
        for (int t = s.begin; t < s.end; ++t) row[t - s.begin] = w.s[batch.at[t] + h];
        tau(s.row, h) = plan.normaliser().solve(row, static_cast<std::size_t>(s.edges()));
      }
    std::fill_n(w.delta + g * plan.round, plan.round, T(1));  // the factor
  }
  stages::gather(std::as_const(tau).view(), batch.rows, batch.at, batch.n, plan.padded, w.tau);
  plan.normaliser().weigh(w.s, w.tau, batch.vectors);
}

// The rows of a block: outputs and tau of those that end in it. What a row that is cut has so far lies in `sum` (zero
// before) and `state`.
template <class T>
void forward_block(const Plan<T>& plan, Scratch<T>& w, const Block& block, const RowState<T>& state, T* sum,
                   const Outputs<T>& out, AttentionState<T>& saved) {
  using V = stages::Lanes<T>;
  Matrix<T>& tau = saved.tau;
  const Attention<T>& x = plan.x;
  if constexpr (std::is_same_v<T, float>)
    if (plan.fused)
      return plan.fused->forward({x, plan.finish(), out.y, tau.view(), out.above, saved.needed}, block, sum, state);
  T* const above = w.dw;  // a buffer of weights
  auto empty = [&](Id i) {
    if (block.part >= 0) return;
    std::copy_n(plan.tau_of_none, plan.heads, tau.row(i));
    out.each(plan, sum, i, [&](T*, T* row, int width) { std::fill_n(row, plan.heads * width, T(0)); });
  };
  auto aim = [&](const Batch& batch, T* place, View<T> to) {
    for (int g = 0; g < batch.segments; ++g) {
      const Segment& s = batch.segment[g];
      w.value[g] = {s.starts ? nullptr : place, s.ends ? to.row(s.row) : place};
    }
  };
  for_each_batch(x.pattern->by_query, block, plan.limit, plan.padded, w.batches, empty, [&](const Batch& batch) {
    const int end = batch.vectors * kLanes;
    prefetch<T>(batch, {x.k, x.v});
    const Offset* entry = entries<true>(plan, batch, w);
    score_batch<true>(plan, batch, w, entry);
    if (plan.selects()) select_batch(plan, batch, w, saved);
    filter_batch<true>(plan, batch, w, saved);
    if (out.above)
      for (int l = 0; l < end; l += kLanes) select(V::load(w.s + l) > V(T(0)), V(T(1)), V(T(0))).store(above + l);
    if (x.normaliser->solves) {
      weigh_batch(plan, batch, w, tau);
    } else {
      plan.normaliser().raw(w.s, batch, plan.padded, state, w.tau, w.delta);
      if (!batch.segment[0].starts && x.normaliser->couples)
        out.each(plan, sum, 0, [&](T* place, T*, int width) { scale_heads(place, state.rescale, plan.heads, width); });
      for (int g = 0; g < batch.segments; ++g)
        if (batch.segment[g].ends) std::copy_n(w.tau + g * plan.round, plan.heads, tau.row(batch.segment[g].row));
    }
    clear_filtered(plan, batch, w, w.s);
    if (out.above) {
      for (int l = 0; l < end; l += kLanes) (V::load(above + l) * V::load(w.s + l)).store(above + l);
      aim(batch, sum + 2 * out.size, out.above.columns(out.y.cols, plan.heads));
      stages::add_edges(above, batch, plan.heads, plan.padded, w.delta, w.value);
    }
    if (x.dropout.rate > 0) {
      fill_keep(x.dropout, true, batch, plan.padded, w.keep);
      for (T* weights : {w.s, above})
        if (weights == w.s || out.above)
          for (int l = 0; l < end; l += kLanes) (V::load(weights + l) * V::load(w.keep + l)).store(weights + l);
    }
    aim(batch, sum, out.y);
    plan.add_values(w.value, x.ev ? nullptr : w.delta, w.s, x.v, nullptr, batch, plan.next_values(batch), plan.heads,
                    plan.padded, plan.width);
    if (x.ev) {
      for (int g = 0; g < batch.segments; ++g) w.value[g].from = w.value[g].to;
      plan.add_values(w.value, w.delta, w.s, x.ev, entry, batch, nullptr, plan.heads, plan.padded, plan.width);
    }
    if (out.above) {
      aim(batch, sum + out.size, out.above);
      plan.add_values(w.value, w.delta, above, x.v, nullptr, batch, nullptr, plan.heads, plan.padded, plan.width);
    }
  });
}

template <class T>
void finish_row(const Plan<T>& plan, const RowState<T>& state, T* sum, Id i, const Outputs<T>& out, Matrix<T>& tau) {
  alignas(64) T closed[kHeadBuffer], factor[kHeadBuffer];
  const bool solved = plan.x.normaliser->solves;
  if (!solved) {
    plan.normaliser().close(state, plan.padded, closed, factor);
    std::copy_n(closed, plan.heads, tau.row(i));
  }
  out.each(plan, sum, i, [&](T* place, T* to, int width) {
    if (!solved) scale_heads(place, factor, plan.heads, width);
    std::copy_n(place, plan.heads * width, to);
  });
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

// Whatever needs all scores of a row, for the rows that lie in no single batch: found.add(head, score, key) for each of
// them, as scores(batch, scratch) leaves them, then use(found, row). Parts of a hub are found side by side and joined
// in order.
template <class T, class Found, class Scores, class Use>
void find_in_rows(const Plan<T>& plan, const Found& none, Scores scores, Use use) {
  const Rows& rows = plan.x.pattern->by_query;
  auto collect = [&](const Block& block, Found& found) {
    Scratch<T>& w = scratch<T>();
    for_each_batch(
        rows, block, plan.limit, plan.padded, w.batches, [](Id) {},
        [&](const Batch& batch) {
          prefetch<T>(batch, {plan.x.k});
          scores(batch, w);
          for (int t = 0; t < batch.n; ++t)
            for (int h = 0; h < plan.heads; ++h) found.add(h, w.s[batch.at[t] + h], batch.ids[t]);
        });
  };
  std::vector<Found> parts(static_cast<std::size_t>(rows.parts), none);
  for_each_block(
      rows,
      [&](std::size_t b) {
        for (Id i = rows.blocks[b].first; i < rows.blocks[b].last; ++i) {
          if (rows.length(i) <= plan.limit) continue;
          thread_local Found found;
          found = none;  // keeps its room
          collect({.first = i, .last = i + 1}, found);
          use(found, i);
        }
      },
      [&](std::size_t b) { collect(rows.blocks[b], parts[static_cast<std::size_t>(rows.blocks[b].part)]); },
      [&](std::size_t first, std::size_t last) {
        Found& found = parts[static_cast<std::size_t>(rows.blocks[first].part)];
        for (std::size_t b = first + 1; b < last; ++b) found.add(parts[static_cast<std::size_t>(rows.blocks[b].part)]);
        use(found, rows.blocks[first].first);
      });
}

// What keys are compared to in those rows, where a filter counts them.
template <class T>
void fill_bounds(const Plan<T>& plan, AttentionState<T>& state) {
  Best<T> none;
  none.begin(plan.heads, plan.x.score->filter);
  find_in_rows(
      plan, none,
      [&](const Batch& batch, Scratch<T>& w) { score_batch<true>(plan, batch, w, entries<true>(plan, batch, w)); },
      [&](const Best<T>& best, Id i) { best.bounds(state.least.row(i), state.last.row(i)); });
}

// Their tau, where it is solved for.
template <class T>
void fill_thresholds(const Plan<T>& plan, AttentionState<T>& state) {
  find_in_rows(
      plan, Candidates<T>(plan),
      [&](const Batch& batch, Scratch<T>& w) {
        score_batch<true>(plan, batch, w, entries<true>(plan, batch, w));
        filter_batch<true>(plan, batch, w, state);
      },
      [&](const Candidates<T>& found, Id i) { found.solve(plan, state.tau.row(i)); });
}

// Whether tiles can and do pay: they need stages of their own, and know no filters.
template <class T>
bool in_tiles(const Attention<T>& x) {
  return !x.score->filter && x.score->template stages<T>().tile_sums && x.normaliser->template stages<T>().tile &&
         pays_in_tiles(*x.pattern);
}

template <class T>
Attention<T> one_row(const Attention<T>& x, AttentionState<T>& state) {
  if (!state.one || state.one->keys() != x.pattern->keys()) state.one = Pattern::all(1, x.pattern->keys());
  if (state.groups.empty()) state.groups.resize(1);
  state.shared.resize(2, x.v.cols);
  Attention<T> out = x;
  out.pattern = state.one.get();
  out.q.rows = 1;
  return out;
}

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
    for (View<const T>* view :
         {&part.q, &part.k, &part.v, &part.a, &part.p, &part.e, &part.bias, &part.ev, &part.y_bias})
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
  check(*x.score, *x.normaliser);
  if (x.bias && x.normaliser->nonnegative)
    fail("attention: the normaliser '" + x.normaliser->name +
         "' takes scores that are never negative, and a bias may make them so");
  if (x.score->check_width) x.score->check_width(x.score->self.get(), static_cast<int>(x.q.cols / x.heads));
  if (x.score->contracts && x.q.cols != x.heads)
    fail("attention: the score '" + x.score->name + "' takes one channel a head, not " +
         std::to_string(x.q.cols / x.heads));
  if (x.score->reads_vector) expect("a", x.a, 1, x.q.cols);
  if (x.score->scalars > 0) expect("p", x.p, x.score->scalars, x.heads);
  if (!(x.dropout.rate >= 0 && x.dropout.rate < 1))
    fail("attention: dropout must be at least 0 and below 1, not " + std::to_string(x.dropout.rate));
  if (x.y_bias) expect("y_bias", x.y_bias, 1, x.v.cols);
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
static void check_for_cpu(const Attention<T>& x) {
  if (x.bf16) fail("attention: rows are stored as bfloat16 on a GPU alone");
  if (x.pattern->by_query.redrawn) fail("attention: patterns are redrawn on a GPU alone");
}

template <class T>
void attention(const Attention<T>& x, View<T> y, AttentionState<T>& state) {
  check<T>(x, y);
  check_for_cpu(x);
  state.tau.resize(y.rows, x.heads);
  if (rows_are_one(x)) {
    const Attention<T> one = one_row(x, state);
    state.groups[0].backward = state.backward;
    attention(one, View<T>{state.shared.data(), 1, y.cols, y.cols}, state.groups[0]);
    parallel_pieces(y.rows, row_grain(y.cols), [&](Offset begin, Offset end) {
      for (Offset i = begin; i < end; ++i) {
        std::copy_n(state.shared.row(0), y.cols, y.row(i));
        std::copy_n(state.groups[0].tau.row(0), x.heads, state.tau.row(i));
      }
    });
    return;
  }
  if (in_head_groups(x, [&](const Attention<T>& part, int first, int count) {
        AttentionState<T>& own = group_state(state, first);
        own.backward = state.backward, own.needed = state.needed;
        attention(part, y.columns(first * (y.cols / x.heads), count * (y.cols / x.heads)), own);
        for (Offset i = 0; i < y.rows; ++i) std::copy_n(own.tau.row(i), count, state.tau.row(i) + first);
      }))
    return;
  auto add_bias = [&](Offset begin, Offset end) {
    if (!x.y_bias) return;
    for (Offset i = begin; i < end; ++i) {
      if (state.needed && !state.needed[i]) continue;
      for (Offset c = 0; c < y.cols; ++c) y(i, c) += x.y_bias(0, c);
    }
  };
  if (in_tiles(x)) {
    tiled_attention(x, y, state);
    parallel_pieces(y.rows, row_grain(y.cols), add_bias);
    return;
  }

  const Plan<T> plan(x);
  const Rows& rows = x.pattern->by_query;
  const bool above = plan.one_pass() && state.backward;
  // Of a large table each row has lines of its own, which are written past the caches.
  const bool large = y.cols % 16 == 0 && y.rows * y.cols * Offset{sizeof(T)} > fused::kLarge;
  state.above.resize(above ? y.rows : 0, above ? y.cols + (large ? (plan.heads + 15) / 16 * 16 : plan.heads) : 0);
  const Outputs<T> out(y, above ? &state.above : nullptr);
  const Offset room = out.room(plan.heads);
  state.parts.resize(rows.parts, rows.parts > 0 ? room + 3 * plan.round : 0);
  if (plan.selects()) {
    state.least.resize(y.rows, plan.heads), state.last.resize(y.rows, plan.heads);
    fill_bounds(plan, state);
  }
  if (x.normaliser->solves) fill_thresholds(plan, state);

  for_each_block(
      rows,
      [&](std::size_t b) {
        Scratch<T>& w = scratch<T>();
        w.sum.resize(1, room);
        forward_block(plan, w, rows.blocks[b], state_at(w.state, plan.round), w.sum.data(), out, state);
        add_bias(rows.blocks[b].first, rows.blocks[b].last);
      },
      [&](std::size_t b) {
        T* sum = state.parts.row(rows.blocks[b].part);
        std::fill_n(sum, room, T(0));
        forward_block(plan, scratch<T>(), rows.blocks[b], begin_state(sum + room, plan.round), sum, out, state);
      },
      [&](std::size_t first, std::size_t last) {
        T* sum = state.parts.row(rows.blocks[first].part);
        const Id row = rows.blocks[first].first;
        auto into = state_at(sum + room, plan.round);
        for (std::size_t b = first + 1; b < last; ++b) {
          T* more = state.parts.row(rows.blocks[b].part);
          auto from = state_at(more + room, plan.round);
          if (!x.normaliser->solves) plan.normaliser().merge(into, from, plan.padded);
          out.each(plan, sum, row, [&](T* place, T*, int width) {
            for (int h = 0; h < plan.heads; ++h)
              for (int c = h * width; c < (h + 1) * width; ++c)
                place[c] = place[c] * into.rescale[h] + more[place - sum + c] * from.rescale[h];
          });
        }
        finish_row(plan, into, sum, row, out, state.tau);
        add_bias(row, row + 1);
      });
}

namespace {

template <class T>
const std::uint8_t* given(const AttentionState<T>& state) {
  return state.given.empty() ? nullptr : state.given.data();
}

// delta_i = <dy_i, y_i - y_bias> per head: the sum over the row of drain * dw, since drain = w. It lies beside tau, so
// that the column pass fetches one row for both. And dq, where forward kept what it needs. And which queries are given
// anything: where a loss is of few rows most are not, and their pairs add zeros (or NaN, where the query or a key is
// that, which is then not seen).
template <class T>
void fill_delta(const Plan<T>& plan, View<const T> y, View<const T> dy, AttentionState<T>& state, const Sink<T>& dq) {
  state.tau_delta.resize(y.rows, 2 * plan.heads);
  state.given.resize(plan.fused ? static_cast<std::size_t>(y.rows) : 0);
  parallel_pieces(y.rows, 256, [&](Offset begin, Offset end) {
    Batch& batch = scratch<T>().batches[0];
    for (Offset i = begin; i < end; i += kChunk) {
      batch.n = 0;
      batch.ids = batch.rows;
      for (Offset row = i; row < std::min(i + kChunk, end); ++row) {
        if (plan.fused && state.needed && !state.needed[row]) {
          state.given[row] = 0;
          if (dq && !dq.add) std::fill_n(dq.to.row(row), plan.heads, T(0));
          continue;
        }
        batch.rows[batch.n] = static_cast<Id>(row), batch.at[batch.n++] = static_cast<int>(row - i) * 2 * plan.heads;
        std::copy_n(state.tau.row(row), plan.heads, state.tau_delta.row(row));
        const T* from = dy.row(row);
        if (plan.fused) state.given[row] = std::any_of(from, from + dy.cols, [](T x) { return x != 0; });
      }
      plan.dot_values(y, batch.rows, dy, nullptr, batch, nullptr, plan.heads, plan.width, false,
                      state.tau_delta.row(i) + plan.heads);
      T* const along = scratch<T>().dw;
      for (int t = 0; t < batch.n; ++t) batch.at[t] = t * plan.heads;
      if (View<const T> bias = plan.x.y_bias) {
        bias.stride = 0;  // the one row for all
        plan.dot_values(bias, batch.rows, dy, nullptr, batch, nullptr, plan.heads, plan.width, false, along);
        for (int t = 0; t < batch.n; ++t)
          for (int h = 0; h < plan.heads; ++h)
            state.tau_delta(batch.rows[t], plan.heads + h) -= along[t * plan.heads + h];
      }
      if (!dq) continue;
      // <dy, sum_above w m v>
      plan.dot_values(state.above.view(), batch.rows, dy, nullptr, batch, nullptr, plan.heads, plan.width, false,
                      along);
      for (int t = 0; t < batch.n; ++t)
        for (int h = 0; h < plan.heads; ++h) {
          const Id row = batch.rows[t];
          const T share = state.above(row, y.cols + h), delta = state.tau_delta(row, plan.heads + h);
          const T left = along[t * plan.heads + h] - delta * share;  // dy may be NaN where the row sees no key
          const T value = share == 0 ? 0 : (1 - static_cast<T>(plan.x.score->slope_below)) * left;
          T& to = dq.to(row, h);
          to = dq.add ? to + value : value;
        }
    }
  });
  if (2 * std::count(state.given.begin(), state.given.end(), 1) > y.rows) state.given.clear();
}

template <class T>
void put(T* to, const T* from, Offset n, bool add) {
  if (add)
    for (Offset c = 0; c < n; ++c) to[c] += from[c];
  else
    std::copy_n(from, n, to);
}

// Where the sums over the batch's segments go: into the gradient of a row that is whole; else into `sum`, and from
// there into the gradient when the row ends. A part of a hub stays in `sum`.
template <class T>
void aim(const Batch& batch, const Sink<T>& sink, T* sum, Target<T>* targets) {
  for (int g = 0; g < batch.segments; ++g) {
    const Segment& s = batch.segment[g];
    if (s.starts && s.ends && sink)
      targets[g] = {sink.add ? sink.to.row(s.row) : nullptr, sink.to.row(s.row)};
    else
      targets[g] = {s.starts ? nullptr : sum, sum};
  }
}
template <class T>
void land(const Batch& batch, const Sink<T>& sink, const T* sum) {
  const Segment& s = batch.segment[0];
  if (sink && !s.starts && s.ends) put(sink.to.row(s.row), sum, sink.to.cols, sink.add);
}
template <class T>
void clear_row(const Sink<T>& sink, Id i) {  // a row without edges
  if (sink && !sink.add) std::fill_n(sink.to.row(i), sink.to.cols, T(0));
}

// The middle of backward, alike in both directions: from scores and <dy, v> to weights (w.s) and ds (w.dw).
template <bool row_is_query, class T>
void gradient_batch(const Plan<T>& plan, const Batch& batch, Scratch<T>& w) {
  const Dropout& dropout = plan.x.dropout;
  if (dropout.rate > 0) fill_keep(dropout, row_is_query, batch, plan.padded, w.keep);
  plan.normaliser().gradient(w.s, w.dw, w.tau, w.delta, dropout.rate > 0 ? w.keep : nullptr, batch, plan.padded);
  for (T* buffer : {w.s, w.dw}) clear_filtered(plan, batch, w, buffer);
}

template <class T>
void gather_thresholds(const Plan<T>& plan, const Batch& batch, Scratch<T>& w, const AttentionState<T>& state,
                       const Id* queries) {
  const View<const T> both = state.tau_delta.view();
  stages::gather(both, queries, batch.at, batch.n, plan.padded, w.tau, queries == batch.ids ? batch.next : nullptr);
  stages::gather(both.columns(plan.heads, plan.heads), queries, batch.at, batch.n, plan.padded, w.delta);
}

// Where drain is not w: delta = (sum_j drain_j dw_j) / (sum_j share_j), by a pass over the rows. The two sums of a row
// lie where tau and delta will.
template <class T>
void measure_delta(const Plan<T>& plan, View<const T> dy, AttentionState<T>& state) {
  const Attention<T>& x = plan.x;
  const Rows& rows = x.pattern->by_query;
  Matrix<T>& measured = state.tau_delta;
  measured.fill(T(0));
  state.parts.resize(rows.parts, rows.parts > 0 ? 2 * plan.heads : 0);
  auto run = [&](const Block& block) {
    Scratch<T>& w = scratch<T>();
    for_each_batch(
        rows, block, plan.limit, plan.padded, w.batches, [](Id) {},
        [&](const Batch& batch) {
          prefetch<T>(batch, {x.k, x.v});
          const Offset* entry = entries<true>(plan, batch, w);
          score_batch<true>(plan, batch, w, entry);
          filter_batch<true>(plan, batch, w, state);
          plan.dot_values(dy, batch.rows, x.v, nullptr, batch, plan.next_values(batch), plan.heads, plan.width, false,
                          w.dw);
          if (x.ev) plan.dot_values(dy, batch.rows, x.ev, entry, batch, nullptr, plan.heads, plan.width, true, w.dw);
          stages::gather(std::as_const(state.tau).view(), batch.rows, batch.at, batch.n, plan.padded, w.tau);
          if (x.dropout.rate > 0) fill_keep(x.dropout, true, batch, plan.padded, w.keep);
          plan.normaliser().measure(w.s, w.dw, w.tau, x.dropout.rate > 0 ? w.keep : nullptr, batch, plan.padded);
          for (T* buffer : {w.s, w.dw}) clear_filtered(plan, batch, w, buffer);
          for (int side = 0; side < 2; ++side) {
            for (int g = 0; g < batch.segments; ++g) {
              T* to = (block.part < 0 ? measured.row(batch.segment[g].row) : state.parts.row(block.part)) +
                      side * plan.heads;
              w.value[g] = {batch.segment[g].starts ? nullptr : to, to};
            }
            stages::add_edges(side == 0 ? w.dw : w.s, batch, plan.heads, plan.padded, nullptr, w.value);
          }
        });
  };
  for_each_block(
      rows, [&](std::size_t b) { run(rows.blocks[b]); },
      [&](std::size_t b) {
        std::fill_n(state.parts.row(rows.blocks[b].part), 2 * plan.heads, T(0));  // a part may have no edges
        run(rows.blocks[b]);
      },
      [&](std::size_t first, std::size_t last) {
        for (std::size_t b = first; b < last; ++b)
          put(measured.row(rows.blocks[b].first), state.parts.row(rows.blocks[b].part), 2 * plan.heads, true);
      });
  for (Offset i = 0; i < measured.rows(); ++i)
    for (int h = 0; h < plan.heads; ++h) {
      const T drained = measured(i, h), shares = measured(i, plan.heads + h);
      measured(i, h) = state.tau(i, h);
      measured(i, plan.heads + h) = shares > 0 ? drained / shares : T(0);
    }
}

// Row pass over a block: dq, or `sum` (heads*score_width, zero before) of a row that is cut; da and dp are added to.
template <class T>
void row_block(const Plan<T>& plan, Scratch<T>& w, const Block& block, const AttentionState<T>& state, View<const T> dy,
               const AttentionGradient<T>& g, T* sum, T* da, T* dp) {
  const Attention<T>& x = plan.x;
  const auto& score = plan.score();
  if constexpr (std::is_same_v<T, float>)
    if (plan.fused && plan.fused->queries)
      return plan.fused->queries({x, plan.finish(), dy, state.tau_delta.view(), g, given(state)}, block, sum, da, dp);
  auto empty = [&](Id i) {
    if (block.part < 0) clear_row(g.dq, i);
  };
  for_each_batch(x.pattern->by_query, block, plan.limit, plan.padded, w.batches, empty, [&](const Batch& batch) {
    prefetch<T>(batch, {x.k, x.v});
    const Offset* entry = entries<true>(plan, batch, w);
    score_batch<true>(plan, batch, w, entry);
    filter_batch<true>(plan, batch, w, state);
    plan.dot_values(dy, batch.rows, x.v, nullptr, batch, plan.next_values(batch), plan.heads, plan.width, false, w.dw);
    if (x.ev) plan.dot_values(dy, batch.rows, x.ev, entry, batch, nullptr, plan.heads, plan.width, true, w.dw);
    gather_thresholds(plan, batch, w, state, batch.rows);
    gradient_batch<true>(plan, batch, w);
    if (g.dbias)
      for (int t = 0; t < batch.n; ++t)
        for (int h = 0; h < plan.heads; ++h) {
          T& to = g.dbias.to(entry[t], h);
          to = (g.dbias.add ? to : T(0)) + w.dw[batch.at[t] + h];
        }
    if (plan.finishes())
      score.finish_gradient(x.score->self.get(), w.sums, plan.finish(), batch.vectors, plan.padded, w.dw, dp);
    aim(batch, g.dq, sum, w.down);
    score.gradient[1][plan.score_index](x.score->self.get(), chunk_of<true>(plan, batch, w, entry),
                                        {w.dw, w.down, da, g.de.to});
    land(batch, g.dq, sum);
    // After de: where one table is feature and value at once, dev is added to it.
    if (g.dev)
      for (int t = 0; t < batch.n; ++t)
        for (int h = 0; h < plan.heads; ++h)
          for (int c = h * plan.width; c < (h + 1) * plan.width; ++c) {
            T& to = g.dev.to(entry[t], c);
            T value = w.s[batch.at[t] + h] * dy(batch.rows[t], c);
            to = g.dev.add ? to + value : value;
          }
  });
}

// Column pass over a block: dk and dv, or `down` (heads*score_width) and `value` (heads*width), zero before, of a row
// that is cut.
template <class T>
void column_block(const Plan<T>& plan, Scratch<T>& w, const Block& block, const AttentionState<T>& state,
                  View<const T> dy, const AttentionGradient<T>& g, T* down, T* value) {
  const Attention<T>& x = plan.x;
  const auto& score = plan.score();
  if constexpr (std::is_same_v<T, float>)
    if (plan.fused)
      return plan.fused->keys({x, plan.finish(), dy, state.tau_delta.view(), g, given(state)}, block, down);
  auto empty = [&](Id j) {
    if (block.part < 0) clear_row(g.dk, j), clear_row(g.dv, j);
  };
  for_each_batch(x.pattern->by_key, block, plan.limit, plan.padded, w.batches, empty, [&](const Batch& batch) {
    prefetch<T>(batch, {x.q, dy, state.tau_delta.view()});
    const Offset* entry = entries<false>(plan, batch, w);
    score_batch<false>(plan, batch, w, entry);
    filter_batch<false>(plan, batch, w, state);
    gather_thresholds(plan, batch, w, state, batch.ids);
    if (g.dk) {
      plan.dot_values(x.v, batch.rows, dy, nullptr, batch, batch.next, plan.heads, plan.width, false, w.dw);
      if (x.ev) plan.dot_values(dy, batch.ids, x.ev, entry, batch, nullptr, plan.heads, plan.width, true, w.dw);
    }
    gradient_batch<false>(plan, batch, w);
    if (g.dk) {
      if (plan.finishes())
        score.finish_gradient(x.score->self.get(), w.sums, plan.finish(), batch.vectors, plan.padded, w.dw,
                              static_cast<T*>(nullptr));
      aim(batch, g.dk, down, w.down);
      score.gradient[0][plan.score_index](x.score->self.get(), chunk_of<false>(plan, batch, w, entry),
                                          {w.dw, w.down, nullptr, {}});
      land(batch, g.dk, down);
    }
    if (g.dv) {  // after dk: where one table is key and value at once, dv is added to it
      aim(batch, g.dv, value, w.value);
      plan.add_values(w.value, nullptr, w.s, dy, nullptr, batch, g.dk ? nullptr : batch.next, plan.heads, plan.padded,
                      plan.width);
      land(batch, g.dv, value);
    }
  });
}

}  // namespace

template <class T>
void attention_gradient(const Attention<T>& x, View<const T> y, View<const T> dy, AttentionState<T>& state,
                        const AttentionGradient<T>& g) {
  check(x, y, dy, state.tau, g);
  check_for_cpu(x);
  if (rows_are_one(x)) {
    const Attention<T> one = one_row(x, state);
    T *const one_y = state.shared.row(0), *const one_dy = state.shared.row(1);
    std::copy_n(y.row(0), y.cols, one_y);
    std::fill_n(one_dy, y.cols, T(0));
    ordered_sums(dy.rows, 512, dy.cols, one_dy, state.sums, [&](Offset begin, Offset end, T* sum) {
      for (Offset i = begin; i < end; ++i)
        for (Offset c = 0; c < dy.cols; ++c) sum[c] += dy(i, c);
    });
    if (g.dq && !g.dq.add)
      parallel_pieces(g.dq.to.rows, row_grain(g.dq.to.cols), [&](Offset begin, Offset end) {
        for (Offset i = begin; i < end; ++i) std::fill_n(g.dq.to.row(i), g.dq.to.cols, T(0));
      });
    AttentionGradient<T> rest = g;
    rest.dq = {};
    return attention_gradient<T>(one, {one_y, 1, y.cols, y.cols}, {one_dy, 1, y.cols, y.cols}, state.groups[0], rest);
  }
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
  if (in_tiles(x)) return tiled_gradient(x, y, dy, state, g);

  const Plan<T> plan(x);
  const bool one_pass = plan.one_pass() && !state.above.empty();
  fill_delta(plan, y, dy, state, one_pass ? g.dq : Sink<T>{});
  if (x.normaliser->measures) measure_delta(plan, dy, state);
  const Offset channels = x.q.cols, score_total = lane_round(channels), value_total = lane_round(x.v.cols);
  const int round = plan.round;

  const bool learned = (g.da && x.score->reads_vector) || g.dp;
  if ((g.dq && !one_pass) || learned || g.de || g.dbias || g.dev) {
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
          w.sum.resize(1, score_total);
          T *da, *dp;
          learned_sums(b, da, dp);
          row_block(plan, w, rows.blocks[b], state, dy, g, w.sum.data(), da, dp);
        },
        [&](std::size_t b) {
          T *da, *dp, *sum = state.parts.row(rows.blocks[b].part);
          learned_sums(b, da, dp);
          std::fill_n(sum, score_total, T(0));
          row_block(plan, scratch<T>(), rows.blocks[b], state, dy, g, sum, da, dp);
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
          w.sum.resize(1, total);
          column_block(plan, w, rows.blocks[b], state, dy, g, w.sum.data(), w.sum.data() + score_total);
        },
        [&](std::size_t b) {
          T* sum = state.parts.row(rows.blocks[b].part);
          std::fill_n(sum, total, T(0));
          column_block(plan, scratch<T>(), rows.blocks[b], state, dy, g, sum, sum + score_total);
        },
        [&](std::size_t first, std::size_t last) {
          T* down = state.parts.row(rows.blocks[first].part);
          for (std::size_t b = first + 1; b < last; ++b) put(down, state.parts.row(rows.blocks[b].part), total, true);
          write(rows.blocks[first].first, down);
        });
  }
}

namespace {

// Scores of all listed edges, batch by batch: use(w) finds them in the scratch.
template <class T, class Use>
void list_scores(const Plan<T>& plan, Use use) {
  const Rows& rows = plan.x.pattern->by_query;
  parallel_pieces(static_cast<Offset>(rows.blocks.size()), 1, [&](Offset b, Offset) {
    Scratch<T>& w = scratch<T>();
    for_each_batch(
        rows, rows.blocks[static_cast<std::size_t>(b)], plan.limit, plan.padded, w.batches, [](Id) {},
        [&](const Batch& batch) {
          prefetch<T>(batch, {plan.x.k});
          score_batch<true>(plan, batch, w, entries<true>(plan, batch, w));
          use(batch, w);
        });
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
  list_scores(plan, [&](const Batch& batch, Scratch<T>& w) {
    for (int t = 0; t < batch.n; ++t) std::copy_n(w.s + batch.at[t], plan.heads, scores.row(batch.entry + t));
  });
}

template <class T>
void attention_weights(const Attention<T>& x, const AttentionState<T>& state, View<T> weights) {
  check_listed(x, "weights", weights);
  if (in_head_groups(x, [&](const Attention<T>& part, int first, int count) {
        AttentionState<T> own;
        own.tau.resize(state.tau.rows(), count);
        for (Offset i = 0; i < state.tau.rows(); ++i) std::copy_n(state.tau.row(i) + first, count, own.tau.row(i));
        if (x.score->filter.topk > 0) {
          const AttentionState<T>& group = state.groups.at(static_cast<std::size_t>(first / kMaxHeads));
          own.least = group.least, own.last = group.last;
        }
        attention_weights(part, own, weights.columns(first, count));
      }))
    return;
  const Plan<T> plan(x);
  list_scores(plan, [&](const Batch& batch, Scratch<T>& w) {
    filter_batch<true>(plan, batch, w, state);
    stages::gather(state.tau.view(), batch.rows, batch.at, batch.n, plan.padded, w.tau);
    gradient_batch<true>(plan, batch, w);
    for (int t = 0; t < batch.n; ++t) std::copy_n(w.s + batch.at[t], plan.heads, weights.row(batch.entry + t));
  });
}

template <class T>
void weighted_sum(const Rows& rows, std::span<const T> weights, std::span<const Offset> edge, std::span<const T> scale,
                  std::span<const Summand<T>> sums, Matrix<T>& parts, const std::uint8_t* needed, bool passes_zeros) {
  Offset total = 0;
  for (const auto& [x, y] : sums) {
    expect("x of a sparse product", x, rows.cols, x.cols);
    expect("y of a sparse product", y.to, rows.rows, x.cols);
    total += lane_round(x.cols);
  }
  if (rows.listed() && !weights.empty() &&
      static_cast<Offset>((edge.empty() ? weights.size() : edge.size())) != rows.list->edges())
    fail("sparse product: " + std::to_string(weights.size()) + " weights for " + std::to_string(rows.list->edges()) +
         " entries");
  if (!rows.listed() && !weights.empty()) fail("sparse product: weights need a pattern that is a list");
  parts.resize(rows.parts, rows.parts > 0 ? total : 0);
  // use(summand, its place in `sum`)
  auto each = [&](T* sum, auto use) {
    for (const Summand<T>& s : sums) use(s, sum), sum += lane_round(s.x.cols);
  };
  // Some edges of row i, in `sum` while the row is not whole. `entry`: the first one's, in a list.
  const std::size_t listed = rows.listed() ? rows.list->ids.size() : 0;
  auto add = [&](Id i, const Id* ids, Offset entry, int n, bool starts, bool ends, T* sum) {
    const Id* last = listed > 0 ? rows.list->ids.data() + listed : ids;
    T room[kChunk];
    Id kept[kChunk];
    const T* w = room;
    if (!weights.empty() && edge.empty() && scale.empty()) {
      w = weights.data() + entry;
      if (passes_zeros && 4 * std::count(w, w + n, T(0)) > n) {
        int count = 0;
        for (int t = 0; t < n; ++t) room[count] = w[t], kept[count] = ids[t], count += w[t] != 0;
        w = room, ids = kept, n = count, last = kept + count;
      }
    } else {
      const T by = scale.empty() ? T(1) : scale[i];
      auto weight = [&](int t) {
        return weights.empty() ? by : by * weights[edge.empty() ? entry + t : edge[entry + t]];
      };
      if (edge.empty()) {
        for (int t = 0; t < n; ++t) room[t] = weight(t);
      } else {  // of dropped features most weights are 0; their rows, afar here, are not looked at
        int count = 0;
        for (int t = 0; t < n; ++t) room[count] = weight(t), kept[count] = ids[t], count += room[count] != 0;
        ids = kept, n = count, last = kept + count;
      }
    }
    each(sum, [&](const Summand<T>& s, T* place) {
      T* const to = s.y.to.row(i);
      const bool whole = starts && ends;
      const Target<T> target{whole ? (s.y.add ? to : nullptr) : (starts ? nullptr : place), whole ? to : place};
      auto row = [x = s.x, ids, last = is_near(s.x) ? ids : last](int t, bool visit) {
        if (visit && ids + t + kAhead < last) prefetch_row(x, ids[t + kAhead]);
        return x.row(ids[t]);
      };
      stages::add_channels<T>(target, nullptr, w, n, 1, row, 0, s.x.cols, 0);
      if (ends && !starts) put(to, place, s.x.cols, s.y.add);
    });
  };
  auto run = [&](const Block& block, T* sum) {
    const bool part = block.part >= 0;
    auto empty = [&](Id i) {
      if (!part)
        for (const Summand<T>& s : sums) clear_row(s.y, i);
    };
    if (!rows.listed())
      return for_each_batch(rows, block, kChunk, 1, scratch<T>().batches, empty, [&](const Batch& batch) {
        for (int g = 0; g < batch.segments; ++g) {
          const Segment& s = batch.segment[g];
          add(s.row, batch.ids + s.begin, 0, s.edges(), s.starts, s.ends, sum);
        }
      });
    const Csr& list = *rows.list;
    for (Id i = block.first; i < block.last; ++i) {
      if (needed && !needed[i]) continue;
      const Offset first = list.offsets[i] + (part ? block.begin : 0);
      const Offset end = part ? list.offsets[i] + block.end : list.offsets[i + 1];
      if (first == end) empty(i);
      for (Offset at = first; at < end; at += kChunk) {
        const Offset next = std::min<Offset>(end, at + kChunk);
        add(i, list.ids.data() + at, at, static_cast<int>(next - at), at == first, next == end && !part, sum);
      }
    }
  };
  for_each_block(
      rows,
      [&](std::size_t b) {
        Matrix<T>& sum = scratch<T>().sum;
        sum.resize(1, total);
        run(rows.blocks[b], sum.data());
      },
      [&](std::size_t b) {
        T* sum = parts.row(rows.blocks[b].part);
        std::fill_n(sum, total, T(0));
        run(rows.blocks[b], sum);
      },
      [&](std::size_t first, std::size_t last) {
        T* acc = parts.row(rows.blocks[first].part);
        for (std::size_t b = first + 1; b < last; ++b) put(acc, parts.row(rows.blocks[b].part), total, true);
        each(acc, [&](const Summand<T>& s, T* place) {
          put(s.y.to.row(rows.blocks[first].first), place, s.x.cols, s.y.add);
        });
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
                             std::span<const Summand<T>>, Matrix<T>&, const std::uint8_t*, bool);
HEED_INSTANTIATE(float)
HEED_INSTANTIATE(double)

}  // namespace heed
