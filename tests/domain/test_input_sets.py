"""Boxes, lp balls and affine images: what all sets promise, and what only images do."""

from __future__ import annotations

from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.affine_image import AffineImage, minkowski_sum
from zonoplug.domain.input_sets import Box, InputSet
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.symbols import SymbolSource
from zonoplug.errors import SettingError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SETS = {
    "box": lambda: Box.ball(normal(2, 1, 3, 3), 0.2),
    "box with few free coordinates": lambda: Box(torch.zeros(2, 9), torch.eye(9)[:2].double().float()),
    "l1": lambda: LpBall(normal(2, 9), 0.3, 1),
    "l2": lambda: LpBall(normal(2, 9), torch.tensor([[0.3], [0.1]]), 2),
    "l5, axes of their own": lambda: LpBall(normal(2, 3, 3), normal(2, 3, 3, seed=1).abs(), 5.0),
    "l2 with limits": lambda: LpBall(normal(2, 9).sigmoid(), 0.7, 2, 0.0, 1.0),
    "affine image": lambda: AffineImage(normal(2, 9), normal(2, 3, 9, seed=1)),
    "affine image with box and noise": lambda: AffineImage(
        normal(2, 9), normal(2, 3, 9, seed=1), normal(2, 9, seed=2).abs(), normal(2, 9, seed=3).abs()
    ),
    "affine image without generators": lambda: AffineImage(normal(2, 9), normal(2, 0, 9), None, normal(2, 9).abs()),
}


@pytest.mark.parametrize("name", SETS)
def test_samples_lie_in_the_zonotope_and_in_the_hull(name):
    """In every sampled direction no sample passes the support of the zonotope, and the hull is the zonotope's."""
    value = SETS[name]()
    assert isinstance(value, InputSet)
    samples = value.sample(300, torch.Generator().manual_seed(5))
    hull, zonotope = value.interval_hull(), value.to_zonotope(SymbolSource(), "x")
    assert samples.shape == (300, *hull.lower.shape)
    assert bool(((samples >= hull.lower) & (samples <= hull.upper)).all())
    assert float(samples.flatten(2).std(dim=0).max()) > 0.01
    directions = torch.cat([normal(40, 9, seed=6), torch.eye(9, dtype=torch.float64)]).to(hull.lower)
    reached = torch.einsum("mbn,dn->mbd", samples.flatten(2), directions).amax(dim=0)
    assert bool((reached <= zonotope.support(directions) + 1e-6).all())
    inner = zonotope.interval_hull()
    assert bool(((inner.lower <= hull.lower + 1e-6) & (inner.upper >= hull.upper - 1e-6)).all())


def test_only_free_coordinates_get_symbols():
    few = Box(torch.zeros(1, 100), torch.nn.functional.one_hot(torch.tensor([7]), 100).float())
    assert few.to_zonotope(SymbolSource(), "x").num_symbols == 1
    radius = torch.zeros(1, 100)
    radius[0, [3, 50]] = 1
    source = SymbolSource()
    assert LpBall(torch.zeros(1, 100), radius, 2).to_zonotope(source, "x").num_symbols == 2
    assert source.origins[0].index.tolist() == [[3, 50]]
    assert LpBall(torch.zeros(1, 100), 0.0, 2).to_zonotope(source, "x").num_symbols == 0


@given(st.integers(0, 10_000), st.booleans())
def test_an_affine_image_clipped_contains_the_clipped_points(how_far_outside, seed, noisy):
    noise = normal(1, 6, seed=seed + 2).abs() if noisy else None
    value = AffineImage(normal(1, 6, seed=seed), normal(1, 2, 6, seed=seed + 1) / 2, None, noise)
    clipped = value.clip(-0.5, 0.7)
    points = value.sample(12, torch.Generator().manual_seed(seed))
    assert how_far_outside(clipped, points.clamp(-0.5, 0.7)) <= 1e-9
    low, high = value.interval_hull()
    untouched = (low >= -0.5) & (high <= 0.7)
    assert torch.equal(clipped.generators[:, 0][untouched], value.generators[:, 0][untouched])


def test_a_minkowski_sum_adds_deviations(how_far_outside):
    around = normal(1, 5)
    sets = [AffineImage(around + 1, normal(1, 2, 5, seed=1)), AffineImage(around, normal(1, 0, 5), None, around.abs())]
    total = minkowski_sum(sets, around)
    points = torch.stack([part.sample(20) - around for part in sets]).sum(dim=0) + around
    assert how_far_outside(total, points) <= 1e-9
    assert total.num_generators == 2
    torch.testing.assert_close(total.center, around + 1)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: LpBall(torch.zeros(1, 2), 1.0, 0.5), "at least 1"),
        (lambda: LpBall(torch.zeros(1, 2), 1.0, inf), "use Box"),
        (lambda: LpBall(torch.zeros(1, 2), -1.0, 2), "radius"),
        (lambda: LpBall(torch.zeros(1, 2), torch.nan, 2), "radius"),
        (lambda: LpBall(torch.zeros(1, 2), 1.0, 2, lower=0.5), "between"),
        (lambda: AffineImage(torch.zeros(1, 2), torch.zeros(1, 3, 3)), "generators need"),
        (lambda: AffineImage(torch.zeros(1, 2), torch.zeros(1, 3, 2), torch.tensor([[0.0, -1.0]])), "box"),
        (lambda: AffineImage(torch.zeros(1, 2), torch.zeros(1, 3, 2), None, torch.zeros(2)), "noise"),
        (lambda: AffineImage(torch.full((1, 2), torch.nan), torch.zeros(1, 3, 2)), "finite"),
    ],
)
def test_senseless_sets_are_refused(make, what):
    with pytest.raises(SettingError, match=what):
        make()
