// The fused operator on a machine that runs warps: cuts a pattern into the warps' work, brings the arrays over, runs
// the passes of attention_warp.h in order, and brings the results back.
#include "kernels/device.h"

#include <algorithm>
#include <bit>

#include "kernels/device_attention.h"
#include "kernels/tiled.h"

namespace heed {
namespace {

using warp::Call;
using warp::Hub;
using warp::Into;
using warp::Pass;
using warp::Strided;

constexpr Offset kTaskEdges = 64;     // edges (and 8 for every row) of whole rows that one warp takes
constexpr Offset kSegment = 512;      // a longer row is cut into segments of this length,
constexpr Offset kMostParts = 65536;  // or of a longer one, so that there are about as many segments at most

// The work of one direction. It depends on the pattern alone, so sums that are merged block by block have the same bits
// in every run.
struct Plan {
  std::vector<Block> blocks;
  std::vector<Hub> hubs;
  Offset parts = 0;

  explicit Plan(const Rows& rows, bool cuts = true) {
    Offset total = 0, cost = 0;
    for (Id i = 0; i < rows.rows; ++i) total += rows.length(i);
    const Offset segment = std::max<Offset>(kSegment, std::bit_ceil(static_cast<std::uint64_t>(total / kMostParts)));
    Block open;
    auto close = [&](Id next) {
      open.last = next;
      if (open.first < open.last) blocks.push_back(open);
      open = {.first = next};
      cost = 0;
    };
    for (Id i = 0; i < rows.rows; ++i) {
      const Offset n = rows.length(i);
      if (n > segment && cuts) {
        close(i);
        hubs.push_back({i, parts, (n + segment - 1) / segment});
        for (Offset at = 0; at < n; at += segment)
          blocks.push_back({.first = i, .last = i + 1, .begin = at, .end = std::min(n, at + segment), .part = parts++});
        open.first = i + 1;
        continue;
      }
      if (cost > 0 && cost + n + 8 > kTaskEdges) close(i);
      cost += n + 8;
    }
    close(rows.rows);
  }
};

int place_in_menu(const Normaliser& mine) {
  const auto& menu = normaliser_menu();
  for (std::size_t i = 0; i < menu.size(); ++i)
    if (menu[i].kind == mine.kind) return static_cast<int>(i);
  fail("attention: the normaliser '" + mine.name + "' has no kernel for the GPU");
}

// One operator on one machine: its arrays there, and what must come back.
class Operator {
 public:
  Operator(Machine& machine, int score, const Attention<float>& x)
      : machine_(machine), x_(x), score_(score), by_query_(x.pattern->by_query), queries_(bring(x.pattern->by_query)) {
    queries_.blocks = bring_list(by_query_.blocks);
    queries_.hubs = bring_list(by_query_.hubs);
    call_.rows = queries_;
    call_.heads = x.heads;
    call_.score_width = static_cast<int>(x.q.cols / x.heads);
    call_.width = static_cast<int>(x.v.cols / x.heads);
    call_.normaliser = {place_in_menu(*x.normaliser)};
    call_.queries = x.pattern->queries();
    call_.q = bring(x.q), call_.k = bring(x.k), call_.v = bring(x.v), call_.e = bring(x.e);
    call_.bias = bring(x.bias), call_.ev = bring(x.ev);
    if (x.score->reads_vector) call_.a = bring(x.a);
    if (x.score->scalars > 0) call_.p = bring(x.p);
    call_.drops = x.dropout.rate > 0;
    call_.drop_below = x.dropout.threshold();
    call_.keep_scale = x.dropout.scale();
    call_.drops_keys = rows_are_one(x);
    call_.topk = x.score->filter.topk, call_.above = static_cast<float>(x.score->filter.above);
    call_.scale = static_cast<float>(x.score->scale), call_.tempered = x.score->tempered;
  }

  void forward(View<float> y, AttentionState<float>& state) {
    state.tau.resize(y.rows, x_.heads);
    call_.y = give(y), call_.tau = give(state.tau.view());
    if (call_.topk > 0) {
      state.least.resize(y.rows, x_.heads), state.last.resize(y.rows, x_.heads);
      call_.least = give(state.least.view()), call_.last = give(state.last.view());
    }
    const bool thresholds = call_.topk > 0 || x_.normaliser->solves;
    const warp::Seen whole = thresholds ? bring_whole() : warp::Seen{};
    const Offset most = std::min(x_.heads, warp::kMaxHeads);
    call_.parts = make(by_query_.parts, most * call_.width);
    call_.part_state = make(by_query_.parts, 2 * most);
    for_each_group([&](Call call) {
      if (thresholds) {
        call.rows = whole;
        run(Pass::threshold, call, size(whole_.blocks));
        call.rows = queries_;
      }
      run(Pass::forward, call, size(by_query_.blocks));
      run(Pass::merge_forward, call, size(by_query_.hubs) * warp::tiles(Offset{call.heads} * call.width));
    });
    fetch();
  }

  void backward(View<const float> y, View<const float> dy, const AttentionState<float>& state,
                const AttentionGradient<float>& g) {
    call_.y = bring_mutable(y), call_.tau = bring_mutable(state.tau.view()), call_.dy = bring(dy);
    if (call_.topk > 0) call_.least = bring_mutable(state.least.view()), call_.last = bring_mutable(state.last.view());
    const warp::Seen whole = x_.normaliser->measures ? bring_whole() : warp::Seen{};
    call_.delta = make(call_.queries, x_.heads);
    call_.dq = give(g.dq), call_.dk = give(g.dk), call_.dv = give(g.dv), call_.de = give(g.de);
    call_.dbias = give(g.dbias), call_.dev = give(g.dev), call_.dp = give(g.dp);
    if (x_.score->reads_vector)
      call_.da = give(g.da);
    else if (g.da && !g.da.add)
      for (Offset i = 0; i < g.da.to.rows; ++i) std::fill_n(g.da.to.row(i), g.da.to.cols, 0.0f);

    const Offset most = std::min(x_.heads, warp::kMaxHeads), scores = most * call_.score_width;
    const bool rows = call_.dq || call_.da || call_.dp || call_.de || call_.dbias || call_.dev;
    const bool columns = call_.dk || call_.dv;
    const bool learns = call_.da || call_.dp;
    if (learns) {
      sum_rows_ = size(by_query_.blocks);
      sums_ = make(sum_rows_, scores + most * x_.score->scalars);
      reduced_ = make(reduced(sum_rows_), scores + most * x_.score->scalars);
    }
    if (columns) {
      keys_ = bring(x_.pattern->by_key);
      by_key_ = Plan(x_.pattern->by_key);
      keys_.blocks = bring_list(by_key_.blocks);
      keys_.hubs = bring_list(by_key_.hubs);
      if (x_.e || x_.bias || x_.ev) keys_.edges = bring_list(x_.pattern->edge_of_entry());
    }
    Strided<float> row_parts, key_parts;
    if (rows) row_parts = make(by_query_.parts, scores);
    if (columns) key_parts = make(by_key_.parts, scores + most * call_.width);

    for_each_group([&](Call call) {
      if (x_.normaliser->measures) {
        call.rows = whole;
        run(Pass::measure, call, size(whole_.blocks));
      } else if (x_.normaliser->couples) {
        run(Pass::delta, call, (call.queries + call.chunk() - 1) / call.chunk());
      }
      if (rows) {
        call.rows = queries_, call.parts = row_parts;
        call.sums = sums_, call.reduced = reduced_, call.sum_rows = sum_rows_;
        call.sum_cols = call.heads * (call.score_width + x_.score->scalars);
        run(Pass::row, call, size(by_query_.blocks));
        if (call.dq)
          run(Pass::merge_row, call, size(by_query_.hubs) * warp::tiles(Offset{call.heads} * call.score_width));
        if (learns) run_learned(call);
      }
      if (columns) {
        call.rows = keys_, call.parts = key_parts, call.sums = {};
        run(Pass::column, call, size(by_key_.blocks));
        run(Pass::merge_column, call,
            size(by_key_.hubs) * warp::tiles(Offset{call.heads} * (call.score_width + call.width)));
      }
    });
    fetch();
  }

 private:
  template <class List>
  static Offset size(const List& list) {
    return static_cast<Offset>(list.size());
  }
  static Offset reduced(Offset rows) { return (rows + warp::kReduceRows - 1) / warp::kReduceRows; }

  void run(Pass pass, const Call& call, Offset warps) {
    if (warps > 0) machine_.run(pass, score_, x_.score->self.get(), call, warps);
  }

  // Sums of blocks, 64 rows into one, until one is left.
  void run_learned(Call call) {
    if (call.sum_rows == 0) call.sums = zeros(call.sum_cols), call.sum_rows = 1;
    while (call.sum_rows > 1) {
      run(Pass::reduce, call, reduced(call.sum_rows) * warp::tiles(call.sum_cols));
      call.sum_rows = reduced(call.sum_rows);
      std::swap(call.sums, call.reduced);
    }
    run(Pass::learned, call, warp::tiles(call.sum_cols));
  }

  // At most kMaxHeads heads at a time, the rest of each row being skipped over.
  template <class Body>
  void for_each_group(Body body) {
    for (int first = 0; first < x_.heads; first += warp::kMaxHeads) {
      Call call = call_;
      call.heads = std::min(warp::kMaxHeads, x_.heads - first);
      call.head_bits = std::bit_width(static_cast<unsigned>(call.heads - 1));
      call.drop_key =
          x_.heads > warp::kMaxHeads ? mix(x_.dropout.key, static_cast<std::uint64_t>(first)) : x_.dropout.key;
      auto skip = [&](int width, auto&... arrays) { ((arrays.data += arrays ? first * Offset{width} : 0), ...); };
      skip(call.score_width, call.q, call.k, call.a, call.e, call.dq.to, call.dk.to, call.da.to, call.de.to);
      skip(call.width, call.v, call.ev, call.y, call.dy, call.dv.to, call.dev.to);
      skip(1, call.p, call.bias, call.tau, call.delta, call.least, call.last, call.dp.to, call.dbias.to);
      body(call);
    }
  }

  template <class T = float>
  Strided<T> make(Offset rows, Offset cols) {
    if (rows == 0 || cols == 0) return {};
    return {static_cast<T*>(machine_.allocate(rows * cols * static_cast<Offset>(sizeof(T)))), cols};
  }
  Strided<float> zeros(Offset cols) {
    std::vector<float> none(static_cast<std::size_t>(cols));
    return bring_mutable(View<const float>{none.data(), 1, cols, cols});
  }
  template <class T>
  Copy whole(Strided<T> there, View<const T> here) {
    constexpr Offset bytes = sizeof(T);
    return {there.data, there.stride * bytes, here.data, here.stride * bytes, here.cols * bytes, here.rows};
  }
  template <class T>
  Strided<T> bring_mutable(View<const T> x) {
    if (!x) return {};
    auto there = make<T>(x.rows, x.cols);
    if (there) machine_.copy_in(whole(there, x));
    return there;
  }
  Strided<const float> bring(View<const float> x) {
    Strided<float> there = bring_mutable(x);
    return {there.data, there.stride};
  }
  template <class T>
  Strided<T> give(View<T> x) {
    if (!x) return {};
    auto there = make<T>(x.rows, x.cols);
    constexpr Offset bytes = sizeof(T);
    if (there) back_.push_back({x.data, x.stride * bytes, there.data, there.stride * bytes, x.cols * bytes, x.rows});
    return there;
  }
  Into give(const Sink<float>& sink) {
    Into into{give(sink.to), sink.add};
    if (into && sink.add) machine_.copy_in(whole<float>(into.to, sink.to));
    return into;
  }
  template <class T>
  const T* bring_list(const std::vector<T>& list) {
    const Offset bytes = size(list) * static_cast<Offset>(sizeof(T));
    if (bytes == 0) return nullptr;
    void* there = machine_.allocate(bytes);
    machine_.copy_in({there, bytes, list.data(), bytes, bytes, 1});
    return static_cast<const T*>(there);
  }
  warp::Seen bring(const Rows& rows) {
    warp::Seen there;
    if (rows.walk) {
      const Draws* draws = rows.walk->draws();
      if (!draws) fail("attention: a mask that asks a predicate for each pair runs on the CPU alone");
      there.draws = bring_list(draws->permutations);
      there.drawn = static_cast<int>(draws->permutations.size()), there.inverse = draws->inverse;
      return there;
    }
    if (rows.list) there.offsets = bring_list(rows.list->offsets), there.ids = bring_list(rows.list->ids);
    if (!rows.listed()) {
      std::vector<Id> ends;
      for (auto [begin, end] : rows.intervals) ends.insert(ends.end(), {begin, end});
      there.intervals = bring_list(ends);
      there.interval_stride = rows.intervals.size() == 1 ? 0 : 2;
    }
    return there;
  }
  warp::Seen bring_whole() {  // the queries in blocks that cut no row
    whole_ = Plan(x_.pattern->by_query, false);
    warp::Seen there = queries_;
    there.blocks = bring_list(whole_.blocks);
    return there;
  }
  void fetch() {
    for (const Copy& copy : back_) machine_.copy_out(copy);
  }

  Machine& machine_;
  const Attention<float>& x_;
  int score_;
  Plan by_query_, by_key_{Rows{}}, whole_{Rows{}};
  warp::Seen queries_, keys_;
  Call call_;
  Strided<float> sums_, reduced_;
  Offset sum_rows_ = 0;
  std::vector<Copy> back_;
};

}  // namespace

int place_in_scores(const Score& mine) {
  const auto& menu = score_menu();
  for (std::size_t i = 0; i < std::tuple_size_v<Scores>; ++i)
    if (menu[i].kind == mine.kind) return static_cast<int>(i);
  fail("attention: the score '" + mine.name + "' has no kernel for the GPU");
}

void attention_on(Machine& machine, int score, const Attention<float>& x, View<float> y, AttentionState<float>& state) {
  check(x, y);
  Operator(machine, score, x).forward(y, state);
}

void attention_gradient_on(Machine& machine, int score, const Attention<float>& x, View<const float> y,
                           View<const float> dy, const AttentionState<float>& state,
                           const AttentionGradient<float>& g) {
  check(x, y, dy, state.tau, g);
  Operator(machine, score, x).backward(y, dy, state, g);
}

void attention_device(const Attention<float>& x, View<float> y, AttentionState<float>& state) {
  auto machine = cuda_machine();
  attention_on(*machine, x.score ? place_in_scores(*x.score) : 0, x, y, state);
}
void attention_gradient_device(const Attention<float>& x, View<const float> y, View<const float> dy,
                               const AttentionState<float>& state, const AttentionGradient<float>& g) {
  auto machine = cuda_machine();
  attention_gradient_on(*machine, x.score ? place_in_scores(*x.score) : 0, x, y, dy, state, g);
}

#ifndef HEED_CUDA
std::unique_ptr<Machine> cuda_machine() { fail("heed was built without CUDA"); }
bool device_available() { return false; }
std::string device_name() { return "none"; }
#endif

}  // namespace heed
