// Tables and text for the terminal.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>

#include "cli/command.h"
#include "graph/error.h"

namespace heed::cli {
namespace {

std::size_t width_of(const std::string& text) {  // characters, not bytes
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string replaced(const std::string& text, const std::function<std::string(char)>& with) {
  std::string out;
  for (char c : text) out += with(c);
  return out;
}

std::string written(const Cell& cell, Style style) {
  auto one = [](char c) { return std::string(1, c); };
  switch (style) {
    case Style::plain:
      return cell.text + (cell.strong ? " *" : "");
    case Style::csv: {
      if (cell.text.find_first_of(",\"\r\n") == std::string::npos) return cell.text;
      return "\"" + replaced(cell.text, [&](char c) { return c == '"' ? "\"\"" : one(c); }) + "\"";
    }
    case Style::markdown: {
      std::string text = replaced(cell.text, [&](char c) {
        return std::string("\\|*`<").find(c) != std::string::npos ? "\\" + one(c) : one(c);
      });
      return cell.strong ? "**" + text + "**" : text;
    }
    case Style::latex: {
      std::string text = replaced(cell.text, [&](char c) -> std::string {
        if (std::string("&%$#_{}").find(c) != std::string::npos) return "\\" + one(c);
        return c == '\\'  ? "\\textbackslash{}"
               : c == '~' ? "\\textasciitilde{}"
               : c == '^' ? "\\textasciicircum{}"
               : c == '|' ? "\\textbar{}"
               : c == '<' ? "\\textless{}"
               : c == '>' ? "\\textgreater{}"
                          : one(c);
      });
      for (std::size_t at; (at = text.find("±")) != std::string::npos;)
        text.replace(at, std::string("±").size(), "$\\pm$");
      return cell.strong ? "\\textbf{" + text + "}" : text;
    }
  }
  return cell.text;
}

std::string joined(const std::vector<std::string>& row, const char* between) {
  std::string out;
  for (std::size_t c = 0; c < row.size(); ++c) out += (c > 0 ? between : "") + row[c];
  return out;
}

}  // namespace

std::string table(const std::vector<std::vector<Cell>>& cells, Style style) {
  std::vector<std::vector<std::string>> rows;
  std::vector<std::size_t> widths;
  for (const auto& row : cells) {
    rows.emplace_back();
    for (std::size_t c = 0; c < row.size(); ++c) {
      rows.back().push_back(written(row[c], style));
      widths.resize(std::max(widths.size(), c + 1));
      widths[c] = std::max(widths[c], width_of(rows.back()[c]));
    }
  }
  std::string out;
  if (style == Style::csv) {
    for (const auto& row : rows) out += joined(row, ",") + "\n";
    return out;
  }
  if (style == Style::latex) {
    out = "\\begin{tabular}{l" + std::string(widths.empty() ? 0 : widths.size() - 1, 'r') + "}\n\\hline\n";
    for (std::size_t r = 0; r < rows.size(); ++r)
      out += joined(rows[r], " & ") + " \\\\\n" + (r == 0 ? "\\hline\n" : "");
    return out + "\\hline\n\\end{tabular}\n";
  }
  const bool markdown = style == Style::markdown;
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

std::string table(const std::vector<std::vector<std::string>>& rows, bool markdown) {
  std::vector<std::vector<Cell>> cells;
  for (const auto& row : rows) {
    cells.emplace_back();
    for (const auto& text : row) cells.back().push_back({text});
  }
  return table(cells, markdown ? Style::markdown : Style::plain);
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
