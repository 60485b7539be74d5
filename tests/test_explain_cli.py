"""`zonoplug explain` as a user meets it: one page, in one file; bad input in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from zonoplug.errors import ZonoplugError
from zonoplug.examples import digits_model
from zonoplug.report.explain.page import explain_file

ROOT = Path(__file__).resolve().parent.parent


def run(*words):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "zonoplug", "explain", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    """A picture of a digit, 8 x 8."""
    from PIL import Image
    from sklearn.datasets import load_digits

    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray((load_digits(return_X_y=True)[0][3].reshape(8, 8) * 255 / 16).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A network with one output over three columns, and a row: y = relu(2 a - b) + 0 c."""
    folder = tmp_path_factory.mktemp("table")
    weight = numpy_helper.from_array(np.array([[2.0], [-1.0], [0.0]], np.float32), "W")
    nodes = [helper.make_node("MatMul", ["X", "W"], ["H"]), helper.make_node("Relu", ["H"], ["Y"])]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 1])],
        [weight],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "table.onnx"
    )
    (folder / "row.csv").write_text("speed,angle,unused\n1.0,0.5,3.0\n")
    return folder


def test_a_page_about_a_picture(digit, tmp_path):
    for package in ("captum", "skimage", "sklearn"):
        pytest.importorskip(package)
    out = tmp_path / "report.html"
    process = run(digits_model(), digit, "--eps", "0.05", "--out", out, "--json")
    assert process.returncode == 0, process
    answer = json.loads(process.stdout)
    assert answer["of"] == 64
    assert len(answer["features"]) == answer["size"]
    assert 0 < answer["unattributed"] < 1
    assert answer["notes"] == []
    page = out.read_text()
    assert page.count('src="data:image/png;base64,') >= 4
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing is loaded from elsewhere"
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    for words in ("unattributed", "settle the decision", "KernelSHAP", "RISE", "Groups", "Why class 3"):
        assert words in page


def test_a_page_about_a_table(table, tmp_path):
    out = tmp_path / "report.html"
    process = run(
        table / "table.onnx", table / "row.csv", "--eps", "0.1", "--delta", "0.15", "--no-compare", "--out", out
    )
    assert process.returncode == 0, process
    assert "of 3 features" in process.stdout
    page = out.read_text()
    assert "speed" in page
    assert "an output within 0.15 of 1.5" in page


def test_inputs_that_a_network_does_not_read_are_free(table, tmp_path):
    settings = {"eps": 0.1, "delta": 0.15, "compare": False}
    request = {"model": str(table / "table.onnx"), "input": str(table / "row.csv"), "out": str(tmp_path / "r.html")}
    answer = explain_file(request | {"settings": settings})
    assert answer["features"] == [0], "a moves the output by 0.2, b by 0.1, c not at all"
    assert answer["needed"] == 1


def test_without_the_extra_packages_the_page_says_what_to_type(digit, tmp_path, monkeypatch):
    for package in ("captum.attr", "skimage.segmentation"):
        monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "report.html"
    answer = explain_file({"model": str(digits_model()), "input": str(digit), "out": str(out), "settings": {}})
    assert len(answer["notes"]) == 2
    assert out.read_text().count("zonoplug[explain]") == 2


BAD = {
    "missing model": (["absent.onnx", "{digit}"], "absent.onnx"),
    "missing input": (["{model}", "absent.png"], "no such file"),
    "radius": (["{model}", "{digit}", "--eps", "-1"], "must be above 0"),
    "radius NaN": (["{model}", "{digit}", "--eps", "nan"], "must be above 0"),
    "radius in words": (["{model}", "{digit}", "--eps", "small"], "--eps takes a number, got 'small'"),
    "target out of range": (["{model}", "{digit}", "--target", "12"], "outputs 0 to 9"),
    "another target": (["{model}", "{digit}", "--target", "4"], "does not say class 4"),
    "method": (["{model}", "{digit}", "--method", "zonotop"], "Did you mean 'zonotope'"),
    "a method without a zonotope": (["{model}", "{digit}", "--method", "crown"], "Use 'zonotope'"),
    "folder": (["{model}", "{digit}", "--out", "{folder}/no/report.html"], "there is no folder"),
    "a folder as page": (["{model}", "{digit}", "--no-compare", "--out", "{folder}"], "Cannot write"),
    "range": (["{model}", "{digit}", "--range", "0"], "two numbers"),
    "outside the range": (["{model}", "{digit}", "--range", "0,0.5"], "outside the valid range"),
    "channels": (["{model}", "{digit}", "--mean", "1,2,3"], "must have 1 or 1"),
    "std": (["{model}", "{digit}", "--std", "0"], "above 0"),
    "time limit": (["{model}", "{digit}", "--timeout", "0"], "above 0"),
    "names": (["{model}", "{digit}", "--names", "a,b"], "2 names for 64"),
    "size": (["{model}", "{wide}"], "9 x 8 pixels, the network takes 8 x 8"),
    "option": (["{model}", "{digit}", "--epsilon", "1"], "--epsilon"),
    "words": (["{model}"], "input"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name, digit, tmp_path, capfd, monkeypatch):
    from PIL import Image

    from zonoplug import cli

    def here(request, limit):
        try:
            return explain_file(request)
        except ZonoplugError as error:
            return {"verdict": "error", "notes": [str(error)]}

    monkeypatch.setattr(cli, "run_job", here)
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    words, said = BAD[name]
    names = {"model": digits_model(), "digit": digit, "folder": tmp_path, "wide": tmp_path / "wide.png"}
    words = [word.format(**names) for word in words]
    words = words if "--out" in words else [*words, "--out", str(tmp_path / "report.html")]
    status = cli.main(["explain", *words])
    output, errors = capfd.readouterr()
    assert (status, output) == (2, "")
    assert len(errors.strip().splitlines()) == 1
    assert errors.startswith("zonoplug: ")
    assert said in errors
    assert not (tmp_path / "report.html").exists()


def test_bad_input_is_one_line_from_a_fresh_process_too(tmp_path):
    process = run(digits_model(), tmp_path / "absent.png")
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1
    assert "Traceback" not in process.stderr


def test_colours_in_the_networks_units(tmp_path):
    """A normalised colour network sees the picture's values, and the radius in their units."""
    from PIL import Image

    from zonoplug.report.explain.case import ExplainSettings, load_case

    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32), "W")
    nodes = [helper.make_node("Flatten", ["X"], ["F"]), helper.make_node("MatMul", ["F", "W"], ["Y"])]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "c.onnx")
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    Image.fromarray(values).save(tmp_path / "c.png")
    settings = ExplainSettings(eps=0.1, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    case = load_case(str(tmp_path / "c.onnx"), str(tmp_path / "c.png"), settings)
    image = torch.tensor(values / 255).permute(2, 0, 1)
    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    torch.testing.assert_close(case.region.point[0], ((image - mean) / std).float())
    torch.testing.assert_close(case.region.box.upper[0], ((image + 0.1).clamp(max=1) - mean).div(std).float())
    torch.testing.assert_close(case.region.box.lower[0], ((image - 0.1).clamp(min=0) - mean).div(std).float())
    assert case.region.num_features == 4
    rows = tmp_path / "c.csv"
    rows.write_text(",".join(str(v) for v in values.ravel()))
    flat = ExplainSettings(eps=0.1, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), divide=255, interleaved=True)
    again = load_case(str(tmp_path / "c.onnx"), str(rows), flat)
    torch.testing.assert_close(again.region.point, case.region.point)
