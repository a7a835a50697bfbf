// Files, read whole, and written whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace heed {

// All bytes of a regular file. Throws Error naming the file and the reason.
std::string read_file(const std::filesystem::path& path);

// A file in the making. It grows beside its place as <path>.part; `commit` syncs it, renames it into place
// and syncs the folder, so that after a crash there is the old file or the new one, never half of one. Without a commit
// nothing is left behind. Links are followed and the old file's mode is kept; a device or a pipe is opened by the first
// write, and written into. Another writer of the same file waits. All throw Error naming the file and the reason.
class NewFile {
 public:
  explicit NewFile(const std::filesystem::path& path);
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile();

  void write(std::string_view bytes);
  void write(const void* bytes, std::size_t count) { write({static_cast<const char*>(bytes), count}); }
  void commit();

 private:
  void open_device();
  [[noreturn]] void give_up(int error);

  std::string name_;           // as the user wrote it, for messages
  std::string target_, part_;  // where it goes, and where it grows
  int file_ = -1;
  int mode_ = -1;        // of the file that is there
  bool device_ = false;  // or a pipe: never replaced
};

// Syncs `file`, which is open as `part`, renames it to `target` and syncs the folder. Returns 0 or what went wrong
// (errno).
int move_into_place(int file, const std::string& part, const std::string& target);

// All of the bytes, in as many writes as it takes. Returns 0 or what went wrong (errno).
int write_all(int file, std::string_view bytes);

void write_file(const std::filesystem::path& path, std::string_view bytes);
// Throws Error where write_file could not work, before hours are spent.
void check_writable(const std::filesystem::path& path);

// Text from a file as it may stand in a message: at most 60 characters, the unprintable ones as '?'.
std::string printable(std::string_view text);

}  // namespace heed
