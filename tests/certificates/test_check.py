"""Certificates from the search to the checker: valid ones pass, everything else is refused."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from zonoplug.certificates.certificate import (
    Certificate,
    CertificateError,
    InputSplit,
    Leaf,
    Proof,
    SignSplit,
    read_certificate,
    sha256_of,
)
from zonoplug.certificates.check import check_certificate, regions_of
from zonoplug.certificates.network import RELU, Network
from zonoplug.certificates.tree import LeafTable, find_tree
from zonoplug.cli import main
from zonoplug.clock import Deadline
from zonoplug.examples import digits_holds, digits_model, digits_violated
from zonoplug.verify import leaf_record, verifier
from zonoplug.verify.leaf_record import LeafRecord
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import Verification

_location = importlib.util.spec_from_file_location(
    "verify_conftest", Path(__file__).parents[1] / "verify" / "conftest.py"
)
files = importlib.util.module_from_spec(_location)
_location.loader.exec_module(files)
absolute_difference = files.absolute_difference


def prove(network, spec, path, **settings):
    """Verify, expect unsat, and write the certificate to `path`."""
    chosen = Settings(timeout_seconds=30, device="cpu", **settings)
    problem = load_problem(network, spec, chosen)
    record = LeafRecord(problem)
    outcome = Verification(problem, chosen, Deadline(30), Observer(record=record)).run()
    assert outcome.verdict is Verdict.HOLDS
    assert record.is_complete
    path.write_bytes(record.certificate(network, spec, "the tests").data(path.suffix == ".gz"))
    return path


def rewrite(path, change):
    """The lines of a certificate, as JSON values, changed in place."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def split_instance(tmp_path):
    """A random network and a property that only splits prove."""
    network, layers = files.random_network(tmp_path / "random.onnx", 0)
    highest = files.highest_first_output(layers, 50_000, 0, difference=True)
    rows = [f"(>= (- Y_0 Y_1) {highest + 0.02})"]
    return network, files.write_specification(tmp_path / "random.vnnlib", [-1] * 3, [1] * 3, 2, rows)


def test_a_certificate_of_input_splits(split_instance, tmp_path):
    network, spec = split_instance
    path = prove(network, spec, tmp_path / "c.jsonl")
    nodes = [node for proof in read_certificate(path).proofs for node in proof.nodes]
    assert any(isinstance(node, InputSplit) for node in nodes)
    report = check_certificate(network, spec, path)
    assert report.valid
    assert report.leaves == sum(isinstance(node, Leaf) for node in nodes)


@pytest.fixture
def sign_certificate(split_instance, tmp_path, monkeypatch):
    """A certificate with splits on ReLU signs, and its files; the checker may not split inputs either."""
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", 0)
    monkeypatch.setattr("zonoplug.certificates.prover.SPLITTABLE_INPUTS", 0)
    network, spec = split_instance
    return network, spec, prove(network, spec, tmp_path / "c.jsonl", without=("refined-hulls",))


def test_a_certificate_of_sign_splits_with_slopes_and_multipliers(sign_certificate):
    network, spec, path = sign_certificate
    nodes = [node for proof in read_certificate(path).proofs for node in proof.nodes]
    assert any(isinstance(node, SignSplit) for node in nodes)
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
    assert (
        main([str(digits_model()), str(digits_holds()), "--certificate", str(path), "--json", "--timeout", "900"]) == 0
    )
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
    words = [str(digits_model()), str(digits_violated()), "--certificate", str(path), "--timeout", "900"]
    assert main(words) == 0
    assert not path.exists()
    assert "no certificate: the verdict is sat" in capsys.readouterr().out


def _drop(kind):
    def change(lines):
        place = max(i for i, line in enumerate(lines) if kind in line)
        del lines[place]
        _recount(lines)

    return change


def _recount(lines):
    heads = [i for i, line in enumerate(lines) if "nodes" in line]
    for head, after in zip(heads, [*heads[1:], len(lines)], strict=True):
        lines[head]["nodes"] = after - head - 1


def _set(kind, key, value):
    def change(lines):
        next(line for line in lines if kind in line)[key] = value

    return change


def _append_leaf(lines):
    lines.append({"leaf": "zonotope"})
    _recount(lines)


TAMPERED = {
    "a leaf is missing": (_drop("leaf"), "not complete"),
    "a split is missing": (_drop("split"), "is complete before its node"),
    "a leaf too many": (_append_leaf, "is complete before its node"),
    "another network": (_set("format", "model_sha256", "0" * 64), "another network"),
    "another specification": (_set("format", "specification_sha256", "0" * 64), "another specification"),
    "another version": (_set("format", "version", 2), "of version 2"),
    "another format": (_set("format", "format", "x"), "not a certificate"),
    "a split on an input that is not there": (_set("split", "input", 3), "lies outside of its subdomain"),
    "a split outside": (_set("split", "at", 7.0), "lies outside of its subdomain"),
    "a split at NaN": (_set("split", "at", float("nan")), "not a finite number"),
    "a disjunct that is not there": (_set("nodes", "disjuncts", [1]), "no disjunct 1"),
    "no disjunct": (_set("nodes", "disjuncts", []), "speaks of box 0"),
    "a box that is not there": (_set("nodes", "box", 3), "speaks of box 3"),
    "too many nodes announced": (_set("nodes", "nodes", 10**9), "the file ends before"),
    "a negative number": (_set("nodes", "box", -1), "not a number from 0 up"),
    "no proof": (lambda lines: lines.__delitem__(slice(1, None)), "proves nothing about disjunct 0"),
    "an unknown split": (_set("split", "split", "output"), "no node of a tree"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_certificates_are_refused(split_instance, tmp_path, name):
    change, said = TAMPERED[name]
    network, spec = split_instance
    path = prove(network, spec, tmp_path / "c.jsonl")
    with pytest.raises(CertificateError, match=said):
        check_certificate(network, spec, rewrite(path, change))


SIGNS_TAMPERED = {
    "a slope above 1": (lambda leaf: leaf.update(alpha=_packed([0.5, 1.5])), r"outside \[0, 1\]"),
    "a slope that is NaN": (lambda leaf: leaf.update(alpha=_packed([0.5, np.nan])), r"outside \[0, 1\]"),
    "slopes that are damaged": (lambda leaf: leaf.update(alpha="@@@"), "not as the format says"),
    "too few slopes": (lambda leaf: leaf.update(alpha=_packed([0.5])), "1 slopes for 24"),
    "a multiplier below 0": (lambda leaf: leaf.update(beta=[[0, 0, -1.0]]), "below 0"),
    "a multiplier of nothing": (lambda leaf: leaf.update(beta=[[0, 12, 1.0]]), "do not exist"),
}


def _packed(values):
    import base64
    import zlib

    return base64.b64encode(zlib.compress(np.array(values, "<f2").tobytes())).decode()


@pytest.mark.parametrize("name", SIGNS_TAMPERED)
def test_slopes_and_multipliers_outside_their_range_are_refused(sign_certificate, name):
    change, said = SIGNS_TAMPERED[name]
    network, spec, path = sign_certificate
    rewrite(path, lambda lines: change(next(line for line in lines if "leaf" in line)))
    with pytest.raises(CertificateError, match=said):
        check_certificate(network, spec, path)


def test_other_slopes_and_multipliers_of_the_right_range_cost_splits_only(sign_certificate, monkeypatch):
    """Numbers in their range are suggestions."""
    monkeypatch.setattr("zonoplug.certificates.prover.SPLITTABLE_INPUTS", 64)
    network, spec, path = sign_certificate

    def change(lines):
        for line in lines:
            if "leaf" in line:
                line["alpha"], line["beta"] = _packed([0.0] * 24), [[0, 0, 1e6], [1, 1, 1e6]]

    assert check_certificate(network, spec, rewrite(path, change), further_splits=2000).valid


@pytest.mark.parametrize("splittable", [64, 0])
def test_a_claim_that_is_false_is_never_valid(absolute_difference, tmp_path, monkeypatch, splittable):
    """Any tree whatever over a property that one point violates, and further splits of either kind."""
    monkeypatch.setattr("zonoplug.certificates.prover.SPLITTABLE_INPUTS", splittable)
    network, spec = absolute_difference("(>= Y_0 0.999)")
    random = np.random.default_rng(0)
    for attempt in range(20):
        nodes, open_ = [], 1
        while open_:
            kind = random.integers(4) if len(nodes) < 12 else 3
            if kind < 2:
                nodes.append(InputSplit(int(random.integers(2)), 0.5) if attempt % 2 else SignSplit(0, int(kind)))
            else:
                nodes.append(Leaf("zonotope", random.uniform(0, 1, 2), ((0, 0, 3.0),)))
            open_ += 1 if not isinstance(nodes[-1], Leaf) else -1
        path = tmp_path / "c.jsonl"
        claim = Certificate(sha256_of(network), sha256_of(spec), [Proof(0, (0,), nodes)])
        path.write_bytes(claim.data(False))
        try:
            report = check_certificate(network, spec, path, further_splits=40)
        except CertificateError:
            continue  # a neuron that was split on twice
        assert not report.valid
        assert report.text().startswith("not valid: ")


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


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b\x00", b"[1]\n", b'{"format": 3}\n', b"[" * 100_000])
def test_files_that_are_no_certificates(absolute_difference, tmp_path, content):
    network, spec = absolute_difference("(<= Y_0 -0.001)")
    path = tmp_path / "c.jsonl"
    path.write_bytes(content)
    with pytest.raises(CertificateError, match=r"c\.jsonl"):
        check_certificate(network, spec, path)


def test_a_truncated_certificate_is_refused(split_instance, tmp_path):
    network, spec = split_instance
    path = prove(network, spec, tmp_path / "c.jsonl")
    whole = path.read_bytes()
    for cut in np.linspace(0, len(whole) - 2, 25).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(CertificateError):
            check_certificate(network, spec, path)
    path.write_bytes(gzip.compress(whole)[:-6])
    with pytest.raises(CertificateError):
        check_certificate(network, spec, path)


def test_too_many_leaves_give_no_certificate(split_instance, monkeypatch):
    monkeypatch.setattr(leaf_record, "MAX_LEAVES", 3)
    network, spec = split_instance
    chosen = Settings(30, device="cpu")
    problem = load_problem(network, spec, chosen)
    record = LeafRecord(problem)
    Verification(problem, chosen, Deadline(30), Observer(record=record)).run()
    assert not record.is_complete


@pytest.mark.parametrize("seed", range(10))
def test_a_tree_is_found_for_leaves_in_any_order(seed):
    """Random splits of inputs and signs, shuffled: the tree has the same leaves, and no others."""
    random = np.random.default_rng(seed)
    todo, leaves = [(np.zeros(3), np.ones(3), ())], []
    while todo:
        low, high, signs = todo.pop()
        if len(leaves) + len(todo) > 60 or random.random() < 0.1:
            leaves.append((low, high, signs))
        elif random.random() < 0.7:
            axis = random.integers(3)
            at = random.uniform(low[axis], high[axis])
            left, right = high.copy(), low.copy()
            left[axis] = right[axis] = at
            todo += [(low, left, signs), (right, high, signs)]
        else:
            code = int(random.integers(1, 7))
            if code not in map(abs, signs):
                todo += [(low, high, (*signs, code)), (low, high, (*signs, -code))]
            else:
                leaves.append((low, high, signs))
    random.shuffle(leaves)
    for dropped in range(min(2, len(leaves))):
        kept = leaves[dropped:]
        table = LeafTable(
            np.stack([low for low, _, _ in kept]),
            np.stack([high for _, high, _ in kept]),
            [np.array(signs, np.int64) for _, _, signs in kept],
            np.array([0, 4]),
            [Leaf(str(place)) for place in range(len(kept))],
        )
        nodes = find_tree(table, np.zeros(3), np.ones(3))
        network = Network(3)
        for size in (4, 2):
            network.apply(np.arange(size) % 3, RELU)
        regions = list(regions_of(Proof(0, (0,), nodes), np.zeros(3), np.ones(3), network))
        named = [region for region in regions if region.leaf.method]
        for region in named:
            low, high, signs = kept[int(region.leaf.method)]
            assert (low <= region.lower).all() and (region.upper <= high).all()
            codes = {(layer, neuron): sign for (layer, neuron), sign in region.signs.items()}
            for code in signs:
                where = (0, abs(code) - 1) if abs(code) <= 4 else (1, abs(code) - 5)
                assert codes[where] == np.sign(code)
        assert {region.leaf.method for region in named} == {str(place) for place in range(len(kept))}
        if not dropped:
            assert len(regions) == len(kept) == len(named)
        else:
            assert len(regions) > len(named)


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


def test_a_proof_that_rests_on_rounding_is_not_valid(tmp_path):
    """A spike so steep that float32 loses it: whatever the search says, a certificate of it does not pass."""
    location = importlib.util.spec_from_file_location(
        "planted_violations", Path(__file__).parents[2] / "benchmarks" / "planted_violations.py"
    )
    planted = importlib.util.module_from_spec(location)
    sys.modules[location.name] = planted
    location.loader.exec_module(planted)
    case = planted.SMALL["steep"](0)
    assert case.output_at_point() >= case.threshold
    network, spec = case.write(tmp_path)
    chosen = Settings(timeout_seconds=5, device="cpu", without=("attack", "inner-attack"))
    problem = load_problem(network, spec, chosen)
    record = LeafRecord(problem)
    outcome = Verification(problem, chosen, Deadline(5), Observer(record=record)).run()
    path = tmp_path / "c.jsonl"
    if outcome.verdict is Verdict.HOLDS:
        path.write_bytes(record.certificate(network, spec, "the tests").data(False))
        assert not check_certificate(network, spec, path).valid
    claim = Certificate(sha256_of(network), sha256_of(spec), [Proof(0, (0,), [Leaf("a guess")])])
    path.write_bytes(claim.data(False))
    report = check_certificate(network, spec, path, further_splits=500)
    assert not report.valid
