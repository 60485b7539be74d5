"""Relaxations of S-shaped functions: increasing, convex left of 0 and concave right of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zonoplug.relaxations.base import RELAXATIONS, Relaxation


def s_shaped(lower: Tensor, upper: Tensor, function: Callable[[Tensor], Tensor],
             derivative_at: Callable[[Tensor], Tensor]) -> Relaxation:
    """Enclose an S-shaped function between two parallel lines through its end points.

        slope = min(f'(lower), f'(upper))  is the smallest derivative on [lower, upper], so  f(x) - slope * x  does not
        decrease and its extremes are at the ends.

    Args:
        lower, upper: bounds of x, any equal shape.
        function: f.
        derivative_at: f' as a function of the *value* f(x).
    The slope is taken a little too small and the radius a little too wide, for the rounding of f and f'.
    Source: Singh, Gehr, Mirman, Pueschel, Vechev, NeurIPS 2018, theorem 3.2.
    """
    at_lower, at_upper = function(lower), function(upper)
    unit = 8 * torch.finfo(lower.dtype).eps
    slope = (torch.minimum(derivative_at(at_lower), derivative_at(at_upper)) - unit).clamp(min=0)
    slope = torch.where(lower.isfinite() & upper.isfinite(), slope, torch.zeros_like(slope))
    low = at_lower - torch.where(slope > 0, slope * lower, 0)
    high = at_upper - torch.where(slope > 0, slope * upper, 0)
    rounding = unit * (1 + slope * torch.maximum(lower.abs(), upper.abs()).nan_to_num(posinf=0))
    radius = ((high - low) / 2).clamp(min=0) + rounding
    same = lower == upper
    return Relaxation(
        torch.where(same, torch.zeros_like(slope), slope),
        torch.where(same, at_lower, (high + low) / 2),
        torch.where(same, unit * at_lower.abs(), radius),
    )


@RELAXATIONS.register("sigmoid")
def sigmoid(lower: Tensor, upper: Tensor) -> Relaxation:
    """Enclose 1 / (1 + exp(-x))."""
    return s_shaped(lower, upper, torch.sigmoid, lambda value: value * (1 - value))


@RELAXATIONS.register("tanh")
def tanh(lower: Tensor, upper: Tensor) -> Relaxation:
    """Enclose tanh(x)."""
    return s_shaped(lower, upper, torch.tanh, lambda value: (1 - value) * (1 + value))
