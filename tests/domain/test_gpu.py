"""A GPU computes what the CPU does: blocks, maps, sums, streamed columns, walks; and what is off while it must."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zonoplug.domain.blocks import DiagonalBlock
from zonoplug.domain.convolutions import Convolution, TransposedConvolution
from zonoplug.domain.input_sets import Box
from zonoplug.domain.linear_maps import MatrixMap
from zonoplug.domain.rounding import rounding
from zonoplug.domain.streaming import memory_limit
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope, add_zonotopes
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import build, forward_propagation

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
FLAGS = [
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "enabled"),
]


def flags():
    return [getattr(place, name) for place, name in FLAGS]


@pytest.fixture
def all_on():
    """Every loose setting on, as a user may have it, and back to what it was."""
    before = flags()
    for place, name in FLAGS:
        setattr(place, name, True)
    yield
    for (place, name), value in zip(FLAGS, before, strict=True):
        setattr(place, name, value)


@pytest.mark.usefixtures("all_on")
@pytest.mark.parametrize("mode", ["outward", "inference"])
def test_loose_arithmetic_is_off_while_rounding_is_covered(monkeypatch, mode):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with rounding("nearest"):
        assert flags() == [True] * 5
    with rounding(mode):
        assert flags() == [False] * 5
    assert flags() == [True] * 5
    with pytest.raises(KeyError), rounding(mode):
        raise KeyError
    assert flags() == [True] * 5


def on(device, limit_bytes=None):
    """Center, radius and generators of a zonotope that went through every kind of map, a fork and a sum."""
    random = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=random, dtype=torch.float64).to(device)

    index = torch.stack([torch.randperm(72, generator=random)[:9] for _ in range(2)]).to(device)
    source = SymbolSource()
    block = DiagonalBlock(source.fresh("x", index), normal(2, 9), index, (2, 6, 6))
    with memory_limit(limit_bytes):
        x = Zonotope(normal(2, 2, 6, 6), (block,))
        x = x.map(Convolution(normal(4, 2, 3, 3), [1, 1], [1, 1], [1, 1], 1)).scale(normal(2, 4, 6, 6))
        x = x.with_fresh_symbols(normal(2, 4, 6, 6).abs(), source, "y")
        branch = x.map(Convolution(normal(4, 2, 3, 3), [1, 1], [1, 1], [1, 1], 2))
        x = add_zonotopes(x, branch).map(Convolution(normal(4, 4, 3, 3), [2, 2], [1, 1], [1, 1], 1))
        x = x.map(TransposedConvolution(normal(4, 2, 2, 2), [2, 2], [0, 0], [0, 0], [1, 1], 1))
        x = x.reshape((72,)).map(MatrixMap(normal(5, 72)), normal(5))
        return [part.cpu() for part in (x.center, x.radius(), x.generators(), x.support(normal(3, 5)))]


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("limit_bytes", [None, 20_000])
def test_blocks_on_the_gpu_equal_those_on_the_cpu(limit_bytes):
    torch.testing.assert_close(on("cuda", limit_bytes), on("cpu"), rtol=1e-9, atol=1e-9)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["nearest", "outward"])
def test_propagations_on_the_gpu_equal_those_on_the_cpu(mode):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 20), nn.ReLU(),
                            nn.Linear(20, 3)).double()  # fmt: skip
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    method = BoundMethod.parse("zonotope")
    expected = forward_propagation(build(network, x[:1]), [Box.ball(x, 0.1)], method, rounding=mode).bounds
    module = build(network, x[:1], device="cuda")
    found = forward_propagation(module, [Box.ball(x.cuda(), 0.1)], method, rounding=mode).bounds
    torch.testing.assert_close([side.cpu() for side in found], list(expected), rtol=1e-9, atol=1e-9)


def test_a_limit_gives_the_same_through_every_kind_of_map():
    torch.testing.assert_close(on("cpu", 20_000), on("cpu"), rtol=1e-9, atol=1e-9)
