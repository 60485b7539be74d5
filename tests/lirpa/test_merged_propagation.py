"""Neuron merging in the propagation over any graph, and host graphs as chains of layers."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import propagate
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import bound_box, build, forward_propagation
from zonoplug.lirpa.network_reduction import chain_of, propagate_merged
from zonoplug.reduction import AboveSymbols, Girard
from zonoplug.reduction.network_reduction import reduce_network
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.testing import check_contains_samples


class Residual(nn.Module):
    """Convolutions, a skip connection around one activation, a product of two branches' sum."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.last, self.activation = nn.Linear(48, 4), activation

    def forward(self, x):
        y = self.activation(self.first(x))
        return self.last((self.activation(self.second(y)) + y).flatten(1))


class Convolutional(nn.Sequential):
    """A chain: convolution, ReLU, strided convolution, ReLU, linear."""

    def __init__(self, activation):
        super().__init__(
            nn.Conv2d(1, 3, 3, padding=1),
            activation,
            nn.Conv2d(3, 2, 3, stride=2),
            activation,
            nn.Flatten(),
            nn.Linear(2, 4),
        )


class Dense(nn.Module):
    """A chain with a scaled and shifted input and two linear maps in a row."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList([nn.Linear(16, 20), nn.Linear(20, 18), nn.Linear(18, 6), nn.Linear(6, 4)])

    def forward(self, x):
        first, second, third, last = self.layers
        x = (x.flatten(1) - 0.1) / 0.3
        return last(third(self.activation(second(self.activation(first(x))))))


NETWORKS = {"residual": Residual, "convolutional": Convolutional, "dense": Dense}
ACTIVATIONS = {"relu": nn.ReLU(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "leaky relu": nn.LeakyReLU(0.1)}
_built = {}


def case(name, activation, dtype=torch.float64):
    """A module, its host graph and a set of inputs (3, 1, 4, 4); built once."""
    if (name, activation, dtype) not in _built:
        torch.manual_seed(5)
        module = NETWORKS[name](ACTIVATIONS[activation]).eval().to(dtype)
        host = build(module, torch.zeros(1, 1, 4, 4, dtype=dtype))
        _built[name, activation, dtype] = module, host.to(dtype), torch.randn(3, 1, 4, 4, dtype=dtype)
    module, host, center = _built[name, activation, dtype]
    return module, host, Box.ball(center, 0.1)


def outputs(module, box, count=200):
    with torch.no_grad():
        return module(box.sample(count).flatten(0, 1)).unflatten(0, (count, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=20)
@given(st.floats(0.05, 0.99), st.sampled_from(["static", "dynamic"]), st.booleans())
def test_every_sampled_point_lies_inside(name, activation, dtype, rate, buckets, tracked):
    module, host, box = case(name, activation, dtype)
    found = propagate_merged(host, box, NeuronMerging(rate=rate, buckets=buckets, tracked=tracked))
    check_contains_samples(found.bounds, outputs(module, box))
    assert len(found.kept) == 2
    if buckets == "dynamic" or activation != "leaky relu":
        sizes = {"residual": (48, 48), "convolutional": (48, 2), "dense": (20, 18)}[name]
        for kept, size in zip(found.kept.values(), sizes, strict=True):
            assert bool((kept <= ceil(rate * size)).all()) or size == 2


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=20)
@given(st.floats(0.05, 0.99))
def test_rounding_is_covered_together_with_a_reduction(name, rate):
    module, host, box = case(name, "tanh", torch.float32)
    options = PropagationOptions(Girard(), AboveSymbols(20), rounding="inference", merging=NeuronMerging(rate=rate))
    symbols, (name, *_) = SymbolSource(), host.input_name
    with torch.no_grad():
        found = propagate(host, {name: box.to_zonotope(symbols, name)}, symbols, options)
    bounds, values = found.bounds, outputs(module, box)
    assert bool(((values >= bounds.lower) & (values <= bounds.upper)).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_at_rate_1_the_propagation_is_the_unreduced_one(name, activation):
    _, host, box = case(name, activation)
    plain, _ = bound_box(host, box, BoundMethod.parse("zonotope"))
    whole = propagate_merged(host, box, NeuronMerging(rate=1.0))
    assert torch.equal(whole.bounds.lower, plain.lower) and torch.equal(whole.bounds.upper, plain.upper)


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_neurons_need_fewer_symbols_and_give_wider_bounds(name):
    _, host, box = case(name, "sigmoid")
    found = [propagate_merged(host, box, NeuronMerging(rate=rate)) for rate in (0.2, 0.6, 1.0)]
    widths = [float((each.bounds.upper - each.bounds.lower).mean()) for each in found]
    assert widths == sorted(widths, reverse=True)
    assert found[0].output.num_symbols < found[2].output.num_symbols


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("name", ["convolutional", "dense"])
def test_a_graph_without_branches_is_a_chain(name, activation):
    module, host, box = case(name, activation)
    chain = chain_of(host, box.lower[:1])
    points = box.sample(50).flatten(0, 1)
    torch.testing.assert_close(chain(points), module(points))
    plain = forward_propagation(host, [box], BoundMethod.parse("zonotope"), intervals=False).bounds
    hull = chain.bound(box).interval_hull()
    torch.testing.assert_close(hull.lower, plain.lower)
    torch.testing.assert_close(hull.upper, plain.upper)


@pytest.mark.parametrize("name", ["convolutional", "dense"])
@settings(max_examples=20)
@given(st.floats(0.1, 0.9))
def test_the_propagation_and_the_written_network_agree_on_one_input_set(name, rate):
    """For ReLU, without the interval bounds that the propagation keeps besides."""
    _, host, box = case(name, "relu")
    single = Box(box.lower[:1], box.upper[:1])
    merging = NeuronMerging(rate=rate)
    reduced, output = reduce_network(chain_of(host, single.lower), single, merging)
    found = propagate_merged(host, single, merging, intervals=False)
    assert [kept for kept, _ in reduced.neurons] == [int(kept) for kept in found.kept.values()]
    hull = output.interval_hull()
    torch.testing.assert_close(hull.lower, found.bounds.lower)
    torch.testing.assert_close(hull.upper, found.bounds.upper)


def test_a_specification_behind_the_propagation_keeps_differences():
    """Neurons merged in the last layer keep symbols, so that what two outputs have in common cancels."""
    _, host, box = case("residual", "relu")
    rows = torch.tensor([[[1.0, -1, 0, 0], [0, 1, -1, 0]]], dtype=torch.float64)
    found = [
        propagate_merged(host, box, NeuronMerging(rate=0.1, tracked=tracked), rows, intervals=False).bounds
        for tracked in (True, False)
    ]
    assert bool((found[0].lower > found[1].lower + 1e-6).all())


@pytest.mark.parametrize("method", ["CROWN", "zonotope", "zonotope+crown"])
def test_the_host_bounds_a_reduced_network_with_noise_as_inputs(method):
    module, host, box = case("dense", "tanh", torch.float32)
    single = Box(box.lower[:1], box.upper[:1])
    reduced, _ = reduce_network(chain_of(host, single.lower), single, NeuronMerging(rate=0.4))
    noise = torch.ones(1, reduced.num_noise)
    joint = Box(torch.cat([single.lower.flatten(1), -noise], dim=1), torch.cat([single.upper.flatten(1), noise], dim=1))
    graph = build(reduced.with_noise_as_inputs(), joint.lower)
    bounds, _ = bound_box(graph, joint, BoundMethod.parse(method))
    check_contains_samples(Interval(bounds.lower, bounds.upper), outputs(module, single))


@pytest.mark.parametrize(
    ("name", "activation", "message"),
    [
        ("residual", "relu", "not a chain"),
        ("dense", "leaky relu", "neither linear nor one of relu, sigmoid, tanh"),
    ],
)
def test_other_graphs_are_refused_with_advice(name, activation, message):
    _, host, box = case(name, activation)
    with pytest.raises(UnsupportedOperatorError, match=message) as caught:
        chain_of(host, box.lower[:1])
    assert "PropagationOptions(merging=...)" in str(caught.value)
