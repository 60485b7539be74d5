"""Claims that a known point refutes: no certificate of them is accepted, and nothing but refusals is raised."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from helpers import false_claims as claims
from helpers import random_networks as networks

from zonoplug.certificates.certificate import Certificate, Leaf, Proof, sha256_of
from zonoplug.certificates.check import check_certificate
from zonoplug.errors import ZonoplugError

SPLITS = 3
MANY = 5  # false claims over each operator, in each of four parts


pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the onnx package's own evaluation


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("zonoplug.certificates.prover.LEAF_STEPS", 2)


def oracle(folder, operator, seed, trees):
    """What became of a false claim, "accepted" among others; whether the true one beside it is accepted; and the
    operators in the network.
    """
    model, used = networks.random_model(seed, operator)
    run = None if model is None else networks.runtime(model)
    if run is None:
        return "no network", False, used
    random = np.random.default_rng([seed, 1])
    kind = model.graph.input[0].type.tensor_type
    inputs = int(np.prod([dimension.dim_value for dimension in kind.shape.dim]))
    found = claims.violated_rows(run, random, inputs, np.float64 if kind.elem_type == 11 else np.float32)
    if found is None:
        return "not finite", False, used
    lower, upper, rows = found
    network, spec = networks.write_instance(folder, model, lower, upper, rows)
    for claim in claims.certificates(network, spec, random, inputs, lower, upper, trees):
        try:
            if _check(folder, network, spec, claim).valid:
                return "accepted", False, used
        except ZonoplugError:
            if len(claim.proofs[0].nodes) == 1:
                return "refused", False, used
    network, spec = networks.write_instance(folder, model, lower, upper, claims.lowered(rows, run, lower, upper))
    return "not proved", _check(folder, network, spec, claims.guess(network, spec)).valid, used


def _check(folder, network, spec, claim):
    (folder / "c.jsonl").write_bytes(claim.data(False))
    return check_certificate(network, spec, folder / "c.jsonl", further_splits=SPLITS)


def _require(folder, operator, wanted, first_seed, trees):
    """Oracle networks until so many false claims were judged, and the true ones beside most of them were accepted."""
    judged = true = 0
    for seed in range(first_seed, first_seed + 12 * wanted):
        said, accepted, _ = oracle(folder, operator, seed, trees)
        assert said != "accepted", f"{operator}, seed {seed}"
        judged, true = judged + (said == "not proved"), true + accepted
        if judged >= wanted and true >= wanted / 2:
            break
    assert judged >= wanted
    assert true >= wanted / 2


@pytest.mark.parametrize("operator", networks.OPERATORS)
def test_false_claims_over_every_operator(tmp_path, quick, operator):
    _require(tmp_path, operator, 1, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_false_claims_over_every_operator(tmp_path, quick, part):
    """A network counts for every operator in it: in each part, several false claims over each of them are judged."""
    judged, accepted = Counter(), 0
    for number in itertools.count():
        assert number < 40 * len(networks.OPERATORS)
        rarest = min(networks.OPERATORS, key=lambda name: (judged[name], name))
        said, true, used = oracle(tmp_path, rarest, 1000 + 100_000 * part + number, 3)
        assert said != "accepted", f"{rarest}, seed {number}"
        if said == "not proved":
            judged.update(used)
            accepted += true
        if min(judged[name] for name in networks.OPERATORS) >= MANY:
            break
    assert accepted >= judged.total() / len(networks.OPERATORS) / 2


def _copies(name, b):
    """Each output once more: by an operator that repeats places."""
    if name == "Gather":
        b.add("Gather", b.name, networks._ints(b, [1, 0, 1, 0, 1]), axis=1)
    elif name == "Expand":
        b.add("Unsqueeze", b.name, networks._ints(b, [1]))
        b.add("Expand", b.name, networks._ints(b, [1, 3, 2]))
    elif name == "Concat":
        b.add("Concat", b.name, b.name, axis=1)
    elif name == "Tile":
        b.add("Tile", b.name, networks._ints(b, [1, 2]))
    elif name == "Add":
        b.add("Concat", b.name, b.name, axis=0)
        b.add("Add", b.name, b.name)
    else:
        b.add("Concat", b.name, b.name, b.name, axis=1)
        b.add("Split", b.name, networks._ints(b, [4, 2]), outputs=2, axis=1)


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("name", ["Gather", "Expand", "Concat", "Tile", "Add", "Split"])
def test_outputs_that_repeat_keep_their_coefficients(tmp_path, quick, name, side):
    """On a single point: the exact output is in reach, and a bound a little beyond it is not."""
    b = networks.Builder(3, (1, 3), "float32")
    b.opset = 17
    weight = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    b.add("MatMul", b.name, b.constant(weight))
    b.add("Relu", b.name)
    _copies(name, b)
    model = b.model()
    point = np.array([0.5, -1.0, 2.0], np.float32)
    outputs = networks.runtime(model)(point).astype(float)
    random = np.random.default_rng(1)
    for _ in range(3):
        row = side * random.integers(1, 3, outputs.size)
        bound = claims._at_least(claims._exact(row, outputs))
        network, spec = networks.write_instance(tmp_path, model, point, point, [(row, bound)])
        assert not _check(tmp_path, network, spec, claims.guess(network, spec)).valid
        network, spec = networks.write_instance(tmp_path, model, point, point, [(row, bound - 1e-4)])
        assert _check(tmp_path, network, spec, claims.guess(network, spec)).valid


def test_products_that_cancel_on_one_place_keep_their_rounding(tmp_path, quick):
    """1e8 x + y - 1e8 x, where x is gathered twice: the runtime may lose y, so nothing is known of it."""
    b = networks.Builder(3, (1, 2), "float32")
    b.opset = 17
    b.add("Gather", b.name, networks._ints(b, [0, 1, 0]), axis=1)
    b.add("MatMul", b.name, b.constant(np.array([[1e8], [1.0], [-1e8]], np.float32)))
    model = b.model()
    lower, upper = np.array([1.0, 1.0], np.float32), np.array([1.5, 1.5], np.float32)
    network, spec = networks.write_instance(tmp_path, model, lower, upper, [(np.ones(1), 0.5)])
    assert not _check(tmp_path, network, spec, claims.guess(network, spec)).valid
    network, spec = networks.write_instance(tmp_path, model, lower, upper, [(np.ones(1), -500.0)])
    assert _check(tmp_path, network, spec, claims.guess(network, spec)).valid


def test_a_disjunct_without_rows_is_never_proved(tmp_path):
    b = networks.Builder(3, (1, 2), "float32")
    b.add("Relu", b.name)
    network, spec = networks.write_instance(tmp_path, b.model(), [0, 0], [1, 1], [(np.ones(2), -1.0)])
    declared = spec.read_text().split("(assert")[0]
    spec.write_text(declared + "(assert (or (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1))))\n")
    claim = Certificate(sha256_of(network), sha256_of(spec), [Proof(0, (0,), [Leaf("a guess")])])
    assert not _check(tmp_path, network, spec, claim).valid


def test_slopes_of_no_relu_are_ignored(tmp_path):
    b = networks.Builder(3, (1, 2), "float32")
    b.add("Tanh", b.name)
    network, spec = networks.write_instance(tmp_path, b.model(), [0, 0], [1, 1], [(np.ones(2), -1.0)])
    leaf = Leaf("a guess", np.zeros(0))
    claim = Certificate(sha256_of(network), sha256_of(spec), [Proof(0, (0,), [leaf])])
    assert _check(tmp_path, network, spec, claim).valid
