"""Input boxes in a network's own number type: rounded inwards for an attack, outwards for a proof.

A Specification holds bounds in float64, and whether these are themselves excluded; most networks compute in float32,
where most of these bounds do not exist.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from zonoplug.specification import Bools, Floats, Specification

Reals = NDArray[np.floating[Any]]


def inward_box(specification: Specification, box_index: int, dtype: DTypeLike) -> tuple[Reals, Reals]:
    """The largest box in `dtype` whose every number satisfies the bounds as written.

    Args:
        specification: bounds in float64, with what is excluded.
        box_index: 0 .. num_boxes - 1.
        dtype: a floating-point type of numpy, of at most 64 bits.

    Returns:
        lower, upper: (inputs,) in `dtype`; lower > upper where no number of `dtype` satisfies the bounds of an input.
    """
    lower, upper, open_lower, open_upper = _box(specification, box_index)
    kind = np.dtype(dtype)
    return _at_least(lower, open_lower, kind), -_at_least(-upper, open_upper, kind)


def nearest_box(specification: Specification, box_index: int, dtype: DTypeLike) -> tuple[Reals, Reals]:
    """As `inward_box`, but where no number of `dtype` satisfies the bounds of an input, both are rounded to nearest.

    That is how the competition's checker reads bounds; an input fixed to 0.1 has no float32 otherwise.
    """
    low, high = inward_box(specification, box_index, dtype)
    lower, upper, _, _ = _box(specification, box_index)
    none, largest = low > high, np.finfo(dtype).max
    with np.errstate(over="ignore"):
        near_low, near_high = (np.clip(side.astype(low.dtype), -largest, largest) for side in (lower, upper))
    return np.where(none, near_low, low), np.where(none, near_high, high)


def outward_box(specification: Specification, box_index: int, dtype: DTypeLike) -> tuple[Reals, Reals]:
    """A box in `dtype` that holds every number of `dtype` between the bounds of a box, and covers the float64 bounds.

    Args:
        specification: bounds in float64.
        box_index: 0 .. num_boxes - 1.
        dtype: a floating-point type of numpy.

    Returns:
        lower, upper: (inputs,) in `dtype`, finite: bounds beyond its range become its largest numbers.
    """
    lower, upper, _, _ = _box(specification, box_index)
    kind, largest = np.dtype(dtype), np.finfo(dtype).max
    return np.maximum(-_at_least(-lower, None, kind), -largest), np.minimum(_at_least(upper, None, kind), largest)


def beyond_range(specification: Specification, dtype: DTypeLike) -> tuple[int, float] | None:
    """An input and its bound that overflows `dtype` when rounded to it; None if there is none."""
    for side in (specification.lower, specification.upper):
        with np.errstate(over="ignore"):
            beyond = np.isinf(side.astype(dtype))
        if beyond.any():
            box, place = np.argwhere(beyond)[0]
            return int(place), float(side[box, place])
    return None


def _box(specification: Specification, box_index: int) -> tuple[Floats, Floats, Bools | None, Bools | None]:
    opened = (
        None if which is None else which[box_index] for which in (specification.open_lower, specification.open_upper)
    )
    return specification.lower[box_index], specification.upper[box_index], *opened


def _at_least(bound: Floats, excluded: Bools | None, kind: np.dtype[Any]) -> Reals:
    """The smallest numbers of `kind` that are >= bound, or > bound where excluded."""
    with np.errstate(over="ignore"):  # to infinity, which is right for numbers beyond the range
        rounded: Reals = bound.astype(kind)
        above: Reals = np.nextafter(rounded, kind.type(np.inf), dtype=kind)
    exact = rounded.astype(np.float64)
    short = exact < bound if excluded is None else (exact < bound) | (excluded & (exact == bound))
    return np.where(short, above, rounded)
