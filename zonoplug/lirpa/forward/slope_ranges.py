"""Between which slopes the best one of a relaxation lies, found from the relaxation alone.

A slope steeper than f is anywhere on the hull gives a band that contains that of the steepest one, and likewise for the
least steep. So slopes between the derivatives on the hull are enough. They are asked of the relaxation itself: on each
of some cells of the hull it chooses a slope that f has there (the chord's, or nearly). Any slope is sound, so the range
may be approximate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.lirpa.operators.table import Call, Transformer

SHARES = (0.0, 2**-12, 2**-6, 1 / 16, 1 / 4, 1 / 2, 3 / 4, 15 / 16, 1 - 2**-6, 1 - 2**-12, 1.0)  # ends of the cells


class SlopeRange(NamedTuple):
    """Slopes worth trying at one operator, each (batch, *shape): the least, the largest, and the relaxation's own."""

    low: Tensor
    high: Tensor
    own: Tensor


@torch.no_grad()
def slope_range(transformer: Transformer, call: Call) -> SlopeRange | None:
    """The range of slopes of a relaxation on its operand's hull; None if there is nothing to choose anywhere.

    Args:
        transformer: relaxes a function of the one perturbed operand of `call`.
    """
    place = next(i for i, operand in enumerate(call.operands) if isinstance(operand, Zonotope))
    hull = call.preactivations[place]
    assert hull is not None
    shares = torch.tensor(SHARES, dtype=hull.lower.dtype, device=hull.lower.device)
    ends = hull.lower + shares.reshape(-1, *[1] * hull.lower.dim()) * (hull.upper - hull.lower)
    count, batch = len(SHARES), hull.lower.shape[0]
    cells = Interval(torch.cat([hull.lower[None], ends[:-1]]), torch.cat([hull.upper[None], ends[1:]]))
    cells = Interval(*(side.flatten(0, 1) for side in cells))
    source = SymbolSource()
    ids = source.fresh("probe", torch.zeros(count * batch, 1, dtype=torch.int64))
    probe = Zonotope(torch.zeros_like(cells.lower), (DenseBlock(ids, torch.ones_like(cells.lower).unsqueeze(1)),))
    operands = [
        probe if i == place else _repeated(operand, count, batch, hull.lower.dim())
        for i, operand in enumerate(call.operands)
    ]
    preactivations = [cells if i == place else other for i, other in enumerate(call.preactivations)]
    image = transformer(replace(call, operands=operands, preactivations=preactivations, source=source, slope=None))
    if not isinstance(image, Zonotope):
        return None
    slopes = image.generators(ids).reshape(count, *hull.lower.shape)  # what a generator of 1 becomes is the slope
    own = slopes[0].nan_to_num(nan=0.0)
    known = torch.where(slopes.isfinite(), slopes, own)
    low, high = known.amin(dim=0), known.amax(dim=0)
    return SlopeRange(low, high, own) if bool((low < high).any()) else None


def _repeated(operand: Tensor | Zonotope, count: int, batch: int, rank: int) -> Tensor | Zonotope:
    """A constant with a row for each element of the batch, repeated for each cell."""
    if isinstance(operand, Tensor) and operand.dim() == rank and operand.shape[0] == batch > 1:
        return operand.repeat(count, *[1] * (rank - 1))
    return operand
