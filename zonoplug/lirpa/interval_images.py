"""Interval bounds beside the zonotopes: the reduced product of the two domains.

Each value of the walk has a zonotope Z and, from the first operator that is not exact, an interval I. What reads the
value uses their intersection, neuron by neuron, and the next relaxation is computed on it. So no bound is looser than
interval arithmetic's, and each domain profits from the other: a ReLU's parallelogram reaches below 0, its interval does
not; a difference of equal values is 0 in the zonotope only.

Why this is sound. For a point x of the input set let z(x) be a value of the noise symbols under which the input
zonotope gives x. Claim: for every x there are values of all later symbols (and of the boxes) such that each node's
zonotope gives that node's own value v(x), and v(x) lies in the node's interval. By induction over the graph: an exact
operator maps both as it maps v(x). A relaxation holds on the intersection H of I and the zonotope's hull; v(x) lies in
H, as it lies in both; so |f(v) - slope v - offset| <= radius, and the fresh symbol has a value in [-1, 1] that gives
f(v(x)). It may be that no point of Z outside of H is covered by the relaxation: none of those stands for an x. This is
also why any other bound that holds for all x may be intersected with H (`known` in `propagate`), and why a symbol's
meaning stays: the values that stand for x are the same in every node, so branches may still be joined by symbol.

Before the first inexact operator the zonotope's own hull is exact, and no interval is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.domain import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.lirpa.operators import Call, NotApplicableError, entry_for
from zonoplug.lirpa.runtime_errors import RESHAPES
from zonoplug.transformers.affine import Operand, specification
from zonoplug.transformers.enclosure import Enclosure

# Exact operators, monotone in each coordinate: of all inputs in the same direction, or of one input in either.
OF_SEVERAL = frozenset({"BoundAdd", "BoundConcat", "BoundWhere"})
OF_ONE = frozenset(
    f"Bound{name}"
    for name in (
        "AveragePool BatchNormalization Cast Div Dropout Expand Flatten Gather GlobalAveragePool Identity Mul Neg Pad"
        " ReduceMean ReduceSum Reshape Resize Slice Split Squeeze Sub Tile Transpose Unsqueeze"
    ).split()
)
# Functions: monotone, and monotone on either side of 0.
INCREASING = frozenset(
    f"Bound{name}" for name in "Atan Clip Erf Exp HardTanh Log Relu Sigmoid Softplus Sqrt Tanh".split()
)
FROM_ZERO = frozenset({"BoundPow", "BoundReciprocal", "BoundSqr"})


def interval_image(
    node: Any, operands: Sequence[Operand], hulls: Sequence[Interval | None], shape: tuple[int, ...] | None = None
) -> Interval | None:
    """Bounds of a node's output from bounds of its inputs alone; None where no transformer gives any.

    A monotone operator takes both ends; they keep small numbers next to large ones, which a center and a radius do not.
    Another exact one maps a zonotope that is a box only, which is interval arithmetic. Another relaxation gives its
    band of slope 0, which is the range of its function.

    Args:
        operands: values of the inputs.
        hulls: bounds of each of them, None for constants.
        shape: of the output, without the batch, where it is known.
    Cost: that of one or two symbols.
    """
    name, perturbed = type(node).__name__, [hull for hull in hulls if hull is not None]
    quick = _quick_image(node, name, operands, hulls, shape)
    if quick is not None:
        return quick
    if name in INCREASING | FROM_ZERO and len(perturbed) == 1 and isinstance(operands[0], Zonotope):
        points = [*perturbed[0], _zero_if_inside(perturbed[0])] if name in FROM_ZERO else perturbed[0]
        values = torch.stack([node.forward(point, *operands[1:]) for point in points])
        return _outward(values, torch.maximum(perturbed[0].lower.abs(), perturbed[0].upper.abs()))
    if name in OF_SEVERAL or (name in OF_ONE and len(perturbed) == 1):
        ends = [[hull and Interval(hull[side], hull[side]) for hull in hulls] for side in (0, 1)]
        first, second = (_image(node, _values(operands, end, _corner), end) for end in ends)
        if first is None or second is None:
            return None
        return Interval(torch.minimum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
    entry = entry_for(node)
    flat = torch.zeros_like(perturbed[0].lower) if entry is not None and entry.kind == "relaxation" else None
    return _image(node, _values(operands, hulls, _box), hulls, flat)


def rows_image(
    node: Any, operands: Sequence[Operand], hulls: Sequence[Interval | None], final: Interval, rows: Tensor
) -> Interval:
    """Bounds of C y, y the node's output, as interval arithmetic gives them: a last linear layer is joined with C.

        C (W x + b)  lies in  (C W) c + C b +/- |C W| r  for x = c +/- r

    Args:
        final: bounds of y, used where the node is no linear layer.
        rows: C, (batch or 1, rows, outputs).
    Returns:
        (batch, rows).
    """
    weight, bias = _linear_weights(node, operands) or (None, None)
    if weight is None or hulls[0] is None or hulls[0].lower.dim() != 2:
        return specification(_box(Interval(*(side.flatten(1) for side in final))), rows).interval_hull()
    half = (hulls[0].upper - hulls[0].lower) / 2
    joined = torch.matmul(rows, weight)
    offset = weight.new_zeros(1) if bias is None else torch.matmul(rows, bias)
    center = _rows_product(joined, hulls[0].lower + half) + offset
    radius = _rows_product(joined.abs(), half)
    if rounding.active():
        largest = torch.maximum(hulls[0].lower.abs(), hulls[0].upper.abs())
        magnitude = functional.linear(largest, weight.abs(), None if bias is None else bias.abs())
        spread = _rows_product(rows.abs(), magnitude)
        radius = radius + rounding.affine_error(spread, None, sum(weight.shape) + 4, 2)
    return Interval(rounding.down(center - radius), rounding.up(center + radius))


def _rows_product(rows: Tensor, x: Tensor) -> Tensor:
    """C x for rows (batch or 1, m, n) and x (batch, n): (batch, m)."""
    return x @ rows[0].T if rows.shape[0] == 1 else torch.einsum("bmn,bn->bm", rows, x)


def _quick_image(
    node: Any, name: str, operands: Sequence[Operand], hulls: Sequence[Interval | None], shape: tuple[int, ...] | None
) -> Interval | None:
    """The same for the operators that plain ReLU networks consist of, in few steps: None for others."""
    (hull, *others) = hulls
    if name == "BoundAdd" and hull is not None and others[0] is not None and not rounding.active():
        return Interval(hull.lower + others[0].lower, hull.upper + others[0].upper)
    if hull is None or any(other is not None for other in others):
        return None
    if name == "BoundRelu":
        return Interval(hull.lower.clamp(min=0), hull.upper.clamp(min=0))
    if name in RESHAPES and shape is not None:
        return Interval(hull.lower.reshape(-1, *shape), hull.upper.reshape(-1, *shape))
    linear = None if rounding.active() else _linear_weights(node, operands)
    if linear is None:
        return None
    half = (hull.upper - hull.lower) / 2
    center = functional.linear(hull.lower + half, *linear)
    radius = functional.linear(half, linear[0].abs())
    return Interval(center - radius, center + radius)


def _linear_weights(node: Any, operands: Sequence[Operand]) -> tuple[Tensor, Tensor | None] | None:
    """Weight (out, in) and bias (out,) of a linear layer with constant ones; None for anything else."""
    attributes = getattr(node, "attr", None) or {}
    if type(node).__name__ != "BoundLinear" or attributes.get("transA"):
        return None
    if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        return None
    weight, *bias = operands[1:]
    if not isinstance(weight, Tensor) or not all(isinstance(b, Tensor) and b.dim() == 1 for b in bias):
        return None
    return (weight if attributes.get("transB") else weight.T), (bias[0] if bias else None)  # type: ignore[return-value]


def _values(
    operands: Sequence[Operand], hulls: Sequence[Interval | None], zonotope: Callable[[Interval], Zonotope]
) -> list[Operand]:
    """The operands, with perturbed ones made of their bounds alone."""
    return [operand if hull is None else zonotope(hull) for operand, hull in zip(operands, hulls, strict=True)]


def _image(
    node: Any, values: Sequence[Operand], hulls: Sequence[Interval | None], slope: Tensor | None = None
) -> Interval | None:
    entry = entry_for(node)
    while entry is not None:
        try:
            image = entry.transformer(Call(node, values, SymbolSource(), hulls, slope))
        except NotApplicableError:
            entry = entry.otherwise
            continue
        return image.bounds if isinstance(image, Enclosure) else image.interval_hull()
    return None


def _zero_if_inside(hull: Interval) -> Tensor:
    """0 where it lies in the interval, else the lower end."""
    return torch.where((hull.lower <= 0) & (hull.upper >= 0), 0, hull.lower)


def _outward(values: Tensor, operand: Tensor) -> Interval:
    """The range of some values of a function of |x| <= operand, with room for their rounding; axis 0 goes."""
    room = rounding.own_error(values.abs()) + rounding.evaluation_error(values.abs(), operand)
    return Interval((values - room).amin(0), (values + room).amax(0))


def _corner(point: Interval) -> Zonotope:
    return Zonotope(point.lower)


def _box(hull: Interval) -> Zonotope:
    """A zonotope without symbols that covers the interval."""
    center = hull.lower + (hull.upper - hull.lower) / 2
    return Zonotope(center, (), rounding.up(torch.maximum(hull.upper - center, center - hull.lower)))
