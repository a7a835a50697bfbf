// Known layers against PyTorch Geometric's, PyTorch's own attention, and the menus' against dense algebra in PyTorch
// with the packages entmax and pysdtw: outputs and all gradients, as tests/oracles/make.py has stored them. What attend
// computes with edge features is also put together from its operations, so that these take a gradient too.
#include <map>
#include <numeric>

#include "datasets/npz.h"
#include "kernels/make_score.h"
#include "layers/layers.h"
#include "tests/tape.h"
#include "train/checkpoint.h"
#include "train/recipes.h"

using namespace heed;
using namespace heed::test;

namespace {

Matrix<float> matrix(
    const Array& a) {  // one row, where the array has fewer than two dimensions or begins with (1, ...)
  auto values = a.as<float>();
  Offset rows = a.shape.size() == 2 ? a.shape[0] : 1;
  Matrix<float> out(rows, static_cast<Offset>(values.size()) / rows);
  std::copy(values.begin(), values.end(), out.begin());
  return out;
}

Matrix<float> transposed(const Matrix<float>& x) {
  Matrix<float> out(x.cols(), x.rows());
  for (Offset i = 0; i < x.rows(); ++i)
    for (Offset c = 0; c < x.cols(); ++c) out(c, i) = x(i, c);
  return out;
}

struct Layer {
  std::string file;
  Model model;
  std::map<std::string, std::string> names;  // heed's of PyTorch's
  std::shared_ptr<Var<float>> more = {};     // where it is given: what the model adds to the loss
};

Npz stored(const std::string& file) { return read_npz(std::string(HEED_SOURCE "/tests/oracles/") + file + ".npz"); }

// The layer with its input as one more parameter, so that it takes a gradient.
Model with_input(Model layer) {
  return [=]<class T>(Scope<T>& scope, Var<T> x) { return layer(scope, scope.parameter("x", x.rows(), x.cols(), {})); };
}

// attend with edge features and its own names, but for these features themselves: a parameter "edge_attr".
Model by_hand(const std::string& score, Offset out, int heads) {
  return [=]<class T>(Scope<T>& scope, Var<T> x) {
    const Offset total = out * heads;
    auto pattern = scope.pattern(local());
    auto weight = [&](const std::string& name, Var<T> in) {
      return linear(in, scope.parameter(name, in.cols(), total, {}));
    };
    auto biased = [&](const std::string& name) {
      Var<T> y = weight(name + ".weight", x);
      return add_bias(y, scope.parameter(name + ".bias", 1, total, {}));
    };
    Var<T> e = weight("edge.weight", scope.parameter("edge_attr", pattern->edges(), scope.graph().channels, {}));
    AttentionVars<T> in;
    if (score == "gat") {
      Var<T> h = weight("weight", x);
      in.v = h;
      in.k = contract(h, scope.parameter("att_src", 1, total, {}), heads);
      in.q = contract(h, scope.parameter("att_dst", 1, total, {}), heads);
      in.e = contract(e, scope.parameter("att_edge", 1, total, {}), heads);
    } else if (score == "gatv2") {
      in.k = in.v = biased("source");
      in.q = biased("target");
      in.a = scope.parameter("att", 1, total, {});
      in.e = e;
    } else {
      in.q = scale(biased("query"), 1 / std::sqrt(static_cast<double>(out)));
      in.k = biased("key");
      in.v = biased("value");
      in.e = in.ev = e;
    }
    Var<T> y = attention(in, pattern, score_named(score), normaliser_named("softmax"), heads);
    if (score == "dot") return add(y, biased("skip"));
    return add_bias(y, scope.parameter("bias", 1, total, {}));
  };
}

Model gat(Offset out, int heads, bool concat) {
  return attend({.out = out, .heads = heads, .score = score_named("gat"), .concat = concat});
}
Model gatv2(Offset out, int heads, bool concat) {
  return attend({.out = out, .heads = heads, .score = score_named("gatv2"), .concat = concat});
}
Model transformer(Offset out, int heads, bool concat, bool edges = false) {
  return attend({.out = out,
                 .heads = heads,
                 .mask = local(),
                 .concat = concat,
                 .residual = true,
                 .edges = edges,
                 .query_scale = 1 / std::sqrt(static_cast<double>(out))});
}
Model with_edges(const char* score, Offset out, int heads) {
  return attend({.out = out, .heads = heads, .score = score_named(score), .mask = local(), .edges = true});
}

// AGNNConv: y_i = sum_j softmax(b cos(x_i, x_j)) x_j, with itself among the j.
Model agnn() {
  return []<class T>(Scope<T>& scope, Var<T> x) {
    AttentionVars<T> in;
    in.q = in.k = unit<T>(x, 1), in.v = x;
    in.p = scope.parameter("beta", 1, 1, {});
    return attention(in, scope.pattern(local() | self()), score_named("cosine"), normaliser_named("softmax"), 1);
  };
}

// FAConv: y_i = 0.3 x0_i + sum_j tanh(a_l x_j + a_r x_i) / sqrt(d_i d_j) x_j, with itself among the j.
Model frequency_adaptive() {
  return []<class T>(Scope<T>& scope, Var<T> x) {
    auto pattern = scope.pattern(local() | self()), itself = scope.pattern(self());
    std::vector<T> inverse;
    for (Id i = 0; i < pattern->queries(); ++i)
      inverse.push_back(1 / std::sqrt(static_cast<T>(pattern->by_query.list->degree(i))));
    AttentionVars<T> in;
    in.k = linear(x, scope.parameter("att_l.weight", x.cols(), 1, {}));
    in.q = linear(x, scope.parameter("att_r.weight", x.cols(), 1, {}));
    in.v = propagate(x, itself, {}, inverse);
    Var<T> y = attention(in, pattern, make_score(scores::Gat{.slope = 1}), normaliser_named("tanh"), 1);
    return add(propagate(y, itself, {}, inverse), scale(scope.parameter("x_0", x.rows(), x.cols(), {}), 0.3));
  };
}

// SuperGATConv, "MX": softmax of leaky((a_l x_j + a_r x_i) sigmoid(x_i . x_j)), and as its loss how well the mean over
// heads of x_i . x_j tells edges from the pairs in `negative`.
Model self_supervised(std::shared_ptr<Var<float>> loss) {
  struct Pairs {
    std::vector<Id> rows, labels;
  };
  auto pairs = std::make_shared<Pairs>();
  return [=]<class T>(Scope<T>& scope, Var<T> x) {
    const int heads = 3;
    const Offset total = 4 * heads;
    auto pattern = scope.pattern(local() | self());
    Var<T> h = linear(x, scope.parameter("weight", x.cols(), total, {}));
    AttentionVars<T> static_part, products, in;
    static_part.k = contract(h, scope.parameter("att_l", 1, total, {}), heads);
    static_part.q = contract(h, scope.parameter("att_r", 1, total, {}), heads);
    products.q = products.k = h;
    Var<T> first = attention_scores(static_part, pattern, make_score(scores::Gat{.slope = 1}), heads);
    Var<T> second = attention_scores(products, pattern, score_named("dot"), heads);
    std::vector<Var<T>> gated;
    for (int c = 0; c < heads; ++c) gated.push_back(gate<T>({first, c, 1}, columns<T>({second, c, 1})));
    in.bias = activate(concat(gated), Activation::leaky_relu);
    in.v = h;
    in.q = in.k = scale(static_part.k.of, 0);
    Var<T> y = attention(in, pattern, score_named("node"), normaliser_named("softmax"), heads);

    const auto ends = stored("supergat")["negative"].as<Id>();
    std::vector<Edge> none;
    for (std::size_t e = 0; e < ends.size() / 2; ++e) none.push_back({ends[e], ends[ends.size() / 2 + e]});
    const Graph negative = graph_from_edges(static_cast<Id>(x.rows()), none, {.direction = Direction::directed});
    auto both = std::make_shared<Csr>(unite(*pattern->by_query.list, *negative.adjacency));
    *pairs = {};
    for (Id i = 0; i < both->rows; ++i)
      for (Id j : both->row(i)) {
        pairs->rows.push_back(static_cast<Id>(pairs->rows.size()));
        pairs->labels.push_back(pattern->by_query.list->contains(i, j));
      }
    Var<T> logits = mean_heads(attention_scores(products, Pattern::listed(both), score_named("dot"), heads), heads);
    if constexpr (std::is_same_v<T, float>) *loss = binary_cross_entropy<T>(logits, pairs->rows, pairs->labels);
    return add_bias(y, scope.parameter("bias", 1, total, {}));
  };
}

// SuperGATConv, "SD": softmax of leaky(x_i . x_j / sqrt(d)).
struct LeakyDot : scores::Dot {
  using Sum = scores::Dot;
  static constexpr const char* name = "leaky_dot";
  template <class X>
  HEED_FN X finish(X sum, const X*, int width) const {
    return fn::leaky(sum / fn::sqrt(X(width)), 0.2f);
  }
};
Model scaled_products() {
  return []<class T>(Scope<T>& scope, Var<T> x) {
    AttentionVars<T> in;
    in.q = in.k = in.v = linear(x, scope.parameter("weight", x.cols(), 12, {}));
    Var<T> y = attention(in, scope.pattern(local() | self()), make_score(LeakyDot{}), normaliser_named("softmax"), 3);
    return add_bias(y, scope.parameter("bias", 1, 12, {}));
  };
}

std::vector<Layer> layers() {
  using Names = std::map<std::string, std::string>;
  const Names gat_names{{"lin.weight", "weight"}, {"att_src", "att_src"}, {"att_dst", "att_dst"}, {"bias", "bias"}};
  const Names gatv2_names{{"lin_l.weight", "source.weight"},
                          {"lin_l.bias", "source.bias"},
                          {"lin_r.weight", "target.weight"},
                          {"lin_r.bias", "target.bias"},
                          {"att", "att"},
                          {"bias", "bias"}};
  Names transformer_names;
  for (const char* side : {"query", "key", "value", "skip"})
    for (const char* part : {".weight", ".bias"})
      transformer_names["lin_" + std::string(side) + part] = side + std::string(part);
  auto with = [](Names names, Names more) {
    names.merge(more);
    return names;
  };
  const Names edge{{"lin_edge.weight", "edge.weight"}};
  const Names contracted = with(gat_names, with(edge, {{"att_edge", "att_edge"}}));
  const Names table{{"edge_attr", "edge_attr"}};
  std::vector<Layer> out{
      {"gat", gat(8, 8, true), gat_names},
      {"gat_mean", gat(7, 3, false), gat_names},
      {"gat_edges", with_edges("gat", 8, 3), contracted},
      {"gat_edges", by_hand("gat", 8, 3), with(contracted, table)},
      {"gatv2", gatv2(8, 8, true), gatv2_names},
      {"gatv2_mean", gatv2(7, 3, false), gatv2_names},
      {"gatv2_edges", with_edges("gatv2", 8, 3), with(gatv2_names, edge)},
      {"gatv2_edges", by_hand("gatv2", 8, 3), with(gatv2_names, with(edge, table))},
      {"transformer", transformer(8, 4, true), transformer_names},
      {"transformer_mean", transformer(7, 3, false), transformer_names},
      {"transformer_edges", transformer(8, 4, true, true), with(transformer_names, edge)},
      {"transformer_edges", by_hand("dot", 8, 4), with(transformer_names, with(edge, table))},
      {"gcn", graph_convolution(9), {{"lin.weight", "weight"}, {"bias", "bias"}}},
      // PyG's bias stands beside the neighbours' weight; it is the same sum.
      {"sage",
       sage_convolution(9),
       {{"lin_l.weight", "neighbours.weight"}, {"lin_l.bias", "self.bias"}, {"lin_r.weight", "self.weight"}}},
  };
  out.push_back({"agnn", agnn(), {{"beta", "beta"}}});
  out.push_back({"fa",
                 frequency_adaptive(),
                 {{"x_0", "x_0"}, {"conv.att_l.weight", "att_l.weight"}, {"conv.att_r.weight", "att_r.weight"}}});
  auto loss = std::make_shared<Var<float>>();
  out.push_back(
      {"supergat",
       self_supervised(loss),
       {{"conv.lin.weight", "weight"}, {"conv.att_l", "att_l"}, {"conv.att_r", "att_r"}, {"conv.bias", "bias"}},
       loss});
  out.push_back({"supergat_sd", scaled_products(), {{"lin.weight", "weight"}, {"bias", "bias"}}});
  // torch.nn.functional.scaled_dot_product_attention with a mask of numbers, and the same with entmax's normalisers.
  Names masked{{"pair_bias", "pair_bias"}};
  for (const char* side : {"query", "key", "value"})
    for (const char* part : {".weight", ".bias"}) masked[side + std::string(part)] = side + std::string(part);
  for (auto [file, normaliser] : {std::pair{"sdpa", "softmax"}, {"sparsemax", "sparsemax"}, {"entmax15", "entmax15"}})
    out.push_back({file,
                   attend({.out = 4,
                           .heads = 3,
                           .score = score_named("scaled_dot"),
                           .normaliser = normaliser_named(normaliser),
                           .mask = local(),
                           .edge_bias = true}),
                   masked});
  // The menus' own, with one normaliser each.
  for (auto [score, normaliser] : {std::pair{"scaled_dot", "softmax"},
                                   {"bilinear", "softmax_sink"},
                                   {"cosine", "none"},
                                   {"pearson", "entmax15"},
                                   {"bahdanau", "tanh"},
                                   {"mlp", "sigmoid"},
                                   {"node", "sparsemax"},
                                   {"sqeuclidean", "max"},
                                   {"euclidean", "sparsemax"},
                                   {"gaussian", "sum"},
                                   {"laplace", "entmax15"},
                                   {"softdtw", "softmax"}}) {
    const Score s = score_named(score);
    const bool hidden = s.prepares == Prepare::hidden, shared = s.reads_vector && !hidden;
    Names names;
    for (const char* side : {"query", "key", "value"})
      for (const char* part : {"weight", "bias"})
        if (!s.contracts && !shared) names[std::string(side) + "_" + part] = std::string(side) + "." + part;
    for (const char* side : {"source", "target"})
      for (const char* part : {"weight", "bias"})
        if (shared) names[std::string(side) + "_" + part] = std::string(side) + "." + part;
    if (s.contracts) names["weight"] = "weight";
    if (s.contracts || shared) names["bias"] = "bias";
    if (s.contracts || s.reads_vector) names["att"] = "att";
    if (s.scalars > 0) names["scalars"] = "scalars";
    if (s.prepares == Prepare::bilinear) names["bilinear"] = "bilinear";
    out.push_back({std::string("score_") + score,
                   attend({.out = 4,
                           .heads = 3,
                           .score = s,
                           .normaliser = normaliser_named(normaliser),
                           .mask = local(),
                           .score_width = hidden ? 5 : 0}),
                   names});
  }
  return out;
}

}  // namespace

TEST_SUITE_BEGIN("oracles");

TEST_CASE("layers give PyTorch's outputs and gradients") {
  double worst = 0;
  for (Layer& layer : layers()) {
    CAPTURE(layer.file);
    Npz stored = ::stored(layer.file);
    auto ids = stored["edge_index"].as<Id>();
    const std::size_t count = ids.size() / 2;
    std::vector<Edge> edges;
    for (std::size_t e = 0; e < count; ++e) edges.push_back({.from = ids[e], .to = ids[count + e]});
    Features features{.dense = matrix(stored["x"]), .sparse = nullptr};
    Matrix<float> table = stored.contains("edge_attr") ? matrix(stored["edge_attr"]) : Matrix<float>();
    const EdgePolicy policy{.loops = Loops::keep, .direction = Direction::directed};
    const Id nodes = static_cast<Id>(features.rows());
    std::vector<float> numbers(count);  // as weights they tell each edge's place in the list
    std::iota(numbers.begin(), numbers.end(), 0.0f);
    Graph places = graph_from_edges(nodes, edges, policy, numbers);
    Graph graph = graph_from_edges(nodes, edges, policy, {}, {table.data(), static_cast<std::size_t>(table.size())},
                                   static_cast<int>(table.cols()));
    REQUIRE(graph.edges() == static_cast<Offset>(count));
    auto as_graph = [&](const Matrix<float>& x) {  // rows in the graph's order of edges
      Matrix<float> out(x.rows(), x.cols());
      for (Offset e = 0; e < x.rows(); ++e)
        std::copy_n(x.row(static_cast<Offset>(places.weights[e])), x.cols(), out.row(e));
      return out;
    };

    Network<float> network(with_input(layer.model), graph, features, 1);
    auto names = layer.names;
    names["x"] = "x";
    CHECK(network.parameters().size() == names.size());
    auto heeds = [&](const std::string& key, const std::string& name) {
      Matrix<float> x = matrix(stored[key]);
      if (name == "edge_attr") return as_graph(x);
      if (name.ends_with("weight")) return transposed(x);  // PyTorch's are out x in
      return x;
    };
    for (const auto& [theirs, ours] : names) {
      CAPTURE(ours);
      Matrix<float> value = heeds(theirs, ours);
      Parameter<float>& p = network.parameter(ours);
      REQUIRE(p.value.rows() == value.rows());
      REQUIRE(p.value.cols() == value.cols());
      p.value = std::move(value);
    }
    Var<float> loss = inner(network.output(), matrix(stored["dout"]));
    if (layer.more) loss = add(loss, *layer.more);
    network.tape().forward();
    network.tape().backward(loss);
    auto compare = [&](const std::string& what, const Matrix<float>& x, const Matrix<float>& expected) {
      CAPTURE(what);
      double error = difference(x, expected);
      CHECK(error <= (what == "grad.scalars" ? 3e-5 : 1e-5));  // sums over all edges, which cancel
      worst = std::max(worst, error);
    };
    compare("out", network.output().value(), matrix(stored["out"]));
    for (const auto& [theirs, ours] : names) {
      Matrix<float> expected = heeds("grad." + theirs, ours);
      // Softmax forgets what is added to all scores of a row: the gradient is 0 but for rounding.
      double norm = 0;
      for (float g : expected) norm += std::abs(g);
      if (norm < 1e-6)
        for (float g : network.parameter(ours).grad) CHECK(std::abs(g) < 1e-5);
      else
        compare("grad." + ours, network.parameter(ours).grad, expected);
    }
  }
  MESSAGE("worst relative error " << worst);
}

TEST_CASE("networks that PyTorch Geometric made give their logits here") {
  for (const char* name : {"gat", "gat_residual", "gatv2", "transformer"}) {
    CAPTURE(name);
    const std::string path = std::string(HEED_SOURCE "/tests/oracles/network_") + name;
    const Npz stored = read_npz(path + ".npz");
    const Safetensors weights = read_safetensors(path + ".safetensors");
    const auto ends = stored["edge_index"].as<std::int32_t>();
    const std::size_t count = ends.size() / 2;
    std::vector<Edge> edges;
    for (std::size_t e = 0; e < count; ++e) edges.push_back({ends[e], ends[count + e]});
    Dataset data{.features = {.dense = matrix(stored["x"]), .sparse = nullptr}, .classes = 5};
    data.graph = graph_from_edges(static_cast<Id>(data.features.rows()), edges,
                                  {.loops = Loops::keep, .direction = Direction::directed});
    const Recipe recipe = resolve(parse_toml(weights.metadata.at("heed.config"), "heed.config"));
    const auto logits = predict(make_model(recipe, data.classes), data.graph, data.features, weights);
    CHECK(difference(logits, matrix(stored["out"])) <= 1e-5);
  }
}

TEST_SUITE_END();
