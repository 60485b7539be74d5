"""Certificates from the search to the checker: valid ones pass, and what cannot be proved again is named."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from helpers import network_files as files
from helpers.certified import prove
from onnx import TensorProto, helper, numpy_helper

from zonoplug.certificates.certificate import (
    Certificate,
    InputSplit,
    Leaf,
    Proof,
    ReluSplit,
    read_certificate,
    sha256_of,
)
from zonoplug.certificates.check import check_certificate
from zonoplug.cli import main
from zonoplug.clock import Deadline
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.examples import digits_holds, digits_model, digits_violated
from zonoplug.verify import leaf_record, verifier
from zonoplug.verify.leaf_record import LeafRecord
from zonoplug.verify.observer import Observer
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import Verification


def test_a_certificate_of_input_splits(split_instance, tmp_path):
    network, spec = split_instance
    path = prove(network, spec, tmp_path / "c.jsonl")
    nodes = [node for proof in read_certificate(path).proofs for node in proof.nodes]
    assert any(isinstance(node, InputSplit) for node in nodes)
    report = check_certificate(network, spec, path)
    assert report.valid
    assert report.leaves == sum(isinstance(node, Leaf) for node in nodes)


def test_a_certificate_of_splits_of_relus_with_slopes_and_multipliers(relu_certificate):
    network, spec, path = relu_certificate
    nodes = [node for proof in read_certificate(path).proofs for node in proof.nodes]
    assert any(isinstance(node, ReluSplit) for node in nodes)
    assert all(node.alpha.shape == (24,) for node in nodes if isinstance(node, Leaf))
    report = check_certificate(network, spec, path)
    assert report.valid
    assert report.further_splits <= report.leaves / 4


@pytest.mark.parametrize("splittable", [64, 0])
@pytest.mark.parametrize("seed", range(4))
def test_certificates_of_random_networks(tmp_path, monkeypatch, seed, splittable):
    """Every leaf that a search proves is proved again, with few further splits."""
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", splittable)
    network, layers = files.random_network(tmp_path / "n.onnx", seed, sizes=(5, 14, 14, 2))
    highest = files.highest_first_output(layers, 50_000, seed, difference=True)
    spec = files.write_specification(
        tmp_path / "s.vnnlib", [-1] * 5, [1] * 5, 2, [f"(>= (- Y_0 Y_1) {highest + (0.3 if splittable else 0.6)})"]
    )
    path = prove(network, spec, tmp_path / "c.jsonl.gz")
    report = check_certificate(network, spec, path)
    assert report.valid
    assert report.further_splits <= max(10, report.leaves)


def test_conjunctions_and_several_boxes(absolute_difference, tmp_path):
    network, spec = absolute_difference("(or (and (>= Y_0 0.9) (<= Y_0 0.1)) (>= Y_0 3.0))")
    assert check_certificate(network, spec, prove(network, spec, tmp_path / "c.jsonl")).valid
    text = spec.read_text().split("(assert")[0] + (
        "(assert (or (and (>= X_0 0) (<= X_0 0.5) (>= X_1 0) (<= X_1 1) (<= Y_0 -0.01))"
        "(and (>= X_0 0.5) (<= X_0 1) (>= X_1 0) (<= X_1 1) (>= Y_0 1.2))))\n"
    )
    spec.write_text(text)
    path = prove(network, spec, tmp_path / "c.jsonl")
    assert {proof.box for proof in read_certificate(path).proofs} == {0, 1}
    assert check_certificate(network, spec, path).valid


def test_bundled_examples_by_the_command_line(tmp_path, capsys):
    path = tmp_path / "proof.jsonl.gz"
    limit = ["--timeout", "86400"]  # counted from the start of this process
    assert main([str(digits_model()), str(digits_holds()), "--certificate", str(path), "--json", *limit]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "unsat"
    assert path.stat().st_size < 2000
    assert main(["check-certificate", str(digits_model()), str(digits_holds()), str(path)]) == 0
    assert capsys.readouterr().out.startswith("valid: every leaf is proved again (")
    assert main(["check-certificate", str(digits_model()), str(digits_violated()), str(path)]) == 2
    assert "another specification" in capsys.readouterr().err


def test_a_verdict_other_than_unsat_leaves_no_certificate(tmp_path, capsys):
    path = tmp_path / "proof.jsonl"
    path.write_text("an old one")
    words = [str(digits_model()), str(digits_violated()), "--certificate", str(path), "--timeout", "86400"]
    assert main(words) == 0
    assert not path.exists()
    assert "no certificate: the verdict is sat" in capsys.readouterr().out


def test_a_leaf_that_the_checker_cannot_prove_is_named(split_instance, tmp_path, capsys):
    """True, but one leaf does not show it, and no further splits are allowed."""
    network, spec = split_instance
    path = tmp_path / "c.jsonl"
    claim = Certificate(sha256_of(network), sha256_of(spec), [Proof(0, (0,), [Leaf("a guess")])])
    path.write_bytes(claim.data(False))
    words = ["check-certificate", str(network), str(spec), str(path), "--further-splits"]
    assert main([*words, "0"]) == 1
    said = capsys.readouterr().out
    assert "leaf 0: box 0, proved by a guess, x_0 in [-1, 1]" in said
    assert main([*words, "5000"]) == 0


def test_too_many_leaves_give_no_certificate(split_instance, monkeypatch):
    monkeypatch.setattr(leaf_record, "MAX_LEAVES", 3)
    network, spec = split_instance
    chosen = Settings(30, device="cpu")
    problem = load_problem(network, spec, chosen)
    record = LeafRecord(problem)
    Verification(problem, chosen, Deadline(30), Observer(record=record)).run()
    assert not record.is_complete


def test_certificates_do_not_change_the_search(split_instance):
    """Recording costs no random numbers and no bounds: the same subdomains with and without it."""
    network, spec = split_instance
    counts = []
    for record in (False, True):
        chosen = Settings(30, device="cpu")
        problem = load_problem(network, spec, chosen)
        observer = Observer(record=LeafRecord(problem) if record else None)
        counts.append(Verification(problem, chosen, Deadline(30), observer).run().subdomains)
    assert counts[0] == counts[1]


def test_a_model_of_which_the_runtime_makes_something_unknown_is_refused(tmp_path, capsys):
    """Whatever the certificate says: the factor underflows where it is multiplied into the product's weights."""
    network, spec, path = tmp_path / "n.onnx", tmp_path / "s.vnnlib", tmp_path / "c.jsonl"
    weights = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    factor = numpy_helper.from_array(np.float32([1e-30]), "f")
    nodes = [helper.make_node("Mul", ["x", "f"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights, factor])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), network)
    files.write_specification(spec, [-1] * 2, [1] * 2, 2, ["(>= Y_0 1)"])
    claim = Certificate(sha256_of(network), sha256_of(spec), [Proof(0, (0,), [Leaf("a guess")])])
    path.write_bytes(claim.data(False))
    with pytest.raises(UnsupportedOperatorError, match=r"Nothing can be proved about .*FusedMatMul, with a factor of"):
        check_certificate(network, spec, path)
    assert main(["check-certificate", str(network), str(spec), str(path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
