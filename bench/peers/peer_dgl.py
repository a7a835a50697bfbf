"""DGL as a peer (bench/peers/peer.py): its layers, its sparse product, and GAT as in its own example. DGL has no layer
with a map each for query, key and value, so the dot product's is put together from its operators."""

import math
import os

os.environ.setdefault("DGLBACKEND", "pytorch")

import dgl  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from dgl.nn import GATConv, GATv2Conv  # noqa: E402

import peer  # noqa: E402

VERSIONS = {"DGL": dgl.__version__, "torch": torch.__version__}


def graph_of(given):
    return dgl.graph((given["edges"][:, 0].contiguous(), given["edges"][:, 1].contiguous()), num_nodes=len(given["x"]),
                     idtype=torch.int32)


def gat(given):
    graph = graph_of(given)
    conv = GATConv(given["x"].shape[1], 16, 4, allow_zero_in_degree=True)
    x, leaves = peer.load({"weight": conv.fc.weight, "att_src": conv.attn_l, "att_dst": conv.attn_r, "bias": conv.bias},
                          given)
    return lambda: conv(graph, x).flatten(1), leaves


def gatv2(given):
    graph = graph_of(given)
    conv = GATv2Conv(given["x"].shape[1], 16, 4, allow_zero_in_degree=True)
    bias = torch.zeros(64, requires_grad=True)  # DGL's layer has none after the sum
    x, leaves = peer.load({"source.weight": conv.fc_src.weight, "source.bias": conv.fc_src.bias,
                           "target.weight": conv.fc_dst.weight, "target.bias": conv.fc_dst.bias, "att": conv.attn,
                           "bias": bias}, given)
    return lambda: conv(graph, x).flatten(1) + bias, leaves


def dot(given):
    graph = graph_of(given)
    maps = {name: torch.nn.Linear(given["x"].shape[1], 64) for name in ("query", "key", "value")}
    x, leaves = peer.load({f"{name}.{part}": getattr(map, part) for name, map in maps.items()
                           for part in ("weight", "bias")}, given)

    def forward():
        q, k, v = (map(x).view(-1, 4, 16) for map in maps.values())
        s = dgl.ops.u_dot_v(graph, k, q / math.sqrt(16))
        return dgl.ops.u_mul_e_sum(graph, v, dgl.ops.edge_softmax(graph, s)).flatten(1)

    return forward, leaves


def sparse_product(given):
    graph, x, weights = graph_of(given), given["x"], given["weights"].reshape(-1, 1)
    return lambda: dgl.ops.u_mul_e_sum(graph, x, weights), {}


class Gat(torch.nn.Module):  # examples/pytorch/gat/train.py
    def __init__(self, data):
        super().__init__()
        self.graph = dgl.add_self_loop(dgl.graph(tuple(data.edges.int()), num_nodes=data.nodes))
        self.first = GATConv(data.channels, 8, 8, feat_drop=0.6, attn_drop=0.6, activation=F.elu)
        self.second = GATConv(64, data.classes, data.out_heads, feat_drop=0.6, attn_drop=0.6)

    def forward(self, x):
        return self.second(self.graph, self.first(self.graph, x).flatten(1)).mean(1)


if __name__ == "__main__":
    peer.main(VERSIONS, {"gat": gat, "gatv2": gatv2, "dot": dot, "spmm": sparse_product, "epoch": Gat})
