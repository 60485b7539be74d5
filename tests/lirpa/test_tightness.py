"""No looser than interval arithmetic, whatever the network; bounds from elsewhere count; combined methods gain."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import HostError, SettingError
from zonoplug.lirpa import compat
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_set, walk
from zonoplug.lirpa.perturbations import bounded_input
from zonoplug.lirpa.propagate import WalkOptions, propagate
from zonoplug.testing import check_contains_samples, tolerance

WIDTH, OUTPUTS = 6, 4
ONE = {
    "relu": torch.relu, "leaky relu": lambda x: nn.functional.leaky_relu(x, 0.2), "abs": torch.abs,
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exp": lambda x: torch.exp(-torch.relu(x)),
    "square": lambda x: x**2, "cube": lambda x: (0.3 * x) ** 3, "square root": lambda x: torch.sqrt(torch.abs(x) + 0.1),
    "reciprocal": lambda x: 1 / (torch.sigmoid(x) + 0.2), "sine": torch.sin, "arctan": torch.atan,
    "hard tanh": nn.functional.hardtanh, "softmax": lambda x: torch.softmax(x, dim=1),
    "log": lambda x: torch.log(torch.sigmoid(x) + 0.3), "twice": lambda x: torch.relu(torch.relu(x) - 0.1),
}  # fmt: skip
TWO = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "concatenate": lambda x, y: torch.cat([x, y], dim=1)[:, 2 : 2 + WIDTH],
    "divide": lambda x, y: x / (torch.sigmoid(y) + 0.5),
    "maximum": torch.maximum,
}


class Mixed(nn.Module):
    """A random network: each value is a linear layer and a function of an earlier value, or joins two of them."""

    def __init__(self, seed, depth):
        super().__init__()
        random = torch.Generator().manual_seed(seed)

        def pick(count):
            return int(torch.randint(0, count, (1,), generator=random))

        self.plan = [
            (pick(k + 1), pick(k + 1), list(ONE)[pick(len(ONE))], list(TWO)[pick(len(TWO))] if pick(3) == 0 else None)
            for k in range(depth)
        ]
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.last = nn.Linear(WIDTH, OUTPUTS)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random) * 0.7

    def forward(self, x):
        values = [x]
        for (a, b, one, two), layer in zip(self.plan, self.layers, strict=True):
            value = ONE[one](layer(values[a]))
            values.append(value if two is None else TWO[two](value, values[b]))
        return self.last(values[-1])


class Images(nn.Module):
    """Convolutions, batch norm, skips, both poolings."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(12, OUTPUTS)

    def forward(self, x):
        y = torch.relu(self.norm(self.first(x)))
        y = torch.relu(self.second(y)) + y
        return self.last(nn.functional.max_pool2d(nn.functional.avg_pool2d(y, 2), 2).flatten(1))


def host_of(module, shape, dtype=torch.float64):
    module = module.to(dtype).eval()
    try:
        return compat.build(module, torch.zeros(1, *shape, dtype=dtype), module_class=ZonotopeModule)
    except HostError:
        return None


def check_inside_interval_arithmetic(module, shape, radius, seed, dtype=torch.float64):
    """Bounds of the outputs and of C y by every kind of walk lie inside the host's IBP bounds."""
    host = host_of(module, shape, dtype)
    if host is None:
        return 0
    random = torch.Generator().manual_seed(seed)
    box = Box.ball(torch.randn(3, *shape, generator=random, dtype=dtype), radius)
    per_element = torch.randn(3, 2, OUTPUTS, generator=random, dtype=dtype)
    compared = 0
    for rows in (None, per_element, per_element[:1]):
        try:
            full = None if rows is None else rows.expand(3, -1, -1)
            lower, upper = host.compute_bounds((bounded_input(box),), C=full, method="IBP")
        except Exception:
            continue  # the host has no interval rule for one of the operators
        for name in ("zonotope", "zonotope[girard,3]", "zonotope[box,0]"):
            for rounding in ("nearest", "outward", "inference"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    bounds, _ = bound_set(host, box, BoundMethod.parse(name), rows, rounding)
                known = lower.isfinite() & upper.isfinite()
                allowed = (256 if rounding == "nearest" else 4096) * tolerance(lower[known], upper[known], lower[:0])
                assert bool((bounds.lower >= lower - allowed)[known].all()), (name, rounding, rows is None)
                assert bool((bounds.upper <= upper + allowed)[known].all()), (name, rounding, rows is None)
                compared += int(known.sum())
        if rows is None:
            with torch.no_grad():
                check_contains_samples(bounds, module(box.sample(200).flatten(0, 1)).unflatten(0, (200, 3)))
    return compared


compared_in_all = []


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 5), radius=st.sampled_from([0.01, 0.3, 2.0]))
def test_no_looser_than_interval_arithmetic(seed, depth, radius):
    compared_in_all.append(check_inside_interval_arithmetic(Mixed(seed, depth), (WIDTH,), radius, seed))


def test_many_networks_were_compared():
    if compared_in_all:
        assert sum(count > 0 for count in compared_in_all) >= len(compared_in_all) / 3


@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
def test_no_looser_than_interval_arithmetic_on_images(radius):
    assert check_inside_interval_arithmetic(Images(), (1, 8, 8), radius, 0) > 0
