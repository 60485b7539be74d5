"""Rows in a network's own number type against the rationals that were written."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from zonoplug.exact_rows import ExactRows
from zonoplug.io.decimals import rounded
from zonoplug.specification import Specification, Variable
from zonoplug.verify.problem.scaled_rows import nearest, scaled_rows, upward

TYPES = [np.float32, np.float64]


def specified(rows):
    """A specification of rows (coefficients, bound) in rational numbers, each a disjunct of its own."""
    values, sides = zip(*(rounded(a) for coefficients, _ in rows for a in coefficients), strict=True)
    bounds, bound_triangle = zip(*(rounded(bound) for _, bound in rows), strict=True)
    sizes = [len(coefficients) for coefficients, _ in rows]
    count = np.arange(len(rows))
    exact = {k: (bound, dict(enumerate(coefficients))) for k, (coefficients, bound) in enumerate(rows)}
    return Specification(
        version="1.0",
        inputs=Variable("X", "float32", (1,)),
        outputs=Variable("Y", "float32", (max(sizes),)),
        lower=np.zeros((1, 1)),
        upper=np.ones((1, 1)),
        box_of_disjunct=np.zeros(len(rows), np.int64),
        row_disjunct=count,
        row_bound=np.array(bounds),
        row_strict=np.zeros(len(rows), np.bool_),
        entry_row=np.repeat(count, sizes),
        entry_output=np.concatenate([np.arange(size) for size in sizes]),
        entry_value=np.array(values),
        exact=ExactRows(np.array(bound_triangle, np.int8), np.array(sides, np.int8), count, exact),
    )


def random_rational(source, spread):
    kind = source.choice(TYPES)
    value = Fraction(float(kind(source.uniform(-4, 4))))
    if source.random() < 0.5:  # halfway between two numbers of the type, or beside that
        step = Fraction(float(np.spacing(kind(float(value)))))
        value += step / 2 * source.choice([-1, 1]) + source.choice([-1, 0, 1]) * Fraction(1, 10**40)
    return value * Fraction(source.choice([1, 2, 3])) * Fraction(10) ** source.randint(-spread, spread)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("spread", [0, 40, 100])
def test_scaled_rows(kind, spread):
    source = random.Random(spread)
    rows = [
        ([random_rational(source, spread) for _ in range(source.randint(1, 3))], random_rational(source, spread))
        for _ in range(150)
    ]
    spec = specified(rows)
    scaled = scaled_rows(spec, kind)
    assert scaled.entry_value.dtype == scaled.bound.dtype == kind
    unit, least = Fraction(float(np.finfo(kind).eps)) / 2, Fraction(float(np.finfo(kind).smallest_subnormal)) / 2
    largest = Fraction(float(np.finfo(kind).max))
    entry = 0
    for k, (coefficients, bound) in enumerate(rows):
        scale = Fraction(float(scaled.scale[k]))
        assert np.frexp(scaled.scale[k])[0] == 0.5  # a power of two
        assert 1 - unit <= max(abs(a) for a in coefficients) * scale < 2
        for a in coefficients:
            value = Fraction(float(scaled.entry_value[entry]))
            assert abs(value - scale * a) <= max(unit * abs(scale * a), least)
            entry += 1
        if scaled.bound[k] == np.inf:
            assert scale * bound > largest
            continue
        assert Fraction(float(scaled.bound[k])) >= scale * bound
        with np.errstate(over="ignore"):
            below = float(np.nextafter(scaled.bound[k], kind(-np.inf)))
        assert below == -np.inf or Fraction(below) < scale * bound


@pytest.mark.parametrize("sign", [1, -1])
def test_bounds_beyond_the_type(sign):
    (bound,) = scaled_rows(specified([([Fraction(10) ** -40], sign * Fraction(10) ** 5)]), np.float32).bound
    assert bound == (np.inf if sign > 0 else -np.finfo(np.float32).max)


def test_rows_of_ordinary_size_stay_as_they_are():
    spec = specified([([Fraction(1), Fraction(-1)], Fraction(0)), ([Fraction(3, 2)], Fraction(5))])
    scaled = scaled_rows(spec, np.float32)
    assert scaled.entry_value.tolist() == [1, -1, 1.5] and scaled.bound.tolist() == [0, 5]


def test_rounding_once_at_ties():
    middle = np.array([1 + 2.0**-24])  # halfway between 1 and the float32 above
    above = 1 + 2.0**-23
    for side, wanted in ((-1, 1.0), (0, 1.0), (1, above)):
        assert nearest(middle, np.array([side], np.int8), np.float32).tolist() == [wanted]
    for side, wanted in ((-1, 1.0), (0, 1.0), (1, above)):
        assert upward(np.array([1.0]), np.array([side], np.int8), np.float32).tolist() == [wanted]
