"""The red team's own parts, and its short form: no false answer on instances that old code answered wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from redteam import exact, report, running, session
from redteam.classes import CLASSES, instance, make
from redteam.draws import Draws, Replayed
from redteam.graph import Graph
from redteam.planting import Instance
from redteam.runtime import Runtime
from redteam.short import FIRST, SHORT

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEED = 0


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def processor_time(monkeypatch):
    """The verifier counts this process's own seconds, as in the long form."""
    from zonoplug import clock

    monkeypatch.setattr(clock, "time", getattr(clock, "time", None), raising=False)
    running.use_processor_time()


@pytest.mark.parametrize("name", CLASSES)
def test_the_witness_of_an_instance_is_confirmed_by_onnx_runtime_in_exact_arithmetic(name):
    case, draws = instance(name, SEED, 1)
    assert case.truth in ("violated", "holds")
    if case.truth == "violated":
        runtime, statement = Runtime(case.model), exact.Statement(case.spec)
        assert case.witness.dtype == runtime.dtype or "specification" in name
        at = [level for level in case.levels if level != "real"]
        assert case.levels and all(statement.holds(case.witness, runtime(case.witness, level)) for level in at)
    again = make(name, Replayed(draws.taken))
    assert (again.model, again.spec) == (case.model, case.spec)


def test_numbers_are_compared_as_the_decimals_they_are():
    text = "(declare-const X_0 Real)(assert (<= (+ Y_0 1e16 1) 1e16))(assert (> (* 1e-400 X_0) 0)) ; (assert (> 0 1))"
    statement = exact.Statement(text)
    assert not statement.holds([1.0], [0.0]) and statement.holds([1.0], [-1.0])
    assert not statement.holds([0.0], [-1.0]) and not statement.holds([1.0], [float("-inf")])
    one_of = exact.Statement("(assert (or (and (<= X_0 0.1) (>= Y_0 2)) (and (< 1 X_0) (<= Y_0 (- 2)))))")
    assert not one_of.holds([np.float32(0.1)], [2.0]) and one_of.holds([np.float64(0.1) - 1e-17], [1.0]) is False
    assert one_of.holds([0.0], [2.0]) and one_of.holds([1.5], [-2.0]) and not one_of.holds([1.0], [-2.0])


@pytest.mark.parametrize("value", [0.1, 1e-45, -3.4e38, 16777217.0, 5e-324, 0.0])
def test_decimals_are_exact(value):
    assert Fraction(exact.decimal(value)) == Fraction(value)
    assert Fraction(exact.short(value, 3, up=False)) <= Fraction(value) <= Fraction(exact.short(value, 3, up=True))


def line() -> bytes:
    graph = Graph([1, 1])
    return graph.model(graph.add("Identity", "X"))


def test_a_point_counts_only_if_it_is_of_the_models_type_inside_and_unsafe():
    spec = "(assert (>= X_0 0.1))(assert (<= X_0 0.2))(assert (>= Y_0 0.15))"
    assert running.genuine(line(), spec, [float(np.float32(0.15))])
    assert not running.genuine(line(), spec, [0.15])  # no float32
    assert not running.genuine(line(), spec, [float(np.float32(0.2))])  # a little above 0.2
    assert not running.genuine(line(), spec, [float(np.float32(0.14))])


@pytest.mark.parametrize("verdict, truth, false", [("unsat", "violated", "unsat"), ("sat", "holds", "sat")])
def test_a_verifier_that_answers_falsely_is_caught(verdict, truth, false, tmp_path, monkeypatch):
    from zonoplug.verify import verifier

    found = SimpleNamespace(inputs=np.array([0.5]))
    answer = SimpleNamespace(verdict=SimpleNamespace(value=verdict), method="", notes=[], counterexample=found)
    monkeypatch.setattr(verifier, "verify_files", lambda *_: answer)
    case = Instance("", line(), "(assert (<= X_0 1))(assert (>= X_0 0))(assert (>= Y_0 2))", truth, np.array([1.0]))
    assert running.run("a class", 0, case, "auto", Draws(), tmp_path).false == false
    monkeypatch.setattr(verifier, "verify_files", lambda *_: 1 / 0)
    assert running.run("a class", 0, case, "auto", Draws(), tmp_path).verdict == "raise"


def test_a_checker_that_accepts_what_is_violated_is_caught(tmp_path, monkeypatch):
    from zonoplug.certificates import check

    monkeypatch.setattr(check, "check_certificate", lambda *_, **__: SimpleNamespace(valid=True))
    case, draws = instance("certificate: affine", SEED, 3)
    assert case.real
    assert running.run("certificate: affine", 3, case, "certificate trivial", draws, tmp_path).false == "certificate"


def test_a_long_run_goes_on_where_it_ended_and_keeps_what_was_false(tmp_path, processor_time):
    name, out = "specification: constants", tmp_path / "r.jsonl"

    def play(numbers):
        known = [json.loads(row) for row in out.read_text().splitlines()] if out.exists() else []
        with out.open("a", buffering=1) as file:
            long_run = session.Session(SEED, file, tmp_path / "pending", tmp_path, str(tmp_path / "kept"), known)
            for number in numbers:
                long_run.play(name, number, more=0)
            return long_run.made

    assert play([0]) == 2 and play([0]) == 0  # the default run, and one that only proves
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:1]) + "\n")  # it was ended after its first run
    assert play([0, 1]) == 3
    rows = [json.loads(row) for row in out.read_text().splitlines()]
    assert len({(row["number"], row["mode"]) for row in rows if "verdict" in row}) == 4
    assert "4 runs on 2 instances" in report.table(rows, SEED)
    assert len(list((tmp_path / "kept").glob("*/case.json"))) == sum(bool(row.get("false")) for row in rows)


@pytest.mark.slow
def test_the_command_line_runs_and_writes_its_table(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "red_team.py"), "--runs", "3", "--out", "r.jsonl", "--table", "t.md"]
    command += ["--classes", "odd bounds", "--explore", "5"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1) and "specification: odd bounds" in (tmp_path / "t.md").read_text()


def test_every_class_of_trap_names_classes_of_instances():
    rows = [{"cls": name, "number": 0, "mode": "auto", "variant": "", "false": "unsat"} for name in CLASSES]
    for trap, (cls, *_) in report.TRAPS.items():
        assert any(report.re.search(cls, row["cls"]) for row in rows), trap


@pytest.mark.parametrize("name", CLASSES)
def test_no_answer_is_false(name, tmp_path, processor_time):
    """On instances that were answered falsely once, run as they were then; on the first ones of the other classes."""
    for number, mode in SHORT.get(name, FIRST):
        case, _ = instance(name, SEED, number)
        row = running.run(name, number, case, mode, Draws(SEED, f"{name} {mode}", number), tmp_path)
        assert not row.false, f"{name} {number}, {mode}: {row.verdict} by {row.by}, {case.variant}"
        assert row.verdict not in ("", "raise", "none"), f"{name} {number}, {mode}: {row.text}"
