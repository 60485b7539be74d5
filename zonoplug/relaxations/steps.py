"""Relaxations of functions that jump: sign, step, and rounding to whole numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zonoplug.relaxations.bands import (
    Extremes,
    ExtremesRule,
    Function,
    chord_slope,
    enclose,
    finite_ends,
    narrowest,
)
from zonoplug.relaxations.base import RELAXATIONS, Relaxation
from zonoplug.relaxations.curves import UNIT


def jump(
    lower: Tensor, upper: Tensor, left: float, at_zero: float | Tensor, right: float, slope: Tensor | None
) -> Relaxation:
    """Enclose  left for x < 0, at_zero for x = 0, right for x > 0.

    Without a slope the band is flat: no other is narrower, since it must reach from `left` to `right` at 0, and it also
    has the smallest hull. Where only one value is taken, that is so for any slope.
    """
    kink = torch.as_tensor(at_zero, dtype=torch.float64, device=lower.device)

    def function(x: Tensor) -> Tensor:
        return torch.where(x < 0, left, torch.where(x > 0, right, torch.where(x == 0, kink, torch.nan)))

    def values(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Points (5, *shape) and what f takes there or tends to."""
        zero = torch.zeros_like(lower).clamp(lower, upper)
        points = torch.stack([lower, upper, zero, upper.clamp(max=0), lower.clamp(min=0)])
        height = function(points)
        height[3] = torch.where(lower < 0, left, height[0])
        height[4] = torch.where(upper > 0, right, height[1])
        points[3] = torch.where(lower < 0, points[3], lower)
        points[4] = torch.where(upper > 0, points[4], upper)
        return points, height

    ends = finite_ends(lower, upper)
    result = enclose(
        function, _extremes_rule(values), lower, upper, torch.zeros_like(lower) if slope is None else slope
    )
    height = values(*ends)[1]
    lowest, highest = height.amin(dim=0), height.amax(dim=0)
    offset = (lowest / 2 + highest / 2).to(lower.dtype)
    radius = torch.maximum(highest - offset.double(), offset.double() - lowest)
    radius = (radius * (1 + 2 * torch.finfo(lower.dtype).eps)).to(lower.dtype)
    flat = (lowest == highest) if slope is not None else ~(lowest.isnan() | highest.isnan())
    zero = torch.zeros_like(lower)
    return Relaxation(*(torch.where(flat, a, b) for a, b in zip((zero, offset, radius), result, strict=True)))


@RELAXATIONS.register("sign")
def sign(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose  -1 for x < 0, 0 for x = 0, 1 for x > 0."""
    return jump(lower, upper, -1.0, 0.0, 1.0, slope)


def step(lower: Tensor, upper: Tensor, at_zero: float | Tensor = 0.0, slope: Tensor | None = None) -> Relaxation:
    """Enclose  0 for x < 0, at_zero for x = 0, 1 for x > 0; at_zero may be any number, or a tensor that broadcasts."""
    return jump(lower, upper, 0.0, at_zero, 1.0, slope)


RELAXATIONS.register("step")(step)


def _extremes_rule(
    values: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Callable[[Tensor, Tensor], ExtremesRule]:
    """Extremes of a function between whose points  f(x) - slope * x  is nowhere higher or lower than at them."""

    def rule(lower: Tensor, upper: Tensor) -> ExtremesRule:
        points, height = values(lower, upper)
        size = height.abs().amax(dim=0)
        reach = torch.maximum(lower.abs(), upper.abs())

        def extremes(slope: Tensor) -> Extremes:
            level = height - slope * points
            (lowest, first), (highest, last) = level.min(dim=0), level.max(dim=0)
            rounding = UNIT * (size + slope.abs() * reach)
            return Extremes(
                lowest - rounding,
                highest + rounding,
                points.gather(0, first[None])[0],
                points.gather(0, last[None])[0],
            )

        return extremes

    return rule


def staircase(
    lower: Tensor,
    upper: Tensor,
    function: Function,
    right: Function,
    left: Function,
    phase: float,
    slope: Tensor | None,
) -> Relaxation:
    """Enclose a function that is constant but for jumps by 1 at  phase + k  for every whole k.

        Between the first and the last jump, f(x) - slope * x  at the jumps is linear in k, so its extremes are at the
        ends and on either side of the first and of the last jump. One jump needs a radius of 1/2 whatever the slope:
        the band is flat then. With more jumps the best slope tends to 1.

    Args:
        lower, upper: bounds of x, any equal shape.
        function: f, of doubles.
        right, left: the limit of f from the right, from the left, as functions of x.
        phase: where one jump is.
        slope: a slope to use instead of the best one.
    """

    def values(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.minimum(torch.maximum(torch.floor(lower - phase) + 1 + phase, lower), upper)
        last = torch.maximum(torch.minimum(torch.ceil(upper - phase) - 1 + phase, upper), lower)
        points = torch.stack([lower, upper, lower, first, last, upper, first, last])
        after = [torch.where(x < upper, right(x), function(x)) for x in (lower, first, last)]
        before = [torch.where(x > lower, left(x), function(x)) for x in (upper, first, last)]
        return points, torch.stack([function(lower), function(upper), *after, *before])

    ends = finite_ends(lower, upper)
    rule = _extremes_rule(values)
    jumps = function(ends[1]) - function(ends[0])
    if slope is None:
        slope = narrowest(rule(*ends), chord_slope(function, *ends), *ends, lower.dtype, steps=3)
        slope = torch.where(jumps > 1, slope, torch.zeros_like(slope))
    result = enclose(function, rule, lower, upper, slope)
    zero = torch.zeros_like(lower)
    exact = (zero, function(lower.double()).to(lower.dtype), zero)
    return Relaxation(*(torch.where(jumps == 0, a, b) for a, b in zip(exact, result, strict=True)))


@RELAXATIONS.register("floor")
def floor(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose the largest whole number that is not above x."""
    return staircase(lower, upper, torch.floor, torch.floor, lambda x: torch.ceil(x) - 1, 0.0, slope)


@RELAXATIONS.register("ceil")
def ceil(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose the smallest whole number that is not below x."""
    return staircase(lower, upper, torch.ceil, lambda x: torch.floor(x) + 1, torch.ceil, 0.0, slope)


@RELAXATIONS.register("round")
def nearest(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose the whole number nearest to x; halves go to the even one."""
    return staircase(
        lower, upper, torch.round, lambda x: torch.floor(x + 0.5), lambda x: torch.ceil(x - 0.5), 0.5, slope
    )
