// heed predict: what a trained model says of every node, on the data it was trained on or on others.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <oneapi/tbb/global_control.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "cli/command.h"
#include "cli/progress.h"
#include "datasets/dataset.h"
#include "datasets/npz.h"
#include "graph/files.h"
#include "train/recipes.h"

namespace heed::cli {
namespace {

struct Options {
  Given given;
  std::string weights;
  std::optional<std::string> out, format;
};

struct Predictions {
  Offset nodes, classes;
  std::vector<std::int32_t> predicted;  // a node
  std::vector<float> probabilities;     // nodes x classes

  Predictions(const Matrix<float>& logits, Loss loss)
      : nodes(logits.rows()), classes(std::max<Offset>(logits.cols(), 2)) {
    for (Id i = 0; i < nodes; ++i) {
      predicted.push_back(heed::predicted(logits, i));
      for (double p : heed::probabilities(logits, i, loss)) probabilities.push_back(static_cast<float>(p));
    }
  }
  std::span<const float> of(Offset node) const {
    return std::span(probabilities)
        .subspan(static_cast<std::size_t>(node * classes), static_cast<std::size_t>(classes));
  }
};

std::string predictions_json(const Recipe& recipe, const Predictions& p) {
  nlohmann::ordered_json out{
      {"dataset", recipe.dataset}, {"model", recipe.model}, {"nodes", p.nodes}, {"class", p.predicted}};
  auto& rows = out["probabilities"] = nlohmann::json::array();
  for (Offset i = 0; i < p.nodes; ++i) rows.push_back(p.of(i));
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string predictions_csv(const Predictions& p) {
  std::string out = "node,class";
  for (Offset c = 0; c < p.classes; ++c) out += fmt::format(",p{}", c);
  out += '\n';
  for (Offset i = 0; i < p.nodes; ++i) out += fmt::format("{},{},{}\n", i, p.predicted[i], fmt::join(p.of(i), ","));
  return out;
}

std::string predictions_npz(const Predictions& p) {
  return to_npz({{"class", to_npy<std::int32_t>({p.nodes}, p.predicted)},
                 {"probabilities", to_npy<float>({p.nodes, p.classes}, p.probabilities)}});
}

// How good the predictions are where the labels are known, a line a part of the split.
std::string judgement(const Recipe& recipe, const Dataset& data, const Matrix<float>& logits) {
  if (data.splits.empty() || data.classes > std::max<Offset>(logits.cols(), 2)) return "";
  const std::string metric = metric_names()[static_cast<std::size_t>(recipe.train.metric)];
  std::string out;
  const Split& s = data.splits[static_cast<std::size_t>(std::max(recipe.train.split, 0))];
  for (const auto& [part, nodes] : {std::pair{"training", &s.train}, {"validation", &s.valid}, {"test", &s.test}})
    if (!nodes->empty())
      out += fmt::format("{} {:.2f} % of {} {} nodes\n", metric,
                         evaluate(logits, data.labels, *nodes, recipe.train.metric, recipe.train.loss).metric,
                         nodes->size(), part);
  return out;
}

void run(const Options& o) {
  const std::vector<std::string> formats{"csv", "json", "npz"};
  std::string format = o.format ? formats[choose("format", *o.format, formats)] : "csv";
  if (const std::string ending = std::filesystem::path(o.out.value_or("")).extension(); !o.format && ending.size() > 1)
    format = formats[choose("format of predictions", ending.substr(1), formats)];
  if (format == "npz" && !o.out) fail("npz is not text: --out FILE says where it goes");
  if (o.out) check_writable(*o.out);

  const std::vector<Setting> given = o.given.settings();
  const TrainedModel model = read_model(o.weights, given);
  const Recipe& recipe = model.recipe;
  auto is_given = [&](const char* name) {
    return std::ranges::any_of(given, [&](const Setting& s) { return s.name == name; });
  };
  if (!model.weights.metadata.contains("heed.config") && recipe.normalise && !is_given("normalise"))
    note(
        fmt::format("heed: rows of features are divided by their sums, as the recipe of {} has it; --normalise false "
                    "where the training did not\n",
                    recipe.dataset));
  std::optional<tbb::global_control> limit;
  if (const int n = recipe.train.threads; n > 0)
    limit.emplace(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(n));
  Recipe without = recipe;
  without.splits = "public";
  Dataset data = load_dataset(without, o.given.source, false);
  try {
    draw_splits(recipe, data);
  } catch (const Error& e) {  // other data may lack the nodes for the splits of the training
    if (is_given("splits")) throw;
    note(fmt::format("heed: not judged on the splits of the training: {}\n", e.what()));
    data.splits.clear();
  }
  if (const int there = static_cast<int>(data.splits.size()); there > 0 && recipe.train.split >= there) {
    const std::string text =
        fmt::format("split {} of '{}' is not there; it has {}", recipe.train.split, data.name, there);
    if (is_given("split")) fail(text);
    note(fmt::format("heed: not judged on the split of the training: {}\n", text));
    data.splits.clear();
  }
  const Matrix<float> logits = model.predict(data);

  const Predictions p(logits, recipe.train.loss);
  const std::string text = format == "json"  ? predictions_json(recipe, p)
                           : format == "npz" ? predictions_npz(p)
                                             : predictions_csv(p);
  if (o.out)
    write_file(*o.out, text);
  else
    print(text);
  note(judgement(recipe, data, logits));
}

}  // namespace

std::string predictions_csv(const Matrix<float>& logits, Loss loss) {
  return predictions_csv(Predictions(logits, loss));
}

void add_predict(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("predict", "Say the class of every node with a trained model");
  c->footer(
      "A file that heed wrote knows its options; weights from elsewhere need --model and the options that shape it.\n\n"
      "Examples:\n"
      "  heed predict --weights runs/cora-gat-1.safetensors              the data it was trained on\n"
      "  heed predict ./other --weights model.safetensors --out p.npz    other data with as many features\n"
      "  heed predict cora --weights pyg.safetensors --model gat --hidden 8 --heads 8 --normalise false");
  c->add_option("--weights", o->weights, "Safetensors file with the model's parameters")
      ->required()
      ->check(not_empty());
  c->add_option("--out", o->out,
                "File for the predictions, by its ending .csv, .json or .npz; otherwise they are printed")
      ->check(not_empty());
  c->add_option("--format", o->format, "csv (default), json or npz, whatever the file's ending")->check(not_empty());
  add_fields(*c, o->given, "A name (heed list) or a path; default: what the model was trained on",
             "A name (heed list); default: that of the file", false);
  c->callback([o] { run(*o); });
}

}  // namespace heed::cli
