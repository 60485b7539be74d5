"""Which competition models load, agree with ONNX Runtime, and can be bounded by the host: a table, one row per model.

    python benchmarks/model_support.py [PACK] [--host FOLDER]... [--only TEXT] [--markdown FILE]

PACK (or ZONOPLUG_VNNCOMP, or ../shared/vnncomp) holds one folder per benchmark with instances.csv, onnx/ and vnnlib/.
Each model runs in a process of its own with a memory and a time limit, because a host may crash on it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from children import ROOT, host_version, run_child

MEMORY_BYTES = 12 << 30
TIMEOUT_SECONDS = 120
HEADER = """# Models of the competition

Made by `benchmarks/model_support.py --host FOLDER --markdown FILE`; with other work on the machine,
times are upper limits. The columns IBP and CROWN give mean widths of the first outputs (at most 20) over a box, placed
at random, of a twentieth of the width of a specification's box; WRONG if one of 50 sampled points lies outside.

"""
COLUMNS = ("model", "load ms", "agrees", "batch of 3", "built", "IBP", "CROWN", "host node classes, or what is missing")


def default_pack() -> Path:
    return Path(os.environ.get("ZONOPLUG_VNNCOMP") or ROOT.parent / "shared" / "vnncomp")


def models(pack: Path, only: str) -> list[tuple[Path, Path | None]]:
    """Every ONNX file of the pack with the first specification that an instance pairs it with."""
    found = []
    for benchmark in sorted(path for path in pack.iterdir() if path.is_dir()):
        specifications: dict[str, Path] = {}
        table = benchmark / "instances.csv"
        if table.is_file():
            for row in csv.reader(table.open()):
                if len(row) >= 2:
                    specifications.setdefault(Path(row[0]).as_posix().lstrip("./"), benchmark / row[1])
        for model in sorted((benchmark / "onnx").rglob("*.onnx*")):
            if only in str(model.relative_to(pack)):
                found.append((model, specifications.get(model.relative_to(benchmark).as_posix())))
    return found


def examine(model_path: Path, specification_path: Path | None) -> dict[str, Any]:
    """All of one row; runs in the child process."""
    import numpy as np
    import torch

    from zonoplug.errors import ZonoplugError
    from zonoplug.io.agreement import check_agreement
    from zonoplug.io.onnx_model import load_model

    torch.set_num_threads(1)
    row: dict[str, Any] = {}
    try:
        started = time.perf_counter()
        model = load_model(model_path)
        row["load ms"] = f"{1000 * (time.perf_counter() - started):.0f}"
        lower, upper = input_box(specification_path, model.num_inputs)
        random = np.random.default_rng(0)
        points = random.uniform(lower, upper, size=(3, model.num_inputs))
        check_agreement(model, points)
        row["agrees"] = "yes"
        row["batch of 3"] = "yes" if model.batchable else "one by one"
    except ZonoplugError as error:
        return {**row, "note": str(error).replace(str(model_path), model_path.name)}
    return bound(model, row, lower, upper, random)


def input_box(specification_path: Path | None, num_inputs: int) -> tuple[Any, Any]:
    """Lower and upper bounds of the specification's first box; the unit box where there is no specification."""
    import numpy as np

    if specification_path is not None and specification_path.is_file():
        try:
            from zonoplug.io.vnnlib import read_specification
        except ImportError:
            pass
        else:
            specification = read_specification(specification_path)
            if specification.num_inputs == num_inputs:
                return specification.lower[0], specification.upper[0]
    return np.zeros(num_inputs), np.ones(num_inputs)


def bound(model: Any, row: dict[str, Any], lower: Any, upper: Any, random: Any) -> dict[str, Any]:
    """Build the host's graph; bound a small box by IBP and CROWN and look whether sampled outputs lie inside.

    Fills `row`, and prints it after each step, so that a crash leaves what was found before.
    """
    import numpy as np
    import torch

    from zonoplug.errors import ZonoplugError
    from zonoplug.lirpa import compat

    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(np.asarray(values), dtype=model.dtype).reshape(-1, *model.input_shape)

    middle = random.uniform(lower, upper)
    try:
        graph = compat.build(model.module, tensor(middle))
        compat.check_graph(graph, model.module, tensor(random.uniform(lower, upper, size=(3, model.num_inputs))))
    except ZonoplugError as error:
        return {**row, "note": str(error)}
    row["built"] = "yes" if compat.takes_batches(graph, model.module, tensor([lower, middle, upper])) else "one by one"
    classes = Counter(type(node).__name__ for node in graph._modules.values())
    row["note"] = " ".join(sorted(name.removeprefix("Bound") for name in classes))
    low = np.maximum(lower, middle - 0.025 * (upper - lower))
    high = np.minimum(upper, middle + 0.025 * (upper - lower))
    with torch.no_grad():
        samples = tensor(random.uniform(low, high, size=(50, model.num_inputs)))
        outputs = torch.cat([model.module(sample[None]) for sample in samples]).double()
    rows = torch.eye(model.num_outputs, dtype=model.dtype)[: min(model.num_outputs, 20)][None]
    expected = outputs.flatten(1) @ rows[0].double().T
    for method in ("IBP", "CROWN"):
        row[method] = "did not end"
        print(json.dumps(row), flush=True)
        box = compat.PerturbationLpNorm(norm=np.inf, x_L=tensor(low), x_U=tensor(high))
        try:
            with compat.quietly():
                bounds = graph.compute_bounds(x=(compat.BoundedTensor(tensor(middle), box),), C=rows, method=method)
        except Exception as error:
            text = (str(error).strip() or "no message").splitlines()[0][:60]
            row[method] = f"{type(error).__name__}: {text}"
            continue
        below, above = (side.detach().double() for side in bounds)
        slack = 1e-4 * max(1.0, float(expected.abs().max()))
        inside = bool(((expected >= below - slack) & (expected <= above + slack)).all())
        row[method] = f"{float((above - below).mean()):.3g}" if inside else "WRONG"
    return row


def row_of(model: Path, specification: Path | None, host: str | None) -> dict[str, Any]:
    """`examine` in a process of its own."""
    arguments = [str(model), str(specification or "")]
    child = run_child(__file__, arguments, host, TIMEOUT_SECONDS, (resource.RLIMIT_AS, MEMORY_BYTES))
    if child.row is None:
        return {"note": f"process {child.ending}: {(child.remarks or ['no message'])[-1]}"}
    if child.remarks:
        child.row["note"] += f" (printed: {child.remarks[-1][:80]})"
    return child.row


def table(pack: Path, host: str | None, only: str) -> str:
    rows = []
    for model, specification in models(pack, only):
        row = row_of(model, specification, host)
        rows.append(
            [model.relative_to(pack).as_posix(), *(row.get(column, "") for column in COLUMNS[1:-1]), row["note"]]
        )
        print(" | ".join(rows[-1])[:400], flush=True)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
    count = len(rows)
    good = [sum(1 for row in rows if row[index] and _is_good(row[index])) for index in range(1, len(COLUMNS) - 1)]
    summary = ", ".join(f"{name} {number}" for name, number in zip(COLUMNS[1:-1], good, strict=True))
    return f"{text}\n\nOf {count} models: {summary}.\n"


def _is_good(cell: str) -> bool:
    return ":" not in cell and cell not in ("WRONG", "did not end")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(examine(Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3] else None)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", nargs="?", type=Path, default=default_pack())
    parser.add_argument("--host", action="append", help="folder that contains auto_LiRPA; may be given more than once")
    parser.add_argument("--only", default="", help="only models whose path contains this text")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    arguments = parser.parse_args()
    texts = []
    for host in arguments.host or [None]:
        texts.append(f"## Host: {host_version(host)}\n\n{table(arguments.pack, host, arguments.only)}")
        print(texts[-1].rsplit("\n\n", 1)[-1])
    if arguments.markdown:
        arguments.markdown.write_text(HEADER + "\n".join(texts))


if __name__ == "__main__":
    main()
