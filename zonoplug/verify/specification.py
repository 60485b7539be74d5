"""What is asked of a network: a union of unsafe disjuncts over its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Variable(NamedTuple):
    """A declared tensor: `X`, `float32`, (1, 5). VNN-LIB 1.0 files give (count,) and `float32`."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Specification:
    """The unsafe set of a VNN-LIB file in disjunctive normal form.

        exists d, x, y = f(x):   lower[box_of_disjunct[d]] <= x <= upper[box_of_disjunct[d]]
                                 and   sum_j a_rj y_j <= bound_r   for every row r of disjunct d  ("<" where strict)

    The property holds ("unsat") if no such point exists. Boxes are stored once however many disjuncts share them,
    and rows as coordinate triples, so thousands of disjuncts stay small.

    Attributes:
        version: "1.0" or "2.0", the language of the file.
        inputs, outputs: the declared tensors; indices below run over their elements in C order.
        lower, upper: (boxes, inputs), finite, lower <= upper, as written (decimal text rounded to float64).
        box_of_disjunct: (disjuncts,) index into the boxes.
        row_disjunct: (rows,) non-decreasing; a disjunct without rows is violated by every point of its box.
        row_bound: (rows,) right-hand sides.
        row_strict: (rows,) True for "<".
        entry_row, entry_output, entry_value: (entries,) the coefficients a_rj that are not zero, sorted by row.
        open_lower, open_upper: (boxes, inputs) True where an input bound itself is excluded; None if there is none.
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

    def violated_by(self, inputs: Floats, outputs: Floats) -> int | None:
        """The first disjunct that the point lies in, or None.

        Bounds are compared exactly as written: no tolerance. NaN lies in nothing.

        Args:
            inputs: (inputs,) in float64.
            outputs: (outputs,) in float64.
        """
        below = inputs >= self.lower
        above = inputs <= self.upper
        if self.open_lower is not None:
            below = np.where(self.open_lower, inputs > self.lower, below)
        if self.open_upper is not None:
            above = np.where(self.open_upper, inputs < self.upper, above)
        in_box: Bools = np.asarray((below & above).all(axis=1))
        return self.unsafe_disjunct(outputs, in_box)

    def unsafe_disjunct(self, outputs: Floats, in_box: Bools) -> int | None:
        """The first disjunct whose box is marked in `in_box` (boxes,) and whose rows hold for `outputs`, or None."""
        values = np.zeros(self.row_bound.shape[0])
        np.add.at(values, self.entry_row, self.entry_value * outputs[self.entry_output])
        row_holds = np.where(self.row_strict, values < self.row_bound, values <= self.row_bound)
        holds = in_box[self.box_of_disjunct]
        np.logical_and.at(holds, self.row_disjunct, row_holds)
        found = np.flatnonzero(holds)
        return int(found[0]) if found.size else None
