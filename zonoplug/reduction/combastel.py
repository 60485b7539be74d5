"""Combastel's rule."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS, BoxReduction


@REDUCTIONS.register("combastel")
class Combastel(BoxReduction):
    """Box the shortest generators: score  ||g||_2."""

    source: ClassVar[str] = "Combastel, ECC 2003"
    ignores_zeros: ClassVar[bool] = True

    def score(self, generators: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(generators, dim=2)
        return norm
