"""Comparisons, choices and casts of perturbed values."""

from __future__ import annotations

import io
import warnings

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from zonoplug.domain.input_sets import Box
from zonoplug.io.onnx_model import load_model
from zonoplug.lirpa import compat
from zonoplug.lirpa.host_operators.logic import custom_logic
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import bound_box, build
from zonoplug.testing import Function

FUNCTIONS = {
    "less": lambda x: (x[:, :2] < x[:, 1:3]).to(x.dtype),
    "greater": lambda x: (x[:, :2] > x[:, 1:3]).to(x.dtype),
    "less or equal": lambda x: (x[:, :2] <= 0.25).to(x.dtype),
    "greater or equal": lambda x: (x[:, :2] >= x[:, 2:]).to(x.dtype),
    "both": lambda x: ((x[:, :2] > 0) & (x[:, 1:3] > 0)).to(x.dtype),
    "either": lambda x: ((x[:, :2] > 0) | (x[:, 1:3] > 0)).to(x.dtype),
    "one of two": lambda x: ((x[:, :2] > 0) ^ (x[:, 1:3] > 0)).to(x.dtype),
    "not": lambda x: (~(x > 0.1)).to(x.dtype),
    "choice": lambda x: torch.where(x[:, :2] > 0.2, x[:, 2:4] * 3, x[:, :2] - 1),
    "largest": lambda x: torch.argmax(x, dim=1, keepdim=True).to(x.dtype) * 2.0,
    "integer": lambda x: (4 * x).to(torch.int64).to(x.dtype),
    "truth": lambda x: torch.relu(x).to(torch.bool).to(x.dtype),
    "equal": lambda x: ((3 * x).to(torch.int64) == 1).to(x.dtype),
}


@pytest.mark.parametrize("method", ["ibp", "zonotope", "zonotope+crown"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_sampled_outputs_lie_inside_and_decided_ones_are_known(name, method):
    torch.manual_seed(0)
    module = Function(FUNCTIONS[name])
    middle = torch.tensor([[0.3, 0.2, -0.4, 0.9], [0.6, -0.5, 0.1, 0.0]])
    for radius in (0.0, 0.05, 0.5):
        box = Box(middle - radius, middle + radius)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bounds, _ = bound_box(build(module, middle[:1]), box, BoundMethod.parse(method))
        samples = box.lower + (box.upper - box.lower) * torch.rand(200, *middle.shape)
        outputs = module(samples.flatten(0, 1)).reshape(200, 2, -1)
        assert (outputs >= bounds.lower.flatten(1) - 1e-6).all() and (outputs <= bounds.upper.flatten(1) + 1e-6).all()
        if radius == 0.0 and name != "truth":  # rounding may leave 0 just open where a ReLU cuts
            torch.testing.assert_close(bounds.lower, bounds.upper, rtol=0, atol=1e-5)


def test_a_cast_to_integers_is_not_taken_for_the_identity():
    module = Function(lambda x: x.to(torch.int64).to(x.dtype))
    box = Box(torch.tensor([[0.4]]), torch.tensor([[1.2]]))
    with pytest.warns(UserWarning, match="BoundCastToInteger"):
        bounds, _ = bound_box(build(module, box.lower), box, BoundMethod.parse("zonotope"))
    assert bounds.lower.item() == pytest.approx(0, abs=1e-6) and bounds.upper.item() == pytest.approx(1, abs=1e-6)


def segmentation(path):
    """Which of two channels is larger, counted where it is the one that the third channel names; no batch inside."""
    weights = helper.make_tensor("index", TensorProto.INT64, [], [0])
    one = helper.make_tensor("one", TensorProto.INT64, [], [1])
    starts, ends, axes, mask_start, mask_end = (
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("starts", 0), ("ends", 2), ("axes", 1), ("mask_start", 2), ("mask_end", 3))
    )
    depth = helper.make_tensor("depth", TensorProto.INT64, [], [2])
    values = helper.make_tensor("values", TensorProto.INT64, [2], [0, 1])
    nodes = [
        helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["image"]),
        helper.make_node("Slice", ["x", "mask_start", "mask_end", "axes"], ["mask3"]),
        helper.make_node("Gather", ["image", "index"], ["bare"], axis=0),
        helper.make_node("ArgMax", ["bare"], ["label"], axis=0, keepdims=0),
        helper.make_node("OneHot", ["label", "depth", "values"], ["hot"], axis=-1),
        helper.make_node("Transpose", ["hot"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Gather", ["planes", "one"], ["second"], axis=0),
        helper.make_node("Cast", ["second"], ["number"], to=TensorProto.INT32),
        helper.make_node("Gather", ["mask3", "index"], ["mask2"], axis=0),
        helper.make_node("Gather", ["mask2", "index"], ["mask1"], axis=0),
        helper.make_node("Cast", ["mask1"], ["wanted"], to=TensorProto.INT32),
        helper.make_node("Equal", ["number", "wanted"], ["right"]),
        helper.make_node("Cast", ["right"], ["counted"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["counted"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "segmentation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [weights, one, starts, ends, axes, mask_start, mask_end, depth, values],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_segmentation_that_counts_right_pixels_takes_batches_and_is_bounded(tmp_path):
    model = load_model(segmentation(tmp_path / "count.onnx"))
    assert model.batchable
    torch.manual_seed(1)
    point = torch.rand(1, 3, 2, 4)
    point[:, 2] = (point[:, 1] > point[:, 0]).float()
    radius = torch.full_like(point, 0.1)
    radius[:, 2] = 0
    decided = ((point[:, 1] - point[:, 0]).abs() > 0.2).sum().item()
    assert 0 < decided < 8
    for method in ("ibp", "zonotope"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bounds, _ = bound_box(
                build(model.module, point), Box(point - radius, point + radius), BoundMethod.parse(method)
            )
        assert bounds.lower.item() == pytest.approx(decided, abs=1e-4)
        assert bounds.upper.item() == pytest.approx(8, abs=1e-4)


def test_each_logical_operator_is_reached_by_a_case():
    reached = set()
    for function in FUNCTIONS.values():
        graph = compat.build(Function(function), torch.tensor([[0.3, 0.2, -0.4, 0.9]]))
        reached |= {type(node).__name__ for node in graph._modules.values()}
    named = {kind.__name__ for kind in custom_logic(lambda rule: rule).values() if isinstance(kind, type)}
    named -= {"BoundLessOrEqual", "BoundGreaterOrEqual"}  # the exporter writes them with Not, or as one
    assert named <= reached, named - reached
    assert {"BoundCast", "BoundCastToInteger", "BoundChoice"} <= reached


def test_comparisons_are_known_after_an_export_to_a_newer_opset():
    """torch's exporter keeps what a call told it, and writes them as one operator from then on."""
    torch.onnx.export(torch.nn.ReLU(), torch.zeros(1, 3), io.BytesIO(), opset_version=17, dynamo=False)
    graph = compat.build(Function(lambda x: (x <= 0.5).float() + x), torch.zeros(1, 4))
    points = torch.tensor([[0.3, 0.5, 0.7, -1.0]])
    assert torch.equal(graph(points), (points <= 0.5).float() + points)
