#include "train/recipes.h"

namespace heed {
namespace {

Recipe for_citations(const std::string& model, const std::string& dataset) {
  Recipe r;
  r.normalise_features = true;
  r.train = {.epochs = 1500, .patience = 100, .stop = Stop::loss, .rate = 5e-3, .decay = 5e-4};
  if (model == "gat" || model == "gatv2" || model == "transformer") {
    r.model = {.hidden = 8, .heads = 8, .dropout = 0.6, .feature_dropout = 0.6, .attention_dropout = 0.6};
    if (dataset == "pubmed") {  // as GAT's authors
      r.model.out_heads = 8;
      r.train.rate = 1e-2;
      r.train.decay = 1e-3;
    }
  } else {  // Kipf & Welling, arXiv:1609.02907, section 5.2
    r.model = {.hidden = 16, .heads = 1, .dropout = 0.5, .activation = Activation::relu};
    if (model == "mlp") r.model.hidden = 64;
    r.train.rate = 1e-2;
  }
  return r;
}

Recipe for_blocks(const std::string& model) {
  Recipe r;
  r.model = {.hidden = 8, .heads = 8, .dropout = 0.5, .attention_dropout = 0.3};
  r.train = {.epochs = 200, .stop = Stop::loss, .rate = 5e-3, .decay = 5e-4};
  if (model == "gcn" || model == "sage" || model == "mlp") r.model.hidden = 64, r.model.heads = 1;
  return r;
}

}  // namespace

Recipe recipe(const std::string& model, const std::string& dataset) {
  if (dataset == "cora" || dataset == "citeseer" || dataset == "pubmed") return for_citations(model, dataset);
  return for_blocks(model);
}

}  // namespace heed
