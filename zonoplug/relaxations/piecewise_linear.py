"""Relaxations of functions made of straight pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from zonoplug.relaxations.base import RELAXATIONS, Relaxation


def two_pieces(lower: Tensor, upper: Tensor, left: float, right: float, slope: Tensor | None = None) -> Relaxation:
    """Enclose  f(x) = left * x for x < 0, right * x for x > 0.

        f(x) - slope * x  is piecewise linear with its one kink, value 0, at 0, so its extremes on [lower, upper] are
        among 0 and the values at both ends. By default the slope is the chord's, which has the smallest area.

    Args:
        lower, upper: bounds of x, any equal shape.
        left, right: the two slopes.
        slope: a slope for the points where 0 lies strictly inside; the radius is computed for it, so any is sound.
    Source: Singh, Gehr, Mirman, Pueschel, Vechev, NeurIPS 2018, theorem 3.1 (for ReLU).
    """
    chord = (right * upper - left * lower) / (upper - lower)
    inner = chord if slope is None else slope
    at_lower, at_upper = (left - inner) * lower, (right - inner) * upper
    highest = torch.maximum(at_lower, at_upper).clamp(min=0)
    lowest = torch.minimum(at_lower, at_upper).clamp(max=0)
    positive, negative = lower >= 0, upper <= 0
    stable = positive | negative
    zero = torch.zeros_like(lower)
    return Relaxation(
        torch.where(positive, right, torch.where(negative, left, inner)),
        torch.where(stable, zero, (highest + lowest) / 2),
        torch.where(stable, zero, (highest - lowest) / 2),
    )


@RELAXATIONS.register("relu")
def relu(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose max(x, 0): exact where the sign is known, else the parallelogram of smallest area."""
    return two_pieces(lower, upper, 0.0, 1.0, slope)


def leaky_relu(lower: Tensor, upper: Tensor, negative_slope: float = 0.01, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x if x > 0 else negative_slope * x."""
    return two_pieces(lower, upper, negative_slope, 1.0, slope)


@RELAXATIONS.register("abs")
def absolute(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose |x|."""
    return two_pieces(lower, upper, -1.0, 1.0, slope)
