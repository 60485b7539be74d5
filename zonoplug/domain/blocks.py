"""Generator blocks: columns of a generator matrix that share a structure.

A symbol is born with one non-zero entry (`DiagonalBlock`); convolutions spread it over a window (`PatchBlock`), until
that no longer pays; everything else mixes whole columns (`DenseBlock`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, prod

import torch
from torch import Tensor

from zonoplug.domain.convolutions import LocalMap
from zonoplug.domain.dense_block import DenseBlock, GeneratorBlock, dual_norm, join_dense, join_small
from zonoplug.domain.linear_maps import LinearMap, Shape
from zonoplug.domain.patches import PatchBlock, entries_of, introduced, single_entries, sum_patches
from zonoplug.domain.symbols import SymbolIds

__all__ = [
    "DenseBlock",
    "DiagonalBlock",
    "GeneratorBlock",
    "PatchBlock",
    "dual_norm",
    "join_dense",
    "join_small",
    "sum_local",
]


@dataclass(frozen=True, slots=True, eq=False)
class DiagonalBlock(GeneratorBlock):
    """Generators with one non-zero coordinate each: symbols at their birth, before anything mixes them.

    Attributes:
        symbols: (k,) ids.
        values: (batch, k) the non-zero entries; 0 where an element of the batch needs fewer symbols than another.
        index: (batch, k) int64, the flat coordinate of each entry.
        coordinates: the shape that the flat coordinates belong to.
        norm: of the unit ball in which the symbols lie together; inf for none. No two symbols of a ball share a
            coordinate.
    """

    symbols: SymbolIds
    values: Tensor
    index: Tensor
    coordinates: Shape
    norm: float = inf

    @property
    def shape(self) -> Shape:
        return self.coordinates

    def radius(self) -> Tensor:
        flat = self.values.new_zeros(self.values.shape[0], prod(self.coordinates))
        return flat.scatter_add(1, self.index, self.values.abs()).reshape(-1, *self.coordinates)

    def scale(self, factor: Tensor) -> DiagonalBlock:
        flat = factor.expand(self.values.shape[0], *self.coordinates).reshape(self.values.shape[0], -1)
        return replace(self, values=self.values * flat.gather(1, self.index))

    def map(self, linear: LinearMap) -> GeneratorBlock:
        if isinstance(linear, LocalMap) and len(self.coordinates) == linear.rank + 1:
            return introduced(linear, self.symbols, self.values, self.index, self.coordinates, self.norm)
        return DenseBlock(self.symbols, linear.columns(self.values, self.index, self.coordinates), self.norm)

    def reshape(self, shape: Shape) -> DiagonalBlock:
        return replace(self, coordinates=shape)

    def contract(self, rows: Tensor) -> DenseBlock:
        batch, count = self.values.shape
        index = self.index.unsqueeze(1).expand(batch, rows.shape[1], count)
        picked = rows.expand(batch, *rows.shape[1:]).gather(2, index)
        return DenseBlock(self.symbols, (picked * self.values.unsqueeze(1)).transpose(1, 2), self.norm)

    def dense(self) -> Tensor:
        batch, count = self.values.shape
        flat = self.values.new_zeros(batch, count, prod(self.coordinates))
        flat = flat.scatter(2, self.index.unsqueeze(-1), self.values.unsqueeze(-1))
        return flat.reshape(batch, count, *self.coordinates)

    def select(self, marks: Tensor) -> DiagonalBlock:
        here = marks.to(self.values.device)
        return replace(self, symbols=self.symbols[marks], values=self.values[:, here], index=self.index[:, here])

    @property
    def entries(self) -> int:
        return self.num_symbols

    def entries_after(self, linear: LinearMap, shape: Shape) -> int:
        if isinstance(linear, LocalMap) and len(self.coordinates) == linear.rank + 1:
            return self.num_symbols * entries_of((1,) * linear.rank, linear, shape)
        return self.num_symbols * prod(shape)


def sum_local(left: GeneratorBlock, right: GeneratorBlock) -> GeneratorBlock | None:
    """The sums of two blocks' columns as a block that still keeps few entries, or None where there is none.

    That takes the same symbols in the same order, the same norm, and blocks of single entries or of windows.
    """
    same = left.norm == right.norm and left.shape == right.shape and torch.equal(left.symbols, right.symbols)
    if not same or len(left.shape) < 2:
        return None
    if isinstance(left, DiagonalBlock) and isinstance(right, DiagonalBlock) and torch.equal(left.index, right.index):
        return replace(left, values=left.values + right.values)
    parts = [
        single_entries(block.symbols, block.values, block.index, block.shape, block.norm)
        if isinstance(block, DiagonalBlock)
        else block
        for block in (left, right)
    ]
    first, second = parts
    if not isinstance(first, PatchBlock) or not isinstance(second, PatchBlock):
        return None
    return sum_patches(first, second)
