"""Linear maps that blocks of generators are sent through: no offsets, and absolute values for boxes.

Every map works on rows: tensors (rows, *in_shape), where rows is batch or batch times symbols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]


class LinearMap(ABC):
    """x -> A x."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A x for each row: (rows, *in_shape) -> (rows, *out_shape)."""

    @abstractmethod
    def apply_absolute(self, x: Tensor) -> Tensor:
        """|A| x for each row of x >= 0: how far a box spreads."""

    @abstractmethod
    def terms(self, shape: Shape) -> int:
        """How many products are summed for one output coordinate, at most, for inputs of `shape`; 0 if none is made."""

    def count(self, used: Tensor) -> Tensor | int:
        """How many products are not 0 for each output coordinate, at most, where x is 0 but at `used`.

        Args:
            used: (rows, *in_shape) of truth values.

        Returns (rows, *out_shape), or one number for all. Zeros are added without rounding.
        """
        return self.terms(tuple(used.shape[1:]))

    def transposed_terms(self, shape: Shape, out_shape: Shape) -> int:
        """How many products `transpose` sums for one input coordinate, at most; 0 if it makes and sums none."""
        return prod(out_shape)

    def transpose(self, a: Tensor, shape: Shape) -> Tensor:
        """A^T a for each row: (rows, *out_shape) -> (rows, *shape), for inputs of `shape`; differentiable in a."""
        with torch.enable_grad():
            x = a.new_zeros(a.shape[0], *shape).requires_grad_(True)
            image = self.apply(x)
            # A scalar, since torch would import a computer algebra system to check grad_outputs.
            (result,) = torch.autograd.grad((image * a.reshape(image.shape)).sum(), x, create_graph=a.requires_grad)
        return result

    def columns(self, values: Tensor, index: Tensor, shape: Shape) -> Tensor:
        """Images of single-coordinate generators: values (batch, k) at flat coordinates index (batch, k) of `shape`.

        Returns (batch, k, *out_shape). Costs a pass over batch * k one-hot rows unless a subclass knows better.
        """
        batch, count = values.shape
        rows = values.new_zeros(batch * count, prod(shape))
        rows.scatter_(1, index.reshape(-1, 1), values.reshape(-1, 1))
        return per_symbol(self.apply, rows.reshape(batch, count, *shape))


def per_symbol(function: Callable[[Tensor], Tensor], generators: Tensor) -> Tensor:
    """Apply a function of rows to generators (batch, k, *shape), folding batch and symbols into rows and back."""
    batch, count = generators.shape[:2]
    image = function(generators.reshape(batch * count, *generators.shape[2:]))
    return image.reshape(batch, count, *image.shape[1:])


class NonNegativeMap(LinearMap):
    """A map whose matrix has no negative entry, given by a function of rows.

    Args:
        function: (rows, *in_shape) -> (rows, *out_shape).
        moves_only: whether it only moves and copies values (reshape, slice, pad with zeros), so that nothing rounds; if
            not, it may sum (pool, mean).
        terms: how many products it sums for one output coordinate, at most; as many as there are inputs by default.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], moves_only: bool = False, terms: int | None = None
    ) -> None:
        self._function = function
        self._moves_only = moves_only
        self._terms = terms

    def terms(self, shape: Shape) -> int:
        return 0 if self._moves_only else prod(shape) if self._terms is None else self._terms

    def transposed_terms(self, shape: Shape, out_shape: Shape) -> int:
        if not self._moves_only:
            return prod(out_shape)
        copies = self.transpose(torch.ones(1, *out_shape), shape)  # how often each input is moved somewhere
        most = int(copies.max()) if copies.numel() else 0
        return most if most > 1 else 0

    def apply(self, x: Tensor) -> Tensor:
        return self._function(x)

    def apply_absolute(self, x: Tensor) -> Tensor:
        return self._function(x)


class Scaling(LinearMap):
    """Coordinate-wise multiplication with a constant that broadcasts against (rows, *shape)."""

    def __init__(self, factor: Tensor) -> None:
        self._factor = factor

    def terms(self, shape: Shape) -> int:
        return 1

    def apply(self, x: Tensor) -> Tensor:
        return x * self._factor

    def apply_absolute(self, x: Tensor) -> Tensor:
        return x * self._factor.abs()


class MatrixMap(LinearMap):
    """Product with a weight (out, in) along the last axis: (rows, ..., in) -> (rows, ..., out)."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def terms(self, shape: Shape) -> int:
        return int(self._weight.shape[1])

    def apply(self, x: Tensor) -> Tensor:
        return x @ self._weight.T

    def apply_absolute(self, x: Tensor) -> Tensor:
        return x @ self._weight.abs().T

    def count(self, used: Tensor) -> Tensor | int:
        return used.to(self._weight.dtype) @ (self._weight != 0).to(self._weight.dtype).T

    def transposed_terms(self, shape: Shape, out_shape: Shape) -> int:
        return int(self._weight.shape[0])

    def transpose(self, a: Tensor, shape: Shape) -> Tensor:
        return a @ self._weight

    def columns(self, values: Tensor, index: Tensor, shape: Shape) -> Tensor:
        if len(shape) != 1:
            return super().columns(values, index, shape)
        rows = self._weight.T[index.reshape(-1)].reshape(*index.shape, -1)
        return rows * values.unsqueeze(-1)


class SignedMap(LinearMap):
    """A map given by one function of its input and its constant weight: convolutions, constant matrix products.

    Args:
        function: (rows, weight) -> rows, linear in both.
        weight: the constant.
        terms: products summed for one output coordinate, at most; the weight's size by default, which is always enough.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor, terms: int | None = None) -> None:
        self._function = function
        self._weight = weight
        self._terms = weight.numel() if terms is None else terms

    def terms(self, shape: Shape) -> int:
        return self._terms

    def count(self, used: Tensor) -> Tensor | int:
        counted = self._function(used.to(self._weight.dtype), (self._weight != 0).to(self._weight.dtype))
        return counted.clamp(max=self._terms)

    def transposed_terms(self, shape: Shape, out_shape: Shape) -> int:
        return self._weight.numel()

    def apply(self, x: Tensor) -> Tensor:
        return self._function(x, self._weight)

    def apply_absolute(self, x: Tensor) -> Tensor:
        return self._function(x, self._weight.abs())


def row_by_row(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Lift a function of one batch element, (1, *in) -> (1, *out), to rows, (rows, *in) -> (rows, *out).

    So a function with a batch of 1 written into it serves any number of rows.
    """
    lifted = torch.vmap(function)

    def apply(x: Tensor) -> Tensor:
        image: Tensor = lifted(x.unsqueeze(1))
        return image.squeeze(1) if image.dim() > 1 and image.shape[1] == 1 else _refuse(image)

    return apply


def _refuse(image: Tensor) -> Tensor:
    raise ValueError(f"the operator moves the batch axis: one element became {tuple(image.shape[1:])}")
