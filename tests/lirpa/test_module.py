"""Zonotopes as bound methods: random networks with branches, side by side with the host's own methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zonoplug
from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import SettingError, UnknownNameError
from zonoplug.lirpa import compat
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import propagate
from zonoplug.lirpa.methods import BoundMethod, method_names
from zonoplug.lirpa.module import ZonotopeModule, bound_box, forward_propagation
from zonoplug.lirpa.perturbations import bounded_input, input_set
from zonoplug.testing import check_contains_samples

METHODS = [
    "zonotope",
    "zonotope[girard,20]",
    "zonotope[box,10]",
    "zonotope[l1,12]",
    "zonotope[combastel,15]",
    "zonotope+crown",
    "zonotope+alpha-crown",
    "alpha-zonotope",
    "alpha-zonotope[girard,20]",
    "alpha-zonotope+crown",
]


class Forked(nn.Module):
    """A random network: layers whose inputs are one or two earlier values, added, subtracted or concatenated."""

    def __init__(self, seed, width=7):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.plan = []
        layers, sizes = [], [width]
        for _ in range(5):
            a, b, kind = (int(torch.randint(0, high, (1,), generator=random)) for high in (len(sizes), len(sizes), 4))
            size = sizes[a] + sizes[b] if kind == 2 else sizes[a]
            if kind in (0, 1) and sizes[a] != sizes[b]:
                kind = 3
            layers.append(nn.Linear(size, width))
            self.plan.append((a, b, kind))
            sizes.append(width)
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(width, 4)

    def forward(self, x):
        values = [x]
        for (a, b, kind), layer in zip(self.plan, self.layers, strict=True):
            left, right = values[a], values[b]
            joined = [left + right, left - right, torch.cat([left, right], dim=1), left]
            values.append(
                torch.relu(layer(joined[kind] if kind != 2 else joined[2]))
                if kind in (0, 1, 2)
                else torch.relu(layer(left))
            )
        return self.last(values[-1] + values[len(values) // 2])


class Residual(nn.Module):
    """Convolutions, batch norm, a skip connection, pooling."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.pool, self.last = nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Linear(27, 4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        y = torch.relu(self.norm(self.first(x)))
        return self.last(self.pool(torch.relu(self.second(y)) + y).flatten(1))


def case(name, dtype):
    torch.manual_seed(7)
    if name == "residual":
        module, shape = Residual(), (1, 6, 6)
    else:
        seed = int(name.split()[1])
        module, shape = Forked(seed), (7,)
    module = module.eval().to(dtype)
    host = compat.build(module, torch.zeros(1, *shape, dtype=dtype), module_class=ZonotopeModule)
    return module, host, Box.ball(torch.randn(4, *shape, dtype=dtype), 0.2)


NETWORKS = ["residual", *(f"forked {seed}" for seed in range(12))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_sampled_point_lies_inside(name, method, dtype):
    module, host, box = case(name, dtype)
    if dtype == torch.float64:
        host.to(dtype)
    lower, upper = host.compute_bounds((bounded_input(box),), method=method)
    with torch.no_grad():
        samples = module(box.sample(1000).flatten(0, 1)).unflatten(0, (1000, 4))
    check_contains_samples(Interval(lower.detach(), upper.detach()), samples)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_equals_its_elements(name):
    _, host, box = case(name, torch.float64)
    whole, _ = bound_box(host, box, BoundMethod.parse("zonotope"))
    for element in range(4):
        single = Box(box.lower[element : element + 1], box.upper[element : element + 1])
        alone, _ = bound_box(host, single, BoundMethod.parse("zonotope"))
        torch.testing.assert_close(whole.lower[element], alone.lower[0])
        torch.testing.assert_close(whole.upper[element], alone.upper[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_order_of_tightness(name):
    """Boxing everything is no tighter than keeping symbols; with the host's backward pass it only gets tighter."""
    _, host, box = case(name, torch.float64)
    width = {}
    for method in ("zonotope[box,0]", "zonotope", "zonotope+crown", "alpha-zonotope"):
        bounds, _ = bound_box(host, box, BoundMethod.parse(method))
        width[method] = (bounds.upper - bounds.lower).mean()
    assert width["zonotope+crown"] <= width["zonotope"] + 1e-9
    assert width["alpha-zonotope"] <= width["zonotope"] + 1e-9
    assert width["zonotope"] <= width["zonotope[box,0]"] + 1e-9


def test_optimised_slopes_are_strictly_tighter_somewhere_and_stop_at_the_goal(monkeypatch):
    _, host, box = case("residual", torch.float64)
    wide = Box(box.lower - 0.5, box.upper + 0.5)
    plain, _ = bound_box(host, wide, BoundMethod.parse("zonotope"))
    rows = torch.eye(4, dtype=torch.float64)[None]
    optimised, _ = bound_box(host, wide, BoundMethod.parse("alpha-zonotope"), rows)
    assert bool((optimised.lower >= plain.lower - 1e-9).all())
    assert float((optimised.lower - plain.lower).max()) > 1e-3

    walks = []
    genuine = zonoplug.lirpa.module.propagate
    monkeypatch.setattr(zonoplug.lirpa.module, "propagate", lambda *a, **k: walks.append(1) or genuine(*a, **k))
    bound_box(host, wide, BoundMethod.parse("alpha-zonotope"), rows, goal=plain.lower - 1)
    assert len(walks) == 1


def test_known_bounds_and_slopes_keep_every_sample_inside():
    """Any slope is sound, also a silly one, and so are pre-activation bounds that hold from elsewhere."""
    module, host, box = case("residual", torch.float64)
    first = forward_propagation(host, [box], BoundMethod.parse("zonotope"))
    slopes = {
        node.name: torch.rand(4, *node.output_shape[1:], dtype=torch.float64) * 3 - 1
        for node in host._modules.values()
        if type(node).__name__ == "BoundRelu"
    }
    assert slopes
    symbols = SymbolSource()
    inputs = {host.input_name[0]: box.to_zonotope(symbols, "x")}
    second = propagate(host, inputs, symbols, PropagationOptions(), known=first.preactivations, slopes=slopes)
    with torch.no_grad():
        samples = module(box.sample(1000).flatten(0, 1)).unflatten(0, (1000, 4))
    check_contains_samples(second.bounds, samples)


def test_interval_arithmetic_is_the_zonotope_without_symbols():
    _, host, box = case("residual", torch.float64)
    ours, _ = bound_box(host, box, BoundMethod.parse("zonotope[box,0]"))
    theirs, _ = bound_box(host, box, BoundMethod.parse("ibp"))
    assert bool((ours.lower <= theirs.upper).all() & (ours.upper >= theirs.lower).all())


def test_a_specification_matrix_bounds_differences():
    module, host, box = case("residual", torch.float32)
    rows = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]]).expand(4, 2, 4)
    lower, upper = host.compute_bounds((bounded_input(box),), C=rows, method="zonotope")
    assert lower.shape == (4, 2)
    samples = torch.einsum("brn,mbn->mbr", rows, module(box.sample(500).flatten(0, 1)).unflatten(0, (500, 4)))
    check_contains_samples(Interval(lower, upper), samples.detach())
    plain_lower, plain_upper = host.compute_bounds((bounded_input(box),), method="zonotope")
    assert bool((upper - lower)[:, 0].lt((plain_upper - plain_lower)[:, :2].sum(dim=1)).all())


def test_hosts_own_methods_still_work_and_give_the_same():
    module, host, box = case("residual", torch.float32)
    plain = compat.build(module, torch.zeros(1, 1, 6, 6))
    for method in ("IBP", "CROWN"):
        ours = host.compute_bounds((bounded_input(box),), method=method)
        theirs = plain.compute_bounds((bounded_input(box),), method=method)
        torch.testing.assert_close(ours, theirs)


def test_register_gives_zonotopes_to_plain_modules_and_unregister_takes_them_back():
    module, ours, box = case("forked 1", torch.float32)
    plain = compat.build(module, torch.zeros(1, 7))
    original = compat.BoundedModule.compute_bounds
    zonoplug.register()
    zonoplug.register()
    try:
        lower, upper = plain.compute_bounds(x=(bounded_input(box),), method="zonotope")
        wanted, _ = bound_box(ours, box, BoundMethod.parse("zonotope"))
        torch.testing.assert_close(lower, wanted.lower)
        torch.testing.assert_close(upper, wanted.upper)
    finally:
        zonoplug.unregister()
    assert compat.BoundedModule.compute_bounds is original


def test_an_unperturbed_input_gives_the_output_itself():
    module, host, box = case("residual", torch.float32)
    point = Box(box.lower, box.lower)
    bounds, _ = bound_box(host, point, BoundMethod.parse("zonotope"))
    torch.testing.assert_close(bounds.lower, module(box.lower).detach())
    torch.testing.assert_close(bounds.upper, bounds.lower)


def test_methods_are_spelled_as_they_are_parsed():
    for name in method_names():
        assert str(BoundMethod.parse(name)) == name
    assert str(BoundMethod.parse(" Zonotope[Girard, 64]+CROWN ")) == "zonotope[girard,64]+crown"
    with pytest.raises(UnknownNameError, match="Did you mean 'zonotope'"):
        BoundMethod.parse("zonotop")
    with pytest.raises(UnknownNameError, match="girard"):
        BoundMethod.parse("zonotope[girrard,3]")
    with pytest.raises(SettingError, match=r"write \[rule,when\], such as \[girard,512\]"):
        BoundMethod.parse("zonotope[girard]")


def test_what_a_zonotope_method_cannot_take_is_named():
    _, host, box = case("forked 1", torch.float32)
    with pytest.raises(SettingError, match="return_A"):
        host.compute_bounds((bounded_input(box),), method="zonotope", return_A=True)
    no_norm = compat.BoundedTensor(box.lower, compat.PerturbationLpNorm(norm=0.5, eps=0.1))
    with pytest.raises(SettingError, match="lp norm"):
        host.compute_bounds((no_norm,), method="zonotope")


def test_perturbations_and_input_sets_are_inverse():
    box = Box.ball(torch.randn(2, 3), 0.1)
    back = input_set(bounded_input(box))
    assert torch.equal(back.lower, box.lower)
    assert torch.equal(back.upper, box.upper)
    by_radius = input_set(compat.BoundedTensor(box.lower, compat.PerturbationLpNorm(norm=torch.inf, eps=0.5)))
    torch.testing.assert_close(by_radius.upper, box.lower + 0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gpu_gives_the_cpus_bounds(name):
    module, host, box = case(name, torch.float64)
    bounds, _ = bound_box(host, box, BoundMethod.parse("zonotope"))
    on_gpu = compat.build(module.cuda(), box.lower[:1].cuda(), module_class=ZonotopeModule)
    there, _ = bound_box(on_gpu, Box(box.lower.cuda(), box.upper.cuda()), BoundMethod.parse("zonotope"))
    torch.testing.assert_close(there.lower.cpu(), bounds.lower)
    torch.testing.assert_close(there.upper.cpu(), bounds.upper)
