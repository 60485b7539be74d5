"""Softmax and log-softmax contain every point, survive large scores, and cancel what a row shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.transformers.affine import matrix
from zonoplug.transformers.softmax import log_softmax, softmax

DTYPES = [torch.float32, torch.float64]
BOTH = pytest.mark.parametrize(
    ("transformer", "function"), [(softmax, torch.softmax), (log_softmax, torch.log_softmax)]
)


@BOTH
@given(
    st.integers(0, 1000), st.sampled_from(DTYPES), st.floats(1e-6, 8), st.booleans(), st.sampled_from([1, 2, -1]),
    st.integers(0, 5),
)  # fmt: skip
def test_every_point_is_contained(
    make_pair, check_image, transformer, function, seed, dtype, radius, box, axis, shared
):
    x, _, source = make_pair(((3, 4), (1,)), shared, radius, seed, dtype, box=box)
    result = transformer(x, axis, source, "softmax")
    check_image(lambda value: function(value, axis), (x,), result, scale=20 * (1 + radius))
    given_bounds = transformer(x, axis, source, "softmax", bounds=x.interval_hull())
    check_image(lambda value: function(value, axis), (x,), given_bounds, scale=20 * (1 + radius))


@BOTH
def test_bounds_of_the_scores_are_used_and_stay_sound(make_pair, transformer, function):
    x, _, source = make_pair(((4,), (1,)), radius=3.0)
    tight = Interval(x.center - 1.0, x.center + 0.5)
    free, bound = (transformer(x, 1, source, "softmax", bounds=bounds) for bounds in (None, tight))
    assert float((bound.bounds.upper - bound.bounds.lower).sum()) < float((free.bounds.upper - free.bounds.lower).sum())
    for _ in range(500):
        noise = 2 * torch.rand(2, x.num_symbols, dtype=torch.float64) - 1
        point = x.point(noise)
        inside = ((point >= tight.lower) & (point <= tight.upper)).all(dim=1)
        image = function(point, 1)[inside]
        reach = bound.zonotope.center + (bound.zonotope.generators(x.symbols) * noise.unsqueeze(-1)).sum(1)
        others = bound.zonotope.symbols[~torch.isin(bound.zonotope.symbols, x.symbols)]
        spare = bound.zonotope.generators(others).abs().sum(1) + bound.zonotope.box
        assert bool(((image - reach[inside]).abs() <= spare[inside] + 1e-9).all())
        assert bool((image <= bound.bounds.upper[inside]).all() and (image >= bound.bounds.lower[inside]).all())


def test_probabilities_stay_between_zero_and_one(make_pair):
    x, _, source = make_pair(((6,), (1,)), radius=5.0)
    bounds = softmax(x, 1, source, "softmax").bounds
    assert bool((bounds.lower >= -1e-12).all() and (bounds.upper <= 1 + 1e-12).all())


@BOTH
def test_what_a_row_shares_cancels(make_pair, transformer, function):
    source = SymbolSource()
    ids = source.fresh("input", torch.zeros(1, 2, dtype=torch.int64))
    center = torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64)
    x = Zonotope(center, (DenseBlock(ids, torch.full((1, 2, 3), 100.0, dtype=torch.float64)),))
    result = transformer(x, 1, source, "softmax").zonotope
    torch.testing.assert_close(result.center, function(center, 1))
    assert float(result.radius().max()) < 1e-9


@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_too_large_for_exponentials_give_intervals(transformer, function, dtype):
    source = SymbolSource()
    x = Zonotope(torch.tensor([[0.0, 500.0, 90.0]], dtype=dtype)).with_fresh_symbols(
        torch.tensor([[600.0, 300.0, 1.0]], dtype=dtype), source, "input"
    )
    result = transformer(x, 1, source, "softmax")
    for bounds in (result.bounds, result.zonotope.interval_hull()):
        assert bool(bounds.lower.isfinite().all() and bounds.upper.isfinite().all())
        for first in (-600.0, 0.0, 600.0):
            for second in (200.0, 500.0, 800.0):
                image = function(torch.tensor([[first, second, 90.0]], dtype=dtype), 1)
                slack = 1e-3 if dtype == torch.float32 else 1e-9
                assert bool((image >= bounds.lower - slack).all() and (image <= bounds.upper + slack).all())


@BOTH
def test_small_chunks_and_single_elements_give_the_same(make_pair, transformer, function):
    x, _, source = make_pair(((2, 5), (1,)), batch=3)
    whole = transformer(x, 2, source, "softmax").zonotope
    chunked = transformer(x, 2, source, "softmax", limit_bytes=1).zonotope
    torch.testing.assert_close(whole.radius(), chunked.radius())
    for element in range(3):
        part = slice(element, element + 1)
        blocks = tuple(DenseBlock(block.symbols, block.dense()[part]) for block in x.blocks)
        alone = transformer(Zonotope(x.center[part], blocks, x.box[part]), 2, source, "softmax").zonotope
        torch.testing.assert_close(whole.center[element], alone.center[0])
        torch.testing.assert_close(whole.radius()[element], alone.radius()[0])


@BOTH
def test_points_stay_points(transformer, function):
    source = SymbolSource()
    point = torch.tensor([[1.0, 3.0, 2.0]])
    result = transformer(Zonotope(point), 1, source, "softmax").zonotope
    torch.testing.assert_close(result.center, function(point, 1))
    assert float(result.radius().max()) < 1e-6


@BOTH
def test_unknown_stays_unknown_in_its_row(transformer, function):
    source = SymbolSource()
    result = transformer(Zonotope(torch.tensor([[[1.0, torch.nan], [1.0, 2.0]]])), 2, source, "softmax")
    assert bool(result.bounds.upper[0, 0].isnan().all()) and bool(result.bounds.upper[0, 1].isfinite().all())
    assert bool(result.zonotope.interval_hull().upper[0, 0].isnan().all())


@BOTH
def test_gradients_flow(make_pair, transformer, function):
    x, _, source = make_pair(((2, 4), (1,)))
    slope = torch.ones(1, 2, 4, dtype=torch.float64, requires_grad=True)
    result = transformer(x.scale(slope), 2, source, "softmax")
    (gradient,) = torch.autograd.grad(result.zonotope.interval_hull().upper.sum(), slope)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().sum()) > 0


@given(st.integers(0, 1000), st.sampled_from(DTYPES), st.floats(1e-6, 8), st.sampled_from([1, 2]))
def test_outputs_that_sum_to_one_contain_every_point(make_pair, check_image, seed, dtype, radius, axis):
    x, _, source = make_pair(((3, 4), (1,)), 5, radius, seed, dtype)
    result = softmax(x, axis, source, "softmax", sum_to_one=True)
    check_image(lambda value: torch.softmax(value, axis), (x,), result, scale=20 * (1 + radius))
    total = result.zonotope.generators().sum(axis + 1)
    assert float(total.abs().max()) < 1e-5 * (1 + float(result.zonotope.radius().max()))
    torch.testing.assert_close(result.zonotope.center.sum(axis), torch.ones_like(x.center.sum(axis)))


def test_sums_of_outputs_are_tighter_where_all_sum_to_one(make_pair):
    x, _, source = make_pair(((6,), (1,)), radius=1.0, box=False)
    free, summed = (softmax(x, 1, source, "softmax", sum_to_one=one).zonotope for one in (False, True))
    directions = torch.ones(1, 6, dtype=torch.float64)
    directions[0, 0] = 0.5
    assert bool((summed.support(directions) < free.support(directions)).all())


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("transformer", [softmax, log_softmax])
def test_balls_stay_balls(transformer, p):
    source = SymbolSource()
    ball = LpBall(torch.randn(2, 6, dtype=torch.float64), 0.5, p).to_zonotope(source, "input")
    scores = matrix(ball, torch.randn(5, 6, dtype=torch.float64))
    boxed = Zonotope(scores.center, (DenseBlock(scores.symbols, scores.generators()),))
    widths = [
        [(b.upper - b.lower).mean() for b in (result.bounds, result.zonotope.interval_hull())]
        for result in (transformer(z, 1, source, "softmax") for z in (scores, boxed))
    ]
    assert widths[0][0] < 0.8 * widths[1][0] and widths[0][1] < 0.8 * widths[1][1]
