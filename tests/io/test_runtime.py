"""What is assumed of ONNX Runtime, held against the installed one at every optimisation level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import onnx_graphs as graphs
from helpers import runtime_cases as cases
from helpers import runtime_composed as composed
from onnx import TensorProto, helper

from zonoplug.io import runtime
from zonoplug.io.runtime import ACCURACY, DOUBLE, FORMATS, LEVELS, UNDERSTOOD, check_runtime, runtime_operators

Graph = graphs.Graph
ROUNDED_ONCE = ("Add", "Sub", "Mul", "PRelu")  # of these the standard of floating point says the error
FLOAT, DOUBLES = np.float32, np.float64


def _kinds(case):
    """Of which something is assumed, and which the installed runtime can compute: older ones lack a few."""
    return [kind for kind in FORMATS if case.accuracy(kind) is not None and cases.is_known(case, kind)]


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_elementwise_operators_use_at_most_half_of_the_error_that_is_assumed(case):
    most = 1.0 if case.operator in ROUNDED_ONCE else 0.5
    kinds = _kinds(case)
    if not kinds:
        pytest.skip("the installed runtime does not know the operator")
    for kind in kinds:
        x = cases.points(case, kind, 1500)
        for level in LEVELS:
            session = cases.case_session(case, kind, level)
            for length in (1, 7, 16, len(x)):  # the rest of a vector is computed otherwise than the vector
                part = x[: len(x) if length == len(x) else 40 * length].copy()
                pieces = [part[i : i + length] for i in range(0, len(part), length)]
                computed = np.concatenate([session.run(None, {"x": piece})[0] for piece in pieces])
                used, at = cases.load(case, kind, part, computed)
                assert used <= most, f"{case.name} in {kind}, {level}, length {length}: {used:.3g} used at x = {at!r}"


def test_every_elementwise_operator_is_tested():
    tested = {case.assumed_as or case.operator for case in cases.CASES}
    tested |= {"Gelu:tanh", "Cast", "Where", "Dropout"}  # the last three below
    assert tested == set(ACCURACY)
    both = {case.operator for case in cases.CASES if case.accuracy("float64")} | {"Cast", "Where", "Dropout"}
    assert both - {"QuickGelu"} == DOUBLE


def test_casts_round_once_and_choices_are_exact():
    x = np.random.default_rng(0).normal(size=(1, 999)) * 2.0 ** np.random.default_rng(1).uniform(-90, 90, (1, 999))
    graph = Graph([1, 999], kind=TensorProto.DOUBLE)
    single = graph.add("Cast", to=TensorProto.FLOAT)
    graph.add("Where", graph.add("Greater", single, np.float32([0])), single, graph.add("Neg", single))
    graph.add("Cast", graph.add("Dropout"), to=TensorProto.DOUBLE)
    allowed = runtime.accuracy_of("Cast", {"to": TensorProto.FLOAT}, "float32").error("float32", np.abs(x))
    for level in LEVELS:
        computed = cases.session_of(graph.model().SerializeToString(), level).run(None, {"x": x})[0]
        assert (computed > 0).all() and cases.share(computed, np.abs(x), allowed) <= 1
    assert runtime.accuracy_of("Cast", {"to": TensorProto.FLOAT16}, "float32") is None
    assert runtime.accuracy_of("Cast", {"to": TensorProto.INT32}, "float32") is None


@pytest.mark.parametrize("make", composed.COMPOSED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", FORMATS)
def test_composed_operators_stay_within_their_formulas_at_all_scales(make, kind):
    counted, worst = 0, (0.0, "")
    with np.errstate(all="ignore"):
        for n in (7, 65):
            for scale, x in composed.scaled_rows(kind, n).items():
                for trial in make(x):
                    for level in LEVELS if n == 7 and scale in ("1", "1e4 + 1") else LEVELS[-1:]:
                        computed = cases.run_trial(trial, level)
                        used = cases.share(computed, trial.exact, trial.allowed)
                        worst = max(worst, (used, f"{trial.operator} {trial.attributes}, n = {n}, {scale}, {level}"))
                        counted += int(np.isfinite(trial.allowed).any())
    assert worst[0] <= 0.5, worst
    assert counted >= 20 or (kind == "float64" and make.__name__ in ("pools", "resize"))


def test_what_may_overflow_or_lose_all_digits_is_unbounded():
    infinite = [
        ACCURACY["Exp"].error("float32", np.array(3e38)),
        runtime.sum_error("float32", np.array(3e38), 4),
        runtime.norm_error("float32", np.array(2e19), 4),
        runtime.product_error("float32", np.array(1.0), np.array(1e39), 3),
        runtime.log_sum_error("float32", np.array(1.0), np.array(1e6), np.array(1e-3), 4),
        runtime.log_sum_error("float32", np.array(1.0), np.array(1.0), np.array(-1.0), 4),
        runtime.normalization_error("float32", 4, 1e8, 1e8, 1.0, 1.0, 1.0, 0.0, cancels=True),
        runtime.rms_normalization_error("float32", 4, 1e38, 1.0, 1.0),
        runtime.lp_normalization_error("float32", 4, 1.0, 1e-20),
        runtime.sum_error("float32", np.array(np.nan), 4),
        runtime.quotient_error("float32", np.array(1.0), np.array(1.0), np.array(1e-38)),
        runtime.plain_softmax_error("float32", 4, np.array(1.0), np.array(80.0)),
        runtime.less_log_sum_error("float32", 4, np.array(1.0), np.array(80.0)),
        runtime.log_of_softmax_error("float32", 4, np.array(85.0)),
        runtime.logarithm_error("float32", np.array(9.0), np.array(1e-4), np.array(6e-5)),
    ]
    assert [bool(np.isinf(value).all()) for value in infinite] == [True] * len(infinite)
    assert np.isfinite(runtime.normalization_error("float32", 4, 1e8, 1e8, 1.0, 1.0, 1.0, 0.0, cancels=False)).all()


def test_formulas_take_tensors_and_arrays():
    a = np.array([1e-3, 2.0, 3e38])
    t = torch.from_numpy(a)
    for give in (
        lambda v: ACCURACY["Gelu"].error("float32", v, v),
        lambda v: runtime.product_sum_error("float32", v, 9, v),
        lambda v: runtime.norm_error("float32", v, 9, 3),
        lambda v: runtime.log_sum_error("float32", v, v, v, 9),
        lambda v: runtime.normalization_error("float32", 9, v, v, v, v, v, v, cancels=False),
        lambda v: runtime.rms_normalization_error("float32", 9, v, v, v, v),
        lambda v: runtime.resize_linear_error("float32", v, v, (4, 5)),
        lambda v: runtime.factor_error("float32", v, v, v),
        lambda v: runtime.quotient_error("float32", v, v, v),
        lambda v: runtime.plain_softmax_error("float32", 9, v, v),
        lambda v: runtime.log_of_softmax_error("float32", 9, v),
        lambda v: runtime.less_log_sum_error("float32", 9, v, v),
    ):
        assert isinstance(give(t), torch.Tensor)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(give(t).numpy(), give(a), rtol=1e-12)


def _gelu(root=1.41421356237, half=0.5, one=1.0, kind=FLOAT):
    graph = Graph([2, 16], kind=TensorProto.FLOAT if kind == FLOAT else TensorProto.DOUBLE, opset=20)
    total = graph.add("Add", graph.add("Erf", graph.add("Div", "x", kind([root]))), kind([one]))
    graph.add("Mul", graph.add("Mul", "x", total), kind([half]))
    return graph


def _layer_norm(kind=FLOAT, exponent=2.0):
    graph = Graph([2, 16], kind=TensorProto.FLOAT if kind == FLOAT else TensorProto.DOUBLE, opset=13)
    centred = graph.add("Sub", "x", graph.add("ReduceMean", "x", axes=[-1]))
    variance = graph.add("ReduceMean", graph.add("Pow", centred, kind([exponent])), axes=[-1])
    root = graph.add("Sqrt", graph.add("Add", variance, kind([1e-3])))
    graph.add("Mul", graph.add("Div", centred, root), graphs.weights(16, kind=kind))
    graph.add("Add", graph.last, graphs.weights(16, kind=kind))
    return graph


def _one_layer_norm(scale):
    graph = Graph([2, 16], opset=17)
    graph.add("LayerNormalization", "x", np.full(16, scale, np.float32), graphs.weights(16))
    return graph


def _scaled(scale, kind=FLOAT):
    graph = Graph([2, 16], kind=TensorProto.FLOAT if kind == FLOAT else TensorProto.DOUBLE)
    graph.add("MatMul", graph.add("Mul", "x", kind([scale])), graphs.weights(16, 5, kind=kind))
    return graph


def _folded(factor):
    graph = Graph([1, 3, 8, 8])
    graph.add("Conv", "x", graphs.weights(16, 3, 3, 3), graphs.weights(16))
    graph.add("Mul", graph.last, np.full((1, 16, 1, 1), factor, np.float32))
    bias, mean, scale = (graphs.weights(16, seed=seed) for seed in (1, 2, 3))
    graph.add("BatchNormalization", graph.last, scale, bias, mean, np.abs(mean) + np.float32(0.1))
    graph.add("Relu")
    return graph


def _computed_constant():
    graph = _gelu()
    graph.nodes[0].input[1] = "root"
    graph.constants["two"] = np.float32([2.00001])
    graph.nodes.insert(0, helper.make_node("Sqrt", ["two"], ["root"]))
    return graph


def _unknown():
    graph = Graph([1, 1, 4, 4], opset=16)
    graph.add("GridSample", "x", np.zeros((1, 2, 2, 2), np.float32))
    return graph


@pytest.mark.parametrize(
    "graph, executed, said",
    [
        (_gelu(), "Gelu", None),
        (_gelu(root=1.41421), "Gelu", "taking the constant 1.41420996"),
        (_gelu(half=0.500004), "Gelu", "taking the constant 0.5000"),
        (_gelu(one=1.000009), "Gelu", "taking the constant 1.00000"),
        (_gelu(root=1.5), "Erf", None),
        (_computed_constant(), "Gelu", "out of constants that it computes first"),
        (_layer_norm(), "LayerNormalization", None),
        (_layer_norm(exponent=2.00001), "LayerNormalization", "taking the constant 2.0000"),
        (_layer_norm(DOUBLES), "LayerNormalization", "float32 constants in a float64 model"),
        (_one_layer_norm(0.0), "LayerNormalization", None),
        (_one_layer_norm(1.5), "LayerNormalization", None),
        (_one_layer_norm(1e12), "LayerNormalization", "with a scale of 1e+12"),
        (_one_layer_norm(1e-30), "LayerNormalization", "with a scale of 1e-30"),
        (_scaled(0.1), "com.microsoft.FusedMatMul", None),
        (_scaled(1e12), "com.microsoft.FusedMatMul", "with a factor of 9.99999996e+11"),
        (_scaled(1e-30), "com.microsoft.FusedMatMul", "with a factor of 1e-30"),
        (_scaled(0.1, DOUBLES), "com.microsoft.FusedMatMul", "with a float32 factor (0.1"),
        (_folded(3.0), "com.microsoft.nchwc.Conv", None),
        (_folded(1e12), "com.microsoft.nchwc.Conv", "folds Mul into weights, with a factor of 1e+12"),
        (_unknown(), "GridSample", "executes GridSample, whose rounding is not known"),
        (graphs.gemm(), "com.microsoft.FusedGemm", None),
        (graphs.residual(), "com.microsoft.FusedConv", None),
    ],
)
def test_what_the_runtime_makes_of_a_model_is_understood_or_named(graph, executed, said):
    source = graph.model().SerializeToString()
    problem = check_runtime(source)
    names = runtime_operators(source)
    if executed.startswith("com.microsoft.") and executed not in names:
        pytest.skip("not fused by this version, or on this processor")
    fused = executed == "LayerNormalization" and all(node.op_type != executed for node in graph.nodes)
    if fused and problem != said and runtime.variance_cancels(executed):
        said = said if said and "float64" in said else "computes the variance as a difference"
    assert executed in names and (said is None or said in problem)
    assert said is not None or (problem is None and names <= UNDERSTOOD)


def _differences(graph, x):
    source = graph.model().SerializeToString()
    outputs = [cases.session_of(source, level).run(None, {"x": x})[0].astype(np.float64) for level in LEVELS]
    return [float(np.abs(output - outputs[0]).max()) for output in outputs]


def test_the_refused_fusions_do_change_the_function():
    x = np.random.default_rng(0).normal(size=(2, 16)) * 3
    unit = FORMATS["float32"].unit
    assert max(_differences(_gelu(one=1.000009), x.astype(FLOAT))) > 100 * unit
    scaled = _scaled(0.1, DOUBLES)
    if "com.microsoft.FusedMatMul" in runtime_operators(scaled.model().SerializeToString()):
        assert max(_differences(scaled, x)) > 1e-10
    assert max(_differences(_layer_norm(DOUBLES), x)) > 1e-13


def test_folded_convolutions_stay_within_the_sum_of_their_parts():
    graph = _folded(3.0)
    names = [name for node in graph.nodes for name in node.input if name in graph.constants]
    weight, bias, factor, scale, offset, mean, variance = (graph.constants[name].astype(DOUBLES) for name in names)
    epsilon = float(np.float32(1e-5))
    last = (scale / np.sqrt(variance + epsilon))[:, None, None]
    x = (1e3 + np.random.default_rng(0).normal(size=(1, 3, 8, 8))).astype(FLOAT)
    patches = np.lib.stride_tricks.sliding_window_view(x[0].astype(DOUBLES), (3, 3), axis=(1, 2))
    sums, sizes = (np.einsum("oikl,ihwkl->ohw", of(weight), of(patches)) for of in (np.asarray, np.abs))
    plain = (sums + bias[:, None, None]) * factor[0]
    exact = np.maximum(last * (plain - mean[:, None, None]) + offset[:, None, None], 0)
    total = sizes + np.abs(bias)[:, None, None]
    first = runtime.product_sum_error("float32", total, 27, np.abs(patches).sum(axis=(0, 3, 4)))
    allowed = np.abs(last) * (np.abs(factor[0]) * first + ACCURACY["Mul"].error("float32", np.abs(plain)))
    parts = np.abs(last * plain), np.abs(last) * np.abs(mean)[:, None, None], np.abs(offset)[:, None, None]
    allowed = allowed + runtime.batch_normalization_error("float32", *parts)
    for level in LEVELS:
        computed = cases.session_of(graph.model().SerializeToString(), level).run(None, {"x": x})[0]
        assert 0 < cases.share(computed[0], exact, allowed) <= 0.5


def test_an_activation_fused_into_a_product_is_the_same_function():
    for operator in ("Tanh", "Sigmoid", "Elu", "Softplus", "Softsign", "Selu", "HardSigmoid"):
        case = next(case for case in cases.CASES if case.operator == operator)
        graph = Graph([64, 8])
        graph.add("Gemm", "x", np.eye(8, dtype=FLOAT), np.zeros(8, FLOAT))
        graph.add(operator)
        x = np.random.default_rng(0).uniform(-20, 20, (64, 8)).astype(FLOAT)
        for level in LEVELS:
            computed = cases.session_of(graph.model().SerializeToString(), level).run(None, {"x": x})[0]
            assert cases.load(case, "float32", x.ravel(), computed.ravel())[0] <= 0.5


def test_a_model_too_large_or_not_readable_is_named(monkeypatch):
    assert "refuses the model at every optimisation level" in check_runtime(b"\x08\x09")
    monkeypatch.setattr("zonoplug.io.runtime_graph.LARGEST_MODEL", 100)
    assert "larger than" in check_runtime(graphs.gemm().model().SerializeToString())


def test_a_variance_that_cancels_is_found_out():
    values = np.float32([[[9999, 10001] * 32]])
    for operator in ("LayerNormalization", "InstanceNormalization"):
        wrong = np.abs(np.abs(_normalized(operator, values)) - 1).max()
        assert runtime.variance_cancels(operator) or wrong < 1e-4
    assert runtime.variance_cancels("GroupNormalization")  # made of operators: the mean square less the square
    assert runtime.variance_cancels("NoSuchNormalization")


def _normalized(operator, values):
    width = values.shape[-1] if operator == "LayerNormalization" else 1
    constants = np.ones(width, FLOAT), np.zeros(width, FLOAT)
    source = cases.model_of(operator, values.shape, "float32", constants)
    return cases.session_of(source, LEVELS[-1]).run(None, {"x": values})[0]
