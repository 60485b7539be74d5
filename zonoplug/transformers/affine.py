"""Exact transformers: sums, products with constants, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.domain import rounding
from zonoplug.domain.alignment import grouped
from zonoplug.domain.linear_maps import MatrixMap, NonNegativeMap, SignedMap
from zonoplug.domain.streaming import StreamedBlock
from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Zonotope, add_zonotopes

Operand = Zonotope | Tensor


def add(left: Operand, right: Operand) -> Zonotope:
    """left + right, where at least one is a zonotope and shapes broadcast as in torch."""
    if isinstance(left, Tensor):
        left, right = right, left
    assert isinstance(left, Zonotope)
    if isinstance(right, Tensor):
        shape = torch.broadcast_shapes(left.center.shape, right.shape)
        return expand(left, tuple(shape[1:])).shift(right)
    shape = torch.broadcast_shapes(left.center.shape, right.center.shape)
    return add_zonotopes(expand(left, tuple(shape[1:])), expand(right, tuple(shape[1:])))


def negate(operand: Operand) -> Operand:
    """-x."""
    if isinstance(operand, Tensor):
        return -operand
    return operand.scale(torch.full((1,) * operand.center.dim(), -1.0).to(operand.center))


def multiply(zonotope: Zonotope, constant: Tensor) -> Zonotope:
    """constant * x, coordinate by coordinate; the constant broadcasts against (batch, *shape)."""
    shape = tuple(torch.broadcast_shapes(zonotope.center.shape, constant.shape)[1:])
    constant = constant.to(zonotope.center.dtype)
    constant = constant.reshape((1,) * (zonotope.center.dim() - constant.dim()) + tuple(constant.shape))
    return expand(zonotope, shape).scale(constant)


def expand(zonotope: Zonotope, shape: tuple[int, ...]) -> Zonotope:
    """Repeat axes of length 1, and add axes in front, as torch broadcasts (batch, *shape)."""
    if zonotope.shape == shape:
        return zonotope
    missing = len(shape) - len(zonotope.shape)
    aligned = zonotope.reshape((1,) * missing + zonotope.shape) if missing else zonotope
    return aligned.map(NonNegativeMap(lambda x: x.expand(x.shape[0], *shape), moves_only=True))


def rearrange(
    zonotope: Zonotope, function: Callable[[Tensor], Tensor], moves_only: bool = False, terms: int | None = None
) -> Zonotope:
    """A function of rows whose matrix has no negative entry.

    Args:
        moves_only: whether it only moves and copies values (transpose, slice, pad with zeros); if not, it may sum
            (average, sum, interpolation).
        terms: how many products it sums for one output, at most; as many as there are inputs by default.
    """
    return zonotope.map(NonNegativeMap(function, moves_only, terms))


def matrix(zonotope: Zonotope, weight: Tensor, offset: Tensor | None = None) -> Zonotope:
    """x @ weight.T + offset along the last axis; weight (out, in)."""
    return zonotope.map(MatrixMap(weight), offset)


def specification(zonotope: Zonotope, rows: Tensor) -> Zonotope:
    """C y for a specification matrix C (batch or 1, m, n), n = prod(shape). Returns a zonotope over (m,)."""
    flat = zonotope.reshape((zonotope.center[0].numel(),))
    if rows.shape[0] == 1:
        return matrix(flat, rows[0])
    generators = tuple(block.contract(rows) for block in flat.blocks)
    box = None if flat.box is None else torch.einsum("bmn,bn->bm", rows.abs(), flat.box)
    image = Zonotope(torch.einsum("bmn,bn->bm", rows, flat.center), generators, box)
    if not rounding.active():
        return image
    spread = torch.einsum("bmn,bn->bm", rows.abs(), flat.magnitude())
    return image.widen(rounding.affine_error(spread, None, rows.shape[2], flat.num_symbols))


def constant_product(zonotope: Zonotope, constant: Tensor, constant_first: bool) -> Zonotope:
    """Matrix product with a constant without batch, on either side, as torch.matmul reads the last two axes."""
    if not constant_first and constant.dim() == 2:
        return matrix(zonotope, constant.T)
    if constant_first:
        return zonotope.map(SignedMap(lambda x, w: torch.matmul(w, x), constant, terms=constant.shape[-1]))
    return zonotope.map(SignedMap(torch.matmul, constant, terms=constant.shape[-2]))


def concatenate(operands: Sequence[Operand], axis: int) -> Zonotope:
    """Concatenate along `axis` (counted with the batch axis; never 0). Shared symbols stay shared."""
    zonotopes = [operand for operand in operands if isinstance(operand, Zonotope)]
    batch = max(z.batch for z in zonotopes)
    if any(isinstance(block, StreamedBlock) for zonotope in zonotopes for block in zonotope.blocks):
        return _sum_of_embeddings(operands, axis)

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], dim=axis)

    centers, boxes = [], []
    for operand in operands:
        center = operand.center if isinstance(operand, Zonotope) else operand.to(zonotopes[0].center)
        box = operand.box if isinstance(operand, Zonotope) else None
        centers.append(center)
        boxes.append(torch.zeros_like(center) if box is None else box)
    inner = axis - 1 if axis > 0 else len(zonotopes[0].shape) + axis

    def columns(ids: SymbolIds) -> Tensor:
        parts = []
        for operand, center in zip(operands, centers, strict=True):
            if isinstance(operand, Zonotope):
                part = operand.generators(ids)
            else:
                part = center.new_zeros(1, ids.shape[0], *center.shape[1:])
            parts.append(part.expand(batch, *part.shape[1:]))
        return torch.cat(parts, dim=inner + 2)

    blocks = grouped([block for zonotope in zonotopes for block in zonotope.blocks], columns)
    has_box = any(z.box is not None for z in zonotopes)
    return Zonotope(joined(centers), blocks, joined(boxes) if has_box else None)


def _sum_of_embeddings(operands: Sequence[Operand], axis: int) -> Zonotope:
    """The concatenation as a sum of operands with zeros around them, which streamed generators can go through."""
    sizes = [(o.center if isinstance(o, Zonotope) else o).shape[axis] for o in operands]
    last = axis if axis < 0 else axis - next(o.center.dim() for o in operands if isinstance(o, Zonotope))
    zonotopes, constants = [], []
    for number, operand in enumerate(operands):
        before, after = sum(sizes[:number]), sum(sizes[number + 1 :])
        embed = partial(functional.pad, pad=[0, 0] * (-last - 1) + [before, after])
        if isinstance(operand, Zonotope):
            zonotopes.append(rearrange(operand, embed, moves_only=True))
        else:
            constants.append(embed(operand))
    return reduce(add, constants, reduce(add, zonotopes))
