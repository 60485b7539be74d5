"""Shared by all tests: one thread, quiet, reproducible."""

from __future__ import annotations

import pytest
import torch
from helpers import counted_time, network_files
from hypothesis import HealthCheck, settings

from zonoplug.domain.blocks import DenseBlock, DiagonalBlock
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope

torch.set_num_threads(1)
settings.register_profile("zonoplug", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("zonoplug")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def counted(monkeypatch) -> counted_time.CountedTime:
    """No search reads the real time, except in processes of its own."""
    return counted_time.count_time(monkeypatch)


@pytest.fixture
def make_zonotope():
    """A function that makes random zonotopes with dense and diagonal blocks and perhaps a box."""

    def make(shape=(5,), batch=2, dense=4, diagonal=3, box=True, dtype=torch.float64, seed=0, source=None):
        random = torch.Generator().manual_seed(seed)
        source = source or SymbolSource()

        def normal(*size):
            return torch.randn(*size, generator=random, dtype=dtype)

        n = int(torch.tensor(shape).prod())
        blocks = []
        if dense:
            blocks.append(
                DenseBlock(
                    source.fresh("dense", torch.zeros(batch, dense, dtype=torch.int64)), normal(batch, dense, *shape)
                )
            )
        if diagonal:
            index = torch.stack([torch.randperm(n, generator=random)[:diagonal] for _ in range(batch)])
            blocks.append(DiagonalBlock(source.fresh("diagonal", index), normal(batch, diagonal), index, tuple(shape)))
        radius = normal(batch, *shape).abs() if box else None
        return Zonotope(normal(batch, *shape), tuple(blocks), radius)

    return make


@pytest.fixture
def absolute_difference(tmp_path):
    """y = |x0 - x1| as a network; its files' paths come from the returned function for any assertions."""
    network = network_files.write_network(tmp_path / "abs.onnx", [([[1, -1], [-1, 1]], [0, 0]), ([[1, 1]], [0])])

    def instance(*assertions, lower=(0, 0), upper=(1, 1)):
        return network, network_files.write_specification(tmp_path / "spec.vnnlib", lower, upper, 1, assertions)

    return instance
