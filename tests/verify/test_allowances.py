"""What rounding may do is taken off the bound of the step that it may happen in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from zonoplug.lirpa.backward import Backward
from zonoplug.lirpa.clipped_hulls import _Layer
from zonoplug.lirpa.refine import NeuronSlopes, first_slopes
from zonoplug.verify.activation_branching import activation_rule
from zonoplug.verify.bounding import Bounder
from zonoplug.verify.mixed_bounds import MixedBounds
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.sign_bounds import SignBounds
from zonoplug.verify.sign_subdomains import Aims

_location = importlib.util.spec_from_file_location("verify_conftest", Path(__file__).with_name("conftest.py"))
files = importlib.util.module_from_spec(_location)
_location.loader.exec_module(files)

STEPS = 12


def signs(problem, bounder):
    hulls, aims = bounder.hulls(problem.box), Aims.of(problem.objective, 0)
    bounds = SignBounds(bounder.module, bounder.backward, problem.box, hulls, activation_rule("auto"))
    return lambda: bounds.bound(bounds.layout.root(hulls), aims, STEPS)[0] + aims.goal[0]


def mixed(problem, bounder):
    aims = Aims.of(problem.objective, 0)
    bounds = MixedBounds(bounder, problem.box, aims)
    return lambda: bounds.margins(bounds.root(), STEPS).bound + aims.goal[0]


def clipped(problem, bounder):
    box, hulls = problem.box, bounder.hulls(problem.box)
    name = bounder.backward.relus[-1].inputs[0].name
    passes = Backward(bounder.module, name)
    layer = _Layer(passes, name, box, hulls, {}, None, passes.magnitudes(box, hulls))
    neurons, widths = torch.arange(passes.size), torch.ones(passes.size)

    def bound():
        slopes = first_slopes(passes, hulls, 2 * passes.size)
        return layer.bound(NeuronSlopes(neurons, slopes), widths, STEPS)[0]

    return bound


@pytest.mark.parametrize("prepared", [signs, mixed, clipped])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_step_is_lowered_by_its_own_allowance(tmp_path, monkeypatch, seed, prepared):
    """One step alone has no allowance, and all others one without an end: its bounds are what is left."""
    sizes = (4, 12, 12, 12, 1)
    network, _ = files.random_network(tmp_path / "n.onnx", seed, sizes=sizes)
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 4, [1] * 4, 1, ["(>= Y_0 -20.0)"])
    problem = load_problem(network, spec, Settings(device="cpu"))
    bound = prepared(problem, Bounder(problem))
    genuine, lowers, exact = Backward.bound, [], STEPS

    def noted(*arguments):
        found = genuine(*arguments)
        lowers.append(found.lower[:, 0].detach())
        return found

    def allowance(passes, bounds, rows, hulls, magnitudes):
        return torch.where(torch.tensor(len(lowers) == exact + 1), 0.0, torch.inf).expand(bounds.lower.shape)

    monkeypatch.setattr(Backward, "bound", noted)
    monkeypatch.setattr(Backward, "allowance", allowance)
    beaten = 0
    for exact in (0, STEPS // 2, STEPS):
        lowers.clear()
        found = bound()
        assert len(lowers) == STEPS + 1
        torch.testing.assert_close(found, lowers[exact])
        beaten += int((torch.stack(lowers).amax(dim=0) > lowers[exact]).any())
    assert beaten
