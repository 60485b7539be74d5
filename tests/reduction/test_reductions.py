"""The laws of reductions, over every registered one."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.linear_maps import MatrixMap
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import ReductionRefusedError, SymbolBudgetError, UnknownNameError
from zonoplug.reduction import (
    L1,
    REDUCTIONS,
    AlthoffA,
    ErrorBudget,
    Gap,
    Girard,
    LiveValue,
    Promote,
    Reduction,
    ReductionContext,
)
from zonoplug.registry import Registry
from zonoplug.testing import check_reduction

NAMES = REDUCTIONS.names()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50)
@given(st.integers(0, 6), st.integers(0, 4), st.integers(0, 8), st.booleans(), st.integers(0, 99))
def test_laws(make_zonotope, name, dtype, dense, diagonal, budget, box, seed):
    zonotope = make_zonotope(dense=dense, diagonal=diagonal, box=box, dtype=dtype, seed=seed)
    check_reduction(REDUCTIONS.get(name)(), zonotope, budget)


@pytest.mark.parametrize("name", NAMES)
def test_protected_symbols_survive(make_zonotope, name):
    zonotope = make_zonotope(dense=6, diagonal=2)
    check_reduction(REDUCTIONS.get(name)(), zonotope, 4, protect=zonotope.symbols[[0, 5]])


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_generators(name):
    generators = torch.tensor(
        [[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1e-30, 1e30, 0.0]]]
    )
    zonotope = Zonotope(torch.zeros(1, 3), (DenseBlock(torch.arange(5), generators),))
    for budget in range(6):
        check_reduction(REDUCTIONS.get(name)(), zonotope, budget)


@pytest.mark.parametrize("name", NAMES)
def test_every_reduction_names_its_source(name):
    assert len(REDUCTIONS.get(name).source) > 10
    assert REDUCTIONS.get(name).__doc__


def test_girard_boxes_axis_aligned_generators_for_nothing():
    generators = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    zonotope = Zonotope(torch.zeros(1, 2), (DenseBlock(torch.arange(3), generators),))
    reduced = Girard().reduce(zonotope, 1)
    assert reduced.symbols.tolist() == [2]
    directions = torch.randn(20, 2)
    torch.testing.assert_close(reduced.support(directions), zonotope.support(directions))


def test_impossible_budgets_are_refused(make_zonotope):
    zonotope = make_zonotope()
    with pytest.raises(SymbolBudgetError, match="at least 0"):
        Girard().reduce(zonotope, -1)
    with pytest.raises(SymbolBudgetError, match="at least 2"):
        Girard().reduce(zonotope, 1, protect=zonotope.symbols[:2])


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'girard'"):
        REDUCTIONS.get("girrard")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(0, 99),
    st.sampled_from(["zero", "twice", "parallel", "flat", "huge", "none"]),
)
def test_laws_at_any_shape_and_rank(name, shape, batch, count, budget, seed, flaw):
    random = torch.Generator().manual_seed(seed)
    generators = torch.randn(batch, count, *shape, generator=random, dtype=torch.float64)
    if flaw == "zero":
        generators[:, ::2] = 0
    elif flaw == "twice":
        generators = torch.cat([generators, generators], dim=1)
    elif flaw == "parallel":
        generators[:, 1:] = generators[:, :1] * torch.randn(count - 1, *[1] * len(shape), generator=random).double()
    elif flaw == "flat":
        generators[..., 0] = 0
    elif flaw == "huge":
        generators[:, 0] *= 1e200
    ids = torch.arange(generators.shape[1])
    zonotope = Zonotope(torch.randn(batch, *shape, generator=random).double(), (DenseBlock(ids, generators),))
    check_reduction(REDUCTIONS.get(name)(), zonotope, budget)
    check_reduction(REDUCTIONS.get(name)(), zonotope, max(budget, 1), protect=ids[-1:])


@pytest.mark.parametrize("name", NAMES)
def test_unit_balls_are_kept_or_boxed_by_their_norm(name):
    random = torch.Generator().manual_seed(0)
    ball = DenseBlock(torch.arange(3), torch.randn(1, 3, 4, generator=random).double(), 2.0)
    plain = DenseBlock(torch.arange(3, 9), torch.randn(1, 6, 4, generator=random).double())
    for budget in (1, 4, 7):
        reduced = check_reduction(REDUCTIONS.get(name)(), Zonotope(torch.zeros(1, 4).double(), (plain, ball)), budget)
        kept = sum(block.num_symbols for block in reduced.blocks if block.norm == 2.0)
        assert name == "exact" or kept == min(3, budget)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_unknown_stays_unknown(name):
    generators = torch.randn(2, 5, 3, dtype=torch.float64)
    generators[0, 1, 1] = torch.nan
    zonotope = Zonotope(torch.zeros(2, 3).double(), (DenseBlock(torch.arange(5), generators),))
    context = ReductionContext(source=SymbolSource.beyond(torch.arange(5)))
    reduced = REDUCTIONS.get(name)().reduce(zonotope, 2, context=context)
    assert bool(reduced.radius()[0, 1].isnan())


def test_the_error_budget_bounds_the_hausdorff_distance(make_zonotope):
    zonotope = make_zonotope(dense=12, diagonal=0, box=False)
    directions = torch.randn(4000, 5, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    for share in (0.0, 0.2, 0.5, 1.0):
        rule = ErrorBudget(share=share)
        reduced = rule.reduce(zonotope, 11)
        bound = rule.error_bound(zonotope, reduced)
        gap = (reduced.support(directions) - zonotope.support(directions)).amax(dim=1)
        assert bool((gap <= bound + 1e-12).all())
        demanded = reduced.num_symbols == 11
        assert demanded or bool((bound <= 2 * share * zonotope.radius().norm(dim=1) + 1e-12).all())
    assert reduced.num_symbols < 6


def test_gap_counts_the_loss_in_the_next_layer(make_zonotope):
    zonotope = make_zonotope(dense=6, diagonal=0, box=False, batch=1)
    weight = torch.randn(7, 5, dtype=torch.float64)
    context = ReductionContext(ahead=(lambda z: z.map(MatrixMap(weight)),))
    reduced = Gap().reduce(zonotope, 5, context=context)

    def lost(kept):
        left = zonotope.generators()[0, ~torch.isin(zonotope.symbols, kept)]
        return float((left.abs() @ weight.T.abs() - (left @ weight.T).abs()).sum())

    every = [zonotope.symbols[torch.arange(6) != place] for place in range(6)]
    assert lost(reduced.symbols) == pytest.approx(min(lost(kept) for kept in every))


def test_symbols_that_live_elsewhere_are_scored_there_too(make_zonotope):
    zonotope = make_zonotope(dense=4, diagonal=0, batch=1)
    shortest = zonotope.generators()[0].abs().sum(dim=1).argmin()
    assert int(shortest) not in L1().reduce(zonotope, 1).symbols.tolist()
    other = Zonotope(
        torch.zeros(1, 2).double(),
        (DenseBlock(zonotope.symbols[shortest : shortest + 1], torch.full((1, 1, 2), 1e3).double()),),
    )
    context = ReductionContext(elsewhere=(LiveValue(other),))
    assert L1().reduce(zonotope, 1, context=context).symbols.tolist() == [int(shortest)]


def test_parallel_generators_merge_without_loss():
    direction = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    generators = direction * torch.tensor([1.0, -3.0, 0.25, 2.0], dtype=torch.float64)[:, None]
    zonotope = Zonotope(torch.zeros(1, 3).double(), (DenseBlock(torch.arange(4), generators[None]),))
    directions = torch.randn(20, 3, dtype=torch.float64)
    for name in ("collinear", "cluster", "lowrank", "pca", "scott", "valero", "althoff-a", "spatial"):
        reduced = check_reduction(REDUCTIONS.get(name)(), zonotope, 1)
        torch.testing.assert_close(reduced.support(directions), zonotope.support(directions), msg=name)


def test_the_lazy_box_names_what_was_boxed(make_zonotope):
    zonotope = make_zonotope(dense=0, diagonal=5, batch=2)
    reduced = check_reduction(Promote(), zonotope, 3)
    torch.testing.assert_close(reduced.radius(), zonotope.radius())
    widest = zonotope.radius().topk(2, dim=1).values  # half of the budget, and no mixed generator needs the other
    assert reduced.num_symbols == 3
    assert bool((reduced.generators().abs().sum(dim=1).amax(dim=1) == widest[:, 0]).all())


@pytest.mark.parametrize("name", ["pca", "scott", "valero", "althoff-a", "althoff-b", "althoff-c"])
def test_frame_methods_refuse_what_they_cannot_hold(name):
    block = DenseBlock(torch.arange(3), torch.ones(1, 3, 5000))
    context = ReductionContext(source=SymbolSource.beyond(torch.arange(3)))
    with pytest.raises(ReductionRefusedError, match="5000 x 5000"):
        REDUCTIONS.get(name)().reduce(Zonotope(torch.zeros(1, 5000), (block,)), 2, context=context)


def test_too_many_combinations_are_refused():
    block = DenseBlock(torch.arange(60), torch.randn(1, 60, 20))
    context = ReductionContext(source=SymbolSource.beyond(torch.arange(60)))
    with pytest.raises(ReductionRefusedError, match="sets of 15 out of 45 generators"):
        AlthoffA().reduce(Zonotope(torch.zeros(1, 20), (block,)), 30, context=context)


@pytest.mark.parametrize("name", ["lowrank", "pca", "promote", "spatial"])
def test_merging_without_a_source_of_symbols_is_refused(name, make_zonotope):
    with pytest.raises(ReductionRefusedError, match="which ids are free"):
        REDUCTIONS.get(name)().reduce(make_zonotope(), 3)


def test_other_packages_add_reductions(monkeypatch):
    point = EntryPoint("theirs", "zonoplug.reduction.l1:L1", "zonoplug.reductions")
    monkeypatch.setattr("zonoplug.registry.entry_points", lambda group: [point] if group == point.group else [])
    registry: Registry[type[Reduction]] = Registry("reduction", "zonoplug.reductions")
    assert registry.get("theirs") is L1
    assert REDUCTIONS.group == "zonoplug.reductions"
