"""The scripts and the bundled example: what can be checked quickly and without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from zonoplug import examples

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = ["run_instance.sh", ".ci/run", *sorted(str(p.relative_to(PROJECT)) for p in PROJECT.glob("vnncomp/*.sh"))]
PREPARE = PROJECT / "vnncomp" / "prepare_instance.sh"


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def read_box(spec: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Bounds of the 64 pixels and the class of a bundled property, by plain pattern matching."""
    text = spec.read_text()
    lower, upper = np.full(64, np.nan), np.full(64, np.nan)
    for sign, index, value in re.findall(r"\(assert \(([<>])= X_(\d+) ([\d.]+)\)\)", text):
        (lower if sign == ">" else upper)[int(index)] = float(value)
    labels = set(re.findall(r"\(>= Y_\d+ Y_(\d+)\)", text))
    assert len(labels) == 1
    return lower, upper, int(labels.pop())


def outputs(model: Path, points: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    return np.concatenate([session.run(None, {"input": point.reshape(shape)})[0] for point in points])


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_executable_bash(script: str) -> None:
    assert os.access(PROJECT / script, os.X_OK)
    result = run("bash", "-n", PROJECT / script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("arguments", [[], ["v2"], ["v1", "more"]])
def test_install_tool_names_its_usage(arguments: list[str]) -> None:
    result = run(PROJECT / "vnncomp" / "install_tool.sh", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage:")


@pytest.mark.parametrize(
    "arguments", [[], ["v1", "digits"], ["v2", "digits", "a", "b"], ["v1", "digits", "a", "b", "c"]]
)
def test_prepare_instance_names_its_usage(arguments: list[str]) -> None:
    result = run(PREPARE, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage:")


def test_prepare_instance_refuses_a_missing_file(tmp_path: Path) -> None:
    result = run(PREPARE, "v1", "digits", examples.digits_model(), tmp_path / "missing.vnnlib")
    assert result.returncode == 1
    assert "missing.vnnlib" in result.stderr


def copied_project(tmp_path: Path) -> Path:
    """A copy of the scripts in a folder with a space, with a stand-in for its Python that prints how it was called."""
    project = tmp_path / "a project"
    (project / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(PROJECT / "vnncomp", project / "vnncomp")
    for name in ("run_instance.sh", "pyproject.toml"):
        shutil.copy(PROJECT / name, project / name)
    python = project / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@"\nprintf "%s" "$ZONOPLUG_LIRPA"\n')
    python.chmod(0o755)
    stamp = project / ".venv" / "zonoplug-ready"
    stamp.write_text(f"0.3\ntest\n{project.resolve()}\nhash\n")
    return project


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["a b.onnx", "c.vnnlib", "--timeout", "5"], "-m|zonoplug|a b.onnx|c.vnnlib|--timeout|5|"),
        (["--version"], "-m|zonoplug|--version|"),
        (["v1", "acasxu", "a b.onnx", "c", "d", "60"], "-m|vnncomp|v1|acasxu|a b.onnx|c|d|60|"),
        (["test", "-k", "x y"], "-m|pytest|-n|auto|--dist|loadfile|-k|x y|"),
        (["test", "-n", "0", "-x"], "-m|pytest|-n|0|-x|"),
    ],
)
def test_run_instance_passes_its_arguments_on(tmp_path: Path, arguments: list[str], called: str) -> None:
    project = copied_project(tmp_path)
    for script in ("run_instance.sh", "vnncomp/run_instance.sh"):
        result = run(project / script, *arguments, ZONOPLUG_LIRPA="", ZONOPLUG_LIRPA_ALSO="")
        assert (result.returncode, result.stdout, result.stderr) == (0, called, "")


def test_tests_run_again_with_a_second_auto_lirpa(tmp_path: Path) -> None:
    project = copied_project(tmp_path)
    also = tmp_path / "second one"
    (also / "auto_LiRPA").mkdir(parents=True)
    result = run(project / "run_instance.sh", "test", ZONOPLUG_LIRPA="", ZONOPLUG_LIRPA_ALSO=str(also))
    first = "-m|pytest|-n|auto|--dist|loadfile|"
    assert result.stdout == f"{first}Once more, with auto_LiRPA from {also.resolve()}:\n{first}{also.resolve()}"
    missing = run(project / "run_instance.sh", "test", ZONOPLUG_LIRPA_ALSO=str(tmp_path))
    assert missing.returncode == 2
    assert "ZONOPLUG_LIRPA_ALSO" in missing.stderr


def test_an_impossible_set_up_is_one_line_and_an_error_in_the_results_file(tmp_path: Path) -> None:
    project = copied_project(tmp_path)
    results = tmp_path / "results.txt"
    command = [project / "run_instance.sh", "v1", "category", "a.onnx", "b.vnnlib", results, 60]
    result = run(*command, ZONOPLUG_LIRPA="9.9")
    assert result.returncode == 1
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert "ZONOPLUG_LIRPA=9.9" in result.stderr
    assert results.read_text() == "error\n"
    (project / ".venv" / "zonoplug-ready").unlink()
    result = run(*command, ZONOPLUG_LIRPA="", ZONOPLUG_PYTHON="/missing/python")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "/missing/python" in result.stderr


def test_prepare_instance_ends_what_an_earlier_instance_left(tmp_path: Path) -> None:
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("needs /proc")
    project = copied_project(tmp_path)
    python = project / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(sys.executable)
    package = tmp_path / "elsewhere" / "vnncomp"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    (package / "__init__.py").touch()
    command = [str(python), "-m", "vnncomp", "v1", "category"]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    with subprocess.Popen(command, cwd=package.parent, env=environment, stdout=subprocess.PIPE) as stale:
        try:
            assert stale.stdout is not None
            assert stale.stdout.readline() == b"up\n"
            prepare = project / "vnncomp" / "prepare_instance.sh"
            result = run(prepare, "v1", "digits", examples.digits_model(), examples.digits_holds())
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
            assert stale.wait(5) < 0
        finally:
            stale.kill()


def test_example_networks_classify_digits() -> None:
    lower, upper, label = read_box(examples.digits_holds())
    center = ((lower + upper) / 2).astype(np.float32)[None]
    for model in (examples.digits_model(), examples.digits_conv_model()):
        assert model.stat().st_size < 200_000
        assert outputs(model, center).argmax() == label


def test_example_properties_are_boxes_around_one_image() -> None:
    small, large = read_box(examples.digits_holds()), read_box(examples.digits_violated())
    assert small[2] == large[2]
    assert np.all((large[0] <= small[0]) & (small[0] < small[1]) & (small[1] <= large[1]))
    assert large[0].min() >= 0
    assert large[1].max() <= 1


def test_example_that_holds_has_no_sampled_counterexample() -> None:
    lower, upper, label = read_box(examples.digits_holds())
    points = np.random.default_rng(0).uniform(lower, upper, (500, 64)).astype(np.float32)
    assert np.all(outputs(examples.digits_model(), points).argmax(1) == label)


def test_example_that_is_violated_has_a_counterexample() -> None:
    """Coordinate descent on corners of the box, so that it needs no gradients: ONNX Runtime sees another class."""
    lower, upper, label = read_box(examples.digits_violated())

    def margins(points: NDArray[np.float64]) -> NDArray[np.float32]:
        y = outputs(examples.digits_model(), points.astype(np.float32))
        return y[:, label] - np.delete(y, label, axis=1).max(1)

    point = (lower + upper) / 2
    for _ in range(3):
        for index in range(64):
            pair = np.stack([point, point])
            pair[:, index] = lower[index], upper[index]
            point = pair[margins(pair).argmin()]
    assert margins(point[None])[0] < 0


def test_constraints_pin_every_requirement_once() -> None:
    text = (PROJECT / "vnncomp" / "constraints.txt").read_text()
    pinned = {line.split("==")[0] for line in text.splitlines() if "==" in line and not line.startswith("#")}
    declared = (PROJECT / "pyproject.toml").read_text()
    required = re.findall(r'^    "([a-z0-9-]+)>=', declared, re.MULTILINE)
    assert len(required) > 10
    assert set(required) <= pinned


def test_torchvision_is_not_required() -> None:
    requirements = (PROJECT / "pyproject.toml").read_text() + (PROJECT / "vnncomp" / "constraints.txt").read_text()
    assert not re.search(r"torchvision\s*[<>=~!]", requirements)
