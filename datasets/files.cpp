// Looking for a dataset never writes anything: a place that is missing or closed is passed by.
#include "datasets/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "datasets/gz.h"
#include "graph/error.h"

namespace heed {
namespace fs = std::filesystem;
namespace {

fs::path variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? fs::path{} : fs::path{value};
}

}  // namespace

fs::path cache_folder() {
  fs::path base = variable("XDG_CACHE_HOME");
  if (base.is_relative()) base = variable("HOME").empty() ? fs::path{} : variable("HOME") / ".cache";
  return base.empty() ? base : base / "heed";
}

namespace {

std::vector<fs::path> places(const fs::path& data) {
  std::vector<fs::path> out{data, variable("HEED_DATA"), cache_folder()};
  std::erase_if(out, [](const fs::path& place) { return place.empty(); });
  return out;
}

void sync_folder(const fs::path& folder) {
  const int file = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return;  // a folder that may be written but not read
  const int error = fsync(file) == 0 ? 0 : errno;
  close(file);
  if (error != 0 && error != EINVAL) fail("cannot write " + folder.string() + ": " + std::strerror(error));
}

}  // namespace

fs::path look_for(const std::vector<std::string>& names, const std::string& probe, const fs::path& data) {
  for (const fs::path& place : places(data)) {
    std::vector<fs::path> folders;
    for (const std::string& name : names) folders.push_back(place / name);
    folders.push_back(place);
    std::error_code none;  // a place that cannot be looked at is one without the file
    for (const fs::path& folder : folders)
      if (fs::exists(folder / probe, none)) return folder;
  }
  return {};
}

fs::path find_folder(const std::vector<std::string>& names, const std::string& probe, const fs::path& data) {
  if (fs::path found = look_for(names, probe, data); !found.empty()) return found;
  std::string looked;
  for (const fs::path& place : places(data)) looked += (looked.empty() ? "" : ", ") + place.string();
  fail("dataset '" + names[0] + "' is missing: no " + names[0] + "/" + probe + " or " + probe + " in " +
       (looked.empty() ? "any place (HEED_DATA is not set)" : looked) +
       "; set HEED_DATA to the folder that holds the datasets" +
       (std::getenv("HEED_OFFLINE") ? " (downloads are off: HEED_OFFLINE)" : ""));
}

Files::Files(const fs::path& path) : folder_(path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return;
  if (!fs::exists(path, error)) fail(path.string() + ": " + (error ? error.message() : "no such file or folder"));
  folder_ = path.parent_path();
  chosen_ = path.filename().string();
  packed_ = chosen_.ends_with(".gz");
  if (packed_) chosen_.resize(chosen_.size() - 3);
}

Files::Files(std::string folder, std::map<std::string, std::string> bytes, std::string chosen)
    : folder_(std::move(folder)),
      chosen_(std::move(chosen)),
      bytes_(std::make_shared<const std::map<std::string, std::string>>(std::move(bytes))) {}

std::string Files::title() const {
  if (!chosen_.empty()) return chosen_.substr(0, chosen_.find('.', 1));
  std::error_code error;
  fs::path whole = bytes_ ? folder_ : fs::weakly_canonical(folder_, error);
  if (error) whole = folder_;
  if (!whole.has_filename()) whole = whole.parent_path();
  return whole.has_filename() ? whole.filename().string() : "dataset";
}

std::vector<std::string> Files::list(const std::string& folder) const {
  std::set<std::string> out;
  auto add = [&](std::string name) {
    if (name.size() > 3 && name.ends_with(".gz")) name.resize(name.size() - 3);
    out.insert(std::move(name));
  };
  if (bytes_) {
    const std::string within = folder.empty() ? "" : folder + "/";
    for (const auto& [name, bytes] : *bytes_)
      if (name.starts_with(within)) add(name.substr(within.size(), name.find('/', within.size()) - within.size()));
  } else {
    std::error_code error;
    const fs::path where = folder_.empty() ? fs::path(".") : folder_;
    for (fs::directory_iterator at(where / folder, error), end; !error && at != end; at.increment(error))
      add(at->path().filename().string());
  }
  return {out.begin(), out.end()};
}

std::string Files::stored(const std::string& name) const {
  for (const char* ending : {"", ".gz"}) {
    if (packed_ && name == chosen_ && *ending == 0) continue;
    std::error_code none;
    if (bytes_ ? bytes_->contains(name + ending) : fs::is_regular_file(folder_ / (name + ending), none))
      return name + ending;
  }
  return {};
}

bool Files::has(const std::string& name) const { return !stored(name).empty(); }

std::string Files::place(const std::string& name) const {
  std::string there = stored(name);
  return (folder_ / (there.empty() ? name : there)).string();
}

std::string Files::read(const std::string& name) const {
  const std::string there = stored(name);
  if (bytes_ && there.empty()) fail(place(name) + ": No such file or directory");
  std::string bytes = bytes_ ? bytes_->at(there) : read_file(folder_ / (there.empty() ? name : there));
  return there != name && !there.empty() ? gunzip(bytes, place(name)) : bytes;
}

NewFolder::NewFolder(const fs::path& path) : target_(path) {
  std::error_code error;
  if (!target_.has_filename()) target_ = target_.parent_path();  // "folder/"
  if (target_.empty()) fail("cannot write '" + path.string() + "': it names no folder");
  if (fs::exists(fs::symlink_status(target_, error)) &&
      !(fs::is_directory(target_, error) && fs::is_empty(target_, error) && !error))
    fail("cannot write " + target_.string() + ": it is there already");
  part_ = target_.string() + "." + std::to_string(getpid()) + ".part";
  fs::remove_all(part_, error);  // of a process that was killed
  if (!fs::create_directory(part_, error)) {
    part_.clear();
    fail("cannot write " + target_.string() + ": " + (error ? error.message() : "its place is taken"));
  }
}

NewFolder::~NewFolder() {
  std::error_code error;
  if (!part_.empty()) fs::remove_all(part_, error);
}

void NewFolder::commit() {
  sync_folder(part_);
  if (std::rename(part_.c_str(), target_.c_str()) != 0)
    fail("cannot write " + target_.string() + ": " + std::strerror(errno));
  part_.clear();
  sync_folder(target_.has_parent_path() ? target_.parent_path() : fs::path("."));
}

}  // namespace heed
