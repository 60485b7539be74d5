"""The checker's own reading of networks, and its bounds: against ONNX Runtime and samples."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from zonoplug.certificates import ascent
from zonoplug.certificates.lines import enclose, image
from zonoplug.certificates.network import RELU, SIGMOID, TANH, Network, clip, leaky_relu
from zonoplug.certificates.onnx_reader import read_network
from zonoplug.certificates.rounded_bounds import Bounds
from zonoplug.errors import ModelError, UnsupportedOperatorError

FUNCTIONS = {"relu": RELU, "sigmoid": SIGMOID, "tanh": TANH, "leaky": leaky_relu(0.1), "clip": clip(-0.5, 0.75)}


def save(path, nodes, shape, outputs, **constants):
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def convolutional(path, seed):
    """Strided, padded, dilated and grouped convolutions, batch normalisation, pooling, a residual, slices."""
    random = np.random.default_rng(seed)

    def weights(*shape):
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    node = helper.make_node
    nodes = [
        node("Conv", ["X", "W0", "b0"], ["c0"], strides=[2, 1], pads=[1, 0, 1, 2], kernel_shape=[3, 3]),
        node("BatchNormalization", ["c0", "scale", "shift", "mean", "variance"], ["n0"]),
        node("Relu", ["n0"], ["a0"]),
        node("Conv", ["a0", "W1"], ["c1"], pads=[1, 1, 1, 1], group=2, kernel_shape=[3, 3]),
        node("Add", ["c1", "a0"], ["r1"]),
        node("Sigmoid", ["r1"], ["a1"]),
        node("AveragePool", ["a1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "W2"], ["c2"], dilations=[1, 2], kernel_shape=[1, 2]),
        node("Transpose", ["c2"], ["t2"], perm=[0, 2, 3, 1]),
        node("Flatten", ["t2"], ["f2"]),
        node("MatMul", ["f2", "W3"], ["m3"]),
        node("Sub", ["m3", "b3"], ["s3"]),
        node("Tanh", ["s3"], ["a3"]),
        node("Slice", ["a3", "from", "to", "axis"], ["left"]),
        node("Concat", ["left", "s3"], ["both"], axis=1),
        node("Gemm", ["both", "W4", "b4"], ["Y"], alpha=0.5, beta=2.0, transB=1),
    ]
    wide = {"W0": weights(4, 2, 3, 3), "b0": weights(4), "W1": weights(4, 2, 3, 3), "W2": weights(3, 4, 1, 2)}
    wide |= {"scale": weights(4), "shift": weights(4), "mean": weights(4), "variance": 0.5 + weights(4) ** 2}
    size = 3 * 2 * 1
    wide |= {"W3": weights(size, 5), "b3": weights(5), "W4": weights(2, 8), "b4": weights(2)}
    wide |= {"from": np.array([0]), "to": np.array([3]), "axis": np.array([1])}
    return save(path, nodes, [1, 2, 7, 6], [1, 2], **wide)


def runtime_outputs(source, points):
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    fed = session.get_inputs()[0]
    return np.stack([session.run(None, {fed.name: p.reshape(fed.shape)})[0].reshape(-1) for p in points])


@pytest.mark.parametrize("dense_entries", [2**23, 0])
def test_networks_are_read_as_onnx_runtime_reads_them(tmp_path, monkeypatch, dense_entries):
    monkeypatch.setattr("zonoplug.certificates.network.DENSE_ENTRIES", dense_entries)
    network, source = read_network(convolutional(tmp_path / "n.onnx", 0))
    points = np.random.default_rng(1).uniform(-1, 1, (4, network.num_inputs)).astype(np.float32)
    expected = runtime_outputs(source, points)
    np.testing.assert_allclose(network.evaluate(points.astype(float)), expected, atol=1e-5)


@pytest.mark.parametrize("dense_entries", [2**23, 0])
@pytest.mark.parametrize("strategies", [(), ("adaptive",), ("adaptive", "parallel")])
def test_bounds_of_a_convolutional_network_hold_at_samples(tmp_path, monkeypatch, strategies, dense_entries):
    monkeypatch.setattr("zonoplug.certificates.network.DENSE_ENTRIES", dense_entries)
    network, _ = read_network(convolutional(tmp_path / "n.onnx", 2))
    random = np.random.default_rng(3)
    center = random.uniform(-1, 1, (3, network.num_inputs))
    lower, upper = center - 0.1, center + 0.1
    bounds = Bounds(network, lower, upper)
    bounds.run({}, strategies)
    bounds.make_lines("adaptive")
    unit = np.eye(network.outputs.size)
    rows = bounds.rows_below(network.outputs, np.concatenate([unit, -unit])).lower
    width = rows[:, 2:] * -1 - rows[:, :2]
    assert (width < (bounds.upper - bounds.lower)[:, network.outputs] + 1e-9).all()
    for place in range(3):
        outputs = network.evaluate(random.uniform(lower[place], upper[place], (300, network.num_inputs)))
        assert (rows[place] <= np.concatenate([outputs, -outputs], axis=1)).all()


def small_network(seed, names, sizes=(3, 6, 5, 2), residual=True):
    """Random layers with the named functions between them, in the checker's own terms."""
    random = np.random.default_rng(seed)
    network = Network(sizes[0])
    places, before = np.arange(sizes[0]), None
    for layer, (a, b) in enumerate(itertools.pairwise(sizes)):
        places = network.dense(places, random.normal(size=(b, a)) / np.sqrt(a), random.normal(size=b) * 0.3)
        if layer < len(sizes) - 2:
            after = network.apply(places, FUNCTIONS[names[layer % len(names)]])
            if residual and before is not None and before.size == after.size:
                both = np.stack([before, after], axis=1)
                after = network.sparse(both, np.ones(both.shape), np.zeros(after.size))
            places = before = after
    network.outputs = places
    return network


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    names=st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=3),
    strategy=st.sampled_from(["adaptive", "parallel"]),
)
def test_bounds_hold_for_points_with_the_signs_that_were_fixed(seed, names, strategy):
    """Any slopes and any multipliers >= 0, for all points of the box whose neurons have the split constraints."""
    network = small_network(seed, names, sizes=(3, 6, 6, 6, 2))
    random = np.random.default_rng(seed)
    lower = random.uniform(-1, 0, (1, 3))
    upper = lower + random.uniform(0.1, 2, (1, 3))
    points = random.uniform(lower, upper, (400, 3))
    row = np.zeros((400, network.size))
    row[:, :3] = points
    for block in network.blocks:
        x = row[:, block.places]
        is_affine = hasattr(block, "matrix")
        row[:, block.start : block.stop] = (
            block.matrix.forward(x) + block.bias if is_affine else block.function.value(x)
        )
    phases, pulls, alpha, fits = {}, {}, {}, np.ones(400, bool)
    for block in network.activations:
        sign = random.integers(-1, 2, (1, block.places.size)) * (random.random(block.places.size) < 0.2)
        phases[block.start] = sign.astype(float)
        pulls[block.start] = sign * random.uniform(0, 2, sign.shape)
        alpha[block.start] = random.uniform(0, 1, sign.shape)
        fits &= (sign * row[:, block.places] >= 0).all(axis=1)
    bounds = Bounds(network, lower, upper)
    bounds.run(phases, (strategy,))
    assert not (bounds.empty[0] and fits.any())
    slack = 1e-12
    assert (bounds.lower - slack <= row[fits]).all() and (row[fits] <= bounds.upper + slack).all()
    rows = random.normal(size=(4, network.outputs.size))
    for chosen in (None, alpha):
        bounds.make_lines(strategy, chosen)
        below = bounds.rows_below(network.outputs, rows, pulls).lower
        assert (below <= row[fits][:, network.outputs] @ rows.T + slack).all()
    if not bounds.empty[0]:
        start = ascent.Choices(alpha, {at: np.abs(pull) for at, pull in pulls.items()})
        best = ascent.ascend(bounds, network.outputs, rows[None, :1], np.full(1, np.inf), phases, start, 6)
        assert (best <= row[fits][:, network.outputs] @ rows[0] + slack).all()


def test_gradient_steps_pay():
    """Slopes found by ascent prove more than the first choice: on most of 20 random networks, and never less."""
    better = 0
    for seed in range(20):
        network = small_network(seed, ["relu"], sizes=(4, 12, 12, 12, 1), residual=False)
        bounds = Bounds(network, np.full((1, 4), -1.0), np.full((1, 4), 1.0))
        bounds.run({}, ("adaptive",))
        bounds.make_lines("adaptive")
        row = np.ones((1, 1, 1))
        first = bounds.rows_below(network.outputs, row).lower[0, 0]
        best = ascent.ascend(bounds, network.outputs, row, np.full(1, np.inf), {}, ascent.Choices(), 20)[0]
        assert best >= first
        better += best > first + 0.01 * abs(first)
    assert better >= 12


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(FUNCTIONS)),
    lower=st.floats(-30, 30),
    width=st.floats(0, 40),
    slopes=st.tuples(st.floats(-1, 2), st.floats(-1, 2)),
)
def test_lines_of_any_slope_enclose_the_function(name, lower, width, slopes):
    function = FUNCTIONS[name]
    low, high = np.array([[lower]]), np.array([[lower + width]])
    lines = enclose(function, low, high, np.full((1, 1), slopes[0]), np.full((1, 1), slopes[1]))
    x = np.clip(np.linspace(lower, lower + width, 2001), lower, lower + width)
    y = function.value(x)
    slack = 1e-13 * (1 + np.abs(x).max())
    assert (lines.below_slope[0] * x + lines.below[0] <= y + slack).all()
    assert (lines.above_slope[0] * x + lines.above[0] >= y - slack).all()
    bottom, top = image(function, low, high)
    assert (bottom[0] <= y).all() and (y <= top[0]).all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_lines_allow_for_the_bend_between_the_points_they_look_at(name, side):
    """Slopes whose lines touch the curve inside the interval, mostly between two of those points."""
    function = FUNCTIONS[name]
    low, high = np.full((1, 1), min(0.0, 4 * side)), np.full((1, 1), max(0.0, 4 * side))
    x = np.linspace(low.item(), high.item(), 100_001)
    for slope in np.linspace(0.03, 0.9, 60):
        lines = enclose(function, low, high, np.full((1, 1), slope), np.full((1, 1), slope))
        y = function.value(x) - slope * x
        assert lines.below.item() <= y.min()
        assert lines.above.item() >= y.max()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_unknown_numbers_prove_nothing(poison):
    network = small_network(0, ["relu", "sigmoid"])
    network.blocks[0].bias[0] = poison
    bounds = Bounds(network, np.zeros((1, 3)), np.ones((1, 3)))
    with np.errstate(invalid="ignore"):
        bounds.run({}, ("adaptive",))
        bounds.make_lines("adaptive")
        below = bounds.rows_below(network.outputs, np.ones((1, 2))).lower
    assert not (below > -1e300).any()


def test_what_the_checker_cannot_read_is_refused_by_name(tmp_path):
    node = helper.make_node
    path = save(tmp_path / "n.onnx", [node("Softmax", ["X"], ["Y"])], [1, 3], [1, 3])
    with pytest.raises(UnsupportedOperatorError, match="Softmax"):
        read_network(path)
    path = save(tmp_path / "n.onnx", [node("Mul", ["X", "X"], ["Y"])], [1, 3], [1, 3])
    with pytest.raises(UnsupportedOperatorError, match="Mul"):
        read_network(path)
    (tmp_path / "n.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"n\.onnx"):
        read_network(path)
