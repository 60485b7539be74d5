"""ONNX files that are refused, each in one line that says why."""

from __future__ import annotations

import gzip

import onnx
import pytest
from helpers.onnx_graphs import FLOAT, Graph, gemm
from onnx import TensorProto, helper

from zonoplug.errors import ModelError
from zonoplug.io.onnx_model import load_model


def several_inputs(folder):
    graph = gemm()
    graph.add("Add", graph.last, "z")
    return graph.save(folder, more_inputs=[helper.make_tensor_value_info("z", FLOAT, [1, 3])])


def external_data(folder):
    model = gemm().model()
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    (folder / "m.bin").unlink()
    return folder / "m.onnx"


def damaged(content):
    def write(folder):
        path = folder / "model.onnx"
        path.write_bytes(content(gemm().save(folder, "whole.onnx").read_bytes()))
        return path

    return write


def with_node(operator, domain="", shape=(1, 5), kind=FLOAT, **attributes):
    def write(folder):
        graph = Graph(list(shape), kind=kind)
        graph.add(operator, domain=domain, **attributes)
        return graph.save(folder)

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "absent.onnx", "No such file"),
        (lambda folder: folder, "cannot be read"),
        (damaged(lambda data: data[: len(data) // 2]), "not an ONNX file, or is cut short"),
        (damaged(lambda data: b""), "not an ONNX file"),
        (damaged(lambda data: b"(declare-const X_0 Real)\n"), "not an ONNX file"),
        (damaged(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
        (damaged(lambda data: gzip.compress(data)[:-20]), "damaged gzip"),
        (with_node("Frobnicate"), "unknown operator Frobnicate"),
        (with_node("Frobnicate", domain="acme"), "unknown operator acme.Frobnicate"),
        (with_node("Relu", shape=(1, "length")), "only the batch"),
        (with_node("Abs", kind=TensorProto.INT64), "type INT64"),
        (with_node("Det", shape=(1, 3, 3)), "operator Det"),
        (several_inputs, r"2 inputs \(x, z\)"),
        (external_data, "weights in another file"),
    ],
)
def test_bad_files_are_refused_in_one_line_that_names_them(write, message, tmp_path, capfd):
    path = write(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
