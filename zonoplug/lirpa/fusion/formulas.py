"""Formulas in one variable, in a normal form, so that one function written in several ways is recognised as itself.

A formula is a sum of monomials; a monomial is a number times a product of atoms; an atom is x, or a function of a
formula. Sums and products are multiplied out, and functions that others express are replaced:

    sigmoid(p) = 1/2 + tanh(p / 2) / 2,   1 / (1 + exp(p)) = sigmoid(-p),   log(1 + exp(p)) = softplus(p),
    clip(a x + b, low, high) = a clip(x + b / a, low / a, high / a)  for a > 0,   relu(p) = clip(p, 0, inf),
    relu(c - clip(p, low, high)) = c - clip(p, low, min(high, c))  for low <= c.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Formula = Mapping[tuple["Atom", ...], float]
LARGEST = 16  # monomials; what has more is no activation


class Atom(NamedTuple):
    """A function of a formula, with its numbers; or x, without either."""

    name: str
    argument: tuple[tuple[tuple[Any, ...], float], ...] = ()
    numbers: tuple[float, ...] = ()


X: Formula = {(Atom("x"),): 1.0}


class TooLargeError(Exception):
    """A formula has more monomials than any that is looked for."""


def number(value: float) -> Formula:
    """A constant."""
    return {(): value} if value else {}


def plus(*terms: Formula) -> Formula:
    """The sum."""
    total: dict[tuple[Atom, ...], float] = {}
    for term in terms:
        for atoms, factor in term.items():
            total[atoms] = total.get(atoms, 0.0) + factor
    return {atoms: factor for atoms, factor in total.items() if factor}


def times(*factors: Formula) -> Formula:
    """The product, multiplied out.

    Raises:
        TooLargeError: it has more than `LARGEST` monomials.
    """
    result: Formula = number(1.0)
    for other in factors:
        if len(result) * len(other) > LARGEST:
            raise TooLargeError
        result = plus(*({tuple(sorted(a + b, key=repr)): f * g} for a, f in result.items() for b, g in other.items()))
    return result


def scaled(factor: float, formula: Formula) -> Formula:
    """factor * formula."""
    return times(number(factor), formula)


def constant_of(formula: Formula) -> float | None:
    """The value of a formula without x; None if it has one."""
    return formula.get((), 0.0) if not any(formula) else None


def of(name: str, argument: Formula, *numbers: float) -> Formula:
    """A function of a formula."""
    if name == "sigmoid":
        return plus(number(0.5), scaled(0.5, of("tanh", scaled(0.5, argument))))
    if name in ("reciprocal", "log") and (exponent := _one_plus_exp(argument)) is not None:
        return of("sigmoid", scaled(-1.0, exponent)) if name == "reciprocal" else of("softplus", exponent)
    if name == "clip" and (slope := argument.get((Atom("x"),), 0.0)) > 0 and slope != 1.0:
        return scaled(slope, of("clip", scaled(1 / slope, argument), *(limit / slope for limit in numbers)))
    if name == "clip" and numbers == (0.0, math.inf) and (inner := _less_clip(argument)) is not None:
        return plus(number(argument.get((), 0.0)), scaled(-1.0, inner))
    key = tuple(sorted(argument.items(), key=repr))
    return {(Atom(name, key, numbers),): 1.0}


def _one_plus_exp(formula: Formula) -> Formula | None:
    """p, where the formula is 1 + exp(p)."""
    atoms = [monomial for monomial in formula if monomial]
    if len(formula) != 2 or len(atoms) != 1 or any(factor != 1.0 for factor in formula.values()):
        return None
    (monomial,) = atoms
    return dict(monomial[0].argument) if len(monomial) == 1 and monomial[0].name == "exp" else None


def _less_clip(formula: Formula) -> Formula | None:
    """clip(p, low, min(high, c)), where the formula is  c - clip(p, low, high)  with low <= c."""
    limit = formula.get((), 0.0)
    rest = [(monomial, factor) for monomial, factor in formula.items() if monomial]
    if len(rest) != 1 or rest[0][1] != -1.0 or len(rest[0][0]) != 1 or rest[0][0][0].name != "clip":
        return None
    atom = rest[0][0][0]
    low, high = atom.numbers
    return of("clip", dict(atom.argument), low, min(high, limit)) if low <= limit else None


def same(first: Formula, second: Formula, tolerance: float) -> bool:
    """Whether two formulas are one, with numbers that agree up to a relative tolerance."""
    if len(first) != len(second):
        return False
    left = dict(second)
    for atoms, factor in first.items():
        match = next((other for other in _alike(atoms, left, tolerance) if _near(factor, left[other], tolerance)), None)
        if match is None:
            return False
        del left[match]
    return True


def _alike(atoms: tuple[Atom, ...], formula: Formula, tolerance: float) -> Iterator[tuple[Atom, ...]]:
    """The products of atoms in a formula that are the given one."""
    for other in formula:
        remaining = list(other)
        for atom in atoms:
            found = next((candidate for candidate in remaining if _one_atom(atom, candidate, tolerance)), None)
            if found is None:
                break
            remaining.remove(found)
        else:
            if not remaining:
                yield other


def _one_atom(first: Atom, second: Atom, tolerance: float) -> bool:
    return (
        first.name == second.name
        and len(first.numbers) == len(second.numbers)
        and all(_near(a, b, tolerance) for a, b in zip(first.numbers, second.numbers, strict=True))
        and same(dict(first.argument), dict(second.argument), tolerance)
    )


def _near(first: float, second: float, tolerance: float) -> bool:
    return first == second or abs(first - second) <= tolerance * max(abs(first), abs(second))


def _x_times(gate: Formula) -> Formula:
    return times(X, gate)


_CUBE = times(X, X, X)
ACTIVATIONS: Mapping[str, Formula] = {
    "BoundGelu": _x_times(plus(number(0.5), scaled(0.5, of("erf", scaled(math.sqrt(0.5), X))))),
    "BoundGeluTanh": _x_times(
        of("sigmoid", scaled(math.sqrt(8 / math.pi), plus(X, scaled(0.044715, _CUBE)))),
    ),
    "BoundHardSwish": scaled(1 / 6, _x_times(of("clip", plus(X, number(3.0)), 0.0, 6.0))),
    "BoundLogSigmoid": of("log", of("sigmoid", X)),
    "BoundMish": _x_times(of("tanh", of("softplus", X))),
    "BoundSilu": _x_times(of("sigmoid", X)),
}
