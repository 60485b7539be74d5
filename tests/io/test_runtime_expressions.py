"""What is assumed of functions written as several operators, held against the installed ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import onnx_graphs as graphs
from helpers import runtime_cases as cases
from helpers import runtime_composed as composed
from onnx import TensorProto

from zonoplug.io import runtime
from zonoplug.io.runtime import FORMATS, LEVELS

LAST = graphs.integers(-1)


def log_softmax(x):
    shifted, total = composed.softmax_parts(x)
    return shifted - np.log(total)


def reach(x):
    return composed.last_axis(np.abs(composed.wide(x)), how=np.max)


def shifted(graph):
    return graph.add("Sub", "x", graph.add("ReduceMax", "x", axes=[-1]))


def exponentials(graph, x):
    powers = graph.add("Exp", x)
    return powers, graph.add("ReduceSum", powers, LAST)


def divided(x):
    exact, least = composed.wide(x), composed.wide(np.float32([3.7]))
    y = exact / (least + 0 * exact)
    return y, runtime.quotient_error(x.dtype.name, np.abs(y), np.abs(exact), least)


def divide(graph):
    graph.add("Div", "x", graph.add("Add", graph.add("Mul", "x", graph.zero), graph.divisor))


def multiply_by_reciprocal(graph):
    low = graph.add("Add", graph.add("Mul", "x", graph.zero), graph.divisor)
    graph.add("Mul", "x", graph.add("Reciprocal", low))


def plain_softmax(graph):
    graph.add("Div", *exponentials(graph, "x"))


def plain_softmax_by_reciprocal(graph):
    powers, total = exponentials(graph, "x")
    graph.add("Mul", powers, graph.add("Reciprocal", total))


def log_of_softmax(graph):
    graph.add("Log", graph.add("Softmax", "x", axis=-1))


def less_log_of_sum(graph):
    graph.add("Sub", "x", graph.add("Log", exponentials(graph, "x")[1]))


def less_log_sum_exp(graph):
    graph.add("Sub", "x", graph.add("ReduceLogSumExp", "x", axes=[-1]))


def shifted_less_log_of_sum(graph):
    x = shifted(graph)
    graph.add("Sub", x, graph.add("Log", exponentials(graph, x)[1]))


def of_plain_softmax(x):
    y = np.exp(log_softmax(x))
    return y, runtime.plain_softmax_error(x.dtype.name, x.shape[-1], y, reach(x))


def of_log(x):
    y = log_softmax(x)
    return y, runtime.log_of_softmax_error(x.dtype.name, x.shape[-1], np.abs(y))


def of_difference(x):
    y = log_softmax(x)
    return y, runtime.less_log_sum_error(x.dtype.name, x.shape[-1], np.abs(y), reach(x))


def of_shifted_difference(x):
    y = log_softmax(x)
    return y, runtime.less_log_sum_error(x.dtype.name, x.shape[-1], np.abs(y), 0.0)


EXPRESSIONS = [
    (divide, divided),
    (multiply_by_reciprocal, divided),
    (plain_softmax, of_plain_softmax),
    (plain_softmax_by_reciprocal, of_plain_softmax),
    (log_of_softmax, of_log),
    (less_log_of_sum, of_difference),
    (less_log_sum_exp, of_difference),
    (shifted_less_log_of_sum, of_shifted_difference),
]


@pytest.mark.parametrize("write, assumed", EXPRESSIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("kind", FORMATS)
def test_expressions_use_at_most_half_of_the_error_that_is_assumed(write, assumed, kind):
    counted, worst = 0, 0.0
    for n in (7, 65):
        rows = composed.scaled_rows(kind, n)
        rows |= {f"{factor}": (factor * composed.scaled_rows("float64", n)["1"]).astype(kind) for factor in (5, 15, 30)}
        graph = graphs.Graph([3, n], kind=getattr(TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}[kind]))
        graph.zero, graph.divisor = np.zeros(1, kind), np.float32([3.7]).astype(kind)
        write(graph)
        source = graph.model().SerializeToString()
        for level in LEVELS:
            session = cases.session_of(source, level)
            for x in rows.values():
                with np.errstate(all="ignore"):
                    exact, allowed = assumed(x)
                    worst = max(worst, cases.share(session.run(None, {"x": x})[0], exact, allowed))
                counted += int(np.isfinite(allowed).any())
    assert 0 < worst <= 0.5
    assert counted >= 40
