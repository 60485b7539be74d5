"""The search on boxes and signs together: no unsafe point is lost on the way, right verdicts, honest ends."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import network_files as files
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from zonoplug.clock import Deadline
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError
from zonoplug.verify.branching.mixed import MIXED_RULES
from zonoplug.verify.constraints.half_spaces import contract, cut, least_in_half_space
from zonoplug.verify.search import mixed_search
from zonoplug.verify.search.input_search import BranchAndBound
from zonoplug.verify.search.mixed_search import MixedSearch
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.mixed import MixedSubdomains, pieces_of

CPU = Settings(device="cpu")
BLIND = ("inner-attack",)
SHAPES = [(6, 16, 1), (8, 24, 1), (5, 12, 12, 1), (4, 10, 10, 10, 1)]


def prepared(tmp_path, seed, sizes, offset):
    """A random network, and outputs above the highest of many samples plus an offset as the unsafe set."""
    network, _ = files.random_network(tmp_path / "n.onnx", seed, sizes=sizes)
    ends = [-1] * sizes[0], [1] * sizes[0]
    loose = files.write_specification(tmp_path / "s.vnnlib", *ends, 1, ["(>= Y_0 1000.0)"])
    points = torch.rand(40_000, sizes[0], generator=torch.Generator().manual_seed(seed)) * 2 - 1
    points[::2] = points[::2].sign()
    with torch.no_grad():
        values = load_problem(network, loose, CPU).outputs(points)[:, 0]
    threshold = float(values.quantile(1 + offset) if offset < 0 else values.max() + offset)
    spec = files.write_specification(tmp_path / "s.vnnlib", *ends, 1, [f"(>= Y_0 {threshold!r})"])
    problem = load_problem(network, spec, CPU)
    attack = Attack(problem)
    attack.random_points(64)
    return problem, Bounder(problem), attack, points[values >= threshold]


def holding(search, part, points):
    """(points,): how many of the subdomains hold each point, by its place in the box and the signs of its neurons."""
    values = search._bounds.layers.values(points)
    inside = torch.ones(len(part), points.shape[0], dtype=torch.bool)
    for low, high, at in ((part.box_lower, part.box_upper, points), (part.lower, part.upper, values)):
        error = 1e-5 * (1 + at.abs())
        inside &= ((low[:, None] <= at + error) & (at - error <= high[:, None])).all(dim=2)
    return inside.any(dim=0)


@pytest.mark.parametrize(
    ("rule", "sizes", "seed"),
    [
        (rule, sizes, (row + column) % 2)  # each rule on each shape; both seeds with each rule and each shape
        for row, rule in enumerate(sorted(MIXED_RULES.names()))
        for column, sizes in enumerate(SHAPES)
    ],
)
def test_no_unsafe_point_is_lost(tmp_path, monkeypatch, seed, sizes, rule):
    monkeypatch.setattr(mixed_search, "BATCH", 64)
    problem, bounder, attack, unsafe = prepared(tmp_path, seed, sizes, -0.002)
    assert unsafe.shape[0] > 10
    search = MixedSearch(problem, bounder, attack, branching=rule, without=BLIND)
    bounded, split = search._bounded, search._split
    steps = []

    def checked(part, *rest):
        before = part.copy()
        again, open_, found = bounded(part, *rest)
        lost = holding(search, before, unsafe) & ~holding(search, MixedSubdomains.join([again, open_]), unsafe)
        assert not bool(lost.any())
        steps.append(len(before))
        return again, open_, found

    def checked_split(part, *rest):
        before = part.copy()
        pieces = split(part, *rest)
        if pieces is not None:
            assert not bool((holding(search, before, unsafe) & ~holding(search, pieces, unsafe)).any())
        return pieces

    monkeypatch.setattr(search, "_bounded", checked)
    monkeypatch.setattr(search, "_split", checked_split)
    result = search.run(problem.objective, Deadline(0.4))
    assert not result.proved
    assert len(steps) > 3


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_a_property_that_holds_is_proved_and_one_that_does_not_is_not(tmp_path, seed, sizes):
    problem, bounder, attack, _ = prepared(tmp_path, seed, sizes, 0.0)
    assert not MixedSearch(problem, bounder, attack, without=BLIND).run(problem.objective, Deadline(0.4)).proved
    found = MixedSearch(problem, bounder, attack).run(problem.objective, Deadline(2))
    assert found.counterexample is not None or not found.proved
    spread = 0.5 * float(attack.outputs.std())
    problem, bounder, attack, _ = prepared(tmp_path, seed, sizes, spread)
    assert MixedSearch(problem, bounder, attack).run(problem.objective, Deadline(60)).proved


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_contraction_keeps_every_point_of_the_half_spaces(seed):
    random = torch.Generator().manual_seed(seed)
    lower = torch.randn(3, 4, generator=random)
    upper = lower + torch.rand(3, 4, generator=random) * 2
    matrix = torch.randn(3, 5, 4, generator=random)
    room = torch.randn(3, 5, generator=random) + 1
    room[:, 0] = torch.inf
    low, high, gone = contract(lower, upper, matrix, room)
    assert bool((low >= lower).all() and (high <= upper).all())
    points = lower[:, None] + torch.rand(3, 4000, 4, generator=random) * (upper - lower)[:, None]
    moved = points - ((lower + upper) / 2)[:, None]
    kept = (torch.einsum("nmk,npk->npm", matrix, moved) <= room[:, None]).all(dim=2)
    inside = ((points >= low[:, None]) & (points <= high[:, None])).all(dim=2) & ~gone[:, None]
    assert not bool((kept & ~inside).any())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3))
def test_bounds_in_a_half_space_are_sound_and_close(seed, limit):
    random = torch.Generator().manual_seed(seed)
    direction, slope = torch.randn(2, 6, 3, generator=random), torch.randn(2, 3, generator=random)
    room = torch.full((2,), limit)
    found = least_in_half_space(direction, slope, room, bisections=30)
    for place, number in itertools.product(range(2), range(6)):
        exact = linprog(
            direction[place, number].double(), slope[place, None].double(), room[place, None].double(), bounds=(-1, 1)
        )
        if exact.status == 0:
            assert exact.fun - 0.02 <= float(found[place, number]) <= exact.fun + 1e-5
    assert bool((least_in_half_space(direction, slope, room) <= found + 1e-4).all())


def test_a_cut_box_is_rounded_outwards():
    lower, upper = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    low, high = cut(lower, upper, torch.tensor([[-0.5, -1.0]]), torch.tensor([[1.0, 0.3]]))
    assert float(low[0, 0]) <= 0.25 and float(low[0, 0]) > 0.2499
    assert torch.equal(high, upper) and float(low[0, 1]) == 1.0


def test_pieces_by_sign_and_by_input():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    part = MixedSubdomains(
        -one,
        one,
        zero,
        zero,
        zero,
        torch.zeros(2),
        -one,
        one,
        torch.zeros(2, 1),
        torch.ones(2),
        torch.zeros(2, dtype=torch.int64),
    )
    above, below = pieces_of(part, torch.tensor([1, 5]))
    assert above.sign.tolist() == [[0, 1, 0], [0, 0, 0]] and below.sign.tolist() == [[0, -1, 0], [0, 0, 0]]
    assert float(above.lower[0, 1]) == 0 and float(below.upper[0, 1]) == 0
    assert above.box_lower[1].tolist() == [-1, -1, 0] and below.box_upper[1].tolist() == [1, 1, 0]
    assert bool((part.sign == 0).all())


def test_bounds_above_a_sampled_point_are_refused(absolute_difference):
    problem = load_problem(*absolute_difference("(<= Y_0 -0.001)"), CPU)
    attack = Attack(problem)
    attack.random_points(64)
    bounder = Bounder(problem)
    genuine = bounder.backward.bound

    def broken(*arguments):
        passed = genuine(*arguments)
        return replace(passed, lower=passed.lower + 1)

    bounder.backward.bound = broken
    with pytest.raises(BrokenMethodError, match="sampled point"):
        MixedSearch(problem, bounder, attack).run(problem.objective, Deadline(2))


@pytest.mark.parametrize("without", [(), ("clipping",), ("contraction", "clipping")])
def test_each_component_can_be_left_out(tmp_path, without):
    problem, bounder, attack, _ = prepared(tmp_path, 0, (6, 16, 1), 0.5)
    assert MixedSearch(problem, bounder, attack, without=without).run(problem.objective, Deadline(60)).proved


def test_many_inputs_that_bisecting_alone_does_not_close(tmp_path):
    """One hidden layer behind 24 inputs: a fifth of a second of the mixed search, and the other gets ten times that."""
    problem, bounder, attack, _ = prepared(tmp_path, 1, (24, 40, 1), 0.5)
    result = MixedSearch(problem, bounder, attack).run(problem.objective, Deadline(60))
    assert result.proved and result.subdomains < 2000
    bisected = BranchAndBound(problem, bounder, attack, "zonotope+crown").run(problem.objective, Deadline(0.5))
    assert not bisected.proved and bisected.counterexample is None
