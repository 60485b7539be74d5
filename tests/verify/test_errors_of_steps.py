"""What rounding may do is taken off the bound of the step that it may happen in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import network_files as files
from helpers import unstable_networks as nets

from zonoplug.lirpa.backward.passes import Backward
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.bounds.dual_ascent import DualAscent
from zonoplug.verify.bounds.graph_bounds import GraphBounds
from zonoplug.verify.bounds.mixed_bounds import MixedBounds
from zonoplug.verify.bounds.unstable_bounds import ERROR_SLACK, UnstableBounds, UnstableMargins
from zonoplug.verify.branching.activations import activation_rule
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.relu_phases import Properties

STEPS = 12


def signs(problem, bounder):
    preactivations, properties = bounder.preactivations(problem.box), Properties.of(problem.objective, 0)
    bounds = GraphBounds(bounder.module, bounder.backward, problem.box, preactivations, activation_rule("auto"))
    return lambda: bounds.bound(bounds.layout.root(preactivations), properties, STEPS)[0] + properties.goal[0]


def mixed(problem, bounder):
    properties = Properties.of(problem.objective, 0)
    bounds = MixedBounds(bounder, problem.box, properties)
    return lambda: bounds.margins(bounds.root(), STEPS).bound + properties.goal[0]


@pytest.mark.parametrize("prepared", [signs, mixed])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_step_is_lowered_by_its_own_error(tmp_path, monkeypatch, seed, prepared):
    """One step alone has no error, and all others one without an end: its bounds are what is left."""
    network, _ = files.random_network(tmp_path / "n.onnx", seed, sizes=(4, 12, 12, 12, 1))
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 4, [1] * 4, 1, ["(>= Y_0 -20.0)"])
    problem = load_problem(network, spec, Settings(device="cpu"))
    bound = prepared(problem, Bounder(problem))
    genuine, lowers, exact = Backward.bound, [], STEPS

    def noted(*arguments):
        found = genuine(*arguments)
        lowers.append(found.lower[:, 0].detach())
        alone = torch.where(torch.tensor(len(lowers) == exact + 1), 0.0, torch.inf)
        return replace(found, error=alone.expand(found.lower.shape))

    monkeypatch.setattr(Backward, "bound", noted)
    monkeypatch.setattr(DualAscent, "_mixture_error", lambda *_: 0.0)
    beaten = 0
    for exact in (0, STEPS // 2, STEPS):
        lowers.clear()
        found = bound()
        assert len(lowers) == STEPS + 1
        torch.testing.assert_close(found, lowers[exact])
        beaten += int((torch.stack(lowers).amax(dim=0) > lowers[exact]).any())
    assert beaten


@pytest.mark.parametrize("seed", range(3))
def test_each_step_over_an_affine_form_is_lowered_by_its_own_error(monkeypatch, seed):
    """Errors as large as bounds, so that each step's matters: it counts with the coefficients of that step."""
    opened, random = nets.Opened.random("dense", seed), torch.Generator().manual_seed(seed)
    network, genuine, steps = opened.network, UnstableBounds._backward, []
    known, errors = network.forms, torch.rand(len(network), generator=random, dtype=torch.float64)
    goal = torch.full((4,), 100.0, dtype=torch.float64)
    forms = replace(opened.forms, error=torch.rand(4, generator=random, dtype=torch.float64))

    def noted(self, shares, targets, below, slope, intercept, fixed):
        network.forms = replace(known, error=torch.zeros_like(errors))
        exact = replace(targets, error=torch.zeros_like(targets.error))
        behind, _, without = genuine(self, shares, exact, below, slope, intercept, fixed)
        front = behind.clamp(min=0) * below + behind.clamp(max=0) * slope - fixed
        network.forms = replace(known, error=errors)
        found = genuine(self, shares, targets, below, slope, intercept, fixed)
        steps.append((without, (shares * targets.error).sum(dim=1) + front.abs() @ errors, found[2]))
        return found

    monkeypatch.setattr(UnstableBounds, "_backward", noted)
    margins = UnstableMargins(opened.bounds, forms, opened.properties(goal))
    found, _ = margins.bound(margins.root(1), opened.properties(goal), STEPS)
    without, error, lowered = (torch.stack(column) for column in zip(*steps, strict=True))
    assert len(without) == STEPS + 1
    torch.testing.assert_close(lowered, without - ERROR_SLACK * error)
    torch.testing.assert_close(found, (without - ERROR_SLACK * error).amax(dim=0))
    assert float(error.max() - error.min()) > 0.01
