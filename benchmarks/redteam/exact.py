"""VNN-LIB 1.0 in exact arithmetic: numbers as decimals, and whether a specification holds of rational values.

It shares nothing with the reader of the verifier, so that a mistake there cannot vouch for itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np

_TOKEN = re.compile(r"[()]|[^\s()]+")
_COMPARED = {
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


def decimal(value: Any) -> str:
    """A number as a decimal, exactly. Raises ValueError if it has no finite decimal expansion."""
    fraction = Fraction(value) if not isinstance(value, np.generic) else Fraction(float(value))
    context = Context(prec=1200)
    digits = context.divide(Decimal(fraction.numerator), Decimal(fraction.denominator))
    if Fraction(digits) != fraction:
        raise ValueError(f"{value} has no finite decimal expansion")
    text = format(context.normalize(digits), "f" if abs(digits.adjusted()) < 25 else "e")
    return text if any(mark in text for mark in ".eE") else f"{text}.0"


def short(value: Any, digits: int, up: bool) -> str:
    """The value rounded to a few significant decimal digits, up or down."""
    exact = Decimal(float(value))
    rounded = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR).plus(exact)
    text = format(rounded, "f" if abs(rounded.adjusted()) < 25 else "e")
    return text if any(mark in text for mark in ".eE") else f"{text}.0"


def written(value: Fraction) -> str:
    """A rational as a decimal: exactly where that is finite, else rounded down to 40 digits."""
    try:
        return decimal(value)
    except ValueError:
        context = Context(prec=40, rounding=ROUND_FLOOR)
        return format(context.divide(Decimal(value.numerator), Decimal(value.denominator)), "e")


def in_version_two(text: str, inputs: tuple[int, ...], outputs: tuple[int, ...], dtype: str) -> str:
    """A VNN-LIB 1.0 text as version 2.0, for an input and an output of these shapes."""

    def place(match: re.Match[str]) -> str:
        where = np.unravel_index(int(match[2]), inputs if match[1] == "X" else outputs)
        return f"{match[1]}[{','.join(str(int(index)) for index in where)}]"

    sides = (("input", "X", inputs), ("output", "Y", outputs))
    declared = " ".join(f"(declare-{side} {name} {dtype} {list(shape)})" for side, name, shape in sides)
    body = re.sub(r"\(declare-const[^)]*\)", "", text).strip()
    return f"(vnnlib-version <2.0>)\n(declare-network f {declared})\n" + re.sub(r"\b([XY])_(\d+)", place, body) + "\n"


class Statement:
    """The assertions of a VNN-LIB 1.0 text, to be evaluated at rational values."""

    def __init__(self, text: str) -> None:
        self._asserted = [term[1] for term in _terms(text) if term[0] == "assert"]

    def holds(self, inputs: Any, outputs: Any) -> bool:
        """Whether every assertion holds at inputs and outputs, floats taken as the rationals they are.

        Outputs that are not finite satisfy nothing.
        """
        values = {f"X_{i}": Fraction(float(value)) for i, value in enumerate(inputs)}
        if not np.isfinite(np.asarray(outputs, np.float64)).all():
            return False
        values |= {f"Y_{i}": Fraction(float(value)) for i, value in enumerate(outputs)}
        return all(_truth(term, values) for term in self._asserted)

    def allows(self, inputs: Any) -> bool:
        """Whether some outputs would make it hold: assertions about outputs are taken for true."""
        values = {f"X_{i}": Fraction(float(value)) for i, value in enumerate(inputs)}
        return all(_possible(term, values) for term in self._asserted)


def _terms(text: str) -> list[Any]:
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall(re.sub(r";[^\n]*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return stack[0]


def _truth(term: Any, values: Mapping[str, Fraction]) -> bool:
    head, *rest = term
    if head in ("and", "or"):
        return (all if head == "and" else any)(_truth(part, values) for part in rest)
    left, right = (_number(part, values) for part in rest)
    return bool(_COMPARED[head](left, right))


def _possible(term: Any, values: Mapping[str, Fraction]) -> bool:
    head, *rest = term
    if head in ("and", "or"):
        return (all if head == "and" else any)(_possible(part, values) for part in rest)
    return "Y_" in str(rest) or _truth(term, values)


def _number(term: Any, values: Mapping[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        return values[term] if term in values else Fraction(term)
    head, *rest = term
    parts = [_number(part, values) for part in rest]
    if head == "+":
        return sum(parts, Fraction(0))
    if head == "-":
        return -parts[0] if len(parts) == 1 else parts[0] - sum(parts[1:], Fraction(0))
    product = Fraction(1)
    for part in parts:
        product *= part
    return product
