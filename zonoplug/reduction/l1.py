"""The l1 rule of DeepT and DiffAI."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS, BoxReduction


@REDUCTIONS.register("l1")
class L1(BoxReduction):
    """Box the generators that add least to the interval hull: score  ||g||_1."""

    source: ClassVar[str] = "Bonaert, Dimitrov, Baader, Vechev, PLDI 2021; Mirman, Gehr, Vechev, ICML 2018"
    ignores_zeros: ClassVar[bool] = True

    def score(self, generators: Tensor) -> Tensor:
        return generators.abs().sum(dim=2)
