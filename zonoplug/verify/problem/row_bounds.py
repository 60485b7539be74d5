"""Lower bounds of the specification's rows on subdomains, and how they vary over a subdomain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RowBounds:
    """Lower bounds of a . y for each row on a batch of subdomains, and how they vary over a subdomain.

        a . y  >=  floor + sum_i (|slope_i| + slope_i e_i),  e_i in [-1, 1] the place of input i between its bounds

    Attributes:
        lower: (n, rows); NaN where nothing is known.
        floor: (n, rows) the bound that belongs to the slopes, at most `lower`.
        slopes: (n, rows, inputs), or None for methods that do not tell.
        load: (n,) how many neurons are unstable, for the order of later work; None where it is not known.
        largest: bytes of the generators that one value of the propagation held, at most.
    """

    lower: Tensor
    floor: Tensor | None = None
    slopes: Tensor | None = None
    load: Tensor | None = None
    largest: int = 0

    def influence(self, weights: Tensor) -> Tensor | None:
        """How far each input moves the rows: (n, inputs), the weighted sum of |slope| over rows.

        Args:
            weights: (n, rows).
        """
        return None if self.slopes is None else torch.einsum("nrk,nr->nk", self.slopes.abs(), weights).nan_to_num()

    def lowest_vertex(self, row: Tensor) -> Tensor | None:
        """The corner of each input box where row `row` (n,) is least: (n, inputs) in {-1, 0, 1}."""
        if self.slopes is None:
            return None
        chosen = self.slopes.gather(1, row[:, None, None].expand(-1, 1, self.slopes.shape[2])).squeeze(1)
        return -chosen.sign().nan_to_num()

    @staticmethod
    def join(many: list[RowBounds]) -> RowBounds:
        """The bounds of several batches as one."""
        parts = zip(*((one.lower, one.floor, one.slopes, one.load) for one in many), strict=True)
        joined = [None if any(part is None for part in column) else torch.cat(column) for column in parts]
        return RowBounds(*joined, largest=max(one.largest for one in many))  # type: ignore[arg-type, misc]

    def pick(self, index: Tensor) -> RowBounds:
        """The bounds of some subdomains."""
        parts = (self.lower, self.floor, self.slopes, self.load)
        picked = [None if part is None else part[index] for part in parts]
        return RowBounds(*picked, largest=self.largest)  # type: ignore[arg-type, misc]
