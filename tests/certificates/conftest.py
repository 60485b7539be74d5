"""Certificates that a search writes, for the tests of the checker."""

from __future__ import annotations

import pytest
from helpers import network_files as files
from helpers.certified import prove

from zonoplug.verify import verifier


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
