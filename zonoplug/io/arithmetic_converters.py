"""Converters of ONNX operators that compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from zonoplug.io import probing
from zonoplug.io import torch_arithmetic as arithmetic
from zonoplug.io import torch_operators as operators
from zonoplug.io.converter_call import Call, RefusedError

_LARGEST = float(np.finfo(np.float32).max)
_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64, TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16, TensorProto.UINT8: torch.uint8, TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16, TensorProto.INT32: torch.int32, TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}  # fmt: skip
_POOL_AXES = 3
_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def resize(call: Call) -> nn.Module:
    """Resize by constant scales or to constant sizes: a matrix for each axis."""
    shape = call.input_shape()
    if shape is None or call.computed(1, 2, 3):
        raise RefusedError("with computed sizes")
    given = {position: call.constant(position) for position in (2, 3)}
    constants = {position: value.numpy() for position, value in given.items() if value is not None and value.numel()}
    if len(constants) != 1:
        raise RefusedError("with scales and sizes" if constants else "without scales and sizes")
    return _along_axes(call, lambda dtype: probing.resize_matrices(call.proto, shape, constants, call.opset, dtype))


def average_pool(call: Call) -> nn.Module | None:
    """AveragePool: plain windows as they are, all else as a matrix for each axis."""
    shape = call.input_shape()
    if shape is None:
        raise RefusedError("of an unknown shape")
    kernel, rank = list(call.attribute("kernel_shape")), len(shape) - 2
    plain = not any(call.attribute("pads", ())) and not call.attribute("ceil_mode", 0)
    plain = plain and call.attribute("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    plain = plain and all(step == 1 for step in call.attribute("dilations", ()))
    if plain and 1 <= rank <= _POOL_AXES:
        kind: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
        module: nn.Module = kind(kernel, list(call.attribute("strides", [1] * rank)))
        return module
    return _along_axes(call, lambda dtype: probing.pool_matrices(call.proto, shape, call.opset, dtype))


def _along_axes(call: Call, matrices: Any) -> nn.Module:
    try:
        found: dict[int, NDArray[Any]] = matrices(call.own_kind())
    except probing.NotSeparableError as error:
        raise RefusedError(f"{error}") from error
    except Exception as error:
        raise RefusedError("in this form") from error
    if 0 in found:
        raise RefusedError("along the batch")
    return arithmetic.AlongAxes({axis: torch.from_numpy(np.ascontiguousarray(of)) for axis, of in found.items()})


def max_pool(call: Call) -> nn.Module | None:
    """MaxPool: even margins as they are, all else as explicit windows."""
    shape, results = call.input_shape(), call.output_shape()
    if shape is None or call.attribute("storage_order", 0) or len(call.node.output_values) > 1:
        raise RefusedError("with indices, or of an unknown shape")
    rank = len(shape) - 2
    kernel = list(call.attribute("kernel_shape"))
    strides, dilations = (list(call.attribute(name, [1] * rank)) for name in ("strides", "dilations"))
    pads, automatic = list(call.attribute("pads", [0] * 2 * rank)), call.attribute("auto_pad", "NOTSET")
    even = pads[:rank] == pads[rank:] and all(2 * pad <= size for pad, size in zip(pads, kernel, strict=False))
    if automatic == "VALID":
        pads = [0] * 2 * rank
    plain = even and automatic in ("NOTSET", "VALID") and not call.attribute("ceil_mode", 0)
    if plain and all(step == 1 for step in dilations) and 1 <= rank <= _POOL_AXES:
        kind: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
        plain_module: nn.Module = kind(kernel, strides, pads[:rank])
        return plain_module
    if results is None:
        raise RefusedError("of an unknown shape")
    places = {}
    for axis in range(rank):
        size, span = shape[axis + 2], (kernel[axis] - 1) * dilations[axis] + 1
        begin = pads[axis]
        if automatic.startswith("SAME"):
            margin = max((results[axis + 2] - 1) * strides[axis] + span - size, 0)
            begin = margin // 2 if automatic == "SAME_UPPER" else margin - margin // 2
        starts = torch.arange(results[axis + 2])[:, None] * strides[axis] - begin
        taps = starts + torch.arange(kernel[axis])[None] * dilations[axis]
        inside = (taps >= 0) & (taps < size)
        if not bool(inside.any(dim=1).all()):
            raise RefusedError("with an empty window")
        first = torch.gather(taps, 1, inside.int().argmax(1, keepdim=True))
        places[axis + 2] = torch.where(inside, taps, first)
    module = arithmetic.WindowMax(places)
    _confirm_windows(call, module, shape)
    return module


def _confirm_windows(call: Call, module: nn.Module, shape: list[int]) -> None:
    """Raise RefusedError unless the windows give what ONNX Runtime gives, to the last digit."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        x = rng.normal(size=shape).astype(call.own_kind())
        expected = probing.run_node(call.proto, x, {}, call.opset)
        got = module(torch.from_numpy(x)).numpy()
        if got.shape != expected.shape or not np.array_equal(got, expected):
            raise RefusedError("in this form")


def cumulative_sum(call: Call) -> nn.Module:
    """CumSum along a constant axis, as a triangular matrix."""
    shape, axes = call.input_shape(), call.integers(1)
    if shape is None or axes is None:
        raise RefusedError("along a computed axis")
    axis = axes[0] % len(shape)
    ones = torch.ones(shape[axis], shape[axis], dtype=call.own_type())
    matrix = torch.tril(ones, -1 if call.attribute("exclusive", 0) else 0)
    return arithmetic.AlongAxes({axis: matrix.T if call.attribute("reverse", 0) else matrix})


def gemm(call: Call) -> nn.Module:
    """Gemm: a layer where the weights and a bias per column are constant, a product of matrices otherwise."""
    alpha, beta = float(call.attribute("alpha", 1.0)), float(call.attribute("beta", 1.0))
    turned = bool(call.attribute("transA", 0)), bool(call.attribute("transB", 0))
    weight, bias = call.constant(1), call.constant(2)
    columns = None if weight is None else weight.shape[0 if turned[1] else 1]
    per_column = bias is None or bias.numel() == 1 or (bias.numel() == columns and bias.shape[-1] == columns)
    if weight is None or turned[0] or call.computed(2) or not per_column:
        return arithmetic.Product(alpha, beta, turned)
    weight = weight if turned[1] else weight.T
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight if alpha == 1 else weight * alpha)
        if bias is not None:
            layer.bias.copy_((bias if beta == 1 else bias * beta).reshape(-1).expand(weight.shape[0]))
    call.take(0)
    return layer


def clip(call: Call) -> nn.Module:
    """Clip: a limit at the end of the number type is none."""
    limits: list[float | None] = []
    for position, name in ((1, "min"), (2, "max")):
        value = call.constant(position)
        if call.computed(position):
            return operators.ComputedClip()
        limit = call.attribute(name) if value is None else float(value)
        limits.append(None if limit is None or abs(limit) >= _LARGEST else limit)
    call.take(0)
    return arithmetic.Clip(limits[0], limits[1])


def largest(call: Call) -> nn.Module:
    """Max and Min; constant operands become one limit."""
    smallest = call.node.operation_type == "Min"
    live = call.live_positions()
    constants = [call.constant(position) for position in range(len(call.node.input_values)) if position not in live]
    if len(live) != 1 or not constants:
        return arithmetic.Largest(smallest)
    limit: Tensor | None = None
    for value in constants:
        if value is None or not value.is_floating_point():
            return arithmetic.Largest(smallest)
        limit = value if limit is None else (torch.minimum if smallest else torch.maximum)(limit, value)
    if limit is None or call.input_shape(live[0]) is None or call.input_shape(live[0]) != call.output_shape():
        return arithmetic.Largest(smallest)
    call.take(live[0])
    return arithmetic.Limited(limit, smallest)


def reduce(call: Call) -> nn.Module | None:
    """Reductions along constant axes; with none given all are meant, or none by `noop_with_empty_axes`."""
    shape, axes = call.input_shape(), call.attribute("axes")
    axes = call.integers(1) if axes is None else axes
    kind = str(call.node.operation_type).removeprefix("Reduce")
    if shape is None or call.computed(1):
        raise RefusedError("along computed axes")
    if not axes and call.attribute("noop_with_empty_axes", 0):
        if kind not in ("Sum", "Mean", "Max", "Min", "Prod"):
            raise RefusedError("along no axis")
        return nn.Identity()
    along = range(len(shape)) if not axes else [axis % len(shape) for axis in axes]
    return arithmetic.Reduce(kind, sorted(along), bool(call.attribute("keepdims", 1)))


def divide(call: Call) -> nn.Module | None:
    """Div by a constant, or by what is computed."""
    divisor = call.constant(1)
    if call.constant(0) is not None or (divisor is not None and not divisor.is_floating_point()):
        return None
    if divisor is not None:
        call.take(0)
    return arithmetic.Quotient(divisor)


def power(call: Call) -> nn.Module | None:
    """Pow with one constant exponent."""
    exponent = call.constant(1)
    if exponent is None or exponent.numel() != 1 or call.input_shape() != call.output_shape():
        return None
    number = float(exponent)
    return arithmetic.Square() if number == 2 else arithmetic.Power(number)


def cast(call: Call) -> nn.Module:
    """Cast."""
    target = _TYPES.get(int(call.attribute("to")))
    if target is None:
        raise RefusedError(f"to {TensorProto.DataType.Name(int(call.attribute('to')))}")
    return arithmetic.Cast(target, target == call.own_type())


def parametric_relu(call: Call) -> nn.Module:
    """PRelu."""
    return arithmetic.ParametricRelu()


def selu(call: Call) -> nn.Module:
    """Selu, with any factors."""
    factors = float(call.attribute("alpha", _SELU[0])), float(call.attribute("gamma", _SELU[1]))
    return nn.SELU() if factors == _SELU else arithmetic.ScaledElu(*factors)


def softplus(call: Call) -> nn.Module:
    """Softplus, as exact in double precision: exp(-40) is below its last digit."""
    return nn.Softplus(threshold=40.0)


def refuse_training(call: Call) -> None:
    """Raise RefusedError for operators that behave as in training."""
    if call.attribute("training_mode", 0) or (call.computed(2) and call.node.operation_type == "Dropout"):
        raise RefusedError("in training mode")
    if call.node.operation_type == "Dropout":
        mode = call.constant(2)
        if mode is not None and bool(mode.any()):
            raise RefusedError("in training mode")


def refuse_even_size(call: Call) -> None:
    """Raise RefusedError for windows over channels that have no centre."""
    if int(call.attribute("size", 1)) % 2 == 0:
        raise RefusedError("of an even size")


def refuse_output_shape(call: Call) -> None:
    """Raise RefusedError for transposed convolutions to a given shape."""
    if call.attribute("output_shape") is not None:
        raise RefusedError("with output_shape")
