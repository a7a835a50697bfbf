// heed train: a model on a dataset, by its recipe or by the options given, and a table at the end.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "cli/command.h"
#include "cli/progress.h"
#include "datasets/dataset.h"
#include "graph/files.h"
#include "train/memory.h"
#include "train/recipes.h"

namespace heed::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  Given given;
  std::optional<std::string> save, out;
  int every = 50;
  bool resume = false, json = false, markdown = false, quiet = false, profile = false, print_config = false;
};

Json to_json(const Recipe& recipe, const std::string& design, const Report& r) {
  Json seeds = Json::array(), tests = Json::array();
  auto rounded = [](double x) { return std::round(1e6 * x) / 1e6; };
  for (const Run& run : r.runs) seeds.push_back(run.seed), tests.push_back(rounded(run.test));
  Json options;  // all of them, as the recipe and what was given have them
  for (const Setting& s : parse_toml(to_toml(recipe), "")) {
    const Json value = field_named(s.name).quoted ? Json() : Json::parse(s.value, nullptr, false);
    options[s.name] = value.is_primitive() && !value.is_null() ? value : Json(s.value);
  }
  return {{"dataset", recipe.dataset},
          {"model", recipe.model},
          {"design", design},
          {"options", options},
          {"metric", metric_names()[static_cast<std::size_t>(recipe.train.metric)]},
          {"runs", r.runs.size()},
          {"seeds", seeds},
          {"test", tests},
          {"test_mean", rounded(r.test_mean)},
          {"test_std", rounded(r.test_std)},
          {"valid_mean", rounded(r.valid_mean)},
          {"epochs_mean", r.epochs_mean},
          {"epoch_ms", r.epoch_ms},
          {"seconds", r.seconds},
          {"peak_rss_mb", peak_rss_mb()},
          {"parameters", r.parameters},
          {"threads", r.threads},
          {"device", device_names()[static_cast<std::size_t>(recipe.train.device)]},
          {"version", HEED_VERSION}};
}

std::string dump(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace); }

std::string profile_table(const Profile& profile, int epochs) {
  double total = 0;
  for (const auto& [name, time] : profile) total += time[0] + time[1];
  std::vector<std::vector<std::string>> rows{{"ms per epoch", "forward", "backward", "share"}};
  for (const auto& [name, time] : profile)
    rows.push_back({name, fmt::format("{:.3f}", 1e3 * time[0] / epochs), fmt::format("{:.3f}", 1e3 * time[1] / epochs),
                    fmt::format("{:.0f} %", 100 * (time[0] + time[1]) / total)});
  return table(rows, false);
}

// A training to be done: everything that can be wrong with it is found before the first one begins.
struct Job {
  Recipe recipe;
  std::string design;  // the model, and what is not as its recipe has it: "gat --score pearson"
  std::shared_ptr<const Dataset> data;
};

std::string design_of(const Recipe& r) {
  std::string out = r.model;
  const Recipe usual = recipe(r.model, r.dataset);
  for (const Field& f : fields()) {
    const std::string value = f.get(r);
    if (f.group != std::string("Model") || value == f.get(usual)) continue;
    const bool plain = !value.empty() && value.find(' ') == value.npos;
    out += fmt::format(" --{} {}", f.name, plain ? value : "'" + value + "'");
  }
  return out;
}

// The configuration of one run. What does not change its result is left at its default.
std::string config_of_run(Recipe r, std::uint64_t seed, const Dataset& data) {
  const auto run = seed - r.train.seed;
  if (r.train.split < 0) r.train.split = static_cast<int>(run % data.splits.size());
  if (r.data_seed < 0) r.data_seed = static_cast<std::int64_t>(r.train.seed);
  r.train.seed = seed;
  r.train.runs = 1, r.train.threads = 0;
  return to_toml(r);
}

// A dataset's name, which may come from a file, as a name of files: no folders, nothing unprintable.
std::string file_name(std::string name) {
  name.resize(std::min<std::size_t>(name.size(), 100));
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') c = '_';
  return name.empty() || name[0] == '.' ? "data" + name : name;
}

std::vector<Job> jobs_of(const Options& o) {
  Setting datasets{"dataset", "sbm", "dataset"}, models{"model", "gat", "--model"};
  std::vector<Setting> others;
  for (const Setting& s : o.given.settings())
    (s.name == "dataset" ? datasets : s.name == "model" ? models : others.emplace_back()) = s;
  for (const auto& dataset : names_in(datasets.value)) check_name(dataset);
  std::vector<Job> out;
  std::set<std::string> files;
  for (const auto& dataset : names_in(datasets.value)) {
    std::shared_ptr<const Dataset> plain, normalised;
    for (const auto& model : names_in(models.value)) {
      std::vector<Setting> all{{"dataset", dataset, datasets.place}, {"model", model, models.place}};
      all.insert(all.end(), others.begin(), others.end());
      Recipe r = resolve(all);
      if (!plain) plain = std::make_shared<const Dataset>(load_dataset(r, o.given.source, o.quiet));
      if (r.normalise && !normalised) {
        auto copy = std::make_shared<Dataset>(*plain);
        copy->features = features_for(r, *plain);
        normalised = copy;
      }
      Checkpoints& c = r.train.checkpoints;
      if (o.save) c.folder = *o.save;
      c.name = file_name(plain->name) + "-" + model;
      if (o.save && !files.insert(c.name).second) fail("two trainings would be saved as '" + c.name + "'");
      c.every = o.every, c.resume = o.resume;
      c.config = [r, data = plain](std::uint64_t seed) { return config_of_run(r, seed, *data); };
      check(*plain, r.train);
      make_model(r, plain->classes);
      out.push_back({r, design_of(r), r.normalise ? normalised : plain});
    }
  }
  return out;
}

void run(const Options& o) {
  interrupted();  // counts from here on
  if (o.out) check_writable(*o.out);
  if (o.resume && !o.save) fail("--resume needs --save FOLDER, where the checkpoints are");
  std::vector<Job> jobs = jobs_of(o);
  if (o.print_config) {
    if (jobs.size() > 1)
      fail("--print-config prints the options of one training, not of " + std::to_string(jobs.size()));
    return print(to_toml(jobs[0].recipe));
  }
  std::string metric = metric_names()[static_cast<std::size_t>(jobs[0].recipe.train.metric)];
  std::replace(metric.begin(), metric.end(), '_', ' ');
  std::vector<std::vector<std::string>> rows{
      {"dataset", "model", "runs", "test " + metric, "validation", "epochs", "ms/epoch", "seconds", "memory"}};
  Json results = Json::array();
  std::string profiles;
  for (Job& job : jobs) {
    const Recipe& r = job.recipe;
    TrainOptions t = r.train;
    if (!results.empty()) forget_peak();  // that of the job before
    Report report;
    Profile profile;
    {
      Progress progress(fmt::format("{} on {}", job.design, job.data->name), t.runs, t.epochs, o.quiet);
      t.on_epoch = [&](const Epoch& e) { progress.epoch(e); };
      t.on_run = [&](int number, const Run& run) {
        progress.run(number, run);
        if (!o.save) return;
        auto path = checkpoint_path(t.checkpoints, run.seed).replace_extension(".csv");
        write_file(path, predictions_csv(run.logits, t.loss));
      };
      t.interrupted = &interrupted();
      if (o.profile) t.profile = &profile;
      report = train(make_model(r, job.data->classes), *job.data, t);
    }
    if (o.profile) profiles += "\n" + profile_table(profile, report.runs[0].epochs);
    results.push_back(to_json(r, job.design, report));
    std::string spread = t.runs > 1 ? fmt::format(" ± {:.2f}", report.test_std) : "";
    rows.push_back({job.data->name, job.design, std::to_string(t.runs),
                    fmt::format("{:.2f}{} %", report.test_mean, spread), fmt::format("{:.2f} %", report.valid_mean),
                    fmt::format("{:.0f}", report.epochs_mean), fmt::format("{:.2f}", report.epoch_ms),
                    fmt::format("{:.1f}", report.seconds), fmt::format("{:.0f} MB", peak_rss_mb())});
  }
  Json whole = results.size() == 1 ? results[0] : Json{{"version", HEED_VERSION}, {"results", results}};
  if (o.out) write_file(*o.out, dump(whole) + "\n");
  print(o.json ? dump(whole) + "\n" : table(rows, o.markdown) + profiles);
}

}  // namespace

void add_train(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("train", "Train a node classifier and report how good it is");
  c->footer(
      "Without options it trains a graph attention network on a generated graph of 3000 nodes.\n"
      "Every (model, dataset) has a recipe; options change it.\n\n"
      "Examples:\n"
      "  heed train                                        the generated graph, GAT\n"
      "  heed train cora --model gat --runs 10             the paper's recipe, ten seeds\n"
      "  heed train cora --model gat,gatv2,gcn,mlp --markdown\n"
      "  heed train cora --heads 4 --hidden 16 --dropout 0.5 --seed 7 --json\n"
      "  heed train cora --save runs                       runs/cora-gat-1.safetensors, for heed predict\n"
      "  heed train cora --save runs --resume              goes on with a run that was interrupted\n"
      "  heed train cora --device cuda                     on the GPU");
  add_fields(*c, o->given, "Names or paths, separated by commas (heed list); default sbm, which is generated",
             "Names, separated by commas (heed list); default gat", true);

  const char* output = "Output";
  c->add_option("--save", o->save,
                "Folder for each run's checkpoint and model (.safetensors), options (.toml), learning curve (.jsonl) "
                "and predictions (.csv)")
      ->check(not_empty())
      ->group(output);
  c->add_option("--every", o->every, "Epochs between two checkpoints; default 50")
      ->check(whole_number(1, 1'000'000'000))
      ->group(output);
  c->add_flag("--resume", o->resume, "Go on from the checkpoints in the folder, to the same bits")->group(output);
  c->add_flag("--json", o->json, "One JSON object on standard output, and nothing else there")->group(output);
  c->add_flag("--markdown", o->markdown, "The table in Markdown")->group(output);
  c->add_option("--out", o->out, "Write the JSON object into this file, too")->check(not_empty())->group(output);
  c->add_flag("--profile", o->profile, "Where the time of an epoch goes (forward: training's and evaluation's)")
      ->group(output);
  c->add_flag("--print-config", o->print_config, "Print all options as TOML, for --config, and train nothing")
      ->group(output);
  c->add_flag("--quiet", o->quiet, "No progress")->group(output);
  c->callback([o] { run(*o); });
}

}  // namespace heed::cli
