#include "graph/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "graph/error.h"

namespace heed {
namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) fail(path.string() + ": " + (error ? error.message() : "not a regular file"));
  auto size = fs::file_size(path, error);
  if (error) fail(path.string() + ": " + error.message());
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(path.string() + ": " + (errno != 0 ? std::strerror(errno) : "cannot be opened"));
  std::string bytes(size, '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(size));
  if (static_cast<std::uintmax_t>(in.gcount()) != size)
    fail(path.string() + ": ends after " + std::to_string(in.gcount()) + " of " + std::to_string(size) + " bytes");
  return bytes;
}

NewFile::NewFile(const fs::path& path) : name_(path.string()) {
  std::error_code error;
  target_ = fs::weakly_canonical(path, error).string();  // links stay links
  if (error || path.empty()) give_up(error ? error.value() : ENOENT);
  struct stat info {};
  if (stat(target_.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) give_up(EISDIR);
    if (access(target_.c_str(), W_OK) != 0) give_up(errno);
    device_ = !S_ISREG(info.st_mode);
    mode_ = static_cast<int>(info.st_mode & 07777);
  } else if (errno != ENOENT) {
    give_up(errno);
  }
  if (device_) return;
  // Always the same place, so that what a killed process left is overwritten; the lock keeps others out until then.
  part_ = target_ + ".part";
  for (struct stat locked{}, there{};;) {
    file_ = open(part_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (file_ < 0) break;
    while (flock(file_, LOCK_EX) != 0 && errno == EINTR) continue;
    const bool mine = fstat(file_, &locked) == 0 && stat(part_.c_str(), &there) == 0 && locked.st_ino == there.st_ino &&
                      locked.st_dev == there.st_dev;
    if (mine) break;
    close(file_);  // another one renamed or removed it while this one waited
  }
  if (file_ < 0) {
    const int error = errno;
    part_.clear();
    give_up(error);
  }
  if (ftruncate(file_, 0) != 0) give_up(errno);
}

NewFile::~NewFile() {
  if (!part_.empty()) unlink(part_.c_str());
  if (file_ >= 0) close(file_);
}

void NewFile::open_device() {
  if (!device_ || file_ >= 0) return;
  file_ = open(target_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
  if (file_ < 0) give_up(errno);
}

void NewFile::give_up(int error) {
  if (!part_.empty()) unlink(part_.c_str());
  if (file_ >= 0) close(file_);
  file_ = -1, part_.clear();
  fail("cannot write " + name_ + ": " + std::strerror(error));
}

void NewFile::write(std::string_view bytes) {
  open_device();
  if (const int error = write_all(file_, bytes); error != 0) give_up(error);
}

int write_all(int file, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(file, bytes.data(), bytes.size());
    if (n > 0)
      bytes.remove_prefix(static_cast<std::size_t>(n));
    else if (n == 0 || errno != EINTR)
      return n < 0 ? errno : EIO;
  }
  return 0;
}

void NewFile::commit() {
  open_device();
  if (device_) {
    const int file = std::exchange(file_, -1);
    if (close(file) != 0) give_up(errno);
    return;
  }
  if (mode_ >= 0 && fchmod(file_, static_cast<mode_t>(mode_)) != 0) give_up(errno);
  if (const int error = move_into_place(file_, part_, target_); error != 0) give_up(error);
  part_.clear();
  const int file = std::exchange(file_, -1);
  if (close(file) != 0) give_up(errno);
}

int move_into_place(int file, const std::string& part, const std::string& target) {
  if (fsync(file) != 0 || std::rename(part.c_str(), target.c_str()) != 0) return errno;
  const int folder = open(fs::path(target).parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return 0;  // a folder that may be written but not read
  const int error = fsync(folder) == 0 || errno == EINVAL ? 0 : errno;
  close(folder);
  return error;
}

void write_file(const fs::path& path, std::string_view bytes) {
  NewFile file(path);
  file.write(bytes);
  file.commit();
}

void check_writable(const fs::path& path) { NewFile file(path); }

std::string printable(std::string_view text) {
  std::string out;
  std::size_t at = 0;
  while (at < text.size() && out.size() < 60) {
    // UTF-8: how many bytes the first one announces, and whether they are there.
    const auto first = static_cast<unsigned char>(text[at]);
    const std::size_t length = first < 0x80                    ? 1
                               : first >= 0xc2 && first < 0xe0 ? 2
                               : first >= 0xe0 && first < 0xf0 ? 3
                               : first >= 0xf0 && first < 0xf5 ? 4
                                                               : 0;
    const std::string_view letter = text.substr(at, std::max<std::size_t>(length, 1));
    const bool whole = length > 0 && letter.size() == length &&
                       std::ranges::all_of(letter.substr(1), [](char c) { return (c & 0xc0) == 0x80; });
    // Nothing that a terminal obeys: U+0000 to U+001F and U+007F to U+009F.
    const bool obeyed = length == 1 ? first < ' ' || first == 127 : first == 0xc2 && letter.back() < '\xa0';
    if (whole && !obeyed) {
      out += letter;
      at += length;
    } else {
      out += '?';
      ++at;
    }
  }
  return at < text.size() ? out + "..." : out;
}

}  // namespace heed
