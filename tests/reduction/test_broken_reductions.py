"""The law of reductions notices those that are broken."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from zonoplug.domain.blocks import DenseBlock
from zonoplug.domain.zonotope import Zonotope
from zonoplug.reduction import L1, BoxReduction, LowRank, Reduction
from zonoplug.reduction.merging import Merged
from zonoplug.testing import check_reduction


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


class _Shrinking(LowRank):
    """Broken on purpose: forgets what its directions cannot express."""

    def merge(self, generators, count, shape):
        merged = super().merge(generators, count, shape)
        return Merged(merged.generators, torch.zeros_like(merged.box))


class _Straight(LowRank):
    """Broken on purpose: merged generators too short, and a box that hides it from the hull in part."""

    def merge(self, generators, count, shape):
        merged = super().merge(generators, count, shape)
        thin = merged.generators / 3
        return Merged(thin, merged.box + 0.2 * thin.abs().sum(dim=1))


class _Reusing(Reduction):
    """Broken on purpose: the merged symbol takes the name of one that it was merged from."""

    source: ClassVar[str] = "a mistake"

    def _reduce(self, zonotope, max_symbols, protected, context):
        generators = zonotope.generators()
        last = torch.cat([generators[:, : max_symbols - 1], generators[:, max_symbols - 1 :].abs().sum(1, True)], dim=1)
        return Zonotope(zonotope.center, (DenseBlock(zonotope.symbols[:max_symbols], last),), zonotope.box)


@pytest.mark.parametrize("broken", [_Shrinking, _Straight, _Reusing])
def test_the_law_notices_merging_that_loses_points(make_zonotope, broken):
    with pytest.raises(AssertionError, match=r"lost|shrank"):
        check_reduction(broken(), make_zonotope(dense=9, diagonal=0, box=False), 4)


def test_the_law_notices_a_wrong_loss(make_zonotope, monkeypatch):
    monkeypatch.setattr("zonoplug.reduction.report.dual_norm", lambda values, norm: 0.9 * values.abs().sum(dim=1))
    with pytest.raises(AssertionError, match="the reported loss is off"):
        check_reduction(L1(), make_zonotope(dense=9), 4)
