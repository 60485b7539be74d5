"""What is in the box as written: verdicts where no number of the model's type is, and bounds that are refused."""

from __future__ import annotations

import pytest
import torch
from helpers import network_files as files

from zonoplug.errors import SpecificationError, UnknownNameError
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import verify_files


@pytest.fixture
def identity(tmp_path):
    """y = x0; the files for some bounds of x0 and an assertion come from the returned function."""
    network = files.write_network(tmp_path / "identity.onnx", [([[1]], [0])])

    def instance(bounds, assertion):
        path = tmp_path / "spec.vnnlib"
        path.write_text(f"(declare-const X_0 Real)(declare-const Y_0 Real){bounds}(assert {assertion})")
        return network, path

    return instance


BETWEEN = [
    ("(assert (>= X_0 16777216.7))(assert (<= X_0 16777217.2))", "(<= Y_0 16777218)", "16777216.7 and 16777217.2"),
    ("(assert (> X_0 0.0))(assert (< X_0 1e-46))", "(<= Y_0 1)", "0.0 and 1e-46"),
    ("(assert (>= X_0 0.1))(assert (<= X_0 0.1))", "(>= Y_0 -1)", "0.1 and 0.1"),
    # What the shortest decimal of a float32 says is not that float32.
    ("(assert (= X_0 0.10000000149011612))", "(>= Y_0 -1)", "0.10000000149011612"),
]


@pytest.mark.parametrize(("bounds", "assertion", "words"), BETWEEN)
def test_no_number_inside_is_unknown_with_the_reason(identity, bounds, assertion, words):
    outcome = verify_files(*identity(bounds, assertion), Settings(20, device="cpu"))
    assert outcome.verdict is Verdict.UNKNOWN and outcome.counterexample is None
    (note,) = [note for note in outcome.notes if "X_0" in note]
    assert "no float32 lies within" in note and words in note


@pytest.mark.parametrize(("bounds", "assertion", "words"), BETWEEN)
def test_the_nearest_numbers_count_where_that_is_asked_for(identity, bounds, assertion, words):
    outcome = verify_files(*identity(bounds, assertion), Settings(20, device="cpu", input_bounds="nearest"))
    assert outcome.verdict is Verdict.VIOLATED
    assert any("nearest float32" in note and words in note for note in outcome.notes)


def test_a_proof_over_the_outward_box_stays(identity):
    files_ = identity("(assert (>= X_0 0.1))(assert (<= X_0 0.1))", "(>= Y_0 0.2)")
    assert verify_files(*files_, Settings(20, device="cpu")).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("bounds", "inside"),
    [
        ("(assert (>= X_0 0.1))(assert (<= X_0 0.2))", True),
        ("(assert (> X_0 1e-45))(assert (<= X_0 3e-45))", True),  # the second subnormal number
        ("(assert (>= X_0 16777217))(assert (<= X_0 16777218))", True),
        ("(assert (> X_0 16777216))(assert (< X_0 16777218))", False),
    ],
)
@pytest.mark.parametrize("reading", ["written", "nearest"])
def test_points_are_inside_as_written(identity, bounds, inside, reading):
    found = verify_files(*identity(bounds, "(>= Y_0 0)"), Settings(20, device="cpu", input_bounds=reading))
    if inside:
        assert found.verdict is Verdict.VIOLATED and not found.notes
        problem = load_problem(*identity(bounds, "(>= Y_0 0)"), Settings(device="cpu"))
        assert problem.specification.within(found.counterexample.inputs).all()
    else:
        assert (found.verdict is Verdict.VIOLATED) == (reading == "nearest")


def test_only_boxes_with_numbers_are_attacked(identity):
    either = "(or (and (>= X_0 0.1) (<= X_0 0.1) (<= Y_0 1)) (and (>= X_0 0.5) (<= X_0 0.75) (>= Y_0 0.5)))"
    problem = load_problem(*identity("", either), Settings(device="cpu"))
    assert problem.has_points.tolist() == [False, True]
    point = torch.tensor([0.1])
    assert problem.confirm(point, 0) is None and problem.confirm(point, 1).disjunct == 1
    assert problem.why_no_counterexample(torch.tensor([[True], [True]])) is None
    assert "X_0" in problem.why_no_counterexample(torch.tensor([[True], [False]]))
    assert problem.why_no_counterexample(torch.tensor([[False], [False]])) is None
    assert bool((problem.attack_box.lower >= problem.box.lower).all())
    assert bool((problem.attack_box.upper <= problem.box.upper).all())
    assert verify_files(*identity("", either), Settings(20, device="cpu")).verdict is Verdict.VIOLATED


@pytest.mark.parametrize(
    ("limit", "holds"),
    [
        ("0.1", False),
        ("0.10000000149011611", False),
        ("0.1000000014901161193847656249", False),
        ("0.100000001490116119384765625", True),
        ("0.10000000149011612", True),
    ],
)
def test_outputs_must_satisfy_the_rows_exactly(identity, limit, holds):
    """The least input, the float32 above 0.1, is 0.100000001490116119384765625, which float64 rounds limits to."""
    bounds = "(assert (>= X_0 0.1))(assert (<= X_0 0.2))"
    problem = load_problem(*identity(bounds, f"(<= Y_0 {limit})"), Settings(device="cpu"))
    assert (problem.confirm(torch.tensor([0.1]), 0) is not None) == holds


@pytest.mark.parametrize(("power", "strict"), [(-40, False), (-40, True), (-200, False), (30, False)])
def test_tiny_and_huge_rows_are_not_lost(identity, power, strict):
    relation, bounds = ">" if strict else ">=", "(assert (>= X_0 0))(assert (<= X_0 1))"
    scaled = f"({relation} (* 1e{power} Y_0) {{}}e{power})"
    settings = Settings(20, device="cpu")
    assert verify_files(*identity(bounds, scaled.format(0.9)), settings).verdict is Verdict.VIOLATED
    assert verify_files(*identity(bounds, scaled.format(1.1)), settings).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ("(assert (>= X_0 0))(assert (<= X_0 1e39))", ["X_0", "1e+39", "float32"]),
        ("(assert (>= X_0 -1e39))(assert (<= X_0 0))", ["X_0", "-1e+39", "float32"]),
        ("(assert (>= X_0 0))", ["X_0", "no upper bound"]),
        ("(assert (<= X_0 0))", ["X_0", "no lower bound"]),
        ("(assert (<= X_0 0))(assert (>= X_0 1))", ["X_0 >= 1.0", "X_0 <= 0.0"]),
    ],
)
def test_bounds_that_are_refused(identity, bounds, words):
    with pytest.raises(SpecificationError) as caught:
        load_problem(*identity(bounds, "(>= Y_0 0)"), Settings(device="cpu"))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "refused"), [("real", False), ("float32", False), ("float64", True), ("float16", True)]
)
def test_declared_types(tmp_path, kind, refused):
    network = files.write_network(tmp_path / "identity.onnx", [([[1]], [0])])
    path = tmp_path / "spec.vnnlib"
    path.write_text(
        f"(vnnlib-version <2.0>)(declare-network N (declare-input X {kind} [1,1])(declare-output Y real [1,1]))"
        "(assert (>= X[0,0] 0.0))(assert (<= X[0,0] 1.0))(assert (>= Y[0,0] 0.5))"
    )
    if refused:
        with pytest.raises(SpecificationError, match=f"X of type {kind}.*float32"):
            load_problem(network, path, Settings(device="cpu"))
    else:
        assert verify_files(network, path, Settings(20, device="cpu")).verdict is Verdict.VIOLATED


def test_an_unknown_reading_is_refused():
    with pytest.raises(UnknownNameError, match="nearest, written"):
        Settings(input_bounds="close").check()


def test_margins_are_shown_in_units_of_the_rows_as_written(identity):
    problem = load_problem(
        *identity("(assert (>= X_0 0))(assert (<= X_0 1))", "(<= (* 24 Y_0) 12)"), Settings(device="cpu")
    )
    objective, group = problem.objective, torch.zeros(1, dtype=torch.int64)
    margins = objective.margins(objective.values(torch.tensor([[1.0]]), group), group)
    assert margins.tolist() == [[0.75]] and objective.as_written(margins, group).tolist() == [[12.0]]
    assert objective.without(torch.tensor([[False]])).scale.tolist() == [[0.0625]]
