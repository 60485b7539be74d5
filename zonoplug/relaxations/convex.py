"""Relaxations of exp, log and their kin: one bend, or one bend and one straight piece.

Where the whole function is convex or concave, the chord's slope gives the band of smallest area. For exp that is the
one of Bonaert, Dimitrov, Baader, Vechev, PLDI 2021 (DeepT), section 5; to keep its lower line above zero, as sums of
exponentials may need, pass a slope below exp(lower + 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.relaxations.bands import Straight, rounded
from zonoplug.relaxations.base import RELAXATIONS, Relaxation
from zonoplug.relaxations.curves import Curve, Piece

_LEAST = 5e-324  # so that the tangent at infinity is flat
SELU_ALPHA, SELU_GAMMA = 1.6732632423543772, 1.0507009873554805
_THRESHOLD = 20.0  # torch replaces softplus(x) by x above this

_EXP = Curve(
    torch.exp,
    (Piece(-math.inf, math.inf, 1.0, torch.exp, lambda slope, start, end: torch.log(slope.clamp(min=_LEAST))),),
    steps=0,
)
_LOG = Curve(
    torch.log,
    (Piece(0.0, math.inf, -1.0, torch.reciprocal, lambda slope, start, end: 1 / slope.clamp(min=_LEAST)),),
    steps=0,
)
_SOFTPLUS = Curve(
    functional.softplus,
    (Piece(-math.inf, math.inf, 1.0, torch.sigmoid, lambda slope, start, end: torch.logit(slope.clamp(_LEAST, 1))),),
    steps=0,
)


@RELAXATIONS.register("exp")
def exp(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose exp(x); NaN where exp(upper) is too large for the type."""
    return _EXP.enclose(lower, upper, slope)


@RELAXATIONS.register("log")
def log(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose the natural logarithm; NaN unless lower > 0."""
    return _LOG.enclose(lower, upper, slope)


def softplus(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose log(1 + exp(x)), and torch's version of it, which is x above 20."""
    slope_, offset, radius = _SOFTPLUS.enclose(lower, upper, slope)
    gap = torch.exp(-lower.clamp(min=_THRESHOLD))
    return Relaxation(slope_, offset, torch.where((upper > _THRESHOLD) & (lower < upper), radius + gap, radius))


RELAXATIONS.register("softplus")(softplus)


@RELAXATIONS.register("log_sigmoid")
def log_sigmoid(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose log(1 / (1 + exp(-x))), which is -softplus(-x)."""
    slope, offset, radius = softplus(-upper, -lower, slope)
    return Relaxation(slope, -offset, radius)


def exponential_linear(
    lower: Tensor, upper: Tensor, height: float, stretch: float, right: float, slope: Tensor | None = None
) -> Relaxation:
    """Enclose  right * x for x >= 0, height * (exp(x / stretch) - 1) for x < 0.

    Args:
        lower, upper: bounds of x, any equal shape.
        height, stretch, right: positive numbers.
        slope: a slope to use instead of the best one.
    """
    height, stretch, right = (rounded(number, lower) for number in (height, stretch, right))
    kink = height / stretch

    def function(x: Tensor) -> Tensor:
        return torch.where(x >= 0, right * x, height * torch.expm1(x.clamp(max=0) / stretch))

    def touching(slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return stretch * torch.log(slope.clamp(min=_LEAST) / kink)

    bend = Piece(-math.inf, 0.0, 1.0, lambda x: kink * torch.exp(x.clamp(max=0) / stretch), touching)
    line = Straight(0.0, math.inf, right, 0.0)
    return Curve(function, (bend,), (line,), steps=0 if kink <= right else 2).enclose(lower, upper, slope)


def elu(lower: Tensor, upper: Tensor, alpha: float = 1.0, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x for x >= 0, alpha * (exp(x) - 1) for x < 0,  alpha > 0."""
    return exponential_linear(lower, upper, alpha, 1.0, 1.0, slope)


RELAXATIONS.register("elu")(elu)


def celu(lower: Tensor, upper: Tensor, alpha: float = 1.0, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x for x >= 0, alpha * (exp(x / alpha) - 1) for x < 0,  alpha > 0."""
    return exponential_linear(lower, upper, alpha, alpha, 1.0, slope)


RELAXATIONS.register("celu")(celu)


def selu(
    lower: Tensor,
    upper: Tensor,
    alpha: float = SELU_ALPHA,
    gamma: float = SELU_GAMMA,
    slope: Tensor | None = None,
) -> Relaxation:
    """Enclose  gamma * x for x >= 0, gamma * alpha * (exp(x) - 1) for x < 0."""
    return exponential_linear(lower, upper, gamma * alpha, 1.0, gamma, slope)


RELAXATIONS.register("selu")(selu)
