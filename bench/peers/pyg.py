"""One measurement of PyTorch Geometric, printed as a JSON object: a training epoch on a Planetoid graph with PyG's own
GAT example, or one attention layer, forward and backward, on a list of edges that heed wrote."""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("what", choices=["epoch", "layer"])
parser.add_argument("--data", help="folder with cora/ind.cora.x and the rest")
parser.add_argument("--dataset", default="cora")
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--edges", help="pairs of 32-bit ids")
parser.add_argument("--nodes", type=int, default=100_000)
parser.add_argument("--score", default="gat", choices=["gat", "gatv2", "dot"])
parser.add_argument("--repeat", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torch_geometric  # noqa: E402
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(1)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def epoch():
    """examples/gat.py: features normalised, dropout 0.6 on both inputs and on attention, evaluation every epoch."""
    from torch_geometric.datasets import Planetoid
    from torch_geometric.transforms import NormalizeFeatures

    name = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}[args.dataset]
    with tempfile.TemporaryDirectory() as root:
        raw = os.path.join(root, name, "raw")
        os.makedirs(raw)
        source = os.path.join(args.data, args.dataset)
        for file in os.listdir(source):
            os.symlink(os.path.abspath(os.path.join(source, file)), os.path.join(raw, file))
        dataset = Planetoid(root, name, transform=NormalizeFeatures())
        data = dataset[0]
    imported = peak_mb()

    class GAT(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = GATConv(dataset.num_features, 8, heads=8, dropout=0.6)
            self.second = GATConv(64, dataset.num_classes, heads=1, concat=False, dropout=0.6)

        def forward(self, x, edge_index):
            x = F.dropout(x, p=0.6, training=self.training)
            x = F.elu(self.first(x, edge_index))
            x = F.dropout(x, p=0.6, training=self.training)
            return self.second(x, edge_index)

    model = GAT()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=5e-4)
    times = []
    for _ in range(args.epochs + 5):
        start = time.perf_counter()
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            predicted = model(data.x, data.edge_index).argmax(dim=-1)
            for mask in (data.train_mask, data.val_mask, data.test_mask):
                accuracy = int((predicted[mask] == data.y[mask]).sum()) / int(mask.sum())
        times.append(1000 * (time.perf_counter() - start))
    return {"epoch_ms": statistics.median(times[5:]), "test": 100 * accuracy, "imported_mb": imported}


def layer():
    pairs = torch.frombuffer(bytearray(open(args.edges, "rb").read()), dtype=torch.int32)
    edge_index = pairs.view(-1, 2).t().long().contiguous()
    imported = peak_mb()
    x = torch.randn(args.nodes, 64, requires_grad=True)
    if args.score == "gat":
        conv = GATConv(64, 16, heads=4, add_self_loops=False)
    elif args.score == "gatv2":
        conv = GATv2Conv(64, 16, heads=4, add_self_loops=False)
    else:
        conv = TransformerConv(64, 16, heads=4, root_weight=False)
    forward, both = [], []
    for _ in range(args.repeat + 1):
        start = time.perf_counter()
        y = conv(x, edge_index)
        middle = time.perf_counter()
        y.backward(torch.ones_like(y))
        end = time.perf_counter()
        forward.append(1000 * (middle - start))
        both.append(1000 * (end - start))
    return {"forward_ms": statistics.median(forward[1:]), "both_ms": statistics.median(both[1:]), "imported_mb": imported}


result = epoch() if args.what == "epoch" else layer()
result |= {"peak_rss_mb": peak_mb(), "torch": torch.__version__, "pyg": torch_geometric.__version__}
print(json.dumps(result))
