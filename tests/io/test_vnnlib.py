"""Both versions of the language: what they have in common, random texts against an oracle, the competition's files."""

from __future__ import annotations

import functools
import gzip
import operator
import os
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zonoplug.errors import SpecificationError
from zonoplug.io.vnnlib import read_specification

PACK = Path(os.environ.get("ZONOPLUG_VNNCOMP", Path(__file__).resolve().parents[3] / "shared" / "vnncomp"))
PACK_FILES = sorted(PACK.glob("*/vnnlib/**/*.vnnlib*"))
SLOW_BYTES = 50_000  # of gzip: these files take the naive evaluator seconds

RELATIONS = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt,
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


class Number(Fraction):
    """A number of a text, with the float nearest to it and on which side of that it lies."""

    def __new__(cls, word):
        self = super().__new__(cls, word)
        self.nearest = self.numerator / self.denominator
        self.side = (self > Fraction(self.nearest)) - (self < Fraction(self.nearest))
        return self

    def compared(self, head, values):
        """Truth of  values head self,  for floats: a number between two floats is compared like either of them."""
        if not self.side:
            return RELATIONS[head](values, self.nearest)
        if head in ("<", "<="):
            return RELATIONS["<=" if self.side > 0 else "<"](values, self.nearest)
        if head in (">", ">="):
            return RELATIONS[">" if self.side > 0 else ">="](values, self.nearest)
        return np.full(len(values), head == "!=")


number = functools.lru_cache(Number)


def evaluate(text, values):
    """Truth of all assertions at some points, in rational numbers: the oracle of these tests.

    Args:
        values: from X_0, Y_0, ... to arrays of floats (points,).
    """
    holds = True
    stack = []
    for token in re.finditer(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text)):
        word = token[0]
        if word == "(":
            stack.append([])
            continue
        if word == ")":
            head, *parts = stack.pop()
            word = apply(head, parts)
            if not stack:
                holds = holds & word if head == "assert" else holds
                continue
        elif len(stack[-1]) and not stack[-1][0].startswith(("declare", "vnnlib")):
            word = values[word] if word[0] in "XY" else number(word)
        stack[-1].append(word)
    return holds


def apply(head, parts):
    if head in RELATIONS:
        left, right = parts
        if is_float(left) and isinstance(right, Number):
            return right.compared(head, left)
        if is_float(right) and isinstance(left, Number):
            return left.compared(head.translate(str.maketrans("<>", "><")), right)
        return RELATIONS[head](rational(left), rational(right))
    if head in ("and", "or"):
        combine = np.logical_and if head == "and" else np.logical_or
        return combine.reduce(np.broadcast_arrays(*parts))
    if head == "+":
        return sum(map(rational, parts))
    if head == "*":
        return functools.reduce(operator.mul, map(rational, parts))
    if head == "-":
        first, *rest = map(rational, parts)
        return first - sum(rest) if rest else -first
    return parts[0]


def is_float(part):
    return isinstance(part, np.ndarray) and part.dtype == np.float64


def rational(part):
    return np.array([Fraction(float(value)) for value in part], dtype=object) if is_float(part) else part


def declared(inputs, outputs):
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{j}" for j in range(outputs)]
    return "\n".join(f"(declare-const {name} Real)" for name in names) + "\n"


def boxed(inputs, lower=0, upper=1):
    return "\n".join(f"(assert (>= X_{i} {lower}))\n(assert (<= X_{i} {upper}))" for i in range(inputs)) + "\n"


def as_version_two(text, inputs, outputs):
    text = re.sub(r"\(declare-const \w+ Real\)", "", text)
    text = re.sub(r"\b([XY])_(\d+)", r"\1[0,\2]", text).replace("(= ", "(== ")
    shapes = f"(declare-input X float32 [1,{inputs}]) (declare-output Y float32 [1,{outputs}])"
    return f"(vnnlib-version <2.0>)(declare-network N {shapes})" + text


@pytest.mark.parametrize(
    ("text", "terms", "bound", "strict"),
    [
        ("(<= Y_0 -1.5)", {(0, 1.0)}, -1.5, False),
        ("(<= -1.5 Y_0)", {(0, -1.0)}, 1.5, False),
        ("(> Y_0 .5)", {(0, -1.0)}, -0.5, True),
        ("(< +0.5 Y_1)", {(1, -1.0)}, -0.5, True),
        ("(< Y_0 Y_1)", {(0, 1.0), (1, -1.0)}, 0.0, True),
        ("(>= Y_1 -0.5)", {(1, -1.0)}, 0.5, False),
        ("(>= Y_0 Y_1)", {(1, 1.0), (0, -1.0)}, 0.0, False),
        ("(<= (* 2 Y_0) (* Y_1 -3.0))", {(0, 2.0), (1, 3.0)}, 0.0, False),
        ("(>= (- Y_0) 5.)", {(0, 1.0)}, -5.0, False),
        ("(<= (+ Y_0 (- Y_1 0.5) 2) (- 4 Y_0 Y_0))", {(0, 3.0), (1, 1.0)}, 2.5, False),
        ("(<= (* 2 (+ Y_0 (* 3 (- Y_1 1)))) 1E0)", {(0, 2.0), (1, 6.0)}, 7.0, False),
        ("(<= (+ Y_0 (- Y_1 Y_1)) 1)", {(0, 1.0)}, 1.0, False),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_linear_arithmetic(read, rows_of, text, terms, bound, strict, version):
    text = declared(1, 2) + boxed(1) + f"(assert {text})"
    spec = read(text if version == 1 else as_version_two(text, 1, 2))
    assert rows_of(spec, 0) == [(terms, bound, strict)]


# Both versions against the oracle, on random texts. Numbers are quarters, so that arithmetic is exact.

INPUTS, OUTPUTS = 2, 3
numbers = st.integers(-8, 8).map(lambda n: f"{n / 4:.2f}")
outputs = st.integers(0, OUTPUTS - 1).map(lambda j: f"Y_{j}")
linear = st.recursive(
    outputs | numbers,
    lambda parts: st.one_of(
        st.tuples(st.sampled_from("+-"), st.lists(parts, min_size=1, max_size=3)).map(
            lambda t: f"({t[0]} {' '.join(t[1])})"
        ),
        st.tuples(numbers, parts).map(lambda t: f"(* {t[0]} {t[1]})"),
    ),
    max_leaves=4,
)
input_sides = st.integers(0, INPUTS - 1).flatmap(
    lambda i: st.sampled_from([f"X_{i}", f"(* 2.00 X_{i})", f"(- X_{i})", f"(+ 0.25 (* -0.50 X_{i}))"])
)
comparisons = st.tuples(
    st.sampled_from(["<=", ">=", "<", ">", "="]),
    st.one_of(st.tuples(linear, linear), st.tuples(input_sides, numbers), st.tuples(numbers, input_sides)),
).map(lambda t: f"({t[0]} {t[1][0]} {t[1][1]})")
conditions = st.recursive(
    comparisons,
    lambda parts: st.tuples(st.sampled_from(["and", "or"]), st.lists(parts, min_size=1, max_size=3)).map(
        lambda t: f"({t[0]} {' '.join(t[1])})"
    ),
    max_leaves=6,
)
texts = st.lists(conditions, min_size=1, max_size=3).map(
    lambda parts: declared(INPUTS, OUTPUTS) + boxed(INPUTS, -2, 2) + "\n".join(f"(assert {part})" for part in parts)
)


@settings(max_examples=300, deadline=None)
@given(text=texts, seed=st.integers(0, 2**32 - 1), version=st.sampled_from([1, 2]))
def test_against_the_oracle(tmp_path_factory, text, seed, version):
    path = tmp_path_factory.getbasetemp() / "random.vnnlib"
    path.write_text(text if version == 1 else as_version_two(text, INPUTS, OUTPUTS))
    grid = np.random.default_rng(seed).integers(-9, 10, (INPUTS + OUTPUTS, 60)) / 4
    values = {f"X_{i}": grid[i] for i in range(INPUTS)} | {f"Y_{j}": grid[INPUTS + j] for j in range(OUTPUTS)}
    expected = np.broadcast_to(evaluate(text, values), 60)
    try:
        spec = read_specification(path)
    except SpecificationError as error:
        assert "no input satisfies" in str(error) and not expected.any()
        return
    found = [spec.violated_by(point[:INPUTS], point[INPUTS:]) is not None for point in grid.T]
    assert found == expected.tolist()
    assert (spec.lower <= spec.upper).all() and np.isfinite(spec.lower).all() and np.isfinite(spec.upper).all()
    assert spec.num_boxes >= 1 and (np.diff(spec.row_disjunct) >= 0).all() and (np.diff(spec.entry_row) >= 0).all()
    assert (spec.entry_value != 0).all()
    opened = [side for side in (spec.open_lower, spec.open_upper) if side is not None]
    assert len(np.unique(np.hstack([spec.lower, spec.upper, *opened]), axis=0)) == spec.num_boxes


# Texts with some pieces put in or replaced.

PIECES = """( ) (assert (and (or (<= (> (+ (* X_0 Y_0 Y_5 X[0,0] Y[0,1] 1.0 -2 1e999 nan not
            (declare-const Real) (declare-input [0,1] ; " \x01 \u00e9""".split()
PIECES += ["\n", "(>= X_0 0.5)"]


@settings(max_examples=300, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(PIECES), st.booleans()), min_size=1, max_size=4),
    version=st.sampled_from([1, 2]),
)
def test_damaged_texts_give_one_clear_line(tmp_path_factory, places, version):
    head = declared(2, 2) + boxed(2, 0.0, 1.0) + "(assert (or (and (<= Y_0 1.0) (> Y_1 (+ 1.0 Y_0)))))"
    head = head if version == 1 else as_version_two(head, 2, 2)
    parts = re.findall(r"[()]|[^\s()]+|\s+", head)
    for place, piece, replaces in places:
        parts[place : place + replaces] = [f" {piece} "]
    path = tmp_path_factory.getbasetemp() / "damaged.vnnlib"
    path.write_text("".join(parts), encoding="utf-8")
    try:
        read_specification(path)
    except SpecificationError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


# The competition's own files.


def pack_cases():
    if not PACK_FILES:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no VNN-COMP files under {PACK}"))]
    small = [path for path in PACK_FILES if path.stat().st_size <= SLOW_BYTES]
    large = sorted(set(PACK_FILES) - set(small), key=lambda path: path.stat().st_size)
    smallest = {path.relative_to(PACK).parts[0]: path for path in reversed(large)}  # of each benchmark
    return [pytest.param(path, id=str(path.relative_to(PACK))) for path in sorted({*small, *smallest.values()})]


@pytest.mark.parametrize("path", pack_cases())
def test_competition_files(path):
    spec = read_specification(path)
    data = path.read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    names = re.findall(r"declare-const\s+([XY])_\d+", text)
    assert (spec.num_inputs, spec.num_outputs) == (names.count("X"), names.count("Y"))
    assert spec.num_disjuncts >= 1 and (spec.lower <= spec.upper).all()
    points, values = zip(*sampled(spec, np.random.default_rng(0)), strict=True)
    table = {f"X_{i}": np.array(column) for i, column in enumerate(zip(*points, strict=True))}
    table |= {f"Y_{j}": np.array(column) for j, column in enumerate(zip(*values, strict=True))}
    expected = np.broadcast_to(evaluate(text, table), len(points)).tolist()
    found = [spec.violated_by(x, y) is not None for x, y in zip(points, values, strict=True)]
    assert found == expected
    inside = [spec.within(point).any() for point in points]
    assert (any(found) or not any(inside)) and not all(found)


def sampled(spec, rng):
    """Points of both kinds: in some disjunct, on its edge, just outside, and anywhere."""
    for disjunct in rng.integers(0, spec.num_disjuncts, 8):
        lower, upper = (side[spec.box_of_disjunct[disjunct]] for side in (spec.lower, spec.upper))
        corner = np.where(rng.random(lower.size) < 0.5, lower, upper)
        inside = np.clip(lower + rng.random(lower.size) * (upper - lower), lower, upper)
        anywhere = rng.normal(size=spec.num_outputs)
        for push in (0.0, -1.0, -1e-9, 1e-9):
            outputs = anywhere.copy()
            for row in np.flatnonzero(spec.row_disjunct == disjunct):
                entries = np.flatnonzero(spec.entry_row == row)
                last, rest = entries[-1], entries[:-1]
                known = spec.entry_value[rest] @ outputs[spec.entry_output[rest]]
                target = (spec.row_bound[row] + push - known) / spec.entry_value[last]
                outputs[spec.entry_output[last]] = target
            yield corner, outputs
            yield inside, outputs
            yield np.nextafter(corner, np.where(corner == lower, -np.inf, np.inf)), outputs
        yield corner, anywhere


@pytest.mark.parametrize("name", ["acasxu", "lsnc", "safenlp", "cgan", "ml4acopf", "tllverifybench", "cifar_biasfield"])
def test_competition_files_in_version_two(read, assert_same, name):
    path = next(iter(sorted((PACK / name).glob("vnnlib/**/*.gz"))), None)
    if path is None:
        pytest.skip(f"no VNN-COMP files under {PACK / name}")
    text = re.sub(r";[^\n]*", "", gzip.decompress(path.read_bytes()).decode())
    one = read(text)
    two = read(as_version_two(text, one.num_inputs, one.num_outputs))
    assert two.inputs == ("X", "float32", (1, one.num_inputs))
    assert_same(two, one)
