"""What heed is compared with on a CUDA device: PyTorch Geometric (eager and compiled), cuSPARSE, GAT on Cora
and what the memory allows, in one process; float32 without TF32. A graph is a folder of offsets.npy (int64) and ids.npy
(int32), a row of keys for every query, as heed writes it.

    heed convert cora cora-folder --format heed
    python bench/peers/peer_gpu.py GRAPH[:4x16,8x32] ... --cora cora-folder --json peers.json
    python bench/peers/peer_gpu.py GRAPH --shapes 4x16 --parts pyg,cusparse --write FOLDER    # numbers to compare with
    python bench/peers/peer_gpu.py --device cpu --rmat 2000,30000 --shapes 2x8                # does the script work

Rows of the JSON: graph, nodes, edges, shape (heads x channels), work, pass, ms, peak_mb, note. A time is the median of
15 samples (5 where a call takes over 100 ms), each the mean of the calls between two events; peak_mb is what a call
holds above its inputs and the graph, results and gradients included. Passes of PyG: "forward" without gradients,
"forward, recorded" as training has it, "forward + backward" with the gradients of all inputs and parameters.
Operators begin where heed's begin: at projected features, for GAT at the nodes' scores. Layers read 64 channels.
"""

import argparse
import atexit
import contextlib
import ctypes
import gc
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import torch_geometric
from torch_geometric import EdgeIndex
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv
from torch_geometric.utils import softmax

import peer
import peer_pyg

PARTS = ["bandwidth", "pyg", "epoch", "cusparse", "compile"]  # in this order
SCORES = ["gat", "gatv2", "dot"]
CLASSES = {"gat": GATConv, "gatv2": GATv2Conv, "dot": TransformerConv}
INPUT_CHANNELS = 64


class Graph:
    def __init__(self, name, offsets, ids, device):
        self.name, self.nodes, self.edges = name, len(offsets) - 1, len(ids)
        rows = np.repeat(np.arange(self.nodes), np.diff(offsets))
        self.offsets = torch.from_numpy(offsets.astype(np.int32)).to(device)
        self.ids = torch.from_numpy(ids.astype(np.int32)).to(device)
        pairs = torch.from_numpy(np.stack([ids.astype(np.int64), rows])).to(device)  # from, to
        self.pairs, self.rows = pairs, pairs[1]
        self.sorted = EdgeIndex(pairs, sparse_size=(self.nodes, self.nodes), sort_order="col")
        self.sorted.fill_cache_(no_transpose=True)
        self.forms = {"int64 pairs": self.pairs, "EdgeIndex": self.sorted}

    def matrix(self, values):
        return torch.sparse_csr_tensor(self.offsets, self.ids, values, (self.nodes, self.nodes))


def read_graph(folder, device):
    folder = pathlib.Path(folder)
    return Graph(folder.resolve().name, np.load(folder / "offsets.npy"), np.load(folder / "ids.npy"), device)


def rmat(nodes, edges, device):
    """A skewed graph for trying the script out; heed's own are read from folders."""
    random = np.random.default_rng(1)
    to, source = np.zeros(2 * edges, np.int64), np.zeros(2 * edges, np.int64)
    for _ in range(max(nodes - 1, 1).bit_length()):
        quarter = random.choice(4, 2 * edges, p=[0.57, 0.19, 0.19, 0.05])
        to, source = 2 * to + quarter // 2, 2 * source + quarter % 2
    pairs = np.unique(to % nodes * nodes + source % nodes)
    pairs = np.sort(random.permutation(pairs)[:edges])
    offsets = np.searchsorted(pairs, np.arange(nodes + 1) * nodes)
    return Graph("rmat", offsets, pairs % nodes, device)


def why(error):
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return " ".join(str(error).split())[:200] or type(error).__name__


class Bench:
    """Times calls and collects rows; what fails becomes a row that says why."""

    def __init__(self, device, path=None):
        self.device, self.cuda, self.path, self.rows = device, device == "cuda", path, []

    def sync(self):
        if self.cuda:
            torch.cuda.synchronize()

    def clean(self):
        gc.collect()
        if self.cuda:
            with contextlib.suppress(RuntimeError):  # after a fault on the device; the next row says so
                torch.cuda.empty_cache()

    def clock(self, call, times):
        """Milliseconds of a call, of which `times` are made."""
        if not self.cuda:
            begin = time.perf_counter()
            for _ in range(times):
                call()
            return 1000 * (time.perf_counter() - begin) / times
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / times

    def measure(self, call):
        """Milliseconds and the peak in MB, None where it is not known."""
        peak = None
        self.sync()
        if self.cuda:
            at_start = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        call()
        self.sync()
        if self.cuda:
            peak = (torch.cuda.max_memory_allocated() - at_start) / 2**20
        call()
        first = self.clock(call, 1)
        times = self.often(first)
        return statistics.median(self.clock(call, times) for _ in range(15 if first < 100 else 5)), peak

    @staticmethod
    def often(ms):
        """Calls between two events, so that these are some milliseconds apart."""
        return max(1, min(20, round(3 / max(ms, 1e-3))))

    def faster(self, calls):
        """The name of the fastest of several calls, and how long the others take, in words."""
        taken, errors = {}, {}
        for name, call in calls.items():
            try:
                call()
                taken[name] = self.clock(call, self.often(self.clock(call, 1)))
            except (RuntimeError, ValueError, OSError) as error:
                errors[name] = why(error)
            self.clean()
        if not taken:
            raise RuntimeError("; ".join(f"{name}: {text}" for name, text in errors.items()))
        best = min(taken, key=taken.get)
        others = [f"{name} {ms:.2f} ms" for name, ms in taken.items() if name != best]
        return best, ", ".join([best, *others, *(f"{name}: {text}" for name, text in errors.items())])

    def add(self, graph, shape, work, name, ms=None, peak=None, note=""):
        row = {"graph": graph.name if graph else "", "nodes": graph.nodes if graph else None,
               "edges": graph.edges if graph else None, "shape": shape, "work": work, "pass": name, "ms": ms,
               "peak_mb": peak, "note": note}
        self.keep(row)

    def keep(self, row):
        self.rows.append(row)
        ms = "-" if row["ms"] is None else f"{row['ms']:.3f}"
        peak = "not known" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        print(f"{row['graph']:<12} {row['shape']:<6} {row['work']:<30} {row['pass']:<20} {ms:>10} {peak:>10}  "
              f"{row['note']}", flush=True)
        if self.path:  # after every row: a run that is cut off leaves what it had
            unfinished = f"{self.path}.part"
            pathlib.Path(unfinished).write_text(json.dumps(self.rows, indent=1) + "\n")
            os.replace(unfinished, self.path)

    def run(self, graph, shape, work, name, call, note=""):
        """A row for one call, or for the fastest of several by name. `note` may be made of the milliseconds."""
        try:
            if isinstance(call, dict):
                best, words = self.faster(call)
                call, note = call[best], ", ".join(filter(None, [note, words]))
            ms, peak = self.measure(call)
            self.add(graph, shape, work, name, ms, peak, note(ms) if callable(note) else note)
        except (RuntimeError, ValueError, OSError) as error:
            self.add(graph, shape, work, name, note=why(error))
        self.clean()


def copy(bench):
    numbers = 2**28 if bench.cuda else 2**22
    a, b = (torch.zeros(numbers, device=bench.device) for _ in range(2))
    bench.run(None, "", "copy", "", lambda: b.copy_(a), lambda ms: f"{8e-6 * numbers / ms:.0f} GB/s read + written")


def gather(bench, graph):
    """Rows of 256 bytes by the graph's ids, written for every edge, and added up for every query."""
    x, out = torch.randn(graph.nodes, 64, device=bench.device), torch.empty(graph.edges, 64, device=bench.device)
    size = 1e-6 * graph.edges * 256
    bench.run(graph, "1x64", "gather, index_select", "", lambda: torch.index_select(x, 0, graph.ids, out=out),
              lambda ms: f"{size / ms:.0f} GB/s gathered, {2 * size / ms:.0f} GB/s with what is written")
    bench.run(graph, "1x64", "gather, embedding_bag sum", "",
              lambda: F.embedding_bag(graph.ids, x, graph.offsets[:-1], mode="sum"),
              lambda ms: f"{size / ms:.0f} GB/s gathered")


class Operator:
    """PyG's attention on projected features: forward(edges) gives y, n x heads x channels; leaves take gradients. As in
    heed, GAT begins at a number per node and head, and GATv2's key is its value."""

    def __init__(self, score, nodes, heads, channels, device):
        torch.manual_seed(1)

        def leaf(*shape):
            return torch.randn(shape, device=device).requires_grad_()

        self.score, self.root = score, math.sqrt(channels)
        more = {} if score == "dot" else {"add_self_loops": False}
        conv = CLASSES[score](INPUT_CHANNELS, channels, heads=heads, bias=False, **more).to(device).eval()
        if score == "gat":
            q, k = leaf(nodes, heads), leaf(nodes, heads)
        else:
            q, k = leaf(nodes, heads, channels), leaf(nodes, heads, channels)
        self.leaves = {"q": q, "k": k}
        if score == "gatv2":
            self.leaves["a"] = conv.att
        else:
            self.leaves["v"] = v = leaf(nodes, heads, channels)
        self.dy = torch.randn(nodes, heads, channels, device=device)

        def forward(edges):
            if score == "dot":
                y = conv.propagate(edges, query=q, key=k, value=v, edge_attr=None)
                conv._alpha = None  # as the layer does, lest a whole graph of gradients stay
                return y
            if score == "gat":
                alpha = conv.edge_updater(edges, alpha=(k, q), edge_attr=None)
                return conv.propagate(edges, x=(v, v), alpha=alpha)
            alpha = conv.edge_updater(edges, x=(k, q), edge_attr=None)
            return conv.propagate(edges, x=(k, q), alpha=alpha)

        self.forward = forward

    def write(self, folder, edges):
        """Inputs, results and gradients of heed's operator, whose dot product is not divided by channels' root."""
        folder = pathlib.Path(folder) / self.score
        folder.mkdir(parents=True, exist_ok=True)
        y = self.forward(edges)
        grads = torch.autograd.grad(y, list(self.leaves.values()), self.dy)
        out = {"y": y, "dy": self.dy, **self.leaves, **{"d" + name: d for name, d in zip(self.leaves, grads)}}
        if self.score == "dot":
            out["q"], out["dq"] = out["q"] / self.root, out["dq"] * self.root
        for name, x in out.items():
            np.save(folder / f"{name}.npy", x.detach().reshape(len(x), -1).cpu().numpy())


class Layer:
    """A whole layer with its linear maps; TransformerConv makes a map for the skip that it then does not use."""

    def __init__(self, score, nodes, heads, channels, device):
        torch.manual_seed(1)
        more = {"root_weight": False} if score == "dot" else {"add_self_loops": False}
        conv = CLASSES[score](INPUT_CHANNELS, channels, heads=heads, **more).to(device).eval()
        x = torch.randn(nodes, INPUT_CHANNELS, device=device).requires_grad_()
        self.leaves = {"x": x, **{name: p for name, p in conv.named_parameters() if not name.startswith("lin_skip")}}
        self.dy = torch.randn(nodes, heads * channels, device=device)
        self.forward = lambda edges: conv(x, edges)


def without_grad(call):
    def out(*args):
        with torch.no_grad():
            return call(*args)
    return out


def with_backward(work, call):
    leaves = list(work.leaves.values())
    return lambda *args: torch.autograd.grad(call(*args), leaves, work.dy)


def passes(work, call):
    return {"forward": without_grad(call), "forward, recorded": call, "forward + backward": with_backward(work, call)}


def pyg(bench, graph, shape, folder):
    heads, channels = map(int, shape.split("x"))
    for kind in (Operator, Layer):
        for score in SCORES:
            name = f"PyG {score} {kind.__name__.lower()}"
            try:
                work = kind(score, graph.nodes, heads, channels, bench.device)
                if folder and kind is Operator:
                    work.write(folder, graph.pairs)
            except RuntimeError as error:
                bench.add(graph, shape, name, "", note=why(error))
                continue
            for what, call in passes(work, work.forward).items():
                bench.run(graph, shape, name, what, {form: lambda call=call, edges=edges: call(edges)
                                                     for form, edges in graph.forms.items()})
            work = call = None
            bench.clean()


class CuSparse:
    """cuSPARSE itself, which torch has loaded: what torch prepares at every call is prepared once here. CSR with int32,
    dense matrices row by row."""

    FLOAT, INT32, ROWS, PLAIN, TRANSPOSED = 0, 2, 2, 0, 1
    ALGORITHMS = {"CSR_ALG1": 4, "CSR_ALG2": 6, "CSR_ALG3": 12}

    def __init__(self):
        if not torch.cuda.is_available():
            raise OSError("cuSPARSE needs a CUDA device")
        self.cusparse = ctypes.CDLL("libcusparse.so.12")
        self.handle = ctypes.c_void_p()
        self.zero = ctypes.c_float(0)
        self.ask("cusparseCreate", ctypes.byref(self.handle))
        self.ask("cusparseSetStream", self.handle, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))

    def ask(self, name, *args):
        status = getattr(self.cusparse, name)(*args)
        if status != 0:
            raise RuntimeError(f"{name} gave status {status}")

    def sparse(self, graph, values):
        out = ctypes.c_void_p()
        sizes = [ctypes.c_int64(x) for x in (graph.nodes, graph.nodes, graph.edges)]
        arrays = [ctypes.c_void_p(x.data_ptr()) for x in (graph.offsets, graph.ids, values)]
        self.ask("cusparseCreateCsr", ctypes.byref(out), *sizes, *arrays, self.INT32, self.INT32, 0, self.FLOAT)
        return out

    def dense(self, x):
        assert x.dim() == 2 and x.stride(1) == 1
        out = ctypes.c_void_p()
        sizes = [ctypes.c_int64(size) for size in (*x.shape, x.stride(0))]
        self.ask("cusparseCreateDnMat", ctypes.byref(out), *sizes, ctypes.c_void_p(x.data_ptr()), self.FLOAT, self.ROWS)
        return out

    def prepare(self, kind, transposed, alpha, matrices, algorithm, device):
        """A call of cusparseSpMM or cusparseSDDMM with its buffer made and its preprocessing done."""
        alpha = ctypes.c_float(alpha)
        a, b, c = matrices
        args = [self.handle, self.PLAIN, transposed, ctypes.byref(alpha), a, b, ctypes.byref(self.zero), c, self.FLOAT,
                algorithm]
        size = ctypes.c_size_t()
        self.ask(f"cusparse{kind}_bufferSize", *args, ctypes.byref(size))
        buffer = torch.empty(max(size.value, 1), dtype=torch.uint8, device=device)
        self.ask(f"cusparse{kind}_preprocess", *args, ctypes.c_void_p(buffer.data_ptr()))
        return lambda: self.ask(f"cusparse{kind}", *args, ctypes.c_void_p(buffer.data_ptr()))

    def spmm(self, graph, values, x, y, algorithm="CSR_ALG2"):
        """y = matrix times x."""
        matrices = self.sparse(graph, values), self.dense(x), self.dense(y)
        return self.prepare("SpMM", self.PLAIN, 1, matrices, self.ALGORITHMS[algorithm], x.device)

    def sddmm(self, graph, q, k, values, alpha):
        """values = alpha times q times the transpose of k, where the matrix has entries."""
        matrices = self.dense(q), self.dense(k), self.sparse(graph, values)
        return self.prepare("SDDMM", self.TRANSPOSED, alpha, matrices, 0, q.device)


def off(x, y):
    return f"off by {float((x - y).norm() / y.norm()):.0e}"


def cusparse(bench, graph, shape):
    """The plain sum of neighbours, and attention by dot products out of three steps."""
    heads, channels = map(int, shape.split("x"))
    width, n, device = heads * channels, graph.nodes, bench.device
    torch.manual_seed(1)
    q, k, v = (torch.randn(n, width, device=device) for _ in range(3))
    weights = torch.rand(graph.edges, device=device)
    scale = 1 / math.sqrt(channels)
    a = graph.matrix(weights)
    bench.run(graph, shape, "torch.sparse.mm", "forward", lambda: torch.sparse.mm(a, v))

    # Of torch every head has matrices of its own, which lie together.
    by_head = [x.view(n, heads, channels).transpose(0, 1).contiguous() for x in (q, k, v)]
    pattern, offsets = graph.matrix(torch.zeros(graph.edges, device=device)), graph.offsets.long()

    def scores(h):
        return torch.sparse.sampled_addmm(pattern, by_head[0][h], by_head[1][h].t(), beta=0, alpha=scale).values()

    # Row softmax by atomic additions, or by a thread a row.
    ways = {"softmax by scatter": lambda x: softmax(x, graph.rows, num_nodes=n),
            "softmax by segments": lambda x: softmax(x, ptr=offsets)}

    def attention(normalise):
        return torch.stack([torch.sparse.mm(graph.matrix(normalise(scores(h))), by_head[2][h]) for h in range(heads)])

    bench.run(graph, shape, "torch sampled_addmm", "forward", lambda: [scores(h) for h in range(heads)], "all heads")
    bench.run(graph, shape, "torch SDDMM, softmax, SpMM", "forward",
              {name: lambda way=way: attention(way) for name, way in ways.items()})
    try:
        library = CuSparse()
        y, s, w = torch.zeros_like(v), *(torch.zeros(heads, graph.edges, device=device) for _ in range(2))
        expected, products, notes = torch.sparse.mm(a, v), {}, ["preprocessed, result lies ready"]
        for name in CuSparse.ALGORITHMS:
            try:
                y.zero_()
                call = library.spmm(graph, weights, v, y, name)
                call()
                notes.append(f"{name} {off(y, expected)} torch's")
                products[name] = call
            except RuntimeError as error:
                notes.append(f"{name}: {why(error)}")
        bench.run(graph, shape, "cuSPARSE SpMM", "forward", products, "; ".join(notes))

        columns = [slice(h * channels, (h + 1) * channels) for h in range(heads)]
        dots = [library.sddmm(graph, q[:, c], k[:, c], s[h], scale) for h, c in enumerate(columns)]
        sums = [library.spmm(graph, w[h], v[:, c], y[:, c]) for h, c in enumerate(columns)]

        def direct(normalise):
            for h in range(heads):
                dots[h]()
                w[h].copy_(normalise(s[h]))
                sums[h]()
            return y

        bench.run(graph, shape, "cuSPARSE SDDMM", "forward", lambda: [call() for call in dots],
                  "all heads, preprocessed, results lie ready")
        way = ways["softmax by scatter"]
        error = off(direct(way), attention(way).transpose(0, 1).reshape(n, width))
        bench.run(graph, shape, "cuSPARSE SDDMM, softmax, SpMM", "forward",
                  {name: lambda way=way: direct(way) for name, way in ways.items()},
                  f"{error} torch's; preprocessed, all but the softmax lies ready")
    except (RuntimeError, OSError, AttributeError) as error:  # of the device, the library, a name in it
        bench.add(graph, shape, "cuSPARSE", "forward", note=f"not there: {why(error)}")


def epoch(bench, folder, epochs):
    """A training step and an evaluation as in peer.py, but with one number fetched a part, and the parts as ids."""
    data = peer.Citations(folder)
    x, y, data.edges = (t.to(bench.device) for t in (data.x, data.y, data.edges))
    parts = [part.nonzero().flatten().to(bench.device) for part in data.parts]
    torch.manual_seed(1)
    network = peer_pyg.Gat(data).to(bench.device)
    paper = {"lr": 0.01, "weight_decay": 1e-3} if data.out_heads == 8 else {"lr": 0.005, "weight_decay": 5e-4}
    optimizer = torch.optim.Adam(network.parameters(), **paper)

    def step():
        network.train()
        optimizer.zero_grad()
        F.cross_entropy(network(x)[parts[0]], y[parts[0]]).backward()
        optimizer.step()
        network.eval()
        with torch.no_grad():
            right = (network(x).argmax(dim=-1) == y).float()
            return torch.stack([100 * right[part].mean() for part in parts]).tolist()

    graph = types.SimpleNamespace(name=pathlib.Path(folder).resolve().name, nodes=data.nodes,
                                  edges=data.edges.shape[1])
    work = "PyG GAT, an epoch"
    for _ in range(5):
        step()
    bench.sync()
    if bench.cuda:
        at_start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    wall, device = [], []
    for _ in range(epochs):
        begin = time.perf_counter()
        device.append(bench.clock(step, 1))
        wall.append(1000 * (time.perf_counter() - begin))
    peak = (torch.cuda.max_memory_allocated() - at_start) / 2**20 if bench.cuda else None
    note = f"{step()[2]:.1f} % of the test nodes right after {epochs + 6} epochs"
    bench.add(graph, "8x8", work, "wall", statistics.median(wall), peak, note)
    bench.add(graph, "8x8", work, "between events", statistics.median(device), peak)
    if not bench.cuda:
        return
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(10):
                step()
            bench.sync()
        busy = [e.time_range.elapsed_us() for e in profile.events()  # annotations span several kernels
                if e.device_type == torch.autograd.DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
        ms = sum(busy) / 1e4
        bench.add(graph, "8x8", work, "kernels and copies", ms, peak, f"{len(busy) / 10:.0f} an epoch")
    except Exception as error:  # without CUPTI, say
        bench.add(graph, "8x8", work, "kernels and copies", note=why(error))


def compiled(bench, graph, shape):
    """PyG's operators through torch.compile; runs in a process that may be ended."""
    heads, channels = map(int, shape.split("x"))
    for score in SCORES:
        title = f"PyG {score} operator, compiled"
        try:
            torch.compiler.reset()
            work = Operator(score, graph.nodes, heads, channels, bench.device)
            call = torch.compile(work.forward, dynamic=False)
            for name, way in {"forward": without_grad(call), "forward + backward": with_backward(work, call)}.items():
                begin = time.perf_counter()
                way(graph.pairs)
                bench.sync()
                note = f"int64 pairs, compiled in {time.perf_counter() - begin:.1f} s"
                bench.run(graph, shape, title, name, lambda way=way: way(graph.pairs), note)
        except Exception as error:  # a compiler's errors are of many kinds
            bench.add(graph, shape, title, "", note=why(error))
        work = call = way = None
        bench.clean()


def compile_apart(bench, limit):
    """Runs this script again for the compiled operators, and takes what it has after `limit` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = pathlib.Path(folder) / "rows", pathlib.Path(folder) / "log"
        with open(log, "w") as to:
            child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--compiled-rows", out], stdout=to,
                                     stderr=to, start_new_session=True)
            try:
                child.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                bench.add(None, "", "PyG compiled", "", note=f"ended after {limit:.0f} s; what it had follows")
            else:
                if child.returncode != 0:
                    last = log.read_text().strip()[-200:]
                    bench.add(None, "", "PyG compiled", "", note=f"ended with {child.returncode}: {last}")
        for row in json.loads(out.read_text()) if out.exists() else []:
            bench.keep(row)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="*", metavar="FOLDER[:SHAPES]", help="offsets.npy and ids.npy")
    parser.add_argument("--shapes", default="4x16", help="heads x channels, separated by commas, of graphs without any")
    parser.add_argument("--rmat", metavar="NODES,EDGES", help="a graph made here, for trying this script out")
    parser.add_argument("--cora", metavar="FOLDER", help="what heed convert wrote")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--compile-limit", type=float, default=45, help="seconds for all that is compiled")
    parser.add_argument("--write", metavar="FOLDER", help="the operators' numbers, of the first graph and shape")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--compiled-rows", metavar="PATH", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.parts = set(args.parts.split(","))
    if unknown := args.parts - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    if args.no_compile:
        args.parts.discard("compile")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu tries the script out")
    return args


def main():
    args = arguments()
    torch.set_float32_matmul_precision("highest")  # no TF32
    gc.freeze()  # it collects before every row, and what is imported stays
    atexit.register(gc.unfreeze)
    warnings.filterwarnings("ignore", message="Sparse")
    cases = [(lambda folder=folder: read_graph(folder, args.device), shapes or args.shapes)
             for folder, _, shapes in (name.partition(":") for name in args.graphs)]
    if args.rmat:
        cases.append((lambda: rmat(*map(int, args.rmat.split(",")), args.device), args.shapes))

    if args.compiled_rows:
        bench = Bench(args.device, args.compiled_rows)
        for make, shapes in cases:
            graph = make()
            for shape in shapes.split(","):
                compiled(bench, graph, shape)
        os._exit(0)  # its rows are written, and the compiler's workers may take their time

    bench = Bench(args.device, args.json)
    name = torch.cuda.get_device_name() if bench.cuda else "the CPU"
    versions = f"torch {torch.__version__}, PyG {torch_geometric.__version__}"
    print(f"{name}, {versions}\n")
    print(f"{'graph':<12} {'shape':<6} {'work':<30} {'pass':<20} {'ms':>10} {'peak MB':>10}  note", flush=True)
    graphs = [(make(), shapes.split(",")) for make, shapes in cases]
    first = graphs[0][1][0] if graphs else ""
    for part in PARTS:
        if part not in args.parts:
            continue
        try:
            if part == "bandwidth":
                copy(bench)
            elif part == "epoch" and args.cora:
                epoch(bench, args.cora, args.epochs)
            elif part == "compile" and graphs:
                graphs.clear()  # room for another process
                bench.clean()
                compile_apart(bench, args.compile_limit)
            for graph, shapes in graphs:
                if part == "bandwidth":
                    gather(bench, graph)
                for shape in shapes:
                    if part == "pyg":
                        pyg(bench, graph, shape, args.write if (graph, shape) == (graphs[0][0], first) else None)
                    elif part == "cusparse":
                        cusparse(bench, graph, shape)
        except RuntimeError as error:
            bench.add(None, "", part, "", note=why(error))
        graph = None


if __name__ == "__main__":
    main()
