"""Matrix products of two zonotopes, in batches, with what their shared symbols give."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.domain.linear_maps import LinearMap, Shape
from zonoplug.domain.symbols import SymbolSource, merge_ids
from zonoplug.domain.zonotope import Interval, Zonotope, add_zonotopes
from zonoplug.transformers import product_ranges as ranges
from zonoplug.transformers.bilinear import LIMIT_BYTES, Bounds, Factor, Form, within_two
from zonoplug.transformers.enclosure import Enclosure, enclose

LIMIT_WORK = 2**30
CHUNK_BYTES = 2**22  # what a cache holds: sums over symbols of values of every product apart are ten times faster in it


def matrix_product(
    left: Zonotope,
    right: Zonotope,
    source: SymbolSource,
    node: str,
    form: Form | None = None,
    bounds: Bounds = (None, None),
    limit_bytes: int = LIMIT_BYTES,
) -> Enclosure:
    """Enclose the matrix product of x (batch, *axes, rows, m) and y (batch, *axes, m, columns).

        x y = c y + x d - c d + (x - c) (y - d)  around the centers c and d; the last term gets fresh symbols.

    Args:
        left, right: zonotopes; their leading axes broadcast as in torch.
        source, node: where the fresh symbols get their ids, and their origin.
        form: "fast" bounds each of the m products in a sum of (x - c) (y - d) by a difference of squares; "precise"
            also bounds the sum as a whole by its spectrum; None is precise where that takes at most `LIMIT_WORK`
            multiplications.
        bounds: bounds of x and of y, of their own shapes, that hold for all points of interest.
        limit_bytes: memory for temporary values, beyond the dense generators; more is done in chunks.
    Cost: O(batch k rows m columns) time for the fast form, about 4 m times that for the precise one.
    """
    lead = tuple(torch.broadcast_shapes(left.center.shape[:-2], right.center.shape[:-2])[1:])
    x, y = (Factor.of(z, b, lead + z.shape[-2:]) for z, b in zip((left, right), bounds, strict=True))
    linear = add_zonotopes(
        x.zonotope.map(BatchProduct(y.zonotope.center, constant_first=False)),
        y.zonotope.map(BatchProduct(x.zonotope.center, constant_first=True)),
    ).shift(-(x.zonotope.center @ y.zonotope.center))
    symbols = merge_ids(x.zonotope.symbols, y.zonotope.symbols)
    first, second = _Matrices.of(x, symbols), _Matrices.of(y, symbols)
    count, k, rows, terms = first.generators.shape
    columns = second.generators.shape[-1]
    work = 4 * terms**2 * (k + 8 * terms) * count * rows * columns
    precise = bool(k) and (form == "precise" or (form is None and work <= LIMIT_WORK))  # boxes have no spectrum
    row_bytes = count * columns * terms * x.unit.element_size() * (8 + 6 * k * precise)
    step = max(1, limit_bytes // max(row_bytes, 1))
    parts = [
        _ranges(first.rows(slice(start, start + step)), second, precise, limit_bytes) for start in range(0, rows, step)
    ]
    shape = (x.zonotope.batch, *lead, rows, columns)
    remainder, total = (
        Interval(*(torch.cat(sides, dim=1).reshape(shape) for sides in zip(*which, strict=True)))
        for which in zip(*parts, strict=True)
    )
    summed = 2 * terms + 16 + (k if precise else 0)
    return enclose(linear, remainder, total, source, node, summed, x.magnitude @ y.magnitude)


class BatchProduct(LinearMap):
    """Product with one matrix for each element of the batch: (batch, *axes, m, columns), or (batch, *axes, rows, m).

    Rows of an input come in groups of equal size, one for each element of the batch.
    """

    def __init__(self, matrix: Tensor, constant_first: bool) -> None:
        self._matrix = matrix
        self._constant_first = constant_first

    def terms(self, shape: Shape) -> int:
        return int(shape[-2] if self._constant_first else shape[-1])

    def apply(self, x: Tensor) -> Tensor:
        return self._apply(x, self._matrix)

    def apply_absolute(self, x: Tensor) -> Tensor:
        return self._apply(x, self._matrix.abs())

    def _apply(self, x: Tensor, matrix: Tensor) -> Tensor:
        """As few products of large matrices: the rows of an input are folded into one of the matrices' own axes."""
        batch = matrix.shape[0]
        rows = x.reshape(batch, -1, *x.shape[1:])
        if self._constant_first:  # (batch, k, *axes, m, columns) -> (batch, *axes, m, columns k)
            image: Tensor = (matrix @ rows.movedim(1, -1).flatten(-2)).unflatten(-1, (x.shape[-1], -1)).movedim(-1, 1)
        else:  # (batch, k, *axes, rows, m) -> (batch, *axes, k rows, m)
            image = (rows.movedim(1, -3).flatten(-3, -2) @ matrix).unflatten(-2, (-1, x.shape[-2])).movedim(-3, 1)
        return image.reshape(prod(image.shape[:2]), *image.shape[2:])


class _Matrices(NamedTuple):
    """A factor with batch and leading axes folded into one: (count, rows, columns), generators (count, k, ...)."""

    lower: Tensor
    upper: Tensor
    center: Tensor
    unit: Tensor
    box: Tensor
    generators: Tensor

    @classmethod
    def of(cls, factor: Factor, symbols: Tensor) -> _Matrices:
        zonotope = factor.zonotope
        own = torch.zeros_like(zonotope.center) if zonotope.box is None else zonotope.box
        fields = (*factor.bounds, zonotope.center, factor.unit, own)
        lower, upper, center, unit, box = (field.flatten(0, -3) for field in fields)
        return cls(lower, upper, center, unit, box, zonotope.generators(symbols).movedim(1, -3).flatten(0, -4))

    def rows(self, part: slice) -> _Matrices:
        return _Matrices(*(field[..., part, :] for field in self))


def _pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Every product of a matrix product apart: (..., rows, m, 1) and (..., 1, m, columns)."""
    return left.unsqueeze(-1), right.unsqueeze(-3)


def _ranges(x: _Matrices, y: _Matrices, precise: bool, limit_bytes: int) -> tuple[Interval, Interval]:
    """Ranges of (x - c) (y - d) and of x y, each (count, rows, columns)."""
    a, b = _pair(x.box / x.unit, y.box / y.unit)
    plus = minus = (a + b).double()  # sums over symbols, whose rounding is not to count
    step = max(1, min(limit_bytes, CHUNK_BYTES) // max(4 * plus.numel() * plus.element_size(), 1))
    for start in range(0, x.generators.shape[1], step):
        part = slice(start, start + step)
        a, b = _pair(x.generators[:, part] / x.unit.unsqueeze(1), y.generators[:, part] / y.unit.unsqueeze(1))
        plus = plus + (a + b).abs().sum(1, dtype=torch.float64)
        minus = minus + (a - b).abs().sum(1, dtype=torch.float64)
    plus, minus = plus.to(x.unit.dtype), minus.to(x.unit.dtype)
    each = ranges.difference_of_squares(torch.mul(*_pair(x.unit, y.unit)), within_two(plus), within_two(minus))
    deviations = _corners(x.lower - x.center, x.upper - x.center, y.lower - y.center, y.upper - y.center)
    each = ranges.meet(deviations, each)
    remainder, total = Interval(each.lower.sum(-2), each.upper.sum(-2)), _corners(x.lower, x.upper, y.lower, y.upper)
    if precise:
        remainder = ranges.meet(remainder, _spectral_range(x, y))
    return remainder, Interval(total.lower.sum(-2), total.upper.sum(-2))


def _corners(low_x: Tensor, high_x: Tensor, low_y: Tensor, high_y: Tensor) -> Interval:
    """The range of every product of a matrix product apart."""
    (a, c), (b, d) = _pair(low_x, low_y), _pair(high_x, high_y)
    return ranges.corners(Interval(a, b), Interval(c, d))


def _spectral_range(x: _Matrices, y: _Matrices) -> Interval:
    """The range of (x - c) (y - d): the named symbols' part by its spectrum, the boxes' by intervals."""
    g, h = x.generators, y.generators
    (count, k, rows, terms), columns = g.shape, h.shape[-1]
    left = g.permute(0, 2, 1, 3).unsqueeze(2).expand(count, rows, columns, k, terms)
    right = h.permute(0, 3, 1, 2).unsqueeze(1).expand(count, rows, columns, k, terms)
    named = ranges.spectral(left.reshape(-1, k, terms), right.reshape(-1, k, terms))
    lower, upper = (side.reshape(count, rows, columns) for side in named)
    spread = x.box @ (h.abs().sum(1) + y.box) + g.abs().sum(1) @ y.box
    return Interval(lower - spread, upper + spread)
