#include "layers/models.h"

namespace heed {
namespace {

// convolution(out, last) gives a layer's convolution.
template <class Convolution>
Model build(const ModelOptions& o, Convolution convolution) {
  if (o.classes < 1 || o.layers < 1) fail("a model needs at least 1 class and 1 layer");
  std::vector<Model> convolutions;
  for (int l = 0; l < o.layers; ++l) {
    const bool last = l + 1 == o.layers;
    convolutions.push_back(convolution(last ? o.classes : o.hidden, last));
  }
  Model whole = [o, convolutions = std::move(convolutions)]<class T>(Scope<T>& scope, Var<T> x) {
    for (std::size_t l = 0; l < convolutions.size(); ++l) {
      Scope<T> layer = scope.inside("layers." + std::to_string(l)), norm = scope.inside("norms." + std::to_string(l));
      x = convolutions[l](layer, dropout(x, l == 0 && o.input_dropout >= 0 ? o.input_dropout : o.dropout));
      if (l + 1 == convolutions.size()) break;
      if (o.norm == Norm::layer) x = layer_norm()(norm, x);
      if (o.norm == Norm::batch) x = batch_norm()(norm, x);
      x = activate(x, o.activation);
    }
    return x;
  };
  return o.virtual_nodes > 0 ? virtual_nodes(o.virtual_nodes, std::move(whole)) : whole;
}

Model attention_model(const ModelOptions& o, const char* score, const Mask& mask, bool scaled, bool residual) {
  const auto masks = o.mask.empty() ? std::vector<HeadMask>{} : head_masks_named(o.mask);
  // A layer may have fewer heads than another, and leaves the other masks out.
  const int heads = o.layers > 1 ? std::max(o.heads, o.out_heads) : o.out_heads;
  if (!masks.empty() && masks.back().last != kEveryHead && masks.back().last >= heads)
    fail("the mask '" + o.mask + "' names head " + std::to_string(masks.back().last) + ", and there are heads 0 to " +
         std::to_string(heads - 1));
  const Keys keys = keys_named(o.keys);
  return build(o, [=](Offset out, bool last) {
    return attend({.out = out,
                   .heads = last ? o.out_heads : o.heads,
                   .score = score_named(o.score.empty() ? score : o.score),
                   .normaliser = normaliser_named(o.normaliser.empty() ? "softmax" : o.normaliser),
                   .mask = mask,
                   .head_masks = masks,
                   .keys = keys,
                   .dropout = o.attention_dropout,
                   .feature_dropout = o.feature_dropout,
                   .concat = !last,
                   .residual = residual,
                   .edges = o.edges,
                   .edge_bias = o.edge_bias,
                   .parts = o.parts,
                   .query_scale = scaled && o.score.empty() ? 1 / std::sqrt(static_cast<double>(out)) : 1,
                   .score_width = o.score_width,
                   .temperature = o.temperature,
                   .learn_temperature = o.learn_temperature});
  });
}

template <class Convolution>
Model plain_model(const ModelOptions& o, Convolution convolution) {
  return build(o, [=](Offset out, bool) { return o.residual ? residual(convolution(out)) : convolution(out); });
}

}  // namespace

Model gat(const ModelOptions& o) { return attention_model(o, "gat", local() | self(), false, o.residual); }
Model gatv2(const ModelOptions& o) { return attention_model(o, "gatv2", local() | self(), false, o.residual); }
Model transformer(const ModelOptions& o) { return attention_model(o, "dot", local(), true, true); }
Model attention(const ModelOptions& o) { return attention_model(o, "scaled_dot", local() | self(), false, o.residual); }
Model gcn(const ModelOptions& o) {
  return plain_model(o, [](Offset out) { return graph_convolution(out); });
}
Model sage(const ModelOptions& o) {
  return plain_model(o, [](Offset out) { return sage_convolution(out); });
}
Model mlp(const ModelOptions& o) {
  return plain_model(o, [](Offset out) { return dense(out); });
}

const std::vector<std::string>& norm_names() {
  static const std::vector<std::string> names{"none", "layer", "batch"};
  return names;
}

Norm norm_named(const std::string& name) { return static_cast<Norm>(choose("norm", name, norm_names())); }

const std::vector<ModelEntry>& model_menu() {
  static const std::vector<ModelEntry> menu{
      {"gat", "graph attention network, arXiv:1710.10903", true, gat},
      {"gatv2", "dynamic graph attention, arXiv:2105.14491", true, gatv2},
      {"transformer", "graph transformer with scaled dot products, arXiv:2009.03509", true, transformer},
      {"attention", "attention with scaled dot products, or any --score and --normaliser", true, attention},
      {"gcn", "graph convolutional network, arXiv:1609.02907", false, gcn},
      {"sage", "GraphSAGE with the mean, arXiv:1706.02216", false, sage},
      {"mlp", "multilayer perceptron, which never looks at the graph", false, mlp},
  };
  return menu;
}

const ModelEntry& model_named(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& entry : model_menu()) {
    if (entry.name == name) return entry;
    names.push_back(entry.name);
  }
  unknown("model", name, names);
}

}  // namespace heed
