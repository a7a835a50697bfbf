#include "datasets/text.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

namespace heed {
namespace {

template <class T>
std::errc from_chars(std::string_view text, T& out) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end != text.data() + text.size() ? std::errc::invalid_argument : error;
}

std::string_view trimmed(std::string_view text) {
  auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

bool is_name(std::string_view text) {
  double number = 0;
  const auto first = static_cast<unsigned char>(text.empty() ? ' ' : text[0]);
  const bool letter = std::isalpha(first) || first == '_' || first >= 0xc2;  // UTF-8
  return letter && from_chars(text, number) == std::errc::invalid_argument;
}

std::string is_not(std::string_view what) {
  const bool vowel = std::string_view("aeiou").find(what[0]) != std::string_view::npos;
  return (vowel ? "is not an " : "is not a ") + std::string(what);
}

}  // namespace

bool parse(std::string_view text, Offset& out) { return from_chars(text, out) == std::errc{}; }

bool parse(std::string_view text, float& out) {
  std::errc error = from_chars(text, out);
  if (error == std::errc::result_out_of_range) {  // too large, or so small that it is nothing
    double wide = 0;
    error = from_chars(text, wide);
    if (error == std::errc{} && std::abs(wide) > 1) return false;
    if (error == std::errc{}) out = static_cast<float>(wide);
  }
  return error == std::errc{} && std::isfinite(out);
}

void append(std::string& text, float x) {
  char buffer[32];
  auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, x);
  text.append(buffer, end);
}

Table::Table(std::string_view text, std::string file) : text_(text), file_(std::move(file)) {
  if (text_.starts_with("\xef\xbb\xbf")) text_.remove_prefix(3);
  if (!fetch()) return;
  auto binary = [](std::string_view field) {
    return std::ranges::any_of(field, [](char c) { return (c >= 0 && c < ' ') || c == 127; });
  };
  pending_ =
      std::ranges::any_of(fields_, binary) || !(is_name(fields_[0]) || (fields_[0].empty() && fields_.size() > 1));
  width_ = fields_.size();
  if (!pending_)
    for (auto field : fields_) header_.push_back(lower(field));
}

int Table::column(std::string_view name) const {
  auto at = std::find(header_.begin(), header_.end(), name);
  return at == header_.end() ? -1 : static_cast<int>(at - header_.begin());
}

Offset Table::claim(const std::string& key, Offset otherwise) const {
  auto at = claims_.find(key);
  return at == claims_.end() ? otherwise : at->second;
}

void Table::wrong(const std::string& what) const { fail(file_ + ", line " + std::to_string(line_) + ": " + what); }

void Table::wrong(int column, const std::string& what) const {
  fail(file_ + ", line " + std::to_string(line_) + ", column " + std::to_string(column + 1) + ": '" +
       printable(fields_[column]) + "' " + what);
}

void Table::split(std::string_view text) {
  fields_.clear();
  auto add = [&](std::string_view field) {
    field = trimmed(field);
    if (field.size() >= 2 && field.front() == '"' && field.back() == '"') field = field.substr(1, field.size() - 2);
    fields_.push_back(field);
  };
  if (separator_ == 0)
    separator_ = text.find(',') != std::string_view::npos    ? ','
                 : text.find('\t') != std::string_view::npos ? '\t'
                                                             : ' ';
  for (std::size_t at = 0; at <= text.size();) {
    std::size_t end =
        std::min(separator_ == ' ' ? text.find_first_of(" \t", at) : text.find(separator_, at), text.size());
    if (separator_ != ' ' || end > at) add(text.substr(at, end - at));
    at = end + 1;
  }
}

bool Table::fetch() {
  while (at_ < text_.size()) {
    const std::size_t end = std::min(text_.find('\n', at_), text_.size());
    std::string_view line = trimmed(text_.substr(at_, end - at_));
    at_ = end + 1;
    ++line_;
    if (line.empty()) continue;
    if (line[0] != '#' && line[0] != '%') {
      if (line.find('\r') != std::string_view::npos) wrong("lines end in LF or CR LF, not in CR alone");
      split(line);
      return true;
    }
    std::string key;  // of a claim, whose number follows
    for (std::size_t from = 1; from < line.size();) {
      const std::size_t to = std::min(line.find_first_of(" \t", from), line.size());
      std::string_view word = line.substr(from, to - from);
      Offset value = 0;
      if (!key.empty() && parse(word, value)) claims_[key] = value;
      if (!word.empty()) key = word.back() == ':' && claims_.size() < 100 ? lower(word.substr(0, word.size() - 1)) : "";
      from = to + 1;
    }
  }
  return false;
}

bool Table::next(bool ragged) {
  if (pending_)
    pending_ = false;
  else if (!fetch())
    return false;
  if (!ragged && fields_.size() != width_)
    wrong(std::to_string(fields_.size()) + " fields, but the first line has " + std::to_string(width_));
  return true;
}

Offset Table::whole(int column, const char* what, Offset low, Offset high) const {
  Offset out = 0;
  if (!parse(fields_[column], out)) wrong(column, is_not(what) + ", which is a whole number");
  if (out < low || out > high)
    wrong(column, is_not(what) + ": it is outside " + std::to_string(low) + ".." + std::to_string(high));
  return out;
}

float Table::real(int column, const char* what) const {
  float out = 0;
  if (!parse(fields_[column], out)) wrong(column, is_not(what) + ", which is a finite number");
  return out;
}

}  // namespace heed
