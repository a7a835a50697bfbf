// The layers from which models are put together. Each function returns a Model; `stack` puts them one after the other.
// Parameters are named by place and role ("0.weight", "2.query.bias"); weights are in x out.
#pragma once

#include <string>
#include <vector>

#include "layers/model.h"

namespace heed {

// How the operands come from the nodes.
enum class Projection {
  by_score,       // one for scores that contract (GAT), source_target for scores with a learned vector, else separate;
                  // separate too where scores have a width of their own
  one,            // h = W x is the query, the key and the value; no bias
  source_target,  // the query is W_r x + b_r; key and value are W_l x + b_l
  separate,       // query, key and value each have a weight and a bias
};

struct Attend {
  Offset out = 0;  // channels of a head
  int heads = 1;
  Score score = score_named("dot");
  Normaliser normaliser = normaliser_named("softmax");
  Mask mask = local() | self();
  std::vector<HeadMask> head_masks = {};  // in place of the mask: each head's own, from 0 on; surplus heads are
                                          // ignored
  Keys keys = all_keys();                 // what can be seen at all
  double dropout = 0;                     // of the attention weights
  double feature_dropout = 0;             // of the values, after the scores have read them
  bool concat = true;                     // result: n x heads*out; otherwise the mean over heads, n x out
  bool bias = true;
  bool residual = false;   // + W x, with a bias where the projections have one
  // These three take memory for each edge: edges heads x channels (twice while training), the others heads.
  bool edges = false;      // read the graph's edge features, or its weights where it has none
  bool edge_bias = false;  // add to the scores of an edge its features, or weight, times a learned number per head each
  bool parts = false;      // where masks are unions, as local | expander(8): add to a pair's score a learned number per
                           // head for each part (Mask::parts) that holds the pair
  double query_scale = 1;  // the query is multiplied by it
  Offset score_width = 0;  // channels of a head that the scores read; 0: as out. Otherwise projections are separate
  double temperature = 1;  // scores are divided by it
  bool learn_temperature = false;  // learned, one per head, starting at `temperature`
  Projection projection = Projection::by_score;
};

// y_i = sum_j w_ij v_j, heads side by side or averaged, plus a bias. With projection `one` and the score gat it is
// GATConv (arXiv:1710.10903), with source_target and gatv2 GATv2Conv (arXiv:2105.14491), with separate, dot, the
// residual and query_scale 1/sqrt(out) TransformerConv (UniMP, arXiv:2009.03509), where edge features join the value.
// What the score wants done to queries and keys (Prepare) is done. What edges, edge_bias and parts add to scores begins
// at 0 for biases; pairs that are no edge of the graph have features 0; all three need masks that are lists. Throws
// Error where options do not go together. Network::attention_weights returns the weights.
Model attend(Attend options);

// D^-1/2 (A + I) D^-1/2 x W + b         Kipf & Welling, arXiv:1609.02907, eq. 2
Model graph_convolution(Offset out, bool bias = true);

// W_1 x_i + W_2 mean_j x_j + b          GraphSAGE, arXiv:1706.02216, with the mean aggregator
Model sage_convolution(Offset out, bool bias = true);

Model dense(Offset out, bool bias = true);  // x W + b
Model activation(Activation f);
Model dropout(double rate);  // 0 <= rate < 1, of single numbers, in training (Srivastava et al. 2014)
Model layer_norm();          // over the channels of a node, then `weight` and `bias` (arXiv:1607.06450)
Model batch_norm();          // over the nodes; outside training by the running moments (arXiv:1502.03167)

// `inner` on a graph with m nodes more, which see all and are seen by all, whatever the masks (virtual nodes, as in
// Gilmer et al., arXiv:1704.01212, and Exphormer, arXiv:2303.06147). Each begins with a feature of its own, a channel
// that is 1 for it alone, which the first layer maps to what it learns; at the end they are cut off. Rows grow from n
// to n + m inside, and no list of m n pairs is made where the mask is `all`. Edge features of their pairs are 0.
Model virtual_nodes(int m, Model inner);

Model stack(std::vector<Model> layers);
// inner(x), computed on the graph with its nodes by falling degree, so that those which many see lie together; x and
// the result are in the graph's own order. Values differ from inner's by rounding, dropout draws others; and so do
// masks and keys that draw, or that break ties by a node's number: random, expander, shuffled, hubs, knn, ppr,
// community, degree, pagerank, farthest.
Model by_degree(Model inner);
Model residual(Model inner);             // x + inner(x); x W + inner(x) where the widths differ
Model concat(std::vector<Model> sides);  // [side_1(x) | side_2(x) | ...]
Model sum(std::vector<Model> sides);     // side_1(x) + side_2(x) + ...

}  // namespace heed
