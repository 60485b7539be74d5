"""Host operators of several perturbed values: products, quotients, maxima, pooling, softmax.

Where one operand is a constant, products and quotients are exact and served by `operators_exact`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

from torch import Tensor

from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.lirpa import operators_elementwise, operators_exact  # noqa: F401 - their entries come first
from zonoplug.lirpa.table import Call, NotApplicableError, reduced, transforms
from zonoplug.transformers import bilinear, log_sum_exp, matrix_product, norms, pooling, softmax
from zonoplug.transformers.affine import Operand
from zonoplug.transformers.enclosure import Enclosure


def _pair(call: Call) -> tuple[Interval | None, Interval | None]:
    left, right = call.hulls
    return left, right


@transforms("BoundMul", kind="composition", after=True)
def _multiply(call: Call) -> Enclosure:
    left, right = call.operands
    if not isinstance(left, Zonotope) or not isinstance(right, Zonotope):
        raise NotApplicableError
    return bilinear.product(left, right, call.source, call.node.name, call.form, _pair(call))


@transforms("BoundDiv", kind="composition", after=True)
def _divide(call: Call) -> Enclosure:
    numerator, denominator = call.operands
    if not isinstance(denominator, Zonotope):
        raise NotApplicableError
    return bilinear.divide(numerator, denominator, call.source, call.node.name, call.form, _pair(call))


@transforms("BoundNormalization", kind="composition")
def _normalize(call: Call) -> Enclosure:
    numbers = call.node.attr
    axes, epsilon, centered = numbers["axes"], numbers["epsilon"], numbers["centered"]
    zonotope, hull = call.operands[0], call.hulls[0]  # what the mean was taken off is of no interest here
    if not isinstance(zonotope, Zonotope):
        raise NotApplicableError
    return norms.normalize(zonotope, axes, epsilon, centered, call.source, call.node.name, call.form, hull)


@transforms("BoundMatMul", kind="composition", after=True)
def _matrix_product(call: Call) -> Enclosure:
    left, right = call.operands
    if not isinstance(left, Zonotope) or not isinstance(right, Zonotope):
        raise NotApplicableError
    if left.center.dim() < 3 or left.center.dim() != right.center.dim():  # the batch axis would be part of the matrices
        raise NotApplicableError
    return matrix_product.matrix_product(left, right, call.source, call.node.name, call.form, _pair(call))


@transforms("BoundMaxPool", kind="composition")
def _max_pool(call: Call) -> Enclosure:
    attributes, zonotope, hull = call.node.attr, call.zonotope, call.hulls[0]
    rank = len(attributes["kernel_shape"])
    if zonotope.center.dim() != rank + 2 or attributes.get("auto_pad", "NOTSET") != "NOTSET" or hull is None:
        raise NotApplicableError
    ones, pads = [1] * rank, list(attributes.get("pads") or [0] * 2 * rank)
    index, spatial = pooling.windows(
        zonotope.shape[1:],
        attributes["kernel_shape"],
        attributes.get("strides") or ones,
        list(zip(pads[:rank], pads[rank:], strict=True)),
        attributes.get("dilations") or ones,
        bool(attributes.get("ceil_mode", 0)),
    )
    channels, *size = zonotope.shape
    flat = zonotope.reshape((channels, prod(size)))
    bounds = Interval(*(side.flatten(2) for side in hull))
    result = pooling.max_over_windows(flat, index, call.source, call.node.name, bounds)
    shape = (channels, *spatial)
    return Enclosure(result.zonotope.reshape(shape), Interval(*(side.reshape(-1, *shape) for side in result.bounds)))


@transforms("BoundReduceMax", kind="composition")
def _largest(call: Call) -> Enclosure:
    return _reduce(call, pooling.max_over_axes)


@transforms("BoundReduceLogSumExp", kind="composition")
def _log_sum_exp(call: Call) -> Enclosure:
    return _reduce(call, log_sum_exp.log_sum_exp)


@transforms("BoundReduceL1", kind="composition")
def _sum_of_absolute_values(call: Call) -> Enclosure:
    return _reduce(call, norms.sum_of_absolute_values)


@transforms("BoundReduceL2", kind="composition")
def _euclidean_length(call: Call) -> Enclosure:
    return _reduce(call, norms.euclidean_length)


@transforms("BoundReduceMin", kind="composition")
def _smallest(call: Call) -> Enclosure:
    return _reduce(call, pooling.min_over_axes)


def _reduce(call: Call, function: Callable[..., Enclosure]) -> Enclosure:
    zonotope = call.zonotope
    axes, keepdims = reduced(call.node.attr, zonotope.center, *call.constants)
    if any(axis % zonotope.center.dim() == 0 for axis in axes):
        raise NotApplicableError
    return function(zonotope, axes, keepdims, call.source, call.node.name, call.hulls[0])


@transforms("BoundMax", kind="composition", after=True)
def _maximum(call: Call) -> Enclosure:
    return _fold(call, pooling.maximum)


@transforms("BoundMin", kind="composition", after=True)
def _minimum(call: Call) -> Enclosure:
    return _fold(call, pooling.minimum)


def _fold(call: Call, function: Callable[..., Enclosure]) -> Enclosure:
    """max or min of two or more operands, one after the other."""
    result: Operand = call.operands[0]
    bounds = call.hulls[0]
    for operand, hull in zip(call.operands[1:], call.hulls[1:], strict=True):
        if isinstance(result, Tensor) and isinstance(operand, Tensor):
            raise NotApplicableError
        result, bounds = function(result, operand, call.source, call.node.name, (bounds, hull))
    if not isinstance(result, Zonotope) or bounds is None:
        raise NotApplicableError
    return Enclosure(result, bounds)


@transforms("BoundSoftmax", kind="composition")
def _softmax(call: Call) -> Enclosure:
    return _row_wise(call, partial(softmax.softmax, sum_to_one=call.sum_to_one, inner=call.inner))


@transforms("BoundLogSoftmax", kind="composition")
def _log_softmax(call: Call) -> Enclosure:
    return _row_wise(call, softmax.log_softmax)


def _row_wise(call: Call, function: Callable[..., Enclosure]) -> Enclosure:
    zonotope = call.zonotope
    axis = int((call.node.attr or {}).get("axis", -1)) % zonotope.center.dim()
    if axis == 0:
        raise NotApplicableError
    return function(zonotope, axis, call.source, call.node.name, call.hulls[0])
