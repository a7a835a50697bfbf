// heed datasets, info and convert: which datasets there are and where, what is in one, and another format for it.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/progress.h"
#include "datasets/dataset.h"
#include "datasets/files.h"
#include "datasets/formats.h"
#include "datasets/homes.h"
#include "datasets/statistics.h"

namespace heed::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string count(Offset n) {  // 1 234 567
  std::string out = std::to_string(n);
  for (std::size_t at = out.size(); at > 3; at -= 3) out.insert(at - 3, " ");
  return out;
}

void list_datasets(const std::string& data, bool json) {
  std::vector<std::vector<std::string>> rows{{"name", "what it is", "where"}};
  Json out = Json::array();
  for (const auto& entry : datasets()) {
    const bool made = entry.generate != nullptr;
    const auto folder = made ? std::filesystem::path{} : look_for({entry.name, entry.folder}, entry.probe, data);
    rows.push_back({entry.name, entry.description,
                    made                               ? "built in"
                    : !folder.empty()                  ? folder.string()
                    : remote_files(entry.name).empty() ? "missing"
                                                       : "missing; can be downloaded"});
    out.push_back({{"name", entry.name},
                   {"description", entry.description},
                   {"there", made || !folder.empty()},
                   {"folder", folder.empty() ? Json() : Json(folder.string())}});
  }
  print(json ? out.dump(2) + "\n" : table(rows, false));
}

struct InfoOptions {
  std::string dataset;
  Source source;
  bool json = false;
  std::uint64_t seed = 1;
};

Json to_json(const Dataset& d, const Statistics& s) {
  Json splits = Json::array();
  for (const Split& split : d.splits)
    splits.push_back({{"train", split.train.size()}, {"valid", split.valid.size()}, {"test", split.test.size()}});
  return {
      {"name", d.name},
      {"nodes", s.nodes},
      {"edges", {{"undirected", s.undirected}, {"directed", s.directed}, {"loops", s.loops}}},
      {"symmetric", s.symmetric},
      {"weighted", !d.graph.weights.empty()},
      {"edge_channels", d.graph.channels},
      {"isolated", s.isolated},
      {"degree", {{"min", s.degree_min}, {"mean", s.degree_mean}, {"median", s.degree_median}, {"max", s.degree_max}}},
      {"components", s.components},
      {"largest_component", s.largest},
      {"homophily", s.homophily},
      {"classes", d.classes},
      {"class_sizes", s.of_class},
      {"unlabelled", s.unlabelled},
      {"channels", s.channels},
      {"filled", s.filled},
      {"fill", s.fill},
      {"sparse", s.sparse},
      {"splits", splits}};
}

std::string page(const Dataset& d, const Statistics& s) {
  std::vector<std::vector<std::string>> rows{{d.name, ""}};
  auto row = [&](const char* what, std::string value) { rows.push_back({what, std::move(value)}); };
  row("nodes", count(s.nodes) + (s.isolated > 0 ? fmt::format(", {} without neighbours", count(s.isolated)) : ""));
  row("edges", fmt::format("{} undirected, {} as stored{}{}", count(s.undirected), count(s.directed),
                           s.symmetric ? " (both ways)" : " (directed)",
                           s.loops > 0 ? fmt::format(", {} loops", count(s.loops)) : ""));
  if (!d.graph.weights.empty() || d.graph.channels > 0)
    row("of an edge", fmt::format("{}{}{}", d.graph.weights.empty() ? "" : "weight",
                                  !d.graph.weights.empty() && d.graph.channels > 0 ? ", " : "",
                                  d.graph.channels > 0 ? fmt::format("{} channels", d.graph.channels) : ""));
  row("degree", fmt::format("{} to {}, mean {:.2f}, median {:g}", s.degree_min, count(s.degree_max), s.degree_mean,
                            s.degree_median));
  row("components", fmt::format("{}, the largest of {} nodes", count(s.components), count(s.largest)));
  row("features",
      fmt::format("{} channels, {:.2f} % filled, {}", count(s.channels), 100 * s.fill, s.sparse ? "sparse" : "dense"));
  std::string sizes;
  for (std::size_t c = 0; c < std::min<std::size_t>(s.of_class.size(), 12); ++c)
    sizes += fmt::format("{}{}", c == 0 ? "" : ", ", s.of_class[c]);
  if (s.of_class.size() > 12) sizes += ", ...";
  row("classes", fmt::format("{} of {} nodes{}", d.classes, sizes.empty() ? "no" : sizes,
                             s.unlabelled > 0 ? fmt::format("; {} without a label", count(s.unlabelled)) : ""));
  row("homophily", fmt::format("{:.3f} of the edges join nodes of one class", s.homophily));
  if (d.splits.empty()) row("splits", "none");
  for (std::size_t k = 0; k < d.splits.size(); ++k) {
    const Split& x = d.splits[k];
    auto same = [&](const Split& y) {
      return x.train.size() == y.train.size() && x.valid.size() == y.valid.size() && x.test.size() == y.test.size();
    };
    std::size_t end = k + 1;  // splits of equal sizes stand in one line
    while (end < d.splits.size() && same(d.splits[end])) ++end;
    row(end - k == 1 ? "split" : "splits",
        fmt::format("{}: {} train, {} valid, {} test",
                    end - k == 1 ? fmt::format("{}", k) : fmt::format("{} to {}", k, end - 1), x.train.size(),
                    x.valid.size(), x.test.size()));
    k = end - 1;
  }
  return table(rows, false);
}

struct ConvertOptions {
  std::string from, to, format;
  Source source;
  std::uint64_t seed = 1;
};

std::string format_of(const ConvertOptions& o) {
  if (!o.format.empty()) return o.format;
  return std::filesystem::path(o.to).extension() == ".graphml" ? "graphml" : "heed";
}

}  // namespace

void add_datasets(CLI::App& app) {
  struct Options {
    std::string data;
    bool json = false;
  };
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("datasets", "Show the datasets and where their files are");
  add_data(*c, o->data);
  c->add_flag("--json", o->json, "A JSON array on standard output");
  c->callback([o] { list_datasets(o->data, o->json); });
}

void add_info(CLI::App& app) {
  auto o = std::make_shared<InfoOptions>();
  auto* c = app.add_subcommand("info", "Show what is in a dataset");
  c->footer(
      "Examples:\n"
      "  heed info cora\n"
      "  heed info ./my-graph --json");
  c->add_option("dataset", o->dataset, "A name (heed datasets), or a folder or file of any format")
      ->required()
      ->check(not_empty());
  add_source(*c, o->source);
  c->add_option("--seed", o->seed, "Of generated data")->check(whole_number(0, INT64_MAX - 1));
  c->add_flag("--json", o->json, "One JSON object on standard output");
  c->callback([o] {
    const Dataset d = load_dataset({.dataset = o->dataset, .train = {.seed = o->seed}}, o->source, false);
    const Statistics s = statistics(d);
    print(o->json ? to_json(d, s).dump(2, ' ', false, Json::error_handler_t::replace) + "\n" : page(d, s));
  });
}

void add_convert(CLI::App& app) {
  auto o = std::make_shared<ConvertOptions>();
  auto* c = app.add_subcommand("convert", "Write a dataset in another format");
  std::string formats_text = "Formats that are read (* and written):";
  for (const auto& format : formats())
    formats_text += fmt::format("\n  {:<15}{} {}", format.name, format.write ? "*" : " ", format.about);
  c->footer(formats_text +
            "\n\nExamples:\n"
            "  heed convert cora ./cora-heed\n"
            "  heed convert ./my-tables ./graph.graphml\n"
            "  heed convert ./cora-heed ./cora-csv --format csv");
  c->add_option("from", o->from, "A name (heed datasets), or a folder or file of any format")
      ->required()
      ->check(not_empty());
  c->add_option("to", o->to, "Where it shall be: nothing may be there yet")->required()->check(not_empty());
  c->add_option("--format", o->format, "Default: graphml for *.graphml, otherwise heed")->check(not_empty());
  add_source(*c, o->source);
  c->add_option("--seed", o->seed, "Of generated data")->check(whole_number(0, INT64_MAX - 1));
  c->callback([o] {
    choose("format that can be written", format_of(*o), writable_formats());
    // Before a dataset is looked for, or downloaded; an empty folder is taken.
    if (std::error_code error; std::filesystem::exists(std::filesystem::symlink_status(o->to, error)) &&
                               !std::filesystem::is_empty(o->to, error))
      fail("cannot write " + o->to + ": it is there already");
    write_dataset(load_dataset({.dataset = o->from, .train = {.seed = o->seed}}, o->source, false), o->to,
                  format_of(*o));
  });
}

}  // namespace heed::cli
