from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from zonoplug.exact_rows import ExactRows
from zonoplug.specification import Specification, Variable


def specification(**changes):
    """Two boxes over two inputs; disjuncts: y0 <= 1 in box 0; y0 - y1 < 0 and y1 <= 2 in box 1; all of box 1."""
    parts = {
        "version": "1.0",
        "inputs": Variable("X", "float32", (2,)),
        "outputs": Variable("Y", "float32", (3,)),
        "lower": np.array([[0.0, 0.0], [2.0, 2.0]]),
        "upper": np.array([[1.0, 1.0], [3.0, 2.0]]),
        "box_of_disjunct": np.array([0, 1, 1]),
        "row_disjunct": np.array([0, 1, 1]),
        "row_bound": np.array([1.0, 0.0, 2.0]),
        "row_strict": np.array([False, True, False]),
        "entry_row": np.array([0, 1, 1, 2]),
        "entry_output": np.array([0, 0, 1, 1]),
        "entry_value": np.array([1.0, 1.0, -1.0, 1.0]),
    }
    return Specification(**(parts | changes))


def test_sizes():
    spec = specification(outputs=Variable("Y", "float32", (1, 3)))
    assert (spec.num_inputs, spec.num_outputs, spec.num_boxes, spec.num_disjuncts) == (2, 3, 2, 3)


@pytest.mark.parametrize(
    ("inputs", "outputs", "disjunct"),
    [
        ([0.0, 1.0], [1.0, 0.0, 0.0], 0),
        ([0.0, 1.0], [np.nextafter(1.0, 2.0), 0.0, 0.0], None),
        ([-1e-300, 1.0], [0.0, 0.0, 0.0], None),
        ([2.0, 2.0], [0.0, 1.0, 0.0], 1),
        ([2.0, 2.0], [1.0, 1.0, 0.0], 2),
        ([2.0, 2.0], [0.0, 2.5, 0.0], 2),
        ([1.5, 1.5], [0.0, 0.0, 0.0], None),
        ([np.nan, 0.5], [0.0, 0.0, 0.0], None),
        ([0.5, 0.5], [np.nan, 0.0, 0.0], None),
    ],
)
def test_violated_by_is_exact(inputs, outputs, disjunct):
    assert specification().violated_by(np.array(inputs), np.array(outputs)) == disjunct


def test_excluded_bounds_are_not_in_the_box():
    excluded = np.array([[True, False], [False, False]])
    outputs = np.zeros(3)
    spec = specification(open_lower=excluded)
    assert spec.violated_by(np.array([0.0, 0.0]), outputs) is None
    assert spec.violated_by(np.array([1e-300, 0.0]), outputs) == 0
    spec = specification(open_upper=excluded)
    assert spec.violated_by(np.array([1.0, 1.0]), outputs) is None
    assert spec.violated_by(np.array([0.5, 1.0]), outputs) == 0


INF = np.inf


@pytest.mark.parametrize(
    ("outputs", "disjunct"),
    [
        ([-INF, INF, 0.0], 0),  # -inf <= 1
        ([INF, 0.0, 0.0], None),
        ([-INF, 0.0, 0.0], 0),
        ([np.nan, -INF, 0.0], None),
    ],
)
def test_infinite_outputs_are_compared_as_extended_reals(outputs, disjunct):
    assert specification().violated_by(np.array([0.0, 1.0]), np.array(outputs)) == disjunct


@pytest.mark.parametrize(("outputs", "disjunct"), [([-INF, 2.0], 1), ([INF, INF], None), ([-INF, -INF], None)])
def test_infinities_that_cancel_satisfy_nothing(outputs, disjunct):
    spec = specification(box_of_disjunct=np.array([0, 1]))
    assert spec.unsafe_disjunct(np.array([*outputs, 0.0]), np.array([False, True])) == disjunct


@pytest.mark.parametrize("seed", range(3))
def test_sums_that_float64_cannot_decide(seed):
    """a . y <= b with b the exact sum, one step of float64 less, or a little between."""
    random, decided = np.random.default_rng(seed), []
    for _ in range(40):
        a, y = random.normal(size=(2, 3)) * 10.0 ** random.integers(-12, 12, (2, 3))
        total = sum(Fraction(p) * Fraction(q) for p, q in zip(a.tolist(), y.tolist(), strict=True))
        beside = [Fraction(float(np.nextafter(float(total), towards))) for towards in (-INF, INF)]
        for bound in (total, total - Fraction(10) ** -40, Fraction(float(total)), *beside):
            for strict in (False, True):
                nearest = float(bound)
                side = (bound > Fraction(nearest)) - (bound < Fraction(nearest))
                exact = ExactRows(np.array([side], np.int8), np.zeros(3, np.int8), np.array([7]), {7: (bound, None)})
                spec = specification(
                    box_of_disjunct=np.array([0]),
                    row_disjunct=np.array([0]),
                    row_bound=np.array([nearest]),
                    row_strict=np.array([strict]),
                    entry_row=np.zeros(3, np.int64),
                    entry_output=np.arange(3),
                    entry_value=a,
                    exact=exact if side else None,
                )
                holds = total < bound if strict else total <= bound
                assert (spec.violated_by(np.array([0.5, 0.5]), y) == 0) == holds
                decided.append(holds)
    assert any(decided) and not all(decided)


def test_unsafe_disjunct_believes_the_given_boxes():
    spec = specification()
    assert spec.unsafe_disjunct(np.zeros(3), np.array([True, True])) == 0
    assert spec.unsafe_disjunct(np.zeros(3), np.array([False, True])) == 2
    assert spec.unsafe_disjunct(np.zeros(3), np.array([False, False])) is None
    assert spec.unsafe_disjunct(np.array([5.0, 0.0, 0.0]), np.array([True, False])) is None


def test_no_disjunct_is_never_violated():
    nothing = np.zeros(0, np.int64)
    spec = specification(
        box_of_disjunct=nothing,
        row_disjunct=nothing,
        row_bound=np.zeros(0),
        row_strict=np.zeros(0, np.bool_),
        entry_row=nothing,
        entry_output=nothing,
        entry_value=np.zeros(0),
    )
    assert spec.num_disjuncts == 0
    assert spec.violated_by(np.zeros(2), np.zeros(3)) is None
