"""Zonotopes given outright as sets of inputs: any center, any generators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.input_sets import InputSet
from zonoplug.domain.rounding import gamma
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import SettingError


@dataclass(frozen=True, slots=True, eq=False)
class AffineImage(InputSet):
    """All points  center + sum_j g_j e_j + noise * v + box * w,  every e_j and coordinate of v and w in [-1, 1].

    Attributes:
        center: (batch, *shape).
        generators: g_j, (batch, k, *shape): k directions in which the point moves. One symbol each.
        box: >= 0, (batch, *shape), or None: a radius without symbols, for what is too small to be worth them; it is
            carried by interval arithmetic.
        noise: >= 0, (batch, *shape), or None: coordinates that move on their own. One symbol each.
    Raises:
        SettingError: shapes do not fit, something is not finite, or a radius is negative.
    """

    center: Tensor
    generators: Tensor
    box: Tensor | None = None
    noise: Tensor | None = None

    def __post_init__(self) -> None:
        batch, *shape = self.center.shape
        if self.generators.shape != (batch, *self.generators.shape[1:2], *shape):
            raise SettingError(
                f"AffineImage: the center has shape {(batch, *shape)}, so generators need (batch, k, *shape) ="
                f" {(batch, 'k', *shape)}; got {tuple(self.generators.shape)}."
            )
        for name, radius in (("box", self.box), ("noise", self.noise)):
            if radius is not None and radius.shape != self.center.shape:
                raise SettingError(
                    f"AffineImage: {name} has shape {tuple(radius.shape)}, the center {(batch, *shape)}."
                )
            if radius is not None and not bool((radius >= 0).all() & radius.isfinite().all()):
                raise SettingError(f"AffineImage: {name} must be finite and at least 0 everywhere.")
        if not bool(self.center.isfinite().all() & self.generators.isfinite().all()):
            raise SettingError("AffineImage: center and generators must be finite.")

    @property
    def num_generators(self) -> int:
        """k, without the symbols of `noise`."""
        return int(self.generators.shape[1])

    def radius(self) -> Tensor:
        """(batch, *shape): how far each coordinate moves, rounded up."""
        total = self.generators.abs().sum(dim=1)
        for radius in (self.box, self.noise):
            total = total if radius is None else total + radius
        return total * (1 + 2 * gamma(self.num_generators + 4, total.dtype))

    def interval_hull(self) -> Interval:
        radius = self.radius()
        return Interval(self.center - radius, self.center + radius)

    def to_zonotope(self, source: SymbolSource, node: str) -> Zonotope:
        """The same set, widened by the rounding of its own radius.

        A generator's origin is recorded as the coordinate that it moves most.
        """
        sure = 2 * gamma(self.num_generators + 4, self.center.dtype)
        noise = self.noise
        box = sure * self.radius()
        box = box if self.box is None else (self.box + box) * (1 + sure)
        zonotope = Zonotope(self.center, (), box if bool((box > 0).any()) else None)
        if self.num_generators:
            index = self.generators.abs().flatten(2).argmax(dim=2)
            zonotope = replace(zonotope, blocks=(DenseBlock(source.fresh(node, index), self.generators),))
        return zonotope if noise is None else zonotope.with_fresh_symbols(noise, source, node)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` points per element: every other at a corner of the symbols' cube."""

        def draw(shape: Sequence[int]) -> Tensor:
            values = 2 * torch.rand(count, *shape, generator=generator, dtype=self.center.dtype) - 1
            values[::2] = values[::2].sign()
            return values.to(self.center.device)

        batch, symbols = self.generators.shape[:2]
        points = torch.einsum("mbk,bkn->mbn", draw((batch, symbols)), self.generators.flatten(2))
        points = self.center + points.reshape(count, *self.center.shape)
        for radius in (self.noise, self.box):
            points = points if radius is None else points + radius * draw(self.center.shape)
        return points

    def clip(self, lower: float, upper: float) -> AffineImage:
        """Enclose the image of the set under  x -> min(max(x, lower), upper).

        On a coordinate's hull [l, u] the function lies in  s x + t +/- r  with the chord's slope s; its distance to the
        chord is extreme where it bends. Coordinates that cannot leave the limits stay as they are; those whose own
        noise would be no smaller than the clipped interval become it. r goes to the noise, or to the box if it is no
        more than rounding.
        """
        low, high = self.interval_hull()
        ends = torch.stack([low, high, low.clamp(lower, upper), high.clamp(lower, upper)])
        values = ends.clamp(lower, upper)
        width = high - low
        inside = (low >= lower) & (high <= upper)
        slope = ((values[1] - values[0]) / width.clamp(min=torch.finfo(width.dtype).tiny)).clamp(0, 1)
        slope = torch.where(inside, torch.ones_like(slope), slope)
        alone = torch.zeros_like(low) if self.noise is None else self.noise
        gap = _gap(values, slope * ends)
        flat = ~inside & ((values[1] - values[0]) / 2 <= slope * alone + gap.radius)
        slope = slope.masked_fill(flat, 0)
        gap = _gap(values, slope * ends)
        offset, radius = gap.middle.masked_fill(inside, 0), gap.radius.masked_fill(inside, 0)
        sure = 16 * torch.finfo(width.dtype).eps * (1 + ends.abs().amax(dim=0) + values.abs().amax(dim=0))
        sure = (sure + radius.masked_fill(radius > sure, 0)).masked_fill(inside, 0)
        radius = radius.masked_fill(radius <= sure, 0)
        return AffineImage(
            slope * self.center + offset,
            self.generators * slope.unsqueeze(1),
            sure if self.box is None else self.box * slope + sure,
            radius if self.noise is None else self.noise * slope + radius,
        )


class _Gap(NamedTuple):
    middle: Tensor
    radius: Tensor


def _gap(values: Tensor, line: Tensor) -> _Gap:
    """Middle and half the range of  values - line  over the first axis."""
    low, high = (values - line).aminmax(dim=0)
    return _Gap((high + low) / 2, (high - low) / 2)


def minkowski_sum(sets: Sequence[AffineImage], around: Tensor) -> AffineImage:
    """All points  around + sum_i (x_i - around)  for x_i in the sets: their deviations from one point, summed.

    Args:
        sets: each with center (batch, *shape).
        around: (batch, *shape).
    """
    center = around + torch.stack([part.center - around for part in sets]).sum(dim=0)
    magnitude = torch.stack([part.center.abs() for part in sets]).sum(dim=0) + around.abs() * len(sets)
    error = gamma(2 * len(sets) + 2, center.dtype) * magnitude
    moved = torch.stack([part.center != around for part in sets]).any(dim=0)
    boxes = [part.box for part in sets if part.box is not None]
    noises = [part.noise for part in sets if part.noise is not None]
    box = torch.where(moved, error, torch.zeros_like(error)) + (sum(boxes) if boxes else 0)
    return AffineImage(
        center,
        torch.cat([part.generators for part in sets], dim=1),
        box if bool((box > 0).any()) else None,
        torch.stack(noises).sum(dim=0) if noises else None,
    )
