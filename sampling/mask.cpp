#include "sampling/mask.h"

#include <atomic>

namespace heed {
namespace {

PairSet pairs(Csr (*operation)(const Csr&, const Csr&), const PairSet& a, const PairSet& b, bool complement) {
  return {std::make_shared<Csr>(operation(*a.pairs, *b.pairs)), complement};
}

PairSet complement_of(PairSet a) { return {a.pairs, !a.complement}; }

}  // namespace

Mask combine(const Mask& a, const Mask& b, const char* sign, PairSet (*operation)(const PairSet&, const PairSet&)) {
  auto joined = [&](const std::string& x, const std::string& y) {
    auto whole = [](const std::string& m) { return m.find(' ') == std::string::npos ? m : "(" + m + ")"; };
    return whole(x) + " " + sign + " " + whole(y);
  };
  return {joined(a.text(), b.text()), joined(a.key(), b.key()),
          [a, b, operation](const Graph& graph) { return operation(a.pairs(graph), b.pairs(graph)); }};
}

PairSet operator&(const PairSet& a, const PairSet& b) {
  if (!a.complement && !b.complement) return pairs(intersect, a, b, false);
  if (!a.complement) return pairs(subtract, a, b, false);
  if (!b.complement) return pairs(subtract, b, a, false);
  return pairs(unite, a, b, true);
}
PairSet operator|(const PairSet& a, const PairSet& b) { return complement_of(complement_of(a) & complement_of(b)); }
PairSet operator-(const PairSet& a, const PairSet& b) { return a & complement_of(b); }

Mask::Mask(std::string text, std::string key, std::function<PairSet(const Graph&)> pairs)
    : text_(std::move(text)), key_(std::move(key)), pairs_(std::move(pairs)) {}

Mask::Mask(std::string text, std::function<PairSet(const Graph&)> pairs) : text_(text), pairs_(std::move(pairs)) {
  static std::atomic<long> made{0};
  key_ = text + "#" + std::to_string(++made);
}

std::shared_ptr<const Pattern> Mask::pattern(const Graph& graph) const {
  PairSet set = pairs_(graph);
  if (!set.complement) return Pattern::listed(set.pairs);
  return Pattern::all(graph.nodes(), graph.nodes(), set.pairs->edges() > 0 ? set.pairs : nullptr);
}

Mask operator|(const Mask& a, const Mask& b) { return combine(a, b, "|", operator|); }
Mask operator&(const Mask& a, const Mask& b) { return combine(a, b, "&", operator&); }
Mask operator-(const Mask& a, const Mask& b) { return combine(a, b, "-", operator-); }

Mask self() {
  return {"self", "self", [](const Graph& graph) { return PairSet{std::make_shared<Csr>(identity(graph.nodes()))}; }};
}

Mask local(int k) {
  if (k < 1) fail("local(k) needs at least 1 hop, not " + std::to_string(k));
  const std::string text = k == 1 ? "local" : "local(" + std::to_string(k) + ")";
  return {text, text, [k](const Graph& graph) {
            return PairSet{k == 1 ? graph.adjacency : std::make_shared<const Csr>(hops(*graph.adjacency, k))};
          }};
}

Mask all() {
  return {"all", "all", [](const Graph& graph) {
            Id n = graph.nodes();
            Csr none{.rows = n, .cols = n, .offsets = std::vector<Offset>(static_cast<std::size_t>(n) + 1)};
            return PairSet{std::make_shared<Csr>(std::move(none)), true};
          }};
}

}  // namespace heed
