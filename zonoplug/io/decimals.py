"""Decimal texts as numbers: the float64 nearest to each, and on which side of it the number as written lies.

With both, a number as written compares exactly with any float of at most 64 bits: what lies below the nearest float64
lies below the number too, and at that float64 the side decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zonoplug.exact_rows import Signs

MAX_DIGITS: Final = 1000
LEAST_EXPONENT: Final = -1000  # of ten; what overflows float64 is refused at the other end
MAX_BITS: Final = 20_000

_ORDINARY = 300
_TEXT_LENGTH = 24
_POWERS = 10.0 ** np.arange(23)  # exact in float64
_EXACT_SHORT = 2.0**50
_EXACT_LONG = 9e18
_SPLITTER = 134217729.0  # 2^27 + 1

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class NumberRangeError(Exception):
    """A number that no specification needs; the readers turn it into a SpecificationError, which says where."""


def decimal(word: str) -> Decimal:
    """A finite decimal number such as -1, .5, 5. or 1e-05, exactly.

    Raises:
        NumberRangeError: it overflows float64, is closer to 0 than 1e-1000 (and not 0), or has too many digits.
    """
    try:
        value = Decimal(word) if len(word) <= 2 * MAX_DIGITS else None
    except InvalidOperation:
        value = None
    if value is None or (len(word) > MAX_DIGITS and len(value.as_tuple().digits) > MAX_DIGITS):
        raise NumberRangeError(f"has more than {MAX_DIGITS} digits, or an exponent beyond all use")
    exponent = value.adjusted()
    if not -_ORDINARY < exponent < _ORDINARY:
        if not value:
            return Decimal(0)
        if math.isinf(float(word)):
            raise NumberRangeError("is too large for float64")
        if exponent < LEAST_EXPONENT:
            raise NumberRangeError(f"is closer to 0 than 1e{LEAST_EXPONENT}")
    return value


def side(exact: Decimal, nearest: float) -> int:
    """The sign of `exact - nearest`: -1, 0 or 1."""
    binary = Decimal(nearest)
    return (exact > binary) - (exact < binary)


def rounded(exact: Fraction) -> tuple[float, int]:
    """The float64 nearest to a rational, and the sign of what is lost.

    Raises:
        NumberRangeError: it overflows float64.
    """
    try:
        nearest = exact.numerator / exact.denominator
    except OverflowError:
        raise NumberRangeError("a number is too large for float64") from None
    lost = exact - Fraction(nearest)
    return nearest, (lost > 0) - (lost < 0)


def sides(text: Bytes, start: Ints, stop: Ints, values: Floats) -> Signs:
    """On which side of `values`, the nearest float64, the numbers in a text lie: (n,) in {-1, 0, 1}.

    Args:
        text: with well-formed, finite decimal numbers at text[start[k]:stop[k]], start ascending.
        values: (n,) what float() makes of them.
    Raises:
        NumberRangeError: as `decimal`.
    Cost: about 0.1 us for each number of up to 18 digits without an exponent, 1 us for others.
    """
    result = np.zeros(values.size, np.int8)
    # What rounds to a moderate whole number and has up to 15 digits is that number; underflow takes 6 letters.
    size, length = np.abs(values), stop - start
    left = np.flatnonzero((values != np.rint(values)) | (length > np.where(size == 0, 5, 16)) | (size >= _EXACT_SHORT))
    if left.size:
        result[left] = _sides(text, start[left], stop[left], size[left])
        result[np.signbit(values)] *= -1
    return result


def text_sides(words: Sequence[str], values: Floats) -> Signs:
    """`sides` of numbers that are words."""
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    stop = np.cumsum(lengths + 1) - 1
    text = np.frombuffer((" ".join(words) + " ").encode(), np.uint8)
    return sides(text, stop - lengths, stop, values)


def _sides(text: Bytes, start: Ints, stop: Ints, size: Floats) -> Signs:
    """`sides` of the absolute values `size`."""
    dot = _first_behind(text == ord("."), start)
    decimals = np.where(dot < stop, stop - dot - 1, 0)
    plain = (_first_behind((text | 0x20) == ord("e"), start) >= stop) & (stop - start <= _TEXT_LENGTH)
    plain &= decimals < _POWERS.size
    power = _POWERS[np.where(plain, decimals, 0)]
    digits = np.where(plain, size, 0.0) * power
    short = plain & (digits < _EXACT_SHORT)
    long = plain & ~short & (digits < _EXACT_LONG)
    result = np.zeros(size.size, np.int8)
    # The digits as a whole number m are |value| * 10^decimals, but for less than 0.3: rounding gives m.
    result[short] = _compared(np.rint(digits[short]), size[short], power[short])
    if long.any():
        whole = _whole_numbers(text, start[long], stop[long])
        result[long] = _compared(whole, size[long], power[long])
    for k in np.flatnonzero(~(short | long)).tolist():
        word = text[start[k] : stop[k]].tobytes().decode()
        result[k] = side(decimal(word).copy_abs(), float(size[k]))  # abs() rounds to 28 digits
    return result


def _first_behind(marks: Bools, start: Ints) -> Ints:
    """The first marked place at or behind each start; the end of the text where there is none."""
    places = np.append(np.flatnonzero(marks), marks.size)
    if places.size == 1:
        return np.full(start.size, marks.size, np.int64)
    found: Ints = places[np.searchsorted(places, start)]
    return found


def _compared(whole: NDArray[np.float64] | Ints, size: Floats, power: Floats) -> Signs:
    """The sign of  whole - size * power, exactly, where both agree to a few units in the last place."""
    product = size * power
    error = _product_error(size, power, product)
    difference = whole - product
    if whole.dtype == np.int64:
        # Products from 2^52 on are whole numbers; below, `whole` is exact in float64.
        large = product >= 2.0**52
        exact = whole - np.where(large, product, 0.0).astype(np.int64)
        difference = np.where(large, exact.astype(np.float64), difference)
    signs: Signs = (difference > error).astype(np.int8) - (difference < error)
    return signs


def _product_error(a: Floats, b: Floats, product: Floats) -> Floats:
    """a * b - product exactly, for the rounded product of numbers far from over- and underflow.

    Source: T. J. Dekker, A floating-point technique for extending the available precision, 1971.
    """
    high_a, high_b = (_high_half(value) for value in (a, b))
    low_a, low_b = a - high_a, b - high_b
    return ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b


def _high_half(value: Floats) -> Floats:
    scaled = _SPLITTER * value
    return scaled - (scaled - value)


def _whole_numbers(text: Bytes, start: Ints, stop: Ints) -> Ints:
    """The digits of each number as one whole number below 2^63, without sign and dot."""
    whole = np.zeros(start.size, np.int64)
    length = stop - start
    for k in range(int(length.max(initial=0))):
        digit = text[np.minimum(start + k, text.size - 1)] - np.uint8(ord("0"))
        whole = np.where((digit <= 9) & (k < length), whole * 10 + digit, whole)
    return whole
