"""The zonotope: a center, generator blocks and a box."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.alignment import align_sum
from zonoplug.domain.blocks import DenseBlock, DiagonalBlock, GeneratorBlock, join_small
from zonoplug.domain.streaming import StreamedBlock, fits, map_streamed, reshape_streamed, sum_streamed
from zonoplug.domain.symbols import SymbolIds, SymbolSource, merge_ids

if TYPE_CHECKING:
    from zonoplug.domain.linear_maps import LinearMap, Shape


FEW_TERMS = 32  # so few products need not be counted one by one


class Interval(NamedTuple):
    """Lower and upper bounds, each (batch, *shape). A NaN means that nothing is known."""

    lower: Tensor
    upper: Tensor

    def expanded(self, count: int) -> Interval:
        """One interval (1, *shape) for each of `count` elements, in the same memory."""
        return Interval(*(end.expand(count, *end.shape[1:]) for end in self))


@dataclass(frozen=True, slots=True, eq=False)
class Zonotope:
    """The set  c + sum_j g_j e_j + b * u,  e_j and every coordinate of u in [-1, 1], for each element of a batch.

    Symbols of a block with a finite norm p lie in the unit ball of that norm besides: a multi-norm zonotope.

    Attributes:
        center: c, (batch, *shape).
        blocks: the generators g_j; no two blocks share a symbol.
        box: b >= 0, (batch, *shape): radii without named symbols, or None.
    """

    center: Tensor
    blocks: tuple[GeneratorBlock, ...] = ()
    box: Tensor | None = None
    _radius: dict[tuple[bool, bool], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def shape(self) -> Shape:
        """Shape of one point, without the batch."""
        return tuple(self.center.shape[1:])

    @property
    def batch(self) -> int:
        return int(self.center.shape[0])

    @property
    def num_symbols(self) -> int:
        return sum(block.num_symbols for block in self.blocks)

    @property
    def symbols(self) -> SymbolIds:
        """Sorted ids of all named symbols, (k,)."""
        return merge_ids(*(block.symbols for block in self.blocks))

    def radius(self) -> Tensor:
        """(batch, *shape): sum of absolute generators, or their dual norm where symbols lie in a ball, and the box."""
        asked = rounding.active(), torch.is_grad_enabled()
        if asked not in self._radius:
            total = torch.zeros_like(self.center) if self.box is None else self.box
            for block in self.blocks:
                total = total + block.radius()
            self._radius[asked] = rounding.sum_up(total, self.num_symbols)
        return self._radius[asked]

    def interval_hull(self) -> Interval:
        """The smallest interval around the zonotope, up to rounding."""
        radius = self.radius()
        return Interval(rounding.down(self.center - radius), rounding.up(self.center + radius))

    def generators(self, symbols: SymbolIds | None = None) -> Tensor:
        """(batch, k, *shape): the generators of `symbols` (sorted ids; all by default), 0 where a symbol is absent."""
        wanted = self.symbols if symbols is None else symbols
        dense = self.center.new_zeros(self.batch, wanted.shape[0], *self.shape)
        for block in self.blocks:
            place = torch.searchsorted(wanted, block.symbols)
            found = place < wanted.shape[0]
            found &= wanted[place.clamp(max=max(wanted.shape[0] - 1, 0))] == block.symbols if wanted.numel() else found
            if bool(found.any()):
                dense.index_copy_(1, place[found].to(dense.device), block.dense()[:, found.to(dense.device)])
        return dense

    def support(self, directions: Tensor) -> Tensor:
        """Largest d . x over the zonotope: directions (m, n), n = prod(shape). Returns (batch, m)."""
        value = self.center.reshape(self.batch, -1) @ directions.T
        for block in self.blocks:
            value = value + block.contract(directions.unsqueeze(0)).radius()
        if self.box is not None:
            value = value + self.box.reshape(self.batch, -1) @ directions.abs().T
        return value

    def point(self, noise: Tensor, box_noise: Tensor | None = None) -> Tensor:
        """The point for given noise values.

        Args:
            noise: (batch, k) in [-1, 1], for the symbols in the order of `symbols`; the point lies in the zonotope if
                those of every ball lie in their ball.
            box_noise: (batch, *shape) in [-1, 1]; 0 by default.
        Returns:
            (batch, *shape).
        """
        shape = (self.batch, -1, *([1] * len(self.shape)))
        value = self.center + (self.generators() * noise.reshape(shape)).sum(dim=1)
        if self.box is not None and box_noise is not None:
            value = value + self.box * box_noise
        return value

    def map(self, linear: LinearMap, offset: Tensor | None = None) -> Zonotope:
        """The exact image under  x -> A x + offset.  The offset broadcasts against (batch, *out_shape)."""
        center = linear.apply(self.center)
        if offset is not None:
            center = center + offset
        blocks = self._map_blocks(linear, tuple(center.shape[1:]))
        box = None if self.box is None else linear.apply_absolute(self.box)
        image = Zonotope(center, blocks, box)
        terms = linear.terms(self.shape)
        if not rounding.active() or (terms == 0 and offset is None):
            return image
        reach = self.center.abs() + self.radius()
        spread = linear.apply_absolute(rounding.up(reach))
        counted = linear.count(reach > 0) if terms > FEW_TERMS else terms
        return image.widen(rounding.affine_error(spread, offset, counted, self.num_symbols))

    def _map_blocks(self, linear: LinearMap, shape: Shape) -> tuple[GeneratorBlock, ...]:
        """The blocks' images, over coordinates of `shape`; streamed where memory is limited."""
        entries = sum(block.entries + block.entries_after(linear, shape) for block in self.blocks)
        if any(isinstance(block, StreamedBlock) for block in self.blocks) or not fits(entries, self.center):
            plain = tuple(block for block in self.blocks if block.norm == inf)
            balls = tuple(block.map(linear) for block in self.blocks if block.norm != inf)
            return ((map_streamed(plain, linear, shape, self.center),) if plain else ()) + balls
        mapped = [block.map(linear) for block in self.blocks]
        dense = [block for block in mapped if isinstance(block, DenseBlock) and block.norm == inf]
        rest = tuple(block for block in mapped if not isinstance(block, DenseBlock) or block.norm != inf)
        return (*join_small(dense), *rest)

    def scale(self, factor: Tensor, offset: Tensor | None = None) -> Zonotope:
        """Coordinate-wise  factor * x + offset;  both broadcast against (batch, *shape). Diagonal blocks stay so."""
        center = self.center * factor if offset is None else self.center * factor + offset
        box = None if self.box is None else self.box * factor.abs()
        scaled = Zonotope(center, tuple(block.scale(factor) for block in self.blocks), box)
        if not rounding.active():
            return scaled
        error = rounding.affine_error(self.magnitude() * factor.abs(), offset, 1, self.num_symbols)
        plain = (factor == 0) | (factor.abs() == 1)  # nothing is rounded there
        return scaled.widen(error.masked_fill(plain if offset is None else plain & (offset == 0), 0))

    def shift(self, offset: Tensor) -> Zonotope:
        """x + offset; the offset broadcasts against (batch, *shape) without enlarging it."""
        moved = replace(self, center=self.center + offset)
        if not rounding.active():
            return moved
        return moved.widen(rounding.affine_error(torch.zeros_like(self.center), moved.center, 1, 0))

    def magnitude(self) -> Tensor:
        """An upper bound of |x| over the zonotope, (batch, *shape)."""
        return rounding.up(self.center.abs() + self.radius())

    def reshape(self, shape: Shape) -> Zonotope:
        """The same set over coordinates arranged as `shape`."""
        box = None if self.box is None else self.box.reshape(-1, *shape)
        entries = sum(block.entries_reshaped(shape) for block in self.blocks)
        if entries > sum(block.entries for block in self.blocks) and not fits(2 * entries, self.center):
            blocks = reshape_streamed(self.blocks, shape, self.center)
        else:
            blocks = tuple(block.reshape(shape) for block in self.blocks)
        return Zonotope(self.center.reshape(-1, *shape), blocks, box)

    def widen(self, radius: Tensor) -> Zonotope:
        """Add `radius` >= 0, (batch, *shape), to the box."""
        return replace(self, box=radius if self.box is None else rounding.up(self.box + radius))

    def with_fresh_symbols(self, radius: Tensor, source: SymbolSource, node: str) -> Zonotope:
        """Add `radius` >= 0, (batch, *shape), as symbols of their own: one for each coordinate that needs it.

        NaN or infinite radii get a symbol too, so that nothing unknown looks certain.
        """
        flat = radius.reshape(self.batch, -1)
        needed = ~(flat <= 0)
        count = int(needed.sum(dim=1).max()) if needed.numel() else 0
        if count == 0:
            return self
        values, index = compress(flat, needed, count)
        block = DiagonalBlock(source.fresh(node, index), values, index, self.shape)
        return replace(self, blocks=(*self.blocks, block))


def compress(flat: Tensor, needed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Move the marked entries of each row to the front.

    Args:
        flat, needed: (batch, n) values, and marks; count: the largest number of marks in a row.
    Returns:
        values (batch, count), 0 behind a row's own marks, and their columns (batch, count).
    """
    row, column = needed.nonzero(as_tuple=True)
    slot = needed.cumsum(dim=1)[row, column] - 1
    index = torch.zeros(flat.shape[0], count, dtype=torch.int64, device=flat.device)
    index[row, slot] = column
    values = flat.new_zeros(flat.shape[0], count)
    values[row, slot] = flat[row, column]
    return values, index


def add_zonotopes(left: Zonotope, right: Zonotope) -> Zonotope:
    """The exact sum of two zonotopes of equal shape; shared symbols are aligned by id, boxes are independent."""
    center = left.center + right.center
    box = left.box if right.box is None else right.box if left.box is None else left.box + right.box
    streamed = any(isinstance(block, StreamedBlock) for block in (*left.blocks, *right.blocks))
    blocks = sum_streamed(left.blocks, right.blocks, center) if streamed else align_sum(left.blocks, right.blocks)
    total = Zonotope(center, blocks, box)
    if not rounding.active():
        return total
    magnitude = left.magnitude() + right.magnitude()
    return total.widen(rounding.affine_error(magnitude, None, 1, total.num_symbols))
