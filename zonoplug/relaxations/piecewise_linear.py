"""Relaxations of continuous functions made of straight pieces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zonoplug.relaxations.bands import Straight, rounded
from zonoplug.relaxations.base import RELAXATIONS, Relaxation
from zonoplug.relaxations.curves import Curve


def two_pieces(
    lower: Tensor, upper: Tensor, left: float | Tensor, right: float | Tensor, slope: Tensor | None = None
) -> Relaxation:
    """Enclose  f(x) = left * x for x < 0, right * x for x > 0.

        f(x) - slope * x  is piecewise linear with its one kink, value 0, at 0, so its extremes on [lower, upper] are
        among 0 and the values at both ends. By default the slope is the chord's, which has the smallest area.

    Args:
        lower, upper: bounds of x, any equal shape.
        left, right: the two slopes; tensors broadcast against the bounds.
        slope: a slope for the points where 0 lies strictly inside; the radius is computed for it, so any is sound.
    The radius is a few units in the last place wider than computed, for the rounding of all this.
    Source: Singh, Gehr, Mirman, Pueschel, Vechev, NeurIPS 2018, theorem 3.1 (for ReLU).
    """
    positive, negative = (lower >= 0) & ~upper.isnan(), (upper <= 0) & ~lower.isnan()
    stable = positive | negative
    below, above = torch.where(stable, -1, lower), torch.where(stable, 1, upper)
    if slope is None:
        scale = torch.maximum(-below, above).detach()  # so that nothing overflows or underflows
        a, b = above / scale, below / scale
        slope = (right * a - left * b) / (a - b)
    at_lower, at_upper = (left - slope) * below, (right - slope) * above
    highest = torch.maximum(at_lower, at_upper).clamp(min=0)
    lowest = torch.minimum(at_lower, at_upper).clamp(max=0)
    unit = torch.finfo(lower.dtype)
    radius = (highest / 2 - lowest / 2) * (1 + 8 * unit.eps) + unit.smallest_normal * unit.eps
    zero = torch.zeros_like(lower)
    return Relaxation(
        torch.where(positive, right, torch.where(negative, left, slope)),
        torch.where(stable, zero, highest / 2 + lowest / 2),
        torch.where(stable, zero, radius),
    )


@RELAXATIONS.register("relu")
def relu(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose max(x, 0): exact where the neuron is stable, else the parallelogram of smallest area."""
    return two_pieces(lower, upper, 0.0, 1.0, slope)


def triangle_height(lower: Tensor, upper: Tensor) -> Tensor:
    """The height at 0 of the triangle around max(x, 0):  -l u / (u - l);  0 where a sign is known or a bound is not."""
    open_ = (lower < 0) & (upper > 0)
    width = (upper - lower).clamp(min=torch.finfo(lower.dtype).tiny)
    return torch.where(open_, -lower * upper / width, 0.0).nan_to_num()


def leaky_relu(lower: Tensor, upper: Tensor, negative_slope: float = 0.01, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x if x > 0 else negative_slope * x."""
    return two_pieces(lower, upper, negative_slope, 1.0, slope)


RELAXATIONS.register("leaky_relu")(leaky_relu)


def prelu(
    lower: Tensor, upper: Tensor, negative_slope: float | Tensor = 0.25, slope: Tensor | None = None
) -> Relaxation:
    """Enclose  x if x > 0 else negative_slope * x,  with slopes that broadcast against the bounds."""
    return two_pieces(lower, upper, negative_slope, 1.0, slope)


RELAXATIONS.register("prelu")(prelu)


@RELAXATIONS.register("abs")
def absolute(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose |x|."""
    return two_pieces(lower, upper, -1.0, 1.0, slope)


def clip(
    lower: Tensor,
    upper: Tensor,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    slope: Tensor | None = None,
) -> Relaxation:
    """Enclose  min(max(x, low), high): exact where one piece is known, else the band of smallest area.

    Args:
        lower, upper: bounds of x, any equal shape.
        low, high: limits, which may be infinite; tensors broadcast against the bounds. Where low > high, f is high.
        slope: a slope to use instead of the best one.
    """
    top = torch.as_tensor(high, dtype=lower.dtype, device=lower.device).double()
    bottom = torch.minimum(torch.as_tensor(low, dtype=lower.dtype, device=lower.device).double(), top)
    straight = (
        Straight(-math.inf, bottom, 0.0, bottom),
        Straight(bottom, top, 1.0, 0.0),
        Straight(top, math.inf, 0.0, top),
    )
    return Curve(lambda x: x.clamp(bottom, top), straight=straight).enclose(lower, upper, slope)


RELAXATIONS.register("clip")(clip)


@RELAXATIONS.register("relu6")
def relu6(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose  min(max(x, 0), 6)."""
    return clip(lower, upper, 0.0, 6.0, slope)


def hardtanh(
    lower: Tensor, upper: Tensor, low: float = -1.0, high: float = 1.0, slope: Tensor | None = None
) -> Relaxation:
    """Enclose  min(max(x, low), high)."""
    return clip(lower, upper, low, high, slope)


RELAXATIONS.register("hardtanh")(hardtanh)


def hard_sigmoid(
    lower: Tensor, upper: Tensor, alpha: float = 1 / 6, beta: float = 0.5, slope: Tensor | None = None
) -> Relaxation:
    """Enclose  min(max(alpha * x + beta, 0), 1)  for alpha > 0; by default torch's hard sigmoid."""
    alpha, beta = rounded(alpha, lower), rounded(beta, lower)
    start, end = -beta / alpha, (1 - beta) / alpha
    straight = (
        Straight(-math.inf, start, 0.0, 0.0),
        Straight(start, end, alpha, beta),
        Straight(end, math.inf, 0.0, 1.0),
    )
    size = 1 + abs(beta)  # of the terms that may cancel, where f is not cut off
    curve = Curve(
        lambda x: (alpha * x + beta).clamp(0, 1), straight=straight, size=lambda x, y: torch.full_like(x, size)
    )
    return curve.enclose(lower, upper, slope)


RELAXATIONS.register("hard_sigmoid")(hard_sigmoid)
