"""The search on the phases of ReLUs: right verdicts, sound pieces, honest ends."""

from __future__ import annotations

import pytest
import torch
from helpers import network_files as files

import zonoplug.lirpa.backward.refinement
from zonoplug.clock import Deadline
from zonoplug.errors import UnknownNameError
from zonoplug.lirpa.backward.passes import Backward
from zonoplug.verify import verifier
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError
from zonoplug.verify.branching.activations import ACTIVATION_RULES, ActivationFacts, activation_rule, unstable_scores
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.search.base import SearchResult
from zonoplug.verify.search.relu_search import ActivationSearch
from zonoplug.verify.search.relu_tree import ReluTree
from zonoplug.verify.search.tree_search import TreeSearch
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains, split_relus
from zonoplug.verify.verifier import verify_files

CPU = Settings(timeout_seconds=5, device="cpu")


@pytest.fixture(autouse=True)
def _only_activation_splits(monkeypatch):
    """Every instance takes the way of networks with many inputs."""
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", 0)


def test_a_property_that_needs_splits(absolute_difference):
    """|x0 - x1| is never below 0, which no single relaxation shows."""
    outcome = verify_files(*absolute_difference("(<= Y_0 -0.001)"), CPU)
    assert outcome.verdict is Verdict.HOLDS


def test_several_rows_are_excluded_together(absolute_difference):
    outcome = verify_files(*absolute_difference("(and (>= Y_0 0.9) (<= Y_0 0.1))"), CPU)
    assert outcome.verdict is Verdict.HOLDS


@pytest.mark.parametrize("seed", range(8))
def test_verdicts_on_random_networks_agree_with_samples(tmp_path, seed):
    network, layers = files.random_network(tmp_path / "n.onnx", seed, sizes=(5, 14, 14, 2))
    highest = files.highest_first_output(layers, 50_000, seed, difference=True)
    for offset, wanted in ((-0.02, Verdict.VIOLATED), (0.35, Verdict.HOLDS)):
        spec = files.write_specification(
            tmp_path / "s.vnnlib", [-1] * 5, [1] * 5, 2, [f"(>= (- Y_0 Y_1) {highest + offset})"]
        )
        assert verify_files(network, spec, CPU).verdict is wanted


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_counterexample_is_never_proved_away(tmp_path, seed):
    network, _ = files.random_network(tmp_path / "n.onnx", seed, sizes=(6, 16, 16, 1))
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 6, [1] * 6, 1, ["(>= Y_0 1000.0)"])
    problem = load_problem(network, spec, CPU)
    points = torch.rand(50_000, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.no_grad():
        highest = float(problem.outputs(points).max())
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 6, [1] * 6, 1, [f"(>= Y_0 {highest!r})"])
    problem = load_problem(network, spec, CPU)
    attack = Attack(problem)
    attack.random_points(4)
    result = ActivationSearch(problem, Bounder(problem), attack).run(problem.objective, Deadline(2))
    assert not result.proved


def test_bounds_above_a_sampled_point_are_refused(absolute_difference, monkeypatch):
    problem = load_problem(*absolute_difference("(<= Y_0 -0.001)"), CPU)
    attack = Attack(problem)
    attack.random_points(64)
    search = ActivationSearch(problem, Bounder(problem), attack)
    genuine = Backward.bound

    def wrong(*arguments, **options):
        passed = genuine(*arguments, **options)
        passed.lower = passed.lower + 5.0
        return passed

    monkeypatch.setattr(Backward, "bound", wrong)
    with pytest.raises(BrokenMethodError, match="sampled point lies"):
        search.run(problem.objective, Deadline(5))


def test_bounds_that_exclude_a_sampled_point_are_refused(absolute_difference, monkeypatch):
    problem = load_problem(*absolute_difference("(<= Y_0 -0.001)"), CPU)
    attack = Attack(problem)
    attack.random_points(64)
    genuine = zonoplug.lirpa.backward.refinement.refine_bounds

    def wrong(*arguments):
        return {name: type(hull)(hull.lower + 0.3, hull.upper) for name, hull in genuine(*arguments).items()}

    monkeypatch.setattr(zonoplug.lirpa.backward.refinement, "refine_bounds", wrong)
    with pytest.raises(BrokenMethodError, match="pre-activation bounds are broken"):
        ActivationSearch(problem, Bounder(problem), attack).run(problem.objective, Deadline(5))


def subdomains(n=3, neurons=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    zero = torch.zeros(n, neurons)
    return ReluSubdomains(
        -torch.rand(n, neurons, generator=random),
        torch.rand(n, neurons, generator=random),
        zero,
        zero + 0.5,
        zero.clone(),
        torch.randn(n, generator=random),
    )


def scores_of(part, coefficients, rule="auto"):
    open_ = (part.lower < 0) & (part.upper > 0) & (part.sign == 0)
    random = torch.Generator().manual_seed(0)
    facts = ActivationFacts(
        part.lower, part.upper, coefficients, part.alpha, open_, lambda: (part.lower + part.upper) / 2, random
    )
    return unstable_scores(activation_rule(rule), facts)


@pytest.mark.parametrize("rule", ACTIVATION_RULES.names())
@pytest.mark.parametrize("room", [0, 12, 100])
def test_the_pieces_of_a_split_cover_every_sign_pattern(room, rule):
    part = subdomains()
    part.lower[0, 2], part.upper[0, 2] = 0.5, 0.9
    part.lower[1, 3], part.upper[1, 3] = -0.9, -0.5
    scores = scores_of(part, torch.randn(3, 5), rule)
    assert scores[0, 2] == -1
    assert scores[1, 3] == -1
    pieces, stuck = split_relus(part, scores, room)
    assert stuck == 0
    random = torch.Generator().manual_seed(1)
    for element in range(3):
        for _ in range(50):
            share = torch.rand(5, generator=random)
            values = part.lower[element] + share * (part.upper[element] - part.lower[element])
            inside = ((values >= pieces.lower) & (values <= pieces.upper)).all(dim=1)
            agrees = ((values * pieces.sign >= 0) | (pieces.sign == 0)).all(dim=1)
            assert bool((inside & agrees).any())
    assert bool((pieces.bound[1:] <= pieces.bound[:-1]).all())


def test_a_subdomain_without_unstable_neurons_is_counted_not_lost():
    part = subdomains()
    part.lower[1], part.upper[1] = 0.1, 0.2
    scores = scores_of(part, torch.ones(3, 5))
    pieces, stuck = split_relus(part, scores, 0)
    assert stuck == 1
    assert len(pieces) == 4


def test_an_unknown_rule_is_answered_with_those_there_are():
    with pytest.raises(UnknownNameError, match="widest"):
        activation_rule("widesst")


@pytest.mark.parametrize(
    ("rule", "without"),
    [(rule, ("affine-form", "neuron-search")[place % 2 :][:1]) for place, rule in enumerate(ACTIVATION_RULES.names())],
)
def test_every_rule_proves_what_holds_and_nothing_else(tmp_path, rule, without):
    network, _ = files.random_network(tmp_path / "n.onnx", 1, sizes=(4, 10, 10, 1))
    for shift, holds in ((0.0, False), (0.2, True)):
        spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 4, [1] * 4, 1, ["(>= Y_0 1000.0)"])
        problem = load_problem(network, spec, Settings(device="cpu"))
        points = torch.rand(50_000, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            highest = float(problem.outputs(points).max())
        spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 4, [1] * 4, 1, [f"(>= Y_0 {highest + shift!r})"])
        problem = load_problem(network, spec, Settings(device="cpu"))
        attack = Attack(problem)
        attack.random_points(8)
        search = ActivationSearch(problem, Bounder(problem), attack, branching=rule, without=without)
        assert search.run(problem.objective, Deadline(60 if holds else 2)).proved == holds


class OneStep:
    """A deadline that passes after one look at it."""

    def __init__(self):
        self.looks = 0

    @property
    def passed(self):
        self.looks += 1
        return self.looks > 1


@pytest.mark.parametrize("left_out", ["affine-form", "neuron-search"])
@pytest.mark.parametrize("seed", range(3))
def test_a_tree_that_is_put_aside_again_and_again_proves_what_it_would_in_one_go(tmp_path, monkeypatch, seed, left_out):
    whole = TreeSearch.search

    def sliced(self, tree, deadline, result, deepest=torch.inf):
        while not whole(self, tree, OneStep(), result):
            if deadline.passed or tree.stuck or result.counterexample is not None:
                return False
        assert tree.proved == pytest.approx(1.0)
        return True

    network, layers = files.random_network(tmp_path / "n.onnx", seed, sizes=(5, 14, 14, 2))
    highest = files.highest_first_output(layers, 50_000, seed, difference=True)
    counts = []
    for offset, search in ((0.2, whole), (0.2, sliced), (0.0, sliced)):
        monkeypatch.setattr(TreeSearch, "search", search)
        level = [f"(>= (- Y_0 Y_1) {highest + offset})"]
        problem = load_problem(
            network, files.write_specification(tmp_path / "s.vnnlib", [-1] * 5, [1] * 5, 2, level), CPU
        )
        attack, observer = Attack(problem), Observer()
        attack.random_points(4)
        without = (left_out, "inner-attack")
        result = ActivationSearch(problem, Bounder(problem), attack, observer, without).run(
            problem.objective, Deadline(20 if offset else 1)
        )
        assert result.proved is bool(offset)
        counts.append(result.subdomains)
        assert observer.statistics.volume_proved == pytest.approx(1.0) or not offset
    assert counts[0] == counts[1] > 64


def test_a_piece_that_cannot_be_split_keeps_its_tree_open_for_good(tmp_path):
    network, _ = files.random_network(tmp_path / "n.onnx", 0, sizes=(5, 14, 1))
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 5, [1] * 5, 1, ["(>= Y_0 1000.0)"])
    problem = load_problem(network, spec, CPU)
    attack = Attack(problem)
    attack.random_points(4)
    search = ActivationSearch(problem, Bounder(problem), attack)
    assert search.run(problem.objective, Deadline(5)).proved
    target = Properties.of(problem.objective, 0)
    part = search.bounds.layout.root(search.bounds.preactivations)
    part.bound, _ = search.bounds.bound(part, target, 0)
    tree, result = ReluTree.of(search.bounds, part, target), SearchResult()
    tree.stuck = 1
    assert not search._trees.search(tree, Deadline(5), result)
    tree.queue.clear()
    assert not search._trees.search(tree, Deadline(5), result)
    tree.stuck = 0
    assert search._trees.search(tree, Deadline(5), result)


@pytest.mark.parametrize(("bounds", "deep"), [([-0.5, -0.5], False), ([-0.99, -0.98], True), ([0.5, -0.2], False)])
def test_how_deep_a_tree_looks(bounds, deep):
    part = subdomains(n=1, neurons=80)
    part.bound = torch.tensor([-1.0])
    tree = ReluTree.of(None, part, None)
    pieces = ReluSubdomains.join([part, part])
    pieces.sign[:, :5] = 1.0
    pieces.bound = torch.tensor(bounds)
    tree.note(pieces, ~(pieces.bound > 0))
    assert not tree.looks_deeper_than(48)  # too early to say
    tree.bounded = 1000
    assert tree.looks_deeper_than(48) is deep
    assert tree.proved == pytest.approx(2.0**-5 * sum(bound > 0 for bound in bounds))
