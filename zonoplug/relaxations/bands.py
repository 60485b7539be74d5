"""Bands: two parallel lines around a function of one variable, and the slope that brings them closest.

A function is described by its *extremes*: a rule that bounds  f(x) - slope * x  on [lower, upper] for any slope. All of
this is computed in double precision, whatever the type of the bounds, and rounded outwards once at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.relaxations.base import Relaxation

Function = Callable[[Tensor], Tensor]


class Extremes(NamedTuple):
    """Bounds of  f(x) - slope * x  on [lower, upper], and points where they are attained, or nearly."""

    lowest: Tensor
    highest: Tensor
    at_lowest: Tensor
    at_highest: Tensor


ExtremesRule = Callable[[Tensor], Extremes]


class Straight(NamedTuple):
    """f(x) = slope * x + intercept  for start <= x <= end: where the bounds lie in here, no radius is needed."""

    start: float | Tensor
    end: float | Tensor
    slope: float
    intercept: float | Tensor


def double(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or a tensor as doubles on the device of `like`."""
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def rounded(value: float, like: Tensor) -> float:
    """A parameter as a network in the type of `like` has it."""
    return float(torch.tensor(value, dtype=like.dtype))


def finite_ends(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds in double precision, infinities replaced by the largest numbers; NaN stays."""
    largest = torch.finfo(torch.float64).max
    return lower.double().clamp(-largest, largest), upper.double().clamp(-largest, largest)


def chord_slope(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """(f(upper) - f(lower)) / (upper - lower), 0 where that is not a number; bounds in double precision."""
    slope = (function(upper) / 2 - function(lower) / 2) / (upper / 2 - lower / 2)
    return torch.where(slope.isfinite(), slope, torch.zeros_like(slope))


@torch.no_grad()
def narrowest(
    extremes: ExtremesRule, chord: Tensor, lower: Tensor, upper: Tensor, dtype: torch.dtype, steps: int
) -> Tensor:
    """The slope of the narrowest band, among the chord's and `steps` better ones.

        w(slope) = highest - lowest  is convex, with the subgradient  at_lowest - at_highest,  and never less than
        |slope - chord| * (upper - lower).  Each step goes where the steepest known lines below w cross.

    Args:
        extremes: bounds of f(x) - slope * x for any slope.
        chord: the slope between the ends; the best one for convex and for concave functions.
        lower, upper: bounds of x, in double precision.
        dtype: type of the result; slopes are rounded to it before they are judged.
        steps: how often to improve. Two come within two percent of the smallest width.
    Source: Kelley, The cutting-plane method for solving convex programs, SIAM 1960.
    """
    best = chord.to(dtype)
    if steps == 0:
        return best
    least = torch.full_like(chord, torch.inf)
    slope = best.double()
    reach = upper - lower
    falling, rising = (torch.zeros_like(chord), -reach), (torch.zeros_like(chord), reach)  # value at chord, gradient
    for step in range(steps + 1):
        found = extremes(slope)
        width = found.highest - found.lowest
        best = torch.where(width < least, slope, best.double()).to(dtype)
        least = torch.fmin(least, width)
        if step == steps:
            break
        gradient = found.at_lowest - found.at_highest
        value = width - gradient * (slope - chord)
        grows = gradient >= 0
        rising = (torch.where(grows, value, rising[0]), torch.where(grows, gradient, rising[1]))
        falling = (torch.where(grows, falling[0], value), torch.where(grows, falling[1], gradient))
        crossing = chord + (falling[0] - rising[0]) / (rising[1] - falling[1])
        slope = torch.where(crossing.isfinite(), crossing, chord).to(dtype).double()
    return best


def band(extremes: ExtremesRule, slope: Tensor) -> Relaxation:
    """The band of one slope, its offset and radius rounded outwards to the slope's type."""
    dtype = slope.dtype
    found = extremes(slope.double())
    offset = (found.lowest / 2 + found.highest / 2).to(dtype)
    middle = offset.detach().double()
    radius = torch.maximum(found.highest - middle, middle - found.lowest)
    if offset.requires_grad:  # the offset's rounding has no gradient, the radius has that of the half width
        half = found.highest / 2 - found.lowest / 2
        radius = half + (radius - half).detach()
    unit = torch.finfo(dtype)
    return Relaxation(slope, offset, (radius * (1 + 4 * unit.eps) + unit.smallest_normal * unit.eps).to(dtype))


def enclose(
    function: Function,
    rule: Callable[[Tensor, Tensor], ExtremesRule],
    lower: Tensor,
    upper: Tensor,
    slope: Tensor | None = None,
    steps: int = 0,
    straight: tuple[Straight, ...] = (),
) -> Relaxation:
    """The narrowest band around a function, or the one with a given slope.

    Points are mapped to themselves, up to a few units in the last place, and intervals inside a straight piece exactly.
    Where the slope is too steep for the type, the band is flat. NaN where f is NaN or infinite at an end.

    Args:
        function: f, of doubles.
        rule: gives, for bounds in double precision, the extremes of f(x) - slope * x.
        lower, upper: bounds of x, any equal shape. Infinite ones are allowed where f is bounded; the band is flat then.
        slope: a slope to use instead of the best one; the radius is computed for it, so any is sound.
        steps: see `narrowest`.
        straight: pieces where f is affine.
    """
    dtype = lower.dtype
    ends = finite_ends(lower, upper)
    at_lower, at_upper = function(lower.double()), function(upper.double())
    extremes = rule(*ends)
    if slope is None:
        slope = narrowest(extremes, chord_slope(function, *(end.detach() for end in ends)), *ends, dtype, steps)
    bounded = lower.isfinite() & upper.isfinite()
    zero = torch.zeros_like(lower)
    result = band(extremes, torch.where(bounded, slope, zero))
    reach = torch.maximum(lower.abs(), upper.abs()).nan_to_num(posinf=0)
    usable = (
        ((result.slope * reach).abs() < torch.finfo(dtype).max / 8)
        & result.offset.isfinite()
        & result.radius.isfinite()
    )
    if not bool(usable.all()):
        result = _choose(usable, result, band(extremes, zero))
    point = at_lower.to(dtype)
    result = _choose(lower == upper, Relaxation(zero, point, 4 * torch.finfo(dtype).eps * point.abs()), result)
    for start, end, piece_slope, intercept in straight:
        inside = (lower.double() >= double(start, lower)) & (upper.double() <= double(end, lower))
        exact = Relaxation(torch.full_like(lower, piece_slope), zero + double(intercept, lower).to(dtype), zero)
        result = _choose(inside, exact, result)
    known = at_lower.isfinite() & at_upper.isfinite() & result.offset.isfinite() & result.radius.isfinite()
    nothing = torch.full_like(lower, torch.nan)
    return _choose(known, result, Relaxation(nothing, nothing, nothing))


def _choose(condition: Tensor, one: Relaxation, other: Relaxation) -> Relaxation:
    return Relaxation(*(torch.where(condition, a, b) for a, b in zip(one, other, strict=True)))
