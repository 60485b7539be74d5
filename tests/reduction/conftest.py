"""Small networks with branches, and a way to bound them by any reduction."""

from __future__ import annotations

import functools
from itertools import pairwise

import pytest
import torch
from torch import nn

from zonoplug.domain.input_sets import Box
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import bound_set, build


class Forked(nn.Module):
    """Two branches that share symbols meet twice: once in a sum, once side by side."""

    def __init__(self, width=6):
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, width)
        self.second, self.last = nn.Linear(2 * width, width), nn.Linear(width, 3)

    def forward(self, x):
        trunk = torch.relu(self.first(x))
        left, right = torch.relu(self.left(trunk)), torch.tanh(self.right(trunk))
        joined = torch.cat([trunk - left, right + trunk], dim=1)
        return self.last(torch.relu(self.second(joined)))


@pytest.fixture(scope="session")
def forked():
    """A function: a forked module in a type, and a box of a batch of inputs around 0; each is built once."""

    @functools.cache
    def make(seed=0, batch=2, dtype=torch.float64, radius=0.5):
        torch.manual_seed(seed)
        net = Forked().to(dtype)
        center = torch.randn(batch, 4, dtype=dtype)
        return net, build(net, center[:1]), Box(center - radius, center + radius)

    return make


@pytest.fixture
def chain():
    """A function: a plain ReLU network of a given depth, and a box."""

    def make(depth=3, width=12, seed=0, radius=0.3):
        torch.manual_seed(seed)
        sizes = [5, *[width] * depth]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        net = nn.Sequential(*layers, nn.Linear(width, 3)).double()
        center = torch.randn(1, 5, dtype=torch.float64)
        return net, build(net, center), Box(center - radius, center + radius)

    return make


@pytest.fixture
def bound():
    """A function: bounds and propagation of a module on a box by a method's name."""

    def run(module, box, method, rows=None, **options):
        with torch.no_grad():
            return bound_set(module, box, BoundMethod.parse(method), rows, **options)

    return run
