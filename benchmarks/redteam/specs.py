"""Writes specifications: boxes as decimals, rows in several forms, several boxes and disjuncts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redteam.draws import Draws
from redteam.exact import decimal, short, written

Floats = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """sum_j coefficient_j y_j  relation  bound."""

    coefficients: dict[int, Fraction]
    relation: str
    bound: Fraction

    def text(self, form: str = "plain") -> str:
        """The row as VNN-LIB: "plain", "flipped", "difference", "shifted" by a large constant, or "scaled"."""
        left, right = self._sum(Fraction(1)), written(self.bound)
        if form == "flipped":
            return f"({_MIRRORED[self.relation]} {right} {left})"
        if form == "difference":
            return f"({self.relation} (- {left} {right}) 0.0)"
        if form == "shifted":
            return f"({self.relation} (+ {left} 1048576.0) {written(self.bound + 1048576)})"
        if form.startswith("scaled"):
            factor = Fraction(form.split()[1])
            return f"({self.relation} {self._sum(factor)} {written(self.bound * factor)})"
        return f"({self.relation} {left} {right})"

    def _sum(self, factor: Fraction) -> str:
        parts = []
        for place, value in self.coefficients.items():
            value *= factor
            parts.append(f"Y_{place}" if value == 1 else f"(* {written(value)} Y_{place})")
        return parts[0] if len(parts) == 1 else f"(+ {' '.join(parts)})"


_MIRRORED = {"<=": ">=", ">=": "<=", "<": ">", ">": "<"}
FORMS = ("plain",) * 6 + ("flipped", "difference", "scaled 1e-3", "scaled 0.3", "shifted")


@dataclass
class Spec:
    """A specification in the making.

    Attributes:
        bounds: (lower, upper) of each input as decimals.
        rows: of one disjunct, all of which the planted point satisfies.
        others: disjuncts that it does not satisfy.
        cuts: input to where its range is cut: each of the parts becomes an input box of its own.
        form: of the rows.
    """

    bounds: list[tuple[str, str]]
    rows: list[Row]
    outputs: int
    others: list[list[Row]] = field(default_factory=list)
    cuts: dict[int, list[str]] = field(default_factory=dict)
    form: str = "plain"

    def text(self) -> str:
        lines = [f"(declare-const X_{i} Real)" for i in range(len(self.bounds))]
        lines += [f"(declare-const Y_{i} Real)" for i in range(self.outputs)]
        for i, (low, high) in enumerate(self.bounds):
            lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
        unsafe = [[row.text(self.form) for row in rows] for rows in (self.rows, *self.others)]
        pieces = self._pieces()
        if len(unsafe) == 1 and pieces == [[]]:
            lines += [f"(assert {row})" for row in unsafe[0]]
        else:
            both = [f"(and {' '.join([*piece, *rows])})" for piece in pieces for rows in unsafe]
            lines.append(f"(assert (or {' '.join(both)}))")
        return "\n".join(lines) + "\n"

    def _pieces(self) -> list[list[str]]:
        """Constraints of the parts that the cuts make."""
        pieces: list[list[str]] = [[]]
        for place, at in self.cuts.items():
            ends: list[str | None] = [None, *at, None]
            ranges = [
                ([f"(>= X_{place} {low})"] if low else []) + ([f"(<= X_{place} {high})"] if high else [])
                for low, high in itertools.pairwise(ends)
            ]
            pieces = [[*piece, *more] for piece in pieces for more in ranges]
        return pieces


def decimals_around(d: Draws, low: Floats, high: Floats) -> list[tuple[str, str]]:
    """Bounds as decimals, no tighter than asked for: exact ones, or short ones rounded outwards."""
    digits = d.choice((0, 0, 3, 8, 12))
    pairs = []
    for a, b in zip(low, high, strict=True):
        keep = digits == 0 or a == b
        pairs.append((decimal(a), decimal(b)) if keep else (short(a, digits, up=False), short(b, digits, up=True)))
    return pairs


def cut_boxes(d: Draws, spec: Spec, low: Floats, high: Floats, chance: float = 0.25) -> str:
    """Cut the box into several, or not. Returns a word for the variant."""
    varying = np.flatnonzero(high > low)
    if not varying.size or not d.flag(chance):
        return ""
    axes: Sequence[int] = [int(d.choice(list(varying))) for _ in range(d.choice((1, 1, 2)))]
    for axis in axes:
        share = d.choice((0.5, 0.25, 0.75))
        at = float(np.float32(low[axis] + share * (high[axis] - low[axis])))
        spec.cuts[axis] = [decimal(at)]
    return f"{2 ** len(spec.cuts)} boxes"
