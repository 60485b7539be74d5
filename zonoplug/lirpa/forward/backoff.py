"""Backoff: bound coarsely, then again with more symbols where the reductions cost most, until proved or exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import Propagation, intersect
from zonoplug.reduction import Backoff

MAX_ROUNDS = 32

Propagate = Callable[[PropagationOptions], Propagation]


def back_off(
    propagate: Propagate, options: PropagationOptions, schedule: Backoff, goal: Tensor | None = None
) -> Propagation:
    """The first propagation whose bounds are enough, or the exact one.

    Each round measures what every reduction cost the specification's rows, and the layers that make up most of it get
    more symbols.

    Args:
        propagate: propagates with given options.
        schedule: the coarsest step.
        goal: (batch or 1, rows) lower bounds that are enough. Without one all rounds are made, up to the exact
            propagation.
    Returns:
        The last propagation, with the best bounds of all; `reduced_by` says which budgets it needed.
    """
    step: Backoff | None = schedule
    last: Propagation | None = None
    best = None
    for _ in range(MAX_ROUNDS):
        assert step is not None
        last = propagate(replace(options, schedule=step, measure=True))
        best = last.bounds if best is None else intersect(best, last.bounds)
        if goal is not None and bool((best.lower > goal).all()):
            break
        step = step.refined(last.reductions)
        if step is None:
            break
    assert last is not None and best is not None
    last.bounds = best
    return last
