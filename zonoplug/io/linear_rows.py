"""Linear arithmetic over the variables of a specification, and the table of its inequalities.

A variable is one integer code: input i is i, output j is -1 - j.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zonoplug.verify.specification import Bools, Floats, Ints

OUTPUT_ROW: Final = 0
UPPER_BOUND: Final = 1
LOWER_BOUND: Final = 2

Codes = NDArray[np.int32]
Kinds = NDArray[np.uint8]


def output_code(index: int) -> int:
    """The code of output `index`; an input's code is its index."""
    return -1 - index


@dataclass(frozen=True, slots=True)
class LinearForm:
    """constant + sum_v terms[v] * v, with v the codes of variables; coefficients may be zero."""

    constant: float
    terms: Mapping[int, float]

    def times(self, factor: float) -> LinearForm:
        """This form with every coefficient multiplied by `factor`."""
        return LinearForm(self.constant * factor, {code: factor * value for code, value in self.terms.items()})

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite, also after division by any coefficient."""
        numbers = [value for value in self.terms.values() if value != 0.0]
        scale = min(map(abs, numbers), default=1.0)
        return all(map(math.isfinite, numbers)) and math.isfinite(self.constant / scale)


def constant(value: float) -> LinearForm:
    """The form without variables."""
    return LinearForm(value, {})


def variable(code: int) -> LinearForm:
    """The form 1 * variable."""
    return LinearForm(0.0, {code: 1.0})


def total(forms: Iterable[LinearForm]) -> LinearForm:
    """The sum of some forms, from left to right."""
    offset = 0.0
    terms: dict[int, float] = {}
    for form in forms:
        offset += form.constant
        for code, value in form.terms.items():
            terms[code] = terms.get(code, 0.0) + value
    return LinearForm(offset, terms)


def difference(left: LinearForm, right: LinearForm) -> LinearForm:
    """The form `left - right`."""
    return total((left, right.times(-1.0)))


def product(factors: Iterable[LinearForm]) -> LinearForm | None:
    """The product of some forms, or None if two of them have variables."""
    result = constant(1.0)
    for factor in factors:
        if result.terms and factor.terms:
            return None
        result = result.times(factor.constant) if not factor.terms else factor.times(result.constant)
    return result


@dataclass(frozen=True, slots=True)
class FlatRows:
    """A block of inequalities as arrays.

    Attributes:
        kind: (rows,) OUTPUT_ROW, UPPER_BOUND (input <= bound) or LOWER_BOUND (input >= bound).
        input_index: (rows,) the input that is bounded; -1 in output rows.
        bound: (rows,) right-hand sides; an output row says  sum_j value_j y_j <= bound.
        strict: (rows,) True for "<" and ">".
        entry_row, entry_output, entry_value: (entries,) coefficients of output rows, sorted by row.
    """

    kind: Kinds
    input_index: Codes
    bound: Floats
    strict: Bools
    entry_row: Ints
    entry_output: Codes
    entry_value: Floats

    @property
    def num_rows(self) -> int:
        """How many inequalities the block holds."""
        return int(self.kind.shape[0])


class RowTable:
    """Inequalities in the order they are added; a row's id is its position."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._blocks: list[FlatRows] = []
        self._kind: list[int] = []
        self._input_index: list[int] = []
        self._bound: list[float] = []
        self._strict: list[bool] = []
        self._entry_row: list[int] = []
        self._entry_output: list[int] = []
        self._entry_value: list[float] = []

    def add_block(self, block: FlatRows) -> int:
        """Append rows given as arrays, with `entry_row` counted from 0; returns the id of the first."""
        first = self.num_rows
        if block.num_rows:
            self._flush()
            block.entry_row[:] += first
            self._blocks.append(block)
            self.num_rows += block.num_rows
        return first

    def add_bound(self, index: int, upper: bool, bound: float, strict: bool) -> int:
        """Append  input <= bound  (or >= if not `upper`); returns its id."""
        self._kind.append(UPPER_BOUND if upper else LOWER_BOUND)
        self._input_index.append(index)
        self._bound.append(bound)
        self._strict.append(strict)
        self.num_rows += 1
        return self.num_rows - 1

    def add_output_row(self, terms: Mapping[int, float], bound: float, strict: bool) -> int:
        """Append  sum_v terms[v] v <= bound  over codes of outputs; returns its id."""
        for code, value in terms.items():
            self._entry_row.append(self.num_rows)
            self._entry_output.append(-1 - code)
            self._entry_value.append(value)
        self._kind.append(OUTPUT_ROW)
        self._input_index.append(-1)
        self._bound.append(bound)
        self._strict.append(strict)
        self.num_rows += 1
        return self.num_rows - 1

    def arrays(self) -> FlatRows:
        """All rows so far as one block; the parts are given up as it is built."""
        self._flush()
        if len(self._blocks) != 1:
            columns = [[getattr(block, name) for block in self._blocks] for name in FlatRows.__slots__]
            self._blocks.clear()
            joined = []
            while columns:
                joined.append(np.concatenate(columns.pop(0)))
            self._blocks.append(FlatRows(*joined))
        return self._blocks[0]

    def _flush(self) -> None:
        if self._kind or not self._blocks:
            block = FlatRows(
                np.array(self._kind, np.uint8),
                np.array(self._input_index, np.int32),
                np.array(self._bound, np.float64),
                np.array(self._strict, np.bool_),
                np.array(self._entry_row, np.int64),
                np.array(self._entry_output, np.int32),
                np.array(self._entry_value, np.float64),
            )
            self._blocks.append(block)
            for column in (self._kind, self._input_index, self._bound, self._strict):
                column.clear()
            for column in (self._entry_row, self._entry_output, self._entry_value):
                column.clear()


def refusal(form: LinearForm) -> str | None:
    """Why  form <= 0  cannot be a row (it mixes inputs with outputs, or bounds several inputs); None if it can."""
    codes = [code for code, value in form.terms.items() if value != 0.0]
    inputs = sum(code >= 0 for code in codes)
    if inputs and inputs < len(codes):
        return "a constraint that mixes inputs and outputs"
    if inputs > 1:
        return f"a constraint over {inputs} inputs at once (only bounds of single inputs are read)"
    return None


def add_inequality(table: RowTable, form: LinearForm, strict: bool) -> int | bool:
    """Append  form <= 0  ("<" if `strict`) for a form that `refusal` accepts.

    Returns the row's id, or the truth of the inequality if no variable is left in it.
    """
    terms = {code: value for code, value in form.terms.items() if value != 0.0}
    bound = 0.0 - form.constant
    if not terms:
        return 0.0 < bound if strict else 0.0 <= bound
    (code, value), *others = terms.items()
    if code < 0 or others:
        return table.add_output_row(terms, bound, strict)
    return table.add_bound(code, value > 0.0, bound / value + 0.0, strict)
