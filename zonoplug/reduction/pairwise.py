"""Merging generators two by two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.merging import Merged, MergeReduction, along_directions, choose, longest_first, unit

MATCHED_AT_ONCE = 512


@REDUCTIONS.register("pairwise")
@dataclass(frozen=True)
class Pairwise(MergeReduction):
    """Merge pairs of the most parallel generators, their difference boxed.

    If the budget allows it, some generators stay alone; if pairs are not enough, the shortest generators are boxed.
    Pairs are matched greedily by |cos|, among 512 neighbours in length at a time.
    """

    source: ClassVar[str] = "Althoff, PhD thesis, 2010, section 2.5.5 (correlated generators)"

    def merge(self, generators: Tensor, count: int, shape: tuple[int, ...]) -> Merged:
        order = longest_first(generators)
        ranked = choose(generators, order)[:, : 2 * count]
        alone = max(0, 2 * count - ranked.shape[1])
        units = unit(ranked)
        cluster = torch.full(ranked.shape[:2], -1, dtype=torch.int64, device=ranked.device)
        cluster[:, :alone] = torch.arange(alone, device=ranked.device)
        for start in range(alone, ranked.shape[1], MATCHED_AT_ONCE):
            part = units[:, start : start + MATCHED_AT_ONCE]
            for element, cosines in enumerate((part @ part.transpose(1, 2)).abs().cpu()):
                first = alone + (start - alone) // 2
                cluster[element, start : start + part.shape[1]] = (first + _match(cosines)).to(cluster.device)
        signs = (units * choose(units, _first_members(cluster))).sum(dim=2, keepdim=True)
        turned = units * torch.where(signs < 0, -1.0, 1.0).to(units)
        sums = torch.zeros_like(ranked[:, :count]).scatter_add(1, cluster.unsqueeze(2).expand_as(turned), turned)
        full = torch.full(generators.shape[:2], -1, dtype=torch.int64, device=ranked.device)
        full[:, : cluster.shape[1]] = cluster
        return along_directions(choose(generators, order), unit(sums), full)


def _match(cosines: Tensor) -> Tensor:
    """The number of each one's pair, (m,), m even: greedily by the largest of `cosines` (m, m)."""
    m = cosines.shape[0]
    rows, columns = torch.triu_indices(m, m, offset=1)
    pairs = cosines[rows, columns].argsort(descending=True, stable=True)
    label = [-1] * m
    found = 0
    for i, j in zip(rows[pairs].tolist(), columns[pairs].tolist(), strict=True):
        if label[i] < 0 and label[j] < 0:
            label[i] = label[j] = found
            found += 1
            if 2 * found == m:
                break
    return torch.tensor(label, dtype=torch.int64)


def _first_members(cluster: Tensor) -> Tensor:
    """For each member (batch, m) the place of its cluster's first member."""
    places = torch.arange(cluster.shape[1], device=cluster.device).expand_as(cluster)
    first = torch.full_like(cluster, cluster.shape[1]).scatter_reduce(1, cluster, places, "amin")
    return first.gather(1, cluster)
