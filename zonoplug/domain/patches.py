"""Local patches: generators that are zero but for a small window, as convolutions make them of single neurons."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, prod

import torch
from torch import Tensor

from zonoplug.domain.convolutions import LocalMap
from zonoplug.domain.dense_block import DenseBlock, GeneratorBlock, dual_norm
from zonoplug.domain.linear_maps import LinearMap, Shape
from zonoplug.domain.symbols import SymbolIds

# Windows stay windows while they hold at most this part of the coordinates; gathering costs more than a plain pass.
WORTHWHILE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class PatchBlock(GeneratorBlock):
    """Generators that are zero outside a window of their own, of the same size for all.

    Attributes:
        symbols: (k,) ids.
        patches: (batch, k, channels, *window) the entries; 0 where the window leaves the coordinates.
        corner: (batch, k, rank) int64, the spatial place of each patch's first entry.
        coordinates: (channels, *size).
        norm: of the unit ball in which the symbols lie together; inf for none.
    """

    symbols: SymbolIds
    patches: Tensor
    corner: Tensor
    coordinates: Shape
    norm: float = inf

    @property
    def shape(self) -> Shape:
        return self.coordinates

    def radius(self) -> Tensor:
        if self.norm != inf:
            return dual_norm(self.dense(), self.norm)
        batch, _, channels = self.patches.shape[:3]
        values = self.patches.abs().flatten(3).transpose(1, 2).flatten(2)
        flat = values.new_zeros(batch, channels, prod(self.coordinates[1:]))
        place = self._places().flatten(1).unsqueeze(1).expand(values.shape)
        return flat.scatter_add(2, place, values).reshape(batch, *self.coordinates)

    def scale(self, factor: Tensor) -> PatchBlock:
        batch, count, channels = self.patches.shape[:3]
        flat = factor.expand(batch, *self.coordinates).flatten(2)
        place = self._places()
        picked = flat.gather(2, place.flatten(1).unsqueeze(1).expand(batch, channels, -1))
        scaled = self.patches.flatten(3) * picked.reshape(batch, channels, count, -1).transpose(1, 2)
        return replace(self, patches=scaled.reshape(self.patches.shape))

    def map(self, linear: LinearMap) -> GeneratorBlock:
        if isinstance(linear, LocalMap):
            window, out = linear.out_window(tuple(self.patches.shape[3:])), linear.out_shape(self.coordinates)
            if pays(window, out):
                patches = linear.move(self.patches.flatten(0, 1), self.corner.flatten(0, 1))
                patches = patches.reshape(*self.patches.shape[:2], *patches.shape[1:])
                return clipped(self.symbols, patches, linear.out_corner(self.corner), out, self.norm)
        return self._written_out().map(linear)

    def reshape(self, shape: Shape) -> GeneratorBlock:
        return self if shape == self.coordinates else self._written_out().reshape(shape)

    def contract(self, rows: Tensor) -> DenseBlock:
        return self._written_out().contract(rows)

    def dense(self) -> Tensor:
        batch, count, channels = self.patches.shape[:3]
        flat = self.patches.new_zeros(batch, count, channels, prod(self.coordinates[1:]))
        place = self._places().unsqueeze(2).expand(*self.patches.shape[:3], -1)
        return flat.scatter_add_(3, place, self.patches.flatten(3)).reshape(batch, count, *self.coordinates)

    def select(self, marks: Tensor) -> PatchBlock:
        here = marks.to(self.patches.device)
        return replace(self, symbols=self.symbols[marks], patches=self.patches[:, here], corner=self.corner[:, here])

    @property
    def entries(self) -> int:
        return self.patches[0].numel()

    def entries_reshaped(self, shape: Shape) -> int:
        return self.entries if shape == self.coordinates else self.num_symbols * prod(shape)

    def entries_after(self, linear: LinearMap, shape: Shape) -> int:
        if isinstance(linear, LocalMap):
            window = tuple(self.patches.shape[3:])
            read = self.patches.shape[2] * prod(linear.read_window(window))
            return self.num_symbols * max(read, entries_of(window, linear, shape))
        return self.num_symbols * prod(shape)

    def _written_out(self) -> DenseBlock:
        return DenseBlock(self.symbols, self.dense(), self.norm)

    def _places(self) -> Tensor:
        """(batch, k, prod(window)): the flat spatial place of each entry; some place for the zeros outside."""
        flat = torch.zeros((), dtype=torch.int64, device=self.corner.device)
        rank = self.corner.shape[2]
        for axis, size in enumerate(self.coordinates[1:]):
            place = _along(self.corner, self.patches.shape[axis + 3], axis).clamp(0, size - 1)
            flat = flat * size + place.reshape(_view(place, axis, rank))
        return flat.flatten(2)


def pays(window: Shape, shape: Shape) -> bool:
    """Whether patches of this window are worth it for tensors of `shape` (channels, *size)."""
    return prod(window) <= WORTHWHILE * prod(shape[1:])


def entries_of(window: Shape, linear: LocalMap, shape: Shape) -> int:
    """Entries kept of the image of a window, over coordinates of `shape` (channels, *size)."""
    image = linear.out_window(window)
    return shape[0] * prod(image) if pays(image, shape) else prod(shape)


def introduced(
    linear: LocalMap, symbols: SymbolIds, values: Tensor, index: Tensor, shape: Shape, norm: float
) -> GeneratorBlock:
    """Images of generators with one entry each: values (batch, k) at flat coordinates index (batch, k) of `shape`."""
    place, parts = index % prod(shape[1:]), []
    for size in reversed(shape[1:]):
        parts.append(place % size)
        place = torch.div(place, size, rounding_mode="floor")
    place = torch.stack(parts[::-1], dim=-1)
    channel = torch.div(index, prod(shape[1:]), rounding_mode="floor")
    out = linear.out_shape(shape)
    window = linear.out_window((1,) * linear.rank)
    whole = torch.tensor([width >= size for width, size in zip(window, out[1:], strict=True)], device=index.device)
    corner = linear.out_corner(place).masked_fill(whole, 0)
    window = tuple(min(width, size) for width, size in zip(window, out[1:], strict=True))
    outs = [_along(corner, width, axis).flatten(0, 1) for axis, width in enumerate(window)]
    patches = linear.impulses(channel.flatten(), place.flatten(0, 1), outs)
    patches = patches.reshape(*values.shape, *patches.shape[1:]) * values.reshape(*values.shape, *[1] * len(shape))
    if window == out[1:]:
        return DenseBlock(symbols, patches, norm)
    block = clipped(symbols, patches, corner, out, norm)
    return block if pays(window, out) else DenseBlock(symbols, block.dense(), norm)


def single_entries(symbols: SymbolIds, values: Tensor, index: Tensor, shape: Shape, norm: float) -> PatchBlock:
    """Generators with one entry each, values (batch, k) at flat coordinates index (batch, k), as windows of size 1."""
    size = prod(shape[1:])
    place, parts = index % size, []
    for width in reversed(shape[1:]):
        parts.append(place % width)
        place = torch.div(place, width, rounding_mode="floor")
    channel = torch.div(index, size, rounding_mode="floor").unsqueeze(2)
    patches = values.new_zeros(*values.shape, shape[0]).scatter_(2, channel, values.unsqueeze(2))
    patches = patches.reshape(*patches.shape, *[1] * (len(shape) - 1))
    return PatchBlock(symbols, patches, torch.stack(parts[::-1], dim=-1), shape, norm)


def sum_patches(left: PatchBlock, right: PatchBlock) -> PatchBlock | None:
    """The sums of two blocks' columns, symbol by symbol, in windows that hold both.

    None where the windows of one lie differently to those of the other from symbol to symbol, or where windows no
    longer pay. The blocks have the same symbols, norm and coordinates.
    """
    first = torch.minimum(left.corner, right.corner)
    shifts = [(block.corner - first).flatten(0, 1) for block in (left, right)]
    if not left.num_symbols or any(bool((shift != shift[0]).any()) for shift in shifts):
        return None
    parts = [(block.patches, shift[0].tolist()) for block, shift in zip((left, right), shifts, strict=True)]
    window = tuple(
        max(shift[axis] + patches.shape[axis + 3] for patches, shift in parts) for axis in range(first.shape[2])
    )
    if not pays(window, left.coordinates):
        return None
    total = left.patches.new_zeros(*left.patches.shape[:3], *window)
    for patches, shift in parts:
        place = total
        for axis, (at, width) in enumerate(zip(shift, patches.shape[3:], strict=True)):
            place = place.narrow(axis + 3, at, width)
        place += patches
    return PatchBlock(left.symbols, total, first, left.coordinates, left.norm)


def clipped(symbols: SymbolIds, patches: Tensor, corner: Tensor, coordinates: Shape, norm: float) -> PatchBlock:
    """A block of patches, of which what lies outside the coordinates is dropped, in place."""
    rank = corner.shape[2]
    outside = torch.zeros((), dtype=torch.bool, device=corner.device)
    for axis, size in enumerate(coordinates[1:]):
        place = _along(corner, patches.shape[axis + 3], axis)
        outside = outside | ((place < 0) | (place >= size)).reshape(_view(place, axis, rank))
    if bool(outside.any()):
        patches = patches.masked_fill_(outside.unsqueeze(2), 0)
    return PatchBlock(symbols, patches, corner, coordinates, norm)


def _along(corner: Tensor, width: int, axis: int) -> Tensor:
    """Places along one spatial axis: (batch, k, width)."""
    return corner[..., axis, None] + torch.arange(width, device=corner.device)


def _view(place: Tensor, axis: int, rank: int) -> list[int]:
    """The shape in which places along one axis broadcast against (batch, k, *window)."""
    view = [*place.shape[:2], *[1] * rank]
    view[axis + 2] = place.shape[2]
    return view
