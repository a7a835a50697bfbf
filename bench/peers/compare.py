#!/usr/bin/env python3
"""heed beside PyTorch Geometric, DGL and torch's own attention on this machine's CPU: A B A B ..., medians, ratios and
memory in one table. A peer is timed only where it gets what heed got.

    bench/peers/setup.sh                                 # once
    bench/peers/compare.py --data FOLDER                 # FOLDER holds cora/ind.cora.x ...; 11 minutes a round
    bench/peers/compare.py --data FOLDER --readme        # writes the table into README.md, too
    bench/peers/compare.py --only 'gat*' --rounds 1      # without data: what runs on generated graphs
"""

import argparse
import dataclasses
import datetime
import fnmatch
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PASSES = {"epoch_ms": "", "forward_ms": ", forward", "both_ms": ", forward + backward"}
COLUMNS = ["PyG", "DGL"]  # the first is torch's where a work is torch's


@dataclasses.dataclass
class Case:
    name: str  # for --only
    work: str  # in the table
    heed: list  # what heed runs
    peers: dict  # column -> script and its work
    dataset: str = ""  # read from --data
    passes: tuple = ("forward_ms", "both_ms")


def both(work):
    return {"PyG": ("peer_pyg.py", work), "DGL": ("peer_dgl.py", work)}


def cases():
    for name in ("cora", "citeseer", "pubmed"):
        # As the peers' own examples: no dropout on the projected features, no early stopping.
        yield Case(name, f"GAT on {name.capitalize()}, an epoch with evaluation",
                   ["train", name, "--patience", "0", "--feature-dropout", "0", "--quiet"], both("epoch"), name,
                   ("epoch_ms",))
    for graph in ("rmat", "github", "amazon_photo", "coauthor_physics"):
        for score, layer in (("gat", "GAT"), ("gatv2", "GATv2"), ("dot", "dot product")):
            yield Case(f"{score}-{graph}", f"{layer} layer, {graph}",
                       ["bench", "layer", "--score", score, "--graph", graph], both(score),
                       "" if graph == "rmat" else graph)
    for score, layer in (("gat", "GAT"), ("gatv2", "GATv2"), ("dot", "dot product")):
        yield Case(f"{score}-reordered", f"{layer} layer, rmat, heed's nodes by degree",
                   ["bench", "layer", "--score", score, "--reorder"], {"DGL": ("peer_dgl.py", score)})
    yield Case("spmm", "weighted sum of neighbours, rmat", ["bench", "--kernels", "spmm"], both("spmm"), "",
               ("forward_ms",))
    attention = ["bench", "--kernels", "attention", "--scores", "dot", "--normalisers", "softmax", "--nodes", "8000"]
    sparse = [*attention, "--graphs", "rmat", "--edges", "160000"]
    yield Case("all", "dot product of all pairs of 8000 nodes; torch SDPA", [*attention, "--graphs", "all"],
               {"PyG": ("peer_torch.py", "all")})
    yield Case("masked", "dot product, 8000 nodes, 160 000 edges; SDPA, boolean mask", sparse,
               {"PyG": ("peer_torch.py", "masked")})
    yield Case("flex", "dot product, 8000 nodes, 160 000 edges; FlexAttention (no backward on the CPU)", sparse,
               {"PyG": ("peer_torch.py", "flex")}, "", ("forward_ms",))


class Failed(Exception):
    pass


def run(command, args):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": str(args.threads)})
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise Failed((done.stderr.strip().splitlines() or ["no word"])[-1])
    return done.stdout


def heed(case, args, *more):
    """One run of heed: milliseconds a pass, and MB above what the program holds at its start."""
    command = [args.heed, *case.heed, "--threads", args.threads, "--json", *more]
    if case.dataset:
        command += ["--data", args.data]
    out = json.loads(run(command, args))
    if case.heed[0] == "train":
        return {"epoch_ms": out["epoch_ms"], "held_mb": out["peak_rss_mb"], "test": out["test_mean"]}
    if isinstance(out, dict):
        return out
    rows = {"forward_ms" if row["pass"] == "forward" else "both_ms": row for row in out}
    return {name: row["ms"] for name, row in rows.items()} | {"held_mb": rows[case.passes[-1]]["held_mb"]}


def measure(case, args, folder):
    """column -> its runs, or why there are none; heed's under "heed"."""
    if case.heed[0] == "train":
        given, how_often = folder / case.name, ["--epochs", args.epochs]
        run([args.heed, "convert", case.dataset, given, "--format", "heed", "--data", args.data], args)
    else:
        given, how_often = folder / "given.safetensors", ["--repeat", args.repeat]
        heed(case, args, "--repeat", 1, "--write", given)
    runs = {"heed": [], **{column: [] for column in case.peers}}
    for _ in range(args.rounds):
        runs["heed"].append(heed(case, args, *how_often))
        for column, (script, work) in case.peers.items():
            if isinstance(runs[column], str):
                continue
            command = [args.dgl_python if column == "DGL" else args.python, ROOT / "bench/peers" / script, work, given]
            try:
                runs[column].append(json.loads(run([*command, *how_often], args)))
                # Dropout draws differently everywhere: all that can be held together is how good whole trainings are.
                here, there = runs["heed"][-1].get("test", 0), runs[column][-1].get("test", 0)
                if args.epochs >= 100 and abs(here - there) > 5:
                    raise Failed(f"{there:.1f} % of the test nodes are right, with heed {here:.1f} %")
            except Failed as why:
                runs[column] = str(why)
    return runs


def rows_of(case, runs):
    def median(column, key):
        if isinstance(runs.get(column, ""), str):
            return None
        values = [r[key] for r in runs[column] if r.get(key) is not None]
        return statistics.median(values) if len(values) == len(runs[column]) else None

    def cells(key, digits):
        ours = median("heed", key)
        out = ["-" if ours is None else f"{ours:.{digits}f}"]
        for column in COLUMNS:
            theirs = median(column, key)
            out.append("-" if ours is None or theirs is None else f"{theirs:.{digits}f} ({theirs / ours:.1f})")
        return out

    for name in case.passes:  # memory is that of the whole work, and stands in its last row
        memory = cells("held_mb", 0) if name == case.passes[-1] else [""] * (1 + len(COLUMNS))
        yield "| " + " | ".join([case.work + PASSES[name], *cells(name, 1), *memory]) + " |"


def heading(args, versions):
    model = re.search(r"^model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    machine = model[1] if model else platform.machine()
    versions = {"heed": run([args.heed, "--version"], args).split()[1], **versions}
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (f"{datetime.date.today()}, {machine}, {args.threads} of {os.cpu_count()} cores; {found}; median of "
            f"{args.rounds} round{'s' if args.rounds > 1 else ''} A B.")


EXPLAINED = """\
In brackets: how many times heed's; below 1, heed loses. Layers: 64 channels in, 4 heads x 16 out, with their linear
maps; `rmat`: 100 000 nodes, 2 000 000 edges. MB: the most that a process holds above its imports, graph and input
included; of heed's epochs, all that it holds."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the public datasets; what needs one is left out without it")
    parser.add_argument("--rounds", type=int, default=3, help="how often A B is run")
    parser.add_argument("--repeat", type=int, default=7, help="timed repetitions of a run")
    parser.add_argument("--epochs", type=int, default=100, help="of a training")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", metavar="NAMES", default="*", help="with wildcards, separated by commas")
    parser.add_argument("--list", action="store_true", help="the names, and nothing else")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md between its marks")
    parser.add_argument("--python", default=ROOT / ".venv/bin/python", help="that has PyG")
    parser.add_argument("--dgl-python", default=ROOT / ".venv-dgl/bin/python", help="that has DGL")
    parser.add_argument("--heed", default=ROOT / "build/release/heed")
    args = parser.parse_args()
    chosen = [case for case in cases() if any(fnmatch.fnmatch(case.name, name) for name in args.only.split(","))]
    if args.list:
        sys.exit(print("\n".join(case.name for case in chosen)))
    for program in (args.heed, args.python, args.dgl_python):
        if not os.access(program, os.X_OK):
            sys.exit(f"{program} is not there; bench/peers/setup.sh installs the peers, ./heed --version builds heed")

    if os.getloadavg()[0] > 0.5:
        print("other programs run on this machine; threads that wait for each other, as the peers' do, suffer most",
              file=sys.stderr)

    table = ["| | heed ms | PyG or torch ms | DGL ms | heed MB | PyG or torch MB | DGL MB |",
             "|---|---|---|---|---|---|---|"]
    versions, failures = {}, []
    for case in chosen:
        if case.dataset and not args.data:
            print(f"{case.name}: left out, needs --data", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            runs = measure(case, args, pathlib.Path(folder))
        rows = list(rows_of(case, runs))
        print("\n".join(rows), file=sys.stderr)
        table += rows
        for column in case.peers:
            if isinstance(runs[column], str):
                failures.append(f"{case.work}: no {case.peers[column][0]}: {runs[column]}")
            else:
                found = runs[column][0]["versions"]
                name = "torch" if column == "PyG" else "its torch"
                versions |= {key if key != "torch" else name: version for key, version in found.items()}
    text = "\n\n".join([heading(args, versions), "\n".join(table), EXPLAINED, *failures])
    print(text)
    if args.readme:
        readme = ROOT / "README.md"
        old = readme.read_text()
        marks = r"(<!-- speed: begin -->\n).*(<!-- speed: end -->)"
        new, places = re.subn(marks, lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.S)
        if places != 1:
            sys.exit("README.md has no marks for the table")
        readme.write_text(new)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as why:  # a peer's failure is a line below the table; this is heed's own
        sys.exit(f"heed failed: {why}")
