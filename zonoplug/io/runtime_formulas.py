"""How far ONNX Runtime may be from the real value where an operator is composed of sums, products and functions.

Each function bounds the local error of one operator: |computed - f(x)| at the operands as they are, in any order of
summation, with or without fused multiply-add, flushing subnormal numbers or not, at any optimisation level. Arguments
are bounds over a box, of the operands as they are computed, and may be NumPy arrays or torch tensors of float64, of
shapes that broadcast; the answer is infinite where an intermediate result may overflow or lose all its digits. `kind`
is "float32" or "float64"; `terms` is the number of terms of one sum.

Sums are bounded in the usual way: every order of n terms errs by at most gamma_n times the sum of absolute values,
gamma_n = n u / (1 - n u). A few roundings are added to n for what a runtime folds into the weights (see FOLDED).
"""

from __future__ import annotations

import math

from zonoplug.io.runtime_accuracy import ACCURACY, FORMATS, Accuracy, Values, where_bounded

FOLDED = 16
"""Roundings of a weight before it is used: batch normalization (5), and factors, offsets and scales that the runtime
multiplies into the weights of MatMul, Gemm and Conv. Each takes one or two; longer chains are nobody's."""

HEADROOM = 2.0**60
"""Folded factors may be as large as 2^30, two of them (check_runtime refuses larger ones): so much may a flushed
product be enlarged afterwards, and an intermediate result be larger than the sum of absolute values."""


def gamma(kind: str, terms: int) -> float:
    """n u / (1 - n u): the relative error of n roundings in any order; infinite from n u = 1/2 on."""
    roundings = terms * FORMATS[kind].unit
    return roundings / (1.0 - roundings) if roundings < 0.5 else math.inf


def sum_error(kind: str, total: Values, terms: int) -> Values:
    """ReduceSum, ReduceL1, Sum, CumSum: any sum of numbers of the format.

    Args:
        kind: of the numbers.
        total: an upper bound of the sum of their absolute values.
        terms: their number.
    """
    form = FORMATS[kind]
    return where_bounded(gamma(kind, terms + 1) * total + terms * form.tiny, total, form.largest / 2)


def mean_error(kind: str, total: Values, terms: int) -> Values:
    """ReduceMean, AveragePool, GlobalAveragePool, Mean; `total` as for a sum, not divided by `terms`."""
    form = FORMATS[kind]
    error = gamma(kind, terms + 6) * (total * (1.0 / terms)) + 4 * form.tiny
    return where_bounded(error, total, form.largest / 2)


def product_sum_error(kind: str, total: Values, terms: int, operands: Values = 0.0) -> Values:
    """MatMul, Gemm, Conv, ConvTranspose, Einsum of two operands: sums of products, with a bias and what was folded.

    For Einsum of k operands, add k to `terms`; for a dynamic product of two activations, `operands` is not needed.

    Args:
        kind: of the operands.
        total: an upper bound of sum |w| |x| + |bias|, with the factors alpha and beta of Gemm.
        terms: products in one sum.
        operands: an upper bound of the sum of |x|: a folded weight may be flushed.
    """
    form = FORMATS[kind]
    flushed = (operands + float(terms)) * (form.tiny * HEADROOM)
    return where_bounded(gamma(kind, terms + FOLDED) * total + flushed, total, form.largest / HEADROOM / 2)


def square_sum_error(kind: str, total: Values, terms: int) -> Values:
    """ReduceSumSquare: `total` bounds the sum of squares from above."""
    form = FORMATS[kind]
    return where_bounded(gamma(kind, terms + 4) * total + 2 * terms * form.tiny, total, form.largest / 2)


def product_error(kind: str, magnitude: Values, partial: Values, terms: int) -> Values:
    """ReduceProd.

    Args:
        kind: of the factors.
        magnitude: an upper bound of the product of |x|.
        partial: an upper bound of the product of max(1, |x|): no partial product is larger.
        terms: number of factors.
    """
    form = FORMATS[kind]
    flushed = partial * (2 * terms * form.tiny)
    return where_bounded(gamma(kind, terms + 1) * magnitude + flushed, partial, form.largest / 2)


def norm_error(kind: str, norm: Values, terms: int, p: int = 2) -> Values:
    """ReduceL2, LpPool, GlobalLpPool:  (sum |x|^p)^(1/p).  `norm` bounds it from above; p >= 1.

    The exponent 1/p is rounded too, which counts |ln(sum)| / p units, at most |ln(largest)| / p.
    """
    form = FORMATS[kind]
    exponent = 0.0 if p in (1, 2) else math.log(form.largest) / p
    roundings = terms + 12 + 4 * p + math.ceil(exponent)
    lost = (4.0 * terms * form.tiny) ** (1.0 / p)
    return where_bounded(gamma(kind, roundings) * norm + lost, norm, (form.largest / 4) ** (1.0 / p))


def log_sum_error(kind: str, magnitude: Values, total: Values, least: Values, terms: int) -> Values:
    """ReduceLogSum:  ln(sum x).

    Args:
        kind: of the numbers.
        magnitude: an upper bound of |ln(sum x)|.
        total: an upper bound of the sum of absolute values.
        least: a lower bound of the sum; the error is infinite unless it is far above the error of the sum.
        terms: their number.
    """
    return logarithm_error(kind, magnitude, least, sum_error(kind, total, terms))


def logarithm_error(kind: str, magnitude: Values, least: Values, lost: Values) -> Values:
    """ln(x)  of an x that is computed with an error.

    Args:
        kind: of the numbers.
        magnitude: an upper bound of |ln(x)|.
        least: a lower bound of x; the answer is infinite unless it is at least twice `lost`.
        lost: the error of x.
    """
    safe = (least + abs(least)) / 2.0 + lost  # at least 2/3 of what x may be where the answer is finite
    error = ACCURACY["Log"].error(kind, magnitude) + 3.0 * lost / (safe + FORMATS[kind].tiny)
    return where_bounded(error, lost * 2.0 - least, 0.0)


def softmax_accuracy(terms: int) -> Accuracy:
    """Softmax of n terms:  unit ((2 n + 24) y + 1/2),  n of all that is summed (flattened for operator sets below 13).

    The largest x is taken off first. Then exp(d) for d <= 0 errs by its own units and by those of d, and |d| exp(d) is
    at most 1/e; the relative error of the sum is n units, plus the mean of |d| under y, which is at most ln(n).
    """
    return Accuracy(2.0 * terms + 24.0, 0.5)


def log_softmax_accuracy(terms: int) -> Accuracy:
    """LogSoftmax of n terms:  unit (4 |y| + 2 n + 24).  |y| is at least the distance from the largest x."""
    return Accuracy(4.0, 2.0 * terms + 24.0)


def log_sum_exp_accuracy(terms: int) -> Accuracy:
    """ReduceLogSumExp of n terms, the largest taken off first:  unit (4 |y| + 2 n + 24)."""
    return Accuracy(4.0, 2.0 * terms + 24.0)


def batch_normalization_error(kind: str, product: Values, shift: Values, bias: Values) -> Values:
    """BatchNormalization:  k x + (bias - k mean),  k = scale / sqrt(variance + epsilon), computed in any order.

    Args:
        kind: of the operands.
        product: an upper bound of |k x|.
        shift: |k mean|.
        bias: |bias|.
    """
    form = FORMATS[kind]
    total = product + shift + bias
    return where_bounded(gamma(kind, 12) * total + form.tiny * HEADROOM, total, form.largest / HEADROOM)


def normalization_error(
    kind: str,
    terms: int,
    mean_square: Values,
    ratio: Values,
    value: Values,
    least: Values,
    scale: Values,
    bias: Values,
    cancels: bool,
) -> Values:
    """Layer, skip-layer, instance and group normalization:  (x - mean) / sqrt(variance + epsilon) scale + bias.

    The mean errs by gamma_n times the root of the mean square. The variance, as the mean of (x - mean)^2, errs
    relative to itself and by the square of the mean's error; as the mean of x^2 less the square of the mean
    (`cancels`), by gamma_n times the mean square, which may be more than all of it. Both count in units of
    variance + epsilon, of which the mean square is the multiple `ratio`.

    Args:
        kind: of the operands.
        terms: numbers that are normalized together.
        mean_square: an upper bound of the mean of x^2 over them.
        ratio: an upper bound of (the mean of x^2) / (variance + epsilon), such as mean_square / least.
        value: an upper bound of |x - mean| / sqrt(variance + epsilon), for each element.
        least: a positive lower bound of variance + epsilon.
        scale: |scale|, of each element (for skip-layer normalization x is the sum, which the runtime rounds first).
        bias: |bias|, of each element.
        cancels: whether the variance may be computed as a difference (see `variance_cancels`).
    """
    form = FORMATS[kind]
    root = ratio**0.5
    shift = gamma(kind, terms + 6) * root + 4 * form.tiny * least**-0.5
    lost = gamma(kind, 4 * terms + 24) * ratio if cancels else shift * shift * 1.1
    relative = lost + 4 * form.tiny / least + gamma(kind, terms + 24)  # of variance + epsilon
    error = ((shift + root * (8 * form.unit)) * 1.5 + value * relative * 1.5) * scale
    error = error + (value * scale + bias) * (4 * form.unit) + 8 * form.tiny
    # An operand is at most the root of (terms * mean_square): neither its square nor their sum overflows.
    error = where_bounded(error, mean_square * float(terms), form.largest / 4)
    error = where_bounded(error, relative, 0.3)
    reach = mean_square**0.5 * least**-0.5 * scale * math.sqrt(terms)  # of the parts, before the mean is off
    return where_bounded(error, reach + value * scale + bias, form.largest / 8)


def rms_normalization_error(
    kind: str, terms: int, mean_square: Values, value: Values, least: Values, scale: Values = 1.0
) -> Values:
    """RMSNormalization, SimplifiedLayerNormalization:  x / sqrt(mean(x^2) + epsilon) scale,  in one node or several.

    As a power (4 units), a mean, a sum, a root (2), a division (2, or 3 with the reciprocal by itself) and the scale,
    it errs by fewer units than are counted here. A square that is flushed is lost in the mean, an operand in x.

    Args:
        kind: of the operands.
        terms: numbers that are normalized together.
        mean_square: an upper bound of the mean of x^2.
        value: an upper bound of the absolute result.
        least: a positive lower bound of mean(x^2) + epsilon.
        scale: |scale|, of each element.
    """
    form = FORMATS[kind]
    relative = gamma(kind, terms + 24) + 8 * form.tiny / least
    error = value * relative + form.tiny * (8 + 4 * scale * least**-0.5)
    error = where_bounded(error, mean_square * float(terms), form.largest / 4)
    error = where_bounded(error, value, form.largest / 8)
    return where_bounded(error, relative, 0.3)


def lp_normalization_error(kind: str, terms: int, norm: Values, least: Values) -> Values:
    """LpNormalization, p = 1 or 2:  x / norm(x).  `norm` and `least` bound the norm from above and below."""
    form = FORMATS[kind]
    floor = (4.0 * terms * form.tiny) ** 0.5 / form.unit
    error = norm * 0.0 + gamma(kind, terms + 16)
    return where_bounded(where_bounded(error, norm, (form.largest / 4) ** 0.5), -least, -floor)


def resize_linear_error(kind: str, magnitude: Values, step: Values, lengths: tuple[int, ...]) -> Values:
    """Resize and Upsample, mode linear, without antialiasing.

    Coordinates and weights are computed in float32, whatever the format: a coordinate below L errs by a few units of
    L + 2, and the interpolant is continuous, so its value errs by so much times the largest step between neighbours.

    Args:
        kind: of the operand.
        magnitude: an upper bound of |x| over the neighbours.
        step: an upper bound of the difference of neighbours along one axis, over the neighbours (2 |x| will do).
        lengths: of the axes that are interpolated, the longer of operand and result.
    """
    form = FORMATS[kind]
    coordinate = sum(8.0 * (length + 2) for length in lengths) * FORMATS["float32"].unit
    error = step * coordinate + magnitude * (16 * len(lengths) * form.unit)
    return where_bounded(error + 8 * form.tiny, magnitude, form.largest / 8)
