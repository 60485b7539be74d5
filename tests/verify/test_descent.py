"""Descents and local changes: they stay in the box, and find what a gradient alone does not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from helpers import network_files as files
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from zonoplug.clock import Deadline
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.attack.descent import SHORT, Descent, changed_in_part
from zonoplug.verify.attack.surrogate_gradients import compares_outputs, outputs_to_follow
from zonoplug.verify.settings import Settings, load_problem


def write_graph(path, nodes, constants, inputs, outputs):
    """A network X (1, inputs) -> Y (1, outputs)."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, outputs])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def write_binary_network(path, inputs=24, hidden=40):
    """Logits of signs of a linear layer, and a softmax that is 0 or 1 almost everywhere."""
    random = np.random.default_rng(0)
    first, last = random.standard_normal((inputs, hidden)), random.choice([-30.0, 30.0], (hidden, 2))
    nodes = [
        helper.make_node("MatMul", ["X", "A"], ["z"]),
        helper.make_node("Sign", ["z"], ["s"]),
        helper.make_node("MatMul", ["s", "B"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["Y"], axis=1),
    ]
    return write_graph(path, nodes, {"A": first, "B": last}, inputs, 2), first, last


def problem_of(tmp_path, network, lower, upper, outputs, *assertions):
    specification = files.write_specification(tmp_path / "spec.vnnlib", lower, upper, outputs, assertions)
    return load_problem(network, specification, Settings(20, device="cpu"))


def hidden_in_phases(tmp_path, share, radius):
    """A binarised network and a box around a point that decides more clearly than `share` of all points."""
    network, first, last = write_binary_network(tmp_path / "net.onnx")
    points = np.random.default_rng(1).uniform(-1, 1, (20000, 24))
    lead = np.sign(points @ first) @ (last[:, 0] - last[:, 1])
    center = points[np.argsort(lead)[int(share * 20000)]]
    return problem_of(tmp_path, network, center - radius, center + radius, 2, "(>= Y_1 Y_0)")


def test_a_descent_goes_through_signs_and_a_flat_softmax(tmp_path):
    problem = hidden_in_phases(tmp_path, 0.993, 0.25)
    middle = (problem.attack_box.lower + problem.attack_box.upper) / 2
    followed = outputs_to_follow(problem, middle.requires_grad_(True))
    assert followed.jumps
    (slope,) = torch.autograd.grad((followed.followed[:, 0] - followed.followed[:, 1]).sum(), middle)
    assert bool((slope != 0).any())
    plain = problem.outputs(middle)
    assert torch.equal(plain, followed.outputs)
    (flat,) = torch.autograd.grad((plain[:, 0] - plain[:, 1]).sum(), middle)
    assert not bool(flat.any())
    low, high = problem.attack_box.lower[0].numpy(), problem.attack_box.upper[0].numpy()
    for seed in range(3):
        attack = Attack(problem, seed)
        assert attack.random_points(256) is None
        found = attack.descend(8, 40, Deadline(20))
        assert found is not None
        assert (found.inputs >= low.ravel()).all() and (found.inputs <= high.ravel()).all()
        assert problem.model.evaluate(found.inputs[None].astype(np.float32))[0][0] <= 0.5


def after_descents(problem, seed):
    """An attack whose random points and descents found nothing; and the lowest loss that they reached."""
    attack = Attack(problem, seed)
    assert attack.random_points(256) is None
    assert attack.descend(8, 40, Deadline(20)) is None
    return attack, float(attack._pool.losses.min())


@pytest.mark.parametrize("seed", range(1, 4))
def test_local_changes_go_on_where_descents_end(tmp_path, seed):
    attack, before = after_descents(hidden_in_phases(tmp_path, 0.999, 0.15), seed)
    attack.change_parts(Deadline(20), rounds=100)
    assert float(attack._pool.losses.min()) < before


def test_local_changes_find_points_that_descents_do_not(tmp_path):
    problem = hidden_in_phases(tmp_path, 0.9985, 0.15)
    attacks = [after_descents(problem, seed)[0] for seed in (2, 4)]
    assert any(attack.change_parts(Deadline(20), rounds=100) is not None for attack in attacks)


def test_left_out_components_find_less(tmp_path):
    problem = hidden_in_phases(tmp_path, 0.99, 0.25)
    plain = Attack(problem, 0, without=("surrogate-gradients", "local-changes"))
    assert plain.descend(8, 40, Deadline(20)) is None
    assert plain.change_parts(Deadline(20), rounds=100) is None
    assert plain.jumps


def test_outputs_before_a_softmax_stand_in_for_comparisons_only(tmp_path):
    network, *_ = write_binary_network(tmp_path / "net.onnx")
    box = [-1.0] * 24, [1.0] * 24
    compared = problem_of(tmp_path, network, *box, 2, "(>= Y_1 Y_0)")
    assert compares_outputs(compared.objective)
    shares = problem_of(tmp_path, network, *box, 2, "(>= Y_1 0.3)")
    assert not compares_outputs(shares.objective)
    followed = outputs_to_follow(shares, shares.attack_box.lower)
    assert followed.followed is followed.outputs


def write_narrow_valley(path):
    """y = |10 (x_0 + x_1 - 1)| + |x_0 - x_1 - 0.82|: signed steps bounce between the walls of a valley."""
    nodes = [
        helper.make_node("Gemm", ["X", "A", "b"], ["z"]),
        helper.make_node("Abs", ["z"], ["a"]),
        helper.make_node("ReduceSum", ["a", "axes"], ["Y"], keepdims=1),
    ]
    constants = [
        numpy_helper.from_array(np.float32([[10, 1], [10, -1]]), "A"),
        numpy_helper.from_array(np.float32([-10, -0.82]), "b"),
        numpy_helper.from_array(np.int64([1]), "axes"),
    ]
    graph = helper.make_graph(
        nodes,
        "valley",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 1])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def write_corners(path, inputs=6):
    """y = sum_i w_i step(x_i) - c without slopes: int(x) of inputs in [0, 1.5] is 0 or 1; least at one corner only."""
    weights = np.float32([[1, -2, 4, -8, 16, -32]]).T
    nodes = [
        helper.make_node("Cast", ["X"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["bits"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["bits", "w"], ["Y"]),
    ]
    return write_graph(path, nodes, {"w": weights}, inputs, 1)


def test_local_changes_find_a_corner_without_slopes(tmp_path):
    network = write_corners(tmp_path / "net.onnx")
    problem = problem_of(tmp_path, network, [0.0] * 6, [1.5] * 6, 1, "(<= Y_0 -42)")
    attack = Attack(problem)
    assert attack.change_parts(Deadline(5)) is None, "there is nothing to change yet"
    assert attack.descend(1, 40, Deadline(5)) is None
    assert attack.jumps
    found = attack.change_parts(Deadline(20))
    assert found is not None
    assert [int(value) for value in found.inputs] == [0, 1, 0, 1, 0, 1]


def test_nothing_is_claimed_where_nothing_is_unsafe(tmp_path):
    network = write_corners(tmp_path / "net.onnx")
    problem = problem_of(tmp_path, network, [0.0] * 6, [1.5] * 6, 1, "(<= Y_0 -42.5)")
    attack = Attack(problem)
    assert attack.descend(4, 20, Deadline(5)) is None
    assert attack.change_parts(Deadline(5), rounds=200) is None
    assert attack.points_tried > 200


def test_every_disjunct_gets_its_start_and_a_deadline_ends_it(absolute_difference):
    network, specification = absolute_difference("(or (and (<= Y_0 -1)) (and (<= Y_0 -2)) (and (<= Y_0 -3)))")
    problem = load_problem(network, specification, Settings(20, device="cpu"))
    attack = Attack(problem)
    assert attack.descend(2, 3, Deadline(20)) is None
    assert attack.points_tried == 2 * 6 * 3, "each of three disjuncts, and as often any of them"
    assert attack.descend(2, 1000, Deadline(0)) is None
    assert attack.points_tried <= 36 + 12
    all_out = torch.ones_like(problem.objective.exists)
    assert attack.descend(2, 10, Deadline(20), all_out) is None
    assert attack.points_tried <= 36 + 12


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_a_descent_stays_in_the_box_and_keeps_the_lowest(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(4, 3, generator=generator)
    high = low + torch.rand(4, 3, generator=generator) * (torch.rand(4, 3, generator=generator) < 0.7)
    target = low + 2 * torch.rand(4, 3, generator=generator) * (high - low)
    descent = Descent((low + high) / 2, low, high, steps)
    lowest = torch.full((4,), torch.inf)
    for _ in range(steps):
        points = descent.points
        assert bool((points >= low).all() and (points <= high).all())
        losses = (points - target).square().sum(dim=1)
        better = descent.record(losses)
        lowest = torch.minimum(lowest, losses)
        assert torch.equal(descent.losses, lowest)
        assert torch.equal((descent.lowest - target).square().sum(dim=1), lowest)
        descent.move(better, 2 * (points - target))


def test_unknown_losses_and_slopes_are_never_lower():
    low, high = torch.zeros(2, 2), torch.ones(2, 2)
    descent = Descent(torch.full((2, 2), 0.5), low, high, SHORT)
    better = descent.record(torch.tensor([float("nan"), 1.0]))
    assert better.tolist() == [False, True]
    descent.move(better, torch.tensor([[float("nan"), 1.0], [1.0, -1.0]]))
    assert bool(torch.isfinite(descent.points).all())


def test_steps_shrink_into_a_narrow_valley(tmp_path):
    network = write_narrow_valley(tmp_path / "net.onnx")
    problem = problem_of(tmp_path, network, [0.0, 0.0], [1.0, 1.0], 1, "(<= Y_0 0.02)")
    assert Attack(problem).descend(64, 100, Deadline(20)) is not None


@given(st.integers(0, 10**6), st.booleans())
def test_changes_lead_to_corners_and_leave_the_rest(seed, sloped):
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(6, 2, 5, generator=generator)
    high = low + torch.rand(6, 2, 5, generator=generator)
    points = low + torch.rand(6, 2, 5, generator=generator) * (high - low)
    gradients = torch.randn(6, 2, 5, generator=generator) if sloped else None
    changed = changed_in_part(points, low, high, gradients, generator)
    moved = changed != points
    assert bool(((changed == low) | (changed == high))[moved].all())
    if gradients is not None:
        against = torch.where(gradients > 0, low, high)
        assert torch.equal(changed[::2][moved[::2]], against[::2][moved[::2]])
