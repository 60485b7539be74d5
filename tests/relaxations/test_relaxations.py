"""Every relaxation holds on samples, for ordinary and for extreme intervals, and claims nothing that it cannot know."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.relaxations import (
    RELAXATIONS,
    Relaxation,
    erf,
    floor,
    log,
    power,
    reciprocal,
    relu,
    rsqrt,
    sqrt,
    step,
    triangle_height,
)
from zonoplug.testing import check_relaxation

BOUNDS = st.floats(-100, 100, width=32)
MAGNITUDES = st.sampled_from([1e-42, 1e-37, 1e-30, 1e-6, 0.1, 1.0, 3.0, 10.0, 100.0, 1e6, 1e15, 1e30])


def typed(case):
    """The function of a case, rounded once to the type of its argument."""
    return lambda x: case.function(x.double()).to(x.dtype)


def check(case, lower, upper, points):
    """The public law; and for float32 the same without tolerance, in double precision and at chosen points."""
    if lower.numel() == 0:
        return
    check_relaxation(case.rule, typed(case), lower, upper)
    slope, offset, radius = (part.double() for part in case.rule(lower, upper))
    x = points(lower, upper)
    y = case.function(x)
    gap = (y - slope * x - offset).abs() - radius
    unit = torch.finfo(torch.float64 if lower.dtype == torch.float32 else lower.dtype).eps
    terms = torch.maximum(y.abs(), torch.maximum((slope * x).abs(), offset.abs()))
    # doubles: what evaluating the function costs, which far out in a Gaussian tail is its argument's square
    allowed = (64 * unit + case.slack) * terms + (1 + x**2) * 4 * unit * y.abs() + torch.finfo(lower.dtype).tiny
    assert bool((gap <= allowed).all()), float((gap - allowed).max())


def test_every_registered_relaxation_is_tested(cases):
    assert set(RELAXATIONS.names()) <= set(cases)


@settings(max_examples=8)
@given(data=st.lists(st.tuples(BOUNDS, BOUNDS), min_size=8))
def test_the_band_holds_the_function(case, dtype, inside, points, data):
    ends = torch.tensor(data, dtype=dtype)
    check(case, *inside(case, ends.amin(dim=1), ends.amax(dim=1)), points)


@settings(max_examples=8)
@given(
    data=st.lists(st.tuples(st.floats(-1, 1, width=32), MAGNITUDES, st.floats(-1, 1, width=32), MAGNITUDES), min_size=8)
)
def test_bounds_of_any_magnitude(case, dtype, inside, points, data):
    ends = torch.tensor([(a * b, c * d) for a, b, c, d in data], dtype=dtype)
    check(case, *inside(case, ends.amin(dim=1), ends.amax(dim=1)), points)


@settings(max_examples=8)
@given(center=st.floats(-30, 30, width=32), magnitude=MAGNITUDES, steps=st.integers(0, 3))
def test_bounds_a_few_ulps_apart(case, dtype, inside, points, center, magnitude, steps):
    lower = torch.tensor([center, center * magnitude], dtype=dtype)
    upper = lower.clone()
    for _ in range(steps):
        upper = torch.nextafter(upper, torch.full_like(upper, math.inf))
    lower, upper = inside(case, lower, upper)
    check(case, lower, upper, points)
    slope, _, radius = case.rule(lower, upper)
    ends = typed(case)(torch.stack([lower, upper]))
    scale = torch.maximum(case.size(lower, ends.abs().amax(dim=0)), (slope * lower).abs())
    jump = (ends[1] - ends[0]).abs()
    assert bool((radius <= jump + 64 * torch.finfo(dtype).eps * scale + torch.finfo(dtype).tiny).all())


def test_extreme_intervals(case, dtype, inside, points):
    one = torch.tensor(1.0, dtype=dtype)
    up, down = (torch.nextafter(one, target * one) for target in (2.0, 0.0))
    tiny = torch.finfo(dtype).tiny
    pairs = [
        (-1e30, 1e30), (-1e-30, 1e-30), (-1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (down, one), (one, up), (-tiny, tiny),
        (-88.0, 88.0), (20.0, 90.0), (-3.0, -3.0), (0.0, 1e-38), (50.0, 88.0), (-1e30, -1e-30), (1e-30, 1e30),
        (1e30, 2e30), (-2e30, -1e30), (-1e30, 0.5), (-3.0, 1e30), (-1e38, 1e38), (-3e38, 1.0), (-1e-44, 1e-44),
        (0.0, 1e-44), (1e-37, 2e-37), (-0.5, 1.5), (0.5, 1.5), (2.5, 3.5), (-100.0, -20.0), (1e15, 1.1e15),
        (1e7, 1e7 + 3), (3.0, 9.2),
    ]  # fmt: skip
    ends = torch.tensor(pairs, dtype=dtype)
    lower, upper = inside(case, ends[:, 0], ends[:, 1])
    check(case, lower, upper, points)


def test_the_shape_does_not_matter(case, inside):
    center = torch.randn(2, 3, 4)
    lower, upper = inside(case, center.abs() + 0.5, center.abs() + 1.5)
    if case.high < 0:
        lower, upper = -upper.flip(0), -lower.flip(0)
        lower, upper = inside(case, torch.minimum(lower, upper) - 3, torch.maximum(lower, upper) - 3)
    flat = case.rule(lower.flatten(), upper.flatten())
    for part, whole in zip(flat, case.rule(lower, upper), strict=True):
        assert whole.dtype == lower.dtype
        assert torch.equal(whole.flatten(), part)


def certain(relaxation, x=0.5):
    """Whether anything is claimed about f(x)."""
    middle = relaxation.slope * x + relaxation.offset
    return bool((middle - relaxation.radius > -math.inf).any() | (middle + relaxation.radius < math.inf).any())


def test_unknown_bounds_give_nothing_certain(case, dtype):
    unknown, one = torch.tensor([math.nan], dtype=dtype), torch.ones(1, dtype=dtype)
    for lower, upper in ((unknown, one), (one, unknown), (unknown, unknown)):
        assert not certain(case.rule(lower, upper))


def test_infinite_bounds_give_what_is_known_or_nothing(case, dtype):
    infinity = torch.tensor([math.inf], dtype=dtype)
    for lower, upper in ((-infinity, infinity), (-infinity, 0 * one_like(dtype)), (one_like(dtype), infinity)):
        relaxation = case.rule(lower, upper)
        low, high = max(float(lower), case.low, -1e37), min(float(upper), case.high, 1e37)
        if low > high or not certain(relaxation):
            continue
        x = torch.linspace(low, high, 101, dtype=dtype)
        x = torch.cat([x, torch.tensor([low, high, 0.0, 1.0, -1.0, 30.0, -30.0], dtype=dtype).clamp(low, high)])
        y = typed(case)(x)
        gap = (y - relaxation.slope * x - relaxation.offset).abs() - relaxation.radius
        assert bool((gap <= 1e-5 * (1 + y.abs())).all())


def one_like(dtype):
    return torch.ones(1, dtype=dtype)


@pytest.mark.parametrize(
    ("rule", "lower", "upper"),
    [
        (log, -1.0, 1.0), (log, 0.0, 1.0), (log, -2.0, -1.0), (sqrt, -1.0, 1.0), (sqrt, -2.0, -1.0),
        (rsqrt, 0.0, 1.0), (rsqrt, -1.0, 1.0), (reciprocal, -1.0, 1.0), (reciprocal, 0.0, 1.0), (reciprocal, -1.0, 0.0),
        (reciprocal, -0.0, 1.0), (reciprocal, 0.0, 0.0), (lambda a, b: power(a, b, -2.0), -1.0, 1.0),
        (lambda a, b: power(a, b, 1.5), -1.0, 1.0), (RELAXATIONS.get("exp"), 0.0, 1e4), (power, 0.0, 1e300),
        (RELAXATIONS.get("sin"), -math.inf, 1.0),
    ],
)  # fmt: skip
def test_outside_its_domain_a_function_is_unknown(rule, lower, upper, dtype):
    assert not certain(rule(torch.tensor([lower], dtype=dtype), torch.tensor([upper], dtype=dtype)), 0.5)


def test_the_law_notices_a_band_that_is_too_narrow(case, dtype, inside):
    lower, upper = inside(case, torch.tensor([-1.0, 0.25], dtype=dtype), torch.tensor([2.0, 3.0], dtype=dtype))
    if case.high < 0:
        lower, upper = torch.tensor([-3.0], dtype=dtype), torch.tensor([-1.0], dtype=dtype)
    slope, offset, radius = case.rule(lower, upper)
    if not bool((radius > 1e-3).any()):
        return
    with pytest.raises(AssertionError, match="leaves its band"):
        check_relaxation(lambda *_: Relaxation(slope, offset, 0.95 * radius), typed(case), lower, upper)


def test_what_is_straight_needs_no_radius():
    lower, upper = torch.tensor([-9.0, 1.0, 7.0, 2.0]), torch.tensor([-7.0, 1.5, 8.0, 2.0])
    for name in ("relu", "relu6", "abs", "prelu", "clip", "hardtanh", "hard_sigmoid", "sign", "step"):
        assert not RELAXATIONS.get(name)(lower, upper).radius.any(), name
    for name in ("elu", "celu", "selu"):
        assert not RELAXATIONS.get(name)(lower[1:], upper[1:]).radius.any(), name
    assert not RELAXATIONS.get("hard_swish")(lower[[0, 2]], upper[[0, 2]]).radius.any()
    assert not floor(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0])).radius.any()


def test_steps_are_enclosed_by_their_values():
    slope, offset, radius = step(torch.tensor([-1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]), at_zero=0.5)
    assert slope.tolist() == [0, 0, 0]
    torch.testing.assert_close(offset, torch.tensor([0.5, 0.75, 0.5]))
    torch.testing.assert_close(radius, torch.tensor([0.5, 0.25, 0.0]))


def test_many_stairs_are_enclosed_by_a_slope():
    slope, _, radius = floor(torch.tensor([0.5]), torch.tensor([100.5]))
    assert 0.98 < float(slope) < 1.02
    assert float(radius) < 0.51


def test_infinite_bounds_of_a_bounded_function_give_a_flat_band():
    for rule, width in ((erf, 1.0), (RELAXATIONS.get("tanh"), 1.0), (RELAXATIONS.get("relu6"), 3.0)):
        slope, _, radius = rule(torch.tensor([-math.inf]), torch.tensor([math.inf]))
        assert float(slope) == 0
        torch.testing.assert_close(radius, torch.tensor([width]))


def test_relu_is_the_published_parallelogram():
    slope, offset, radius = relu(torch.tensor([-1.0]), torch.tensor([3.0]))
    torch.testing.assert_close(slope, torch.tensor([0.75]))
    torch.testing.assert_close(offset, torch.tensor([0.375]))
    torch.testing.assert_close(radius, torch.tensor([0.375]))


@given(BOUNDS, BOUNDS)
def test_the_height_of_a_triangle_is_where_its_chord_passes_0(a, b):
    lower, upper = torch.tensor([min(a, b)]), torch.tensor([max(a, b)])
    chord = relu(lower, upper)
    torch.testing.assert_close(triangle_height(lower, upper), chord.offset + chord.radius)


def test_there_is_no_height_where_the_sign_is_known_or_a_bound_is_not():
    lower = torch.tensor([1.0, -2.0, 0.0, -1.0, torch.nan, -torch.inf])
    upper = torch.tensor([2.0, -1.0, 1.0, 0.0, 1.0, 1.0])
    assert torch.equal(triangle_height(lower, upper), torch.zeros(6))
