// Tables, and files that are written whole or not at all.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "cli/command.h"
#include "graph/error.h"

namespace heed::cli {
namespace {

std::size_t width_of(const std::string& text) {  // characters, not bytes
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

[[noreturn]] void cannot_write(const std::string& path, int error) {
  fail("cannot write " + path + ": " + std::strerror(error));
}

std::string beside(const std::string& path) { return path + fmt::format(".{}.part", getpid()); }

int open_beside(const std::string& path) {
  if (std::filesystem::is_directory(path)) cannot_write(path, EISDIR);
  int file = open(beside(path).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) cannot_write(path, errno);
  return file;
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

void check_writable(const std::string& path) {
  close(open_beside(path));
  unlink(beside(path).c_str());
}

void write_file(const std::string& path, const std::string& text) {
  int file = open_beside(path);
  int error = 0;
  for (std::size_t at = 0; at < text.size() && error == 0;) {
    ssize_t n = ::write(file, text.data() + at, text.size() - at);
    if (n > 0)
      at += static_cast<std::size_t>(n);
    else if (errno != EINTR)
      error = n < 0 ? errno : EIO;
  }
  if (error == 0 && fsync(file) != 0) error = errno;
  if (close(file) != 0 && error == 0) error = errno;
  if (error == 0 && std::rename(beside(path).c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    unlink(beside(path).c_str());
    cannot_write(path, error);
  }
  auto folder = std::filesystem::absolute(path).parent_path();
  int handle = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (handle >= 0) {
    fsync(handle);
    close(handle);
  }
}

void print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    cannot_write("standard output", errno);
}

}  // namespace heed::cli
