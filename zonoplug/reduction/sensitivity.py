"""Length weighted by what it does to the specification."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS, BoxReduction
from zonoplug.reduction.columns import Columns
from zonoplug.reduction.context import ReductionContext


@REDUCTIONS.register("sensitivity")
class Sensitivity(BoxReduction):
    """Box what moves the specification least: score  sum_d sum_i |A_di| |g_i|,  A from the value to the rows.

    A is the slope of each row with the relaxations behind the value fixed, on all live values that share the symbol.
    Where it is not known the score is the length.
    """

    source: ClassVar[str] = "Koller, Ladner, Althoff (CORA: sensitivity times length)"
    needs_influence = True

    def score(self, generators: Tensor) -> Tensor:
        return generators.abs().sum(dim=2)

    def rank(self, columns: Columns, context: ReductionContext) -> Tensor:
        others = [context.elsewhere[place].influence for place in columns.places]
        if context.influence is None or any(other is None for other in others):
            return columns.compact.abs().sum(dim=2)
        total = columns.project_absolute(context.influence.linear.abs().sum(dim=1))
        for other, part in zip(others, columns.elsewhere, strict=True):
            assert other is not None
            total = total + (part.abs() @ other.linear.abs().sum(dim=1).unsqueeze(2)).squeeze(2)
        return total
