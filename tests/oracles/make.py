"""Stores what PyTorch Geometric's layers compute, for tests/oracles.cpp to compare with.

    pip install torch torch_geometric numpy
    python tests/oracles/make.py

Each file is one layer on a small directed graph: its input `x` (nodes x channels), `edge_index` (2 x edges, from and
to), `edge_attr` where it reads edges, every parameter under PyTorch's name, the output `out`, a gradient `dout` of the
output, and `grad.*`: the gradients of x, edge_attr and every parameter. Inputs are float32 numbers; the layer runs in
float64, and what it gives is rounded to float32.
"""

import pathlib
import sys

import numpy as np
import torch
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, SAGEConv, TransformerConv

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


def store(name, layer, seed, loops=True, edges=False):
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
    out.backward(dout)
    inputs |= dict(layer.named_parameters())
    arrays = {key: value.detach() for key, value in inputs.items()}
    arrays |= {"grad." + key: value.grad for key, value in inputs.items()}
    arrays |= {"out": out.detach(), "dout": dout}
    arrays = {key: value.numpy().astype(np.float32) for key, value in arrays.items()}
    path = pathlib.Path(__file__).parent / (name + ".npz")
    np.savez(path, edge_index=edge_index.numpy(), **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes")


def store_network(name, convs, seed):
    """Two layers with ELU between them, as train/from_pyg.py writes them, and what they give for `x`."""
    torch.manual_seed(seed)
    edge_index, x = make_graph(loops=True), torch.randn(NODES, CHANNELS)
    h = torch.nn.functional.elu(convs[0](x, edge_index))
    out = convs[1](h, edge_index).detach()
    path = pathlib.Path(__file__).parent / ("network_" + name)
    export(convs, path.with_suffix(".safetensors"))
    np.savez(path.with_suffix(".npz"), edge_index=edge_index.numpy(), x=x.numpy(), out=out.numpy())
    print(f"{path.name}: {path.with_suffix('.safetensors').stat().st_size} bytes")


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
    store_network("gat", [GATConv(CHANNELS, 8, heads=4), GATConv(32, 5, heads=1, concat=False)], 12)
    store_network("gat_residual", [GATConv(CHANNELS, 8, heads=4, residual=True),
                                   GATConv(32, 5, heads=3, concat=False, residual=True)], 13)
    store_network("gatv2", [GATv2Conv(CHANNELS, 8, heads=4), GATv2Conv(32, 5, heads=2, concat=False)], 14)
    store_network("transformer", [TransformerConv(CHANNELS, 8, heads=4),
                                  TransformerConv(32, 5, heads=2, concat=False)], 15)
