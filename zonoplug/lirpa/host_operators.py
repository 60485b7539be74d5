"""Operators that the host lacks, or has in a form that fails or is wrong.

Classes carry the host's names, so that whoever looks operators up by class name finds these too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.lirpa.compat import IS_0_3
from zonoplug.lirpa.host_bases import IntervalOperator, LinearOperator, Monotone, constant

_operators = importlib.import_module("auto_LiRPA.operators")


class BoundGather(LinearOperator):
    """x.take(indices, axis), for constant indices of any shape; repeated indices are counted as often as they occur."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        indices = constants[0].to(x.device, torch.int64)
        axis = int(self.attr.get("axis", 0)) % x.dim()
        if axis == 0 and self.is_input_perturbed(0):
            raise NotImplementedError("Gather along the batch axis")
        chosen = torch.index_select(x, axis, torch.remainder(indices.reshape(-1), x.shape[axis]))
        return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


class BoundSlice(LinearOperator):
    """x[start:end:step] along one or several axes, from inputs (starts, ends, axes, steps) or from attributes."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        lists = [constant.reshape(-1).tolist() for constant in constants]
        for name in ("starts", "ends", "axes")[len(lists) :]:
            lists.append(list(self.attr.get(name) or range(len(lists[0]))))
        steps = lists[3] if len(lists) > 3 else [1] * len(lists[0])
        for start, end, axis, step in zip(lists[0], lists[1], lists[2], steps, strict=True):
            size = x.shape[int(axis)]
            if step > 0:
                x = x[(slice(None),) * (int(axis) % x.dim()) + (slice(int(start), int(end), int(step)),)]
                continue
            chosen = range(size)[slice(int(start), int(end) if end >= -size else None, int(step))]
            x = torch.index_select(x, int(axis), torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
        return x


class BoundExpand(LinearOperator):
    """Broadcasting to a constant shape; the batch keeps its size."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        target = [int(size) for size in constants[0].tolist()]
        if len(target) < x.dim():
            target = [1] * (x.dim() - len(target)) + target
        kept = [1] * (len(target) - x.dim()) + list(x.shape)
        if len(target) > x.dim() and self.is_input_perturbed(0):
            raise NotImplementedError("Expand that adds axes before the batch")
        sizes = [kept[axis] if axis == 0 or size == 1 else size for axis, size in enumerate(target)]
        return x.expand(*sizes)


class BoundTranspose(LinearOperator):
    """Axes in another order; the batch stays first. Contiguous, because the host takes views of what follows."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return x.permute(*self.attr["perm"]).contiguous()

    @property
    def perm(self) -> list[int]:
        return list(self.attr["perm"])


class BoundResize(LinearOperator):
    """Nearest or linear interpolation as torch's `interpolate` writes it, inputs (x, roi, scales, sizes) or (x, scales)."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        mode = self.attr.get("mode", "nearest")
        if mode not in ("nearest", "linear"):
            raise NotImplementedError(f"Resize with mode {mode!r}")
        aligned = self.attr.get("coordinate_transformation_mode") == "align_corners"
        spatial = x.dim() - 2
        factors = [constant for constant in constants if constant.numel() == x.dim()]
        given = factors[-1].tolist()[2:]
        sized = len(constants) == 3 and factors[-1] is constants[2]
        return functional.interpolate(
            x,
            size=[int(size) for size in given] if sized else None,
            scale_factor=None if sized else [float(factor) for factor in given],
            mode={"nearest": "nearest", "linear": ("linear", "bilinear", "trilinear")[spatial - 1]}[mode],
            align_corners=aligned if mode == "linear" else None,
        )


class _Convolution(LinearOperator):
    nonnegative = False

    def offset(self, *constants: Tensor) -> Tensor | None:
        rank = constants[0].dim() - 2
        return constants[1].reshape(-1, *[1] * rank) if len(constants) > 1 else None

    def absolute_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        return self.linear_part(x, constants[0].abs())


class BoundConv(_Convolution):
    """Convolution over one to three axes with any padding."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        weight, attr = constants[0], self.attr
        rank = weight.dim() - 2
        pads = attr.get("pads", [0] * 2 * rank)
        margins = [margin for axis in reversed(range(rank)) for margin in (pads[axis], pads[axis + rank])]
        operator: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
        result: Tensor = operator(
            functional.pad(x, margins), weight, None, attr["strides"], 0, attr["dilations"], attr["group"]
        )
        return result


class BoundConvTranspose(_Convolution):
    """Transposed convolution over one to three axes with any padding, stride, dilation and groups."""

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        weight, attr = constants[0], self.attr
        rank = weight.dim() - 2
        pads = attr.get("pads", [0] * 2 * rank)
        extra = attr.get("output_padding") or [0] * rank
        operator: Any = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
        result: Tensor = operator(x, weight, None, attr["strides"], 0, 0, attr["group"], attr["dilations"])
        margins = [
            margin for axis in reversed(range(rank)) for margin in (-pads[axis], extra[axis] - pads[axis + rank])
        ]
        return functional.pad(result, margins)


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


class BoundSoftmax(IntervalOperator):
    """Softmax along one axis; kept whole, so that it can be recognised.

    lower_i = 1 / (1 + sum over j != i of exp(u_j - l_i)), upper_i = 1 / (1 + sum over j != i of exp(l_j - u_i)).
    Cost: the square of the axis' length.
    """

    @property
    def axis(self) -> int:
        return int(self.attr.get("axis", -1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(x, dim=self.axis)

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        lower, upper = (side.movedim(self.axis, -1) for side in intervals[0])

        def share(own: Tensor, others: Tensor) -> Tensor:
            gaps = others.unsqueeze(-2) - own.unsqueeze(-1)
            gaps = torch.diagonal_scatter(gaps, torch.zeros_like(own), dim1=-2, dim2=-1)
            return (1 / gaps.exp().sum(-1)).movedim(-1, self.axis)

        return share(lower, upper), share(upper, lower)


def _convolution_class(attr: Any, inputs: Any, output_index: int, options: Any) -> Any:
    """The host's class where it can, ours for other numbers of axes and uneven padding."""
    rank = len(attr["kernel_shape"])
    even = list(attr["pads"][:rank]) == list(attr["pads"][rank:])
    chosen = _operators.BoundConv if even and rank == 2 else BoundConv
    return chosen(attr, inputs, output_index, options)


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "Ceil": lambda attr, x: torch.ceil(x),
    "Clip": lambda attr, x, *ends: torch.clamp(x, *(ends or (attr.get("min"), attr.get("max")))),
    "Elu": lambda attr, x: functional.elu(x, attr.get("alpha", 1.0)),
    "Erf": lambda attr, x: torch.erf(x),
    "Floor": lambda attr, x: torch.floor(x),
    "HardSigmoid": lambda attr, x: torch.clamp(x * attr.get("alpha", 0.2) + attr.get("beta", 0.5), 0, 1),
    "Max": lambda attr, x, *more: _largest(x, *more),
    "Min": lambda attr, x, *more: -_largest(-x, *[-y for y in more]),
    "ReduceMax": lambda attr, x: torch.amax(x, attr["axes"], bool(attr.get("keepdims", 1))),
    "ReduceMin": lambda attr, x: torch.amin(x, attr["axes"], bool(attr.get("keepdims", 1))),
    "Sign": lambda attr, x: torch.sign(x),
}


def _largest(x: Tensor, *more: Tensor) -> Tensor:
    for y in more:
        x = torch.maximum(x, y)
    return x


def _slice_class(attr: Any, inputs: Any, output_index: int, options: Any) -> Any:
    """0.7's class for steps of one; 0.3's fails on axes counted from the end."""
    step = int(constant(inputs[4])) if len(inputs) > 4 else 1
    chosen = _operators.BoundSlice if step == 1 and not IS_0_3 else BoundSlice
    return chosen(attr, inputs, output_index, options)


def custom_operators() -> dict[str, Any]:
    """ONNX operator name, as the host spells it ("onnx::Gather"), to the class that serves it instead of the host's."""
    ours: dict[str, Any] = {
        "onnx::Concat": BoundConcat,
        "onnx::Conv": _convolution_class,
        "onnx::ConvTranspose": BoundConvTranspose,
        "onnx::Gather": BoundGather,
        "onnx::Resize": BoundResize,
        "onnx::Slice": _slice_class,
        "onnx::Upsample": BoundResize,
    }
    if IS_0_3:
        ours |= {
            "onnx::Expand": BoundExpand,
            "onnx::Softmax": BoundSoftmax,
            "onnx::Transpose": BoundTranspose,
        }
    for name, function in _FUNCTIONS.items():
        if name in ("Clip", "ReduceMax", "ReduceMin") or not hasattr(_operators, f"Bound{name}"):
            ours[f"onnx::{name}"] = _monotone(name, function)
    return ours
