from __future__ import annotations

import gzip
from functools import partial

import numpy as np
import pytest

from zonoplug.errors import SpecificationError, UnsupportedSpecificationError
from zonoplug.io import normal_form, vnnlib_one, vnnlib_scan
from zonoplug.io.vnnlib import read_specification


def declared(inputs, outputs):
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{j}" for j in range(outputs)]
    return "\n".join(f"(declare-const {name} Real)" for name in names) + "\n"


def boxed(inputs, lower=0, upper=1):
    return "\n".join(f"(assert (>= X_{i} {lower}))\n(assert (<= X_{i} {upper}))" for i in range(inputs)) + "\n"


# What files of the competition look like.


def test_robustness_file(read, rows_of):
    text = declared(2, 3) + "; a comment (with a parenthesis\n" + boxed(2, -0.5, "6.103515625e-05")
    spec = read(text + "(assert (or\n  (and (>= Y_1 Y_0))\n  (and (>= Y_2 Y_0))\n))\n")
    assert (spec.version, spec.inputs, spec.outputs) == ("1.0", ("X", "float32", (2,)), ("Y", "float32", (3,)))
    assert spec.lower.tolist() == [[-0.5, -0.5]] and spec.upper.tolist() == [[2**-14, 2**-14]]
    assert spec.box_of_disjunct.tolist() == [0, 0]
    assert rows_of(spec, 0) == [({(0, 1.0), (1, -1.0)}, 0.0, False)]
    assert rows_of(spec, 1) == [({(0, 1.0), (2, -1.0)}, 0.0, False)]
    assert spec.open_lower is None and spec.open_upper is None


PROP_6 = (
    declared(3, 5)
    + """
(assert (or
    (and (<= X_0 0.7) (>= X_0 -0.129289109) (<= X_1 0.5) (>= X_1 0.11140846))
    (and (<= X_0 0.7) (>= X_0 -0.129289109) (<= X_1 -0.111408461) (>= X_1 -0.499999896))
))
(assert (<= X_2 0.5))
(assert (>= X_2 -0.498408347))
(assert (or
    (and (<= Y_1 Y_0)) (and (<= Y_2 Y_0)) (and (<= Y_3 Y_0)) (and (<= Y_4 Y_0))
))
"""
)


def test_two_disjunctions_multiply(read, rows_of):
    spec = read(PROP_6)
    assert (spec.num_boxes, spec.num_disjuncts) == (2, 8)
    assert spec.box_of_disjunct.tolist() == [0] * 4 + [1] * 4
    assert spec.lower[:, 1].tolist() == [0.11140846, -0.499999896]
    assert spec.lower[:, 2].tolist() == [-0.498408347] * 2
    assert [rows_of(spec, d) for d in range(4)] == [rows_of(spec, d) for d in range(4, 8)]
    assert rows_of(spec, 6) == [({(3, 1.0), (0, -1.0)}, 0.0, False)]


def test_boxes_and_rows_in_one_disjunct(read):
    parts = [f"(and (>= X_0 {k}) (<= X_0 {k}.5) (>= X_1 0) (<= X_1 1) (<= Y_0 {k}))" for k in (3, 3, 4)]
    spec = read(declared(2, 1) + "(assert (or " + "\n".join(parts) + "))")
    assert spec.lower.tolist() == [[3, 0], [4, 0]] and spec.upper.tolist() == [[3.5, 1], [4.5, 1]]
    assert spec.box_of_disjunct.tolist() == [0, 0, 1]
    assert spec.row_bound.tolist() == [3, 3, 4]


def test_equality_is_two_rows(read, rows_of):
    spec = read(declared(1, 1) + boxed(1) + "(assert (or (= Y_0 2) (= Y_0 3)))")
    assert spec.num_disjuncts == 2
    assert rows_of(spec, 1) == [({(0, 1.0)}, 3.0, False), ({(0, -1.0)}, -3.0, False)]


def test_input_bounds_are_intersected_and_scaled(read):
    text = "(assert (<= (* 2 X_0) 1)) (assert (>= (- X_0) -0.75)) (assert (= X_1 0.25)) (assert (<= 0.125 X_0))"
    spec = read(declared(2, 1) + boxed(2) + text)
    assert spec.lower.tolist() == [[0.125, 0.25]] and spec.upper.tolist() == [[0.5, 0.25]]


def test_strict_input_bounds_are_told_apart(read):
    text = "(assert (> X_0 0)) (assert (< X_1 0.5)) (assert (> X_1 -1)) (assert (< X_2 2))"
    spec = read(declared(3, 1) + boxed(3) + text)
    assert spec.lower.tolist() == [[0, 0, 0]] and spec.upper.tolist() == [[1, 0.5, 1]]
    assert spec.open_lower.tolist() == [[True, False, False]]
    assert spec.open_upper.tolist() == [[False, True, False]]


def test_an_excluded_bound_is_forgotten_when_a_tighter_one_comes(read):
    text = "(assert (> X_0 0)) (assert (or (and (>= X_0 0.5)) (and (<= X_0 0.5)) (and (>= X_0 0))))"
    spec = read(declared(1, 1) + boxed(1) + text)
    assert spec.lower[spec.box_of_disjunct].tolist() == [[0.5], [0], [0]]
    assert spec.open_lower[spec.box_of_disjunct].tolist() == [[False], [True], [True]]


def test_a_file_without_output_constraint_is_violated_everywhere(read):
    spec = read(declared(1, 1) + boxed(1))
    assert spec.num_disjuncts == 1 and spec.row_bound.size == 0
    assert spec.violated_by(np.array([0.5]), np.array([7.0])) == 0


def test_empty_disjuncts_are_dropped(read):
    text = "(assert (or (and (<= X_0 -1) (<= Y_0 0)) (and (>= X_0 0.5) (<= Y_0 1)) (and (< X_0 0) (<= Y_0 2))))"
    spec = read(declared(1, 1) + boxed(1) + text)
    assert spec.num_disjuncts == 1 and spec.num_boxes == 1
    assert spec.lower.tolist() == [[0.5]] and spec.row_bound.tolist() == [1]


def test_constant_comparisons_are_decided(read):
    spec = read(declared(1, 1) + boxed(1) + "(assert (or (and (<= 1 0) (<= Y_0 0)) (and (<= 0 1) (<= Y_0 1))))")
    assert spec.num_disjuncts == 1 and spec.row_bound.tolist() == [1]
    assert read(declared(1, 1) + boxed(1) + "(assert (or (<= Y_0 0) (< 0 1)))").num_disjuncts == 2
    assert read(declared(1, 1) + boxed(1) + "(assert (<= (* 0 Y_0) 0))").row_bound.size == 0


@pytest.mark.parametrize("text", ["(<= 1 0)", "(< 0 0)", "(< Y_0 Y_0)", "(and (<= Y_0 1) (or (<= 1 0) (= 1 2)))"])
def test_a_false_assertion_leaves_no_disjunct_but_a_box(read, text):
    spec = read(declared(2, 1) + boxed(2) + f"(assert {text})")
    assert spec.num_disjuncts == 0 and spec.lower.tolist() == [[0, 0]] and spec.upper.tolist() == [[1, 1]]
    assert spec.violated_by(np.zeros(2), np.zeros(1)) is None


def test_declarations_in_any_order_and_either_spelling(read):
    text = "(set-logic QF_LRA)(declare-const Y_0 Real)(declare-fun X_1 () Real)(declare-const X_0 Real)"
    spec = read(text + boxed(2) + "(assert (<= Y_0 1))(check-sat)\r\n")
    assert spec.num_inputs == 2 and spec.num_outputs == 1


def test_gzip_is_told_by_content(read):
    text = (declared(1, 1) + boxed(1)).encode()
    assert read(gzip.compress(text), "spec.vnnlib").num_disjuncts == 1
    assert read(text, "spec.vnnlib.gz").num_disjuncts == 1
    assert read(b"\xef\xbb\xbf" + text).num_disjuncts == 1


@pytest.mark.parametrize("chunk_bytes", [1, 7, 40, 200])
def test_where_chunks_are_cut_does_not_matter(read, assert_same, monkeypatch, chunk_bytes):
    text = PROP_6 + "(assert (or (<= (+ Y_0 (* 2 Y_1)) 3) (= Y_2 1) (> 2 Y_3)))"
    whole = read(text)
    monkeypatch.setattr(vnnlib_one, "scan", partial(vnnlib_scan.scan, chunk_bytes=chunk_bytes))
    assert_same(read(text), whole)


# What is refused, and how.

GOOD = declared(2, 2) + boxed(2)  # 8 lines


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (GOOD + "(assert (<= Y_0 1)", ["line 9", "never closed"]),
        (GOOD + "(assert (<= Y_0 1)))", ["line 9", "closes nothing"]),
        (GOOD + "(assert (<= Y_7 1))", ["line 9", "Y_7 is not declared", "Y_0 .. Y_1"]),
        (GOOD + "(assert (or (<= (+ X_9 1) 0)))", ["line 9", "X_9 is not declared"]),
        (GOOD + "(assert (<= Z 1))", ["line 9", "'Z'", "expected"]),
        (GOOD + "(assert (<= X_01 1))", ["line 9", "'X_01'"]),
        (GOOD + "(assert (<= Y_0 nan))", ["line 9", "'nan'"]),
        (GOOD + "(assert (<= Y_0 -inf))", ["line 9", "'-inf'"]),
        (GOOD + "(assert (<= Y_0 1e999))", ["line 9", "'1e999'"]),
        (GOOD + "(assert (<= Y_0 1_0))", ["line 9", "'1_0'"]),
        (GOOD + "(assert (<= Y_0 1-2))", ["line 9", "'1-2'"]),
        (GOOD + "(assert (<= (* 1e-300 Y_0) 1e300))", ["line 9", "too large"]),
        (GOOD + f"(assert (<= (* Y_0 {'1e300 ' * 100}) 1))", ["line 9", "too large"]),
        (GOOD + "(assert (<= Y_0 1e-999999999))", ["line 9", "closer to 0"]),
        (GOOD + "(assert (<= X_0 (+ 0 1e-999999999)))", ["line 9", "closer to 0"]),
        (GOOD + "(assert (<= X_0 1e999999999))", ["line 9", "'1e999999999'"]),
        (GOOD + f"(assert (<= X_0 1.{'3' * 5000}))", ["line 9", "digits"]),
        (GOOD + "(assert (<= Y_0 0e99999999999999999999))", ["line 9", "digits"]),
        (GOOD + "(assert (<= (* 1e-300 X_0) 1e300))", ["line 9", "too large"]),
        (GOOD + "(assert (<= Y_0 1) (<= Y_1 1))", ["line 9", "one condition", "2"]),
        (GOOD + "(assert)", ["line 9", "one condition", "0"]),
        (GOOD + "(assert Y_0)", ["line 9", "'Y_0'"]),
        (GOOD + "(assert (and))", ["line 9", "'and'"]),
        (GOOD + "(assert (<= Y_0 1 2))", ["line 9", "two operands", "3"]),
        (GOOD + "(assert (<= (and (<= Y_0 1)) 2))", ["line 9", "expected a number"]),
        (GOOD + "(assert (+ Y_0 2))", ["line 9", "arithmetic"]),
        (GOOD + "(assert ((<= Y_0 2)))", ["line 9", "operator"]),
        (GOOD + "(assert (<= Y_0 (+)))", ["line 9", "'+'"]),
        (GOOD + "(assert (foo Y_0 2))", ["line 9", "'foo'"]),
        (GOOD + "(assert (or (<= Y_0 1)\n(assert (<= Y_1 2))))", ["line 10", "'assert'", "missing"]),
        (GOOD + "(<= Y_0 2)", ["line 9", "expected"]),
        (GOOD + "hello", ["line 9", "'hello'"]),
        (GOOD + "(hello)", ["line 9", "'hello'"]),
        (GOOD + "\n\n(declare-const X_1 Real)", ["line 11", "X_1", "twice"]),
        (GOOD + "(declare-const Y_3 Real)", ["Y_3", "Y_2"]),
        (GOOD + "(declare-const Z_3 Real)", ["line 9", "'Z_3'"]),
        (GOOD + "(declare-const X_3)", ["line 9", "expected"]),
        ("(declare-const Y_0 Real)", ["no X_0"]),
        ("(declare-const X_0 Real)" + boxed(1), ["no Y_0"]),
        (declared(2, 1) + boxed(1), ["X_1", "no lower bound"]),
        (declared(2, 1) + boxed(1) + "(assert (>= X_1 1))", ["X_1", "no upper bound"]),
        (
            declared(1, 1) + "(assert (or (and (<= X_0 1) (>= X_0 0)) (and (<= X_0 1) (<= Y_0 0))))",
            ["X_0", "no lower bound", "some disjunct"],
        ),
        (GOOD + "(assert (>= X_0 2))", ["no input", "X_0 >= 2.0", "X_0 <= 1.0"]),
        (GOOD + "(assert (or (and (> X_0 1)) (and (< X_0 0))))", ["no input"]),
        (GOOD + "(assert (> X_0 1))", ["no input", "X_0 > 1.0", "X_0 <= 1.0"]),
        (GOOD + "(assert (>= X_0 0.10000000000000001)) (assert (<= X_0 0.1))", ["no input", "X_0 >= 0.1"]),
        ("", ["empty"]),
        (" \n\t\n", ["empty"]),
        ("; only a comment", ["no X_0"]),
        (b"\x08\x07\x00\x12binary", ["binary"]),
        (b"\x1f\x8b\x08\x00broken", ["gzip"]),
        ("{\x08}", ["line 1", "expected"]),
        ("(declare-network N)", ["(vnnlib-version <2.0>)"]),
        ("(vnnlib-version two)", ["line 1", "(vnnlib-version <2.0>)"]),
    ],
)
def test_malformed_files(read, text, fragments):
    with pytest.raises(SpecificationError) as caught:
        read(text)
    message = str(caught.value)
    assert not isinstance(caught.value, UnsupportedSpecificationError)
    assert "spec.vnnlib" in message and "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (GOOD + "(assert (<= X_0 Y_0))", ["line 9", "mixes inputs and outputs"]),
        (GOOD + "(assert (or (and (<= (- Y_0 (* 2 X_0)) 1))))", ["line 9", "mixes inputs and outputs"]),
        (GOOD + "(assert (<= X_0 X_1))", ["line 9", "2 inputs"]),
        (GOOD + "(assert (<= (* Y_0 Y_1) 1))", ["line 9", "non-linear"]),
        (GOOD + "(assert (<= (* Y_0 2 Y_0) 1))", ["line 9", "non-linear"]),
        (GOOD + "\n(assert (not (<= Y_0 1)))", ["line 10", "'not'"]),
        (GOOD + "(assert (<= (/ Y_0 2) 1))", ["line 9", "'/'"]),
        (GOOD + "(declare-const X_2 Int)", ["line 9", "'Int'"]),
        ("(vnnlib-version <3.0>)", ["line 1", "<3.0>"]),
    ],
)
def test_unsupported_files(read, text, fragments):
    with pytest.raises(UnsupportedSpecificationError) as caught:
        read(text)
    for fragment in ["spec.vnnlib", *fragments]:
        assert fragment in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.vnnlib", tmp_path):
        with pytest.raises(SpecificationError, match="cannot be read"):
            read_specification(path)


def test_blow_up_is_refused_with_its_count(read):
    either = "(or (<= Y_0 0) (<= Y_1 0))"
    with pytest.raises(SpecificationError, match=rf"{2**40} disjuncts, the limit is {normal_form.MAX_DISJUNCTS}"):
        read(GOOD + f"(assert {either})\n" * 40)
    with pytest.raises(SpecificationError, match=rf"line 9: this and .*{2**40} disjuncts"):
        read(GOOD + "(assert (and " + either * 40 + "))")


def test_deep_nesting_is_read(read, rows_of):
    depth = 20_000
    spec = read(GOOD + "(assert " + "(and " * depth + "(<= Y_0 1)" + ")" * depth + ")")
    assert rows_of(spec, 0) == [({(0, 1.0)}, 1.0, False)]
