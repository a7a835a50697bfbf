// Where the files of a dataset lie.
#pragma once

#include <filesystem>
#include <string>

#include "graph/files.h"

namespace heed {

// The folder that holds the file `probe`: of <place>/<name> and <place>, the first that has it, where the places are
// `data` (if not empty), $HEED_DATA and the cache ($XDG_CACHE_HOME/heed or ~/.cache/heed). Throws Error naming the
// places looked at.
std::filesystem::path find_folder(const std::string& name, const std::string& probe, const std::filesystem::path& data);

// The same; empty where the file is nowhere.
std::filesystem::path look_for(const std::string& name, const std::string& probe, const std::filesystem::path& data);

// $XDG_CACHE_HOME/heed or ~/.cache/heed; empty where neither is known.
std::filesystem::path cache_folder();

}  // namespace heed
