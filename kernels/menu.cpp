// The menus as lists.
#include "kernels/menu.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "graph/error.h"
#include "kernels/formula.h"

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
    std::apply([&](auto... score) { (out.push_back(make_score(score)), ...); }, VectorScores{});
    return out;
  }();
  return menu;
}

const std::vector<Normaliser>& normaliser_menu() {
  static const auto menu = std::apply(
      [](auto... normaliser) { return std::vector<Normaliser>{make_normaliser(normaliser)...}; }, Normalisers{});
  return menu;
}

void scores::SoftDtw::refuse_steps(int steps, int width) {
  fail("the score 'softdtw': " + std::to_string(width) + " channels a head do not divide into " +
       std::to_string(steps) + " steps");
}

Score with_temperature(Score score, double temperature, bool learned) {
  if (!(temperature > 0) || !std::isfinite(temperature))
    fail("a temperature must be above 0, not " + std::to_string(temperature));
  if (score.tempered) fail("the score '" + score.name + "' has a learned temperature already");
  if (!learned && temperature == 1) return score;
  score.kinked = false;
  if (!learned) {
    score.scale /= temperature;
    return score;
  }
  score.tempered = true;
  ++score.scalars;
  score.start.push_back(static_cast<float>(std::log(temperature)));
  return score;
}

void check(const Score& score, const Normaliser& normaliser) {
  if (normaliser.nonnegative && !score.nonnegative)
    fail("the normaliser '" + normaliser.name + "' takes scores that are never negative, as gaussian's; those of '" +
         score.name + "' have signs");
}

Score score_named(const std::string& text) {
  const auto [name, filter] = split_filter(text);
  auto in_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; };
  const bool one_word = std::all_of(name.begin(), name.end(), in_word) && name.size() <= 60;
  const bool channel = name == "q" || name == "k" || name == "e";
  if (one_word && !channel) return with_filter(named("score", score_menu(), name), filter);
  try {
    return with_filter(score_formula(name), filter);
  } catch (const Error& error) {  // it may have been meant as a name
    std::vector<std::string> names;
    for (const Score& score : score_menu()) names.push_back(score.name);
    std::string near;
    if (name.size() <= 60)
      for (const std::string& other : nearest(name, names))
        near += (near.empty() ? "; or was it the score " : " or ") + other;
    fail(error.what() + near + (near.empty() ? "" : "?"));
  }
}
const Normaliser& normaliser_named(const std::string& name) { return named("normaliser", normaliser_menu(), name); }

}  // namespace heed
