// Tables and text for the terminal.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "cli/command.h"
#include "graph/error.h"

namespace heed::cli {
namespace {

std::size_t width_of(const std::string& text) {  // characters, not bytes
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::string table(const std::vector<std::vector<std::string>>& rows, bool markdown) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows)
    for (std::size_t c = 0; c < row.size(); ++c) {
      widths.resize(std::max(widths.size(), c + 1));
      widths[c] = std::max(widths[c], width_of(row[c]));
    }
  std::string out;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    out += markdown ? "|" : "";
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      std::string pad(widths[c] - width_of(rows[r][c]), ' ');
      out += markdown ? " " + rows[r][c] + pad + " |" : rows[r][c] + (c + 1 < rows[r].size() ? pad + "   " : "");
    }
    out += '\n';
    if (r == 0) {
      if (markdown) out += "|";
      for (std::size_t c = 0; c < widths.size(); ++c)
        if (markdown)
          out += std::string(widths[c] + 2, '-') + "|";
        else
          for (std::size_t t = 0; t < widths[c] + (c + 1 < widths.size() ? 3 : 0); ++t) out += "─";
      out += '\n';
    }
  }
  return out;
}

void note(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

void print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    fail(std::string("cannot write standard output: ") + std::strerror(errno));
}

}  // namespace heed::cli
