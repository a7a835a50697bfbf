#include "train/recipes.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "datasets/splits.h"
#include "graph/files.h"
#include "train/toml.h"

namespace heed {
namespace {

Recipe for_citations(const std::string& model, const std::string& dataset) {
  Recipe r;
  r.normalise = true;
  r.train = {.epochs = 1500, .patience = 100, .stop = Stop::loss, .rate = 5e-3, .decay = 5e-4};
  if (model_named(model).attends) {
    r.options = {.hidden = 8, .heads = 8, .dropout = 0.6, .feature_dropout = 0.6, .attention_dropout = 0.6};
    if (dataset == "pubmed") {  // as GAT's authors
      r.options.out_heads = 8;
      r.train.rate = 1e-2;
      r.train.decay = 1e-3;
    }
  } else {  // Kipf & Welling, arXiv:1609.02907, section 5.2, but that all layers decay
    r.options = {.hidden = 16, .heads = 1, .dropout = 0.5, .activation = Activation::relu};
    if (model == "mlp") r.options.hidden = 64;
    r.train.rate = 1e-2;
  }
  return r;
}

Recipe for_blocks(const std::string& model) {
  Recipe r;
  r.options = {.hidden = 8, .heads = 8, .dropout = 0.5, .attention_dropout = 0.3};
  r.train = {.epochs = 200, .stop = Stop::loss, .rate = 5e-3, .decay = 5e-4};
  if (!model_named(model).attends) r.options.hidden = 64, r.options.heads = 1;
  return r;
}

// Attention with one wide head, a linear residual and a norm (arXiv:2406.08993 shows how far that goes), for data of
// any kind; the best epoch is that of the best validation metric.
Recipe for_others(const std::string& model, const std::string& dataset) {
  Recipe r;
  r.options = {.hidden = 64,
               .heads = 1,
               .dropout = 0.5,
               .attention_dropout = 0,
               .activation = Activation::relu,
               .norm = Norm::layer,
               .residual = model != "mlp" && model != "sage" && model != "transformer"};
  r.train = {.epochs = 300, .stop = Stop::metric, .rate = 5e-3, .decay = 5e-4};
  if (dataset == "amazon_photo") r.train.decay = 5e-5;
  if (dataset == "coauthor_physics") r.train.epochs = 100;
  if (dataset == "chameleon_filtered") {
    r.options.hidden = 256, r.options.dropout = 0.7;
    r.options.norm = Norm::batch, r.options.activation = Activation::elu;
    r.train.epochs = 200, r.train.rate = 1e-2, r.train.decay = 1e-3;
  }
  if (dataset == "minesweeper") {
    r.options.layers = 10, r.options.dropout = 0.2, r.options.norm = Norm::batch;
    r.train.epochs = 600, r.train.metric = Metric::roc_auc, r.train.rate = 1e-2, r.train.decay = 0;
  }
  if (dataset == "github" || dataset == "email_eu_core") r.splits = "stratified:0.6/0.2/0.2";
  return r;
}

// Values from text and back.

enum class Bound { not_negative, positive, share, share_or_minus };  // share: at least 0 and below 1

double number(const std::string& text, Bound bound) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  const auto used = static_cast<float>(value);  // what rounds to a bound is beyond it
  const bool fits =
      (bound == Bound::positive ? used > 0 : value >= 0) || (bound == Bound::share_or_minus && value == -1);
  const bool below = bound < Bound::share || used < 1;
  if (error == std::errc{} && at == end && std::isfinite(used) && fits && below) return value;
  const char* wanted[] = {"a number, at least 0", "a number above 0", "a number, at least 0 and below 1",
                          "a number, at least 0 and below 1, or -1"};
  fail("must be " + std::string(wanted[static_cast<int>(bound)]) + ", not '" + printable(text) + "'");
}

bool truth(const std::string& text) {
  if (text == "true" || text == "false") return text == "true";
  fail("must be true or false, not '" + printable(text) + "'");
}

const std::string& words(const std::string& text) {
  try {
    nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail("must be text in UTF-8, not '" + printable(text) + "'");
  }
  return text;
}

const std::string& filled(const std::string& text) {
  if (text.empty()) fail("must not be empty");
  return words(text);
}

void set_temperature(ModelOptions& o, const std::string& text) {
  const std::string learned = "learned";
  const bool named = text == learned, started = text.rfind(learned + ":", 0) == 0;
  try {
    o.temperature = named ? 1 : number(started ? text.substr(learned.size() + 1) : text, Bound::positive);
  } catch (const Error&) {
    fail("must be a number above 0 that float can hold, 'learned' or 'learned:NUMBER', not '" + printable(text) + "'");
  }
  o.learn_temperature = named || started;
}

template <class E>
std::string name_of(E value, const std::vector<std::string>& names) {
  return names[static_cast<std::size_t>(value)];
}

#define HEED_GET(expression) [](const Recipe& r) -> std::string { return expression; }
#define HEED_SET(statement) [](Recipe& r, const std::string& text) { statement; }
// An option that is a member of the recipe.
#define HEED_WHOLE(member, low, high) \
  HEED_GET(std::to_string(r.member)), HEED_SET(r.member = static_cast<decltype(r.member)>(whole(text, low, high)))
#define HEED_NUMBER(member, bound) HEED_GET(text_of(r.member)), HEED_SET(r.member = number(text, Bound::bound))
#define HEED_TRUTH(member) HEED_GET(r.member ? "true" : "false"), HEED_SET(r.member = truth(text))
#define HEED_TEXT(member) HEED_GET(r.member), HEED_SET(r.member = words(text))
#define HEED_CHOICE(member, kind) HEED_GET(name_of(r.member, kind##_names())), HEED_SET(r.member = kind##_named(text))

constexpr int kMost = 1'000'000'000;
constexpr int kWidest = 65536;
constexpr int kMostVirtual = 1000;  // each has a channel of its own, and pairs with all nodes

std::uint64_t seed_of_data(const Recipe& r) {
  return r.data_seed < 0 ? r.train.seed : static_cast<std::uint64_t>(r.data_seed);
}

}  // namespace

std::int64_t whole(const std::string& text, std::int64_t low, std::int64_t high) {
  std::int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  const std::size_t digits = text.find_first_not_of('-');
  const bool octal = digits != std::string::npos && text[digits] == '0' && text.size() > digits + 1;
  if (error == std::errc{} && at == end && !octal && value >= low && value <= high) return value;
  const bool open = high == std::numeric_limits<std::int64_t>::max();
  fail("must be a whole number, " + std::string(open ? "at least " : "") + std::to_string(low) +
       (open ? "" : " to " + std::to_string(high)) + ", not '" + printable(text) + "'");
}

const std::vector<Field>& fields() {
  constexpr const char *data = "Data", *training = "Training", *model = "Model";
  static const std::vector<Field> list{
      {"dataset", data, "A name (heed list) or a path", false, true, HEED_GET(r.dataset),
       HEED_SET(r.dataset = filled(text))},
      {"normalise", data, "Rows of the features sum to 1: true or false", false, false, HEED_TRUTH(normalise)},
      {"reorder", data, "Compute with the nodes by falling degree; results stay in the data's order: true or false",
       false, false, HEED_TRUTH(reorder)},
      {"splits", data,
       "public, per-class:20/500/1000, fraction:0.6/0.2/0.2, stratified:..., each with :COUNT, or file:PATH", false,
       true, HEED_GET(r.splits), HEED_SET(r.splits = filled(text))},
      {"data-seed", data, "Of generated data and drawn splits; -1: that of the first run", false, false,
       HEED_WHOLE(data_seed, -1, std::numeric_limits<std::int64_t>::max())},
      {"split", data, "Which of the dataset's splits; -1: run r takes split r", false, false,
       HEED_WHOLE(train.split, -1, kMost)},

      {"epochs", training, "At most so many; patience may end it before", false, false,
       HEED_WHOLE(train.epochs, 1, kMost)},
      {"patience", training, "Epochs without a gain in validation before it stops; 0: never", false, false,
       HEED_WHOLE(train.patience, 0, kMost)},
      {"stop", training, "What must gain: metric, loss or both", false, true, HEED_CHOICE(train.stop, stop)},
      {"metric", training, "accuracy, roc_auc or f1 (macro)", false, true, HEED_CHOICE(train.metric, metric)},
      {"loss", training, "cross_entropy or binary_cross_entropy", false, true, HEED_CHOICE(train.loss, loss)},
      {"class-weights", training, "Of the loss: balanced, or a number for each class, separated by commas", false, true,
       HEED_TEXT(train.class_weights)},
      {"label-smoothing", training, "Share of the target spread over all classes", false, false,
       HEED_NUMBER(train.label_smoothing, share)},
      {"optimiser", training, "adam (decay as L2), adamw or sgd", false, true, HEED_CHOICE(train.optimiser, rule)},
      {"rate", training, "Learning rate", false, false, HEED_NUMBER(train.rate, positive)},
      {"decay", training, "Weight decay", false, false, HEED_NUMBER(train.decay, not_negative)},
      {"momentum", training, "Of sgd", false, false, HEED_NUMBER(train.momentum, share)},
      {"clip", training, "Largest norm of the whole gradient; 0: any", false, false,
       HEED_NUMBER(train.clip, not_negative)},
      {"schedule", training, "Of the rate: constant, linear, cosine, step, exponential or plateau", false, true,
       HEED_CHOICE(train.schedule.schedule, schedule)},
      {"warmup", training, "Epochs in which the rate rises to its full value", false, false,
       HEED_WHOLE(train.schedule.warmup, 0, kMost)},
      {"schedule-factor", training, "What step, exponential and plateau multiply the rate with", false, false,
       HEED_NUMBER(train.schedule.factor, positive)},
      {"schedule-span", training, "After how many epochs they do", false, false,
       HEED_WHOLE(train.schedule.span, 1, kMost)},
      {"seed", training, "Of the first run, and of generated data", false, false,
       HEED_WHOLE(train.seed, 0, std::numeric_limits<std::int64_t>::max())},
      {"runs", training,
       "Trainings with seeds SEED, SEED+1, ..., side by side where they are small: ms/epoch is then of a shared "
       "machine",
       false, false, HEED_WHOLE(train.runs, 1, 1'000'000)},
      {"threads", training, "0: all; the result is the same for any number", false, false,
       HEED_WHOLE(train.threads, 0, 4096)},
      {"device", training, "Where it computes: cpu or cuda", false, true, HEED_CHOICE(train.device, device)},
      {"storage", training, "On a GPU: of the rows that attention gathers in training, fp32 or bf16", false, true,
       HEED_CHOICE(train.storage, storage)},

      {"model", model, "A name (heed list)", false, true, HEED_GET(r.model),
       HEED_SET(r.model = model_named(text).name)},
      {"layers", model, "Number of convolutions", false, false, HEED_WHOLE(options.layers, 1, 1000)},
      {"hidden", model, "Channels of a hidden layer, for each head", false, false,
       HEED_WHOLE(options.hidden, 1, kWidest)},
      {"heads", model, "Of hidden layers, side by side", true, false, HEED_WHOLE(options.heads, 1, kWidest)},
      {"out-heads", model, "Of the last layer, averaged", true, false, HEED_WHOLE(options.out_heads, 1, kWidest)},
      {"score", model,
       "How a node scores another: a name or a formula (heed list scores), then filters (heed list filters); empty: "
       "the model's own",
       true, true, HEED_GET(r.options.score), HEED_SET(r.options.score = text.empty() ? text : score_named(text).name)},
      {"score-width", model, "Channels of a head that scores read; 0: as many as values have", true, false,
       HEED_WHOLE(options.score_width, 0, kWidest)},
      {"normaliser", model, "How scores become weights (heed list normalisers); empty: softmax", true, true,
       HEED_GET(r.options.normaliser),
       HEED_SET(r.options.normaliser = text.empty() ? text : normaliser_named(text).name)},
      {"temperature", model,
       "What scores are divided by: a number, learned, or learned:NUMBER, one per head from there on", true, true,
       HEED_GET((r.options.learn_temperature ? "learned:" : "") + text_of(r.options.temperature)),
       HEED_SET(set_temperature(r.options, text))},
      {"dropout", model, "Of each layer's input", false, false, HEED_NUMBER(options.dropout, share)},
      {"input-dropout", model, "Of the first layer's; -1: as the others", false, false,
       HEED_NUMBER(options.input_dropout, share_or_minus)},
      {"feature-dropout", model, "Of the projected values", true, false, HEED_NUMBER(options.feature_dropout, share)},
      {"attention-dropout", model, "Of the attention weights", true, false,
       HEED_NUMBER(options.attention_dropout, share)},
      {"activation", model, "identity, relu, elu, leaky_relu, gelu, tanh or sigmoid", false, true,
       HEED_CHOICE(options.activation, activation)},
      {"norm", model, "Before the activation: none, layer or batch", false, true, HEED_CHOICE(options.norm, norm)},
      {"mask", model, "Who sees whom (heed list masks), for each head where heads differ; empty: as the model's paper",
       true, true, HEED_GET(r.options.mask),
       HEED_SET(if (!text.empty()) head_masks_named(words(text)); r.options.mask = text)},
      {"keys", model, "Which nodes can be seen at all (heed list keys)", true, true, HEED_GET(r.options.keys),
       HEED_SET(keys_named(words(text)); r.options.keys = text)},
      {"edges", model, "Scores and values read the edges' features, or weights: true or false", true, false,
       HEED_TRUTH(options.edges)},
      {"edge-bias", model, "Edges' features, or weights, times a learned number per head are added to scores", true,
       false, HEED_TRUTH(options.edge_bias)},
      {"parts", model, "A learned number per head for each part of a mask such as 'local | expander(8)' is added, too",
       true, false, HEED_TRUTH(options.parts)},
      {"virtual-nodes", model, "That see all and are seen by all", false, false,
       HEED_WHOLE(options.virtual_nodes, 0, kMostVirtual)},
      {"residual", model, "Each convolution adds a linear map of its input: true or false", false, false,
       HEED_TRUTH(options.residual)},
  };
  return list;
}

const Field& field_named(const std::string& name) {
  std::vector<std::string> names;
  for (const Field& f : fields()) {
    if (f.name == name) return f;
    names.emplace_back(f.name);
  }
  unknown("option", name, names);
}

std::string to_toml(const Recipe& recipe) {
  std::string out;
  for (const Field& f : fields()) {
    if (f.attention && !model_named(recipe.model).attends) continue;
    const std::string value = f.get(recipe);
    // The escapes of JSON are those of TOML.
    out += std::string(f.name) + " = " + (f.quoted ? nlohmann::json(value).dump() : value) + "\n";
  }
  return out;
}

std::vector<Setting> parse_toml(const std::string& text, const std::string& file) {
  std::vector<Setting> out;
  for (const TomlNode& node : toml_tree(text, file, 1).inside) {
    try {
      field_named(node.name);
    } catch (const Error& e) {
      fail(node.place + ": " + e.what());
    }
    if (node.kind != TomlNode::Kind::value)
      fail(node.place + ": " + node.name + " must be a number, a truth value or text");
    out.push_back({node.name, node.value, node.place + ": " + node.name});
  }
  return out;
}

std::vector<Setting> read_toml(const std::filesystem::path& path) { return parse_toml(read_file(path), path.string()); }

Recipe recipe(const std::string& model, const std::string& dataset) {
  Recipe r = dataset == "cora" || dataset == "citeseer" || dataset == "pubmed" ? for_citations(model, dataset)
             : dataset == "sbm" || dataset == "karate"                         ? for_blocks(model)
                                                                               : for_others(model, dataset);
  r.dataset = dataset, r.model = model;
  return r;
}

Recipe resolve(const std::vector<Setting>& settings) {
  auto apply = [](Recipe& r, const Setting& s) {
    try {
      field_named(s.name).set(r, s.value);
    } catch (const Error& e) {
      fail(s.place + ": " + e.what());
    }
  };
  Recipe named;
  for (const Setting& s : settings)
    if (s.name == "dataset" || s.name == "model") apply(named, s);
  Recipe out = recipe(named.model, named.dataset);
  for (const Setting& s : settings) {
    apply(out, s);
    if (field_named(s.name).attention && !model_named(out.model).attends)
      fail(s.place + ": the model '" + out.model + "' has no attention; '" + s.name + "' does not fit it");
  }
  return out;
}

Dataset load(const Recipe& r, LoadOptions options) {
  options.seed = seed_of_data(r);
  Dataset out = load(r.dataset, options);
  draw_splits(r, out);
  return out;
}

void draw_splits(const Recipe& r, Dataset& data) {
  if (r.splits != "public") data.splits = make_splits(data, r.splits, seed_of_data(r));
}

Model make_model(const Recipe& r, Id classes) {
  ModelOptions o = r.options;
  o.classes = logits_for(r.train.loss, classes);
  auto fits = [](const char* name, int heads, Offset channels) {
    if (heads * channels > kWidest)
      fail(std::to_string(heads) + " " + name + " with " + std::to_string(channels) +
           " channels each make a layer wider than " + std::to_string(kWidest) + " channels");
  };
  fits("heads", o.heads, o.hidden);
  fits("out-heads", o.out_heads, o.classes);
  Model model = model_named(r.model).make(o);
  return r.reorder ? by_degree(std::move(model)) : model;
}

Features features_for(const Recipe& r, const Dataset& data) {
  return r.normalise ? normalise_rows(data.features) : data.features;
}

TrainedModel read_model(const std::filesystem::path& path, const std::vector<Setting>& more) {
  TrainedModel out;
  out.weights = read_safetensors(path);
  const auto& metadata = out.weights.metadata;
  std::vector<Setting> settings;
  if (auto at = metadata.find("heed.config"); at != metadata.end()) {
    settings = parse_toml(at->second, path.string() + ": heed.config");
    std::erase_if(settings, [](const Setting& s) { return s.name == "device"; });  // which may not be here
  } else if (std::ranges::none_of(more, [](const Setting& s) { return s.name == "model"; })) {
    fail(path.string() + ": holds no options; --model and the options that shape the model are needed");
  }
  settings.insert(settings.end(), more.begin(), more.end());
  out.recipe = resolve(settings);
  if (auto at = metadata.find("heed.classes"); at != metadata.end()) {
    const std::string& text = at->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out.classes);
    if (error != std::errc{} || *end != 0 || out.classes < 1)
      fail(path.string() + ": heed.classes is not a number of classes");
  }
  return out;
}

Matrix<float> TrainedModel::predict(const Dataset& data) const {
  // "2708 nodes, 10556 edges, 1433 channels, ...", as fingerprint() has it.
  if (auto at = weights.metadata.find("heed.data"); at != weights.metadata.end()) {
    const std::string& text = at->second;
    const std::size_t end = text.find(" channels"), begin = end == text.npos ? end : text.rfind(' ', end - 1);
    Offset channels = data.channels();
    if (begin != text.npos) std::from_chars(text.data() + begin + 1, text.data() + end, channels);
    if (channels != data.channels())
      fail(weights.file + ": was trained on nodes with " + std::to_string(channels) + " features each; those of '" +
           data.name + "' have " + std::to_string(data.channels()));
  }
  // Whoever asks may not know the labels, so the number of classes is that of the training.
  return heed::predict(make_model(recipe, classes > 0 ? classes : data.classes), data.graph, features_for(recipe, data),
                       weights, recipe.train.seed, recipe.train.device);
}

}  // namespace heed
