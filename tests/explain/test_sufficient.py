"""Sufficient and counterfactual sets: proved, minimal where they say so, and bound to meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.errors import SettingError, UnknownNameError
from zonoplug.examples import digits_model
from zonoplug.explain.counterfactual import attack_boxes, counterfactual_set
from zonoplug.explain.decision import Decision
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.explain.layout import ImageLayout
from zonoplug.explain.oracles import AttackOracle, BoundOracle, CascadeOracle, VerifierOracle
from zonoplug.explain.region import Region
from zonoplug.explain.sufficient import sufficient_set
from zonoplug.explain.traversals import TRAVERSALS, Answer
from zonoplug.io.onnx_model import load_model

SEEDS = st.integers(0, 10**6)


@given(
    conflicts=st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=4), max_size=5),
    order=st.permutations(range(7)),
)
@pytest.mark.parametrize("name", TRAVERSALS.names())
def test_traversals_end_where_nothing_can_be_added(name, conflicts, order):
    """The judge proves a set unless it holds a conflict: the free set is a largest one without."""

    def oracle(free):
        return Answer.UNKNOWN if any(conflict <= free for conflict in conflicts) else Answer.PROVED

    free = TRAVERSALS.get(name)(order, frozenset(), oracle)
    assert oracle(free) is Answer.PROVED
    for feature in set(range(7)) - free:
        assert oracle(free | {feature}) is Answer.UNKNOWN


@pytest.mark.parametrize("name", ["binary", "quickxplain"])
def test_few_questions_where_few_features_are_kept(name):
    asked = []

    def oracle(free):
        asked.append(free)
        return Answer.UNKNOWN if 77 in free else Answer.PROVED

    assert TRAVERSALS.get(name)(range(100), frozenset(), oracle) == frozenset(range(100)) - {77}
    assert len(asked) < 30


@settings(max_examples=20)
@given(seed=SEEDS)
@pytest.mark.parametrize("traversal", ["deletion", "binary", "quickxplain"])
def test_sets_suffice_at_every_vertex_and_sample(make_region, extremes, traversal, seed):
    network, region, decision = make_region(seed=seed, hidden=(6,))
    explainer = SymbolInfluence(network)
    oracle = BoundOracle(explainer.module(region.point), region, decision, "zonotope")
    found = sufficient_set(explainer, region, decision, oracle, traversal, network=network)
    assert set(found.kept) == set((~found.free).nonzero().flatten().tolist())
    assert bool((decision.margins(network(extremes(region.freed(found.free)))) > 0).all())
    for feature in found.needed.nonzero().flatten().tolist():
        assert feature in found.kept
    for feature, point in found.counterexamples.items():
        free = found.free.clone()
        free[feature] = True
        box = region.freed(free)
        assert bool(((point >= box.lower) & (point <= box.upper)).all())
        assert bool((decision.margins(network(point)) <= 0).any())
        assert bool(found.needed[feature])
    influence = [float(found.importance[feature]) for feature in found.kept]
    assert influence == sorted(influence, reverse=True)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_every_sufficient_set_meets_every_counterfactual_set(make_region, seed):
    network, region, decision = make_region(seed=seed, inputs=6, radius=0.8)
    attack = attack_boxes(network, region.box, decision)
    if not bool(attack.violated[0]):
        return
    explainer = SymbolInfluence(network)
    found = sufficient_set(explainer, region, decision)
    flipped, point = counterfactual_set(network, region, decision, attack.points, found.importance)
    assert bool((decision.margins(network(point)) <= 0).any())
    assert torch.equal((point != region.point).flatten(), flipped)
    assert bool((flipped & ~found.free).any())
    for feature in flipped.nonzero().flatten().tolist():
        less = flipped.clone()
        less[feature] = False
        back = torch.where(region.mask(less), attack.points, region.point)
        assert bool((decision.margins(network(back)) > 0).all())


@pytest.fixture(scope="module")
def digit():
    """The bundled network, an image of it, and a wide box around it in which the decision can fall."""
    from sklearn.datasets import load_digits

    model = load_model(digits_model())
    image = torch.tensor(load_digits(return_X_y=True)[0][3] / 16).float().reshape(1, 64)
    region = Region.ball(image, 0.15, 0, 1)
    outputs = model.module(image)
    return model, region, Decision.between_classes(outputs.argmax(dim=1), 10, outputs)


def test_the_whole_verifier_agrees_and_proves_what_is_needed(digit):
    model, region, decision = digit
    explainer = SymbolInfluence(model.module, rounding="inference")
    coarse = ImageLayout.guess((64,)).features(torch.arange(64).reshape(8, 8) // 32 * 2 + torch.arange(8)[None] // 4)
    groups = Region(region.point, region.box, coarse)
    oracle = VerifierOracle(model, groups, decision, 30.0)
    found = sufficient_set(explainer, groups, decision, oracle, "deletion", network=model.module)
    assert 0 < found.size <= 4
    assert oracle(found.free) is Answer.PROVED
    everything = torch.ones(4, dtype=torch.bool)
    assert oracle(everything) is Answer.REFUTED
    assert oracle.counterexamples
    assert found.share_needed == 1.0, "with a complete judge, every feature is settled one way or the other"
    for feature in found.kept:
        free = found.free.clone()
        free[feature] = True
        assert oracle(free) is Answer.REFUTED


def test_certificates_leave_the_oracle_little_to_do(digit):
    model, region, decision = digit
    narrow = Region.ball(region.point, 0.04, 0, 1)
    explainer = SymbolInfluence(model.module, rounding="inference")
    oracle = BoundOracle(explainer.module(region.point), narrow, decision)
    found = sufficient_set(explainer, narrow, decision, oracle)
    slow = sufficient_set(None, narrow, decision, oracle, "deletion", torch.arange(64.0))
    assert slow.calls == 64
    assert found.calls + found.passes < 32
    assert VerifierOracle(model, narrow, decision, 30.0)(found.free) is Answer.PROVED


@pytest.mark.parametrize("share", [20, 60])
def test_a_set_that_suffices_for_merged_networks_suffices(digit, share):
    """Neurons are merged for every question anew, from the bounds on its box."""
    model, region, decision = digit
    narrow = Region.ball(region.point, 0.06, 0, 1)
    explainer = SymbolInfluence(model.module, rounding="inference")
    module = explainer.module(region.point)
    merged = BoundOracle(module, narrow, decision, f"zonotope[neurons,{share}%]")
    found = sufficient_set(None, narrow, decision, merged, "quickxplain", torch.arange(64.0))
    assert 0 < found.size < 64
    assert VerifierOracle(model, narrow, decision, 30.0)(found.free) is Answer.PROVED
    row = CascadeOracle((merged, BoundOracle(module, narrow, decision, "zonotope")))
    refined = sufficient_set(explainer, narrow, decision, row)
    assert VerifierOracle(model, narrow, decision, 30.0)(refined.free) is Answer.PROVED


def test_oracles_in_a_row_stop_at_the_first_that_knows(digit):
    model, region, decision = digit
    everything, nothing = torch.ones(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)
    bound = BoundOracle(SymbolInfluence(model.module).module(region.point), region, decision, "zonotope")
    row = CascadeOracle((bound, AttackOracle(model.module, region, decision)))
    assert bound(everything) is Answer.UNKNOWN
    assert row(everything) is Answer.REFUTED
    assert row(nothing) is Answer.PROVED


def test_a_oracle_that_knows_nothing_frees_nothing(make_region):
    _, region, decision = make_region()
    asked = []
    found = sufficient_set(
        None, region, decision, lambda free: asked.append(free) or Answer.UNKNOWN, "deletion", torch.arange(4.0)
    )
    assert found.kept == [3, 2, 1, 0]
    assert found.calls == len(asked) == 4
    assert found.share_needed == 0


def test_a_oracle_that_contradicts_itself_cannot_make_a_set_that_was_never_proved(make_region):
    """Bounds need not be monotone: what is returned must have been answered with yes as it is."""
    _, region, decision = make_region(inputs=5)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        proved = []

        def oracle(free, random=random, proved=proved):
            yes = bool(torch.rand((), generator=random) < 0.5)
            proved.extend([free] if yes else [])
            return Answer.PROVED if yes else Answer.UNKNOWN

        for name in TRAVERSALS.names():
            found = sufficient_set(None, region, decision, oracle, name, torch.rand(5, generator=random))
            assert not bool(found.free.any()) or any(torch.equal(found.free, free) for free in proved)


def test_nothing_is_asked_after_the_deadline(make_region):
    network, region, decision = make_region()

    def oracle(free):
        raise AssertionError("the time is up")

    found = sufficient_set(SymbolInfluence(network), region, decision, oracle, deadline=Deadline(-1.0))
    assert found.kept == [3, 2, 1, 0]


def test_what_there_is_nothing_to_explain_about_is_said(make_region):
    network, region, decision = make_region()
    other = Decision(-decision.rows, decision.offset, decision.rivals)
    with pytest.raises(SettingError, match="does not make this decision"):
        sufficient_set(SymbolInfluence(network), region, other)
    with pytest.raises(SettingError, match="importance"):
        sufficient_set(None, region, decision)
    with pytest.raises(UnknownNameError, match="Did you mean 'deletion'"):
        sufficient_set(None, region, decision, lambda free: Answer.UNKNOWN, "deletoin", torch.arange(4.0))
    with pytest.raises(SettingError, match="outside the box"):
        Region(region.point + 5, region.box, region.features)
    with pytest.raises(SettingError, match="numbered"):
        Region(region.point, region.box, torch.tensor([0, 1, 1, 3]))


def test_an_output_can_be_held_in_a_range(make_network, extremes):
    network = make_network(outputs=1)
    point = torch.rand(1, 4, dtype=torch.float64)
    region = Region.ball(point, 0.3)
    decision = Decision.within(network(point), 0.05)
    found = sufficient_set(SymbolInfluence(network), region, decision)
    outputs = network(extremes(region.freed(found.free)))
    assert bool(((outputs - network(point)).abs() < 0.05).all())


def test_patience_ends_after_so_many_refusals_in_a_row(make_region):
    _, region, decision = make_region(inputs=10)
    asked = []

    def oracle(free):
        asked.append(free)
        return Answer.PROVED if set(free.nonzero().flatten().tolist()) <= {0, 2, 9} else Answer.UNKNOWN

    found = sufficient_set(None, region, decision, oracle, "deletion", torch.arange(10.0), patience=3)
    assert set(found.free.nonzero().flatten().tolist()) == {0, 2}
    assert len(asked) == found.calls == 6


def test_the_verifier_is_asked_about_ranges_too(digit):
    """The outputs stay within their own change at a corner, and not within less than it."""
    model, region, _ = digit
    nothing, everything = torch.zeros(64, dtype=torch.bool), torch.ones(64, dtype=torch.bool)
    outputs = model.module(region.point)
    change = float((model.module(region.box.upper) - outputs).abs().max())
    assert VerifierOracle(model, region, Decision.within(outputs, change / 2), 20.0)(everything) is Answer.REFUTED
    assert VerifierOracle(model, region, Decision.within(outputs, change), 20.0)(nothing) is Answer.PROVED
    tiny = Region.ball(region.point, 1e-4, 0, 1)
    assert VerifierOracle(model, tiny, Decision.within(outputs, change), 20.0)(everything) is Answer.PROVED


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_finds_the_cpus_set(make_region):
    network, region, decision = make_region(inputs=6, seed=3)
    here = sufficient_set(SymbolInfluence(network), region, decision)
    there = Region(region.point.cuda(), Box(region.box.lower.cuda(), region.box.upper.cuda()), region.features)
    on_gpu = Decision(decision.rows.cuda(), decision.offset.cuda(), decision.rivals.cuda())
    found = sufficient_set(SymbolInfluence(network.cuda()), there, on_gpu)
    assert found.kept == here.kept


@pytest.mark.parametrize("method", ["zonotope", "zonotope+crown", "ibp"])
def test_a_margin_that_rounding_may_have_made_is_not_proved(method):
    """The terms of 1e4 cancel in the margin of 0.01, whose own size says nothing of their rounding errors."""
    network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)).requires_grad_(False)
    network[0].weight.copy_(torch.ones(2, 1))
    network[0].bias.fill_(1e4)
    network[2].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    network[2].bias.copy_(torch.tensor([0.01, 0.0]))
    region = Region.ball(torch.zeros(1, 1), 0.001)
    module = SymbolInfluence(network).module(region.point)
    free = torch.ones(1, dtype=torch.bool)
    decision = Decision.between_classes(torch.tensor([0]), 2, region.point)
    assert BoundOracle(module, region, decision, method)(free) is Answer.UNKNOWN
    clear = Decision(decision.rows, decision.offset + 1, decision.rivals)
    assert BoundOracle(module, region, clear, method)(free) is Answer.PROVED
