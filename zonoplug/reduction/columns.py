"""Generators a few at a time: scoring and boxing without writing out what is stored in fewer numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.blocks import DenseBlock, DiagonalBlock, GeneratorBlock
from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Zonotope
from zonoplug.reduction.context import ReductionContext

CHUNK_ENTRIES = 1 << 24


def flat_columns(block: GeneratorBlock) -> Tensor:
    """A block's generators written out, (batch, k, n)."""
    dense = block.dense()
    return dense.reshape(*dense.shape[:2], -1)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Some symbols' generators.

    Attributes:
        block: k symbols in the value that is reduced.
        elsewhere: (batch, k, n_i) in the other live values that know some of these symbols; 0 where one does not.
        places: which entries of the context's `elsewhere` these are.
    """

    block: GeneratorBlock
    elsewhere: tuple[Tensor, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def ids(self) -> SymbolIds:
        """(k,)."""
        return self.block.symbols

    @property
    def here(self) -> Tensor:
        """(batch, k, n): the generators written out; n = prod(shape) of the value."""
        return flat_columns(self.block)

    @property
    def stacked(self) -> Tensor:
        """(batch, k, n + sum n_i): the generators over all live values at once."""
        return torch.cat((self.here, *self.elsewhere), dim=2) if self.elsewhere else self.here

    @property
    def compact(self) -> Tensor:
        """As `stacked`, without coordinates that are 0 for all symbols but one, where the structure tells."""
        if isinstance(self.block, DiagonalBlock):
            return torch.cat((self.block.values.unsqueeze(2), *self.elsewhere), dim=2)
        return self.stacked

    @property
    def lengths(self) -> Tensor:
        """(batch, k): the sums of absolute entries in the value itself."""
        return self.block.values.abs() if isinstance(self.block, DiagonalBlock) else self.here.abs().sum(dim=2)

    def project(self, rows: Tensor) -> Tensor:
        """d . g for rows d (batch, m, n): (batch, k, m)."""
        return self.block.contract(rows).dense()

    def project_absolute(self, weight: Tensor) -> Tensor:
        """w . |g| for weights w (batch, n): (batch, k)."""
        if isinstance(self.block, DiagonalBlock):
            return self.block.values.abs() * weight.gather(1, self.block.index)
        return torch.matmul(self.here.abs(), weight.unsqueeze(2)).squeeze(2)


def pick(block: GeneratorBlock, marks: Tensor) -> GeneratorBlock:
    """The marked symbols (k,) of a block, in its own structure."""
    if bool(marks.all()):
        return block
    if isinstance(block, DiagonalBlock):
        on_device = marks.to(block.values.device)
        return replace(
            block,
            symbols=block.symbols[marks],
            values=block.values[:, on_device],
            index=block.index[:, on_device],
        )
    return block.select(marks)


def in_chunks(zonotope: Zonotope, context: ReductionContext) -> Iterator[Columns]:
    """All generators in the order of the blocks, so many at once as fit into a modest tensor when written out."""
    others = [live.zonotope for live in context.elsewhere]
    width = zonotope.center.numel() + sum(other.center.numel() for other in others)
    step = max(1, CHUNK_ENTRIES // max(width, 1))
    for block in zonotope.blocks:
        for start in range(0, block.num_symbols, step):
            marks = torch.zeros(block.num_symbols, dtype=torch.bool)
            marks[start : start + step] = True
            part = pick(block, marks)
            shared = [i for i, other in enumerate(others) if any_shared(other, part.symbols)]
            elsewhere = tuple(columns_of(others[i], part.symbols) for i in shared)
            yield Columns(part, elsewhere, tuple(shared))


def any_shared(zonotope: Zonotope, ids: SymbolIds) -> bool:
    """Whether a zonotope knows one of the symbols."""
    return any(bool(torch.isin(block.symbols, ids).any()) for block in zonotope.blocks)


def columns_of(zonotope: Zonotope, ids: SymbolIds) -> Tensor:
    """(batch, k, n): a zonotope's generators of `ids`, in that order; 0 where it does not know a symbol."""
    order = torch.argsort(ids)
    dense = zonotope.center.new_zeros(zonotope.batch, ids.shape[0], zonotope.center[0].numel())
    for block in zonotope.blocks:
        marks = torch.isin(block.symbols, ids)
        if bool(marks.any()):
            part = pick(block, marks)
            place = order[torch.searchsorted(ids[order], part.symbols)]
            dense.index_copy_(1, place.to(dense.device), flat_columns(part))
    return dense


def block_ids(zonotope: Zonotope) -> SymbolIds:
    """The ids in the order of the blocks, (k,)."""
    return torch.cat([torch.zeros(0, dtype=torch.int64), *(block.symbols for block in zonotope.blocks)])


def divide(zonotope: Zonotope, kept: Tensor) -> tuple[tuple[GeneratorBlock, ...], tuple[GeneratorBlock, ...]]:
    """The blocks' marked and unmarked symbols; `kept` (k,) in the order of the blocks."""
    parts = kept.split([block.num_symbols for block in zonotope.blocks])
    inside = tuple(pick(b, m) for b, m in zip(zonotope.blocks, parts, strict=True) if bool(m.any()))
    outside = tuple(pick(b, ~m) for b, m in zip(zonotope.blocks, parts, strict=True) if not bool(m.all()))
    return inside, outside


def boxed(zonotope: Zonotope, kept: Tensor) -> Zonotope:
    """The zonotope with its unmarked symbols in the box; `kept` (k,) in the order of the blocks."""
    inside, outside = divide(zonotope, kept)
    result = Zonotope(zonotope.center, inside, zonotope.box)
    return result.widen(total_radius(zonotope, outside)) if outside else result


def total_radius(like: Zonotope, blocks: tuple[GeneratorBlock, ...]) -> Tensor:
    """(batch, *shape): the sum of the absolute generators of some blocks."""
    total = torch.zeros_like(like.center)
    for block in blocks:
        total = total + block.radius()
    return rounding.sum_up(total, sum(block.num_symbols for block in blocks))


def written_out(like: Zonotope, blocks: tuple[GeneratorBlock, ...]) -> Tensor:
    """(batch, k, n): the generators of some blocks."""
    empty = like.center.new_zeros(like.batch, 0, like.center[0].numel())
    return torch.cat([empty, *(flat_columns(block) for block in blocks)], dim=1)


def dense_block(like: Zonotope, ids: SymbolIds, generators: Tensor) -> DenseBlock:
    """Generators (batch, k, n) as a block of ordinary symbols over the shape of `like`."""
    return DenseBlock(ids, generators.reshape(like.batch, -1, *like.shape), inf)
