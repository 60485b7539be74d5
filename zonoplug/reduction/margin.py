"""The exact loss of margin."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS, BoxReduction
from zonoplug.reduction.columns import Columns
from zonoplug.reduction.context import ReductionContext


@REDUCTIONS.register("margin")
class Margin(BoxReduction):
    """Box what costs the specification's rows least: score  sum_d (M_d . |g| + |B_d| - |A_d . g + B_d|).

    A_d is how a named symbol reaches row d, M_d how the box does, if it stays one (see `Influence`), and B_d what the
    symbol contributes to the row through other live values. With the relaxations behind the value fixed and no
    later reduction, this is by how much boxing the symbol lowers the bounds of all rows together. It is additive
    over symbols, so the best scores are the best choice. Unlike losses in the next layer it sees what boxing a fresh,
    axis-aligned symbol costs further on. Where the influence is not known the score is the length.
    """

    source: ClassVar[str] = "this project: the loss of boxing, followed to the specification through absolute weights"
    needs_influence = True

    def score(self, generators: Tensor) -> Tensor:
        return generators.abs().sum(dim=2)

    def rank(self, columns: Columns, context: ReductionContext) -> Tensor:
        influence = context.influence
        others = [context.elsewhere[place].influence for place in columns.places]
        if influence is None or any(other is None for other in others):
            return columns.compact.abs().sum(dim=2)
        named = columns.project(influence.linear)
        away = torch.zeros_like(named)
        for other, part in zip(others, columns.elsewhere, strict=True):
            assert other is not None
            away = away + part @ other.linear.transpose(1, 2)
        box = columns.project_absolute(influence.absolute.sum(dim=1))
        return (box + away.abs().sum(dim=2) - (named + away).abs().sum(dim=2)).clamp(min=0)
