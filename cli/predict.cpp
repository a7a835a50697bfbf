// heed predict: what a trained model says of every node, on the data it was trained on or on others.
#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/command.h"
#include "cli/progress.h"
#include "datasets/dataset.h"
#include "datasets/npz.h"
#include "graph/files.h"
#include "train/checkpoint.h"

namespace heed::cli {
namespace {

struct Options {
  std::vector<Setting> settings;
  std::string weights, data;
  std::optional<std::string> config, out, format;
  bool offline = false;
};

std::string predictions_json(const Recipe& recipe, const Dataset& data, const Matrix<float>& logits) {
  nlohmann::ordered_json out{{"dataset", recipe.dataset}, {"model", recipe.model}, {"nodes", data.nodes()}};
  auto classes = nlohmann::json::array(), probability = nlohmann::json::array();
  for (Id i = 0; i < data.nodes(); ++i) {
    classes.push_back(predicted(logits, i));
    auto row = nlohmann::json::array();
    for (double p : probabilities(logits, i, recipe.train.loss)) row.push_back(static_cast<float>(p));
    probability.push_back(std::move(row));
  }
  out["class"] = std::move(classes);
  out["probabilities"] = std::move(probability);
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

// How good the predictions are where the labels are known, a line a part of the split.
std::string judgement(const Recipe& recipe, const Dataset& data, const Matrix<float>& logits) {
  if (data.splits.empty() || data.classes > std::max<Offset>(logits.cols(), 2)) return "";
  const std::size_t split = recipe.train.split < 0 ? 0 : static_cast<std::size_t>(recipe.train.split);
  if (split >= data.splits.size()) return "";
  const std::string metric = metric_names()[static_cast<std::size_t>(recipe.train.metric)];
  std::string out;
  const Split& s = data.splits[split];
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

  const Safetensors weights = read_safetensors(o.weights);
  // The options that the weights were trained with, then those of a file, then those given.
  std::vector<Setting> settings;
  if (auto at = weights.metadata.find("heed.config"); at != weights.metadata.end())
    settings = parse_toml(at->second, o.weights + ": heed.config");
  else if (!o.config && std::none_of(o.settings.begin(), o.settings.end(), [](auto& s) { return s.name == "model"; }))
    fail(o.weights + ": holds no options; --model and the options that shape the model are needed");
  if (o.config)
    for (auto& s : read_toml(*o.config)) settings.push_back(std::move(s));
  settings.insert(settings.end(), o.settings.begin(), o.settings.end());
  const Recipe recipe = resolve(settings);
  const Dataset data = load_dataset(recipe, o.data, o.offline, false);
  // Whoever asks may not know the labels, so the number of classes is that of the training.
  Id classes = data.classes;
  if (auto at = weights.metadata.find("heed.classes"); at != weights.metadata.end()) {
    const auto [end, error] = std::from_chars(at->second.data(), at->second.data() + at->second.size(), classes);
    if (error != std::errc{} || *end != 0 || classes < 1) fail(o.weights + ": heed.classes is not a number of classes");
  }
  if (recipe.train.split >= static_cast<int>(std::max<std::size_t>(data.splits.size(), 1)) && !data.splits.empty())
    fail("split " + std::to_string(recipe.train.split) + " of '" + data.name + "' is not there; it has " +
         std::to_string(data.splits.size()));
  const Matrix<float> logits = predict(make_model(recipe, classes), data.graph, features_for(recipe, data), weights);

  std::string text = format == "json"  ? predictions_json(recipe, data, logits)
                     : format == "npz" ? predictions_npz(logits, recipe.train.loss)
                                       : predictions_csv(logits, recipe.train.loss);
  if (o.out)
    write_file(*o.out, text);
  else
    print(text);
  note(judgement(recipe, data, logits));
}

}  // namespace

std::string predictions_csv(const Matrix<float>& logits, Loss loss) {
  std::string out = "node,class";
  const Offset classes = std::max<Offset>(logits.cols(), 2);
  for (Offset c = 0; c < classes; ++c) out += fmt::format(",p{}", c);
  out += '\n';
  for (Id i = 0; i < logits.rows(); ++i) {
    out += fmt::format("{},{}", i, predicted(logits, i));
    for (double p : probabilities(logits, i, loss)) out += fmt::format(",{}", static_cast<float>(p));
    out += '\n';
  }
  return out;
}

std::string predictions_npz(const Matrix<float>& logits, Loss loss) {
  std::vector<std::int32_t> classes;
  std::vector<float> probability;
  for (Id i = 0; i < logits.rows(); ++i) {
    classes.push_back(predicted(logits, i));
    for (double p : probabilities(logits, i, loss)) probability.push_back(static_cast<float>(p));
  }
  const Offset nodes = logits.rows(), width = std::max<Offset>(logits.cols(), 2);
  return to_npz({{"class", to_npy<std::int32_t>({nodes}, classes)},
                 {"probabilities", to_npy<float>({nodes, width}, probability)}});
}

void add_predict(CLI::App& app) {
  auto o = std::make_shared<Options>();
  auto* c = app.add_subcommand("predict", "Say the class of every node with a trained model");
  c->footer(
      "A file that heed wrote knows its options; weights from elsewhere need --model and the options that shape it.\n\n"
      "Examples:\n"
      "  heed predict --weights runs/cora-gat-1.safetensors              the data it was trained on\n"
      "  heed predict citeseer2 --weights model.safetensors --out p.npz  other data with the same features\n"
      "  heed predict cora --weights pyg.safetensors --model gat --hidden 8 --heads 8");
  c->add_option("--weights", o->weights, "Safetensors file with the model's parameters")
      ->required()
      ->check(not_empty());
  c->add_option("--out", o->out,
                "File for the predictions, by its ending .csv, .json or .npz; otherwise they are printed")
      ->check(not_empty());
  c->add_option("--format", o->format, "csv (default), json or npz, whatever the file's ending")->check(not_empty());
  add_fields(*c, o->settings, "A name (heed list) or a path");
  c->add_option("--config", o->config,
                "TOML file with these options, under their names without --; those given here count more")
      ->check(not_empty())
      ->group("Data");
  c->add_option("--data", o->data, "Folder with the datasets' files; then $HEED_DATA and the cache are searched")
      ->check(not_empty())
      ->group("Data");
  c->add_flag("--offline", o->offline, "Never download; otherwise a public dataset that is found nowhere is")
      ->group("Data");
  c->callback([o] { run(*o); });
}

}  // namespace heed::cli
