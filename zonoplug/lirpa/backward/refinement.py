"""Tighter pre-activation bounds: the zonotope's, intersected with backward bounds whose slopes are optimised."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.ascent import Adam
from zonoplug.lirpa.backward.local_errors import LocalErrors
from zonoplug.lirpa.backward.passes import Backward
from zonoplug.lirpa.backward.triangle import Multipliers, Triangle

ROWS_AT_ONCE = 256
ROW_ENTRIES = 2**21  # coefficients of one layer: more no longer fit the processor's caches
LEARNING_RATE = 0.2
FEW_NEURONS = 1024
TRIAL_NEURONS = 16


def first_alpha(preactivation: Interval) -> Tensor:
    """The slope 0 or 1 that wastes the smaller triangle, (batch, *shape)."""
    return (preactivation.upper > -preactivation.lower).to(preactivation.lower.dtype)


def refine_bounds(
    module: Any,
    box: Box,
    preactivations: Mapping[str, Interval],
    steps: int,
    deadline: Deadline,
    rows: Tensor | None = None,
) -> dict[str, Interval]:
    """Bounds of every ReLU's input, each layer using the layers before it.

    Only unstable neurons are bounded again, and of those only the ones that `rows` depend on. Each gets
    slopes of its own. Where the time is short, the first layers, which zonotopes bound best, keep their pre-activation
    bounds.

    Args:
        box: one input box, (1, *input_shape).
        preactivations: bounds that hold already, by node name, (1, *shape).
        steps: gradient steps on each bound; 0 for plain backward bounds.
        deadline: once it has passed, the remaining layers keep their pre-activation bounds.
        rows: (1, rows, outputs), the specification matrix that the pre-activation bounds are for; None for all outputs.
    """
    tight = dict(preactivations)
    whole = Backward(module)
    read = {} if rows is None else _neurons_read(whole, box, tight, rows)
    order = whole.relus
    left_out = _too_many(module, box, tight, order, read, steps, deadline)
    for node in order[left_out:]:
        name = node.inputs[0].name
        if deadline.passed:
            break
        preactivation = tight[name]
        unstable_neurons = _unstable_neurons(preactivation, read.get(node.name))
        if not unstable_neurons.shape[0]:
            continue
        passes = Backward(module, name)
        lower, upper = preactivation.lower.flatten().clone(), preactivation.upper.flatten().clone()
        largest = max([passes.size, *(tight[relu.inputs[0].name].lower.numel() for relu in passes.relus)])
        rows_at_once = max(min(ROWS_AT_ONCE, ROW_ENTRIES // largest), 2)
        errors = passes.errors(box, tight)
        for neurons in unstable_neurons.split(rows_at_once // 2):
            alpha = first_slopes(passes, tight, 2 * neurons.shape[0])
            bounds = bound_neurons(passes, box, tight, neurons, alpha, steps, errors)
            below, above = bounds.chunk(2)
            lower[neurons] = torch.fmax(lower[neurons], below)
            upper[neurons] = torch.fmin(upper[neurons], -above)
            if deadline.passed:
                break
        tight[name] = Interval(lower.reshape(preactivation.lower.shape), upper.reshape(preactivation.upper.shape))
    return tight


def _unstable_neurons(preactivation: Interval, read: Tensor | None) -> Tensor:
    """Flat places of the unstable neurons and that are read, (m,)."""
    unstable = (preactivation.lower < 0) & (preactivation.upper > 0)
    return (unstable if read is None else unstable & read).flatten().nonzero().flatten()


def _too_many(
    module: Any,
    box: Box,
    preactivations: Mapping[str, Interval],
    order: list[Any],
    read: Mapping[str, Tensor],
    steps: int,
    deadline: Deadline,
) -> int:
    """How many of the first layers to leave out, by the time that a few neurons of the last layer take.

    A neuron of layer l of n costs l / n of one in the last, and each gradient step as much as three plain passes.
    """
    counts = [
        int(_unstable_neurons(preactivations[node.inputs[0].name], read.get(node.name)).shape[0]) for node in order
    ]
    if sum(counts) <= FEW_NEURONS or not counts[-1]:
        return 0
    name = order[-1].inputs[0].name
    passes, neurons = (
        Backward(module, name),
        _unstable_neurons(preactivations[name], read.get(order[-1].name))[:TRIAL_NEURONS],
    )
    errors, start = passes.errors(box, preactivations), time.monotonic()
    bound_neurons(
        passes, box, preactivations, neurons, first_slopes(passes, preactivations, 2 * neurons.shape[0]), 0, errors
    )
    each = (time.monotonic() - start) / neurons.shape[0] * (1 + 3 * steps)
    seconds = 0.0
    for place in reversed(range(len(order))):
        seconds += each * counts[place] * (place + 1) / len(order)
        if seconds > deadline.left_seconds:
            return min(place + 1, len(order) - 1)
    return 0


def _neurons_read(whole: Backward, box: Box, preactivations: Mapping[str, Interval], rows: Tensor) -> dict[str, Tensor]:
    """By name of each ReLU, which of its neurons (1, *shape) the rows depend on.

    Those are the ones with a coefficient in a backward bound: its slopes are positive where the neuron is unstable.
    """
    with torch.no_grad():
        coefficients = whole.bound(box, preactivations, rows).coefficients
    return {name: (value != 0).any(dim=1) for name, value in coefficients.items()}


def first_slopes(passes: Backward, preactivations: Mapping[str, Interval], count: int) -> dict[str, Tensor]:
    """Slopes of all ReLUs on the way, (count, *shape) each, before any gradient step."""
    alpha = {relu.name: first_alpha(preactivations[relu.inputs[0].name]) for relu in passes.relus}
    return {name: value.expand(count, *value.shape[1:]).contiguous() for name, value in alpha.items()}


def unit_rows(neurons: Tensor, size: int, like: Tensor) -> Tensor:
    """A row of z for each of the neurons (m,) of a layer of that size: (m, size)."""
    rows = like.new_zeros(neurons.shape[0], size)
    rows[torch.arange(neurons.shape[0], device=neurons.device), neurons] = 1.0
    return rows


def bound_neurons(
    passes: Backward,
    box: Box,
    preactivations: Mapping[str, Interval],
    neurons: Tensor,
    alpha: dict[str, Tensor],
    steps: int,
    errors: LocalErrors,
) -> Tensor:
    """Lower bounds of z and of -z for the neurons (m,), as the network's evaluation computes z: (2 m,).

    Args:
        errors: what `passes.errors` gives for the box.
        alpha: slopes to start from, (2 m, *shape) by name of the ReLU; changed in place by the steps.
    """
    count = 2 * neurons.shape[0]
    ends = unit_rows(neurons, passes.size, box.lower)
    rows = torch.cat([ends, -ends]).unsqueeze(1)
    many = box.expanded(count)
    shared = {name: preactivation.expanded(count) for name, preactivation in preactivations.items()}
    if not alpha or steps == 0:
        with torch.no_grad():
            return passes.bound(many, shared, rows, Multipliers(alpha), passes.triangles(preactivations), errors).sound[
                :, 0
            ]
    return ascend(passes, many, shared, rows, Multipliers(alpha), steps, passes.triangles(preactivations), errors)


def ascend(
    passes: Backward,
    box: Box,
    preactivations: Mapping[str, Interval],
    rows: Tensor,
    multipliers: Multipliers,
    steps: int,
    triangles: Mapping[str, Triangle],
    errors: LocalErrors,
) -> Tensor:
    """The best lower bound of each row over gradient steps on alpha, (batch,); one row for each element.

    `triangles` and `errors` are those of the pre-activation bounds; all elements may share one.
    """
    for value in multipliers.alpha.values():
        value.requires_grad_(True)
    optimiser = Adam(list(multipliers.alpha.values()), [LEARNING_RATE] * len(multipliers.alpha))
    best = None
    for step in range(steps + 1):
        with torch.enable_grad():
            found = passes.bound(box, preactivations, rows, multipliers, triangles, errors)
            lower = found.lower[:, 0]
        best = found.sound[:, 0] if best is None else torch.fmax(best, found.sound[:, 0])
        if step < steps:
            optimiser.climb(lower.sum())
            with torch.no_grad():
                for value in multipliers.alpha.values():
                    value.clamp_(0, 1)
    assert best is not None
    return best
