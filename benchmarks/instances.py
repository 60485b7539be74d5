"""Instances of the VNN-COMP benchmarks with known verdicts, where a folder of them is at hand."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACK = Path(os.environ.get("ZONOPLUG_VNNCOMP", ROOT.parent / "shared" / "vnncomp"))


@dataclass(frozen=True)
class Instance:
    """One line of a benchmark's instances.csv; `expected` is "sat", "unsat" or empty."""

    benchmark: str
    model: Path
    specification: Path
    timeout_seconds: float
    expected: str

    @property
    def name(self) -> str:
        stems = (path.name.removesuffix(".gz").rpartition(".")[0] for path in (self.model, self.specification))
        return f"{self.benchmark}: {', '.join(stems)}"


def instances(pack: Path, benchmark: str, count: int | None = None) -> list[Instance]:
    """The instances of one benchmark, or `count` of them spread over its list.

    Exits with a clear message where the folder is absent.
    """
    listed = pack / benchmark / "instances.csv"
    if not listed.exists():
        raise SystemExit(f"No benchmark {benchmark!r} under {pack}: give another folder with --pack.")
    with listed.open() as lines:
        rows = list(csv.DictReader(lines))
    found = [
        Instance(
            benchmark,
            pack / benchmark / row["onnx"],
            pack / benchmark / row["vnnlib"],
            float(row["timeout_seconds"]),
            row["expected"],
        )
        for row in rows
    ]
    if count is None or count >= len(found):
        return found
    return [found[place * len(found) // count] for place in range(count)]
