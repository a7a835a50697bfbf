// Masks: rules that say who sees whom, closed under union, intersection and difference.
//
//   local(k) | self()        a node sees its k-hop neighbourhood and itself
//   all() - local()          everybody but the neighbours: one interval less a list, never a list of pairs
//
// A rule becomes a Pattern when it meets a graph. A finite set of pairs is a list; what `all` makes large is kept as
// the finite set of pairs that is missing, so nothing of size nodes x nodes exists.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "graph/graph.h"
#include "kernels/pattern.h"

namespace heed {

// A set of pairs (query, key), or all pairs but those.
struct PairSet {
  std::shared_ptr<const Csr> pairs;
  bool complement = false;
};
PairSet operator|(const PairSet& a, const PairSet& b);
PairSet operator&(const PairSet& a, const PairSet& b);
PairSet operator-(const PairSet& a, const PairSet& b);

class Mask {
 public:
  // A rule of one's own: what it is called, and the pairs that it means on a graph (nodes x nodes). Rules made by two
  // calls are two rules, whatever they are called.
  Mask(std::string text, std::function<PairSet(const Graph&)> pairs);

  const std::string& text() const { return text_; }  // "local(2) | self"
  const std::string& key() const { return key_; }    // equal keys mean equal pairs on any graph
  PairSet pairs(const Graph& graph) const { return pairs_(graph); }
  std::shared_ptr<const Pattern> pattern(const Graph& graph) const;

  friend Mask operator|(const Mask& a, const Mask& b);
  friend Mask operator&(const Mask& a, const Mask& b);
  friend Mask operator-(const Mask& a, const Mask& b);
  friend Mask self();
  friend Mask local(int k);
  friend Mask all();

 private:
  Mask(std::string text, std::string key, std::function<PairSet(const Graph&)> pairs);
  friend Mask combine(const Mask& a, const Mask& b, const char* sign,
                      PairSet (*operation)(const PairSet&, const PairSet&));

  std::string text_, key_;
  std::function<PairSet(const Graph&)> pairs_;
};

Mask self();            // a node sees itself
Mask local(int k = 1);  // the nodes at 1 to k hops; a graph's own self loops are hops
Mask all();             // every node, itself too

}  // namespace heed
