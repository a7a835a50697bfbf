// Tables, and files that are written whole or not at all.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
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

// Where the text goes in the end: links are followed, so that they stay links.
struct Target {
  std::string path;
  bool device = false;  // or a pipe: written into, never replaced
  mode_t mode = 0666;   // of the file that is there
  bool exists = false;
};

Target target_of(const std::string& path) {
  Target out;
  std::error_code error;
  out.path = std::filesystem::weakly_canonical(path, error).string();
  if (error || path.empty()) cannot_write(path, error ? error.value() : ENOENT);
  struct stat info {};
  if (stat(out.path.c_str(), &info) != 0) {
    if (errno != ENOENT) cannot_write(path, errno);
    return out;
  }
  if (S_ISDIR(info.st_mode)) cannot_write(path, EISDIR);
  if (access(out.path.c_str(), W_OK) != 0) cannot_write(path, errno);
  out.exists = true;
  out.device = !S_ISREG(info.st_mode);
  out.mode = info.st_mode & 07777;
  return out;
}

std::string beside(const Target& target) { return target.path + fmt::format(".{}.part", getpid()); }

int open_for(const Target& target, const std::string& path) {
  int file = target.device ? open(target.path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY)
                           : open(beside(target).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
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
  const Target target = target_of(path);
  if (target.device) return;
  close(open_for(target, path));
  unlink(beside(target).c_str());
}

void write_file(const std::string& path, const std::string& text) {
  const Target target = target_of(path);
  const int file = open_for(target, path);
  int error = 0;
  for (std::size_t at = 0; at < text.size() && error == 0;) {
    ssize_t n = ::write(file, text.data() + at, text.size() - at);
    if (n > 0)
      at += static_cast<std::size_t>(n);
    else if (errno != EINTR)
      error = n < 0 ? errno : EIO;
  }
  if (!target.device && error == 0 && target.exists && fchmod(file, target.mode) != 0) error = errno;
  if (!target.device && error == 0 && fsync(file) != 0) error = errno;
  if (close(file) != 0 && error == 0) error = errno;
  if (!target.device && error == 0 && std::rename(beside(target).c_str(), target.path.c_str()) != 0) error = errno;
  if (error != 0) {
    if (!target.device) unlink(beside(target).c_str());
    cannot_write(path, error);
  }
  if (target.device) return;
  int folder = open(std::filesystem::path(target.path).parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    fsync(folder);
    close(folder);
  }
}

void note(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

void print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    cannot_write("standard output", errno);
}

}  // namespace heed::cli
