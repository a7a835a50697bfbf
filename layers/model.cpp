#include "layers/model.h"

#include <algorithm>

#include "sampling/rank.h"

namespace heed {

Init glorot(Offset fan_in, Offset fan_out) { return {.limit = std::sqrt(6.0 / static_cast<double>(fan_in + fan_out))}; }
Init kaiming(Offset fan_in) { return {.limit = 1 / std::sqrt(static_cast<double>(std::max<Offset>(fan_in, 1)))}; }

template <class T>
Parameter<T>& Scope<T>::add(const std::string& name, Offset rows, Offset cols, Init init, bool trained) {
  const std::uint64_t key = mix(mix(shared_->seed), shared_->parameters.size());
  Parameter<T>& p = shared_->parameters.emplace_back();
  p.name = prefix_ + name;
  p.trained = trained;
  p.value.resize(rows, cols);
  for (Offset t = 0; t < p.value.size(); ++t)
    p.value.data()[t] = static_cast<T>(init.value + init.limit * (2 * uniform(key, static_cast<std::uint64_t>(t)) - 1));
  for (std::size_t t = 0; t < init.start.size(); ++t) p.value.data()[t] = static_cast<T>(init.start[t]);
  return p;
}

template <class T>
Scope<T> Scope<T>::in_order(std::vector<Id> order) const {
  auto graph = std::make_shared<const Graph>(reordered(*world_->graph, order));
  if (!world_->order.empty())
    for (Id& i : order) i = world_->order[i];
  return {*shared_, std::move(graph), world_->features, std::move(order), prefix_, virtual_};
}

template <class T>
MaskContext Scope<T>::context(const Needs& needs, bool changes) const {
  shared_->files.insert(needs.files.begin(), needs.files.end());
  const auto& tape = shared_->tape;
  const Features* features = world_->features;
  if (needs.features && features && !world_->order.empty()) {
    if (!world_->in_order) world_->in_order = std::make_shared<const Features>(reordered(*features, world_->order));
    features = world_->in_order.get();
  }
  return {graph(),      features, shared_->seed, tape.training ? tape.step : 0, changes ? &world_->known : nullptr,
          world_->order};
}

template <class T>
std::vector<Id> Scope<T>::and_virtual(std::vector<Id> out) const {
  for (Id v = 0; v < virtual_; ++v) out.push_back(graph().nodes() + v);
  return out;
}

template <class T>
std::shared_ptr<const Pattern> Scope<T>::pattern(const Mask& mask) {
  if (mask.needs().step)
    fail("the mask '" + mask.text() + "' changes from step to step, which this layer does not take");
  return sight(mask)->pattern;
}

// What a device can draw anew itself: of a mask that is, or holds in a union, one random(m, step) or expander(d, step)
// beside parts that stay; and keys random(share, step), learned(share), or any that stay. Null: the host makes each
// step's pattern.
template <class T>
std::shared_ptr<const Pattern> Scope<T>::redrawn(const Mask& mask, const Keys& keys) const {
  if (virtual_ > 0) return {};
  const MaskContext c = context(mask.needs() | keys.needs(), true);
  const Id n = c.graph.nodes();
  Redrawn what;
  if (keys.redrawn_share()) {
    what.kept = share_of(*keys.redrawn_share(), n), what.keys_stream = random_keys_stream(c.seed);
  } else if (keys.learned_share()) {
    what.kept = share_of(*keys.learned_share(), n), what.by_score = true;
  } else if (keys.needs().step) {
    return {};
  } else if (!keys.every_node()) {
    auto marks = std::make_shared<std::vector<char>>(static_cast<std::size_t>(n));
    for (Id j : keys.nodes(c)) (*marks)[j] = 1;
    what.marks = std::move(marks);
  }
  std::optional<Mask> rest;
  if (!mask.needs().step) {
    rest = mask;
  } else {
    for (const Mask& part : mask.parts()) {
      const Drawing drawing = part.drawing(c.seed);
      if (part.needs().step && (drawing.count == 0 || what.drawing.count > 0)) return {};
      if (part.needs().step)
        what.drawing = drawing;
      else
        rest = rest ? *rest | part : part;
    }
  }
  std::shared_ptr<const Pattern> fixed;
  if (rest) {
    fixed = rest->pattern(c);
    if (fixed->query_order || fixed->key_order || fixed->by_query.walk) return {};
    if (what.drawing.count > 0 && !fixed->is_listed()) return {};
  }
  return Pattern::redrawn(n, fixed, what);
}

// As sight(), where the device draws; null where it cannot. `u`: of learned keys.
template <class T>
std::shared_ptr<const Sight> Scope<T>::drawn_on_device(const Mask& mask, const Keys& keys, Var<T> u) {
  const std::shared_ptr<const Pattern> live = tape().device ? redrawn(mask, keys) : nullptr;
  if (!live) return {};
  // Outside training it is the draw of step 0: a pattern of the host's where the keys are the graph's nodes.
  const std::shared_ptr<const Pattern> rest =
      keys.every_node() ? mask.pattern(context(mask.needs(), true)) : redrawn(mask, keys);
  auto zero = std::make_shared<Matrix<std::uint64_t>>(tape().device);
  zero->resize(1, 1), zero->fill(0);
  auto now = std::make_shared<Sight>();
  now->changes = true, now->pattern = rest;
  tape().record(
      tape().result(0, 0, {}),
      [now, live, rest, zero, u, tape = &tape(), drawn = false]() mutable {
        View<const float> scores;
        if constexpr (std::is_same_v<T, float>)
          if (u.tape) scores = u.view();
        now->pattern = tape->training ? live : rest;
        if (tape->training) return tape->device->redraw(*live, tape->step_at(), scores);
        if (rest->by_query.redrawn && (u.tape || !drawn)) tape->device->redraw(*rest, zero->data(), scores);
        drawn = true;
      },
      nullptr, "mask");
  return now;
}

template <class T>
std::shared_ptr<const Sight> Scope<T>::sight(const Mask& mask, const Keys& keys) {
  auto& made = world_->sights[mask.key() + "\n" + keys.key() + "\n" + std::to_string(virtual_)];
  if (made) return made;
  const bool changes = mask.needs().step || keys.needs().step;
  if (changes)
    if (auto drawn = drawn_on_device(mask, keys, {})) return made = drawn;
  auto now = std::make_shared<Sight>();
  now->changes = changes;
  auto make = [scope = *this, mask, keys, changes] {
    const MaskContext c = scope.context(mask.needs() | keys.needs(), changes);
    if (keys.every_node()) return mask.pattern(c, nullptr, scope.virtual_);
    const std::vector<Id> kept = scope.and_virtual(keys.nodes(c));
    return mask.pattern(c, &kept, scope.virtual_);
  };
  now->pattern = make();
  made = now;
  if (!changes) return made;
  tape().repeats = false;  // on a device, the pattern of each step is brought over anew
  struct Last {
    std::uint64_t step = 0;
    std::shared_ptr<const Pattern> at_rest;  // of step 0, which comes back after each training step
  };
  auto last = std::make_shared<Last>(Last{tape().training ? tape().step : 0, nullptr});
  if (last->step == 0) last->at_rest = now->pattern;
  tape().record(
      tape().result(0, 0, {}),
      [now, last, make, tape = &tape()] {
        const std::uint64_t step = tape->training ? tape->step : 0;
        if (step == last->step) return;
        last->step = step;
        now->pattern = step == 0 && last->at_rest ? last->at_rest : make();
        if (step == 0) last->at_rest = now->pattern;
      },
      nullptr, "mask");
  return made;
}

template <class T>
std::shared_ptr<const Sight> Scope<T>::sight(const Mask& mask, double share, Var<T> u) {
  if (auto drawn = drawn_on_device(mask, learned(share), u)) return drawn;
  auto now = std::make_shared<Sight>();
  now->changes = true;
  const Id n = graph().nodes(), count = share_of(share, n);
  auto scores = std::make_shared<std::vector<double>>(static_cast<std::size_t>(n));
  auto make = [scope = *this, mask, scores, count, now] {
    const std::vector<Id> kept = scope.and_virtual(largest(*scores, count));
    now->pattern = mask.pattern(scope.context(mask.needs(), true), &kept, scope.virtual_);
  };
  make();
  tape().repeats = false;
  tape().record(
      tape().result(0, 0, {}),
      [=, device = tape().device] {
        const Matrix<T> fetched = device ? u.value() : Matrix<T>();
        const Matrix<T>& now = device ? fetched : u.value();
        for (Id i = 0; i < n; ++i) (*scores)[i] = static_cast<double>(now(i, 0));
        make();
      },
      nullptr, "mask");
  return now;
}

template <class T>
Network<T>::Network(const Model& model, const Graph& graph, const Features& features, std::uint64_t seed,
                    DeviceOps* device) {
  if (device && !std::is_same_v<T, float>) fail("a device computes in single precision");
  if (features.rows() != graph.nodes())
    fail("the features have " + std::to_string(features.rows()) + " rows, the graph " + std::to_string(graph.nodes()) +
         " nodes");
  shared_.seed = seed;
  shared_.tape.seed = seed;
  shared_.tape.device = device;
  if (features.sparse) {
    input_ = shared_.tape.constant(*features.sparse);
  } else if constexpr (std::is_same_v<T, float>) {
    input_ = shared_.tape.constant(features.dense);
  } else {
    dense_.resize(features.rows(), features.cols());
    std::copy(features.dense.begin(), features.dense.end(), dense_.begin());
    input_ = shared_.tape.constant(dense_);
  }
  Scope<T> scope(shared_, {std::shared_ptr<const Graph>{}, &graph}, &features, {}, "");
  output_ = model(scope, input_);
}

template <class T>
Parameter<T>& Network<T>::parameter(const std::string& name) {
  std::vector<std::string> names;
  for (auto& p : shared_.parameters) {
    if (p.name == name) return p;
    names.push_back(p.name);
  }
  unknown("parameter", name, names);
}

template <class T>
Matrix<T> Network<T>::attention_weights(const std::string& place, std::span<const Edge> edges) const {
  int heads = 0;
  std::vector<std::string> places;
  for (const auto& look : shared_.looks) {
    places.push_back(look.place.substr(0, look.place.size() - (look.place.empty() ? 0 : 1)));
    if (places.back() == place) heads = std::max(heads, look.first + look.heads);
  }
  if (heads == 0) unknown("place of an attend", place, places);
  Matrix<T> out(static_cast<Offset>(edges.size()), heads);
  for (std::size_t l = 0; l < places.size(); ++l) {
    const auto& look = shared_.looks[l];
    if (places[l] != place) continue;
    const Matrix<T> weights = look.weights();
    const Pattern& pattern = *look.sight->pattern;
    const Csr& list = *pattern.by_query.list;
    const Id n = look.world->graph->nodes();
    // A node's place in this world, and from there the position of a key.
    std::vector<Id> at(static_cast<std::size_t>(n)), position(static_cast<std::size_t>(n), -1);
    for (Id i = 0; i < n; ++i) at[look.world->order.empty() ? i : look.world->order[i]] = i;
    for (Id t = 0; t < list.cols; ++t)
      if (const Id j = pattern.key_order ? pattern.key_order->ids[t] : t; j < n) position[j] = t;
    for (std::size_t e = 0; e < edges.size(); ++e) {
      if (std::min(edges[e].from, edges[e].to) < 0 || std::max(edges[e].from, edges[e].to) >= n)
        fail("edge " + std::to_string(e) + " from " + std::to_string(edges[e].from) + " to " +
             std::to_string(edges[e].to) + " leaves the nodes 0.." + std::to_string(n - 1));
      const auto row = list.row(at[edges[e].to]);
      const Id key = position[at[edges[e].from]];
      const auto found = std::lower_bound(row.begin(), row.end(), key);
      if (key < 0 || found == row.end() || *found != key) continue;
      const Offset t = list.offsets[at[edges[e].to]] + (found - row.begin());
      std::copy_n(weights.row(t), look.heads, out.row(static_cast<Offset>(e)) + look.first);
    }
  }
  return out;
}

template <class T>
void Network<T>::expect_keys() const {
  for (const auto& look : shared_.looks) {
    const Pattern& pattern = *look.sight->pattern;
    if (pattern.queries() == 0 || pattern.by_query.walk || pattern.edges() > 0) continue;
    if (pattern.keys() == 0) fail("the keys that were chosen are none of this graph's nodes");
    if (look.changes) continue;  // the next step may see more
    fail("under the mask '" + look.mask + "' no node of this graph sees any other, nor itself" +
         (pattern.keys() < pattern.queries() ? ", among the keys that were chosen" : ""));
  }
}

template <class T>
Offset Network<T>::parameter_count() const {
  Offset count = 0;
  for (const auto& p : shared_.parameters)
    if (p.trained) count += p.value.size();
  return count;
}

template class Scope<float>;
template class Scope<double>;
template class Network<float>;
template class Network<double>;

}  // namespace heed
