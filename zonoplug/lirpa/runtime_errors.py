"""What a network's evaluation may add to each operator's exact value: the local errors that bounds cover.

One entry for each host class. Operators that only move values, compare them or choose among them add nothing. Sums of
products are covered where they are made (`domain.rounding.affine_error`, `local_errors`). What is left is how well the
runtime evaluates functions of one variable, and what its composed kernels may do, whatever the order of their sums and
whether their pieces are fused or not. Nothing is proved through an operator without an entry.

`zonoplug.io.runtime` has all figures and formulas, by ONNX name. What is here concerns graphs: which of them a node
stands for, of how many numbers, and whether it was written as one operator or as several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.rounding import EXACT, Accuracy, covers_inference
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.io import runtime_accuracy, runtime_expressions, runtime_formulas
from zonoplug.io.runtime_accuracy import Values
from zonoplug.lirpa.table import Entry, reduced

_MOVES = (
    "Abs And ArgMax Ceil Choice Clip CastToInteger Equal Floor Greater HardTanh Less Max MaxPool Min Neg Not Or"
    " ReduceMax ReduceMin Relu Round Sign SignMerge Xor ATenHeaviside"
)
ACCURACY: dict[str, Accuracy] = {f"Bound{name}": EXACT for name in _MOVES.split()}
_ONNX_NAMES = {"Sqr": "Mul"}  # of host classes that are not called as in ONNX
ACCURACY |= {
    f"Bound{name}": Accuracy(*astuple(runtime_accuracy.ACCURACY[_ONNX_NAMES.get(name, name)]))
    for name in (
        "Atan Celu Cos Elu Erf Exp HardSigmoid LeakyRelu Log PRelu Pow Reciprocal Selu Sigmoid Sin Softplus Sqr Sqrt"
        " Tanh"
    ).split()
}
# Written as several nodes, or as one: products with a gate whose argument was rounded, constants that are nearly right.
ACCURACY |= {
    f"Bound{name}": Accuracy(16, 16, 64) for name in ("Gelu", "GeluTanh", "HardSwish", "LogSigmoid", "Mish", "Silu")
}

Hulls = Sequence[Interval | None]
RESHAPES = frozenset({"BoundFlatten", "BoundReshape", "BoundSqueeze", "BoundUnsqueeze", "BoundATenUnflatten"})
_FLUSHED = 16  # smallest normal numbers that may be lost in the steps of an activation that is written as several nodes
_GRACE = 1.001  # for the rounding of the formulas themselves


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """One evaluation of a composed operator by the network.

    Attributes:
        node: the operator.
        kind: "float32" or "float64", the network's type.
        hulls: bounds of the computed operands in double precision, None for constants.
        constants: values of the operands, where they are constants.
        size: the largest |y| of the exact function of computed operands, in double precision.
    """

    node: Any
    kind: str
    hulls: Hulls
    constants: Sequence[Any]
    size: Tensor

    @property
    def hull(self) -> Interval:
        """Of the first operand, which must not be a constant."""
        (hull, *_) = self.hulls
        assert hull is not None
        return hull

    @property
    def inside(self) -> list[str]:
        """The kinds of the nodes that a pattern replaces, but for the last; none if the file has one operator."""
        return [type(inner).__name__ for inner in getattr(self.node, "inside", ())]

    @property
    def sizes(self) -> list[Tensor]:
        """The largest |x| of each operand."""
        pairs = zip(self.hulls, self.constants, strict=True)
        return [value.double().abs() if hull is None else largest(hull) for hull, value in pairs]


LocalError = Callable[[_Evaluation], Values]


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
    node: Any, hulls: Hulls, constants: Sequence[Any], bounds: Interval, network: torch.dtype | None = None
) -> Tensor | None:
    """What the network's evaluation of a composed operator may add; None where its `Accuracy` says all.

    Args:
        hulls: bounds of the operands' computed values, None for constants.
        constants: values of the operands, where they are constants.
        bounds: of the exact function of computed operands.
        network: the type in which the network is evaluated; that of the bounds by default.
    Raises:
        UnsupportedOperatorError: nothing is known of composed operators in that type.
    """
    rule = _COMPOSED.get(_kind(node))
    if rule is None:
        return None
    kind = str(network or bounds.lower.dtype).removeprefix("torch.")
    if kind not in runtime_accuracy.FORMATS:
        raise UnsupportedOperatorError(f"Nothing is known of how the runtime rounds in {_kind(node)} in {kind}.")
    wide = [hull and Interval(hull.lower.double(), hull.upper.double()) for hull in hulls]
    error = rule(_Evaluation(node, kind, wide, constants, largest(bounds).double()))
    result: Tensor = (error * _GRACE).to(bounds.lower.dtype)
    return result.nan_to_num(nan=torch.inf, posinf=torch.inf)


def evaluated(
    image: Zonotope, bounds: Interval | None, node: Any, hulls: Hulls, operands: Sequence[Any]
) -> tuple[Zonotope, Interval | None]:
    """Enclosures of a computed value, while inference is covered, from those of the exact function.

    Args:
        image, bounds: of the exact function of computed operands; the bounds are None where they are the image's hull.
        hulls, operands: as in `composed_error`, where zonotopes may stand for operands that are no constants.
    """
    inner = image.interval_hull() if bounds is None else bounds
    error = composed_error(node, hulls, operands, inner) if covers_inference() else None
    if error is None:
        return image, bounds
    return image.widen(error), bounds and Interval(bounds.lower - error, bounds.upper + error)


def widened(bounds: Interval, node: Any, hulls: Hulls, operands: Sequence[Any]) -> Interval:
    """The same for bounds alone."""
    error = composed_error(node, hulls, operands, bounds) if covers_inference() else None
    return bounds if error is None else Interval(bounds.lower - error, bounds.upper + error)


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


def nearest(bounds: Interval) -> Tensor:
    """min |x|."""
    return torch.maximum(bounds.lower, -bounds.upper).clamp(min=0)


def _product(at: _Evaluation) -> Values:
    return runtime_expressions.factor_error(at.kind, at.size, *at.sizes)


def _quotient(at: _Evaluation) -> Values:
    denominator = at.hulls[1]
    assert denominator is not None
    return runtime_expressions.quotient_error(at.kind, at.size, at.sizes[0], nearest(denominator))


def _matrix_product(at: _Evaluation) -> Values:
    left, right = at.sizes
    operands = left.sum(-1, keepdim=True) + right.sum(-2, keepdim=True)
    return runtime_formulas.product_sum_error(at.kind, left @ right, left.shape[-1], operands)


def _along(at: _Evaluation) -> tuple[int, Tensor]:
    """How many entries a row of a softmax has, and the largest |x| of each, with its axis of length 1."""
    axis = int((at.node.attr or {}).get("axis", -1))
    return at.hull.lower.shape[axis], largest(at.hull).amax(axis, keepdim=True)


def _softmax(at: _Evaluation) -> Values:
    count, reach = _along(at)
    whole = runtime_formulas.softmax_accuracy(count).error(at.kind, at.size)
    if not at.inside:
        return whole
    if "BoundReduceMax" in at.inside:  # the same steps, of which each may flush what it gives
        return whole + _FLUSHED * runtime_accuracy.FORMATS[at.kind].tiny
    return torch.maximum(whole, runtime_expressions.plain_softmax_error(at.kind, count, at.size, reach))


def _log_softmax(at: _Evaluation) -> Values:
    count, reach = _along(at)
    whole = runtime_formulas.log_softmax_accuracy(count).error(at.kind, at.size)
    if not at.inside:
        return whole
    if "BoundSoftmax" in at.inside:
        return torch.maximum(whole, runtime_expressions.log_of_softmax_error(at.kind, count, at.size))
    reach = torch.zeros_like(reach) if "BoundReduceMax" in at.inside else reach
    return torch.maximum(whole, runtime_expressions.less_log_sum_error(at.kind, count, at.size, reach))


def _log_sigmoid(at: _Evaluation) -> Values:
    """What its `Accuracy` leaves out: a sigmoid that is rounded, or flushed, before its logarithm is taken."""
    form = runtime_accuracy.FORMATS[at.kind]
    lost = at.size * 0.0 + _FLUSHED * form.tiny
    if "BoundSigmoid" in at.inside:
        lost = lost + runtime_accuracy.ACCURACY["Sigmoid"].error(at.kind, torch.ones_like(lost))
    return runtime_formulas.logarithm_error(at.kind, at.size, (-at.size).exp(), lost)


def _count(at: _Evaluation) -> int:
    """How many numbers a reduction makes one of."""
    axes, _ = reduced(at.node.attr, at.hull.lower, *[c for c in at.constants[1:] if isinstance(c, Tensor)])
    return prod(at.hull.lower.shape[axis] for axis in axes)


def _log_sum_exp(at: _Evaluation) -> Values:
    return runtime_formulas.log_sum_exp_accuracy(_count(at)).error(at.kind, at.size)


def _sum_of_absolutes(at: _Evaluation) -> Values:
    return runtime_formulas.sum_error(at.kind, at.size, _count(at))


def _length(at: _Evaluation) -> Values:
    return runtime_formulas.norm_error(at.kind, at.size, _count(at))


def _normalization(at: _Evaluation) -> Values:
    """d / sqrt(mean of d^2 + epsilon),  of computed d, or, where d = x - mean of x, by a fused kernel of computed x.

    The fused kernel's scale is the next node of the graph, which has its rounding; `check_runtime` sees to it that it
    lies in a range in which nothing else may happen.
    """
    axes, count = list(at.node.attr["axes"]), prod(at.hull.lower.shape[axis] for axis in at.node.attr["axes"])
    far = largest(at.hull)
    least = (_mean(nearest(at.hull) ** 2, axes) + float(at.node.attr["epsilon"])) / _GRACE
    value = torch.minimum(at.size, far * least**-0.5)
    single = runtime_formulas.rms_normalization_error(at.kind, count, _mean(far**2, axes), value, least)
    if not at.node.attr["centered"]:
        return single
    x = at.hulls[1]
    assert x is not None
    mean_square = _mean(largest(x) ** 2, axes)
    mean = torch.maximum(_mean(x.lower, axes).abs(), _mean(x.upper, axes).abs())
    ratio = torch.minimum(mean_square / least, 1 + mean**2 / least)  # mean of x^2 = mean^2 + variance
    parts = mean_square, ratio * _GRACE, value, least
    fused = runtime_formulas.normalization_error(at.kind, count, *parts, 1.0, 0.0, _variance_cancels(at))
    reach, largest_number = (count * mean_square / least) ** 0.5, runtime_accuracy.FORMATS[at.kind].largest
    fused = runtime_accuracy.where_bounded(fused, reach, largest_number / 8 / runtime_formulas.HEADROOM)
    return torch.maximum(single, fused)


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    return x.mean(axes, keepdim=True)


def _variance_cancels(at: _Evaluation) -> bool:
    """Whether a fused kernel may take the mean of squares less the square of the mean.

    Normalisations of instances and groups, which some kernels compute so, are a product of d with itself behind a
    reshape (`plain_torch`). All else is a layer's, which the runtime may make of several operators too.
    """
    from zonoplug.io.runtime_probe import variance_cancels

    grouped = "BoundPow" not in at.inside and type(at.node.inputs[1]).__name__ in RESHAPES
    return grouped or variance_cancels("LayerNormalization")


_COMPOSED: dict[str, LocalError] = {
    "BoundDiv": _quotient,
    "BoundLogSigmoid": _log_sigmoid,
    "BoundLogSoftmax": _log_softmax,
    "BoundMatMul": _matrix_product,
    "BoundMul": _product,
    "BoundNormalization": _normalization,
    "BoundReduceL1": _sum_of_absolutes,
    "BoundReduceL2": _length,
    "BoundReduceLogSumExp": _log_sum_exp,
    "BoundSoftmax": _softmax,
}
