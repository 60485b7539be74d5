"""zonoplug trace, on the bundled example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import zonoplug.examples
from zonoplug.cli import main

EXAMPLES = Path(zonoplug.examples.__file__).parent
INPUTS = [str(EXAMPLES / "digits.onnx"), str(EXAMPLES / "digits_holds.vnnlib"), "--device", "cpu"]


def test_trace_says_what_each_reduction_cost(capsys, tmp_path):
    picture = tmp_path / "trace.png"
    assert main(["trace", *INPUTS, "--method", "zonotope[l1,30]", "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "margin lost" in text
    assert "margin of the hardest disjunct by zonotope[l1,30]" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_losses_explain_the_margin(capsys):
    """Reducing behind the last activation only, the losses make up all of the difference to the exact zonotope."""

    def trace(method):
        assert main(["trace", *INPUTS, "--method", method, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    exact, coarse = trace("zonotope[exact]"), trace("zonotope[l1,30]")
    assert exact["reductions"] == []
    assert coarse["margin"] < exact["margin"]
    assert all(entry["symbols_after"] == 30 for entry in coarse["reductions"])
    assert coarse["lost"] == pytest.approx(sum(entry["loss"] for entry in coarse["reductions"]))
    assert coarse["unreduced_margin"] == pytest.approx(coarse["margin"] + coarse["lost"])
    layers = len(coarse["reductions"])
    last = trace(f"zonotope[l1,{'/'.join(['10000'] * (layers - 1) + ['30'])}]")
    assert len(last["reductions"]) == 1
    assert last["unreduced_margin"] == pytest.approx(exact["margin"], abs=1e-4)


def test_a_method_that_reduces_nothing_is_refused(capsys):
    assert main(["trace", *INPUTS, "--method", "zonotope"]) == 2
    assert "reduces no symbols" in capsys.readouterr().err
