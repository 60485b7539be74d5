"""onnx's own tests of single operators, loaded and compared with ONNX Runtime: which agree, are refused, or are wrong.

python benchmarks/node_tests.py                              # counts, and every case that is wrong or raises
python benchmarks/node_tests.py --only resize --show         # a part of the cases, one line for each
python benchmarks/node_tests.py --markdown benchmarks/results/node_tests.md

A case is usable if its tensors are dense, its outputs are FLOAT or DOUBLE and so is one of its inputs at least. The
first such input is the network's; the others become constants of the file. "wrong": `load_model` and
`check_agreement` accept it, and at a point of this script the values differ. Exit status 1 on any wrong or raise.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from zonoplug.errors import ModelError
from zonoplug.io.agreement import check_agreement
from zonoplug.io.onnx_model import OnnxModel, load_model

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
NEWEST_FORM = 10  # of files; newer ones differ in nothing that these tests use, and runtimes refuse them
LONGEST_REFUSAL = 200  # characters, without the path
OUTCOMES = ("agree", "agree, attack only", "refused", "wrong", "raised")


@dataclass(frozen=True)
class Case:
    """A test as a network: the file's bytes, and the point that the test gives for its one input."""

    name: str
    operator: str
    source: bytes
    point: Any


@dataclass(frozen=True)
class Result:
    """What became of a case; `reason` is the refusal, the difference or the exception."""

    case: Case
    outcome: str
    reason: str


def cases(only: str = "") -> Iterator[Case]:
    """The usable cases whose names contain `only`."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    for test in collected:
        if only in test.name and (case := as_network(test)) is not None:
            yield case


def as_network(test: Any) -> Case | None:
    """The test with its first float input free and all others constant; None if it is not usable."""
    graph, given = test.model.graph, test.data_sets[0][0]
    dense = all(value.type.HasField("tensor_type") for value in [*graph.input, *graph.output])
    if not dense or any(value.type.tensor_type.elem_type not in FLOATS for value in graph.output):
        return None
    values = dict(zip((value.name for value in graph.input), given, strict=False))
    free = next((value for value in graph.input if value.type.tensor_type.elem_type in FLOATS), None)
    if free is None or free.name not in values:
        return None
    point = as_array(values[free.name])
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    for value in list(model.graph.input):
        if value.name != free.name:
            tensor = values[value.name] if value.name in values else np.zeros(())
            if not isinstance(tensor, TensorProto):
                tensor = numpy_helper.from_array(np.asarray(tensor), value.name)
            tensor.name = value.name
            model.graph.initializer.append(tensor)
            model.graph.input.remove(value)
    model.ir_version = min(model.ir_version, NEWEST_FORM)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    for size in point.shape:
        model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = size
    operator = re.sub("_expanded.*", " (expanded)", test.name.removeprefix("test_"))
    operator = test.model.graph.node[0].op_type if len(graph.node) == 1 else operator
    return Case(test.name, operator, model.SerializeToString(), point)


def as_array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def points_for(case: Case, seed: int) -> Any:
    """(N, inputs): the test's point, two random points and two corners of a box around it, one far point."""
    rng = np.random.default_rng(seed)
    centre = case.point.reshape(1, -1).astype(np.float64)
    radius = 0.5 + 0.1 * np.abs(centre)
    inside = centre + radius * rng.uniform(-1, 1, (2, centre.shape[1]))
    corners = centre + radius * rng.choice([-1.0, 1.0], (2, centre.shape[1]))
    far = 3 * rng.normal(size=(1, centre.shape[1]))
    return np.concatenate([centre, inside, corners, far])


def run(case: Case, folder: Path) -> Result:
    """Load a case, compare it as the verifier would, and compare it again at points of our own."""
    path = folder / "case.onnx"
    path.write_bytes(case.source)
    try:
        model = load_model(path)
        check_agreement(model, points_for(case, 0))
        difference = compare(model, points_for(case, 1))
    except ModelError as error:
        reason = str(error).removeprefix(f"{path}: ")
        too_long = "\n" in reason or len(reason) > LONGEST_REFUSAL
        return Result(case, "raised" if too_long else "refused", reason)
    except Exception as error:
        return Result(case, "raised", f"{type(error).__name__}: {str(error)[:200]}")
    if difference is not None:
        return Result(case, "wrong", difference)
    return Result(case, "agree" if model.obstacle is None else "agree, attack only", model.obstacle or "")


def compare(model: OnnxModel, points: Any) -> str | None:
    """Where the loaded module and ONNX Runtime differ by more than a thousand roundings of the largest term; or None.

    The allowance is of this script, not the loader's: 1e-5 of each output's own largest value over the points, and
    1e-5 of what the output changes by if every input moves by one part in a thousand, which is large where terms
    cancel.
    """
    expected = model.evaluate(points).astype(np.float64)
    inputs = torch.tensor(points, dtype=model.dtype).reshape(-1, *model.input_shape)
    with torch.no_grad():
        got = model.module(inputs).double().numpy().reshape(expected.shape)
        moved = model.module(inputs * 1.001).double().numpy().reshape(expected.shape)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    finite = np.isfinite(expected)
    size = np.abs(expected).max(axis=0, initial=0, where=finite)
    change = np.nan_to_num(np.abs(moved - got), nan=0, posinf=0, neginf=0).max(axis=0, initial=0)
    with np.errstate(invalid="ignore"):
        bad = ~same & ~(np.abs(got - expected) <= 1e-5 * size + 1e-2 * change)
    if not bad.any():
        return None
    point, output = np.argwhere(bad)[0]
    return f"point {point}, output {output}: {got[point, output]:.7g} for {expected[point, output]:.7g}"


def kind_of(reason: str) -> str:
    """A refusal without its names and numbers, to count by."""
    return re.sub(r"\d[\d.e+-]*", "#", re.sub(r"\([^()]*\)|'[^']*'", "", reason)).strip()[:90]


def report(results: list[Result]) -> str:
    """Tables in Markdown."""
    counts = Counter(result.outcome for result in results)
    lines = [
        "# onnx's node tests", "",
        f"onnx {onnx.__version__}; made by `benchmarks/node_tests.py --markdown FILE`. A case that agrees but is for",
        "the attack only holds an operator through which nothing is proved.", "",
        "| cases | " + " | ".join(OUTCOMES) + " |", "| --- " * (len(OUTCOMES) + 1) + "|",
        f"| {len(results)} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |", "",
        "## By reason", "", "| outcome | cases | reason |", "| --- | --- | --- |",
    ]  # fmt: skip
    reasons = Counter((result.outcome, kind_of(result.reason)) for result in results if result.reason)
    lines += [f"| {outcome} | {count} | {reason} |" for (outcome, reason), count in reasons.most_common()]
    lines += ["", "## By operator", "", "| operator | " + " | ".join(OUTCOMES) + " |"]
    lines += ["| --- " * (len(OUTCOMES) + 1) + "|"]
    operators: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        operators[result.case.operator][result.outcome] += 1
    for name, of in sorted(operators.items()):
        lines.append(f"| {name} | " + " | ".join(str(of[outcome] or "") for outcome in OUTCOMES) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names of cases")
    parser.add_argument("--show", action="store_true", help="a line for each case")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.only):
            result = run(case, Path(folder))
            results.append(result)
            if options.show or result.outcome in ("wrong", "raised"):
                print(f"{result.outcome:20} {case.name:60} {result.reason}", flush=True)
    print(len(results), "cases:", dict(Counter(result.outcome for result in results)))
    if options.markdown:
        options.markdown.write_text(report(results))
    return 1 if any(result.outcome in ("wrong", "raised") for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
