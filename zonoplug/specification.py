"""What is asked of a network: a union of unsafe disjuncts over its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonoplug.exact_rows import ExactRows, RationalRow

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


class Variable(NamedTuple):
    """A declared tensor: `X`, `float32`, (1, 5). VNN-LIB 1.0 files give (count,) and `float32`."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def element_name(version: str, variable: Variable, index: int) -> str:
    """How a file of `version` writes element `index` (C order) of a tensor: X_3 in "1.0", X[0,3] in "2.0"."""
    if version == "1.0":
        return f"{variable.name}_{index}"
    place = ",".join(str(int(k)) for k in np.unravel_index(index, variable.shape)) if variable.shape else ""
    return f"{variable.name}[{place}]" if place else variable.name


@dataclass(frozen=True, slots=True)
class Specification:
    """The unsafe set of a VNN-LIB file in disjunctive normal form.

        exists d, x, y = f(x):   lower[box_of_disjunct[d]] <= x <= upper[box_of_disjunct[d]]
                                 and   sum_j a_rj y_j <= bound_r   for every row r of disjunct d  ("<" where strict)

    The property holds ("unsat") if no such point exists. Boxes are stored once however many disjuncts share them,
    and rows as coordinate triples, so thousands of disjuncts stay small.

    Numbers are rationals, as written. Of an input bound, the nearest float64 and whether that itself is excluded decide
    for every float of at most 64 bits on which side of the bound it lies. Rows keep their rationals in `exact`.

    Attributes:
        version: "1.0" or "2.0", the language of the file.
        inputs, outputs: the declared tensors; indices below run over their elements in C order.
        lower, upper: (boxes, inputs), finite, lower <= upper, the float64 nearest to what is written.
        box_of_disjunct: (disjuncts,) index into the boxes.
        row_disjunct: (rows,) non-decreasing; a disjunct without rows is violated by every point of its box.
        row_bound: (rows,) right-hand sides, the float64 nearest.
        row_strict: (rows,) True for "<".
        entry_row, entry_output, entry_value: (entries,) the coefficients a_rj that are not zero, sorted by row, at most
            one for each row and output, the float64 nearest; rows far beyond 1 are divided by a power of two.
        open_lower, open_upper: (boxes, inputs) True where the float64 itself is excluded, since the bound is strict or
            what is written lies further inside; None if there is none.
        exact: what float64 does not have of the rows; None if it has everything.
    """

    version: str
    inputs: Variable
    outputs: Variable
    lower: Floats
    upper: Floats
    box_of_disjunct: Ints
    row_disjunct: Ints
    row_bound: Floats
    row_strict: Bools
    entry_row: Ints
    entry_output: Ints
    entry_value: Floats
    open_lower: Bools | None = None
    open_upper: Bools | None = None
    exact: ExactRows | None = None

    @property
    def num_inputs(self) -> int:
        """How many elements the input tensor has."""
        return int(self.lower.shape[1])

    @property
    def num_outputs(self) -> int:
        """How many elements the output tensor has."""
        return int(np.prod(self.outputs.shape, dtype=np.int64))

    @property
    def num_boxes(self) -> int:
        """How many distinct input boxes there are."""
        return int(self.lower.shape[0])

    @property
    def num_disjuncts(self) -> int:
        """How many disjuncts there are; 0 if the property holds whatever the network computes."""
        return int(self.box_of_disjunct.shape[0])

    def row(self, row: int) -> RationalRow:
        """A row as written, in rational numbers (or a multiple of it by a power of two)."""
        first, stop = np.searchsorted(self.entry_row, [row, row + 1])
        bound, terms = Fraction(float(self.row_bound[row])), None
        if self.exact is not None and int(self.exact.number[row]) in self.exact.rows:
            written, terms = self.exact.rows[int(self.exact.number[row])]
            bound = Fraction(written)
        if terms is None:
            entries = zip(self.entry_output[first:stop].tolist(), self.entry_value[first:stop].tolist(), strict=True)
            terms = {output: Fraction(value) for output, value in entries}
        return RationalRow(terms, bound, bool(self.row_strict[row]))

    def within(self, inputs: Floats, box: int | None = None) -> Bools:
        """Which boxes (boxes,) the inputs (inputs,) lie in: each as a rational within its bounds as written.

        Args:
            box: the only one to look at, (1,).
        """
        chosen = slice(None) if box is None else slice(box, box + 1)
        lower, upper = self.lower[chosen], self.upper[chosen]
        below = inputs >= lower
        above = inputs <= upper
        if self.open_lower is not None:
            below &= ~(self.open_lower[chosen] & (inputs == lower))
        if self.open_upper is not None:
            above &= ~(self.open_upper[chosen] & (inputs == upper))
        return np.asarray((below & above).all(axis=1))

    def violated_by(self, inputs: Floats, outputs: Floats) -> int | None:
        """The first disjunct that the point lies in, or None.

        Everything is compared exactly as written, in rational numbers: no tolerance. NaN lies in nothing.

        Args:
            inputs: (inputs,) in float64.
            outputs: (outputs,) in float64.
        """
        return self.unsafe_disjunct(outputs, self.within(inputs))

    def unsafe_disjunct(self, outputs: Floats, in_box: Bools) -> int | None:
        """The first disjunct whose box is marked in `in_box` (boxes,) and whose rows hold for `outputs`, or None.

        Rows that float64 cannot decide are evaluated in rational numbers; see `RationalRow.holds`.
        """
        possible = in_box[self.box_of_disjunct]
        holds, known = self._rows_in_float64(outputs)
        possible[self.row_disjunct[known & ~holds]] = False
        doubtful = np.flatnonzero(~known & possible[self.row_disjunct])
        first, stop = (np.searchsorted(self.row_disjunct[doubtful], np.flatnonzero(possible), side) for side in _SIDES)
        for disjunct, rows in zip(np.flatnonzero(possible), map(slice, first, stop), strict=True):
            if all(self.row(row).holds(outputs) for row in doubtful[rows].tolist()):
                return int(disjunct)
        return None

    def _rows_in_float64(self, outputs: Floats) -> tuple[Bools, Bools]:
        """Which rows hold at the outputs, and for which of them that is certain: (rows,) each.

        The error of a sum of k rounded products of rounded coefficients is at most (k + 2) 2^-53 (1 + 2^-20) times the
        sum of their absolute values, plus what underflow takes; twice that is allowed.
        """
        count = self.row_bound.shape[0]
        values, sizes = np.zeros(count), np.abs(self.row_bound)
        with np.errstate(over="ignore", invalid="ignore"):
            products = self.entry_value * outputs[self.entry_output]
            np.add.at(values, self.entry_row, products)
            np.add.at(sizes, self.entry_row, np.abs(products))
            largest = float(np.abs(outputs).max(initial=1.0))
            terms = np.bincount(self.entry_row, minlength=count) + 4
            error = terms * (2.0**-52 * sizes + 2.0**-1070 * max(largest, 1.0))
            known = np.abs(values - self.row_bound) > error  # not where anything is infinite or NaN
            known &= np.isfinite(error)
        return values < self.row_bound, known
