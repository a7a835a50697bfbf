// Files from the web, for the datasets that have a public home. Each is known by its size and SHA-256, so whatever a
// server sends, the file that appears is the right one or none.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

namespace heed {

struct RemoteFile {
  std::string name;  // of the file on disk
  std::string url;   // http or https
  std::uint64_t bytes = 0;
  std::string sha256;  // 64 hexadecimal digits
};

// What is going on, and how many bytes of how many there are; of 0 while it waits for another process.
using DownloadProgress = std::function<void(const std::string& what, std::uint64_t bytes, std::uint64_t of)>;

struct DownloadOptions {
  std::string what = "files";  // for `progress`
  DownloadProgress progress;
  int attempts = 4;                       // of one file, where trying again may help
  std::chrono::milliseconds pause{1000};  // before the second attempt, doubled for each further one
  std::chrono::seconds patience{30};      // for a connection, and with a server that sends less than 1 kB a second
};

// Fetches those of `files` that `folder` does not hold. A file grows as <name>.part, so that the next
// attempt, or the next process, goes on where the last one was cut off; whole and of the right SHA-256, it is synced
// and renamed. One process downloads into a folder at a time; others wait (for its file .lock) and find the files
// there. Certificates are verified, and https is never left for http. Throws Error naming the URL and what happened.
void download(std::span<const RemoteFile> files, const std::filesystem::path& folder,
              const DownloadOptions& options = {});

// 64 lower-case hexadecimal digits. Throws Error naming the file.
std::string sha256_of(const std::filesystem::path& path);

}  // namespace heed
