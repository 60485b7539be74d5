"""ReLU networks whose largest output is known: a mixed-integer program finds it, rational arithmetic confirms it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redteam.draws import Draws
from redteam.exact import decimal, written
from redteam.graph import Graph, SkipError
from redteam.planting import Instance
from redteam.runtime import Runtime
from redteam.specs import Row, Spec, cut_boxes

Floats = NDArray[Any]
Layer = tuple[Floats, Floats, bool]  # weight (in, out), bias, residual: x + relu(W x + b) instead of relu(W x + b)


def relu_optimum(d: Draws) -> Instance:
    """A small ReLU network, plain or residual, and a threshold just at, below or above its true largest output."""
    count, width = d.integer(1, 4), d.integer(2, 6)
    layers: list[Layer] = [(_rounded(d.normal(count, width, scale=1.5)), _rounded(d.normal(width, scale=0.5)), False)]
    for _ in range(d.integer(0, 2)):
        scale = 1.5 * width**-0.5
        layers.append(
            (_rounded(d.normal(width, width, scale=scale)), _rounded(d.normal(width, scale=0.3)), d.flag(0.4))
        )
    last = _rounded(d.normal(width, 1))
    radius = d.choice((1.0, 1.0, 0.1, 1e-2, 1e-4))
    centre = d.uniform(-1, 1, count).astype(np.float32)
    low, high = ((centre + np.float32(side * radius)).astype(np.float32) for side in (-1, 1))
    point = _maximiser(layers, last, low.astype(np.float64), high.astype(np.float64))
    witness = np.clip(point.astype(np.float32), low, high)
    real = _exact(layers, last, witness)
    model = _model(layers, last, count)
    runtime = Runtime(model)
    spec = Spec([(decimal(a), decimal(b)) for a, b in zip(low, high, strict=True)], [], 1)
    words = cut_boxes(d, spec, low, high)
    kind = d.choice(("at the real value", "at the real value", "beside it", "as computed", "above"))
    if kind == "above":
        best = _float_value(layers, last, point)
        bound = Fraction(max(best, float(real)) + 2e-3 * (1 + abs(best)))
        spec.rows = [Row({0: Fraction(1)}, ">=", Fraction(written(bound)))]
        return Instance(f"{kind} {words}", model, spec.text(), "holds")
    bound = real - (abs(real) + Fraction(1, 10**9)) / 10 ** d.integer(4, 9) if kind == "beside it" else real
    if kind == "as computed":
        bound = max(Fraction(float(runtime(witness, level)[0])) for level in runtime.levels)
    spec.rows = [Row({0: Fraction(1)}, ">=", bound)]
    reached = [level for level in runtime.levels if Fraction(float(runtime(witness, level)[0])) >= bound]
    levels = tuple([*reached, *(["real"] if real >= bound else [])])
    if not levels:
        raise SkipError("the witness is not confirmed")
    easy = Spec(spec.bounds, [Row({0: Fraction(1)}, ">=", bound + abs(bound) + 5)], 1)
    return Instance(
        f"{kind} {words}", model, spec.text(), "violated", witness, levels, real > bound, easy_spec=easy.text()
    )


def _rounded(values: Floats) -> Floats:
    return values.astype(np.float32)


def _exact(layers: list[Layer], last: Floats, point: Floats) -> Fraction:
    """The output at a point in rational arithmetic."""
    x = [Fraction(float(value)) for value in point]
    for weight, bias, keep in layers:
        made = [
            max(sum((a * Fraction(float(w)) for a, w in zip(x, column, strict=True)), Fraction(float(b))), Fraction(0))
            for column, b in zip(weight.T, bias, strict=True)
        ]
        x = [a + b for a, b in zip(x, made, strict=True)] if keep else made
    return sum((a * Fraction(float(w)) for a, w in zip(x, last[:, 0], strict=True)), Fraction(0))


def _float_value(layers: list[Layer], last: Floats, point: Floats) -> float:
    x = point.astype(np.float64)
    for weight, bias, keep in layers:
        made = np.maximum(x @ weight.astype(np.float64) + bias, 0)
        x = x + made if keep else made
    return float((x @ last.astype(np.float64))[0])


def _maximiser(layers: list[Layer], last: Floats, low: Floats, high: Floats) -> Floats:
    """A point of the box where the output is largest, by a mixed-integer program: one binary for each neuron."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    count, width = low.size, layers[0][0].shape[1]
    total = count + 3 * width * len(layers)  # inputs; of each layer: activations, outputs, binaries
    least, most = np.full(total, -np.inf), np.full(total, np.inf)
    least[:count], most[:count] = low, high
    integral = np.zeros(total)
    matrices, lower, upper = [], [], []
    before, a, b = np.arange(count), low, high
    for number, (weight, bias, keep) in enumerate(layers):
        w, start = weight.astype(np.float64), count + 3 * width * number
        active, after, binary = (start + width * part + np.arange(width) for part in range(3))
        floor = np.maximum(w, 0).T @ a + np.minimum(w, 0).T @ b + bias
        ceiling = np.maximum(w, 0).T @ b + np.minimum(w, 0).T @ a + bias
        least[active], most[active] = 0.0, np.maximum(ceiling, 0)
        least[binary], most[binary], integral[binary] = 0, 1, 1
        rows = np.zeros((4 * width, total))
        for j in range(width):
            rows[j, active[j]], rows[j, before] = 1, -w[:, j]  # a >= W x + b
            rows[width + j, active[j]], rows[width + j, before] = 1, -w[:, j]  # a <= W x + b - floor (1 - z)
            rows[width + j, binary[j]] = -min(floor[j], 0)
            rows[2 * width + j, active[j]], rows[2 * width + j, binary[j]] = 1, -max(ceiling[j], 0)  # a <= ceiling z
            rows[3 * width + j, after[j]], rows[3 * width + j, active[j]] = 1, -1
            if keep:
                rows[3 * width + j, before[j]] = -1
        none = np.full(width, -np.inf)
        matrices.append(rows)
        lower.append(np.concatenate([bias, none, none, np.zeros(width)]))
        upper.append(np.concatenate([-none, bias - np.minimum(floor, 0), np.zeros(width), np.zeros(width)]))
        a, b = (np.maximum(floor, 0) + (a if keep else 0), np.maximum(ceiling, 0) + (b if keep else 0))
        before = after
    target = np.zeros(total)
    target[before] = -last[:, 0]
    limits = LinearConstraint(np.vstack(matrices), np.concatenate(lower), np.concatenate(upper))
    found = milp(
        target, integrality=integral, bounds=Bounds(least, most), constraints=limits, options={"time_limit": 2.0}
    )
    if found.status != 0:
        raise SkipError("the program was not solved")
    return np.clip(found.x[:count], low, high)


def _model(layers: list[Layer], last: Floats, count: int) -> bytes:
    graph = Graph([1, count])
    x = "X"
    for weight, bias, keep in layers:
        made = graph.add("Relu", graph.add("Gemm", x, weight, bias))
        x = graph.add("Add", x, made) if keep else made
    return graph.model(graph.add("MatMul", x, last))
