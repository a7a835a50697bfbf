// The one exception of heed. Its text is a sentence for the user: it names the file, the row and the value.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace heed {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const std::string& message) { throw Error(message); }

// The names nearest to `name` (edit distance, then order), at most three; those too far away are left out.
std::vector<std::string> nearest(const std::string& name, const std::vector<std::string>& names);

// Throws "unknown score 'dto'; did you mean dot or gat?", or lists all names where none is near.
[[noreturn]] void unknown(const std::string& kind, const std::string& name, const std::vector<std::string>& names);

// Where `name` stands among `names`; throws as `unknown` does where it does not.
std::size_t choose(const std::string& kind, const std::string& name, const std::vector<std::string>& names);

}  // namespace heed
