"""The default bands have the smallest area, any slope is sound, and gradients reach the slope."""

from __future__ import annotations

import math

import pytest
import torch

from zonoplug.relaxations import RELAXATIONS, exp, gelu, sigmoid, silu
from zonoplug.testing import check_relaxation

PIECEWISE = ["relu", "prelu", "abs", "clip", "relu6", "hardtanh", "floor", "round"]
CONVEX = ["exp", "log", "softplus", "elu", "square", "reciprocal", "sqrt", "rsqrt"]
OTHERS = [
    "sigmoid",
    "tanh",
    "erf",
    "arctan",
    "power",
    "selu",
    "sin",
    "cos",
    "gelu",
    "gelu_tanh",
    "silu",
    "mish",
    "hard_swish",
]


def intervals(case, inside):
    """Some of width 0.02 to 6, in double precision."""
    random = torch.Generator().manual_seed(5)
    width = 10 ** (torch.rand(60, generator=random, dtype=torch.float64) * 2.5 - 1.7)
    center = 3 * torch.randn(60, generator=random, dtype=torch.float64)
    if math.isfinite(case.low):
        center = center.abs() + width / 2 + 0.02
    return inside(case, center - width / 2, center + width / 2)


def smallest_radius(function, lower, upper):
    """By golden-section search over the slope, which the radius is convex in, on a dense grid of points."""
    x = lower + torch.linspace(0, 1, 4001, dtype=lower.dtype)[:, None] * (upper - lower)
    y = function(x)
    steepness = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
    left, right = steepness.amin(dim=0), steepness.amax(dim=0).clamp(max=1e3)

    def width(slope):
        rest = y - slope * x
        return rest.amax(dim=0) - rest.amin(dim=0)

    share = (math.sqrt(5) - 1) / 2
    for _ in range(45):
        a, b = right - share * (right - left), left + share * (right - left)
        go_left = width(a) < width(b)
        left, right = torch.where(go_left, left, a), torch.where(go_left, b, right)
    return width((left + right) / 2) / 2


@pytest.mark.parametrize("name", [*PIECEWISE, *CONVEX, *OTHERS])
def test_the_band_is_as_narrow_as_any(cases, inside, name):
    case = cases[name]
    lower, upper = intervals(case, inside)
    radius = case.rule(lower, upper).radius
    best = smallest_radius(case.function, lower, upper)
    allowed = 1e-3 if name in CONVEX else 2e-2
    periods = (upper - lower) < 6 if name in ("sin", "cos") else torch.ones_like(lower, dtype=torch.bool)
    assert bool((radius <= best * (1 + allowed) + 1e-12)[periods].all()), float((radius / best)[periods].max())
    assert bool((radius >= best * (1 - 2e-2) - 1e-12).all())


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "erf", "arctan", "relu6", "gelu", "silu", "mish", "hard_swish"])
def test_the_band_is_never_wider_than_the_flat_one(cases, name):
    case = cases[name]
    ends = [(-1e30, 0.5), (-1e30, -3.0), (-1e4, 2.0), (-40.0, -3.0), (-700.0, 0.1), (-1e8, 1e-3), (-20.0, -10.0)]
    lower, upper = torch.tensor(ends, dtype=torch.float32).unbind(dim=1)
    flat = case.rule(lower, upper, slope=torch.zeros_like(lower))
    rounding = torch.finfo(torch.float32).eps * flat.offset.abs()
    assert bool((case.rule(lower, upper).radius <= 1.02 * flat.radius + rounding + 1e-37).all())


def test_any_slope_is_sound(case, dtype, inside):
    random = torch.Generator().manual_seed(7)
    center = 4 * torch.randn(50, generator=random, dtype=torch.float64)
    width = 4 * torch.rand(50, generator=random, dtype=torch.float64)
    lower, upper = inside(case, (center - width).to(dtype), (center + width).to(dtype))
    for slope in (torch.randn(50, generator=random, dtype=dtype), torch.zeros(50, dtype=dtype), torch.full((50,), 1e3)):
        slope = slope.to(dtype)
        check_relaxation(
            lambda a, b, s=slope: case.rule(a, b, slope=s), lambda x: case.function(x.double()).to(dtype), lower, upper
        )
        best = case.rule(lower, upper)
        rounding = torch.finfo(dtype).eps * (best.offset.abs() + (best.slope * lower).abs())
        assert bool((case.rule(lower, upper, slope=slope).radius * 1.02 + 2 * rounding + 1e-37 >= best.radius).all())


@pytest.mark.parametrize("name", ["relu", "abs", "clip", "exp", "sigmoid", "tanh", "gelu", "sin", "square"])
def test_gradients_reach_the_slope(cases, name):
    rule = cases[name].rule
    lower, upper = torch.tensor([-1.3], dtype=torch.float64), torch.tensor([1.7], dtype=torch.float64)
    slope = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    relaxation = rule(lower, upper, slope=slope)
    step = 1e-6
    above, below = (rule(lower, upper, slope=slope.detach() + change) for change in (step, -step))
    for part in (1, 2):
        (gradient,) = torch.autograd.grad(relaxation[part].sum(), slope, retain_graph=True)
        torch.testing.assert_close(gradient, (above[part] - below[part]) / (2 * step), rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_bounds():
    lower = torch.tensor([-1.0, -2.0, 1.0, -3.0], requires_grad=True)
    upper = torch.tensor([1.0, -1.0, 1.0, 2.0], requires_grad=True)
    for name in ("relu", "abs", "sigmoid", "exp", "gelu", "relu6", "elu"):
        relaxation = RELAXATIONS.get(name)(lower, upper)
        gradients = torch.autograd.grad(sum(part.sum() for part in relaxation[1:]), (lower, upper))
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), name


def test_a_flat_band_is_taken_where_a_slope_would_overflow():
    slope, offset, radius = exp(torch.tensor([50.0]), torch.tensor([88.0]))
    assert float(slope) == 0
    assert float(offset + radius) >= math.exp(88)
    assert math.isfinite(float(offset + radius))


def test_the_lower_line_of_exp_can_be_kept_positive():
    lower, upper = torch.tensor([-1.0]), torch.tensor([3.0])
    slope, offset, radius = exp(lower, upper)
    assert float(slope * lower + offset - radius) < 0
    slope, offset, radius = exp(lower, upper, slope=torch.minimum(slope, (lower + 0.95).exp()))
    assert float(slope * lower + offset - radius) > 0


def test_float32_bounds_are_judged_in_double_precision():
    lower = torch.tensor([-4.0, 0.25, -1.5])
    upper = torch.nextafter(lower, torch.tensor(math.inf))
    for rule, function in ((sigmoid, torch.sigmoid), (gelu, lambda x: x * torch.special.log_ndtr(x).exp())):
        radius = rule(lower, upper).radius
        assert bool((radius <= 4 * torch.finfo(torch.float32).eps * function(lower).abs()).all())


def test_the_work_is_shared_by_a_batch():
    lower = torch.randn(4, 5, 6)
    upper = lower + torch.rand(4, 5, 6)
    relaxation = silu(lower, upper)
    for element in range(4):
        alone = silu(lower[element], upper[element])
        assert all(torch.equal(part[element], own) for part, own in zip(relaxation, alone, strict=True))
