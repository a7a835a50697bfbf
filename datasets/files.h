// Where the files of a dataset lie, and reading one whole.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace heed {

// The folder that holds the file `probe`: of <place>/<name> and <place>, the first that has it, where the places are
// `data` (if not empty), $HEED_DATA and the cache ($XDG_CACHE_HOME/heed or ~/.cache/heed). Throws Error naming the
// places looked at.
std::filesystem::path find_folder(const std::string& name, const std::string& probe, const std::filesystem::path& data);

// All bytes of a regular file. Throws Error naming the file and the reason.
std::string read_file(const std::filesystem::path& path);

// Text from a file as it may stand in a message: at most 60 characters, the unprintable ones as '?'.
std::string printable(std::string_view text);

}  // namespace heed
