#include "sampling/mask.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <sstream>

#include "graph/files.h"
#include "kernels/random.h"
#include "sampling/communities.h"
#include "sampling/draw.h"
#include "sampling/rank.h"
#include "sampling/similar.h"

namespace heed {
namespace {

PairSet list_of(Csr csr) { return {std::make_shared<Csr>(std::move(csr))}; }

std::string call(const std::string& name, const std::string& argument) { return name + "(" + argument + ")"; }

std::string decimal(double value) {
  char buffer[32];
  return {buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr};
}

// A path as an argument.
std::string quoted(const std::filesystem::path& path) {
  const std::string text = path.string();
  return text.find_first_of(",() \t") == std::string::npos ? text : "\"" + text + "\"";
}

void at_least_one(const std::string& rule, const char* what, int value) {
  if (value < 1) fail(rule + " needs at least 1 " + what + ", not " + std::to_string(value));
}

// visit(line, number, complain) for each line of a file that holds more than a comment.
template <class Visit>
void each_line(const std::filesystem::path& file, Visit visit) {
  std::istringstream lines(read_file(file));
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    if (++number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    line.erase(std::min(line.find('#'), line.size()));
    const std::size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string::npos) continue;
    line = line.substr(begin, line.find_last_not_of(" \t\r") + 1 - begin);
    visit(line, [&](const std::string& what) {
      fail(file.string() + ", line " + std::to_string(number) + ": " + what + ", not '" + printable(line) + "'");
    });
  }
}

Csr read_pairs(const std::filesystem::path& file, const MaskContext& c) {
  const Id n = c.graph.nodes();
  std::vector<Id> node(static_cast<std::size_t>(n));
  for (Id i = 0; i < n; ++i) node[c.name(i)] = i;
  std::vector<std::pair<Id, Id>> list;
  each_line(file, [&](const std::string& line, auto complain) {
    Id ids[2];
    const char *at = line.data(), *end = at + line.size();
    for (Id& id : ids) {
      while (at != end && (*at == ' ' || *at == '\t')) ++at;
      const auto [rest, error] = std::from_chars(at, end, id);
      if (error != std::errc{} || (rest != end && *rest != ' ' && *rest != '\t')) complain("expected 'query key'");
      if (id < 0 || id >= n) complain("expected nodes of 0.." + std::to_string(n - 1));
      at = rest;
    }
    if (at != end) complain("expected 'query key'");
    list.emplace_back(node[ids[0]], node[ids[1]]);
  });
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  Csr out{.rows = n, .cols = n, .offsets = std::vector<Offset>(static_cast<std::size_t>(n) + 1), .ids = {}};
  for (auto [i, j] : list) out.ids.push_back(j), ++out.offsets[i + 1];
  for (Id i = 0; i < n; ++i) out.offsets[i + 1] += out.offsets[i];
  return out;
}

std::vector<double> read_times(const std::filesystem::path& file, const MaskContext& c) {
  const Id n = c.graph.nodes();
  std::vector<double> read, out;
  each_line(file, [&](const std::string& line, auto complain) {
    double time = 0;
    const auto [rest, error] = std::from_chars(line.data(), line.data() + line.size(), time);
    if (error != std::errc{} || rest != line.data() + line.size() || !std::isfinite(time))
      complain("expected a number");
    read.push_back(time);
  });
  if (read.size() != static_cast<std::size_t>(n))
    fail(file.string() + ": " + std::to_string(read.size()) + " times for " + std::to_string(n) + " nodes");
  for (Id i = 0; i < n; ++i) out.push_back(read[c.name(i)]);
  return out;
}

// Streams of random numbers, one for each kind of rule.
enum Stream : std::uint64_t { kRandom = 1, kExpander = 2, kShuffled = 3 };
std::uint64_t stream(const MaskContext& c, Stream kind) { return mix(mix(c.seed), kind); }

}  // namespace

// Rules of heed's own, whose text is their key.
struct MaskRules {
  static Mask make(std::string text, Needs needs, Mask::Rule pairs) { return {text, text, needs, std::move(pairs)}; }
  static Mask list(std::string text, Needs needs, std::function<Csr(const MaskContext&)> pairs) {
    return make(std::move(text), needs, [pairs](const MaskContext& c) { return list_of(pairs(c)); });
  }
  static Mask drawn(const std::string& rule, int count, bool regular) {
    if (count > Pattern::kMostDraws)
      fail(rule + " draws at most " + std::to_string(Pattern::kMostDraws) + " keys, not " + std::to_string(count));
    Mask out =
        make(call(rule.substr(0, rule.find('(')), std::to_string(count) + ", step"), {.seed = true, .step = true}, {});
    out.drawing_ = {.count = count, .regular = regular};
    out.whole_ = [what = out.drawing_](const MaskContext& c) {
      return Pattern::drawn(c.graph.nodes(), with_stream(what, c.seed), c.step);
    };
    out.pairs_ = [whole = out.whole_](const MaskContext& c) {
      const auto pattern = whole(c);
      const Rows& rows = pattern->by_query;
      Csr list{.rows = rows.rows, .cols = rows.cols};
      Id row[Pattern::kMostDraws];
      for (Id i = 0; i < rows.rows; ++i) {
        const int found = rows.walk->columns(i, 0, rows.length(i), row);
        std::sort(row, row + found);
        list.ids.insert(list.ids.end(), row, row + found);
        list.offsets.push_back(list.edges());
      }
      return list_of(std::move(list));
    };
    return out;
  }
  static Drawing with_stream(Drawing what, std::uint64_t seed) {
    what.stream = mix(mix(seed), what.regular ? kExpander : kRandom);
    return what;
  }
};

void check(const std::string& rule, const Needs& needs, const MaskContext& c) {
  if (needs.features && (c.features == nullptr || c.features->rows() != c.graph.nodes()))
    fail(rule + " needs features of the nodes, which there are not");
  if (needs.times && c.graph.times.size() != static_cast<std::size_t>(c.graph.nodes()))
    fail(rule + " needs a time for each of the " + std::to_string(c.graph.nodes()) + " nodes: graph.times has " +
         std::to_string(c.graph.times.size()) + "; or name a file of them, before(times.txt)");
}

Mask join(const Mask& a, const Mask& b, const char* sign, SetOperation operation) {
  auto joined = [&](const std::string& x, const std::string& y) {
    auto whole = [](const std::string& m) {
      for (const char* operation : {" | ", " & ", " - "})
        if (m.find(operation) != std::string::npos) return "(" + m + ")";
      return m;
    };
    return whole(x) + " " + sign + " " + whole(y);
  };
  Mask out(joined(a.text(), b.text()), joined(a.key(), b.key()), a.needs() | b.needs(),
           [a, b, operation](const MaskContext& c) { return combine(a.pairs(c), b.pairs(c), operation); });
  if (operation == SetOperation::unite) {
    std::vector<Mask> parts = a.parts();
    for (Mask& part : b.parts()) parts.push_back(std::move(part));
    out.parts_ = std::make_shared<const std::vector<Mask>>(std::move(parts));
  }
  return out;
}

Drawing Mask::drawing(std::uint64_t seed) const { return MaskRules::with_stream(drawing_, seed); }

std::vector<Mask> Mask::parts() const { return parts_ ? *parts_ : std::vector<Mask>{*this}; }

Mask::Mask(std::string text, Needs needs, Rule pairs)
    : text_(std::move(text)), needs_(needs), pairs_(std::move(pairs)) {
  static std::atomic<long> made{0};
  key_ = text_ + "#" + std::to_string(++made);
}

Mask::Mask(std::string text, std::function<PairSet(const Graph&)> pairs)
    : Mask(std::move(text), Needs{}, [pairs = std::move(pairs)](const MaskContext& c) { return pairs(c.graph); }) {}

PairSet Mask::pairs(const MaskContext& c) const {
  check(text_, needs_, c);
  const bool keep = c.known != nullptr && !needs_.step;
  if (keep)
    if (auto found = c.known->find(key_); found != c.known->end()) return found->second;
  PairSet out = pairs_(c);
  const Id n = c.graph.nodes();
  if (!out.pairs || out.pairs->rows != n || out.pairs->cols != n)
    fail("the mask '" + text_ + "' gave no pairs of the " + std::to_string(n) + " nodes");
  if (key_ != text_) try {  // a user's own
      check(*out.pairs);
    } catch (const Error& e) {
      fail("the mask '" + text_ + "': " + e.what());
    }
  if (keep) c.known->emplace(key_, out);
  return out;
}

std::shared_ptr<const Pattern> Mask::pattern(const MaskContext& c, const std::vector<Id>* kept,
                                             Id virtual_nodes) const {
  if (whole_ && kept == nullptr && virtual_nodes == 0) return whole_(c);
  const PairSet set = pairs(c);
  return pattern_of(virtual_nodes > 0 ? with_virtual(set, virtual_nodes) : set, kept);
}

Mask operator|(const Mask& a, const Mask& b) { return join(a, b, "|", SetOperation::unite); }
Mask operator&(const Mask& a, const Mask& b) { return join(a, b, "&", SetOperation::intersect); }
Mask operator-(const Mask& a, const Mask& b) { return join(a, b, "-", SetOperation::subtract); }

Mask self() {
  return MaskRules::list("self", {}, [](const MaskContext& c) { return identity(c.graph.nodes()); });
}

Mask local(int k) {
  if (k < 1) fail("local(k) needs at least 1 hop, not " + std::to_string(k));
  return MaskRules::make(k == 1 ? "local" : call("local", std::to_string(k)), {}, [k](const MaskContext& c) {
    return k == 1 ? PairSet{c.graph.adjacency} : list_of(hops(*c.graph.adjacency, k));
  });
}

Mask heavier(double w) {
  if (!std::isfinite(w)) fail("heavier(w) needs a finite weight");
  return MaskRules::list(call("heavier", decimal(w)), {}, [w](const MaskContext& c) {
    const Csr& all = *c.graph.adjacency;
    Csr out{.rows = all.rows, .cols = all.cols};
    for (Id i = 0; i < all.rows; ++i) {
      for (Offset e = all.offsets[i]; e < all.offsets[i + 1]; ++e)
        if ((c.graph.weights.empty() ? 1.0 : static_cast<double>(c.graph.weights[e])) > w)
          out.ids.push_back(all.ids[e]);
      out.offsets.push_back(out.edges());
    }
    return out;
  });
}

Mask hubs(int m, bool by_pagerank) {
  at_least_one("hubs(m)", "node", m);
  return MaskRules::list(call("hubs", std::to_string(m) + (by_pagerank ? ", pagerank" : "")), {},
                         [m, by_pagerank](const MaskContext& c) {
                           const Csr& a = *c.graph.adjacency;
                           const auto top = largest(by_pagerank ? pagerank(a) : degrees(a), m);
                           Csr out{.rows = a.rows, .cols = a.cols};
                           for (Id i = 0; i < a.rows; ++i) {
                             out.ids.insert(out.ids.end(), top.begin(), top.end());
                             out.offsets.push_back(out.edges());
                           }
                           return out;
                         });
}

Mask knn(int k) {
  at_least_one("knn(k)", "node", k);
  return MaskRules::list(call("knn", std::to_string(k)), {.features = true},
                         [k](const MaskContext& c) { return most_similar(*c.features, k); });
}

Mask ppr(int k) {
  at_least_one("ppr(k)", "node", k);
  return MaskRules::list(call("ppr", std::to_string(k)), {},
                         [k](const MaskContext& c) { return top_by_ppr(*c.graph.adjacency, k); });
}

Mask expander(int d, Draw draw) {
  at_least_one("expander(d)", "neighbour", d);
  if (draw == Draw::every_step) return MaskRules::drawn("expander(d, step)", d, true);
  return MaskRules::list(call("expander", std::to_string(d)), {.seed = true}, [d](const MaskContext& c) {
    return random_regular(c.graph.nodes(), d, stream(c, kExpander));
  });
}

Mask shuffled() {
  return MaskRules::list("shuffled", {.seed = true},
                         [](const MaskContext& c) { return renamed(*c.graph.adjacency, stream(c, kShuffled)); });
}

Mask pairs(const std::filesystem::path& file) {
  return MaskRules::list(call("pairs", quoted(file)), {.files = {file}},
                         [file](const MaskContext& c) { return read_pairs(file, c); });
}

Mask random(int m, Draw draw) {
  at_least_one("random(m)", "key", m);
  if (draw == Draw::every_step) return MaskRules::drawn("random(m, step)", m, false);
  return MaskRules::list(call("random", std::to_string(m)), {.seed = true},
                         [m](const MaskContext& c) { return random_rows(c.graph.nodes(), m, stream(c, kRandom)); });
}

Mask all() {
  return MaskRules::make("all", {}, [](const MaskContext& c) { return every_pair(c.graph.nodes()); });
}

Mask community() {
  return MaskRules::make("community", {}, [](const MaskContext& c) {
    return same_label(c.graph.nodes(), communities(*c.graph.adjacency));
  });
}

Mask before() {
  return MaskRules::make("before", {.times = true},
                         [](const MaskContext& c) { return not_later(c.graph.nodes(), c.graph.times); });
}

Mask before(const std::filesystem::path& file) {
  return MaskRules::make(call("before", quoted(file)), {.files = {file}},
                         [file](const MaskContext& c) { return not_later(c.graph.nodes(), read_times(file, c)); });
}

Mask where(std::string name, std::function<bool(Id, Id)> test) {
  return Mask(std::move(name), Needs{}, [test = std::move(test)](const MaskContext& c) {
    if (c.order.empty()) return passing(c.graph.nodes(), test);
    return passing(c.graph.nodes(), [test, order = std::vector<Id>(c.order.begin(), c.order.end())](Id i, Id j) {
      return test(order[i], order[j]);
    });
  });
}

namespace {

constexpr int kMost = 1'000'000'000;

struct NamedMask {
  RuleEntry entry;
  Mask (*make)(const Arguments&);
};

const std::vector<NamedMask>& named_masks() {
  static const std::vector<NamedMask> list{
      {{"self", "self", "j = i; O(n)"},
       [](const Arguments& a) {
         a.expect(0, 0);
         return self();
       }},
      {{"local", "local(k)",
        "j by a path of 1 to k edges from i (1 without k), i itself by one that returns; O(pairs)"},
       [](const Arguments& a) {
         a.expect(0, 1);
         return local(a.count() > 0 ? a.whole(0, 1, kMost) : 1);
       }},
      {{"heavier", "heavier(w)", "neighbours by edges of weight above w; O(edges)"},
       [](const Arguments& a) {
         a.expect(1, 1);
         return heavier(a.number(0));
       }},
      {{"hubs", "hubs(m) or hubs(m, pagerank)", "j among the m nodes of highest degree or PageRank; O(n m)"},
       [](const Arguments& a) {
         a.expect(1, 2);
         return hubs(a.whole(0, 1, kMost), a.word(1, "pagerank"));
       }},
      {{"knn", "knn(k)", "the k other nodes of largest cosine of features, exact; O(n^2 channels) time, O(n k) memory"},
       [](const Arguments& a) {
         a.expect(1, 1);
         return knn(a.whole(0, 1, kMost));
       }},
      {{"ppr", "ppr(k)", "the k other nodes of largest personalised PageRank, arXiv:2007.01570; O(n) pushes of 1e-5"},
       [](const Arguments& a) {
         a.expect(1, 1);
         return ppr(a.whole(0, 1, kMost));
       }},
      {{"expander", "expander(d) or expander(d, step)",
        "a random d-regular graph, as in Exphormer, arXiv:2303.06147; with step drawn anew at each, without a list; "
        "O(n d)"},
       [](const Arguments& a) {
         a.expect(1, 2);
         const bool step = a.word(1, "step");
         return expander(a.whole(0, 1, step ? Pattern::kMostDraws : kMost), step ? Draw::every_step : Draw::once);
       }},
      {{"random", "random(m) or random(m, step)",
        "m random nodes, as in BigBird, arXiv:2007.14062; with step drawn anew at each, without a list; O(n m)"},
       [](const Arguments& a) {
         a.expect(1, 2);
         const bool step = a.word(1, "step");
         return random(a.whole(0, 1, step ? Pattern::kMostDraws : kMost), step ? Draw::every_step : Draw::once);
       }},
      {{"shuffled", "shuffled",
        "the neighbours after the nodes are renamed at random: degrees alone, a control; O(edges)"},
       [](const Arguments& a) {
         a.expect(0, 0);
         return shuffled();
       }},
      {{"pairs", "pairs(file)", "the pairs that a file lists, a line each: query key; O(pairs)"},
       [](const Arguments& a) {
         a.expect(1, 1);
         return pairs(a.text(0));
       }},
      {{"all", "all", "every j; O(n) memory, as all that follows"},
       [](const Arguments& a) {
         a.expect(0, 0);
         return all();
       }},
      {{"community", "community", "j in i's community by label propagation, arXiv:0709.2938; O(edges)"},
       [](const Arguments& a) {
         a.expect(0, 0);
         return community();
       }},
      {{"before", "before or before(file)",
        "time_j <= time_i, of the graph or from a file with a line a node; O(n log n)"},
       [](const Arguments& a) {
         a.expect(0, 1);
         return a.count() > 0 ? before(a.text(0)) : before();
       }},
  };
  return list;
}

}  // namespace

const std::vector<RuleEntry>& mask_menu() {
  static const std::vector<RuleEntry> menu = [] {
    std::vector<RuleEntry> out;
    for (const auto& m : named_masks()) out.push_back(m.entry);
    return out;
  }();
  return menu;
}

Mask mask_named(const std::string& text) {
  return evaluate<Mask>(
      parse_expression(text),
      [](const Expression& rule) {
        std::vector<std::string> names;
        for (const auto& m : named_masks()) {
          if (m.entry.name == rule.name) return m.make(Arguments(rule, m.entry.usage));
          names.push_back(m.entry.name);
        }
        unknown("mask", rule.name, names);
      },
      [](char sign, Mask a, Mask b) { return sign == '|'   ? a | b
                                             : sign == '&' ? a & b
                                                           : a - b; });
}

std::vector<HeadMask> head_masks_named(const std::string& text) {
  const std::size_t start = text.find_first_not_of(" \t");
  if (start == std::string::npos || text[start] < '0' || text[start] > '9') return {{0, kEveryHead, mask_named(text)}};
  std::vector<HeadMask> out;
  for (std::size_t begin = 0; begin <= text.size();) {
    std::size_t end = begin;  // at the next ';' outside of parentheses and quotations
    bool quoted = false;
    for (int depth = 0; end < text.size() && (text[end] != ';' || depth > 0 || quoted); ++end) {
      if (text[end] == '"') quoted = !quoted;
      if (!quoted) depth += text[end] == '(' ? 1 : text[end] == ')' ? -1 : 0;
    }
    const std::size_t digit = std::min(text.find_first_not_of(" \t", begin), end);
    const std::size_t colon = std::min(text.find(':', digit), end);
    auto complain = [&](const std::string& what) { fail("column " + std::to_string(digit + 1) + ": " + what); };
    int first = -1;
    auto [rest, error] = std::from_chars(text.data() + digit, text.data() + colon, first);
    int last = first;
    if (error == std::errc{} && *rest == '-') {
      const auto second = std::from_chars(rest + 1, text.data() + colon, last);
      rest = second.ptr, error = second.ec;
    }
    if (error != std::errc{} || rest != text.data() + colon || colon == end || last < first || last >= kEveryHead)
      complain("expected heads and a mask, as in '0-3: local', not '" + printable(text.substr(digit, end - digit)) +
               "'");
    const int next = out.empty() ? 0 : out.back().last + 1;
    if (first != next)
      complain("the next head without a mask is " + std::to_string(next) + ", not " + std::to_string(first));
    // Blanks in front, so that columns are those of the whole text.
    out.push_back({first, last, mask_named(std::string(colon + 1, ' ') + text.substr(colon + 1, end - colon - 1))});
    begin = end + 1;
  }
  return out;
}

}  // namespace heed
