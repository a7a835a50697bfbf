#include "kernels/pattern.h"

#include <algorithm>
#include <string>

namespace heed {

void Rows::plan() {
  blocks.clear();
  parts = 0;
  Block open;
  Offset cost = 0, all = 0;
  for (Id i = 0; i < rows; ++i) all += length(i);
  const Offset longest = std::max(kHubEdges, all / kHubParts);
  auto close = [&](Id next) {
    open.last = next;
    if (open.first < open.last) blocks.push_back(open);
    open = {.first = next};
    cost = 0;
  };
  for (Id i = 0; i < rows; ++i) {
    Offset n = length(i);
    if (n > longest) {
      close(i);
      const Offset count = (n + longest - 1) / longest, each = (n + count - 1) / count;
      for (Offset at = 0; at < n; at += each)
        blocks.push_back({.first = i, .last = i + 1, .begin = at, .end = std::min(n, at + each), .part = parts++});
      open.first = i + 1;
      continue;
    }
    if (cost > 0 && cost + n + 8 > kBlockEdges) close(i);
    cost += n + 8;
  }
  close(rows);
}

std::shared_ptr<Pattern> Pattern::listed(std::shared_ptr<const Csr> list) {
  auto p = std::make_shared<Pattern>();
  p->by_query = {.rows = list->rows, .cols = list->cols, .list = list, .intervals = {}, .blocks = {}};
  p->by_key = {.rows = list->cols, .cols = list->rows, .list = transpose(list).csr, .intervals = {}, .blocks = {}};
  p->by_query.plan();
  p->by_key.plan();
  return p;
}

std::shared_ptr<Pattern> Pattern::all(Id queries, Id keys, std::shared_ptr<const Csr> without) {
  return sliding(keys, std::vector<Interval>(static_cast<std::size_t>(queries), Interval{0, keys}), std::move(without));
}

std::shared_ptr<Pattern> Pattern::sliding(Id keys, std::vector<Interval> intervals,
                                          std::shared_ptr<const Csr> without) {
  Id queries = static_cast<Id>(intervals.size());
  if (without && (without->rows != queries || without->cols != keys))
    fail("the pairs left out are " + std::to_string(without->rows) + " x " + std::to_string(without->cols) +
         ", the pattern " + std::to_string(queries) + " x " + std::to_string(keys));
  std::vector<Interval> back(static_cast<std::size_t>(keys));
  Interval last{0, 0};
  for (Id i = 0; i < queries; ++i) {
    auto [begin, end] = intervals[i];
    if (begin < 0 || end < begin || end > keys)
      fail("interval " + std::to_string(i) + " [" + std::to_string(begin) + ", " + std::to_string(end) +
           ") is outside 0.." + std::to_string(keys));
    if (begin < last[0] || end < last[1])
      fail("interval " + std::to_string(i) + " begins or ends before the one above it");
    last = intervals[i];
  }
  // Key j is seen by the queries whose interval has begun (begin <= j) and not ended (end > j): both change once.
  Id begun = 0, ended = 0;
  for (Id j = 0; j < keys; ++j) {
    while (begun < queries && intervals[begun][0] <= j) ++begun;
    while (ended < queries && intervals[ended][1] <= j) ++ended;
    back[j] = {std::min(ended, begun), begun};
  }
  auto same = [](const std::vector<Interval>& x) {
    return x.size() > 1 && std::ranges::all_of(x, [&](const Interval& y) { return y == x.front(); });
  };
  auto p = std::make_shared<Pattern>();
  p->by_query = {.rows = queries, .cols = keys, .list = without, .intervals = std::move(intervals), .blocks = {}};
  p->by_key = {.rows = keys, .cols = queries, .list = nullptr, .intervals = std::move(back), .blocks = {}};
  if (without) p->by_key.list = transpose(without).csr;
  for (Rows* r : {&p->by_query, &p->by_key}) {
    if (same(r->intervals)) r->intervals.resize(1);
    if (r->intervals.empty()) r->intervals.resize(1);  // no rows at all: still not a list
    r->plan();
  }
  return p;
}

namespace {

struct Mixed : Walk {
  Rows base;
  std::shared_ptr<const Csr> more;
  std::function<bool(Id, Id)> sees;  // of (row, column)

  Offset length(Id i) const override { return base.length(i) + (more ? more->degree(i) : 0); }
  int columns(Id i, Offset first, Offset last, Id* out) const override {
    const Offset within = base.length(i);
    const Id begin = base.interval(i)[0];
    int count = 0;
    if (first < within) {
      const Id from = static_cast<Id>(begin + first), to = static_cast<Id>(begin + std::min(last, within));
      const auto left_out = base.list ? base.list->row(i) : std::span<const Id>{};
      auto next = std::lower_bound(left_out.begin(), left_out.end(), from);
      for (Id j = from; j < to; ++j)
        if (next != left_out.end() && *next == j)
          ++next;
        else if (!sees || sees(i, j))
          out[count++] = j;
    }
    for (Offset t = std::max(first, within); t < last; ++t) out[count++] = more->row(i)[t - within];
    return count;
  }
};

struct Drawn : Walk, Draws {
  const Draws* draws() const override { return this; }
  Offset length(Id) const override { return static_cast<Offset>(maps.size()); }
  int columns(Id i, Offset first, Offset last, Id* out) const override {
    Id drawn[Pattern::kMostDraws];
    int count = 0;
    for (Offset t = 0; t < last; ++t) {
      const auto from = static_cast<std::uint32_t>(i), to = inverse ? maps[t].inverse(from) : maps[t](from);
      drawn[t] = static_cast<Id>(to);
      // That map_r(i) = map_s(i) = j means that j's inverses coincide, too: both directions drop the same one.
      if (t >= first && maps[t].seen(from, to) && std::find(drawn, drawn + t, drawn[t]) == drawn + t)
        out[count++] = drawn[t];
    }
    return count;
  }
};

void expect_few(const Drawing& drawing) {
  if (drawing.count < 0 || drawing.count > Pattern::kMostDraws)
    fail("a row draws 0 to " + std::to_string(Pattern::kMostDraws) + " keys, not " + std::to_string(drawing.count));
}

}  // namespace

std::shared_ptr<Pattern> Pattern::mixed(Id keys, std::vector<Interval> intervals, std::shared_ptr<const Csr> without,
                                        std::shared_ptr<const Csr> more, std::function<bool(Id, Id)> sees) {
  auto p = sliding(keys, std::move(intervals), std::move(without));
  if (more && (more->rows != p->queries() || more->cols != keys))
    fail("the pairs beside the intervals differ in shape");
  for (Rows* r : {&p->by_query, &p->by_key}) {
    auto walk = std::make_shared<Mixed>();
    walk->base = *r;
    const bool back = r == &p->by_key;
    if (more) walk->more = back ? transpose(more).csr : more;
    walk->sees = back && sees ? [sees](Id j, Id i) { return sees(i, j); } : sees;
    *r = {.rows = r->rows, .cols = r->cols, .list = nullptr, .intervals = {}, .blocks = {}, .walk = std::move(walk)};
    r->plan();
  }
  return p;
}

std::shared_ptr<Pattern> Pattern::redrawn(Id n, std::shared_ptr<const Pattern> fixed, const Redrawn& what) {
  expect_few(what.drawing);
  if (what.marks && (what.kept >= 0 || what.marks->size() != static_cast<std::size_t>(n)))
    fail("keys that are seen are drawn, or marked among the nodes");
  if (fixed && (fixed->queries() != n || fixed->keys() != n || fixed->by_query.walk || fixed->by_query.redrawn ||
                (what.drawing.count > 0 && !fixed->is_listed())))
    fail("what is drawn on a device goes beside a list of the same nodes, or keys are drawn of intervals");
  auto p = std::make_shared<Pattern>();
  const auto shared = std::make_shared<const Redrawn>(what);
  for (Rows* r : {&p->by_query, &p->by_key}) {
    if (fixed) *r = r == &p->by_query ? fixed->by_query : fixed->by_key;
    r->rows = r->cols = n, r->redrawn = shared, r->of_keys = r == &p->by_key;
    r->plan();
  }
  return p;
}

std::shared_ptr<Pattern> Pattern::drawn(Id n, const Drawing& drawing, std::uint64_t step) {
  expect_few(drawing);
  auto p = std::make_shared<Pattern>();
  for (Rows* r : {&p->by_query, &p->by_key}) {
    auto walk = std::make_shared<Drawn>();
    walk->inverse = r == &p->by_key;
    for (int t = 0; t < drawing.count && n > 0; ++t)
      walk->maps.push_back(drawing.map(static_cast<std::uint32_t>(n), step, t));
    *r = {.rows = n, .cols = n, .list = nullptr, .intervals = {}, .blocks = {}, .walk = std::move(walk)};
    r->plan();
  }
  return p;
}

Selection::Selection(std::vector<Id> from, Id table) : ids(std::move(from)) {
  const auto n = static_cast<Id>(ids.size());
  places.rows = table, places.cols = n;
  places.offsets.assign(static_cast<std::size_t>(table) + 1, 0);
  places.ids.resize(ids.size());
  for (Id i : ids) {
    if (i < 0 || i >= table) fail("row " + std::to_string(i) + " is outside 0.." + std::to_string(table - 1));
    ++places.offsets[i + 1];
  }
  for (Id i = 0; i < table; ++i) places.offsets[i + 1] += places.offsets[i];
  std::vector<Offset> next(places.offsets.begin(), places.offsets.end() - 1);
  for (Id t = 0; t < n; ++t) places.ids[next[ids[t]]++] = t;
}

Offset Pattern::edges() const {
  if (by_query.listed()) return by_query.list->edges();
  Offset count = 0;
  if (by_query.redrawn) {  // at most
    for (Id i = 0; i < by_query.rows; ++i) count += by_query.length(i);
    return count;
  }
  if (by_query.walk) {
    constexpr Offset most = 64;
    Id columns[most];
    for (Id i = 0; i < by_query.rows; ++i)
      for (Offset at = 0, n = by_query.length(i); at < n; at += most)
        count += by_query.walk->columns(i, at, std::min(n, at + most), columns);
    return count;
  }
  for (Id i = 0; i < by_query.rows; ++i) {
    count += by_query.length(i);
    if (by_query.list)
      for (Id j : by_query.list->row(i)) {
        auto [begin, end] = by_query.interval(i);
        count -= j >= begin && j < end;
      }
  }
  return count;
}

const std::vector<Offset>& Pattern::edge_of_entry() const {
  if (!is_listed()) fail("a pattern of intervals has no edges to number");
  std::call_once(made_, [&] { edge_ = transpose(by_query.list).edge; });
  return edge_;
}

}  // namespace heed
