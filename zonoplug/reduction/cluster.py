"""Merging clusters of generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.merging import Merged, MergeReduction, along_directions, choose, longest_first, unit


@REDUCTIONS.register("cluster")
@dataclass(frozen=True)
class Cluster(MergeReduction):
    """Merge clusters of generators into one each: k-means on directions whose sign does not matter.

    Centers start at the longest generators; each becomes the sum of its members, turned to its side. In place of the
    square frame of the source, what stands across a center goes to the box, so any number of centers will do.

    Attributes:
        rounds: of k-means.
    """

    source: ClassVar[str] = "Kopetzki, Schürmann, Althoff, CDC 2017, section III.B"
    rounds: int = 4

    def merge(self, generators: Tensor, count: int, shape: tuple[int, ...]) -> Merged:
        directions = unit(choose(generators, longest_first(generators)[:, :count]))
        units = unit(generators)
        for last in (*[False] * self.rounds, True):
            cosines = units @ directions.transpose(1, 2)
            cluster = cosines.abs().argmax(dim=2)
            if last:
                break
            turned = generators * cosines.gather(2, cluster.unsqueeze(2)).sign()
            sums = torch.zeros_like(directions)
            sums.scatter_add_(1, cluster.unsqueeze(2).expand_as(turned), turned)
            empty = sums.abs().amax(dim=2, keepdim=True) == 0
            directions = torch.where(empty, directions, unit(sums))
        return along_directions(generators, directions, cluster)
