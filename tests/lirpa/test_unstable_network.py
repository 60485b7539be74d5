"""Affine forms over unstable neurons: they compute what the network computes, in as few columns as there can be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import unstable_networks as nets
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.backward import unstable_network as affine_form
from zonoplug.lirpa.backward.passes import Backward

PRECISIONS = st.sampled_from([torch.float32, torch.float64])


def misses(opened, count=40):
    """How far the forms of neurons and of outputs are from the network's values, each less its error, at most."""
    points = opened.points(count)
    before = opened.unstable(points)
    relus, worst = before.clamp(min=0), -torch.inf
    network = opened.network  # what is rounded are sums of terms of this size
    size = 1 + float(torch.cat([network.all_lower, network.all_upper, opened.outputs(points).flatten()]).abs().max())
    for forms, values in ((opened.network.forms, before), (opened.forms, opened.outputs(points))):
        if len(forms.constant):
            gap = (nets.evaluate(forms, opened.network, points, relus) - values).abs()
            worst = max(worst, float((gap - forms.error).max()))
            assert bool((forms.error < 2e4 * torch.finfo(values.dtype).eps * size).all())
    return worst


@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=st.integers(0, 10**6), dtype=PRECISIONS)
@nets.few
def test_forms_are_what_the_network_computes(kind, seed, dtype):
    opened = nets.Opened.random(kind, seed, dtype)
    assert len(opened.network)
    assert misses(opened) <= 0


@pytest.mark.parametrize("kind", nets.KINDS)
@given(seed=st.integers(0, 10**6))
@nets.few
def test_neurons_of_known_sign_have_no_columns(kind, seed):
    opened = nets.Opened.random(kind, seed)
    network = opened.network
    ends = [torch.cat([end.flatten() for end in column]) for column in zip(*bounds_of_neurons(opened), strict=True)]
    unstable = (ends[0] < 0) & (ends[1] > 0)
    assert torch.equal(network.numbers, unstable.nonzero().flatten())
    assert torch.equal(network.lower, ends[0][unstable])
    assert torch.equal(network.upper, ends[1][unstable])
    assert network.forms.before.shape == (len(network), len(network))
    assert opened.forms.before.shape == (len(opened.rows), len(network))
    for section in network.sections:
        assert not bool(network.forms.before[section, section.start :].any())
    assert [section.start for section in network.sections][1:] == [one.stop for one in network.sections][:-1]


def bounds_of_neurons(opened):
    """Of the layers, in their order."""
    return [opened.preactivations[at.source] for at in opened.layout.places]


@pytest.mark.parametrize("shifts", [(0, 9, 0), (0, -9, 0), (9, 0, 0), (0, 0, -9), (9, 9, 9), (9, -9, 9)])
@pytest.mark.parametrize("seed", range(3))
def test_layers_without_unstable_neurons(seed, shifts):
    model, box = nets.model_of("dense", seed)
    for place, (layer, shift) in enumerate(zip(model[::2], shifts, strict=False)):
        layer.bias.data += shift * 20**place
    opened = nets.Opened(model, box)
    sizes = [section.stop - section.start for section in opened.network.sections]
    assert not any(size for size, shift in zip(sizes, shifts, strict=True) if shift)
    assert sizes[0] > 0 or shifts[0]
    assert misses(opened) <= 0


@pytest.mark.parametrize("kind", nets.KINDS)
def test_a_further_layer_leaves_the_forms_of_those_before_as_they_are(kind):
    opened = nets.Opened.random(kind, 1)
    whole, grown = opened.network, affine_form.UnstableNetwork(opened.box, len(opened.network))
    for at, section in zip(opened.layout.places, whole.sections, strict=True):
        known = [part.clone() for part in grown.forms.parts()]
        hull = opened.preactivations[at.source]
        neurons = ((hull.lower < 0) & (hull.upper > 0)).flatten().nonzero().flatten()
        own = whole.forms.pick(torch.arange(section.start, section.stop))
        grown.append(at.relu, neurons, hull, replace(own, before=own.before[:, : section.start]))
        count = section.start
        for now, before in zip(grown.forms.parts(), known, strict=True):
            assert torch.equal(now[:count, :count] if now is grown.forms.before else now[:count], before)
    assert all(torch.equal(a, b) for a, b in zip(grown.forms.parts(), whole.forms.parts(), strict=True))
    assert grown.sections == whole.sections
    assert torch.equal(grown.numbers, whole.numbers)


def test_rows_are_the_same_in_parts_as_at_once(monkeypatch):
    opened = nets.Opened.random("residual", 2)
    monkeypatch.setattr(affine_form, "ROWS_AT_ONCE", 3)
    parts = opened.network.forms_of(opened.backward, opened.preactivations, opened.rows)
    for part, whole in zip(parts.parts(), opened.forms.parts(), strict=True):
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("end", ["lower", "upper"])
def test_forms_behind_a_bounds_that_is_not_known_have_no_finite_error(end):
    """NaN is no sign: a neuron that might be open has no column."""
    model, box = nets.model_of("dense", 0)
    known = nets.Opened(model, box)
    name = known.layout.places[1].source

    def spoiled(preactivations):
        ends = {side: getattr(preactivations[name], side).clone() for side in ("lower", "upper")}
        ends[end][0, 2] = torch.nan
        return dict(preactivations) | {name: Interval(**ends)}

    opened = nets.Opened(model, box, known.rows, spoiled)
    assert bool(opened.forms.error.isnan().all())
    assert bool(known.forms.error.isfinite().all())


@pytest.mark.parametrize("kind", nets.KINDS)
def test_the_rounding_of_the_forms_themselves_is_covered(kind, monkeypatch):
    """As if the network's evaluation had no errors: what is left is what evaluating a form in its own type may cost."""
    opened = nets.Opened.random(kind, 1, torch.float32)
    genuine = Backward.bound

    def without_errors(*arguments, **options):
        found = genuine(*arguments, **options)
        return replace(found, error=torch.zeros_like(found.error))

    monkeypatch.setattr(Backward, "bound", without_errors)
    forms = opened.network.forms_of(opened.backward, opened.preactivations, opened.rows)
    points = opened.points(60)
    relus = opened.unstable(points).clamp(min=0)
    exact = affine_form.Forms(*(part.double() for part in forms.parts()))
    rounded = nets.evaluate(forms, opened.network, points, relus)
    gap = (rounded - nets.evaluate(exact, opened.network, points.double(), relus.double())).abs()
    assert bool((gap > 0).any())
    assert bool((gap <= forms.error).all())
