"""alpha-zonotope: slopes of relaxations, optimised by gradient on the bounds.

Every slope gives a sound relaxation, since the radius is computed for it. So each step's bounds hold, the best of all
steps hold, and so do the tightest hulls seen so far, which later steps use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.ascent import Adam
from zonoplug.lirpa.propagate import Propagation, intersect

STEPS = 40
LEARNING_RATE = 0.1
DECAY = 0.97

# Host operators whose relaxation takes any slope, and the range in which the best one lies.
SLOPE_RANGES = {"BoundRelu": (0.0, 1.0), "BoundLeakyRelu": (0.0, 1.0), "BoundAbs": (-1.0, 1.0)}

Walk = Callable[[Mapping[str, Tensor], Mapping[str, Interval]], Propagation]


def optimise_slopes(module: Any, walk: Walk, goal: Tensor | None = None, steps: int = STEPS) -> Propagation:
    """The walk with slopes optimised by Adam, in a batch.

    Args:
        module: the host's module.
        walk: propagates with given slopes (node name -> (batch, *shape)) and known hulls (node name -> interval).
        goal: (batch or 1, outputs): the optimiser raises lower bounds below their goal, and stops once none is. Without
            one it narrows all bounds.
        steps: walks beside the first.
    Returns:
        The last walk, with the best bounds and hulls of all.
    """
    with torch.no_grad():
        last = walk({}, {})
    best, hulls = last.bounds, dict(last.hulls)
    slopes = _first_slopes(module, hulls)
    if not slopes or steps <= 0:
        return last
    optimiser = Adam(list(slopes.values()), [LEARNING_RATE] * len(slopes), DECAY)
    for _ in range(steps):
        if goal is not None and bool((best.lower > goal).all()):
            break
        with torch.enable_grad():
            last = walk(slopes, hulls)
            gain = _gain(last.bounds, best, goal)
        best = intersect(best, _detached(last.bounds))
        hulls = {name: intersect(hull, _detached(last.hulls[name])) for name, hull in hulls.items()}
        if not bool(gain.isfinite()) or not gain.requires_grad:
            break
        optimiser.climb(gain)
        with torch.no_grad():
            for name, slope in slopes.items():
                slope.clamp_(*SLOPE_RANGES[type(module[name]).__name__])
    last.bounds, last.hulls = best, hulls
    return last


def _first_slopes(module: Any, hulls: Mapping[str, Interval]) -> dict[str, Tensor]:
    """The chords, which the relaxations would choose themselves, for every operator whose slope may be chosen."""
    slopes = {}
    for node in module._modules.values():
        kind = type(node).__name__
        if kind in SLOPE_RANGES and node.inputs[0].name in hulls:
            lower, upper = hulls[node.inputs[0].name]
            low, high = SLOPE_RANGES[kind]
            chord = (high * upper - low * lower) / (upper - lower).clamp(min=torch.finfo(lower.dtype).tiny)
            slopes[node.name] = chord.clamp(low, high).nan_to_num(nan=high).detach().requires_grad_(True)
    return slopes


def _gain(bounds: Interval, best: Interval, goal: Tensor | None) -> Tensor:
    if goal is None:
        return (bounds.lower - bounds.upper).sum()
    missing = (bounds.lower - goal).clamp(max=0)
    return missing.masked_fill(best.lower > goal, 0).sum()


def _detached(bounds: Interval) -> Interval:
    return Interval(bounds.lower.detach(), bounds.upper.detach())
