"""Merging neighbours in an image."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zonoplug.errors import SettingError
from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.merging import Merged, MergeReduction, along_directions, choose, longest_first, unit


@REDUCTIONS.register("spatial")
@dataclass(frozen=True)
class Spatial(MergeReduction):
    """Merge symbols that act at the same place: all whose largest entry lies in one patch of the image, or channel.

    Values (channels, height, width) are divided into as many square patches as the budget has room for, or, with
    `spatial:channel`, into groups of channels; other shapes into runs of coordinates. Convolutions stay local.

    Attributes:
        by: "patch" or "channel".
    Raises:
        SettingError: `by` is neither.
    """

    source: ClassVar[str] = "Lemesle, Lehmann, Le Gall, arXiv 2410.23903 (local noises), restated with a budget"
    option: ClassVar = ("by", str)
    by: Literal["patch", "channel"] = "patch"

    def __post_init__(self) -> None:
        if self.by not in ("patch", "channel"):
            raise SettingError(f"Spatial: by is {self.by!r}. Known: patch, channel.")

    def merge(self, generators: Tensor, count: int, shape: tuple[int, ...]) -> Merged:
        batch, k, n = generators.shape
        ranked = choose(generators, longest_first(generators))
        place = ranked.abs().argmax(dim=2) if n else torch.zeros(batch, k, dtype=torch.int64, device=ranked.device)
        cluster = self._groups(count, shape).to(place.device)[place]
        places = torch.arange(k, device=place.device).expand_as(cluster)
        first = torch.full((batch, count), k, device=place.device).scatter_reduce(1, cluster, places, "amin")
        leader = choose(ranked, first.gather(1, cluster))
        turned = ranked * torch.where((ranked * leader).sum(dim=2, keepdim=True) < 0, -1.0, 1.0).to(ranked)
        sums = ranked.new_zeros(batch, count, n).scatter_add(1, cluster.unsqueeze(2).expand_as(turned), turned)
        return along_directions(ranked, unit(sums), cluster)

    def _groups(self, count: int, shape: tuple[int, ...]) -> Tensor:
        """The group in [0, count) of each coordinate, (n,)."""
        n = int(torch.tensor(shape).prod()) if shape else 1
        if len(shape) != 3:
            return torch.arange(max(n, 1)) * count // max(n, 1)
        channels, height, width = shape
        if self.by == "channel":
            label = torch.arange(channels) * min(count, channels) // channels
            return label[:, None].expand(channels, height * width).flatten()
        side = max(1, isqrt(count))
        patch = ceil(max(height, width) / side)
        rows, columns = torch.arange(height) // patch, torch.arange(width) // patch
        label = rows[:, None] * ceil(width / patch) + columns
        return label.expand(channels, height, width).flatten()
