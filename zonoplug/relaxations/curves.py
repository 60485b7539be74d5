"""Curves: functions made of pieces that bend one way each, which is all that a rigorous band needs to know.

On a convex piece a tangent lies below the function wherever it touches, and on a concave piece above. So one tangent
with about the right slope bounds  f(x) - slope * x  from that side; the ends of the pieces bound it from the other. The
point of contact may be approximate: the bound uses the derivative that the tangent really has there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.relaxations.bands import Extremes, ExtremesRule, Function, Straight, double, enclose
from zonoplug.relaxations.base import Relaxation

Touching = Callable[[Tensor, Tensor, Tensor], Tensor]
UNIT = 16 * torch.finfo(torch.float64).eps
SMALLEST = 8 * 5e-324  # what a value or a derivative that underflows is off by


class Piece(NamedTuple):
    """An interval on which f' grows (bend 1: convex) or falls (bend -1: concave).

    Attributes:
        start, end: numbers, or tensors of the bounds' shape.
        bend: 1 or -1, or a tensor of these.
        derivative: f' inside the piece; at its ends the one-sided one.
        touching: (slope, start, end) -> about the point of [start, end] where f' is nearest to the slope. Its quality
            decides on the width of the band only. Points outside are moved in; NaN is not allowed.
    """

    start: float | Tensor
    end: float | Tensor
    bend: float | Tensor
    derivative: Function
    touching: Touching


@dataclass(frozen=True)
class Curve:
    """A continuous function of doubles, made of bent and of straight pieces that meet without gaps.

    Attributes:
        function: f.
        pieces: where it bends.
        straight: where it is affine.
        steps: how often to improve the slope; 0 for functions that are convex or concave as a whole.
        size: (x, f(x)) -> a magnitude; the computed f(x) is off by at most a few units in its last place. For each of
            several points stacked along a first dimension.
        slope_size: x -> the same for f', where it is a sum of terms that may cancel.
    """

    function: Function
    pieces: tuple[Piece, ...] = ()
    straight: tuple[Straight, ...] = ()
    steps: int = 2
    size: Callable[[Tensor, Tensor], Tensor] = lambda x, y: y.abs()
    slope_size: Function | None = None

    def enclose(self, lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
        """The narrowest band around the curve on [lower, upper], or the one with the given slope."""
        return enclose(self.function, self._extremes, lower, upper, slope, self.steps, self.straight)

    def _borders(self) -> list[float | Tensor]:
        ends = [end for piece in (*self.pieces, *self.straight) for end in piece[:2]]
        numbers = {end for end in ends if isinstance(end, (int, float)) and math.isfinite(end)}
        return [*sorted(numbers), *{id(end): end for end in ends if isinstance(end, Tensor)}.values()]

    def _extremes(self, lower: Tensor, upper: Tensor) -> ExtremesRule:
        def inside(border: float | Tensor) -> Tensor:
            return torch.minimum(torch.maximum(double(border, lower), lower), upper)

        points = [lower, upper, *(inside(border) for border in self._borders())]
        values = [self.function(x) for x in points]
        intervals = [(inside(piece.start), inside(piece.end)) for piece in self.pieces]
        reach = torch.maximum(lower.abs(), upper.abs())

        def extremes(slope: Tensor) -> Extremes:
            contacts = [self._contact(*pair, slope) for pair in zip(self.pieces, intervals, strict=True)]
            at = torch.stack([*points, *(contact.x for contact in contacts)])
            height = torch.stack([*values, *(self.function(contact.x) for contact in contacts)])
            none = [torch.zeros_like(slope)] * len(points)
            level = height - slope * at
            lowest, first = (level - torch.stack([*none, *(contact.below for contact in contacts)])).min(dim=0)
            highest, last = (level + torch.stack([*none, *(contact.above for contact in contacts)])).max(dim=0)
            rounding = UNIT * (self.size(at, height).amax(dim=0) + slope.abs() * reach)
            rounding = (rounding + SMALLEST * (1 + reach)).detach()
            return Extremes(
                lowest - rounding, highest + rounding, at.gather(0, first[None])[0], at.gather(0, last[None])[0]
            )

        return extremes

    @torch.no_grad()
    def _contact(self, piece: Piece, interval: tuple[Tensor, Tensor], slope: Tensor) -> _Contact:
        """A tangent about parallel to the slope: it is off by  f'(x) - slope  times the way to the far end."""
        start, end = interval
        x = torch.minimum(torch.maximum(piece.touching(slope, start, end), start), end)
        bend = double(piece.bend, x)
        turn = bend * (piece.derivative(x) - slope)
        before = torch.where(x > start, turn * (x - start), 0)
        after = torch.where(x < end, -turn * (end - x), 0)
        slack = torch.maximum(before, after).clamp(min=0)
        if self.slope_size is not None:
            slack = slack + torch.where(start < end, UNIT * self.slope_size(x) * (end - start), 0)
        return _Contact(x, torch.where(bend > 0, slack, 0), torch.where(bend < 0, slack, 0))


class _Contact(NamedTuple):
    """Where a tangent touches a piece, and how much lower or higher than there  f(x) - slope * x  may get on it."""

    x: Tensor
    below: Tensor
    above: Tensor


class Table:
    """Where a derivative without closed-form inverse takes a value: a table's cell, then regula falsi in it.

    Args:
        derivative: f'.
        bend: 1 where f' grows on the piece, -1 where it falls.
        start, end: the piece; one of them may be infinite, and f' must then have settled 1000 further.
    Source: the refinement is the Illinois method, Dowell & Jarratt, BIT 1971.
    """

    CELLS = 1024
    STEPS = 3

    def __init__(self, derivative: Function, bend: float, start: float, end: float) -> None:
        self.derivative, self.bend, self.start, self.end = derivative, bend, start, end

    @cached_property
    def _knots(self) -> Tensor:
        share = torch.linspace(0, 1, self.CELLS, dtype=torch.float64)
        if math.isfinite(self.start) and math.isfinite(self.end):
            return self.start + (self.end - self.start) * share
        away = torch.expm1(share * math.log(1001))
        return self.start + away if math.isfinite(self.start) else (self.end - away).flip(0)

    @cached_property
    def _values(self) -> Tensor:
        return (self.bend * self.derivative(self._knots)).cummax(dim=0).values

    def __call__(self, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """About the point of [start, end] where f' is nearest to the slope."""
        knots, values = self._knots.to(slope.device), self._values.to(slope.device)
        cell = torch.searchsorted(values, (self.bend * slope).contiguous()).clamp(1, self.CELLS - 1)
        left = torch.minimum(torch.maximum(knots[cell - 1], start), end)
        right = torch.minimum(torch.maximum(knots[cell], start), end)
        excess = self.bend * (self.derivative(right) - slope)
        lack = self.bend * (self.derivative(left) - slope)
        x = right
        last_right = torch.zeros_like(slope, dtype=torch.bool)
        for step in range(self.STEPS):
            x = right - excess * (right - left) / (excess - lack)
            x = torch.where(x.isfinite(), torch.minimum(torch.maximum(x, left), right), right)
            here = self.bend * (self.derivative(x) - slope)
            moves_right = here >= 0
            again = moves_right == last_right if step else torch.zeros_like(moves_right)
            left, lack, right, excess = (
                torch.where(moves_right, left, x),
                torch.where(moves_right, torch.where(again, lack / 2, lack), here),
                torch.where(moves_right, x, right),
                torch.where(moves_right, here, torch.where(again, excess / 2, excess)),
            )
            last_right = moves_right
        return torch.where(start < end, x, start)
