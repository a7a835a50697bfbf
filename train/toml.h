// TOML as a tree of text: tables in the order of the file, and every value as an option takes it on a command line.
#pragma once

#include <string>
#include <vector>

namespace heed {

struct TomlNode {
  enum class Kind { value, list, table } kind = Kind::value;
  std::string name, value;  // of what is in a list: no name
  std::string place;        // "run.toml, line 3"
  std::vector<TomlNode> inside = {};
};

// The tables of a file are at most so deep, lists are of values alone. Throws Error naming file and line where the text
// is not TOML or no such tree.
TomlNode toml_tree(const std::string& text, const std::string& file, int depth);

// A number as TOML writes it, always with a point or an exponent.
std::string text_of(double value);

}  // namespace heed
