"""How inputs reach the operator under test, and how its result reaches the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redteam.draws import Draws
from redteam.graph import Graph, SkipError
from redteam.planting import Built

Floats = NDArray[Any]
OPSETS = (13, 17, 17, 18, 20)


@dataclass
class Stem:
    """A tensor on which an operator can be tried.

    Attributes:
        graph, name: the graph so far, and the tensor.
        low, high: (inputs,) the input box.
        points: points that matter.
        kind: in a word.
    """

    graph: Graph
    name: str
    low: Floats
    high: Floats
    points: list[Floats]
    kind: str

    def built(self, output: str, variant: str, **more: Any) -> Built:
        if self.kind == "spike":
            more.setdefault("gate", 0.05)
        return Built(self.graph, output, self.low, self.high, self.points, f"{variant} {self.kind}", **more)


def spike(d: Draws, dtype: Any = np.float32, opset: int = 17, inputs: int | None = None) -> Stem:
    """relu(1 - steepness * sum_i |x_i - p_i|) at a random p of [-1, 1]^n: (1, 1), 1 at p, 0 almost everywhere."""
    count = inputs or d.choice((4, 5, 6, 8))
    graph = Graph([1, count], dtype, opset)
    point = d.uniform(-0.9, 0.9, count).astype(dtype)
    steepness = d.choice((10.0, 20.0, 30.0, 100.0))
    unit = np.eye(count)
    hidden = graph.add("Relu", graph.add("Gemm", "X", np.hstack([unit, -unit]), np.hstack([-point, point])))
    name = graph.add("Relu", graph.add("Gemm", hidden, np.full((2 * count, 1), -steepness), np.ones(1)))
    box = np.ones(count)
    half = point.copy()
    half[0] += dtype(0.5 / steepness)  # half way up
    return Stem(graph, name, -box, box, [point, half], "spike")


def tensor(d: Draws, shape: Sequence[int], dtype: Any = None, opset: int | None = None, spiky: float = 0.35) -> Stem:
    """A tensor of this shape (batch axis 1 included): the input itself, an affine image, a small net, or of a spike."""
    opset = opset or d.choice(OPSETS)
    dtype = dtype or (np.float64 if d.flag(0.08) else np.float32)
    size = int(np.prod(shape))
    kind = "spike" if d.flag(spiky) else d.choice(("direct", "direct", "affine", "net"))
    if kind == "direct":
        low, high = np.full(size, -1.0), np.full(size, 1.0)
        if d.flag(0.3):
            low[:] = 0.0
        if size > 6:  # a few inputs vary, the others stand still
            still = d.arrays.permutation(size)[: size - d.integer(1, 6)]
            low[still] = high[still] = np.float32(0.0) if d.flag() else d.uniform(-1, 1, still.size).astype(np.float32)
        return Stem(Graph(shape, dtype, opset), "X", low, high, [], kind)
    if kind == "spike":
        stem = spike(d, dtype, opset)
        weight, bias = d.normal(1, size), d.normal(size, scale=0.1)
    else:
        count = d.integer(1, 5)
        stem = Stem(Graph([1, count], dtype, opset), "X", -np.ones(count), np.ones(count), [], kind)
        width = count
        if kind == "net":
            width = d.integer(2, 6)
            first = stem.graph.add("Gemm", "X", d.normal(count, width), d.normal(width, scale=0.3))
            stem.name = stem.graph.add("Relu", first)
        weight, bias = d.normal(width, size, scale=width**-0.5), d.normal(size, scale=0.3)
    flat = stem.graph.add("Gemm", stem.name, weight, bias)
    stem.name = flat if list(shape) == [1, size] else stem.graph.add("Reshape", flat, np.array(shape))
    return stem


def finish(d: Draws, stem: Stem, result: str, variant: str, how: str = "", **more: Any) -> Built:
    """Flatten the result: one number of it, a mixture, or all; perhaps tiny, or beside a large one."""
    graph = stem.graph
    size = int(np.prod(graph.shape_of(result)))
    if size == 0:
        raise SkipError("nothing comes out")
    row = graph.rows(result)
    how = how or d.choice(("pick", "pick", "mix", "relu mix", "all"))
    if how == "pick" and size > 1:
        unit = np.zeros((size, 1))
        unit[d.integer(0, size - 1)] = 1.0
        row = graph.add("Gemm", row, unit)
    elif how.endswith("mix"):
        row = graph.add("Relu", row) if how == "relu mix" else row
        row = graph.add("Gemm", row, d.normal(size, d.integer(1, 3)))
    scale = d.choice(("", "tiny", "big second"))
    if scale == "tiny":
        row = graph.add("Mul", row, d.choice((1e-5, 1e-8)))
    elif scale == "big second":
        second = graph.add("Add", graph.add("Mul", row, 0.0), d.choice((2e4, 1e7)))
        row = graph.add("Concat", row, second, axis=1)
        more.setdefault("place", 0)
    return stem.built(row, " ".join(filter(None, [variant, scale])), **more)
