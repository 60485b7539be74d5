"""Small networks whose true behaviour over a box can be found by trying."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from zonoplug.explain.decision import Decision
from zonoplug.explain.region import Region


@pytest.fixture
def make_network():
    """A function that makes random ReLU networks in float64: (batch, inputs) to (batch, outputs)."""

    def make(inputs=4, outputs=3, hidden=(6, 5), seed=0):
        torch.manual_seed(seed)
        sizes = [inputs, *hidden]
        layers = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs)).double().eval().requires_grad_(False)

    return make


@pytest.fixture
def make_region(make_network):
    """A function that makes a network, a point that is not in the middle of its box, and the network's decision."""

    def make(inputs=4, seed=0, radius=0.3, **options):
        network = make_network(inputs, seed=seed, **options)
        random = torch.Generator().manual_seed(seed)
        point = torch.rand(1, inputs, generator=random, dtype=torch.float64)
        region = Region.ball(point, radius, 0.1, 0.9)
        outputs = network(point)
        return network, region, Decision.between_classes(outputs.argmax(dim=1), outputs.shape[1], outputs)

    return make


@pytest.fixture
def extremes():
    """A function: points of a box (1, n) that are likely to be extreme: all vertices, and random ones."""

    def points(box, count=300, seed=0):
        random = torch.Generator().manual_seed(seed)
        n = box.lower.shape[1]
        corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=box.lower.dtype)
        shares = torch.cat([corners, torch.rand(count, n, generator=random, dtype=box.lower.dtype)])
        return torch.minimum(box.lower + shares * (box.upper - box.lower), box.upper)

    return points
