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
from zonoplug.verify.branching.by_name import KINDS
from zonoplug.verify.components import COMPONENTS
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import Verification

_folder = Path(__file__).parents[2] / "benchmarks"

NETWORKS = sorted(planted_violations.SMALL)
SECONDS = 0.6  # counted: 60 looks at the time
LONG_SECONDS = 1.2
BLIND = ("attack", "inner-attack")  # so that only bounds stand between the search and a wrong proof
METHODS = sorted(method_names()) + [f"zonotope[{name},12]" for name in REDUCTIONS.names()]
COSTLY = ("alpha", "althoff-b")  # these take a third of the networks each, in turn
FEW = {"zonotope[althoff-a,12]": ("sigmoid", "steep")}  # it refuses most shapes
BY_INPUTS, BY_ACTIVATIONS = verifier.SPLITTABLE_INPUTS, 0
SEARCHES = [("auto", BY_INPUTS), ("auto", BY_ACTIVATIONS)]
SEARCHES += [(method, BY_INPUTS) for method in ("zonotope", "zonotope[girard,10]")]


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


def boxes_around(point):
    """From the whole input box down to a thousandth of it, with the point at a random place in each."""
    random = torch.Generator().manual_seed(1)
    radius = torch.tensor([2.0, 0.3, 0.03, 1e-3]).reshape(-1, *[1] * (point.ndim - 1))
    shift = torch.rand(4, *point.shape[1:], generator=random) * radius
    return Box((point - shift).clamp(-1, 1), (point + radius - shift).clamp(-1, 1))


def margins_around(name, method, folder):
    """Which boxes around the planted point a method says are safe; None if it bounds no such network."""
    problem, bounds = bounder(name, folder)
    objective = problem.objective
    box = boxes_around(torch.tensor(planted(name).point).reshape(1, *problem.model.input_shape))
    group = torch.zeros(4, dtype=torch.int64)
    try:
        found = bounds.bound(method, box, group, objective)
    except ReductionRefusedError:
        return None
    except Exception as error:
        if not is_of_the_host(error):
            raise
        return None
    return objective.excluded(objective.margins(found.lower, group), group)


def networks_for(method):
    if method in FEW:
        return FEW[method]
    if any(name in method for name in COSTLY):
        return NETWORKS[METHODS.index(method) % 3 :: 3]
    return NETWORKS


@pytest.mark.parametrize("method", METHODS)
def test_no_bound_excludes_the_planted_point(method, folder):
    """On boxes around the point, in one batch where the network takes batches; and the networks are bounded."""
    names = networks_for(method)
    bounded = 0
    for name in names:
        excluded = margins_around(name, method, folder)
        assert excluded is None or not bool(excluded.any()), name
        bounded += excluded is not None
    assert bounded >= len(names) - 1, f"{method} bounds {bounded} of {len(names)} networks"


def test_every_network_is_bounded_by_most_methods_and_by_costly_ones():
    for name in NETWORKS:
        methods = [method for method in METHODS if name in networks_for(method)]
        assert len(methods) > 0.7 * len(METHODS)
        assert any("alpha-crown" in method for method in methods) or any("alpha-zonotope" in m for m in methods)


def search(files, settings, monkeypatch, splittable):
    """The outcome of a search, where networks of more inputs than `splittable` are split at activations alone."""
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", splittable)
    outcome = Verification(load_problem(*files, settings), settings, Deadline(settings.timeout_seconds)).run()
    assert outcome.verdict is not Verdict.HOLDS, outcome.summary()
    return outcome


@pytest.mark.parametrize(("method", "splittable"), SEARCHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_search_proves_the_planted_point_away(name, method, splittable, folder, monkeypatch):
    """Without attacks, so that nothing ends the search before its bounds have had every chance to be wrong."""
    search(planted(name).write(folder), Settings(SECONDS, method, "cpu", without=BLIND), monkeypatch, splittable)


@pytest.mark.parametrize("name", NETWORKS[::3])
def test_no_search_by_tuned_zonotopes_proves_the_planted_point_away(name, folder, monkeypatch):
    """Fewer networks and steps, as each bound takes many; these bounds themselves are tried above."""
    search(planted(name).write(folder), Settings(0.2, "alpha-zonotope", "cpu", without=BLIND), monkeypatch, BY_INPUTS)


@pytest.mark.parametrize("rule", sorted(set().union(*(rules.names() for rules in KINDS.values()))))
@pytest.mark.parametrize(
    ("kept", "name"), [("input-splits", "residual"), ("activation-splits", "relu-signs"), ("mixed-splits", "needle")]
)
def test_no_branching_rule_makes_a_wrong_proof(rule, kept, name, folder, monkeypatch):
    """In each search alone, with its own rules and with those that fall back to its own choice."""
    others = {"input-splits", "activation-splits", "mixed-splits"} - {kept}
    settings = Settings(SECONDS, device="cpu", branching=rule, without=(*BLIND, "neuron-search", *sorted(others)))
    outcome = search(planted(name).write(folder), settings, monkeypatch, BY_INPUTS)
    assert outcome.statistics.input_splits + outcome.statistics.activation_splits > 0


@pytest.mark.parametrize("without", sorted(COMPONENTS))
def test_leaving_out_an_component_makes_no_wrong_proof(without, folder, monkeypatch):
    settings = Settings(SECONDS, device="cpu", without=(*BLIND, without))
    search(planted("relu").write(folder), settings, monkeypatch, BY_INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), [(name, 1 + place % 3) for place, name in enumerate(NETWORKS)])
def test_longer_runs_on_more_networks(name, seed, tmp_path, monkeypatch):
    case = planted_violations.SMALL[name](seed)
    search(case.write(tmp_path), Settings(LONG_SECONDS, device="cpu", without=BLIND), monkeypatch, BY_INPUTS)
