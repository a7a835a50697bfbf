"""Writes a network of PyTorch Geometric's GATConv, GATv2Conv or TransformerConv layers as a file that heed predicts with.

    pip install torch torch_geometric safetensors

    from from_pyg import export
    export([model.conv1, model.conv2], "model.safetensors", dataset="cora", activation="elu", normalise=True)

    heed predict --weights model.safetensors

Between the layers stands the activation; dropout is the identity when predicting. `normalise` says that rows of the
features were divided by their sums. heed's names and shapes, for layer l (weights are in x out, vectors 1 x n):

    GATConv          layers.l.{weight, att_src, att_dst, bias}
    GATv2Conv        layers.l.{source.weight, source.bias, target.weight, target.bias, att, bias}
    TransformerConv  layers.l.{query, key, value, skip}.{weight, bias}
    residual=True    layers.l.skip.weight, besides
"""

import json

from safetensors.torch import save_file
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

# PyTorch's name of a parameter -> heed's
NAMES = {
    GATConv: ("gat", {"lin.weight": "weight", "att_src": "att_src", "att_dst": "att_dst", "bias": "bias",
                      "res.weight": "skip.weight"}),
    GATv2Conv: ("gatv2", {"lin_l.weight": "source.weight", "lin_l.bias": "source.bias", "lin_r.weight": "target.weight",
                          "lin_r.bias": "target.bias", "att": "att", "bias": "bias", "res.weight": "skip.weight"}),
    TransformerConv: ("transformer", {"lin_query.weight": "query.weight", "lin_query.bias": "query.bias",
                                      "lin_key.weight": "key.weight", "lin_key.bias": "key.bias",
                                      "lin_value.weight": "value.weight", "lin_value.bias": "value.bias",
                                      "lin_skip.weight": "skip.weight", "lin_skip.bias": "skip.bias"}),
}


def export(convs, path, dataset="sbm", activation="elu", normalise=False):
    model, names = NAMES[type(convs[0])]
    hidden, last = convs[:-1], convs[-1]
    if any(type(c) is not type(last) for c in convs):
        raise ValueError("heed's models have one kind of convolution in all layers")
    if len({(c.heads, c.out_channels, c.concat) for c in hidden}) > 1 or not all(c.concat for c in hidden):
        raise ValueError("heed's hidden layers have the same heads and channels, and concatenate the heads")
    if last.concat and last.heads > 1:
        raise ValueError("heed's last layer averages its heads: concat=False")
    if model != "transformer" and any(not c.add_self_loops for c in convs):
        raise ValueError("heed's gat and gatv2 let every node attend to itself: add_self_loops=True")
    if any(abs(getattr(c, "negative_slope", 0.2) - 0.2) > 1e-12 for c in convs):
        raise ValueError("heed's gat and gatv2 have a negative_slope of 0.2")
    if any(getattr(c, "beta", False) for c in convs):
        raise ValueError("heed's transformer has no beta")

    tensors = {}
    for layer, conv in enumerate(convs):
        for name, value in conv.named_parameters():
            if name not in names:
                raise ValueError(f"layer {layer}: heed has no parameter for '{name}'")
            value = value.detach()
            value = value.t() if name.endswith("weight") else value.reshape(1, -1)
            tensors[f"layers.{layer}.{names[name]}"] = value.contiguous().float()
        if getattr(conv, "share_weights", False):  # one linear map for both ends
            for part in ("weight", "bias"):
                tensors[f"layers.{layer}.target.{part}"] = tensors[f"layers.{layer}.source.{part}"].clone()
        missing = [name for name in names if name != "res.weight" and f"layers.{layer}.{names[name]}" not in tensors]
        if missing:  # bias=False, root_weight=False
            raise ValueError(f"layer {layer}: heed wants '{missing[0]}', which this layer does not have")
    residual = model != "transformer" and any(n.endswith("skip.weight") for n in tensors)
    options = {"dataset": dataset, "model": model, "layers": len(convs), "activation": activation,
               "norm": "none", "mask": "", "keys": "all", "residual": residual, "normalise": normalise,
               "out-heads": last.heads}
    if hidden:
        options |= {"hidden": hidden[0].out_channels, "heads": hidden[0].heads}
    config = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    save_file(tensors, str(path), metadata={"format": "pt", "heed.config": config, "heed.classes": str(last.out_channels)})
