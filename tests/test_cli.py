"""The command line as a user and as a harness meet it: verdicts, results files, bad input."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from zonoplug.cli import main
from zonoplug.errors import SettingError
from zonoplug.examples import digits_holds, digits_model, digits_violated
from zonoplug.io.results import ResultsFile

ROOT = Path(__file__).resolve().parent.parent
DIGITS, DIGITS_HOLDS, DIGITS_VIOLATED = digits_model(), digits_holds(), digits_violated()


def run(*words, module="zonoplug", timeout=60, **environment):
    """Run a module of the project in a fresh process."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def is_one_clear_line(process):
    """An error for a person: one line on stderr, nothing on stdout, status 2, no traceback."""
    lines = process.stderr.strip().splitlines()
    assert process.returncode == 2, process
    assert process.stdout == ""
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("zonoplug: ")
    assert "Traceback" not in process.stderr
    return lines[0]


def test_a_property_that_holds():
    process = run(DIGITS, DIGITS_HOLDS)
    verdict, how = process.stdout.splitlines()
    assert verdict == "unsat"
    assert "zonotope" in how
    assert " s, " in how
    assert process.returncode == 0


def test_a_property_that_is_violated_shows_a_point_that_onnx_runtime_confirms(tmp_path):
    results = tmp_path / "results.txt"
    process = run(DIGITS, DIGITS_VIOLATED, "--results", results)
    assert process.stdout.startswith("sat\n(")
    assert "attack" in process.stdout.splitlines()[-1]
    written = results.read_text()
    assert written.startswith("sat\n((X_0 ")
    assert process.stdout.startswith(written.rstrip("\n"))
    pairs = dict(pair.strip("() \n").split() for pair in written.split("\n", 1)[1].replace(")\n (", ")|(").split("|"))
    inputs = np.array([float(pairs[f"X_{i}"]) for i in range(64)], np.float32)
    session = onnxruntime.InferenceSession(str(DIGITS), providers=["CPUExecutionProvider"])
    node = session.get_inputs()[0]
    outputs = session.run(None, {node.name: inputs.reshape(node.shape)})[0].ravel()
    np.testing.assert_array_equal(outputs, np.array([float(pairs[f"Y_{j}"]) for j in range(10)], np.float32))


def test_json():
    answer = json.loads(run(DIGITS, DIGITS_VIOLATED, "--json").stdout)
    assert answer["verdict"] == "sat"
    assert len(answer["inputs"]) == 64
    assert len(answer["outputs"]) == 10
    assert answer["seconds"] > 0


def test_gzipped_inputs(tmp_path):
    for source in (DIGITS, DIGITS_HOLDS):
        (tmp_path / f"{Path(source).name}.gz").write_bytes(gzip.compress(Path(source).read_bytes()))
    process = run(tmp_path / "digits.onnx.gz", tmp_path / "digits_holds.vnnlib.gz")
    assert process.stdout.startswith("unsat\n")


@pytest.mark.parametrize(("specification", "verdict"), [(DIGITS_HOLDS, "unsat\n"), (DIGITS_VIOLATED, "sat\n((X_0 ")])
def test_the_competitions_form_is_silent_and_writes_the_results_file(tmp_path, specification, verdict):
    results = tmp_path / "results.txt"
    process = run("v1", "digits", DIGITS, specification, results, "60", module="vnncomp")
    assert (process.stdout, process.stderr, process.returncode) == ("", "", 0)
    assert results.read_text().startswith(verdict)
    assert [path.name for path in tmp_path.iterdir()] == ["results.txt"]


BAD_INPUTS = {
    "missing model": ("absent.onnx", None, "absent.onnx"),
    "missing specification": (None, "absent.vnnlib", "absent.vnnlib"),
    "text named .onnx": (b"hello, this is no network", None, "model.onnx"),
    "truncated model": ("truncate", None, "model.onnx"),
    "empty model": (b"", None, "model.onnx"),
    "unbalanced": (None, "(assert (>= X_0 0.0)", "spec.vnnlib"),
    "unknown symbol": (None, "(declare-const X_0 Real)\n(assert (>= Z_0 0.0))", "Z_0"),
    "wrong index": (None, "{text}(assert (>= X_64 0.0))", "X_64"),
    "NaN": (None, "{text}(assert (>= X_0 nan))", "nan"),
    "empty input box": (None, "{text}(assert (>= X_0 2.0))\n(assert (<= X_0 1.0))", "X_0"),
    "another model's specification": (
        None,
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= Y_0 0))",
        "belongs to another model",
    ),
    "unbounded input": (
        None,
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (>= Y_0 0))",
        "X_0",
    ),
}


BOTH_WAYS = ("missing model", "unbalanced", "empty input box")  # said by the reader of models, of texts, of problems


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (name, module)
        for place, name in enumerate(BAD_INPUTS)
        for number, module in enumerate(("zonoplug", "vnncomp"))
        if number == place % 2 or name in BOTH_WAYS
    ],
)
def test_bad_input_is_one_clear_line_and_an_error_in_the_results_file(tmp_path, name, module):
    model, specification, said = BAD_INPUTS[name]
    model_path, specification_path = Path(DIGITS), Path(DIGITS_HOLDS)
    if model is not None:
        model_path = tmp_path / "model.onnx"
        if isinstance(model, bytes):
            model_path.write_bytes(model)
        elif model == "truncate":
            model_path.write_bytes(Path(DIGITS).read_bytes()[:5000])
        else:
            model_path = tmp_path / model
    if specification is not None:
        specification_path = tmp_path / "spec.vnnlib"
        if specification.endswith(".vnnlib"):
            specification_path = tmp_path / specification
        else:
            text = Path(DIGITS_HOLDS).read_text()
            specification_path.write_text(specification.replace("{text}", text))
    results = tmp_path / "results.txt"
    words = (
        [model_path, specification_path, "--results", results]
        if module == "zonoplug"
        else ["v1", "category", model_path, specification_path, results, "30"]
    )
    line = is_one_clear_line(run(*words, module=module))
    assert said in line
    assert results.read_text() == "error\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--timeout", "-3"], "must be above 0"),
        (["--timeout", "soon"], "not a number"),
        (["--timeout", "nan"], "must be above 0"),
        (["--method", "zonotop"], "Did you mean 'zonotope'"),
        (["--method", "zonotope[girrard,5]"], "Did you mean 'girard'"),
        (["--branching", "widst"], "Did you mean 'widest'"),
        (["--device", "tpu"], "auto, cpu, cuda"),
        (["--seed", "x"], "--seed"),
        (["--tiemout", "3"], "--tiemout"),
        (["third"], "third"),
    ],
)
def test_bad_options(tmp_path, words, said):
    results = tmp_path / "results.txt"
    line = is_one_clear_line(run(DIGITS, DIGITS_HOLDS, "--results", results, *words))
    assert said in line
    assert results.read_text() == "error\n"


def test_results_that_cannot_be_written(tmp_path):
    line = is_one_clear_line(run(DIGITS, DIGITS_HOLDS, "--results", tmp_path / "no" / "such" / "results.txt"))
    assert "Cannot write results" in line
    assert "folder" in is_one_clear_line(run("v1", "c", DIGITS, DIGITS_HOLDS, tmp_path, "30", module="vnncomp"))


@pytest.mark.parametrize("words", [[], ["v2", "c", "m", "s", "r", "1"], ["v1", "c", "m", "s"]])
def test_the_competitions_usage(words):
    assert "usage: run_instance.sh v1" in is_one_clear_line(run(*words, module="vnncomp"))


def test_another_process_start_does_not_count():
    """What run_instance.sh said to the process that runs these tests must not shorten theirs."""
    process = run(DIGITS, DIGITS_HOLDS, "--timeout", "20", ZONOPLUG_STARTED="1:1000000000.0")
    assert process.stdout.startswith("unsat\n")


def test_version_list_and_help():
    version = run("--version").stdout
    assert version.startswith("zonoplug 0.")
    assert "auto_LiRPA 0." in version
    listed = run("list").stdout
    for name in ("zonotope+crown", "girard", "influence", "BoundRelu", "relaxation", "exact"):
        assert name in listed
    shown = run("verify", "--help")
    assert shown.returncode == 0
    for option in ("--timeout", "--method", "--branching", "--device", "--seed", "--results", "--json"):
        assert option in shown.stdout
    assert "compare" in run("--help").stdout


def test_compare_prints_methods_side_by_side():
    process = run("compare", DIGITS, DIGITS_HOLDS, "--methods", "ibp,zonotope,zonotope[girard,20]")
    header, *rows = process.stdout.splitlines()
    assert header.split()[:2] == ["method", "margin"]
    assert [row.split()[0] for row in rows] == ["ibp", "zonotope", "zonotope[girard,20]"]
    margins = [float(row.split()[1]) for row in rows]
    assert margins[1] >= margins[2]
    answers = json.loads(run("compare", DIGITS, DIGITS_HOLDS, "--methods", "zonotope", "--json").stdout)
    assert answers[0]["proved"] is True
    assert answers[0]["peak_bytes"] >= 0


def test_compare_names_an_unknown_method():
    assert "Did you mean" in is_one_clear_line(run("compare", DIGITS, DIGITS_HOLDS, "--methods", "zonotop"))


def test_results_files_are_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "results.txt"
    results = ResultsFile(path)
    assert not path.exists()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(SettingError, match="No space left"):
        results.write("sat\n" + "x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_results_may_go_to_a_device(capfd):
    ResultsFile("/dev/null").write("unsat\n")
    assert Path("/dev/null").is_char_device()


def test_main_returns_its_status_without_leaving_the_process(capsys):
    assert main(["--timeout"]) == 2
    assert "zonoplug:" in capsys.readouterr().err
