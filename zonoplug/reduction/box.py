"""The coarsest reduction."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.zonotope import Zonotope
from zonoplug.reduction.base import REDUCTIONS, Reduction


@REDUCTIONS.register("box")
class Box(Reduction):
    """Box every symbol that is not protected, however many the budget would allow: interval arithmetic."""

    source: ClassVar[str] = "Moore, Interval Analysis, 1966"

    def _reduce(self, zonotope: Zonotope, max_symbols: int, protected: Tensor) -> Zonotope:
        ids = zonotope.symbols[protected]
        kept = zonotope.generators(ids)
        left = zonotope.generators(zonotope.symbols[~protected])
        boxed = rounding.sum_up(left.abs().sum(dim=1), left.shape[1])
        return Zonotope(zonotope.center, (DenseBlock(ids, kept),) if ids.numel() else (), zonotope.box).widen(boxed)
