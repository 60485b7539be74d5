"""What a reduction is: one generic function owns the contract, a method supplies the choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from typing import ClassVar, final

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.blocks import DenseBlock, GeneratorBlock
from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import SymbolBudgetError
from zonoplug.registry import Registry

NO_SYMBOLS = torch.zeros(0, dtype=torch.int64)


class Reduction(ABC):
    """Encloses a zonotope in one with fewer noise symbols.

    A subclass supplies `_reduce` (or, for rules that keep some generators and box the others, subclasses
    `BoxReduction` and supplies `score`), names its `source`, and registers itself with `@REDUCTIONS.register(name)`.
    """

    source: ClassVar[str]

    @final
    def reduce(self, zonotope: Zonotope, max_symbols: int, protect: SymbolIds = NO_SYMBOLS) -> Zonotope:
        """Enclose `zonotope` in a zonotope with at most `max_symbols` named symbols.

        For every value of the kept symbols there are values of the others and of the box that give the same point,
        so the result may take the original's place on one branch of a graph. Symbols that lie in a unit ball stay, with
        their ball, before any other; if the budget cannot hold them, the shortest are boxed by their dual norm.

        Args:
            zonotope: center (batch, *shape) with k symbols.
            max_symbols: upper limit on the named symbols of the result.
            protect: ids that are kept in any case.
        Returns:
            `zonotope` itself if it is small enough, else a zonotope with the same center that contains it.
        Raises:
            SymbolBudgetError: `max_symbols` is negative, or below the number of protected symbols.
        """
        ids = zonotope.symbols
        protected = torch.isin(ids, protect)
        least = int(protected.sum())
        if max_symbols < least:
            raise SymbolBudgetError(
                f"{type(self).__name__}: max_symbols is {max_symbols}, and must be at least {least}"
                f" ({least} symbols are protected)."
            )
        if ids.shape[0] <= max_symbols:
            return zonotope
        balls = [block for block in zonotope.blocks if block.norm != inf]
        if not balls:
            return self._reduce(zonotope, max_symbols, protected)
        plain = tuple(block for block in zonotope.blocks if block.norm == inf)
        ordinary = Zonotope(zonotope.center, plain, zonotope.box)
        room = max_symbols - int(torch.isin(ordinary.symbols, protect).sum())
        kept, boxed = _keep_longest(balls, room, protect)
        ordinary = ordinary if boxed is None else ordinary.widen(boxed)
        left = max_symbols - sum(block.num_symbols for block in kept)
        if ordinary.num_symbols > left:
            ordinary = self._reduce(ordinary, left, torch.isin(ordinary.symbols, protect))
        return Zonotope(zonotope.center, (*ordinary.blocks, *kept), ordinary.box)

    @abstractmethod
    def _reduce(self, zonotope: Zonotope, max_symbols: int, protected: Tensor) -> Zonotope:
        """The method itself; `protected` (k,) marks symbols to keep, in the order of `zonotope.symbols`."""


def _keep_longest(
    balls: list[GeneratorBlock], room: int, protect: SymbolIds
) -> tuple[list[GeneratorBlock], Tensor | None]:
    """Keep at most `room` symbols of some unit balls, protected and long ones first, and box the others.

    A point of a ball is one of its kept part plus one of its boxed part, each in a ball of the same norm.

    Returns:
        what is left of the balls; the boxed parts' radius (batch, *shape), None if nothing was boxed.
    """
    if sum(block.num_symbols for block in balls) <= room:
        return balls, None
    # One choice for the whole batch, as in BoxReduction.
    scores = torch.cat([block.dense().abs().flatten(2).sum(dim=2).sum(dim=0) for block in balls]).cpu()
    largest = torch.finfo(scores.dtype).max
    protected = torch.isin(torch.cat([block.symbols for block in balls]), protect)
    scores = scores.nan_to_num(nan=largest, posinf=largest).masked_fill(protected, torch.inf)
    marks = torch.zeros(scores.shape[0], dtype=torch.bool)
    marks[scores.topk(room).indices] = True
    parts = list(zip(balls, marks.split([block.num_symbols for block in balls]), strict=True))
    kept: list[GeneratorBlock] = [block if bool(mark.all()) else block.select(mark) for block, mark in parts]
    boxed = [block.select(~mark).radius() for block, mark in parts if not bool(mark.all())]
    total = rounding.sum_up(torch.stack(boxed).sum(dim=0), len(boxed))
    return [block for block in kept if block.num_symbols], total


class BoxReduction(Reduction):
    """Keep the generators with the best scores, box the others:  c + K + L  lies in  c + K + box(L).

    Loss in a direction d:  sum_i |d_i| sum_{j in L} |g_ij| - sum_{j in L} |d . g_j|.
    """

    @abstractmethod
    def score(self, generators: Tensor) -> Tensor:
        """How much is lost by boxing each generator: (batch, k, n) -> (batch, k); the largest are kept."""

    def _reduce(self, zonotope: Zonotope, max_symbols: int, protected: Tensor) -> Zonotope:
        ids = zonotope.symbols
        generators = zonotope.generators(ids)
        kept = torch.zeros(ids.shape[0], dtype=torch.bool)
        if max_symbols:
            # One choice for the whole batch: the elements share the numbering of symbols.
            largest = torch.finfo(generators.dtype).max
            scores = (
                self.score(generators.reshape(*generators.shape[:2], -1))
                .sum(dim=0)
                .nan_to_num(nan=largest, posinf=largest)
                .cpu()
            )
            scores = scores.masked_fill(protected, torch.inf)
            kept[scores.topk(max_symbols).indices] = True
        kept |= protected
        on_device = kept.to(generators.device)
        block = DenseBlock(ids[kept], generators[:, on_device])
        left = generators[:, ~on_device]
        boxed = rounding.sum_up(left.abs().sum(dim=1), left.shape[1])
        return Zonotope(zonotope.center, (block,) if max_symbols else (), zonotope.box).widen(boxed)


REDUCTIONS: Registry[type[Reduction]] = Registry("reduction", "zonoplug.reductions")
