"""Rows  sum_j a_j y_j <= b  as written: what float64 cannot hold of them, and whether they hold at given outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Signs = NDArray[np.int8]
Ints = NDArray[np.int64]

# A row's bound as written, and its coefficients by output where float64 does not have them (None where it has).
ExactRow = tuple[Decimal | Fraction, Mapping[int, Fraction] | None]


@dataclass(frozen=True, slots=True)
class ExactRows:
    """The numbers of a specification's rows that lie between those of float64.

    Attributes:
        row_side: (rows,) the sign of the bound as written minus the float64 nearest to it.
        entry_side: (entries,) the same of each coefficient.
        number: (rows,) the row's key in `rows`; rows of several disjuncts may share one.
        rows: the rows with a number that float64 does not have.
    """

    row_side: Signs
    entry_side: Signs
    number: Ints
    rows: Mapping[int, ExactRow]


@dataclass(frozen=True, slots=True)
class RationalRow:
    """sum_j terms[j] y_j <= bound  ("<" if strict), in rational numbers; no coefficient is 0."""

    terms: Mapping[int, Fraction]
    bound: Fraction
    strict: bool

    def holds(self, outputs: NDArray[np.float64]) -> bool:
        """Whether the outputs satisfy the row, decided exactly.

        Infinite outputs are compared as extended reals; a row with an output that is NaN, or in which infinities
        cancel, is not satisfied.
        """
        total, infinite = Fraction(0), 0.0
        for output, coefficient in self.terms.items():
            value = float(outputs[output])
            if math.isfinite(value):
                total += coefficient * Fraction(value)
            else:
                infinite += value if coefficient > 0 else -value
        if infinite:  # NaN is true
            return infinite < 0
        return total < self.bound if self.strict else total <= self.bound
