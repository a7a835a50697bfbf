#!/usr/bin/env python3
"""heed beside PyTorch Geometric on this machine's CPU: A B A B ..., medians, ratios and peak memories in one table.

    bench/peers/setup.sh                       # once
    bench/peers/compare.py --data FOLDER       # FOLDER holds cora/ind.cora.x ...
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", help="folder with the Planetoid files; without it the epoch is left out")
parser.add_argument("--rounds", type=int, default=3, help="how often A B is run")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--python", default=os.path.join(root, ".venv", "bin", "python"))
parser.add_argument("--heed", default=os.path.join(root, "build", "release", "heed"))
parser.add_argument("--only", choices=["epoch", "gat", "gatv2", "dot"])
args = parser.parse_args()


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def alternate(a, b):
    both = [[], []]
    for _ in range(args.rounds):
        for at, command in enumerate((a, b)):
            both[at].append(run(command))
    return both


def row(what, ours, theirs, key):
    mine, other = (statistics.median(r[key] for r in side) for side in (ours, theirs))
    memory = [max(r["peak_rss_mb"] for r in side) for side in (ours, theirs)]
    print(f"| {what} | {mine:.1f} | {other:.1f} | {other / mine:.1f} | {memory[0]:.0f} | {memory[1]:.0f} | "
          f"{memory[1] / memory[0]:.1f} |", flush=True)
    return theirs[0]


cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
print(f"{datetime.date.today()}, {cpu or platform.machine()}, {args.threads} threads, median of {args.rounds} rounds A B\n")
print("| | heed ms | PyG ms | times faster | heed MB | PyG MB | times less |")
print("|---|---|---|---|---|---|---|", flush=True)
pyg = [args.python, os.path.join(root, "bench", "peers", "pyg.py")]
threads = ["--threads", str(args.threads)]
versions = {}
if args.data and args.only in (None, "epoch"):
    # As PyG's example: no dropout on the projected features, no early stopping.
    ours = [args.heed, "train", "cora", "--data", args.data, "--epochs", "100", "--patience", "0", "--feature-dropout",
            "0", "--quiet", "--json", *threads]
    versions = row("GAT on Cora, epoch with evaluation",
                   *alternate(ours, [*pyg, "epoch", "--data", args.data, *threads]), "epoch_ms")
with tempfile.TemporaryDirectory() as folder:
    edges = os.path.join(folder, "edges")
    ours = [args.heed, "bench", "layer", "--json", "--repeat", "9", "--write-edges", edges, *threads]
    for score in ("gat", "gatv2", "dot"):
        if args.only not in (None, score):
            continue
        sides = alternate([*ours, "--score", score], [*pyg, "layer", "--score", score, "--edges", edges, *threads])
        row(f"{score} layer, R-MAT, forward", *sides, "forward_ms")
        versions = row(f"{score} layer, R-MAT, forward + backward", *sides, "both_ms")
print(f"\ntorch {versions.get('torch')}, PyG {versions.get('pyg')}; R-MAT: 100 000 nodes, 2 000 000 edges, 64 channels in,"
      " 4 heads x 16 out.")
