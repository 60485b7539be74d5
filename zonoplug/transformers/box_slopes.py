"""Slopes of a ReLU where much of the uncertainty sits in the box."""

from __future__ import annotations

from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.relaxations import relu

NAMED_SHARE = 0.5
SMALLEST_SHARE = 0.01


def flat_beside_box(zonotope: Zonotope, bounds: Interval) -> Tensor | None:
    """Slope 0 where a ReLU's chord would widen more than it keeps, the chord's elsewhere: (batch, *shape).

    The chord keeps the dependence on named symbols, and pays for it: it leaves the radius  u / 2 + r  where the plain
    interval [0, u] has  u / 2.  A box has no dependence to keep. With named radius G and box b, of which half of G is
    taken to cancel later on, the slope is 0 where

        b + G / 2  >  u / 2

    in values with a box that is not 0: where something was boxed, the same awaits what is named now. While rounding is
    covered every value has a box, so there it must make up a hundredth of all radii to count. Any slope is sound.

    Args:
        zonotope, bounds: of the ReLU's input.
    Returns:
        None if no slope changes.
    """
    if zonotope.box is None:
        return None
    lower, upper = bounds
    box = zonotope.box
    radius = zonotope.radius()
    flat = (lower < 0) & (upper > 0)
    least = SMALLEST_SHARE * radius.flatten(1).sum(dim=1) if rounding.active() else 0.0
    counts = box.flatten(1).sum(dim=1) > least
    flat &= counts.reshape(-1, *[1] * len(zonotope.shape))
    flat &= box + NAMED_SHARE * (radius - box) > upper / 2
    if not bool(flat.any()):
        return None
    return relu(lower, upper).slope.masked_fill(flat, 0)
