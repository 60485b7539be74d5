"""Clipped hulls hold every point that has the fixed signs and is unsafe."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.lirpa.backward import Backward
from zonoplug.lirpa.clipped_hulls import clip_hulls
from zonoplug.lirpa.refine import NeuronSlopes, refine_hulls
from zonoplug.verify.activation_branching import activation_rule
from zonoplug.verify.attack import Attack
from zonoplug.verify.bounding import Bounder
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.sign_bounds import SignBounds
from zonoplug.verify.sign_subdomains import Aims

_location = importlib.util.spec_from_file_location("verify_conftest", Path(__file__).with_name("conftest.py"))
files = importlib.util.module_from_spec(_location)
_location.loader.exec_module(files)

POINTS = 20_000


class Clipping:
    """A random network, its root, and what sampled points do in it."""

    def __init__(self, folder, seed, quantile):
        sizes = (4, 12, 12, 12, 1)
        network, _ = files.random_network(folder / "n.onnx", seed, sizes=sizes)
        write = lambda level: files.write_specification(  # noqa: E731
            folder / "s.vnnlib", [-1] * 4, [1] * 4, 1, [f"(>= Y_0 {level!r})"]
        )
        problem = load_problem(network, write(1000.0), Settings(device="cpu"))
        points = torch.rand(POINTS, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        with torch.no_grad():
            level = float(problem.outputs(points).flatten().quantile(quantile))
        self.problem = problem = load_problem(network, write(level), Settings(device="cpu"))
        attack = Attack(problem)
        attack.random_points(8)
        problem.allow_for_rounding(attack.outputs)
        bounder = Bounder(problem)
        self.box = Box(problem.box.lower, problem.box.upper)
        module = bounder.module
        self.slopes: dict[str, list[NeuronSlopes]] = {}
        self.root = refine_hulls(module, self.box, bounder.hulls(self.box), 4, Deadline(60), self.slopes)
        self.bounds = SignBounds(module, bounder.backward, self.box, self.root, activation_rule("auto"))
        self.names = [at.source for at in self.bounds.layout.places]
        self.passes = {name: Backward(module, name) for name in self.slopes}
        self.values = {name: module(points, final_node_name=name).detach() for name in self.names}
        with torch.no_grad():
            self.unsafe = problem.outputs(points).flatten() >= level

    def node(self, seed, count):
        """Random signs that some unsafe point has, the hulls cut by them, and the points that have them."""
        random = torch.Generator().manual_seed(seed)
        chosen = int(self.unsafe.nonzero().flatten()[0])
        signs, hulls = {}, dict(self.root)
        meets = torch.ones(POINTS, dtype=torch.bool)
        for name in self.names:
            hull, sign = hulls[name], torch.zeros_like(hulls[name].lower)
            open_ = ((hull.lower < 0) & (hull.upper > 0))[0].nonzero().flatten()
            picked = open_[torch.randperm(len(open_), generator=random)[:count]]
            sign[0, picked] = torch.where(self.values[name][chosen, picked] > 0, 1.0, -1.0)
            lower = torch.where(sign > 0, hull.lower.clamp(min=0), hull.lower)
            upper = torch.where(sign < 0, hull.upper.clamp(max=0), hull.upper)
            hulls[name] = type(hull)(lower, upper)
            signs[name] = sign
            meets &= (self.values[name] * sign >= 0).all(dim=1)
        return signs, hulls, meets

    def part(self, hulls, signs):
        part = self.bounds.layout.root(self.root)
        part.lower, part.upper, part.sign = (
            torch.cat([side(name) for name in self.names], dim=1)
            for side in (lambda n: hulls[n].lower, lambda n: hulls[n].upper, lambda n: signs[n])
        )
        return part


def escape(clipped, names, values, meets):
    """How far a point that counts lies outside the hulls."""
    worst = 0.0
    for name in names:
        seen, hull = values[name][meets], clipped.hulls[name]
        if len(seen):
            worst = max(worst, float(torch.maximum(hull.lower - seen, seen - hull.upper).max()))
    return worst


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 3), quantile=st.sampled_from([0.3, 0.9, 0.99]))
def test_no_unsafe_point_is_clipped_away(tmp_path_factory, seed, count, quantile):
    world = Clipping(tmp_path_factory.mktemp("n"), seed, quantile)
    signs, hulls, meets = world.node(seed, count)
    by_signs = clip_hulls(world.passes, world.box, hulls, world.slopes, signs, 6)
    assert not by_signs.empty
    assert escape(by_signs, world.names, world.values, meets) <= 1e-5
    part = world.part(by_signs.hulls, signs)
    aims = Aims.of(world.problem.objective, 0)
    slopes = by_signs.slopes
    for _ in range(3):
        world.bounds.bound(part, aims, 6)
        clipped = clip_hulls(world.passes, world.box, by_signs.hulls, slopes, signs, 6, world.bounds.unsafe(part, aims))
        assert not clipped.empty
        assert escape(clipped, world.names, world.values, meets & world.unsafe) <= 1e-5
        part, slopes = world.part(clipped.hulls, signs), clipped.slopes


def test_clipping_narrows_what_signs_and_the_specification_leave(tmp_path):
    world = Clipping(tmp_path, 3, 0.999)
    signs, hulls, _ = world.node(3, 2)
    plain, by_signs = (clip_hulls(world.passes, world.box, hulls, world.slopes, signs, steps) for steps in (0, 8))
    part = world.part(by_signs.hulls, signs)
    aims = Aims.of(world.problem.objective, 0)
    world.bounds.bound(part, aims, 10)
    unsafe = world.bounds.unsafe(part, aims)
    clipped = clip_hulls(world.passes, world.box, by_signs.hulls, by_signs.slopes, signs, 8, unsafe)
    widths = [
        sum(float((found.hulls[name].upper - found.hulls[name].lower).sum()) for name in world.names)
        for found in (plain, by_signs, clipped)
    ]
    assert widths[1] < 0.98 * widths[0]
    assert widths[2] < 0.99 * widths[1]


def test_what_cannot_be_unsafe_is_empty(tmp_path):
    world = Clipping(tmp_path, 5, 1.0)
    signs, hulls, _ = world.node(5, 0)
    part, aims = world.part(hulls, signs), Aims.of(world.problem.objective, 0)
    world.bounds.bound(part, aims, 10)
    unsafe = world.bounds.unsafe(part, aims)
    unreachable = type(unsafe)(unsafe.whole, unsafe.row, unsafe.goal - 1000.0, unsafe.multipliers)
    clipped = clip_hulls(world.passes, world.box, hulls, world.slopes, signs, 30, unreachable)
    assert clipped.empty
