"""Relaxations of powers: x^p for whole p on either side of 0, and for any p on x >= 0."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from zonoplug.relaxations.bands import Function, Straight
from zonoplug.relaxations.base import RELAXATIONS, Relaxation
from zonoplug.relaxations.curves import Curve, Piece

_TINY = torch.finfo(torch.float64).tiny
_HUGE = torch.finfo(torch.float64).max


@cache
def _curve(exponent: float) -> Curve:
    """x^p. Right of 0 it bends like the sign of p (p - 1), left of 0 so for even p and the other way for odd p.

    p |x|^(p - 1) = |slope|  at  |x| = (|slope| / |p|)^(1 / (p - 1)).
    """
    special: dict[float, Function] = {
        2.0: torch.square,
        -1.0: torch.reciprocal,
        0.5: torch.sqrt,
        -0.5: torch.rsqrt,
    }
    function: Function = special.get(exponent, lambda x: x.pow(exponent))
    if exponent in (0.0, 1.0):
        return Curve(function, straight=(Straight(-math.inf, math.inf, exponent, 1 - exponent),))
    odd = exponent % 2 == 1
    bend = math.copysign(1.0, exponent * (exponent - 1))

    def size(slope: Tensor) -> Tensor:
        return (slope.abs().clamp(_TINY, _HUGE) / abs(exponent)).pow(1 / (exponent - 1)).clamp(max=_HUGE)

    def derivative(x: Tensor) -> Tensor:
        return exponent * (x.pow(exponent - 1) if exponent > 0 else function(x) / x)

    def right(slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        wrong_sign = slope * exponent <= 0  # f' is nearest to such a slope where it is smallest
        return torch.where(wrong_sign, 0.0 if exponent > 1 else _HUGE, size(slope))

    def left(slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return -right(slope if odd else -slope, start, end)

    pieces = [Piece(0.0, math.inf, bend, derivative, right)]
    if exponent % 1 == 0:
        pieces.append(Piece(-math.inf, 0.0, -bend if odd else bend, derivative, left))
    crosses = odd and exponent > 0
    return Curve(function, tuple(pieces), steps=2 if crosses else 0)


def power(lower: Tensor, upper: Tensor, exponent: float = 3.0, slope: Tensor | None = None) -> Relaxation:
    """Enclose x^exponent in the band of smallest area, or in that with the given slope.

    Args:
        lower, upper: bounds of x, any equal shape. NaN comes out where they admit 0 and the exponent is negative, or
            less than 0 and the exponent is not whole.
        exponent: any number.
        slope: a slope to use instead of the best one.
    """
    if exponent < 0:
        lower = torch.where((lower > 0) | (upper < 0), lower, torch.nan)
    return _curve(float(exponent)).enclose(lower, upper, slope)


RELAXATIONS.register("power")(power)


@RELAXATIONS.register("square")
def square(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose x^2:  slope lower + upper, radius (upper - lower)^2 / 8."""
    return power(lower, upper, 2.0, slope)


@RELAXATIONS.register("reciprocal")
def reciprocal(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose 1 / x; NaN where the bounds admit 0."""
    return power(lower, upper, -1.0, slope)


@RELAXATIONS.register("sqrt")
def sqrt(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose the square root; NaN where lower < 0."""
    return power(lower, upper, 0.5, slope)


@RELAXATIONS.register("rsqrt")
def rsqrt(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose 1 / sqrt(x); NaN unless lower > 0."""
    return power(lower, upper, -0.5, slope)
