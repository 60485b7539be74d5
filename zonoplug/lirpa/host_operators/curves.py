"""Convex and concave elementwise operators whose bounds the host lacks or gets wrong: powers, roots, softplus."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.lirpa.host_operators.bases import IntervalOperator, constant, dense, linear_bound


class Lines(NamedTuple):
    """slope * x + offset below and above a function, for x within the bounds that they were made for."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor


class Curve(IntervalOperator):
    """An elementwise function of the first input that is convex or concave on parts of its domain.

    Where it is convex, it lies below its chord and above its tangent at the middle; where concave, the other way round;
    elsewhere, and where a line is not finite, its interval is all that is known.
    """

    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.requires_input_bounds = [0]

    def value(self, x: Tensor) -> Tensor:
        """f(x)."""
        raise NotImplementedError

    def derivative(self, x: Tensor) -> Tensor:
        """f'(x)."""
        raise NotImplementedError

    def inside(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds, cut to where f is defined."""
        return lower, upper

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1 where f is convex on all of [lower, upper], -1 where it is concave, 0 where neither is known."""
        raise NotImplementedError

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.value(x)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """Lines that enclose f on [lower, upper]."""
        low, high = self.image((lower, upper))
        lower, upper = self.inside(lower, upper)
        at_lower, at_upper, middle = self.value(lower), self.value(upper), (lower + upper) / 2
        tangent = self.derivative(middle)
        width = upper - lower
        chord = torch.where(width > 1e-6 * (1 + lower.abs()), (at_upper - at_lower) / width, tangent)
        touching = self.value(middle) - tangent * middle
        above = torch.maximum(at_lower - chord * lower, at_upper - chord * upper)
        below = torch.minimum(at_lower - chord * lower, at_upper - chord * upper)
        curvature = self.curvature(lower, upper)
        finite = torch.isfinite(tangent + touching + chord + above + below)
        convex, concave = finite & (curvature > 0), finite & (curvature < 0)
        zero = torch.zeros_like(low)

        def choose(if_convex: Tensor, if_concave: Tensor, otherwise: Tensor) -> Tensor:
            return torch.where(convex, if_convex, torch.where(concave, if_concave, otherwise))

        return Lines(
            choose(tangent, chord, zero),
            choose(touching, below, low),
            choose(chord, tangent, zero),
            choose(above, touching, high),
        )

    def bound_backward(self, last_lA: Any, last_uA: Any, *x: Any, **_: Any) -> Any:
        lines = self.lines(x[0].lower, x[0].upper)
        swapped = Lines(lines.upper_slope, lines.upper_offset, lines.lower_slope, lines.lower_offset)
        lower, lower_bias = self._backward(dense(last_lA, self.output_shape), lines)
        upper, upper_bias = self._backward(dense(last_uA, self.output_shape), swapped)
        return [(lower, upper)] + [(None, None)] * (len(self.inputs) - 1), lower_bias, upper_bias

    @staticmethod
    def _backward(last: Tensor | None, lines: Lines) -> tuple[Tensor | None, Any]:
        if last is None:
            return None, 0
        positive, negative = last.clamp(min=0), last.clamp(max=0)
        bias = (positive * lines.lower_offset + negative * lines.upper_offset).flatten(2).sum(2)
        return positive * lines.lower_slope + negative * lines.upper_slope, bias

    def bound_forward(self, dim_in: int, *x: Any) -> Any:
        bound, lines = x[0], self.lines(x[0].lower, x[0].upper)

        def side(slope: Tensor, offset: Tensor, same: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Any:
            rising, falling = slope.clamp(min=0), slope.clamp(max=0)
            weight = rising.unsqueeze(1) * same[0] + falling.unsqueeze(1) * other[0]
            return weight, rising * same[1] + falling * other[1] + offset

        low, high = (bound.lw, bound.lb), (bound.uw, bound.ub)
        lower = side(lines.lower_slope, lines.lower_offset, low, high)
        upper = side(lines.upper_slope, lines.upper_offset, high, low)
        return linear_bound(*lower, *upper)


class BoundPow(Curve):
    """x ** p for a constant number p; where it is not defined (roots of negative numbers), nothing is claimed."""

    @property
    def exponent(self) -> float:
        powers = constant(self.inputs[1]).reshape(-1)
        if powers.numel() != 1 and not bool((powers == powers[0]).all()):
            raise NotImplementedError("Pow with several exponents")
        return float(powers[0])

    def value(self, x: Tensor) -> Tensor:
        return torch.pow(x, self.exponent)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return torch.pow(x, others[0]) if others else self.value(x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.exponent * torch.pow(x, self.exponent - 1)

    def inside(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.exponent == int(self.exponent)
        return (lower, upper) if whole else (lower.clamp(min=0), upper.clamp(min=0))

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        power = self.exponent
        right = (lower > 0) if power < 0 else (lower >= 0)
        on_right = right.to(lower.dtype) * (-1 if 0 < power < 1 else 1)
        if power != int(power):
            return on_right
        if power % 2 == 0 and power >= 0:
            return torch.ones_like(lower)
        left = (upper < 0) if power < 0 else (upper <= 0)
        return torch.where(left, torch.full_like(lower, 1.0 if power % 2 == 0 else -1.0), on_right)

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        lower, upper = self.inside(*intervals[0])
        power = self.exponent
        ends = self.value(lower), self.value(upper)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        infinite = torch.full_like(low, torch.inf)
        if power != int(power):
            return low, high
        across = (lower <= 0) & (upper >= 0)
        if power < 0:
            low = torch.where(across & (power % 2 == 1), -infinite, low)
            return low, torch.where(across, infinite, high)
        return (torch.where(across, torch.zeros_like(low), low) if power % 2 == 0 and power > 0 else low), high


class BoundReciprocal(BoundPow):
    """1 / x."""

    exponent = -1.0


class BoundSqrt(BoundPow):
    """The square root."""

    exponent = 0.5


class BoundSoftplus(Curve):
    """log(1 + exp(x))."""

    def value(self, x: Tensor) -> Tensor:
        return functional.softplus(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def curvature(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower)

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.value(intervals[0][0]), self.value(intervals[0][1])
