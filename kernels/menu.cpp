// The menus as lists.
#include "kernels/menu.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "graph/files.h"
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
  const std::string all = "the score 'softdtw': " + std::to_string(width) + " channels a head ";
  if (steps == 0) steps = width;
  if (steps > 0 && width % steps == 0)
    fail(all + "are a series of " + std::to_string(steps) + " steps, and at most " + std::to_string(kMostSteps) +
         " run; softdtw(STEPS) takes fewer");
  fail(all + "do not divide into " + std::to_string(steps) + " steps");
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

namespace {

// softdtw(steps) or softdtw(steps, gamma).
Score softdtw_named(const std::string& text) {
  scores::SoftDtw out;
  const char *at = text.data() + text.find('(') + 1, *end = text.data() + text.size();
  auto skip = [&](char c) {
    while (at != end && *at == ' ') ++at;
    return at != end && *at == c ? (++at, true) : false;
  };
  auto number = [&](auto& value) {
    skip(' ');
    const auto [rest, error] = std::from_chars(at, end, value);
    at = rest;
    return error == std::errc{};
  };
  const bool steps = number(out.steps) && out.steps > 0;
  const bool gamma = steps && (!skip(',') || (number(out.gamma) && out.gamma > 0 && std::isfinite(out.gamma)));
  if (!gamma || !skip(')') || at != end)
    fail("softdtw takes a number of steps, 1 or more, and may take a gamma above 0, as softdtw(8, 0.5), not '" +
         printable(text) + "'");
  Score score = make_score(out);
  score.name = text;
  return score;
}

}  // namespace

Score score_named(const std::string& text) {
  const auto [name, filter] = split_filter(text);
  auto in_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; };
  const bool one_word = std::all_of(name.begin(), name.end(), in_word) && name.size() <= 60;
  const bool channel = name == "q" || name == "k" || name == "e";
  if (name.rfind("softdtw(", 0) == 0) return with_filter(softdtw_named(name), filter);
  if (one_word && !channel) return with_filter(named("score", score_menu(), name), filter);
  try {
    return with_filter(score_formula(name), filter);
  } catch (const Error& error) {  // it may have been meant as a name
    std::vector<std::string> names;
    for (const Score& score : score_menu()) names.push_back(score.name);
    const auto end = static_cast<std::size_t>(std::find_if_not(name.begin(), name.end(), in_word) - name.begin());
    if (std::count(names.begin(), names.end(), name.substr(0, end)) > 0)
      fail("after the score '" + name.substr(0, end) + "' come topk(k) and above(x) alone, not '" +
           printable(name.substr(end)) + "'");
    std::string near;
    if (name.size() <= 60)
      for (const std::string& other : nearest(name, names))
        near += (near.empty() ? "; or was it the score " : " or ") + other;
    fail(error.what() + near + (near.empty() ? "" : "?"));
  }
}
const Normaliser& normaliser_named(const std::string& name) { return named("normaliser", normaliser_menu(), name); }

}  // namespace heed
