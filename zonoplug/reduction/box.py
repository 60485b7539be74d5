"""The coarsest reduction."""

from __future__ import annotations

from typing import ClassVar

import torch

from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Zonotope
from zonoplug.reduction.base import REDUCTIONS, Reduction
from zonoplug.reduction.columns import block_ids, boxed
from zonoplug.reduction.context import ReductionContext


@REDUCTIONS.register("box")
class Box(Reduction):
    """Box every symbol that is not protected, however many the budget would allow: interval arithmetic."""

    source: ClassVar[str] = "Moore, Interval Analysis, 1966"

    def _reduce(
        self, zonotope: Zonotope, max_symbols: int, protected: SymbolIds, context: ReductionContext
    ) -> Zonotope:
        return boxed(zonotope, torch.isin(block_ids(zonotope), protected))
