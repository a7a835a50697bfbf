#include "layers/layers.h"

#include <algorithm>
#include <numeric>

namespace heed {
namespace {

// The parameters of a linear map without bias, or with one that begins at 0; and of one that begins as PyTorch's.
template <class T>
LinearMap<T> plain_map(Scope<T> scope, Offset in, Offset out, Init init, bool bias) {
  Var<T> w = scope.parameter("weight", in, out, init);
  return {w, bias ? scope.parameter("bias", 1, out, {}) : Var<T>{}};
}
template <class T>
LinearMap<T> torch_map(Scope<T> scope, Offset in, Offset out, bool bias, double factor = 1) {
  Var<T> w = scope.parameter("weight", in, out, kaiming(in));
  return {w, bias ? scope.parameter("bias", 1, out, kaiming(in)) : Var<T>{}, factor};
}
template <class T>
Var<T> torch_linear(Scope<T> scope, Var<T> x, Offset out, bool bias) {
  return linear<T>(x, {torch_map(scope, x.cols(), out, bias)});
}

// What a graph says about each edge: features, or weights where it has no features.
Offset edge_channels(const Graph& graph) {
  if (graph.channels == 0 && graph.weights.empty()) fail("the layer reads edge features, but the graph has none");
  return graph.channels > 0 ? graph.channels : 1;
}

// A row for each pair of a listed pattern: what the graph says about its edge, where `features` are wanted and it is
// one, then a 1 for each of the sets that holds it; 0 elsewhere.
template <class T>
Var<T> along_pairs(Scope<T>& scope, const Pattern& pattern, bool features, const std::vector<PairSet>& sets) {
  const Graph& graph = scope.graph();
  const Offset channels = features ? edge_channels(graph) : 0;
  if (!pattern.is_listed()) fail(std::string(features ? "features of edges" : "parts") + " need a mask that is a list");
  const Csr &list = *pattern.by_query.list, &edges = *graph.adjacency;
  const std::vector<float>& about = graph.channels > 0 ? graph.features : graph.weights;
  auto table = std::make_shared<Matrix<T>>(list.edges(), channels + static_cast<Offset>(sets.size()));
  for (Id i = 0; i < std::min(list.rows, edges.rows); ++i) {
    auto row = edges.row(i);
    for (Offset t = list.offsets[i]; t < list.offsets[i + 1]; ++t) {
      const Id j = pattern.key_order ? pattern.key_order->ids[list.ids[t]] : list.ids[t];
      if (j >= edges.rows) continue;  // a virtual node
      for (std::size_t s = 0; s < sets.size(); ++s)
        (*table)(t, channels + static_cast<Offset>(s)) = sets[s].contains(i, j);
      auto at = std::lower_bound(row.begin(), row.end(), j);
      if (channels == 0 || at == row.end() || *at != j) continue;
      const Offset e = edges.offsets[i] + (at - row.begin());
      std::copy_n(about.begin() + e * channels, channels, table->row(t));
    }
  }
  Var<T> out = scope.tape().constant(*table);
  scope.tape().record(
      out, [table] {}, nullptr);  // which keeps it alive
  return out;
}

}  // namespace

Model attend(Attend o) {
  if (o.out < 1 || o.heads < 1)
    fail("attend: needs at least 1 head and 1 channel a head, not " + std::to_string(o.heads) + " and " +
         std::to_string(o.out));
  const Offset width = o.score_width > 0 ? o.score_width : o.out;  // of the scores
  const bool own_width = width != o.out || o.score.prepares == Prepare::hidden;
  if (o.projection == Projection::by_score)
    o.projection = o.score.contracts                    ? Projection::one
                   : o.score.reads_vector && !own_width ? Projection::source_target
                                                        : Projection::separate;
  if (own_width && o.projection != Projection::separate)
    fail("attend: the score '" + o.score.name +
         "' takes no width of its own (score_width): it reads the projection that is the value, too");
  if (o.score.contracts && o.projection != Projection::one)
    fail("attend: the score '" + o.score.name + "' contracts one projection; it takes no other");
  if (o.head_masks.empty()) o.head_masks = {{0, kEveryHead, o.mask}};
  if (o.head_masks.back().last < o.heads - 1)
    fail("attend: there are masks for " + std::to_string(o.head_masks.back().last + 1) + " heads, not for " +
         std::to_string(o.heads));
  check(o.score, o.normaliser);
  if ((o.edge_bias || o.parts) && o.normaliser.nonnegative)
    fail("attend: the normaliser '" + o.normaliser.name +
         "' takes scores that are never negative, and biases of edges or parts may make them so");
  if (o.parts && std::ranges::all_of(o.head_masks, [](const HeadMask& m) { return m.mask.parts().size() < 2; }))
    fail("attend: parts need a mask that is a union, as local | self; '" + o.head_masks[0].mask.text() +
         "' has one part");
  if (o.score.check_width) o.score.check_width(o.score.self.get(), static_cast<int>(width));
  if (o.score.prepares == Prepare::centre_unit && width < 2)
    fail("attend: the score '" + o.score.name + "' needs at least 2 channels a head");
  o.score = with_temperature(o.score, o.temperature, o.learn_temperature);
  return [o, width]<class T>(Scope<T>& scope, Var<T> x) {
    const Offset total = o.out * o.heads, score_total = width * o.heads;
    const bool biased = o.projection != Projection::one;
    AttentionVars<T> in;
    const Offset channels = x.cols();
    const Init first = glorot(channels, total), vector = glorot(o.heads, o.score.contracts ? o.out : width);
    switch (o.projection) {
      case Projection::by_score:
      case Projection::one: {
        const LinearMap<T> map = plain_map(scope, channels, total, first, false);
        if (!o.score.contracts) {
          in.q = in.k = in.v = linear<T>(x, {map});
          break;
        }
        const auto own = [&](const char* name) { return scope.parameter(name, 1, total, vector); };
        std::vector<Var<T>> vectors;
        if (o.score.reads_query)
          vectors = {own("att_src"), own("att_dst")};
        else
          vectors = {own("att")};
        // a . W x = (a . W) x: where there are more nodes than channels, contracted weights give the scores' numbers
        // along with the values.
        std::vector<Var<T>> both;
        if (4 * channels < x.rows()) {
          both = linears<T>(x, {{map}, {{contract(map.w, vectors, o.heads), {}, 1}}});
        } else {
          both = {linear<T>(x, {map})};
          both.push_back(contract(both[0], vectors, o.heads));
        }
        in.v = both[0];
        in.k = {both[1], 0, o.heads}, in.q = {both[1], o.score.reads_query ? Offset{o.heads} : 0, o.heads};
        break;
      }
      case Projection::source_target: {
        auto source = plain_map(scope.inside("source"), channels, total, first, o.bias);
        auto target = plain_map(scope.inside("target"), channels, total, first, o.bias);
        target.s = o.query_scale;
        // Apart, as are below q and what is gathered for it: caches fetch what lies beside a row, too.
        const auto both = linears<T>(x, {{source}, {target}});
        in.k = in.v = both[0], in.q = both[1];
        break;
      }
      case Projection::separate: {
        auto query = torch_map(scope.inside("query"), channels, score_total, o.bias, o.query_scale);
        auto key = torch_map(scope.inside("key"), channels, score_total, o.bias);
        auto value = torch_map(scope.inside("value"), channels, total, o.bias);
        const auto all = linears<T>(x, {{query}, {key, value}});
        in.q = all[0], in.k = {all[1], 0, score_total}, in.v = {all[1], score_total, total};
        break;
      }
    }
    Var<T> edge_weight, edge_vector;
    if (o.edges) {
      const Offset given = edge_channels(scope.graph()), wide = o.score.contracts ? total : score_total;
      edge_weight = scope.inside("edge").parameter("weight", given, wide, glorot(given, wide));
    }
    if (o.score.contracts) {
      if (o.edges) edge_vector = scope.parameter("att_edge", 1, total, vector);
    } else if (o.score.reads_vector) {
      in.a = scope.parameter("att", 1, score_total, vector);
    }
    if (o.score.scalars > 0) {
      std::vector<double> start;
      for (float first : o.score.start) start.insert(start.end(), static_cast<std::size_t>(o.heads), first);
      in.p = scope.parameter("scalars", o.score.scalars, o.heads, {.start = std::move(start)});
    }
    if (o.query_scale != 1 && !biased) in.q = scale(columns(in.q), o.query_scale);
    if (o.score.prepares == Prepare::centre_unit) in.q = centre_unit(in.q, o.heads), in.k = centre_unit(in.k, o.heads);
    if (o.score.prepares == Prepare::unit) in.q = unit(in.q, o.heads), in.k = unit(in.k, o.heads);
    if (o.score.prepares == Prepare::bilinear)
      in.k = linear_heads(in.k, scope.parameter("bilinear", width, score_total, glorot(width, width)), o.heads);
    if (o.feature_dropout > 0) in.v = dropout(columns(in.v), o.feature_dropout);
    Var<T> u;
    if (o.keys.learned_share()) {
      u = linear(x, scope.inside("keys").parameter("weight", channels, 1, glorot(channels, 1)));
      in.v = gate(in.v, u);
    }
    // The separate projections carry the bias themselves.
    bool biases = o.bias && o.projection != Projection::separate;
    // Heads with one mask run as one call, over strided columns.
    std::vector<Var<T>> groups;
    for (const auto& [first, last, mask] : o.head_masks) {
      if (first >= o.heads) break;
      const Offset begin = first, count = std::min(last, o.heads - 1) - first + 1;
      const auto sight = u.tape ? scope.sight(mask, *o.keys.learned_share(), u) : scope.sight(mask, o.keys);
      AttentionVars<T> part = in;
      if ((o.edges || o.edge_bias || o.parts) && (mask.needs().step || o.keys.needs().step || u.tape))
        fail(std::string(o.edges || o.edge_bias ? "features of edges" : "parts") +
             " need a mask that does not change from step to step");
      if (o.edges) {
        Var<T> e = linear(along_pairs(scope, *sight->pattern, true, {}), edge_weight);
        part.e = e;
        if (o.projection == Projection::separate && e.cols() == total) part.ev = e;
        if (edge_vector.tape) part.e = contract(e, edge_vector, o.heads);
      }
      for (Columns<T>* c : {&part.q, &part.k, &part.v, &part.a, &part.p, &part.e, &part.ev}) {
        const Offset width = *c ? c->count / o.heads : 0;
        c->first += begin * width, c->count = count * width;
      }
      std::vector<PairSet> parts;
      for (const Mask& each : o.parts ? mask.parts() : std::vector<Mask>{}) parts.push_back(scope.pairs(each));
      if (parts.size() < 2) parts.clear();
      if (o.edge_bias || !parts.empty()) {
        Var<T> table = along_pairs(scope, *sight->pattern, o.edge_bias, parts);
        const std::string name = o.head_masks.size() > 1 ? "pair_bias." + std::to_string(begin) : "pair_bias";
        part.bias = linear(table, scope.parameter(name, table.cols(), count, {}));
      }
      if (biases && count == o.heads && (o.concat || o.heads == 1) && !o.residual)
        part.y_bias = scope.parameter("bias", 1, in.v.count, {}), biases = false;
      std::function<Matrix<T>()> weights;
      groups.push_back(attention(part, sight, o.score, o.normaliser, static_cast<int>(count), o.dropout, &weights));
      const bool changes = u.tape || mask.needs().step || o.keys.needs().step;
      scope.show_attention(first, static_cast<int>(count), mask, sight, std::move(weights), changes);
    }
    Var<T> y = groups.size() == 1 ? groups[0] : concat(groups);
    if (!o.concat && o.heads > 1) y = mean_heads(y, o.heads);
    if (o.residual)
      y = add(y, biased ? torch_linear(scope.inside("skip"), x, y.cols(), o.bias)
                        : linear<T>(x, {plain_map(scope.inside("skip"), channels, y.cols(), glorot(channels, y.cols()),
                                                  false)}));
    if (biases) y = add_bias(y, scope.parameter("bias", 1, y.cols(), {}));
    return y;
  };
}

Model graph_convolution(Offset out, bool bias) {
  return [=]<class T>(Scope<T>& scope, Var<T> x) {
    auto pattern = scope.pattern(local() | self());
    const Csr& list = *pattern->by_query.list;
    // The degrees of Â = A + I from rows; edge weights, where the graph has them, stand in for 1.
    std::vector<double> degree(static_cast<std::size_t>(list.rows));
    std::vector<double> weight(list.ids.size(), 1.0);
    const Graph& graph = scope.graph();
    for (Id i = 0; i < list.rows; ++i)
      for (Offset t = list.offsets[i]; t < list.offsets[i + 1]; ++t) {
        if (!graph.weights.empty() && i < graph.nodes()) {
          auto row = graph.adjacency->row(i);
          auto at = std::lower_bound(row.begin(), row.end(), list.ids[t]);
          if (at != row.end() && *at == list.ids[t])
            weight[t] = graph.weights[graph.adjacency->offsets[i] + (at - row.begin())];
        }
        degree[i] += weight[t];
      }
    auto inverse = [&](Id i) { return degree[i] > 0 ? 1 / std::sqrt(degree[i]) : 0.0; };
    std::vector<T> weights(list.ids.size());
    for (Id i = 0; i < list.rows; ++i)
      for (Offset t = list.offsets[i]; t < list.offsets[i + 1]; ++t)
        weights[t] = static_cast<T>(weight[t] * inverse(i) * inverse(list.ids[t]));
    Var<T> h = linear(x, scope.parameter("weight", x.cols(), out, glorot(x.cols(), out)));
    Var<T> y = propagate(h, pattern, std::move(weights), {});
    return bias ? add_bias(y, scope.parameter("bias", 1, out, {})) : y;
  };
}

Model sage_convolution(Offset out, bool bias) {
  return [=]<class T>(Scope<T>& scope, Var<T> x) {
    auto pattern = scope.pattern(local());
    const Csr& list = *pattern->by_query.list;
    std::vector<T> scale(static_cast<std::size_t>(list.rows));
    for (Id i = 0; i < list.rows; ++i) scale[i] = list.degree(i) > 0 ? T(1) / static_cast<T>(list.degree(i)) : T(0);
    // The mean commutes with the linear map, so it runs over `out` channels.
    Var<T> h = linear(x, scope.inside("neighbours").parameter("weight", x.cols(), out, kaiming(x.cols())));
    return add(propagate(h, pattern, {}, std::move(scale)), torch_linear(scope.inside("self"), x, out, bias));
  };
}

Model dense(Offset out, bool bias) {
  return [=]<class T>(Scope<T>& scope, Var<T> x) { return torch_linear(scope, x, out, bias); };
}

Model activation(Activation f) {
  return [=]<class T>(Scope<T>&, Var<T> x) { return activate(x, f); };
}

Model dropout(double rate) {
  return [=]<class T>(Scope<T>&, Var<T> x) { return dropout(x, rate); };
}

Model layer_norm() {
  return []<class T>(Scope<T>& scope, Var<T> x) {
    return layer_norm(x, scope.parameter("weight", 1, x.cols(), {0, 1}), scope.parameter("bias", 1, x.cols(), {}));
  };
}

Model batch_norm() {
  return []<class T>(Scope<T>& scope, Var<T> x) {
    Var<T> gain = scope.parameter("weight", 1, x.cols(), {0, 1});
    Var<T> shift = scope.parameter("bias", 1, x.cols(), {});
    Parameter<T>& mean = scope.state("running_mean", 1, x.cols(), 0);
    Parameter<T>& variance = scope.state("running_var", 1, x.cols(), 1);
    return batch_norm(x, gain, shift, mean, variance);
  };
}

Model virtual_nodes(int m, Model inner) {
  if (m < 0) fail("virtual nodes: there cannot be " + std::to_string(m));
  return [m, inner = std::move(inner)]<class T>(Scope<T>& scope, Var<T> x) {
    Scope<T> within = scope.with_virtual(m);
    Var<T> y = inner(within, grow(x, m));
    std::vector<Id> nodes(static_cast<std::size_t>(scope.nodes()));
    std::iota(nodes.begin(), nodes.end(), 0);
    auto cut = std::make_shared<const Selection>(std::move(nodes), within.nodes());
    return gather<T>(y, [cut]() -> const Selection& { return *cut; });
  };
}

Model stack(std::vector<Model> layers) {
  return [layers = std::move(layers)]<class T>(Scope<T>& scope, Var<T> x) {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      Scope<T> inner = scope.inside(std::to_string(i));
      x = layers[i](inner, x);
    }
    return x;
  };
}

Model by_degree(Model inner) {
  return [inner = std::move(inner)]<class T>(Scope<T>& scope, Var<T> x) {
    std::vector<Id> order = order_by_degree(*scope.graph().adjacency);
    Scope<T> within = scope.in_order(order);
    for (Id v = scope.graph().nodes(); v < scope.nodes(); ++v) order.push_back(v);  // virtual nodes stay the last
    std::vector<Id> back(order.size());
    for (std::size_t i = 0; i < order.size(); ++i) back[order[i]] = static_cast<Id>(i);
    return permute(inner(within, permute(x, order)), back);
  };
}

Model residual(Model inner) {
  return [inner = std::move(inner)]<class T>(Scope<T>& scope, Var<T> x) {
    Scope<T> within = scope.inside("inner");
    Var<T> y = inner(within, x);
    if (y.cols() == x.cols() && !x.sparse()) return add(y, x);
    return add(y, torch_linear(scope.inside("skip"), x, y.cols(), true));
  };
}

namespace {

template <class T>
std::vector<Var<T>> run_all(const std::vector<Model>& sides, Scope<T>& scope, Var<T> x) {
  std::vector<Var<T>> out;
  for (std::size_t i = 0; i < sides.size(); ++i) {
    Scope<T> inner = scope.inside(std::to_string(i));
    out.push_back(sides[i](inner, x));
  }
  return out;
}

}  // namespace

Model concat(std::vector<Model> sides) {
  return [sides = std::move(sides)]<class T>(Scope<T>& scope, Var<T> x) { return concat(run_all(sides, scope, x)); };
}

Model sum(std::vector<Model> sides) {
  if (sides.empty()) fail("sum: nothing to add");
  return [sides = std::move(sides)]<class T>(Scope<T>& scope, Var<T> x) {
    auto parts = run_all(sides, scope, x);
    Var<T> total = parts[0];
    for (std::size_t i = 1; i < parts.size(); ++i) total = add(total, parts[i]);
    return total;
  };
}

}  // namespace heed
