"""Input boxes in a network's own number type: rounded inwards for an attack, outwards for a proof.

A Specification holds bounds in float64; most networks compute in float32, where most of these bounds do not exist.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zonoplug.verify.specification import Bools, Floats, Specification

Reals = NDArray[np.floating[Any]]


def inward_box(specification: Specification, box_index: int, dtype: DTypeLike) -> tuple[Reals, Reals]:
    """The largest box in `dtype` within the bounds of a box, excluded bounds left out.

    Where no number of `dtype` lies within the bounds (an input fixed to 0.1, say), lower and upper are both the
    number nearest to them: the only candidate, and what a checker that reads the bounds in `dtype` compares with.

    Args:
        specification: bounds in float64.
        box_index: 0 .. num_boxes - 1.
        dtype: a floating-point type of numpy.

    Returns:
        lower, upper: (inputs,) in `dtype`, lower <= upper.
    """
    lower, upper = specification.lower[box_index], specification.upper[box_index]
    open_lower = None if specification.open_lower is None else specification.open_lower[box_index]
    open_upper = None if specification.open_upper is None else specification.open_upper[box_index]
    low = _at_least(lower, open_lower, np.dtype(dtype))
    high = -_at_least(-upper, open_upper, np.dtype(dtype))
    none_within = low > high
    if none_within.any():
        # Then low and high are neighbours with the bounds between them.
        above, below = low.astype(np.float64) - upper, lower - high.astype(np.float64)
        with np.errstate(over="ignore"):
            nearest = np.where(above < below, low, np.where(above > below, high, lower.astype(low.dtype)))
        low, high = np.where(none_within, nearest, low), np.where(none_within, nearest, high)
    return low, high


def outward_box(specification: Specification, box_index: int, dtype: DTypeLike) -> tuple[Reals, Reals]:
    """The smallest box in `dtype` that covers the bounds of a box, excluded bounds included.

    Args:
        specification: bounds in float64.
        box_index: 0 .. num_boxes - 1.
        dtype: a floating-point type of numpy.

    Returns:
        lower, upper: (inputs,) in `dtype`; infinite where `dtype` has no number far enough out.
    """
    kind = np.dtype(dtype)
    lower, upper = specification.lower[box_index], specification.upper[box_index]
    return -_at_least(-lower, None, kind), _at_least(upper, None, kind)


def _at_least(bound: Floats, excluded: Bools | None, kind: np.dtype[Any]) -> Reals:
    """The smallest numbers of `kind` that are >= bound, or > bound where excluded."""
    with np.errstate(over="ignore"):  # to infinity, which is right for numbers beyond the range
        rounded: Reals = bound.astype(kind)
        above: Reals = np.nextafter(rounded, kind.type(np.inf), dtype=kind)
    exact = rounded.astype(np.float64)
    short = exact < bound if excluded is None else (exact < bound) | (excluded & (exact == bound))
    return np.where(short, above, rounded)
