"""Generator blocks: columns of a generator matrix that share a structure. The dense form is the oracle in tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from zonoplug.domain.linear_maps import LinearMap, Shape, per_symbol
from zonoplug.domain.symbols import SymbolIds


class GeneratorBlock(ABC):
    """k generators over coordinates of `shape`, for each element of a batch."""

    symbols: SymbolIds

    @property
    def num_symbols(self) -> int:
        return int(self.symbols.shape[0])

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Shape of one generator, without batch and symbols."""

    @abstractmethod
    def radius(self) -> Tensor:
        """(batch, *shape): sum of absolute generators."""

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
    def dense(self) -> Tensor:
        """(batch, k, *shape)."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseBlock(GeneratorBlock):
    """Generators written out.

    Attributes:
        symbols: (k,) ids.
        generators: (batch, k, *shape).
    """

    symbols: SymbolIds
    generators: Tensor

    @property
    def shape(self) -> Shape:
        return tuple(self.generators.shape[2:])

    def radius(self) -> Tensor:
        return self.generators.abs().sum(dim=1)

    def scale(self, factor: Tensor) -> DenseBlock:
        return DenseBlock(self.symbols, self.generators * factor.unsqueeze(1))

    def map(self, linear: LinearMap) -> DenseBlock:
        return DenseBlock(self.symbols, per_symbol(linear.apply, self.generators))

    def reshape(self, shape: Shape) -> DenseBlock:
        return DenseBlock(self.symbols, self.generators.reshape(*self.generators.shape[:2], *shape))

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
    """

    symbols: SymbolIds
    values: Tensor
    index: Tensor
    coordinates: Shape

    @property
    def shape(self) -> Shape:
        return self.coordinates

    def radius(self) -> Tensor:
        flat = self.values.new_zeros(self.values.shape[0], prod(self.coordinates))
        return flat.scatter_add(1, self.index, self.values.abs()).reshape(-1, *self.coordinates)

    def scale(self, factor: Tensor) -> DiagonalBlock:
        flat = factor.expand(self.values.shape[0], *self.coordinates).flatten(1)
        return DiagonalBlock(self.symbols, self.values * flat.gather(1, self.index), self.index, self.coordinates)

    def map(self, linear: LinearMap) -> DenseBlock:
        return DenseBlock(self.symbols, linear.columns(self.values, self.index, self.coordinates))

    def reshape(self, shape: Shape) -> DiagonalBlock:
        return DiagonalBlock(self.symbols, self.values, self.index, shape)

    def dense(self) -> Tensor:
        batch, count = self.values.shape
        flat = self.values.new_zeros(batch, count, prod(self.coordinates))
        flat = flat.scatter(2, self.index.unsqueeze(-1), self.values.unsqueeze(-1))
        return flat.reshape(batch, count, *self.coordinates)


def join_dense(blocks: list[DenseBlock]) -> DenseBlock:
    """One dense block with the symbols of all, in the same order. The blocks must have no symbol in common."""
    if len(blocks) == 1:
        return blocks[0]
    generators = torch.cat([block.generators for block in blocks], dim=1)
    return DenseBlock(torch.cat([block.symbols for block in blocks]), generators)
