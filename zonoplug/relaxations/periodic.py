"""Relaxations of sine, cosine and tangent: bends of length pi that alternate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zonoplug.relaxations.bands import Function, finite_ends
from zonoplug.relaxations.base import RELAXATIONS, Relaxation
from zonoplug.relaxations.curves import Curve, Piece

_FAR = 1e12  # beyond this, half periods are no longer told apart with certainty


def _wave(
    lower: Tensor, upper: Tensor, function: Function, derivative: Function, lead: float, slope: Tensor | None
) -> Relaxation:
    """Enclose sin(x) (lead 0) or cos(x) (lead 1/2), which bend down on  [(k - lead) pi, (k + 1 - lead) pi]  for even k.

    Bounds less than a period apart meet at most three bends. Others get the band [-1, 1].
    """
    start, end = finite_ends(lower, upper)
    first = torch.floor(start / math.pi + lead)
    pieces = []
    for number in range(3):
        k = first + number
        down = torch.where(torch.remainder(k, 2) == 0, 1.0, -1.0).to(torch.float64)
        center = (k + 0.5 - lead) * math.pi

        def touching(slope: Tensor, a: Tensor, b: Tensor, center: Tensor = center, down: Tensor = down) -> Tensor:
            return center - torch.arcsin((slope * down).clamp(-1, 1))

        pieces.append(Piece(center - math.pi / 2, center + math.pi / 2, -down, derivative, touching))
    curve = Curve(function, tuple(pieces), size=lambda x, y: x.abs() + y.abs())
    slope, offset, radius = curve.enclose(lower, upper, slope)
    zero = torch.zeros_like(lower)
    whole = ((end - start >= 2 * math.pi) | (torch.maximum(start.abs(), end.abs()) > _FAR)) & (start < end)
    whole &= lower.isfinite() & upper.isfinite()
    return Relaxation(
        torch.where(whole, zero, slope), torch.where(whole, zero, offset), torch.where(whole, zero + 1, radius)
    )


@RELAXATIONS.register("sin")
def sin(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose sin(x) in the band of smallest area, or in that with the given slope; in [-1, 1] for a period or more."""
    return _wave(lower, upper, torch.sin, torch.cos, 0.0, slope)


@RELAXATIONS.register("cos")
def cos(lower: Tensor, upper: Tensor, slope: Tensor | None = None) -> Relaxation:
    """Enclose cos(x) in the band of smallest area, or in that with the given slope; in [-1, 1] for a period or more."""
    return _wave(lower, upper, torch.cos, lambda x: -torch.sin(x), 0.5, slope)
