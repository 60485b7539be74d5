"""Each operator of the table, alone in a small module, against the module itself."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from zonoplug.domain.blocks import DiagonalBlock
from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import HostError, UnsupportedOperatorError
from zonoplug.lirpa import compat
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import propagate
from zonoplug.lirpa.module import ZonotopeModule
from zonoplug.lirpa.operators.all import TRANSFORMERS, Call, entry_for, transforms
from zonoplug.testing import Function, check_contains_samples


def constant(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def normalised(module):
    for layer in module.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return module


IMAGE, VECTOR, SEQUENCE = (2, 6, 6), (8,), (3, 8)
EXACT = {
    "linear": (VECTOR, lambda: nn.Linear(8, 5)),
    "linear without bias": (VECTOR, lambda: nn.Linear(8, 5, bias=False)),
    "linear on a sequence": (SEQUENCE, lambda: nn.Linear(8, 5)),
    "convolution": (IMAGE, lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1)),
    "dilated grouped convolution": (IMAGE, lambda: nn.Conv2d(2, 4, 2, dilation=2, groups=2, bias=False)),
    "convolution in one dimension": (SEQUENCE, lambda: nn.Conv1d(3, 4, 3, padding=1)),
    "transposed convolution": (IMAGE, lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)),
    "batch norm": (IMAGE, lambda: normalised(nn.Sequential(nn.BatchNorm2d(2)))),
    "add": (VECTOR, lambda: Function(lambda x, c: x + c + x, c=constant(8))),
    "add that broadcasts": (SEQUENCE, lambda: Function(lambda x, c: x + x[:, :1] + c, c=constant(1, 3, 1))),
    "subtract": (VECTOR, lambda: Function(lambda x, c: c - x - (x - c) - x, c=constant(8))),
    "negate": (VECTOR, lambda: Function(lambda x: -x)),
    "multiply": (VECTOR, lambda: Function(lambda x, c: c * x * c, c=constant(8))),
    "divide": (VECTOR, lambda: Function(lambda x, c: x / c, c=constant(8))),
    "reshape": (IMAGE, lambda: Function(lambda x: x.reshape(x.shape[0], 4, 18) + 0.0)),
    "flatten": (IMAGE, lambda: nn.Flatten()),
    "transpose": (IMAGE, lambda: Function(lambda x: x.permute(0, 2, 3, 1) + 0.0)),
    "concatenate": (VECTOR, lambda: Function(lambda x: torch.cat([x, 2 * x, x[:, :3]], dim=1))),
    "slice": (IMAGE, lambda: Function(lambda x: x[:, 1:, ::2, 1:4] + 0.0)),
    "squeeze and unsqueeze": (VECTOR, lambda: Function(lambda x: x.unsqueeze(1).squeeze(1) + 0.0)),
    "average pool": (IMAGE, lambda: nn.AvgPool2d(2)),
    "global average pool": (IMAGE, lambda: nn.AdaptiveAvgPool2d(1)),
    "pad": (IMAGE, lambda: Function(lambda x: functional.pad(x, (1, 2, 0, 1)))),
    "mean": (SEQUENCE, lambda: Function(lambda x: x.mean(dim=2))),
    "sum": (SEQUENCE, lambda: Function(lambda x: x.sum(dim=1))),
    "matrix product with a constant": (SEQUENCE, lambda: Function(lambda x, c: x @ c, c=constant(8, 5))),
    "constant times matrix": (SEQUENCE, lambda: Function(lambda x, c: c @ x, c=constant(4, 3))),
}
RELAXED = {
    "relu": nn.ReLU,
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "abs": lambda: Function(torch.abs),
}


def built(module, shape, dtype=torch.float32):
    try:
        return compat.build(module.to(dtype), torch.zeros(1, *shape, dtype=dtype), module_class=ZonotopeModule)
    except HostError as error:
        pytest.skip(f"the host lacks the operator: {error}")


def operand(shape, dtype, batch=3):
    """A zonotope with dense, diagonal and boxed parts, and noise for points of it."""
    source = SymbolSource()
    zonotope = Box.ball(torch.randn(batch, *shape, dtype=dtype), 0.5).to_zonotope(source, "input")
    mixed = zonotope.map(_Mix())
    index = torch.zeros(batch, 1, dtype=torch.int64)
    diagonal = DiagonalBlock(source.fresh("more", index), torch.ones(batch, 1, dtype=dtype), index, tuple(shape))
    box = torch.rand(batch, *shape, dtype=dtype)
    return Zonotope(mixed.center, (*mixed.blocks, diagonal), box), source


class _Mix:
    """Mixes coordinates, so that blocks become dense: a running sum."""

    def apply(self, x):
        return x.flatten(1).cumsum(dim=1).reshape(x.shape)

    apply_absolute = apply

    def terms(self, shape):
        return 8

    def columns(self, values, index, shape):
        block = DiagonalBlock(torch.arange(values.shape[1]), values, index, shape)
        dense = block.dense()
        return dense.flatten(2).cumsum(dim=2).reshape(dense.shape)


def propagation_of(module, zonotope, source, **options):
    return propagate(module, {module.input_name[0]: zonotope}, source, PropagationOptions(**options)).output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXACT)
def test_exact_operators_map_every_point_exactly(name, dtype):
    shape, make = EXACT[name]
    module = make().to(dtype).eval()
    host = built(module, shape, dtype)
    zonotope, source = operand(shape, dtype)
    with torch.no_grad():
        output = propagation_of(host, Zonotope(zonotope.center, zonotope.blocks), source, fallback="error")
        boxed = propagation_of(host, zonotope, source, fallback="error")
    for _ in range(10):
        noise = 2 * torch.rand(3, zonotope.num_symbols, dtype=dtype) - 1
        side = 2 * torch.rand(3, *shape, dtype=dtype) - 1
        with torch.no_grad():
            image = module(Zonotope(zonotope.center, zonotope.blocks).point(noise))
            image_of_box = module(zonotope.point(noise, side))
        torch.testing.assert_close(output.point(noise), image, atol=2e-4, rtol=1e-4)
        assert bool(((image_of_box - boxed.point(noise)).abs() <= boxed.box + 2e-4).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RELAXED)
def test_relaxed_operators_contain_every_point(name, dtype):
    module = RELAXED[name]().eval()
    host = built(module, VECTOR, dtype)
    zonotope, source = operand(VECTOR, dtype)
    output = propagation_of(host, zonotope, source, fallback="error")
    samples = []
    for _ in range(200):
        noise = (2 * torch.rand(3, zonotope.num_symbols, dtype=dtype) - 1).sign()
        side = (2 * torch.rand(3, *VECTOR, dtype=dtype) - 1).sign()
        samples.append(module(zonotope.point(noise, side)))
    check_contains_samples(output.interval_hull(), torch.stack(samples))


def test_an_operator_without_transformer_falls_back_to_the_hosts_interval(monkeypatch):
    monkeypatch.setattr("zonoplug.lirpa.forward.propagation.is_trusted", lambda node, method: True)
    monkeypatch.delitem(TRANSFORMERS, "BoundExp", raising=False)
    module = nn.Sequential(nn.Linear(8, 8), Function(torch.exp))
    host = built(module, VECTOR)
    box = Box.ball(torch.randn(3, 8), 0.1)
    source = SymbolSource()
    zonotope = box.to_zonotope(source, "input")
    with pytest.warns(UserWarning, match=r"BoundExp is bounded by intervals"):
        output = propagation_of(host, zonotope, source)
    check_contains_samples(output.interval_hull(), module(box.sample(500).flatten(0, 1)).unflatten(0, (500, 3)))


def test_the_fallback_can_be_forbidden_and_the_error_says_what_to_type(monkeypatch):
    monkeypatch.delitem(TRANSFORMERS, "BoundExp", raising=False)
    host = built(nn.Sequential(nn.Linear(8, 8), Function(torch.exp)), VECTOR)
    source = SymbolSource()
    zonotope = Box.ball(torch.randn(3, 8), 0.1).to_zonotope(source, "input")
    with pytest.raises(UnsupportedOperatorError, match=r"BoundExp.*Zonotope \(3, 8\) with 8 symbols.*@transforms"):
        propagation_of(host, zonotope, source, fallback="error")


def test_a_third_party_adds_a_transformer(monkeypatch):
    monkeypatch.delitem(TRANSFORMERS, "BoundExp", raising=False)
    host = built(nn.Sequential(nn.Linear(8, 8), Function(torch.exp)), VECTOR)
    source = SymbolSource()
    zonotope = Box.ball(torch.randn(3, 8), 0.1).to_zonotope(source, "input")

    def exponential(call: Call) -> Zonotope:
        lower, upper = call.preactivations[0]
        center, radius = (lower.exp() + upper.exp()) / 2, (upper.exp() - lower.exp()) / 2
        return Zonotope(center).with_fresh_symbols(radius, call.source, call.node.name)

    monkeypatch.setitem(TRANSFORMERS, "BoundExp", None)
    transforms("BoundExp", kind="relaxation")(exponential)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = propagation_of(host, zonotope, source, fallback="error")
    assert output.shape == (8,)


def test_a_subclass_of_a_host_operator_uses_its_parents_entry():
    class BoundRelu:
        pass

    class Special(BoundRelu):
        pass

    assert entry_for(Special()) is TRANSFORMERS["BoundRelu"]
    assert entry_for(object()) is None
