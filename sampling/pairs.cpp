#include "sampling/pairs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>

namespace heed {
namespace {

bool holds(SetOperation operation, bool a, bool b) {
  switch (operation) {
    case SetOperation::unite:
      return a || b;
    case SetOperation::intersect:
      return a && b;
    case SetOperation::subtract:
      return a && !b;
  }
  return false;
}

template <class T>
bool agree(const std::shared_ptr<const std::vector<T>>& a, const std::shared_ptr<const std::vector<T>>& b) {
  return !a || !b || a == b || *a == *b;
}

bool is_exactly(const Relation& r, std::uint8_t cases) { return r.cases == cases && !r.test; }

Relation combine(const Relation& a, const Relation& b, SetOperation operation) {
  using enum SetOperation;
  if (is_exactly(b, Relation::kNone)) return operation == intersect ? b : a;
  if (is_exactly(a, Relation::kNone)) return operation == unite ? b : a;
  if (is_exactly(a, Relation::kAll) && operation != subtract) return operation == unite ? a : b;
  if (is_exactly(b, Relation::kAll)) return operation == unite ? b : operation == intersect ? a : Relation{};
  const bool together = agree(a.labels, b.labels) && agree(a.times, b.times);
  Relation out;
  if (together) {
    out.labels = a.labels ? a.labels : b.labels, out.times = a.times ? a.times : b.times;
    for (int c = 0; c < 4; ++c) {
      // What a test may refuse is not known to be in the set: it is taken away from nothing.
      const bool in_b = b.cases >> c & 1 && !(operation == subtract && b.test);
      out.cases |= static_cast<std::uint8_t>(holds(operation, a.cases >> c & 1, in_b) << c);
    }
  } else if (operation == unite) {
    out.cases = Relation::kAll;
  } else {
    out.cases = a.cases, out.labels = a.labels, out.times = a.times;
  }
  if (!together || a.test || b.test)
    out.test = [a, b, operation](Id i, Id j) { return holds(operation, a.contains(i, j), b.contains(i, j)); };
  if (out.cases == Relation::kNone) out.test = nullptr;
  if (out.cases >> 2 == (out.cases & 3)) out.labels = nullptr;
  if ((out.cases >> 1 & 5) == (out.cases & 5)) out.times = nullptr;
  return out;
}

std::shared_ptr<const Csr> no_pairs(Id n) {
  return std::make_shared<Csr>(
      Csr{.rows = n, .cols = n, .offsets = std::vector<Offset>(static_cast<std::size_t>(n) + 1), .ids = {}});
}

}  // namespace

PairSet combine(const PairSet& a, const PairSet& b, SetOperation operation) {
  const Csr &x = *a.pairs, &y = *b.pairs;
  if (x.rows != y.rows || x.cols != y.cols)
    fail("sets of pairs differ in shape: " + std::to_string(x.rows) + " x " + std::to_string(x.cols) + " and " +
         std::to_string(y.rows) + " x " + std::to_string(y.cols));
  PairSet out{nullptr, combine(a.relation, b.relation, operation)};
  Csr list{.rows = x.rows, .cols = x.cols};
  list.offsets.reserve(static_cast<std::size_t>(x.rows) + 1);
  for (Id i = 0; i < x.rows; ++i) {
    const auto row = x.row(i), other = y.row(i);
    for (auto p = row.begin(), q = other.begin(); p != row.end() || q != other.end();) {
      const Id j = q == other.end() || (p != row.end() && *p < *q) ? *p : *q;
      const bool in_list = p != row.end() && *p == j, in_other = q != other.end() && *q == j;
      p += in_list, q += in_other;
      const bool in = holds(operation, a.relation.contains(i, j) != in_list, b.relation.contains(i, j) != in_other);
      if (in != out.relation.contains(i, j)) list.ids.push_back(j);
    }
    list.offsets.push_back(list.edges());
  }
  out.pairs = std::make_shared<Csr>(std::move(list));
  return out;
}
PairSet operator|(const PairSet& a, const PairSet& b) { return combine(a, b, SetOperation::unite); }
PairSet operator&(const PairSet& a, const PairSet& b) { return combine(a, b, SetOperation::intersect); }
PairSet operator-(const PairSet& a, const PairSet& b) { return combine(a, b, SetOperation::subtract); }

PairSet every_pair(Id n) { return {no_pairs(n), {.cases = Relation::kAll}}; }

PairSet same_label(Id n, std::vector<Id> labels) {
  if (labels.size() != static_cast<std::size_t>(n))
    fail(std::to_string(labels.size()) + " labels for " + std::to_string(n) + " nodes");
  return {no_pairs(n),
          {.cases = Relation::kSame, .labels = std::make_shared<const std::vector<Id>>(std::move(labels))}};
}

PairSet not_later(Id n, std::vector<double> times) {
  if (times.size() != static_cast<std::size_t>(n))
    fail(std::to_string(times.size()) + " times for " + std::to_string(n) + " nodes");
  for (std::size_t i = 0; i < times.size(); ++i)
    if (!std::isfinite(times[i])) fail("the time of node " + std::to_string(i) + " is not finite");
  return {no_pairs(n),
          {.cases = Relation::kBefore, .times = std::make_shared<const std::vector<double>>(std::move(times))}};
}

PairSet passing(Id n, std::function<bool(Id, Id)> test) {
  return {no_pairs(n), {.cases = Relation::kAll, .test = std::move(test)}};
}

PairSet with_virtual(const PairSet& set, Id m) {
  const Id n = set.pairs->rows, total = n + m;
  Relation r = set.relation;
  if (r.labels) {
    auto labels = *r.labels;
    labels.resize(static_cast<std::size_t>(total), n > 0 ? *std::max_element(labels.begin(), labels.end()) : 0);
    r.labels = std::make_shared<const std::vector<Id>>(std::move(labels));
  }
  if (r.times) {
    auto times = *r.times;
    times.resize(static_cast<std::size_t>(total), std::numeric_limits<double>::max());
    r.times = std::make_shared<const std::vector<double>>(std::move(times));
  }
  if (r.test) r.test = [n, test = r.test](Id i, Id j) { return i >= n || j >= n || test(i, j); };
  Csr list{.rows = total, .cols = total};
  for (Id i = 0; i < total; ++i) {
    if (i < n) list.ids.insert(list.ids.end(), set.pairs->row(i).begin(), set.pairs->row(i).end());
    for (Id j = i < n ? n : 0; j < total; ++j)
      if (!r.contains(i, j)) list.ids.push_back(j);
    list.offsets.push_back(list.edges());
  }
  return {std::make_shared<Csr>(std::move(list)), std::move(r)};
}

namespace {

// The smallest set of cases around `cases` whose rows are intervals in an order by label and time.
std::uint8_t laid_out(std::uint8_t cases) {
  for (std::uint8_t c : {0b0000, 0b1000, 0b0100, 0b1100, 0b1010, 0b0101, 0b0011})
    if ((cases & ~c) == 0) return c;
  return Relation::kAll;
}

std::shared_ptr<const Csr> only_kept(const Csr& a, const std::vector<Id>& kept) {
  std::vector<Id> place(static_cast<std::size_t>(a.cols), -1);
  for (std::size_t t = 0; t < kept.size(); ++t) place[kept[t]] = static_cast<Id>(t);
  Csr out{.rows = a.rows, .cols = static_cast<Id>(kept.size())};
  for (Id i = 0; i < a.rows; ++i) {
    for (Id j : a.row(i))
      if (place[j] >= 0) out.ids.push_back(place[j]);
    out.offsets.push_back(out.edges());
  }
  return std::make_shared<Csr>(std::move(out));
}

}  // namespace

std::shared_ptr<const Pattern> pattern_of(const PairSet& set, const std::vector<Id>* kept) {
  const Csr& list = *set.pairs;
  const Relation& r = set.relation;
  const Id n = list.rows;
  if (kept)
    for (std::size_t t = 0; t < kept->size(); ++t)
      if ((*kept)[t] < 0 || (*kept)[t] >= n || (t > 0 && (*kept)[t] <= (*kept)[t - 1]))
        fail("the kept keys are not rising nodes of 0.." + std::to_string(n - 1));
  if (is_exactly(r, Relation::kNone)) {
    auto p = Pattern::listed(kept ? only_kept(list, *kept) : set.pairs);
    if (kept) p->key_order = std::make_shared<Selection>(*kept, n);
    return p;
  }

  const std::uint8_t cases = laid_out(r.cases);
  const bool by_label = cases >> 2 != (cases & 3), by_time = (cases >> 1 & 5) != (cases & 5);
  const bool sorted = by_label || by_time;
  auto key = [&](Id i) { return std::pair(by_label ? (*r.labels)[i] : 0, by_time ? (*r.times)[i] : 0.0); };
  std::vector<Id> queries(static_cast<std::size_t>(n)), keys;
  std::iota(queries.begin(), queries.end(), 0);
  keys = kept ? *kept : queries;
  if (sorted)
    for (auto* ids : {&queries, &keys})
      std::stable_sort(ids->begin(), ids->end(), [&](Id a, Id b) { return key(a) < key(b); });
  const Id m = static_cast<Id>(keys.size());

  std::vector<Interval> intervals(static_cast<std::size_t>(n), Interval{0, m});
  Id label_begin = 0, label_end = 0, time_end = 0;  // of the keys: all three rise with the queries
  for (Id at = 0; at < n && sorted; ++at) {
    const auto [label, time] = key(queries[at]);
    while (label_begin < m && key(keys[label_begin]).first < label) ++label_begin;
    while (label_end < m && key(keys[label_end]).first <= label) ++label_end;
    while (time_end < m && key(keys[time_end]) <= std::pair(label, time)) ++time_end;
    switch (cases) {
      case Relation::kSame:
        intervals[at] = {label_begin, label_end};
        break;
      case 0b0011:  // another label: past the end of one's own, and on from the start, over keys that come twice
        intervals[at] = {label_end, m + label_begin};
        break;
      case 0b1000:
        intervals[at] = {label_begin, time_end};
        break;
      case 0b0100:
        intervals[at] = {time_end, label_end};
        break;
      case Relation::kBefore:
        intervals[at] = {0, time_end};
        break;
      default:  // 0b0101
        intervals[at] = {time_end, m};
    }
  }
  if (cases == 0b0011) keys.insert(keys.end(), keys.begin(), keys.begin() + m);

  // The list in these places: pairs of the relation, which are left out, and others, which come beside the intervals.
  std::vector<Id> place(static_cast<std::size_t>(n), -1);
  for (Id t = m; t-- > 0;) place[keys[t]] = t;
  const Id positions = static_cast<Id>(keys.size());
  std::array<std::shared_ptr<Csr>, 2> lists;
  for (auto& l : lists) l = std::make_shared<Csr>(Csr{.rows = n, .cols = positions});
  for (Id at = 0; at < n; ++at) {
    const auto [begin, end] = intervals[at];
    for (Id j : list.row(queries[at]))
      if (Id t = place[j]; t >= 0) {
        const bool inside = r.contains(queries[at], j);
        if (t < begin && t + m < end) t += m;
        if (!inside && t >= begin && t < end) continue;  // below
        lists[!inside]->ids.push_back(t);
      }
    for (auto& l : lists) {
      std::sort(l->ids.begin() + l->offsets.back(), l->ids.end());
      l->offsets.push_back(l->edges());
    }
  }
  std::function<bool(Id, Id)> sees;
  if (r.test || cases != r.cases)  // a pair of the list that passes no test, but lies in its interval, is seen there
    sees = [r, pairs = set.pairs, queries, keys](Id at, Id t) {
      return r.contains(queries[at], keys[t]) || pairs->contains(queries[at], keys[t]);
    };
  auto or_null = [](std::shared_ptr<Csr> l) { return l->edges() > 0 ? l : nullptr; };
  auto p = sees || lists[1]->edges() > 0
               ? Pattern::mixed(positions, std::move(intervals), or_null(lists[0]), or_null(lists[1]), std::move(sees))
               : Pattern::sliding(positions, std::move(intervals), or_null(lists[0]));
  if (sorted) p->query_order = std::make_shared<Selection>(std::move(queries), n);
  if (sorted || kept) p->key_order = std::make_shared<Selection>(std::move(keys), n);
  return p;
}

}  // namespace heed
