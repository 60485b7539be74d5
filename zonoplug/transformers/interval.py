"""The fallback: an operator known only through its interval bounds."""

from __future__ import annotations

import torch

from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope


def from_interval(bounds: Interval, source: SymbolSource, node: str) -> Zonotope:
    """A zonotope around an interval, one fresh symbol for each coordinate that is not a point.

    NaN or infinite bounds give NaN: nothing is known.
    """
    center = bounds.lower + (bounds.upper - bounds.lower) / 2
    radius = torch.maximum(bounds.upper - center, center - bounds.lower)
    return Zonotope(center).with_fresh_symbols(radius, source, node)
