"""Multipliers from exact linear programs: as good as the program says, and never believed for more than they prove."""

from __future__ import annotations

import pytest
import torch
from helpers import network_files as files

from zonoplug.clock import Deadline
from zonoplug.lirpa.backward.passes import Backward
from zonoplug.lirpa.backward.unstable_network import UnstableNetwork
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.bounds.lp_duals import lp_duals
from zonoplug.verify.bounds.unstable_bounds import UnstableBounds, UnstableMargins
from zonoplug.verify.branching.activations import activation_rule
from zonoplug.verify.search.neuron_search import NeuronSearch
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout
from zonoplug.verify.subdomains.relu_phases import Properties, split_relus

TWO_ROWS = "(or (and (<= Y_0 -3.0) (>= Y_1 3.0)))"


class World:
    """A random network of four inputs, written in its unstable neurons, and one disjunct of two rows."""

    def __init__(self, folder, seed, rows=TWO_ROWS):
        network, _ = files.random_network(folder / "n.onnx", seed, sizes=(4, 10, 10, 2))
        spec = files.write_specification(folder / "s.vnnlib", [-1] * 4, [1] * 4, 2, [rows])
        self.problem = load_problem(network, spec, Settings(device="cpu"))
        bounder = Bounder(self.problem)
        self.properties = Properties.of(self.problem.objective, 0)
        rule, box, backward = activation_rule("auto"), self.problem.box, bounder.backward
        preactivations = bounder.preactivations(box)
        places = NeuronLayout(backward, preactivations).places
        preactivations, self.network, _ = NeuronSearch(bounder.module, box, rule, places).tighten(
            preactivations, 0, Deadline(60)
        )
        self.bounds = UnstableBounds(self.network, rule)
        forms = self.network.forms_of(backward, preactivations, self.properties.rows.flatten(0, 1))
        self.margins = UnstableMargins(self.bounds, forms, self.properties)

    def pieces(self, count):
        root = self.margins.root(1)
        root.bound, scores = self.margins.bound(root, self.properties, 10)
        return split_relus(root, scores, count)[0]

    def margin(self, point):
        """The network's own at one input."""
        output = self.problem.outputs(point.unsqueeze(0))
        return float((output @ self.properties.rows[0].T - self.properties.goal[0]).amax())

    def programmed(self, piece):
        """The program's multipliers of a piece, and what they prove without any step."""
        target = self.margins.targets(self.properties)
        found = lp_duals(self.network, piece, target, 10.0)
        part = piece.copy()
        part.alpha, part.beta = found.alpha, found.beta
        return found, float(self.bounds.bound(part, target, 0, found.weights)[0])


@pytest.mark.parametrize("seed", range(4))
def test_the_multipliers_prove_what_the_program_says_and_no_ascent_proves_more(tmp_path, seed):
    world = World(tmp_path, seed)
    pieces = world.pieces(8)
    assert len(pieces) > 1
    for at in range(len(pieces)):
        piece = pieces.pick(slice(at, at + 1))
        found, proved = world.programmed(piece)
        ascended = float(world.margins.bound(piece.copy(), world.properties, 100)[0])
        scale = 1e-3 * max(1.0, abs(found.least))
        # Every neuron's form is off by its error, so that large multipliers, as of signs that contradict, cost more.
        error = 3e-4 + 2 * float(found.beta[0].abs() @ world.network.forms.error)
        assert found.least - error <= proved <= found.least + 1e-5
        assert ascended <= found.least + scale


@pytest.mark.parametrize("seed", range(3))
def test_where_no_sign_is_open_the_point_is_where_the_network_is_least(tmp_path, seed):
    """Pieces that fix all signs as some point has them."""
    world = World(tmp_path, seed)
    points = world.problem.box.sample(6, torch.Generator().manual_seed(seed))[:, 0]
    for point in points:
        piece = world.margins.root(1).copy()
        x, images = point.flatten(), torch.zeros(len(world.network))
        for section in world.network.sections:
            forms = world.network.forms
            z = forms.inputs[section] @ x + forms.before[section] @ images + forms.constant[section]
            images[section] = z.clamp(min=0)
            piece.sign[0, section] = torch.where(z > 0, 1.0, -1.0)
        piece.lower[piece.sign > 0], piece.upper[piece.sign < 0] = 0.0, 0.0
        found, proved = world.programmed(piece)
        least = world.margin(found.point.reshape(point.shape))
        assert found.infeasibility < 1e-9
        assert least <= world.margin(point) + 1e-5
        assert least == pytest.approx(found.least, abs=1e-4, rel=1e-4)
        assert least == pytest.approx(proved, abs=1e-3, rel=1e-3)


def test_signs_that_contradict_one_another_are_proved(tmp_path):
    """A piece on which two neurons that are equal have different signs holds no point."""
    weight = [[1.0, 2.0], [1.0, 2.0], [1.0, -1.0]]
    network = files.write_network(tmp_path / "n.onnx", [(weight, [0.25, -0.25, 0.0]), ([[1.0, -1.0, 1.0]], [0.0])])
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 2, [1] * 2, 1, ["(>= Y_0 -50.0)"])
    problem = load_problem(network, spec, Settings(device="cpu"))
    bounder = Bounder(problem)
    properties = Properties.of(problem.objective, 0)
    affine_form = UnstableNetwork(problem.box, 3)
    preactivations = bounder.preactivations(problem.box)
    relu = bounder.backward.relus[0]
    passes = Backward(bounder.module, relu.inputs[0].name)
    forms = affine_form.forms_of(passes, preactivations, torch.eye(3))
    affine_form.append(relu.name, torch.arange(3), preactivations[relu.inputs[0].name], forms)
    bounds = UnstableBounds(affine_form, activation_rule("auto"))
    forms = affine_form.forms_of(bounder.backward, preactivations, properties.rows.flatten(0, 1))
    margins = UnstableMargins(bounds, forms, properties)
    piece = margins.root(1).copy()
    piece.sign[0, :2] = torch.tensor([-1.0, 1.0])  # z + 0.25 <= 0 and z - 0.25 >= 0
    piece.upper[0, 0], piece.lower[0, 1] = 0.0, 0.0
    assert not bool(margins.bound(piece.copy(), properties, 20)[0] > 0)  # the output is far below -50 nowhere else
    found = lp_duals(affine_form, piece, margins.targets(properties), 10.0)
    piece.alpha, piece.beta = found.alpha, found.beta
    assert bool(bounds.bound(piece, margins.targets(properties), 0, found.weights)[0] > 0)


def test_what_many_steps_leave_open_is_left_to_a_program(tmp_path, monkeypatch):
    world = World(tmp_path, 2, "(<= Y_0 50.0)")
    pieces = world.pieces(8)
    monkeypatch.setattr("zonoplug.verify.bounds.unstable_bounds.LAST_STEPS", 1)
    few = world.margins.bound(pieces.copy(), world.properties, 1)[0]
    last = world.margins.last(pieces.copy(), world.properties)
    unstable = ~(few > 0)
    assert world.margins.minimisers.shape[0] == int(unstable.sum()) > 0
    assert bool((last >= few).all())
    for at in unstable.nonzero().flatten().tolist():
        _, proved = world.programmed(pieces.pick(slice(at, at + 1)))
        assert float(last[at]) >= proved - 1e-5


def test_a_program_that_takes_too_long_gives_nothing(tmp_path):
    world = World(tmp_path, 0)
    assert lp_duals(world.network, world.margins.root(1), world.margins.targets(world.properties), 0.0) is None
