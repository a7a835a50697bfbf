// The menus as lists.
#include "kernels/menu.h"

#include "graph/error.h"

namespace heed {
namespace {

template <class Entry>
const Entry& named(const char* kind, const std::vector<Entry>& menu, const std::string& name) {
  std::vector<std::string> names;
  for (const Entry& entry : menu) {
    if (entry.name == name) return entry;
    names.push_back(entry.name);
  }
  unknown(kind, name, names);
}

}  // namespace

const std::vector<Score>& score_menu() {
  static const auto menu = [] {
    std::vector<Score> out(std::tuple_size_v<Scores>);
    enter_scores<0>(out), enter_scores<1>(out), enter_scores<2>(out), enter_scores<3>(out);
    return out;
  }();
  return menu;
}

const std::vector<Normaliser>& normaliser_menu() {
  static const auto menu = std::apply(
      [](auto... normaliser) { return std::vector<Normaliser>{make_normaliser(normaliser)...}; }, Normalisers{});
  return menu;
}

const Score& score_named(const std::string& name) { return named("score", score_menu(), name); }
const Normaliser& normaliser_named(const std::string& name) { return named("normaliser", normaliser_menu(), name); }

}  // namespace heed
