"""Valero's greedy frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.frames import FrameReduction, choose_one, hull_size, most_independent


@REDUCTIONS.register("valero")
@dataclass(frozen=True)
class Valero(FrameReduction):
    """Absorb generators in a frame that grows by the one that stands out most from the span of those before.

    Two frames are tried, starting at the two longest generators, and the smaller enclosure is used.
    """

    source: ClassVar[str] = "Valero et al., On minimal volume zonotope order reduction, Automatica 2021"

    def frame(self, generators: Tensor, count: int) -> Tensor:
        lengths = torch.linalg.vector_norm(generators, dim=1)
        starts = lengths.topk(min(2, generators.shape[0])).indices.tolist()
        tried = [most_independent(generators, count, start) for start in starts]
        size = max(places.shape[0] for places in tried)
        tried = [places for places in tried if places.shape[0] == size]
        frames = choose_one(generators, torch.stack(tried))
        return frames[int(hull_size(generators, frames).argmin())]
