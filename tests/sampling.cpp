// Masks against brute-force sets of pairs, in both directions of the pattern that they become; and the blocks into
// which a pattern's work is cut: every position once, hubs in parts, the same on any number of threads.
#include <oneapi/tbb/global_control.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "kernels/batch.h"
#include "sampling/mask.h"
#include "tests/scratch.h"
#include "tests/support.h"

using namespace heed;
using namespace heed::test;

namespace {

using Pairs = std::set<std::pair<Id, Id>>;

// What one direction of a pattern visits, block by block and batch by batch. Fails where a pair is visited twice, a
// segment is not where it says, or a row's edges do not follow each other from its start to its end.
Pairs visited(const Rows& rows, int limit = kChunk, int padded = 1) {
  Pairs out;
  std::array<Batch, 2> two;
  for (const Block& block : rows.blocks) {
    bool open = false, first = true;
    const Batch* announced = nullptr;
    std::vector<Id> order;  // of the rows that start, and of those without edges
    for_each_batch(
        rows, block, limit, padded, two, [&](Id i) { order.push_back(i); },
        [&](const Batch& batch) {
          CHECK(batch.first == first);
          CHECK((first || announced == &batch));
          announced = batch.next;
          if (batch.next) CHECK(batch.next->n >= 1);
          CHECK(batch.n >= 1);
          CHECK(batch.n <= limit);
          first = false;
          int edge = 0, vector = 0;
          for (int g = 0; g < batch.segments; ++g) {
            const Segment& s = batch.segment[g];
            CHECK(s.begin == edge);
            CHECK(s.end > s.begin);
            CHECK(s.vector == vector);
            CHECK((s.vectors - 1) * kLanes < s.edges() * padded);
            CHECK(s.vectors * kLanes >= s.edges() * padded);
            CHECK(s.starts == !open);
            open = !s.ends;
            if (s.starts) order.push_back(s.row);
            for (int t = s.begin; t < s.end; ++t) {
              CHECK(batch.rows[t] == s.row);
              CHECK(batch.at[t] == s.vector * kLanes + (t - s.begin) * padded);
              CHECK(out.emplace(s.row, batch.ids[t]).second);
              if (rows.listed()) CHECK(rows.list->ids[batch.entry[t]] == batch.ids[t]);
            }
            edge = s.end, vector += s.vectors;
          }
          CHECK(edge == batch.n);
          CHECK(vector == batch.vectors);
        });
    std::sort(order.begin(), order.end());
    CHECK(announced == nullptr);
    if (block.part < 0) {
      CHECK(!open);
      std::vector<Id> expected(static_cast<std::size_t>(block.last - block.first));
      std::iota(expected.begin(), expected.end(), block.first);
      CHECK(order == expected);
    }
  }
  return out;
}

Pairs turned(const Pairs& a) {
  Pairs out;
  for (auto [i, j] : a) out.emplace(j, i);
  return out;
}

void check_pattern(const Pattern& pattern, const Pairs& expected) {
  CHECK(visited(pattern.by_query) == expected);
  CHECK(visited(pattern.by_key, 3) == turned(expected));
  CHECK(pattern.edges() == static_cast<Offset>(expected.size()));
  if (!pattern.is_listed()) return;
  auto& edge = pattern.edge_of_entry();
  const Csr &forth = *pattern.by_query.list, &back = *pattern.by_key.list;
  for (Id j = 0; j < back.rows; ++j)
    for (Offset t = back.offsets[j]; t < back.offsets[j + 1]; ++t) {
      CHECK(forth.ids[edge[t]] == j);
      CHECK(edge[t] >= forth.offsets[back.ids[t]]);
      CHECK(edge[t] < forth.offsets[back.ids[t] + 1]);
    }
}

Pairs everything(Id n) {
  Pairs out;
  for (Id i = 0; i < n; ++i)
    for (Id j = 0; j < n; ++j) out.emplace(i, j);
  return out;
}

Graph random_graph(Id n, int edges, bool directed, Random& random) {
  return graph_from_edges(n, random_edges(n, edges, random),
                          {.loops = random.below(2) == 0 ? Loops::keep : Loops::drop,
                           .direction = directed ? Direction::directed : Direction::both});
}

struct Both {  // a mask, and the pairs that it must mean
  Mask mask;
  Pairs pairs;
};

Both random_mask(const Graph& graph, int depth, Random& random) {
  const Id n = graph.nodes();
  if (depth == 0 || random.below(5) == 0) switch (random.below(4)) {
      case 0:
        return {all(), everything(n)};
      case 1: {
        Pairs diagonal;
        for (Id i = 0; i < n; ++i) diagonal.emplace(i, i);
        return {self(), diagonal};
      }
      case 2: {
        const int k = static_cast<int>(1 + random.below(3));
        Pairs reach, ring;
        for (const Edge& e : edges_of(graph)) ring.emplace(e.to, e.from);
        const Pairs step = ring;
        for (int s = 0; s < k; ++s) {
          reach.insert(ring.begin(), ring.end());
          Pairs next;
          for (auto [i, j] : ring)
            for (auto [from, to] : step)
              if (from == j) next.emplace(i, to);
          ring = next;
        }
        return {local(k), reach};
      }
      default: {
        auto csr = std::make_shared<const Csr>(random_pattern(n, n, 5, random));
        Pairs own;
        for (Id i = 0; i < n; ++i)
          for (Id j : csr->row(i)) own.emplace(i, j);
        return {Mask("own", [csr](const Graph&) { return PairSet{csr}; }), own};
      }
    }
  Both a = random_mask(graph, depth - 1, random), b = random_mask(graph, depth - 1, random);
  Pairs out;
  switch (random.below(3)) {
    case 0:
      out = a.pairs;
      out.insert(b.pairs.begin(), b.pairs.end());
      return {a.mask | b.mask, out};
    case 1:
      for (auto p : a.pairs)
        if (b.pairs.contains(p)) out.insert(p);
      return {a.mask & b.mask, out};
    default:
      for (auto p : a.pairs)
        if (!b.pairs.contains(p)) out.insert(p);
      return {a.mask - b.mask, out};
  }
}

}  // namespace

TEST_SUITE_BEGIN("sampling");

TEST_CASE("masks: random expressions against sets of pairs, in both directions") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  int lists = 0, intervals = 0;
  for (int round = 0; round < 300; ++round) {
    Graph graph = random_graph(static_cast<Id>(1 + random.below(14)), static_cast<int>(random.below(30)),
                               random.below(2) == 0, random);
    Both both = random_mask(graph, 4, random);
    CAPTURE(both.mask.text());
    auto pattern = both.mask.pattern(graph);
    ++(pattern->is_listed() ? lists : intervals);
    CHECK(pattern->queries() == graph.nodes());
    CHECK(pattern->keys() == graph.nodes());
    check_pattern(*pattern, both.pairs);
    // Twice the complement is the mask itself.
    check_pattern(*(all() - (all() - both.mask)).pattern(graph), both.pairs);
    check_pattern(*(both.mask - both.mask).pattern(graph), {});
    check_pattern(*(both.mask | (all() - both.mask)).pattern(graph), everything(graph.nodes()));
  }
  CHECK(lists > 20);
  CHECK(intervals > 20);
}

TEST_CASE("masks: what `all` makes large is never a list, and the neighbours share the graph's own") {
  Random random(3);
  Graph graph = random_graph(50, 100, false, random);
  CHECK_FALSE(all().pattern(graph)->is_listed());
  CHECK(all().pattern(graph)->by_query.list == nullptr);
  auto far = (all() - local()).pattern(graph);
  CHECK_FALSE(far->is_listed());
  CHECK(far->by_query.list->edges() == graph.edges());
  CHECK(far->by_query.intervals.size() == 1);
  CHECK(far->edges() == 2500 - graph.edges());
  CHECK(local().pattern(graph)->by_query.list == graph.adjacency);
  CHECK(local().pattern(graph)->by_key.list == graph.adjacency);
  CHECK(((all() - self()) & local()).pattern(graph)->is_listed());
  CHECK(message([&] { far->edge_of_entry(); }) == "a pattern of intervals has no edges to number");
  Graph none = graph_from_edges(0, {});
  for (const Mask& mask : {all(), local(), self(), local(3) | self(), all() - local()}) {
    CHECK(mask.pattern(none)->edges() == 0);
    CHECK(mask.pattern(none)->queries() == 0);
  }
}

TEST_CASE("masks: their text is the expression") {
  CHECK(self().text() == "self");
  CHECK(local().text() == "local");
  CHECK(local(2).text() == "local(2)");
  CHECK(all().text() == "all");
  CHECK((local(2) | self()).text() == "local(2) | self");
  CHECK((all() - (local() | self())).text() == "all - (local | self)");
  CHECK(((all() - local()) & (self() | local(3))).text() == "(all - local) & (self | local(3))");
  CHECK((all() - local() - self()).text() == "(all - local) - self");
  CHECK(message([] { local(0); }) == "local(k) needs at least 1 hop, not 0");
}

TEST_CASE("sliding intervals: both directions against brute force, and what they refuse") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 200; ++round) {
    const Id queries = static_cast<Id>(random.below(12)), keys = static_cast<Id>(random.below(12));
    std::vector<Id> begins, ends;
    for (Id i = 0; i < queries; ++i) {
      begins.push_back(static_cast<Id>(random.below(static_cast<std::uint64_t>(keys) + 1)));
      ends.push_back(static_cast<Id>(random.below(static_cast<std::uint64_t>(keys) + 1)));
    }
    std::sort(begins.begin(), begins.end());
    std::sort(ends.begin(), ends.end());
    std::vector<Interval> intervals;
    for (Id i = 0; i < queries; ++i) intervals.push_back({std::min(begins[i], ends[i]), ends[i]});
    std::shared_ptr<const Csr> without;
    if (random.below(2) == 0) without = std::make_shared<Csr>(random_pattern(queries, keys, keys > 0 ? 5 : 0, random));
    Pairs expected;
    for (Id i = 0; i < queries; ++i)
      for (Id j = intervals[i][0]; j < intervals[i][1]; ++j)
        if (!without || !without->contains(i, j)) expected.emplace(i, j);
    check_pattern(*Pattern::sliding(keys, intervals, without), expected);
  }
  CHECK(message([] { Pattern::sliding(5, {{0, 6}}); }) == "interval 0 [0, 6) is outside 0..5");
  CHECK(message([] { Pattern::sliding(5, {{0, 2}, {3, 2}}); }) == "interval 1 [3, 2) is outside 0..5");
  CHECK(message([] { Pattern::sliding(5, {{1, 2}, {0, 2}}); }) == "interval 1 begins or ends before the one above it");
  CHECK(message([] { Pattern::sliding(5, {{0, 3}, {0, 2}}); }) == "interval 1 begins or ends before the one above it");
  CHECK(message([] { Pattern::all(2, 3, std::make_shared<Csr>(identity(3))); }) ==
        "the pairs left out are 3 x 3, the pattern 2 x 3");
}

TEST_CASE("block plans: every position once, hubs in parts, blocks of even cost, on any number of threads") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  const Id n = 3000;
  const Id hub = static_cast<Id>(2 * kHubEdges + 100);
  std::vector<Interval> growing;
  for (Id i = 0; i < 40; ++i) growing.push_back({0, i * 600});
  Csr hubs{.rows = n, .cols = hub};
  for (Id i = 0; i < n; ++i) {
    std::set<Id> row;
    for (int t = 0; t < 8; ++t) row.insert(static_cast<Id>(random.below(static_cast<std::uint64_t>(hub))));
    if (i == 0 || i == 1 || i == 1700 || i == n - 1) {
      const Id length = static_cast<Id>(i == 1 ? kHubEdges + 1 : i == 1700 ? kHubEdges : hub);
      row.clear();
      for (Id j = 0; j < length; ++j) row.insert(j);
    }
    hubs.ids.insert(hubs.ids.end(), row.begin(), row.end());
    hubs.offsets.push_back(hubs.edges());
  }
  auto list = std::make_shared<const Csr>(std::move(hubs));
  for (auto make : std::vector<std::function<std::shared_ptr<const Pattern>()>>{
           [&] { return Pattern::listed(list); }, [&] { return Pattern::all(5, hub); },
           [&] { return Pattern::sliding(40 * 600, growing); },
           [&] { return Pattern::listed(std::make_shared<Csr>(identity(5000))); },
           [&] { return Pattern::listed(std::make_shared<Csr>(random_pattern(2000, 10, 0, random))); }}) {
    auto pattern = make();
    for (const Rows* rows : {&pattern->by_query, &pattern->by_key}) {
      Id row = 0;     // the next row to come
      Offset at = 0;  // and the position in it
      Offset parts = 0;
      for (const Block& block : rows->blocks) {
        CHECK(block.first == row);
        if (block.part < 0) {
          CHECK(at == 0);
          REQUIRE(block.last > block.first);
          Offset cost = 0;
          for (Id i = block.first; i < block.last; ++i) {
            CHECK(rows->length(i) <= kHubEdges);
            cost += rows->length(i) + 8;
          }
          if (block.last - block.first > 1) CHECK(cost <= kBlockEdges);
          row = block.last;
          continue;
        }
        CHECK(block.part == parts++);
        CHECK(block.last == block.first + 1);
        CHECK(rows->length(row) > kHubEdges);
        CHECK(block.begin == at);
        CHECK(block.end > block.begin);
        CHECK(block.end - block.begin <= kHubEdges);
        at = block.end;
        if (at == rows->length(row)) ++row, at = 0;
      }
      CHECK(row == rows->rows);
      CHECK(at == 0);
      CHECK(rows->parts == parts);
    }
  }
  auto same = [](const Rows& a, const Rows& b) {
    return a.parts == b.parts && std::ranges::equal(a.blocks, b.blocks, [](const Block& x, const Block& y) {
             return x.first == y.first && x.last == y.last && x.begin == y.begin && x.end == y.end && x.part == y.part;
           });
  };
  auto pattern = Pattern::listed(list);
  CHECK(pattern->by_query.parts == 8);
  for (std::size_t threads : {1, 2, 7}) {
    tbb::global_control limit(tbb::global_control::max_allowed_parallelism, threads);
    auto other = Pattern::listed(list);
    CHECK(same(pattern->by_query, other->by_query));
    CHECK(same(pattern->by_key, other->by_key));
  }
}

TEST_CASE("batches: every pair once, whatever the limit, the padding, the part and what is left out") {
  auto seed = fresh_seed();
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 200; ++round) {
    const Id keys = static_cast<Id>(1 + random.below(200));
    auto without = std::make_shared<Csr>(random_pattern(3, keys, 30, random));
    Id first = static_cast<Id>(random.below(static_cast<std::uint64_t>(keys)));
    std::vector<Interval> intervals{{0, keys}, {first, keys}, {first, keys}};
    auto pattern = round % 2 == 0 ? Pattern::sliding(keys, intervals, without) : Pattern::listed(without);
    Rows rows = pattern->by_query;
    if (rows.length(1) > 0 && round % 3 == 0) {  // the row in the middle as a hub of two parts
      const Offset length = rows.length(1), cut = static_cast<Offset>(random.below(length));
      rows.blocks = {{.first = 0, .last = 1},
                     {.first = 1, .last = 2, .begin = 0, .end = cut, .part = 0},
                     {.first = 1, .last = 2, .begin = cut, .end = length, .part = 1},
                     {.first = 2, .last = 3}};
    }
    const int limit = static_cast<int>(1 + random.below(kChunk));
    const int padded = std::array{1, 2, 4, 8, 24}[random.below(5)];
    Pairs expected;
    for (Id i = 0; i < 3; ++i)
      for (Id j = 0; j < keys; ++j) {
        const bool listed = without->contains(i, j);
        if (round % 2 == 0 ? j >= intervals[i][0] && !listed : listed) expected.emplace(i, j);
      }
    CHECK(visited(rows, limit, padded) == expected);
  }
}

TEST_SUITE_END();
