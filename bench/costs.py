#!/usr/bin/env python3
"""What heed's menu of attention costs, and its library: the tables of `heed bench costs`, the library's size, the
number of compiled kernels and, with --build, the time of a clean build.

    bench/costs.py                      # on standard output; some 5 minutes on 2 cores
    bench/costs.py --write              # writes the tables into bench/results/costs.md, too
    bench/costs.py --write --build      # builds the library and the program anew beside it, without ccache and tests
    bench/costs.py --only alone,peak    # some of the parts of heed bench costs
"""

import argparse
import datetime
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD_LIMIT = 360  # seconds, on 2 cores
MARKS = r"(<!-- costs: begin -->\n)(.*)(<!-- costs: end -->)"


def output(*command):
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def kernels(library):
    """How many compiled stages of scores and normalisers, of sums over edges, and loops over whole rows the library has;
    and their bytes."""
    names, size = set(), {}
    stage = (r"[^(]*heed::(?:stages::(?:(?:score|normaliser)_\w+|(?:vector|tile)_(?:sums|gradient)|add_rows|dots)<"
             r"|fused::Kernels<.*>::(?:forward|keys|queries)\()")
    for line in output("nm", "--demangle", "--print-size", "--defined-only", library).splitlines():
        found = re.match(r"[0-9a-f]+ ([0-9a-f]+) [tTwW] (.*)", line)
        if not found or not re.search("heed::(stages|fused)::", found[2]):
            continue
        size[found[2]] = int(found[1], 16)
        if re.match(stage, found[2]) and "lambda" not in found[2]:
            names.add(found[2])
    return len(names), sum(size.values())


def clean_build(jobs):
    with tempfile.TemporaryDirectory() as folder:
        output("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-D", "CMAKE_BUILD_TYPE=Release", "-D",
               "HEED_TESTS=OFF", "-D", "HEED_CUDA=OFF", "-D", "CCACHE=OFF")  # NOTFOUND: CMake looks again
        start = time.monotonic()
        output("cmake", "--build", folder, "--parallel", str(jobs))
        return time.monotonic() - start


def library_table(args, before):
    library = args.build_folder / "libheed.a"
    count, kernel_bytes = kernels(library)
    text = int(output("size", "--totals", library).splitlines()[-1].split()[0])
    program = (args.build_folder / "heed").stat().st_size
    rows = [("compiled kernels (score or normaliser, width, float or double, direction)", f"{count}"),
            ("their machine code", f"{kernel_bytes / 2**20:.1f} MB"),
            ("code and constants of the library, libheed.a", f"{text / 2**20:.1f} MB"),
            ("the program, with all of it", f"{program / 2**20:.1f} MB")]
    clean = "clean build of library and program, without tests"
    if args.build:
        took = clean_build(args.jobs)
        rows.append((f"{clean}, {args.jobs} jobs", f"{took:.0f} s, ≤ {BUILD_LIMIT} "
                     f"{'met' if took <= BUILD_LIMIT else 'NOT MET'}"))
    else:  # as it was measured last
        rows += re.findall(rf"^\| ({clean}.*?) \| (.*?) \|$", before, re.M)
    return "**The library**\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def heading(jobs):
    model = re.search(r"^model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return f"{datetime.date.today()}, {model[1] if model else platform.machine()}, {jobs} cores."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="parts of heed bench costs; default all")
    parser.add_argument("--repeat", type=int, default=9, help="timed repetitions, of which the least counts")
    parser.add_argument("--quick", action="store_true", help="small graphs, to see that all works")
    parser.add_argument("--build", action="store_true", help="time a clean build, too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="of the clean build")
    parser.add_argument("--write", action="store_true", help="write the tables into bench/results/costs.md, too")
    parser.add_argument("--build-folder", type=pathlib.Path, default=ROOT / "build/release")
    args = parser.parse_args()
    heed = args.build_folder / "heed"
    if not os.access(heed, os.X_OK):
        sys.exit(f"{heed} is not there; ./heed --version builds it")
    page = ROOT / "bench/results/costs.md"
    old = page.read_text()
    marked = re.search(MARKS, old, re.S)
    if not marked:
        sys.exit(f"{page} has no marks for the tables")
    more = ["--only", args.only] if args.only else []
    more += ["--quick"] if args.quick else []
    costs = output(heed, "bench", "costs", "--markdown", "--repeat", args.repeat, *more)
    text = "\n".join([heading(args.jobs), "", costs, library_table(args, marked[2])])
    print(text, end="")
    if args.write:
        page.write_text(old[:marked.start(2)] + text + old[marked.end(2):])


if __name__ == "__main__":
    main()
