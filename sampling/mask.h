// Masks: rules that say who sees whom, closed under union, intersection and difference.
//
//   local(k) | self()        a node sees its k-hop neighbourhood and itself
//   all() - local()          everybody but the neighbours: one interval less a list, never a list of pairs
//   community() & before()   nodes of the same community that were there before
//
// A rule becomes a Pattern when it meets a graph: a list where it is one, else what pairs.h makes of it, so that
// nothing of size nodes x nodes exists. mask_named() reads expressions as users type them.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>

#include "graph/graph.h"
#include "kernels/sparse.h"
#include "sampling/expression.h"
#include "sampling/pairs.h"

namespace heed {

// What a rule may read.
struct MaskContext {
  const Graph& graph;
  const Features* features = nullptr;               // of the nodes; may be none
  std::uint64_t seed = 0;                           // of what is random
  std::uint64_t step = 0;                           // of the training; 0 outside of it
  std::map<std::string, PairSet>* known = nullptr;  // where given: rules that do not read the step are kept here
  std::span<const Id> order = {};                   // where given: whoever numbers nodes calls node i order[i]

  Id name(Id i) const { return order.empty() ? i : order[static_cast<std::size_t>(i)]; }
};

// What a rule does read, beside the graph. A rule that reads the step is asked anew at each.
struct Needs {
  bool features = false, times = false, seed = false, step = false;
  std::set<std::filesystem::path> files = {};
  friend Needs operator|(Needs a, const Needs& b) {
    a.files.insert(b.files.begin(), b.files.end());
    return {a.features || b.features, a.times || b.times, a.seed || b.seed, a.step || b.step, std::move(a.files)};
  }
};
// Throws Error "knn(5) needs features of the nodes, which there are not" and the like.
void check(const std::string& rule, const Needs& needs, const MaskContext& context);

class Mask {
 public:
  using Rule = std::function<PairSet(const MaskContext&)>;

  // A rule of one's own: what it is called, and the pairs that it means on a graph (nodes x nodes). Rules made by two
  // calls are two rules, whatever they are called.
  Mask(std::string text, std::function<PairSet(const Graph&)> pairs);
  Mask(std::string text, Needs needs, Rule pairs);

  const std::string& text() const { return text_; }  // "local(2) | self"
  const std::string& key() const { return key_; }    // equal keys mean equal pairs in any context
  const Needs& needs() const { return needs_; }
  std::vector<Mask> parts() const;  // of a | b | c: a, b and c; of any other mask: itself
  // Of random(m, step) and expander(d, step), what they draw; of any other mask, nothing.
  Drawing drawing(std::uint64_t seed) const;

  // All throw Error where something is missing that the rule needs.
  PairSet pairs(const MaskContext& context) const;
  PairSet pairs(const Graph& graph) const { return pairs(MaskContext{graph}); }
  // With `kept` (rising), of the pairs whose key is kept alone. With `virtual_nodes`, of so many more nodes than the
  // graph has, which see all and are seen by all.
  std::shared_ptr<const Pattern> pattern(const MaskContext& context, const std::vector<Id>* kept = nullptr,
                                         Id virtual_nodes = 0) const;
  std::shared_ptr<const Pattern> pattern(const Graph& graph) const { return pattern(MaskContext{graph}); }

  friend Mask operator|(const Mask& a, const Mask& b);
  friend Mask operator&(const Mask& a, const Mask& b);
  friend Mask operator-(const Mask& a, const Mask& b);

 private:
  friend struct MaskRules;
  Mask(std::string text, std::string key, Needs needs, Rule pairs)
      : text_(std::move(text)), key_(std::move(key)), needs_(needs), pairs_(std::move(pairs)) {}
  friend Mask join(const Mask& a, const Mask& b, const char* sign, SetOperation operation);

  std::string text_, key_;
  Needs needs_;
  Rule pairs_;
  std::function<std::shared_ptr<const Pattern>(const MaskContext&)> whole_;  // of the mask alone, without a list
  Drawing drawing_;                                                          // without a stream
  std::shared_ptr<const std::vector<Mask>> parts_;                           // of a union
};

// Lists. A rule that counts its keys has fewer where there are fewer nodes. Numbers below 1 throw Error.
Mask self();                                    // a node sees itself
Mask local(int k = 1);                          // the nodes by a path of 1 to k edges; the node itself, too,
                                                // by one that returns: a self loop or, k > 1, there and back
Mask heavier(double w);                         // the neighbours by edges of a weight above w (none: 1)
Mask hubs(int m, bool by_pagerank = false);     // the m nodes of highest degree (keys in their row), or rank
Mask knn(int k);                                // most_similar (similar.h) of the features
Mask ppr(int k);                                // top_by_ppr (rank.h)
Mask shuffled();                                // the neighbours in renamed (draw.h): the control, degrees alone
Mask pairs(const std::filesystem::path& file);  // its lines: query key; # begins a comment

enum class Draw { once, every_step };
// Every step: drawn anew at each, by keyed permutations (Pattern::drawn), nothing stored; of keys that coincide, one;
// at most Pattern::kMostDraws. Outside training it is the draw of step 0. In a composition it is a list, made anew at
// each step.
Mask expander(int d, Draw draw = Draw::once);  // random_regular (draw.h); every step: both neighbours on each of d / 2
                                               // random cycles, and a partner where d is odd
Mask random(int m, Draw draw = Draw::once);    // m keys, drawn anew for each node; every step: by m permutations

// What no list could hold.
Mask all();                                      // every node, itself too
Mask community();                                // the nodes of the same community (communities.h)
Mask before();                                   // the nodes whose time is not later: graph.times
Mask before(const std::filesystem::path& file);  // times from a file: one number a line, node by node
Mask where(std::string name, std::function<bool(Id query, Id key)> test);  // asked again whenever a pair is visited;
                                                                           // from several threads at once

// The masks that have a name. A user's own expression of them throws Error naming the column, with the nearest names.
const std::vector<RuleEntry>& mask_menu();
Mask mask_named(const std::string& text);

// Masks for heads: "0-3: local | self; 4-7: expander(8)". One mask for every head stands alone, without heads.
struct HeadMask {
  int first = 0, last = 0;  // both included
  Mask mask;
};
constexpr int kEveryHead = 1 << 20;
// In the order of their heads, each head once. Throws Error naming the column, as mask_named.
std::vector<HeadMask> head_masks_named(const std::string& text);

}  // namespace heed
