"""Generator blocks: columns of a generator matrix that share a structure. The dense form is the oracle in tests.

A block's symbols lie in [-1, 1], each on its own, or together in a unit ball: with `norm` p they satisfy
||e||_p <= 1, and the reach of generators in a direction is the dual norm of their values there. A block holds a ball's
symbols or some of them, as a part of a ball's symbols lies in a ball of that norm too. A ball lies in its box, so it is
always sound to treat such symbols as ordinary ones.

Source for balls: Bonaert, Dimitrov, Baader, Vechev, PLDI 2021 (multi-norm zonotopes).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import inf, prod

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.linear_maps import LinearMap, Shape, per_symbol
from zonoplug.domain.symbols import SymbolIds


def dual_norm(values: Tensor, norm: float, dim: int = 1) -> Tensor:
    """The largest  sum_j v_j e_j  over  ||e||_p <= 1:  ||v||_q  with  1/p + 1/q = 1,  along `dim`.

    Sums are scaled by the largest |v_j|, so that no power overflows or vanishes. While rounding is covered the result
    is made too large rather than too small (not for norm inf: that plain sum is covered where blocks are summed).
    """
    if norm == inf:
        return values.abs().sum(dim=dim)
    if values.shape[dim] == 0:
        return values.sum(dim=dim)
    if norm == 1:
        return values.abs().amax(dim=dim)
    scale = values.detach().abs().amax(dim=dim, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    scaled: Tensor = torch.linalg.vector_norm(values / scale, ord=norm / (norm - 1), dim=dim)
    # Per term a division and a power, whose own error is a few units, then the sum, a root and a product.
    return rounding.sum_up(scaled * scale.squeeze(dim), 4 * values.shape[dim] + 64)


class GeneratorBlock(ABC):
    """k generators over coordinates of `shape`, for each element of a batch.

    Attributes:
        symbols: (k,) ids.
        norm: p if the symbols satisfy ||e||_p <= 1 together; inf if each lies in [-1, 1] on its own.
    """

    symbols: SymbolIds
    norm: float

    @property
    def num_symbols(self) -> int:
        return int(self.symbols.shape[0])

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Shape of one generator, without batch and symbols."""

    @abstractmethod
    def radius(self) -> Tensor:
        """(batch, *shape): the dual norm of the generators' values; the sum of their absolute values for norm inf."""

    @abstractmethod
    def scale(self, factor: Tensor) -> GeneratorBlock:
        """Each generator times `factor`, (batch or 1, *shape), coordinate by coordinate."""

    @abstractmethod
    def map(self, linear: LinearMap) -> GeneratorBlock:
        """Each generator through a linear map."""

    @abstractmethod
    def reshape(self, shape: Shape) -> GeneratorBlock:
        """The same generators over coordinates arranged as `shape`."""

    @abstractmethod
    def contract(self, rows: Tensor) -> DenseBlock:
        """Each generator's products with `rows` (batch or 1, m, n), n = prod(shape): generators over (m,)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """(batch, k, *shape)."""

    def select(self, marks: Tensor) -> DenseBlock:
        """The marked symbols (k,) and their generators, under the same norm."""
        dense = self.dense()
        return DenseBlock(self.symbols[marks], dense[:, marks.to(dense.device)], self.norm)


@dataclass(frozen=True, slots=True, eq=False)
class DenseBlock(GeneratorBlock):
    """Generators written out.

    Attributes:
        symbols: (k,) ids.
        generators: (batch, k, *shape).
        norm: of the unit ball in which the symbols lie together; inf for none.
    """

    symbols: SymbolIds
    generators: Tensor
    norm: float = inf

    @property
    def shape(self) -> Shape:
        return tuple(self.generators.shape[2:])

    def radius(self) -> Tensor:
        return dual_norm(self.generators, self.norm)

    def scale(self, factor: Tensor) -> DenseBlock:
        return replace(self, generators=self.generators * factor.unsqueeze(1))

    def map(self, linear: LinearMap) -> DenseBlock:
        return replace(self, generators=per_symbol(linear.apply, self.generators))

    def reshape(self, shape: Shape) -> DenseBlock:
        return replace(self, generators=self.generators.reshape(*self.generators.shape[:2], *shape))

    def contract(self, rows: Tensor) -> DenseBlock:
        return replace(
            self, generators=torch.matmul(self.generators.reshape(*self.generators.shape[:2], -1), rows.transpose(1, 2))
        )

    def dense(self) -> Tensor:
        return self.generators


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

    def map(self, linear: LinearMap) -> DenseBlock:
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


def join_dense(blocks: list[DenseBlock]) -> DenseBlock:
    """One dense block with the symbols of all, in the same order. The blocks have norm inf, and no symbol in common."""
    if len(blocks) == 1:
        return blocks[0]
    generators = torch.cat([block.generators for block in blocks], dim=1)
    return DenseBlock(torch.cat([block.symbols for block in blocks]), generators)
