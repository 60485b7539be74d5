"""What ONNX Runtime computes at each of its optimisation levels lies in the bounds, however an operator is written."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import onnx_graphs as graphs

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.io.onnx_model import load_model
from zonoplug.io.runtime import LEVELS, check_runtime, runtime_operators, variance_cancels
from zonoplug.lirpa import compat
from zonoplug.lirpa.fusion.plan import plan_for
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_box
from zonoplug.lirpa.runtime_errors import composed_error

WIDTH = 12
LAST = graphs.integers(-1)
SCALE, BIAS = graphs.weights(WIDTH, seed=5), graphs.weights(WIDTH, seed=6)


def number(value):
    return np.array([value], np.float32)


def mean(graph, x):
    return graph.add("ReduceMean", x, axes=[-1])


def layer_norm(graph, x):
    graph.add("LayerNormalization", x, SCALE, BIAS, epsilon=1e-5)


def _normalised(graph, x, deviation, square):
    root = graph.add("Sqrt", graph.add("Add", mean(graph, square), number(1e-5)))
    graph.add("Add", graph.add("Mul", graph.add("Div", deviation, root), SCALE), BIAS)


def layer_norm_in_steps(graph, x):
    deviation = graph.add("Sub", x, mean(graph, x))
    _normalised(graph, x, deviation, graph.add("Pow", deviation, number(2)))


def layer_norm_with_a_product(graph, x):
    deviation = graph.add("Sub", x, mean(graph, x))
    _normalised(graph, x, deviation, graph.add("Mul", deviation, deviation))


def rms_norm_in_steps(graph, x):
    _normalised(graph, x, x, graph.add("Pow", x, number(2)))


def instance_norm(graph, x):
    graph.add("InstanceNormalization", x, SCALE[:2], BIAS[:2])


def softmax(graph, x):
    graph.add("Softmax", x, axis=-1)


def softmax_in_steps(graph, x, shifted=False):
    x = graph.add("Sub", x, graph.add("ReduceMax", x, axes=[-1])) if shifted else x
    powers = graph.add("Exp", x)
    graph.add("Div", powers, graph.add("ReduceSum", powers, LAST))


def softmax_less_its_maximum(graph, x):
    softmax_in_steps(graph, x, shifted=True)


def log_softmax(graph, x):
    graph.add("LogSoftmax", x, axis=-1)


def log_of_softmax(graph, x):
    graph.add("Log", graph.add("Softmax", x, axis=-1))


def log_softmax_in_steps(graph, x, shifted=False):
    x = graph.add("Sub", x, graph.add("ReduceMax", x, axes=[-1])) if shifted else x
    graph.add("Sub", x, graph.add("Log", graph.add("ReduceSum", graph.add("Exp", x), LAST)))


def log_softmax_less_its_maximum(graph, x):
    log_softmax_in_steps(graph, x, shifted=True)


def less_log_sum_exp(graph, x):
    graph.add("Sub", x, graph.add("ReduceLogSumExp", x, axes=[-1]))


def log_sum_exp(graph, x):
    graph.add("ReduceLogSumExp", x, axes=[-1])


def absolute_sum(graph, x):
    graph.add("ReduceL1", x, axes=[-1])


def length(graph, x):
    graph.add("ReduceL2", x, axes=[-1])


def product(graph, x):
    graph.add("Mul", x, graph.add("Sub", x, BIAS))


def quotient(graph, x):
    graph.add("Div", x, graph.add("Add", graph.add("Relu", x), number(0.1)))


def quotient_in_steps(graph, x):
    graph.add("Mul", x, graph.add("Reciprocal", graph.add("Add", graph.add("Relu", x), number(0.1))))


def matrix_product(graph, x):
    graph.add("MatMul", x, graph.add("Transpose", x, perm=[0, 2, 1]))


def log_sigmoid(graph, x):
    graph.add("Log", graph.add("Sigmoid", x))


LAYER_NORMS = (layer_norm, layer_norm_in_steps, layer_norm_with_a_product)
WRITTEN = (
    *LAYER_NORMS, rms_norm_in_steps, instance_norm,
    softmax, softmax_in_steps, softmax_less_its_maximum,
    log_softmax, log_of_softmax, log_softmax_in_steps, log_softmax_less_its_maximum, less_log_sum_exp,
    log_sum_exp, absolute_sum, length, product, quotient, quotient_in_steps, matrix_product, log_sigmoid,
)  # fmt: skip


class Subject:
    """A network of one expression, behind a product with a matrix where `mixed`, for the runtime and for the host."""

    def __init__(self, write, folder, mixed=False):
        graph = graphs.Graph([1, 2, WIDTH], opset=17)
        opening = graph.add("MatMul", "x", graphs.weights(WIDTH, WIDTH, seed=7)) if mixed else graph.add("Neg", "x")
        write(graph, opening)
        self.model = load_model(graph.save(folder))
        self.host = compat.build(self.model.module, torch.zeros(1, 2, WIDTH), module_class=ZonotopeModule)
        self.sessions = [self._session(level) for level in LEVELS]

    def _session(self, level):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        return onnxruntime.InferenceSession(self.model.source, options, providers=["CPUExecutionProvider"])

    def bounds(self, box):
        bounds, _ = bound_box(self.host, box, BoundMethod.parse("zonotope"), rounding="inference")
        return bounds

    def outputs(self, points):
        """(levels, points, *shape) for points (points, 2, WIDTH)."""
        runs = [[one.run(None, {"x": point[None].numpy()})[0][0] for point in points] for one in self.sessions]
        return torch.from_numpy(np.array(runs))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    made = {}

    def get(write, mixed=False):
        if (write, mixed) not in made:
            made[write, mixed] = Subject(write, tmp_path_factory.mktemp("model"), mixed)
        return made[write, mixed]

    return get


def hold(bounds, outputs):
    """Whether outputs lie in bounds; what is not a number lies in infinite ones only."""
    inside = (outputs >= bounds.lower) & (outputs <= bounds.upper)
    return bool((inside | (outputs.isnan() & bounds.lower.isinf() & bounds.upper.isinf())).all())


def centers():
    """Points (n, 2, WIDTH) of several scales, and far from 0."""
    random = torch.Generator().manual_seed(3)
    plain = torch.randn(6, 2, WIDTH, generator=random)
    far = [plain + 10, plain + 1e3, plain + 1e5, 1e-3 * plain + 3, 1e-6 * plain + 1]
    return torch.cat([plain, 8 * plain, 60 * plain, 1e-4 * plain, *far])


@pytest.mark.parametrize("write", WRITTEN, ids=lambda write: write.__name__)
@pytest.mark.parametrize("radius", [0.0, 1e-5, 0.05])
def test_the_runtimes_outputs_lie_in_the_bounds_at_every_level(write, radius, subject):
    for mixed in (False, True):
        one, finite = subject(write, mixed), 0
        for center in centers().split(6):
            box = Box.ball(center, radius)
            bounds = one.bounds(box)
            finite += int((bounds.upper.isfinite() & bounds.lower.isfinite()).sum())
            for points in box.sample(2 if radius else 1):
                assert hold(bounds, one.outputs(points))
        assert finite > 0


@pytest.mark.parametrize("write", LAYER_NORMS, ids=lambda write: write.__name__)
def test_layer_normalization_is_bounded_unless_its_variance_may_be_lost(write, subject):
    one = subject(write)
    cancels = variance_cancels("LayerNormalization")
    plain = torch.randn(4, 2, WIDTH, generator=torch.Generator().manual_seed(1))
    for shift, known in ((0, True), (10, True), (1e3, not cancels), (1e6, False)):
        box = Box.ball(plain + shift, 1e-3)
        bounds = one.bounds(box)
        finite = bounds.lower.isfinite() & bounds.upper.isfinite()
        assert bool(finite.all()) == known, shift
        assert known or not finite.any()


def test_bounds_of_layer_normalization_are_hardly_wider_for_its_rounding(subject):
    one = subject(layer_norm, True)
    box = Box.ball(torch.randn(4, 2, WIDTH, generator=torch.Generator().manual_seed(1)), 0.02)
    found, plain = one.bounds(box), bound_box(one.host, box, BoundMethod.parse("zonotope"))[0]
    assert bool(((found.upper - plain.upper).abs() < 5e-3 * (plain.upper - plain.lower)).all())


@pytest.mark.parametrize("layer", [torch.nn.GroupNorm(2, 4), torch.nn.InstanceNorm1d(4)])
def test_normalizations_of_groups_are_told_from_those_of_layers(layer):
    """A group's variance may cancel, and does so in some kernels."""
    host = compat.build(layer.eval(), torch.randn(1, 4, 6), module_class=ZonotopeModule)
    for shift, known in ((0.0, True), (1e3, False)):
        box = Box.ball(shift + torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)), 1e-4)
        bounds, _ = bound_box(host, box, BoundMethod.parse("zonotope"), rounding="inference")
        assert bool(bounds.lower.isfinite().all()) == known


def test_the_file_is_accepted_for_every_way_of_writing_a_layer_norm(subject):
    for write in LAYER_NORMS:
        for mixed in (False, True):
            source = subject(write, mixed).model.source
            fused = write is layer_norm_in_steps and variance_cancels("LayerNormalization")
            assert fused or check_runtime(source) is None
    assert "LayerNormalization" in runtime_operators(subject(layer_norm_in_steps).model.source)


def test_two_normalizations_of_one_value_are_both_recognised(tmp_path):
    def twice(graph, x):
        one = graph.add("LayerNormalization", x, SCALE, BIAS, epsilon=1e-5)
        graph.add("Add", one, graph.add("LayerNormalization", x, BIAS, SCALE, epsilon=1e-3))

    order = plan_for(Subject(twice, tmp_path).host, Subject(twice, tmp_path).host.final_name, patterns=True).order
    assert [type(node).__name__ for node in order].count("BoundNormalization") == 2


def test_errors_are_those_of_the_networks_type_whatever_the_bounds_are_in(subject):
    host = subject(softmax).host
    node = next(node for node in plan_for(host, host.final_name, patterns=True).order if "Softmax" in str(type(node)))
    hull = Interval(torch.zeros(1, 2, WIDTH).double(), torch.ones(1, 2, WIDTH).double())
    bounds = Interval(hull.lower, hull.upper)
    single, double = (composed_error(node, [hull], [None], bounds, kind) for kind in (torch.float32, None))
    assert bool((single > 1e8 * double).all())
    with pytest.raises(UnsupportedOperatorError, match="bfloat16"):
        composed_error(node, [hull], [None], bounds, torch.bfloat16)
