"""The laws of reductions, over every registered one."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import SettingError, SymbolBudgetError, UnknownNameError
from zonoplug.reduction import REDUCTIONS, AboveSymbols, BoxReduction, Girard, Never
from zonoplug.testing import check_reduction

NAMES = REDUCTIONS.names()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
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


def test_schedules(make_zonotope):
    zonotope = make_zonotope(dense=5, diagonal=0)
    assert Never().budget(zonotope) is None
    assert AboveSymbols(5).budget(zonotope) is None
    assert AboveSymbols(4).budget(zonotope) == 4
    with pytest.raises(SettingError):
        AboveSymbols(-1)


class _Forgetful(BoxReduction):
    """Broken on purpose: forgets half of the box."""

    source: ClassVar[str] = "a mistake"

    def score(self, generators):
        return generators.abs().sum(dim=2)

    def _reduce(self, zonotope, max_symbols, protected, context):
        reduced = super()._reduce(zonotope, max_symbols, protected, context)
        return Zonotope(reduced.center, reduced.blocks, reduced.box / 2)


def test_the_law_notices_a_reduction_that_loses_points(make_zonotope):
    with pytest.raises(AssertionError, match="lost"):
        check_reduction(_Forgetful(), make_zonotope(dense=6), 2)
