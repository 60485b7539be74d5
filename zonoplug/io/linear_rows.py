"""Linear arithmetic over the variables of a specification, and the table of its inequalities.

A variable is one integer code: input i is i, output j is -1 - j.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zonoplug.exact_rows import ExactRow, Signs
from zonoplug.io.decimals import MAX_BITS, NumberRangeError, rounded, text_sides
from zonoplug.specification import Bools, Floats, Ints

OUTPUT_ROW: Final = 0
UPPER_BOUND: Final = 1
LOWER_BOUND: Final = 2
SAFE_EXPONENT: Final = 400  # output rows whose largest coefficient is within 2^-400 .. 2^400 stay as written

ZERO: Final = Fraction(0)
ONE: Final = Fraction(1)

Codes = NDArray[np.int32]
Kinds = NDArray[np.uint8]


def output_code(index: int) -> int:
    """The code of output `index`; an input's code is its index."""
    return -1 - index


@dataclass(frozen=True, slots=True)
class LinearForm:
    """constant + sum_v terms[v] * v in rational numbers, with v the codes of variables; coefficients may be zero."""

    constant: Fraction
    terms: Mapping[int, Fraction]

    def times(self, factor: Fraction) -> LinearForm:
        """This form with every coefficient multiplied by `factor`.

        Raises:
            NumberRangeError: a number becomes longer than any specification needs.
        """
        result = LinearForm(self.constant * factor, {code: factor * value for code, value in self.terms.items()})
        for value in (result.constant, *result.terms.values()):
            if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
                raise NumberRangeError("a number is too large for float64, or too small")
        return result

    def negated(self) -> LinearForm:
        """This form with the opposite sign."""
        return LinearForm(-self.constant, {code: -value for code, value in self.terms.items()})


def constant(value: Fraction) -> LinearForm:
    """The form without variables."""
    return LinearForm(value, {})


def variable(code: int) -> LinearForm:
    """The form 1 * variable."""
    return LinearForm(ZERO, {code: ONE})


def total(forms: Iterable[LinearForm]) -> LinearForm:
    """The sum of some forms."""
    offset = ZERO
    terms: dict[int, Fraction] = {}
    for form in forms:
        if form.constant:
            offset += form.constant
        for code, value in form.terms.items():
            terms[code] = terms[code] + value if code in terms else value
    return LinearForm(offset, terms)


def difference(left: LinearForm, right: LinearForm) -> LinearForm:
    """The form `left - right`."""
    return total((left, right.negated()))


def product(factors: Iterable[LinearForm]) -> LinearForm | None:
    """The product of some forms, or None if two of them have variables. Raises NumberRangeError."""
    result = constant(ONE)
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
        side: (rows,) the sign of the right-hand side as written minus `bound`.
        entry_row, entry_output, entry_value: (entries,) coefficients of output rows, sorted by row.
        entry_side: (entries,) the sign of the coefficient as written minus `entry_value`.
    """

    kind: Kinds
    input_index: Codes
    bound: Floats
    strict: Bools
    side: Signs
    entry_row: Ints
    entry_output: Codes
    entry_value: Floats
    entry_side: Signs

    @property
    def num_rows(self) -> int:
        """How many inequalities the block holds."""
        return int(self.kind.shape[0])


class RowTable:
    """Inequalities in the order they are added; a row's id is its position.

    Attributes:
        exact: the output rows, by id, with a number that float64 does not have.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.exact: dict[int, ExactRow] = {}
        self._blocks: list[FlatRows] = []
        self._rows: list[tuple[int, int, float, bool, int]] = []
        self._words: list[tuple[int, str]] = []  # of rows whose side is still to be found
        self._entries: list[tuple[int, int, float, int]] = []

    def add_block(self, block: FlatRows, exact: Mapping[int, ExactRow]) -> int:
        """Append rows given as arrays, with rows counted from 0; returns the id of the first."""
        first = self.num_rows
        if block.num_rows:
            self._flush()
            block.entry_row[:] += first
            self._blocks.append(block)
            self.num_rows += block.num_rows
            self.exact.update((first + row, written) for row, written in exact.items())
        return first

    def add_bound(self, index: int, upper: bool, bound: float, strict: bool, side: int) -> int:
        """Append  input <= bound  (or >= if not `upper`); returns its id. `side` is as in FlatRows."""
        self._rows.append((UPPER_BOUND if upper else LOWER_BOUND, index, bound, strict, side))
        self.num_rows += 1
        return self.num_rows - 1

    def add_written_bound(self, index: int, upper: bool, word: str, strict: bool) -> int:
        """As `add_bound`, for a number as a file writes it, with few digits and no exponent; cheaper for many."""
        self._words.append((len(self._rows), word))
        return self.add_bound(index, upper, float(word) + 0.0, strict, 0)

    def add_output_row(self, terms: Mapping[int, Fraction], bound: Fraction, strict: bool) -> int:
        """Append  sum_v terms[v] v <= bound  over codes of outputs; returns its id.

        Coefficients far beyond 1 or below make the whole row, which is the same inequality then, be divided by a power
        of two.

        Raises:
            NumberRangeError: the bound is too large for float64, in units of the largest coefficient.
        """
        largest = max(map(abs, terms.values()))
        exponent = largest.numerator.bit_length() - largest.denominator.bit_length()
        if abs(exponent) > SAFE_EXPONENT:
            power = Fraction(2) ** -exponent
            terms, bound = {code: power * value for code, value in terms.items()}, power * bound
        is_exact = True
        for code, value in terms.items():
            nearest, side = rounded(value)
            is_exact &= side == 0
            self._entries.append((self.num_rows, -1 - code, nearest, side))
        nearest, side = rounded(bound)
        self._rows.append((OUTPUT_ROW, -1, nearest, strict, side))
        if side or not is_exact:
            self.exact[self.num_rows] = bound, {-1 - code: value for code, value in terms.items()}
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
        if self._rows or not self._blocks:
            kind, index, bound, strict, side = zip(*self._rows, strict=True) if self._rows else [()] * 5
            row, output, value, entry_side = zip(*self._entries, strict=True) if self._entries else [()] * 4
            block = FlatRows(
                np.array(kind, np.uint8),
                np.array(index, np.int32),
                np.array(bound, np.float64),
                np.array(strict, np.bool_),
                np.array(side, np.int8),
                np.array(row, np.int64),
                np.array(output, np.int32),
                np.array(value, np.float64),
                np.array(entry_side, np.int8),
            )
            if self._words:
                places, words = zip(*self._words, strict=True)
                block.side[list(places)] = text_sides(words, block.bound[list(places)])
            self._blocks.append(block)
            self._words.clear()
            self._rows.clear()
            self._entries.clear()


def refusal(form: LinearForm) -> str | None:
    """Why  form <= 0  cannot be a row (it mixes inputs with outputs, or bounds several inputs); None if it can."""
    codes = [code for code, value in form.terms.items() if value]
    inputs = sum(code >= 0 for code in codes)
    if inputs and inputs < len(codes):
        return "a constraint that mixes inputs and outputs"
    if inputs > 1:
        return f"a constraint over {inputs} inputs at once (only bounds of single inputs are read)"
    return None


def add_inequality(table: RowTable, form: LinearForm, strict: bool) -> int | bool:
    """Append  form <= 0  ("<" if `strict`) for a form that `refusal` accepts.

    Returns the row's id, or the truth of the inequality if no variable is left in it.

    Raises:
        NumberRangeError: a number is too large for float64.
    """
    terms = {code: value for code, value in form.terms.items() if value}
    bound = -form.constant
    if not terms:
        return bound > 0 if strict else bound >= 0
    (code, value), *_ = terms.items()
    if code < 0:
        return table.add_output_row(terms, bound, strict)
    nearest, side = rounded(bound / value)
    return table.add_bound(code, value > 0, nearest + 0.0, strict, side)
