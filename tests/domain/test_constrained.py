"""Constraints on noise symbols: nothing feasible is lost, and no bound beats the exact linear program."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.domain.constrained import ConstrainedZonotope, SymbolConstraints
from zonoplug.domain.input_sets import Box
from zonoplug.domain.linear_maps import MatrixMap
from zonoplug.domain.symbols import SymbolSource

BATCH, ROWS, SYMBOLS = 4, 3, 5


def random_constraints(seed: int, dtype=torch.float64, tightness: float = 0.5) -> SymbolConstraints:
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randn(BATCH, ROWS, SYMBOLS, generator=random, dtype=dtype)
    bound = (torch.rand(BATCH, ROWS, generator=random, dtype=dtype) - 0.5) * matrix.abs().sum(dim=2) * tightness
    return SymbolConstraints.on_unit_cube(matrix, bound)


def feasible_points(facts: SymbolConstraints, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(4000, BATCH, SYMBOLS, generator=random, dtype=facts.bound.dtype) * 2 - 1
    points[::3] = points[::3].sign()
    meets = (torch.einsum("bmk,nbk->nbm", facts.matrix, points) <= facts.bound).all(dim=2)
    return points, meets


@given(seed=st.integers(0, 2**16), rounds=st.integers(1, 4), single=st.booleans())
@settings(max_examples=60, deadline=None)
def test_contraction_keeps_every_value_that_meets_the_rows(seed, rounds, single):
    facts = random_constraints(seed, torch.float32 if single else torch.float64, tightness=1.5)
    points, meets = feasible_points(facts, seed + 1)
    tight = facts.contracted(rounds)
    inside = ((points >= tight.lower) & (points <= tight.upper)).all(dim=2)
    assert bool(inside[meets].all())
    assert not bool((tight.empty & meets.any(dim=0)).any())
    assert not bool((facts.infeasible(10) & meets.any(dim=0)).any())
    assert bool((tight.lower >= -1).all() and (tight.upper <= 1).all())


def test_contraction_is_exact_on_one_row():
    facts = SymbolConstraints.on_unit_cube(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[-1.0]]))
    tight = facts.contracted(1)
    assert torch.allclose(tight.upper, torch.tensor([[-0.5, 1.0]]), atol=1e-4)
    assert tight.lower.tolist() == [[-1.0, -1.0]]


def test_rows_that_contradict_each_other_are_found():
    rows = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
    facts = SymbolConstraints.on_unit_cube(rows, torch.tensor([[-0.1, -0.1]]))
    assert not bool(facts.contracted(1).empty.any())  # no single row shows it
    assert bool(facts.infeasible().all())
    alone = SymbolConstraints.on_unit_cube(torch.tensor([[[1.0, 1.0]]]), torch.tensor([[-3.0]]))
    assert bool(alone.contracted(1).empty.all())


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_coefficient_that_is_not_a_number_proves_nothing(broken):
    facts = SymbolConstraints.on_unit_cube(torch.tensor([[[broken, 1.0]]]), torch.tensor([[-0.5]]))
    tight = facts.contracted()
    assert not bool(tight.empty.any())
    assert not bool(facts.infeasible().any())


@given(seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_the_dual_and_intervals_never_beat_the_linear_program(seed):
    pytest.importorskip("scipy")
    random = torch.Generator().manual_seed(seed)
    facts = random_constraints(seed)
    box = Box(-torch.ones(BATCH, SYMBOLS, dtype=torch.float64), torch.ones(BATCH, SYMBOLS, dtype=torch.float64))
    weight = torch.randn(3, SYMBOLS, generator=random, dtype=torch.float64)
    zonotope = box.to_zonotope(SymbolSource(), "x").map(MatrixMap(weight))
    constrained = ConstrainedZonotope(zonotope, facts)
    direction = torch.randn(3, generator=random, dtype=torch.float64)
    exact = constrained.exact_least(direction)
    plain = -zonotope.support(-direction.unsqueeze(0))[:, 0]
    dual = constrained.least(direction, steps=60)
    assert bool((dual <= exact + 1e-6).all())
    assert bool((dual >= plain - 1e-6).all())
    contracted = ConstrainedZonotope(zonotope, facts.contracted())
    assert torch.allclose(contracted.exact_least(direction), exact, atol=1e-5) or bool(exact.isinf().any())
    some = exact.isfinite() & (exact > plain + 0.1)
    assert bool((dual[some] > plain[some]).all())
    hull = constrained.interval_hull()
    points, meets = feasible_points(facts, seed)
    images = torch.einsum("nbk,ok->nbo", points, weight)
    tolerance = 1e-6
    assert bool(((images >= hull.lower - tolerance) & (images <= hull.upper + tolerance))[meets].all())
    assert bool(((images @ direction)[meets] >= dual.expand(len(points), -1)[meets] - tolerance).all())


def test_a_warm_start_is_never_worse_than_its_own_bound():
    facts = random_constraints(3)
    direction = torch.randn(BATCH, SYMBOLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, y = facts.least(direction, 20)
    again, _ = facts.least(direction, 0, start=y)
    assert torch.allclose(first, again)
    assert bool((facts.least(direction, 5, start=y)[0] >= first - 1e-12).all())
