"""Small networks and specifications written to files, for tests that run the whole way."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_network(path, layers, activation="Relu"):
    """A fully connected network from (weight (out, in), bias) pairs."""
    nodes, constants, name = [], [], "X"
    for number, (weight, bias) in enumerate(layers):
        constants += [
            numpy_helper.from_array(np.asarray(weight, np.float32), f"W{number}"),
            numpy_helper.from_array(np.asarray(bias, np.float32), f"b{number}"),
        ]
        last = number == len(layers) - 1
        out = "Y" if last else f"z{number}"
        nodes.append(helper.make_node("Gemm", [name, f"W{number}", f"b{number}"], [out], transB=1))
        if not last:
            nodes.append(helper.make_node(activation, [out], [f"a{number}"]))
            name = f"a{number}"
    inputs, outputs = len(layers[0][0][0]), len(layers[-1][1])
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, outputs])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def write_specification(path, lower, upper, outputs, assertions):
    """A VNN-LIB 1.0 file: an input box and assertions on the outputs as text."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    path.write_text("\n".join([*lines, *(f"(assert {a})" for a in assertions)]) + "\n")
    return path


def random_network(path, seed, sizes=(3, 12, 12, 2), activation="Relu"):
    """A random fully connected network, and its weights."""
    random = np.random.default_rng(seed)
    layers = [
        (random.normal(size=(b, a)) / np.sqrt(a), 0.3 * random.normal(size=b)) for a, b in itertools.pairwise(sizes)
    ]
    return write_network(path, layers, activation), layers


def highest_first_output(layers, count, seed, difference=False):
    """The largest first output (or first minus second) over `count` random points of [-1, 1]^n, in float64."""
    values = np.random.default_rng(seed).uniform(-1, 1, size=(count, len(layers[0][0][0])))
    for number, (weight, bias) in enumerate(layers):
        values = values @ weight.T + bias
        values = np.maximum(values, 0) if number < len(layers) - 1 else values
    return float((values[:, 0] - values[:, 1] if difference else values[:, 0]).max())
