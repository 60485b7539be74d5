"""How long reading VNN-LIB files takes, and how much memory: synthesised files, and the competition's own if present.

Each file is read in a fresh process; seconds are those of read_specification alone, memory is the highest resident size
of the process, which starts at about 30 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from children import ROOT, environment

PACK = Path(os.environ.get("ZONOPLUG_VNNCOMP", ROOT.parent / "shared" / "vnncomp"))

MEASURE = """
import json, resource, sys, time
from zonoplug.io.vnnlib import read_specification
start = time.perf_counter()
spec = read_specification(sys.argv[1])
seconds = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps([seconds, peak, spec.num_inputs, spec.num_outputs, spec.num_boxes, spec.num_disjuncts]))
"""


def robustness_one(inputs: int, outputs: int) -> Iterator[str]:
    """Version 1.0: one box, and one disjunct for each wrong class."""
    yield from (f"(declare-const X_{i} Real)\n" for i in range(inputs))
    yield from (f"(declare-const Y_{j} Real)\n" for j in range(outputs))
    for i in range(inputs):
        yield f"(assert (<= X_{i} 0.{i * 7919 % 10**8:08d}))\n(assert (>= X_{i} -0.{i * 104729 % 10**8:08d}))\n"
    yield "(assert (or\n"
    yield from (f"    (and (>= Y_{j} Y_0))\n" for j in range(1, outputs))
    yield "))\n"


def robustness_two(inputs: int, outputs: int) -> Iterator[str]:
    """The same in version 2.0."""
    yield "(vnnlib-version <2.0>)\n(declare-network N\n"
    yield f"    (declare-input X float32 [1,{inputs}])\n    (declare-output Y float32 [1,{outputs}])\n)\n"
    for i in range(inputs):
        yield f"(assert (<= X[0,{i}] 0.{i * 7919 % 10**8:08d}))\n(assert (>= X[0,{i}] -0.{i * 104729 % 10**8:08d}))\n"
    yield "(assert (or\n"
    yield from (f"    (and (>= Y[0,{j}] Y[0,0]))\n" for j in range(1, outputs))
    yield "))\n"


def many_boxes(disjuncts: int, inputs: int) -> Iterator[str]:
    """Version 1.0: every disjunct has a box of its own, as in nn4sys."""
    yield from (f"(declare-const X_{i} Real)\n" for i in range(inputs))
    yield "(declare-const Y_0 Real)\n(assert (or\n"
    for d in range(disjuncts):
        values = [(d + i * 17) % 9973 / 10_000 for i in range(inputs)]
        bounds = (f"(>= X_{i} {value}) (<= X_{i} {value})" for i, value in enumerate(values))
        yield f"(and {' '.join(bounds)} (<= Y_0 -1e-5))\n"
    yield "))\n"


SYNTHESISED: dict[str, Callable[[], Iterable[str]]] = {
    "1.0, 12,288 inputs, 199 disjuncts": lambda: robustness_one(12_288, 200),
    "1.0, 150,000 inputs, 999 disjuncts": lambda: robustness_one(150_000, 1_000),
    "1.0, 11,080 boxes of 308 inputs": lambda: many_boxes(11_080, 308),
    "2.0, 12,288 inputs, 199 disjuncts": lambda: robustness_two(12_288, 200),
    "2.0, 150,000 inputs, 999 disjuncts": lambda: robustness_two(150_000, 1_000),
}


def measure(path: Path) -> list[float]:
    """Seconds, bytes, inputs, outputs, boxes and disjuncts of one file."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, env=environment(), check=False
    )
    if done.returncode:
        raise SystemExit(f"{path}: {done.stderr.strip().splitlines()[-1]}")
    figures: list[float] = json.loads(done.stdout)
    return figures


def report(name: str, path: Path) -> None:
    seconds, peak, *counts = measure(path)
    shape = "".join(f"{int(count):>10}" for count in counts)
    print(f"{name[:56]:56} {path.stat().st_size / 1e6:8.2f} {seconds:8.3f} {peak / 1e6:8.0f}{shape}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of VNN-COMP benchmarks (default: %(default)s)")
    parser.add_argument("--largest", type=int, default=1, help="files to read of each benchmark, the largest first")
    parser.add_argument("--no-synthesised", action="store_true", help="only the files of the pack")
    arguments = parser.parse_args()
    head = "".join(f"{word:>10}" for word in ("inputs", "outputs", "boxes", "disjuncts"))
    print(f"{'file':56} {'file MB':>8} {'seconds':>8} {'peak MB':>8}{head}")
    if not arguments.no_synthesised:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spec.vnnlib"
            for name, lines in SYNTHESISED.items():
                with path.open("w") as file:
                    file.writelines(lines())
                report(name, path)
    folders = sorted(arguments.pack.glob("*/vnnlib"))
    if not folders:
        print(f"No benchmarks under {arguments.pack}: give another folder with --pack.")
    for folder_of_pack in folders:
        files = sorted(folder_of_pack.rglob("*.vnnlib*"), key=lambda file: -file.stat().st_size)
        for file in files[: arguments.largest]:
            report(str(file.relative_to(arguments.pack)), file)


if __name__ == "__main__":
    main()
