"""Converters for onnx2torch where its own is missing, wrong, too narrow, or hostile to tracing or to a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import defs
from torch import nn

from zonoplug.io import arithmetic_converters as arithmetic
from zonoplug.io import structure_converters as structure
from zonoplug.io import torch_operators as operators
from zonoplug.io.converter_call import Call, Maker, RefusedError
from zonoplug.io.torchvision_stub import import_onnx2torch

_NEWEST_OPSET = 26


def _first(maker: Maker) -> Maker:
    """A maker of modules that take the first input only; its other inputs shape them."""

    def make(call: Call) -> nn.Module | None:
        call.take(0)
        return maker(call)

    return make


def _slice(call: Call) -> nn.Module | None:
    module = structure.slice(call)
    if module is None:
        return operators.ComputedSlice()
    call.take(0)
    return module


def _guarded(guard: Callable[[Call], None]) -> Maker:
    """onnx2torch's own converter, for forms that a guard lets pass."""

    def make(call: Call) -> nn.Module | None:
        guard(call)
        return None

    return make


_REDUCE = _first(arithmetic.reduce)
_MAKERS: dict[str, Maker] = {
    "AveragePool": _first(arithmetic.average_pool),
    "BatchNormalization": _guarded(arithmetic.refuse_training),
    "Cast": arithmetic.cast,
    "Clip": arithmetic.clip,
    "Concat": structure.concat,
    "ConvTranspose": _guarded(arithmetic.refuse_output_shape),
    "CumSum": _first(arithmetic.cumulative_sum),
    "Div": arithmetic.divide,
    "Dropout": _guarded(arithmetic.refuse_training),
    "Expand": _first(structure.expand),
    "Gather": _first(structure.gather),
    "Gemm": arithmetic.gemm,
    "LRN": _guarded(arithmetic.refuse_even_size),
    "Max": arithmetic.largest,
    "MaxPool": _first(arithmetic.max_pool),
    "Min": arithmetic.largest,
    "OneHot": structure.one_hot,
    "PRelu": lambda call: arithmetic.parametric_relu(call),
    "Pad": structure.pad,
    "Pow": _first(arithmetic.power),
    **{f"Reduce{kind}": _REDUCE for kind in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()},
    "Reshape": _first(structure.reshape),
    "Resize": _first(arithmetic.resize),
    "ScatterND": structure.scatter_nd,
    "Selu": arithmetic.selu,
    "Slice": _slice,
    "Softplus": arithmetic.softplus,
    "Split": _first(structure.split),
    "Squeeze": _first(structure.squeeze),
}
# Operators whose newer versions admit more types only.
_WIDENED = (
    "Constant", "ConstantOfShape", "Equal", "Flatten", "Identity", "LeakyRelu", "Shape", "Sqrt", "Transpose",
    "Unsqueeze",
)  # fmt: skip


def install() -> None:
    """Put these converters into onnx2torch's registry, once; where one does not apply, onnx2torch's own does."""
    import_onnx2torch()
    from onnx2torch.node_converters import registry

    if getattr(registry, "_zonoplug_installed", False):
        return
    known: dict[Any, Any] = registry._CONVERTER_REGISTRY
    for operator in (*_MAKERS, *_WIDENED):
        own = {key.version: converter for key, converter in known.items() if key[:2] == (defs.ONNX_DOMAIN, operator)}
        previous = None
        for version in range(1, _NEWEST_OPSET + 1):
            previous = own.get(version, previous)
            converter = _converter(_MAKERS[operator], version, previous) if operator in _MAKERS else previous
            if converter is not None:
                known[registry.OperationDescription(defs.ONNX_DOMAIN, operator, version)] = converter
    registry._zonoplug_installed = True


def _converter(maker: Maker, version: int, previous: Any) -> Callable[[Any, Any], Any]:
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult

    def convert(node: Any, graph: Any) -> Any:
        call = Call(node, graph, version)
        try:
            module = maker(call)
        except RefusedError as error:
            raise NotImplementedError(f"{node.operation_type} (node {_name(node)!r}) {error}") from error
        if module is not None:
            positions = range(len(node.input_values)) if call.positions is None else call.positions
            inputs = tuple(node.input_values[position] for position in positions)
            return OperationConverterResult(module, OnnxMapping(inputs=inputs, outputs=node.output_values))
        if previous is None:
            raise NotImplementedError(f"{node.operation_type} (node {_name(node)!r}) in this form")
        return previous(node, graph)

    return convert


def _name(node: Any) -> str:
    return str(node.name or node.output_values[0])
