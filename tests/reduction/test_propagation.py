"""Reductions inside walks over graphs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.errors import SettingError
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.reduction import REDUCTIONS, Backoff
from zonoplug.testing import check_contains_samples

NAMES = REDUCTIONS.names()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(st.integers(0, 30), st.integers(0, 20), st.booleans())
def test_bounds_hold_on_forked_graphs(forked, bound, name, budget, seed, inputs):
    net, module, box = forked(seed)
    bounds, propagation = bound(module, box, f"zonotope[{name},{budget}{',inputs' if inputs else ''}]")
    samples = box.sample(200, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        outputs = torch.stack(list(map(net, samples)))
    check_contains_samples(bounds, outputs)
    if name != "exact":
        assert propagation.output.num_symbols <= max(budget, 4 if inputs else 0)


@pytest.mark.parametrize("rounding", ["outward", "inference"])
@pytest.mark.parametrize("name", NAMES)
def test_bounds_that_cover_rounding_hold(forked, bound, name, rounding):
    net, module, box = forked(3, dtype=torch.float32)
    bounds, _ = bound(module, box, f"zonotope[{name},5]", rounding=rounding)
    samples = box.sample(300, torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = torch.stack(list(map(net, samples)))
    assert bool((outputs >= bounds.lower).all() & (outputs <= bounds.upper).all())


@pytest.mark.parametrize("name", ["l1", "girard", "random", "lowrank", "cluster", "pairwise", "promote", "lazy"])
def test_the_last_reductions_loss_is_what_the_bounds_lose(chain, bound, name):
    """Nothing in front of the last reduction changes, so its reported loss is all there is."""
    _, module, box = chain()
    whole, exact = bound(module, box, "zonotope")
    # Warmed up first: rules that look at influence propagate twice, with the first one's bounds.
    bounds, propagation = bound(module, box, f"zonotope[{name},1000/1000/9]", torch.eye(3).double()[None], measure=True)
    (report,) = propagation.reductions
    assert report.symbols_before == exact.output.num_symbols
    assert report.symbols_after <= 9
    torch.testing.assert_close(report.loss, whole.lower - bounds.lower, rtol=0, atol=1e-12)
    torch.testing.assert_close(report.loss, bounds.upper - whole.upper, rtol=0, atol=1e-12)
    if name != "exact":
        assert float(report.loss.min()) >= -1e-12


def test_losses_add_up_where_relaxations_are_fixed(bound):
    """With known slopes and nothing unstable behind it, each reduction's loss is exact wherever it happens."""
    from zonoplug.domain.input_sets import Box
    from zonoplug.lirpa.module import build

    class Joins(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(5))

        def forward(self, x):
            a = self.maps[0](x)
            b = self.maps[1](a) + a  # each sum is a place where a walk may reduce
            c = self.maps[2](b) + a
            return self.maps[4](self.maps[3](c) + b)

    torch.manual_seed(1)
    net = Joins().double()
    center = torch.randn(2, 6).double()
    module, box = build(net, center[:1]), Box(center - 0.2, center + 0.2)
    whole, _ = bound(module, box, "zonotope")
    for name in ("l1", "random", "lowrank", "margin", "lazy", "collinear"):
        bounds, propagation = bound(module, box, f"zonotope[{name},4/3/2]", measure=True)
        assert [report.symbols_after for report in propagation.reductions][:1] == [4]
        total = sum(report.loss for report in propagation.reductions)
        torch.testing.assert_close(total, whole.lower - bounds.lower, rtol=0, atol=1e-12)


def test_the_margin_rule_is_the_best_single_choice(chain, bound):
    _, module, box = chain(seed=4)
    rows = torch.tensor([[[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]]).double()

    def lost(rule):
        _, propagation = bound(module, box, f"zonotope[{rule},1000/7/1000]", rows, measure=True)
        return float(propagation.reductions[0].loss.sum())

    best = lost("margin")
    for rule in ("l1", "girard", "combastel", "sensitivity", "gap", "random", "random:1", "oldest", "newest"):
        assert best <= lost(rule) + 1e-9


def test_protected_inputs_stay(chain, bound):
    _, module, box = chain()
    _, propagation = bound(module, box, "zonotope[oldest,6,inputs]")
    assert propagation.output.symbols[:5].tolist() == list(range(5))
    _, propagation = bound(module, box, "zonotope[oldest,6]")
    assert propagation.output.symbols.min() >= 5


def test_memory_limits_hold_for_inputs_too(chain, bound):
    _, module, box = chain(width=20)
    _, propagation = bound(module, box, "zonotope[l1,2kB]")
    # 8 bytes, 3 copies, at most 20 coordinates
    assert all(report.symbols_after <= 2000 // (8 * 3 * 20) for report in propagation.reductions)
    assert propagation.reductions[0].layer == 0
    _, propagation = bound(module, box, "zonotope[l1,auto]")
    assert propagation.reductions == []


def test_backing_off_stops_when_the_goal_is_reached(chain, bound):
    _, module, box = chain(depth=4, width=16, seed=2, radius=0.6)
    rows = torch.eye(3).double()[None]
    exact, full = bound(module, box, "zonotope", rows)
    coarse, _ = bound(module, box, "zonotope[l1,2]", rows)
    goal = (0.9 * exact.lower + 0.1 * coarse.lower) - 1e-9
    bounds, found = bound(module, box, "zonotope[l1,backoff 2]", rows, goal=goal)
    assert bool((bounds.lower > goal).all())
    assert 0 < len(found.reductions)
    assert found.reduced_by == "/".join(str(r.symbols_after) for r in found.reductions) + " symbols"
    assert found.output.num_symbols < full.output.num_symbols
    bounds, found = bound(module, box, "zonotope[l1,backoff 2]", rows)  # no goal: up to the exact walk
    assert found.reductions == []
    assert found.reduced_by == ""
    assert bool((bounds.lower >= exact.lower - 1e-9).all())


def test_backoff_spends_where_the_loss_is(chain, bound):
    _, module, box = chain(depth=3, seed=1)
    _, propagation = bound(module, box, "zonotope[random,4]", measure=True)
    step = Backoff(4).refined(propagation.reductions)
    costs = {r.layer: float(r.loss.sum()) for r in propagation.reductions}
    assert step.at(max(costs, key=costs.get)) == 8
    assert Backoff(4).refined([]) is None


@pytest.mark.parametrize(
    "text",
    [
        *("girard,512", "girard,50%", "girard,2GB", "girard,1.5MB", "girard,auto", "girard,512/256/128", "l1,7/"),
        *("girard,512 every 3", "girard,backoff 64", "girard,512,inputs", "random:7,512", "budget:0.05,100"),
        *("promote:girard,100", "exact"),
    ],
)
def test_spellings_survive_a_round_trip(text):
    name = f"zonotope[{text}]"
    assert str(BoundMethod.parse(name)).lower() == name.lower()
    assert BoundMethod.parse(str(BoundMethod.parse(name))) == BoundMethod.parse(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("girard", "write .rule,when."),
        ("girard,many", "Possible: 512"),
        ("girard,512,outputs", "write .rule,when."),
        ("girard:3,512", "takes no parameter"),
        ("random:x,512", "seed is 'x'"),
        ("budget:2,512", "between 0 and 1"),
        ("spatial:row,512", "Known: patch, channel"),
        ("girard,512 every 0", "at least 1"),
        ("girard,130%", "between 0 and 1"),
        ("girard,backoff 0", "at least 1"),
        ("promote:lowrank,20", "no boxing rule"),
    ],
)
def test_bad_spellings_say_what_is_possible(text, message, chain, bound):
    _, module, box = chain()
    with pytest.raises(SettingError, match=message):
        bound(module, box, f"zonotope[{text}]")
