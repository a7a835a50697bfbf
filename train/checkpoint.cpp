#include "train/checkpoint.h"

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "graph/files.h"
#include "kernels/random.h"

namespace heed {
namespace {

using Json = nlohmann::ordered_json;

// visit(name, value) for all of a state. JSON has no infinity: text stands for it.
template <class State, class Visit>
void visit_state(State& s, Visit visit) {
  visit("seed", s.seed), visit("epoch", s.epoch), visit("done", s.done), visit("steps", s.steps);
  visit("drops", s.drops), visit("rests", s.rests);
  visit("metric", s.metric), visit("loss", s.loss), visit("best_loss", s.best_loss), visit("idle", s.idle);
  visit("best_epoch", s.best_epoch), visit("valid", s.valid), visit("test", s.test);
  visit("train_loss", s.train_loss), visit("seconds", s.seconds);
}

std::string digits(std::uint64_t hash) {
  char out[17];
  std::snprintf(out, sizeof(out), "%016llx", static_cast<unsigned long long>(hash));
  return out;
}

std::string shape(const Matrix<float>& m) { return std::to_string(m.rows()) + " x " + std::to_string(m.cols()); }

}  // namespace

std::string to_text(const TrainState& state) {
  Json out;
  visit_state(state, [&](const char* name, const auto& value) {
    if constexpr (std::is_floating_point_v<std::remove_cvref_t<decltype(value)>>)
      out[name] = std::isfinite(value) ? Json(value) : Json("inf");
    else
      out[name] = value;
  });
  return out.dump();
}

TrainState state_from(const std::string& text, const std::string& file) {
  TrainState out;
  const Json in = Json::parse(text, nullptr, false);
  if (!in.is_object()) fail(file + ": its state is not a JSON object");
  visit_state(out, [&](const char* name, auto& value) {
    using V = std::remove_cvref_t<decltype(value)>;
    const auto bad = [&] { fail(file + ": its state lacks a proper '" + std::string(name) + "'"); };
    if (!in.contains(name)) bad();
    const Json& x = in[name];
    if constexpr (std::is_same_v<V, bool>) {
      if (!x.is_boolean()) bad();
      value = x.get<bool>();
    } else if constexpr (std::is_floating_point_v<V>) {
      if (!x.is_number() && x != "inf") bad();
      value = x.is_number() ? x.get<double>() : std::numeric_limits<double>::infinity();
    } else {
      if (!x.is_number_unsigned() || x.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<V>::max()))
        bad();
      value = x.get<V>();
    }
  });
  return out;
}

std::vector<Weight> weights_of(Network<float>& network) {
  std::vector<Weight> out;
  for (const auto& p : network.parameters()) out.push_back({p.name, p.value});
  return out;
}

void assign(Network<float>& network, const Safetensors& file, const std::string& prefix) {
  std::set<std::string> wanted;
  for (auto& p : network.parameters()) {
    const std::string name = prefix + p.name;
    const Matrix<float>* value = file.find(name);
    if (value == nullptr) {
      std::string others;
      for (const Weight& w : file.weights)
        if (!w.name.starts_with("train.") && others.size() < 100)
          others += (others.empty() ? "" : ", ") + printable(w.name);
      fail(file.file + ": the tensor '" + name + "' of the model is missing; the file has " +
           (others.empty() ? "none" : others));
    }
    if (value->rows() != p.value.rows() || value->cols() != p.value.cols())
      fail(file.file + ": tensor '" + name + "' is " + shape(*value) + ", the model wants " + shape(p.value));
    p.value = *value;
    wanted.insert(name);
  }
  if (prefix.empty())
    for (const Weight& w : file.weights)
      if (!wanted.contains(w.name) && !w.name.starts_with("train."))
        fail(file.file + ": the model has no parameter '" + printable(w.name) + "'");
}

void save(const std::vector<Weight>& weights, const std::filesystem::path& path) {
  write_file(path, to_safetensors(weights, {{"format", "heed"}}));
}

Matrix<float> predict(const Model& model, const Graph& graph, const Features& features, const Safetensors& weights,
                      std::uint64_t seed, Device device) {
  const std::unique_ptr<DeviceOps> there = open_device(device);
  Network<float> network(model, graph, features, seed, there.get());
  assign(network, weights);
  network.tape().forward();
  const Matrix<float> logits = network.output().value();
  for (Offset i = 0; i < logits.rows(); ++i)
    for (Offset c = 0; c < logits.cols(); ++c)
      if (!std::isfinite(logits(i, c)))
        fail(weights.file + ": with these weights logit " + std::to_string(c) + " of node " + std::to_string(i) +
             " is " + std::to_string(logits(i, c)));
  return logits;
}

std::string fingerprint(const Dataset& data, const Split& split) {
  std::uint64_t hash = 0;
  auto take = [&](const auto& numbers) {
    hash = mix(hash, numbers.size());
    for (auto x : numbers) {
      if constexpr (sizeof(x) == 4)
        hash = mix(hash ^ std::bit_cast<std::uint32_t>(x));
      else
        hash = mix(hash ^ std::bit_cast<std::uint64_t>(x));
    }
  };
  take(data.graph.adjacency->offsets), take(data.graph.adjacency->ids), take(data.graph.weights);
  take(data.graph.features), take(data.labels), take(split.train), take(split.valid), take(split.test);
  if (!data.graph.times.empty()) take(data.graph.times);
  if (data.features.sparse) {
    const Csr& pattern = data.features.sparse->pattern();
    take(pattern.offsets), take(pattern.ids), take(data.features.sparse->values);
  } else {
    const Matrix<float>& x = data.features.dense;
    take(std::span<const float>(x.data(), static_cast<std::size_t>(x.size())));
  }
  return std::to_string(data.nodes()) + " nodes, " + std::to_string(data.graph.edges()) + " edges, " +
         std::to_string(data.channels()) + " channels, " + std::to_string(data.classes) + " classes, " + digits(hash);
}

std::string fingerprint(const std::set<std::filesystem::path>& files) {
  std::string out;
  for (const auto& file : files) {
    std::uint64_t hash = 0;
    for (unsigned char byte : read_file(file)) hash = mix(hash, byte);
    out += (out.empty() ? "" : ", ") + file.filename().string() + " " + digits(hash);
  }
  return out;
}

}  // namespace heed
