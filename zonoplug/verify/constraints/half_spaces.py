"""Smaller boxes by constraints on inputs: half-spaces  A x <= b  that every point of interest meets."""

from __future__ import annotations

import torch
from torch import Tensor

from zonoplug.domain.constrained import SymbolConstraints


def contract(lower: Tensor, upper: Tensor, matrix: Tensor, room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smaller boxes that keep every point of the boxes which meets all half-spaces.

        A (x - c) <= b,  c the middle of the box

    Args:
        lower, upper: boxes (n, k).
        matrix: A, (n, m, k); a row of zeros has no effect where b is +inf.
        room: b, (n, m); +inf where a row does not constrain anything.
    Returns:
        the boxes, (n, k), rounded outwards and never larger, and where no point is left, (n,); such a box is returned
        as it was.
    """
    _, radius = middle_of(lower, upper)
    symbols = SymbolConstraints.on_unit_cube(
        matrix * radius.unsqueeze(1), room.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    ).contracted()
    gone = symbols.empty
    low, high = cut(lower, upper, symbols.lower, symbols.upper)
    return torch.where(gone.unsqueeze(1), lower, low), torch.where(gone.unsqueeze(1), upper, high), gone


def middle_of(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of boxes, and radii that reach both ends."""
    center = lower + (upper - lower) / 2
    return center, torch.maximum(upper - center, center - lower)


def cut(lower: Tensor, upper: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The box between places `low` and `high` in [-1, 1] of each input, rounded outwards; all of shape (n, k)."""
    center, radius = middle_of(lower, upper)
    error = 4 * torch.finfo(center.dtype).eps * (center.abs() + radius)
    below = torch.where(low > -1, torch.maximum(center + radius * low - error, lower), lower)
    above = torch.where(high < 1, torch.minimum(center + radius * high + error, upper), upper)
    return torch.minimum(below, upper), torch.maximum(above, lower)


def least_in_half_space(direction: Tensor, slope: Tensor, room: Tensor, bisections: int = 5) -> Tensor:
    """Lower bounds of  d . e  for e in [-1, 1]^k with  a . e <= b:  (n, m).

        max_{y >= 0}  -y b - ||d + y a||_1

    It is concave in y; a few bisections of an interval of t come close, y = ||d||_1 / ||a||_1 t / (1 - t), and any y >=
    0 is sound.

    Args:
        direction: d, (n, m, k).
        slope, room: a, (n, k), and b, (n,); one half-space for all directions of an element.
    """
    a, b = slope.unsqueeze(1), room.unsqueeze(1)
    size = direction.abs().sum(dim=2)
    tiny = torch.finfo(size.dtype).tiny
    eps = (direction.shape[2] + 8) * torch.finfo(size.dtype).eps
    weight = slope.abs().sum(dim=1, keepdim=True)
    scale = size / weight.clamp(min=tiny)
    low, high = torch.zeros_like(size), torch.ones_like(size)
    best = -size * (1 + eps)
    for _ in range(bisections):
        middle = (low + high) / 2
        y = scale * middle / (1 - middle)
        moved = direction + y.unsqueeze(2) * a
        value = -y * b - moved.abs().sum(dim=2)
        best = torch.fmax(best, value - eps * (size + y * (b.abs() + weight)))
        rising = -b - (a * moved.sign()).sum(dim=2) > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return best
