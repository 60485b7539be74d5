"""Tighter hulls: the zonotope's, intersected layer by layer with backward bounds whose slopes are optimised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.ascent import Adam
from zonoplug.lirpa.backward import Backward, Multipliers

ROWS_AT_ONCE = 256
LEARNING_RATE = 0.2


def first_alpha(hull: Interval) -> Tensor:
    """The slope 0 or 1 that wastes the smaller triangle, (batch, *shape)."""
    return (hull.upper > -hull.lower).to(hull.lower.dtype)


def refine_hulls(
    module: Any, box: Box, hulls: Mapping[str, Interval], steps: int, deadline: Deadline
) -> dict[str, Interval]:
    """Bounds of every ReLU's input, each layer using the layers before it.

    Only neurons whose sign is open are bounded again. Each gets slopes of its own.

    Args:
        box: one input box, (1, *input_shape).
        hulls: bounds that hold already, by node name, (1, *shape).
        steps: gradient steps on each bound; 0 for plain backward bounds.
        deadline: once it has passed, the remaining layers keep their hulls.
    """
    tight = dict(hulls)
    for node in Backward(module).relus:
        name = node.inputs[0].name
        if deadline.passed:
            break
        hull = tight[name]
        open_neurons = ((hull.lower < 0) & (hull.upper > 0)).flatten().nonzero().flatten()
        if not open_neurons.shape[0]:
            continue
        passes = Backward(module, name)
        lower, upper = hull.lower.flatten().clone(), hull.upper.flatten().clone()
        for neurons in open_neurons.split(ROWS_AT_ONCE // 2):
            bounds = _bound_neurons(passes, box, tight, neurons, lower.shape[0], steps)
            below, above = bounds.chunk(2)
            lower[neurons] = torch.fmax(lower[neurons], below)
            upper[neurons] = torch.fmin(upper[neurons], -above)
            if deadline.passed:
                break
        tight[name] = Interval(lower.reshape(hull.lower.shape), upper.reshape(hull.upper.shape))
    return tight


def _bound_neurons(
    passes: Backward, box: Box, hulls: Mapping[str, Interval], neurons: Tensor, size: int, steps: int
) -> Tensor:
    """Lower bounds of z and of -z for the neurons (m,): (2 m,)."""
    count = 2 * neurons.shape[0]
    rows = box.lower.new_zeros(count, 1, size)
    rows[torch.arange(count), 0, neurons.repeat(2)] = torch.ones_like(rows[:, 0, 0]).index_fill(
        0, torch.arange(count // 2, count, device=rows.device), -1.0
    )
    many = Box(box.lower.expand(count, *box.lower.shape[1:]), box.upper.expand(count, *box.upper.shape[1:]))
    shared = {
        n: Interval(h.lower.expand(count, *h.lower.shape[1:]), h.upper.expand(count, *h.upper.shape[1:]))
        for n, h in hulls.items()
    }
    alpha = {relu.name: first_alpha(shared[relu.inputs[0].name]).contiguous() for relu in passes.relus}
    if not alpha or steps == 0:
        with torch.no_grad():
            return passes.bound(many, shared, rows, Multipliers(alpha)).lower[:, 0]
    return ascend(passes, many, shared, rows, Multipliers(alpha), steps)


def ascend(
    passes: Backward, box: Box, hulls: Mapping[str, Interval], rows: Tensor, multipliers: Multipliers, steps: int
) -> Tensor:
    """The best lower bound of each row over gradient steps on alpha, (batch,); one row for each element."""
    for value in multipliers.alpha.values():
        value.requires_grad_(True)
    optimiser = Adam(list(multipliers.alpha.values()), [LEARNING_RATE] * len(multipliers.alpha))
    best = None
    sides = passes.sides(hulls)
    for step in range(steps + 1):
        with torch.enable_grad():
            lower = passes.bound(box, hulls, rows, multipliers, sides).lower[:, 0]
        best = lower.detach() if best is None else torch.fmax(best, lower.detach())
        if step < steps:
            optimiser.climb(lower.sum())
            with torch.no_grad():
                for value in multipliers.alpha.values():
                    value.clamp_(0, 1)
    assert best is not None
    return best
