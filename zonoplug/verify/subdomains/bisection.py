"""Splitting input boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box


def bisect(box: Box, scores: Tensor, times: int = 1) -> tuple[Box, Tensor]:
    """Halve each subdomain along its best-scored coordinate, `times` times over.

    Args:
        box: (n, *shape).
        scores: (n, prod(shape)) >= 0, how much a coordinate's width matters; bisected with the width.
    Returns:
        the pieces, and for each the subdomain (an index below n) that it came from. A subdomain too narrow to bisect
        is returned whole.
    """
    shape = box.lower.shape[1:]
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    parent = torch.arange(lower.shape[0], device=lower.device)
    for _ in range(times):
        middle = lower + (upper - lower) / 2
        divisible = (middle > lower) & (middle < upper)
        # Where no score tells coordinates apart, the widest is bisected.
        width = (upper - lower) / (upper - lower).amax(dim=1, keepdim=True).clamp(min=torch.finfo(lower.dtype).tiny)
        ranked = torch.where(divisible, scores + 1e-9 * width, -1.0)
        axis = ranked.argmax(dim=1, keepdim=True)
        can = divisible.gather(1, axis)
        left_upper = upper.scatter(1, axis, torch.where(can, middle.gather(1, axis), upper.gather(1, axis)))
        right_lower = lower.scatter(1, axis, middle.gather(1, axis))
        bisected = scores.scatter(1, axis, scores.gather(1, axis) / 2)
        split = can.squeeze(1)
        lower = torch.cat([lower, right_lower[split]])
        upper = torch.cat([left_upper, upper[split]])
        scores = torch.cat([bisected, bisected[split]])
        parent = torch.cat([parent, parent[split]])
    return Box(lower.unflatten(1, shape), upper.unflatten(1, shape)), parent
