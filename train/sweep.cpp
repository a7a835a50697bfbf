#include "train/sweep.h"

#include <algorithm>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <sstream>

#include "graph/files.h"
#include "train/checkpoint.h"
#include "train/toml.h"

namespace heed {
namespace {

using Json = nlohmann::ordered_json;
using Kind = TomlNode::Kind;

// The file, read as far as one can without multiplying anything out.

struct Section {  // a design, or a dataset with its settings
  std::string name, place;
  std::vector<const TomlNode*> options;

  const TomlNode* find(const std::string& option) const {
    for (const TomlNode* o : options)
      if (o->name == option) return o;
    return nullptr;
  }
};

[[noreturn]] void refuse(const TomlNode& at, const std::string& why) { fail(at.place + ": " + at.name + ": " + why); }

const std::vector<TomlNode>& table_of(const TomlNode& node, const char* example) {
  if (node.kind != Kind::table) refuse(node, "must be a table, as in " + std::string(example));
  return node.inside;
}

std::string name_of(const TomlNode& node) {
  if (node.name.empty() || node.name.size() > 200) refuse(node, "a name has 1 to 200 bytes");
  for (char c : node.name)
    if ((c >= 0 && c < ' ') || c == 127) refuse(node, "a name has no unprintable characters");
  return node.name;
}

// Throws Error where the option is unknown, no value or list of values, or one of its values cannot be.
void check_option(const TomlNode& option, bool may_be_list) {
  const Field* field = nullptr;
  try {
    field = &field_named(option.name);
  } catch (const Error& e) {
    fail(option.place + ": " + e.what());
  }
  if (option.name == "threads") refuse(option, "is said for all runs, heed sweep --threads N");
  if (option.name == "runs") may_be_list = false;
  if (option.kind == Kind::table) refuse(option, "must be a value or a list of values");
  if (option.kind == Kind::list && !may_be_list) refuse(option, "must be a single value here");
  if (option.kind == Kind::list && option.inside.empty()) refuse(option, "the list is empty");
  const TomlNode* one[] = {&option};
  std::set<std::string> seen;
  auto check = [&](const TomlNode& value) {
    try {
      Recipe any;
      field->set(any, value.value);
      if (!seen.insert(field->get(any)).second) fail("'" + printable(value.value) + "' is named twice");
      if (option.name == "dataset") check_name(value.value);
    } catch (const Error& e) {
      fail(value.place + ": " + option.name + ": " + e.what());
    }
  };
  if (option.kind == Kind::value) check(*one[0]);
  for (const TomlNode& value : option.inside) check(value);
}

std::vector<const TomlNode*> values_of(const TomlNode& option) {
  if (option.kind == Kind::value) return {&option};
  std::vector<const TomlNode*> out;
  for (const TomlNode& value : option.inside) out.push_back(&value);
  return out;
}

bool is_axis(const TomlNode& option) {
  return option.kind == Kind::list && option.name != "seed" && option.name != "dataset";
}

std::string label(const TomlNode& option, const TomlNode& value) {
  return field_named(option.name).quoted && !value.value.empty() ? value.value : option.name + "=" + value.value;
}

struct File {
  const TomlNode& tree;
  Section common;
  std::vector<Section> datasets, designs;
  const TomlNode* baseline = nullptr;

  File(const TomlNode& all, const std::string& file) : tree(all), common{"", file, {}} {
    for (const TomlNode& node : tree.inside) {
      if (node.name == "design") {
        for (const TomlNode& d : table_of(node, "[design.pearson]")) {
          Section block{name_of(d), d.place, {}};
          for (const TomlNode& o : table_of(d, "[design.pearson]")) check_option(o, true), block.options.push_back(&o);
          designs.push_back(block);
        }
      } else if (node.name == "dataset" && node.kind == Kind::table) {
        for (const TomlNode& d : node.inside) {
          Section block{name_of(d), d.place, {}};
          try {
            check_name(d.name);
          } catch (const Error& e) {
            fail(d.place + ": " + e.what());
          }
          for (const TomlNode& o : table_of(d, "[dataset.cora]")) {
            if (o.name == "dataset") refuse(o, "is said by the table's name");
            check_option(o, false), block.options.push_back(&o);
          }
          datasets.push_back(block);
        }
        if (datasets.empty()) refuse(node, "has no dataset, as in [dataset.cora]");
      } else if (node.name == "dataset") {
        check_option(node, true);
        for (const TomlNode* value : values_of(node)) datasets.push_back({value->value, value->place, {}});
      } else if (node.name == "baseline") {
        if (node.kind != Kind::value) refuse(node, "must be the name of a design");
        baseline = &node;
      } else {
        check_option(node, true);
        common.options.push_back(&node);
      }
    }
    if (datasets.empty()) datasets.push_back({"sbm", file, {}});
    if (designs.empty()) designs.push_back({"", file, {}});
    for (const Section& d : datasets)
      for (const TomlNode* o : d.options)
        if (const TomlNode* axis = common.find(o->name); axis != nullptr && is_axis(*axis))
          refuse(*o, "is a list at the top of the file, and cannot be another for a dataset");
  }

  std::vector<Section> datasets_of(const Section& design) const {
    const TomlNode* own = design.find("dataset");
    if (own == nullptr) return datasets;
    std::vector<Section> out;
    for (const TomlNode* value : values_of(*own)) {
      auto known = std::find_if(datasets.begin(), datasets.end(), [&](auto& d) { return d.name == value->value; });
      out.push_back(known != datasets.end() ? *known : Section{value->value, value->place, {}});
    }
    return out;
  }

  std::vector<const TomlNode*> axes_of(const Section& design) const {
    std::vector<const TomlNode*> out;
    const TomlNode* own = design.find("model");
    const TomlNode* model = own != nullptr ? own : common.find("model");
    const bool attends = model == nullptr || model->kind == Kind::list || model_named(model->value).attends;
    for (const TomlNode* o : common.options)
      if (is_axis(*o) && design.find(o->name) == nullptr && (attends || !field_named(o->name).attention))
        out.push_back(o);
    for (const TomlNode* o : design.options)
      if (is_axis(*o)) out.push_back(o);
    return out;
  }

  std::vector<std::uint64_t> seeds_of(const Section& design, const Section& dataset) const {
    auto last = [&](const char* name) {
      const TomlNode *a = design.find(name), *b = dataset.find(name);
      return a != nullptr ? a : b != nullptr ? b : common.find(name);
    };
    const TomlNode *seed = last("seed"), *runs = last("runs");
    std::vector<std::uint64_t> out;
    if (seed != nullptr && seed->kind == Kind::list) {
      if (runs != nullptr && runs->value != std::to_string(seed->inside.size()))
        refuse(*runs, "there is a list of " + std::to_string(seed->inside.size()) + " seeds");
      for (const TomlNode& value : seed->inside) out.push_back(std::stoull(value.value));
      return out;
    }
    const std::uint64_t first = seed != nullptr ? std::stoull(seed->value) : TrainOptions{}.seed;
    const std::uint64_t count = runs != nullptr ? std::stoull(runs->value) : 1;
    for (std::uint64_t r = 0; r < count; ++r) out.push_back(first + r);
    return out;
  }
};

// Runs of all designs, counted and not made: each design's number of combinations, times runs on its datasets.
void check_count(const File& file, const std::string& name) {
  constexpr auto most = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t total = 0;
  auto times = [](std::uint64_t a, std::uint64_t b) {
    std::uint64_t out = 0;
    return __builtin_mul_overflow(a, b, &out) ? most : out;
  };
  for (const Section& design : file.designs) {
    std::uint64_t runs = 0;
    for (const Section& dataset : file.datasets_of(design)) runs += file.seeds_of(design, dataset).size();
    for (const TomlNode* axis : file.axes_of(design)) runs = times(runs, axis->inside.size());
    total = total > most - runs ? most : total + runs;
  }
  if (total > static_cast<std::uint64_t>(kMostRuns))
    fail(name + ": " + (total == most ? "more than " : "") + std::to_string(total) + " runs; a sweep has at most " +
         std::to_string(kMostRuns));
}

// In the place of an earlier one of its name, or else behind all.
void put(std::vector<Setting>& settings, Setting s) {
  for (Setting& old : settings)
    if (old.name == s.name) {
      old = std::move(s);
      return;
    }
  settings.push_back(std::move(s));
}

Trial make_trial(const File& file, const Section& design, const Section& dataset, const std::string& name,
                 const std::vector<const TomlNode*>& axes, const std::vector<const TomlNode*>& chosen) {
  Trial out{.design = name, .dataset = dataset.name, .place = design.place};
  std::vector<Setting> shared, own;
  auto add = [](std::vector<Setting>& to, const TomlNode& option, const TomlNode& value) {
    to.push_back({option.name, value.value, value.place + ": " + option.name});
  };
  auto take = [&](std::vector<Setting>& to, const Section& block) {
    for (const TomlNode* o : block.options)
      if (o->kind == Kind::value && o->name != "seed" && o->name != "runs" && o->name != "dataset") add(to, *o, *o);
  };
  take(shared, file.common), take(shared, dataset);
  take(own, design);
  for (std::size_t a = 0; a < axes.size(); ++a) add(own, *axes[a], *chosen[a]);
  std::string model = Recipe{}.model;
  for (const auto* settings : {&shared, &own})
    for (const Setting& s : *settings)
      if (s.name == "model") model = s.value;
  const bool attends = model_named(model).attends;
  out.settings.push_back({"dataset", dataset.name, dataset.place});
  for (const Setting& s : shared)
    if (attends || !field_named(s.name).attention) put(out.settings, s);
  for (const Setting& s : own) put(out.settings, s);
  out.recipe = resolve(out.settings);
  out.seeds = file.seeds_of(design, dataset);
  out.recipe.train.seed = out.seeds[0];
  return out;
}

std::int64_t data_seed(const Trial& t) {
  return t.recipe.data_seed < 0 ? static_cast<std::int64_t>(t.seeds[0]) : t.recipe.data_seed;
}

int split_of(const Trial& t, std::size_t run) {
  return t.recipe.train.split >= 0 ? t.recipe.train.split
                                   : static_cast<int>(run % static_cast<std::size_t>(std::max(1, t.splits)));
}

// Nodes of test by nodes of training, on average, where two of the splits have nodes in common; else 0.
double overlap(std::span<const Split* const> splits, Id nodes) {
  std::vector<int> uses(static_cast<std::size_t>(nodes));
  double test = 0, train = 0;
  bool common = false;
  for (const Split* s : splits) {
    for (const auto* part : {&s->train, &s->test})
      for (Id i : *part) common |= ++uses[i] > 1;
    test += static_cast<double>(s->test.size()), train += static_cast<double>(s->train.size());
  }
  return common ? test / train : 0;
}

std::string header(const Trial& t) { return "[design." + Json(t.design).dump() + "." + Json(t.dataset).dump() + "]"; }

// visit(name, value) for all numbers of an outcome.
template <class O, class Visit>
void visit_outcome(O& o, Visit visit) {
  visit("test", o.test), visit("valid", o.valid), visit("epochs", o.epochs), visit("epoch_ms", o.epoch_ms);
  visit("seconds", o.seconds), visit("peak_mb", o.peak_mb), visit("parameters", o.parameters);
}

}  // namespace

Sweep parse_sweep(const std::string& text, const std::string& file) {
  const TomlNode tree = toml_tree(text, file, 4);
  const File all(tree, file);
  check_count(all, file);
  Sweep out;
  std::set<std::string> names, data;
  for (const Section& design : all.designs) {
    const auto axes = all.axes_of(design);
    std::vector<std::size_t> at(axes.size());
    for (bool more = true; more;) {
      std::vector<const TomlNode*> chosen;
      std::string name = design.name;
      for (std::size_t a = 0; a < axes.size(); ++a) {
        chosen.push_back(&axes[a]->inside[at[a]]);
        name += (name.empty() ? "" : ", ") + label(*axes[a], *chosen[a]);
      }
      for (const Section& dataset : all.datasets_of(design)) {
        Trial trial = make_trial(all, design, dataset, name, axes, chosen);
        if (name.empty()) trial.design = trial.recipe.model;
        if (data.insert(dataset.name).second) out.datasets.push_back(dataset.name);
        out.trials.push_back(std::move(trial));
      }
      out.designs.push_back(out.trials.back().design);
      if (!names.insert(out.designs.back()).second)
        fail(design.place + ": two designs are called '" + out.designs.back() + "'");
      more = false;
      for (std::size_t a = axes.size(); a-- > 0 && !more;) {  // the last axis turns fastest
        at[a] = (at[a] + 1) % axes[a]->inside.size();
        more = at[a] != 0;
      }
    }
  }
  for (const Trial& t : out.trials) {
    const auto first = std::find_if(out.trials.begin(), out.trials.end(),
                                    [&](const Trial& other) { return other.dataset == t.dataset; });
    const auto name = [](const Trial& x) { return metric_names()[static_cast<std::size_t>(x.recipe.train.metric)]; };
    if (name(*first) != name(t))
      fail(file + ": on " + t.dataset + " '" + first->design + "' is judged by " + name(*first) + ", '" + t.design +
           "' by " + name(t) + "; a dataset has one metric");
  }
  if (all.baseline != nullptr) {
    try {
      out.baseline = out.designs[choose("design", all.baseline->value, out.designs)];
    } catch (const Error& e) {
      refuse(*all.baseline, e.what());
    }
  }
  return out;
}

void prepare(Sweep& sweep, const std::function<Dataset(const Recipe&)>& load,
             const std::function<void(const Trial&)>& next) {
  std::map<std::string, std::vector<Trial*>> by_data;
  std::vector<std::string> order;
  for (Trial& t : sweep.trials) {
    const std::string key = t.dataset + "\n" + t.recipe.splits + "\n" + std::to_string(data_seed(t));
    if (by_data[key].empty()) order.push_back(key);
    by_data[key].push_back(&t);
  }
  for (const std::string& key : order) {
    std::optional<Dataset> plain, normalised;
    std::string print;
    for (Trial* t : by_data[key]) try {
        if (next) next(*t);
        if (!plain) plain = load(t->recipe);
        if (t->recipe.normalise && !normalised) {
          normalised = *plain;
          normalised->features = features_for(t->recipe, *plain);
        }
        const Dataset& data = t->recipe.normalise ? *normalised : *plain;
        TrainOptions options = t->recipe.train;
        options.seed = *std::max_element(t->seeds.begin(), t->seeds.end());
        check(data, options);
        if (print.empty()) {
          Split all;
          for (const Split& s : data.splits) {
            all.train.insert(all.train.end(), s.train.begin(), s.train.end());
            all.valid.insert(all.valid.end(), s.valid.begin(), s.valid.end());
            all.test.insert(all.test.end(), s.test.begin(), s.test.end());
          }
          print = fingerprint(*plain, all);
        }
        t->splits = t->recipe.train.split >= 0 ? 1 : static_cast<int>(data.splits.size());
        std::vector<const Split*> used;
        for (std::size_t s = 0; s < std::min(t->seeds.size(), static_cast<std::size_t>(t->splits)); ++s)
          used.push_back(&data.splits[static_cast<std::size_t>(split_of(*t, s))]);
        t->test_share = used.size() > 1 ? overlap(used, data.nodes()) : 0;
        Network<float> network(make_model(t->recipe, data.classes), data.graph, data.features, t->seeds[0]);
        network.expect_keys();
        t->data = print, t->files = fingerprint(network.files());
        const Offset logits = logits_for(t->recipe.train.loss, data.classes);
        if (network.output().cols() != logits)
          fail("the model gives " + std::to_string(network.output().cols()) + " logits, the loss wants " +
               std::to_string(logits));
      } catch (const Error& e) {
        fail(t->place + ": " + t->design + " on " + t->dataset + ": " + e.what());
      }
  }
}

std::vector<Setting> settings_of(const Trial& t, std::size_t run) {
  std::vector<Setting> out = t.settings;
  auto set = [&](const char* name, const std::string& value) { put(out, {name, value, t.place}); };
  set("seed", std::to_string(t.seeds[run]));
  set("split", std::to_string(split_of(t, run)));
  set("data-seed", std::to_string(data_seed(t)));
  set("runs", "1");
  return out;
}

std::string identity(const Sweep& sweep) {
  std::string out;
  for (const Trial& t : sweep.trials) {
    Recipe r = t.recipe;
    r.data_seed = data_seed(t);
    r.train.runs = static_cast<int>(t.seeds.size()), r.train.threads = 0;
    std::string seeds;
    for (std::uint64_t s : t.seeds) seeds += (seeds.empty() ? "" : ", ") + std::to_string(s);
    out += header(t) + "\n" + to_toml(r) + "seeds = [" + seeds + "]\ndata = " + Json(t.data).dump() + "\n";
    if (!t.files.empty()) out += "files = " + Json(t.files).dump() + "\n";
  }
  return out;
}

std::string difference(const std::string& then, const std::string& now) {
  std::istringstream a(then), b(now);
  std::string where;
  for (std::string x, y;;) {
    const bool more_a = static_cast<bool>(std::getline(a, x)), more_b = static_cast<bool>(std::getline(b, y));
    if (!more_a && !more_b) return "";
    if (!more_a || !more_b || x != y)
      return "made with " + (more_a ? "'" + printable(x) + "'" : "no more") + ", not with " +
             (more_b ? "'" + printable(y) + "'" : "no more") +
             (y.starts_with("[design.") || where.empty() ? "" : ", in " + where);
    if (y.starts_with("[design.")) where = y;
  }
}

Outcomes none_yet(const Sweep& sweep) {
  Outcomes out;
  for (const Trial& t : sweep.trials) out.emplace_back(t.seeds.size());
  return out;
}

std::string to_line(const Sweep& sweep, RunId id, const Outcome& o) {
  const Trial& t = sweep.trials[id.trial];
  Json line{{"design", t.design}, {"dataset", t.dataset}, {"run", id.run}, {"seed", t.seeds[id.run]}};
  if (o.error.empty())
    visit_outcome(o, [&](const char* name, auto value) { line[name] = value; });
  else
    line["error"] = o.error;
  return line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Log read_log(const std::string& text, const std::string& file, const Sweep& sweep) {
  std::map<std::pair<std::string, std::string>, std::size_t> trials;
  for (std::size_t t = 0; t < sweep.trials.size(); ++t) trials[{sweep.trials[t].design, sweep.trials[t].dataset}] = t;
  Log out{.outcomes = none_yet(sweep)};
  std::size_t number = 1;
  for (std::size_t end; (end = text.find('\n', out.bytes)) != std::string::npos; out.bytes = end + 1, ++number) {
    auto bad = [&](const std::string& why) { fail(file + ", line " + std::to_string(number) + ": " + why); };
    const Json line = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(out.bytes),
                                  text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (!line.is_object()) bad("is no JSON object");
    auto get = [&]<class V>(const char* name, V& value) {
      const auto at = line.find(name);
      const bool fits = at != line.end() && (std::is_same_v<V, std::string> ? at->is_string()
                                             : std::is_unsigned_v<V>        ? at->is_number_unsigned()
                                                                            : at->is_number());
      if (!fits) bad("lacks a proper '" + std::string(name) + "'");
      value = at->template get<V>();
    };
    std::string design, dataset;
    std::size_t run = 0;
    std::uint64_t seed = 0;
    get("design", design), get("dataset", dataset), get("run", run), get("seed", seed);
    const auto trial = trials.find({design, dataset});
    if (trial == trials.end()) bad("the sweep has no design '" + printable(design) + "' on " + printable(dataset));
    const auto& seeds = sweep.trials[trial->second].seeds;
    if (run >= seeds.size() || seeds[run] != seed) bad("the sweep has no such run");
    Outcome o;
    if (line.contains("error"))
      get("error", o.error);
    else
      visit_outcome(o, get);
    out.outcomes[trial->second][run] = o;
  }
  return out;
}

Queue::Queue(const Sweep& sweep, const Outcomes& outcomes, int jobs)
    : sweep_(sweep), jobs_(jobs), trials_(sweep.trials.size()), datasets_(sweep.datasets.size()) {
  std::size_t most = 0;
  for (const Trial& t : sweep.trials) {
    most = std::max(most, t.seeds.size());
    const auto at = std::find(sweep.datasets.begin(), sweep.datasets.end(), t.dataset);
    dataset_of_.push_back(static_cast<std::size_t>(at - sweep.datasets.begin()));
  }
  for (std::size_t run = 0; run < most; ++run)
    for (std::size_t t = 0; t < sweep.trials.size(); ++t) {
      if (run >= sweep.trials[t].seeds.size()) continue;
      const auto& done = outcomes[t][run];
      if (done && done->error.empty())
        ended({t, run}, *done);
      else
        waiting_.push_back({t, run});
    }
}

void Queue::Known::add(const Outcome& o) {
  peak_mb = std::max(peak_mb, o.peak_mb);
  seconds += o.seconds;
  ++runs;
}

void Queue::ended(RunId id, const Outcome& o) {
  if (!o.error.empty()) return;
  trials_[id.trial].add(o);
  datasets_[dataset_of_[id.trial]].add(o);
}

void Queue::again(RunId id) {
  alone_.push_back(id);
  waiting_.push_back(id);
}

bool Queue::tried_alone(RunId id) const { return std::find(alone_.begin(), alone_.end(), id) != alone_.end(); }

double Queue::expected_mb(std::size_t trial) const {
  if (trials_[trial].runs > 0) return 1.1 * trials_[trial].peak_mb;
  const Known& others = datasets_[dataset_of_[trial]];
  return others.runs > 0 ? 1.5 * others.peak_mb : -1;
}

double Queue::expected_seconds(std::size_t trial) const {
  for (const Known* known : {&trials_[trial], &datasets_[dataset_of_[trial]]})
    if (known->runs > 0) return known->seconds / known->runs;
  Known all;
  for (const Known& d : datasets_) all.seconds += d.seconds, all.runs += d.runs;
  return all.runs > 0 ? all.seconds / all.runs : -1;
}

std::optional<RunId> Queue::next(double available_mb, std::span<const Running> running) {
  if (waiting_.empty() || running.size() >= static_cast<std::size_t>(jobs_)) return std::nullopt;
  auto chosen = waiting_.begin();
  if (!running.empty()) {
    for (const Running& r : running) {
      const double expected = expected_mb(r.id.trial);
      if (expected < 0 || tried_alone(r.id)) return std::nullopt;
      available_mb -= std::max(0.0, expected - r.resident_mb);
    }
    constexpr std::ptrdiff_t far = 1000;  // looked at, of those waiting
    const auto last = waiting_.begin() + std::min(far, static_cast<std::ptrdiff_t>(waiting_.size()));
    // One of which nothing is known waits until nothing runs, and none goes before it.
    chosen = std::find_if(waiting_.begin(), last,
                          [&](RunId id) { return expected_mb(id.trial) <= available_mb && !tried_alone(id); });
    if (chosen == last || expected_mb(chosen->trial) < 0) return std::nullopt;
  }
  const RunId out = *chosen;
  waiting_.erase(chosen);
  return out;
}

double Queue::seconds_left(std::span<const Running> running) const {
  double sum = 0;
  for (RunId id : waiting_) {
    const double s = expected_seconds(id.trial);
    if (s < 0) return -1;
    sum += s;
  }
  for (const Running& r : running) {
    const double s = expected_seconds(r.id.trial);
    if (s < 0) return -1;
    sum += s / 2;
  }
  return sum / static_cast<double>(jobs_);
}

Spread spread(std::span<const double> values) {
  Spread out{.count = static_cast<int>(values.size())};
  double square = 0;
  for (double x : values) out.mean += x / out.count;
  for (double x : values) square += (x - out.mean) * (x - out.mean);
  if (out.count > 1) out.deviation = std::sqrt(square / (out.count - 1));
  return out;
}

PairedTest paired_t(std::span<const double> differences, double test_share) {
  const Spread d = spread(differences);
  PairedTest out{.pairs = d.count, .difference = d.mean, .t = std::nan(""), .p = std::nan("")};
  if (d.count < 2) return out;
  const bool equal = std::adjacent_find(differences.begin(), differences.end(), std::not_equal_to<>()) ==
                     differences.end();  // their mean may be off by a rounding
  if (equal) {
    if (differences[0] == 0) out.t = 0, out.p = 1;
    return out;
  }
  out.t = d.mean / (d.deviation * std::sqrt(1.0 / d.count + test_share));
  const boost::math::students_t_distribution<double> student(d.count - 1);
  out.p = 2 * cdf(complement(student, std::abs(out.t)));
  return out;
}

std::vector<double> holm(const std::vector<double>& p) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < p.size(); ++i)
    if (!std::isnan(p[i])) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return p[a] < p[b]; });
  std::vector<double> out = p;
  double least = 0;
  for (std::size_t k = 0; k < order.size(); ++k) {
    least = std::max(least, std::min(1.0, static_cast<double>(order.size() - k) * p[order[k]]));
    out[order[k]] = least;
  }
  return out;
}

std::vector<SweepRow> rows_of(const Sweep& sweep, const Outcomes& outcomes) {
  std::vector<SweepRow> out;
  for (std::size_t t = 0; t < sweep.trials.size(); ++t) {
    SweepRow row{.trial = t};
    std::vector<double> test, valid, epochs, epoch_ms, seconds;
    for (const auto& o : outcomes[t]) {
      if (!o) continue;
      if (!o->error.empty()) {
        if (row.failed++ == 0) row.error = o->error;
        continue;
      }
      test.push_back(o->test), valid.push_back(o->valid), epochs.push_back(o->epochs);
      epoch_ms.push_back(o->epoch_ms), seconds.push_back(o->seconds);
      row.peak_mb = std::max(row.peak_mb, o->peak_mb);
      row.parameters = o->parameters;
    }
    row.test = spread(test), row.valid = spread(valid), row.epochs = spread(epochs);
    row.epoch_ms = spread(epoch_ms), row.seconds = spread(seconds);
    row.against.p = row.p_holm = std::nan("");
    out.push_back(row);
  }
  for (const std::string& dataset : sweep.datasets) {
    std::vector<SweepRow*> rows;
    const SweepRow* base = nullptr;
    double best = -std::numeric_limits<double>::infinity();
    for (SweepRow& row : out) {
      const Trial& t = sweep.trials[row.trial];
      if (t.dataset != dataset) continue;
      rows.push_back(&row);
      if (t.design == sweep.baseline) base = &row;
      if (row.test.count > 0) best = std::max(best, row.test.mean);
    }
    std::vector<double> p;
    for (SweepRow* row : rows) {
      row->best = row->test.count > 0 && row->test.mean == best;
      const Trial& t = sweep.trials[row->trial];
      if (base != nullptr && base != row && t.data == sweep.trials[base->trial].data) {
        const Trial& b = sweep.trials[base->trial];
        std::map<int, std::vector<double>> by_split;
        for (std::size_t r = 0; r < t.seeds.size(); ++r)
          for (std::size_t other = 0; other < b.seeds.size(); ++other) {
            const auto &mine = outcomes[row->trial][r], &its = outcomes[base->trial][other];
            const bool paired = t.seeds[r] == b.seeds[other] && split_of(t, r) == split_of(b, other) && mine && its;
            if (paired && mine->error.empty() && its->error.empty())
              by_split[split_of(t, r)].push_back(mine->test - its->test);
          }
        std::vector<double> differences;
        for (const auto& [split, d] : by_split)
          if (by_split.size() == 1)
            differences = d;
          else
            differences.push_back(spread(d).mean);
        row->against = paired_t(differences, by_split.size() > 1 ? t.test_share : 0);
      }
      p.push_back(row->against.p);
    }
    const std::vector<double> corrected = holm(p);
    for (std::size_t r = 0; r < rows.size(); ++r) rows[r]->p_holm = corrected[r];
  }
  return out;
}

}  // namespace heed
