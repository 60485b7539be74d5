"""alpha-zonotope: slopes of relaxations, optimised by gradient on the bounds.

Every slope gives a sound relaxation, since the radius is computed for it. So each step's bounds hold, the best of all
steps hold, and so do the tightest hulls seen so far, which later steps use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.backward.ascent import Adam
from zonoplug.lirpa.forward.propagation import Observer, Propagation, intersect
from zonoplug.lirpa.forward.slope_ranges import SlopeRange, slope_range
from zonoplug.lirpa.operators.table import Call, Transformer

STEPS = 40
LEARNING_RATE = 0.04  # of the range of a slope
WARM_UP = 8  # long first steps set deep networks back further than the others can make good
DECAY = 0.97


class Walk(Protocol):
    """Propagates with given slopes (node name -> (batch, *shape)) and known hulls (node name -> interval)."""

    def __call__(
        self, slopes: Mapping[str, Tensor], known: Mapping[str, Interval], observe: Observer | None = None
    ) -> Propagation: ...


def optimise_slopes(walk: Walk, goal: Tensor | None = None, steps: int = STEPS) -> Propagation:
    """The walk with slopes optimised by Adam, in a batch, at every operator whose relaxation takes a slope.

    Args:
        walk: shows `observe` every relaxation that it uses.
        goal: (batch or 1, outputs): the optimiser raises lower bounds below their goal, and stops once none is. Without
            one it narrows all bounds.
        steps: walks beside the first.
    Returns:
        The last walk, with the best bounds and hulls of all.
    """
    ranges: dict[str, SlopeRange] = {}

    def observe(transformer: Transformer, call: Call) -> None:
        found = slope_range(transformer, call)
        if found is not None:
            ranges[call.node.name] = found

    with torch.no_grad():
        last = walk({}, {}, observe if steps > 0 else None)
    best, hulls = last.bounds, dict(last.hulls)
    if not ranges:
        return last
    shares = {name: _share(found).requires_grad_(True) for name, found in ranges.items()}
    optimiser = Adam(list(shares.values()), [LEARNING_RATE] * len(shares), DECAY, WARM_UP)
    for _ in range(steps):
        if _reached(best, goal):
            break
        with torch.enable_grad():
            slopes = {name: found.low + shares[name] * (found.high - found.low) for name, found in ranges.items()}
            last = walk(slopes, hulls)
            gain = _gain(last.bounds, best, goal)
        best = intersect(best, _detached(last.bounds))
        hulls = {name: intersect(hull, _detached(last.hulls[name])) for name, hull in hulls.items()}
        if not bool(gain.isfinite()) or not gain.requires_grad:
            break
        optimiser.climb(gain)
        with torch.no_grad():
            for share in shares.values():
                share.clamp_(0, 1)
    last.bounds, last.hulls = best, hulls
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
