// All options of a training by name: what a model is trained with on a dataset when nothing else is said, and what a
// file or a command line says over it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "layers/models.h"
#include "train/checkpoint.h"
#include "train/train.h"

namespace heed {

struct Recipe {
  std::string dataset = "sbm", model = "gat";
  ModelOptions options;  // classes are the dataset's
  TrainOptions train;
  bool normalise = false;         // rows of X sum to 1
  bool reorder = false;           // nodes by falling degree while it trains (by_degree)
  std::string splits = "public";  // or how they are drawn (datasets/splits.h)
  std::int64_t data_seed = -1;    // of generated data and drawn splits; -1: train.seed
};

// On cora, citeseer and pubmed, GAT's is the paper's (arXiv:1710.10903, section 3.3): 8 heads x 8, dropout 0.6 on
// input, projected features and attention; stopping on validation loss after 100 epochs without a gain.
Recipe recipe(const std::string& model, const std::string& dataset);

// One option. Its name is that of the command line (without --) and of the TOML file.
struct Field {
  const char* name;
  const char* group;  // "Data", "Training" or "Model"
  const char* about;
  bool attention;  // means nothing to models that do not attend
  bool quoted;     // a string in TOML
  std::string (*get)(const Recipe&);
  void (*set)(Recipe&, const std::string& text);  // throws Error saying what is wrong with the text
};
const std::vector<Field>& fields();
const Field& field_named(const std::string& name);  // throws Error with the nearest names

// A whole number of low to high, in decimal and without leading zeros. Throws Error otherwise.
std::int64_t whole(const std::string& text, std::int64_t low, std::int64_t high);

// name = value, one line an option, in the order of fields().
std::string to_toml(const Recipe& recipe);

// The options in a TOML file or text, as text, in the order of the file. Throws Error naming file and line where it is
// not TOML or an option is unknown or no single value.
struct Setting {
  std::string name, value, place;  // "run.toml, line 3"
};
std::vector<Setting> read_toml(const std::filesystem::path& path);
std::vector<Setting> parse_toml(const std::string& text, const std::string& file);

// The recipe of the dataset and the model that `settings` name, or else sbm and gat, with the settings over it in
// order. Throws Error naming the setting's place.
Recipe resolve(const std::vector<Setting>& settings);

// The dataset of a recipe, with its splits. Throws as load() and make_splits() do.
Dataset load(const Recipe& recipe, LoadOptions options = {});
// The recipe's splits, where they are not the dataset's own. Throws as make_splits() does.
void draw_splits(const Recipe& recipe, Dataset& data);

// The model of a recipe. Throws Error where heads and channels do not fit.
Model make_model(const Recipe& recipe, Id classes);
// The features as the recipe wants them: normalised, or the data's own.
Features features_for(const Recipe& recipe, const Dataset& data);

// A file of `heed train --save`, or of from_pyg.py, ready to predict:
//
//   Matrix<float> logits = read_model("runs/cora-gat-1.safetensors").predict(data);      // nodes x logits
struct TrainedModel {
  Recipe recipe;  // the options it was trained with
  Id classes = 0;
  Safetensors weights;

  // The features are the data's own; where the training divided rows by their sums, so does this. Throws Error where
  // the data has other channels, and where a logit is not finite.
  Matrix<float> predict(const Dataset& data) const;
};
// `more`: options over those in the file. Throws Error where the file holds none and `more` names no model.
TrainedModel read_model(const std::filesystem::path& path, const std::vector<Setting>& more = {});

}  // namespace heed
