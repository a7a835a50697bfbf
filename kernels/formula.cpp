// Text -> a graph of operations, each there once -> its derivatives -> straight lines of steps.
#include "kernels/formula.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <compare>
#include <map>
#include <optional>

#include "graph/error.h"
#include "graph/files.h"
#include "kernels/program.h"

namespace heed::formula {
namespace {

constexpr std::size_t kMostText = 1000;  // characters; the rest is bounded by it
constexpr int kMostDepth = 100;          // parentheses and signs inside each other
constexpr double kLargest = 3e38;        // of float
constexpr auto kNowhere = static_cast<std::size_t>(-1);

[[noreturn]] void fail_at(std::size_t at, const std::string& what) {
  if (at == kNowhere) fail("the formula: its slopes are too large for numbers");
  fail("the formula, column " + std::to_string(at + 1) + ": " + what);
}

struct Node {
  Op op = Op::constant;
  int a = 0, b = 0;
  double c = 0;
  auto operator<=>(const Node&) const = default;
};

int arity(Op op) {
  if (op <= Op::constant) return 0;
  return with_op(op, [](auto count, auto) { return count.value; });
}
double value_of(Op op, double x, double y, double c) {
  return with_op(op, [&](auto, auto f) -> double { return f(x, y, c); });
}

// Operations by number; an operation's operands have lower ones.
class Nodes {
 public:
  std::size_t column = 0;  // of what is being parsed, for messages

  const Node& operator[](int i) const { return list_[static_cast<std::size_t>(i)]; }
  int size() const { return static_cast<int>(list_.size()); }

  int variable(int number) { return enter({Op::variable, number, 0, 0}); }
  int width() { return enter({Op::width, 0, 0, 0}); }
  int constant(double c) {
    if (!(std::abs(c) <= kLargest)) fail_at(column, "this is not a finite number");
    return enter({Op::constant, 0, 0, c == 0 ? 0 : c});
  }
  bool is(int i, double c) const { return (*this)[i].op == Op::constant && (*this)[i].c == c; }

  // The operation, or what it is equal to.
  int make(Op op, int a, int b = 0, double c = 0) {
    const bool two = arity(op) == 2;
    if (!two) b = 0;
    if (op == Op::div && is(b, 0)) fail_at(column, "division by 0");
    if ((*this)[a].op == Op::constant && (!two || (*this)[b].op == Op::constant))
      return constant(value_of(op, (*this)[a].c, (*this)[b].c, c));
    switch (op) {
      case Op::add:
        if (is(a, 0)) return b;
        if (is(b, 0)) return a;
        if ((*this)[b].op == Op::neg && (*this)[a].op == Op::neg)
          return make(Op::neg, make(Op::add, (*this)[a].a, (*this)[b].a));
        if ((*this)[b].op == Op::neg) return make(Op::sub, a, (*this)[b].a);
        if ((*this)[a].op == Op::neg) return make(Op::sub, b, (*this)[a].a);
        if (a > b) std::swap(a, b);
        break;
      case Op::sub:
        if (a == b) return constant(0);
        if (is(a, 0)) return make(Op::neg, b);
        if (is(b, 0)) return a;
        if ((*this)[b].op == Op::neg) return make(Op::add, a, (*this)[b].a);
        break;
      case Op::mul:
        if (is(a, 0) || is(b, 0)) return constant(0);
        if (is(a, 1)) return b;
        if (is(b, 1)) return a;
        if (is(a, -1)) return make(Op::neg, b);
        if (is(b, -1)) return make(Op::neg, a);
        if ((*this)[a].op == Op::neg) return make(Op::neg, make(Op::mul, (*this)[a].a, b));
        if ((*this)[b].op == Op::neg) return make(Op::neg, make(Op::mul, a, (*this)[b].a));
        for (int side = 0; side < 2; ++side, std::swap(a, b))
          if ((*this)[a].op >= Op::abs_slope && is((*this)[a].b, 1))
            return make((*this)[a].op, (*this)[a].a, b, (*this)[a].c);
        if (a > b) std::swap(a, b);
        break;
      case Op::div:
        if (is(a, 0)) return a;
        if (is(b, 1)) return a;
        break;
      case Op::neg:
        if ((*this)[a].op == Op::neg) return (*this)[a].a;
        break;
      case Op::abs_slope:
      case Op::relu_slope:
      case Op::leaky_slope:
        if (is(b, 0)) return b;
        break;
      default:
        break;
    }
    return enter({op, a, b, c});
  }

  // Which nodes `roots` are made of.
  std::vector<bool> below(const std::vector<int>& roots) const {
    std::vector<bool> in(list_.size());
    for (int root : roots) in[static_cast<std::size_t>(root)] = true;
    for (int i = size() - 1; i >= 0; --i) {
      if (!in[static_cast<std::size_t>(i)]) continue;
      const int count = arity((*this)[i].op);
      if (count > 0) in[static_cast<std::size_t>((*this)[i].a)] = true;
      if (count > 1) in[static_cast<std::size_t>((*this)[i].b)] = true;
    }
    return in;
  }
  bool reads(int root, int variable) const {
    const auto in = below({root});
    for (int i = 0; i <= root; ++i)
      if (in[static_cast<std::size_t>(i)] && (*this)[i].op == Op::variable && (*this)[i].a == variable) return true;
    return false;
  }

  // The root with 0 in the place of a variable.
  int without(int root, int variable) {
    const auto in = below({root});
    std::vector<int> to(in.size());
    for (int i = 0; i <= root; ++i) {
      if (!in[static_cast<std::size_t>(i)]) continue;
      const Node x = (*this)[i];
      const auto at = [&](int operand) { return to[static_cast<std::size_t>(operand)]; };
      to[static_cast<std::size_t>(i)] = arity(x.op) > 0                           ? make(x.op, at(x.a), at(x.b), x.c)
                                        : x.op == Op::variable && x.a == variable ? constant(0)
                                                                                  : i;
    }
    return to[static_cast<std::size_t>(root)];
  }

  // Its derivative by a variable, by the rules of jet.h.
  int derive(int root, int variable) {
    const auto in = below({root});
    std::vector<int> to(in.size(), constant(0));
    for (int i = 0; i <= root; ++i)
      if (in[static_cast<std::size_t>(i)]) to[static_cast<std::size_t>(i)] = derivative(i, variable, to);
    return to[static_cast<std::size_t>(root)];
  }

  Program compile(const std::vector<int>& roots) const;

 private:
  std::vector<Node> list_;
  std::map<Node, int> known_;

  int enter(const Node& x) {
    const auto [at, is_new] = known_.try_emplace(x, size());
    if (is_new) list_.push_back(x);
    return at->second;
  }

  int derivative(int i, int variable, const std::vector<int>& slopes) {
    const Node x = (*this)[i];
    const int count = arity(x.op);
    const int da = count > 0 ? slopes[static_cast<std::size_t>(x.a)] : 0;
    const int db = count > 1 ? slopes[static_cast<std::size_t>(x.b)] : 0;
    auto times_da = [&](int slope) { return make(Op::mul, slope, da); };
    if (count > 0 && is(da, 0) && (count == 1 || is(db, 0))) return constant(0);
    switch (x.op) {
      case Op::variable:
        return constant(x.a == variable);
      case Op::add:
      case Op::sub:
        return make(x.op, da, db);
      case Op::mul:
        return make(Op::add, make(Op::mul, da, x.b), make(Op::mul, x.a, db));
      case Op::div:
        return make(Op::div, make(Op::sub, da, make(Op::mul, i, db)), x.b);
      case Op::neg:
        return make(Op::neg, da);
      case Op::exp:
        return times_da(i);
      case Op::log:
        return times_da(make(Op::div, constant(1), x.a));
      case Op::sqrt:
        return times_da(make(Op::sqrt_slope, i));
      case Op::tanh:
        return times_da(make(Op::tanh_slope, i));
      case Op::sigmoid:
        return times_da(make(Op::sigmoid_slope, i));
      case Op::erf:
        return times_da(make(Op::erf_slope, x.a));
      case Op::abs:
        return make(Op::abs_slope, x.a, da);
      case Op::relu:
        return make(Op::relu_slope, x.a, da);
      case Op::leaky:
        return make(Op::leaky_slope, x.a, da, x.c);
      default:
        return constant(0);
    }
  }
};

// A value's register is free again after its last use: a step may write over what it reads.
Program Nodes::compile(const std::vector<int>& roots) const {
  Program out;
  std::vector<int> last(list_.size(), -1), place(list_.size(), -1), free;
  std::vector<bool> moves(list_.size());  // has a number for each channel
  const auto in = below(roots);
  const int end = size();
  for (int i = 0; i < end; ++i) {
    if (!in[static_cast<std::size_t>(i)]) continue;
    const Node& x = (*this)[i];
    const int count = arity(x.op);
    moves[static_cast<std::size_t>(i)] = x.op == Op::variable;
    for (int t = 0; t < count; ++t) {
      const auto operand = static_cast<std::size_t>(t == 0 ? x.a : x.b);
      last[operand] = i;
      if (moves[operand]) moves[static_cast<std::size_t>(i)] = true;
    }
  }
  for (int root : roots) last[static_cast<std::size_t>(root)] = end;
  for (int i = 0; i < end; ++i)
    if (in[static_cast<std::size_t>(i)] && !moves[static_cast<std::size_t>(i)]) {
      const Node& x = (*this)[i];
      const int count = arity(x.op), to = kVariables + static_cast<int>(out.fixed.size());
      place[static_cast<std::size_t>(i)] = to;
      out.fixed.push_back({x.op, count > 0 ? place[static_cast<std::size_t>(x.a)] : 0,
                           count > 1 ? place[static_cast<std::size_t>(x.b)] : 0, x.c, to});
    }
  const int first = kVariables + static_cast<int>(out.fixed.size());
  for (int i = 0; i < end; ++i) {
    if (!in[static_cast<std::size_t>(i)] || !moves[static_cast<std::size_t>(i)]) continue;
    const Node& x = (*this)[i];
    int& to = place[static_cast<std::size_t>(i)];
    if (x.op == Op::variable) {
      to = x.a % kVariables;
      continue;
    }
    const int count = arity(x.op);
    const int a = place[static_cast<std::size_t>(x.a)], b = count > 1 ? place[static_cast<std::size_t>(x.b)] : a;
    if (a >= first && last[static_cast<std::size_t>(x.a)] == i) free.push_back(a);
    if (b >= first && b != a && last[static_cast<std::size_t>(x.b)] == i) free.push_back(b);
    if (free.empty())
      to = first + out.registers++;
    else
      to = free.back(), free.pop_back();
    out.steps.push_back({x.op, a, b, x.c, to});
  }
  for (int root : roots) out.outs.push_back({place[static_cast<std::size_t>(root)], false});
  return out;
}

// A program for several roots, of which 0 needs none; signs are left to those who add up.
Program program_of(const Nodes& nodes, std::vector<int> roots) {
  std::vector<int> live;
  std::vector<Out> outs;
  for (int root : roots) {
    const bool negative = nodes[root].op == Op::neg;
    if (negative) root = nodes[root].a;
    outs.push_back({nodes.is(root, 0) ? -1 : static_cast<int>(live.size()), negative});
    if (outs.back().place >= 0) live.push_back(root);
  }
  Program out = nodes.compile(live);
  for (Out& x : outs)
    if (x.place >= 0) x.place = out.outs[static_cast<std::size_t>(x.place)].place;
  out.outs = std::move(outs);
  return out;
}

enum Variable { q, k, e, a, s, p0, p1, p2 };  // of a term, and of a finish
static_assert(s == kVariables);

const std::vector<std::pair<std::string, Op>>& functions() {
  static const std::vector<std::pair<std::string, Op>> list{
      {"exp", Op::exp},         {"log", Op::log}, {"sqrt", Op::sqrt}, {"tanh", Op::tanh},   {"erf", Op::erf},
      {"sigmoid", Op::sigmoid}, {"abs", Op::abs}, {"relu", Op::relu}, {"leaky", Op::leaky}, {"square", Op::mul}};
  return list;
}

struct Parser {
  const std::string& text;
  Nodes nodes;
  std::size_t at = 0;
  int depth = 0;
  std::optional<int> term;                               // what sum(...) holds
  bool inside = false;                                   // of it
  std::optional<std::size_t> channel, scalar;            // where one was met outside
  std::optional<std::pair<float, bool>> starts[3] = {};  // of the learned scalars that were met; whether it was said

  void skip() {
    while (at < text.size() && (text[at] == ' ' || text[at] == '\t')) ++at;
  }
  bool take(char c) {
    skip();
    if (at == text.size() || text[at] != c) return false;
    ++at;
    return true;
  }
  std::string here() {
    skip();
    return at == text.size() ? "the end" : "'" + printable(text.substr(at, 1)) + "'";
  }
  void expect(char c) {
    if (!take(c)) fail_at(at, std::string("expected '") + c + "' before " + here());
  }

  int sum() {
    int left = product();
    for (skip(); at < text.size() && (text[at] == '+' || text[at] == '-'); skip()) {
      const std::size_t sign = at++;
      const int right = product();
      nodes.column = sign;
      left = nodes.make(text[sign] == '+' ? Op::add : Op::sub, left, right);
    }
    return left;
  }
  int product() {
    int left = value();
    for (skip(); at < text.size() && (text[at] == '*' || text[at] == '/'); skip()) {
      const std::size_t sign = at++;
      const int right = value();
      nodes.column = sign;
      left = nodes.make(text[sign] == '*' ? Op::mul : Op::div, left, right);
    }
    return left;
  }
  int value() {
    skip();
    const std::size_t begin = at;
    if (++depth > kMostDepth) fail_at(at, "more than 100 parentheses and signs inside each other");
    const int out = take('-') ? negative(begin) : take('(') ? inner() : word_or_number();
    --depth;
    return out;
  }
  int negative(std::size_t begin) {
    const int out = value();
    nodes.column = begin;
    return nodes.make(Op::neg, out);
  }
  int inner() {
    const int out = sum();
    expect(')');
    return out;
  }

  double number() {
    skip();
    double x = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), x);
    if (error != std::errc{} || !(std::abs(x) <= kLargest))
      fail_at(at, error == std::errc::invalid_argument ? "expected a number before " + here()
                                                       : "this number is out of range");
    at = static_cast<std::size_t>(end - text.data());
    return x;
  }

  int word_or_number() {
    auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
    auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    const std::size_t begin = at;
    if (at < text.size() && (is_digit(text[at]) || text[at] == '.')) {
      const double x = number();
      nodes.column = begin;
      return nodes.constant(x);
    }
    while (at < text.size() && (is_letter(text[at]) || (at > begin && is_digit(text[at])))) ++at;
    if (at == begin) fail_at(at, "expected a number, a name or '(' before " + here());
    return name(text.substr(begin, at - begin), begin);
  }

  int name(const std::string& word, std::size_t begin) {
    if (word.size() == 1)
      for (const Variable x : {q, k, e, a})
        if (word[0] == "qkea"[x]) {
          if (!inside && !channel) channel = begin;
          return nodes.variable(x);
        }
    if (word == "d") return nodes.width();
    for (const Variable p : {p0, p1, p2})
      if (word == "p" + std::to_string(p - p0)) return learned(p, begin);
    if (word == "sum") return whole(begin);
    std::vector<std::string> names{"q", "k", "e", "a", "d", "p0", "p1", "p2", "sum"};
    for (const auto& [name, op] : functions()) {
      names.push_back(name);
      if (name != word) continue;
      expect('(');
      const int x = sum();
      double slope = 0;
      if (op == Op::leaky) {
        expect(',');
        skip();
        const std::size_t second = at;
        const int y = sum();
        if (nodes[y].op != Op::constant) fail_at(second, "the slope of leaky must be a number");
        slope = nodes[y].c;
      }
      expect(')');
      nodes.column = begin;
      return op == Op::mul ? nodes.make(op, x, x) : nodes.make(op, x, 0, slope);
    }
    try {
      unknown("name", printable(word), names);
    } catch (const Error& error) {
      fail_at(begin, error.what());
    }
  }

  int learned(Variable p, std::size_t begin) {
    auto& start = starts[p - p0];
    if (take(':')) {
      skip();
      const std::size_t place = at;
      const bool negative = take('-');
      const float value = static_cast<float>(negative ? -number() : number());
      if (start && start->second && start->first != value) fail_at(place, "it begins at another number elsewhere");
      start = {value, true};
    } else if (!start) {
      start = {1.0f, false};
    }
    if (inside) refuse_scalar(begin);
    if (!scalar) scalar = begin;
    return nodes.variable(p);
  }
  [[noreturn]] void refuse_scalar(std::size_t begin) {
    fail_at(begin, "learned scalars stand outside the sum over channels, as in p0 * sum(q*k)");
  }

  int whole(std::size_t begin) {
    if (inside) fail_at(begin, "sum(...) does not stand inside sum(...)");
    if (term) fail_at(begin, "sum(...) stands once; put all that is summed inside it");
    expect('(');
    inside = true;
    term = sum();
    inside = false;
    expect(')');
    return nodes.variable(s);
  }
};

// Which nodes are never negative, whatever the variables are.
std::vector<bool> nonnegative(const Nodes& nodes, const std::optional<int>& term) {
  std::vector<bool> out(static_cast<std::size_t>(nodes.size()));
  for (int i = 0; i < nodes.size(); ++i) {
    const Node& x = nodes[i];
    auto is = [&](int operand) { return bool(out[static_cast<std::size_t>(operand)]); };
    bool here = false;
    switch (x.op) {
      case Op::variable:
        here = x.a == s && term && is(*term);
        break;
      case Op::constant:
        here = x.c >= 0;
        break;
      case Op::width:
      case Op::exp:
      case Op::sqrt:
      case Op::sigmoid:
      case Op::abs:
      case Op::relu:
        here = true;
        break;
      case Op::add:
      case Op::div:
        here = is(x.a) && is(x.b);
        break;
      case Op::mul:
        here = x.a == x.b || (is(x.a) && is(x.b));
        break;
      case Op::tanh:
      case Op::erf:
        here = is(x.a);
        break;
      case Op::leaky:
        here = is(x.a) || x.c <= 0;
        break;
      default:
        break;
    }
    out[static_cast<std::size_t>(i)] = here;
  }
  return out;
}

}  // namespace

void Program::fix(int width, double* to) const {
  for (std::size_t i = 0; i < fixed.size(); ++i) {
    const Step& x = fixed[i];
    to[i] = x.op == Op::constant ? x.c
            : x.op == Op::width  ? width
                                : value_of(x.op, to[x.a - kVariables], arity(x.op) > 1 ? to[x.b - kVariables] : 0, x.c);
  }
}

Formula parse(const std::string& given) {
  if (given.size() > kMostText)
    fail("the formula has " + std::to_string(given.size()) + " characters; it may have " + std::to_string(kMostText));
  Parser parser{given};
  Nodes& nodes = parser.nodes;
  int root = parser.sum();
  if (parser.here() != "the end") fail_at(parser.at, "expected '+', '-', '*', '/' or the end, not " + parser.here());
  if (parser.term && parser.channel) fail_at(*parser.channel, "q, k, e and a stand inside sum(...) where there is one");
  if (!parser.term && parser.scalar) parser.refuse_scalar(*parser.scalar);

  Formula out;
  const auto first = given.find_first_not_of(" \t"), last = given.find_last_not_of(" \t");
  out.text = given.substr(first, last + 1 - first);
  for (int i = 2; i >= 0; --i) {
    if (!parser.starts[i] && !out.start.empty())
      fail("the formula has p" + std::to_string(i + 1) + " and no p" + std::to_string(i));
    if (parser.starts[i]) out.start.insert(out.start.begin(), parser.starts[i]->first);
  }

  nodes.column = kNowhere;
  const int term = parser.term ? *parser.term : root, sum = nodes.variable(s);
  if (!parser.term) root = sum;
  out.has_finish = root != sum;
  out.nonnegative = nonnegative(nodes, parser.term ? parser.term : term)[static_cast<std::size_t>(root)];
  if (!nodes.reads(term, q) && !nodes.reads(term, k) && !nodes.reads(term, e))
    fail("the formula depends on none of q, k and e");
  if (!nodes.reads(root, s)) fail("the formula does not depend on its sum");
  out.reads_query = nodes.reads(term, q), out.reads_vector = nodes.reads(term, a);

  for (const bool with_edge : {false, true}) {
    int x = term;
    if (!with_edge) try {
        x = nodes.without(term, e);
      } catch (const Error&) {
        fail("the formula: e is 0 where edges have no features, and must be allowed to be");
      }
    Term& to = out.term[with_edge];
    const bool negative = nodes[x].op == Op::neg;
    if (negative) x = nodes[x].a;
    const bool product = nodes[x].op == Op::mul;
    to.sum = program_of(nodes, product ? std::vector{nodes[x].a, nodes[x].b} : std::vector{x});
    to.sum.outs[0].negative = negative;  // the factors of a product have none
    if (negative) x = nodes.make(Op::neg, x);
    const int dq = nodes.derive(x, q), dk = nodes.derive(x, k), da = nodes.derive(x, a), de = nodes.derive(x, e);
    to.row = program_of(nodes, {dq, da, de});
    to.column = program_of(nodes, {dk});
    to.both = program_of(nodes, {dq, da, dk});
  }
  std::vector<int> slopes{nodes.derive(root, s)};
  for (std::size_t i = 0; i < out.start.size(); ++i) slopes.push_back(nodes.derive(root, p0 + static_cast<int>(i)));
  slopes.push_back(root);
  out.finish = program_of(nodes, {root});
  out.finish_gradient = program_of(nodes, slopes);
  return out;
}

}  // namespace heed::formula
