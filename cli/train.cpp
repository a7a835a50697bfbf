// heed train: a model on a dataset, by its recipe or by the options given, and a table at the end.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "cli/command.h"
#include "cli/progress.h"
#include "datasets/dataset.h"
#include "graph/files.h"
#include "train/recipes.h"

namespace heed::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string datasets = "sbm", models = "gat";
  std::string data;
  std::optional<std::string> out;
  bool json = false, markdown = false, quiet = false, profile = false, offline = false;
  std::uint64_t seed = 1;
  int runs = 1, threads = 0;
  std::optional<int> epochs, patience, split, layers, heads, out_heads;
  std::optional<Offset> hidden;
  std::optional<std::string> stop, optimiser, activation, norm;
  std::optional<double> rate, decay, dropout, feature_dropout, attention_dropout;
  std::optional<bool> normalise, residual;
};

template <class T, class U>
void take(T& to, const std::optional<U>& from) {
  if (from) to = static_cast<T>(*from);
}

// The recipe of (model, dataset) with what the command line says over it.
Recipe resolve(const Options& o, const ModelEntry& entry, const Dataset& data) {
  Recipe r = recipe(entry.name, data.name);
  ModelOptions& m = r.model;
  m.classes = data.classes;
  take(m.layers, o.layers), take(m.hidden, o.hidden), take(m.heads, o.heads), take(m.out_heads, o.out_heads);
  take(m.dropout, o.dropout), take(m.feature_dropout, o.feature_dropout);
  take(m.attention_dropout, o.attention_dropout), take(m.residual, o.residual);
  if (o.activation) m.activation = activation_named(*o.activation);
  if (o.norm) {
    static const std::vector<std::string> norms{"none", "layer", "batch"};
    auto at = std::find(norms.begin(), norms.end(), *o.norm);
    if (at == norms.end()) unknown("norm", *o.norm, norms);
    m.norm = static_cast<Norm>(at - norms.begin());
  }
  if (!entry.attends && (o.heads || o.out_heads || o.attention_dropout || o.feature_dropout))
    fail("the model '" + entry.name +
         "' has no attention: --heads, --out-heads, --attention-dropout and "
         "--feature-dropout do not fit it");
  auto fits = [](const char* name, int heads, Offset channels) {
    if (heads * channels > 65536)
      fail(fmt::format("{} {} with {} channels a head make a layer wider than 65536 channels", name, heads, channels));
  };
  fits("--heads", m.heads, m.hidden);
  fits("--out-heads", m.out_heads, m.classes);
  for (auto [name, rate] : {std::pair{"--dropout", m.dropout}, std::pair{"--feature-dropout", m.feature_dropout},
                            std::pair{"--attention-dropout", m.attention_dropout}})
    if (!(rate >= 0 && rate < 1)) fail(fmt::format("{} must be at least 0 and below 1, not {}", name, rate));

  TrainOptions& t = r.train;
  t.seed = o.seed, t.runs = o.runs, t.threads = o.threads;
  take(t.epochs, o.epochs), take(t.patience, o.patience), take(t.split, o.split), take(t.rate, o.rate);
  take(t.decay, o.decay);
  if (o.stop) t.stop = stop_named(*o.stop);
  if (o.optimiser) {
    if (*o.optimiser != "adam" && *o.optimiser != "adamw") unknown("optimiser", *o.optimiser, {"adam", "adamw"});
    t.decoupled = *o.optimiser == "adamw";
  }
  if (o.normalise) r.normalise_features = *o.normalise;
  return r;
}

Json to_json(const std::string& dataset, const std::string& model, const Report& r) {
  Json seeds = Json::array(), tests = Json::array();
  for (const Run& run : r.runs) seeds.push_back(run.seed), tests.push_back(run.test);
  return {{"dataset", dataset},
          {"model", model},
          {"metric", "accuracy"},
          {"runs", r.runs.size()},
          {"seeds", seeds},
          {"test", tests},
          {"test_mean", r.test_mean},
          {"test_std", r.test_std},
          {"valid_mean", r.valid_mean},
          {"epochs_mean", r.epochs_mean},
          {"epoch_ms", r.epoch_ms},
          {"seconds", r.seconds},
          {"peak_rss_mb", peak_rss_mb()},
          {"parameters", r.parameters},
          {"threads", r.threads},
          {"version", HEED_VERSION}};
}

std::string profile_table(const Profile& profile, int epochs) {
  double total = 0;
  for (const auto& [name, time] : profile) total += time[0] + time[1];
  std::vector<std::vector<std::string>> rows{{"ms per epoch", "forward", "backward", "share"}};
  for (const auto& [name, time] : profile)
    rows.push_back({name, fmt::format("{:.3f}", 1e3 * time[0] / epochs), fmt::format("{:.3f}", 1e3 * time[1] / epochs),
                    fmt::format("{:.0f} %", 100 * (time[0] + time[1]) / total)});
  return table(rows, false);
}

std::vector<std::string> names_in(const std::string& list) {
  std::vector<std::string> out;
  std::istringstream in(list);
  for (std::string name; std::getline(in, name, ',');) out.push_back(name);
  if (out.empty()) fail("no name given");
  return out;
}

// A training to be done: everything that can be wrong with it is found before the first one begins.
struct Job {
  std::shared_ptr<const Dataset> data;
  std::string model;
  Recipe recipe;
};

Dataset load_dataset(const std::string& name, const Options& o) {
  DownloadBar bar(o.quiet);
  return load(name,
              {.data = o.data, .seed = o.seed, .download = !o.offline, .progress = [&](auto... x) { bar.show(x...); }});
}

std::vector<Job> jobs_of(const Options& o) {
  const auto models = names_in(o.models), datasets = names_in(o.datasets);
  for (const auto& name : models) model_named(name);
  const auto known = dataset_names();
  for (const auto& name : datasets)
    if (std::find(known.begin(), known.end(), name) == known.end()) unknown("dataset", name, known);
  std::vector<Job> out;
  for (const auto& name : datasets) {
    auto data = std::make_shared<const Dataset>(load_dataset(name, o));
    std::shared_ptr<const Dataset> normalised;
    for (const auto& model : models) {
      Recipe r = resolve(o, model_named(model), *data);
      if (r.normalise_features && !normalised) {
        auto copy = std::make_shared<Dataset>(*data);
        copy->features = normalise_rows(data->features);
        normalised = copy;
      }
      check(*data, r.train);
      out.push_back({r.normalise_features ? normalised : data, model, r});
    }
  }
  return out;
}

void run(const Options& o) {
  if (o.out) check_writable(*o.out);
  std::vector<std::vector<std::string>> rows{
      {"dataset", "model", "runs", "test accuracy", "validation", "epochs", "ms/epoch", "seconds", "memory"}};
  Json results = Json::array();
  std::string profiles;
  for (Job& job : jobs_of(o)) {
    const std::string& name = job.data->name;
    Report report;
    Profile profile;
    {
      TrainOptions t = job.recipe.train;
      Progress progress(fmt::format("{} on {}", job.model, name), o.runs, t.epochs, o.quiet);
      t.on_epoch = [&](const Epoch& e) { progress.epoch(e); };
      t.on_run = [&](int number, const Run& run) { progress.run(number, run); };
      if (o.profile) t.profile = &profile;
      report = train(model_named(job.model).make(job.recipe.model), *job.data, t);
    }
    if (o.profile) profiles += "\n" + profile_table(profile, report.runs[0].epochs);
    results.push_back(to_json(name, job.model, report));
    std::string spread = o.runs > 1 ? fmt::format(" ± {:.2f}", report.test_std) : "";
    rows.push_back({name, job.model, std::to_string(o.runs), fmt::format("{:.2f}{} %", report.test_mean, spread),
                    fmt::format("{:.2f} %", report.valid_mean), fmt::format("{:.0f}", report.epochs_mean),
                    fmt::format("{:.2f}", report.epoch_ms), fmt::format("{:.1f}", report.seconds),
                    fmt::format("{:.0f} MB", peak_rss_mb())});
  }
  Json whole = results.size() == 1 ? results[0] : Json{{"version", HEED_VERSION}, {"results", results}};
  if (o.out) write_file(*o.out, whole.dump(2) + "\n");
  print(o.json ? whole.dump(2) + "\n" : table(rows, o.markdown) + profiles);
}

}  // namespace

void add_train(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("train", "Train a node classifier and report its accuracy");
  c->footer(
      "Without options it trains a graph attention network on a generated graph of 3000 nodes.\n"
      "Every (model, dataset) has a recipe; options change it.\n\n"
      "Examples:\n"
      "  heed train                                        the generated graph, GAT\n"
      "  heed train cora --model gat --runs 10             the paper's recipe, ten seeds\n"
      "  heed train cora --model gat,gatv2,gcn,mlp --markdown\n"
      "  heed train cora --heads 4 --hidden 16 --dropout 0.5 --seed 7 --json");
  c->add_option("dataset", o->datasets, "Names, separated by commas (heed list); default sbm, which is generated")
      ->check(not_empty());
  c->add_option("--model", o->models, "Names, separated by commas (heed list); default gat")->check(not_empty());
  c->add_option("--data", o->data, "Folder with the datasets' files; then $HEED_DATA and the cache are searched")
      ->check(not_empty());
  c->add_flag("--offline", o->offline, "Never download; otherwise a public dataset that is found nowhere is");
  c->add_option("--runs", o->runs, "Trainings with seeds SEED, SEED+1, ...")->check(whole_number(1, 1'000'000));
  c->add_option("--seed", o->seed, "Of the first run, and of generated data")->check(whole_number(0));
  c->add_option("--threads", o->threads, "0: all; the result is the same for any number")->check(whole_number(0, 4096));

  const char* training = "Training";
  c->add_option("--epochs", o->epochs, "At most")->check(whole_number(1, 1'000'000'000))->group(training);
  c->add_option("--patience", o->patience, "Epochs without a gain in validation before it stops; 0: never")
      ->group(training)
      ->check(whole_number(0, 1'000'000'000));
  c->add_option("--stop", o->stop, "What must gain: accuracy, loss or both")->check(not_empty())->group(training);
  c->add_option("--split", o->split, "Which of the dataset's splits; otherwise run r takes split r")
      ->group(training)
      ->check(whole_number(0, 1'000'000'000));
  c->add_option("--rate", o->rate, "Learning rate")->check(number())->group(training);
  c->add_option("--decay", o->decay, "Weight decay")->check(number())->group(training);
  c->add_option("--optimiser", o->optimiser, "adam (decay as L2) or adamw")->check(not_empty())->group(training);
  c->add_option("--normalise", o->normalise, "Rows of the features sum to 1: true or false")
      ->check(not_empty())
      ->group(training);

  const char* model = "Model";
  c->add_option("--layers", o->layers, "Convolutions")->check(whole_number(1, 1000))->group(model);
  c->add_option("--hidden", o->hidden, "Channels of a hidden layer, for each head")
      ->check(whole_number(1, 65536))
      ->group(model);
  c->add_option("--heads", o->heads, "Of hidden layers, side by side")->check(whole_number(1, 65536))->group(model);
  c->add_option("--out-heads", o->out_heads, "Of the last layer, averaged")
      ->check(whole_number(1, 65536))
      ->group(model);
  c->add_option("--dropout", o->dropout, "Of each layer's input")->check(number())->group(model);
  c->add_option("--feature-dropout", o->feature_dropout, "Of the projected values")->check(number())->group(model);
  c->add_option("--attention-dropout", o->attention_dropout, "Of the attention weights")->check(number())->group(model);
  c->add_option("--activation", o->activation, "identity, relu, elu, leaky_relu, gelu, tanh or sigmoid")
      ->check(not_empty())
      ->group(model);
  c->add_option("--norm", o->norm, "Before the activation: none, layer or batch")->check(not_empty())->group(model);
  c->add_option("--residual", o->residual, "Each convolution adds a linear map of its input: true or false")
      ->check(not_empty())
      ->group(model);

  const char* output = "Output";
  c->add_flag("--json", o->json, "One JSON object on standard output, and nothing else there")->group(output);
  c->add_flag("--markdown", o->markdown, "The table in Markdown")->group(output);
  c->add_option("--out", o->out, "Write the JSON object into this file, too")->check(not_empty())->group(output);
  c->add_flag("--profile", o->profile, "Where the time of an epoch goes (forward: training's and evaluation's)")
      ->group(output);
  c->add_flag("--quiet", o->quiet, "No progress")->group(output);
  c->callback([o] { run(*o); });
}

}  // namespace heed::cli
