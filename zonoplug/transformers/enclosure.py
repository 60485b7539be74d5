"""What transformers of several variables return: a zonotope, and bounds that may be tighter than its hull."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope


class Enclosure(NamedTuple):
    """Two enclosures of the same points; both hold, so what reads the values may use their intersection.

    Attributes:
        zonotope: keeps the dependence on symbols.
        bounds: (batch, *shape).
    """

    zonotope: Zonotope
    bounds: Interval


def half_width(interval: Interval) -> Tensor:
    """(upper - lower) / 2."""
    return (interval.upper - interval.lower) / 2


def enclose(
    linear: Zonotope,
    remainder: Interval,
    bounds: Interval,
    source: SymbolSource,
    node: str,
    terms: int,
    magnitude: Tensor | None = None,
) -> Enclosure:
    """linear + remainder, with one fresh symbol for each coordinate; or the interval `bounds` where that adds no more.

    A coordinate becomes an interval where its fresh radius would not be smaller than the radius of `bounds`. Choosing
    the narrower hull instead would drop shared symbols that later layers cancel.

    Args:
        linear: the affine part.
        remainder: the range of what is added to it. Infinite where the affine part is of no use.
        bounds: the range of the whole.
        source, node: where the fresh symbols get their ids, and their origin.
        terms: roughly how many rounded numbers were summed for one coordinate of the ranges.
        magnitude: an upper bound of the sum of their absolute values; that of `bounds` by default.
    """
    half, half_bounds = half_width(remainder), half_width(bounds)
    keep = half < half_bounds
    middle = torch.where(keep, remainder.lower + half, bounds.lower + half_bounds)
    radius = torch.where(keep, half, half_bounds)
    largest = torch.maximum(bounds.lower.abs(), bounds.upper.abs())
    largest = largest if magnitude is None else torch.maximum(largest, magnitude)
    error = 16 * torch.finfo(largest.dtype).eps * largest  # so that both enclosures of a single point meet
    if rounding.active():
        error = rounding.affine_error(largest, middle, terms, linear.num_symbols)
        radius = radius + error
    bounds = Interval(bounds.lower - error, bounds.upper + error)
    if not bool(keep.all()):
        linear = linear.scale(keep.to(middle.dtype))
    return Enclosure(linear.shift(middle).with_fresh_symbols(radius, source, node), bounds)
