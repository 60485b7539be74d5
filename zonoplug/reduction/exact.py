"""The reference that reduces nothing."""

from __future__ import annotations

from typing import ClassVar

from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Zonotope
from zonoplug.reduction.base import REDUCTIONS, Reduction
from zonoplug.reduction.context import ReductionContext


@REDUCTIONS.register("exact")
class Exact(Reduction):
    """Keep every symbol, whatever the budget: the reference that the others are measured against."""

    source: ClassVar[str] = "Singh, Gehr, Mirman, Püschel, Vechev, NeurIPS 2018 (the unreduced zonotope)"
    keeps_budget: ClassVar[bool] = False

    def _reduce(
        self, zonotope: Zonotope, max_symbols: int, protected: SymbolIds, context: ReductionContext
    ) -> Zonotope:
        return zonotope
