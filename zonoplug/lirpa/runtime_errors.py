"""What a network's evaluation may add to each operator's exact value: the local errors that bounds cover.

One entry for each host class. Operators that only move values, compare them or choose among them add nothing. Sums of
products are covered where they are made (`domain.rounding.affine_error`, `local_errors`). What is left is here: how
well the runtime evaluates functions of one variable, and what its composed kernels may do, whatever the order of their
sums and whether their pieces are fused or not. Nothing is proved through an operator without an entry.

The figures for functions are assumptions about ONNX Runtime's CPU provider; `zonoplug.io.runtime` lists them by ONNX
name, with what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from math import log, prod, sqrt
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.rounding import EXACT, Accuracy, gamma, unit
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.io import runtime_accuracy as runtime
from zonoplug.lirpa.operators.table import Entry, reduced

_MOVES = (
    "Abs And ArgMax Ceil Choice Clip CastToInteger Equal Floor Greater HardTanh Less Max MaxPool Min Neg Not Or"
    " ReduceMax ReduceMin Relu Round Sign SignMerge Xor ATenHeaviside"
)
ACCURACY: dict[str, Accuracy] = {f"Bound{name}": EXACT for name in _MOVES.split()}
_ONNX_NAMES = {"Sqr": "Mul"}  # of host classes that are not called as in ONNX
ACCURACY |= {
    f"Bound{name}": Accuracy(*astuple(runtime.ACCURACY[_ONNX_NAMES.get(name, name)]))
    for name in (
        "Atan Celu Cos Div Elu Erf Exp HardSigmoid LeakyRelu Log Mul PRelu Pow Reciprocal Selu Sigmoid Sin Softplus Sqr"
        " Sqrt Tanh"
    ).split()
}
# Written as several nodes, or as one: products with a gate whose argument was rounded, constants that are nearly right.
ACCURACY |= {
    f"Bound{name}": Accuracy(16, 16, 64) for name in ("Gelu", "GeluTanh", "HardSwish", "LogSigmoid", "Mish", "Silu")
}

OperandBounds = Sequence[Interval | None]
LocalError = Callable[[Any, OperandBounds, Sequence[Any], Interval], Tensor]


def accuracy_of(node: Any, entry: Entry | None) -> Accuracy:
    """How well the network evaluates a node's function; EXACT for compositions, which `composed_error` covers.

    Raises:
        UnsupportedOperatorError: nothing is known of it.
    """
    kind = _kind(node)
    if kind in ACCURACY:
        return ACCURACY[kind]
    if entry is not None and (entry.kind == "exact" or entry.accuracy is not None):
        return entry.accuracy or EXACT
    if kind in _COMPOSED:
        return EXACT
    raise UnsupportedOperatorError(
        f"Nothing is known of how the runtime rounds in {kind} (node {node.name!r}), so nothing is proved through it."
    )


def composed_error(
    node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval
) -> Tensor | None:
    """What the network's evaluation of a composed operator may add; None where its `Accuracy` says all.

    Args:
        preactivations: bounds of the operands' computed values, None for constants.
        constants: values of the operands, where they are constants.
        bounds: of the exact function of computed operands.
    """
    rule = _COMPOSED.get(_kind(node))
    return None if rule is None else rule(node, preactivations, constants, bounds)


def largest(bounds: Interval) -> Tensor:
    """max |x|."""
    return torch.maximum(bounds.lower.abs(), bounds.upper.abs())


def _kind(node: Any) -> str:
    for host_class in type(node).__mro__:
        if host_class.__name__ in ACCURACY or host_class.__name__ in _COMPOSED:
            return str(host_class.__name__)
        if host_class.__module__.startswith("auto_LiRPA."):
            break
    return type(node).__name__


def _relative(bounds: Interval, units: Tensor | float) -> Tensor:
    size = largest(bounds)
    return size * (1.01 * units * unit(size.dtype)) + 8 * torch.finfo(size.dtype).tiny


def _quotient(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    return _relative(bounds, 4)


def _matrix_product(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    pairs = zip(preactivations, constants, strict=True)
    left, right = (value.abs() if hull is None else largest(hull) for hull, value in pairs)
    terms = left.shape[-1]
    spread = left @ right
    return spread * (1.01 * gamma(terms + 4, spread.dtype)) + (terms + 1) * torch.finfo(spread.dtype).tiny


def _rows(node: Any, hull: Interval) -> tuple[Tensor, int]:
    """The span of each row along the axis of a softmax, with that axis of length 1, and how many entries a row has."""
    axis = int((node.attr or {}).get("axis", -1))
    span = hull.upper.amax(axis, keepdim=True) - hull.lower.amin(axis, keepdim=True)
    return span, hull.lower.shape[axis]


def _softmax(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    """Exponentials of rounded differences, a sum, a quotient; where no maximum is taken off, they must not overflow."""
    (hull,) = preactivations
    assert hull is not None
    span, count = _rows(node, hull)
    reach = torch.maximum(span, largest(hull).amax(int((node.attr or {}).get("axis", -1)), keepdim=True))
    error = _relative(bounds, 64 + 4 * reach + 2 * count) + count * torch.finfo(span.dtype).tiny
    return error.masked_fill(_overflows(node, hull), torch.inf)


def _log_softmax(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    (hull,) = preactivations
    assert hull is not None
    axis = int((node.attr or {}).get("axis", -1))
    span, count = _rows(node, hull)
    reach = span + largest(hull).amax(axis, keepdim=True)
    error = _relative(bounds, 16) + reach * (16 * unit(reach.dtype)) + (64 + 4 * count) * unit(reach.dtype)
    if "BoundSoftmax" in _inside(node):  # the logarithm of a quotient that may vanish
        error = error + _of_logarithm(bounds, 4 * count * torch.finfo(error.dtype).tiny)
    return error.masked_fill(_overflows(node, hull), torch.inf)


def _log_sigmoid(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    """log of a sigmoid that was rounded, where it is written so; see its `Accuracy` for all else."""
    zero = torch.zeros_like(bounds.lower)
    accuracy = ACCURACY["BoundSigmoid"]
    error = _of_logarithm(bounds, (accuracy.relative + accuracy.absolute) * unit(zero.dtype))
    return error if "BoundSigmoid" in _inside(node) else zero


def _of_logarithm(bounds: Interval, error: float) -> Tensor:
    """What an absolute error of s does to log s, within bounds of log s; infinite where s may vanish."""
    share = error * (-bounds.lower).exp()
    return torch.where(share < 0.5, 2 * share, torch.inf)


def _inside(node: Any) -> list[str]:
    """The kinds of the nodes that a pattern replaces, but for the last."""
    return [type(inner).__name__ for inner in getattr(node, "inside", ())]


def _overflows(node: Any, hull: Interval) -> Tensor:
    """Where exponentials of the operand itself, without its maximum taken off, may leave the type, (batch, 1 ...)."""
    inner = _inside(node)
    size = largest(hull).flatten(1).amax(dim=1).reshape(-1, *[1] * (hull.lower.dim() - 1))
    if "BoundExp" not in inner or "BoundReduceMax" in inner:
        return torch.zeros_like(size, dtype=torch.bool)
    return ~(size < _exponent(size.dtype))


def _exponent(dtype: torch.dtype) -> float:
    """Exponentials of up to this, and sums of a million of them, do not overflow."""
    return log(torch.finfo(dtype).max) - 16


def _reduction(node: Any, hull: Interval, constants: Sequence[Any]) -> tuple[list[int], bool, int]:
    axes, keep = reduced(node.attr, hull.lower, *[c for c in constants[1:] if isinstance(c, Tensor)])
    return axes, keep, prod(hull.lower.shape[axis] for axis in axes)


def _log_sum_exp(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    (hull, *_) = preactivations
    assert hull is not None
    axes, keep, count = _reduction(node, hull, constants)
    size = largest(hull).amax(axes, keepdim=keep)
    error = size * (16 * unit(size.dtype)) + (64 + 4 * count) * unit(size.dtype) + _relative(bounds, 16)
    return error.masked_fill(~(size < _exponent(size.dtype)), torch.inf)  # a kernel that takes no maximum off overflows


def _sum_of_absolutes(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    (hull, *_) = preactivations
    assert hull is not None
    return _relative(bounds, 2 * (_reduction(node, hull, constants)[2] + 4))


def _length(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    """A root of a sum of squares, which may overflow, or vanish."""
    (hull, *_) = preactivations
    assert hull is not None
    count = _reduction(node, hull, constants)[2]
    info = torch.finfo(hull.lower.dtype)
    vanishing = sqrt(count * info.tiny)
    error = _relative(bounds, 2 * (count + 8)) + vanishing
    return error.masked_fill(~(largest(bounds).double() ** 2 < info.max / 4), torch.inf)


def _normalization(node: Any, preactivations: OperandBounds, constants: Sequence[Any], bounds: Interval) -> Tensor:
    """d / sqrt(mean of d^2 + epsilon).

    A fused kernel may take the mean of squares less the square of the mean instead, of values of which only d is known
    here, so nothing is said about deviations from a mean.
    """
    (hull,) = preactivations
    assert hull is not None
    axes, epsilon = list(node.attr["axes"]), float(node.attr["epsilon"])
    count = prod(hull.lower.shape[axis] for axis in axes)
    error = _relative(bounds, 2 * (count + 32))
    if node.attr["centered"]:
        return torch.full_like(error, torch.inf)
    far = (largest(hull) ** 2).amax(axes, keepdim=True)
    return (error + largest(bounds) * (torch.finfo(error.dtype).tiny / epsilon)).masked_fill(
        ~(far < torch.finfo(error.dtype).max / (4 * count)), torch.inf
    )


_COMPOSED: dict[str, LocalError] = {
    "BoundDiv": _quotient,
    "BoundLogSigmoid": _log_sigmoid,
    "BoundLogSoftmax": _log_softmax,
    "BoundMatMul": _matrix_product,
    "BoundNormalization": _normalization,
    "BoundReduceL1": _sum_of_absolutes,
    "BoundReduceL2": _length,
    "BoundReduceLogSumExp": _log_sum_exp,
    "BoundSoftmax": _softmax,
}
_COMPOSED["BoundMul"] = lambda node, preactivations, constants, bounds: _relative(bounds, 2)
