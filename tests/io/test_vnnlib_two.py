from __future__ import annotations

import itertools
import sys

import pytest

from zonoplug.errors import SpecificationError, UnsupportedSpecificationError

HEAD = """; a comment
(vnnlib-version <2.0>)
(declare-network f
  (declare-input X float32 [1,2,3])
  (declare-output Y float32 [1,2]))
"""
BOX = "".join(
    f"(assert (and (>= X[0,{i},{j}] -0.5) (<= X[0, {i}, {j}] 1.0)))\n" for i, j in itertools.product(range(2), range(3))
)


def test_version_two(read, rows_of):
    spec = read(
        HEAD + BOX + "(assert (or (<= Y[0,1] Y[0,0]) (> (+ Y[0,0] (* 2.0 Y[0,1])) 0.25)))(assert (<= X[0,1,0] 0.75))"
    )
    assert spec.version == "2.0"
    assert spec.inputs == ("X", "float32", (1, 2, 3)) and spec.outputs == ("Y", "float32", (1, 2))
    assert spec.lower.tolist() == [[-0.5] * 6] and spec.upper.tolist() == [[1, 1, 1, 0.75, 1, 1]]
    assert rows_of(spec, 0) == [({(1, 1.0), (0, -1.0)}, 0.0, False)]
    assert rows_of(spec, 1) == [({(0, -1.0), (1, -2.0)}, -0.25, True)]


@pytest.mark.parametrize("number", ["1e-05", "1.5E+2", ".5", "5.", "+0.5", "-3", "7", "-2.5e3", "1e-400", "+7"])
def test_version_two_numbers_the_package_refuses(read, rows_of, number):
    spec = read(HEAD + BOX + f"(assert (<= Y[0,0] {number})) ; not a number: {number}\n(assert (< {number} Y[0,1]))")
    assert rows_of(spec, 0) == [({(0, 1.0)}, float(number), False), ({(1, -1.0)}, -float(number), True)]


def test_version_two_node_names_are_allowed(read, assert_same):
    named = HEAD.replace("[1,2,3])", '[1,2,3] "in;put")').replace("[1,2])", '[1,2] "output 1")')
    assert_same(read(named + BOX + "(assert (<= Y[0,1] 0.5))"), read(HEAD + BOX + "(assert (<= Y[0,1] 0.5))"))


def test_version_two_equality_and_inequality(read, rows_of):
    spec = read(HEAD + BOX + "(assert (== Y[0,0] 0.5))(assert (= X[0,0,0] 0.25))(assert (!= Y[0,1] 1.0))")
    assert spec.num_disjuncts == 2 and spec.lower[0, 0] == spec.upper[0, 0] == 0.25
    equal = [({(0, 1.0)}, 0.5, False), ({(0, -1.0)}, -0.5, False)]
    assert rows_of(spec, 0) == [*equal, ({(1, 1.0)}, 1.0, True)]
    assert rows_of(spec, 1) == [*equal, ({(1, -1.0)}, -1.0, True)]


def test_version_two_types_and_scalars(read, rows_of):
    text = "(vnnlib-version <2.1>)(declare-network f (declare-input A {} [])(declare-output B {} [2]))"
    rest = "(assert (and (>= A 0.0) (<= A 1)))(assert (<= B[1] 3.0))"
    spec = read(text.format("real", "float64") + rest)
    assert spec.inputs == ("A", "real", ()) and spec.outputs == ("B", "float64", (2,))
    assert spec.num_inputs == 1 and rows_of(spec, 0) == [({(1, 1.0)}, 3.0, False)]


@pytest.mark.parametrize(
    ("text", "kind", "fragments"),
    [
        (HEAD + BOX + "(assert (<= Y[0,0] X[0,0,0]))", UnsupportedSpecificationError, ["line 12", "mixes"]),
        (HEAD + BOX + "(assert (<= (* Y[0,0] Y[0,1]) 1.0))", UnsupportedSpecificationError, ["line 12", "non-linear"]),
        (HEAD + BOX + "(assert (<= X[0,0,1] X[0,0,0]))", UnsupportedSpecificationError, ["line 12", "2 inputs"]),
        (
            HEAD.replace("f\n", "f (declare-input Z real [1])\n") + BOX,
            UnsupportedSpecificationError,
            ["2 inputs", "Z, X"],
        ),
        (
            HEAD.replace("[1,2]))", "[1,2])(declare-output W real [1]))") + "(assert (<= W[0] 1.0))",
            UnsupportedSpecificationError,
            ["2 outputs"],
        ),
        (
            HEAD + "(declare-network g (equal-to f) (declare-input A float32 [1,2,3]) (declare-output B float32 [1,2]))"
            "(assert (<= B[0,0] Y[0,0]))",
            UnsupportedSpecificationError,
            ["2 networks", "f, g"],
        ),
        (
            HEAD.replace("(declare-output", '(declare-hidden H float32 [3] "node") (declare-output') + BOX,
            UnsupportedSpecificationError,
            ["hidden", "'H'"],
        ),
        (HEAD.replace("X float32", "X int8") + "(assert (<= Y[0,0] 1.0))", UnsupportedSpecificationError, ["X", "I8"]),
        (HEAD + "(assert (and " * 300 + "(<= Y[0,0] 1.0)" + "))" * 300, UnsupportedSpecificationError, ["nested"]),
        (HEAD + BOX + "(assert (<= Y[0,2] 1.0))", SpecificationError, ["line 12", "Y[0,2]", "out of bounds"]),
        (HEAD + BOX + "(assert (<= Y[0] 1.0))", SpecificationError, ["line 12", "Y[0]"]),
        (HEAD + BOX + "(assert (<= Z[0] 1.0))", SpecificationError, ["line 12", "Z"]),
        (HEAD + BOX + "(assert (<= Y[0,0] 1.0)", SpecificationError, ["line 12", "syntax error at the end"]),
        (HEAD + BOX + "(assert (<= Y[0,0] 1e999))", SpecificationError, ["line 12", "1e999"]),
        (HEAD + BOX + "(assert (<= Y[0,0] nan))", SpecificationError, ["line 12", "nan"]),
        (HEAD + "(assert (<= X[0,0,0] 1.0))", SpecificationError, ["X[0,0,0]", "no lower bound"]),
        (HEAD + BOX + "(assert (> X[0,1,2] 1.0))", SpecificationError, ["no input"]),
        (HEAD, SpecificationError, ["syntax error"]),
    ],
)
def test_version_two_refusals(read, text, kind, fragments):
    with pytest.raises(SpecificationError) as caught:
        read(text)
    message = str(caught.value)
    assert type(caught.value) is kind and "\n" not in message
    for fragment in ["spec.vnnlib", *fragments]:
        assert fragment in message


def test_version_two_without_its_package(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "vnnlib", None)
    one = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
    assert read(one).num_disjuncts == 1
    with pytest.raises(UnsupportedSpecificationError, match="pip install 'vnnlib"):
        read(HEAD + BOX)
