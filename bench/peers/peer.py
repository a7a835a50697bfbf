"""What the peers share: a measurement is a process that reads what heed wrote, does the same work, holds what it gets
against what heed got, and only then is timed. It prints one JSON object.

    heed bench layer --score gat --write gat.safetensors
    OMP_NUM_THREADS=2 python bench/peers/peer_pyg.py gat gat.safetensors

    heed convert cora cora-folder --format heed
    OMP_NUM_THREADS=2 python bench/peers/peer_pyg.py epoch cora-folder

A peer calls main() with its versions and a function for each kind of work. It takes the tensors by name and returns
`forward`, which gives y, and `leaves`, the tensors that take a gradient by heed's names; none where the peer has no
backward. For an epoch it takes the graph and the sizes, and returns the network.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

TOLERANCE = 1e-4  # of the relative error, by norms: what float leaves after sums of any length


def status_mb(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def forget_peak():
    """Gives free memory back, and lets Linux forget the most that the process ever held. False where it cannot."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def read(path):
    """name -> tensor, of a safetensors file: the length of a header in 8 bytes, the header in JSON, the numbers."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            numbers = np.fromfile(path, {"F32": "<f4", "I32": "<i4"}[entry["dtype"]], (end - begin) // 4,
                                  offset=8 + length + begin)
            out[name] = torch.from_numpy(numbers.reshape(entry["shape"]))
    return out


def like_heed(name, x):
    """A parameter or its gradient in heed's shape: weights are in x out, vectors 1 x n."""
    if name.endswith("weight"):
        return x.t()
    return x if x.dim() == 2 else x.reshape(1, -1)


def load(leaves, given):
    """Copies heed's parameters into those of a layer, and makes the input a leaf, too."""
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(given[name].t() if name.endswith("weight") else given[name].reshape(leaf.shape))
    x = given["x"].clone().requires_grad_()
    return x, {"x": x, **leaves}


def check(y, leaves, given):
    """The largest relative error by norms; raises where it is too large."""
    errors = {"y": (y.detach() - given["y"]).norm() / given["y"].norm()}
    # The bias of a key moves no softmax: its gradient is 0 but for rounding. Such a one is held against the others.
    least = 1e-3 * max((given["d" + name].norm() for name in leaves), default=0)
    for name, leaf in leaves.items():
        want = given["d" + name]
        errors["d" + name] = (like_heed(name, leaf.grad) - want).norm() / max(want.norm(), least)
    errors = {name: float(error) for name, error in errors.items()}
    print("relative errors:", ", ".join(f"{name} {error:.1e}" for name, error in errors.items()), file=sys.stderr)
    for name, error in errors.items():
        if not error <= TOLERANCE:
            sys.exit(f"{name} differs from heed's by {error:.1e}")
    return max(errors.values())


def measure_work(make, path, repeat, at_start):
    given = read(path)
    forward, leaves = make(given)
    dy = given["dy"] if leaves else None

    def step():
        for leaf in leaves.values():
            leaf.grad = None
        begin = time.perf_counter()
        y = forward()
        middle = time.perf_counter()
        if leaves:
            y.backward(dy)
        return y, 1000 * (middle - begin), 1000 * (time.perf_counter() - begin)

    error = check(step()[0], leaves, given)
    given.clear()  # what the work needs, `forward` holds
    known = forget_peak()
    step()
    times = [step()[1:] for _ in range(repeat)]
    result = {"forward_ms": statistics.median(t[0] for t in times), "error": error}
    if leaves:
        result["both_ms"] = statistics.median(t[1] for t in times)
    return result | {"held_mb": status_mb("VmHWM") - at_start if known else None}


class Citations:
    """A citation graph from heed's own folder (datasets/folder.h): rows of x sum to 1, as GAT's authors have it."""

    def __init__(self, folder):
        def array(name):
            return np.load(os.path.join(folder, name + ".npy"))

        with open(os.path.join(folder, "dataset.json")) as file:
            page = json.load(file)
        self.nodes, self.classes, self.channels = page["nodes"], page["classes"], page["channels"]
        self.out_heads = 8 if page["name"] == "pubmed" else 1
        offsets = array("feature_offsets")
        x = np.zeros((self.nodes, self.channels), np.float32)
        x[np.repeat(np.arange(self.nodes), np.diff(offsets)), array("feature_ids")] = array("feature_values")
        self.x = torch.from_numpy(x / np.maximum(x.sum(1, keepdims=True), 1e-12))
        to = np.repeat(np.arange(self.nodes), np.diff(array("offsets")))
        self.edges = torch.from_numpy(np.stack([array("ids").astype(np.int64), to]))  # from, to
        self.y = torch.from_numpy(array("labels").astype(np.int64))
        self.parts = [torch.from_numpy(array("splits")[0] == part) for part in (1, 2, 3)]  # train, valid, test


def measure_epoch(make, folder, epochs, at_start):
    """Adam as in the paper, a training step and an evaluation of all three parts every epoch."""
    data = Citations(folder)
    network = make(data)
    paper = {"lr": 0.01, "weight_decay": 1e-3} if data.out_heads == 8 else {"lr": 0.005, "weight_decay": 5e-4}
    optimizer = torch.optim.Adam(network.parameters(), **paper)
    times = []
    for _ in range(epochs):
        begin = time.perf_counter()
        network.train()
        optimizer.zero_grad()
        F.cross_entropy(network(data.x)[data.parts[0]], data.y[data.parts[0]]).backward()
        optimizer.step()
        network.eval()
        with torch.no_grad():
            right = network(data.x).argmax(dim=-1) == data.y
            accuracies = [100 * float(right[part].sum()) / int(part.sum()) for part in data.parts]
        times.append(1000 * (time.perf_counter() - begin))
    return {"epoch_ms": statistics.median(times), "test": accuracies[2], "held_mb": status_mb("VmHWM") - at_start}


def main(versions, works):
    at_start = status_mb("VmRSS")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=works)
    parser.add_argument("path", help="what heed wrote")
    parser.add_argument("--repeat", type=int, default=5, help="timed repetitions, of which the median counts")
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(1)
    make = works[args.work]
    result = (measure_epoch(make, args.path, args.epochs, at_start) if args.work == "epoch" else
              measure_work(make, args.path, args.repeat, at_start))
    print(json.dumps(result | {"versions": versions}))
