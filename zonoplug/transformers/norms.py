"""Norms along axes; layer, group, instance and RMS normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod, sqrt

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope, add_zonotopes
from zonoplug.relaxations import absolute, square
from zonoplug.relaxations import sqrt as square_root
from zonoplug.transformers.affine import negate, rearrange
from zonoplug.transformers.bilinear import Form, divide
from zonoplug.transformers.elementwise import relax
from zonoplug.transformers.enclosure import Enclosure
from zonoplug.transformers.product_ranges import meet, squares


def normalize(
    deviation: Zonotope,
    axes: Sequence[int],
    epsilon: float,
    centered: bool,
    source: SymbolSource,
    node: str,
    form: Form | None = None,
    bounds: Interval | None = None,
) -> Enclosure:
    """Enclose  d / sqrt(mean of d^2 over the axes + epsilon).

    The square, the root and the quotient are relaxed one by one. No entry exceeds sqrt(n) for n entries in a mean, as
    one term of a sum of squares does not exceed the sum; nor sqrt(n - 1) where the d add up to 0, since then
    d_i^2 <= (n - 1) times the sum of the other squares. Deviations that a network computes do so up to rounding only.
    A coordinate whose zonotope is wider than that becomes a box.

    Args:
        deviation: d; x less its mean for layer normalisation, x for RMS normalisation.
        axes: counted with the batch axis, which is not among them.
        epsilon: > 0.
        centered: whether d adds up to 0 over the axes.
        source, node: where the fresh symbols get their ids, and their origin.
        form: how the quotient is bounded, as in `bilinear.product`.
        bounds: bounds of d that hold for all points of interest.
    Cost: that of a quotient.
    """
    axes = tuple(axes)
    hull = deviation.interval_hull() if bounds is None else bounds

    def mean(x: Tensor) -> Tensor:
        return x.mean(axes, keepdim=True)

    powers = relax(deviation, square, hull, source, node)
    variance = rearrange(powers, mean).shift(torch.full_like(mean(powers.center[:1]), epsilon))
    own, outer = variance.interval_hull(), Interval(*(mean(side) + epsilon for side in squares(hull)))
    least = epsilon * (1 - 4 * torch.finfo(own.lower.dtype).eps)
    slack = 64 * torch.finfo(own.lower.dtype).eps * outer.upper
    limits = meet(own, Interval(outer.lower - slack, outer.upper + slack))
    limits = Interval(limits.lower.clamp(min=least), limits.upper.clamp(min=least))
    root = relax(variance, square_root, limits, source, node)
    roots = Interval(*(side.sqrt() for side in limits))
    margin = 4 * torch.finfo(own.lower.dtype).eps
    roots = Interval(roots.lower * (1 - margin), roots.upper * (1 + margin))
    result, quotients = divide(deviation, root, source, node, form, (hull, roots))
    count = prod(deviation.center.shape[axis] for axis in axes)
    balanced = centered and not rounding.covers_inference()
    cap = torch.full_like(result.center, sqrt(count - 1 if balanced else count) * (1 + margin))
    wide = ~(result.radius() < cap)
    if bool(wide.any()):
        kept = result.scale((~wide).to(cap.dtype))
        result = kept.with_fresh_symbols(torch.where(wide, cap, torch.zeros_like(cap)), source, node)
    return Enclosure(result, meet(quotients, Interval(-cap, cap)))


def sum_of_absolute_values(
    zonotope: Zonotope,
    axes: Sequence[int],
    keepdims: bool,
    source: SymbolSource,
    node: str,
    bounds: Interval | None = None,
) -> Enclosure:
    """Enclose  sum |x_i|  over the axes (counted with the batch axis, which is not among them)."""
    hull = zonotope.interval_hull() if bounds is None else bounds
    sizes = relax(zonotope, absolute, hull, source, node)
    total = partial(torch.sum, dim=tuple(axes), keepdim=keepdims)
    result = rearrange(sizes, total)
    near = total(torch.maximum(hull.lower, -hull.upper).clamp(min=0))
    far = total(torch.maximum(hull.upper, -hull.lower))
    slack = _slack(far, hull.lower.shape, axes)
    return Enclosure(result, meet(result.interval_hull(), Interval(near - slack, far + slack)))


def euclidean_length(
    zonotope: Zonotope,
    axes: Sequence[int],
    keepdims: bool,
    source: SymbolSource,
    node: str,
    bounds: Interval | None = None,
) -> Enclosure:
    """Enclose  sqrt(sum x_i^2)  over the axes (counted with the batch axis, which is not among them)."""
    hull = zonotope.interval_hull() if bounds is None else bounds
    total = partial(torch.sum, dim=tuple(axes), keepdim=keepdims)
    sums = rearrange(relax(zonotope, square, hull, source, node), total)
    own, outer = sums.interval_hull(), Interval(*(total(side) for side in squares(hull)))
    slack = _slack(outer.upper, hull.lower.shape, axes)
    limits = meet(own, Interval((outer.lower - slack).clamp(min=0), outer.upper + slack))
    limits = Interval(limits.lower.clamp(min=0), limits.upper.clamp(min=0))
    result, margin = relax(sums, square_root, limits, source, node), 4 * torch.finfo(slack.dtype).eps
    lengths = Interval(limits.lower.sqrt() * (1 - margin), limits.upper.sqrt() * (1 + margin))
    return Enclosure(result, meet(result.interval_hull(), lengths))


def _slack(largest: Tensor, shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    """What rounding may cost in a sum over the axes whose terms add up to `largest`."""
    return 4 * prod(shape[axis] for axis in axes) * torch.finfo(largest.dtype).eps * largest


def center(zonotope: Zonotope, axes: Sequence[int]) -> Zonotope:
    """x less its mean over the axes, exactly."""
    mean = rearrange(zonotope, lambda x: x.mean(tuple(axes), keepdim=True).expand_as(x))
    opposite = negate(mean)
    assert isinstance(opposite, Zonotope)
    return add_zonotopes(zonotope, opposite)
