// Sets of pairs (query, key) that are closed under union, intersection and difference and never cost nodes x nodes to
// hold: a relation, which two nodes' own numbers decide, but for a list of pairs at which it is the other way round.
//
//   local                 the relation `none`, the pairs of the neighbours
//   all - local           the relation `all`, the same pairs
//   community | local     the relation `same label`, the neighbours with another label
//
// An operation on two such sets is that operation on their relations, and its list is where the result differs from
// that: among the pairs of the two lists alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/pattern.h"

namespace heed {

enum class SetOperation { unite, intersect, subtract };

// Which pairs (i, j) are meant, by whether their labels are equal and whether time_j <= time_i: a set of these four
// cases, as bits. Rows of many of these sets are intervals, once nodes are sorted by label and time. What is no such
// set is a test, asked for each pair that the cases allow.
struct Relation {
  static constexpr std::uint8_t kNone = 0, kAll = 15, kSame = 0b1100, kBefore = 0b1010;

  std::uint8_t cases = kNone;                        // bit 2 * [label_i = label_j] + [time_j <= time_i]
  std::shared_ptr<const std::vector<Id>> labels;     // nodes; null: all equal
  std::shared_ptr<const std::vector<double>> times;  // nodes; null: all equal
  std::function<bool(Id, Id)> test;                  // where set: of the pairs in `cases`, those that pass

  bool contains(Id i, Id j) const { return allows(i, j) && (!test || test(i, j)); }
  bool allows(Id i, Id j) const {
    const bool same = !labels || (*labels)[i] == (*labels)[j], before = !times || (*times)[j] <= (*times)[i];
    return cases >> (2 * same + before) & 1;
  }
};

struct PairSet {
  std::shared_ptr<const Csr> pairs;  // nodes x nodes: where it is not as the relation says
  Relation relation = {};            // without one: a list

  bool contains(Id i, Id j) const { return relation.contains(i, j) != pairs->contains(i, j); }
};
PairSet combine(const PairSet& a, const PairSet& b, SetOperation operation);
PairSet operator|(const PairSet& a, const PairSet& b);
PairSet operator&(const PairSet& a, const PairSet& b);
PairSet operator-(const PairSet& a, const PairSet& b);

// Sets without a list, over n nodes. Throw Error where there is not one label or finite time a node.
PairSet every_pair(Id n);
PairSet same_label(Id n, std::vector<Id> labels);         // label_i = label_j
PairSet not_later(Id n, std::vector<double> times);       // time_j <= time_i
PairSet passing(Id n, std::function<bool(Id, Id)> test);  // test(i, j)

// The same set on the nodes 0..n-1 and m more, each of which sees all and is seen by all.
PairSet with_virtual(const PairSet& set, Id m);

// The pattern of a set; with `kept` (rising), of its pairs whose key is kept. Its orders say which node stands where.
// Lists take O(pairs), intervals O(nodes log nodes); a test, or a list beside intervals, makes it a walk.
std::shared_ptr<const Pattern> pattern_of(const PairSet& set, const std::vector<Id>* kept = nullptr);

}  // namespace heed
