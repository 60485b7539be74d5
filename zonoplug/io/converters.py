"""Converters for onnx2torch where its own is missing, wrong, too narrow, or hostile to tracing or to a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from onnx import defs
from torch import Tensor, nn

from zonoplug.io import torch_operators as operators
from zonoplug.io.torchvision_stub import import_onnx2torch

_NEWEST_OPSET = 26
_UNLIMITED = 1e30  # a bound beyond this is how exporters write "none"


@dataclass(frozen=True)
class Call:
    """One ONNX node about to be converted."""

    node: Any
    graph: Any

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def given(self, position: int) -> bool:
        """Whether there is an input at this position."""
        return position < len(self.node.input_values) and bool(self.node.input_values[position])

    def constant(self, position: int) -> Tensor | None:
        """The value of a constant input; None if it is absent or computed."""
        from onnx2torch.utils.common import get_const_value

        if not self.given(position):
            return None
        try:
            value = get_const_value(self.node.input_values[position], self.graph)
        except KeyError:
            return None
        return value if isinstance(value, Tensor) else None

    def integers(self, position: int) -> list[int] | None:
        value = self.constant(position)
        return None if value is None else [int(item) for item in value.reshape(-1).tolist()]

    def input_shape(self, position: int = 0) -> list[int] | None:
        return self._shape(self.node.input_values[position])

    def output_shape(self) -> list[int] | None:
        return self._shape(self.node.output_values[0])

    def _shape(self, name: str) -> list[int] | None:
        info = self.graph.value_info.get(name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        sizes = [dimension.dim_value for dimension in info.type.tensor_type.shape.dim]
        return sizes if all(size > 0 for size in sizes) else None


Maker = Callable[[Call], nn.Module | None]


def _reshape(call: Call) -> nn.Module | None:
    target = call.integers(1)
    return None if target is None or call.attribute("allowzero", 0) else operators.Reshape(target)


def _slice(call: Call) -> nn.Module | None:
    starts, ends, axes, steps = (call.integers(position) for position in range(1, 5))
    computed = [position for position in range(1, 5) if call.given(position) and call.integers(position) is None]
    if computed or starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    return operators.Slice(list(zip(axes, starts, ends, steps, strict=True)))


def _gather(call: Call) -> nn.Module | None:
    indices, axis, shape = call.constant(1), int(call.attribute("axis", 0)), call.output_shape()
    if indices is None or indices.numel() == 0 or call.constant(0) is not None:
        return None
    if indices.dim() > 1 and (shape is None or axis == 0):
        return None
    if bool((indices < 0).any()):
        source = call.input_shape()
        if source is None:
            return None
        indices = torch.where(indices < 0, indices + source[axis], indices)
    return operators.Gather(axis, indices, None if shape is None else [-1, *shape[1:]])


def _expand(call: Call) -> nn.Module | None:
    target = call.integers(1)
    return None if target is None else operators.Expand(target)


def _split(call: Call) -> nn.Module | None:
    axis, parts, shape = int(call.attribute("axis", 0)), len(call.node.output_values), call.input_shape()
    sizes = call.attribute("split") or call.integers(1)
    if sizes is None and not call.given(1) and shape is not None:
        chunk = -(-shape[axis] // parts)
        sizes = [chunk] * (parts - 1) + [shape[axis] - chunk * (parts - 1)]
    return None if sizes is None or parts == 1 else operators.Split(sizes, axis)


def _squeeze(call: Call) -> nn.Module | None:
    shape, axes = call.input_shape(), call.attribute("axes") or call.integers(1)
    if shape is None or (axes is None and call.given(1)):
        return None
    listed = [axis for axis, size in enumerate(shape) if size == 1] if axes is None else axes
    return operators.Squeeze([axis % len(shape) for axis in listed])


def _pad(call: Call) -> nn.Module | None:
    pads, value = call.integers(1), call.constant(2)
    if pads is None or call.given(3) or call.attribute("mode", "constant") != "constant":
        return None
    if call.given(2) and value is None:
        return None
    return operators.Pad(pads, 0.0 if value is None else float(value))


def _resize(call: Call) -> nn.Module | None:
    shape, new_shape, scales = call.input_shape(), call.output_shape(), call.constant(2)
    if call.attribute("mode", "nearest") != "nearest" or shape is None or new_shape is None or call.attribute("axes"):
        return None
    coordinates = call.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = call.attribute("nearest_mode", "round_prefer_floor")
    places = []
    for axis, (size, new_size) in enumerate(zip(shape, new_shape, strict=True)):
        if size == new_size:
            continue
        scale = float(scales[axis]) if scales is not None and scales.numel() == len(shape) else new_size / size
        indices = operators.nearest_indices(size, scale, new_size, coordinates, rounding)
        if indices is None or axis == 0:
            return None
        places.append((axis, indices))
    return operators.NearestResize(places)


def _clip(call: Call) -> nn.Module | None:
    limits: list[float | None] = []
    for position, name in ((1, "min"), (2, "max")):
        value = call.constant(position)
        if call.given(position) and value is None:
            return operators.ComputedClip()
        limit = call.attribute(name) if value is None else float(value)
        limits.append(None if limit is None or abs(limit) >= _UNLIMITED else limit)
    return operators.Clip(limits[0], limits[1])


def _reduce(call: Call) -> nn.Module | None:
    axes, shape = call.attribute("axes") or call.integers(1), call.input_shape()
    if shape is None or (axes is None and (call.given(1) or call.attribute("noop_with_empty_axes", 0))):
        return None
    along = range(len(shape)) if axes is None else [axis % len(shape) for axis in axes]
    kind = str(call.node.operation_type).removeprefix("Reduce")
    return operators.Reduce(kind, sorted(along), bool(call.attribute("keepdims", 1)))


def _scatter_nd(call: Call) -> nn.Module | None:
    return operators.ScatterND() if call.attribute("reduction", "none") == "none" else None


def _divide(call: Call) -> nn.Module | None:
    divisor = call.constant(1)
    if call.constant(0) is not None or (divisor is not None and not divisor.is_floating_point()):
        return None
    return operators.Quotient(divisor)


def _power(call: Call) -> nn.Module | None:
    exponent = call.constant(1)
    if exponent is None or exponent.numel() != 1:
        return None
    number = float(exponent)
    return operators.Square() if number == 2 else operators.Power(number)


# Operator -> (maker, its structural inputs that become Python constants: positions left out of the module's inputs).
_MAKERS: dict[str, tuple[Maker, Callable[[nn.Module], bool]]] = {
    "Clip": (_clip, lambda module: isinstance(module, operators.Clip)),
    "Concat": (lambda call: operators.Concat(int(call.attribute("axis", 0))), lambda _: False),
    "Div": (_divide, lambda module: getattr(module, "factor", None) is not None),
    "Expand": (_expand, lambda _: True),
    "Gather": (_gather, lambda _: True),
    "Max": (lambda call: operators.Largest(), lambda _: False),
    "Min": (lambda call: operators.Largest(smallest=True), lambda _: False),
    "OneHot": (lambda call: operators.OneHot(int(call.attribute("axis", -1))), lambda _: False),
    "Pad": (_pad, lambda _: True),
    "Pow": (_power, lambda _: True),
    "ReduceMax": (_reduce, lambda _: True),
    "ReduceMean": (_reduce, lambda _: True),
    "ReduceMin": (_reduce, lambda _: True),
    "ReduceSum": (_reduce, lambda _: True),
    "Reshape": (_reshape, lambda _: True),
    "Resize": (_resize, lambda _: True),
    "ScatterND": (_scatter_nd, lambda _: False),
    "Slice": (
        lambda call: _slice(call) or operators.ComputedSlice(),
        lambda module: isinstance(module, operators.Slice),
    ),
    "Split": (_split, lambda _: True),
    "Squeeze": (_squeeze, lambda _: True),
}
# Operators whose newer versions admit more types only, or are covered by a maker above.
_WIDENED = (
    "Cast", "Constant", "ConstantOfShape", "Equal", "Flatten", "Identity", "LeakyRelu", "PRelu", "Shape", "Sqrt",
    "Transpose", "Unsqueeze",
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
            converter = _converter(*_MAKERS[operator], previous) if operator in _MAKERS else previous
            if converter is not None:
                known[registry.OperationDescription(defs.ONNX_DOMAIN, operator, version)] = converter
    registry._zonoplug_installed = True


def _converter(maker: Maker, first_input_only: Callable[[nn.Module], bool], previous: Any) -> Callable[[Any, Any], Any]:
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult

    def convert(node: Any, graph: Any) -> Any:
        module = maker(Call(node, graph))
        if module is not None:
            inputs = node.input_values[:1] if first_input_only(module) else node.input_values
            return OperationConverterResult(module, OnnxMapping(inputs=inputs, outputs=node.output_values))
        if previous is None:
            raise NotImplementedError(f"{node.operation_type} in this form")
        return previous(node, graph)

    return convert
