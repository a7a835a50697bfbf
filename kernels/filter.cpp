#include "kernels/filter.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "graph/error.h"
#include "graph/files.h"
#include "kernels/score.h"

namespace heed {
namespace {

constexpr const char* kNames[] = {"topk", "above"};

[[noreturn]] void fail_at(std::size_t at, const std::string& what) {
  fail("column " + std::to_string(at + 1) + ": " + what);
}

bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c >= '0' && c <= '9'); }
bool is_blank(char c) { return c == ' ' || c == '\t'; }

// Where the characters of one kind begin that end at `end`.
template <class Is>
std::size_t begin_of(const std::string& text, std::size_t end, Is is) {
  while (end > 0 && is(text[end - 1])) --end;
  return end;
}

template <class Number>
bool read(const std::string& text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

// The filter `name`(`argument`), which begin at these places of the whole text.
Filter filter_of(const std::string& name, std::size_t at, const std::string& argument, std::size_t argument_at) {
  Filter out;
  auto refuse = [&](const char* wanted) { fail_at(argument_at, wanted + (", not '" + printable(argument)) + "'"); };
  if (name == "topk") {
    if (!read(argument, out.topk) || out.topk < 1) refuse("topk(k) takes a whole number of 1 to 2147483647");
  } else if (name == "above") {
    if (!read(argument, out.above) || !std::isfinite(out.above)) refuse("above(x) takes a number");
  } else {
    try {
      unknown("filter", name, {std::begin(kNames), std::end(kNames)});
    } catch (const Error& error) {
      fail_at(at, error.what());
    }
  }
  return out;
}

Filter both(const Filter& a, const Filter& b) {
  return {a.topk == 0 || b.topk == 0 ? std::max(a.topk, b.topk) : std::min(a.topk, b.topk), std::max(a.above, b.above)};
}

}  // namespace

std::string text_of(const Filter& filter) {
  std::string out;
  if (filter.topk > 0) out += " topk(" + std::to_string(filter.topk) + ")";
  if (filter.above > -__builtin_inf()) {
    char number[32];
    out += " above(" + std::string(number, std::to_chars(number, number + sizeof number, filter.above).ptr) + ")";
  }
  return out;
}

FilteredText split_filter(const std::string& text) {
  FilteredText out{text, {}};
  for (std::string& rest = out.score;;) {
    const std::size_t end = begin_of(rest, rest.size(), is_blank);
    const bool call = end > 0 && rest[end - 1] == ')';
    const std::size_t open = call ? rest.rfind('(', end) : end;
    if (open == std::string::npos) return out;
    const std::size_t name_end = begin_of(rest, open, is_blank), name = begin_of(rest, name_end, is_word);
    const std::size_t score_end = begin_of(rest, name, is_blank);
    if (name == name_end || score_end == name || score_end == 0) return out;
    if (!is_word(rest[score_end - 1]) && rest[score_end - 1] != ')') return out;
    const std::string word = rest.substr(name, name_end - name);
    if (!call && std::count(std::begin(kNames), std::end(kNames), word) == 0) return out;
    std::size_t first = std::min(open + 1, end), last = std::max(first, begin_of(rest, call ? end - 1 : end, is_blank));
    while (first < last && is_blank(rest[first])) ++first;
    out.filter = both(out.filter, filter_of(word, name, rest.substr(first, last - first), first));
    rest.resize(score_end);
  }
}

Score with_filter(Score score, const Filter& filter) {
  if (filter.topk < 0) fail("topk(k) takes a whole number of 1 to 2147483647, not " + std::to_string(filter.topk));
  if (!(filter.above < __builtin_inf())) fail("above(x) takes a number, not " + std::to_string(filter.above));
  score.name += text_of(filter);
  score.filter = both(score.filter, filter);
  return score;
}

const std::vector<FilterEntry>& filter_menu() {
  static const std::vector<FilterEntry> menu{
      {"topk(k)", {"the k keys of highest s of a row and head", "arXiv:1912.11637", "a selection a row"}},
      {"above(x)", {"s > x", "arXiv:2502.08363", "a comparison an edge"}},
  };
  return menu;
}

}  // namespace heed
