// The menus as lists.
#include "kernels/menu.h"

#include <charconv>
#include <cmath>
#include <map>
#include <mutex>

#include "graph/files.h"

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

namespace {

// softdtw(steps) or softdtw(steps, gamma), made once for each text.
const Score& softdtw_named(const std::string& text) {
  static std::mutex making;
  static std::map<std::string, Score> made;
  const std::lock_guard lock(making);
  if (const auto found = made.find(text); found != made.end()) return found->second;
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
  return made.emplace(text, std::move(score)).first->second;
}

}  // namespace

const Score& score_named(const std::string& name) {
  return name.rfind("softdtw(", 0) == 0 ? softdtw_named(name) : named("score", score_menu(), name);
}
const Normaliser& normaliser_named(const std::string& name) { return named("normaliser", normaliser_menu(), name); }

}  // namespace heed
