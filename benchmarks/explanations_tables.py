"""Rows of the tables of explanations.py, and what is read off them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path

Rows = list[dict[str, str]]


def read(folder: Path, name: str) -> Rows:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else float("nan")


def column(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def where(rows: Rows, **wanted: str) -> Rows:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def values_of(rows: Rows, name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in rows))


def number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.2g}"
