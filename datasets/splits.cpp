#include "datasets/splits.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>

#include "datasets/parts.h"
#include "datasets/text.h"
#include "kernels/random.h"

namespace heed {
namespace {

constexpr Part kAll[] = {Part::train, Part::valid, Part::test};
constexpr int kMost = 1'000'000;  // splits

std::vector<std::vector<Id>> by_class(const Dataset& d) {
  std::vector<std::vector<Id>> out(static_cast<std::size_t>(d.classes));
  for (Id i = 0; i < d.nodes(); ++i)
    if (d.labels[i] >= 0) out[d.labels[i]].push_back(i);
  return out;
}

void shuffle(std::vector<Id>& ids, Random& random) {  // Fisher & Yates
  for (std::size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[random.below(i)]);
}

void check_number(int count) {
  if (count < 1 || count > kMost) fail(std::to_string(count) + " splits: there can be 1 to " + std::to_string(kMost));
}

std::vector<Id> narrow(const std::string& place, std::span<const Offset> ids, Id nodes) {
  std::vector<Id> out;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    if (ids[t] < 0 || ids[t] >= nodes)
      fail(place + ": entry " + std::to_string(t) + " is node " + std::to_string(ids[t]) + ", outside 0.." +
           std::to_string(nodes - 1));
    out.push_back(static_cast<Id>(ids[t]));
  }
  return out;
}

// Splits x nodes of truth, or one row of it, or ids of one split.
std::vector<std::vector<Id>> lists_of(const Array& array, Id nodes) {
  if (array.dtype != Dtype::boolean) {
    if (array.shape.size() != 1) fail(array.name + ": " + shape_text(array.shape) + ", but ids of nodes are one row");
    return {narrow(array.name, array.as<Offset>(), nodes)};
  }
  if (array.shape.empty() || array.shape.size() > 2 || array.shape.back() != nodes)
    fail(array.name + ": " + shape_text(array.shape) + ", but a mask has an element for each of " +
         std::to_string(nodes) + " nodes");
  auto mask = array.as<std::uint8_t>();
  std::vector<std::vector<Id>> out(array.shape.size() == 2 && nodes > 0 ? mask.size() / nodes : 1);
  for (std::size_t t = 0; t < mask.size(); ++t)
    if (mask[t]) out[t / nodes].push_back(static_cast<Id>(t % nodes));
  return out;
}

std::vector<Split> assemble(const std::string& place, Id nodes, std::array<std::vector<std::vector<Id>>, 3> parts) {
  if (parts[0].size() != parts[1].size() || parts[0].size() != parts[2].size())
    fail(place + ": " + std::to_string(parts[0].size()) + " splits of training, " + std::to_string(parts[1].size()) +
         " of validation and " + std::to_string(parts[2].size()) + " of test");
  std::vector<Split> out;
  for (std::size_t s = 0; s < parts[0].size(); ++s)
    out.push_back(make_split(place + ": split " + std::to_string(s), nodes, std::move(parts[0][s]),
                             std::move(parts[1][s]), std::move(parts[2][s])));
  return out;
}

std::optional<Part> part_named(std::string_view name) {
  if (name == "train") return Part::train;
  if (name == "valid" || name == "val" || name == "validation") return Part::valid;
  if (name == "test") return Part::test;
  return {};
}

}  // namespace

std::vector<Split> splits_per_class(const Dataset& d, Id train, Id valid, Id test, int count, std::uint64_t seed) {
  check_number(count);
  if (train < 0 || valid < 0 || test < 0) fail("a part of a split cannot have fewer than 0 nodes");
  std::vector<Split> out;
  for (int s = 0; s < count; ++s) {
    Random random(mix(seed, static_cast<std::uint64_t>(s)));
    Split split;
    std::vector<Id> rest;
    auto classes = by_class(d);
    for (std::size_t c = 0; c < classes.size(); ++c) {
      auto& ids = classes[c];
      if (static_cast<Offset>(ids.size()) < train)
        fail(d.name + ": class " + std::to_string(c) + " has " + std::to_string(ids.size()) + " nodes, fewer than " +
             std::to_string(train) + " of training");
      shuffle(ids, random);
      split.train.insert(split.train.end(), ids.begin(), ids.begin() + train);
      rest.insert(rest.end(), ids.begin() + train, ids.end());
    }
    if (Offset{valid} + test > static_cast<Offset>(rest.size()))
      fail(d.name + ": " + std::to_string(rest.size()) + " nodes are left for " + std::to_string(valid) +
           " of validation and " + std::to_string(test) + " of test");
    shuffle(rest, random);
    split.valid.assign(rest.begin(), rest.begin() + valid);
    split.test.assign(rest.begin() + valid, rest.begin() + valid + test);
    for (Part part : kAll) std::ranges::sort(part_of(split, part));
    out.push_back(std::move(split));
  }
  return out;
}

std::vector<Split> splits_by_fraction(const Dataset& d, const Fractions& f, int count, std::uint64_t seed) {
  check_number(count);
  const double share[] = {f.train, f.valid, f.test};
  for (double x : share)
    if (!(x >= 0 && x <= 1)) fail("a part of a split is a share of 0 to 1, not " + std::to_string(x));
  if (f.train + f.valid + f.test > 1 + 1e-9)
    fail("the shares of a split sum to " + std::to_string(f.train + f.valid + f.test) + ", more than 1");
  std::vector<Split> out;
  for (int s = 0; s < count; ++s) {
    Random random(mix(seed, static_cast<std::uint64_t>(s)));
    auto groups = by_class(d);
    if (!f.stratified) {
      std::vector<Id> all;
      for (const auto& ids : groups) all.insert(all.end(), ids.begin(), ids.end());
      std::ranges::sort(all);
      groups.assign(1, std::move(all));
    }
    Split split;
    for (auto& ids : groups) {
      shuffle(ids, random);
      double bound = 0;
      std::size_t from = 0;
      for (Part part : kAll) {
        bound += share[static_cast<int>(part) - 1];
        const auto to = static_cast<std::size_t>(std::floor(bound * static_cast<double>(ids.size()) + 0.5 + 1e-9));
        for (; from < std::min(to, ids.size()); ++from) part_of(split, part).push_back(ids[from]);
      }
    }
    for (Part part : kAll) std::ranges::sort(part_of(split, part));
    out.push_back(std::move(split));
  }
  return out;
}

std::vector<Split> splits_of(const Npz& npz, Id nodes) {
  std::array<std::vector<std::vector<Id>>, 3> parts;
  for (const auto& [name, array] : npz.arrays) {
    const std::string stem = name.substr(0, name.rfind("_mask"));
    if (auto part = part_named(stem); part && (name == stem || name == stem + "_mask" || name == stem + "_masks")) {
      auto& lists = parts[static_cast<int>(*part) - 1];
      if (!lists.empty()) fail(array.name + ": another array of the file is the same part");
      lists = lists_of(array, nodes);
    }
  }
  if (std::ranges::all_of(parts, [](const auto& lists) { return lists.empty(); })) return {};
  return assemble(npz.file, nodes, std::move(parts));
}

std::vector<Split> splits_of(const Array& array, Id nodes) {
  if (array.shape.empty() || array.shape.size() > 2 || array.shape.back() != nodes || nodes == 0)
    fail(array.name + ": " + shape_text(array.shape) + ", but each split has an element for each of " +
         std::to_string(nodes) + " nodes");
  auto codes = array.as<std::uint8_t>();
  std::vector<Split> out(codes.size() / nodes);
  for (std::size_t t = 0; t < codes.size(); ++t) {
    if (codes[t] > 3)
      fail(array.name + ": row " + std::to_string(t / nodes) + ", node " + std::to_string(t % nodes) + ": part " +
           std::to_string(codes[t]) + " is none of 0 none, 1 train, 2 valid, 3 test");
    if (codes[t] != 0) part_of(out[t / nodes], static_cast<Part>(codes[t])).push_back(static_cast<Id>(t % nodes));
  }
  return out;
}

std::vector<Split> splits_of(const Files& files, const std::string& csv, Id nodes) {
  const std::string text = files.read(csv);
  Table table(text, files.place(csv));
  const int split = table.column("split"), node = table.column("node"), part = table.column("part");
  if (node < 0 || part < 0) table.wrong("splits have the columns split, node and part");
  std::vector<std::array<std::vector<Id>, 3>> lists;
  while (table.next()) {
    // Splits come in order, so none is claimed without a node, but for those at the end that have none.
    const Offset s = split < 0 ? 0 : table.whole(split, "split", 0, kMost - 1);
    if (s > static_cast<Offset>(lists.size())) table.wrong(split, "leaves out a split");
    auto which = part_named(table[part]);
    if (!which) table.wrong(part, "is none of train, valid and test");
    if (s == static_cast<Offset>(lists.size())) lists.emplace_back();
    lists[s][static_cast<int>(*which) - 1].push_back(table.node(node, nodes));
  }
  std::vector<Split> out;
  for (std::size_t s = 0; s < lists.size(); ++s)
    out.push_back(make_split(files.place(csv) + ": split " + std::to_string(s), nodes, std::move(lists[s][0]),
                             std::move(lists[s][1]), std::move(lists[s][2])));
  return out;
}

std::vector<Split> splits_of_folder(const Files& files, const std::string& folder, Id nodes) {
  const std::string within = folder.empty() ? "" : folder + "/";
  std::array<std::vector<std::vector<Id>>, 3> parts;
  for (const auto& file : files.list(folder)) {
    const auto dot = file.rfind('.');
    auto part = part_named(file.substr(0, dot));
    const std::string name = within + file, ending = dot == std::string::npos ? "" : file.substr(dot);
    if (!part || !files.has(name) || (ending != ".txt" && ending != ".csv" && ending != ".npy")) continue;
    auto& lists = parts[static_cast<int>(*part) - 1];
    if (!lists.empty()) fail(files.place(name) + ": another file of the folder is the same part");
    const std::string bytes = files.read(name);
    if (ending == ".npy") {
      lists = lists_of(parse_npy(bytes, files.place(name)), nodes);
      continue;
    }
    lists.emplace_back();
    Table table(bytes, files.place(name));
    while (table.next()) {
      if (table.columns() != 1) table.wrong("a list of nodes has one id a line");
      lists[0].push_back(table.node(0, nodes));
    }
  }
  return assemble(files.place(folder), nodes, std::move(parts));
}

std::vector<Split> read_splits(const Files& files, Id nodes) {
  const std::string& name = files.chosen();
  if (name.empty()) return splits_of_folder(files, "", nodes);
  std::vector<Split> out;
  if (name.ends_with(".npz"))
    out = splits_of(parse_npz(files.read(name), files.place(name)), nodes);
  else if (name.ends_with(".npy"))
    out = splits_of(parse_npy(files.read(name), files.place(name)), nodes);
  else
    out = splits_of(files, name, nodes);
  if (out.empty()) fail(files.place(name) + ": holds no split");
  return out;
}

std::vector<Split> make_splits(const Dataset& d, const std::string& text, std::uint64_t seed) {
  static const std::vector<std::string> kinds{"public", "per-class", "fraction", "stratified", "file"};
  const auto colon = std::min(text.find(':'), text.size());
  const std::string kind = text.substr(0, colon), rest = text.substr(std::min(colon + 1, text.size()));
  if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) unknown("kind of splits", kind, kinds);
  if (kind == "public") {
    if (d.splits.empty()) fail(d.name + " has no splits of its own; draw some: per-class:20/500/1000");
    return d.splits;
  }
  std::vector<Split> out;
  if (kind == "file") {
    out = read_splits(Files(std::filesystem::path(rest)), d.nodes());
  } else {
    auto wrong = [&] {
      fail("splits '" + printable(text) + "': expected " + kind +
           (kind == "per-class" ? ":20/500/1000" : ":0.6/0.2/0.2") + ", and :10 after it for ten of them");
    };
    const char *at = rest.data(), *const end = at + rest.size();
    auto number = [&](auto& to, char after) {
      auto [next, error] = std::from_chars(at, end, to);
      if (error != std::errc{} || (after != 0 && (next == end || *next != after))) wrong();
      at = after != 0 ? next + 1 : next;
    };
    int count = 1;
    auto numbers = [&](auto& a, auto& b, auto& c) {
      number(a, '/'), number(b, '/'), number(c, 0);
      if (at != end && *at == ':') ++at, number(count, 0);
      if (at != end) wrong();
    };
    if (kind == "per-class") {
      Id train = 0, valid = 0, test = 0;
      numbers(train, valid, test);
      out = splits_per_class(d, train, valid, test, count, seed);
    } else {
      Fractions f{.stratified = kind == "stratified"};
      numbers(f.train, f.valid, f.test);
      out = splits_by_fraction(d, f, count, seed);
    }
  }
  for (std::size_t s = 0; s < out.size(); ++s)
    for (Part part : kAll)
      for (Id i : part_of(out[s], part))
        if (d.labels[i] < 0)
          fail(rest + ": split " + std::to_string(s) + ", " + kParts[static_cast<int>(part)] + ": node " +
               std::to_string(i) + " has no label");
  return out;
}

}  // namespace heed
