"""Certificates that are tampered with, cut short or false: all are refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import planted_violations as planted
import pytest
from helpers.certified import prove

from zonoplug.certificates.certificate import (
    Certificate,
    CertificateError,
    InputSplit,
    Leaf,
    Proof,
    ReluSplit,
    sha256_of,
)
from zonoplug.certificates.check import check_certificate
from zonoplug.clock import Deadline
from zonoplug.verify.leaf_record import LeafRecord
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import Verification


def rewrite(path, change):
    """The lines of a certificate, as JSON values, changed in place."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


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


PHASES_TAMPERED = {
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


@pytest.mark.parametrize("name", PHASES_TAMPERED)
def test_slopes_and_multipliers_outside_their_range_are_refused(relu_certificate, name):
    change, said = PHASES_TAMPERED[name]
    network, spec, path = relu_certificate
    rewrite(path, lambda lines: change(next(line for line in lines if "leaf" in line)))
    with pytest.raises(CertificateError, match=said):
        check_certificate(network, spec, path)


def test_other_slopes_and_multipliers_of_the_right_range_cost_splits_only(relu_certificate, monkeypatch):
    """Numbers in their range are suggestions."""
    monkeypatch.setattr("zonoplug.certificates.prover.SPLITTABLE_INPUTS", 64)
    network, spec, path = relu_certificate

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
                nodes.append(InputSplit(int(random.integers(2)), 0.5) if attempt % 2 else ReluSplit(0, int(kind)))
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


def test_a_proof_that_rests_on_rounding_is_not_valid(tmp_path):
    """A spike so steep that float32 loses it: whatever the search says, a certificate of it does not pass."""
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
