"""Networks with a planted counterexample: no method, reduction, stage or split may ever prove it away."""

from __future__ import annotations

import functools
import traceback
from pathlib import Path

import planted_violations
import pytest
import torch

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.errors import ReductionRefusedError
from zonoplug.lirpa.methods import method_names
from zonoplug.reduction import REDUCTIONS
from zonoplug.verify import verifier
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.components import COMPONENTS
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import Verification

_folder = Path(__file__).parents[2] / "benchmarks"

NETWORKS = sorted(planted_violations.SMALL)
SECONDS = 0.6
LONG_SECONDS = 3.0
BLIND = ("attack", "inner-attack")  # so that only bounds stand between the search and a wrong proof
METHODS = sorted(method_names()) + [f"zonotope[{name},12]" for name in REDUCTIONS.names()]


@functools.cache
def planted(name):
    return planted_violations.SMALL[name](0)


@functools.cache
def bounder(name, folder):
    problem = load_problem(*planted(name).write(folder), Settings(10, device="cpu"))
    attack = Attack(problem)
    attack.random_points(64)
    return problem, Bounder(problem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("planted")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_planted_point_violates_the_property(name):
    case = planted(name)
    assert case.output_at_point() >= case.threshold
    assert (abs(case.point) <= 1).all()


def is_of_the_host(error):
    """Whether an exception comes out of auto_LiRPA's own code: some networks it bounds by some methods only."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "auto_LiRPA" in Path(last.filename).parts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_bound_excludes_the_planted_point(name, method, folder):
    """On boxes around the point, from the whole input box down to a thousandth of it, in one batch and one by one."""
    problem, bounds = bounder(name, folder)
    objective = problem.objective
    point = torch.tensor(planted(name).point).reshape(1, *problem.model.input_shape)
    for radius in (2.0, 0.3, 0.03, 1e-3):
        shift = torch.rand(point.shape, generator=torch.Generator().manual_seed(1)) * radius
        box = Box((point - shift).clamp(-1, 1), (point + radius - shift).clamp(-1, 1))
        group = torch.zeros(1, dtype=torch.int64)
        try:
            found = bounds.bound(method, box, group, objective)
        except ReductionRefusedError:
            pytest.skip("the reduction refuses this shape")
        except Exception as error:
            if not is_of_the_host(error):
                raise
            pytest.skip("the host itself fails on this network")
        assert not bool(objective.excluded(objective.margins(found.lower, group), group).any()), radius


@pytest.mark.parametrize("method", ["auto", "zonotope", "zonotope[girard,10]", "alpha-zonotope"])
@pytest.mark.parametrize("splittable", [64, 0])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_search_proves_the_planted_point_away(name, method, splittable, folder, monkeypatch):
    """Without attacks, so that nothing ends the search before its bounds have had every chance to be wrong."""
    if splittable == 0 and method != "auto":
        pytest.skip("a method chosen by hand splits inputs only")
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", splittable)
    settings = Settings(SECONDS, method, "cpu", without=BLIND)
    problem = load_problem(*planted(name).write(folder), settings)
    outcome = Verification(problem, settings, Deadline(SECONDS)).run()
    assert outcome.verdict is not Verdict.HOLDS, outcome.summary()


@pytest.mark.parametrize("without", sorted(COMPONENTS))
def test_leaving_out_an_component_makes_no_wrong_proof(without, folder):
    settings = Settings(SECONDS, device="cpu", without=(*BLIND, without))
    problem = load_problem(*planted("relu").write(folder), settings)
    assert Verification(problem, settings, Deadline(SECONDS)).run().verdict is not Verdict.HOLDS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", NETWORKS)
def test_longer_runs_on_more_networks(name, seed, tmp_path):
    case = planted_violations.SMALL[name](seed)
    settings = Settings(LONG_SECONDS, device="cpu", without=BLIND)
    problem = load_problem(*case.write(tmp_path), settings)
    assert Verification(problem, settings, Deadline(LONG_SECONDS)).run().verdict is not Verdict.HOLDS
