"""Operators that the host lacks, or has in a form that fails or is wrong.

Classes carry the host's names, so that whoever looks operators up by class name finds these too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zonoplug.lirpa.host import IS_0_3
from zonoplug.lirpa.host_operators import linear as host_linear
from zonoplug.lirpa.host_operators.activations import custom_activations
from zonoplug.lirpa.host_operators.bases import IntervalOperator, Monotone, is_constant
from zonoplug.lirpa.host_operators.compositions import (
    BoundLogSoftmax,
    BoundMaxPool,
    BoundReduceL1,
    BoundReduceL2,
    BoundReduceProd,
    BoundSoftmax,
)
from zonoplug.lirpa.host_operators.curves import BoundPow, BoundReciprocal, BoundSoftplus, BoundSqrt
from zonoplug.lirpa.host_operators.logic import custom_logic
from zonoplug.lirpa.operators.table import reduced

_operators = importlib.import_module("auto_LiRPA.operators")


class BoundConcat(_operators.BoundConcat):  # type: ignore[misc,name-defined]
    """The host's, with constants of batch 1 (class tokens) repeated to the batch of the others."""

    def forward(self, *x: Any) -> Tensor:
        parts = [torch.as_tensor(part) for part in x]
        if parts[0].dim() > 1 and self.axis % parts[0].dim() != 0:
            batch = max(part.shape[0] for part in parts)
            parts = [part if part.shape[0] == batch else part.expand(batch, *part.shape[1:]) for part in parts]
        result: Tensor = super().forward(*parts)
        return result


def _monotone(name: str, function: Callable[..., Tensor]) -> type:
    """A Monotone class with the host's kind of name for function(attributes, *inputs)."""

    def forward(self: Any, *x: Tensor) -> Tensor:
        return function(self.attr, *x)

    return type(f"Bound{name}", (Monotone,), {"forward": forward, "__module__": __name__})


class BoundDiv(IntervalOperator):
    """x / y with both perturbed, by intervals; unbounded where y may be zero."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x / y

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        ends = torch.stack(torch.broadcast_tensors(*[x / y for x in intervals[0] for y in intervals[1]]))
        unknown = (intervals[1][0] <= 0) & (intervals[1][1] >= 0)
        infinite = torch.full_like(ends[0], torch.inf)
        return torch.where(unknown, -infinite, ends.amin(0)), torch.where(unknown, infinite, ends.amax(0))


class BoundMul(_operators.BoundMul):  # type: ignore[misc,name-defined]
    """The host's, with coefficients of an input that was broadcast summed up to its shape."""

    def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, y: Any, **options: Any) -> Any:
        coefficients, lower_bias, upper_bias = super().bound_backward(last_lA, last_uA, x, y, **options)
        fitted = [
            tuple(_summed_to(side, node.output_shape) if node.from_input else side for side in sides)
            for sides, node in zip(coefficients, (x, y), strict=True)
        ]
        return fitted, lower_bias, upper_bias


def _summed_to(coefficients: Any, shape: torch.Size) -> Any:
    if not isinstance(coefficients, Tensor) or coefficients.dim() != len(shape) + 1:
        return coefficients
    axes = [axis + 1 for axis in range(1, len(shape)) if shape[axis] == 1 and coefficients.shape[axis + 1] != 1]
    return coefficients.sum(axes, keepdim=True) if axes else coefficients


# Which class serves a node: the host's where it is right, ours elsewhere.


def _for_convolution(attr: Any, inputs: Any) -> Any:
    """The host has images only, and the same margin on both sides; its patches forget dilations."""
    rank = len(attr["kernel_shape"])
    even = list(attr["pads"][:rank]) == list(attr["pads"][rank:])
    plain = even and rank == 2 and all(size == 1 for size in attr["dilations"])
    return _operators.BoundConv if plain else host_linear.BoundConv


def _for_max_pool(attr: Any, inputs: Any) -> Any:
    """The host's backward bounds know windows side by side over an image only."""
    rank = len(attr["kernel_shape"])
    apart = list(attr["kernel_shape"]) == list(attr.get("strides") or [1] * rank) and not any(attr.get("pads") or [])
    dilated = any(size != 1 for size in attr.get("dilations") or [])
    plain = rank == 2 and apart and not dilated and not attr.get("ceil_mode", 0) and "pads" in attr
    return _operators.BoundMaxPool if plain else BoundMaxPool


def _for_matmul(attr: Any, inputs: Any) -> Any:
    """0.3 has no backward bounds for a constant on the left, and those of 0.7 do not hold."""
    return host_linear.BoundMatMul if is_constant(inputs[0]) and not is_constant(inputs[1]) else _operators.BoundMatMul


def _with_constants(of_constants: Any, otherwise: Any) -> Callable[[Any, Any], Any]:
    """0.3's backward bounds are wrong, or fail, where a constant is broadcast."""
    return lambda attr, inputs: of_constants if any(is_constant(node) for node in inputs) else otherwise


def _for_division(attr: Any, inputs: Any) -> Any:
    """0.3's interval bounds are wrong for negative numerators, and it takes x / sqrt(y) for a layer normalisation."""
    return host_linear.BoundDiv if is_constant(inputs[1]) else BoundDiv


def _chosen(rule: Callable[[Any, Any], Any]) -> Callable[[Any, Any, int, Any], Any]:
    return lambda attr, inputs, output_index, options: rule(attr, inputs)(attr, inputs, output_index, options)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Max": lambda attr, x, *more: _largest(x, *more),
    "Min": lambda attr, x, *more: -_largest(-x, *[-y for y in more]),
    "ReduceLogSumExp": lambda attr, x, *axes: torch.logsumexp(x, *reduced(attr, x, *axes)),
    "ReduceMax": lambda attr, x, *axes: torch.amax(x, *reduced(attr, x, *axes)),
    "ReduceMin": lambda attr, x, *axes: torch.amin(x, *reduced(attr, x, *axes)),
}


def _largest(x: Tensor, *more: Tensor) -> Tensor:
    for y in more:
        x = torch.maximum(x, y)
    return x


def custom_operators() -> dict[str, Any]:
    """ONNX operator name, as the host spells it ("onnx::Gather"), to the class that serves it instead of the host's."""
    ours: dict[str, Any] = {
        "onnx::AveragePool": host_linear.BoundAveragePool,
        "onnx::Concat": BoundConcat,
        "onnx::Conv": _chosen(_for_convolution),
        "onnx::ConvTranspose": host_linear.BoundConvTranspose,
        "onnx::Gather": host_linear.BoundGather,
        "onnx::LogSoftmax": BoundLogSoftmax,
        "onnx::MatMul": _chosen(_for_matmul),
        "onnx::MaxPool": _chosen(_for_max_pool),
        "onnx::Pad": host_linear.BoundPad,
        "onnx::Pow": BoundPow,
        "onnx::Reciprocal": BoundReciprocal,
        "onnx::ReduceL1": BoundReduceL1,
        "onnx::ReduceL2": BoundReduceL2,
        "onnx::ReduceProd": BoundReduceProd,
        "onnx::Resize": host_linear.BoundResize,
        "onnx::Slice": host_linear.BoundSlice,  # 0.3's fails on axes counted from the end, 0.7's on such ends
        "onnx::Softplus": BoundSoftplus,
        "onnx::Sqrt": BoundSqrt,
        "onnx::Tile": host_linear.BoundTile,
        "onnx::Upsample": host_linear.BoundResize,
    }
    if IS_0_3:
        ours |= {
            "onnx::Add": _chosen(_with_constants(host_linear.BoundAdd, _operators.BoundAdd)),
            "onnx::Div": _chosen(_for_division),
            "onnx::Expand": host_linear.BoundExpand,
            "onnx::Mul": _chosen(_with_constants(host_linear.BoundMul, BoundMul)),
            "onnx::Softmax": BoundSoftmax,
            "onnx::Sub": _chosen(_with_constants(host_linear.BoundSub, _operators.BoundSub)),
            "onnx::Transpose": host_linear.BoundTranspose,
        }
    for name, function in _FUNCTIONS.items():
        if name in ("Clip", "ReduceMax", "ReduceMin") or not hasattr(_operators, f"Bound{name}"):
            ours[f"onnx::{name}"] = _monotone(name, function)
    return ours | custom_activations() | custom_logic(_chosen)
