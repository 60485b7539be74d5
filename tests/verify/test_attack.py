"""The scan of lattices over boxes with few perturbed inputs."""

from __future__ import annotations

import onnx
import pytest
import torch
from helpers import network_files as files
from onnx import TensorProto, helper

from zonoplug.clock import Deadline
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import verify_files


def write_rounding_network(path):
    """y = 1 - |int(x_0) - 17| - |int(x_1) - 40|, which is constant around every point."""
    wanted = helper.make_tensor("wanted", TensorProto.FLOAT, [1, 2], [17.0, 40.0])
    ones = helper.make_tensor("ones", TensorProto.FLOAT, [2, 1], [-1.0, -1.0])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["number", "wanted"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Gemm", ["distance", "ones", "one"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [wanted, ones, one],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(("goal", "verdict"), [(1.0, Verdict.VIOLATED), (1.5, Verdict.HOLDS)])
def test_whole_numbers_are_tried_where_a_network_rounds_its_inputs(tmp_path, goal, verdict):
    network = write_rounding_network(tmp_path / "net.onnx")
    specification = files.write_specification(tmp_path / "spec.vnnlib", (0, 0), (62, 62), 1, [f"(>= Y_0 {goal})"])
    outcome = verify_files(network, specification, Settings(20, device="cpu"))
    assert outcome.verdict is verdict
    if verdict is Verdict.VIOLATED:
        assert [int(value) for value in outcome.counterexample.inputs] == [17, 40]


def test_a_scan_stays_in_the_box_and_ends_with_the_time(tmp_path):
    network = write_rounding_network(tmp_path / "net.onnx")
    specification = files.write_specification(tmp_path / "spec.vnnlib", (16.2, 40), (17.8, 40), 1, ["(>= Y_0 1)"])
    problem = load_problem(network, specification, Settings(20, device="cpu"))
    found = Attack(problem).scan(Deadline(10))
    assert found is not None
    assert 17 <= found.inputs[0] <= 17.8 and found.inputs[1] == 40
    late = Attack(problem)
    assert late.scan(Deadline(0)) is None and late.points_tried == 0
    assert torch.equal(problem.attack_box.lower[:, 1], torch.tensor([40.0]))
