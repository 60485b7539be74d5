"""The lazy box: axis-aligned symbols wait in the box, and the widest entries get names when that is worth it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.domain.blocks import DiagonalBlock
from zonoplug.domain.symbols import SymbolIds, SymbolSource
from zonoplug.domain.zonotope import Zonotope, compress
from zonoplug.errors import ReductionRefusedError, SettingError
from zonoplug.reduction.base import REDUCTIONS, BoxReduction, Reduction, marks_of
from zonoplug.reduction.columns import any_shared, block_ids, boxed
from zonoplug.reduction.context import ReductionContext


@REDUCTIONS.register("promote")
@dataclass(frozen=True)
class Promote(Reduction):
    """Box fresh symbols, which costs nothing yet, and some others; then name the widest entries of the box.

    A named entry stands for everything that was boxed in its coordinate, so one symbol does for a fresh one, earlier
    boxes and parts of mixed generators. Half of the budget is for named entries, the other for the generators that the
    rule `base` keeps, which `promote:girard` sets. Entries are ranked by radius, times their influence on the
    specification where that is known.

    Attributes:
        base: name of a boxing rule.
        share: of the budget that named entries get, in [0, 1].
    Raises:
        UnknownNameError, SettingError: `base` is no reduction, or none that boxes.
    """

    source: ClassVar[str] = "Mirman, Gehr, Vechev, ICML 2018 (correlate); CORA's interval centers with capped errors"
    option: ClassVar = ("base", str)
    base: str = "l1"
    share: float = 0.5

    def __post_init__(self) -> None:
        self.rule()

    @property
    def needs_influence(self) -> bool:
        return True

    def rule(self) -> BoxReduction:
        """The boxing rule called `base`."""
        kind = REDUCTIONS.get(self.base)
        if not issubclass(kind, BoxReduction):
            raise SettingError(f"{type(self).__name__}: {self.base!r} is no boxing rule. Use l1, girard or margin.")
        return kind()

    def _reduce(
        self, zonotope: Zonotope, max_symbols: int, protected: SymbolIds, context: ReductionContext
    ) -> Zonotope:
        if context.source is None:
            raise ReductionRefusedError(
                f"{type(self).__name__} makes fresh symbols and needs to know which ids are free."
                " Pass context=ReductionContext(source=...), the source that the zonotope's symbols came from."
            )
        mixed = unnamed(zonotope, protected, context)
        best, scores = self.rule().order(mixed, protected, context)
        free = max_symbols - protected.shape[0]
        weight = entry_weight(zonotope, context)
        kept = self.division(mixed, best, scores, free, weight) + protected.shape[0]
        rest = boxed(mixed, marks_of(best[: min(kept, best.shape[0])], best.shape[0]))
        return name_entries(rest, weight, max_symbols - rest.num_symbols, context.source, context.node)

    def division(self, mixed: Zonotope, best: Tensor, scores: Tensor, free: int, weight: Tensor) -> int:
        """How many of the `free` symbols are for generators that stay as they are.

        Args:
            mixed: the zonotope whose axis-aligned symbols are in the box already.
            best, scores: what `BoxReduction.order` says of it.
            weight: of a named entry, (batch, n).
        """
        return free - round(self.share * free)


def unnamed(zonotope: Zonotope, protected: SymbolIds, context: ReductionContext) -> Zonotope:
    """The zonotope with every axis-aligned symbol in the box that is not protected and lives nowhere else.

    It is the same set, and loses nothing as long as the box gets names again before anything mixes it.
    """
    ids = block_ids(zonotope)
    marks = [
        torch.full((block.num_symbols,), not isinstance(block, DiagonalBlock), dtype=torch.bool)
        for block in zonotope.blocks
    ]
    kept = torch.cat([torch.zeros(0, dtype=torch.bool), *marks]) | torch.isin(ids, protected)
    for live in context.elsewhere:
        if any_shared(live.zonotope, ids[~kept]):
            kept |= torch.isin(ids, live.zonotope.symbols)
    return boxed(zonotope, kept)


def entry_weight(zonotope: Zonotope, context: ReductionContext) -> Tensor:
    """What a name saves for each unit of an entry's radius, summed over the rows, (batch, n); 1 where that is unknown.

    sum_d (M_d - |A_d|), in the words of `Influence`.
    """
    influence = context.influence
    if influence is None:
        return torch.ones_like(zonotope.center.flatten(1))
    return (influence.absolute - influence.linear.abs()).sum(dim=1).clamp(min=0)


def name_entries(zonotope: Zonotope, weight: Tensor, count: int, source: SymbolSource, node: str) -> Zonotope:
    """Turn `count` entries of the box into symbols, for each batch element: the best by radius times weight.

    Of equal worth, such as none at all, the widest comes first.
    """
    if zonotope.box is None or count <= 0:
        return zonotope
    radius = zonotope.box.flatten(1)
    known = radius.masked_fill(~radius.isfinite(), 0)
    worth = _relative((known * weight).nan_to_num(nan=0.0, posinf=0.0)) + 1e-6 * _relative(known)
    chosen = torch.zeros_like(radius, dtype=torch.bool)
    chosen.scatter_(1, worth.topk(min(count, radius.shape[1]), dim=1).indices, True)
    chosen &= known > 0
    most = int(chosen.sum(dim=1).max()) if chosen.numel() else 0
    if most == 0:
        return zonotope
    values, index = compress(radius, chosen, most)
    block = DiagonalBlock(source.fresh(node, index), values, index, zonotope.shape, inf)
    box = radius.masked_fill(chosen, 0).reshape(zonotope.center.shape)
    return Zonotope(zonotope.center, (*zonotope.blocks, block), box)


def _relative(values: Tensor) -> Tensor:
    """Values (batch, n) >= 0 as shares of the largest in their row."""
    return values / values.amax(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
