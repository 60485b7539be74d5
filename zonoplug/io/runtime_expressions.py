"""How far ONNX Runtime may be from the real value of a function that a file writes as several operators.

The local errors of these operators, carried to the end of the expression: quotients, softmax and its logarithm. For
arguments and answers, and for what is covered, see `runtime_formulas`.
"""

from __future__ import annotations

import math

from zonoplug.io.runtime_accuracy import ACCURACY, FORMATS, Values, where_bounded
from zonoplug.io.runtime_formulas import gamma

MARGIN = 16.0
"""Natural logarithm of the room between sums of exponentials, or their reciprocals, and the ends of the format."""


def factor_error(kind: str, product: Values, left: Values, right: Values) -> Values:
    """x y,  of two activations, one of which may be flushed.

    Args:
        kind: of the operands.
        product, left, right: upper bounds of |x y|, |x| and |y|.
    """
    return ACCURACY["Mul"].error(kind, product) + (left + right) * FORMATS[kind].tiny


def quotient_error(kind: str, quotient: Values, numerator: Values, least: Values) -> Values:
    """x / y,  as a division (2 units) or as the product (1) of x with the reciprocal (2) of y.

    A reciprocal below the format's range is lost, which moves the product by that times |x|; x may be flushed too.

    Args:
        kind: of the operands.
        quotient, numerator: upper bounds of |x / y| and |x|.
        least: a lower bound of |y|; the answer is infinite where 1 / y may overflow.
    """
    form = FORMATS[kind]
    error = quotient * (4 * form.unit) + form.tiny * (8 + 4 * numerator + 4 / (least + form.tiny))
    error = where_bounded(error, quotient, form.largest / 2)
    return where_bounded(error, -least, -4 * form.tiny)


def plain_softmax_error(kind: str, terms: int, value: Values, reach: Values) -> Values:
    """exp(x) / sum of exp(x),  from which the largest x is not taken off.

    Two exponentials (6 units each), a sum, and a quotient. Numbers that are flushed count relative to the least
    exponential, and in the reciprocal of the sum relative to the largest one.

    Args:
        kind: of the operands.
        terms: of the sum.
        value: an upper bound of the result.
        reach: an upper bound of |x| over the terms; the answer is infinite where exponentials may overflow or vanish.
    """
    form = FORMATS[kind]
    error = value * (gamma(kind, terms + 24) + _flushed(kind, terms, reach)) + 8 * form.tiny
    return where_bounded(error, reach, _limit(kind, terms))


def log_of_softmax_error(kind: str, terms: int, magnitude: Values) -> Values:
    """ln(softmax(x)),  in two nodes.

    Let x lie d below the largest. Its exponential errs by its own units and by |d| for the rounding of d, and |d| is at
    most |ln(softmax)|. So relative to itself the softmax errs by 2 n + 24 + |ln(softmax)| units, unless it is flushed.

    Args:
        kind: of the operands.
        terms: of the sum.
        magnitude: an upper bound of |ln(softmax(x))|; the answer is infinite where the softmax may vanish.
    """
    form = FORMATS[kind]
    share = (magnitude + (2.0 * terms + 24.0)) * (1.01 * form.unit) + 16 * form.tiny * math.e**magnitude
    return where_bounded(ACCURACY["Log"].error(kind, magnitude) + 2 * share, share, 0.25)


def less_log_sum_error(kind: str, terms: int, magnitude: Values, reach: Values) -> Values:
    """x - ln(sum of exp(x)),  with ReduceLogSumExp or in single steps.

    Exponentials and their sum err by n + 7 units, the logarithm L by 8 units of |L| <= reach + ln(n), ReduceLogSumExp
    by 4 |L| + 2 n + 24, and the difference by one of itself. Where the largest x is taken off first, in a node of its
    own, that rounds x by at most one unit of the result, and L by ln(n) units; exponentials then have sums from 1 to n.

    Args:
        kind: of the operands.
        terms: of the sum.
        magnitude: an upper bound of the absolute result.
        reach: an upper bound of |x| over the terms, 0 where the largest is taken off first; the answer is infinite
            where exponentials may overflow or vanish.
    """
    form = FORMATS[kind]
    units = 2 * magnitude + 8 * (reach + math.log(terms)) + (2.0 * terms + 32.0)
    error = units * (1.01 * form.unit) + 2 * _flushed(kind, terms, reach) + 8 * form.tiny
    error = where_bounded(error, reach + magnitude * 0.0, _limit(kind, terms))
    return where_bounded(error, magnitude * 0.0 + terms * form.unit, 1e-3)


def _flushed(kind: str, terms: int, reach: Values) -> Values:
    """What flushed numbers cost a sum of exponentials of |x| <= reach or its reciprocal, relative to it."""
    return 16.0 * terms * FORMATS[kind].tiny * math.e**reach


def _limit(kind: str, terms: int) -> float:
    """Up to this |x|, sums of exponentials and their reciprocals keep away from the ends of the format."""
    return math.log(FORMATS[kind].largest) - math.log(terms) - MARGIN
