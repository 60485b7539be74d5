"""Reads an ONNX file into the checker's network, with numpy and the onnx package alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from zonoplug.certificates.network import RELU, SIGMOID, TANH, Floats, Function, Network, Places, Role, clip, leaky_relu
from zonoplug.certificates.onnx_constants import MOVING, Array, constant_outputs, evaluate
from zonoplug.certificates.onnx_source import input_of, read_source
from zonoplug.certificates.runtime_rounding import STEEPEST, rounding_of
from zonoplug.certificates.windows import windows_of
from zonoplug.errors import UnsupportedOperatorError, ZonoplugError


class _Reader:
    """Walks the graph once; each tensor is an array of numbers, or of places of the network's row."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._opsets = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")][:1]
        self._opset = self._opsets[0].version
        value, self._dtype = input_of(graph)
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._rounded: set[str] = set()
        shape = [dimension.dim_value or 1 for dimension in value.type.tensor_type.shape.dim]
        count = int(np.prod(shape, dtype=np.int64))
        self.network = Network(count)
        self.places: dict[str, Places] = {value.name: np.arange(count).reshape(shape)}
        for node in graph.node:
            try:
                self._read(node)
            except ZonoplugError:
                raise
            except Exception as error:  # an attribute or a shape that is not as the operator demands
                raise self._refuse(node) from error
        output = graph.output[0].name
        if output not in self.places:
            raise UnsupportedOperatorError("The network's output does not depend on its input.")
        self.network.outputs = self.places[output].reshape(-1)
        self.network.rounding = rounding_of(self.network, self._dtype)

    def _read(self, node: NodeProto) -> None:
        names = [name for name in node.input if name]
        varying = [name for name in names if name in self.places]
        if not varying:
            self._read_constant(node, names)
        elif node.op_type in MOVING:
            if (node.op_type != "Concat" and varying != [node.input[0]]) or not all(node.output):
                raise self._refuse(node)
            operands: dict[str, Array] = {name: self.constants[name] for name in names if name not in varying}
            operands |= {name: self._as_places(name) for name in (names if node.op_type == "Concat" else varying)}
            self.places |= evaluate(node, operands, self._opsets)
        else:
            handler = getattr(self, f"_{node.op_type.lower()}", None)
            if handler is None:
                raise self._refuse(node)
            self.places[node.output[0]] = handler(node, {a.name: helper.get_attribute_value(a) for a in node.attribute})

    def _read_constant(self, node: NodeProto, names: list[str]) -> None:
        found = constant_outputs(node, {name: self.constants[name] for name in names}, self._rounded, self._opsets)
        if found is None:
            raise self._refuse(node)
        self.constants |= found[0]
        self._rounded |= set(found[0]) if found[1] else set()

    def _as_places(self, name: str) -> Places:
        """The places of a tensor; constants get places of their own."""
        if name in self.places:
            return self.places[name]
        value = np.asarray(self.constants[name], np.float64)
        none = np.zeros((value.size, 1))
        role: Role = "elementwise" if name in self._rounded else "exact"
        return self.network.sparse(none.astype(np.int64) - 1, none, value.reshape(-1), role).reshape(value.shape)

    def _refuse(self, node: NodeProto) -> UnsupportedOperatorError:
        return UnsupportedOperatorError(
            f"The checker of certificates does not know the operator {node.op_type} (node {node.name!r}) in this use."
        )

    def _constant(self, node: NodeProto, place: int) -> Floats:
        """A constant operand of the network's number type, in float64."""
        value = self.constants.get(node.input[place]) if place < len(node.input) else None
        if value is None or value.dtype.name != self._dtype:
            raise self._refuse(node)
        return np.asarray(value, np.float64)

    def _has(self, node: NodeProto, place: int) -> bool:
        return place < len(node.input) and bool(node.input[place])

    def _variable(self, node: NodeProto, place: int = 0) -> Places:
        if node.input[place] not in self.places:
            raise self._refuse(node)
        return self.places[node.input[place]]

    # Functions of one variable

    def _relu(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._apply(node, RELU)

    def _sigmoid(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._apply(node, SIGMOID)

    def _tanh(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._apply(node, TANH)

    def _leakyrelu(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        slope = float(np.float32(attributes.get("alpha", 0.01)))
        if not 0 <= slope <= STEEPEST:
            raise self._refuse(node)
        return self._apply(node, leaky_relu(slope))

    def _clip(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        ends = [-np.inf, np.inf]
        if self._opset < 11:
            ends = [float(attributes.get("min", -np.inf)), float(attributes.get("max", np.inf))]
        for place in (1, 2) if self._opset >= 11 else ():
            if self._has(node, place):
                value = self._constant(node, place)
                if value.ndim or node.input[place] in self._rounded:
                    raise self._refuse(node)
                ends[place - 1] = float(value)
        if not ends[0] <= ends[1]:
            raise self._refuse(node)
        return self._apply(node, clip(*ends))

    def _dropout(self, node: NodeProto, _: dict[str, Any]) -> Places:
        if self._has(node, 2) and self.constants[node.input[2]].any():  # in training
            raise self._refuse(node)
        return self._variable(node)

    def _apply(self, node: NodeProto, function: Function) -> Places:
        places = self._variable(node)
        return self.network.apply(places.reshape(-1), function).reshape(places.shape)

    # Affine operators

    def _gemm(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        alpha, beta = (float(attributes.get(name, 1.0)) for name in ("alpha", "beta"))
        if not all(1 / STEEPEST <= abs(scale) <= STEEPEST for scale in (alpha, beta or 1.0)):
            raise self._refuse(node)
        places, weight = self._variable(node), self._constant(node, 1) * alpha
        rows = places.T if attributes.get("transA") else places
        weight = weight if attributes.get("transB") else weight.T
        bias = self._constant(node, 2) * beta if self._has(node, 2) else np.zeros(1)
        return self._products(rows, weight, np.broadcast_to(bias, (rows.shape[0], weight.shape[0])))

    def _matmul(self, node: NodeProto, _: dict[str, Any]) -> Places:
        left, right = (self.places.get(name) for name in node.input)
        if left is not None and right is None:
            weight = self._constant(node, 1)
            if weight.ndim == 2:
                rows = left.reshape(-1, left.shape[-1])
                made = self._products(rows, weight.T, np.zeros((rows.shape[0], weight.shape[1])))
                return made.reshape(*left.shape[:-1], weight.shape[1])
        if right is not None and left is None and right.ndim >= 2:
            weight = self._constant(node, 0)
            if weight.ndim == 2:
                columns = np.swapaxes(right, -1, -2)
                rows = columns.reshape(-1, columns.shape[-1])
                made = self._products(rows, weight, np.zeros((rows.shape[0], weight.shape[0])))
                return np.swapaxes(made.reshape(*columns.shape[:-1], weight.shape[0]), -1, -2)
        raise self._refuse(node)

    def _products(self, rows: Places, weight: Floats, bias: Floats) -> Places:
        """W x + b for each row of places x: (rows, outputs)."""
        made = []
        if rows.shape[1] != weight.shape[1]:
            raise ValueError("the product's shapes do not fit")
        for row, offset in zip(rows, bias, strict=True):
            made.append(self.network.dense(row, weight, np.array(offset)))
        return np.stack(made)

    def _add(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._added(node, 1.0)

    def _sub(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._added(node, -1.0)

    def _neg(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._scaled(self._variable(node), np.array(-1.0), role="exact")

    def _sum(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._total([self._operand(node, place) for place in range(len(node.input))], np.ones(len(node.input)))

    def _added(self, node: NodeProto, sign: float) -> Places:
        left, right = (name in self.places for name in node.input)
        if left and right:
            return self._total([self._operand(node, 0), self._operand(node, 1)], np.array([1.0, sign]))
        if left:
            return self._scaled(self._variable(node), np.array(1.0), sign * self._constant(node, 1))
        return self._scaled(self._variable(node, 1), np.array(sign), self._constant(node, 0))

    def _operand(self, node: NodeProto, place: int) -> Places:
        if node.input[place] not in self.places:
            self._constant(node, place)
        return self._as_places(node.input[place])

    def _total(self, parts: list[Places], phases: Floats) -> Places:
        """The sum of tensors, broadcast."""
        wide = np.broadcast_arrays(*parts)
        places = np.stack([part.reshape(-1) for part in wide], axis=1)
        weight = np.broadcast_to(phases, places.shape)
        return self.network.sparse(places, weight, np.zeros(places.shape[0]), "addition").reshape(wide[0].shape)

    def _mul(self, node: NodeProto, _: dict[str, Any]) -> Places:
        place = 0 if node.input[0] in self.places else 1
        return self._multiplied(self.places[node.input[place]], self._constant(node, 1 - place))

    def _div(self, node: NodeProto, _: dict[str, Any]) -> Places:
        divisor = self._constant(node, 1)
        if not (divisor != 0).all():
            raise self._refuse(node)
        return self._multiplied(self._variable(node), 1.0 / divisor)

    def _multiplied(self, places: Places, scale: Floats) -> Places:
        return self._scaled(places, scale, role="scalar" if scale.size == 1 else "elementwise")

    def _scaled(
        self, places: Places, scale: Floats, offset: Floats | None = None, role: Role = "elementwise"
    ) -> Places:
        """scale * x + offset, broadcast."""
        offset = np.zeros(1) if offset is None else offset
        shape = np.broadcast_shapes(places.shape, scale.shape, offset.shape)
        wide = np.broadcast_to(places, shape).reshape(-1, 1)
        weight, bias = np.broadcast_to(scale, shape).reshape(-1, 1), np.broadcast_to(offset, shape).reshape(-1)
        return self.network.sparse(wide, weight, np.array(bias), role).reshape(shape)

    def _batchnormalization(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        places = self._variable(node)
        epsilon = float(np.float32(attributes.get("epsilon", 1e-5)))
        shape = [1, places.shape[1], *[1] * (places.ndim - 2)]
        if attributes.get("training_mode") or attributes.get("spatial", 1) != 1 or not 0 <= epsilon < 1:
            raise self._refuse(node)
        scale, bias, mean, variance = (self._constant(node, place).reshape(shape) for place in range(1, 5))
        centered = self._scaled(places, np.array(1.0), -mean)  # apart, so that each rounding error is a relative one
        if not (variance >= 0).all() or not (variance + epsilon > 0).all():
            raise self._refuse(node)
        return self._scaled(centered, scale / np.sqrt(variance + epsilon), bias)

    def _conv(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        weight = self._constant(node, 1)
        channels, kernel = weight.shape[0], weight.shape[2:]
        windows = windows_of(self._variable(node), kernel, attributes)  # (channels in, *positions, *kernel)
        if tuple(attributes.get("kernel_shape", kernel)) != kernel:
            raise self._refuse(node)
        groups, positions = attributes.get("group", 1), windows.shape[1 : 1 + len(kernel)]
        each = channels // groups
        bias = self._constant(node, 2) if self._has(node, 2) else np.zeros(channels)
        if each * groups != channels or weight.shape[1] * groups != windows.shape[0] or bias.shape != (channels,):
            raise self._refuse(node)
        made: list[Places] = []
        for group in range(groups):
            mine = windows[group * weight.shape[1] : (group + 1) * weight.shape[1]]
            patches = np.moveaxis(mine, 0, len(kernel)).reshape(int(np.prod(positions)), -1)
            rows = np.broadcast_to(patches[None], (each, *patches.shape)).reshape(-1, patches.shape[1])
            own = weight[group * each : (group + 1) * each].reshape(each, 1, -1)
            values = np.broadcast_to(own, (each, *patches.shape)).reshape(rows.shape)
            offset = np.repeat(bias[group * each : (group + 1) * each], patches.shape[0])
            made.append(self.network.sparse(rows, values, offset).reshape(each, *positions))
        return np.concatenate(made)[None]

    def _averagepool(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        kernel = tuple(attributes["kernel_shape"])
        windows = windows_of(self._variable(node), kernel, attributes)
        rows = windows.reshape(-1, int(np.prod(kernel)))
        counted = np.ones(rows.shape) if attributes.get("count_include_pad") else (rows >= 0)
        counts = counted.sum(axis=1, keepdims=True)
        if not (counts > 0).all():
            raise self._refuse(node)
        weight = np.broadcast_to(1.0 / counts, rows.shape)
        made = self.network.sparse(rows, weight, np.zeros(rows.shape[0]))
        return made.reshape(1, *windows.shape[: 1 + len(kernel)])

    def _globalaveragepool(self, node: NodeProto, _: dict[str, Any]) -> Places:
        places = self._variable(node)
        rows = places.reshape(places.shape[0] * places.shape[1], -1)
        made = self.network.sparse(rows, np.full(rows.shape, 1.0 / rows.shape[1]), np.zeros(rows.shape[0]))
        return made.reshape(*places.shape[:2], *(1,) * (places.ndim - 2))


def read_network(path: str | Path) -> tuple[Network, bytes]:
    """The network of an ONNX file, plain or gzipped, and the file's uncompressed bytes.

    Raises:
        ModelError: the file cannot be read.
        UnsupportedOperatorError: an operator that the checker does not know, or not in this use.
    """
    model, source = read_source(path)
    return _Reader(model).network, source
