"""How far ONNX Runtime is from the real functions, next to what is assumed of it, at every optimisation level.

    python benchmarks/runtime_accuracy.py [--points 400000] [--models FOLDER]

With --models, the operators executed for the models (*.onnx, *.onnx.gz) in and below a folder are listed too. Results
go to benchmarks/results/runtime_accuracy.md. Put another ONNX Runtime first on PYTHONPATH to measure that one, with
--name runtime_accuracy-VERSION.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime
from measuring import RESULTS, markdown_table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.runtime_cases import CASES, WIDER, case_session, load, points, run_trial, share
from helpers.runtime_composed import COMPOSED, scaled_rows

from zonoplug.io.runtime import FORMATS, LEVELS, UNDERSTOOD, check_runtime, runtime_operators, variance_cancels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=400_000, help="about a seventh of the numbers tried per operator")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--name", default="runtime_accuracy")
    options = parser.parse_args()
    np.seterr(all="ignore")
    sections = [elementwise(options.points), composed()]
    if options.models:
        sections.append(executed(options.models))
    differing = ", ".join(
        f"{name} {'differences' if variance_cancels(name) else 'squares of differences'}"
        for name in ("LayerNormalization", "InstanceNormalization", "GroupNormalization")
    )
    head = (
        f"# Accuracy of ONNX Runtime\n\nMade by `python benchmarks/runtime_accuracy.py`: ONNX Runtime "
        f"{onnxruntime.__version__}, one thread, {_processor()}.\nVariances are computed from: {differing}."
    )
    text = "\n\n".join([head, *sections]) + "\n"
    print(text)
    (RESULTS / f"{options.name}.md").write_text(text)


def elementwise(count: int) -> str:
    rows, refused = [], defaultdict(list)
    for kind in FORMATS:
        for case in CASES:
            if case.accuracy(kind) is None:
                refused[kind].append(case.name)
                continue
            try:
                rows.append(_row(case, kind, points(case, kind, count if kind == "float32" else count // 20)))
            except Exception as error:
                refused[kind].append(f"{case.name} ({str(error)[:60]})")
            print(rows[-1], flush=True)
    units = [f"units of {of}" for of in ("f(x)", "1", "max(1, x)")]
    header = ["operator", "type", "numbers", *units, "assumed", "used", "at x", "levels"]
    said = (
        "Largest differences from references in higher precision, in unit roundoffs: of |f(x)|, of 1 and of max(1, |x|)"
        " (the columns are maxima of their own); what is assumed, as relative + absolute + operand; the largest part"
        " of that which was used, and where. Vectors of all numbers at once, and of 1, 7 and 16; `same` says that the"
        " four levels gave the same bits."
    )
    missing = "\n\n".join(f"Nothing is assumed in {kind} of: {', '.join(names)}." for kind, names in refused.items())
    return f"## Elementwise operators\n\n{said}\n\n{markdown_table(header, rows)}\n\n{missing}"


def _row(case, kind, x) -> list[str]:
    sessions = [case_session(case, kind, level) for level in LEVELS]
    outputs = [session.run(None, {"x": x})[0] for session in sessions]
    same = all(np.array_equal(outputs[0], output, equal_nan=True) for output in outputs)
    used = max(load(case, kind, x, output) for output in (outputs if not same else outputs[:1]))
    chosen = np.random.default_rng(0).permutation(len(x))
    values, exact = [outputs[0]], [x]
    for length, pieces in ((1, 2000), (7, 2000), (16, 2000)):
        some = x[chosen[: length * pieces]]
        parts = [sessions[-1].run(None, {"x": some[i : i + length].copy()})[0] for i in range(0, len(some), length)]
        used = max(used, load(case, kind, some, np.concatenate(parts)))
        values.append(np.concatenate(parts))
        exact.append(some)
    measured = _units(case, kind, np.concatenate(exact), np.concatenate(values))
    accuracy = case.accuracy(kind)
    assumed = f"{accuracy.relative:g} + {accuracy.absolute:g} + {accuracy.operand:g}"
    shown = [f"{value:.3g}" for value in measured]
    return [
        case.name,
        kind,
        str(len(x)),
        *shown,
        assumed,
        f"{used[0]:.0%}",
        f"{used[1]:.6g}",
        "same" if same else "differ",
    ]


def _units(case, kind, x, computed) -> list[float]:
    form, wide = FORMATS[kind], x.astype(WIDER[kind])
    exact = np.asarray(case.reference(wide))
    counted = np.isfinite(exact) & (np.abs(exact) <= form.largest / 2)
    error = np.maximum(np.abs(computed.astype(WIDER[kind]) - exact) - 4 * form.tiny, 0)[counted] / form.unit
    parts = np.abs(exact)[counted], 1, np.maximum(1, np.abs(wide))[counted]
    return [float(np.nan_to_num(error / part).max(initial=0)) for part in parts]


def composed() -> str:
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    trials: dict[tuple[str, str], int] = defaultdict(int)
    refused = set()
    for kind in FORMATS:
        for n in (1, 2, 7, 64, 1000):
            for scale, x in scaled_rows(kind, n, seed=1).items():
                for trial in (trial for make in COMPOSED for trial in make(x)):
                    key = trial.operator, kind
                    for level in LEVELS:
                        try:
                            used = share(run_trial(trial, level), trial.exact, trial.allowed)
                        except Exception as error:
                            refused.add(f"{trial.operator} in {kind}, set {trial.opset}: {str(error)[:60]}")
                            break
                        where = f"n = {n}, {scale}" + "".join(f", {k} = {v}" for k, v in trial.attributes.items())
                        worst[key] = max(worst.get(key, (0.0, "")), (used, where))
                        trials[key] += int(np.isfinite(trial.allowed).any())
    rows = [
        [name, kind, str(trials[name, kind]), f"{used:.1%}", at] for (name, kind), (used, at) in sorted(worst.items())
    ]
    said = (
        "The largest part of the assumed error that was used, over rows near 0 and far from it, tiny, huge, flat and of"
        " mixed scales, along the last and other axes, at four levels. Runs count where an error is assumed at all."
    )
    missing = "Refused by this runtime: " + ("; ".join(sorted(refused)) or "none") + "."
    table = markdown_table(["operator", "type", "runs", "used", "where"], rows)
    return f"## Composed operators\n\n{said}\n\n{table}\n\n{missing}"


def executed(folder: Path) -> str:
    found: dict[str, set[str]] = defaultdict(set)
    seconds, problems, skipped = [], [], 0
    for path in sorted([*folder.rglob("*.onnx"), *folder.rglob("*.onnx.gz")]):
        source = path.read_bytes()
        source = gzip.decompress(source) if source[:2] == b"\x1f\x8b" else source
        if source.startswith(b"version https://git-lfs"):
            skipped += 1
            continue
        start = time.perf_counter()
        problem = check_runtime(source)
        seconds.append(time.perf_counter() - start)
        if problem:
            problems.append(f"{path.name}: {problem}")
        for name in runtime_operators(source):
            found[name].add(path.relative_to(folder).parts[0])
    rows = [[name, str(len(folders)), "yes" if name in UNDERSTOOD else "no"] for name, folders in sorted(found.items())]
    said = (
        f"Over {len(seconds)} models ({skipped} are pointers to a file elsewhere), at any of the four levels. The check"
        f" took {np.median(seconds):.3f} s in the middle and {max(seconds):.3f} s at most. Models about which nothing"
        f" can be proved: {'; '.join(problems) or 'none'}."
    )
    return f"## Executed operators\n\n{said}\n\n{markdown_table(['operator', 'folders', 'understood'], rows)}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    values = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = [name for name in ("avx2", "fma", "avx512f") if name in values.get("flags", "").split()]
    return f"{values.get('model name', 'unknown processor')} ({', '.join(flags) or 'no vector units known'})"


if __name__ == "__main__":
    main()
