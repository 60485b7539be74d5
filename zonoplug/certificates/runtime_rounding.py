"""How far ONNX Runtime's numbers may lie from those of the real function, operator by operator.

The unit roundoff of the model's number type is u, its smallest normal number t, and gamma(n) = n u / (1 - n u). A sum
of n products and an offset, in any order, with or without fused multiply-add, is off by at most gamma(n + 1) times the
sum of absolute values. A few roundings more are allowed for scaling by alpha, beta or 1 / count, and for constants of
the file that are themselves computed, by one operation.

At its higher optimisation levels the runtime folds operators into their neighbours: scales and offsets by constants,
batch normalisation among them, into a product's weights, and an addition into the sum of a product before it. Folded
weights are off by a few u each, and a folded addend takes part in all roundings of the product's sum. Both are covered,
because the error of an operator is counted

    gamma(products of the longest sum it may be folded into + 4 + 4 for each constant operator next to it)

times its own sum of absolute values: what a folded evaluation computes is then what some unfolded one may compute.
In a float64 network the runtime may round a single number that scales the operand or the result of a matrix product to
float32, since it folds it into an attribute; so such a scale is charged with 2^-23, and refused if it is not of
ordinary size. Numbers that underflow, flushed to zero or not, change a term by at most t times the number it is
multiplied by.

Not covered, and assumed away: fast matrix products (Strassen, Winograd) and sums in less than the model's number type.

Source: Higham, Accuracy and Stability of Numerical Algorithms, sections 2.2 and 3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zonoplug.certificates.network import HEADROOM, Affine, Ints, Network, NumberType, Rounding
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.io.runtime_accuracy import ACCURACY

SPARE = 4  # roundings of an operator beside those of its sum, and what folding one constant operator adds
STEEPEST = 2.0**20  # slopes of functions of one variable, alpha and beta of products
SIGMOID_UNITS = ACCURACY["Sigmoid"].absolute + ACCURACY["Sigmoid"].relative  # of u, for values of at most 1
TANH_UNITS = ACCURACY["Tanh"].absolute + ACCURACY["Tanh"].relative
FOLDED_SCALE = 2.0**-23  # relative error of a single number that is rounded to float32, and multiplied by another
ORDINARY = 2.0**40  # between the inverse of this and this, three such numbers have a product in float32
CONSTANT_ROLES = ("elementwise", "scalar", "exact")


class FunctionError(NamedTuple):
    """|computed - f(x)| <= relative |f(x)| + absolute, where nothing underflows."""

    relative: float
    absolute: float


def _number_type(name: str) -> NumberType:
    facts = np.finfo(name)
    return NumberType(name, float(facts.eps) / 2, float(facts.tiny), float(facts.max))


NUMBER_TYPES = {name: _number_type(name) for name in ("float32", "float64")}


def runtime_error(kind: str, dtype: str) -> FunctionError:
    """What is assumed of ONNX Runtime's functions of one variable.

    Args:
        kind: a name of the checker's functions: "relu", "leaky relu", "clip", "sigmoid" or "tanh".
        dtype: "float32" or "float64".
    Raises:
        UnsupportedOperatorError: nothing is known of this function.
    """
    unit = NUMBER_TYPES[dtype].unit
    errors = {
        "relu": FunctionError(0.0, 0.0),
        "clip": FunctionError(0.0, 0.0),
        "leaky relu": FunctionError(2 * unit, 0.0),
        "sigmoid": FunctionError(0.0, SIGMOID_UNITS * unit),
        "tanh": FunctionError(0.0, TANH_UNITS * unit),
    }
    if kind not in errors:
        raise UnsupportedOperatorError(f"The checker of certificates knows no rounding error of {kind}.")
    return errors[kind]


def rounding_of(network: Network, dtype: str) -> Rounding:
    """What rounding does where a network is evaluated in the number type `dtype`.

    Raises:
        UnsupportedOperatorError: constants that are folded together may overflow.
    """
    kind = NUMBER_TYPES[dtype]
    affine = [block for block in network.blocks if isinstance(block, Affine)]
    owner = np.full(network.size, -1)
    before: list[list[int]] = []
    for place, block in enumerate(affine):
        earlier: Ints = np.unique(owner[block.places])
        before.append([int(number) for number in earlier if number >= 0])
        owner[block.start : block.stop] = place
    relative = {
        block.start: (_gamma(terms, kind.unit) if block.role != "exact" else 0.0) + _folded_scale(block, kind)
        for block, terms in zip(affine, _folded_terms(affine, before), strict=True)
    }
    if _largest_folded(affine, before) > kind.largest * HEADROOM:
        raise UnsupportedOperatorError(
            f"The checker does not read networks whose constants are too large for {kind.name}."
        )
    widest = max((float(block.matrix.row_sums.max(initial=0.0)) for block in affine), default=0.0)
    return Rounding(kind, relative, kind.tiny * STEEPEST * (1.0 + network.size) * (1.0 + widest))


def _gamma(terms: int, unit: float) -> float:
    product = terms * unit
    return 1.01 * product / (1.0 - product) if product < 0.5 else float("inf")


def _folded_scale(block: Affine, kind: NumberType) -> float:
    """The error of a single number's fold into an attribute, which is in float32."""
    if block.role != "scalar" or kind.name == "float32":
        return 0.0
    if not (block.matrix.largest == 0 or 1 / ORDINARY <= block.matrix.largest <= ORDINARY):
        raise UnsupportedOperatorError(
            "The checker does not read float64 networks that scale by very large or small numbers."
        )
    return FOLDED_SCALE


def _folded_terms(affine: list[Affine], before: list[list[int]]) -> list[int]:
    """Roundings that each block's sum of absolute values is charged with."""
    constant = [block.role in CONSTANT_ROLES for block in affine]
    longest, behind, ahead = ([0] * len(affine) for _ in range(3))
    for place, block in enumerate(affine):
        longest[place] = block.products
        if block.role != "product":
            longest[place] += max((longest[other] for other in before[place]), default=0)
        behind[place] = max((1 + behind[other] for other in before[place] if constant[other]), default=0)
    for place in reversed(range(len(affine))):
        if constant[place]:
            for other in before[place]:
                ahead[other] = max(ahead[other], 1 + ahead[place])
    return [longest[i] + SPARE * (1 + behind[i] + ahead[i]) for i in range(len(affine))]


def _largest_folded(affine: list[Affine], before: list[list[int]]) -> float:
    """The largest number that folding constant operators into their neighbours can make."""
    peaks: list[float] = []
    for place, block in enumerate(affine):
        own = max(1.0, block.matrix.largest, float(np.abs(block.bias).max(initial=0.0)))
        is_constant = block.role in CONSTANT_ROLES
        folded = [peaks[i] for i in before[place] if is_constant or affine[i].role in CONSTANT_ROLES]
        peaks.append(own * max(folded, default=1.0))
    return max(peaks, default=0.0)
