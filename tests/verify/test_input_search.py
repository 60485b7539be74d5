"""The pieces of the search on input boxes: cutting off what is safe, the rules that choose an input, the queue."""

from __future__ import annotations

import pytest
import torch
from helpers import network_files as files

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.errors import UnknownNameError
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.branching.inputs import INPUT_RULES, InputFacts, RuleChoice
from zonoplug.verify.constraints.unsafe_region import shrink
from zonoplug.verify.observer import Observer
from zonoplug.verify.problem.row_bounds import RowBounds
from zonoplug.verify.search import input_search
from zonoplug.verify.search.input_search import BranchAndBound
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.boxes import Boxes, BoxQueue

ASSERTIONS = [
    ("(>= Y_0 {t})",),
    ("(>= Y_0 {t})", "(>= Y_1 0.0)"),
    ("(or (>= Y_0 {t}) (and (<= Y_1 -0.2) (<= Y_0 0.0)))",),
]


def prepared(tmp_path, seed, assertions, threshold=None):
    network, layers = files.random_network(tmp_path / "n.onnx", seed, sizes=(4, 16, 16, 2))
    threshold = files.highest_first_output(layers, 4000, seed) - 0.4 if threshold is None else threshold
    text = [a.format(t=threshold) for a in assertions]
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 4, [1] * 4, 2, text)
    problem = load_problem(network, spec, Settings(device="cpu"))
    attack = Attack(problem)
    attack._remember(problem.box.sample(64)[:, 0], torch.zeros(64, dtype=torch.int64), torch.ones(64, 2))
    return problem, Bounder(problem), attack


@pytest.mark.parametrize("method", ["zonotope+crown", "zonotope"])
@pytest.mark.parametrize("assertions", ASSERTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_a_shrunk_box_keeps_every_unsafe_sample(tmp_path, seed, assertions, method):
    problem, bounder, _ = prepared(tmp_path, seed, assertions)
    objective = problem.objective
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(64, 4, generator=random) * 1.6 - 1
    box = Box(low, (low + 0.6).clamp(max=1))
    group = torch.zeros(64, dtype=torch.int64)
    bounds = bounder.bound_in_slices(method, box, group, objective)
    reachable = ~objective.excluded(objective.margins(bounds.lower, group), group)
    smaller, remains = shrink(box, group, bounds, reachable, objective, objective.members())
    assert bool((smaller.lower >= box.lower).all() and (smaller.upper <= box.upper).all())
    points = box.sample(4000, random)
    with torch.no_grad():
        outputs = problem.outputs(points.flatten(0, 1))
    unsafe = (problem.point_margins(outputs, torch.zeros(len(outputs), dtype=torch.int64)) <= 0).unflatten(
        0, (4000, 64)
    )
    inside = ((points >= smaller.lower) & (points <= smaller.upper)).all(dim=2)
    assert bool(inside[unsafe.any(dim=2)].all())
    assert bool(remains.expand_as(unsafe)[unsafe].all())
    if seed == 0:
        assert bool((smaller.upper - smaller.lower < box.upper - box.lower - 1e-3).any())


def test_bounds_without_slopes_shrink_nothing(tmp_path):
    problem, _, _ = prepared(tmp_path, 0, ASSERTIONS[0])
    reachable = torch.ones(1, 1, dtype=torch.bool)
    bounds = RowBounds(torch.full((1, 1), -1.0))
    group = torch.zeros(1, dtype=torch.int64)
    box, remains = shrink(problem.box, group, bounds, reachable, problem.objective, problem.objective.members())
    assert box is problem.box
    assert bool(remains.all())


@pytest.mark.parametrize("name", INPUT_RULES.names())
def test_every_rule_scores_what_can_be_bisected(name):
    box = Box(torch.zeros(3, 4), torch.tensor([[1.0, 2.0, 0.0, 0.5]]).expand(3, 4).contiguous())
    bounds = RowBounds(torch.zeros(3, 2), torch.zeros(3, 2), torch.randn(3, 2, 4) * torch.tensor([1.0, 1.0, 0.0, 1.0]))
    facts = InputFacts(box, bounds, torch.ones(3, 2), lambda points: 2 * points, torch.Generator().manual_seed(0))
    scores = INPUT_RULES.get(name)(facts)
    assert scores.shape == (3, 4)
    assert bool((scores >= 0).all() and scores.isfinite().all())
    assert bool((scores[:, 2] == 0).all())
    assert bool((scores.sum(dim=1) > 0).all())


@pytest.mark.parametrize("name", INPUT_RULES.names())
def test_the_search_ends_with_every_rule(tmp_path, name):
    problem, bounder, attack = prepared(tmp_path, 1, ASSERTIONS[0], threshold=50.0)
    assert (
        BranchAndBound(problem, bounder, attack, "zonotope", branching=name).run(problem.objective, Deadline(20)).proved
    )


def test_an_unknown_rule_is_refused():
    with pytest.raises(UnknownNameError, match="widest"):
        RuleChoice("wides")


def test_the_rule_that_makes_progress_is_kept():
    choice = RuleChoice()
    before = torch.full((600,), -1.0)
    for number, gain in ((0, 0.1), (1, 0.5)):
        choice.learn(torch.full((600,), number), before, before + gain)
    assert choice.next_rule()[0] == 1
    choice.learn(torch.full((6000,), 1), torch.full((6000,), -1.0), torch.full((6000,), -1.0))
    assert choice.next_rule()[0] == 0


def boxes(margins):
    margin = torch.tensor(margins)
    count = len(margins)
    low = torch.arange(count, dtype=torch.float32).unsqueeze(1)
    zero = torch.zeros(count, dtype=torch.int64)
    return Boxes(low, low + 1, zero, margin, torch.zeros(count), zero)


def test_the_queue_gives_the_worst_margins_first_and_loses_nothing():
    queue = BoxQueue(2**20)
    queue.push(boxes([-1.0, -5.0, -2.0]))
    queue.push(boxes([-3.0]))
    assert queue.pop(1).margin.tolist() == [-5.0]
    assert queue.pop(1).margin.tolist() == [-3.0]
    assert sorted(queue.pop(9).margin.tolist()) == [-2.0, -1.0]
    assert len(queue) == 0
    assert queue.num_bytes == 0


def test_beyond_its_limit_the_queue_goes_depth_first():
    queue = BoxQueue(0)
    queue.push(boxes([-9.0, -8.0]))
    queue.push(boxes([-1.0, -2.0]))
    assert queue.pop(2).margin.tolist() == [-1.0, -2.0]
    assert len(queue) == 2


@pytest.mark.parametrize("least", [40, 400])
def test_a_trial_ends_once_it_has_bounded_enough_where_it_proves_the_volume_in_time(tmp_path, monkeypatch, least):
    monkeypatch.setattr(input_search, "TRIAL_SUBDOMAINS", least)
    monkeypatch.setattr(Observer, "_bounded", lambda self, *_: setattr(self.statistics, "volume_proved", 0.99))
    problem, bounder, attack = prepared(tmp_path, 1, ASSERTIONS[0], threshold=0.0)
    without = ("attack", "inner-attack", "contraction")
    search = BranchAndBound(problem, bounder, attack, "zonotope", without=without, trial=Deadline(0.0))
    result = search.run(problem.objective, Deadline(20))
    assert not result.proved
    assert least <= result.subdomains < 20 * least


def test_a_trial_that_proves_less_of_the_volume_than_it_uses_of_the_time_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(input_search, "TRIAL_SUBDOMAINS", 10**6)
    problem, bounder, attack = prepared(tmp_path, 1, ASSERTIONS[0], threshold=0.0)
    without = ("attack", "inner-attack", "contraction")
    limit = Deadline(20, spent=19.0)  # nearly all of the time is used
    search = BranchAndBound(problem, bounder, attack, "zonotope", without=without, trial=Deadline(0.0))
    result = search.run(problem.objective, limit)
    assert not result.proved
    assert result.subdomains < 100
    assert limit.left_seconds > 0
