"""Laws of symbol influence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zonoplug.domain.input_sets import Box
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.symbols import SymbolSource
from zonoplug.errors import SettingError
from zonoplug.explain.decision import Decision, as_target
from zonoplug.explain.drift import reduced_influence
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import forward_propagation
from zonoplug.reduction import REDUCTIONS, ReductionContext

SEEDS = st.integers(0, 10**6)


@settings(max_examples=20)
@given(seed=SEEDS)
@pytest.mark.parametrize("method", ["zonotope", "zonotope[girard,8]", "alpha-zonotope"])
def test_shares_add_up_to_the_radius(make_region, method, seed):
    network, region, decision = make_region(seed=seed, hidden=(6,))
    explainer = SymbolInfluence(network, method)
    found = explainer.influence(region.point, decision, region.box)
    inputs, rest = found.shares()
    torch.testing.assert_close(inputs.flatten(2).sum(dim=2) + rest, torch.ones_like(rest), rtol=1e-12, atol=0)
    parsed = BoundMethod.parse(method)
    output = forward_propagation(explainer.module(region.point), [region.box], parsed, decision.rows).output
    torch.testing.assert_close(found.radius, output.radius().detach(), rtol=1e-12, atol=0)
    by_node = sum(node.total for node in found.nodes)
    torch.testing.assert_close(by_node + found.box, found.unattributed, rtol=1e-12, atol=1e-15)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_no_point_lies_below_the_lower_bound(make_region, extremes, seed):
    network, region, decision = make_region(seed=seed)
    found = SymbolInfluence(network).influence(region.point, decision, region.box)
    margins = decision.margins(network(extremes(region.box)))
    assert bool((margins >= found.lower - 1e-9).all())


@settings(max_examples=20)
@given(seed=SEEDS)
def test_permuting_inputs_permutes_the_map(make_region, seed):
    network, region, decision = make_region(seed=seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    first = nn.Linear(4, 6).double()
    with torch.no_grad():
        first.weight.copy_(network[0].weight[:, order])
        first.bias.copy_(network[0].bias)
    other = nn.Sequential(first, *network[1:]).requires_grad_(False)
    plain = SymbolInfluence(network).influence(region.point, decision, region.box)
    box = Box(region.box.lower[:, order], region.box.upper[:, order])
    moved = SymbolInfluence(other).influence(region.point[:, order], decision, box)
    torch.testing.assert_close(moved.signed(), plain.signed()[..., order])


@settings(max_examples=20)
@given(seed=SEEDS, ignored=st.integers(0, 3))
def test_an_input_that_the_network_ignores_has_no_influence_at_all(make_region, seed, ignored):
    network, region, decision = make_region(seed=seed)
    network[0].weight[:, ignored] = 0
    found = SymbolInfluence(network).influence(region.point, decision, region.box)
    assert bool((found.signed()[..., ignored] == 0).all())


def test_inputs_that_the_network_reads_have_influence(make_region):
    network, region, decision = make_region(seed=0)
    assert bool((SymbolInfluence(network).influence(region.point, decision, region.box).magnitude() > 0).all())


@settings(max_examples=20)
@given(seed=SEEDS, budget=st.integers(4, 12))
@pytest.mark.parametrize("name", REDUCTIONS.names())
def test_reducing_other_symbols_leaves_every_coefficient_as_it_was(make_region, name, seed, budget):
    """At the zonotope that is reduced, and at the output as long as relaxations stay the same."""
    network, region, decision = make_region(seed=seed)
    explainer = SymbolInfluence(network)
    module = explainer.module(region.point)
    plain, propagation = reduced_influence(module, region.box, decision, None)
    ids = region.box.to_zonotope(SymbolSource(), "x").symbols
    context = ReductionContext("y", source=propagation.symbols)
    room = max(budget, len(ids))
    reduced = REDUCTIONS.get(name)().reduce(propagation.output, room, ids, context)
    torch.testing.assert_close(reduced.generators(ids), propagation.output.generators(ids), rtol=0, atol=0)
    kept, _ = reduced_influence(
        module, region.box, decision, REDUCTIONS.get(name)(), budget, known=propagation.preactivations
    )
    torch.testing.assert_close(kept.signed(), plain.signed(), rtol=1e-10, atol=1e-14)
    assert bool((kept.unattributed >= plain.unattributed - 1e-9).all())


def test_a_linear_network_has_nothing_unattributed_and_its_weights_as_influence(make_network):
    network = nn.Linear(5, 3).double().requires_grad_(False)
    point = torch.rand(2, 5, dtype=torch.float64)
    signed, rest = SymbolInfluence(network).attribute(
        point, target=[0, 2], input_set=0.1, against="none", return_unattributed=True
    )
    torch.testing.assert_close(signed, 0.1 * network.weight[[0, 2]])
    assert float(rest.abs().max()) == 0


def test_a_batch_equals_its_elements(make_network):
    network = make_network()
    points = torch.rand(5, 4, dtype=torch.float64)
    explainer = SymbolInfluence(network)
    whole, rest = explainer.attribute(points, input_set=0.2, against="all", return_unattributed=True)
    assert whole.shape == (5, 2, 4)
    for i in range(5):
        alone, mass = explainer.attribute(points[i : i + 1], input_set=0.2, against="all", return_unattributed=True)
        torch.testing.assert_close(whole[i], alone[0])
        torch.testing.assert_close(rest[i], mass[0])


def test_the_rival_can_be_chosen(make_network):
    network = make_network()
    points = torch.rand(3, 4, dtype=torch.float64)
    explainer = SymbolInfluence(network)
    every = explainer.attribute(points, target=1, against="all")
    torch.testing.assert_close(explainer.attribute(points, target=1, against=2), every[:, 1])
    nearest = explainer.attribute(points, target=1)
    assert all(any(torch.equal(nearest[i], every[i, r]) for r in range(2)) for i in range(3))
    for wrong in (1, 7, "worst"):
        with pytest.raises(SettingError, match="rival"):
            explainer.attribute(points, target=1, against=wrong)


def test_the_unattributed_mass_is_traced_to_neurons_that_can_be_unstable(make_region):
    network, region, decision = make_region(hidden=(16,), radius=0.8, seed=3)
    found = SymbolInfluence(network).influence(region.point, decision, region.box)
    (node,) = found.nodes
    assert node.kind == "BoundRelu"
    box = region.box
    middle, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
    before, reach = network[0](middle)[0], (network[0].weight.abs() @ radius[0])
    unstable = set(torch.nonzero(before.abs() < reach).flatten().tolist())
    named = {neuron for neuron, mass in node.neurons(0, 0, 10) if mass > 0}
    assert named
    assert named <= unstable


def test_a_ball_is_explained_by_its_dual_norm(make_network):
    network = nn.Linear(4, 2).double().requires_grad_(False)
    point = torch.rand(1, 4, dtype=torch.float64)
    decision = Decision.between_classes(torch.tensor([0]), 2, point)
    found = SymbolInfluence(network).influence(point, decision, LpBall(point, 0.5, 2.0))
    weight = network.weight[0] - network.weight[1]
    torch.testing.assert_close(found.explained[0, 0], 0.5 * weight.norm())
    inputs, rest = found.shares()
    torch.testing.assert_close(inputs.sum() + rest.sum(), torch.ones_like(rest.sum()))


def test_what_cannot_be_explained_is_said(make_network):
    with pytest.raises(SettingError, match="'crown' has none"):
        SymbolInfluence(make_network(), "crown")
    outputs = torch.zeros(2, 3)
    with pytest.raises(SettingError, match="3 targets for 2"):
        as_target([0, 1, 2], outputs)
    with pytest.raises(SettingError, match="outputs 0 to 2"):
        Decision.between_classes(torch.tensor([3]), 3, outputs)
    with pytest.raises(SettingError, match="one output"):
        Decision.between_classes(torch.tensor([0]), 1, outputs)
    with pytest.raises(SettingError, match="above 0"):
        Decision.within(outputs, 0.0)
