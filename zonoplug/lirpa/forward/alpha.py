"""alpha-zonotope: slopes of relaxations, optimised by gradient on the bounds.

Every slope gives a sound relaxation, since the radius is computed for it. So each step's bounds hold, the best of all
steps hold, and so do the tightest pre-activation bounds seen so far, which later steps use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.ascent import Adam
from zonoplug.lirpa.forward.propagation import Observer, Propagation, intersect
from zonoplug.lirpa.forward.slope_ranges import SlopeRange, slope_range
from zonoplug.lirpa.operators.table import Call, Transformer

STEPS = 40
LEARNING_RATE = 0.04  # of the range of a slope
WARM_UP = 8  # long first steps set deep networks back further than the others can make good
DECAY = 0.97


class Propagate(Protocol):
    """Propagates with given slopes (node name -> (batch, *shape)) and known pre-activation bounds (node name ->
    interval).
    """

    def __call__(
        self, slopes: Mapping[str, Tensor], known: Mapping[str, Interval], observe: Observer | None = None
    ) -> Propagation: ...


def optimise_slopes(propagate: Propagate, goal: Tensor | None = None, steps: int = STEPS) -> Propagation:
    """The propagation with slopes optimised by Adam, in a batch, at every operator whose relaxation takes a slope.

    Args:
        propagate: shows `observe` every relaxation that it uses.
        goal: (batch or 1, outputs): the optimiser raises lower bounds below their goal, and stops once none is. Without
            one it narrows all bounds.
        steps: propagations beside the first.
    Returns:
        The last propagation, with the best bounds and pre-activation bounds of all.
    """
    ranges: dict[str, SlopeRange] = {}

    def observe(transformer: Transformer, call: Call) -> None:
        found = slope_range(transformer, call)
        if found is not None:
            ranges[call.node.name] = found

    with torch.no_grad():
        last = propagate({}, {}, observe if steps > 0 else None)
    best, preactivations = last.bounds, dict(last.preactivations)
    if not ranges:
        return last
    shares = {name: _share(found).requires_grad_(True) for name, found in ranges.items()}
    optimiser = Adam(list(shares.values()), [LEARNING_RATE] * len(shares), DECAY, WARM_UP)
    for _ in range(steps):
        if _reached(best, goal):
            break
        with torch.enable_grad():
            slopes = {name: found.low + shares[name] * (found.high - found.low) for name, found in ranges.items()}
            last = propagate(slopes, preactivations)
            gain = _gain(last.bounds, best, goal)
        best = intersect(best, _detached(last.bounds))
        preactivations = {
            name: intersect(preactivation, _detached(last.preactivations[name]))
            for name, preactivation in preactivations.items()
        }
        if not bool(gain.isfinite()) or not gain.requires_grad:
            break
        optimiser.climb(gain)
        with torch.no_grad():
            for share in shares.values():
                share.clamp_(0, 1)
    last.bounds, last.preactivations = best, preactivations
    return last


def _share(found: SlopeRange) -> Tensor:
    """Where in its range the relaxation's own slope lies, 0 to 1; 1 where there is no choice."""
    share = (found.own - found.low) / (found.high - found.low)
    return share.nan_to_num(nan=1.0).clamp(0, 1)


def _reached(best: Interval, goal: Tensor | None) -> bool:
    """Whether all lower bounds are above their goal."""
    return goal is not None and bool((best.lower > goal).all())


def _gain(bounds: Interval, best: Interval, goal: Tensor | None) -> Tensor:
    if goal is None:
        return (bounds.lower - bounds.upper).sum()
    missing = (bounds.lower - goal).clamp(max=0)
    return missing.masked_fill(best.lower > goal, 0).sum()


def _detached(bounds: Interval) -> Interval:
    return Interval(bounds.lower.detach(), bounds.upper.detach())
