"""Specifications with awkward numbers against an evaluation in rational numbers, beside their thresholds."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from zonoplug.io.vnnlib import read_specification

DIGITS = [0, 1, 3, 9, 17, 25]


def number(source, spread):
    """A decimal with some digits, of some size, and what it is."""
    digits = source.choice(DIGITS)
    word = f"{source.uniform(-9, 9):.{digits}f}e{source.randint(-spread, spread)}"
    return word, Fraction(word)


def sum_of_outputs(source, spread):
    """A sum over Y_0 and Y_1 with constants, repeats and cancelling terms: as text, as (constant, a_0, a_1)."""
    parts, form = [], [Fraction(0)] * 3
    for _ in range(source.randint(1, 4)):
        word, value = number(source, spread)
        place = source.randint(0, 2)
        repeats = source.choice([1, 1, 2])
        for _ in range(repeats):
            parts.append(word if place == 0 else f"(* {word} Y_{place - 1})")
            form[place] += value
        if source.random() < 0.3:  # a large number that comes and goes
            big = source.choice(["1e16", "1e30", "-4e18"])
            parts += [f"{big} (- {big})" if place == 0 else f"(* {big} Y_{place - 1}) (- (* {big} Y_{place - 1}))"]
    return f"(+ {' '.join(parts)})", form


def near_threshold(source, form, kind):
    """Outputs where the form is about 0, or anywhere."""
    outputs = [float(kind(source.uniform(-3, 3))) for _ in range(2)]
    place = source.choice([k for k in (1, 2) if form[k]] or [0])
    if place:
        other = 3 - place
        root = -(form[0] + form[other] * Fraction(outputs[other - 1])) / form[place]
        if abs(root) < 10**30:
            outputs[place - 1] = float(kind(root.numerator / root.denominator))
            for _ in range(source.randint(0, 1)):
                towards = kind(source.choice([-np.inf, np.inf]))
                outputs[place - 1] = float(np.nextafter(kind(outputs[place - 1]), towards))
    return np.array(outputs)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("spread", [0, 3, 40, 120])
def test_rows_are_decided_exactly(tmp_path, version, spread):
    source, seen = random.Random(100 * spread + version), set()
    for _ in range(25):
        text, form = sum_of_outputs(source, spread)
        relation = source.choice(["<=", "<", ">=", ">"])
        lines = "(declare-const X_0 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
        lines += f"(assert (>= X_0 0.0))(assert (<= X_0 1.0))(assert ({relation} {text} 0.0))"
        if version == 2:
            head = "(vnnlib-version <2.0>)(declare-network N (declare-input X real [1])(declare-output Y real [2]))"
            lines = head + lines[lines.index("(assert") :]
            for old, new in (("X_0", "X[0]"), ("Y_0", "Y[0]"), ("Y_1", "Y[1]")):
                lines = lines.replace(old, new)
        path = tmp_path / "spec.vnnlib"
        path.write_text(lines)
        spec = read_specification(path)
        for _ in range(12):
            outputs = near_threshold(source, form, source.choice([np.float32, np.float64]))
            value = form[0] + form[1] * Fraction(outputs[0]) + form[2] * Fraction(outputs[1])
            holds = {"<=": value <= 0, "<": value < 0, ">=": value >= 0, ">": value > 0}[relation]
            assert (spec.violated_by(np.array([0.5]), outputs) == 0) == holds, (text, relation, outputs)
            seen.add(holds)
    assert seen == {True, False}


def test_input_bounds_are_decided_exactly(tmp_path):
    source, path, seen = random.Random(5), tmp_path / "spec.vnnlib", set()
    for _ in range(60):
        value = float(np.float32(source.uniform(-4, 4)))
        forms = [f"{value:.{digits}f}" for digits in (3, 8, 17)] + [repr(value), repr(float(np.float64(value) / 3))]
        word, scale = source.choice(forms), source.choice(["1.0", "3.0", "-0.7", "1e-30"])
        strict, relation = source.choice([("<", Fraction.__lt__), ("<=", Fraction.__le__)])
        path.write_text(
            "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 -1e40))(assert (<= X_0 1e40))"
            f"(assert ({strict} (* {scale} X_0) {word}))"
        )
        spec = read_specification(path)
        edge = Fraction(word) / Fraction(scale)
        at = edge.numerator / edge.denominator
        for x in (at, np.nextafter(at, -np.inf), np.nextafter(at, np.inf), float(np.float32(at)), value):
            holds = relation(Fraction(scale) * Fraction(float(x)), Fraction(word))
            assert bool(spec.within(np.array([x]))[0]) == holds
            seen.add(holds)
    assert seen == {True, False}


def test_constants_are_summed_exactly(tmp_path):
    path = tmp_path / "spec.vnnlib"
    head = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
    for text, bound in (
        ("(<= (+ Y_0 1e16 1) 1e16)", -1.0),
        ("(<= (+ Y_0 (- 1e30 1e30) 2) 0)", -2.0),
        ("(<= (- (+ Y_0 Y_0) (* 2 Y_0)) (- Y_0))", 0.0),
        ("(<= (* 1e-40 Y_0) 0.5e-40)", 0.5),
        ("(<= (* 1e-200 1e-200 Y_0) (* 1e-200 0.5e-200))", 0.5),
    ):
        path.write_text(head + f"(assert {text})")
        spec = read_specification(path)
        row = spec.row(0)
        assert row.bound / row.terms[0] == Fraction(bound)
        assert spec.entry_value[0] != 0
    path.write_text(head + "(assert (<= (- (+ 1e16 1) 1e16) 0.5))")
    assert read_specification(path).num_disjuncts == 0
    path.write_text(head + "(assert (<= (- (+ Y_0 Y_0) (* 2 Y_0)) 1e-300))")
    assert read_specification(path).row_bound.size == 0
