"""The search over affine forms: what holds is proved, nothing else, and wrong bounds are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import network_files as files

from zonoplug.clock import Deadline
from zonoplug.domain.zonotope import Interval
from zonoplug.verify import verifier
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError
from zonoplug.verify.bounds.unstable_bounds import UnstableMargins
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.search import unstable_search as open_search
from zonoplug.verify.search.neuron_search import NeuronSearch
from zonoplug.verify.search.relu_search import ActivationSearch
from zonoplug.verify.search.tree_search import TreeSearch
from zonoplug.verify.search.unstable_search import UnstableSearch
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import verify_files

SIZES = (5, 14, 14, 3)


@pytest.fixture(autouse=True)
def _straight_to_the_open_network(monkeypatch):
    """Every instance takes the way of networks with many inputs, and no disjunct is proved before the first
    bound-tightening pass.
    """
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", 0)
    monkeypatch.setattr(open_search, "ROOT_STEPS", 0)


class Planted:
    """A random network with three outputs on [-1, 1]^5, and values that it reaches."""

    def __init__(self, folder, seed):
        self._folder = folder
        self.network, _ = files.random_network(folder / "n.onnx", seed, sizes=SIZES)
        problem = self.problem("(>= Y_0 1000.0)")
        points = torch.rand(40_000, SIZES[0], generator=torch.Generator().manual_seed(seed)) * 2 - 1
        with torch.no_grad():
            self.values = problem.outputs(points).double().numpy()

    def files(self, *assertions):
        spec = files.write_specification(self._folder / "s.vnnlib", [-1] * 5, [1] * 5, 3, assertions)
        return self.network, spec

    def problem(self, *assertions):
        return load_problem(*self.files(*assertions), Settings(device="cpu"))

    def search(self, *assertions, without=("inner-attack",), observer=None):
        """A search that has seen some points; and its problem."""
        problem = self.problem(*assertions)
        attack = Attack(problem)
        attack.random_points(8)
        return ActivationSearch(problem, Bounder(problem), attack, observer, without), problem

    def run(self, *assertions, seconds=20.0, **options):
        """The result of a search, and how it was observed."""
        observer = Observer()
        search, problem = self.search(*assertions, observer=observer, **options)
        return search.run(problem.objective, Deadline(seconds)), observer.statistics

    def level(self, *factors, above=0.0):
        """The highest value of a combination of outputs that is reached, and a share of all its values' range more."""
        values = self.values @ np.array(factors)
        return float(values.max() + above * (values.max() - values.min()))


@pytest.fixture
def passes(monkeypatch):
    """The leaves that each bound-tightening pass was to make, in the order of bound-tightening passes."""
    noted, genuine = [], NeuronSearch.tighten

    def tighten(self, preactivations, leaves, deadline):
        noted.append(leaves)
        return genuine(self, preactivations, leaves, deadline)

    monkeypatch.setattr(NeuronSearch, "tighten", tighten)
    return noted


@pytest.mark.parametrize("without", [("inner-attack",), ("inner-attack", "neuron-search"), ()])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_counterexample_is_never_proved_away(tmp_path, passes, seed, without):
    planted = Planted(tmp_path, seed)
    level = planted.level(1, 0, 0)
    result, _ = planted.run(f"(>= Y_0 {level!r})", seconds=0.7, without=without)
    assert not result.proved
    assert passes


@pytest.mark.parametrize("seed", range(3))
def test_no_verification_without_attacks_proves_a_planted_counterexample_away(tmp_path, passes, seed):
    planted = Planted(tmp_path, seed)
    settings = Settings(1.5, device="cpu", without=("attack", "inner-attack"))
    outcome = verify_files(*planted.files(f"(>= Y_0 {planted.level(1, 0, 0)!r})"), settings)
    assert outcome.verdict is not Verdict.HOLDS
    assert passes or outcome.verdict is Verdict.VIOLATED  # by one of the random points that are tried first


@pytest.mark.parametrize("seed", range(4))
def test_what_holds_is_proved(tmp_path, passes, seed):
    planted = Planted(tmp_path, seed)
    result, seen = planted.run(f"(>= Y_0 {planted.level(1, 0, 0, above=0.2)})")
    assert result.proved
    assert passes
    assert seen.volume_proved == pytest.approx(1.0)
    assert result.subdomains > 1


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("place", range(3))
def test_one_of_several_disjuncts_decides(tmp_path, passes, place, holds):
    """Two are out of reach, each by another combination of outputs; the third is, or a point reaches it."""
    planted = Planted(tmp_path, place)
    parts = []
    for row in range(3):
        factors = [0, 0, 0]
        factors[row], factors[(row + 1) % 3] = 1, -1
        level = planted.level(*factors, above=0.2 if holds or row != place else 0.0)
        parts.append(f"(and (>= (- Y_{row} Y_{(row + 1) % 3}) {level!r}))")
    result, seen = planted.run(f"(or {' '.join(parts)})", seconds=20.0 if holds else 1.0)
    assert result.proved is holds
    assert passes
    assert holds == (seen.volume_proved == pytest.approx(1.0))


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_disjunct_exclude_together_what_each_allows(tmp_path, passes, seed, holds):
    """Each row is reached by points of its own; together they are by one, or by none. A second disjunct has one row."""
    planted = Planted(tmp_path, seed)
    ends = planted.values[:, 0], -planted.values[:, 0] + 0.3 * planted.values[:, 1]
    means = [float(values.mean()) for values in ends]
    first, second = (values - mean for values, mean in zip(ends, means, strict=True))
    together, alone = float(np.minimum(first, second).max()), float(min(first.max(), second.max()))
    level = together + (0.7 * (alone - together) if holds else 0.0)
    assert together < level < alone or not holds
    left = f"(>= Y_0 {level + means[0]!r})"
    right = f"(>= (+ (* -1.0 Y_0) (* 0.3 Y_1)) {level + means[1]!r})"
    third = f"(>= Y_2 {planted.level(0, 0, 1, above=0.2)})"
    result, _ = planted.run(f"(or (and {third}) (and {left} {right}))", seconds=20.0 if holds else 1.0)
    assert result.proved is holds
    assert passes


@pytest.mark.parametrize("first", [0, 1])
def test_bounds_that_exclude_a_sampled_point_are_refused(tmp_path, monkeypatch, first):
    """Of the bound-tightening pass without leaves, and of the next."""
    planted, calls, genuine = Planted(tmp_path, 0), [], NeuronSearch.tighten

    def wrong(self, preactivations, leaves, deadline):
        found, network, bounded = genuine(self, preactivations, leaves, deadline)
        calls.append(leaves)
        if len(calls) <= first:
            return found, network, bounded
        name = list(self._passes)[-1][0].source
        middle = found[name].lower + 0.5 * (found[name].upper - found[name].lower)
        return found | {name: Interval(middle, found[name].upper)}, network, bounded

    monkeypatch.setattr(NeuronSearch, "tighten", wrong)
    search, problem = planted.search(f"(>= Y_0 {planted.level(1, 0, 0)!r})")
    with pytest.raises(BrokenMethodError, match="pre-activation bounds are broken"):
        search.run(problem.objective, Deadline(10))
    assert len(calls) == first + 1


def test_root_bounds_that_exclude_a_sampled_point_are_refused(tmp_path, monkeypatch):
    planted, genuine = Planted(tmp_path, 0), UnstableMargins.bound

    def wrong(self, part, properties, steps):
        bound, scores = genuine(self, part, properties, steps)
        return bound + 10.0, scores

    monkeypatch.setattr(UnstableMargins, "bound", wrong)
    search, problem = planted.search(f"(>= Y_0 {planted.level(1, 0, 0)!r})")
    with pytest.raises(BrokenMethodError, match="below its bound"):
        search.run(problem.objective, Deadline(10))


@pytest.mark.parametrize("gains", [True, False])
def test_where_tightening_gain_nothing_the_search_ends_in_trees(tmp_path, monkeypatch, gains):
    """The last trees get all the time that is left, and may be as deep as they need; those before may not."""
    planted, calls, genuine = Planted(tmp_path, 1), [], NeuronSearch.tighten
    monkeypatch.setattr(open_search, "PROGRESS", -10.0 if gains else 0.1)

    def tighten(self, preactivations, leaves, deadline):
        calls.append(("sweep", leaves))
        _, network, bounded = genuine(self, preactivations, 0, deadline)
        return dict(preactivations), network, bounded

    def close(self, trees, deadline, result, deepest=torch.inf):
        calls.append(("trees", deepest, round(deadline.left_seconds / whole.left_seconds, 2)))
        if len(calls) > 5:
            result.counterexample = "one"

    monkeypatch.setattr(NeuronSearch, "tighten", tighten)
    monkeypatch.setattr(TreeSearch, "close", close)
    search, problem = planted.search(f"(>= Y_0 {planted.level(1, 0, 0)!r})")
    whole = Deadline(600.0)
    result = search.run(problem.objective, whole)
    assert not result.proved
    (_, early), (leaves, later) = open_search.TIGHTENING_PASSES[:2]
    assert calls[:3] == [("sweep", 0), ("trees", open_search.DEEPEST, early), ("sweep", leaves)]
    if gains:
        assert calls[3:5] == [("trees", open_search.DEEPEST, later), ("sweep", open_search.TIGHTENING_PASSES[2][0])]
    else:
        assert calls[3:] == [("trees", torch.inf, 1.0)]


@pytest.mark.parametrize("holds", [True, False])
def test_without_tightening_there_is_one_round_of_trees(tmp_path, passes, holds):
    planted = Planted(tmp_path, 2)
    level, without = planted.level(1, 0, 0, above=0.2 if holds else 0.0), ("inner-attack", "neuron-search")
    result, _ = planted.run(f"(>= Y_0 {level!r})", seconds=20.0 if holds else 1.0, without=without)
    assert result.proved is holds
    assert passes == [0]


@pytest.mark.parametrize("seed", range(3))
def test_a_counterexample_on_the_way_ends_the_search(tmp_path, seed):
    planted = Planted(tmp_path, seed)
    level = planted.level(1, 0, 0, above=-0.3)
    result, _ = planted.run(f"(>= Y_0 {level})", without=())
    assert not result.proved
    assert result.counterexample is not None
    with torch.no_grad():
        point = torch.as_tensor(np.asarray(result.counterexample.inputs), dtype=torch.float32)
        assert float(planted.problem(f"(>= Y_0 {level})").outputs(point[None])[0, 0]) >= level - 1e-5


def test_a_passed_deadline_proves_nothing(tmp_path, monkeypatch):
    planted = Planted(tmp_path, 0)
    search, problem = planted.search(f"(>= Y_0 {planted.level(1, 0, 0, above=0.2)})")
    asked = []
    genuine = UnstableSearch.run

    def late(self, preactivations, properties, deadline, result):
        asked.append(properties)
        return genuine(self, preactivations, properties, Deadline(0.0), result)

    monkeypatch.setattr(UnstableSearch, "run", late)
    assert not search.run(problem.objective, Deadline(20)).proved
    assert len(asked[0]) == 1
