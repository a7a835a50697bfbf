// NumPy's files: an array in .npy, named arrays in .npz, which is a zip archive of them. Headers are read by a strict
// grammar, never evaluated, and what a file claims is checked against what it holds before memory is asked for.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/array.h"
#include "graph/files.h"

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

// The same from bytes in memory; `file` is for messages.
Npz parse_npz(std::string_view bytes, const std::string& file);
Array parse_npy(std::string_view bytes, const std::string& file);
std::vector<std::string> npz_names(std::string_view bytes, const std::string& file);  // of the arrays, none is unpacked

// The bytes of an .npy. T is float, double, int32, int64 or uint8; the extents multiply to the elements, or Error is
// thrown.
template <class T>
std::string to_npy(const std::vector<Offset>& shape, std::span<const T> elements);
// The bytes of an .npz of arrays that are .npy already, by name.
std::string to_npz(const std::map<std::string, std::string>& arrays);

// Writes an .npy, whole or not at all.
template <class T>
void write_npy(const std::filesystem::path& path, const std::vector<Offset>& shape, std::span<const T> elements) {
  write_file(path, to_npy(shape, elements));
}

}  // namespace heed
