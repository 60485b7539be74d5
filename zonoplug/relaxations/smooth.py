"""Relaxations of the gated activations  x * g(x):  concave, convex, concave, with a dip left of 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zonoplug.relaxations.bands import Function, Straight
from zonoplug.relaxations.base import RELAXATIONS, Relaxation
from zonoplug.relaxations.curves import Curve, Piece, Table


def gated(gate: Function, bell: Function, left: float, right: float) -> Curve:
    """The curve of  f(x) = x gate(x),  which is convex between its inflections and concave beyond them.

        f'(x) = gate(x) + x bell(x)

    Args:
        gate: a function that grows from 0 to 1, computed to about 1 + min(x, 0)^2 units in the last place.
        bell: its derivative.
        left, right: the inflections of f.
    """

    def derivative(x: Tensor) -> Tensor:
        return gate(x) + x * bell(x)

    ends = (-math.inf, left, right, math.inf)
    pieces = tuple(
        Piece(start, end, bend, derivative, Table(derivative, bend, start, end))
        for start, end, bend in zip(ends, ends[1:], (-1.0, 1.0, -1.0), strict=False)
    )
    return Curve(
        lambda x: x * gate(x),
        pieces,
        size=lambda x, y: _condition(x) * y.abs(),
        slope_size=lambda x: _condition(x) * (gate(x) + x.abs() * bell(x)),
    )


def _condition(x: Tensor) -> Tensor:
    """How much the rounding of x matters more in the left tail than elsewhere."""
    return 1 + x.clamp(-40, 0) ** 2


def _normal(x: Tensor) -> Tensor:
    """The distribution function of the normal distribution, accurate in both tails."""
    return torch.erfc(x * -math.sqrt(0.5)) / 2


def _normal_bell(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) * (1 / math.sqrt(2 * math.pi))


_SCALE, _CUBIC = math.sqrt(8 / math.pi), 0.044715


def _near_normal(x: Tensor) -> Tensor:
    """(1 + tanh(z / 2)) / 2 = sigmoid(z)  with  z = sqrt(8 / pi) (x + 0.044715 x^3)."""
    return torch.sigmoid(_SCALE * x * (1 + _CUBIC * x * x))


def _near_normal_bell(x: Tensor) -> Tensor:
    x = x.clamp(-100, 100)
    return _SCALE * (1 + 3 * _CUBIC * x * x) * _near_normal(x) * _near_normal(-x)


def _mish_gate(x: Tensor) -> Tensor:
    """tanh(log(1 + exp(x))) = w (w + 2) / (w (w + 2) + 2)  with  w = exp(x);  written in exp(-|x|)."""
    w = torch.exp(-x.abs())
    return torch.where(x > 0, (1 + 2 * w) / (1 + 2 * w + 2 * w * w), w * (w + 2) / (w * (w + 2) + 2))


def _mish_bell(x: Tensor) -> Tensor:
    """4 w (w + 1) / (w (w + 2) + 2)^2."""
    w = torch.exp(-x.abs())
    right = w * w * (1 + w) / (1 + 2 * w + 2 * w * w) ** 2
    return 4 * torch.where(x > 0, right, w * (1 + w) / (w * (w + 2) + 2) ** 2)


_GELU = gated(_normal, _normal_bell, -math.sqrt(2), math.sqrt(2))
_GELU_TANH = gated(_near_normal, _near_normal_bell, -1.4185040087908283555, 1.4185040087908283555)
_SILU = gated(
    torch.sigmoid,
    lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
    -2.3993572805154676678,
    2.3993572805154676678,
)
_MISH = gated(_mish_gate, _mish_bell, -2.25637639636079312, 1.4905711794854284593)
_HARD_SWISH = Curve(
    lambda x: x * ((x + 3).clamp(0, 6) / 6),
    (Piece(-3.0, 3.0, 1.0, lambda x: x / 3 + 0.5, lambda slope, start, end: 3 * slope - 1.5),),
    (Straight(-math.inf, -3.0, 0.0, 0.0), Straight(3.0, math.inf, 1.0, 0.0)),
)


@RELAXATIONS.register("gelu")
def gelu(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x (1 + erf(x / sqrt(2))) / 2  in the band of smallest area, or in that with the given slope."""
    return _GELU.enclose(lower, upper, slope)


@RELAXATIONS.register("gelu_tanh")
def gelu_tanh(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2  likewise."""
    return _GELU_TANH.enclose(lower, upper, slope)


@RELAXATIONS.register("silu")
def silu(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x / (1 + exp(-x))  likewise."""
    return _SILU.enclose(lower, upper, slope)


@RELAXATIONS.register("mish")
def mish(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x tanh(log(1 + exp(x)))  likewise."""
    return _MISH.enclose(lower, upper, slope)


@RELAXATIONS.register("hard_swish")
def hard_swish(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose  x min(max(x + 3, 0), 6) / 6  likewise."""
    return _HARD_SWISH.enclose(lower, upper, slope)
