"""Layers too large for memory are streamed in chunks of symbols, with the same pre-activation bounds and bounds."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.input_sets import Box
from zonoplug.domain.linear_maps import Scaling
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.streaming import StreamedBlock, memory_limit
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import propagate
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import build, forward_propagation
from zonoplug.lirpa.perturbations import bounded_input
from zonoplug.transformers.affine import concatenate


class Residual(nn.Module):
    """Two blocks with a skip connection each; the second skips over a layer of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4 * 36, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        x = torch.relu(self.c(x) + self.d(x))
        return self.last(x.flatten(1))


class Concatenated(nn.Module):
    """Branches of different depth, joined along an axis."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 9), nn.Linear(9, 7), nn.Linear(16, 4)

    def forward(self, x):
        left = torch.relu(self.a(x))
        right = torch.relu(self.b(left))
        return self.c(torch.cat([left, right], dim=1))


def chain():
    layers = [module for _ in range(3) for module in (nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(12, 5))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AvgPool2d(2, 1), nn.ConvTranspose2d(4, 3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(),
        nn.Linear(20, 5),
    )  # fmt: skip


NETWORKS = {
    "chain": (chain, (12,)),
    "convolutions": (convolutions, (2, 6, 6)),
    "residual": (Residual, (2, 6, 6)),
    "concatenation": (Concatenated, (12,)),
}


def network(name, batch=2, dtype=torch.float64):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = make().to(dtype).eval()
    x = torch.rand(batch, *shape, dtype=dtype)
    return build(module, x[:1]), Box.ball(x, 0.1)


@pytest.fixture
def streamed(monkeypatch):
    """How many symbols each chunk held, over the test."""
    sizes = []
    chunks = StreamedBlock.chunks

    def counted(self):
        for start, ids, blocks in chunks(self):
            sizes.append(len(ids))
            yield start, ids, blocks

    monkeypatch.setattr(StreamedBlock, "chunks", counted)
    return sizes


@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_streamed_propagations_find_the_same_bounds_and_bounds(name, share, streamed):
    """With a limit of a share of the largest zonotope's dense generators; 0 for one symbol at a time."""
    module, box = network(name)
    method = BoundMethod.parse("zonotope")
    rows = torch.randn(2, 3, forward_propagation(module, [box], method).output.center[0].numel(), dtype=torch.float64)
    plain = forward_propagation(module, [box], method, rows)
    assert not streamed
    limit_bytes = max(
        1, int(share * 8 * plain.output.num_symbols * max(h.lower.numel() for h in plain.preactivations.values()))
    )
    limited = forward_propagation(module, [box], method, rows, limit_bytes=limit_bytes)
    assert streamed
    assert share or max(streamed) == 1
    for node, hull in plain.preactivations.items():
        torch.testing.assert_close(tuple(limited.preactivations[node]), tuple(hull), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tuple(limited.bounds), tuple(plain.bounds), rtol=1e-9, atol=1e-9)
    assert torch.equal(limited.output.symbols, plain.output.symbols)
    torch.testing.assert_close(limited.output.generators(), plain.output.generators())


def test_a_limit_that_is_never_reached_changes_nothing(streamed):
    module, box = network("residual")
    plain = forward_propagation(module, [box], BoundMethod.parse("zonotope"))
    roomy = forward_propagation(module, [box], BoundMethod.parse("zonotope"), limit_bytes=2**30)
    assert not streamed
    assert torch.equal(plain.bounds.lower, roomy.bounds.lower)


def test_it_is_an_option_of_compute_bounds(streamed):
    module, box = network("convolutions", batch=1)
    plain = module.compute_bounds((bounded_input(box),), method="zonotope")
    limited = module.compute_bounds((bounded_input(box),), method="zonotope", limit_bytes=4_000)
    assert streamed
    torch.testing.assert_close(limited, plain)


@pytest.mark.parametrize("rounding", ["outward", "inference"])
def test_rounding_is_covered_while_streaming(rounding, streamed):
    """The bounds in float32 contain those in float64, and are as wide as without streaming."""
    module, box = network("residual", dtype=torch.float32)
    exact_module, _ = network("residual")
    exact_box = Box(box.lower.double(), box.upper.double())
    method = BoundMethod.parse("zonotope")
    plain = forward_propagation(module, [box], method, rounding=rounding).bounds
    limited = forward_propagation(module, [box], method, rounding=rounding, limit_bytes=5_000).bounds
    exact = forward_propagation(exact_module, [exact_box], method).bounds
    assert streamed
    assert bool((limited.lower.double() <= exact.lower).all() & (limited.upper.double() >= exact.upper).all())
    torch.testing.assert_close(limited.upper - limited.lower, plain.upper - plain.lower, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["residual", "concatenation"])
def test_symbols_of_a_ball_stay_in_memory_and_the_bounds_the_same(name):
    module, box = network(name)
    ball = LpBall(box.lower, 0.3, 2.0)
    plain = forward_propagation(module, [ball], BoundMethod.parse("zonotope"))
    limited = forward_propagation(module, [ball], BoundMethod.parse("zonotope"), limit_bytes=5_000)
    torch.testing.assert_close(tuple(limited.bounds), tuple(plain.bounds), rtol=1e-9, atol=1e-9)


def test_gradients_of_slopes_flow_through_streamed_layers(streamed):
    module, box = network("concatenation")
    relus = {node.name: node.inputs[0].name for node in module._modules.values() if type(node).__name__ == "BoundRelu"}

    def gradients(limit_bytes):
        source = SymbolSource()
        inputs = {module.input_name[0]: box.to_zonotope(source, module.input_name[0])}
        slopes = {name: torch.full_like(shapes[before].lower, 0.4).requires_grad_() for name, before in relus.items()}
        options = PropagationOptions(limit_bytes=limit_bytes)
        propagate(module, inputs, source, options, slopes=slopes).bounds.lower.sum().backward()
        return {name: slope.grad for name, slope in slopes.items()}

    shapes = forward_propagation(module, [box], BoundMethod.parse("zonotope")).preactivations
    plain = gradients(None)
    assert not streamed
    limited = gradients(2_000)
    assert streamed
    assert all(bool(gradient.any()) for gradient in plain.values())
    torch.testing.assert_close(limited, plain)


@pytest.mark.parametrize("axis", [1, -1, -3])
def test_streamed_values_are_concatenated_with_others_and_with_constants(axis):
    box, constant = network("residual")[1], torch.randn(1, 2, 6, 6, dtype=torch.float64)

    def joined(limit_bytes):
        with memory_limit(limit_bytes):
            x = box.to_zonotope(SymbolSource(), "x")
            scaled = x.map(Scaling(torch.full((1, 2, 6, 6), 3.0, dtype=torch.float64)))
            return concatenate([scaled, constant, x], axis)

    limited, plain = joined(2_000), joined(None)
    assert any(isinstance(block, StreamedBlock) for block in limited.blocks)
    torch.testing.assert_close(limited.center, plain.center)
    torch.testing.assert_close(limited.radius(), plain.radius())
    torch.testing.assert_close(limited.generators(), plain.generators())


def test_a_block_keeps_the_limit_it_was_made_under():
    box = network("residual")[1]
    with memory_limit(2_000):
        image = box.to_zonotope(SymbolSource(), "x").map(Scaling(torch.ones(1, 2, 6, 6, dtype=torch.float64)))
    (block,) = image.blocks
    assert isinstance(block, StreamedBlock)
    assert sum(1 for _ in block.chunks()) > 1


def test_zonotopes_are_freed_after_their_last_reader(monkeypatch):
    """When a layer has mapped its generators those of the layers before are gone; at the end the output's are left."""
    module, box = network("chain")
    alive, most = [], 0
    original = Zonotope.map

    def watched(self, linear, offset=None):
        nonlocal most
        image = original(self, linear, offset)
        alive.extend(weakref.ref(block.generators) for block in image.blocks if isinstance(block, DenseBlock))
        most = max(most, sum(ref() is not None for ref in alive))
        return image

    monkeypatch.setattr(Zonotope, "map", watched)
    propagation = forward_propagation(module, [box], BoundMethod.parse("zonotope"))
    assert len(alive) == 7
    assert most == 1
    assert sum(ref() is not None for ref in alive) == 1
    assert propagation.output.num_symbols


def test_a_fork_keeps_its_value_until_its_last_reader_and_no_longer(monkeypatch):
    module, box = network("residual")
    alive, counts = [], []
    original = Zonotope.scale

    def watched(self, factor, offset=None):
        image = original(self, factor, offset)
        alive.append(weakref.ref(image.center))
        counts.append(sum(ref() is not None for ref in alive))
        return image

    monkeypatch.setattr(Zonotope, "scale", watched)
    forward_propagation(module, [box], BoundMethod.parse("zonotope"))
    # One ReLU's scaled center in front of the fork, which stays while the branch is propagated; then those behind it.
    assert len(counts) == 4
    assert max(counts) <= 2


def test_only_unstable_neurons_get_symbols():
    module, box = network("residual")
    propagation = forward_propagation(module, [box], BoundMethod.parse("zonotope"))
    for origin in propagation.symbols.origins[1:]:
        reader = module[origin.node]
        lower, upper = propagation.preactivations[reader.inputs[0].name]
        unstable = ((lower < 0) & (upper > 0)).flatten(1)
        assert origin.count == int(unstable.sum(dim=1).max()) < unstable.shape[1]
        for element, index in zip(unstable, origin.index, strict=True):
            count = int(element.sum())
            assert sorted(index[:count].tolist()) == element.nonzero()[:, 0].tolist()
