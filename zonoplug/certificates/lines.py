"""Lines around functions of one variable that hold whatever float64 rounds, and the size of rounding errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zonoplug.certificates.network import Floats, Function

UNIT = 2.0**-53
TINY = float(np.finfo(np.float64).tiny)
EXTRA_TERMS = 16  # roundings beside those of a sum: of its coefficients, of centers and radii, of the error terms
CELLS = 32


def gamma(terms: int) -> float:
    """The relative error of a sum of `terms` products, a few roundings more included."""
    product = (terms + EXTRA_TERMS) * UNIT
    return 1.01 * product / (1.0 - product)


def down(x: Floats) -> Floats:
    """The next smaller numbers."""
    return np.nextafter(x, -np.inf)


def up(x: Floats) -> Floats:
    """The next larger numbers."""
    return np.nextafter(x, np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Lines below and above a function on intervals, each (batch, n):  below_slope x + below  <=  f(x)  <=  ..."""

    below_slope: Floats
    below: Floats
    above_slope: Floats
    above: Floats

    def parts(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.below_slope, self.below, self.above_slope, self.above

    def better(self, other: Lines, x: Floats) -> Lines:
        """On each side the line that is tighter at x."""
        below = other.below_slope * x + other.below > self.below_slope * x + self.below
        above = other.above_slope * x + other.above < self.above_slope * x + self.above
        return Lines(
            np.where(below, other.below_slope, self.below_slope),
            np.where(below, other.below, self.below),
            np.where(above, other.above_slope, self.above_slope),
            np.where(above, other.above, self.above),
        )


def image(function: Function, lower: Floats, upper: Floats) -> tuple[Floats, Floats]:
    """Bounds of a non-decreasing function on intervals."""
    low, high = function.value(lower), function.value(upper)
    if not function.ulps:
        return low, high
    error = function.ulps * 2 * UNIT
    return down(low - (error * np.abs(low) + TINY)), up(high + (error * np.abs(high) + TINY))


def enclose(function: Function, lower: Floats, upper: Floats, below_slope: Floats, above_slope: Floats) -> Lines:
    """Lines of given slopes: the offsets are made to hold, whatever the slopes.

    Between the ends and the breakpoints, f(x) - s x is linear, or bends by at most `curvature`: on a cell of width h
    its extremes are those at the cell's ends, give or take  curvature h^2 / 8.
    """
    points = [lower, upper, *(np.clip(value, lower, upper) for value in function.breakpoints)]
    bend: Floats = np.zeros(lower.shape)
    if function.curvature:
        width = up(upper - lower)
        points += [np.clip(lower + width * (k / CELLS), lower, upper) for k in range(1, CELLS)]
        bend = width * width * (1.01 * function.curvature / 8 / CELLS**2)
    below: Floats = np.full(lower.shape, np.inf)
    above = -below
    for x in points:
        y = function.value(x)
        for slope, is_below in ((below_slope, True), (above_slope, False)):
            product = slope * x
            error = (4 + 2 * function.ulps) * UNIT * (np.abs(y) + np.abs(product)) + TINY
            if is_below:
                below = np.minimum(below, y - product - error)  # np.minimum keeps NaN: an unknown bound stays unknown
            else:
                above = np.maximum(above, y - product + error)
    return Lines(below_slope, down(below - bend), above_slope, up(above + bend))


def best_lines(function: Function, low: Floats, high: Floats, adaptive: bool) -> Lines:
    """Of a few slopes those whose lines are best in the interval's middle.

    Args:
        adaptive: look at the slopes at both ends and in the middle, too, not the chord's alone.
    """
    width, middle = high - low, low + (high - low) / 2
    near = [(low, high)]
    if adaptive:
        cell = width / CELLS
        near += [(low, low + cell), (high - cell, high), (middle - cell / 2, middle + cell / 2)]
    best = None
    with np.errstate(invalid="ignore", divide="ignore"):
        for left, right in near:
            slope = np.where(width > 0, (function.value(right) - function.value(left)) / (right - left), 0.0)
            lines = enclose(function, low, high, slope, slope)
            best = lines if best is None else best.better(lines, middle)
    assert best is not None
    return best
