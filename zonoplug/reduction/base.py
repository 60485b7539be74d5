"""What a reduction is: one generic function owns the contract, a method supplies the choice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.blocks import GeneratorBlock
from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import SettingError, SymbolBudgetError
from zonoplug.reduction.columns import Columns, block_ids, boxed, flat_columns, in_chunks
from zonoplug.reduction.context import ALONE, ReductionContext
from zonoplug.registry import Registry

NO_SYMBOLS = torch.zeros(0, dtype=torch.int64)


class Reduction(ABC):
    """Encloses a zonotope in one with fewer noise symbols.

    A subclass supplies `_reduce` (or, for rules that keep some generators and box the others, subclasses
    `BoxReduction` and supplies `score`), names its `source`, and registers itself with `@REDUCTIONS.register(name)`.

    Attributes:
        source: the paper.
        option: name and type of the one parameter that a method string can set, "random:7"; None if there is none.
        looks_ahead: whether the choice uses the operators that follow.
        keeps_budget: False only for the reference that reduces nothing.
    """

    source: ClassVar[str]
    option: ClassVar[tuple[str, Callable[[str], Any]] | None] = None
    looks_ahead: ClassVar[bool] = False
    keeps_budget: ClassVar[bool] = True

    @property
    def needs_influence(self) -> bool:
        """Whether the choice uses how values move the specification's rows."""
        return False

    @classmethod
    def from_option(cls, text: str | None) -> Reduction:
        """The reduction with its parameter read from text. Raises SettingError if it has none, or it is malformed."""
        if text is None:
            return cls()
        if cls.option is None:
            raise SettingError(f"{cls.__name__} takes no parameter, but got {text!r}. Leave out the ':'.")
        name, convert = cls.option
        try:
            return cls(**{name: convert(text)})
        except (ValueError, TypeError):
            raise SettingError(f"{cls.__name__}: {name} is {text!r}, which cannot be read.") from None

    @final
    def reduce(
        self,
        zonotope: Zonotope,
        max_symbols: int,
        protect: SymbolIds = NO_SYMBOLS,
        context: ReductionContext = ALONE,
    ) -> Zonotope:
        """Enclose `zonotope` in a zonotope with at most `max_symbols` named symbols.

        For every value of the kept symbols there are values of the fresh ones and of the box that give the same point,
        whatever the values of the others, so the result may take the original's place on one branch of a graph.
        Symbols that lie in a unit ball stay, with their ball, before any other; if the budget cannot hold them, the
        shortest are boxed by their dual norm.

        Args:
            zonotope: center (batch, *shape) with k symbols.
            max_symbols: upper limit on the named symbols of the result.
            protect: ids that are kept in any case, with their generators.
            context: what is known of the network around; needed with a source of symbols where generators are merged.
        Returns:
            `zonotope` itself if it is small enough, else a zonotope with the same center that contains it.
        Raises:
            SymbolBudgetError: `max_symbols` is negative, or below the number of protected symbols.
            ReductionRefusedError: the method would need too much memory or too many combinations here, or a source of
                fresh symbols.
        """
        ids = zonotope.symbols
        protected = ids[torch.isin(ids, protect)]
        least = int(protected.shape[0])
        if max_symbols < least:
            raise SymbolBudgetError(
                f"{type(self).__name__}: max_symbols is {max_symbols}, and must be at least {least}"
                f" ({least} symbols are protected)."
            )
        if ids.shape[0] <= max_symbols or not self.keeps_budget:
            return zonotope
        balls = [block for block in zonotope.blocks if block.norm != inf]
        if not balls:
            return self._reduce(zonotope, max_symbols, protected, context)
        plain = tuple(block for block in zonotope.blocks if block.norm == inf)
        ordinary = Zonotope(zonotope.center, plain, zonotope.box)
        room = max_symbols - int(torch.isin(ordinary.symbols, protect).sum())
        kept, radius = _keep_longest(balls, room, protect)
        ordinary = ordinary if radius is None else ordinary.widen(radius)
        left = max_symbols - sum(block.num_symbols for block in kept)
        if ordinary.num_symbols > left:
            mine = protected[torch.isin(protected, ordinary.symbols)]
            ordinary = self._reduce(ordinary, left, mine, context)
        return Zonotope(zonotope.center, (*ordinary.blocks, *kept), ordinary.box)

    @abstractmethod
    def _reduce(
        self, zonotope: Zonotope, max_symbols: int, protected: SymbolIds, context: ReductionContext
    ) -> Zonotope:
        """The method itself, on a zonotope without balls that is too large; `protected` are ids of it to keep."""

    def error_bound(self, before: Zonotope, after: Zonotope) -> Tensor | None:
        """An upper bound (batch,) of the Hausdorff distance between the two, from rules that promise one."""
        return None


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
    scores = torch.cat([flat_columns(block).abs().sum(dim=2).sum(dim=0) for block in balls]).cpu()
    largest = torch.finfo(scores.dtype).max
    protected = torch.isin(torch.cat([block.symbols for block in balls]), protect)
    scores = scores.nan_to_num(nan=largest, posinf=largest).masked_fill(protected, torch.inf)
    marks = torch.zeros(scores.shape[0], dtype=torch.bool)
    marks[scores.topk(room).indices] = True
    parts = list(zip(balls, marks.split([block.num_symbols for block in balls]), strict=True))
    kept: list[GeneratorBlock] = [block if bool(mark.all()) else block.select(mark) for block, mark in parts]
    gone = [block.select(~mark).radius() for block, mark in parts if not bool(mark.all())]
    total = rounding.sum_up(torch.stack(gone).sum(dim=0), len(gone))
    return [block for block in kept if block.num_symbols], total


class BoxReduction(Reduction):
    """Keep the generators with the best scores, box the others:  c + K + L  lies in  c + K + box(L).

    Loss in a direction d:  sum_i |d_i| sum_{j in L} |g_ij| - sum_{j in L} |d . g_j|.

    Of equal scores the longer generator stays: symbols fresh from an activation are all axis-aligned, and rules that
    compare directions cannot tell one from another.

    Attributes:
        ignores_zeros: whether the score of a generator is that of its non-zero entries, as for norms; then symbols with
            one entry are scored without writing the others out.
    """

    ignores_zeros: ClassVar[bool] = False

    @abstractmethod
    def score(self, generators: Tensor) -> Tensor:
        """How much is lost by boxing each generator: (batch, k, n) -> (batch, k); the largest are kept."""

    def rank(self, columns: Columns, context: ReductionContext) -> Tensor:
        """The score of some symbols, (batch, k): on all live values that share them. For rules that look around."""
        return self.score(columns.compact if self.ignores_zeros else columns.stacked)

    def order(self, zonotope: Zonotope, protected: SymbolIds, context: ReductionContext) -> tuple[Tensor, Tensor]:
        """All symbols from the best to the worst, protected ones first.

        Returns:
            places in the order of the blocks (k,); the scores in that order (k,), summed over the batch: one choice for
            all elements, since they share the numbering of symbols.
        """
        scores, lengths = [NO_SYMBOLS.double()], [NO_SYMBOLS.double()]
        for columns in in_chunks(zonotope, context):
            scores.append(_total(self.rank(columns, context)))
            lengths.append(_total(columns.lengths))
        score = torch.cat(scores).masked_fill(torch.isin(block_ids(zonotope), protected), torch.inf)
        by_length = torch.argsort(torch.cat(lengths), descending=True, stable=True)
        best = by_length[torch.argsort(score[by_length], descending=True, stable=True)]
        return best, score[best]

    def _reduce(
        self, zonotope: Zonotope, max_symbols: int, protected: SymbolIds, context: ReductionContext
    ) -> Zonotope:
        best, _ = self.order(zonotope, protected, context)
        return boxed(zonotope, marks_of(best[:max_symbols], best.shape[0]))


def marks_of(places: Tensor, count: int) -> Tensor:
    """(count,) True at the given places."""
    marks = torch.zeros(count, dtype=torch.bool)
    marks[places] = True
    return marks


def _total(scores: Tensor) -> Tensor:
    """Scores (batch, k) summed over the batch, on the CPU; what is not a number counts as the largest."""
    largest = torch.finfo(torch.float64).max / 4
    return scores.detach().double().sum(dim=0).nan_to_num(nan=largest, posinf=largest, neginf=-largest).cpu()


REDUCTIONS: Registry[type[Reduction]] = Registry("reduction", "zonoplug.reductions")
