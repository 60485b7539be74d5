"""Merging generators that point the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.merging import Merged, MergeReduction, along_directions, choose, longest_first, unit


@REDUCTIONS.register("collinear")
@dataclass(frozen=True)
class Collinear(MergeReduction):
    """Merge generators into the longest ones they are nearly parallel to; box what is parallel to none.

    Of the reduced part, the longest generators are leaders. Every other joins the leader with the largest |cos| if that
    is at least `cosine`, which `collinear:0.8` sets. Exact where generators are parallel. No frame is needed.
    """

    source: ClassVar[str] = "Kopetzki, Schürmann, Althoff, CDC 2017, section III.B (with leaders for centers)"
    option: ClassVar = ("cosine", float)
    cosine: float = 0.7

    def merge(self, generators: Tensor, count: int, shape: tuple[int, ...]) -> Merged:
        directions = unit(choose(generators, longest_first(generators)[:, :count]))
        cosines = (unit(generators) @ directions.transpose(1, 2)).abs()
        best, cluster = cosines.max(dim=2)
        return along_directions(generators, directions, cluster.masked_fill(~(best >= self.cosine), -1))
