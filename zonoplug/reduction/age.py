"""Rules that look at nothing but when a symbol was born."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS, BoxReduction
from zonoplug.reduction.columns import Columns
from zonoplug.reduction.context import ReductionContext


class _ByAge(BoxReduction):
    """Ids grow with time, so a symbol's id is its date of birth."""

    newest_first: ClassVar[bool]

    def score(self, generators: Tensor) -> Tensor:
        return generators.new_zeros(generators.shape[:2])

    def rank(self, columns: Columns, context: ReductionContext) -> Tensor:
        dates = -columns.ids if self.newest_first else columns.ids
        return dates.to(columns.lengths.device, torch.float64).expand_as(columns.lengths)


@REDUCTIONS.register("oldest")
class Oldest(_ByAge):
    """Box the oldest symbols: the inputs first, then layer by layer."""

    source: ClassVar[str] = "a control; symbols by layer as in Lemesle, Lehmann, Le Gall, arXiv 2410.23903"
    newest_first: ClassVar[bool] = False


@REDUCTIONS.register("newest")
class Newest(_ByAge):
    """Box the newest symbols: what activations introduced last, the inputs never before."""

    source: ClassVar[str] = "Bonaert, Dimitrov, Baader, Vechev, PLDI 2021 (input symbols stay)"
    newest_first: ClassVar[bool] = True
