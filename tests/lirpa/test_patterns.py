"""Activations, norms and softmax written as several nodes are found, bounded as one, and nothing else is found."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.io.onnx_model import load_model
from zonoplug.lirpa import compat
from zonoplug.lirpa.forward import propagation as propagate
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.fusion import formulas, plan
from zonoplug.lirpa.fusion.patterns import Pattern
from zonoplug.lirpa.fusion.plan import plan_for
from zonoplug.lirpa.module import ZonotopeModule
from zonoplug.testing import check_contains_samples

WIDTH = 6


class Function(nn.Module):
    """A linear layer and a function of its result."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(WIDTH, WIDTH), copy.deepcopy(function)

    def forward(self, x):
        return self.function(self.layer(x))


def softplus(x):
    return torch.log(1 + torch.exp(x))


def normal(x):
    return 1 + torch.erf(x / math.sqrt(2))


def exponentials(x):
    return torch.exp(x - x.amax(1, keepdim=True))


def centered(x):
    return x - x.mean(1, keepdim=True)


def variance(x):
    return (x * x).mean(1, keepdim=True)


FOUND = {
    "GELU": ("BoundGelu", nn.GELU()),
    "GELU, factors in another order": ("BoundGelu", lambda x: 0.5 * x * normal(x)),
    "GELU, the half last": ("BoundGelu", lambda x: normal(x) * x / 2),
    "GELU, multiplied out": ("BoundGelu", lambda x: 0.5 * x + 0.5 * x * torch.erf(x * math.sqrt(0.5))),
    "GELU by tanh": ("BoundGeluTanh", nn.GELU(approximate="tanh")),
    "GELU by tanh, with a cube": (
        "BoundGeluTanh",
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "GELU by sigmoid": (
        "BoundGeluTanh",
        lambda x: x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)),
    ),
    "SiLU": ("BoundSilu", nn.SiLU()),
    "SiLU, factors in another order": ("BoundSilu", lambda x: torch.sigmoid(x) * x),
    "SiLU by exp": ("BoundSilu", lambda x: x / (1 + torch.exp(-x))),
    "SiLU by tanh": ("BoundSilu", lambda x: 0.5 * x * (1 + torch.tanh(x / 2))),
    "Mish": ("BoundMish", nn.Mish()),
    "Mish, factors in another order": ("BoundMish", lambda x: torch.tanh(functional.softplus(x)) * x),
    "Mish by log and exp": ("BoundMish", lambda x: x * torch.tanh(softplus(x))),
    "hard swish": ("BoundHardSwish", nn.Hardswish()),
    "hard swish by clip": ("BoundHardSwish", lambda x: x * torch.clip(x + 3, 0, 6) / 6),
    "hard swish by ReLU6": ("BoundHardSwish", lambda x: x * (functional.relu6(x + 3) * (1 / 6))),
    "hard swish by clip from 0 to 1": ("BoundHardSwish", lambda x: x * torch.clip(x / 6 + 0.5, 0, 1)),
    "log-sigmoid": ("BoundLogSigmoid", nn.LogSigmoid()),
    "layer norm": ("BoundNormalization", nn.LayerNorm(WIDTH)),
    "layer norm by hand": (
        "BoundNormalization",
        lambda x: centered(x) / torch.sqrt(1e-3 + ((lambda d: d * d)(centered(x))).mean(1, keepdim=True)),
    ),
    "RMS norm": ("BoundNormalization", lambda x: x / torch.sqrt(variance(x) + 1e-5)),
    "RMS norm by rsqrt": ("BoundNormalization", lambda x: x * torch.rsqrt(variance(x) + 1e-5)),
    "softmax": ("BoundSoftmax", lambda x: (lambda e: e / e.sum(1, keepdim=True))(torch.exp(x))),
    "softmax, shifted": ("BoundSoftmax", lambda x: (lambda e: e / e.sum(1, keepdim=True))(exponentials(x))),
    "log-softmax": ("BoundLogSoftmax", lambda x: x - torch.log(torch.exp(x).sum(1, keepdim=True))),
    "log-softmax of torch's parts": ("BoundLogSoftmax", lambda x: x - torch.logsumexp(x, 1, keepdim=True)),
    "log of softmax": ("BoundLogSoftmax", lambda x: torch.log(torch.softmax(x, 1))),
}
DIFFERENT = {
    "another constant": lambda x: 0.5 * x * (1 + torch.erf(x / 1.4)),
    "another factor": lambda x: 0.6 * x * normal(x),
    "another offset": lambda x: x * torch.clip(x + 2.5, 0, 6) / 6,
    "another limit": lambda x: x * torch.clip(x + 3, 0, 5) / 6,
    "another cube": lambda x: x * torch.sigmoid(1.5957691 * (x + 0.0447 * x**3)),
    "a constant for each coordinate": lambda x: x * torch.sigmoid(torch.linspace(0.5, 1.5, WIDTH).to(x) * x),
    "a gate of something else": lambda x: x * torch.sigmoid(x.flip(1)),
    "a gate by the mean": lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "an intermediate that is read elsewhere": lambda x: (lambda gate: x * gate + torch.relu(gate))(torch.sigmoid(x)),
    "exponentials that are read elsewhere": lambda x: (lambda e: e / e.sum(1, keepdim=True) + e)(torch.exp(x)),
    "a sum over other exponentials": lambda x: torch.exp(x) / torch.exp(2 * x).sum(1, keepdim=True),
    "squares of something else": lambda x: x / torch.sqrt(variance(x + 1) + 1e-5),
}


def graph_of(module, dtype=torch.float32):
    module = module.to(dtype).eval()
    return compat.build(module, torch.zeros(1, WIDTH, dtype=dtype), module_class=ZonotopeModule)


def found_in(graph):
    """The kinds of the patterns of a graph; a quotient, which hosts write in two ways, not counted."""
    order = plan_for(graph, graph.final_name, patterns=True).order
    return [type(node).__name__ for node in order if isinstance(node, Pattern) and type(node).__name__ != "BoundDiv"]


def forward_propagation(graph, box):
    source = SymbolSource()
    inputs = {graph.input_name[0]: box.to_zonotope(source, "input")}
    with torch.no_grad():
        return propagate.propagate(graph, inputs, source, PropagationOptions(fallback="error")).bounds


def width(bounds):
    return float((bounds.upper - bounds.lower).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FOUND)
def test_a_pattern_is_found_and_bounded_at_least_as_tightly(name, dtype, monkeypatch):
    kind, function = FOUND[name]
    module = Function(function)
    graph = graph_of(module, dtype)
    assert found_in(graph) == [kind]
    center = torch.randn(3, WIDTH, dtype=dtype)
    boxes = [Box.ball(center, radius) for radius in (0.0, 0.02, 0.3, 1.0, 3.0)]
    bounds = [forward_propagation(graph, box) for box in boxes]
    for box, of_pattern in zip(boxes, bounds, strict=True):
        with torch.no_grad():
            samples = module(box.sample(300).flatten(0, 1)).unflatten(0, (300, 3))
        check_contains_samples(of_pattern, samples)
    monkeypatch.setattr(plan, "find_patterns", list)
    plan._plans.clear()
    node_by_node = [forward_propagation(graph, box) for box in boxes]
    for of_pattern, of_nodes in zip(bounds[2:], node_by_node[2:], strict=True):
        assert not width(of_pattern) > width(of_nodes) * (1 + 1e-5), (width(of_pattern), width(of_nodes))
    if kind not in ("BoundHardSwish", "BoundLogSigmoid"):
        assert not width(bounds[3]) > 0.99 * width(node_by_node[3])
    plan._plans.clear()


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_only_looks_like_a_pattern_is_left_alone(name):
    module = Function(DIFFERENT[name])
    graph = graph_of(module)
    assert not found_in(graph)
    box = Box.ball(torch.randn(2, WIDTH), 0.1)
    with torch.no_grad():
        check_contains_samples(
            forward_propagation(graph, box), module(box.sample(200).flatten(0, 1)).unflatten(0, (200, 2))
        )


ONNX = ["GELU", "GELU by tanh", "SiLU", "Mish", "hard swish", "hard swish by clip", "layer norm", "RMS norm", "softmax"]


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", ONNX)
def test_patterns_are_found_in_onnx_files(name, opset, tmp_path):
    kind, function = FOUND[name]
    path, module = tmp_path / "model.onnx", Function(function).eval()
    torch.onnx.export(module, torch.zeros(1, WIDTH), str(path), opset_version=opset, dynamo=False)
    graph = graph_of(load_model(path).module)
    assert found_in(graph) == [kind]
    box = Box.ball(torch.randn(2, WIDTH), 0.2)
    with torch.no_grad():
        check_contains_samples(
            forward_propagation(graph, box), module(box.sample(200).flatten(0, 1)).unflatten(0, (200, 2))
        )


def test_several_patterns_in_one_network():
    layers = [nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Mish()]
    module = nn.Sequential(*layers)
    graph = graph_of(module)
    assert found_in(graph) == ["BoundGelu", "BoundNormalization", "BoundSilu", "BoundMish"]
    box = Box.ball(torch.randn(3, WIDTH), 0.1)
    with torch.no_grad():
        check_contains_samples(
            forward_propagation(graph, box), module(box.sample(200).flatten(0, 1)).unflatten(0, (200, 3))
        )


def test_a_pattern_computes_what_its_nodes_compute():
    graph = graph_of(Function(nn.GELU()))
    (pattern,) = [node for node in plan_for(graph, graph.final_name, True).order if isinstance(node, Pattern)]
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(pattern.forward(x), functional.gelu(x))
    assert pattern.name == graph.final_name
    with pytest.raises(NotImplementedError, match="several nodes"):
        pattern.interval_propagate()


@pytest.mark.parametrize("kind", ["outward", "inference"])
def test_patterns_cover_rounding_too(kind):
    """Whatever order the nodes' numbers are rounded in: float32 values lie in the bounds, which are hardly wider."""
    graph, source = graph_of(Function(nn.GELU())), SymbolSource()
    box = Box.ball(torch.randn(2, WIDTH), 0.1)
    inputs = {graph.input_name[0]: box.to_zonotope(source, "input")}
    plain = propagate.propagate(graph, inputs, source, PropagationOptions())
    found = propagate.propagate(graph, inputs, source, PropagationOptions(rounding=kind))
    values = graph(box.sample(200).flatten(0, 1)).unflatten(0, (200, 2))
    assert bool(((values >= found.bounds.lower) & (values <= found.bounds.upper)).all())
    assert bool((found.bounds.lower < plain.bounds.lower).all())
    assert bool((found.bounds.lower > plain.bounds.lower - 1e-3).all())


def test_formulas_are_compared_up_to_rounding():
    gelu = formulas.ACTIVATIONS["BoundGelu"]
    near = formulas.times(
        formulas.X,
        formulas.plus(
            formulas.number(0.5),
            formulas.scaled(0.5, formulas.of("erf", formulas.scaled(0.70710677, formulas.X))),
        ),
    )
    assert formulas.same(gelu, near, 1e-7)
    assert not formulas.same(gelu, near, 1e-12)
    for name, one in formulas.ACTIVATIONS.items():
        assert [other for other, two in formulas.ACTIVATIONS.items() if formulas.same(one, two, 1e-6)] == [name]


def test_a_formula_that_grows_is_given_up():
    powers = formulas.plus(*(formulas.times(*[formulas.X] * count) for count in range(5)))
    with pytest.raises(formulas.TooLargeError):
        formulas.times(powers, powers)
