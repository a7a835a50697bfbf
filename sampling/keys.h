// Keys: rules that say which nodes can be seen at all. Attention then costs n x kept; a mask is cut down to the kept
// keys. Rules are sets of nodes, closed under | & -, but for learned(share), which only a layer can work out.
#pragma once

#include <optional>
#include <string>

#include "sampling/mask.h"

namespace heed {

class Keys {
 public:
  using Rule = std::function<std::vector<Id>(const MaskContext&)>;

  // A rule of one's own, which gives rising nodes.
  Keys(std::string text, Needs needs, Rule nodes);

  const std::string& text() const { return text_; }
  const std::string& key() const { return key_; }  // equal keys mean equal nodes in any context
  const Needs& needs() const { return needs_; }
  bool every_node() const { return text_ == "all" && key_ == text_; }
  std::optional<double> learned_share() const { return learned_; }  // of learned(share)
  std::optional<double> redrawn_share() const { return redrawn_; }  // of random(share, step)

  // Rising. Throws Error where something is missing that the rule needs, where it gives other than rising nodes, and
  // for learned(share).
  std::vector<Id> nodes(const MaskContext& context) const;

  friend Keys operator|(const Keys& a, const Keys& b);
  friend Keys operator&(const Keys& a, const Keys& b);
  friend Keys operator-(const Keys& a, const Keys& b);

 private:
  friend struct KeyRules;
  Keys() = default;
  friend Keys join(const Keys& a, const Keys& b, char sign);

  std::string text_, key_;
  Needs needs_;
  Rule nodes_;
  std::optional<double> learned_, redrawn_;
};

// Of n nodes, a share keeps ceil(share n). Shares outside (0, 1] throw Error.
Keys all_keys();
Keys random_keys(double share, Draw draw = Draw::once);  // every step: drawn anew in training, step 0 outside of it
Keys every(int step, int first = 0);                     // nodes first, first + step, ...; a graph of fewer nodes than
                                                         // step or first throws Error
Keys by_degree(double share);                            // the nodes with most keys in their row; ties: the first ones
Keys by_pagerank(double share);
// One after the other the node farthest, in hops along rows, from those chosen before (Gonzalez 1985), from the node of
// highest degree on; what is not reached is farthest.
Keys farthest(double share);
// The nodes of largest u_i = x_i p, with p learned by the layer, and values multiplied by sigmoid(u_i), through which
// the gradient reaches p: the pooling of graph U-Nets, arXiv:1905.05178. It does not compose.
Keys learned(double share);

Id share_of(double share, Id n);  // ceil(share n), but for rounding
std::uint64_t random_keys_stream(std::uint64_t seed);  // of which random(share, step) takes keys_order (random.h)

const std::vector<RuleEntry>& keys_menu();
Keys keys_named(const std::string& text);  // as mask_named

}  // namespace heed
