"""The loop from few neurons to all: the smallest rate that proves, and nothing that is false."""

from __future__ import annotations

import pytest
from helpers import network_files as files

from zonoplug.errors import SettingError
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import bound_box
from zonoplug.lirpa.network_reduction import chain_of
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.network_reduction import RATES, prove_by_merging
from zonoplug.verify.settings import Settings, load_problem

RADIUS = 1.0


def setting(folder, seed, *assertions):
    """The problem whether a point of the box satisfies the assertions, its host graph, and the network's weights."""
    path, layers = files.random_network(folder / f"{seed}.onnx", seed, sizes=(3, 30, 30, 2))
    specification = files.write_specification(folder / "s.vnnlib", [-RADIUS] * 3, [RADIUS] * 3, 2, assertions)
    problem = load_problem(path, specification, Settings(device="cpu"))
    return problem, Bounder(problem).module, layers


def above(limit):
    return f"(>= Y_0 {limit:.9f})"


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_rate_that_proves_is_found(tmp_path, seed, written):
    problem, module, _ = setting(tmp_path, seed, above(0))
    highest = {}
    for rate in RATES:
        chain = chain_of(module, problem.box.lower) if written else None
        (tried,) = prove_by_merging(problem, module, (rate,), chain=chain).attempts
        highest[rate] = -tried[0].margin
    assert highest[0.1] > highest[0.5] > highest[1.0]
    for goal in (0.2, 0.4, 1.0):
        problem, module, _ = setting(tmp_path, seed, above(highest[goal] + 1e-3))
        chain = chain_of(module, problem.box.lower) if written else None
        proof = prove_by_merging(problem, module, chain=chain)
        wanted = next(rate for rate in RATES if highest[rate] < highest[goal] + 1e-3 - 1e-4)
        assert proof.proved and proof.rate == wanted
        (tried,) = proof.attempts
        assert [attempt.rate for attempt in tried] == [rate for rate in RATES if rate <= wanted]
        assert not any(attempt.proved for attempt in tried[:-1])
        assert (tried[-1].network is not None) == written
        assert all(0 < kept <= round(30 * wanted) for kept in tried[-1].neurons)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_false_is_never_proved(tmp_path, seed):
    *_, layers = setting(tmp_path, seed, above(0))
    reached = files.highest_first_output(layers, 20_000, seed)
    problem, module, _ = setting(tmp_path, seed, above(reached - 1e-4))
    for chain in (None, chain_of(module, problem.box.lower)):
        for buckets in ("static", "dynamic"):
            proof = prove_by_merging(problem, module, merging=NeuronMerging(buckets=buckets), chain=chain)
            assert not proof.proved and proof.rate is None
            assert [attempt.rate for attempt in proof.attempts[0]] == list(RATES)


def test_the_last_attempt_is_the_unreduced_zonotope(tmp_path):
    problem, module, _ = setting(tmp_path, 1, above(-100))
    tried = prove_by_merging(problem, module).attempts[0]
    rows = problem.objective.coefficients
    bounds, _ = bound_box(module, problem.box, BoundMethod.parse("zonotope"), rows, rounding="inference")
    assert tried[-1].margin == pytest.approx(float(bounds.lower - problem.objective.bound), abs=1e-4)
    assert tried[-1].neurons == (30, 30)


def test_each_input_box_counts(tmp_path):
    def halves(left, right):
        return f"(or (and (<= X_0 0) {above(left)}) (and (>= X_0 0) {above(right)}))"

    problem, module, _ = setting(tmp_path, 2, halves(0, 0))
    assert problem.objective.num_boxes == 2
    assert not prove_by_merging(problem, module).complete
    problem, module, _ = setting(tmp_path, 2, halves(1e4, -1e4))
    proof = prove_by_merging(problem, module)
    assert proof.complete and not proof.proved and proof.rate is None
    problem, module, _ = setting(tmp_path, 2, halves(1e4, 1e4))
    proof = prove_by_merging(problem, module)
    assert proof.rate == 0.1 and [len(tried) for tried in proof.attempts] == [1, 1]


@pytest.mark.parametrize("rates", [(), (0.5, 0.5), (0.5, 0.1), (0.0, 1.0), (0.5, 2.0)])
def test_rates_have_to_increase_within_0_and_1(tmp_path, rates):
    problem, module, _ = setting(tmp_path, 0, above(-100))
    with pytest.raises(SettingError, match="rate"):
        prove_by_merging(problem, module, rates)
