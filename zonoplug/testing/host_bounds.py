"""The law of bounds, whoever computes them: no value that a network reaches lies outside them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval

STEPS = 12


def reached(module: nn.Module, box: Box, rows: Tensor | None = None, seed: int = 0, count: int = 96) -> Interval:
    """The least and the largest value of each output that a search in float64 finds on each box.

    Half of `count` points of a box are corners, half lie anywhere inside; from the best of them, `STEPS` steps along
    the sign of the gradient follow, cut to the box.

    Args:
        module: maps (n, *shape) to (n, *out_shape), for any n.
        box: (batch, *shape).
        rows: C of shape (batch, rows, outputs): values of C y are sought, not of y.
    Returns:
        (batch, *out_shape) or (batch, rows); values that are NaN are left out, as if they were not reached.
    """
    exact = copy.deepcopy(module).double().eval()
    for parameter in exact.parameters():
        parameter.requires_grad_(False)
    box = Box(box.lower.double(), box.upper.double())
    batch = box.lower.shape[0]

    def values(points: Tensor) -> Tensor:
        """(count, batch, ...) of points (count, batch, *shape)."""
        images: Tensor = exact(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        return images if rows is None else torch.einsum("brk,cbk->cbr", rows.double(), images.flatten(2))

    points = box.sample(count, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found = values(points)
    shape = found.shape[2:]
    found = found.flatten(2)
    ends = []
    for sign in (1.0, -1.0):
        score = (sign * found).nan_to_num(nan=torch.inf, posinf=torch.inf)
        best, place = score.min(0)  # (batch, outputs)
        start = points[place.T, torch.arange(batch)]  # (outputs, batch, *shape)
        ends.append(torch.minimum(best, _descend(values, start, box, sign)))
    return Interval(ends[0].unflatten(1, shape), -ends[1].unflatten(1, shape))


def _descend(values: Any, points: Tensor, box: Box, sign: float) -> Tensor:
    """The least of sign * output i on a propagation from points[i], (batch, outputs)."""
    width = box.upper - box.lower
    best = torch.full((points.shape[1], points.shape[0]), torch.inf, dtype=points.dtype)
    for step in range(STEPS):
        points = points.detach().requires_grad_()
        own = sign * torch.diagonal(values(points).flatten(2), dim1=0, dim2=2)  # (batch, outputs)
        best = torch.fmin(best, own.detach())
        try:
            gradient = torch.autograd.grad(own.sum(), points, allow_unused=True)[0] if own.requires_grad else None
        except RuntimeError:  # torch knows no derivative of some operator
            gradient = None
        if gradient is None:
            break
        moved = points.detach() - 0.6 * 0.8**step * width * gradient.nan_to_num().sign()
        points = torch.minimum(torch.maximum(moved, box.lower), box.upper)
    return best


def escape(bounds: Interval, values: Interval) -> float:
    """How far values lie outside bounds, as a multiple of what rounding is allowed; above 1 the law is broken.

    Rounding is allowed 1e-4 (float32) or 1e-7 (float64) of the values' width, and a tenth of that of their size, at
    least of 1. Bounds that are NaN claim nothing.
    """
    share = 1e-4 if bounds.lower.dtype == torch.float32 else 1e-7
    known = values.lower.isfinite() & values.upper.isfinite()
    if not bool(known.any()):
        return 0.0
    size = torch.maximum(values.lower.abs(), values.upper.abs())[known].max().clamp(min=1.0)
    allowed = share * (values.upper - values.lower) + share / 10 * size
    below = bounds.lower.double() - values.lower
    above = values.upper - bounds.upper.double()
    worst = torch.maximum(below.nan_to_num(nan=0.0, posinf=torch.inf), above.nan_to_num(nan=0.0, posinf=torch.inf))
    return float((worst / allowed)[known].max())
