"""Scott's elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.frames import FrameReduction


@REDUCTIONS.register("scott")
@dataclass(frozen=True)
class Scott(FrameReduction):
    """Absorb generators in well-conditioned ones among them, found by Gauss elimination with full pivoting.

    Rows are scaled to equal sums first. In the source the frame has as many members as coordinates, and the others are
    dropped one at a time; here it has as many as the budget gives, all others are absorbed at once, and pivots that
    vanish end the search.
    """

    source: ClassVar[str] = "Scott, Raimondo, Marseglia, Braatz, Automatica 69, 2016, appendix"

    def frame(self, generators: Tensor, count: int) -> Tensor:
        tiny = torch.finfo(generators.dtype).tiny
        rest = generators / generators.abs().sum(dim=0).clamp(min=tiny)
        rest = torch.where(generators.abs().sum(dim=0) > 0, rest, torch.zeros_like(rest))
        places: list[int] = []
        for _ in range(min(count, *generators.shape)):
            place, column = divmod(int(rest.abs().argmax()), rest.shape[1])
            pivot = rest[place, column]
            if not bool(pivot.abs() > 1e-6):
                break
            places.append(place)
            rest = rest - (rest[:, column] / pivot)[:, None] * rest[place]
            rest[place] = 0.0
            rest[:, column] = 0.0
        return generators[places or [0]]
