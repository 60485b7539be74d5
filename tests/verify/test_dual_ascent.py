"""The ascent on multipliers: what it keeps is what it claims, and it works where that is still of use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import network_files as files

from zonoplug.lirpa.backward.passes import Backward
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.bounds.dual_ascent import DualAscent
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout
from zonoplug.verify.subdomains.relu_phases import Properties


class Ascents:
    """A random network with two rows in its one disjunct, bounded on its whole box."""

    def __init__(self, folder, seed, level=-20.0):
        sizes = (4, 12, 12, 12, 2)
        network, _ = files.random_network(folder / "n.onnx", seed, sizes=sizes)
        unsafe = f"(and (>= Y_0 {level}) (>= Y_1 {level}))"
        spec = files.write_specification(folder / "s.vnnlib", [-1] * 4, [1] * 4, 2, [unsafe])
        problem = load_problem(network, spec, Settings(device="cpu"))
        bounder = Bounder(problem)
        self.box, self.properties = problem.box, Properties.of(problem.objective, 0)
        self.backward, self.preactivations = bounder.backward, bounder.preactivations(problem.box)
        self.layout = NeuronLayout(self.backward, self.preactivations)

    def climb(self, part, weights, steps, error=lambda: 0.0, **options):
        """An ascent in which the error of each step is what `error` says."""
        count = len(part)
        preactivations = self.layout.preactivations(part.lower, part.upper, self.preactivations)
        ascent = DualAscent(self.backward, self.layout, **options)
        genuine = Backward.bound

        def bound(*arguments):
            found = genuine(*arguments)
            return replace(found, error=torch.full_like(found.lower, error()))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Backward, "bound", bound)
            patch.setattr(DualAscent, "_mixture_error", lambda *_: 0.0)
            errors = self.backward.errors(self.box, self.preactivations)
            return ascent.climb(part, self.box.expanded(count), preactivations, self.properties, weights, steps, errors)


@pytest.mark.parametrize("keeps_best", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_multipliers_that_are_kept_give_the_best_bound_or_the_last(tmp_path, seed, keeps_best):
    world, errors = Ascents(tmp_path, seed), iter([0.0] * 4 + [100.0] * 9)
    part = world.layout.root(world.preactivations, 2)
    found = world.climb(part, torch.zeros(2, 2), 12, lambda: next(errors), keeps_best=keeps_best)
    again = world.climb(part, found.weights, 0)
    torch.testing.assert_close(again.bound, found.bound if keeps_best else found.margin)
    assert bool((found.margin > found.bound).all())  # later steps are better, but for what they might be off
    assert next(errors, None) is None


def test_a_margin_that_is_enough_leaves_the_steps_to_the_others(tmp_path):
    world = Ascents(tmp_path, 0)
    part = world.layout.root(world.preactivations, 2)
    before = part.copy()
    least = float(world.climb(part.copy(), torch.zeros(2, 2), 0).margin[0])
    world.climb(part, torch.zeros(2, 2), 3, enough=least - 1)
    assert torch.equal(part.alpha, before.alpha)
    world.climb(part, torch.zeros(2, 2), 3, enough=least + 1)
    assert not torch.equal(part.alpha, before.alpha)


def test_nothing_is_climbed_once_all_margins_are_above_0(tmp_path):
    world, calls = Ascents(tmp_path, 0, level=1000.0), []

    def error():
        calls.append(1)
        return 0.0

    found = world.climb(world.layout.root(world.preactivations), torch.zeros(1, 2), 12, error)
    assert bool(found.bound > 0)
    assert len(calls) == 1


def test_places_where_the_bound_is_least_lie_in_the_box(tmp_path):
    world = Ascents(tmp_path, 1)
    found = world.climb(world.layout.root(world.preactivations), torch.zeros(1, 2), 12)
    slopes = found.slopes
    least = (slopes * found.minimiser).sum()
    corners = world.box.sample(400, torch.Generator().manual_seed(0))[:, 0]
    assert bool(((corners * slopes).sum(dim=1) >= least - 1e-5).all())
    assert bool(((found.point >= world.box.lower) & (found.point <= world.box.upper)).all())
