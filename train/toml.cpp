#include "train/toml.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <sstream>

#include "graph/error.h"

namespace heed {
namespace {

std::string place_of(const toml::source_region& at, const std::string& file) {
  return file + ", line " + std::to_string(at.begin.line);
}

TomlNode tree_of(std::string name, const toml::node& node, const std::string& file, int depth, bool in_list) {
  TomlNode out{.name = std::move(name), .value = "", .place = place_of(node.source(), file)};
  const std::string what = in_list ? "what is in a list" : out.name;
  if (auto string = node.value_exact<std::string>()) {
    out.value = *string;
  } else if (auto integer = node.value_exact<std::int64_t>()) {
    out.value = std::to_string(*integer);
  } else if (auto real = node.value_exact<double>()) {
    out.value = text_of(*real);
  } else if (auto boolean = node.value_exact<bool>()) {
    out.value = *boolean ? "true" : "false";
  } else if (const auto* list = node.as_array(); list != nullptr && depth > 0 && !in_list) {
    out.kind = TomlNode::Kind::list;
    for (const auto& item : *list) out.inside.push_back(tree_of("", item, file, depth, true));
  } else if (const auto* table = node.as_table(); table != nullptr && depth > 0 && !in_list) {
    out.kind = TomlNode::Kind::table;
    std::vector<std::pair<std::pair<toml::source_index, toml::source_index>, TomlNode>> rows;
    for (const auto& [key, inner] : *table) {
      const auto begin = inner.source().begin;
      rows.push_back({{begin.line, begin.column}, tree_of(std::string(key.str()), inner, file, depth - 1, false)});
    }
    std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& row : rows) out.inside.push_back(std::move(row.second));
  } else {
    fail(out.place + ": " + what + " must be a number, a truth value or text");
  }
  return out;
}

}  // namespace

TomlNode toml_tree(const std::string& text, const std::string& file, int depth) {
  // A name of that many parts is a table of that many levels, and the parser goes as deep.
  std::istringstream all(text);
  int number = 0;
  for (std::string line; std::getline(all, line);)
    if (++number; std::count(line.begin(), line.end(), '.') > 10000)
      fail(file + ", line " + std::to_string(number) + ": has more than 10000 dots");
  try {
    return tree_of("", toml::parse(text, file), file, depth, false);
  } catch (const toml::parse_error& e) {
    std::string why(e.description());
    for (char& c : why)
      if (c < ' ') c = ' ';
    fail(place_of(e.source(), file) + ": " + why);
  }
}

std::string text_of(double value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  std::string out(buffer, end);
  return out.find_first_of(".e") == std::string::npos ? out + ".0" : out;
}

}  // namespace heed
