#include "sampling/expression.h"

#include <charconv>
#include <cmath>

#include "graph/files.h"

namespace heed {
namespace {

[[noreturn]] void fail_at(std::size_t at, const std::string& what) {
  fail("column " + std::to_string(at + 1) + ": " + what);
}

constexpr std::size_t kMostText = 2000;  // characters; depth and work are bounded by it

struct Parser {
  const std::string& text;
  std::size_t at = 0;
  int depth = 0;

  void skip() {
    while (at < text.size() && (text[at] == ' ' || text[at] == '\t')) ++at;
  }
  bool take(char c) {
    skip();
    if (at == text.size() || text[at] != c) return false;
    ++at;
    return true;
  }
  // What stands here, for messages.
  std::string here() {
    skip();
    return at == text.size() ? "the end" : "'" + printable(text.substr(at, 1)) + "'";
  }

  Expression operation(int level) {
    static constexpr char signs[] = {'|', '&', '-'};
    if (level == 3) return rule();
    Expression left = operation(level + 1);
    for (std::size_t sign = at; take(signs[level]); sign = at) {
      skip();
      Expression right = operation(level + 1);
      left = {std::string(1, signs[level]), static_cast<int>(sign) + 1, {}, {std::move(left), std::move(right)}};
    }
    return left;
  }

  Expression rule() {
    skip();
    const std::size_t begin = at;
    if (take('(')) {
      if (++depth > 100) fail_at(begin, "more than 100 parentheses inside each other");
      Expression inner = operation(0);
      if (!take(')')) fail_at(at, "expected ')' before " + here());
      --depth;
      return inner;
    }
    auto is_word = [&](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c >= '0' && c <= '9');
    };
    while (at < text.size() && is_word(text[at])) ++at;
    if (at == begin) fail_at(at, "expected a name or '(' before " + here());
    Expression out{text.substr(begin, at - begin), static_cast<int>(begin) + 1, {}, {}};
    if (!take('(') || take(')')) return out;  // all() is all
    do out.arguments.push_back(argument());
    while (take(','));
    if (!take(')')) fail_at(at, "expected ',' or ')' before " + here());
    return out;
  }

  Argument argument() {
    skip();
    Argument out{"", static_cast<int>(at) + 1};
    if (take('"')) {
      const std::size_t end = text.find('"', at);
      if (end == std::string::npos) fail_at(at - 1, "the quotation has no end");
      out.text = text.substr(at, end - at);
      at = end + 1;
      return out;
    }
    const std::size_t begin = at, end = std::min(text.find_first_of(",() \t\"", at), text.size());
    out.text = text.substr(begin, end - begin);
    if (out.text.empty()) fail_at(at, "expected an argument before " + here());
    at = end;
    return out;
  }
};

}  // namespace

Expression parse_expression(const std::string& text) {
  if (text.size() > kMostText)
    fail_at(kMostText, "an expression has at most " + std::to_string(kMostText) + " characters");
  Parser parser{text};
  Expression out = parser.operation(0);
  parser.skip();
  if (parser.at < text.size()) fail_at(parser.at, "expected '|', '&', '-' or the end, not " + parser.here());
  return out;
}

void Arguments::expect(std::size_t least, std::size_t most) const {
  if (count() < least || count() > most)
    fail("column " + std::to_string(rule_.column) + ": '" + rule_.name + "' has " + std::to_string(count()) +
         (count() == 1 ? " argument" : " arguments") + "; it is written " + usage_);
}

void Arguments::refuse(std::size_t i, const std::string& wanted) const {
  const Argument& a = rule_.arguments[i];
  fail("column " + std::to_string(a.column) + ": " + usage_ + " takes " + wanted + ", not '" + printable(a.text) + "'");
}

int Arguments::whole(std::size_t i, int low, int high) const {
  const std::string& text = rule_.arguments[i].text;
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < low || value > high)
    refuse(i, "a whole number of " + std::to_string(low) + " to " + std::to_string(high));
  return value;
}

double Arguments::number(std::size_t i) const {
  const std::string& text = rule_.arguments[i].text;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(value)) refuse(i, "a number");
  return value;
}

double Arguments::share(std::size_t i) const {
  const std::string& text = rule_.arguments[i].text;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !(value > 0 && value <= 1))
    refuse(i, "a share above 0, at most 1");
  return value;
}

const std::string& Arguments::text(std::size_t i) const {
  if (rule_.arguments[i].text.empty()) refuse(i, "text");
  return rule_.arguments[i].text;
}

bool Arguments::word(std::size_t i, const std::string& only) const {
  if (i >= count()) return false;
  if (rule_.arguments[i].text != only) refuse(i, "'" + only + "' here, or nothing");
  return true;
}

}  // namespace heed
