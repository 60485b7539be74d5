"""The search on the phases of ReLUs by any bound method, and zonotopes constrained by signs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers import network_files as files
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zonoplug.clock import Deadline
from zonoplug.domain.constrained import ConstrainedZonotope
from zonoplug.domain.input_sets import Box
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.backward.passes import Backward
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import build, forward_propagation
from zonoplug.verify import verifier
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.constraints import symbols as sign_constraints
from zonoplug.verify.constraints.symbols import SplitConstraints
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.search.method_search import MethodSearch
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import verify_files

METHODS = ("zonotope", "zonotope+crown", "zonotope[girard,12]", "alpha-zonotope+crown")


class _Layers(nn.Module):
    """A ReLU network that keeps its pre-activations."""

    def __init__(self, seed: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def before(self, x):
        found = []
        for layer in self.layers[:-1]:
            found.append(layer(x))
            x = torch.relu(found[-1])
        return found, self.layers[-1](x)

    def forward(self, x):
        return self.before(x)[1]


def _constrained(seed: int, method: str, fixed: int, steps: int = 30):
    """A network, a set of split constraints that some point has, the rows' bounds, and points with these signs."""
    network = _Layers(seed, (4, 8, 8, 2)).eval()
    box = Box(-torch.ones(1, 4), torch.ones(1, 4))
    module = build(network, torch.zeros(1, 4))
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(20_000, 4, generator=random) * 2 - 1
    with torch.no_grad():
        before, outputs = network.before(points)
    before = torch.cat(before, dim=1)
    neurons = torch.randperm(16, generator=random)[:fixed]
    sign = torch.zeros(1, 16)
    sign[0, neurons] = before[0, neurons].sign()
    inside = (before * sign >= 0).all(dim=1)
    relus = [node.name for node in Backward(module).relus]
    signs = dict(zip(relus, sign.split(8, dim=1), strict=True))
    constraints = SplitConstraints(signs)
    with torch.no_grad():
        found = forward_propagation(
            module, [box], BoundMethod.parse(method), torch.eye(2).unsqueeze(0), observe=constraints.observe
        )
    start = {name: torch.zeros(1, 8) for name in relus}
    free = torch.full((1, 2), torch.inf)
    bounds = [constraints.bound(found.output, free, torch.tensor([row]), start, steps)[0] for row in range(2)]
    return found, torch.cat(bounds), outputs[inside], constraints, start


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS[:3:2]), fixed=st.integers(1, 8))
def test_constrained_bounds_hold_on_every_point_with_these_signs(seed, method, fixed):
    _, bounds, outputs, *_ = _constrained(seed, method, fixed)
    assert outputs.shape[0] >= 1
    assert bool((outputs >= bounds - 1e-5).all())


def test_constraints_tighten_most_bounds():
    tighter = 0
    for seed in range(20):
        found, bounds, *_ = _constrained(seed, "zonotope", 5)
        tighter += int((bounds > found.output.interval_hull().lower[0] + 1e-3).sum())
    assert tighter >= 30


def test_constrained_bounds_stay_below_the_exact_program(monkeypatch):
    kept = []
    genuine = sign_constraints.SymbolConstraints.on_unit_cube

    def noted(matrix, bound):
        kept.append(genuine(matrix, bound))
        return kept[-1]

    monkeypatch.setattr(sign_constraints.SymbolConstraints, "on_unit_cube", noted)
    near = 0
    for seed in range(10):
        found, bounds, *_ = _constrained(seed, "zonotope", 5, steps=200)
        for row, bound in enumerate(bounds.tolist()):
            exact = float(ConstrainedZonotope(found.output, kept.pop(0)).exact_least(torch.eye(2)[row]))
            assert bound <= exact + 1e-4
            near += bound >= exact - 0.05 * abs(exact) - 0.05
    assert near >= 15


def test_rows_beyond_their_limit_are_out_of_the_set():
    found, bounds, outputs, constraints, start = _constrained(3, "zonotope", 2)
    first = torch.tensor([0])
    limit = torch.stack([outputs.amin(dim=0)[0] - 100, torch.tensor(torch.inf)]).unsqueeze(0)
    assert constraints.bound(found.output, limit, first, start, 40)[0] > bounds[0] + 50


@pytest.fixture
def _only_signs(monkeypatch):
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_verdicts_on_random_networks_agree_with_samples(tmp_path, seed, method, _only_signs):
    network, layers = files.random_network(tmp_path / "n.onnx", seed, sizes=(4, 10, 10, 2))
    highest = files.highest_first_output(layers, 50_000, seed, difference=True)
    chosen = Settings(timeout_seconds=20, device="cpu", method=method)
    for offset, wanted in ((-0.02, Verdict.VIOLATED), (0.6, Verdict.HOLDS)):
        spec = files.write_specification(
            tmp_path / "s.vnnlib", [-1] * 4, [1] * 4, 2, [f"(>= (- Y_0 Y_1) {highest + offset})"]
        )
        outcome = verify_files(network, spec, chosen)
        allowed = {wanted, Verdict.UNKNOWN} if "girard" in method else {wanted}
        assert outcome.verdict in allowed


def test_signs_decide_what_the_method_alone_cannot(tmp_path, _only_signs):
    network, layers = files.random_network(tmp_path / "n.onnx", 1, sizes=(4, 10, 10, 2))
    highest = files.highest_first_output(layers, 50_000, 1, difference=True)
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 4, [1] * 4, 2, [f"(>= (- Y_0 Y_1) {highest + 0.2})"])
    outcome = verify_files(network, spec, Settings(timeout_seconds=20, method="zonotope", device="cpu"))
    assert outcome.verdict is Verdict.HOLDS
    assert outcome.method == "zonotope with activation splits"
    assert outcome.statistics.activation_splits > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_counterexample_is_never_proved_away(tmp_path, seed):
    network, _ = files.random_network(tmp_path / "n.onnx", seed, sizes=(6, 12, 12, 1))
    cpu = Settings(device="cpu")
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 6, [1] * 6, 1, ["(>= Y_0 1000.0)"])
    points = torch.rand(50_000, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.no_grad():
        highest = float(load_problem(network, spec, cpu).outputs(points).max())
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 6, [1] * 6, 1, [f"(>= Y_0 {highest!r})"])
    problem = load_problem(network, spec, cpu)
    attack = Attack(problem)
    attack.random_points(4)
    search = MethodSearch(problem, Bounder(problem), attack, "zonotope", without=("inner-attack",))
    assert not search.run(problem.objective, Deadline(1)).proved


def test_networks_without_relus_are_refused(tmp_path):
    network = files.write_network(tmp_path / "n.onnx", [([[1.0, 2.0]], [0.5])])
    spec = files.write_specification(tmp_path / "s.vnnlib", [-1] * 2, [1] * 2, 1, ["(>= Y_0 1000.0)"])
    problem = load_problem(network, spec, Settings(device="cpu"))
    with pytest.raises(UnsupportedOperatorError, match="ReLU"):
        MethodSearch(problem, Bounder(problem), Attack(problem), "zonotope")


@pytest.mark.parametrize("activation", ["Sigmoid", "Tanh", "Atan"])
@pytest.mark.parametrize("method", ["zonotope", "zonotope+crown"])
def test_s_shaped_activations_are_split_at_points(tmp_path, monkeypatch, activation, method):
    """Two equal neurons cancel out, which no relaxation of the whole range shows."""
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", 0)
    layers = [([[2.0], [2.0]], [0.1, 0.1]), ([[1.0, -1.0]], [0.0])]
    network = files.write_network(tmp_path / "n.onnx", layers, activation)
    for level, wanted in ((0.05, Verdict.HOLDS), (-0.01, Verdict.VIOLATED)):
        spec = files.write_specification(tmp_path / "s.vnnlib", [-2], [2], 1, [f"(>= Y_0 {level})"])
        assert verify_files(network, spec, Settings(20, method, "cpu")).verdict is wanted
    spec = files.write_specification(tmp_path / "s.vnnlib", [-2], [2], 1, ["(>= Y_0 0.05)"])
    whole = Settings(2, method, "cpu", without=("activation-splits",))
    assert verify_files(network, spec, whole).verdict is not Verdict.HOLDS


@pytest.mark.parametrize("activation", ["Sigmoid", "Tanh", "Atan"])
@pytest.mark.parametrize("seed", range(2))
def test_points_of_s_shaped_activations_prove_no_reached_value_away(tmp_path, monkeypatch, activation, seed):
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", 0)
    network, _ = files.random_network(tmp_path / "n.onnx", seed, (3, 6, 6, 1), activation)
    for extra in (0.0, 0.4):
        spec = files.write_specification(tmp_path / "s.vnnlib", [-0.5] * 3, [0.5] * 3, 1, ["(>= Y_0 1000.0)"])
        points = (torch.rand(50_000, 3, generator=torch.Generator().manual_seed(seed)) - 0.5).sign() * 0.5
        points[::2] *= torch.rand(25_000, 3, generator=torch.Generator().manual_seed(seed))
        values = load_problem(network, spec, Settings(device="cpu")).outputs(points)[:, 0]
        level = float(values.max() + extra * (values.max() - values.min()))
        spec = files.write_specification(tmp_path / "s.vnnlib", [-0.5] * 3, [0.5] * 3, 1, [f"(>= Y_0 {level!r})"])
        blind = Settings(1, "zonotope+crown", "cpu", without=("attack", "inner-attack"))
        verdict = verify_files(network, spec, blind).verdict
        assert verdict is Verdict.HOLDS if extra else verdict is not Verdict.HOLDS
