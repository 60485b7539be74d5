"""Host operators that a zonotope passes exactly: linear maps, sums, rearrangements."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.domain.convolutions import Convolution, TransposedConvolution
from zonoplug.domain.linear_maps import row_by_row
from zonoplug.domain.zonotope import Zonotope
from zonoplug.lirpa.operators.table import Call, NotApplicableError, transforms
from zonoplug.transformers import affine
from zonoplug.transformers.affine import Operand


@transforms("BoundLinear")
def _linear(call: Call) -> Zonotope:
    attributes = call.node.attr or {}
    weight, *bias = call.constants
    if attributes.get("transA"):
        raise NotApplicableError
    weight = _times(weight if attributes.get("transB") else weight.T, attributes.get("alpha", 1.0))
    offset = _times(bias[0], attributes.get("beta", 1.0)) if bias else None
    return affine.matrix(call.zonotope, weight, offset)


def _times(constant: Tensor, factor: float) -> Tensor:
    return constant if factor == 1 else constant * factor


@transforms("BoundMatMul")
def _matmul(call: Call) -> Zonotope:
    left, right = call.operands
    if isinstance(left, Zonotope) and isinstance(right, Tensor):
        return affine.constant_product(left, right, constant_first=False)
    if isinstance(right, Zonotope) and isinstance(left, Tensor):
        return affine.constant_product(right, left, constant_first=True)
    raise NotApplicableError


@transforms("BoundConv")
def _convolution(call: Call) -> Zonotope:
    attributes = call.node.attr
    weight, *bias = call.constants
    rank = weight.dim() - 2
    begin, end = attributes["pads"][:rank], attributes["pads"][rank:]
    zonotope = call.zonotope
    if list(begin) != list(end):
        margins = [margin for pair in zip(reversed(begin), reversed(end), strict=True) for margin in pair]
        zonotope = affine.rearrange(zonotope, lambda x: functional.pad(x, margins), moves_only=True)
        begin = [0] * rank
    linear = Convolution(weight, attributes["strides"], begin, attributes["dilations"], attributes["group"])
    return zonotope.map(linear, bias[0].reshape(-1, *[1] * rank) if bias else None)


@transforms("BoundConvTranspose")
def _transposed_convolution(call: Call) -> Zonotope:
    attributes = call.node.attr
    weight, *bias = call.constants
    rank = weight.dim() - 2
    begin, end = attributes["pads"][:rank], attributes["pads"][rank:]
    if list(begin) != list(end):
        raise NotApplicableError
    extra = attributes.get("output_padding") or [0] * rank
    linear = TransposedConvolution(
        weight, attributes["strides"], begin, extra, attributes["dilations"], attributes["group"]
    )
    return call.zonotope.map(linear, bias[0].reshape(-1, *[1] * rank) if bias else None)


@transforms("BoundBatchNormalization")
def _batch_normalization(call: Call) -> Zonotope:
    weight, bias, mean, variance = call.constants
    factor = weight / torch.sqrt(variance + call.node.eps)
    shape = (1, -1, *[1] * (len(call.zonotope.shape) - 1))
    centered = call.zonotope.scale(factor.reshape(shape), (-mean * factor).reshape(shape))
    return centered.shift(bias.reshape(shape))


@transforms("BoundAdd")
def _add(call: Call) -> Zonotope:
    return affine.add(*call.operands)


@transforms("BoundSub")
def _subtract(call: Call) -> Zonotope:
    left, right = call.operands
    return affine.add(left, affine.negate(right))


@transforms("BoundNeg")
def _negate(call: Call) -> Zonotope:
    result = affine.negate(call.zonotope)
    assert isinstance(result, Zonotope)
    return result


@transforms("BoundMul")
def _multiply(call: Call) -> Zonotope:
    left, right = call.operands
    if isinstance(left, Zonotope) and isinstance(right, Tensor):
        return affine.multiply(left, right)
    if isinstance(right, Zonotope) and isinstance(left, Tensor):
        return affine.multiply(right, left)
    raise NotApplicableError


@transforms("BoundDiv")
def _divide(call: Call) -> Zonotope:
    zonotope, (divisor,) = call.zonotope, call.constants
    return affine.multiply(zonotope, 1 / divisor)


@transforms("BoundWhere")
def _where(call: Call) -> Zonotope:
    mask, *branches = call.operands
    if isinstance(mask, Zonotope):
        raise NotApplicableError
    mask = mask.to(torch.bool)
    parts = [_masked(branch, side) for branch, side in zip(branches, (mask, ~mask), strict=True)]
    return affine.add(*parts)


@transforms("BoundReshape", "BoundFlatten", "BoundSqueeze", "BoundUnsqueeze", "BoundATenUnflatten")
def _reshape(call: Call) -> Zonotope:
    constants = [
        _for_one_row(node) if _reads_a_shape(node) else value
        for node, value in zip(call.node.inputs[1:], call.constants, strict=True)
    ]
    example = call.node.forward(call.zonotope.center[:1], *constants)
    if example.shape[0] != 1:
        raise NotApplicableError
    return call.zonotope.reshape(tuple(example.shape[1:]))


def _reads_a_shape(node: Any) -> bool:
    """Whether a constant depends on the shape of some value, so that it may change with the size of the batch."""
    return type(node).__name__ == "BoundShape" or any(_reads_a_shape(parent) for parent in node.inputs)


def _for_one_row(node: Any) -> Tensor:
    """The value that a constant has for a batch of one, whatever the batch at hand."""
    if type(node).__name__ == "BoundShape":
        return torch.tensor([1, *node.inputs[0].output_shape[1:]])
    value: Tensor = torch.as_tensor(node.forward(*(_for_one_row(parent) for parent in node.inputs)))
    return value


@transforms("BoundTranspose", "BoundSlice", "BoundSplit", "BoundGather", "BoundTile")
def _move(call: Call) -> Zonotope:
    return affine.rearrange(call.zonotope, row_by_row(_forward(call)), moves_only=True)


@transforms("BoundResize")
def _rearrange(call: Call) -> Zonotope:
    return affine.rearrange(call.zonotope, row_by_row(_forward(call)))


@transforms("BoundGlobalAveragePool", "BoundReduceMean", "BoundReduceSum")
def _reduce(call: Call) -> Zonotope:
    forward = row_by_row(_forward(call))
    center = call.zonotope.center[:1]
    terms = -(-center.numel() // max(forward(center).numel(), 1))  # every input is summed into one output
    return affine.rearrange(call.zonotope, forward, terms=terms)


@transforms("BoundAveragePool")
def _average_pool(call: Call) -> Zonotope:
    node, zonotope = call.node, call.zonotope
    kernel, stride, padding = (
        [n] * 2 if isinstance(n, int) else list(n) for n in (node.kernel_size, node.stride, node.padding)
    )
    if node.ceil_mode or getattr(node, "uneven", False) or not (node.count_include_pad or not any(padding)):
        return affine.rearrange(zonotope, row_by_row(_forward(call)))
    channels = zonotope.shape[0]
    weight = zonotope.center.new_full((channels, 1, *kernel), 1 / prod(kernel))
    return zonotope.map(Convolution(weight, stride, padding, [1] * len(kernel), channels))


@transforms("BoundExpand")
def _expand(call: Call) -> Zonotope:
    (target,) = call.constants
    sizes = [int(size) for size in target.tolist()]
    rank = call.zonotope.center.dim()
    sizes = [1] * (rank - len(sizes)) + sizes
    if len(sizes) != rank or sizes[0] not in (1, call.zonotope.batch):
        raise NotApplicableError
    return affine.expand(call.zonotope, tuple(torch.broadcast_shapes(call.zonotope.shape, tuple(sizes[1:]))))


@transforms("BoundPad")
def _pad(call: Call) -> Zonotope:
    forward = row_by_row(_forward(call))
    padding = forward(torch.zeros_like(call.zonotope.center[:1]))
    padded = affine.rearrange(call.zonotope, lambda x: forward(x) - padding, moves_only=True)
    return affine.add(padded, padding)


@transforms("BoundConcat")
def _concatenate(call: Call) -> Zonotope:
    operands = [_with_batch(operand) for operand in call.operands]
    rank = next(o.center.dim() for o in operands if isinstance(o, Zonotope))
    axis = call.node.axis % rank
    if axis == 0:
        raise NotApplicableError
    return affine.concatenate(operands, axis)


@transforms("BoundIdentity", "BoundDropout", "BoundCast")  # casts of perturbed values to integers are another class
def _identity(call: Call) -> Zonotope:
    return call.zonotope


def _forward(call: Call) -> Callable[[Tensor], Tensor]:
    """The host's own forward as a function of the perturbed operand."""
    return lambda x: call.node.forward(x, *call.constants)


def _masked(operand: Operand, mask: Tensor) -> Operand:
    """The operand where the mask is true, 0 elsewhere."""
    if isinstance(operand, Tensor):
        return torch.where(mask, operand, torch.zeros_like(operand))
    return affine.multiply(operand, mask)


def _with_batch(operand: Operand) -> Operand:
    return operand if isinstance(operand, Zonotope) or operand.dim() else operand.reshape(1)
