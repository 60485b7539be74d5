"""Comparisons, choices and casts of perturbed values, which the host lacks or takes for the identity: by intervals.

A truth value is a number here, 1 for true, so that [0, 1] says that nothing is known. NaN is taken for that too.
"Not greater" and "not less" are how "less or equal" and "greater or equal" arrive.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zonoplug.lirpa.host_operators.bases import IntervalOperator, LinearOperator, is_constant

_operators = importlib.import_module("auto_LiRPA.operators")

Ends = tuple[Tensor, Tensor]


def _truth(certain: Tensor, possible: Tensor, like: Tensor) -> Ends:
    return certain.to(like.dtype), possible.to(like.dtype)


class _Logical(IntervalOperator):
    """An operator whose interval is computed with floating-point ends, whatever types its inputs have."""

    def image(self, *intervals: Ends) -> Ends:
        known = [end for pair in intervals for end in pair if end.is_floating_point()]
        dtype = known[0].dtype if known else torch.get_default_dtype()
        return self.ends(*[(lower.to(dtype), upper.to(dtype)) for lower, upper in intervals])

    def ends(self, *intervals: Ends) -> Ends:
        """As `image`."""
        raise NotImplementedError


class BoundArgMax(_Logical):
    """The first place of the largest value along an axis: between the first and the last place that can hold it."""

    @property
    def axis(self) -> int:
        return int(self.attr.get("axis", 0))

    def forward(self, x: Tensor) -> Tensor:
        if self.attr.get("select_last_index", 0):
            raise NotImplementedError("ArgMax that takes the last of equal values")
        return torch.argmax(x, dim=self.axis, keepdim=bool(self.attr.get("keepdims", 1)))

    def ends(self, *intervals: Ends) -> Ends:
        lower, upper = intervals[0]
        axis, keep = self.axis % lower.dim(), bool(self.attr.get("keepdims", 1))
        possible = ~(upper < lower.amax(axis, keepdim=True))
        first = possible.to(lower.dtype).argmax(axis, keepdim=keep)
        last = lower.shape[axis] - 1 - possible.flip(axis).to(lower.dtype).argmax(axis, keepdim=keep)
        return first.to(lower.dtype), last.to(lower.dtype)


class BoundEqual(_Logical):
    """x == y: certain where both are the same point, impossible where their intervals are apart."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x == y

    def ends(self, *intervals: Ends) -> Ends:
        (below, above), (low, high) = intervals
        certain = (below == above) & (low == high) & (below == low)
        return _truth(certain, ~((above < low) | (high < below)), below)


class BoundLess(_Logical):
    """x < y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x < y

    def ends(self, *intervals: Ends) -> Ends:
        (below, above), (low, high) = intervals
        return _truth(above < low, ~(below >= high), below)


class BoundGreater(BoundLess):
    """x > y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x > y

    def ends(self, *intervals: Ends) -> Ends:
        return super().ends(*reversed(intervals))


class BoundLessOrEqual(BoundLess):
    """x <= y, where the exporter writes it as one operator."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x <= y

    def ends(self, *intervals: Ends) -> Ends:
        (below, above), (low, high) = intervals
        return _truth(above <= low, ~(below > high), below)


class BoundGreaterOrEqual(BoundLessOrEqual):
    """x >= y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x >= y

    def ends(self, *intervals: Ends) -> Ends:
        return super().ends(*reversed(intervals))


class BoundAnd(_Logical):
    """Both."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.logical_and(x, y)

    def ends(self, *intervals: Ends) -> Ends:
        (below, above), (low, high) = intervals
        return torch.minimum(below, low), torch.minimum(above, high)


class BoundOr(_Logical):
    """Either or both."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.logical_or(x, y)

    def ends(self, *intervals: Ends) -> Ends:
        (below, above), (low, high) = intervals
        return torch.maximum(below, low), torch.maximum(above, high)


class BoundNot(_Logical):
    """Not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.logical_not(x)

    def ends(self, *intervals: Ends) -> Ends:
        lower, upper = intervals[0]
        return 1 - upper, 1 - lower


class BoundXor(BoundEqual):
    """Exactly one: truth values that are not equal."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.logical_xor(x, y)

    def ends(self, *intervals: Ends) -> Ends:
        same, maybe_same = super().ends(*intervals)
        return 1 - maybe_same, 1 - same


class BoundChoice(_Logical):
    """x where a perturbed condition holds, else y."""

    def forward(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(condition.to(torch.bool), x, y)

    def ends(self, *intervals: Ends) -> Ends:
        (certain, possible), x, y = intervals
        lower = torch.where(certain >= 1, x[0], torch.where(possible <= 0, y[0], torch.minimum(x[0], y[0])))
        upper = torch.where(certain >= 1, x[1], torch.where(possible <= 0, y[1], torch.maximum(x[1], y[1])))
        return lower, upper


class BoundCast(LinearOperator):
    """To a floating-point type: the identity for bounds, also for those of integers and truth values."""

    def forward(self, *inputs: Any) -> Tensor:
        return torch.as_tensor(inputs[0]).to(_FLOATS[self.attr["to"]])

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return x if x.is_floating_point() else x.to(_FLOATS[self.attr["to"]])


class BoundCastToInteger(_Logical):
    """To an integer type, which drops what is behind the point; to a truth value, which says whether it is not 0.

    What a runtime makes of values outside an integer type's range is not specified: it may be any number of the type.
    To half precision, the nearest such number, which grows with the value.
    """

    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.type = _TYPES[attr["to"]]

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.type)

    def ends(self, *intervals: Ends) -> Ends:
        lower, upper = intervals[0]
        if self.type == torch.bool:
            return _truth((lower > 0) | (upper < 0), ~((lower == 0) & (upper == 0)), lower)
        if self.type.is_floating_point:
            return lower.to(self.type).to(lower.dtype), upper.to(self.type).to(upper.dtype)
        limits = torch.iinfo(self.type)
        least, above = lower.new_tensor(float(limits.min)), lower.new_tensor(float(limits.max + 1))
        inside = (lower.trunc() >= least) & (upper.trunc() < above)
        return torch.where(inside, lower.trunc(), least), torch.where(inside, upper.trunc(), above)


_FLOATS = {1: torch.float32, 11: torch.float64}
_TYPES = {
    10: torch.float16,
    16: torch.bfloat16,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
}


def _for_cast(attr: Any, inputs: Any) -> Any:
    """The host passes casts to integers as the identity, and gives coefficients the type of what is cast."""
    if is_constant(inputs[0]):
        return _operators.BoundCast
    return BoundCastToInteger if attr["to"] in _TYPES else BoundCast


def _for_where(attr: Any, inputs: Any) -> Any:
    return _operators.BoundWhere if is_constant(inputs[0]) else BoundChoice


def custom_logic(chosen: Callable[[Callable[[Any, Any], Any]], Any]) -> dict[str, Any]:
    """ONNX operator name to class, where `chosen` makes a class of a rule (attributes, inputs) -> class."""
    classes = (
        BoundAnd,
        BoundArgMax,
        BoundEqual,
        BoundGreater,
        BoundGreaterOrEqual,
        BoundLess,
        BoundLessOrEqual,
        BoundNot,
        BoundOr,
        BoundXor,
    )
    named = {f"onnx::{kind.__name__.removeprefix('Bound')}": kind for kind in classes}
    return {**named, "onnx::Cast": chosen(_for_cast), "onnx::Where": chosen(_for_where)}
