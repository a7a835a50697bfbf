// Where the files of a dataset lie, the files that a reader looks at, and a folder that is written whole or not at all.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "graph/files.h"

namespace heed {

// The folder that holds the file `probe`: of <place>/<name>, for each name, and <place>, the first that has it, where
// the places are `data` (if not empty), $HEED_DATA and the cache ($XDG_CACHE_HOME/heed or ~/.cache/heed). The first
// name is the dataset's. Throws Error naming the places looked at.
std::filesystem::path find_folder(const std::vector<std::string>& names, const std::string& probe,
                                  const std::filesystem::path& data);

// The same; empty where the file is nowhere.
std::filesystem::path look_for(const std::vector<std::string>& names, const std::string& probe,
                               const std::filesystem::path& data);

// The files of one dataset: of a folder, or bytes in memory under their names. A file "x.gz" stands for "x", unpacked.
class Files {
 public:
  Files(const std::filesystem::path& path);  // a folder; or a file, which is then the chosen one of its folder
  Files(std::string folder, std::map<std::string, std::string> bytes, std::string chosen = "");

  const std::string& chosen() const { return chosen_; }  // empty: the folder as a whole
  std::string title() const;                             // the folder's name, or the chosen file's, without endings
  std::string folder() const { return folder_.string(); }
  std::vector<std::string> list(const std::string& folder = "") const;  // what lies in it, sorted; folders too
  bool has(const std::string& name) const;                              // as a file
  std::string read(const std::string& name) const;
  std::string place(const std::string& name) const;  // for messages

 private:
  std::string stored(const std::string& name) const;  // with .gz where only that is there

  std::filesystem::path folder_;
  std::string chosen_;
  bool packed_ = false;  // the chosen one was named with its .gz: not the one beside it without
  std::shared_ptr<const std::map<std::string, std::string>> bytes_;  // none: on the disk
};

// A folder in the making. It grows beside its place as <path>.<process>.part; `commit` renames it into place, so that
// there is never a half-written one under its name. Without a commit nothing is left behind. Throws Error where
// something other than an empty folder is there already.
class NewFolder {
 public:
  explicit NewFolder(const std::filesystem::path& path);
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  ~NewFolder();

  const std::filesystem::path& path() const { return part_; }
  void commit();

 private:
  std::filesystem::path target_, part_;
};

// $XDG_CACHE_HOME/heed or ~/.cache/heed; empty where neither is known.
std::filesystem::path cache_folder();

}  // namespace heed
