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
        alpha: lower slopes of ReLUs in [0, 1], (batch, *shape); parameters of linear bounds in [0, 1], see
            `LinearRelaxation.shares`.
        beta: multipliers >= 0 of split constraints, (batch, *shape).
        sign: the split constraints, (batch, *shape): 1, -1, or 0 where the neuron is unstable.
    """

    alpha: dict[str, Tensor] = field(default_factory=dict)
    beta: dict[str, Tensor] = field(default_factory=dict)
    sign: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Triangle:
    """The sides of a ReLU's triangle, each (batch, 1, *shape).

    Attributes:
        slope: of the upper side; of both where the neuron is stable.
        intercept: of the upper side.
        unstable: where the neuron is unstable.
    """

    slope: Tensor
    intercept: Tensor
    unstable: Tensor


def relu_triangle(preactivation: Interval) -> Triangle:
    """The triangle over a ReLU's input bounds."""
    chord = relu(*preactivation)
    unstable = ~((preactivation.lower >= 0) | (preactivation.upper <= 0))
    return Triangle(chord.slope.unsqueeze(1), (chord.offset + chord.radius).unsqueeze(1), unstable.unsqueeze(1))


def backward_relu(a: Tensor, triangles: Triangle, name: str, chosen: Multipliers) -> tuple[Tensor, Tensor]:
    """A in front of a ReLU, and what its upper side adds to the constant: (batch, rows)."""
    alpha = chosen.alpha.get(name)
    below = (triangles.slope > 0.5).to(a.dtype) if alpha is None else alpha.unsqueeze(1)
    below = torch.where(triangles.unstable, below, triangles.slope)
    negative = a.clamp(max=0)
    shift = (negative * triangles.intercept).flatten(2).sum(dim=2, dtype=torch.float64)
    image = (a - negative) * below + negative * triangles.slope
    if name in chosen.beta:
        image = image - (chosen.beta[name] * chosen.sign[name]).unsqueeze(1)
    return image, shift
