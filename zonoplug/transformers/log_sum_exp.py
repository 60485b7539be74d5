"""Log-sum-exp, around a weighted mean from which deviations are taken, so that shared symbols cancel."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch

from zonoplug.domain import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope, add_zonotopes
from zonoplug.relaxations import exp
from zonoplug.relaxations import log as logarithm
from zonoplug.transformers.axes import along_axes
from zonoplug.transformers.elementwise import covering
from zonoplug.transformers.enclosure import Enclosure, enclose
from zonoplug.transformers.matrix_product import BatchProduct
from zonoplug.transformers.product_ranges import meet


def log_sum_exp(
    zonotope: Zonotope,
    axes: Sequence[int],
    keepdims: bool,
    source: SymbolSource,
    node: str,
    bounds: Interval | None = None,
) -> Enclosure:
    """Enclose  log sum_j exp(x_j) = w x + log sum_j exp(x_j - w x)  along `axes`, for w = softmax of the center.

    The exponentials and the logarithm are relaxed one by one; their errors become one fresh symbol for each output.
    Bounds: the image of those of x, as the function grows with each x_j; and  w x - sum_j w_j log w_j  from below.

    Args:
        axes: counted with the batch axis, which is not among them.
        keepdims: whether the axes stay, with length 1.
        source, node: where the fresh symbols get their ids, and their origin.
        bounds: bounds of x that hold for all points of interest.
    Cost: O(batch k rows n^2) for n entries in a sum.
    """

    def along_last(moved: Zonotope, outer: Interval | None) -> Enclosure:
        own = moved.interval_hull()
        return _along_last(moved, own if outer is None else meet(own, outer), source, node)

    return along_axes(along_last, zonotope, axes, keepdims, bounds)


def _along_last(zonotope: Zonotope, hull: Interval, source: SymbolSource, node: str) -> Enclosure:
    """`log_sum_exp` along the last axis, which goes."""
    rest, n = zonotope.shape[:-1], zonotope.shape[-1]
    weights = zonotope.center.detach().softmax(-1)
    column = zonotope.reshape((*rest, n, 1))
    mean = column.map(BatchProduct(weights.unsqueeze(-2), constant_first=True)).reshape(rest)
    matrix = torch.eye(n, dtype=weights.dtype, device=weights.device) - weights.unsqueeze(-2)
    apart = column.map(BatchProduct(matrix, constant_first=True)).reshape(zonotope.shape)
    others = [(weights * side).sum(-1, keepdim=True) - weights * side for side in reversed(hull)]
    ends = Interval(*(side * (1 - weights) - other for side, other in zip(hull, others, strict=True)))
    deviations = meet(apart.interval_hull(), ends)
    usable = (deviations.upper <= log(torch.finfo(weights.dtype).max) / 2).all(-1)
    fine = usable.unsqueeze(-1)
    parts = covering(exp, Interval(*(torch.where(fine, side, 0) for side in deviations)))
    slope, offset, radius = (torch.where(fine, part, 0) for part in parts)
    linear = apart.reshape((*rest, n, 1)).map(BatchProduct(slope.unsqueeze(-2), constant_first=True)).reshape(rest)
    linear, error = linear.shift(offset.sum(-1)), radius.sum(-1)
    least = (weights * torch.where(weights > 0, -weights.log(), 0)).sum(-1).exp() * (1 - 1e-5)
    sums = linear.widen(error).interval_hull()
    low = torch.maximum(torch.maximum(sums.lower, deviations.lower.exp().sum(-1)), least)
    high = torch.minimum(sums.upper, deviations.upper.exp().sum(-1))
    total = Interval(*(torch.where(usable, side, 1.0) for side in (low, torch.maximum(low, high))))
    slope, offset, radius = covering(logarithm, total)
    image = add_zonotopes(mean, linear.scale(slope, offset))
    radius = torch.where(usable, radius + slope.abs() * error, torch.inf)
    largest = torch.maximum(hull.upper.abs(), hull.lower.abs()).amax(-1)
    outer = Interval(*(side.logsumexp(-1) for side in hull))
    terms = 4 * n + 64
    magnitude = largest + (1 + deviations.upper.abs().amax(-1) if rounding.active() else 0)
    return enclose(image, Interval(-radius, radius), outer, source, node, terms, magnitude)
