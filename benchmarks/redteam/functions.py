"""Classes about functions: of one variable, of two, reductions, softmax, choices, and what hosts bound badly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from redteam.draws import Draws
from redteam.graph import Graph
from redteam.planting import Built
from redteam.stems import finish, spike, tensor

Made = Callable[[Graph, str], str]


def _plain(kind: str, **attributes: Any) -> Made:
    return lambda graph, x: str(graph.add(kind, x, **attributes))


def _positive(kind: str, **attributes: Any) -> Made:
    """Of a tensor that is above 0."""
    return lambda graph, x: str(graph.add(kind, graph.add("Add", graph.add("Abs", x), 0.05), **attributes))


def _between(kind: str, reach: float) -> Made:
    """Of a tensor that stays in [-reach, reach]."""
    return lambda graph, x: str(graph.add(kind, graph.add("Mul", graph.add("Tanh", x), reach)))


def _power(exponent: float, positive: bool) -> Made:
    def made(graph: Graph, x: str) -> str:
        base = graph.add("Add", graph.add("Abs", x), 0.05) if positive else x
        return str(graph.add("Pow", base, exponent))

    return made


def _gelu(graph: Graph, x: str) -> str:
    erf = graph.add("Erf", graph.add("Div", x, float(np.sqrt(2))))
    return str(graph.add("Mul", graph.add("Mul", x, graph.add("Add", erf, 1.0)), 0.5))


def _swish(graph: Graph, x: str) -> str:
    return str(graph.add("Mul", x, graph.add("Sigmoid", x)))


UNARY: dict[str, Made] = {
    **{kind: _plain(kind) for kind in (
        "Relu Sigmoid Tanh Softplus Softsign Elu Selu Celu HardSigmoid HardSwish Abs Neg Exp Erf Sin Cos Atan Sinh Cosh"
        " ThresholdedRelu"
    ).split()},
    **{kind: _positive(kind) for kind in ("Log", "Sqrt", "Reciprocal", "Log")},
    **{kind: _between(kind, 0.9) for kind in ("Asin", "Acos", "Atanh", "Tan")},
    "Elu 1.7": _plain("Elu", alpha=1.7),
    "Celu 2": _plain("Celu", alpha=2.0),
    "Selu odd": _plain("Selu", alpha=0.7, gamma=1.9),
    "HardSigmoid odd": _plain("HardSigmoid", alpha=0.7, beta=0.1),
    "Mod": lambda graph, x: str(graph.add("Mod", x, 0.7, fmod=1)),
    "Shrink": _plain("Shrink", lambd=0.3, bias=0.1),
    "Square": _power(2.0, False), "Cube": _power(3.0, False), "Pow 4": _power(4.0, False), "Pow 0.5": _power(0.5, True),
    "Pow -1": _power(-1.0, True), "Pow 1.7": _power(1.7, True),
    "gelu": _gelu, "swish": _swish,
}  # fmt: skip


def unary(d: Draws) -> Built:
    """A function of one variable behind a scale and a shift that bring all of its parts into reach."""
    stem = tensor(d, [1, d.integer(1, 4)])
    name = d.turn(list(UNARY))
    x = stem.graph.add("Mul", stem.name, d.choice((1.0, 1.0, 4.0, 0.1, 20.0)))
    x = stem.graph.add("Add", x, d.choice((0.0, 0.0, 0.5, -2.0, 7.0)))
    return finish(d, stem, UNARY[name](stem.graph, x), name)


def binary(d: Draws) -> Built:
    """Products, quotients, differences and powers of two things that vary."""
    stem = tensor(d, [1, 4])
    graph = stem.graph
    left, right = graph.add("Split", stem.name, np.array([2, 2]), outputs=2, axis=1)
    kind = d.turn(("Mul", "Div", "Sub", "Add", "square", "constant over", "MatMul"))
    if kind in ("Div", "constant over"):
        right = graph.add("Add", graph.add("Abs", right), d.choice((0.1, 1e-3, 1.0)))
        result = graph.add("Div", left if kind == "Div" else 0.7, right)
    elif kind == "square":
        result = graph.add("Sub", graph.add("Mul", left, left), graph.add("Mul", right, right))
    elif kind == "MatMul":
        result = graph.add("MatMul", left, graph.add("Reshape", right, np.array([2, 1])))
    else:
        result = graph.add(kind, left, right)
    return finish(d, stem, result, kind)


REDUCED = "Sum Mean Max Min L1 L2 Prod SumSquare LogSum LogSumExp".split()


def reduce(d: Draws) -> Built:
    """Reductions along all kinds of axes, written as attribute or as input, kept or not."""
    stem = tensor(d, [1, d.integer(1, 3), d.integer(1, 3), d.integer(1, 3)])
    graph, kind = stem.graph, d.turn(REDUCED)
    x = graph.add("Add", graph.add("Abs", stem.name), 0.1) if kind == "LogSum" else stem.name
    axes = d.choice(([1], [2, 3], [-1], [1, -1], [3, 1], [1, 2, 3], None))
    if axes is None and d.flag(0.4) and (kind == "Sum" or graph.opset >= 18):
        empty = graph.const(np.zeros(0, np.int64))
        result = graph.add(f"Reduce{kind}", x, empty, keepdims=1, noop_with_empty_axes=d.choice((0, 1)))
        return finish(d, stem, result, f"{kind} over empty axes")
    return finish(d, stem, graph.reduce(f"Reduce{kind}", x, axes, d.choice((0, 1))), f"{kind} over {axes}")


def softmax(d: Draws) -> Built:
    """Softmax and LogSoftmax along any axis, over small and large differences."""
    stem = tensor(d, [1, d.integer(1, 3), d.integer(2, 4)])
    kind = d.choice(("Softmax", "Softmax", "LogSoftmax"))
    x = stem.graph.add("Mul", stem.name, d.choice((1.0, 5.0, 50.0, 1000.0)))
    axis = d.choice((-1, 1, 2))
    result = stem.graph.add(kind, x, axis=axis)
    if d.flag(0.3):
        result = stem.graph.add("Mul", result, stem.name)
    return finish(d, stem, result, f"{kind} along {axis}")


def choosing(d: Draws) -> Built:
    """Comparisons, Where, ArgMax, Sign, Floor and what else jumps, at ordinary places."""
    stem = tensor(d, [1, d.integer(2, 4)])
    graph, x = stem.graph, stem.name
    kind = d.turn(("where", "argmax", "argmin", "compare", "Sign", "Floor", "Ceil", "Round", "not", "logic"))
    limit = d.choice((0.0, 0.3, -0.25))
    compared = d.choice(("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"))
    if kind == "where":
        result = graph.add("Where", graph.add(compared, x, limit), x, graph.add("Neg", x) if d.flag() else 0.7)
    elif kind in ("argmax", "argmin"):
        op = "ArgMax" if kind == "argmax" else "ArgMin"
        result = graph.add(op, x, axis=d.choice((1, -1)), keepdims=1, select_last_index=d.choice((0, 1)))
        result = graph.add("Cast", result, to=TensorProto.FLOAT)
    elif kind in ("compare", "not", "logic"):
        result = graph.add(compared, x, limit)
        if kind == "logic":
            result = graph.add(d.choice(("And", "Or", "Xor")), result, graph.add("Less", x, limit + 0.2))
        result = graph.add("Not", result) if kind == "not" else result
        result = graph.add("Cast", result, to=TensorProto.FLOAT)
    else:
        result = graph.add(kind, graph.add("Mul", x, d.choice((1.0, 3.0, 10.0))))
    return finish(d, stem, result, f"{kind} {compared if kind in ('where', 'compare', 'not', 'logic') else ''}".strip())


SLOPES = (0.01, 1.7, 4.0, 0.3, 1.2, 30.0, -0.5, 1.0, 0.0)
HOST_MODES = (
    "root alpha-crown", "root crown-ibp", "root crown", "root zonotope+crown", "root forward+crown",
    "root zonotope+full-crown", "root alpha-zonotope+alpha-crown",
)  # fmt: skip


def _leaky(d: Draws, **more: Any) -> Built:
    plain = d.flag(0.6)
    stem = spike(d, opset=d.choice((13, 17))) if plain else tensor(d, [1, d.integer(1, 3)], spiky=0.6)
    graph = stem.graph
    x = graph.add("Mul", stem.name, d.choice((-2.0, -2.0, -2.0, -1.5, 2.0, 1.0)))
    x = inner = graph.add("Sub", x, d.choice((-1.0, -1.0, -1.0, -0.5, 1.0, 0.3)))
    slope = d.turn(SLOPES)
    if d.flag(0.8):
        x, kind = graph.add("LeakyRelu", x, alpha=slope), "LeakyRelu"
    else:
        width = graph.shape_of(x)[1]
        slopes = np.array([slope, *(d.choice(SLOPES) for _ in range(width - 1))])
        x, kind = graph.add("PRelu", x, slopes if d.flag(0.8) else np.array([slope])), "PRelu"
    x = graph.add("Mul", x, d.choice((-1.0, -1.0, 1.0)))
    if d.flag(0.15):  # so that the peak lies where the slope changes
        x = graph.add("Add", x, graph.add("Mul", inner, d.choice((-0.5, -1.3, 1.3, -2.0))))
    if d.flag(0.3):
        x = graph.reduce(
            d.choice(("ReduceMax", "ReduceMin")), graph.add("Concat", x, graph.add("Sub", x, 5.0), axis=1), [1]
        )
    return finish(d, stem, x, f"{kind} {slope:g}", "all" if plain else "", **more)


def leaky(d: Draws) -> Built:
    return _leaky(d, modes=HOST_MODES, boxes=0.0)


def leaky_boxes(d: Draws) -> Built:
    return _leaky(d, modes=("auto root",), boxes=1.0)


def convolutions_residual(d: Draws) -> Built:
    """Reshape, three convolutions without a ReLU between, ReLU, MatMul, residual: bounds of it were wrong in a host."""
    count, side, channels = d.integer(2, 4), d.choice((2, 3, 4)), d.choice((1, 2))
    graph = Graph([1, count], np.float32, d.choice((13, 17)))
    size = channels * side * side
    x = graph.add("Gemm", "X", d.normal(count, size, scale=count**-0.5), d.normal(size, scale=0.3))
    first = graph.add("Reshape", x, np.array([1, channels, side, side]))
    x = first
    for _ in range(3):
        weight = d.normal(channels, channels, 3, 3, scale=0.4)
        x = graph.add("Conv", x, weight, d.normal(channels, scale=0.2), pads=[1, 1, 1, 1])
    if d.flag(0.3):
        x = graph.add("Add", x, first)
    hidden = graph.add("Relu", x)
    flat = graph.add("Reshape", hidden, np.array([1, size]))
    product = graph.add("MatMul", flat, d.normal(size, size, scale=size**-0.5))
    total = graph.add("Add", product, flat) if d.flag(0.7) else graph.add("Add", product, graph.rows(x))
    total = graph.add("Relu", total) if d.flag() else total
    result = graph.add("Gemm", total, d.normal(size, d.integer(1, 2), scale=size**-0.5))
    box = np.ones(count)
    modes = ("root crown", "root alpha-crown", "root crown-ibp", "root zonotope+crown", "root zonotope+full-crown")
    return Built(graph, result, -box, box, [], f"{side}x{side}x{channels}", modes=modes)


def residual(d: Draws) -> Built:
    """Branches that meet again: additions, products, concatenations and differences of one tensor's images."""
    count, width = d.integer(2, 4), d.integer(2, 5)
    graph = Graph([1, count], np.float32, d.choice((13, 17, 18)))
    x = graph.add("Gemm", "X", d.normal(count, width), d.normal(width, scale=0.3))
    for _ in range(d.integer(1, 3)):
        kind = d.choice(("Relu", "LeakyRelu", "Tanh", "Sigmoid", "Abs"))
        branch = graph.add(kind, graph.add("Gemm", x, d.normal(width, width, scale=width**-0.5)))
        how = d.choice(("Add", "Sub", "Mul", "Max", "concat"))
        if how == "concat":
            x = graph.add("Gemm", graph.add("Concat", x, branch, axis=1), d.normal(2 * width, width, scale=0.4))
        else:
            x = graph.add(how, x, branch)
    result = graph.add("Gemm", x, d.normal(width, d.integer(1, 3), scale=width**-0.5))
    return Built(graph, result, -np.ones(count), np.ones(count), [], "branches")
