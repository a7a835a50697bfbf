"""Stores what others' layers compute, for tests/oracles.cpp to compare with: PyTorch Geometric's, PyTorch's scaled dot
products, the normalisers of `entmax` and the soft-DTW of `pysdtw`.

    pip install torch torch_geometric numpy entmax pysdtw
    python tests/oracles/make.py            # all of them, or those whose names are given

Each file is one layer on a small directed graph: its input `x` (nodes x channels), `edge_index` (2 x edges, from and
to), `edge_attr` where it reads edges, every parameter under PyTorch's name, the output `out`, a gradient `dout` of the
output, and `grad.*`: the gradients of x, edge_attr and every parameter. Inputs are float32 numbers; the layer runs in
float64, and what it gives is rounded to float32. score_* are layers of heed's menus, written here as dense algebra.
"""

import pathlib
import sys

import entmax
import numpy as np
import pysdtw
import torch
from torch_geometric.nn import (AGNNConv, FAConv, GATConv, GATv2Conv, GCNConv, SAGEConv, SuperGATConv,
                                TransformerConv)

NODES, CHANNELS, EDGES, EDGE_CHANNELS = 26, 12, 70, 5


def make_graph(loops):
    """No edge twice; nodes 3 and 17 are isolated; three nodes have an edge to themselves where `loops` is set."""
    alone = {3, 17}
    pairs = [(i, j) for i in range(NODES) for j in range(NODES) if i != j and not {i, j} & alone]
    edges = [pairs[t] for t in torch.randperm(len(pairs))[:EDGES]]
    if loops:
        edges += [(5, 5), (11, 11), (25, 25)]
    order = torch.randperm(len(edges))
    return torch.tensor(edges)[order].t().contiguous()


def rounded(*shape):
    return torch.randn(*shape).to(torch.float32).to(torch.float64)


def wanted(name):
    return name in sys.argv[1:] or len(sys.argv) == 1


def store(name, layer, seed, loops=True, edges=False):
    if not wanted(name):
        return
    torch.manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_((0.4 * rounded(*p.shape)).to(torch.float32))
    edge_index = make_graph(loops)
    inputs = {"x": rounded(NODES, CHANNELS).requires_grad_()}
    if edges:
        inputs["edge_attr"] = rounded(edge_index.shape[1], EDGE_CHANNELS).requires_grad_()
    out = layer(inputs["x"], edge_index, **({"edge_attr": inputs["edge_attr"]} if edges else {}))
    dout = rounded(*out.shape)
    more = layer.more() if hasattr(layer, "more") else {}  # a loss of its own and what it was made of
    ((out * dout).sum() + more.pop("loss", 0)).backward()
    inputs |= dict(layer.named_parameters())
    arrays = {key: value.detach() for key, value in inputs.items()}
    arrays |= {"grad." + key: value.grad for key, value in inputs.items()}
    arrays |= {"out": out.detach(), "dout": dout}
    arrays = {key: value.numpy().astype(np.float32) for key, value in arrays.items()}
    arrays |= {key: value.numpy() for key, value in more.items()}
    path = pathlib.Path(__file__).parent / (name + ".npz")
    np.savez(path, edge_index=edge_index.numpy(), **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes")


def store_network(name, convs, seed):
    """Two layers with ELU between them, as train/from_pyg.py writes them, and what they give for `x`."""
    if not wanted("network_" + name):
        return
    torch.manual_seed(seed)
    edge_index, x = make_graph(loops=True), torch.randn(NODES, CHANNELS)
    h = torch.nn.functional.elu(convs[0](x, edge_index))
    out = convs[1](h, edge_index).detach()
    path = pathlib.Path(__file__).parent / ("network_" + name)
    export(convs, path.with_suffix(".safetensors"))
    np.savez(path.with_suffix(".npz"), edge_index=edge_index.numpy(), x=x.numpy(), out=out.numpy())
    print(f"{path.name}: {path.with_suffix('.safetensors').stat().st_size} bytes")


class Masked(torch.nn.Module):
    """Scaled dot products under a mask, plus a linear map of edge_attr, by PyTorch, or with a normaliser of entmax."""

    def __init__(self, normaliser, heads, width):
        super().__init__()
        self.normaliser, self.heads = normaliser, heads
        for side in ("query", "key", "value"):
            setattr(self, side, torch.nn.Linear(CHANNELS, heads * width))
        self.pair_bias = torch.nn.Parameter(torch.zeros(EDGE_CHANNELS, heads))

    def forward(self, x, edge_index, edge_attr):
        q, k, v = (side(x).view(NODES, self.heads, -1).transpose(0, 1) for side in (self.query, self.key, self.value))
        mask = torch.full((self.heads, NODES, NODES), -torch.inf, dtype=x.dtype)
        mask = mask.index_put((torch.arange(self.heads)[:, None], edge_index[1], edge_index[0]),
                              (edge_attr @ self.pair_bias).T)
        some = (mask > -torch.inf).any(-1, keepdim=True)  # PyTorch has no meaning for a row without keys
        mask = torch.where(some, mask, 0)
        if self.normaliser is None:
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            y = self.normaliser(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + mask, dim=-1) @ v
        return torch.where(some, y, 0).transpose(0, 1).reshape(NODES, -1)


class FrequencyAdaptive(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.x_0 = FAConv(CHANNELS, eps=0.3), torch.nn.Parameter(torch.zeros(NODES, CHANNELS))

    def forward(self, x, edge_index):
        return self.conv(x, self.x_0, edge_index)


class SelfSupervised(torch.nn.Module):
    """SuperGAT with its loss, which tells edges from pairs that are none by the dot products alone."""

    def __init__(self):
        super().__init__()
        self.conv = SuperGATConv(CHANNELS, 4, heads=3, negative_slope=0.01)

    def forward(self, x, edge_index):
        loops = torch.arange(NODES)
        all = torch.cat([edge_index, torch.stack([loops, loops])], 1)
        self.negative = self.conv.negative_sampling(all, NODES)
        return self.conv(x, edge_index, self.negative)

    def more(self):
        return {"loss": self.conv.get_attention_loss(), "negative": self.negative}


class Dense(torch.nn.Module):
    """attend with any score and normaliser, as plain dense algebra over all pairs: the formulas of the papers."""

    def __init__(self, score, normaliser, heads, width, score_width=None):
        super().__init__()
        self.score, self.normaliser, self.heads, self.width = score, normaliser, heads, width
        sw = score_width or width
        parameter = lambda *shape: torch.nn.Parameter(torch.zeros(*shape))
        if score == "node":
            self.weight, self.att = parameter(heads * width, CHANNELS), parameter(1, heads * width)
            self.bias = parameter(heads * width)
            return
        learned = score in ("bahdanau", "laplace", "mlp")
        shared = learned and score != "mlp"
        sides = {"source": width, "target": width} if shared else {"query": sw, "key": sw, "value": width}
        for side, channels in sides.items():
            setattr(self, side + "_weight", parameter(heads * channels, CHANNELS))
            setattr(self, side + "_bias", parameter(heads * channels))
        if learned:
            self.att = parameter(1, heads * sw)
        if shared:
            self.bias = parameter(heads * width)
        if score in ("cosine", "pearson", "gaussian", "mlp"):
            self.scalars = parameter(1, heads)
        if score == "bilinear":
            self.bilinear = parameter(sw, heads * sw)

    def forward(self, x, edge_index):
        split = lambda y: y.view(NODES, self.heads, -1)
        if self.score == "node":
            v = split(x @ self.weight.T)
            q = k = None
        else:
            side = lambda name: split(x @ getattr(self, name + "_weight").T + getattr(self, name + "_bias"))
            if hasattr(self, "source_weight"):
                q, k, v = side("target"), side("source"), side("source")
            else:
                q, k, v = side("query"), side("key"), side("value")
        seen = torch.zeros(NODES, NODES, dtype=torch.bool)
        seen[edge_index[1], edge_index[0]] = True
        seen = seen[:, :, None]
        scores = self.scores(q, k, v).masked_fill(~seen, 0)
        weights = self.weights(scores, seen)
        y = torch.einsum("ijh,jhc->ihc", weights, v).reshape(NODES, -1)
        return y + self.bias if hasattr(self, "bias") else y

    def scores(self, q, k, v):
        a = self.att.view(self.heads, -1) if hasattr(self, "att") else None
        if self.score == "node":
            return (v * a).sum(-1)[None].expand(NODES, NODES, self.heads)
        apart = lambda: q[:, None] - k[None]
        together = lambda: q[:, None] + k[None]
        dot = lambda q, k: torch.einsum("ihc,jhc->ijh", q, k)
        unit = lambda x: x / x.norm(dim=-1, keepdim=True)
        centre = lambda x: x - x.mean(-1, keepdim=True)
        if self.score == "scaled_dot":
            return dot(q, k) / self.width**0.5
        if self.score == "bilinear":
            return dot(q, torch.einsum("jhc,chd->jhd", k, self.bilinear.view(self.width, self.heads, self.width)))
        if self.score == "cosine":
            return dot(unit(q), unit(k)) * self.scalars
        if self.score == "pearson":
            return dot(unit(centre(q)), unit(centre(k))) * self.scalars
        if self.score == "bahdanau":
            return (a * together().tanh()).sum(-1)
        if self.score == "mlp":
            return (a * together().relu()).sum(-1) + self.scalars
        if self.score == "sqeuclidean":
            return -(apart() ** 2).sum(-1)
        if self.score == "euclidean":
            return -(apart() ** 2).sum(-1).sqrt()
        if self.score == "gaussian":
            return torch.exp(-(apart() ** 2).sum(-1) / (2 * self.scalars.exp() ** 2))
        if self.score == "laplace":
            return -(a * apart().abs()).sum(-1)
        if self.score == "softdtw":
            pairs = [y.expand(NODES, NODES, -1, -1).reshape(-1, self.width, 1) for y in (q[:, None], k[None])]
            return -pysdtw.SoftDTW(gamma=1.0, use_cuda=False)(*pairs).view(NODES, NODES, self.heads)
        raise ValueError(self.score)

    def weights(self, s, seen):
        low = s.masked_fill(~seen, -1e30)
        total = lambda w: w.sum(1, keepdim=True)
        only = lambda w: w.masked_fill(~seen, 0)
        some = seen.any(1, keepdim=True)
        if self.normaliser == "softmax":
            return only(torch.softmax(low, 1))
        if self.normaliser == "softmax_sink":
            return only(torch.softmax(torch.cat([low, torch.zeros_like(low[:, :1])], 1), 1)[:, :-1])
        if self.normaliser == "sigmoid":
            return only(s.sigmoid())
        if self.normaliser == "tanh":
            return only(s.tanh())
        if self.normaliser == "none":
            return only(s)
        if self.normaliser == "mean":
            return only(seen / total(seen).clamp(min=1) + 0 * s)
        if self.normaliser == "max":
            return only((low - low.amax(1, keepdim=True)).exp())
        if self.normaliser == "sum":
            return only(s) / torch.where(some, total(only(s)), 1)
        return only(getattr(entmax, self.normaliser)(low, dim=1))


MENU = {"scaled_dot": "softmax", "bilinear": "softmax_sink", "cosine": "none", "pearson": "entmax15",
        "bahdanau": "tanh", "mlp": "sigmoid", "node": "sparsemax", "sqeuclidean": "max", "euclidean": "sparsemax",
        "gaussian": "sum", "laplace": "entmax15", "softdtw": "softmax"}


if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).parents[2] / "train"))
    from from_pyg import export

    # With edge features PyG gives added self loops the mean of a node's edges, so these layers add none.
    attending = {"edge_dim": EDGE_CHANNELS}
    plain = attending | {"add_self_loops": False}
    store("gat", GATConv(CHANNELS, 8, heads=8), 1)
    store("gat_mean", GATConv(CHANNELS, 7, heads=3, concat=False), 2)
    store("gat_edges", GATConv(CHANNELS, 8, heads=3, **plain), 3, edges=True)
    store("gatv2", GATv2Conv(CHANNELS, 8, heads=8), 4)
    store("gatv2_mean", GATv2Conv(CHANNELS, 7, heads=3, concat=False), 5)
    store("gatv2_edges", GATv2Conv(CHANNELS, 8, heads=3, **plain), 6, edges=True)
    store("transformer", TransformerConv(CHANNELS, 8, heads=4), 7)
    store("transformer_mean", TransformerConv(CHANNELS, 7, heads=3, concat=False), 8)
    store("transformer_edges", TransformerConv(CHANNELS, 8, heads=4, **attending), 9, edges=True)
    store("gcn", GCNConv(CHANNELS, 9), 10)
    store("sage", SAGEConv(CHANNELS, 9), 11)
    for seed, (name, normaliser) in enumerate(
            [("sdpa", None), ("sparsemax", entmax.sparsemax), ("entmax15", entmax.entmax15)], 40):
        store(name, Masked(normaliser, heads=3, width=4), seed, edges=True)
    store("agnn", AGNNConv(), 43)
    store("fa", FrequencyAdaptive(), 44)
    store("supergat", SelfSupervised(), 45)
    store("supergat_sd", SuperGATConv(CHANNELS, 4, heads=3, attention_type="SD"), 46)
    for seed, (score, normaliser) in enumerate(MENU.items(), 20):
        layer = Dense(score, normaliser, heads=3, width=4, score_width=5 if score == "mlp" else None)
        store("score_" + score, layer, seed)
    store_network("gat", [GATConv(CHANNELS, 8, heads=4), GATConv(32, 5, heads=1, concat=False)], 12)
    store_network("gat_residual", [GATConv(CHANNELS, 8, heads=4, residual=True),
                                   GATConv(32, 5, heads=3, concat=False, residual=True)], 13)
    store_network("gatv2", [GATv2Conv(CHANNELS, 8, heads=4), GATv2Conv(32, 5, heads=2, concat=False)], 14)
    store_network("transformer", [TransformerConv(CHANNELS, 8, heads=4),
                                  TransformerConv(32, 5, heads=2, concat=False)], 15)
