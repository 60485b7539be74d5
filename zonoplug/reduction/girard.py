"""Girard's rule."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS, BoxReduction


@REDUCTIONS.register("girard")
class Girard(BoxReduction):
    """Box the generators that are nearly axis-aligned: score  ||g||_1 - ||g||_inf,  0 for an axis-aligned one."""

    source: ClassVar[str] = "Girard, HSCC 2005, section 4"
    ignores_zeros: ClassVar[bool] = True

    def score(self, generators: Tensor) -> Tensor:
        lengths = generators.abs()
        return lengths.sum(dim=2) - lengths.amax(dim=2)
