// What tests of files share: a folder of their own, an error's message, and the public data.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "graph/error.h"

namespace heed::test {

// A folder of the test's own, gone with it.
struct Scratch {
  std::filesystem::path path;
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "heed-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no folder for temporary files");
    path = name;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::filesystem::remove_all(path); }

  std::filesystem::path write(const std::string& name, const std::string& bytes) const {
    std::filesystem::remove(path / name);  // a new file is written at once, one written over is flushed to the disk
    std::ofstream(path / name, std::ios::binary) << bytes;
    return path / name;
  }
  std::vector<std::string> list() const {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator(path)) out.push_back(entry.path().filename().string());
    std::sort(out.begin(), out.end());
    return out;
  }
};

// The bytes of a file; none where there is no file.
inline std::string contents(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Of the Error that `act` ends with; empty: none.
template <class Act>
std::string message(Act act) {
  try {
    act();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Where the public data lies; empty: nowhere.
inline std::filesystem::path public_data() {
  const char* set = std::getenv("HEED_DATA");
  return set && std::filesystem::exists(set) ? set : "";
}

}  // namespace heed::test
