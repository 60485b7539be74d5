"""What is assumed of ONNX Runtime's elementwise operators: how far a computed value may be from the real function's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Values = Any
"""A float64 NumPy array, a float64 torch tensor, or a number; functions of values return the same kind."""


@dataclass(frozen=True)
class Format:
    """A binary number format.

    Attributes:
        unit: the unit roundoff, half the distance from 1 to the next number.
        tiny: the smallest normal number; what is smaller may be flushed to zero.
        largest: the largest finite number.
    """

    unit: float
    tiny: float
    largest: float


FORMATS = {
    "float32": Format(2.0**-24, 2.0**-126, float(np.finfo(np.float32).max)),
    "float64": Format(2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max)),
}
FLUSHED = 4.0  # smallest normal numbers that an elementwise operator may lose altogether
_ONNX_TYPE = {"float32": 1, "float64": 11}


@dataclass(frozen=True)
class Accuracy:
    """One assumption:  |computed - f(x)|  <=  unit (relative |f(x)| + absolute + operand |x|)  +  4 tiny.

    It holds for every x of the format for which f(x) is defined and is at most half the largest finite number, in any
    kernel of the operator, at any optimisation level and any length of the vector. If numbers below `tiny` are flushed
    to zero on the way in, f is taken at the flushed operand, which is within `tiny` of x: whoever bounds f over a box
    widens the box by `tiny` first.

    Attributes:
        relative: units of |f(x)|.
        absolute: units of 1.
        operand: units of |x|.
    """

    relative: float
    absolute: float = 0.0
    operand: float = 0.0

    def error(self, kind: str, magnitude: Values, operand: Values = 0.0) -> Values:
        """The largest error, infinite where the value may overflow.

        Args:
            kind: "float32" or "float64".
            magnitude: an upper bound of |f(x)|, any shape.
            operand: an upper bound of |x|, same shape; needed where `operand` is not zero.
        """
        form = FORMATS[kind]
        units = self.relative * magnitude + self.absolute + self.operand * operand
        return where_bounded(units * form.unit + FLUSHED * form.tiny, magnitude, form.largest / 2)


def where_bounded(error: Values, values: Values, limit: float) -> Values:
    """`error` where values <= limit, infinity where they are larger or not numbers."""
    if isinstance(values, (float, int, np.ndarray, np.generic)):
        return np.where(np.asarray(values) <= limit, error, np.inf)
    return (error + values * 0.0).where(values <= limit, math.inf)


EXACT, ROUNDED = Accuracy(0.0), Accuracy(1.0)
"""Results that are numbers of the format already; results rounded once, as the standard of floating point requires."""

# In units of the last place, by ONNX operator type. At least twice what was measured (benchmarks/runtime_accuracy.py
# against references in higher precision), but for operators that the standard of floating point defines.
# Of Erf, Tanh and Sigmoid, and of a division, more is assumed: 8 units of the operand of the three, and one rounding
# of the quotient (x times the reciprocal). So a fused kernel (Gelu, QuickGelu, LayerNormalization, FusedMatMul) that
# computes the same expression with other constants folded in stays within the sum of what its parts may do.
ACCURACY: dict[str, Accuracy] = {
    "Exp": Accuracy(6),
    "Log": Accuracy(8),
    "Sqrt": Accuracy(2),
    "Reciprocal": Accuracy(2),
    "Sigmoid": Accuracy(0, 8),  # clamped: its tail is not accurate relative to itself
    "Tanh": Accuracy(20),
    "Erf": Accuracy(12),
    "Softplus": Accuracy(12),
    "Softsign": Accuracy(10),
    "Elu": Accuracy(4, 4),  # alpha (exp(x) - 1) cancels near 0
    "Selu": Accuracy(4, 8),
    "Celu": Accuracy(4, 4),
    "HardSigmoid": Accuracy(2, 6),
    "HardSwish": Accuracy(6, 12),
    "Mish": Accuracy(20),
    "Gelu": Accuracy(4, 0, 4),  # x (1 + erf) / 2 cancels for negative x
    "Gelu:tanh": Accuracy(4, 0, 12),
    "Swish": Accuracy(4, 0, 10),
    "Sin": Accuracy(0, 12),
    "Cos": Accuracy(0, 12),
    "Tan": Accuracy(4),
    "Asin": Accuracy(20),
    "Acos": Accuracy(12),
    "Atan": Accuracy(12),
    "Sinh": Accuracy(8),
    "Cosh": Accuracy(8),
    "Asinh": Accuracy(6),
    "Acosh": Accuracy(6),
    "Atanh": Accuracy(6),
    "Pow": Accuracy(4),  # any constant exponent; 2, 3, 1/2 and -1 may be a product, a root or a quotient
    "PRelu": Accuracy(1),
    "LeakyRelu": Accuracy(2),
    "ThresholdedRelu": EXACT,
    "Add": ROUNDED,
    "Sub": ROUNDED,
    "Mul": ROUNDED,
    "Div": Accuracy(2),
    "Cast": ROUNDED,  # float64 to float32, in units of float32; exact from float32 to float64
    **dict.fromkeys(("Abs", "Neg", "Relu", "Clip", "Max", "Min", "Where", "Identity", "Dropout"), EXACT),
    **dict.fromkeys(("Floor", "Ceil", "Round", "Sign", "Mod"), EXACT),  # of the operand as it was computed: they jump
}

# Of these, the assumption was tested in float64 too. ONNX Runtime has no float64 kernel for the others, or replaces
# them by several operators with float32 constants, according to the operator set of the file.
DOUBLE = frozenset(
    "Exp Log Sqrt Reciprocal Sigmoid Tanh Swish Sin Cos Pow Add Sub Mul Div Cast Abs Neg Relu Clip Max Min Where"
    " Identity Dropout Floor Ceil Round Sign Mod".split()
)


def accuracy_of(operator: str, attributes: Mapping[str, Any], kind: str) -> Accuracy | None:
    """What is assumed of an elementwise operator with these attributes; None if nothing is known of it.

    Args:
        operator: ONNX operator type, without a domain.
        attributes: of the node; those left out have their ONNX defaults.
        kind: "float32" or "float64", the type of the result.
    """
    if operator not in ACCURACY or (kind != "float32" and operator not in DOUBLE):
        return None
    known = ACCURACY[operator]
    if operator == "Cast" and attributes.get("to", kind) not in (kind, _ONNX_TYPE[kind]):
        return None  # a jump: to an integer, a truth value or a shorter format
    if operator == "Gelu":
        return ACCURACY["Gelu:tanh"] if attributes.get("approximate") in ("tanh", b"tanh") else known
    if operator in ("Elu", "Celu"):
        alpha = float(attributes.get("alpha", 1.0))
        if operator == "Celu" and alpha <= 0:
            return None  # exp(x / alpha) grows with the rounding of x / alpha
        return Accuracy(known.relative, known.absolute * abs(alpha))
    if operator == "Selu":
        alpha, gamma = float(attributes.get("alpha", 1.67326319)), float(attributes.get("gamma", 1.05070102))
        return Accuracy(known.relative, 5 * abs(alpha * gamma))
    if operator == "HardSigmoid":  # beta + alpha x lies in [0, 1] where it is not clipped
        return Accuracy(known.relative, 4 + 4 * abs(float(attributes.get("beta", 0.5))))
    return known
