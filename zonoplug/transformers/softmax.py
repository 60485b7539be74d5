"""Softmax and log-softmax through differences, in which shared symbols cancel."""

from __future__ import annotations

from math import inf, log

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.blocks import DiagonalBlock, dual_norm
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.relaxations import Relaxation, exp, reciprocal
from zonoplug.transformers.affine import add, negate, rearrange
from zonoplug.transformers.elementwise import covering
from zonoplug.transformers.enclosure import Enclosure, enclose
from zonoplug.transformers.log_sum_exp import log_sum_exp
from zonoplug.transformers.matrix_product import CHUNK_BYTES, BatchProduct
from zonoplug.transformers.product_ranges import meet

LIMIT_BYTES = 2**28
INNER_BYTES = 2**25


def softmax(
    zonotope: Zonotope,
    axis: int,
    source: SymbolSource,
    node: str,
    bounds: Interval | None = None,
    limit_bytes: int = LIMIT_BYTES,
    sum_to_one: bool = False,
    inner: dict[str, Interval] | None = None,
) -> Enclosure:
    """Enclose  exp(x_i) / sum_j exp(x_j) = 1 / sum_j exp(x_j - x_i)  along one axis of length n.

    The exponentials of the differences are relaxed one by one; their errors and that of the reciprocal become one fresh
    symbol for each output. The bounds are  1 / sum_j exp(bounds of x_j - x_i), inside [0, 1].

    Args:
        zonotope: any shape; its rows are along `axis` (counted with the batch axis; never 0).
        source, node: where the fresh symbols get their ids, and their origin.
        bounds: bounds of x that hold for all points of interest.
        limit_bytes: memory for temporary values, beyond some numbers for each pair in a row; more is done in chunks.
        sum_to_one: whether to use that the outputs of a row sum to one, by `with_sum_one`; not while rounding is
            covered, as rounded ones do not.
        inner: takes, as "differences", bounds of x_j - x_i, (batch, *rows, n, n) i before j, unless they are large.
    Cost: O(batch k rows n^2) time.
    Source: Bonaert, Dimitrov, Baader, Vechev, PLDI 2021, section 5.2.
    """
    moved = _last(zonotope, axis)
    differences = _differences(moved, _last_axis(bounds, axis), limit_bytes)
    if inner is not None and differences.lower.numel() * differences.lower.element_size() <= INNER_BYTES:
        inner["differences"] = differences
    linear, error, total, usable = _sum_of_exponentials(moved, differences)
    outer = Interval(1 / total.upper, 1 / total.lower)
    magnitude = outer.upper * _farthest(differences)
    result = _compose(covering(reciprocal, total), linear, error, usable, outer, magnitude, axis, source, node)
    return with_sum_one(result, axis) if sum_to_one and not rounding.active() else result


def with_sum_one(enclosure: Enclosure, axis: int) -> Enclosure:
    """The enclosure of values that sum to one along an axis, narrowed by that.

        y_i = y_i + t_i (1 - sum_j y_j)  for any t_i,  as the values that stand for a point do sum to one.

    The t are the best in the sense of least squares over the generators. They add up to one, so every point of the
    result sums to one: sums of outputs are tighter, while a single output may be wider; the bounds stay.

    Source: the constraint is that of Bonaert, Dimitrov, Baader, Vechev, PLDI 2021; there it is solved for a symbol.
    """
    zonotope = _last(enclosure.zonotope, axis)
    generators = zonotope.generators()
    total = generators.sum(-1, keepdim=True)
    share = (generators * total).sum(1) / (total * total).sum(1).clamp(min=torch.finfo(total.dtype).tiny)
    n = zonotope.shape[-1]
    matrix = torch.eye(n, dtype=share.dtype, device=share.device) - share.unsqueeze(-1)
    column = zonotope.reshape((*zonotope.shape, 1)).map(BatchProduct(matrix, constant_first=True))
    narrowed = column.reshape(zonotope.shape).shift(share)

    def back(x: Tensor) -> Tensor:
        return x.movedim(-1, axis)

    return Enclosure(rearrange(narrowed, back, moves_only=True), enclosure.bounds)


def log_softmax(
    zonotope: Zonotope,
    axis: int,
    source: SymbolSource,
    node: str,
    bounds: Interval | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Enclosure:
    """Enclose  x_i - log sum_j exp(x_j) = -log sum_j exp(x_j - x_i)  along one axis.

    The zonotope is that of the first form, with one fresh symbol for each row; the bounds are also those that the
    differences give. Arguments and cost as those of `softmax`.
    """
    moved, outer = _last(zonotope, axis), _last_axis(bounds, axis)
    differences = _differences(moved, outer, limit_bytes)
    total, _ = log_sum_exp(moved, [-1], True, source, node, outer)
    image = add(moved, negate(total))
    largest = _farthest(differences) + differences.upper.abs().amax(-1)
    slack = 16 * torch.finfo(largest.dtype).eps * largest * (image.shape[-1] if rounding.active() else 1)
    limits = Interval(*(-side.logsumexp(-1) for side in reversed(differences)))
    sums = _sum_of_exponentials(moved, differences)[2]
    at_most = torch.finfo(largest.dtype).max  # an exponential that overflows is a lower bound no more
    limits = meet(limits, Interval(-sums.upper.log(), -sums.lower.clamp(max=at_most).log()))
    result = meet(image.interval_hull(), Interval(limits.lower - slack, limits.upper + slack))

    def back(x: Tensor) -> Tensor:
        return x.movedim(-1, axis)

    return Enclosure(rearrange(image, back, moves_only=True), Interval(*map(back, result)))


def _compose(
    relaxation: Relaxation,
    linear: Zonotope,
    error: Tensor,
    usable: Tensor,
    outer: Interval,
    magnitude: Tensor,
    axis: int,
    source: SymbolSource,
    node: str,
) -> Enclosure:
    """f(linear +/- error) for a relaxation of f, with `axis` back in its place."""
    slope, offset, radius = (torch.where(usable, part, 0) for part in relaxation)
    radius = torch.where(usable, radius + slope.abs() * error, torch.inf)
    image = linear.scale(slope, offset)
    terms = 4 * linear.shape[-1] + 64
    result = enclose(image, Interval(-radius, radius), outer, source, node, terms, magnitude)

    def back(x: Tensor) -> Tensor:
        return x.movedim(-1, axis)

    return Enclosure(rearrange(result.zonotope, back, moves_only=True), Interval(*map(back, result.bounds)))


def _last(zonotope: Zonotope, axis: int) -> Zonotope:
    """The zonotope with `axis` moved to the end."""
    if axis % zonotope.center.dim() == zonotope.center.dim() - 1:
        return zonotope
    return rearrange(zonotope, lambda x: x.movedim(axis, -1), moves_only=True)


def _last_axis(bounds: Interval | None, axis: int) -> Interval | None:
    return None if bounds is None else Interval(*(side.movedim(axis, -1) for side in bounds))


def _farthest(differences: Interval) -> Tensor:
    """1 + the largest |x_j - x_i| over j while rounding is covered, else 0: how much exponentials magnify rounding."""
    far = torch.maximum(differences.upper, -differences.lower).amax(-1)
    return 1 + far if rounding.active() else torch.zeros_like(far)


def _sum_of_exponentials(zonotope: Zonotope, differences: Interval) -> tuple[Zonotope, Tensor, Interval, Tensor]:
    """Enclose  s_i = sum_j exp(x_j - x_i)  along the last axis, given bounds of the differences.

    Returns:
        An affine part and the radius of its error; bounds of s, at least 1; and where the affine part is of use: not
        where an exponential could be too large for the type.
    """
    n, (lower, upper) = zonotope.shape[-1], differences
    # the result depends on differences only: keep the numbers small that cancel
    zonotope = zonotope.shift(-zonotope.center.amax(-1, keepdim=True).detach())
    largest = log(torch.finfo(lower.dtype).max) / 2
    usable = (upper <= largest).all(-1)
    fine = usable.unsqueeze(-1) & ~torch.eye(n, dtype=torch.bool, device=lower.device)
    parts = covering(exp, Interval(*(torch.where(fine, side, 0) for side in (lower, upper))))
    slope, offset, radius = (torch.where(fine, part, 0) for part in parts)
    matrix = slope - torch.diag_embed(slope.sum(-1))
    column = zonotope.reshape((*zonotope.shape, 1))
    linear = column.map(BatchProduct(matrix, constant_first=True)).reshape(zonotope.shape)
    linear, error = linear.shift(offset.sum(-1) + 1), radius.sum(-1)
    hull, outer = linear.widen(error).interval_hull(), Interval(lower.exp().sum(-1), upper.exp().sum(-1))
    low = torch.where(usable, torch.maximum(hull.lower, outer.lower), outer.lower)
    high = torch.where(usable, torch.minimum(hull.upper, outer.upper), outer.upper)
    return linear, error, Interval(low, torch.maximum(low, high)), usable


def _differences(zonotope: Zonotope, bounds: Interval | None, limit_bytes: int) -> Interval:
    """Bounds of x_j - x_i for each pair of the last axis, (batch, *rows, n, n) with i before j."""
    own = torch.zeros_like(zonotope.center) if zonotope.box is None else zonotope.box
    spread = torch.zeros_like(own.unsqueeze(-1) - own.unsqueeze(-2))
    step = max(1, min(limit_bytes, CHUNK_BYTES) // max(3 * spread.numel() * spread.element_size(), 1))
    for block in zonotope.blocks:
        if isinstance(block, DiagonalBlock) and block.norm == inf:
            own = own + block.radius()
            continue
        generators = block.dense()
        if block.norm != inf:
            columns = generators.unbind(-1)
            rows = [dual_norm(generators - column.unsqueeze(-1), block.norm) for column in columns]
            spread = spread + torch.stack(rows, dim=-2)
            continue
        for start in range(0, generators.shape[1], step):
            part = generators[:, start : start + step]
            spread = spread + (part.unsqueeze(-2) - part.unsqueeze(-1)).abs().sum(1)
    different = 1 - torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
    spread = spread + (own.unsqueeze(-2) + own.unsqueeze(-1)) * different
    middle = zonotope.center.unsqueeze(-2) - zonotope.center.unsqueeze(-1)
    if rounding.active():
        size = zonotope.center.abs() + zonotope.radius()
        error = rounding.affine_error(size.unsqueeze(-2) + size.unsqueeze(-1), None, 2, zonotope.num_symbols)
        spread = (spread + error * different) * (1 + rounding.gamma(zonotope.num_symbols + 4, spread.dtype))
    if bounds is None:
        return Interval(middle - spread, middle + spread)
    low = (bounds.lower.unsqueeze(-2) - bounds.upper.unsqueeze(-1)) * different
    high = (bounds.upper.unsqueeze(-2) - bounds.lower.unsqueeze(-1)) * different
    return Interval(torch.maximum(middle - spread, low), torch.minimum(middle + spread, high))
