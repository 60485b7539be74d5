"""A network as the checker of certificates sees it: blocks of affine maps and of functions of one variable.

All scalars of the network stand in one row: first the inputs, then the outputs of each block. A tensor is an array of
places in this row, so reshaping, slicing or concatenation only move places about and need no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonoplug.errors import UnsupportedOperatorError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Places = NDArray[np.int64]
Role = Literal["product", "elementwise", "scalar", "addition", "exact"]

DENSE_ENTRIES = 2**23
HEADROOM = 2.0**-40  # of the largest number, for partial sums: before averaging, or before scaling by alpha


class NumberType(NamedTuple):
    """The element type of a model: unit roundoff, smallest normal and largest number."""

    name: str
    unit: float
    tiny: float
    largest: float


@dataclass(frozen=True, slots=True, eq=False)
class Rounding:
    """The rounding of a network's own evaluation.

    Attributes:
        kind: its number type.
        relative: by the start of an affine block, the error per sum of absolute values; 0 where nothing is rounded.
        underflow: what underflow does to any number of the network, per unit of the largest number before it.
    """

    kind: NumberType
    relative: dict[int, float]
    underflow: float

    @property
    def limit(self) -> float:
        """No intermediate number overflows if all sums of absolute values stay below."""
        return self.kind.largest * HEADROOM


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """y = W x for some places x of the row.

    Attributes:
        places: (columns,) the places of x, each once.
        weight: W, (rows, columns), where it is small enough; else None.
        magnitude: where several entries were added up in one place of `weight`, the sums of their absolute values.
        by_row: where it is not: for each row the columns and weights of its entries, (rows, k) each, filled up with 0.
        by_column: the same for each column.
        added: how many entries share a place of `weight` at most.
    """

    places: Places
    weight: Floats | None
    by_row: tuple[Places, Floats] | None = None
    by_column: tuple[Places, Floats] | None = None
    magnitude: Floats | None = None
    added: int = 1

    def forward(self, x: Floats, absolute: bool = False) -> Floats:
        """W x, or |W| x, for x (batch, columns); entries that share a place count in |W| one by one."""
        if self.weight is not None:
            if not absolute:
                return np.asarray(x @ self.weight.T)
            return np.asarray(x @ self._absolute().T)
        assert self.by_row is not None
        return _gathered(x, *self.by_row, absolute)

    def backward(self, a: Floats) -> Floats:
        """A W for A (batch, rows)."""
        if self.weight is not None:
            return np.asarray(a @ self.weight)
        assert self.by_column is not None
        return _gathered(a, *self.by_column, False)

    @property
    def terms(self) -> int:
        """No sum in `forward` or `backward` has more products, those of entries that share a place included."""
        if self.weight is not None:
            return int(max(self.weight.shape)) + self.added
        assert self.by_row is not None and self.by_column is not None
        return int(max(self.by_row[0].shape[1], self.by_column[0].shape[1]))

    @property
    def row_sums(self) -> Floats:
        """The sums of absolute values, (rows,)."""
        sums: Floats = self.forward(np.ones((1, self.places.size)), absolute=True)[0]
        return sums

    @property
    def largest(self) -> float:
        """The largest absolute value of an entry."""
        return float((self._absolute() if self.by_row is None else np.abs(self.by_row[1])).max(initial=0.0))

    def _absolute(self) -> Floats:
        assert self.weight is not None
        return np.abs(self.weight) if self.magnitude is None else self.magnitude


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """Row [start, stop) = W x + bias.

    Attributes:
        products: how many products the file's operator adds up for each number; 0 for "exact".
        role: a "product" of matrices, a scale or an offset "elementwise" by constants, a scale by a single number
            ("scalar"), an "addition" of variable tensors, or "exact", where no evaluation rounds.
    """

    start: int
    stop: int
    matrix: Matrix
    bias: Floats
    products: int
    role: Role

    @property
    def places(self) -> Places:
        return self.matrix.places

    @property
    def distinct(self) -> bool:
        """No place repeats."""
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A non-decreasing function of one variable.

    Attributes:
        value: the function in float64, off by at most `ulps` units in the last place.
        breakpoints: where its slope jumps; it is linear between them if `curvature` is 0.
        curvature: an upper bound of |f''| away from the breakpoints.
    """

    name: str
    value: Callable[[Floats], Floats]
    breakpoints: tuple[float, ...] = ()
    curvature: float = 0.0
    ulps: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """Row [start, stop) = function(row[places]).

    Attributes:
        distinct: no place repeats.
    """

    start: int
    stop: int
    places: Places
    function: Function
    distinct: bool


@dataclass(slots=True, eq=False)
class Network:
    """Blocks in an order in which each reads only earlier places.

    Attributes:
        num_inputs: they stand at places 0 .. num_inputs - 1.
        outputs: (outputs,) their places; some may repeat.
        rounding: how an evaluation rounds; None where only the real function is of interest.
    """

    num_inputs: int
    blocks: list[Affine | Activation] = field(default_factory=list)
    outputs: Places = field(default_factory=lambda: np.zeros(0, np.int64))
    rounding: Rounding | None = None

    @property
    def size(self) -> int:
        """How many places there are."""
        return self.blocks[-1].stop if self.blocks else self.num_inputs

    @property
    def activations(self) -> list[Activation]:
        return [block for block in self.blocks if isinstance(block, Activation)]

    @property
    def relus(self) -> list[Activation]:
        """In the order of the file; a certificate counts them so."""
        return [block for block in self.activations if block.function.name == "relu"]

    def dense(self, places: Places, weight: Floats, bias: Floats) -> Places:
        """Append W row[places] + bias. Returns the places of the result."""
        if np.unique(places).size < places.size:
            return self.sparse(np.broadcast_to(places, weight.shape), weight, bias)
        return self._append_affine(Matrix(places, weight), bias, weight.shape[1], "product")

    def sparse(self, places: Places, weight: Floats, bias: Floats, role: Role = "product") -> Places:
        """Append y_i = sum_k weight[i, k] row[places[i, k]] + bias[i]; a place below 0 stands for the number 0."""
        rows, keep = places.shape[0], (places >= 0) & (weight != 0)
        row = np.broadcast_to(np.arange(rows)[:, None], places.shape)[keep]
        used, column = np.unique(places[keep], return_inverse=True)
        value, products = weight[keep], 0 if role == "exact" else places.shape[1]
        if rows * used.size <= DENSE_ENTRIES:
            dense, magnitude, added = np.zeros((rows, used.size)), None, 1
            np.add.at(dense, (row, column), value)
            if np.count_nonzero(dense) < value.size:
                _, counts = np.unique(row * used.size + column, return_counts=True)
                magnitude, added = np.zeros(dense.shape), int(counts.max())
                np.add.at(magnitude, (row, column), np.abs(value))
            return self._append_affine(Matrix(used, dense, None, None, magnitude, added), bias, products, role)
        by_row = _padded(row, column, value, rows)
        by_column = _padded(column, row, value, used.size)
        return self._append_affine(Matrix(used, None, by_row, by_column), bias, products, role)

    def apply(self, places: Places, function: Function) -> Places:
        """Append function(row[places]). Returns the places of the result."""
        start = self.size
        distinct = np.unique(places).size == places.size
        self.blocks.append(Activation(start, start + places.size, places, function, distinct))
        return np.arange(start, start + places.size)

    def evaluate(self, points: Floats) -> Floats:
        """Outputs (n, outputs) at points (n, inputs), in float64."""
        row = np.zeros((points.shape[0], self.size))
        row[:, : self.num_inputs] = points
        for block in self.blocks:
            x = row[:, block.places]
            row[:, block.start : block.stop] = (
                block.matrix.forward(x) + block.bias if isinstance(block, Affine) else block.function.value(x)
            )
        return row[:, self.outputs]

    def _append_affine(self, matrix: Matrix, bias: Floats, products: int, role: Role) -> Places:
        start = self.size
        if not (np.isfinite(matrix.largest) and np.isfinite(bias).all()):
            raise UnsupportedOperatorError("The checker does not read networks with constants that are not finite.")
        self.blocks.append(Affine(start, start + bias.size, matrix, bias, products, role))
        return np.arange(start, start + bias.size)


def _gathered(x: Floats, index: Places, weight: Floats, absolute: bool) -> Floats:
    total = np.zeros((x.shape[0], index.shape[0]))
    for k in range(index.shape[1]):
        total += x[:, index[:, k]] * (np.abs(weight[:, k]) if absolute else weight[:, k])
    return total


def _padded(key: Places, other: Places, value: Floats, count: int) -> tuple[Places, Floats]:
    """Triples as one padded list for each key: (count, k) of the other index, and of the values."""
    order = np.argsort(key, kind="stable")
    key, other, value = key[order], other[order], value[order]
    lengths = np.bincount(key, minlength=count)
    slot = np.arange(key.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    index = np.zeros((count, int(lengths.max(initial=0))), np.int64)
    weights = np.zeros(index.shape)
    index[key, slot], weights[key, slot] = other, value
    return index, weights


def _sigmoid(x: Floats) -> Floats:
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


RELU = Function("relu", lambda x: np.maximum(x, 0.0), (0.0,))
SIGMOID = Function("sigmoid", _sigmoid, curvature=0.0963, ulps=16)  # max |f''| = sqrt(3) / 18 = 0.09622...
TANH = Function("tanh", np.tanh, curvature=0.77, ulps=16)  # max |f''| = 4 sqrt(3) / 9 = 0.76980...


def leaky_relu(slope: float) -> Function:
    """x above 0 and slope x below it, for 0 <= slope."""
    return Function("leaky relu", lambda x: np.where(x > 0, x, slope * x), (0.0,), ulps=1)


def clip(lower: float, upper: float) -> Function:
    """min(max(x, lower), upper), for lower <= upper."""
    breakpoints = tuple(value for value in (lower, upper) if np.isfinite(value))
    return Function("clip", lambda x: np.clip(x, lower, upper), breakpoints)
