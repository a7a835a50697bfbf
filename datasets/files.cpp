// Looking for a dataset never writes anything: a place that is missing or closed is passed by.
#include "datasets/files.h"

#include <cstdlib>
#include <vector>

#include "graph/error.h"

namespace heed {
namespace fs = std::filesystem;
namespace {

fs::path variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? fs::path{} : fs::path{value};
}

std::vector<fs::path> places(const fs::path& data) {
  std::vector<fs::path> out{data, variable("HEED_DATA"), cache_folder()};
  std::erase_if(out, [](const fs::path& place) { return place.empty(); });
  return out;
}

}  // namespace

fs::path cache_folder() {
  fs::path base = variable("XDG_CACHE_HOME");
  if (base.is_relative()) base = variable("HOME").empty() ? fs::path{} : variable("HOME") / ".cache";
  return base.empty() ? base : base / "heed";
}

fs::path look_for(const std::string& name, const std::string& probe, const fs::path& data) {
  for (const fs::path& place : places(data))
    for (const fs::path& folder : {place / name, place}) {
      std::error_code none;  // a place that cannot be looked at is one without the file
      if (fs::exists(folder / probe, none)) return folder;
    }
  return {};
}

fs::path find_folder(const std::string& name, const std::string& probe, const fs::path& data) {
  if (fs::path found = look_for(name, probe, data); !found.empty()) return found;
  std::string looked;
  for (const fs::path& place : places(data)) looked += (looked.empty() ? "" : ", ") + place.string();
  fail("dataset '" + name + "' is missing: no " + name + "/" + probe + " or " + probe + " in " +
       (looked.empty() ? "any place (HEED_DATA is not set)" : looked) +
       "; set HEED_DATA to the folder that holds the datasets");
}

}  // namespace heed
