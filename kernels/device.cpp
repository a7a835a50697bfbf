// The fused operator on a machine that runs warps: cuts a pattern into the warps' work, once, and runs the passes of
// attention_warp.h and attention_lanes.h in order.
#include "kernels/device.h"

#include <algorithm>
#include <bit>
#include <deque>
#include <limits>
#include <list>
#include <mutex>
#include <ranges>

#include "kernels/device_attention.h"
#include "kernels/tiled.h"

namespace heed {
namespace {

using warp::Call;
using warp::Hub;
using warp::Into;
using warp::Pass;
using warp::Strided;

constexpr Offset kTaskEdges = 128;  // edges (and kRowEdges for every row) of whole rows that one warp takes at most,
constexpr Offset kTasks = 4096;     // and fewer where there would be less than so many warps
constexpr Offset kRowEdges = 8;
constexpr Offset kSegment = 512;      // a longer row is cut into segments of this length, of a shorter one where there
constexpr Offset kLeastSegment = 32;  // is little work, lest all wait for one warp,
constexpr Offset kMostParts = 65536;  // or of a longer one, so that there are about as many segments at most

static_assert(kTaskEdges / kRowEdges < kWarp);  // a lane for each row of a block, and one for the end of the last

// The work of one direction. It depends on the pattern alone, so sums that are merged block by block have the same bits
// in every run.
struct Plan {
  std::vector<Block> blocks;
  std::vector<Hub> hubs;
  Offset parts = 0;

  explicit Plan(const Rows& rows, bool cuts = true) {
    Offset total = 0, cost = 0;
    for (Id i = 0; i < rows.rows; ++i) total += rows.length(i);
    const auto up = [](Offset n) { return static_cast<Offset>(std::bit_ceil(static_cast<std::uint64_t>(n))); };
    const Offset segment = std::max(std::clamp(up(total / kTasks), kLeastSegment, kSegment), up(total / kMostParts));
    const Offset task = std::clamp<Offset>((total + kRowEdges * rows.rows) / kTasks, 1, kTaskEdges);
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
      if (cost > 0 && cost + n + kRowEdges > task) close(i);
      cost += n + kRowEdges;
    }
    close(rows.rows);
    // What takes longest begins first.
    std::stable_partition(blocks.begin(), blocks.end(), [](const Block& b) { return b.part >= 0; });
  }
};

}  // namespace

// Rows of patterns in the machine's memory, the ones used last first, as long as there is what they were made from.
struct DevicePatterns {
  struct From {
    Id rows, cols;
    std::vector<Interval> intervals;
    std::weak_ptr<const Csr> list;
    std::weak_ptr<const Walk> walk;
    std::weak_ptr<const Redrawn> redrawn;
    bool of_keys;
    explicit From(const Rows& a)
        : rows(a.rows),
          cols(a.cols),
          intervals(a.intervals),
          list(a.list),
          walk(a.walk),
          redrawn(a.redrawn),
          of_keys(a.of_keys) {}
    bool operator==(const From& b) const {
      // Owners of what is gone are no others'.
      auto one = [](const auto& x, const auto& y) { return !x.owner_before(y) && !y.owner_before(x); };
      return rows == b.rows && cols == b.cols && of_keys == b.of_keys && one(list, b.list) && one(walk, b.walk) &&
             one(redrawn, b.redrawn) && intervals == b.intervals;
    }
    bool gone() const {
      auto lost = []<class T>(const std::weak_ptr<T>& x) {
        return x.expired() && (x.owner_before(std::weak_ptr<T>()) || std::weak_ptr<T>().owner_before(x));
      };
      return lost(list) || lost(walk) || lost(redrawn);
    }
    bool plain() const { return list.expired() && walk.expired() && redrawn.expired(); }
  };
  struct Direction {
    From from;
    bool cuts = true, numbered = false;
    warp::Seen seen;
    Offset blocks = 0, hubs = 0, parts = 0;
    std::deque<Matrix<char>> lists;
    std::shared_ptr<std::deque<Matrix<char>>> drawn;  // one for all that are cut from the same rows
    DrawnThere drawn_at;
  };
  std::list<Direction> all;
};

namespace {

constexpr std::ptrdiff_t kPlain = 128;  // that are kept of intervals alone, which nobody owns

template <class T>
const T* bring_list(Machine& machine, std::deque<Matrix<char>>& to, const std::vector<T>& list) {
  if (list.empty()) return nullptr;
  Matrix<char>& there = to.emplace_back(&machine);
  there.resize(1, static_cast<Offset>(list.size() * sizeof(T)));
  machine.copy(there.data(), list.data(), list.size() * sizeof(T));
  return reinterpret_cast<const T*>(there.data());
}

// `edge`, where it is given, numbers the entries; without `cuts` each row has one owner.
const DevicePatterns::Direction& bring(Machine& machine, const Rows& rows, const std::vector<Offset>* edge = nullptr,
                                       bool cuts = true) {
  if (!machine.patterns) machine.patterns = std::make_shared<DevicePatterns>();
  auto& all = machine.patterns->all;
  const DevicePatterns::From from(rows);
  // Both directions of a symmetric list are one list; their numbers differ.
  for (auto at = all.begin(); at != all.end(); ++at)
    if (at->from == from && at->cuts == cuts && at->numbered == (edge != nullptr)) {
      all.splice(all.begin(), all, at);
      return all.front();
    }
  DevicePatterns::Direction out{.from = from, .cuts = cuts, .numbered = edge != nullptr};
  warp::Seen& there = out.seen;
  const Plan plan(rows, cuts);
  out.blocks = static_cast<Offset>(plan.blocks.size()), out.hubs = static_cast<Offset>(plan.hubs.size());
  out.parts = plan.parts;
  there.blocks = bring_list(machine, out.lists, plan.blocks);
  there.hubs = bring_list(machine, out.lists, plan.hubs);
  if (edge) there.edges = bring_list(machine, out.lists, *edge);
  if (rows.walk) {
    const Draws* draws = rows.walk->draws();
    if (!draws) fail("attention: a mask that asks a predicate for each pair runs on the CPU alone");
    there.draws = bring_list(machine, out.lists, draws->maps);
    there.drawn = static_cast<int>(draws->maps.size()), there.inverse = draws->inverse;
  } else if (rows.list) {
    there.offsets = bring_list(machine, out.lists, rows.list->offsets);
    there.ids = bring_list(machine, out.lists, rows.list->ids);
  }
  if (const Redrawn* what = rows.redrawn.get()) {
    for (const auto& other : all)
      if (other.from == from) out.drawn = other.drawn, out.drawn_at = other.drawn_at;
    if (!out.drawn) {  // filled by DeviceOps::redraw
      out.drawn = std::make_shared<std::deque<Matrix<char>>>();
      auto room = [&]<class T>(Offset count, T first) {
        return const_cast<T*>(bring_list(machine, *out.drawn, std::vector<T>(static_cast<std::size_t>(count), first)));
      };
      DrawnThere& at = out.drawn_at;
      at.maps = room(what->drawing.count, NodeMap{});
      if (what->kept >= 0)
        at.kept = room(rows.rows, char{1}), at.ranks = room(rows.rows, Id{0}),
        at.tallies = room(tally_room(rows.rows), std::uint32_t{0});
      if (what->by_score) at.bounds = room(kBounds, std::uint64_t{0});
    }
    there.draws = out.drawn_at.maps, there.drawn = what->drawing.count;
    there.kept = out.drawn_at.kept, there.ranks = out.drawn_at.ranks;
    if (what->marks) {
      std::vector<Id> ranks;
      Id rank = 0;
      for (char mark : *what->marks) ranks.push_back(rank), rank += mark;
      there.kept = bring_list(machine, out.lists, *what->marks), there.ranks = bring_list(machine, out.lists, ranks);
    }
    there.inverse = there.of_rows = rows.of_keys;
  }
  if (!rows.intervals.empty()) {
    std::vector<Id> ends;
    for (auto [begin, end] : rows.intervals) ends.insert(ends.end(), {begin, end});
    there.intervals = bring_list(machine, out.lists, ends);
    there.interval_stride = rows.intervals.size() == 1 ? 0 : 2;
  }
  std::erase_if(all, [](const auto& each) { return each.from.gone(); });
  all.push_front(std::move(out));
  const auto plain = [](const auto& each) { return each.from.plain(); };
  if (std::ranges::count_if(all, plain) > kPlain)
    all.erase(std::prev(std::ranges::find_if(all | std::views::reverse, plain).base()));
  return all.front();
}

// How many heads run as one call so that their channels fit the lanes of a warp, with how many lanes a head; group = 0:
// one head is too wide.
struct Fit {
  int heads, group;
};
Fit fit(int heads, Offset wide) {
  auto up = [](Offset n) { return static_cast<int>(std::bit_ceil(static_cast<std::uint64_t>(n))); };
  const int group = up((wide + warp::kVector - 1) / warp::kVector);
  if (group > kWarp) return {heads, 0};
  return {std::min(heads, kWarp / group), group};
}

int place_in_menu(const Normaliser& mine) {
  const auto& menu = normaliser_menu();
  for (std::size_t i = 0; i < menu.size(); ++i)
    if (menu[i].kind == mine.kind) return static_cast<int>(i);
  fail("attention: the normaliser '" + mine.name + "' has no kernel for the GPU");
}

// One call of the operator.
class Operator {
 public:
  Operator(Machine& machine, int score, const Attention<float>& x, AttentionState<float>& state)
      : machine_(machine), x_(x), state_(state), score_(score), queries_(bring(machine, x.pattern->by_query)) {
    for (auto* m : {&state.tau, &state.tau_delta, &state.least, &state.parts, &state.sums, &state.above})
      m->move_to(&machine);
    state.last.move_to(&machine);
    for (auto& m : state.narrow) m.move_to(&machine);
    call_.heads = x.heads;
    call_.score_width = static_cast<int>(x.q.cols / x.heads);
    call_.width = static_cast<int>(x.v.cols / x.heads);
    call_.normaliser = {place_in_menu(*x.normaliser)};
    call_.queries = x.pattern->queries();
    call_.q = rows(x.q), call_.k = rows(x.k), call_.v = rows(x.v), call_.e = rows(x.e);
    call_.bias = rows(x.bias), call_.ev = rows(x.ev);
    if (x.score->reads_vector) call_.a = rows(x.a);
    if (x.score->scalars > 0) call_.p = rows(x.p);
    call_.drops = x.dropout.rate > 0;
    call_.drop_key = x.dropout.key, call_.drop_key_at = x.dropout.key_at;
    call_.drop_below = x.dropout.threshold();
    call_.keep_scale = x.dropout.scale();
    call_.drops_keys = rows_are_one(x);
    call_.topk = x.score->filter.topk, call_.above = static_cast<float>(x.score->filter.above);
    call_.scale = static_cast<float>(x.score->scale), call_.tempered = x.score->tempered;
    // Where scores are compared with each other, each pass must find the same bits; those of `threshold` and `measure`
    // are for any width.
    fit_ = fit(std::min(x.heads, warp::kMaxHeads),
               std::max<Offset>(call_.width, x.score->contracts ? 1 : call_.score_width));
    if (fit_.group == 0 || call_.topk > 0 || x.normaliser->solves || x.normaliser->measures || x.e || x.ev) {
      fit_ = {std::min(x.heads, warp::kMaxHeads), 1};
    } else {
      const bool plain = call_.normaliser.index == 0 && !x.bias && !x.score->filter && !call_.drops && !call_.tempered;
      call_.body = plain ? warp::Body::plain_lanes : warp::Body::lanes;
      narrows_ = x.bf16;
    }
    call_.group_bits = std::countr_zero(static_cast<unsigned>(fit_.group));
    call_.one_table =
        !x.score->contracts && x.k.data == x.v.data && x.k.stride == x.v.stride && call_.score_width == call_.width;
  }

  void forward(View<float> y) {
    narrow_operands(true);
    state_.tau.resize(y.rows, x_.heads);
    call_.y = rows(y), call_.tau = rows(state_.tau.view());
    if (call_.topk > 0) {
      state_.least.resize(y.rows, x_.heads), state_.last.resize(y.rows, x_.heads);
      call_.least = rows(state_.least.view()), call_.last = rows(state_.last.view());
    }
    const bool thresholds = call_.topk > 0 || x_.normaliser->solves;
    const DevicePatterns::Direction* whole = thresholds ? &bring_whole() : nullptr;
    const auto& queries = queries_;
    const bool keeps = one_pass() && state_.backward;
    state_.above.resize(keeps ? y.rows : 0, keeps ? padded(y.cols) + padded(x_.heads) : 0);
    point_above();
    const Offset most = fit_.heads, columns = padded(most * call_.width);
    state_.parts.resize(queries.parts, queries.parts > 0 ? (keeps ? 2 : 1) * columns + padded(3 * most) : 0);
    call_.parts = rows(state_.parts.view()), call_.part_state = call_.part_raised = call_.parts;
    call_.part_state.data += columns, call_.part_raised.data += columns + padded(3 * most);
    for_each_group([&](Call& call) {
      if (thresholds) {
        call.rows = whole->seen;
        run(Pass::threshold, call, whole->blocks);
      }
      call.rows = queries.seen;
      call.parts.wide = call.part_raised.wide = call.width % warp::kLoad == 0;
      run(Pass::forward, call, queries.blocks);
      run(Pass::merge_forward, call, queries.hubs * warp::tiles(Offset{call.heads} * call.width));
    });
  }

  void backward(View<const float> y, View<const float> dy, const AttentionGradient<float>& g) {
    call_.y = rows(View<float>{const_cast<float*>(y.data), y.rows, y.cols, y.stride});  // which is read
    narrow_operands(false);
    call_.tau = rows(state_.tau.view()), call_.dy = narrows_ ? narrow(3, dy, true) : rows(dy);
    if (call_.topk > 0) call_.least = rows(state_.least.view()), call_.last = rows(state_.last.view());
    const bool measures = x_.normaliser->measures;
    const DevicePatterns::Direction* whole = measures ? &bring_whole() : nullptr;
    state_.tau_delta.resize(call_.queries, 2 * x_.heads);
    call_.both = rows(state_.tau_delta.view());
    call_.dq = into(g.dq), call_.dk = into(g.dk), call_.dv = into(g.dv), call_.de = into(g.de);
    call_.dbias = into(g.dbias), call_.dev = into(g.dev), call_.dp = into(g.dp);
    if (x_.score->reads_vector)
      call_.da = into(g.da);
    else if (g.da && !g.da.add)
      for (Offset i = 0; i < g.da.to.rows; ++i) clear(g.da.to.row(i), g.da.to.cols);

    const Offset most = fit_.heads, scores = most * call_.score_width, values = most * call_.width;
    const bool above = one_pass() && state_.above.cols() == padded(x_.v.cols) + padded(x_.heads);
    if (above) point_above();
    const bool queries = (call_.dq && !above) || call_.da || call_.dp || call_.de || call_.dbias || call_.dev;
    const bool keys = call_.dk || call_.dv, learns = call_.da || call_.dp;
    const bool numbered = x_.e || x_.bias || x_.ev;
    const DevicePatterns::Direction* by_key =
        keys ? &bring(machine_, x_.pattern->by_key, numbered ? &x_.pattern->edge_of_entry() : nullptr) : nullptr;
    const Offset parts = std::max(queries ? queries_.parts : 0, keys ? by_key->parts : 0);
    state_.parts.resize(parts, parts > 0 ? padded(scores + values) : 0);
    const Offset blocks = std::max<Offset>(queries_.blocks, 1), less = reduced(blocks);
    if (learns) state_.sums.resize(blocks + less, scores + most * x_.score->scalars);

    for_each_group([&](Call& call) {
      if (measures) {
        call.rows = whole->seen;
        run(Pass::measure, call, whole->blocks);
      } else if (queries && call.body != warp::Body::any_width) {
        call.delta_follows = true;
      } else {
        const Offset items = call.body == warp::Body::any_width
                                 ? call.chunk()
                                 : Offset{warp::kDeltaRows} * (kWarp >> (call.group_bits + call.head_bits));
        run(Pass::delta, call, (call.queries + items - 1) / items);
      }
      call.parts = rows(state_.parts.view());
      call.parts.wide = call.width % warp::kLoad == 0 && call.score_width % warp::kLoad == 0;
      if (queries) {
        call.rows = queries_.seen;
        if (learns) {
          call.sums = rows(state_.sums.view()), call.reduced = call.sums, call.reduced.data = call.sums.row(blocks);
          call.sum_rows = queries_.blocks;
          call.sum_cols = call.heads * (call.score_width + x_.score->scalars);
        }
        run(Pass::row, call, queries_.blocks);
        if (call.dq) run(Pass::merge_row, call, queries_.hubs * warp::tiles(Offset{call.heads} * call.score_width));
        if (learns) run_learned(call);
      }
      if (keys) {
        call.rows = by_key->seen, call.sums = {};
        run(Pass::column, call, by_key->blocks);
        run(Pass::merge_column, call,
            by_key->hubs * warp::tiles(Offset{call.heads} * std::max(call.score_width, call.width)));
      }
    });
  }

 private:
  static Offset reduced(Offset rows) { return (rows + warp::kReduceRows - 1) / warp::kReduceRows; }
  static Offset padded(Offset columns) { return (columns + warp::kVector - 1) / warp::kVector * warp::kVector; }

  // The rows of x as bfloat16 numbers: made `anew`, or where there are none yet.
  Strided<const float> narrow(std::size_t which, View<const float> x, bool anew) {
    Matrix<std::uint16_t>& to = state_.narrow[which];
    if (anew || to.rows() != x.rows || to.cols() != padded(x.cols)) {
      to.resize(x.rows, padded(x.cols));
      Call call;
      call.v = rows(x), call.queries = x.rows, call.width = static_cast<int>(x.cols);
      call.v.wide = reinterpret_cast<std::uintptr_t>(x.data) % (warp::kLoad * sizeof(float)) == 0 &&
                    x.stride % warp::kLoad == 0 && x.cols % warp::kLoad == 0;
      call.narrow = rows(to.view());
      run(Pass::narrow, call, (x.rows * x.cols + warp::kNarrow - 1) / warp::kNarrow);
    }
    Strided<const float> out{reinterpret_cast<const float*>(to.data()), static_cast<int>(to.cols())};
    out.half = true;
    return out;
  }
  void narrow_operands(bool anew) {
    if (!narrows_) return;
    call_.v = narrow(2, x_.v, anew);
    if (x_.score->contracts) return;
    call_.q = narrow(0, x_.q, anew);
    call_.k = call_.one_table ? call_.v : narrow(1, x_.k, anew);
  }

  // Whether dq follows from sums over the keys with scores over 0 (Call::raised).
  bool one_pass() const {
    return x_.score->kinked && call_.body != warp::Body::any_width && call_.normaliser.index == 0 && !x_.bias &&
           !call_.filters() && !call_.tempered;
  }
  void point_above() {
    if (state_.above.empty()) return;
    call_.raised = call_.raised_share = rows(state_.above.view());
    call_.raised_share.data += padded(x_.v.cols);
    call_.slope_below = x_.score->slope_below;
  }
  const DevicePatterns::Direction& bring_whole() { return bring(machine_, x_.pattern->by_query, nullptr, false); }
  void clear(float* at, Offset count) {
    const std::vector<float> none(static_cast<std::size_t>(count));
    machine_.copy(at, none.data(), none.size() * sizeof(float));
  }
  void run(Pass pass, const Call& call, Offset warps) {
    if (warps > 0) machine_.run(pass, score_, x_.score->self.get(), call, warps);
  }

  // Sums of blocks, 64 rows into one, until one is left.
  void run_learned(Call call) {
    if (call.sum_rows == 0) clear(call.sums.data, call.sum_cols), call.sum_rows = 1;
    while (call.sum_rows > 1) {
      run(Pass::reduce, call, reduced(call.sum_rows) * warp::tiles(call.sum_cols));
      call.sum_rows = reduced(call.sum_rows);
      std::swap(call.sums, call.reduced);
    }
    run(Pass::learned, call, warp::tiles(call.sum_cols));
  }

  // At most fit_.heads heads at a time, the rest of each row being skipped over.
  template <class Body>
  void for_each_group(Body body) {
    for (int outer = 0; outer < x_.heads; outer += warp::kMaxHeads)
      for (int first = outer; first < std::min(x_.heads, outer + warp::kMaxHeads); first += fit_.heads) {
        Call call = call_;
        call.heads = std::min({fit_.heads, x_.heads - first, outer + warp::kMaxHeads - first});
        call.head_bits = std::bit_width(static_cast<unsigned>(call.heads - 1));
        call.drop_group = x_.heads > warp::kMaxHeads ? outer : -1;
        call.drop_head = first - outer;
        auto skip = [&](int width, auto&... arrays) { (skip_columns(arrays, first * Offset{width}, width), ...); };
        skip(call.score_width, call.q, call.k, call.a, call.e, call.dq.to, call.dk.to, call.da.to, call.de.to);
        skip(call.width, call.v, call.ev, call.y, call.dy, call.dv.to, call.dev.to, call.raised);
        skip(1, call.raised_share, call.p, call.bias, call.tau, call.least, call.last, call.dp.to, call.dbias.to);
        skip(2, call.both);
        // There a lane has all of its channels or none, and they are fetched as a whole.
        auto fit = [](int width, const auto&... arrays) {
          return width % warp::kVector == 0 && ((!arrays || arrays.wide) && ...);
        };
        if (call.body == warp::Body::plain_lanes) {
          if (!fit(call.width, call.v, call.y, call.dy) ||
              !(x_.score->contracts || fit(call.score_width, call.q, call.k)))
            call.body = warp::Body::lanes;
          else if (narrows_)
            call.body = warp::Body::half_lanes;
        }
        body(call);
      }
  }

  // Past the first `count` numbers of each row, of which a head has `width`.
  template <class T>
  static void skip_columns(Strided<T>& x, Offset count, int width) {
    const std::size_t size = x.half ? sizeof(std::uint16_t) : sizeof(T);
    const std::size_t behind = x ? static_cast<std::size_t>(count) * size : 0;
    const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(x.data) + behind;
    x.data = reinterpret_cast<T*>(at);
    x.wide = at % (warp::kLoad * size) == 0 && x.stride % warp::kLoad == 0 && width % warp::kLoad == 0;
  }
  template <class T>
  static Strided<T> rows(View<T> x) {
    if (x.stride > std::numeric_limits<int>::max() / 4) fail("attention: rows are too long for the GPU");  // in bytes
    return {x.data, static_cast<int>(x.stride)};
  }
  static Into into(const Sink<float>& sink) { return {rows(sink.to), sink.add}; }

  Machine& machine_;
  const Attention<float>& x_;
  AttentionState<float>& state_;
  int score_;
  const DevicePatterns::Direction& queries_;
  Fit fit_{};
  bool narrows_ = false;
  Call call_;
};

// Arrays of the host that are copied to a machine, and back.
class Guests {
 public:
  explicit Guests(Machine& machine) : machine_(machine) {}

  View<const float> bring(View<const float> x) { return x ? copied(x) : x; }
  View<float> give(View<float> x, bool brings = false) {
    if (!x) return x;
    Matrix<float>& there = copied_matrix(x, brings);
    back_.push_back({x, &there});
    return there.view();
  }
  Sink<float> give(const Sink<float>& sink) { return {give(sink.to, sink.add), sink.add}; }
  Attention<float> bring(const Attention<float>& x) {
    Attention<float> out = x;
    for (View<const float>* each : {&out.q, &out.v, &out.a, &out.p, &out.e, &out.bias, &out.ev}) *each = bring(*each);
    out.k = x.k.data == x.v.data && x.k.stride == x.v.stride && x.k.cols == x.v.cols ? out.v : bring(x.k);
    return out;
  }
  void fetch() {
    for (auto& [to, there] : back_) {
      const Matrix<float> here = *there;
      for (Offset i = 0; i < to.rows; ++i) std::copy_n(here.row(i), to.cols, to.row(i));
    }
  }

 private:
  Matrix<float>& copied_matrix(View<const float> x, bool brings = true) {
    Matrix<float>& there = there_.emplace_back(&machine_);
    there.resize(x.rows, x.cols);
    if (!brings) return there;
    Matrix<float> packed(x.rows, x.cols);
    for (Offset i = 0; i < x.rows; ++i) std::copy_n(x.row(i), x.cols, packed.row(i));
    there = packed;
    return there;
  }
  View<const float> copied(View<const float> x) { return std::as_const(copied_matrix(x)).view(); }

  struct Back {
    View<float> to;
    const Matrix<float>* there;
  };
  Machine& machine_;
  std::deque<Matrix<float>> there_;
  std::vector<Back> back_;
};

}  // namespace

namespace {
std::vector<OwnKernels>& entered_kernels() {  // before main, too
  static std::vector<OwnKernels> all;
  return all;
}
}  // namespace
void enter_own_kernels(const OwnKernels& kernels) { entered_kernels().push_back(kernels); }
const std::vector<OwnKernels>& own_kernels() { return entered_kernels(); }

DrawnThere drawn_there(Machine& machine, const Rows& rows) { return bring(machine, rows).drawn_at; }

int place_in_scores(const Score& mine) {
  constexpr std::size_t count = std::tuple_size_v<Scores>;
  const auto& menu = score_menu();
  for (std::size_t i = 0; i < count; ++i)
    if (menu[i].kind == mine.kind) return static_cast<int>(i);
  const auto& own = own_kernels();
  for (std::size_t i = 0; i < own.size(); ++i)
    if (own[i].kind == mine.kind) return static_cast<int>(count + i);
  fail("attention: the score '" + mine.name + "' has no kernel for the GPU");
}

void attention_there(Machine& machine, int score, const Attention<float>& x, View<float> y,
                     AttentionState<float>& state) {
  check(x, y);
  if (x.y_bias) fail("attention: a bias is added to y on the CPU alone");
  Operator(machine, score, x, state).forward(y);
}

void attention_gradient_there(Machine& machine, int score, const Attention<float>& x, View<const float> y,
                              View<const float> dy, AttentionState<float>& state, const AttentionGradient<float>& g) {
  check(x, y, dy, state.tau, g);
  Operator(machine, score, x, state).backward(y, dy, g);
}

void weighted_sum_there(Machine& machine, const WeightedRows& w, View<const float> x, Sink<float> y,
                        Matrix<float>& parts) {
  const Rows& rows = *w.rows;
  if (!rows.listed()) fail("a weighted sum needs a mask that is a list");
  if (x.rows != rows.cols || y.to.rows != rows.rows || x.cols != y.to.cols)
    fail("weighted sum: " + std::to_string(rows.rows) + " x " + std::to_string(rows.cols) + " times " +
         std::to_string(x.rows) + " x " + std::to_string(x.cols) + " is not " + std::to_string(y.to.rows) + " x " +
         std::to_string(y.to.cols));
  const auto& there = bring(machine, rows, w.weights ? w.edge : nullptr);
  constexpr Offset kMost = kWarp * warp::kVector;  // columns at a time
  parts.move_to(&machine);
  parts.resize(there.parts,
               there.parts > 0 ? (std::min(x.cols, kMost) + warp::kVector - 1) / warp::kVector * warp::kVector : 0);
  for (Offset first = 0; first < x.cols; first += kMost) {
    Call call;
    call.rows = there.seen;
    call.width = call.score_width = static_cast<int>(std::min(kMost, x.cols - first));
    call.group_bits = std::countr_zero(static_cast<unsigned>(fit(1, call.width).group));
    call.weights = w.weights, call.row_scale = w.row_scale, call.scale = w.scale;
    call.column_bias = w.bias ? w.bias + first : nullptr;
    auto strided = [&](auto view) {
      const bool wide = reinterpret_cast<std::uintptr_t>(view.data) % (warp::kLoad * sizeof(float)) == 0 &&
                        view.stride % warp::kLoad == 0 && call.width % warp::kLoad == 0;
      return Strided<std::remove_pointer_t<decltype(view.data)>>{view.data, static_cast<int>(view.stride), wide};
    };
    call.v = strided(x.columns(first, call.width));
    call.dq = {strided(y.to.columns(first, call.width)), y.add};
    call.parts = strided(parts.view());
    call.body = call.v.wide && call.width % warp::kVector == 0 ? warp::Body::plain_lanes : warp::Body::lanes;
    if (there.blocks > 0) machine.run(Pass::weigh, 0, nullptr, call, there.blocks);
    const Offset merges = there.hubs * warp::tiles(call.width);
    if (merges > 0) machine.run(Pass::merge_row, 0, nullptr, call, merges);
  }
}

void attention_on(Machine& machine, int score, const Attention<float>& x, View<float> y, AttentionState<float>& state) {
  check(x, y);
  Guests guests(machine);
  AttentionState<float> there;
  attention_there(machine, score, guests.bring(x), guests.give(y), there);
  guests.fetch();
  state.tau = there.tau, state.least = there.least, state.last = there.last, state.above = there.above;
}

void attention_gradient_on(Machine& machine, int score, const Attention<float>& x, View<const float> y,
                           View<const float> dy, const AttentionState<float>& state,
                           const AttentionGradient<float>& g) {
  check(x, y, dy, state.tau, g);
  Guests guests(machine);
  AttentionState<float> there;
  for (auto [to, from] : {std::pair{&there.tau, &state.tau}, {&there.least, &state.least}})
    to->move_to(&machine), *to = *from;
  there.last.move_to(&machine), there.last = state.last;
  there.above.move_to(&machine), there.above = state.above;
  attention_gradient_there(machine, score, guests.bring(x), guests.bring(y), guests.bring(dy), there,
                           {guests.give(g.dq), guests.give(g.dk), guests.give(g.dv), guests.give(g.da),
                            guests.give(g.dp), guests.give(g.de), guests.give(g.dbias), guests.give(g.dev)});
  guests.fetch();
}

namespace {
std::mutex one_at_a_time;  // the process has one such machine
}
void attention_device(const Attention<float>& x, View<float> y, AttentionState<float>& state) {
  const std::scoped_lock turn(one_at_a_time);
  attention_on(cuda_machine(), x.score ? place_in_scores(*x.score) : 0, x, y, state);
}
void attention_gradient_device(const Attention<float>& x, View<const float> y, View<const float> dy,
                               const AttentionState<float>& state, const AttentionGradient<float>& g) {
  const std::scoped_lock turn(one_at_a_time);
  attention_gradient_on(cuda_machine(), x.score ? place_in_scores(*x.score) : 0, x, y, dy, state, g);
}

#ifndef HEED_CUDA
Machine& cuda_machine() { fail("heed was built without CUDA"); }
std::unique_ptr<Machine> cuda_machine(void*) { fail("heed was built without CUDA"); }
bool device_available() { return false; }
std::string why_no_device() { return "heed was built without CUDA"; }
std::string device_name() { return "none"; }
#endif

}  // namespace heed
