"""Branch and bound on single neurons: narrowed bounds hold, never widen, and come to the exact ranges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import unstable_networks as nets
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.backward.refinement import unit_rows
from zonoplug.lirpa.backward.unstable_network import UnstableNetwork
from zonoplug.testing import tolerance
from zonoplug.verify.bounds.unstable_bounds import UnstableBounds
from zonoplug.verify.search import neuron_search

SEEDS = st.integers(0, 10**6)


class LooksLeft:
    """A deadline that passes after some looks at it, and has no time to give to the parts."""

    def __init__(self, looks):
        self.looks = looks

    left_seconds = 100.0

    @property
    def passed(self):
        self.looks -= 1
        return self.looks < 0

    def part(self, fraction):
        return self


def flat(opened, preactivations):
    """The lower and the upper ends of all neurons, (all neurons,)."""
    sources = [at.source for at in opened.layout.places]
    return tuple(torch.cat([end(preactivations[name]).flatten() for name in sources]) for end in (lower_of, upper_of))


def lower_of(hull):
    return hull.lower


def upper_of(hull):
    return hull.upper


def check_hold(opened, preactivations, count=300):
    values = opened.every(opened.points(count))
    lower, upper = flat(opened, preactivations)
    assert bool((values >= lower - tolerance(values)).all() & (values <= upper + tolerance(values)).all())


def check_within(opened, narrow, wide):
    """No end is outside; returns by how much all are further inside."""
    (low, high), (lowest, highest) = flat(opened, narrow), flat(opened, wide)
    assert bool((low >= lowest).all() & (high <= highest).all())
    return float((low - lowest).sum() + (highest - high).sum())


@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=SEEDS, dtype=st.sampled_from([torch.float32, torch.float64]), leaves=st.sampled_from([1, 2, 7, 24]))
@nets.few
def test_tightened_bounds_hold_and_never_widen(kind, seed, dtype, leaves):
    opened = nets.Opened.random(kind, seed, dtype)
    once, network, bounded = opened.tighten(leaves)
    check_hold(opened, once)
    check_within(opened, once, opened.zonotope)
    assert set(once) == set(opened.zonotope)
    lower, upper = flat(opened, once)
    assert torch.equal(network.all_lower, lower)
    assert torch.equal(network.all_upper, upper)
    assert torch.equal(network.numbers, ((lower < 0) & (upper > 0)).nonzero().flatten())
    twice, _, _ = opened.tighten(3 * leaves, preactivations=once)
    check_hold(opened, twice)
    check_within(opened, twice, once)
    assert (bounded > 0) == any(section.start and section.stop > section.start for section in opened.network.sections)


@pytest.mark.parametrize("kind", nets.KINDS)
def test_more_leaves_make_narrower_bounds(kind):
    opened = nets.Opened.random(kind, 3)
    once, _, few = opened.tighten(2)
    twice, _, more = opened.tighten(40, preactivations=once)
    assert check_within(opened, once, opened.zonotope) > 0
    assert check_within(opened, twice, once) > 0
    assert more > few > 0


@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=SEEDS)
@nets.few
def test_leaves_of_every_tree_cover_the_box_and_bound_what_they_hold(kind, seed):
    opened = nets.Opened.random(kind, seed)
    preactivations, _, _ = opened.tighten(6)
    preactivations, _, _ = opened.tighten(15, preactivations=preactivations)
    check_trees(opened, opened.points(60, seed), 15)


def check_trees(opened, points, limit):
    """Each point lies in a leaf of each tree, by its signs, and its neuron is not below that leaf's bound."""
    values = opened.every(points)
    for place in opened.layout.places:
        trees = opened.search._trees.get(place.relu)
        if trees is None or not trees.grown:
            continue
        leaves, signs = trees._leaves, values[:, trees._columns]
        own = values[:, place.section][:, trees._neurons]
        own = torch.cat([own, -own], dim=1)
        inside = (signs.unsqueeze(1) * leaves.sign >= 0).all(dim=2)
        assert bool((own[:, leaves.tree] >= leaves.bound - tolerance(values))[inside].all())
        for tree in range(len(trees)):
            assert bool(inside[:, leaves.tree == tree].any(dim=1).all())
        sizes = torch.bincount(leaves.tree, minlength=len(trees))
        assert int(sizes.max()) <= limit


@pytest.mark.parametrize("kind", nets.KINDS)
def test_without_time_bounds_stay_as_they_are(kind):
    opened = nets.Opened.random(kind, 0)
    for _ in range(2):
        preactivations, network, bounded = opened.tighten(20, seconds=0.0)
        assert bounded == 0
        assert check_within(opened, preactivations, opened.zonotope) == 0
        assert torch.equal(network.numbers, opened.network.numbers)


@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=SEEDS, looks=st.integers(0, 40))
@nets.few
def test_bounds_hold_whenever_the_time_ends(kind, seed, looks):
    opened = nets.Opened.random(kind, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuron_search, "BATCH", 4)  # so that some trees of a layer are begun and others are not
        preactivations, _, _ = opened.search.tighten(opened.zonotope, 20, LooksLeft(looks))
        check_hold(opened, preactivations)
        check_within(opened, preactivations, opened.zonotope)
        again, _, _ = opened.search.tighten(preactivations, 30, LooksLeft(looks))
    check_hold(opened, again)
    check_within(opened, again, preactivations)


def both(one, other):
    """The intersection of two pre-activation bounds."""
    return Interval(torch.maximum(one.lower, other.lower), torch.minimum(one.upper, other.upper))


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=SEEDS)
@nets.few
def test_signs_that_become_known_between_tightening_do_no_harm(kind, seed, begun):
    """OperandBounds of a smaller box within: what follows holds on its points.

    Leaves are kept, of what was open before.
    """
    model, box = nets.model_of(kind, seed)
    opened = nets.Opened(model, box)
    inner = nets.Opened(model, Box.ball(box.lower / 2 + box.upper / 2, (box.upper - box.lower) / 6))
    first, known, _ = opened.search.tighten(opened.zonotope, 5, LooksLeft(10**6 if begun else 0))
    within = {name: both(hull, inner.zonotope[name]) for name, hull in first.items()}
    preactivations, network, _ = opened.tighten(12, preactivations=within)
    check_hold(inner, preactivations)
    check_within(opened, preactivations, within)
    assert len(network) < len(known)
    check_trees(opened, inner.points(60), 12)


def layer_of(opened, place):
    """What the search knows of a layer before its trees grow, and the trees."""
    at, passes = opened.search._passes[place]
    network, preactivations = UnstableNetwork(opened.box, len(opened.network)), opened.zonotope
    for before, section in zip(opened.layout.places[:place], opened.network.sections, strict=False):
        own = opened.network.forms.pick(torch.arange(section.start, section.stop))
        hull = preactivations[before.source]
        own = replace(own, before=own.before[:, : section.start])
        network.append(before.relu, neuron_search._open(hull), hull, own)
    hull = preactivations[at.source]
    neurons = neuron_search._open(hull)
    rows = unit_rows(neurons, passes.size, hull.lower)
    forms = network.forms_of(passes, preactivations, rows)
    bounds = UnstableBounds(network, nets.RULE)
    return neuron_search._Now(network, bounds, neurons, forms, hull), neuron_search._Trees(neurons, network)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_leaf_that_fixes_a_sign_which_its_neuron_does_not_have_holds_no_point(side):
    """Of the signs that a neuron had at first, a narrower hull leaves one; leaves with the other are bounded inf."""
    opened = nets.Opened.random("dense", 0)
    now, trees = layer_of(opened, 2)
    trees.grow(now, 12, Deadline(60))
    leaves = trees._leaves
    neuron = int((leaves.sign == -side).sum(dim=0).argmax())
    wrong = leaves.sign[:, neuron] == -side
    assert bool(wrong.any()) and not bool(wrong.all())
    number = now.network.numbers[neuron]
    (now.network.all_lower if side > 0 else now.network.all_upper)[number] = 0.0
    touching = trees._bounded(now, leaves, 0)
    assert bool(touching.bound.isfinite().all())  # at 0 it has both
    (now.network.all_lower if side > 0 else now.network.all_upper)[number] = 1e-3 * side
    found = trees._bounded(now, leaves, 0)
    assert bool((found.bound[wrong] == torch.inf).all())
    assert bool(found.bound[~wrong].isfinite().all())
    assert bool((found.bound >= leaves.bound).all())


@pytest.mark.parametrize(("exactly", "allowed"), [(True, 1e-6), (False, 2e-2)])
@pytest.mark.parametrize("seed", [2, 3, 6, 11, 13, 15])
def test_trees_of_all_signs_come_to_the_exact_range(monkeypatch, seed, exactly, allowed):
    """Two to six unstable neurons in front: a linear program for each pattern of their signs.

    With exact bounds of leaves trees lose nothing. With its own steps, an ascent on piecewise linear bounds, little.
    """
    opened = nets.Opened.random("tiny", seed)
    now, trees = layer_of(opened, 2)
    opened.network = now.network
    assert 2 <= len(now.network) <= 6
    genuine = UnstableBounds.bound

    def exact(self, part, targets, steps):
        forms = [nets.Forms(*(one[i] for one in targets.parts()[:4])) for i in range(len(part))]
        lowest = [nets.least(opened, form, sign) for form, sign in zip(forms, part.sign.tolist(), strict=True)]
        return part.bound.new_tensor(lowest), genuine(self, part, targets, 0)[1]

    if exactly:
        monkeypatch.setattr(UnstableBounds, "bound", exact)
    monkeypatch.setattr(neuron_search, "STEPS", 100)
    trees.grow(now, 64, Deadline(60))
    hull, gained = trees.narrowed(now.preactivation), 0.0
    for place, neuron in enumerate(now.neurons.tolist()):
        form = now.forms.pick(torch.tensor([place]))
        for side, own in ((1, form), (-1, nets.negative(form))):
            lowest = nets.exact_least(opened, own)
            first, found = (
                float(one.lower[0, neuron] if side > 0 else -one.upper[0, neuron]) for one in (now.preactivation, hull)
            )
            assert found <= lowest + 1e-7
            assert lowest - found <= allowed or found >= 0  # beyond 0 a sign is known, and no end is looked for
            gained += found - first
    assert gained > 0.1


@pytest.mark.parametrize("end", ["lower", "upper"])
def test_an_end_of_a_bounds_that_is_not_known_is_found(end):
    model, box = nets.model_of("dense", 0)
    name = nets.Opened(model, box).layout.places[1].source

    def spoiled(preactivations):
        ends = {side: getattr(preactivations[name], side).clone() for side in ("lower", "upper")}
        ends[end][0, 2] = torch.nan
        return dict(preactivations) | {name: Interval(**ends)}

    opened = nets.Opened(model, box, change=spoiled)
    preactivations, network, _ = opened.tighten(20)
    assert bool(preactivations[name].lower.isfinite().all() & preactivations[name].upper.isfinite().all())
    check_hold(opened, preactivations)
    as_known, _, _ = nets.Opened(model, box).tighten(20)
    assert float(getattr(preactivations[name], end)[0, 2]) == pytest.approx(
        float(getattr(as_known[name], end)[0, 2]), abs=0.2
    )
    unswept, network, _ = opened.tighten(0)
    assert bool(torch.isnan(getattr(unswept[name], end)[0, 2]))
    place = opened.layout.places[1].section.start + 2
    assert place in network.numbers.tolist()  # open, not dead


def test_layers_without_unstable_neurons_are_passed_over():
    model, box = nets.model_of("dense", 1)
    model[2].bias.data += 100.0
    opened = nets.Opened(model, box)
    preactivations, network, _ = opened.tighten(8)
    check_hold(opened, preactivations)
    assert network.sections[1].start == network.sections[1].stop
    model[0].bias.data += 100.0
    opened = nets.Opened(model, box)
    assert opened.tighten(8)[2] == 0
