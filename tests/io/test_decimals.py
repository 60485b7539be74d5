"""Decimal texts against rational numbers."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from zonoplug.io.decimals import NumberRangeError, decimal, rounded, sides


def beside(value, digits):
    """A float64 in full, but for 1 in its last of many digits."""
    binary = Fraction(value)
    return f"0.{binary.numerator * 10**120 // binary.denominator + 10 ** (120 - digits):0120d}"


def midpoint(value):
    """The rational halfway from a float64 to the next, in full."""
    middle = (Fraction(value) + Fraction(float(np.nextafter(value, 2.0)))) / 2
    return f"{middle.numerator * 10**120 // middle.denominator:0121d}"


FORMS = [
    lambda r: f"{r.random():.{r.randint(1, 12)}f}",
    lambda r: repr(r.random()),
    lambda r: repr(float(np.float32(r.random()))),
    lambda r: repr(r.random() * 10 ** r.randint(-30, 30)),
    lambda r: str(r.randint(0, 10 ** r.randint(1, 25))),
    lambda r: f"{r.random():.25e}",
    lambda r: f"{r.randint(0, 10**18)}.{r.randint(0, 99)}",
    lambda r: f"{r.randint(0, 999)}.{r.randint(0, 10 ** r.randint(1, 22))}",
    lambda r: f"{2 ** r.randint(40, 70)}.{r.choice(['', '5', '25', '0'])}",
    lambda r: r.choice([".5", "5.", "0", "0.0", "1e-400", "1e308", "5e-324", "2.4703282292062327e-324", "0e5"]),
    lambda r: beside(r.random(), r.randint(56, 120)),
    lambda r: "0." + midpoint(r.random())[1:],
]


def test_sides_of_random_numbers():
    source = random.Random(0)
    words = [source.choice(["", "-", "+"]) + source.choice(FORMS)(source) for _ in range(6000)]
    text = np.frombuffer(" ".join(words).encode(), np.uint8)
    stop = np.cumsum([len(word) + 1 for word in words]) - 1
    values = np.array([float(word) for word in words])
    found = sides(text, stop - [len(word) for word in words], stop, values)
    lost = [Fraction(word) - Fraction(value) for word, value in zip(words, values.tolist(), strict=True)]
    assert found.tolist() == [(number > 0) - (number < 0) for number in lost]
    assert set(found.tolist()) == {-1, 0, 1}
    assert [rounded(Fraction(word)) for word in words] == list(zip(values.tolist(), found.tolist(), strict=True))
    assert all(Fraction(decimal(word)) == Fraction(word) for word in words)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("1e309", "too large"),
        ("-1.8e308", "too large"),
        ("1e999999999", "too large"),
        ("1e-1001", "closer to 0"),
        ("1e-999999999", "closer to 0"),
        ("1." + "1" * 1000, "digits"),
        ("1" + "0" * 400, "too large"),
        ("1e-" + "9" * 30, "exponent"),
    ],
)
def test_numbers_beyond_all_use(word, reason):
    with pytest.raises(NumberRangeError, match=reason):
        decimal(word)


def test_a_zero_with_a_large_exponent_is_a_small_number():
    assert decimal("0e999999999").as_tuple().exponent == 0
    assert decimal("-0.000").is_zero()
