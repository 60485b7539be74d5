"""A backward bound's step through a ReLU: the two sides of its triangle, and what may be chosen there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.relaxations import relu


@dataclass(slots=True)
class Multipliers:
    """What may be chosen freely in a backward pass, by name of the node.

    Attributes:
        alpha: lower slopes of ReLUs in [0, 1], (batch, *shape); shares of planes in [0, 1], see `Planes.shares`.
        beta: multipliers >= 0 of fixed signs, (batch, *shape).
        sign: the fixed signs, (batch, *shape): 1, -1, or 0 where the sign is open.
    """

    alpha: dict[str, Tensor] = field(default_factory=dict)
    beta: dict[str, Tensor] = field(default_factory=dict)
    sign: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sides:
    """The sides of a ReLU's triangle, each (batch, 1, *shape).

    Attributes:
        slope: of the upper side; of both where the sign is known.
        intercept: of the upper side.
        open: where the sign is not known.
    """

    slope: Tensor
    intercept: Tensor
    open: Tensor


def relu_sides(hull: Interval) -> Sides:
    """The triangle over a ReLU's input bounds."""
    chord = relu(*hull)
    open_ = ~((hull.lower >= 0) | (hull.upper <= 0))
    return Sides(chord.slope.unsqueeze(1), (chord.offset + chord.radius).unsqueeze(1), open_.unsqueeze(1))


def through_relu(a: Tensor, sides: Sides, name: str, chosen: Multipliers) -> tuple[Tensor, Tensor]:
    """A in front of a ReLU, and what its upper side adds to the constant: (batch, rows)."""
    alpha = chosen.alpha.get(name)
    below = (sides.slope > 0.5).to(a.dtype) if alpha is None else alpha.unsqueeze(1)
    below = torch.where(sides.open, below, sides.slope)
    negative = a.clamp(max=0)
    shift = (negative * sides.intercept).flatten(2).sum(dim=2, dtype=torch.float64)
    image = (a - negative) * below + negative * sides.slope
    if name in chosen.beta:
        image = image - (chosen.beta[name] * chosen.sign[name]).unsqueeze(1)
    return image, shift
