"""Outward rounding against exact rational arithmetic, on networks where rounding to nearest is shown to fail."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from zonoplug.domain import rounding
from zonoplug.domain.input_sets import Box
from zonoplug.errors import SettingError
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import bound_box, build

ZONOTOPE = BoundMethod.parse("zonotope")


def network(kind, seed, dtype=torch.float32):
    """A fully connected ReLU network whose rounding errors are large for its outputs."""
    random = torch.Generator().manual_seed(seed)
    sizes = [4, 9, 9, 3]
    layers = []
    for a, b in zip(sizes, sizes[1:]):  # noqa: B905, RUF007 - neighbours
        layer = nn.Linear(a, b)
        layer.weight.data = torch.randn(b, a, generator=random)
        layer.bias.data = torch.randn(b, generator=random)
        if kind == "huge biases":
            layer.bias.data *= 1e6
        elif kind == "cancellation":
            layer.weight.data[:, 0] = 1e5 * layer.weight.data[:, 0].sign()
            layer.weight.data[:, 1] = -layer.weight.data[:, 0]
        elif kind == "subnormals":
            layer.weight.data *= 1e-15
            layer.bias.data *= 1e-38
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def exactly(module, point):
    """The network's outputs on a point, in rational arithmetic."""
    values = [Fraction(float(x)) for x in point]
    for layer in module:
        if isinstance(layer, nn.ReLU):
            values = [max(v, Fraction(0)) for v in values]
        else:
            rows, bias = layer.weight.tolist(), layer.bias.tolist()
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b))
                for row, b in zip(rows, bias, strict=True)
            ]
    return values


def escapes(module, box, mode):
    """How many exact outputs at sampled points and at the box's middle lie outside the bounds."""
    bounds, _ = bound_box(build(module, box.lower[:1]), box, ZONOTOPE, rounding=mode)
    lower = [Fraction(float(v)) if v > -torch.inf else None for v in bounds.lower[0].detach()]
    upper = [Fraction(float(v)) if v < torch.inf else None for v in bounds.upper[0].detach()]
    count = 0
    for point in box.sample(12)[:, 0]:
        for value, low, high in zip(exactly(module, point), lower, upper, strict=True):
            count += (low is not None and value < low) or (high is not None and value > high)
    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["outward", "inference"])
@pytest.mark.parametrize("radius", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("kind", ["random", "huge biases", "cancellation", "subnormals"])
def test_exact_outputs_never_escape_outward_bounds(kind, radius, mode, dtype):
    for seed in range(6):
        center = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
        assert escapes(network(kind, seed, dtype), Box.ball(center, radius), mode) == 0


@pytest.mark.parametrize("kind", ["random", "huge biases", "cancellation"])
def test_rounding_to_nearest_does_lose_exact_outputs(kind):
    """So the law above can fail: on the same networks nearest bounds are wrong somewhere."""
    lost = sum(escapes(network(kind, seed), Box.ball(torch.randn(1, 4), 0.0), "nearest") for seed in range(6))
    assert lost > 0


@pytest.mark.parametrize("kind", ["random", "huge biases", "cancellation"])
def test_inference_mode_covers_what_float32_evaluation_gives(kind):
    for seed in range(6):
        module = network(kind, seed)
        box = Box.ball(torch.randn(1, 4, generator=torch.Generator().manual_seed(seed)), 1e-7)
        bounds, _ = bound_box(build(module, box.lower), box, ZONOTOPE, rounding="inference")
        with torch.no_grad():
            outputs = module(box.sample(200)[:, 0])
        assert bool(((outputs >= bounds.lower) & (outputs <= bounds.upper)).all())


def test_outward_bounds_are_a_little_wider_not_much():
    module = network("random", 0)
    box = Box.ball(torch.zeros(1, 4), 0.1)
    host = build(module, box.lower)
    nearest, _ = bound_box(host, box, ZONOTOPE)
    outward, _ = bound_box(host, box, ZONOTOPE, rounding="outward")
    assert bool((outward.lower <= nearest.lower).all() & (outward.upper >= nearest.upper).all())
    width = (nearest.upper - nearest.lower).max()
    assert float((outward.upper - nearest.upper).abs().max()) < 1e-4 * width


def test_the_mode_ends_with_its_block_and_gamma_is_the_textbooks():
    with rounding.rounding("outward"):
        assert rounding.active()
    assert not rounding.active()
    unit = Fraction(1, 2**24)
    assert abs(Fraction(rounding.gamma(100, torch.float32)) - 100 * unit / (1 - 100 * unit)) < Fraction(1, 10**15)
    assert rounding.gamma(2**24, torch.float32) == float("inf")


def test_the_hosts_backward_bounds_cannot_cover_rounding():
    box = Box.ball(torch.zeros(1, 4), 0.1)
    host = build(network("random", 0), box.lower)
    with pytest.raises(SettingError, match="cannot cover rounding"):
        bound_box(host, box, BoundMethod.parse("zonotope+crown"), rounding="outward")
    with pytest.raises(SettingError, match="nearest, outward, inference"):
        bound_box(host, box, ZONOTOPE, rounding="upwards")
