"""Slopes of a ReLU beside a box."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.rounding import rounding
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.relaxations import relu
from zonoplug.transformers.box_slopes import flat_beside_box


def test_a_pure_box_becomes_the_interval():
    lower, upper = torch.tensor([[-3.0, -1.0, 1.0, -2.0]]), torch.tensor([[1.0, 2.0, 2.0, -1.0]])
    zonotope = Zonotope((lower + upper) / 2, (), (upper - lower) / 2)
    slope = flat_beside_box(zonotope, Interval(lower, upper))
    assert slope.tolist() == [[0.0, 0.0, 1.0, 0.0]]


@given(st.integers(0, 50))
def test_the_radius_behind_it_is_never_larger(make_zonotope, seed):
    zonotope = make_zonotope(seed=seed)
    hull = zonotope.interval_hull()
    slope = flat_beside_box(zonotope, hull)
    chord = relu(*hull)
    flat = chord if slope is None else relu(*hull, slope=slope)
    wide, narrow = (r.slope * zonotope.radius() + r.radius for r in (chord, flat))
    assert bool((narrow <= wide + 1e-12).all())


def test_values_without_a_box_keep_their_chords(make_zonotope):
    zonotope = make_zonotope(box=False)
    assert flat_beside_box(zonotope, zonotope.interval_hull()) is None
    with rounding("outward"):
        tiny = zonotope.widen(1e-9 * torch.ones_like(zonotope.center))
        assert flat_beside_box(tiny, tiny.interval_hull()) is None
