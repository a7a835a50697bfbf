// The formats of datasets: how each is known by its contents, read and, some, written. A new one is a file with these
// functions and an entry in the list in formats.cpp.
#pragma once

#include <string>
#include <vector>

#include "datasets/dataset.h"
#include "datasets/files.h"

namespace heed {

struct Format {
  const char* name;
  const char* about;                 // one line
  bool (*fits)(const Files& files);  // by names and contents
  Dataset (*read)(const Files& files);
  void (*write)(const Dataset& d, const std::filesystem::path& path) = nullptr;  // none: it is only read
  bool one_file = false;                                                         // written as a file, not a folder
};
const std::vector<Format>& formats();
const Format& format_named(const std::string& name);
std::vector<std::string> writable_formats();

// A dataset from a folder or a file of any of the formats, checked. Throws Error naming file and place where it is
// broken, has no nodes, or is of no known format.
Dataset read_dataset(const Files& files);

// Writes a dataset, whole or not at all, where nothing is yet. Throws Error where the format cannot hold all of it.
void write_dataset(const Dataset& d, const std::filesystem::path& path, const std::string& format);

}  // namespace heed
