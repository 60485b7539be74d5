"""Interval bounds beside the zonotopes: what is known of a value that no zonotope shows, such as that a square is >= 0.

They are kept in graphs with an operator that is not made of straight pieces, where they make bounds at least as tight
as those of interval arithmetic. For linear layers and ReLUs alone they would gain little, and cost time: in a small
network as much as the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.lirpa.operators import Call, NotApplicableError, entry_for
from zonoplug.transformers.affine import Operand
from zonoplug.transformers.enclosure import Enclosure

STRAIGHT = frozenset({"BoundRelu", "BoundLeakyRelu", "BoundPRelu", "BoundAbs", "BoundClip", "BoundHardTanh"})
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


def needs_intervals(node: Any) -> bool:
    """Whether intervals are worth keeping in a graph with this operator."""
    entry = entry_for(node)
    if entry is None or type(node).__name__ in STRAIGHT:
        return False
    several = entry.otherwise is not None and any(parent.from_input for parent in node.inputs[1:])
    return entry.kind != "exact" or several


def interval_image(node: Any, operands: Sequence[Operand], hulls: Sequence[Interval | None]) -> Interval | None:
    """Bounds of a node's output from bounds of its inputs alone; None where no transformer gives any.

    A monotone operator takes both ends; they keep small numbers next to large ones, which a center and a radius do not.
    Another exact one maps a zonotope that is a box only, which is interval arithmetic. Another relaxation gives its
    band of slope 0, which is the range of its function.

    Args:
        operands: values of the inputs.
        hulls: bounds of each of them, None for constants.
    Cost: that of one or two symbols.
    """
    name, perturbed = type(node).__name__, [hull for hull in hulls if hull is not None]
    if name in INCREASING | FROM_ZERO and len(perturbed) == 1 and isinstance(operands[0], Zonotope):
        points = [*perturbed[0], _zero_if_inside(perturbed[0])] if name in FROM_ZERO else perturbed[0]
        return _outward(torch.stack([node.forward(point, *operands[1:]) for point in points]))
    if name in OF_SEVERAL or (name in OF_ONE and len(perturbed) == 1):
        ends = [[hull and Interval(hull[side], hull[side]) for hull in hulls] for side in (0, 1)]
        first, second = (_image(node, _values(operands, end, _corner), end) for end in ends)
        if first is None or second is None:
            return None
        return Interval(torch.minimum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
    entry = entry_for(node)
    flat = torch.zeros_like(perturbed[0].lower) if entry is not None and entry.kind == "relaxation" else None
    return _image(node, _values(operands, hulls, _box), hulls, flat)


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


def _outward(values: Tensor) -> Interval:
    """The range of some values of a function, with room for their rounding; axis 0 goes."""
    room = 8 * torch.finfo(values.dtype).eps * values.abs()
    return Interval((values - room).amin(0), (values + room).amax(0))


def _corner(point: Interval) -> Zonotope:
    return Zonotope(point.lower)


def _box(hull: Interval) -> Zonotope:
    """A zonotope without symbols that covers the interval."""
    center = hull.lower + (hull.upper - hull.lower) / 2
    return Zonotope(center, (), rounding.up(torch.maximum(hull.upper - center, center - hull.lower)))
