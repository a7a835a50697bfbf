#!/usr/bin/env python3
"""heed beside its peers on one GPU: the rows of `heed bench gpu --json` and of peer_gpu.py as a table of ratios.

    heed bench gpu --shapes 4x16,8x32 --write G1e5 --json > heed.json
    python bench/peers/peer_gpu.py G1e5:4x16,8x32 --json peers.json
    python bench/peers/beside_gpu.py peers.json heed.json [MORE.json ...]
"""

import json
import sys

# heed's score -> the works of peers that do the same
PEERS = {
    "gat": ["PyG gat operator", "PyG gat operator, compiled"],
    "gatv2": ["PyG gatv2 operator", "PyG gatv2 operator, compiled"],
    "scaled_dot": ["PyG dot operator", "PyG dot operator, compiled", "cuSPARSE SDDMM, softmax, SpMM",
                   "torch SDDMM, softmax, SpMM"],
    "weighted sum": ["cuSPARSE SpMM", "torch.sparse.mm"],
}


def rows(paths):
    for path in paths:
        with open(path) as file:
            yield from json.load(file)


def main():
    peers = {}
    for row in rows(sys.argv[1:2]):
        if row.get("nodes"):
            peers[row["nodes"], row["edges"], row["shape"], row["work"], row["pass"]] = row
    table = [("nodes", "edges", "shape", "work", "pass", "heed ms", "peer ms", "times", "heed MB", "peer MB", "of copy")]
    for row in rows(sys.argv[2:]):
        shape = f"{row['heads']}x{row['channels']}"
        works = PEERS.get(row["score"], [])
        found = [(w, peers.get((row["nodes"], row["edges"], shape, w, row["pass"]))) for w in works]
        for work, peer in [f for f in found if f[1]] or [(row["score"], None)]:
            ms, note = (peer["ms"], peer.get("note", "")) if peer else (None, "")
            work += ", heed bf16" if row["kernel"].endswith("bf16") else ""
            table.append((str(row["nodes"]), str(row["edges"]), shape, work, row["pass"], f"{row['ms']:.3f}",
                          f"{ms:.3f}" if ms else note.split(";")[0][:24], f"{ms / row['ms']:.1f}" if ms else "",
                          f"{row['added_mb']:.0f}", f"{peer['peak_mb']:.0f}" if ms and peer["peak_mb"] is not None else "",
                          f"{row['share']:.2f}" + ("" if row["verified"] else " WRONG")))
    widths = [max(len(line[c]) for line in table) for c in range(len(table[0]))]
    for line in table:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


if __name__ == "__main__":
    main()
