"""Linear bounds of operators of several variables, with free shares among them: what a backward pass sends A through.

A plane  p . x + q  below f and one above it are all that a backward pass needs. Each family here has shares in [0, 1]
that choose among its linear bounds. Every share is sound, so they may be optimised.

Source: McCormick, Mathematical Programming 10, 1976, for products; Shi et al., ICLR 2020, for their place in backward
bounds; Shi et al., TACAS 2025 (GenBaB), for optimising the mixture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.errors import UnsupportedOperatorError


class LinearRelaxation(ABC):
    """Linear bounds of one operator f on given bounds of its operands."""

    @abstractmethod
    def parameters(self) -> Tensor:
        """Good shares to start from, (batch, any shape), each in [0, 1]."""

    @abstractmethod
    def pass_backward(self, a: Tensor, parameters: Tensor) -> tuple[list[Tensor], Tensor]:
        """A linear lower bound of  a . f  in terms of the perturbed operands.

        Args:
            a: (batch, rows, *shape of f).
            parameters: like those of `parameters`, with batch or 1 in front.
        Returns:
            its coefficients at each operand, (batch, rows, *shape), and its constant, (batch, rows).
        """

    @abstractmethod
    def magnitude(self) -> Tensor:
        """At least the sum of absolute terms of a plane,  |p| . |x| + |q|  as they are computed, (batch, *shape)."""


RelaxationOf = Callable[[Any, Sequence[Interval | Tensor], Mapping[str, Interval]], LinearRelaxation]
LINEAR_RELAXATIONS: dict[str, RelaxationOf] = {}


def relaxations(*names: str) -> Callable[[RelaxationOf], RelaxationOf]:
    """Decorator that files what makes the linear bounds of an operator under names of the host's classes.

    It is called with the node, bounds of its operands (or their value, for constants), and all pre-activation bounds of
    the propagation.
    """

    def file(family: RelaxationOf) -> RelaxationOf:
        LINEAR_RELAXATIONS.update(dict.fromkeys(names, family))
        return family

    return file


def by_sign(a: Tensor) -> tuple[Tensor, Tensor]:
    """The positive part, which needs lower bounds, and the negative part, which needs upper ones."""
    below = a.clamp(max=0)
    return a - below, below


class ProductRelaxation(LinearRelaxation):
    """Mixtures of the two linear bounds on either side of McCormick's envelope of x y, where x and y broadcast.

    x y >= (s l_y + (1 - s) u_y) x + (s l_x + (1 - s) u_x) y - s l_x l_y - (1 - s) u_x u_y
    x y <= (t u_y + (1 - t) l_y) x + (t l_x + (1 - t) u_x) y - t l_x u_y - (1 - t) u_x l_y
    """

    def __init__(self, left: Interval, right: Interval) -> None:
        self._left, self._right = left, right

    def parameters(self) -> Tensor:
        batch, *shape = torch.broadcast_shapes(self._left.lower.shape, self._right.lower.shape)
        return self._left.lower.new_full((batch, 2, *shape), 0.5)

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of x and of y and constants, (batch, 2, *shape) each: below x y, then above it."""
        lx, ux = (side.unsqueeze(1) for side in self._left)
        ly, uy = (side.unsqueeze(1) for side in self._right)
        s, t = parameters[:, :1], parameters[:, 1:]
        of_x = torch.cat([uy + s * (ly - uy), ly + t * (uy - ly)], dim=1)
        of_y = torch.cat([ux + s * (lx - ux), ux + t * (lx - ux)], dim=1)
        constant = torch.cat([ux * uy + s * (lx * ly - ux * uy), ux * ly + t * (lx * uy - ux * ly)], dim=1)
        return of_x, of_y, -constant

    def magnitude(self) -> Tensor:
        return 16 * self._sizes[0] * self._sizes[1]

    @property
    def _sizes(self) -> tuple[Tensor, Tensor]:
        left, right = (torch.maximum(side.lower.abs(), side.upper.abs()) for side in (self._left, self._right))
        return left, right

    def pass_backward(self, a: Tensor, parameters: Tensor) -> tuple[list[Tensor], Tensor]:
        parts = [sum_of(each, by_sign(a)) for each in self._parts(parameters)]
        left, right = (torch.Size((*a.shape[:2], *side.lower.shape[1:])) for side in (self._left, self._right))
        return [parts[0].sum_to_size(left), parts[1].sum_to_size(right)], parts[2].flatten(2).sum(
            2, dtype=torch.float64
        )


def sum_of(linear: Tensor, signs: tuple[Tensor, Tensor]) -> Tensor:
    """Lower linear bounds times the positive part of A, plus upper linear bounds times the negative one."""
    return signs[0] * linear[:, :1] + signs[1] * linear[:, 1:]


class MatrixProductRelaxation(ProductRelaxation):
    """Linear bounds of a matrix product (rows, m) by (m, columns): those of each product in it, added up."""

    def __init__(self, left: Interval, right: Interval) -> None:
        super().__init__(
            Interval(*(side.unsqueeze(-1) for side in left)), Interval(*(side.unsqueeze(-3) for side in right))
        )

    def magnitude(self) -> Tensor:
        return super().magnitude().sum(-2)

    def pass_backward(self, a: Tensor, parameters: Tensor) -> tuple[list[Tensor], Tensor]:
        of_x, of_y, constant = self._parts(parameters)  # (batch, 2, *axes, rows, m, columns)
        signs, batch = by_sign(a), parameters.shape[0]
        left, right = a.new_zeros(()), a.new_zeros(())
        for side, part in enumerate(signs):
            along_rows = part.movedim(1, -2)  # (batch, *axes, rows, of A, columns)
            along_columns = (
                part.movedim(1, -1).transpose(-3, -2).transpose(-2, -1)
            )  # (batch, *axes, columns, of A, rows)
            left = left + shared_product(along_rows, of_x[:, side].transpose(-2, -1), batch).movedim(-2, 1)
            found = shared_product(along_columns, of_y[:, side].movedim(-1, -3), batch)  # ... columns, of A, m
            right = right + found.movedim(-2, 1).transpose(-2, -1)
        total = constant.sum(-2)
        return [left, right], sum_of(total, signs).flatten(2).sum(2, dtype=torch.float64)


def shared_product(rows: Tensor, matrix: Tensor, batch: int) -> Tensor:
    """rows (n, *axes, r, k) @ matrix (n or 1, *axes, k, m), in large products where a matrix serves all of n."""
    if batch > 1 or rows.shape[0] == 1:
        return rows @ matrix
    image: Tensor = (rows.movedim(0, -3).flatten(-3, -2) @ matrix[0]).unflatten(-2, (rows.shape[0], -1))
    return image.movedim(-3, 0)


def place_of(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where x lies between low and high, 0 to 1; in the middle where they are equal."""
    return torch.where(high > low, (x - low) / torch.where(high > low, high - low, 1), 0.5).clamp(0, 1)


def shared(bounds: Interval) -> Interval:
    """Bounds with a batch of one where all elements of the batch are the same memory."""
    return Interval(*(side[:1] for side in bounds)) if all(side.stride(0) == 0 for side in bounds) else bounds


def same_rank(operands: Sequence[Interval | Tensor]) -> list[Any]:
    """Both operands, with axes of length 1 behind the batch where one has fewer; bounds that a batch shares once."""
    many = [shared(operand) if isinstance(operand, Interval) else operand for operand in operands]
    rank = max((one.lower if isinstance(one, Interval) else one).dim() for one in many)

    def padded(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *[1] * (rank - x.dim()), *x.shape[1:])

    return [
        Interval(padded(one.lower), padded(one.upper)) if isinstance(one, Interval) else _constant(one, rank)
        for one in many
    ]


def _constant(x: Tensor, rank: int) -> Tensor:
    """A constant, with a batch axis and one for A's rows in front of its own."""
    return x.reshape([1] * (rank - x.dim()) + list(x.shape)).unsqueeze(1)


@relaxations("BoundMul")
def _product(
    node: Any, operands: Sequence[Interval | Tensor], preactivations: Mapping[str, Interval]
) -> LinearRelaxation:
    return ProductRelaxation(*same_rank(operands))


@relaxations("BoundMatMul")
def _matrix_product(
    node: Any, operands: Sequence[Interval | Tensor], preactivations: Mapping[str, Interval]
) -> LinearRelaxation:
    if any(isinstance(operand, Tensor) or operand.lower.dim() < 3 for operand in operands):
        raise UnsupportedOperatorError(
            f"No backward bounds through {type(node).__name__} (node {node.name!r}) of less than rank 3."
        )
    return MatrixProductRelaxation(*same_rank(operands))
