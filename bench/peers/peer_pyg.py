"""PyTorch Geometric as a peer (bench/peers/peer.py): its layers, its sparse product, and GAT of its own example."""

import torch
import torch.nn.functional as F
import torch_geometric
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv
from torch_geometric.utils import spmm

import peer

VERSIONS = {"PyG": torch_geometric.__version__, "torch": torch.__version__}


def layer(conv, leaves, given):
    edges = given["edges"].t().long().contiguous()
    x, leaves = peer.load(leaves, given)
    return lambda: conv(x, edges), leaves


def gat(given):
    conv = GATConv(given["x"].shape[1], 16, heads=4, add_self_loops=False)
    return layer(conv, {"weight": conv.lin.weight, "att_src": conv.att_src, "att_dst": conv.att_dst, "bias": conv.bias},
                 given)


def gatv2(given):
    conv = GATv2Conv(given["x"].shape[1], 16, heads=4, add_self_loops=False)
    return layer(conv, {"source.weight": conv.lin_l.weight, "source.bias": conv.lin_l.bias,
                        "target.weight": conv.lin_r.weight, "target.bias": conv.lin_r.bias, "att": conv.att,
                        "bias": conv.bias}, given)


def dot(given):
    conv = TransformerConv(given["x"].shape[1], 16, heads=4, root_weight=False)
    maps = {"query": conv.lin_query, "key": conv.lin_key, "value": conv.lin_value}
    return layer(conv, {f"{name}.{part}": getattr(map, part) for name, map in maps.items()
                        for part in ("weight", "bias")}, given)


def sparse_product(given):
    nodes, edges = len(given["x"]), given["edges"].long()
    offsets = torch.zeros(nodes + 1, dtype=torch.long)
    offsets[1:] = torch.bincount(edges[:, 1], minlength=nodes).cumsum(0)  # heed writes edges row by row
    a = torch.sparse_csr_tensor(offsets, edges[:, 0].contiguous(), given["weights"].flatten(), (nodes, nodes))
    x = given["x"]
    return lambda: spmm(a, x), {}


class Gat(torch.nn.Module):  # examples/gat.py
    def __init__(self, data):
        super().__init__()
        self.edges = data.edges
        self.first = GATConv(data.channels, 8, heads=8, dropout=0.6)
        self.second = GATConv(64, data.classes, heads=data.out_heads, concat=False, dropout=0.6)

    def forward(self, x):
        x = F.dropout(x, p=0.6, training=self.training)
        x = F.elu(self.first(x, self.edges))
        x = F.dropout(x, p=0.6, training=self.training)
        return self.second(x, self.edges)


if __name__ == "__main__":
    peer.main(VERSIONS, {"gat": gat, "gatv2": gatv2, "dot": dot, "spmm": sparse_product, "epoch": Gat})
