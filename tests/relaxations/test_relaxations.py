"""Every relaxation holds on samples, for ordinary and for extreme intervals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.relaxations import RELAXATIONS, Relaxation, leaky_relu
from zonoplug.testing import check_relaxation

FUNCTIONS = {"relu": torch.relu, "abs": torch.abs, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
CASES = [(rule, FUNCTIONS[name]) for name, rule in RELAXATIONS.items()]
CASES += [(partial(leaky_relu, negative_slope=slope),
           partial(torch.nn.functional.leaky_relu, negative_slope=slope)) for slope in (0.1, -0.5, 2.0)]
DTYPES = [torch.float32, torch.float64]


def test_every_registered_relaxation_is_tested():
    assert set(RELAXATIONS.names()) == set(FUNCTIONS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rule", "function"), CASES)
@given(data=st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32)), min_size=1))
def test_the_band_holds_the_function(rule, function, dtype, data):
    ends = torch.tensor(data, dtype=dtype)
    check_relaxation(rule, function, ends.amin(dim=1), ends.amax(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rule", "function"), CASES)
def test_extreme_intervals(rule, function, dtype):
    one = torch.tensor(1.0, dtype=dtype)
    up, down = (torch.nextafter(one, target * one) for target in (2.0, 0.0))
    tiny = torch.finfo(dtype).tiny
    lower = torch.tensor([-1e30, -1e-30, -1.0, 0.0, 0.0, down, one, -tiny, -88.0, 20.0, -3.0, 0.0], dtype=dtype)
    upper = torch.tensor([1e30, 1e-30, 0.0, 0.0, 1.0, one, up, tiny, 88.0, 90.0, -3.0, 1e-38], dtype=dtype)
    check_relaxation(rule, function, lower, upper)


@pytest.mark.parametrize(("rule", "function"), CASES)
def test_unknown_bounds_give_nothing_certain(rule, function):
    unknown = torch.tensor([torch.nan])
    relaxation = rule(unknown, torch.ones(1))
    band = relaxation.slope * 0.5 + relaxation.offset - relaxation.radius
    assert not bool((band > -torch.inf).any())


def test_relu_has_the_smallest_area():
    lower, upper = torch.tensor([-1.0]), torch.tensor([3.0])
    best = RELAXATIONS.get("relu")(lower, upper)
    torch.testing.assert_close(best.slope, torch.tensor([0.75]))
    torch.testing.assert_close(best.radius, torch.tensor([0.375]))
    for slope in torch.linspace(0, 1, 11):
        assert RELAXATIONS.get("relu")(lower, upper, slope[None]).radius >= best.radius - 1e-6


def test_the_law_notices_a_band_that_is_too_narrow():
    def narrow(lower, upper):
        slope, offset, radius = RELAXATIONS.get("relu")(lower, upper)
        return Relaxation(slope, offset, 0.99 * radius)

    with pytest.raises(AssertionError, match="leaves its band"):
        check_relaxation(narrow, torch.relu, torch.tensor([-1.0]), torch.tensor([1.0]))
