"""Relaxations of S-shaped functions: increasing, convex left of 0 and concave right of it.

The derivative is even and falls away from 0, so it takes each value at -t and t: one formula serves both pieces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zonoplug.relaxations.bands import Function
from zonoplug.relaxations.base import RELAXATIONS, Relaxation
from zonoplug.relaxations.curves import Curve, Piece

_LEAST = 5e-324  # so that the tangent at infinity is flat


def s_shaped(function: Function, derivative: Function, distance: Function, steepest: float) -> Curve:
    """The curve of an S-shaped function.

    Args:
        function: f.
        derivative: f', even, falling away from 0.
        distance: the t >= 0 with f'(t) = slope, for 0 < slope <= f'(0).
        steepest: f'(0).
    """

    def where(slope: Tensor) -> Tensor:
        return distance(slope.clamp(_LEAST, steepest))

    return Curve(
        function,
        (
            Piece(-math.inf, 0.0, 1.0, derivative, lambda slope, start, end: -where(slope)),
            Piece(0.0, math.inf, -1.0, derivative, lambda slope, start, end: where(slope)),
        ),
    )


def _sigmoid_distance(slope: Tensor) -> Tensor:
    """sigmoid'(t) = slope:  t = 2 log((1 + sqrt(1 - 4 slope)) / (2 sqrt(slope)))."""
    return 2 * torch.log((1 + torch.sqrt((1 - 4 * slope).clamp(min=0))) / (2 * torch.sqrt(slope)))


def _tanh_distance(slope: Tensor) -> Tensor:
    """tanh'(t) = slope:  t = log((1 + sqrt(1 - slope)) / sqrt(slope))."""
    return torch.log((1 + torch.sqrt((1 - slope).clamp(min=0))) / torch.sqrt(slope))


_SIGMOID = s_shaped(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), _sigmoid_distance, 0.25)
_TANH = s_shaped(torch.tanh, lambda x: 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x), _tanh_distance, 1.0)
_ERF = s_shaped(
    torch.erf,
    lambda x: torch.exp(-x * x) * (2 / math.sqrt(math.pi)),
    lambda slope: torch.sqrt(-torch.log(slope * (math.sqrt(math.pi) / 2)).clamp(max=0)),
    2 / math.sqrt(math.pi),
)
_ARCTAN = s_shaped(torch.arctan, lambda x: 1 / (1 + x * x), lambda slope: torch.sqrt((1 / slope - 1).clamp(min=0)), 1.0)


@RELAXATIONS.register("sigmoid")
def sigmoid(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose 1 / (1 + exp(-x)) in the band of smallest area, or in that with the given slope."""
    return _SIGMOID.enclose(lower, upper, slope)


@RELAXATIONS.register("tanh")
def tanh(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose tanh(x) in the band of smallest area, or in that with the given slope."""
    return _TANH.enclose(lower, upper, slope)


@RELAXATIONS.register("erf")
def erf(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose  2 / sqrt(pi) * integral of exp(-t^2) from 0 to x  in the band of smallest area, or of given slope."""
    return _ERF.enclose(lower, upper, slope)


@RELAXATIONS.register("arctan")
def arctan(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose arctan(x) in the band of smallest area, or in that with the given slope."""
    return _ARCTAN.enclose(lower, upper, slope)
