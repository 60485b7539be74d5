"""Reduced networks contain what the original computes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import ceil

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zonoplug.domain.input_sets import Box
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import SettingError
from zonoplug.reduction.network_reduction import InputCompression, reduce_network
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.reduction.reduced_network import FUNCTIONS, Layer, ReducedNetwork, activation_range
from zonoplug.testing import check_contains_samples

ACTIVATIONS = sorted(FUNCTIONS)


def network(seed, activation, dtype=torch.float64, sizes=(6, 15, 12, 9, 4), shape=None, radius=False):
    """Random layers; some neurons are dead, and some biases are intervals if asked for."""
    random = torch.Generator().manual_seed(seed)
    layers = []
    for before, size in pairwise(sizes):
        weight = torch.randn(size, before, generator=random, dtype=dtype) / before**0.5
        bias = torch.randn(size, generator=random, dtype=dtype) / 2
        bias[: size // 4] -= 3
        name = None if size is sizes[-1] else activation
        spread = torch.rand(size, generator=random, dtype=dtype) / 9 if radius else None
        layers.append(Layer(weight, bias, name, spread))
    return ReducedNetwork(layers, shape or (sizes[0],))


def box(seed, shape=(6,), batch=2, radius=0.2, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed + 1)
    center = torch.randn(batch, *shape, generator=random, dtype=dtype)
    return Box.ball(center, radius * torch.rand(batch, *shape, generator=random, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=40)
@given(
    st.floats(0.05, 1), st.sampled_from(["static", "dynamic"]), st.booleans(), st.floats(0, 1), st.integers(0, 10**6)
)
def test_the_original_outputs_lie_within_the_reduced_bounds(activation, dtype, rate, buckets, tracked, radius, seed):
    original, inputs = network(seed, activation, dtype), box(seed, radius=radius, dtype=dtype)
    merging = NeuronMerging(rate=rate, buckets=buckets, tracked=tracked)
    reduced, output = reduce_network(original, inputs, merging)
    points = inputs.sample(64)
    outputs = torch.stack([original(point) for point in points])
    check_contains_samples(output.interval_hull(), outputs)
    check_contains_samples(_sum_hull(output), outputs @ torch.ones(4, 1, dtype=dtype))
    assert all(kept <= ceil(rate * before) for kept, before in reduced.neurons)
    again = reduced.bound(inputs, tracked)
    scale = float(output.radius().max()) + float(output.center.abs().max())
    torch.testing.assert_close(again.radius(), output.radius(), rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(again.center, output.center, rtol=1e-4, atol=1e-5 * scale)


def _sum_hull(output):
    ones = torch.ones(1, 4, dtype=output.center.dtype)
    return Interval(-output.support(-ones), output.support(ones))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=40)
@given(st.floats(0.05, 0.9), st.integers(0, 10**6))
def test_for_each_point_some_noise_gives_the_original_output(activation, rate, seed):
    """The defining law, checked through every layer: merged neurons of the original lie in their intervals."""
    original, inputs = network(seed, activation), box(seed, batch=1)
    reduced, _ = reduce_network(original, inputs, NeuronMerging(rate=rate))
    assume(all(kept for kept, _ in reduced.neurons))
    point = inputs.sample(8)[:, 0]
    value, small = point, point
    for layer, less in zip(original.layers, reduced.layers, strict=True):
        sums = value @ layer.weight.T + layer.bias
        kept = sums if layer.size == less.size else sums[:, _places(layer, less)]
        missing = (kept - small @ less.weight.T - less.bias).abs()
        assert bool((missing <= (0 if less.radius is None else less.radius) + 1e-12).all())
        act = (lambda x: x) if layer.activation is None else FUNCTIONS[layer.activation][0]
        value, small = act(sums), act(kept)


def _places(layer, less):
    """Which neurons stayed: interval biases move, but no weight between two kept neurons changes, nor do their rows."""
    columns = less.weight.shape[1]
    rows = [next(i for i in range(layer.size) if _contains(layer.weight[i], less.weight[j])) for j in range(less.size)]
    assert len(set(rows)) == len(rows) and columns <= layer.weight.shape[1]
    return rows


def _contains(full, part):
    return bool(torch.isin(part, full).all()) if part.numel() else False


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_at_rate_1_bounds_are_the_unreduced_ones_to_the_last_bit(activation):
    original, inputs = network(3, activation), box(3)
    reduced, output = reduce_network(original, inputs, NeuronMerging(rate=1.0))
    expected = original.bound(inputs)
    assert torch.equal(output.center, expected.center)
    assert torch.equal(output.generators(), expected.generators())
    assert reduced.neurons == original.neurons and reduced.num_noise == 0


def test_dead_neurons_go_for_nothing():
    original, inputs = network(5, "relu"), box(5, radius=0.1)
    reduced, output = reduce_network(original, inputs, NeuronMerging(tolerance=0))
    assert all(kept < before for kept, before in reduced.neurons)
    assert reduced.num_noise == 0
    torch.testing.assert_close(output.radius(), original.bound(inputs).radius())


def test_a_network_reduced_already_is_reduced_further():
    original, inputs = network(6, "relu"), box(6, batch=1)
    once, _ = reduce_network(original, inputs, NeuronMerging(rate=0.7))
    twice, output = reduce_network(once, inputs, NeuronMerging(rate=0.4))
    assert twice.neurons[0][0] < once.neurons[0][0] and twice.neurons[0][1] == 15
    check_contains_samples(output.interval_hull(), original(inputs.sample(200)[:, 0]))


@settings(max_examples=40)
@given(st.floats(0.1, 0.9), st.integers(0, 10**6))
def test_interval_biases_of_the_original_are_kept(rate, seed):
    original, inputs = network(seed, "relu", radius=True), box(seed, batch=1)
    _, output = reduce_network(original, inputs, NeuronMerging(rate=rate))
    points = inputs.sample(50)[:, 0]
    noise = 2 * torch.rand(50, original.num_noise, dtype=torch.float64) - 1
    check_contains_samples(output.interval_hull(), original(points, noise.sign()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_noise_as_inputs_is_the_same_network(activation):
    reduced, _ = reduce_network(network(7, activation), box(7), NeuronMerging(rate=0.5))
    assert reduced.num_noise > 0
    x, noise = torch.randn(5, 6).double(), torch.rand(5, reduced.num_noise).double()
    torch.testing.assert_close(reduced.with_noise_as_inputs()(torch.cat([x, noise], dim=1)), reduced(x, noise))
    torch.testing.assert_close(reduced(x, torch.zeros_like(noise)), reduced(x))


@pytest.mark.parametrize("patch", [None, 1, 2, 3])
@settings(max_examples=40)
@given(st.floats(0.05, 0.9), st.integers(0, 10**6))
def test_compressed_inputs_of_either_sign_lose_no_point(patch, rate, seed):
    original = network(seed, "relu", sizes=(32, 9, 3), shape=(2, 4, 4))
    inputs = box(seed, shape=(2, 4, 4), radius=0.3)
    compression = InputCompression(NeuronMerging(rate=rate), patch)
    reduced, output = reduce_network(original, inputs, NeuronMerging(rate=1.0), compression)
    assert (reduced.inputs_read < 32) == (patch != 1)
    outputs = torch.stack([original(point) for point in inputs.sample(64)])
    check_contains_samples(output.interval_hull(), outputs)
    check_contains_samples(reduced.bound(inputs).interval_hull(), outputs)
    whole, same = reduce_network(original, inputs, NeuronMerging(rate=1.0), InputCompression(NeuronMerging(rate=1.0)))
    assert whole.inputs_read == 32 and torch.equal(same.center, original.bound(inputs).center)


def test_a_subset_of_the_inputs_and_a_ball_are_bounded_too():
    original, inputs = network(8, "tanh"), box(8, batch=1)
    reduced, output = reduce_network(original, inputs, NeuronMerging(rate=0.5))
    part = Box(inputs.lower, (inputs.lower + inputs.upper) / 2)
    assert bool((reduced.bound(part).radius() < output.radius()).all())
    check_contains_samples(reduced.bound(part).interval_hull(), original(part.sample(99)[:, 0]))
    ball = LpBall((inputs.lower + inputs.upper) / 2, float((inputs.upper - inputs.lower).min() / 2), 2)
    smaller, around = reduce_network(original, ball, NeuronMerging(rate=0.5))
    assert all(kept <= ceil(before / 2) for kept, before in smaller.neurons)
    check_contains_samples(around.interval_hull(), original(ball.sample(99)[:, 0]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranges_of_activations_hold_what_is_computed(activation, dtype):
    x = torch.linspace(-30, 30, 10_001, dtype=dtype)
    bounds = activation_range(activation, Interval(x[:-1], x[1:]))
    exact = FUNCTIONS[activation][0](x.double())
    for y in (FUNCTIONS[activation][0](x), exact):
        assert bool((bounds.lower <= y[:-1]).all() and (bounds.upper >= y[1:]).all())


def test_a_reduced_network_without_its_interval_biases_is_noticed():
    original, inputs = network(9, "sigmoid"), box(9, batch=1, radius=1.0)
    reduced, _ = reduce_network(original, inputs, NeuronMerging(rate=0.3))
    broken = ReducedNetwork([replace(layer, radius=None) for layer in reduced.layers], (6,))
    outputs = original(inputs.sample(200)[:, 0])
    check_contains_samples(reduced.bound(inputs).interval_hull(), outputs)
    with pytest.raises(AssertionError, match="outside its bounds"):
        check_contains_samples(broken.bound(inputs).interval_hull(), outputs)


@pytest.mark.parametrize("last", [None, "relu"])
@settings(max_examples=40)
@given(st.floats(0.1, 0.9), st.integers(0, 10**6))
def test_a_specification_in_the_last_layer_is_tighter_than_behind_it(last, rate, seed):
    *layers, output = network(seed, "relu", radius=True).layers
    original, inputs = ReducedNetwork([*layers, replace(output, activation=last)], (6,)), box(seed, batch=1)
    rows = torch.randn(3, 4, dtype=torch.float64)
    asked = original.followed_by(rows)
    points = inputs.sample(20)[:, 0]
    torch.testing.assert_close(asked(points), original(points) @ rows.T)
    _, inner = reduce_network(asked, inputs, NeuronMerging(rate=rate))
    noise = (2 * torch.rand(20, original.num_noise, dtype=torch.float64) - 1).sign()
    check_contains_samples(inner.interval_hull(), original(points, noise) @ rows.T)
    if last is None:
        _, outer = reduce_network(original, inputs, NeuronMerging(rate=rate))
        assert bool((inner.interval_hull().upper[0] <= outer.support(rows)[0] + 1e-9).all())


def test_mistakes_are_explained():
    with pytest.raises(SettingError, match="follows a value of size 5"):
        ReducedNetwork([Layer(torch.zeros(2, 3), torch.zeros(2))], (5,))
    with pytest.raises(SettingError, match="needs images"):
        reduce_network(
            network(0, "relu"), box(0), NeuronMerging(rate=0.5), InputCompression(NeuronMerging(rate=0.5), 2)
        )
