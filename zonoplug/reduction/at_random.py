"""The control that every rule has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS, BoxReduction
from zonoplug.reduction.columns import Columns
from zonoplug.reduction.context import ReductionContext


@REDUCTIONS.register("random")
@dataclass(frozen=True)
class Random(BoxReduction):
    """Box symbols at random, the same ones each time for one seed: the control. `random:7` sets the seed.

    Attributes:
        seed: decides, together with the layer, which symbols stay.
    """

    source: ClassVar[str] = "Mirman, Gehr, Vechev, ICML 2018 (stochastic decorrelation)"
    option: ClassVar = ("seed", int)
    seed: int = 0

    def score(self, generators: Tensor) -> Tensor:
        return self._draw(generators.shape[1], 0).to(generators).expand(generators.shape[0], -1)

    def rank(self, columns: Columns, context: ReductionContext) -> Tensor:
        first = int(columns.ids[0]) if columns.ids.numel() else 0
        drawn = self._draw(columns.ids.shape[0], 1_000_003 * context.layer + first)
        return drawn.to(columns.lengths.device).expand_as(columns.lengths)

    def _draw(self, count: int, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 7_919 + place)
        return torch.rand(count, generator=generator, dtype=torch.float64)
