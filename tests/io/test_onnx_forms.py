"""Operators in every form: the loaded module is ONNX Runtime's function, or the file is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.onnx_graphs import DOUBLE, Graph, convolution, integers, weights
from onnx import TensorProto

import zonoplug
from zonoplug.errors import HostError, ModelError, ModelMismatchError
from zonoplug.io.agreement import check_agreement
from zonoplug.io.onnx_model import load_model


def number(value, kind=np.float32):
    return np.asarray(value, kind)


def one(operator, shape, *more, opset=13, **attributes):
    graph = Graph(list(shape), opset=opset)
    graph.add(operator, graph.last, *more, **{name: value for name, value in attributes.items() if value is not None})
    return graph


def points_of(model):
    x = np.random.default_rng(0).normal(size=(3, model.num_inputs))
    return np.concatenate([x, 30 * x[:2], 0.01 * x[:1], np.zeros_like(x[:1])])


def agrees(graph, folder):
    model = load_model(graph.save(folder))
    check_agreement(model, points_of(model))
    return model


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric"])
def test_resize_in_every_form_is_a_matrix_along_each_axis(mode, coordinates, tmp_path):
    rounding = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"] if mode == "nearest" else [None]
    for scales, nearest in itertools.product(((1, 1, 0.6, 1.7), (1, 1, 1.7, 0.6), (1, 1, 2, 2)), rounding):
        opset = 19 if coordinates == "half_pixel_symmetric" else 13
        graph = one("Resize", (1, 2, 5, 4), "", number(scales), opset=opset, mode=mode, nearest_mode=nearest,
                    coordinate_transformation_mode=coordinates)  # fmt: skip
        model = agrees(graph, tmp_path)
        assert model.obstacle is None and model.batchable


def test_resize_to_a_region_and_to_kept_proportions_is_refused(tmp_path):
    region = one("Resize", (1, 1, 4, 4), number([0, 0, 0.4, 0.6, 1, 1, 0.6, 0.8]), "", integers(1, 1, 3, 3),
                 mode="linear", coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip
    kept = one("Resize", (1, 1, 3, 4), "", "", integers(7, 8), opset=19, mode="nearest", axes=[2, 3],
               keep_aspect_ratio_policy="not_larger")  # fmt: skip
    for graph in (region, kept):
        with pytest.raises(ModelError, match="Resize"):
            agrees(graph, tmp_path)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pools_with_uneven_margins_and_open_ends(operator, tmp_path):
    refused = 0
    for kernel, strides, pads, ceil, include in itertools.product(
        ([2, 2], [3, 2]), ([1, 1], [3, 2]), ([0] * 4, [1, 1, 1, 1], [0, 1, 1, 0]), (0, 1), (0, 1)
    ):
        graph = one(operator, (1, 2, 7, 6), kernel_shape=kernel, strides=strides, pads=pads, ceil_mode=ceil,
                    count_include_pad=include if operator == "AveragePool" else None)  # fmt: skip
        try:
            agrees(graph, tmp_path)
        except ModelError as error:
            assert "empty window" in str(error)
            refused += 1
    assert refused <= 4


def test_the_last_of_a_max_pool_with_uneven_margins_is_there(tmp_path):
    model = agrees(one("MaxPool", (1, 1, 7, 6), kernel_shape=[2, 2], pads=[0, 1, 1, 1], ceil_mode=1), tmp_path)
    assert model.output_shape == (1, 7, 7)


@pytest.mark.parametrize(("exclusive", "reverse"), itertools.product((0, 1), (0, 1)))
def test_running_sums(exclusive, reverse, tmp_path):
    graph = one("CumSum", (1, 4, 3), number(1, np.int64), exclusive=exclusive, reverse=reverse)
    assert agrees(graph, tmp_path).obstacle is None


@pytest.mark.parametrize("bias", [(), (1,), (4,), (1, 4), (1, 1), None])
@pytest.mark.parametrize("shape", [(1, 5), (3, 5)])
def test_gemm_with_every_kind_of_bias(bias, shape, tmp_path):
    more = [] if bias is None else [number(weights(*bias))]
    agrees(one("Gemm", shape, weights(5, 4), *more, alpha=0.3, beta=-2.0), tmp_path)


@pytest.mark.parametrize("kind", "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split())
def test_reductions_with_and_without_axes(kind, tmp_path):
    for axes, keep, nothing in itertools.product(([1], [-1, 1], None, []), (0, 1), (0, 1)):
        graph = Graph([1, 4, 3], opset=18)
        graph.add("Exp")
        given = [] if axes is None else [integers(*axes)]
        graph.add(f"Reduce{kind}", graph.last, *given, keepdims=keep, noop_with_empty_axes=nothing)
        try:
            agrees(graph, tmp_path)
        except ModelError as error:
            assert "along no axis" in str(error) and nothing and not axes


@pytest.mark.parametrize("limit", [0.0, 0.25, -0.25, 1e6, -1e6, 300.0])
@pytest.mark.parametrize("operator", ["Max", "Min"])
def test_limits_lose_no_digits_however_far_away(operator, limit, tmp_path):
    model = agrees(one(operator, (1, 5), number(limit)), tmp_path)
    x = torch.linspace(-1, 1, 5)[None] * 1e-3
    exact = (torch.maximum if operator == "Max" else torch.minimum)(x, torch.tensor(limit))
    assert torch.equal(model.module(x), exact) or abs(limit) < 1


@pytest.mark.parametrize(("low", "high"), [(-1e6, 1e6), (None, 1e6), (-1e31, 0.5), (0.0, 6.0), (-0.3, 0.2)])
def test_clip_is_exact_inside_its_limits(low, high, tmp_path):
    graph = Graph([1, 5])
    graph.add("Clip", "x", "" if low is None else number(low), "" if high is None else number(high))
    model = agrees(graph, tmp_path)
    x = torch.linspace(-1, 1, 5)[None] * 1e-3
    assert torch.allclose(model.module(x), x.clamp(low, high), rtol=0, atol=1e-6 if high == 6 else 1e-7)


@pytest.mark.parametrize(("shape", "slope"), [((1, 4, 4), (4,)), ((1, 4, 2), (4, 1)), ((1, 4), (4,)), ((1, 3, 3), ())])
def test_slopes_are_broadcast_from_the_last_axis(shape, slope, tmp_path):
    agrees(one("PRelu", shape, number(weights(*slope))), tmp_path)


def test_other_forms(tmp_path):
    for graph in (
        one("Selu", (1, 5), alpha=1.67327, gamma=1.0507),
        one("Pad", (1, 2, 5, 4), integers(1, 2, 0, 1), number(0.5), integers(-1, 1), opset=19),
        one("Flatten", (1, 4, 3), axis=-1),
        one("Gather", (3, 3), integers(0, 2)[None], axis=1),
        one("Squeeze", (1, 1, 4, 1), integers(0, 1)),
        one("Slice", (1, 4, 3), integers(-9), integers(-9), integers(1), integers(-1)),
        one("Div", (1, 5), number(3.0)),
        one("Upsample", (1, 2, 3, 4), number([1, 1, 2, 2]), opset=9, mode="linear"),
    ):
        agrees(graph, tmp_path)


def test_a_later_output_of_a_node_is_not_its_first(tmp_path):
    graph = Graph([1, 7, 6])
    parts = graph.add("Split", "x", integers(2, 5), outputs=2, axis=1)
    graph.last = parts[1]
    assert agrees(graph, tmp_path).output_shape == (5, 6)


def test_training_mode_is_refused(tmp_path):
    for graph in (
        one("Dropout", (1, 4), number(0.5), np.asarray(True)),
        one("BatchNormalization", (1, 4), *(np.abs(weights(4)) for _ in range(4)), opset=15, training_mode=1),
    ):
        with pytest.raises(ModelError):
            load_model(graph.save(tmp_path))


def cast(*kinds):
    graph = Graph([1, 5])
    for kind in kinds:
        graph.add("Cast", graph.last, to=kind)
    return graph


@pytest.mark.parametrize(("kind", "words"), [(TensorProto.FLOAT16, "to FLOAT16"), (DOUBLE, "from FLOAT to DOUBLE")])
def test_what_leaves_the_number_type_is_only_attacked(kind, words, tmp_path):
    model = agrees(cast(kind, TensorProto.FLOAT), tmp_path)
    assert model.obstacle.startswith("Cast") and model.obstacle.endswith(words)
    with pytest.raises(HostError, match="Cast"):
        zonoplug.build(model.module, torch.zeros(1, 5))


def test_integers_that_may_wrap_are_only_attacked_and_counts_are_not(tmp_path):
    graph = cast(TensorProto.INT32)
    graph.add("Add", graph.last, graph.last)
    graph.add("Cast", graph.last, to=1)
    assert "wrap" in load_model(graph.save(tmp_path)).obstacle
    graph = Graph([1, 5])
    graph.add("Cast", graph.add("Greater", "x", number(0.0)), to=TensorProto.INT64)
    graph.add("Cast", graph.add("ReduceSum", graph.last, integers(1)), to=1)
    assert load_model(graph.save(tmp_path)).obstacle is None


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64])
def test_bounds_of_casts_hold_all_that_a_wrapped_value_may_be(kind, tmp_path):
    model = load_model(cast(kind, 1).save(tmp_path))
    graph = zonoplug.build(model.module, torch.zeros(1, 5))
    box = zonoplug.Box(torch.full((1, 5), -3e19), torch.full((1, 5), 3e19))
    small = zonoplug.Box(torch.full((1, 5), 0.5), torch.full((1, 5), 7.5))
    limits = np.iinfo({2: np.uint8, 5: np.int16, 6: np.int32, 7: np.int64}[kind])
    lower, upper = graph.compute_bounds(x=(zonoplug.bounded_input(box),), method="zonotope")
    assert (lower <= float(limits.min)).all() and (upper >= float(limits.max)).all()
    lower, upper = graph.compute_bounds(x=(zonoplug.bounded_input(small),), method="zonotope")
    assert (lower <= 0).all() and (upper >= 7).all() and (upper - lower <= 8).all()


def test_constants_that_cancel_are_named(tmp_path):
    def shifted(*terms, kind=np.float32):
        graph = Graph([1, 2], kind=DOUBLE if kind == np.float64 else TensorProto.FLOAT)
        total = number(terms[0], kind)
        for term in terms[1:]:
            total = graph.add("Add", total, number(term, kind))
        graph.add("Add", "x", total)
        return load_model(graph.save(tmp_path))

    assert "Add" in shifted(1e8, 1, -1e8).obstacle and "loses digits" in shifted(1e8, 1, -1e8).obstacle
    assert "loses digits" in shifted(1e17, 1, -1e17, kind=np.float64).obstacle
    assert "loses digits" in shifted(1e25, 1, -1e25).obstacle
    assert shifted(1, 2, 3).obstacle is None and shifted(1, 2, 3, kind=np.float64).obstacle is None


def test_batch_normalisation_is_not_merged_with_rounded_constants(tmp_path):
    model = load_model(convolution().save(tmp_path))
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in model.module.modules())


def two_outputs(scale):
    """One output of size 1e4 that cancels nothing, and a small one."""
    graph = Graph([1, 3])
    graph.add("Gemm", graph.last, np.array([[1e4, scale], [0, scale], [0, 0]], np.float32))
    return graph


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_each_output_is_judged_by_itself(scale, tmp_path):
    model = agrees(two_outputs(scale), tmp_path)
    layer = next(part for part in model.module.modules() if isinstance(part, torch.nn.Linear))
    with torch.no_grad():
        layer.weight[1, 0] *= 1 + 1e-3
    with pytest.raises(ModelMismatchError, match="output 1"):
        check_agreement(model, points_of(model))


def test_corners_of_the_points_are_compared_too(tmp_path):
    """A wrong constant that only the largest values of all inputs together reach."""
    graph = Graph([1, 2])
    graph.add("Relu", graph.add("Add", graph.add("ReduceSum", "x", integers(1)), number(-1.9)))
    model = load_model(graph.save(tmp_path))
    points = np.array([[1, 0], [0, 1], [0.2, 0.3]])
    check_agreement(model, points)
    buffer = next(value for value in model.module.buffers() if value.numel() == 1 and value.is_floating_point())
    buffer.fill_(-1.8)
    with pytest.raises(ModelMismatchError):
        check_agreement(model, points)


@pytest.mark.parametrize("operator", ["Resize", "CumSum", "AveragePool", "MaxPool", "Max", "Div"])
def test_the_host_bounds_what_is_loaded(operator, tmp_path):
    more, attributes = {
        "Resize": (["", number([1, 1, 1.7, 0.6])], {"mode": "linear"}),
        "CumSum": ([number(2, np.int64)], {"reverse": 1}),
        "AveragePool": ([], {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1]}),
        "MaxPool": ([], {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "strides": [2, 1]}),
        "Max": ([number(1e6)], {}),
        "Div": ([number(3.0)], {}),
    }[operator]
    graph = Graph([1, 2, 4, 4])
    graph.add("Relu", graph.add("Mul", "x", number(2.0)))
    graph.add(operator, graph.last, *more, **attributes)
    model = agrees(graph, tmp_path)
    x = torch.rand(2, *model.input_shape) - 0.5
    bounded = zonoplug.build(model.module, x[:1])
    lower, upper = bounded.compute_bounds(
        x=(zonoplug.bounded_input(zonoplug.Box(x - 0.1, x + 0.1)),), method="zonotope"
    )
    for _ in range(20):
        y = model.module(x + 0.2 * torch.rand_like(x) - 0.1)
        assert ((lower - 1e-5 <= y) & (y <= upper + 1e-5)).all()
    if operator != "MaxPool":
        from zonoplug.lirpa.backward.passes import Backward

        assert Backward(bounded).size == y[0].numel()
