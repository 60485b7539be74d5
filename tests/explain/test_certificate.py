"""The one-pass certificate: never above the truth, and as generous as it can be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.errors import SettingError
from zonoplug.explain.certificate import Certificate
from zonoplug.explain.influence import SymbolInfluence

SEEDS = st.integers(0, 10**6)


def certificate_of(network, region, decision, covered=None):
    box = region.box if covered is None else region.freed(covered)
    found = SymbolInfluence(network).influence(region.point, decision, box)
    return Certificate.of(found, region, covered)


@settings(max_examples=20)
@given(seed=SEEDS, radius=st.sampled_from([0.05, 0.2, 0.6]))
def test_it_never_exceeds_the_true_minimum(make_region, extremes, seed, radius):
    """Every set of free inputs, over vertices and samples; points are off the middle, where boxes are clipped."""
    network, region, decision = make_region(seed=seed, radius=radius)
    certificate = certificate_of(network, region, decision)
    for bits in itertools.product((False, True), repeat=4):
        free = torch.tensor(bits)
        truth = decision.margins(network(extremes(region.freed(free), 100))).amin(dim=0)
        assert bool((certificate.margin(free) <= truth + 1e-9).all())


@settings(max_examples=20)
@given(seed=SEEDS)
def test_it_is_exact_for_linear_networks(make_region, extremes, seed):
    network, region, decision = make_region(seed=seed, hidden=())
    certificate = certificate_of(network, region, decision)
    for bits in itertools.product((False, True), repeat=4):
        free = torch.tensor(bits)
        truth = decision.margins(network(extremes(region.freed(free), 1))).amin(dim=0)
        torch.testing.assert_close(certificate.margin(free), truth, rtol=1e-9, atol=1e-9)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_features_outside_the_propagation_are_never_allowed(make_region, seed):
    network, region, decision = make_region(seed=seed, radius=0.01)
    covered = torch.tensor([True, False, True, False])
    certificate = certificate_of(network, region, decision, covered)
    assert not certificate.allows(torch.tensor([False, True, False, False]))
    assert not bool((certificate.largest() & ~covered).any())


@given(
    cost=st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=8),
    slack=st.lists(st.floats(0.01, 2), min_size=2, max_size=2),
)
def test_the_knapsack_fits_and_nothing_can_be_added(cost, slack):
    costs, room = torch.tensor(cost, dtype=torch.float64), torch.tensor(slack, dtype=torch.float64)
    certificate = Certificate(room, costs, torch.ones(len(cost), dtype=torch.bool))
    chosen = certificate.largest()
    assert certificate.allows(chosen)
    most = max(
        sum(bits)
        for bits in itertools.product((0, 1), repeat=len(cost))
        if certificate.allows(torch.tensor(bits).bool())
    )
    assert int(chosen.sum()) <= most
    for feature in (~chosen).nonzero().flatten().tolist():
        more = chosen.clone()
        more[feature] = True
        assert not bool((certificate.margin(more) > 1e-9).all())
    alone = Certificate(room[:1], costs[:, :1], torch.ones(len(cost), dtype=torch.bool))
    best = max(
        sum(bits) for bits in itertools.product((0, 1), repeat=len(cost)) if alone.allows(torch.tensor(bits).bool())
    )
    assert int(alone.largest().sum()) >= best - int(bool((costs[:, 0].sum() - room[0]).abs() < 1e-9))


def test_without_slack_nothing_is_free_and_nan_proves_nothing():
    everything = torch.ones(3, dtype=torch.bool)
    for slack in (0.0, -1.0, float("nan")):
        certificate = Certificate(torch.tensor([slack, 1.0]).double(), torch.zeros(3, 2).double(), everything)
        assert not bool(certificate.largest().any())
        assert not certificate.allows(~everything)
    certificate = Certificate(torch.ones(1).double(), torch.full((3, 1), float("nan")).double(), everything)
    assert not bool(certificate.largest().any())


def test_only_one_box_has_a_certificate(make_network, make_region):
    network, region, decision = make_region()
    found = SymbolInfluence(network).influence(region.point.repeat(2, 1), decision, region.freed(torch.ones(2, 4) > 0))
    with pytest.raises(SettingError, match="batch of 2"):
        Certificate.of(found, region)
