"""What a block of generators is, and the dense one: columns written out, the oracle of every other structure.

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

PART_ENTRIES = 2**16  # numbers that are worked on at a time where order is free


def dual_norm(values: Tensor, norm: float, dim: int = 1) -> Tensor:
    """The largest  sum_j v_j e_j  over  ||e||_p <= 1:  ||v||_q  with  1/p + 1/q = 1,  along `dim`.

    Sums are scaled by the largest |v_j|, so that no power overflows or vanishes. While rounding is covered the result
    is made too large rather than too small (not for norm inf: that plain sum is covered where blocks are summed).
    """
    if norm == inf:
        total: Tensor = absolute_sum(values) if dim == 1 else values.abs().sum(dim=dim)
        return total
    if values.shape[dim] == 0:
        return values.sum(dim=dim)
    if norm == 1:
        return values.abs().amax(dim=dim)
    scale = values.detach().abs().amax(dim=dim, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    scaled: Tensor = torch.linalg.vector_norm(values / scale, ord=norm / (norm - 1), dim=dim)
    # Per term a division and a power, whose own error is a few units, then the sum, a root and a product.
    return rounding.sum_up(scaled * scale.squeeze(dim), 4 * values.shape[dim] + 64)


def absolute_sum(values: Tensor) -> Tensor:
    """sum_j |v_j|  for values (batch, k, *shape); large ones in parts, whose absolute values stay in the cache."""
    if values.numel() <= 2 * PART_ENTRIES:
        return values.abs().sum(dim=1)
    if values.shape[0] >= values.shape[1]:
        step = max(1, PART_ENTRIES * values.shape[0] // values.numel())
        return torch.cat([part.abs().sum(dim=1) for part in values.split(step)])
    parts = values.split(max(1, PART_ENTRIES * values.shape[1] // values.numel()), dim=1)
    total: Tensor = parts[0].abs().sum(dim=1)
    for part in parts[1:]:
        total = total + part.abs().sum(dim=1)
    return total


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

    @abstractmethod
    def select(self, marks: Tensor) -> GeneratorBlock:
        """The marked symbols (k,) and their generators, under the same norm."""

    @property
    def entries(self) -> int:
        """How many numbers are kept for one element of a batch."""
        return self.num_symbols * prod(self.shape)

    def entries_reshaped(self, shape: Shape) -> int:
        """How many numbers the same generators over coordinates of `shape` keep for one element."""
        return self.entries

    def entries_after(self, linear: LinearMap, shape: Shape) -> int:
        """How many numbers the image under `linear`, over coordinates of `shape`, will need for one element."""
        return self.num_symbols * prod(shape)


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
        flat = self.generators.reshape(*self.generators.shape[:2], -1)
        return replace(self, generators=torch.matmul(flat, rows.transpose(1, 2)))

    def dense(self) -> Tensor:
        return self.generators

    def select(self, marks: Tensor) -> DenseBlock:
        chosen = self.generators[:, marks.to(self.generators.device)]
        return replace(self, symbols=self.symbols[marks], generators=chosen)


def join_small(blocks: list[DenseBlock]) -> list[DenseBlock]:
    """The same generators in fewer blocks: small ones become one, which saves calls; copying large ones would not pay.

    The blocks have norm inf, and no symbol in common.
    """
    small = [block for block in blocks if block.generators.numel() <= PART_ENTRIES]
    if len(small) < 2:
        return blocks
    large = [block for block in blocks if block.generators.numel() > PART_ENTRIES]
    return [join_dense(small), *large]


def join_dense(blocks: list[DenseBlock]) -> DenseBlock:
    """One dense block with the symbols of all, in the same order. The blocks have norm inf, and no symbol in common."""
    if len(blocks) == 1:
        return blocks[0]
    generators = torch.cat([block.generators for block in blocks], dim=1)
    return DenseBlock(torch.cat([block.symbols for block in blocks]), generators)
