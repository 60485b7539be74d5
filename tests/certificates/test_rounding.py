"""The checker's bounds where rounding is all that is left: against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.certificates.network import Network
from zonoplug.certificates.rounded_bounds import Bounds


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 1e-8, 1e8]), width=st.sampled_from([0.0, 1e-3]))
def test_affine_bounds_hold_in_exact_arithmetic(seed, scale, width):
    """Sums that cancel, where rounding is all that is left: the exact minimum is never above the bound."""
    random = np.random.default_rng(seed)
    network = Network(4)
    first = random.normal(size=(6, 4))
    hidden = network.dense(np.arange(4), first, random.normal(size=6) * scale)
    back = -np.linalg.pinv(first)
    both = np.concatenate([np.arange(4), hidden])
    # x - (pinv(W) (W x + b)) is 0 but for rounding and the offset
    network.outputs = network.dense(both, np.concatenate([np.eye(4), back], axis=1), np.zeros(4))
    lower = random.normal(size=4)
    upper = lower + random.uniform(0, 1, 4) * width
    bounds = Bounds(network, lower[None], upper[None])
    bounds.run({})
    bounds.make_lines("adaptive")
    rows = random.normal(size=(3, 4))
    below = bounds.rows_below(network.outputs, rows).lower[0]
    exact = _exact_minimum(network, lower, upper, rows)
    for bound, least in zip(below, exact, strict=True):
        assert Fraction(float(bound)) <= least
        assert float(least) - bound < 1e-9 * max(1.0, scale)
    for place, least in zip(network.outputs, _exact_minimum(network, lower, upper, np.eye(4)), strict=True):
        assert Fraction(float(bounds.lower[0, place])) <= least


@pytest.mark.parametrize("seed", range(10))
def test_intervals_of_sums_that_cancel_hold_in_exact_arithmetic(seed):
    """64 products whose sum is far smaller than they are, at a single point."""
    random = np.random.default_rng(seed)
    point, weight = random.normal(size=64), random.normal(size=(5, 64)) * 10.0 ** random.integers(-8, 8, (1, 64))
    network = Network(64)
    network.outputs = network.dense(np.arange(64), weight, -(weight @ point))
    bounds = Bounds(network, point[None], point[None])
    bounds.run({})
    exact = _exact_minimum(network, point, point, np.eye(5))
    for place, value in zip(network.outputs, exact, strict=True):
        assert Fraction(float(bounds.lower[0, place])) <= value <= Fraction(float(bounds.upper[0, place]))


def _exact_minimum(network, lower, upper, rows):
    """The least value of each row over the box, for a network of affine blocks, in rational numbers."""
    forms = [({i: Fraction(1)}, Fraction(0)) for i in range(network.num_inputs)]
    for block in network.blocks:
        for weights, bias in zip(block.matrix.weight, block.bias, strict=True):
            forms.append(_combined([forms[place] for place in block.places], weights, bias))
    least = []
    for row in rows:
        terms, constant = _combined([forms[place] for place in network.outputs], row, 0.0)
        ends = (value * Fraction(float((lower if value > 0 else upper)[i])) for i, value in terms.items())
        least.append(constant + sum(ends, Fraction(0)))
    return least


def _combined(forms, weights, bias):
    terms, constant = {}, Fraction(float(bias))
    for (parts, offset), weight in zip(forms, weights, strict=True):
        for i, value in parts.items():
            terms[i] = terms.get(i, Fraction(0)) + Fraction(float(weight)) * value
        constant += Fraction(float(weight)) * offset
    return terms, constant
