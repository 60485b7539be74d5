"""Reduction by error instead of by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.domain.blocks import DiagonalBlock
from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import SettingError
from zonoplug.reduction.base import REDUCTIONS, marks_of
from zonoplug.reduction.columns import block_ids, boxed, in_chunks
from zonoplug.reduction.context import ReductionContext
from zonoplug.reduction.girard import Girard


@REDUCTIONS.register("budget")
@dataclass(frozen=True)
class ErrorBudget(Girard):
    """Box by Girard's order as much as an error budget allows, and more only if the number of symbols demands it.

    Boxing the generators R moves the set by at most

        w  =  2 || sum_{j in R} (|g_j| - mu_j) ||_2        (mu_j: the largest entry of |g_j|, 0 elsewhere)

    in Hausdorff distance. The budget is `share` times twice the length of the radius, || sum_j |g_j| ||_2, in every
    element of the batch; `error_bound` reports w. `budget:0.05` sets the share.

    Attributes:
        share: in [0, 1].
    Raises:
        SettingError: the share is outside [0, 1].
    """

    source: ClassVar[str] = "Wetzlinger, Kulmburg, Althoff, HSCC 2021, theorem 3.2"
    option: ClassVar = ("share", float)
    share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SettingError(f"ErrorBudget: share is {self.share}, and must be between 0 and 1.")

    def _reduce(
        self, zonotope: Zonotope, max_symbols: int, protected: SymbolIds, context: ReductionContext
    ) -> Zonotope:
        best, _ = self.order(zonotope, protected, context)
        ids = block_ids(zonotope)
        limit = 2 * self.share * _length(zonotope)
        free = int((~torch.isin(ids, protected)).sum())
        low, high = min(free, ids.shape[0] - max_symbols), free  # how many are boxed
        while low < high:  # the error grows with their number
            middle = (low + high + 1) // 2
            error = _hausdorff_bound(zonotope, ids[best[ids.shape[0] - middle :]])
            low, high = (middle, high) if bool((error <= limit).all()) else (low, middle - 1)
        return boxed(zonotope, marks_of(best[: ids.shape[0] - low], ids.shape[0]))

    def error_bound(self, before: Zonotope, after: Zonotope) -> Tensor:
        gone = before.symbols[~torch.isin(before.symbols, after.symbols)]
        return _hausdorff_bound(before, gone)


def _length(zonotope: Zonotope) -> Tensor:
    """|| sum_j |g_j| ||_2, (batch,)."""
    total = torch.zeros_like(zonotope.center)
    for block in zonotope.blocks:
        total = total + block.radius()
    length: Tensor = torch.linalg.vector_norm(total.flatten(1), dim=1)
    return length


def _hausdorff_bound(zonotope: Zonotope, gone: SymbolIds) -> Tensor:
    """2 || sum over the symbols `gone` of |g| - mu ||_2, (batch,)."""
    total = zonotope.center.flatten(1).new_zeros(zonotope.batch, zonotope.center[0].numel())
    part = Zonotope(zonotope.center, tuple(b for b in zonotope.blocks if bool(torch.isin(b.symbols, gone).any())))
    for columns in in_chunks(part, ReductionContext()):
        if isinstance(columns.block, DiagonalBlock):
            continue  # |g| = mu for one entry
        sizes = columns.here[:, torch.isin(columns.ids, gone).to(columns.here.device)].abs()
        if sizes.shape[1] == 0 or sizes.shape[2] == 0:
            continue
        largest = sizes.argmax(dim=2, keepdim=True)
        total = total + sizes.scatter(2, largest, 0.0).sum(dim=1)
    bound: Tensor = 2 * torch.linalg.vector_norm(total, dim=1)
    return bound
