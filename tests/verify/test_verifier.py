"""Verdicts, end to end on small networks with known answers, and the checks that keep wrong ones out."""

from __future__ import annotations

import pytest
import torch
from helpers import network_files as files

from zonoplug.clock import Deadline
from zonoplug.errors import ModelMismatchError, SettingError, SpecificationError, UnknownNameError
from zonoplug.io.onnx_model import load_model
from zonoplug.verify import verifier
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.problem.row_bounds import RowBounds
from zonoplug.verify.search.input_search import BranchAndBound
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import Verification, verify_files

CPU = Settings(timeout_seconds=30, device="cpu")


def test_a_property_that_holds(absolute_difference):
    outcome = verify_files(*absolute_difference("(>= Y_0 1.01)"), CPU)
    assert outcome.verdict is Verdict.HOLDS
    assert outcome.counterexample is None
    assert outcome.subdomains >= 1


def test_a_property_that_only_splitting_proves(absolute_difference):
    """At the root every linear relaxation lets |x0 - x1| go below 0; the property Y >= -1e-3 needs splits."""
    outcome = verify_files(*absolute_difference("(<= Y_0 -0.001)"), CPU)
    assert outcome.verdict is Verdict.HOLDS


def test_a_property_that_is_violated(absolute_difference):
    outcome = verify_files(*absolute_difference("(>= Y_0 0.99)"), CPU)
    assert outcome.verdict is Verdict.VIOLATED
    x, y = outcome.counterexample.inputs, outcome.counterexample.outputs
    assert abs(abs(x[0] - x[1]) - y[0]) < 1e-6
    assert y[0] >= 0.99
    assert ((x >= 0) & (x <= 1)).all()


def test_several_assertions_mean_and(absolute_difference):
    """Each half alone can be reached, both together cannot."""
    outcome = verify_files(*absolute_difference("(>= Y_0 0.9)", "(<= Y_0 0.1)"), CPU)
    assert outcome.verdict is Verdict.HOLDS


def test_one_reachable_disjunct_is_enough(absolute_difference):
    outcome = verify_files(*absolute_difference("(or (>= Y_0 3.0) (and (>= Y_0 0.5) (<= Y_0 0.6)))"), CPU)
    assert outcome.verdict is Verdict.VIOLATED
    assert outcome.counterexample.disjunct == 1


def test_strict_and_non_strict_differ_at_the_boundary(absolute_difference):
    """Y is exactly 0 on the diagonal: Y <= 0 is reached, Y < 0 is not."""
    point = {"lower": (0.5, 0.5), "upper": (0.5, 0.5)}
    assert verify_files(*absolute_difference("(<= Y_0 0.0)", **point), CPU).verdict is Verdict.VIOLATED
    few = Settings(timeout_seconds=1, device="cpu")
    assert verify_files(*absolute_difference("(< Y_0 0.0)", **point), few).verdict is not Verdict.VIOLATED


@pytest.mark.parametrize("method", ["auto", "ibp", "crown", "zonotope", "zonotope[girard,8]+crown"])
@pytest.mark.parametrize("seed", range(6))
def test_random_networks_get_the_verdict_that_sampling_supports(tmp_path, seed, method):
    """Thresholds a little inside and a little outside of what 20,000 samples reach."""
    network, layers = files.random_network(tmp_path / "n.onnx", seed)
    highest = files.highest_first_output(layers, 20_000, seed)
    reachable = files.write_specification(tmp_path / "r.vnnlib", [-1] * 3, [1] * 3, 2, [f"(>= Y_0 {highest - 1e-3})"])
    outcome = verify_files(network, reachable, Settings(20, method, "cpu"))
    assert outcome.verdict is Verdict.VIOLATED
    far = files.write_specification(tmp_path / "f.vnnlib", [-1] * 3, [1] * 3, 2, [f"(>= Y_0 {highest + 0.5})"])
    assert verify_files(network, far, Settings(20, method, "cpu")).verdict is Verdict.HOLDS


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_counterexample_is_never_proved_away(tmp_path, seed):
    """Thresholds at an output that one hidden point reaches: whatever happens, the verdict is not unsat."""
    network, _ = files.random_network(tmp_path / "n.onnx", seed, sizes=(6, 20, 20, 1))
    model = load_model(network)
    points = torch.rand(50_000, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.no_grad():
        value = float(model.module(points).max())
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 6, [1] * 6, 1, [f"(>= Y_0 {value!r})"])
    assert verify_files(network, spec, Settings(1, device="cpu")).verdict is not Verdict.HOLDS


def test_a_method_whose_bound_excludes_a_reached_point_is_reported_and_not_believed(absolute_difference, monkeypatch):
    """Bounds that are wrong by a little too much: the verdict must come from another method, or be unknown."""
    genuine = Bounder.bound

    def wrong(self, method, box, group, objective):
        bounds = genuine(self, method, box, group, objective)
        return RowBounds(bounds.lower + 5.0) if method == "zonotope" else bounds

    monkeypatch.setattr(Bounder, "bound", wrong)
    outcome = verify_files(*absolute_difference("(>= Y_0 0.9999)", lower=(0, 0), upper=(0.99, 0.99)), CPU)
    assert outcome.verdict is Verdict.HOLDS
    assert "zonotope+crown" in outcome.method
    assert any("zonotope is broken on this model" in note for note in outcome.notes)


def test_the_search_too_refuses_wrong_bounds(absolute_difference, monkeypatch):
    problem = load_problem(*absolute_difference("(<= Y_0 -0.001)"), CPU)
    attack = Attack(problem)
    attack.random_points(16)
    bounder = Bounder(problem)
    genuine = bounder.bound
    monkeypatch.setattr(bounder, "bound", lambda *a: RowBounds(genuine(*a).lower + 2.0))
    with pytest.raises(BrokenMethodError, match="below its bound"):
        BranchAndBound(problem, bounder, attack, "zonotope").run(problem.objective, Deadline(10))


def test_a_bound_that_is_nan_proves_nothing(absolute_difference, monkeypatch):
    genuine = Bounder.bound

    def unknown(self, *arguments):
        return RowBounds(genuine(self, *arguments).lower * torch.nan)

    monkeypatch.setattr(Bounder, "bound", unknown)
    monkeypatch.setattr(Bounder, "backward", None)
    outcome = verify_files(*absolute_difference("(>= Y_0 5.0)"), Settings(1.5, device="cpu"))
    assert outcome.verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT)


def test_a_failing_method_does_not_end_the_run(absolute_difference, monkeypatch):
    genuine = Bounder.bound

    def failing(self, method, *arguments):
        if method == "zonotope":
            raise RuntimeError("[enforce fail] not enough memory: you tried to allocate")
        return genuine(self, method, *arguments)

    monkeypatch.setattr(Bounder, "bound", failing)
    outcome = verify_files(*absolute_difference("(>= Y_0 1.5)"), CPU)
    assert outcome.verdict is Verdict.HOLDS
    assert any("method zonotope failed" in note and "memory" in note for note in outcome.notes)


def test_a_model_that_loads_wrongly_is_an_error_not_a_verdict(absolute_difference):
    problem = load_problem(*absolute_difference("(>= Y_0 5.0)"), CPU)
    with torch.no_grad():
        next(p for p in problem.model.module.parameters()).add_(0.5)
    with pytest.raises(ModelMismatchError):
        Verification(problem, CPU, Deadline(10)).run()


def test_only_onnx_runtime_makes_a_counterexample(absolute_difference):
    """The loaded model says sat everywhere, ONNX Runtime never: no counterexample is reported."""
    problem = load_problem(*absolute_difference("(>= Y_0 5.0)"), CPU)
    with torch.no_grad():
        list(problem.model.module.parameters())[-1].add_(100)
    attack = Attack(problem)
    assert attack.random_points(64) is None
    assert attack.descend(4, 10, Deadline(5)) is None


def test_the_time_limit_is_kept(tmp_path):
    network, _ = files.random_network(tmp_path / "n.onnx", 0, sizes=(12, 60, 60, 60, 1))
    model = load_model(network)
    with torch.no_grad():
        value = float(model.module(torch.rand(200_000, 12) * 2 - 1).max())
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 12, [1] * 12, 1, [f"(>= Y_0 {value * 1.3 + 0.1})"])
    clock = Deadline(100)
    outcome = verify_files(network, spec, Settings(2, device="cpu"))
    assert clock.elapsed_seconds < 2.5  # counted: after the limit, searches look at the time a few times more
    assert outcome.verdict in (Verdict.TIMEOUT, Verdict.HOLDS, Verdict.VIOLATED)


def test_the_same_seed_gives_the_same_counterexample(absolute_difference):
    files_ = absolute_difference("(>= Y_0 0.5)")
    first, second = (verify_files(*files_, CPU).counterexample for _ in range(2))
    assert first.inputs.tolist() == second.inputs.tolist()


def test_settings_and_specifications_that_do_not_fit(absolute_difference, tmp_path):
    network, spec = absolute_difference("(>= Y_0 0.5)")
    with pytest.raises(UnknownNameError, match="zonotope"):
        verify_files(network, spec, Settings(5, "zonotop", "cpu"))
    with pytest.raises(UnknownNameError, match="Did you mean 'influence'"):
        verify_files(network, spec, Settings(5, device="cpu", branching="influense"))
    with pytest.raises(SettingError, match="auto, cpu, cuda"):
        verify_files(network, spec, Settings(5, device="tpu"))
    other = files.write_specification(tmp_path / "o.vnnlib", [0] * 3, [1] * 3, 1, ["(>= Y_0 0)"])
    with pytest.raises(SpecificationError, match="3 inputs"):
        verify_files(network, other, CPU)


def test_splits_are_what_decides_few_inputs(absolute_difference):
    assert verifier.SPLITTABLE_INPUTS >= 2
    outcome = verify_files(*absolute_difference("(<= Y_0 -0.0001)"), CPU)
    assert "splits" in outcome.method or outcome.subdomains >= 1
