// NumPy's files: an array in .npy, named arrays in .npz, which is a zip archive of them. Headers are read by a strict
// grammar, never evaluated, and what a file claims is checked against what it holds before memory is asked for.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "datasets/array.h"

namespace heed {

struct Npz {
  std::string file;                     // for messages
  std::map<std::string, Array> arrays;  // by name, without the ending .npy

  bool contains(const std::string& name) const { return arrays.contains(name); }
  const Array& operator[](const std::string& name) const;  // throws Error naming the file and the nearest names
};

// Arrays of text and of Python objects are listed, but hold no bytes and throw when read. Throws Error naming the file,
// the entry and what is wrong with it; among what is wrong is an entry that would grow more than a thousandfold (beyond
// its first MiB) when unpacked.
Npz read_npz(const std::filesystem::path& path);
Array read_npy(const std::filesystem::path& path);

}  // namespace heed
