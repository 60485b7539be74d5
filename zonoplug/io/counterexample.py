"""Writing a counterexample in the words of the VNN-COMP results file."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonoplug.errors import SettingError
from zonoplug.specification import Bools, Floats, Specification, Variable, element_name

Reals = NDArray[np.floating[Any]]

_TYPES: dict[str, type[np.floating[Any]]] = {"float16": np.float16, "float32": np.float32, "real": np.float32}


def format_counterexample(specification: Specification, inputs: Reals, outputs: Reals) -> str:
    """The point as the results file wants it below the word "sat", without a final line feed.

    Version 1.0:  ((X_0 v), (X_1 v), ..., (Y_0 v)), without the commas, a pair a line.  Version 2.0: per variable a line
    such as `X float32 [1,5]`, then one value a line in C order.

    A value is the shortest decimal that gives the same number when it is read into the variable's type; float64 is
    taken where an array holds numbers that the declared type does not have (version 1.0 does not name the type). An
    input whose shortest decimal would cross its bound, while the number itself does not, is written to float64
    precision instead, or with all its digits, so that it is inside the bounds for a reader of decimals too.

    Args:
        specification: what the point violates.
        inputs: (inputs,) or any shape with as many elements, finite.
        outputs: (outputs,) or any shape with as many elements.

    Raises:
        SettingError: wrong number of elements, or an input that is not finite.
    """
    point = _flat("inputs", inputs, specification.num_inputs)
    values = _flat("outputs", outputs, specification.num_outputs)
    if not np.isfinite(point).all():
        raise SettingError("A counterexample's inputs must be finite.")
    written = [
        (specification.inputs, _written_inputs(specification, point, values)),
        (specification.outputs, _shortest(values, specification.outputs)),
    ]
    if specification.version == "1.0":
        names = [[element_name("1.0", variable, k) for k in range(len(words))] for variable, words in written]
        pairs = [
            f"({name} {word})"
            for some, (_, words) in zip(names, written, strict=True)
            for name, word in zip(some, words, strict=True)
        ]
        return "(" + "\n ".join(pairs) + ")"
    lines = []
    for variable, words in written:
        lines.append(f"{variable.name} {variable.dtype} [{','.join(map(str, variable.shape))}]")
        lines.extend(words)
    return "\n".join(lines)


def _flat(noun: str, values: Reals, count: int) -> Floats:
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    if flat.size != count:
        raise SettingError(f"The counterexample has {flat.size} {noun}, the specification declares {count}.")
    return flat


def _shortest(values: Floats, variable: Variable) -> list[str]:
    kind = _TYPES.get(variable.dtype, np.float64)
    with np.errstate(over="ignore"):
        rounded = values.astype(kind)
    typed = rounded if np.array_equal(rounded.astype(np.float64), values, equal_nan=True) else values
    return [_decimal(value) for value in typed]


def _decimal(value: np.floating[Any]) -> str:
    return np.format_float_positional(value, trim="0")


def _written_inputs(specification: Specification, point: Floats, outputs: Floats) -> list[str]:
    words = _shortest(point, specification.inputs)
    box = _box_of(specification, point, outputs)
    lower, upper = specification.lower[box], specification.upper[box]
    read = np.array([float(word) for word in words])
    for k in np.flatnonzero(~((lower < read) & (read < upper)) & _allowed(specification, box, point)):
        words[k] = _inside(words[k], point[k], float(lower[k]), float(upper[k]))
    return words


def _inside(word: str, value: np.floating[Any], lower: float, upper: float) -> str:
    """The shortest of some decimals that give `value` and lie, as it does, within bounds; these are their nearest.

    A decimal strictly inside after rounding to float64 is inside, whatever decimals the bounds were rounded from.
    """
    exact = Decimal(float(value))
    for candidate in (word, _decimal(value)):
        if lower < float(candidate) < upper or Decimal(candidate) == exact:
            return candidate
    written = format(exact, "f")
    return written if "." in written else written + ".0"


def _box_of(specification: Specification, point: Floats, outputs: Floats) -> int:
    """The box of the disjunct that the point violates; if it violates none, the box it is nearest to."""
    disjunct = specification.violated_by(point, outputs)
    if disjunct is not None:
        return int(specification.box_of_disjunct[disjunct])
    outside = np.maximum(specification.lower - point, point - specification.upper).max(axis=1)
    return int(outside.argmin())


def _allowed(specification: Specification, box: int, point: Floats) -> Bools:
    """Which coordinates (inputs,) are within the bounds of a box."""
    lower, upper = specification.lower[box], specification.upper[box]
    allowed: Bools = (point >= lower) & (point <= upper)
    if specification.open_lower is not None:
        allowed &= ~(specification.open_lower[box] & (point == lower))
    if specification.open_upper is not None:
        allowed &= ~(specification.open_upper[box] & (point == upper))
    return allowed
