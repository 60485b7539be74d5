"""Maximum and minimum of several zonotopes or coordinates: max-pooling, reductions over axes, elementwise maxima.

For any weights w_j >= 0 with sum 1,

    0 <= max_j x_j - sum_j w_j x_j <= max_j u_j,   u_j the upper bound of x_j - sum_i w_i x_i,

where shared symbols cancel in u_j. One weight of 1 gives "the winner plus a residual", exact where the winner is
certain; two weights give  b + relu(a - b)  with the ReLU's parallelogram of smallest area.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod

import torch
from torch import Tensor

from zonoplug.domain.blocks import DenseBlock, DiagonalBlock, GeneratorBlock, dual_norm, join_dense
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.relaxations import relu
from zonoplug.transformers.affine import Operand, add, expand, negate
from zonoplug.transformers.axes import along_axes
from zonoplug.transformers.elementwise import covering
from zonoplug.transformers.enclosure import Enclosure, enclose

LIMIT_BYTES = 2**28
STEPS = 3


def windows(
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    ceil_mode: bool = False,
) -> tuple[Tensor, tuple[int, ...]]:
    """The coordinates that each window of a pooling covers.

    Args:
        shape, kernel, stride, dilation: one number for each pooled axis.
        padding: before and after, for each pooled axis.
        ceil_mode: whether a last window may reach beyond the end, as long as it begins inside or in front.
    Returns:
        (outputs, window) int64 flat coordinates of `shape`, -1 in the padding; and the shape of the outputs.
    """
    axes = []
    for size, width, step, (before, after), spread in zip(shape, kernel, stride, padding, dilation, strict=True):
        room = size + before + after - spread * (width - 1) - 1
        count = (-(-room // step) if ceil_mode else room // step) + 1
        if ceil_mode and (count - 1) * step >= size + before:
            count -= 1
        place = torch.arange(count)[:, None] * step - before + torch.arange(width) * spread
        axes.append(torch.where((place >= 0) & (place < size), place, -1))
    flat = torch.zeros(1, 1, dtype=torch.int64)
    for place, size in zip(axes, shape, strict=True):
        joined = flat[:, None, :, None] * size + place[None, :, None, :]
        outside = (flat < 0)[:, None, :, None] | (place < 0)[None, :, None, :]
        flat = torch.where(outside, -1, joined).reshape(flat.shape[0] * place.shape[0], -1)
    return flat, tuple(place.shape[0] for place in axes)


def max_over_windows(
    zonotope: Zonotope,
    index: Tensor,
    source: SymbolSource,
    node: str,
    bounds: Interval | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Enclosure:
    """Enclose the largest of each window of coordinates of the last axis: (batch, *axes, n) -> (batch, *axes, outputs).

    The weights start at the largest center and move `STEPS` times towards the coordinate that may exceed the weighted
    sum most, as far as makes the two of them balance. Windows whose winner the bounds tell are copied.

    Args:
        index: (outputs, window) coordinates, -1 for none; each window has at least one.
        bounds: bounds of x that hold for all points of interest.
        limit_bytes: memory for temporary values, beyond that of the result; more is done in chunks of symbols.
    Cost: O(batch k axes outputs window).
    """
    *axes, n = zonotope.shape
    shape, rows = (*axes, index.shape[0]), prod(axes)
    own = zonotope.interval_hull()
    lower, upper = (side.flatten(1) for side in (own if bounds is None else bounds))
    starts = n * torch.arange(rows)[:, None, None]
    flat = torch.where(index >= 0, index + starts, -1).flatten(0, 1).to(lower.device)
    pool = _Windows(zonotope.reshape((rows * n,)), flat, limit_bytes)
    first = pool.of(zonotope.center.flatten(1), torch.finfo(lower.dtype).min).argmax(-1, keepdim=True)
    low, high = pool.of(lower, -torch.inf), pool.of(upper, -torch.inf)
    certain = high.scatter(-1, first, -torch.inf).amax(-1) <= low.gather(-1, first)[..., 0]
    weights = torch.zeros_like(low).scatter(-1, first, 1.0)
    residual = torch.zeros_like(low[..., 0])
    unclear = (~certain).any(0).nonzero()[:, 0]
    if unclear.numel():
        weights[:, unclear], residual[:, unclear] = pool.balance(weights[:, unclear], unclear)
    magnitude = pool.of(torch.maximum(own.upper, -own.lower).flatten(1), 0.0).amax(-1)
    linear = pool.weighted(weights).reshape(shape)
    remainder, outer = Interval(torch.zeros_like(residual), residual), Interval(low.amax(-1), high.amax(-1))
    remainder, outer = (Interval(*(side.reshape(-1, *shape) for side in part)) for part in (remainder, outer))
    terms = index.shape[1] + zonotope.num_symbols
    return enclose(linear, remainder, outer, source, node, terms, magnitude.reshape(-1, *shape))


def max_over_axes(
    zonotope: Zonotope,
    axes: Sequence[int],
    keepdims: bool,
    source: SymbolSource,
    node: str,
    bounds: Interval | None = None,
) -> Enclosure:
    """Enclose the largest coordinate along `axes` (counted with the batch axis; never 0).

    Args:
        keepdims: whether the axes stay, with length 1.
        bounds: bounds of x that hold for all points of interest.
    Cost: O(batch k n).
    """

    def along_last(moved: Zonotope, outer: Interval | None) -> Enclosure:
        return max_over_windows(moved, torch.arange(moved.shape[-1])[None], source, node, outer)

    return along_axes(along_last, zonotope, axes, keepdims, bounds)


def min_over_axes(
    zonotope: Zonotope,
    axes: Sequence[int],
    keepdims: bool,
    source: SymbolSource,
    node: str,
    bounds: Interval | None = None,
) -> Enclosure:
    """Enclose the smallest coordinate along `axes`, as `max_over_axes` does the largest."""
    return _negative(max_over_axes(_opposite(zonotope), axes, keepdims, source, node, bounds and _reflected(bounds)))


def maximum(
    left: Operand,
    right: Operand,
    source: SymbolSource,
    node: str,
    bounds: tuple[Interval | None, Interval | None] = (None, None),
) -> Enclosure:
    """Enclose max(x, y) = x + relu(y - x), coordinate by coordinate; shared symbols cancel in the difference.

    Args:
        left, right: at least one zonotope, and shapes that broadcast as in torch.
        bounds: bounds of x and of y that hold for all points of interest.
    Cost: O(batch k n).
    """
    if isinstance(left, Tensor):
        left, right, bounds = right, left, (bounds[1], bounds[0])
    assert isinstance(left, Zonotope)
    difference = add(right, _opposite(left))
    hulls = [_hull(operand, given) for operand, given in zip((left, right), bounds, strict=True)]
    own = difference.interval_hull()
    low = torch.maximum(own.lower, hulls[1].lower - hulls[0].upper)
    high = torch.minimum(own.upper, hulls[1].upper - hulls[0].lower)
    slope, offset, radius = covering(relu, Interval(low, high))
    linear = add(expand(left, difference.shape), difference.scale(slope))
    outer = Interval(*(torch.maximum(a, b) for a, b in zip(*hulls, strict=True)))
    magnitude = sum((torch.maximum(h.upper, -h.lower) for h in hulls), torch.zeros_like(low))
    return enclose(linear, Interval(offset - radius, offset + radius), outer, source, node, 8, magnitude)


def minimum(
    left: Operand,
    right: Operand,
    source: SymbolSource,
    node: str,
    bounds: tuple[Interval | None, Interval | None] = (None, None),
) -> Enclosure:
    """Enclose min(x, y) = -max(-x, -y), coordinate by coordinate, as `maximum` does."""
    reflected = (bounds[0] and _reflected(bounds[0]), bounds[1] and _reflected(bounds[1]))
    return _negative(maximum(negate(left), negate(right), source, node, reflected))


def _hull(operand: Operand, bounds: Interval | None) -> Interval:
    if isinstance(operand, Tensor):
        return Interval(operand, operand)
    return operand.interval_hull() if bounds is None else bounds


def _opposite(zonotope: Zonotope) -> Zonotope:
    result = negate(zonotope)
    assert isinstance(result, Zonotope)
    return result


def _reflected(bounds: Interval) -> Interval:
    return Interval(-bounds.upper, -bounds.lower)


def _negative(enclosure: Enclosure) -> Enclosure:
    return Enclosure(_opposite(enclosure.zonotope), _reflected(enclosure.bounds))


class _Windows:
    """A zonotope (batch, n) seen through windows (outputs, window) of its coordinates; -1 for none."""

    def __init__(self, zonotope: Zonotope, index: Tensor, limit_bytes: int) -> None:
        self.zonotope, self.place, self.inside = zonotope, index.clamp(min=0), index >= 0
        self.dense = [block for block in zonotope.blocks if not isinstance(block, DiagonalBlock)]
        self.diagonal = [block for block in zonotope.blocks if isinstance(block, DiagonalBlock)]
        box = torch.zeros_like(zonotope.center) if zonotope.box is None else zonotope.box
        self.own = sum((block.radius() for block in self.diagonal), box)
        size = 4 * zonotope.batch * index.numel() * box.element_size()
        self.step = max(1, limit_bytes // max(size, 1))

    def of(self, values: Tensor, otherwise: float) -> Tensor:
        """Values (batch, n) as (batch, outputs, window), `otherwise` where there is no coordinate."""
        return torch.where(self.inside, values[:, self.place], otherwise)

    def balance(self, weights: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Better weights for some of the outputs, (batch, m, window), and how far the maximum may exceed the sum."""
        best = self.excess(weights, outputs)
        for _ in range(STEPS):
            residual = best.upper.amax(-1)
            if not bool((residual > 0).any()):
                break
            most = best.upper.argmax(-1, keepdim=True)
            low, high = (side.gather(-1, most) for side in best)
            share = torch.where(low >= 0, torch.ones_like(low), high / (high - low))
            share = torch.where(high > 0, share, torch.zeros_like(share))
            moved = (weights * (1 - share)).scatter_add(-1, most, share)
            excess = self.excess(moved, outputs)
            better = (excess.upper.amax(-1) < residual).unsqueeze(-1)
            weights = torch.where(better, moved, weights)
            best = Interval(*(torch.where(better, new, old) for new, old in zip(excess, best, strict=True)))
        return weights, best.upper.amax(-1).clamp(min=0)

    def excess(self, weights: Tensor, outputs: Tensor) -> Interval:
        """Bounds of x_j - sum_i w_i x_i for each j of the windows of some outputs; -inf where there is no coordinate.

        Symbols of one coordinate, and its box, enter with |[i = j] - w_i|.
        """
        place, inside = self.place[outputs], self.inside[outputs]
        own, center = self.own[:, place], self.zonotope.center[:, place]
        center = center - (center * weights).sum(-1, keepdim=True)
        radius = (weights * own).sum(-1, keepdim=True) + (1 - 2 * weights) * own
        for block in self.dense:
            if block.norm != inf:
                part = block.dense()[..., place]
                radius = radius + dual_norm(part - (part * weights.unsqueeze(1)).sum(-1, keepdim=True), block.norm)
                continue
            for generators in block.dense().split(self.step, dim=1):
                part = generators[..., place]
                radius = radius + (part - (part * weights.unsqueeze(1)).sum(-1, keepdim=True)).abs().sum(1)
        return Interval(*(torch.where(inside, side, -torch.inf) for side in (center - radius, center + radius)))

    def weighted(self, weights: Tensor) -> Zonotope:
        """sum_j w_j x_j for each window. Diagonal blocks stay so where no two windows overlap."""
        covered = self.place[self.inside]
        disjoint = covered.unique().numel() == covered.numel()
        blocks: list[GeneratorBlock] = []
        images: list[DenseBlock] = []
        for block in self.diagonal:
            kept = self._without_losers(block, weights)
            if disjoint and block.norm == inf:
                blocks.append(self._moved(kept, weights))
            else:
                images.append(self._image(DenseBlock(kept.symbols, kept.dense(), block.norm), weights))
        images.extend(self._image(block, weights) for block in self.dense)
        center = (self.zonotope.center[:, self.place] * weights).sum(-1)
        box = None if self.zonotope.box is None else (self.zonotope.box[:, self.place] * weights).sum(-1)
        mixed = [image for image in images if image.norm == inf]
        blocks.extend(image for image in images if image.norm != inf)
        return Zonotope(center, ((join_dense(mixed),) if mixed else ()) + tuple(blocks), box)

    def _image(self, block: GeneratorBlock, weights: Tensor) -> DenseBlock:
        parts = block.dense().split(self.step, dim=1)
        images = [(part[..., self.place] * weights.unsqueeze(1)).sum(-1) for part in parts]
        return DenseBlock(block.symbols, torch.cat(images, dim=1), block.norm)

    def _without_losers(self, block: DiagonalBlock, weights: Tensor) -> DiagonalBlock:
        """The symbols of a block whose coordinate has weight somewhere."""
        flat = self.place.flatten().expand(weights.shape[0], -1)
        total = torch.zeros_like(self.zonotope.center).scatter_add(1, flat, (weights * self.inside).flatten(1))
        used = (total.gather(1, block.index) != 0).any(dim=0)
        return DiagonalBlock(
            block.symbols[used.cpu()], block.values[:, used], block.index[:, used], block.coordinates, block.norm
        )  # fmt: skip

    def _moved(self, block: DiagonalBlock, weights: Tensor) -> DiagonalBlock:
        """The image of a diagonal block under disjoint windows."""
        covered, n = self.place[self.inside], self.zonotope.center.shape[1]
        outputs = torch.arange(self.place.shape[0], device=covered.device)
        target = torch.zeros(n, dtype=torch.int64, device=covered.device)
        target[covered] = outputs[:, None].expand_as(self.place)[self.inside]
        factor = weights.new_zeros(weights.shape[0], n)
        factor[:, covered] = weights[:, self.inside]
        values = block.values * factor.gather(1, block.index)
        return DiagonalBlock(block.symbols, values, target[block.index], (self.place.shape[0],))
