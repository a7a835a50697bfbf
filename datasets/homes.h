// Where the files of public datasets come from. A dataset that is public gets one more entry in the list in homes.cpp.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "datasets/download.h"

namespace heed {

// The files of a dataset, at its home, or, where $HEED_MIRROR is set, at $HEED_MIRROR/<dataset>/<file>: a cache folder
// behind any web server is a mirror. None where heed knows no home.
std::vector<RemoteFile> remote_files(const std::string& dataset);

// $HEED_OFFLINE is set, and not to 0: nothing is downloaded.
bool offline();

// Makes sure that a dataset with a home lies in `data`, $HEED_DATA or the cache, under its name or in `folder`: where
// none has its first file, and where the cache holds but a part, what is missing is downloaded into <cache>/<dataset>.
void fetch(const std::string& dataset, const std::string& folder, const std::filesystem::path& data,
           const DownloadProgress& progress = {});

}  // namespace heed
