"""Classes about rounding: sums that cancel, jumps that rounding reaches, tiny and huge scales, and what levels fuse."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from redteam.draws import Draws
from redteam.graph import SkipError
from redteam.planting import Built
from redteam.stems import Stem, spike, tensor


def _cancelled(d: Draws, stem: Stem, scale: float) -> str:
    """c s + scale - scale: about c s, off by what rounding at this scale does, for a c that it takes away from 0."""
    graph, kind = stem.graph, stem.graph.dtype.type
    tried = [kind(d.choice((1, -1)) * value) for value in d.uniform(0.2, 1.5, 12)]
    gain = [float((value + kind(scale)) - kind(scale) - value) * np.sign(value) for value in tried]
    x = graph.add("Mul", stem.name, float(tried[int(np.argmax(gain)) if d.flag(0.85) else 0]))
    return str(graph.add("Sub", graph.add("Add", x, scale), scale))


BEHIND = (
    "reducemax", "reducemin", "lse", "logsoftmax", "softmax", "maxpool", "avgpool", "l1", "l2", "prod", "mean",
    "square", "exp", "sqrt", "div", "max", "clip", "relu", "abs", "where", "mul", "tanh", "nothing", "leaky", "argmax",
    "log", "layernorm", "gemm", "conv", "sumsquare", "logsum", "pow3", "erf", "softplus", "neg", "resize", "concat",
)  # fmt: skip


def _behind(d: Draws, stem: Stem, x: str, kind: str) -> str:
    """An operator of x, (1, 1), and of x less a constant where it takes several."""
    graph = stem.graph
    pair = graph.add("Concat", x, graph.add("Sub", x, d.choice((5.0, 30.0, 0.1))), axis=1)
    other = graph.add("Concat", x, np.full((1, 1), d.choice((0.3, 0.7, -0.3))), axis=1)
    image = graph.add("Reshape", pair, np.array([1, 1, 1, 2]))
    above = graph.add("Add", x, d.choice((1.5, 3.0)))
    simple = {
        "exp": "Exp", "relu": "Relu", "abs": "Abs", "tanh": "Tanh", "neg": "Neg", "erf": "Erf", "softplus": "Softplus",
    }  # fmt: skip
    reduced = {
        "reducemax": "ReduceMax", "reducemin": "ReduceMin", "lse": "ReduceLogSumExp", "l1": "ReduceL1",
        "l2": "ReduceL2", "prod": "ReduceProd", "mean": "ReduceMean", "sumsquare": "ReduceSumSquare",
    }  # fmt: skip
    if kind in reduced:
        return graph.reduce(reduced[kind], pair, [1])
    if kind in simple:
        return str(graph.add(simple[kind], x))
    made = {
        "logsoftmax": lambda: graph.add("LogSoftmax", other, axis=1),
        "softmax": lambda: graph.add("Softmax", other, axis=1),
        "maxpool": lambda: graph.rows(graph.add("MaxPool", image, kernel_shape=[1, 2])),
        "avgpool": lambda: graph.rows(graph.add("AveragePool", image, kernel_shape=[1, 2])),
        "conv": lambda: graph.rows(graph.add("Conv", image, d.normal(1, 1, 1, 2))),
        "resize": lambda: graph.rows(graph.add("Resize", image, "", graph.const([1.0, 1.0, 1.0, 2.0], np.float32))),
        "square": lambda: graph.add("Mul", x, x),
        "pow3": lambda: graph.add("Pow", x, 3.0),
        "sqrt": lambda: graph.add("Sqrt", above),
        "log": lambda: graph.add("Log", above),
        "logsum": lambda: graph.reduce("ReduceLogSum", graph.add("Abs", graph.add("Concat", above, x, axis=1)), [1]),
        "div": lambda: graph.add("Div", d.choice((1.0, -2.0)), above),
        "max": lambda: graph.add("Max", x, d.choice((0.0, -0.2))),
        "clip": lambda: graph.add("Clip", x, -0.2, 0.9),
        "where": lambda: graph.add("Where", graph.add("Less", x, 0.2), graph.add("Neg", x), x),
        "mul": lambda: graph.add("Mul", x, graph.add("Add", stem.name, 0.5)),
        "leaky": lambda: graph.add("LeakyRelu", x, alpha=d.choice((0.1, 1.7))),
        "argmax": lambda: graph.add("Cast", graph.add("ArgMax", other, axis=1), to=1),
        "layernorm": lambda: graph.add("LayerNormalization", pair, np.ones(2), axis=-1),
        "gemm": lambda: graph.add("Gemm", pair, d.normal(2, 2)),
        "concat": lambda: pair,
        "nothing": lambda: x,
    }  # fmt: skip
    return str(made[kind]())


def _cancel(d: Draws, kinds: tuple[str, ...], dtype: Any) -> Built:
    stem = spike(d, dtype, opset=17)
    scale = d.choice((1e5, 1e6, 3e6, 3e6, 1e7)) if dtype is np.float32 else d.choice((1e13, 1e14, 1e15))
    kind = d.turn(kinds)
    result = _behind(d, stem, _cancelled(d, stem, scale), kind)
    if kind == "argmax" and dtype is np.float64:
        raise SkipError("its output is float32")
    words = f"{kind} at {scale:g}"
    return stem.built(result, words, whole=d.flag(0.7), beside=d.choice(("exact", "strict", "ulp", "hair 7", "hair 5")))


def cancel(d: Draws) -> Built:
    return _cancel(d, BEHIND, np.float32)


def cancel_lse(d: Draws) -> Built:
    return _cancel(d, ("lse", "logsoftmax", "softmax", "logsum"), np.float32)


def cancel_reduced(d: Draws) -> Built:
    return _cancel(d, ("reducemax", "reducemin", "maxpool", "prod", "l1", "l2", "max"), np.float32)


def cancel_float64(d: Draws) -> Built:
    return _cancel(d, BEHIND, np.float64)


JUMPS = ("Floor", "Ceil", "Round", "Sign", "int", "int32", "less", "greater", "geq", "leq", "equal", "argmax", "bool")


def _jump(d: Draws, kinds: tuple[str, ...]) -> Built:
    """a s + b, where a + b stays below 1 in exact arithmetic and is rounded to 1: an operator that jumps at 1."""
    kind = d.turn(kinds)
    stem = spike(d, opset=17)
    graph = stem.graph
    a, b, large = _rounds_to_one(d)
    x = graph.add("Add", graph.add("Mul", stem.name, a), b)
    x = graph.add("Sub", x, large) if large else x
    compared = {"less": "Less", "greater": "Greater", "geq": "GreaterOrEqual", "leq": "LessOrEqual", "equal": "Equal"}
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    sign = 1
    if kind in compared:
        test = graph.add(
            compared[kind], x, float(np.nextafter(np.float32(1), np.float32(0))) if kind == "greater" else 1.0
        )
        if kind in ("less", "leq"):
            result = graph.add("Where", test, zero, one)
        else:
            result = graph.add("Where", test, one, zero) if d.flag() else graph.add("Cast", test, to=TensorProto.FLOAT)
        if kind == "leq":
            raise SkipError("1 <= 1 either way")
    elif kind in ("int", "int32"):
        whole = graph.add("Cast", x, to=TensorProto.INT64 if kind == "int" else TensorProto.INT32)
        result = graph.add("Cast", whole, to=TensorProto.FLOAT)
    elif kind == "bool":
        result = graph.add(
            "Cast", graph.add("Cast", graph.add("Sub", x, 1.0), to=TensorProto.BOOL), to=TensorProto.FLOAT
        )
        sign = -1
    elif kind == "argmax":
        pair = graph.add("Concat", one, x, axis=1)
        result = graph.add("Cast", graph.add("ArgMax", pair, axis=1, select_last_index=1), to=TensorProto.FLOAT)
    elif kind == "Ceil":
        result, sign = graph.add("Ceil", graph.add("Sub", 2.0, x)), -1  # above 1, so 2, unless x is rounded to 1
    elif kind == "Round":
        result = (
            graph.add("Round", graph.add("Sub", graph.add("Mul", x, 0.5), 1e-9)) if d.flag() else graph.add("Floor", x)
        )
    elif kind == "Sign":
        result = graph.add("Add", graph.add("Sign", graph.add("Sub", x, 1.0)), 1.0)
    else:
        result = graph.add(kind, x)
    beside = d.choice(("exact", "gap", "ulp"))
    return stem.built(result, kind, whole=True, place=0, sign=sign, beside=beside, computed=True)


def jump(d: Draws) -> Built:
    return _jump(d, JUMPS)


def jump_cast(d: Draws) -> Built:
    return _jump(d, ("int", "int32", "bool"))


def jump_floor(d: Draws) -> Built:
    return _jump(d, ("Floor", "Ceil", "Floor", "Round", "Floor", "Sign"))


def jump_compare(d: Draws) -> Built:
    return _jump(d, ("less", "greater", "geq", "equal", "argmax"))


def _rounds_to_one(d: Draws) -> tuple[float, float, float]:
    """float32 numbers a, b + K and K: (a + (b + K)) - K is below 1 exactly, but 1 or more in float32."""
    large = np.float32(d.choice((0.0, 0.0, 1.0, 30.0, 1000.0, 1e5)))
    found: list[tuple[float, float, float]] = []
    for _ in range(300):
        a = np.float32(d.real(0.03, 0.12))
        b = np.float32(large + np.float32(1.0) - a)
        for shift in (b, np.nextafter(b, np.float32(0)), np.nextafter(b, np.float32(np.inf))):
            real = float(a) + float(shift) - float(large)
            if real < 1.0 and np.float32(np.float32(a + shift) - large) >= 1.0:
                found.append((real, float(a), float(shift)))
    if not found:
        raise SkipError("no such numbers")
    _, a, shift = min(found) if d.flag(0.7) else d.choice(found)
    return a, shift, float(large)


def sums(d: Draws) -> Built:
    """Long sums of large terms that cancel, whose value depends on the order of summation."""
    stem = spike(d) if d.flag(0.6) else tensor(d, [1, 2])
    graph, size = stem.graph, d.choice((8, 33, 100))
    width = graph.shape_of(stem.name)[1]
    scale = d.choice((1e2, 1e4, 1e6))
    large = d.normal(size, scale=scale)
    wide = graph.add("Gemm", stem.name, d.normal(width, size), large)
    kind = d.turn(("gemm", "matmul", "reducesum", "conv", "mean", "pool", "adds"))
    if kind in ("gemm", "matmul"):
        weight = d.normal(size, 1)
        weight[-1] -= float(large @ weight[:, 0]) / large[-1]  # so that the large parts cancel
        result = graph.add("Gemm", wide, weight, d.normal(1)) if kind == "gemm" else graph.add("MatMul", wide, weight)
    elif kind in ("reducesum", "mean"):
        centred = graph.add("Sub", wide, float(large.mean()))
        result = graph.reduce("ReduceSum" if kind == "reducesum" else "ReduceMean", centred, [1])
    elif kind == "adds":
        result = stem.name
        for value in (*large[:4], -float(large[:4].sum())):
            result = graph.add("Add", result, float(value))
    else:
        image = graph.add("Reshape", graph.add("Sub", wide, float(large.mean())), np.array([1, 1, 1, size]))
        if kind == "conv":
            result = graph.rows(graph.add("Conv", image, np.ones((1, 1, 1, size))))
        else:
            result = graph.rows(graph.add("AveragePool", image, kernel_shape=[1, size]))
    return stem.built(
        result, f"{kind} of {size} at {scale:g}", beside=d.choice(("exact", "exact", "ulp", "strict", "hair 6"))
    )


def scales(d: Draws) -> Built:
    """Steep slopes, subnormal numbers, and factors that underflow or overflow on the way."""
    kind = d.turn(("steep", "underflow", "subnormal", "overflow", "absorbed", "reciprocal"))
    stem = spike(d) if d.flag(0.6) else tensor(d, [1, 2])
    graph, x = stem.graph, stem.name
    if kind == "steep":
        x = graph.add("Mul", graph.add("Sub", x, d.real(-0.5, 1.0)), d.choice((1e5, 1e7)))
        x = graph.add(d.choice(("Relu", "Tanh", "Sigmoid", "Clip")), x, *([] if not d.flag(0.0) else [0.0]))
    elif kind == "underflow":
        x = graph.add("Mul", graph.add("Mul", x, 1e-30), d.choice((1e-10, 1e-16)))
        x = graph.add("Mul", graph.add("Mul", x, 1e30), d.choice((1e10, 1e16)))
    elif kind == "subnormal":
        x = graph.add("Mul", graph.add("Mul", x, d.choice((1e-39, 1e-41, 3e-44))), 1e38)
    elif kind == "overflow":
        x = graph.add("Div", 1.0, graph.add("Exp", graph.add("Mul", x, d.choice((80.0, 100.0, 300.0)))))
    elif kind == "absorbed":
        x = graph.add("Sub", graph.add("Add", x, d.choice((1e8, -1e8, 3e7))), d.choice((1e8, 3e7)))
    else:
        x = graph.add("Reciprocal", graph.add("Add", graph.add("Abs", x), d.choice((1e-6, 1e-20, 1e-38))))
    return stem.built(x, kind, beside=d.choice(("exact", "ulp", "strict", "hair 6", "hair 3")))


def fused(d: Draws) -> Built:
    """Patterns that ONNX Runtime rewrites at higher levels, where they round differently."""
    kind = d.turn(
        ("conv bn", "matmul add", "gelu", "layernorm", "conv mul", "constant folding", "gemm relu", "bn relu")
    )
    stem = spike(d) if d.flag() else tensor(d, [1, 4])
    graph = stem.graph
    width, scale = graph.shape_of(stem.name)[1], d.choice((1.0, 1e3, 1e5))
    wide = graph.add("MatMul", stem.name, d.normal(width, 4))
    wide = graph.add("Add", wide, d.normal(4, scale=scale))
    image = graph.add("Reshape", wide, np.array([1, 1, 2, 2]))
    if kind in ("conv bn", "conv mul", "bn relu"):
        x = image if kind == "bn relu" else graph.add("Conv", image, d.normal(1, 1, 2, 2), d.normal(1, scale=scale))
        if kind == "conv mul":
            x = graph.add("Add", graph.add("Mul", x, np.full((1, 1, 1), d.real(0.1, 3))), np.full((1, 1, 1), -scale))
        else:
            one = [np.array([d.real(0.5, 2)]), np.array([-scale]), np.array([scale]), np.array([d.real(0.01, 2)])]
            x = graph.add("BatchNormalization", x, *one)
        x = graph.rows(graph.add("Relu", x) if kind == "bn relu" else x)
    elif kind == "gelu":
        erf = graph.add("Erf", graph.add("Div", wide, float(np.float32(np.sqrt(2)))))
        x = graph.add("Mul", graph.add("Mul", wide, graph.add("Add", erf, 1.0)), 0.5)
    elif kind == "layernorm":
        centred = graph.add("Sub", wide, graph.reduce("ReduceMean", wide, [-1]))
        spread = graph.reduce("ReduceMean", graph.add("Pow", centred, 2.0), [-1])
        x = graph.add("Div", centred, graph.add("Sqrt", graph.add("Add", spread, 1e-5)))
        x = graph.add("Add", graph.add("Mul", x, d.normal(4)), d.normal(4))
    elif kind == "constant folding":
        x = graph.add(
            "Sub",
            graph.add("Add", wide, graph.add("Exp", np.full((1, 4), 9.7))),
            graph.add("Exp", np.full((1, 4), 9.7)),
        )
    else:
        x = graph.add("Gemm", wide, d.normal(4, 2), d.normal(2, scale=scale))
        x = graph.add("Relu", x) if kind == "gemm relu" else x
    return stem.built(x, f"{kind} at {scale:g}", beside=d.choice(("exact", "exact", "ulp", "strict", "hair 6")))
