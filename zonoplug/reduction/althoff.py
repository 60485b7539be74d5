"""Althoff's methods A, B and C: the smallest of many frames."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.errors import ReductionRefusedError
from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.frames import FrameReduction, choose_one, hull_size

MAX_COMBINATIONS = 10_000


@dataclass(frozen=True)
class _SmallestFrame(FrameReduction):
    """Tries subsets of generators as frames, and takes the one whose enclosure is smallest.

    Refuses more than 10,000 subsets: methods for few coordinates and few symbols.
    """

    @abstractmethod
    def candidates(self, generators: Tensor, size: int) -> Tensor:
        """The generators (k, n) whose subsets of `size` are tried: places (f,)."""

    def frame(self, generators: Tensor, count: int) -> Tensor:
        size = min(count, *generators.shape)
        places = self.candidates(generators, size)
        number = comb(places.shape[0], size)
        if number > MAX_COMBINATIONS:
            raise ReductionRefusedError(
                f"{type(self).__name__} would try {_short(number)} sets of {size} out of {places.shape[0]} generators,"
                f" and goes up to {MAX_COMBINATIONS}. For so many use pca, lowrank or cluster."
            )
        subsets = torch.tensor(list(combinations(places.tolist(), size)), device=generators.device)
        frames = choose_one(generators, self.preselect(generators, subsets))
        return frames[int(hull_size(generators, frames).argmin())]

    def preselect(self, generators: Tensor, subsets: Tensor) -> Tensor:
        """The subsets (m, r) of which the enclosure is computed."""
        return subsets


@REDUCTIONS.register("althoff-a")
@dataclass(frozen=True)
class AlthoffA(_SmallestFrame):
    """Absorb generators in the best frame of all: every subset is tried."""

    source: ClassVar[str] = "Althoff, PhD thesis, 2010, section 2.5.5, method A"

    def candidates(self, generators: Tensor, size: int) -> Tensor:
        return torch.arange(generators.shape[0])


@REDUCTIONS.register("althoff-b")
@dataclass(frozen=True)
class AlthoffB(_SmallestFrame):
    """Absorb generators in the best frame among the longest ones: eight more than a frame has."""

    source: ClassVar[str] = "Althoff, PhD thesis, 2010, section 2.5.5, method B"
    spare: ClassVar[int] = 8

    def candidates(self, generators: Tensor, size: int) -> Tensor:
        lengths = torch.linalg.vector_norm(generators, dim=1)
        longest: Tensor = lengths.topk(min(size + self.spare, lengths.shape[0])).indices
        return longest.sort().values.cpu()


@REDUCTIONS.register("althoff-c")
@dataclass(frozen=True)
class AlthoffC(AlthoffB):
    """Absorb generators in the best of a few frames: those of the longest generators that span the largest volume."""

    source: ClassVar[str] = "Althoff, PhD thesis, 2010, section 2.5.5, method C"

    def preselect(self, generators: Tensor, subsets: Tensor) -> Tensor:
        frames = choose_one(generators, subsets)
        volume: Tensor = torch.linalg.det(frames @ frames.transpose(1, 2))
        largest = volume.nan_to_num(nan=-1.0).topk(min(generators.shape[1] + 3, subsets.shape[0])).indices
        chosen: Tensor = subsets[largest]
        return chosen


def _short(number: int) -> str:
    """A count of any size, in few characters."""
    return f"{number:.3g}" if number < 10**15 else f"about 1e{len(str(number)) - 1}"
