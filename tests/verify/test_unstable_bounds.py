"""Bounds over affine forms: sound, as tight as linear programs over the triangles, right gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import unstable_networks as nets
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.ascent import Adam
from zonoplug.testing import tolerance
from zonoplug.verify.bounds import unstable_bounds
from zonoplug.verify.bounds.graph_bounds import GraphBounds
from zonoplug.verify.bounds.targets import Targets
from zonoplug.verify.bounds.unstable_bounds import UnstableBounds, UnstableMargins
from zonoplug.verify.branching.activations import ACTIVATION_RULES, activation_rule

SEEDS, SHARES = st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.5, 1.0])


def single(opened, row, side, count):
    """One form as the target of some subdomains, from below (1) or from above (-1)."""
    forms = opened.forms.pick(torch.tensor([row]).expand(count))
    return Targets.of(forms, torch.full((count, 1), float(side)).to(opened.rows))


@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=SEEDS, share=SHARES, steps=st.sampled_from([0, 3, 12]), side=st.sampled_from([1, -1]))
@nets.few
def test_no_point_of_a_subdomain_lies_below_its_bound(kind, seed, share, steps, side):
    """The signs of some points are fixed; each of their subdomains has all points that share them."""
    opened = nets.Opened.random(kind, seed)
    points = opened.points(200, seed)
    before, values = opened.unstable(points), side * opened.outputs(points)[:, 1]
    part = opened.fixed(nets.signs_of(before[:6], share, seed))
    part.beta = torch.rand(part.beta.shape, dtype=torch.float64)
    part.alpha = torch.rand(part.alpha.shape, dtype=torch.float64)
    found, _ = opened.bounds.bound(part, single(opened, 1, side, len(part)), steps)
    inside = ((before.unsqueeze(0) * part.sign.unsqueeze(1)) >= 0).all(dim=2)
    assert bool(inside.any(dim=1).all())
    lowest = values.masked_fill(~inside, torch.inf).amin(dim=1)
    assert bool((found <= lowest + tolerance(values)).all())
    assert bool(found.isfinite().all())
    minimisers = opened.bounds.minimisers
    assert minimisers.shape == (len(part), *opened.box.lower.shape[1:])
    assert bool(((minimisers == opened.box.lower) | (minimisers == opened.box.upper)).all())


@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=SEEDS, share=SHARES)
@nets.few
def test_equal_multipliers_give_the_bound_of_a_pass_through_the_whole_graph(kind, seed, share):
    opened = nets.Opened.random(kind, seed)
    signs = nets.signs_of(opened.unstable(opened.points(3, seed)), share, seed)
    own, goal = opened.fixed(signs), torch.randn(len(opened.rows), dtype=torch.float64)
    own.alpha, own.beta = torch.rand(own.alpha.shape).to(goal), torch.rand(own.beta.shape).to(goal)
    graph = GraphBounds(opened.module, opened.backward, opened.box, opened.preactivations, nets.RULE)
    whole = graph.layout.root(opened.preactivations, len(own))
    for name in ("lower", "upper", "sign", "alpha", "beta"):
        values = getattr(whole, name).clone()
        values[:, opened.network.numbers] = getattr(own, name)
        setattr(whole, name, values)
    properties = opened.properties(goal).pick(torch.zeros(len(own), dtype=torch.int64))
    margins = UnstableMargins(opened.bounds, opened.forms, opened.properties(goal))
    found, scores = margins.bound(own, properties, 0)
    wanted, all_scores = graph.bound(whole, properties, 0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scores, all_scores[:, opened.network.numbers], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(margins.minimisers, graph.minimisers)


@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=SEEDS, share=SHARES)
@nets.few
def test_gradients_are_those_of_the_bound(kind, seed, share):
    """Against autograd through one bound: of slopes, of multipliers, of the mixture of rows."""
    opened = nets.Opened.random(kind, seed)
    part = opened.fixed(nets.signs_of(opened.unstable(opened.points(5, seed)), share, seed))
    random = torch.Generator().manual_seed(seed)
    part.alpha, part.beta = (torch.rand(part.alpha.shape, generator=random).to(part.lower) for _ in range(2))
    exact = opened.network.forms = replace(opened.network.forms, error=torch.zeros_like(opened.network.forms.error))
    goal = torch.full((len(opened.rows),), 50.0, dtype=torch.float64)  # out of reach: no bound is enough
    forms = replace(opened.forms, error=torch.zeros_like(opened.forms.error))
    margins = UnstableMargins(opened.bounds, forms, opened.properties(goal))
    moves, given_ = [], []

    def noted(self, gradients):
        moves.append([gradient.clone() for gradient in gradients])
        given_.append([value.clone() for value in self._values])
        for value, gradient in zip(self._values, gradients, strict=True):
            value += 0.05 * gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adam, "step", noted)
        margins.bound(part, opened.properties(goal).pick(torch.zeros(len(part), dtype=torch.int64)), 2)
    assert len(moves) == 2
    for (alpha, beta, weights), found in zip(given_, moves, strict=True):
        free = [value.requires_grad_(True) for value in (alpha, beta, weights)]
        lower = reference(part, exact, forms, opened, goal, *free).sum()
        for mine, wanted in zip(found, torch.autograd.grad(lower, free), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-9)
    assert bool(moves[0][0].any()) or share > 0 or kind == "dense"
    assert bool(moves[0][2].any())
    assert bool(moves[0][1].any()) == bool(part.sign.any())


def reference(part, own, forms, opened, goal, alpha, beta, weights):
    """The lower bound of a mixture of forms less their goals, neuron by neuron from the last one, (n,)."""
    shares, box = weights.softmax(dim=1), opened.box
    behind, at_input = shares @ forms.before, shares @ forms.inputs
    value = shares @ (forms.constant - goal)
    for i in reversed(range(len(opened.network))):
        low, high, a = part.lower[:, i], part.upper[:, i], behind[:, i]
        chord = torch.where(low < 0, high / (high - low), torch.ones_like(high))
        slope = torch.where(a < 0, chord, torch.where((low < 0) & (high > 0), alpha[:, i], chord))
        value = value - torch.where(a < 0, a * chord * low.clamp(max=0), torch.zeros_like(a))
        front = a * slope - beta[:, i] * part.sign[:, i]
        behind = behind + front.unsqueeze(1) * own.before[i]
        at_input = at_input + front.unsqueeze(1) * own.inputs[i]
        value = value + front * own.constant[i]
    ends = torch.stack([at_input * end.flatten() for end in (box.lower, box.upper)])
    return value + ends.amin(dim=0).sum(dim=1)


@pytest.mark.parametrize("kind", nets.KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_many_steps_come_close_to_the_linear_program_and_never_above(kind, seed):
    """Over the triangles of a subdomain the dual's best bound is the program's least value."""
    opened = nets.Opened.random(kind, seed)
    signs = nets.signs_of(opened.unstable(opened.points(4, seed)), 0.4, seed)
    signs[0] = 0.0
    part, targets = opened.fixed(signs), single(opened, 0, 1, 4)
    targets = replace(targets, constant=targets.constant - 100.0)  # below 0: no bound is enough
    form = opened.forms.pick(torch.tensor([0]))
    wanted = torch.tensor([nets.least(opened, form, row.tolist()) for row in signs], dtype=torch.float64)
    first = opened.bounds.bound(part.copy(), targets, 0)[0] + 100.0
    for _ in range(4):
        found = opened.bounds.bound(part, targets, 150)[0] + 100.0
        assert bool((found <= wanted + 1e-7).all())
    assert bool((found >= first).all())
    assert bool((wanted - found <= 0.02 * (wanted - first) + 1e-5).all())


@pytest.mark.parametrize("seed", range(4))
def test_mixtures_of_rows_come_close_to_the_linear_program(seed):
    """No point may be above 0 in the largest of the rows: the best mixture has that program's least value."""
    opened = nets.Opened.random("dense", seed)
    points = opened.points(400)
    values = opened.outputs(points)
    goal = values.mean(dim=0) + 100.0
    there = torch.tensor([True, True, False, True])
    margins = UnstableMargins(opened.bounds, opened.forms, opened.properties(goal, there))
    part = margins.root(1)
    properties = opened.properties(goal, there)
    even = margins.bound(part.copy(), properties, 0)[0] + 100.0
    for _ in range(4):
        found = margins.bound(part, properties, 150)[0] + 100.0
    rows = there.nonzero().flatten()
    lowest = nets.least(opened, opened.forms.pick(rows), [0] * len(opened.network), (goal - 100.0)[rows].tolist())
    assert float(found) <= lowest + 1e-7
    assert float(found) <= float((values - goal + 100.0)[:, there].amax(dim=1).min()) + 1e-9
    assert lowest - float(found) <= 0.05 * (lowest - float(even)) + 1e-5  # shares start anew each time


def test_a_row_that_is_not_there_has_no_part():
    opened = nets.Opened.random("dense", 3)
    goal = torch.tensor([0.3, 50.0, 0.1, 50.0], dtype=torch.float64)
    alone = nets.Opened(*nets.model_of("dense", 3), opened.rows[[0, 2]])
    there = torch.tensor([True, False, True, False])
    found = []
    for one, properties in ((opened, opened.properties(goal, there)), (alone, alone.properties(goal[[0, 2]]))):
        margins = UnstableMargins(one.bounds, one.forms, properties)
        found.append(margins.bound(margins.root(1), properties, 8)[0])
    torch.testing.assert_close(*found)


def test_each_subdomain_is_bounded_for_its_own_property():
    opened = nets.Opened.random("residual", 1)
    rows, numbers = opened.rows.unsqueeze(1), torch.tensor([1, 4, 5, 9])
    goal = torch.randn(4, 1, dtype=torch.float64)
    properties = unstable_bounds.Properties(rows, goal, torch.ones_like(goal, dtype=torch.bool), numbers)
    margins = UnstableMargins(opened.bounds, opened.forms, properties)
    together, _ = margins.bound(margins.root(3), properties.pick(torch.tensor([3, 0, 3])), 0)
    lowest = opened.outputs(opened.points(100)) - goal.T
    for place, row in enumerate((3, 0, 3)):
        target = single(opened, row, 1, 1)
        alone, _ = opened.bounds.bound(opened.bounds.root(1), target, 0)
        torch.testing.assert_close(together[place], alone[0] - goal[row, 0])
        assert bool((lowest[:, row] >= together[place]).all())


@pytest.mark.parametrize("spoiled", ["inputs", "before", "constant", "error"])
def test_a_bound_that_is_not_a_number_is_none(spoiled):
    opened = nets.Opened.random("dense", 0)
    targets = single(opened, 0, 1, 2)
    values = getattr(targets, spoiled).clone()
    values[0].flatten()[0] = torch.nan
    found, scores = opened.bounds.bound(opened.bounds.root(2), replace(targets, **{spoiled: values}), 5)
    assert found[0] == -torch.inf
    assert bool(found[1].isfinite())
    assert bool(scores.isfinite().all())


@pytest.mark.parametrize("end", ["lower", "upper"])
def test_behind_a_bounds_that_is_not_known_nothing_is(end):
    model, box = nets.model_of("dense", 0)
    name = nets.Opened(model, box).layout.places[1].source

    def spoiled(preactivations):
        ends = {side: getattr(preactivations[name], side).clone() for side in ("lower", "upper")}
        ends[end][0, 2] = torch.nan
        return dict(preactivations) | {name: Interval(**ends)}

    opened = nets.Opened(model, box, change=spoiled)
    found, _ = opened.bounds.bound(opened.bounds.root(1), single(opened, 0, 1, 1), 5)
    assert found.tolist() == [-torch.inf]


@pytest.mark.parametrize("rule", ACTIVATION_RULES.names())
def test_scores_are_for_unstable_neurons_alone(rule):
    opened = nets.Opened.random("dense", 2)
    bounds = UnstableBounds(opened.network, activation_rule(rule))
    part = opened.fixed(nets.signs_of(opened.unstable(opened.points(5)), 0.4, 2))
    part.lower[1, 0] = 0.1
    _, scores = bounds.bound(part, single(opened, 0, 1, 5), 3)
    assert torch.equal(scores == -1, ~part.unstable_neurons)
    assert bool((scores[part.unstable_neurons] >= 0).all())
