"""Neuron merging: the choice of neurons, and what it does to a zonotope."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.blocks import DiagonalBlock
from zonoplug.domain.rounding import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import SettingError
from zonoplug.reduction.neuron_merging import NeuronMerging, merge_rows, patch_reach, track_box
from zonoplug.testing import check_encloses

RELU = (0.0,)


def intervals(seed, batch=2, neurons=30, dead=0, dtype=torch.float64):
    """Bounds of the outputs of a ReLU layer, the first `dead` neurons at 0."""
    random = torch.Generator().manual_seed(seed)
    lower = torch.rand(batch, neurons, generator=random, dtype=dtype)
    width = torch.rand(batch, neurons, generator=random, dtype=dtype) ** 3
    lower[:, :dead], width[:, :dead] = 0, 0
    return Interval(lower, lower + width)


@pytest.mark.parametrize("buckets", ["static", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.floats(0.01, 0.99), st.integers(2, 150), st.integers(0, 99))
def test_the_target_rate_is_met(buckets, dtype, rate, neurons, seed):
    merging = NeuronMerging(rate=rate, buckets=buckets)
    bounds = intervals(seed, neurons=neurons, dead=neurons // 5, dtype=dtype)
    stay = (~merging.merged(bounds, RELU)).sum(dim=1)
    assert bool((stay <= ceil(rate * neurons)).all())


@pytest.mark.parametrize("buckets", ["static", "dynamic"])
@given(st.floats(0.2, 0.9), st.integers(0, 99))
def test_no_more_merge_than_asked_for_where_widths_differ(buckets, rate, seed):
    """With one bucket at 0 each larger tolerance adds one neuron; with many, a few may come together."""
    stay = (~NeuronMerging(rate=rate, buckets=buckets).merged(intervals(seed, neurons=40), RELU)).sum(dim=1)
    allowed = ceil(rate * 40)
    assert bool((stay >= allowed - (0 if buckets == "static" else 4)).all())


def test_at_rate_1_nothing_merges_and_at_tolerance_0_what_is_constant():
    bounds = intervals(0, dead=7)
    assert not bool(NeuronMerging(rate=1.0).merged(bounds, RELU).any())
    for buckets in ("static", "dynamic"):
        marks = NeuronMerging(tolerance=0, buckets=buckets).merged(bounds, RELU)
        assert bool(marks[:, :7].all()) and int(marks.sum()) == 14


@given(st.floats(0, 0.5), st.integers(0, 99))
def test_by_tolerance_neurons_join_a_bucket_and_never_alone(tolerance, seed):
    bounds = intervals(seed)
    static = NeuronMerging(tolerance=tolerance, buckets="static").merged(bounds, RELU)
    inside = bounds.upper <= tolerance
    assert torch.equal(static, inside & (inside.sum(dim=1, keepdim=True) > 1))
    narrow = NeuronMerging(tolerance=tolerance).merged(bounds, RELU)
    reach = torch.maximum(
        bounds.upper.unsqueeze(2) - (bounds.lower + bounds.upper).unsqueeze(1) / 2,
        (bounds.lower + bounds.upper).unsqueeze(1) / 2 - bounds.lower.unsqueeze(2),
    )
    assert bool(((reach <= tolerance + 1e-12).any(dim=2) | ~narrow).all())
    assert bool((narrow.sum(dim=1) != 1).all())


def test_each_element_of_a_batch_is_chosen_on_its_own():
    bounds = intervals(3)
    together = NeuronMerging(rate=0.4).merged(bounds)
    for i in range(2):
        alone = NeuronMerging(rate=0.4).merged(Interval(bounds.lower[i : i + 1], bounds.upper[i : i + 1]))
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("buckets", ["static", "dynamic"])
@pytest.mark.parametrize("how", [{"rate": 0.01}, {"tolerance": 1e30}])
def test_what_is_unknown_is_never_merged(buckets, how):
    bounds = intervals(1)
    bounds.upper[0, 3], bounds.upper[0, 4], bounds.lower[1, 5] = nan, inf, -inf
    marks = NeuronMerging(buckets=buckets, **how).merged(bounds, RELU)
    assert not bool(marks[0, 3] | marks[0, 4] | marks[1, 5])
    assert bool(marks.any())


@pytest.mark.parametrize("rate", [0.1, 0.5])
@given(st.booleans(), st.integers(0, 99))
def test_the_zonotope_with_merged_rows_encloses_the_one_before(make_zonotope, rate, box, seed):
    zonotope = make_zonotope(shape=(2, 4), box=box, seed=seed)
    bounds = zonotope.interval_hull()
    merged, marks = NeuronMerging(rate=rate).apply(zonotope, bounds)
    check_encloses(merged, zonotope)
    assert bool(marks.any())
    hull = merged.interval_hull()
    torch.testing.assert_close(hull.lower, bounds.lower)
    torch.testing.assert_close(hull.upper, bounds.upper)
    assert not bool((merged.generators() * marks.unsqueeze(1)).any())


def test_symbols_without_any_reach_go(make_zonotope):
    zonotope = make_zonotope(shape=(6,), dense=2, diagonal=3, batch=1, box=False)
    everything = torch.ones(1, 6, dtype=torch.bool)
    assert merge_rows(zonotope, zonotope.interval_hull(), everything).num_symbols == 0
    one = everything.clone()
    one[0, :] = False
    one[0, int(zonotope.blocks[1].index[0, 0])] = True
    assert merge_rows(zonotope, zonotope.interval_hull(), one).num_symbols == zonotope.num_symbols - 1


def test_a_merging_that_forgets_the_radius_is_noticed(make_zonotope):
    zonotope = make_zonotope(shape=(8,), seed=4)
    merged, marks = NeuronMerging(rate=0.5).apply(zonotope, zonotope.interval_hull())
    broken = replace(merged, box=merged.box.masked_fill(marks, 0))
    with pytest.raises(AssertionError, match="lost"):
        check_encloses(broken, zonotope)


@pytest.mark.parametrize("mode", ["nearest", "outward"])
@given(st.integers(0, 99))
def test_a_tracked_box_is_the_same_set(make_zonotope, mode, seed):
    source = SymbolSource()
    zonotope = make_zonotope(shape=(6,), seed=seed, source=source)  # its last symbols are called "diagonal"
    marks = torch.rand(2, 6) < 0.3
    with rounding(mode):
        tracked = track_box(zonotope, marks, source, "diagonal")
    assert bool((tracked.box.masked_fill(marks, 0) == 0).all())
    assert torch.equal(tracked.box.masked_fill(~marks, 0), zonotope.box.masked_fill(~marks, 0))
    directions = torch.randn(20, 6, dtype=torch.float64)
    torch.testing.assert_close(tracked.support(directions), zonotope.support(directions))
    introduced = [block for block in tracked.blocks if isinstance(block, DiagonalBlock)]
    values = torch.cat([block.values for block in introduced], dim=1)
    index = torch.cat([block.index for block in introduced], dim=1)
    for i in range(2):
        own = index[i][values[i] != 0]
        assert own.unique().numel() == own.numel() == int(((~marks[i]) | torch.isin(torch.arange(6), own)).sum())


def test_a_tracked_box_leaves_symbols_of_others_alone(make_zonotope):
    source = SymbolSource()
    zonotope = make_zonotope(shape=(6,), source=source)
    tracked = track_box(zonotope, torch.zeros(2, 6, dtype=torch.bool), source, "another node")
    assert torch.equal(tracked.generators(zonotope.symbols), zonotope.generators())


def test_pixels_are_compared_within_their_patch():
    lower = torch.tensor([[[[0.0, 0.01, 0.5, 0.9], [0.02, 0.0, 0.1, 0.2]]]])
    reach, bucket = patch_reach(Interval(lower, lower), 2)
    assert bucket.flatten().tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    marks = NeuronMerging(tolerance=0.02).from_reach(reach, bucket)
    assert marks.reshape(2, 4).tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize(
    "arguments", [{"rate": 0}, {"rate": 1.1}, {"rate": nan}, {"tolerance": -1}, {"tolerance": nan}, {"buckets": "x"}]
)
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(SettingError, match="NeuronMerging"):
        NeuronMerging(**arguments)


def test_a_point_stays_a_point():
    zonotope = Zonotope(torch.ones(1, 4))
    merged, marks = NeuronMerging(rate=0.25).apply(zonotope, zonotope.interval_hull())
    assert bool(marks.any()) and not bool(merged.radius().any())
