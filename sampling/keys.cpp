#include "sampling/keys.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <queue>

#include "kernels/random.h"
#include "sampling/rank.h"

namespace heed {

// Rules of heed's own, whose text is their key.
struct KeyRules {
  static Keys make(std::string text, Needs needs, Keys::Rule nodes) {
    Keys out;
    out.text_ = out.key_ = std::move(text), out.needs_ = needs, out.nodes_ = std::move(nodes);
    return out;
  }
  static Keys redrawn(Keys keys, double share) {
    keys.redrawn_ = share;
    return keys;
  }
  static Keys learned(std::string text, double share) {
    Keys out = make(std::move(text), {}, [](const MaskContext&) -> std::vector<Id> {
      fail("learned(share) is worked out by the layer that learns it");
    });
    out.learned_ = share;
    return out;
  }
};

namespace {

std::string with_share(const std::string& rule, double share) {
  if (!(share > 0 && share <= 1)) fail(rule + "(share) needs a share above 0, at most 1, not " + std::to_string(share));
  char buffer[32];
  return rule + "(" + std::string(buffer, std::to_chars(buffer, buffer + sizeof(buffer), share).ptr) + ")";
}

std::vector<Id> farthest_nodes(const Csr& a, Id count) {
  const Id n = a.rows;
  constexpr Id kFar = std::numeric_limits<Id>::max();
  std::vector<Id> distance(static_cast<std::size_t>(n), kFar), out, wave, next;
  std::priority_queue<std::pair<Id, Id>> queue;  // distance, and minus the node, so that of equal ones the first comes
  for (Id i = 0; i < n; ++i) queue.emplace(kFar, -i);
  while (static_cast<Id>(out.size()) < count) {
    Id chosen = 0;
    if (out.empty()) {
      chosen = largest(degrees(a), 1)[0];
    } else {
      while (queue.top().first != distance[-queue.top().second]) queue.pop();
      chosen = -queue.top().second;
      queue.pop();
    }
    out.push_back(chosen);
    distance[chosen] = 0;
    wave = {chosen};
    for (Id hops = 1; !wave.empty(); ++hops, wave.swap(next)) {
      next.clear();
      for (Id i : wave)
        for (Id j : a.row(i))
          if (hops < distance[j]) {
            distance[j] = hops;
            queue.emplace(hops, -j);
            next.push_back(j);
          }
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

std::uint64_t random_keys_stream(std::uint64_t seed) { return mix(seed, 3); }

Id share_of(double share, Id n) {
  return std::clamp<Id>(static_cast<Id>(std::ceil(share * static_cast<double>(n) - 1e-9)), std::min<Id>(n, 1), n);
}

Keys::Keys(std::string text, Needs needs, Rule nodes)
    : text_(std::move(text)), needs_(needs), nodes_(std::move(nodes)) {
  static std::atomic<long> made{0};
  key_ = text_ + "#" + std::to_string(++made);
}

std::vector<Id> Keys::nodes(const MaskContext& c) const {
  check(text_, needs_, c);
  std::vector<Id> out = nodes_(c);
  for (std::size_t t = 0; t < out.size(); ++t)
    if (out[t] < 0 || out[t] >= c.graph.nodes() || (t > 0 && out[t] <= out[t - 1]))
      fail("the keys '" + text_ + "' are not rising nodes of 0.." + std::to_string(c.graph.nodes() - 1) + " at node " +
           std::to_string(out[t]));
  return out;
}

Keys join(const Keys& a, const Keys& b, char sign) {
  for (const Keys* side : {&a, &b})
    if (side->learned_) fail("'" + side->text_ + "' stands alone: it does not compose with other keys");
  auto joined = [&](const std::string& x, const std::string& y) {
    auto whole = [](const std::string& k) {
      for (const char* operation : {" | ", " & ", " - "})
        if (k.find(operation) != std::string::npos) return "(" + k + ")";
      return k;
    };
    return whole(x) + " " + sign + " " + whole(y);
  };
  Keys out;
  out.text_ = joined(a.text_, b.text_), out.key_ = joined(a.key_, b.key_), out.needs_ = a.needs_ | b.needs_;
  out.nodes_ = [a, b, sign](const MaskContext& c) {
    const auto x = a.nodes(c), y = b.nodes(c);
    std::vector<Id> both;
    auto to = std::back_inserter(both);
    if (sign == '|') std::ranges::set_union(x, y, to);
    if (sign == '&') std::ranges::set_intersection(x, y, to);
    if (sign == '-') std::ranges::set_difference(x, y, to);
    return both;
  };
  return out;
}
Keys operator|(const Keys& a, const Keys& b) { return join(a, b, '|'); }
Keys operator&(const Keys& a, const Keys& b) { return join(a, b, '&'); }
Keys operator-(const Keys& a, const Keys& b) { return join(a, b, '-'); }

Keys all_keys() { return every(1); }

Keys random_keys(double share, Draw draw) {
  const bool step = draw == Draw::every_step;
  std::string text = with_share("random", share);
  if (step) text.insert(text.size() - 1, ", step");
  Keys keys = KeyRules::make(text, {.seed = true, .step = step}, [share, step](const MaskContext& c) {
    // The first nodes of a random order.
    const Id n = c.graph.nodes();
    const Permutation order = keys_order(static_cast<std::uint32_t>(n), random_keys_stream(c.seed), step ? c.step : 0);
    std::vector<Id> out(static_cast<std::size_t>(share_of(share, n)));
    for (std::size_t t = 0; t < out.size(); ++t) out[t] = static_cast<Id>(order(static_cast<std::uint32_t>(t)));
    std::sort(out.begin(), out.end());
    return out;
  });
  return step ? KeyRules::redrawn(std::move(keys), share) : keys;
}

Keys every(int step, int first) {
  if (step < 1 || first < 0)
    fail("every(step, first) needs a step of 1 or more and a first node of 0 or more, not " + std::to_string(step) +
         " and " + std::to_string(first));
  std::string text = "every(" + std::to_string(step) + (first > 0 ? ", " + std::to_string(first) : "") + ")";
  if (step == 1 && first == 0) text = "all";
  return KeyRules::make(text, {}, [text, step, first](const MaskContext& c) {
    const Id n = c.graph.nodes();
    if (n > 0 && std::max(step, first + 1) > n)
      fail(text + " needs at least " + std::to_string(std::max(step, first + 1)) + " nodes; the graph has " +
           std::to_string(n));
    std::vector<Id> out;
    for (Id i = 0; i < n; ++i)
      if (const Id name = c.name(i); name >= first && (name - first) % step == 0) out.push_back(i);
    return out;
  });
}

Keys by_degree(double share) {
  return KeyRules::make(with_share("degree", share), {}, [share](const MaskContext& c) {
    return largest(degrees(*c.graph.adjacency), share_of(share, c.graph.nodes()));
  });
}

Keys by_pagerank(double share) {
  return KeyRules::make(with_share("pagerank", share), {}, [share](const MaskContext& c) {
    return largest(pagerank(*c.graph.adjacency), share_of(share, c.graph.nodes()));
  });
}

Keys farthest(double share) {
  return KeyRules::make(with_share("farthest", share), {}, [share](const MaskContext& c) {
    return farthest_nodes(*c.graph.adjacency, share_of(share, c.graph.nodes()));
  });
}

Keys learned(double share) { return KeyRules::learned(with_share("learned", share), share); }

namespace {

struct NamedKeys {
  RuleEntry entry;
  Keys (*make)(const Arguments&);
};

const std::vector<NamedKeys>& named_keys() {
  constexpr int kMost = 1'000'000'000;
  static const std::vector<NamedKeys> list{
      {{"all", "all", "every node"},
       [](const Arguments& a) {
         a.expect(0, 0);
         return all_keys();
       }},
      {{"random", "random(share) or random(share, step)", "random nodes; with step drawn anew at each; O(n share)"},
       [](const Arguments& a) {
         a.expect(1, 2);
         return random_keys(a.share(0), a.word(1, "step") ? Draw::every_step : Draw::once);
       }},
      {{"every", "every(step) or every(step, first)",
        "nodes first, first + step, ...; first is 0 where it is not given"},
       [](const Arguments& a) {
         a.expect(1, 2);
         return every(a.whole(0, 1, kMost), a.count() > 1 ? a.whole(1, 0, kMost) : 0);
       }},
      {{"degree", "degree(share)", "the nodes of highest degree; O(n)"},
       [](const Arguments& a) {
         a.expect(1, 1);
         return by_degree(a.share(0));
       }},
      {{"pagerank", "pagerank(share)", "the nodes of highest PageRank; O(edges) an iteration"},
       [](const Arguments& a) {
         a.expect(1, 1);
         return by_pagerank(a.share(0));
       }},
      {{"farthest", "farthest(share)", "each as far from the others as can be, in hops (Gonzalez 1985)"},
       [](const Arguments& a) {
         a.expect(1, 1);
         return farthest(a.share(0));
       }},
      {{"learned", "learned(share)", "largest u = x p, values times sigmoid(u), as in graph U-Nets, arXiv:1905.05178"},
       [](const Arguments& a) {
         a.expect(1, 1);
         return learned(a.share(0));
       }},
  };
  return list;
}

}  // namespace

const std::vector<RuleEntry>& keys_menu() {
  static const std::vector<RuleEntry> menu = [] {
    std::vector<RuleEntry> out;
    for (const auto& k : named_keys()) out.push_back(k.entry);
    return out;
  }();
  return menu;
}

Keys keys_named(const std::string& text) {
  return evaluate<Keys>(
      parse_expression(text),
      [](const Expression& rule) {
        std::vector<std::string> names;
        for (const auto& k : named_keys()) {
          if (k.entry.name == rule.name) return k.make(Arguments(rule, k.entry.usage));
          names.push_back(k.entry.name);
        }
        unknown("keys", rule.name, names);
      },
      [](char sign, Keys a, Keys b) { return sign == '|'   ? a | b
                                             : sign == '&' ? a & b
                                                           : a - b; });
}

}  // namespace heed
