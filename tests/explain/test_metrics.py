"""Measures of maps, against their definitions and other implementations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from zonoplug.explain.metrics import (
    deletion_auc,
    infidelity,
    insertion_auc,
    sparsity,
    spearman,
    stability,
    standard_error,
    top_agreement,
)


@given(values=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20))
def test_spearman_is_scipys_ties_included(values):
    first, second = (torch.tensor(side).double() for side in zip(*values, strict=True))
    if len(first.unique()) == 1 or len(second.unique()) == 1:
        assert spearman(first, second) != spearman(first, second), "a constant map has no ranks: NaN"
    else:
        assert spearman(first, second) == pytest.approx(float(spearmanr(first, second).statistic), abs=1e-9)


def test_top_agreement_counts_common_entries():
    first, second = torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.tensor([5.0, 1.0, 4.0, 2.0])
    assert top_agreement(first, second, 1) == 1
    assert top_agreement(first, second, 2) == 0.5
    assert top_agreement(first, -first, 2) == 0


def test_sparsity_runs_from_equal_to_one_alone():
    assert sparsity(torch.full((50,), -3.0)) == pytest.approx(0, abs=1e-12)
    alone = torch.zeros(50)
    alone[7] = 2
    assert sparsity(alone) == pytest.approx(1 - 1 / 50)
    assert sparsity(torch.zeros(4)) == 0


def weighted(weights):
    return lambda points: points.flatten(1) @ weights


def test_deletion_and_insertion_know_the_right_order():
    weights = torch.tensor([8.0, 4.0, 2.0, 1.0]).double()
    point, baseline = torch.ones(1, 4).double(), torch.zeros(1, 4).double()
    score = weighted(weights)
    assert deletion_auc(score, point, weights, baseline) == pytest.approx((15 / 2 + 7 + 3 + 1) / 4)
    assert insertion_auc(score, point, weights, baseline) == pytest.approx((8 + 12 + 14 + 15 / 2) / 4)
    assert deletion_auc(score, point, -weights, baseline) > deletion_auc(score, point, weights, baseline)


def test_the_gradient_of_a_linear_score_is_perfectly_faithful_in_any_unit():
    weights = torch.randn(6).double()
    point = torch.rand(1, 6).double()
    assert infidelity(weighted(weights), point, 100 * weights, 0.1) == pytest.approx(0, abs=1e-12)
    assert infidelity(weighted(weights), point, torch.zeros(6), 0.1) == pytest.approx(1)
    wrong = torch.randn(6).double()
    assert 0.01 < infidelity(weighted(weights), point, wrong, 0.1) <= 1


def test_infidelity_is_captums_definition():
    """captum's normalised infidelity, with the same perturbations, relative to that of a map of zeros."""
    metrics = pytest.importorskip("captum.metrics")
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    point, slope = torch.rand(1, 5).double(), torch.randn(1, 5).double()
    random = torch.Generator().manual_seed(0)
    shift = 0.3 * torch.randn(64, 5, generator=random, dtype=torch.float64)

    def score(points):
        return network(points)[:, 0]

    def perturb(inputs, baselines=None):
        return shift, inputs - shift

    def theirs(values):
        return float(metrics.infidelity(score, perturb, point, values, n_perturb_samples=64, normalize=True))

    with torch.no_grad():
        change = float((score(point) - score(point - shift)).square().mean())
    assert infidelity(score, point, slope, 0.3) == pytest.approx(theirs(slope) / change, rel=1e-6)


def test_a_constant_map_is_perfectly_stable():
    point = torch.rand(1, 8)
    constant = torch.randn(1, 8)
    worst, steady = stability(lambda x: constant, point, 0.1)
    assert worst == 0
    assert steady == pytest.approx(1)
    worst, steady = stability(lambda x: (x - point) * 1e3 + 1e-3 * constant, point, 0.1)
    assert worst > 100
    assert abs(steady) < 0.9


def test_standard_error():
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert standard_error([1.0]) != standard_error([1.0])
