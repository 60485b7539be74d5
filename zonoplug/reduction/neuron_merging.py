"""Neuron merging: which neurons of a layer give up their correlation, and what takes their place.

Neurons whose output intervals lie in one bucket [y - tolerance, y + tolerance] are merged: deleted, and replaced by
the interval of the values that each can take. What stood for them in the zonotope, inherited generators and symbols of
their own, goes; the interval stays, as their radius in the box. `network_reduction` does the same to the network.

Soundness: for an input x of the set, take the noise values for which the zonotope gives the exact values of all
neurons. A kept neuron's row is unchanged. A merged neuron's value lies in its interval, whatever the kept symbols are,
so some value of its box gives it. So each x is still there, neuron by neuron, and any bound or verdict that holds for
the reduced form holds for the original one; not the other way round.

Source: Ladner & Althoff, Fully Automatic Neural Network Reduction for Formal Verification, arXiv 2305.01932.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.blocks import DenseBlock, DiagonalBlock, GeneratorBlock
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import SettingError

Buckets = Literal["static", "dynamic"]
MAX_BUCKETS = 100
TOLERANCE = 1e-2
SEARCH_STEPS = 20

# Finite limits of an activation for x to -inf and inf: the static buckets.
ASYMPTOTES = {"relu": (0.0,), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


@dataclass(frozen=True, slots=True)
class NeuronMerging:
    """Decides which neurons of a layer are merged.

    Attributes:
        rate: the share of each layer's neurons that may stay, in (0, 1]: the tolerance is the least that a bisection
            finds to merge the others. 1 merges nothing. None to use `tolerance`.
        tolerance: half the width of a bucket, >= 0, in units of the layer's output.
        buckets: where they lie. "static": at the activation's finite limits (relu 0; sigmoid 0, 1; tanh -1, 1), so an
            activation without any merges nothing. "dynamic": at the middles of the neurons' own intervals, of at most
            100 neurons chosen at random.
        seed: of that choice.
        tracked: whether what a neuron that stays has in the box becomes a symbol behind its activation. It joins the
            symbol of the activation's error, or costs one where there is none; the bounds are tighter, as only merged
            neurons forget what they have in common.

    Raises:
        SettingError: a number out of its range, or an unknown kind of buckets.

    A neuron joins the first bucket that holds its interval; a bucket of one neuron merges nothing. A neuron whose
    bounds are infinite or NaN is never merged.
    """

    source: ClassVar[str] = "Ladner & Althoff, Fully Automatic Neural Network Reduction, arXiv 2305.01932"

    rate: float | None = None
    tolerance: float = TOLERANCE
    buckets: Buckets = "dynamic"
    seed: int = 0
    tracked: bool = True

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate <= 1:
            raise SettingError(f"NeuronMerging: rate is {self.rate}, and must be above 0 and at most 1.")
        if not 0 <= self.tolerance < inf:
            raise SettingError(f"NeuronMerging: tolerance is {self.tolerance}, and must be finite and at least 0.")
        if self.buckets not in ("static", "dynamic"):
            raise SettingError(f"NeuronMerging: buckets {self.buckets!r} are unknown. Known: static, dynamic.")

    def merged(self, bounds: Interval, asymptotes: tuple[float, ...] = ()) -> Tensor:
        """Marks of the neurons to merge.

        Args:
            bounds: of the neurons' outputs, (batch, *shape); each element of the batch is a layer of its own.
            asymptotes: the activation's finite limits, for static buckets.
        Returns:
            (batch, *shape) bool.

        Cost: O(batch n buckets) for each of at most 20 steps of a bisection, and usually one.
        """
        lower, upper = bounds.lower.flatten(1), bounds.upper.flatten(1)
        nothing = torch.zeros_like(bounds.lower, dtype=torch.bool)
        if self.rate == 1 or lower.shape[1] < 2:
            return nothing
        centers = self._centers(lower, upper, asymptotes)
        if not centers.shape[1]:
            return nothing
        reach = torch.maximum(upper.unsqueeze(2) - centers.unsqueeze(1), centers.unsqueeze(1) - lower.unsqueeze(2))
        return self.from_reach(reach).reshape(bounds.lower.shape)

    def from_reach(self, reach: Tensor, bucket: Tensor | None = None) -> Tensor:
        """Marks of the neurons to merge, from how wide a bucket has to be to hold each of them.

        Args:
            reach: (batch, n, candidates) largest distance of a neuron's interval from the middle of each of its
                candidate buckets.
            bucket: (n, candidates) the candidates' numbers; by default candidate i is bucket i.
        Returns:
            (batch, n) bool.
        """
        if bucket is None:
            bucket = torch.arange(reach.shape[2], device=reach.device).expand(reach.shape[1], -1)
        if self.rate is None:
            return _in_company(reach, bucket, reach.new_full(reach.shape[:1], self.tolerance))
        return _least_merging(reach, bucket, ceil(self.rate * reach.shape[1] - 1e-9))

    def apply(
        self, zonotope: Zonotope, bounds: Interval, asymptotes: tuple[float, ...] = ()
    ) -> tuple[Zonotope, Tensor]:
        """The zonotope of a layer's outputs with merged neurons as intervals, and the marks of those.

        Args:
            zonotope: encloses the outputs, (batch, *shape).
            bounds: of the outputs, that hold for every point of the input set.
            asymptotes: the activation's finite limits.
        """
        marks = self.merged(bounds, asymptotes)
        return merge_rows(zonotope, bounds, marks), marks

    def _centers(self, lower: Tensor, upper: Tensor, asymptotes: tuple[float, ...]) -> Tensor:
        """Middles of the buckets, (batch, buckets)."""
        if self.buckets == "static":
            return lower.new_tensor(asymptotes).expand(lower.shape[0], -1)
        shuffled = torch.randperm(lower.shape[1], generator=torch.Generator().manual_seed(self.seed))
        chosen = shuffled[:MAX_BUCKETS].to(lower.device)
        return middle_and_radius(Interval(lower[:, chosen], upper[:, chosen]))[0]


def merge_rows(zonotope: Zonotope, bounds: Interval, marks: Tensor) -> Zonotope:
    """Replace the marked coordinates by their intervals, as center and box; symbols left without any reach go.

    Args:
        zonotope, bounds, marks: over (batch, *shape); the bounds are finite where marked.
    """
    if not bool(marks.any()):
        return zonotope
    middle, radius = middle_and_radius(bounds)
    box = torch.zeros_like(zonotope.center) if zonotope.box is None else zonotope.box
    blocks = (_without_rows(block, marks) for block in zonotope.blocks)
    return Zonotope(
        torch.where(marks, middle, zonotope.center),
        tuple(block for block in blocks if block.num_symbols),
        torch.where(marks, radius, box),
    )


def track_box(zonotope: Zonotope, marks: Tensor, source: SymbolSource, node: str) -> Zonotope:
    """Turn the box of coordinates that are not marked (merged) into symbols. The same set of points.

        v e + b u = (|v| + b) e',   e, u, e' in [-1, 1]

    where coordinate i has a symbol e of its own. Call it where `node` computes the zonotope: its own symbols are those
    that are just born there, which no other value knows. Other coordinates get fresh symbols.

    Args:
        zonotope: (batch, *shape), the output of `node`.
        marks: (batch, *shape) coordinates to leave as they are.
    """
    if zonotope.box is None:
        return zonotope
    left = zonotope.box.masked_fill(marks, 0)
    box = zonotope.box.masked_fill(~marks, 0) if bool(marks.any()) else None
    introduced = [origin.first for origin in source.origins[-1:] if origin.node == node]
    blocks = list(zonotope.blocks)
    for place, block in enumerate(blocks):
        if (
            not introduced
            or not isinstance(block, DiagonalBlock)
            or block.norm != inf
            or bool((block.symbols < introduced[0]).any())
        ):
            continue
        owns = block.values != 0  # the rest is padding
        gained = left.flatten(1).gather(1, block.index) * owns
        values = torch.where(owns, rounding.up(block.values.abs() + gained), block.values)
        blocks[place] = replace(block, values=values)
        taken = torch.zeros_like(left).flatten(1).scatter_add(1, block.index, owns.to(left)) > 0
        left = left.masked_fill(taken.reshape(left.shape), 0)
    return replace(zonotope, blocks=tuple(blocks), box=box).with_fresh_symbols(left, source, node)


def middle_and_radius(bounds: Interval) -> tuple[Tensor, Tensor]:
    """Center and radius that cover the bounds in floating point too; the radius is 0 where they are equal."""
    lower, upper = bounds
    middle = lower + (upper - lower) / 2
    radius = torch.maximum(upper - middle, middle - lower)
    outward = torch.nextafter(radius, torch.full_like(radius, inf))
    return middle, torch.where(radius > 0, outward, radius)


def patch_reach(bounds: Interval, size: int) -> tuple[Tensor, Tensor]:
    """For images: each pixel's only candidate is a bucket in the middle of its patch of its channel.

    Args:
        bounds: of the pixels, (batch, ..., height, width).
        size: side of a patch, in pixels.
    Returns:
        `reach` (batch, n, 1) and `bucket` (n, 1) for `NeuronMerging.from_reach`.
    """
    *_, height, width = bounds.lower.shape
    lines, columns = torch.arange(height) // size, torch.arange(width) // size
    number = lines[:, None] * (int(columns[-1]) + 1) + columns
    channels = bounds.lower[0].numel() // (height * width)
    label = (torch.arange(channels)[:, None, None] * (int(number.max()) + 1) + number).flatten()
    label = label.to(bounds.lower.device)
    lower, upper = bounds.lower.flatten(1), bounds.upper.flatten(1)
    middle = middle_and_radius(Interval(lower, upper))[0]
    index = label.expand_as(middle)
    center = middle.new_zeros(middle.shape[0], int(label.max()) + 1).scatter_reduce(
        1, index, middle, "mean", include_self=False
    )
    center = center.gather(1, index)
    return torch.maximum(upper - center, center - lower).unsqueeze(2), label.unsqueeze(1)


def _in_company(reach: Tensor, bucket: Tensor, tolerance: Tensor) -> Tensor:
    """Marks (batch, n) of neurons that share their first bucket with another one; tolerance (batch,)."""
    inside = reach <= tolerance[:, None, None]
    first = inside.to(torch.uint8).argmax(dim=2, keepdim=True)
    member = inside.any(dim=2)
    chosen = bucket.expand(reach.shape[0], -1, -1).gather(2, first).squeeze(2)
    count = torch.zeros(reach.shape[0], int(bucket.max()) + 1, dtype=torch.int64, device=reach.device)
    return member & (count.scatter_add(1, chosen, member.long()).gather(1, chosen) > 1)


def _least_merging(reach: Tensor, bucket: Tensor, may_stay: int) -> Tensor:
    """Marks (batch, n) for about the least tolerance at which at most `may_stay` neurons stay.

    Of the neurons' least reaches, sorted, number n - may_stay is the first tolerance at which enough neurons lie in a
    bucket; it will do unless some are alone there. From it to the largest reach goes a bisection. The number of merged
    neurons need not grow with the tolerance, as a neuron may leave its company for an earlier bucket; so the marks kept
    are always those of a tolerance that will do. Where even the largest leaves too many, because bounds are unknown or
    patches hold one pixel only, its marks are the result.
    """
    finite = reach.isfinite()
    least = torch.where(finite, reach, inf).amin(dim=2).sort(dim=1).values
    high = torch.where(finite, reach, 0).flatten(1).amax(dim=1)
    low = torch.minimum(least[:, max(reach.shape[1] - may_stay, 1) - 1], high)
    best = _in_company(reach, bucket, low)
    first = (~best).sum(dim=1) <= may_stay
    if bool(first.all()):
        return best
    best = torch.where(first[:, None], best, _in_company(reach, bucket, high))
    for _ in range(SEARCH_STEPS):
        done = first | ((~best).sum(dim=1) == may_stay)
        if bool(done.all()):
            break
        tolerance = low + (high - low) / 2
        marks = _in_company(reach, bucket, tolerance)
        enough = (~marks).sum(dim=1) <= may_stay
        best = torch.where((enough & ~done)[:, None], marks, best)
        high, low = torch.where(enough, tolerance, high), torch.where(enough, low, tolerance)
    return best


def _without_rows(block: GeneratorBlock, marks: Tensor) -> GeneratorBlock:
    """The block with generators 0 at the marked coordinates (batch, *shape), without symbols that are 0 everywhere."""
    if isinstance(block, DiagonalBlock):
        values = block.values.masked_fill(marks.flatten(1).gather(1, block.index), 0)
        left = (values != 0).any(dim=0)
        ids = block.symbols[left.to(block.symbols.device)]
        return DiagonalBlock(ids, values[:, left], block.index[:, left], block.coordinates, block.norm)
    generators = block.dense().masked_fill(marks.unsqueeze(1), 0)
    left = (generators != 0).flatten(2).any(dim=2).any(dim=0)
    ids = block.symbols[left.to(block.symbols.device)]
    return DenseBlock(ids, generators[:, left], block.norm)
