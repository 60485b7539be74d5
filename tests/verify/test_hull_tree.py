"""The upper part of the sign search: refreshed hulls hold what the signs allow, and nothing is proved away."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.backward import Backward
from zonoplug.lirpa.clipped_hulls import clip_hulls
from zonoplug.lirpa.refine import NeuronSlopes, refine_hulls
from zonoplug.verify import activation_splits, hull_tree
from zonoplug.verify.activation_splits import ActivationSearch
from zonoplug.verify.attack import Attack
from zonoplug.verify.bounding import Bounder
from zonoplug.verify.hull_tree import HullTree
from zonoplug.verify.settings import Settings, load_problem

_location = importlib.util.spec_from_file_location("verify_conftest", Path(__file__).with_name("conftest.py"))
files = importlib.util.module_from_spec(_location)
_location.loader.exec_module(files)


SMALLER = (5, 12, 12, 12, 1)  # searched through in seconds


@pytest.fixture(autouse=True)
def hulls_from_the_start(monkeypatch):
    """Nothing is left for the cheap splits that come before and after."""
    monkeypatch.setattr(activation_splits, "FIRST_SHARE", 0.0)
    monkeypatch.setattr(activation_splits, "HULL_SHARE", 1.0)


def search_for(tmp_path, seed, assertion, sizes=(5, 14, 14, 14, 1), without=()):
    network, _ = files.random_network(tmp_path / "n.onnx", seed, sizes=sizes)
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * sizes[0], [1] * sizes[0], sizes[-1], [assertion])
    problem = load_problem(network, spec, Settings(device="cpu"))
    attack = Attack(problem)
    attack.random_points(8)
    problem.allow_for_rounding(attack.outputs)
    return problem, ActivationSearch(problem, Bounder(problem), attack, without=without)


@pytest.mark.parametrize("seed", range(6))
def test_refreshed_hulls_hold_every_sample_with_the_fixed_signs(tmp_path, seed):
    problem, search = search_for(tmp_path, seed, "(>= Y_0 1000.0)")
    module, box = search._bounder.module, Box(problem.box.lower, problem.box.upper)
    slopes: dict[str, list[NeuronSlopes]] = {}
    root = refine_hulls(module, box, search._bounder.hulls(box), 4, Deadline(60), slopes)
    assert slopes
    names = [relu.inputs[0].name for relu in search._backward.relus]
    points = box.sample(20_000, torch.Generator().manual_seed(seed))[:, 0]
    values = {name: module(points, final_node_name=name).detach() for name in names}
    passes = {name: Backward(module, name) for name in slopes}
    narrower = 0
    for neuron in range(14):
        for side in (1.0, -1.0):
            hull = root[names[0]]
            lower, upper = hull.lower.clone(), hull.upper.clone()
            (lower if side > 0 else upper)[0, neuron] = 0.0
            if not bool((lower <= upper).all()):
                continue
            split = {**root, names[0]: Interval(lower, upper)}
            clipped = clip_hulls(passes, box, split, slopes)
            tight, impact = clipped.hulls, clipped.impact
            meets = values[names[0]][:, neuron] * side >= 0
            for name in names[1:]:
                seen = values[name][meets]
                assert bool(((seen >= tight[name].lower - 1e-5) & (seen <= tight[name].upper + 1e-5)).all())
                width, before = (tight[name].upper - tight[name].lower), (root[name].upper - root[name].lower)
                narrower += int((width < before - 1e-4).sum())
            assert all(bool((cost >= 0).all()) for cost in impact.values())
    assert narrower > 0


@pytest.mark.parametrize("always", ["clipped", "tree", "plain"])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_counterexample_is_never_proved_away(tmp_path, seed, always, monkeypatch):
    monkeypatch.setattr(hull_tree, "FIRST_TRY", 10.0 if always == "plain" else 0.0)
    monkeypatch.setattr(hull_tree, "SLOW", 3.0 if always == "plain" else -1e9)
    without = () if always == "clipped" else ("clipping",)
    problem, search = search_for(tmp_path, seed, "(>= Y_0 1000.0)", SMALLER)
    points = problem.box.sample(20_000, torch.Generator().manual_seed(seed))[:, 0]  # corners are among them
    with torch.no_grad():
        highest = float(problem.outputs(points).max())
    problem, search = search_for(tmp_path, seed, f"(>= Y_0 {highest!r})", SMALLER, without=(*without, "inner-attack"))
    assert not search.run(problem.objective, Deadline(3)).proved
    problem, search = search_for(tmp_path, seed, f"(>= Y_0 {highest + 0.3!r})", SMALLER, without=without)
    assert search.run(problem.objective, Deadline(90)).proved


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("planted", [0, 1, 2])
def test_hulls_that_one_disjunct_clips_are_not_used_for_another(tmp_path, seed, planted, monkeypatch):
    monkeypatch.setattr(hull_tree, "SLOW", -1e9)
    sizes = (4, 12, 12, 12, 3)
    problem, search = search_for(tmp_path, seed, "(>= Y_0 1000.0)", sizes)
    points = torch.rand(50_000, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.no_grad():
        highest = problem.outputs(points).amax(dim=0)
    levels = [float(value) + (0.0 if place == planted else 0.1) for place, value in enumerate(highest)]
    assertion = "(or " + " ".join(f"(and (>= Y_{place} {level!r}))" for place, level in enumerate(levels)) + ")"
    problem, search = search_for(tmp_path, seed, assertion, sizes)
    assert not search.run(problem.objective, Deadline(4)).proved


def test_the_tree_proves_without_any_plain_search(tmp_path, monkeypatch):
    monkeypatch.setattr(hull_tree, "FIRST_TRY", -1.0)
    monkeypatch.setattr(hull_tree, "SLOW", -1e9)
    monkeypatch.setattr(HullTree, "_close", lambda *_: pytest.fail("the plain search ran"))
    problem, search = search_for(tmp_path, 0, "(>= Y_0 1000.0)", SMALLER, without=("clipping",))
    with torch.no_grad():
        highest = float(problem.outputs(torch.rand(50_000, 5) * 2 - 1).max())
    problem, search = search_for(tmp_path, 0, f"(>= Y_0 {highest + 0.3!r})", SMALLER, without=("clipping",))
    assert search.run(problem.objective, Deadline(90)).proved
