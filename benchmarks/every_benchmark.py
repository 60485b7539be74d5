"""One network of every competition benchmark, bounded by every method: seconds, memory, width, and sampled points.

    python benchmarks/every_benchmark.py [PACK] [--host FOLDER] [--only TEXT] [--methods LIST] [--markdown FILE]

PACK (or ZONOPLUG_VNNCOMP, or ../shared/vnncomp) holds one folder per benchmark. The network is that of the benchmark's
first instance whose model can be read; the input set is the first box of its specification, as it is. Each method runs
in a process of its own, with a limit on time and memory, because on such sets some need more than there is.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

from children import host_version, run_child
from model_support import default_pack

METHODS = "ibp,crown,forward,zonotope,zonotope+crown,zonotope[girard,1GB]"
SAMPLES = 10_000
MOST_ROWS = 20
SAMPLING_SECONDS = 40.0
HEADER = """# One network of every benchmark

Made by `benchmarks/every_benchmark.py --markdown FILE` on a machine of 2 cores and 24 GB without a GPU, one thread per
process, with other work beside it: compare times within a row only. The input set is the first box of the first
specification. Width is the mean over the first outputs (at most 20). Memory is what the bound needed beyond the loaded
process. "inside" counts the sampled points (10,000, or as many as took 40 s) whose outputs lie within the bounds, up to
the float type's rounding. A method stopped by its limits says so.

"""
COLUMNS = ("benchmark", "model", "inputs", "method", "seconds", "MB", "width", "inside", "remark")


def instances(pack: Path, only: str) -> list[tuple[str, Path, Path]]:
    """Benchmark, model and specification: the first instance of each whose model is no pointer to a large file."""
    found = []
    for folder in sorted(path for path in pack.iterdir() if path.is_dir() and only in path.name):
        table = folder / "instances.csv"
        for row in csv.reader(table.open()) if table.is_file() else ():
            model, specification = (folder / name for name in row[:2])
            if model.is_file() and specification.is_file() and model.stat().st_size > 1000:
                found.append((folder.name, model, specification))
                break
    return found


def examine(model_path: Path, specification_path: Path, method: str) -> dict[str, Any]:
    """All of one row; runs in the child process, and prints what it has before each step that may fail."""
    import warnings

    import torch

    from zonoplug.domain.input_sets import Box
    from zonoplug.errors import ZonoplugError
    from zonoplug.io.onnx_model import load_model
    from zonoplug.io.vnnlib import read_specification
    from zonoplug.lirpa.methods import BoundMethod
    from zonoplug.lirpa.module import bound_set, build
    from zonoplug.report.memory import peak_resident_bytes

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = load_model(model_path)
    specification = read_specification(specification_path)
    lower, upper = (
        torch.tensor(side[0], dtype=model.dtype).reshape(1, *model.input_shape)
        for side in (specification.lower, specification.upper)
    )
    row: dict[str, Any] = {"inputs": f"{int((upper > lower).sum())} of {model.num_inputs}", "remark": "did not end"}
    print(json.dumps(row), flush=True)
    try:
        graph = build(model.module, lower + (upper - lower) / 2)
    except ZonoplugError as error:
        return {**row, "remark": str(error)}
    rows = torch.eye(model.num_outputs, dtype=model.dtype)[:MOST_ROWS][None]
    rows = torch.cat([rows, -rows], dim=1)
    box, parsed = Box(lower, upper), BoundMethod.parse(method)
    for _ in range(2):
        before = peak_resident_bytes(reset=True)
        started = time.perf_counter()
        try:
            bounds, _ = bound_set(graph, box, parsed, rows)
        except Exception as error:  # the host raises what it likes
            text = (str(error).strip() or "no message").splitlines()[0]
            short = "out of memory" if "alloc" in text or "memory" in text else f"{type(error).__name__}: {text[:70]}"
            return {**row, "remark": short}
        row["seconds"] = time.perf_counter() - started
        row["MB"] = max(0, peak_resident_bytes() - before) / 1e6
        if row["seconds"] > 5:
            break  # else once more, now that everything is imported and warm
    below, above = bounds.lower[0].double().split(rows.shape[1] // 2)
    row["width"] = float((-above - below).mean())
    print(json.dumps(row), flush=True)
    row["inside"] = sampled(model, box, below, -above)
    return {**row, "remark": ""}


def sampled(model: Any, box: Any, below: Any, above: Any) -> str:
    """How many of the sampled points have their outputs within the bounds: "n of m"."""
    import torch

    torch.manual_seed(0)
    slack = 1e-4 if model.dtype == torch.float32 else 1e-9
    inside = count = 0
    stop = time.perf_counter() + SAMPLING_SECONDS
    size = max(1, min(1000, 2_000_000 // model.num_inputs))
    while count < SAMPLES and time.perf_counter() < stop:
        share = torch.rand(min(size, SAMPLES - count), *box.lower.shape[1:], dtype=model.dtype)
        share = share.round() if count % (2 * size) else share  # every other batch takes corners
        points = box.lower + (box.upper - box.lower) * share
        with torch.no_grad():
            outputs = model.module(points).flatten(1)[:, :MOST_ROWS].double()
        allowed = slack * outputs.abs().amax(dim=1, keepdim=True).clamp(min=1)
        good = (outputs >= below - allowed) & (outputs <= above + allowed)
        inside += int(good.all(dim=1).sum())
        count += len(points)
    return f"{inside} of {count}"


def row_of(model: Path, specification: Path, method: str, host: str | None, limits: tuple[int, int]) -> dict[str, Any]:
    """`examine` in a process of its own, with limits on seconds and bytes."""
    seconds, size = limits
    arguments, limit = [str(model), str(specification), method], (resource.RLIMIT_DATA, size)
    child = run_child(__file__, arguments, host, seconds, limit, grace=SAMPLING_SECONDS)
    row = child.row or {}
    if row.get("remark", "did not end") == "did not end":
        row["remark"] = f"{child.ending} {(child.remarks or [''])[-1][:80]}".strip()
    return row


def cells(benchmark: str, model: Path, method: str, row: dict[str, Any]) -> list[str]:
    name = model.name.removesuffix(".gz").removesuffix(".onnx")
    numbers = [
        f"{row[key]:{form}}" if key in row else ""
        for key, form in (("seconds", ".3g"), ("MB", ".0f"), ("width", ".4g"))
    ]
    return [benchmark, name, row.get("inputs", ""), method, *numbers, row.get("inside", ""), row.get("remark", "")]


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(examine(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", nargs="?", type=Path, default=default_pack())
    parser.add_argument("--host", help="folder that contains auto_LiRPA; the installed one by default")
    parser.add_argument("--only", default="", help="only benchmarks whose name contains this text")
    parser.add_argument("--methods", default=METHODS, help=f"comma-separated (default {METHODS})")
    parser.add_argument("--timeout", type=int, default=100, help="seconds for each method (default 100)")
    parser.add_argument("--memory", type=int, default=10, help="GB for each method (default 10)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    if not arguments.pack.is_dir():
        raise SystemExit(f"{arguments.pack} is no folder. Name the competition's instances, or set ZONOPLUG_VNNCOMP.")
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    outside = 0
    for benchmark, model, specification in instances(arguments.pack, arguments.only):
        for method in re.split(r",(?![^\[]*\])", arguments.methods):  # commas inside brackets belong to a method
            limits = (arguments.timeout, arguments.memory << 30)
            row = row_of(model, specification, method, arguments.host, limits)
            inside, _, count = row.get("inside", "0 of 0").partition(" of ")
            outside += int(count) - int(inside)
            lines.append([cell.replace("|", "/") for cell in cells(benchmark, model, method, row)])
            print(" | ".join(lines[-1]), flush=True)
            if arguments.markdown:
                text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
                summary = f"{outside} sampled points lay outside their bounds."
                title = f"Host: {host_version(arguments.host)}."
                arguments.markdown.write_text(f"{HEADER}{title} {summary}\n\n{text}\n")
    print(f"{outside} sampled points lay outside their bounds.")
    raise SystemExit(1 if outside else 0)


if __name__ == "__main__":
    main()
