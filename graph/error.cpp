#include "graph/error.h"

#include <algorithm>
#include <numeric>

namespace heed {
namespace {

std::size_t distance(const std::string& a, const std::string& b) {  // Levenshtein's
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

std::vector<std::string> nearest(const std::string& name, const std::vector<std::string>& names) {
  std::vector<std::pair<std::size_t, std::string>> found;
  for (const auto& other : names) {
    std::size_t d = distance(name, other);
    if (d <= 1 + std::min(name.size(), other.size()) / 3) found.emplace_back(d, other);
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> out;
  for (std::size_t i = 0; i < std::min<std::size_t>(3, found.size()); ++i) out.push_back(found[i].second);
  return out;
}

void unknown(const std::string& kind, const std::string& name, const std::vector<std::string>& names) {
  auto near = nearest(name, names);
  std::string text = "unknown " + kind + " '" + name + "'; ";
  const auto& list = near.empty() ? names : near;
  text += near.empty() ? "there are " : "did you mean ";
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (i > 0) text += i + 1 < list.size() ? ", " : near.empty() ? " and " : " or ";
    text += list[i];
  }
  fail(text + (near.empty() ? "" : "?"));
}

std::size_t choose(const std::string& kind, const std::string& name, const std::vector<std::string>& names) {
  const auto at = std::find(names.begin(), names.end(), name);
  if (at == names.end()) unknown(kind, name, names);
  return static_cast<std::size_t>(at - names.begin());
}

}  // namespace heed
