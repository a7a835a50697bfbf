// heed bench --compare: which rows of two reports differ by more than their noise.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/bench.h"
#include "cli/command.h"
#include "graph/files.h"

namespace heed::bench {
namespace {

using Json = nlohmann::json;

constexpr const char* kKey[] = {"kernel", "score", "normaliser", "graph",   "nodes",
                                "edges",  "heads", "channels",   "threads", "pass"};

struct Row {
  double ms, spread;
};

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

struct Rows {
  std::map<std::vector<std::string>, Row> of;
  double copy = 0;  // GB/s, the most of any row; 0: not said
};

Rows read(const std::string& file) {
  const Json json = Json::parse(read_file(file), nullptr, false);
  if (!json.is_array()) fail(file + ": is not a report of heed bench, an array of rows");
  Rows out;
  for (std::size_t at = 0; at < json.size(); ++at) {
    const Json& row = json[at];
    auto wrong = [&](const char* key) { fail(file + ": row " + std::to_string(at) + " lacks a proper '" + key + "'"); };
    std::vector<std::string> key;
    for (const char* name : kKey) {
      if (!row.is_object() || !row.contains(name) || row[name].is_structured()) wrong(name);
      key.push_back(text_of(row[name]));
    }
    for (const char* name : {"ms", "spread"})
      if (!row.contains(name) || !row[name].is_number() || row[name].get<double>() < 0) wrong(name);
    if (row["ms"].get<double>() == 0) wrong("ms");
    if (row.contains("copy_gb_per_s") && row["copy_gb_per_s"].is_number())
      out.copy = std::max(out.copy, row["copy_gb_per_s"].get<double>());
    if (!out.of.emplace(key, Row{row["ms"].get<double>(), row["spread"].get<double>()}).second)
      fail(file + ": row " + std::to_string(at) + " is there twice");
  }
  return out;
}

}  // namespace

std::string compare(const std::string& before, const std::string& now) {
  const Rows then = read(before), here = read(now);
  const auto &old_rows = then.of, &new_rows = here.of;
  std::vector<std::vector<std::string>> table(1);
  for (const char* name : kKey) table[0].emplace_back(name);
  for (const char* name : {"before ms", "now ms", "times"}) table[0].emplace_back(name);
  std::size_t same = 0, gone = 0;
  for (const auto& [key, old] : old_rows) {
    const auto at = new_rows.find(key);
    if (at == new_rows.end()) {
      ++gone;
      continue;
    }
    // The quartiles of normal noise lie 1.35 standard deviations apart: this is three of them, and at least 5 %.
    const double ratio = at->second.ms / old.ms, noise = std::max(0.05, 2.2 * std::max(old.spread, at->second.spread));
    if (std::max(ratio, 1 / ratio) <= 1 + noise) {
      ++same;
      continue;
    }
    table.push_back(key);
    for (const auto& cell : {fmt::format("{:.3f}", old.ms), fmt::format("{:.3f}", at->second.ms),
                             ratio < 1 ? fmt::format("{:.2f} faster", 1 / ratio) : fmt::format("{:.2f} slower", ratio)})
      table.back().push_back(cell);
  }
  std::string out = table.size() > 1 ? cli::table(table, false) : "";
  out += fmt::format("{} rows changed beyond noise, {} did not; {} are in the first file alone, {} in the second\n",
                     table.size() - 1, same, gone, new_rows.size() - (old_rows.size() - gone));
  // What a copy takes says whether the machine was the same, and as free.
  if (then.copy > 0 && here.copy > 0 && std::max(then.copy / here.copy, here.copy / then.copy) > 1.1)
    out += fmt::format("the machine was another, or busy: a copy had {:.1f} GB/s before and has {:.1f} now\n",
                       then.copy, here.copy);
  return out;
}

}  // namespace heed::bench
