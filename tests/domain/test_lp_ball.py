"""Lp balls: radii exact, norms kept by every operation, covered in floating point."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.alignment import symbol_groups
from zonoplug.domain.blocks import DenseBlock, DiagonalBlock, dual_norm
from zonoplug.domain.linear_maps import MatrixMap, NonNegativeMap
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.rounding import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope, add_zonotopes
from zonoplug.reduction import REDUCTIONS, BoxReduction
from zonoplug.transformers.affine import concatenate, specification

BOXING = [name for name, kind in REDUCTIONS.items() if issubclass(kind, BoxReduction)]
NORMS = [1.0, 1.2, 2.0, 3.0, 50.0]


def conjugate(p):
    return inf if p == 1 else p / (p - 1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ball_noise(p, count, size, seed=0):
    """Points of the unit lp ball, (count, size): on its surface, at its vertices, inside."""
    ball = LpBall(torch.zeros(1, size, dtype=torch.float64), 1.0, p)
    return ball.sample(count, torch.Generator().manual_seed(seed))[:, 0]


def norms_of(zonotope):
    return sorted({block.norm for block in zonotope.blocks})


@pytest.mark.parametrize("p", NORMS)
def test_the_radius_of_a_ball_is_the_dual_norm_through_every_linear_operation(p):
    """map, scale, reshape, sums with shared symbols, concatenation, specification: one matrix applied to the ball."""
    ball = LpBall(normal(2, 6), 0.5, p)
    x = ball.to_zonotope(SymbolSource(), "x")
    first, second, factor = normal(4, 6, seed=1), normal(4, 6, seed=2), normal(2, 4, seed=3)
    left = x.map(MatrixMap(first)).scale(factor)
    right = x.map(MatrixMap(second)).reshape((2, 2)).reshape((4,))
    total = add_zonotopes(left, right)
    joined = concatenate([total, torch.ones(1, 2, dtype=torch.float64), right], 1)
    rows = normal(2, 3, 10, seed=4)
    image = specification(joined, rows)
    whole = torch.cat(
        [factor.unsqueeze(2) * first + second, torch.zeros(2, 2, 6).double(), second.expand(2, 4, 6)], dim=1
    )
    for zonotope, matrix in ((left, factor.unsqueeze(2) * first), (joined, whole), (image, rows @ whole)):
        expected = 0.5 * torch.linalg.vector_norm(matrix, ord=conjugate(p), dim=2)
        torch.testing.assert_close(zonotope.radius(), expected)
        assert norms_of(zonotope) == [p]
    direction = normal(5, 10, seed=5)
    reach = torch.einsum("dn,bn->bd", direction, joined.center)
    reach = reach + 0.5 * torch.linalg.vector_norm(direction @ whole, ord=conjugate(p), dim=2)
    torch.testing.assert_close(joined.support(direction), reach)
    one_row = specification(joined, rows[:1])
    torch.testing.assert_close(one_row.radius()[0], image.radius()[0])


@pytest.mark.parametrize("p", NORMS)
def test_the_dual_norm_is_reached(p):
    """The point  e_j = sign(v_j) |v_j|^(q-1) / ||v||_q^(q-1)  of the ball reaches it."""
    values = normal(7)
    q = conjugate(p)
    noise = values.sign() * (values.abs() / values.abs().max()) ** min(q - 1, 1e9)
    noise = noise / torch.linalg.vector_norm(noise, ord=p)
    torch.testing.assert_close(dual_norm(values, p, dim=0), noise @ values)


@pytest.mark.parametrize("p", NORMS)
def test_huge_tiny_and_zero_values_keep_their_dual_norm_and_its_gradient(p):
    values = torch.tensor([[1e-30, 1e30, 0.0], [2e-30, 1e30, 0.0]]).requires_grad_(True)
    norm = dual_norm(values, p, dim=0)
    expected = torch.linalg.vector_norm(values.detach().double(), ord=conjugate(p), dim=0).float()
    torch.testing.assert_close(norm.detach(), expected)
    norm[[0, 2]].sum().backward()
    assert bool(values.grad.isfinite().all())
    assert bool((values.grad[:, 0] > 0).any())


@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.0]), st.integers(1, 40))
def test_the_dual_norm_is_rounded_up_while_rounding_is_covered(seed, p, size):
    values = (10 * normal(size, seed=seed)).float()
    with rounding("outward"):
        norm = Fraction(float(dual_norm(values, p, dim=0)))
    exact = [Fraction(float(v)) for v in values]
    if p == 1:
        assert norm >= max(abs(v) for v in exact)
    else:
        assert norm**2 >= sum(v * v for v in exact)


def test_a_sum_gives_columns_back_to_their_ball_where_a_branch_forgot_it():
    x = LpBall(normal(1, 5), 1.0, 2).to_zonotope(SymbolSource(), "x")
    image = x.map(MatrixMap(normal(5, 5, seed=1)))
    forgot = Zonotope(image.center, (DenseBlock(image.symbols, image.generators()),), image.box)
    total = add_zonotopes(x, forgot)
    assert norms_of(total) == [2.0]
    matrix = torch.eye(5, dtype=torch.float64) + normal(5, 5, seed=1)
    torch.testing.assert_close(total.radius()[0], torch.linalg.vector_norm(matrix, dim=1))


def test_parts_of_a_ball_are_one_ball_again_and_two_balls_stay_two():
    source = SymbolSource()
    x = LpBall(torch.zeros(1, 4), 1.0, 2).to_zonotope(source, "x")
    y = LpBall(torch.zeros(1, 4), 1.0, 1).to_zonotope(source, "y")
    block = x.blocks[0]
    part = block.select(torch.tensor([True, False, True, False]))
    for parts in ([part, block], [block, part]):
        groups = symbol_groups([*parts, *y.blocks, DenseBlock(torch.tensor([2, 9]), torch.ones(1, 2, 4))])
        assert [(ids.tolist(), norm) for ids, norm in groups] == [([0, 1, 2, 3], 2), ([4, 5, 6, 7], 1), ([9], inf)]
    both = add_zonotopes(add_zonotopes(x, y), add_zonotopes(y, x))
    torch.testing.assert_close(both.radius(), torch.full((1, 4), 4.0))
    both = both.map(NonNegativeMap(lambda rows: rows.sum(dim=1, keepdim=True)))
    torch.testing.assert_close(both.radius(), torch.tensor([[2 * 2.0 + 2 * 1.0]]))


@pytest.mark.parametrize("p", NORMS)
def test_a_ball_is_covered_by_its_images_relaxed_and_added(p):
    """Points of x -> relu(A x) + B x stay inside, symbol by symbol."""
    from zonoplug.relaxations import RELAXATIONS
    from zonoplug.transformers.elementwise import relax

    source = SymbolSource()
    ball = LpBall(normal(1, 6), 0.6, p)
    x = ball.to_zonotope(source, "x")
    first, second = normal(5, 6, seed=1), normal(5, 6, seed=2)
    hidden = x.map(MatrixMap(first))
    bent = relax(hidden, RELAXATIONS.get("relu"), hidden.interval_hull(), source, "relu")
    total = add_zonotopes(bent, x.map(MatrixMap(second)))
    points = ball.sample(500)[:, 0]
    values = torch.relu(points @ first.T) + points @ second.T
    directions = normal(60, 5, seed=3)
    assert bool(((values @ directions.T).amax(dim=0) <= total.support(directions)[0] + 1e-9).all())
    assert norms_of(total) == [p, inf]


@pytest.mark.parametrize("name", BOXING)
def test_reductions_keep_a_ball_before_anything_else(make_zonotope, name):
    source = SymbolSource()
    x = LpBall(normal(2, 5), 0.1, 2).to_zonotope(source, "x").map(MatrixMap(normal(5, 5, seed=1)))
    total = add_zonotopes(x, make_zonotope(source=source))
    reduced = REDUCTIONS.get(name)().reduce(total, 6)
    assert reduced.num_symbols <= 6
    assert bool(torch.isin(x.symbols, reduced.symbols).all())
    directions = normal(50, 5, seed=2)
    assert bool((reduced.support(directions) >= total.support(directions) - 1e-9).all())
    same = next(block for block in reduced.blocks if block.norm == 2.0)
    torch.testing.assert_close(same.dense(), x.generators())


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("budget", [0, 1, 3, 5])
@pytest.mark.parametrize("name", BOXING)
def test_a_budget_below_the_ball_keeps_its_longest_symbols_and_covers_the_rest(make_zonotope, name, budget, p):
    source = SymbolSource()
    x = LpBall(normal(2, 6), 0.4, p).to_zonotope(source, "x").map(MatrixMap(normal(5, 6, seed=1)))
    total = add_zonotopes(x, make_zonotope(source=source))
    reduced = REDUCTIONS.get(name)().reduce(total, budget)
    assert reduced.num_symbols <= budget
    kept = torch.isin(x.symbols, reduced.symbols)
    assert int(kept.sum()) == budget
    noise = ball_noise(p, 300, 6)
    missing = torch.einsum("mk,bkn->mbn", noise[:, ~kept], x.generators()[:, ~kept]).abs().amax(dim=0)
    extra = total.radius() - x.radius()
    assert bool((missing + extra <= reduced.box + 1e-9).all())
    plain = REDUCTIONS.get(name)().reduce(
        Zonotope(total.center, (DenseBlock(total.symbols, total.generators()),)), budget
    )
    assert bool((reduced.radius() <= plain.radius() + total.box + 1e-9).all())
    protected = REDUCTIONS.get(name)().reduce(total, 5, protect=x.symbols[[2]])
    assert bool(torch.isin(x.symbols[2], protected.symbols))


def test_limits_cut_samples_bounds_and_symbols():
    center = torch.tensor([[0.0, 0.5, 1.0, 0.3]])
    low, high = torch.tensor([[0.0, 0.0, 0.0, 0.3]]), torch.tensor([[1.0, 1.0, 1.0, 0.3]])
    ball = LpBall(center, 0.6, 2, low, high)
    samples = ball.sample(500)
    assert bool(((samples >= low) & (samples <= high)).all())
    assert bool(ball.contains(samples, 1e-5).all())
    hull = ball.interval_hull()
    torch.testing.assert_close(hull.lower, torch.tensor([[0.0, 0.0, 0.4, 0.3]]))
    torch.testing.assert_close(hull.upper, torch.tensor([[0.6, 1.0, 1.0, 0.3]]))
    assert ball.to_zonotope(SymbolSource(), "x").num_symbols == 3
    thin = LpBall(center[:, :1], 0.6, 2, 0.0, 0.5).to_zonotope(SymbolSource(), "x").interval_hull()
    torch.testing.assert_close(thin.upper, torch.tensor([[0.5]]))
    torch.testing.assert_close(thin.lower, torch.tensor([[0.0]]))


@given(st.integers(0, 10_000), st.sampled_from(NORMS), st.sampled_from([torch.float32, torch.float64]))
def test_a_ball_is_covered_in_floating_point(seed, p, dtype):
    """Also beside a large center, where the radius is a few units in the last place."""
    center = (normal(1, 4, seed=seed) * 10.0 ** (seed % 7)).to(dtype)
    ball = LpBall(center, 10.0 ** -(seed % 5), p)
    samples = ball.sample(50, torch.Generator().manual_seed(seed))
    inner = ball.to_zonotope(SymbolSource(), "x").interval_hull()
    assert bool(((samples >= inner.lower) & (samples <= inner.upper)).all())
    ends = torch.cat([center - ball.radii(), center + ball.radii()])
    assert bool(((ends >= inner.lower) & (ends <= inner.upper)).all())


def test_contains_measures_the_norm():
    ball = LpBall(torch.zeros(1, 2), 1.0, 1)
    points = torch.tensor([[[0.5, 0.5]], [[0.5, 0.6]], [[1.0, 0.0]], [[torch.nan, 0.0]]])
    assert ball.contains(points).flatten().tolist() == [True, False, True, False]


def test_blocks_of_a_ball_equal_their_dense_oracle():
    x = LpBall(normal(2, 4), 0.5, 3.0).to_zonotope(SymbolSource(), "x")
    block = x.blocks[0]
    assert isinstance(block, DiagonalBlock)
    dense = DenseBlock(block.symbols, block.dense(), block.norm)
    rows = normal(2, 3, 4, seed=1)
    torch.testing.assert_close(block.contract(rows).generators, dense.contract(rows).generators)
    torch.testing.assert_close(block.contract(rows[:1]).generators, dense.contract(rows[:1]).generators)
    torch.testing.assert_close(block.radius(), dense.radius())
    marks = torch.tensor([True, False, False, True])
    torch.testing.assert_close(block.select(marks).dense(), dense.select(marks).generators)
