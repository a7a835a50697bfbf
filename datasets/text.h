// Text files of numbers: lines of fields, separated by commas, tabs or blanks. Lines may end in LF, CR LF or CR CR LF,
// and the file may open with a byte-order mark. Empty lines are passed over, and so are comments, after # or %, but for
// what they claim: "# Nodes: 34 Classes: 2". Fields may stand in double quotes.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "graph/csr.h"
#include "graph/files.h"

namespace heed {

class Table {
 public:
  // The first line that holds something decides on the separator (a comma, else a tab, else blanks), and it is a header
  // where its first field is a name: begins with a letter, or is empty beside others (inf and nan are numbers).
  Table(std::string_view text, std::string file);

  const std::vector<std::string>& header() const { return header_; }  // in small letters; empty: none
  int column(std::string_view name) const;                            // of the header; -1: none
  Offset claim(const std::string& key, Offset otherwise) const;       // of the comments read so far

  // Goes to the next line. Throws Error where it has not as many fields as the first one, unless `ragged`.
  bool next(bool ragged = false);
  int columns() const { return static_cast<int>(fields_.size()); }
  std::string_view operator[](int column) const { return fields_[column]; }
  Offset line() const { return line_; }  // from 1

  // A field as a number. Throws Error naming file, line and column.
  Offset whole(int column, const char* what, Offset low, Offset high) const;
  Id node(int column, Id nodes) const { return static_cast<Id>(whole(column, "node", 0, Offset{nodes} - 1)); }
  float real(int column, const char* what) const;
  [[noreturn]] void wrong(const std::string& what) const;
  [[noreturn]] void wrong(int column, const std::string& what) const;

 private:
  bool fetch();  // the next line that holds something
  void split(std::string_view text);

  std::string_view text_;
  std::string file_;
  std::size_t at_ = 0;
  Offset line_ = 0;
  char separator_ = 0;  // not known yet
  bool pending_ = false;
  std::size_t width_ = 0;
  std::vector<std::string> header_;
  std::vector<std::string_view> fields_;
  std::map<std::string, Offset> claims_;
};

// A number that a text holds and nothing else; false where it does not, or where T cannot hold it. No float is infinite
// or NaN; one too small for a float is 0.
bool parse(std::string_view text, Offset& out);
bool parse(std::string_view text, float& out);

void append(std::string& text, float x);  // the shortest text that reads back as x
inline void append(std::string& text, Offset x) { text += std::to_string(x); }

// A text file in the making, written piece by piece.
class Lines {
 public:
  explicit Lines(const std::filesystem::path& path) : file_(path) {}
  std::string& text() {  // to be appended to
    if (text_.size() > (std::size_t{1} << 20)) {
      file_.write(text_);
      text_.clear();
    }
    return text_;
  }
  void commit() {
    file_.write(text_);
    file_.commit();
  }

 private:
  NewFile file_;
  std::string text_;
};

}  // namespace heed
