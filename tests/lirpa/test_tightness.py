"""No looser than interval arithmetic, whatever the network; caller-supplied bounds count; combined methods gain."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import HostError, SettingError
from zonoplug.lirpa import compat
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import propagate
from zonoplug.lirpa.forward.slope_ranges import slope_range
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_set, forward_propagation
from zonoplug.lirpa.operators.table import TRANSFORMERS, Call
from zonoplug.lirpa.perturbations import bounded_input
from zonoplug.testing import Function, check_contains_samples, tolerance

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
    """Bounds of the outputs and of C y by every kind of propagation lie inside the host's IBP bounds."""
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
            with compat.working_in(dtype):
                lower, upper = host.compute_bounds((bounded_input(box),), C=full, method="IBP")
        except Exception:
            continue  # the host has no interval rule for one of the operators
        for name in ("zonotope", "zonotope[girard,3]", "zonotope[box,0]"):
            for rounding in ("nearest", "outward", "inference"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    bounds, _ = bound_set(host, box, BoundMethod.parse(name), rows, rounding)
                known = lower.isfinite() & upper.isfinite()
                unit = lower.dtype if compat.IS_0_3 else torch.float32  # 0.7 computes some intervals in float32
                allowed = (256 if rounding == "nearest" else 4096) * tolerance(lower[known].to(unit))
                assert bool((bounds.lower >= lower - allowed)[known].all()), (name, rounding, rows is None)
                assert bool((bounds.upper <= upper + allowed)[known].all()), (name, rounding, rows is None)
                compared += int(known.sum())
        if rows is None:
            with torch.no_grad():
                check_contains_samples(bounds, module(box.sample(200).flatten(0, 1)).unflatten(0, (200, 3)))
    return compared


compared_in_all = []


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 5), radius=st.sampled_from([0.01, 0.3, 2.0]))
def test_no_looser_than_interval_arithmetic(seed, depth, radius):
    compared_in_all.append(check_inside_interval_arithmetic(Mixed(seed, depth), (WIDTH,), radius, seed))


def test_many_networks_were_compared():
    if compared_in_all:
        assert sum(count > 0 for count in compared_in_all) >= len(compared_in_all) / 3


@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
def test_no_looser_than_interval_arithmetic_on_images(radius):
    assert check_inside_interval_arithmetic(Images(), (1, 8, 8), radius, 0) > 0


def two_layers():
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 5), nn.Sigmoid(), nn.Linear(5, 2))
    host = host_of(module, (3,), torch.float32)
    box = Box.ball(torch.zeros(2, 3), 1.0)
    return module, host, box


@pytest.mark.parametrize("argument", [compat.intermediate_bounds_argument(), "reference_bounds"])
@pytest.mark.parametrize("method", ["zonotope", "alpha-zonotope", "zonotope+crown", "zonotope[box,0]"])
def test_tighter_bounds_from_elsewhere_are_used_and_looser_ones_do_no_harm(method, argument):
    module, host, box = two_layers()
    name = next(node.inputs[0].name for node in host._modules.values() if type(node).__name__ == "BoundSigmoid")
    points = torch.cat(
        [box.sample(4000), torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)[:, None].expand(8, 2, 3)]
    )
    with torch.no_grad():
        hidden, outputs = module[:3](points), module(points)
    reached = (hidden.amin(dim=0) - 0.05, hidden.amax(dim=0) + 0.05)  # holds for this network: it hardly bends
    plain = Interval(*host.compute_bounds((bounded_input(box),), method=method))
    tight = Interval(*host.compute_bounds((bounded_input(box),), method=method, **{argument: {name: reached}}))
    loose = {name: (reached[0] - 100, reached[1] + 100)}
    same = Interval(*host.compute_bounds((bounded_input(box),), method=method, **{argument: loose}))
    check_contains_samples(tight, outputs)
    assert float((tight.upper - tight.lower).mean()) < float((plain.upper - plain.lower).mean())
    torch.testing.assert_close(same.lower, plain.lower, atol=1e-6, rtol=0)


def test_bounds_from_elsewhere_that_do_not_fit_are_named():
    _, host, box = two_layers()
    nothing = (torch.zeros(2, 5), torch.zeros(2, 5))
    with pytest.raises(SettingError, match="'/nowhere', which the graph lacks"):
        host.compute_bounds((bounded_input(box),), method="zonotope", reference_bounds={"/nowhere": nothing})
    name = next(node.inputs[0].name for node in host._modules.values() if type(node).__name__ == "BoundSigmoid")
    with pytest.raises(SettingError, match=r"shapes \(2, 4\)"):
        bad = (torch.zeros(2, 4), torch.zeros(2, 4))
        host.compute_bounds((bounded_input(box),), method="zonotope", reference_bounds={name: bad})


def test_known_bounds_of_the_output_bound_the_output():
    _, host, box = two_layers()
    outer = Interval(torch.full((2, 2), -0.01), torch.full((2, 2), 0.01))
    bounds = forward_propagation(host, [box], BoundMethod.parse("zonotope"), known={host.final_name: outer}).bounds
    assert bool((bounds.lower >= outer.lower).all() & (bounds.upper <= outer.upper).all())


@pytest.mark.parametrize("seed", range(4))
def test_full_combined_methods_are_no_looser_than_the_zonotope_and_gain_on_average(seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)]
    module = nn.Sequential(*layers).double()
    host = host_of(module, (4,))
    box = Box.ball(torch.randn(5, 4, dtype=torch.float64), 0.6)
    width, lower = {}, {}
    for name in ("zonotope", "crown", "zonotope+crown", "zonotope+full-crown"):
        bounds, _ = bound_set(host, box, BoundMethod.parse(name))
        width[name], lower[name] = float((bounds.upper - bounds.lower).mean()), bounds.lower
        with torch.no_grad():
            check_contains_samples(bounds, module(box.sample(500).flatten(0, 1)).unflatten(0, (500, 5)))
    for name in ("zonotope+crown", "zonotope+full-crown"):
        assert bool((lower[name] >= lower["zonotope"]).all())
    assert width["zonotope+full-crown"] <= min(width["zonotope+crown"], width["crown"]) + 1e-9


SLOPED = {name: function for name, function in ONE.items() if name not in ("softmax", "abs", "relu")} | {
    "abs": torch.abs, "relu": torch.relu, "cosine": torch.cos, "clip": lambda x: x.clamp(-0.2, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOPED)
def test_slopes_of_every_relaxation_are_optimised_soundly(name):
    """Behind the function two layers mix its symbols, so that other slopes than the narrowest bands' may be better."""
    torch.manual_seed(3)
    layers = [nn.Linear(2, 8), Function(SLOPED[name]), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
    module = nn.Sequential(*layers).double()
    host = host_of(module, (2,))
    if host is None:
        pytest.skip("the host cannot build it")
    box = Box.ball(torch.randn(3, 2, dtype=torch.float64), 1.0)
    seen = []

    def observe(transformer, call):
        found = slope_range(transformer, call)
        if found is not None:
            assert bool((found.low <= found.own).all() & (found.own <= found.high).all())
            seen.append(type(call.node).__name__)

    source = SymbolSource()
    inputs = {host.input_name[0]: box.to_zonotope(source, "x")}
    propagate(host, inputs, source, PropagationOptions(), observe=observe)
    assert seen
    plain, _ = bound_set(host, box, BoundMethod.parse("zonotope"))
    best, _ = bound_set(host, box, BoundMethod.parse("alpha-zonotope"))
    assert bool((best.lower >= plain.lower).all() & (best.upper <= plain.upper).all())
    assert float((best.upper - best.lower).sum()) < float((plain.upper - plain.lower).sum()) - 1e-6
    with torch.no_grad():
        check_contains_samples(best, module(box.sample(2000).flatten(0, 1)).unflatten(0, (2000, 3)))


RANGES = {
    "BoundSigmoid": (torch.sigmoid, -3.0, 2.0),
    "BoundTanh": (torch.tanh, -1.0, 2.0),
    "BoundRelu": (torch.relu, -5.0, 0.1),
    "BoundExp": (torch.exp, -1.0, 1.0),
    "BoundReciprocal": (torch.reciprocal, 0.5, 2.0),
    "BoundAbs": (torch.abs, -1.0, 2.0),
}


@pytest.mark.parametrize("kind", RANGES)
def test_slopes_range_over_the_derivatives_on_the_hull(kind):
    function, low, high = RANGES[kind]
    hull = Interval(torch.full((1, 1), low).double(), torch.full((1, 1), high).double())
    node = SimpleNamespace(name="node", attr={}, inputs=())
    call = Call(node, [Zonotope(hull.lower)], SymbolSource(), [hull])
    found = slope_range(TRANSFORMERS[kind].transformer, call)
    x = torch.linspace(low, high, 4001, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(function(x).sum(), x)
    allowed = 0.1 * float(derivative.abs().max())
    assert abs(float(found.low) - float(derivative.min())) < allowed
    assert abs(float(found.high) - float(derivative.max())) < allowed
