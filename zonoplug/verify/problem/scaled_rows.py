"""Rows of a specification in a network's own number type: scaled to a safe range, coefficients to nearest, bounds up.

A row  a . y <= b  is the same inequality after multiplication by a power of two. A margin  a . y - b  that is shown to
be above 0 with b rounded up is above 0 with b as written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zonoplug.exact_rows import Signs
from zonoplug.specification import Floats, Ints, Specification

Reals = NDArray[np.floating[Any]]


class ScaledRows(NamedTuple):
    """Rows as floats, in the order of the specification's.

    Attributes:
        entry_value: (entries,) the coefficient as written times the row's scale, rounded to nearest: the relative error
            is at most one unit roundoff, the absolute one half of the least positive number where that is more.
        bound: (rows,) the least number of the type that is not below the bound as written times the scale: infinity
            beyond the type's range, its most negative number below.
        scale: (rows,) powers of two that bring the row's largest coefficient into [1, 2).
    """

    entry_value: Reals
    bound: Reals
    scale: Floats


def scaled_rows(specification: Specification, dtype: DTypeLike) -> ScaledRows:
    """The rows of a specification in `dtype`, a floating-point type of numpy of at most 64 bits."""
    rows, entries = specification.row_bound.size, specification.entry_value.size
    largest = np.zeros(rows)
    np.maximum.at(largest, specification.entry_row, np.abs(specification.entry_value))
    exponent = 1 - np.frexp(np.where(largest > 0, largest, 1.0))[1].astype(np.int64)
    exact = specification.exact
    entry_side = np.zeros(entries, np.int8) if exact is None else exact.entry_side
    row_side = np.zeros(rows, np.int8) if exact is None else exact.row_side
    with np.errstate(over="ignore", under="ignore"):
        value, entry_side = _scaled(specification.entry_value, entry_side, exponent[specification.entry_row])
        bound, row_side = _scaled(specification.row_bound, row_side, exponent)
        scale = np.ldexp(1.0, exponent)
        return ScaledRows(nearest(value, entry_side, dtype), upward(bound, row_side, dtype), scale)


def nearest(values: Floats, sides: Signs, dtype: DTypeLike) -> Reals:
    """Exact numbers, of which `values` are the nearest float64 and lie off on `sides`, rounded once to `dtype`.

    An inexact float64 is replaced by its odd neighbour towards the exact number: what that rounds to is what the exact
    number rounds to, ties between numbers of `dtype` included.
    """
    kind = np.dtype(dtype)
    if kind == np.float64:
        return values
    even = (values.view(np.int64) & 1) == 0
    towards = np.nextafter(values, np.where(sides > 0, np.inf, -np.inf))
    rounded: Reals = np.where(even & (sides != 0) & np.isfinite(values), towards, values).astype(kind)
    return rounded


def upward(values: Floats, sides: Signs, dtype: DTypeLike) -> Reals:
    """The least numbers of `dtype` that are not below exact numbers, of which `values` are the nearest float64."""
    kind = np.dtype(dtype)
    rounded: Reals = values.astype(kind)
    back = rounded.astype(np.float64)
    short = (back < values) | ((back == values) & (sides > 0))
    return np.where(short, np.nextafter(rounded, np.array(np.inf, kind)), rounded)


def _scaled(values: Floats, sides: Signs, exponent: Ints) -> tuple[Floats, Signs]:
    """Numbers times 2^exponent as float64, and on which side of these the exact products lie."""
    power = np.clip(exponent, -4000, 4000).astype(np.int32)
    scaled = np.ldexp(values, power)
    lost = np.ldexp(scaled, -power)
    sides = np.where(lost == values, sides, np.sign(values - lost)).astype(np.int8)
    return scaled, sides
