"""Operators that we give the host, and its own beside them: the graph equals the module, bounds hold for samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from zonoplug.errors import HostError
from zonoplug.lirpa import compat
from zonoplug.lirpa.host_operators.activations import custom_activations
from zonoplug.lirpa.host_operators.custom import custom_operators
from zonoplug.lirpa.host_operators.logic import custom_logic


class Function(nn.Module):
    """A function of the input and of layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


class Constant(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.value = nn.Parameter(torch.randn(shape))


def linear(*sizes):
    return lambda: nn.Linear(*sizes)


def fixed(*shape):
    return lambda: Constant(*shape)


IMAGE, VECTOR, ROWS = (2, 7, 5), (5,), (4, 5)
TWO = [linear(5, 4), linear(4, 3)]
ELEMENTWISE = {
    "Sign": (torch.sign, 1, 0),
    "Floor": (torch.floor, 3, 0),
    "Ceil": (torch.ceil, 3, 0),
    "Erf": (torch.erf, 3, 0),
    "Elu": (functional.elu, 3, 0),
    "HardSigmoid": (functional.hardsigmoid, 5, 0),
    "Clip": (lambda x: torch.clamp(x, -0.5, 0.7), 2, 0),
    "Softplus": (functional.softplus, 3, 0),
    "Sqrt": (torch.sqrt, 1, 4),
    "Reciprocal": (torch.reciprocal, 1, 3),
    "Reciprocal of negatives": (torch.reciprocal, 1, -3),
    "Pow 2": (lambda x: x**2, 1, 0),
    "Pow 3": (lambda x: x**3, 1, 0),
    "Pow -1": (lambda x: x**-1, 1, 3),
    "Pow -2": (lambda x: x**-2, 1, -3),
    "Pow 0.5": (lambda x: x**0.5, 1, 4),
    "Pow 1.5": (lambda x: x**1.5, 1, 4),
    "square": (lambda x: x * x, 1, 0),
    "LeakyRelu": (lambda x: functional.leaky_relu(x, 0.1), 1, 0),
    "tanh": (torch.tanh, 3, 0),
    "sigmoid": (torch.sigmoid, 3, 0),
    "exp": (torch.exp, 1, 0),
    "abs": (torch.abs, 1, 0),
    "sin": (torch.sin, 4, 0),
    "cos": (torch.cos, 4, 0),
}


def applied(function, scale, shift):
    return lambda x, first, last: last(function(scale * first(x) + shift))


CASES = {
    **{name: (VECTOR, applied(*entry), TWO) for name, entry in ELEMENTWISE.items()},
    "Gather with repetitions": (VECTOR, lambda x, a: a(x[:, torch.tensor([0, 2, 2, 4])]), [linear(4, 3)]),
    "Gather on an inner axis": (ROWS, lambda x, a: a(x[:, :, [1, 1, 3]].flatten(1)), [linear(12, 3)]),
    "Gather of one": (ROWS, lambda x, a: a(x.select(1, -2)), [linear(5, 3)]),
    "Slice": (ROWS, lambda x, a: a(x[:, 1:4:2, -3:].flatten(1)), [linear(6, 3)]),
    "Conv 1d": (
        ROWS,
        lambda x, c, a: a(torch.relu(c(x)).flatten(1)),
        [lambda: nn.Conv1d(4, 3, 3, padding=1, stride=2), linear(9, 3)],
    ),
    "Conv strided": (
        IMAGE,
        lambda x, c, a: a(torch.relu(c(x)).flatten(1)),
        [lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), linear(48, 3)],
    ),
    "Conv twice": (
        IMAGE,
        lambda x, c, d, a: a(torch.relu(d(torch.relu(c(x)))).flatten(1)),
        [lambda: nn.Conv2d(2, 4, 3, padding=1), lambda: nn.Conv2d(4, 4, 3), linear(60, 3)],
    ),
    "ConvTranspose padded": (
        IMAGE,
        lambda x, c, a: a(torch.relu(c(x)).flatten(1)),
        [lambda: nn.ConvTranspose2d(2, 3, 3, padding=1, stride=2, output_padding=1), linear(420, 3)],
    ),
    "ConvTranspose after Conv": (
        IMAGE,
        lambda x, c, d, a: a(torch.relu(d(torch.relu(c(x)))).flatten(1)),
        [lambda: nn.Conv2d(2, 4, 3), lambda: nn.ConvTranspose2d(4, 4, 3, groups=2, dilation=2), linear(252, 3)],
    ),
    "ConvTranspose 1d": (
        ROWS,
        lambda x, c, a: a(torch.relu(c(x)).flatten(1)),
        [lambda: nn.ConvTranspose1d(4, 2, 3, stride=2), linear(22, 3)],
    ),
    "Resize nearest": (
        IMAGE,
        lambda x, c, a: a(torch.relu(c(functional.interpolate(x, scale_factor=2, mode="nearest"))).flatten(1)),
        [lambda: nn.Conv2d(2, 2, 3, stride=2), linear(48, 3)],
    ),
    "Resize bilinear": (
        IMAGE,
        lambda x, c, a: a(torch.relu(c(functional.interpolate(x, scale_factor=2, mode="bilinear"))).flatten(1)),
        [lambda: nn.Conv2d(2, 2, 3, stride=2), linear(48, 3)],
    ),
    "Pad": (
        IMAGE,
        lambda x, c, a: a(torch.relu(c(functional.pad(x, (1, 0, 2, 1), value=0.5))).flatten(1)),
        [lambda: nn.Conv2d(2, 3, 3), linear(96, 3)],
    ),
    "AveragePool padded": (
        IMAGE,
        lambda x, a: a(functional.avg_pool2d(x, 3, 2, padding=1).flatten(1)),
        [linear(24, 3)],
    ),
    "AveragePool without the padding": (
        IMAGE,
        lambda x, a: a(functional.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False).flatten(1)),
        [linear(24, 3)],
    ),
    "AveragePool": (IMAGE, lambda x, a: a(functional.avg_pool2d(x, 2).flatten(1)), [linear(12, 3)]),
    "MaxPool": (IMAGE, lambda x, a: a(functional.max_pool2d(x, 2).flatten(1)), [linear(12, 3)]),
    "MaxPool with a ragged end": (
        IMAGE,
        lambda x, a: a(functional.max_pool2d(x, (3, 2), ceil_mode=True).flatten(1)),
        [linear(18, 3)],
    ),
    "MaxPool dilated": (IMAGE, lambda x, a: a(functional.max_pool2d(x, 2, dilation=2).flatten(1)), [linear(12, 3)]),
    "MaxPool 1d": (ROWS, lambda x, a: a(functional.max_pool1d(x, 2).flatten(1)), [linear(8, 3)]),
    "MaxPool 3d": (
        (1, 2, 4, 4),
        lambda x, a: a(functional.max_pool3d(x, 2).flatten(1)),
        [linear(4, 3)],
    ),
    "MaxPool overlapping": (IMAGE, lambda x, a: a(functional.max_pool2d(x, 3, 2, 1).flatten(1)), [linear(24, 3)]),
    "Transpose before Conv": (
        (7, 5, 2),
        lambda x, c, a: a(torch.relu(c(x.permute(0, 3, 1, 2))).flatten(1)),
        [lambda: nn.Conv2d(2, 3, 3), linear(45, 3)],
    ),
    "Max": (VECTOR, lambda x, a, b, c: c(torch.maximum(a(x), b(x))), [linear(5, 4), linear(5, 4), linear(4, 3)]),
    "Min": (VECTOR, lambda x, a, b, c: c(torch.minimum(a(x), b(x))), [linear(5, 4), linear(5, 4), linear(4, 3)]),
    "ReduceMax": (ROWS, lambda x, a: a(torch.amax(x, 1)), [linear(5, 3)]),
    "LogSoftmax": (VECTOR, lambda x, a, b: b(torch.log_softmax(3 * a(x), 1)), TWO),
    "ReduceL1": (ROWS, lambda x, a: a(x.norm(p=1, dim=2)), [linear(4, 3)]),
    "ReduceL2": (ROWS, lambda x, a: a(x.norm(p=2, dim=2)), [linear(4, 3)]),
    "ReduceLogSumExp": (ROWS, lambda x, a: a(torch.logsumexp(x, 2)), [linear(4, 3)]),
    "ReduceProd": (ROWS, lambda x, a: a(x.prod(2)), [linear(4, 3)]),
    "Softmax": (VECTOR, lambda x, a, b: b(torch.softmax(3 * a(x), 1)), TWO),
    "attention": (
        ROWS,
        lambda x, q, k, v, a: a(
            torch.matmul(torch.softmax(torch.matmul(q(x), k(x).transpose(1, 2)), -1), v(x)).flatten(1)
        ),
        [linear(5, 5), linear(5, 5), linear(5, 5), linear(20, 3)],
    ),
    **{
        f"{name} {shape}": (
            (2, 5),
            lambda x, c, a, f=function: a(f(x, c.value).flatten(1)),
            [fixed(*shape), linear(10, 3)],
        )
        for name, function in {
            "Add of": lambda x, c: x + c,
            "Sub of": lambda x, c: x - c,
            "Sub from": lambda x, c: c - x,
            "Mul by": lambda x, c: c * x,
        }.items()
        for shape in [(), (1,), (5,), (1, 5), (2, 1), (1, 2, 5)]
    },
    "Add": (VECTOR, lambda x, a, b, c: c(torch.relu(a(x)) + b(x)), [linear(5, 4), linear(5, 1), linear(4, 3)]),
    "Sub": (VECTOR, lambda x, a, b, c: c(a(x) - torch.relu(b(x))), [linear(5, 4), linear(5, 1), linear(4, 3)]),
    "Div by a constant": (VECTOR, lambda x, c, a: a(x / c.value), [fixed(5), linear(5, 3)]),
    "Div": (VECTOR, lambda x, a, b, c: c(a(x) / (b(x) + 4)), [linear(5, 4), linear(5, 4), linear(4, 3)]),
    "Div that broadcasts": (
        VECTOR,
        lambda x, a, b, c: c(a(x) / (b(x) + 4)),
        [linear(5, 4), linear(5, 1), linear(4, 3)],
    ),
    "Div by a norm": (VECTOR, lambda x, a, b: b(a(x) / torch.sqrt((x * x).sum(1, keepdim=True) + 1)), TWO),
    "Mul by a constant that broadcasts": (
        (1, 5),
        lambda x, c, a: a((x * c.value).flatten(1)),
        [fixed(4, 1), linear(20, 3)],
    ),
    "Mul that broadcasts": (VECTOR, lambda x, a, b, c: c(a(x) * b(x)), [linear(5, 4), linear(5, 1), linear(4, 3)]),
    "MatMul by a constant on the left": (
        ROWS,
        lambda x, c, a: a(torch.matmul(c.value, x).flatten(1)),
        [fixed(3, 4), linear(15, 3)],
    ),
    "MatMul by a constant": (
        ROWS,
        lambda x, c, a: a(torch.matmul(x, c.value).flatten(1)),
        [fixed(5, 3), linear(12, 3)],
    ),
    "Concat, Split": (
        VECTOR,
        lambda x, a, b: b(torch.cat([torch.relu(y) for y in torch.split(a(x), [1, 2, 1], 1)], 1)),
        TWO,
    ),
    "Tile": (VECTOR, lambda x, a, b: b(torch.relu(a(x)).repeat(1, 2)), [linear(5, 4), linear(8, 3)]),
    "Expand": ((1, 5), lambda x, a: a(x.expand(-1, 3, -1).flatten(1)), [linear(15, 3)]),
}


def module_of(name):
    shape, function, layers = CASES[name]
    return shape, Function(function, *(make() for make in layers)).eval()


def bounds(graph, x, radius, method):
    box = compat.PerturbationLpNorm(norm=np.inf, x_L=x - radius, x_U=x + radius)
    with compat.quietly():
        return graph.compute_bounds(x=(compat.BoundedTensor(x, box),), method=method)


def samples_of(x, radius, count=300):
    inner = 2 * torch.rand(count, *x.shape) - 1
    corners = 2 * torch.randint(0, 2, (count, *x.shape)).to(x.dtype) - 1
    return x + radius * torch.cat([inner, corners])


@pytest.mark.parametrize(
    ("name", "conv_mode"),
    [(name, mode) for name, case in CASES.items() for mode in ("matrix", "patches")[: 2 if len(case[0]) == 3 else 1]],
)
def test_graph_equals_module_and_bounds_hold(name, conv_mode):
    shape, module = module_of(name)
    graph = compat.build(module, torch.rand(1, *shape) - 0.5, conv_mode=conv_mode)
    for batch, radius in ((1, 0.05), (3, 0.4)):
        x = torch.rand(batch, *shape) - 0.5
        assert torch.allclose(graph(x), module(x), atol=1e-5)
        outputs = torch.stack([module(point) for point in samples_of(x, radius)])
        for method in ("IBP", "CROWN"):
            lower, upper = bounds(graph, x, radius, method)
            assert lower.shape == outputs.shape[1:]
            assert not (outputs < lower - 1e-5).any() and not (outputs > upper + 1e-5).any(), method
            assert radius > 0.05 or upper.isfinite().all()


WITH_OWN_TESTS = custom_activations() | custom_logic(lambda rule: rule)
OWN = sorted(set(custom_operators()) - set(WITH_OWN_TESTS))


@pytest.mark.parametrize("name", OWN)
def test_each_registered_operator_is_covered(name):
    """The cases above reach every operator in the table, whichever host is installed."""
    operator = name.removeprefix("onnx::")
    same = {
        "Upsample": "Resize",
        "ReduceMin": "ReduceMax",
        "Sqrt": "Sqrt",
        "Mul": "Mul that",
        "HardSigmoid": "HardSigmoid",
    }
    assert any(case.startswith(same.get(operator, operator)) for case in CASES), operator


def test_linear_operators_are_exact_under_crown():
    shape, module = module_of("Gather with repetitions")
    graph = compat.build(module, torch.zeros(1, *shape))
    x = torch.zeros(1, *shape)
    lower, upper = bounds(graph, x, 1.0, "CROWN")
    jacobian = torch.autograd.functional.jacobian(module, x)[0, :, 0]
    radius = jacobian.abs().sum(1)
    assert torch.allclose(upper - lower, 2 * radius[None], atol=1e-5)


def test_double_precision_stays_double():
    shape, module = module_of("ConvTranspose padded")
    module = module.double()
    x = torch.rand(1, *shape, dtype=torch.float64)
    graph = compat.build(module, x)
    lower, upper = bounds(graph, x, 0.1, "IBP")
    assert lower.dtype == upper.dtype == torch.float64


def test_batch_axis_is_never_gathered():
    with pytest.raises((HostError, NotImplementedError)):
        graph = compat.build(Function(lambda x: x[[0, 0]]), torch.rand(1, 3))
        bounds(graph, torch.rand(1, 3), 0.1, "IBP")
