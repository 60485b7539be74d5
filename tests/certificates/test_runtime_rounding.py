"""What is assumed of ONNX Runtime's rounding, against what it computes at each of its optimisation levels."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnxruntime
import pytest
from helpers import random_networks as networks

from zonoplug.certificates.agreement import point_bounds
from zonoplug.certificates.onnx_reader import read_network
from zonoplug.certificates.runtime_rounding import NUMBER_TYPES, runtime_error
from zonoplug.errors import UnsupportedOperatorError

LEVELS = [
    getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{name}")
    for name in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
]
EXACT = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x.astype(np.longdouble))),
    "tanh": lambda x: np.tanh(x.astype(np.longdouble)),
    "leaky relu": lambda x: np.where(x > 0, x, x.astype(np.longdouble) * np.float32(0.3)),
    "relu": lambda x: np.maximum(x.astype(np.longdouble), 0),
    "clip": lambda x: np.clip(x.astype(np.longdouble), -0.5, 2.0),
}
NODES = {"sigmoid": "Sigmoid", "tanh": "Tanh", "leaky relu": "LeakyRelu", "relu": "Relu", "clip": "Clip"}


@pytest.mark.parametrize("dtype", NUMBER_TYPES)
@pytest.mark.parametrize("kind", EXACT)
def test_functions_of_one_variable_are_as_exact_as_assumed(kind, dtype):
    random = np.random.default_rng(0)
    ends = np.array([0.0, -0.0, 9.0, -9.0, 18.0, -18.0, 87.0, -87.0, 88.8, -104.0, 1e30, -1e30, 1e-40, -1e-40])
    x = np.concatenate([ends, *(random.normal(size=20_000) * scale for scale in (1e-6, 1e-2, 1.0, 10.0, 40.0))])
    b = networks.Builder(0, (1, x.size), dtype)
    b.opset, b.value = 17, np.zeros((1, 4), dtype)
    attributes = {"alpha": 0.3} if kind == "leaky relu" else {}
    ends = [b.constant(np.array(end, dtype)) for end in (-0.5, 2.0)] if kind == "clip" else []
    b.add(NODES[kind], b.name, *ends, **attributes)
    model = b.model(flatten=False)
    x = x.astype(dtype)
    with np.errstate(over="ignore"):
        exact = EXACT[kind](x)
    allowed = runtime_error(kind, dtype)
    for level in LEVELS:
        run = networks.runtime(model, level)
        if run is None:
            assert (kind, dtype) == ("leaky relu", "float64")  # the runtime has none
            continue
        error = np.abs(run(x).astype(np.longdouble) - exact)
        assert (error <= allowed.relative * np.abs(exact) + allowed.absolute + NUMBER_TYPES[dtype].tiny).all()


def test_nothing_is_assumed_of_other_functions():
    with pytest.raises(UnsupportedOperatorError, match="erf"):
        runtime_error("erf", "float32")


def _cancelling(random, shape):
    """Numbers of very different sizes."""
    return (random.normal(size=shape) * 10.0 ** random.integers(-3, 4, shape)).astype(np.float32)


def folded_chains(b, which):
    """Operators that the runtime folds into one another."""
    random = b.random

    def constant(*shape):
        return b.constant(_cancelling(random, shape))

    if which == "batch normalisation":
        b.add("Conv", b.name, constant(4, 2, 3, 3), constant(4), pads=[1, 1, 1, 1])
        variance = b.constant(np.abs(_cancelling(random, (4,))))
        b.add("BatchNormalization", b.name, constant(4), constant(4), constant(4), variance)
        b.add("Mul", b.name, constant(4, 1, 1))
        b.add("Add", b.name, constant(4, 1, 1))
    elif which == "residual":
        b.add("Conv", b.name, constant(4, 2, 3, 3), pads=[1, 1, 1, 1])
        b.add("Relu", b.name)
        before = b.name
        b.add("Conv", b.name, constant(4, 4, 3, 3), pads=[1, 1, 1, 1])
        b.add("Add", b.name, before)
        b.add("Relu", b.name)
        b.add("GlobalAveragePool", b.name)
    else:
        b.add("Flatten", b.name)
        b.add("Mul", b.name, b.constant(np.float32(0.3)))
        b.add("MatMul", b.name, constant(b.value.size, 5))
        b.add("Div", b.name, b.constant(np.float32(3.0)))
        b.add("Add", b.name, constant(5))
        b.add("Relu", b.name)
        b.add("MatMul", b.name, constant(5, 2))
        b.add("Add", b.name, constant(2))
    return b.model()


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_single_numbers_that_the_runtime_folds_in_float32_are_charged(tmp_path, op):
    """A float64 network whose result is scaled by 0.3: the fold makes it 0.3 in float32."""
    b = networks.Builder(0, (1, 3), "float64")
    b.opset = 17
    b.add("MatMul", b.name, b.constant(b.random.normal(size=(3, 2))))
    scale = b.constant(np.array([0.3]))
    b.add(op, b.name, scale)
    model = b.model()
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    network, _ = read_network(tmp_path / "n.onnx")
    point = np.array([1.0, 2.0, -0.5])
    low, high = point_bounds(network, point[None])
    for level in LEVELS:
        outputs = networks.runtime(model, level)(point)
        assert ((low <= outputs) & (outputs <= high)).all()
    assert (high - low).max() < 1e-6 * np.abs(high).max()
    b.constants[scale] = np.array([1e-300])
    (tmp_path / "n.onnx").write_bytes(b.model().SerializeToString())
    with pytest.raises(UnsupportedOperatorError, match="very large or small"):
        read_network(tmp_path / "n.onnx")


@pytest.mark.parametrize("which", ["batch normalisation", "residual", "products"])
@pytest.mark.parametrize("seed", range(3))
def test_outputs_lie_within_the_bounds_of_their_point(tmp_path, which, seed):
    """At every optimisation level; and the bounds are tight enough to say so."""
    b = networks.Builder([seed, 7], (1, 2, 4, 4), "float32")
    b.opset = 17
    model = folded_chains(b, which)
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    network, _ = read_network(tmp_path / "n.onnx")
    points = _cancelling(np.random.default_rng(seed), (20, network.num_inputs)).astype(np.float64)
    with np.errstate(all="ignore"):
        low, high = point_bounds(network, points)
    for level in LEVELS:
        run = networks.runtime(model, level)
        outputs = np.stack([run(point) for point in points])
        assert ((low <= outputs) & (outputs <= high)).all()
    assert (high - low).max() <= 1e-4 * np.abs([low, high]).max()


def test_bounds_of_a_point_hold_for_the_real_function_and_for_any_order_of_summation(tmp_path):
    """A product of numbers that cancel: its exact value, and sums in random orders in float32."""
    random = np.random.default_rng(0)
    weight, point = _cancelling(random, (64, 1)), _cancelling(random, 64)
    b = networks.Builder(0, (1, 64), "float32")
    b.opset = 17
    b.add("MatMul", b.name, b.constant(weight))
    (tmp_path / "n.onnx").write_bytes(b.model().SerializeToString())
    network, _ = read_network(tmp_path / "n.onnx")
    low, high = point_bounds(network, point[None].astype(float))
    exact = sum(
        (Fraction(float(w)) * Fraction(float(x)) for w, x in zip(weight[:, 0], point, strict=True)), Fraction(0)
    )
    assert Fraction(low.item()) <= exact <= Fraction(high.item())
    products = weight[:, 0] * point
    worst = max(abs(float(np.cumsum(random.permutation(products))[-1]) - float(exact)) for _ in range(200))
    assert worst > 0
    assert low.item() + worst <= float(exact) <= high.item() - worst


def test_constants_that_overflow_where_they_are_folded_are_refused(tmp_path):
    b = networks.Builder(0, (1, 2), "float32")
    b.opset = 17
    b.add("MatMul", b.name, b.constant(np.full((2, 2), 1e25, np.float32)))
    b.add("Mul", b.name, b.constant(np.full((2,), 1e25, np.float32)))
    (tmp_path / "n.onnx").write_bytes(b.model().SerializeToString())
    with pytest.raises(UnsupportedOperatorError, match="too large for float32"):
        read_network(tmp_path / "n.onnx")
