#include "kernels/pattern.h"

#include <algorithm>
#include <string>

namespace heed {

void Rows::plan() {
  blocks.clear();
  parts = 0;
  Block open;
  Offset cost = 0;
  auto close = [&](Id next) {
    open.last = next;
    if (open.first < open.last) blocks.push_back(open);
    open = {.first = next};
    cost = 0;
  };
  for (Id i = 0; i < rows; ++i) {
    Offset n = length(i);
    if (n > kHubEdges) {
      close(i);
      for (Offset at = 0; at < n; at += kHubEdges)
        blocks.push_back({.first = i, .last = i + 1, .begin = at, .end = std::min(n, at + kHubEdges), .part = parts++});
      open.first = i + 1;
      continue;
    }
    if (cost > 0 && cost + n + 8 > kBlockEdges) close(i);
    cost += n + 8;
  }
  close(rows);
}

std::shared_ptr<const Pattern> Pattern::listed(std::shared_ptr<const Csr> list) {
  auto p = std::make_shared<Pattern>();
  p->by_query = {.rows = list->rows, .cols = list->cols, .list = list, .intervals = {}, .blocks = {}};
  p->by_key = {.rows = list->cols, .cols = list->rows, .list = transpose(list).csr, .intervals = {}, .blocks = {}};
  p->by_query.plan();
  p->by_key.plan();
  return p;
}

std::shared_ptr<const Pattern> Pattern::all(Id queries, Id keys, std::shared_ptr<const Csr> without) {
  return sliding(keys, std::vector<Interval>(static_cast<std::size_t>(queries), Interval{0, keys}), std::move(without));
}

std::shared_ptr<const Pattern> Pattern::sliding(Id keys, std::vector<Interval> intervals,
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

Offset Pattern::edges() const {
  if (by_query.listed()) return by_query.list->edges();
  Offset count = 0;
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
