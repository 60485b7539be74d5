"""Certificates that a search writes, for the tests of the checker."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from zonoplug.clock import Deadline
from zonoplug.verify import verifier
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


@pytest.fixture
def split_instance(tmp_path):
    """A random network and a property that only splits prove."""
    network, layers = files.random_network(tmp_path / "random.onnx", 0)
    highest = files.highest_first_output(layers, 50_000, 0, difference=True)
    rows = [f"(>= (- Y_0 Y_1) {highest + 0.02})"]
    return network, files.write_specification(tmp_path / "random.vnnlib", [-1] * 3, [1] * 3, 2, rows)


@pytest.fixture
def relu_certificate(split_instance, tmp_path, monkeypatch):
    """A certificate with splits on the phases of ReLUs, and its files; the checker may not split inputs either."""
    monkeypatch.setattr(verifier, "SPLITTABLE_INPUTS", 0)
    monkeypatch.setattr("zonoplug.certificates.prover.SPLITTABLE_INPUTS", 0)
    network, spec = split_instance
    return network, spec, prove(network, spec, tmp_path / "c.jsonl", without=("refined-bounds",))
