"""Reads an ONNX file into the checker's network, with numpy and the onnx package alone."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from zonoplug.certificates.network import RELU, SIGMOID, TANH, Floats, Network, Places, clip, leaky_relu
from zonoplug.errors import ModelError, UnsupportedOperatorError

MOVING = (
    "Concat Expand Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze Dropout".split()
)  # what only moves numbers about
Array = NDArray[Any]


class _Reader:
    """Walks the graph once; each tensor is an array of numbers, or of places of the network's row."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._opsets = list(model.opset_import)
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        inputs = [value for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1:
            raise UnsupportedOperatorError(f"The checker reads networks with one input; this one has {len(inputs)}.")
        shape = [dimension.dim_value or 1 for dimension in inputs[0].type.tensor_type.shape.dim]
        count = int(np.prod(shape, dtype=np.int64))
        self.network = Network(count)
        self.places: dict[str, Places] = {inputs[0].name: np.arange(count).reshape(shape)}
        for node in graph.node:
            self._read(node)
        output = graph.output[0].name
        if output not in self.places:
            raise UnsupportedOperatorError("The network's output does not depend on its input.")
        self.network.outputs = self.places[output].reshape(-1)

    def _read(self, node: NodeProto) -> None:
        names = [name for name in node.input if name]
        if not any(name in self.places for name in names):
            for name, value in zip(node.output, self._evaluate(node, self.constants), strict=False):
                self.constants[name] = np.asarray(value)
        elif node.op_type in MOVING:
            if node.op_type == "Dropout":
                moved = [self.places[node.input[0]]]
            else:
                moved = self._evaluate(node, {name: self._as_places(name) for name in names if self._moves(node, name)})
            for name, value in zip(node.output, moved, strict=False):
                self.places[name] = np.asarray(value)
        else:
            handler = getattr(self, f"_{node.op_type.lower()}", None)
            if handler is None:
                raise self._refuse(node)
            self.places[node.output[0]] = handler(node, {a.name: helper.get_attribute_value(a) for a in node.attribute})

    def _moves(self, node: NodeProto, name: str) -> bool:
        """Whether an operand holds numbers that are moved, not a shape or an index."""
        return node.op_type == "Concat" or name == node.input[0]

    def _as_places(self, name: str) -> Places:
        """The places of a tensor; constants get places of their own."""
        if name not in self.places:
            value = np.asarray(self.constants[name], np.float64)
            none = np.zeros((value.size, 1))
            self.places[name] = self.network.sparse(none.astype(np.int64), none, value.reshape(-1)).reshape(value.shape)
        return self.places[name]

    def _evaluate(self, node: NodeProto, known: dict[str, Array]) -> list[Array]:
        """The onnx package's own evaluation of one node, with numbers or places in its operands."""
        feeds = {name: known.get(name, self.constants.get(name)) for name in node.input if name}
        kind = onnx.TensorProto.FLOAT
        values = [helper.make_tensor_value_info(name, kind, None) for name in feeds]
        outputs = [helper.make_tensor_value_info(name, kind, None) for name in node.output if name]
        model = helper.make_model(helper.make_graph([node], "one", values, outputs), opset_imports=self._opsets)
        return list(ReferenceEvaluator(model).run(None, feeds))

    def _refuse(self, node: NodeProto) -> UnsupportedOperatorError:
        return UnsupportedOperatorError(
            f"The checker of certificates does not know the operator {node.op_type} (node {node.name!r}) in this use."
        )

    def _constant(self, node: NodeProto, place: int) -> Floats:
        if place >= len(node.input) or node.input[place] not in self.constants:
            raise self._refuse(node)
        return np.asarray(self.constants[node.input[place]], np.float64)

    # Functions of one variable

    def _relu(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._apply(node, RELU)

    def _sigmoid(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._apply(node, SIGMOID)

    def _tanh(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._apply(node, TANH)

    def _leakyrelu(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        slope = float(attributes.get("alpha", 0.01))
        if not slope >= 0:
            raise self._refuse(node)
        return self._apply(node, leaky_relu(slope))

    def _clip(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        ends = [float(attributes.get("min", -np.inf)), float(attributes.get("max", np.inf))]
        for place in (1, 2):
            if place < len(node.input) and node.input[place]:
                ends[place - 1] = float(self._constant(node, place))
        if not ends[0] <= ends[1]:
            raise self._refuse(node)
        return self._apply(node, clip(*ends))

    def _apply(self, node: NodeProto, function: Any) -> Places:
        places = self.places[node.input[0]]
        return self.network.apply(places.reshape(-1), function).reshape(places.shape)

    # Affine operators

    def _gemm(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        weight = self._constant(node, 1) * attributes.get("alpha", 1.0)
        if node.input[0] not in self.places:
            raise self._refuse(node)
        rows = self.places[node.input[0]].T if attributes.get("transA") else self.places[node.input[0]]
        weight = weight if attributes.get("transB") else weight.T
        bias = self._constant(node, 2) * attributes.get("beta", 1.0) if len(node.input) > 2 else np.zeros(1)
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
        for row, offset in zip(rows, bias, strict=True):
            if np.unique(row).size == row.size:
                made.append(self.network.dense(row, weight, np.array(offset)))
            else:
                made.append(self.network.sparse(np.broadcast_to(row, weight.shape), weight, np.array(offset)))
        return np.stack(made)

    def _add(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._sum(node, 1.0)

    def _sub(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._sum(node, -1.0)

    def _neg(self, node: NodeProto, _: dict[str, Any]) -> Places:
        return self._scaled(self.places[node.input[0]], np.array(-1.0))

    def _sum(self, node: NodeProto, sign: float) -> Places:
        parts = [(self.places.get(name), self.constants.get(name)) for name in node.input]
        (left, left_value), (right, right_value) = parts
        if left is not None and right is not None:
            left, right = np.broadcast_arrays(left, right)
            places = np.array([left.reshape(-1), right.reshape(-1)]).T
            weight = np.broadcast_to(np.array([1.0, sign]), places.shape)
            return self.network.sparse(places, weight, np.zeros(left.size)).reshape(left.shape)
        if left is not None:
            return self._scaled(left, np.array(1.0), sign * np.asarray(right_value, np.float64))
        assert right is not None
        return self._scaled(right, np.array(sign), np.asarray(left_value, np.float64))

    def _mul(self, node: NodeProto, _: dict[str, Any]) -> Places:
        place = 0 if node.input[0] in self.places else 1
        return self._scaled(self.places[node.input[place]], self._constant(node, 1 - place))

    def _div(self, node: NodeProto, _: dict[str, Any]) -> Places:
        divisor = self._constant(node, 1)
        if not (divisor != 0).all():
            raise self._refuse(node)
        return self._scaled(self.places[node.input[0]], 1.0 / divisor)

    def _scaled(self, places: Places, scale: Floats, offset: Floats | None = None) -> Places:
        """scale * x + offset, broadcast."""
        offset = np.zeros(1) if offset is None else offset
        shape = np.broadcast_shapes(places.shape, scale.shape, offset.shape)
        wide = np.broadcast_to(places, shape).reshape(-1, 1)
        weight, bias = np.broadcast_to(scale, shape).reshape(-1, 1), np.broadcast_to(offset, shape).reshape(-1)
        return self.network.sparse(wide, weight, np.array(bias)).reshape(shape)

    def _batchnormalization(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        places = self.places[node.input[0]]
        shape = [1, -1, *[1] * (places.ndim - 2)]
        scale, bias, mean, variance = (self._constant(node, place).reshape(shape) for place in range(1, 5))
        centered = self._scaled(places, np.array(1.0), -mean)  # apart, so that each rounding error is a relative one
        return self._scaled(centered, scale / np.sqrt(variance + attributes.get("epsilon", 1e-5)), bias)

    def _conv(self, node: NodeProto, attributes: dict[str, Any]) -> Places:
        weight = self._constant(node, 1)
        channels, kernel = weight.shape[0], weight.shape[2:]
        windows = self._windows(node, attributes, kernel)  # (channels in, *positions, *kernel)
        groups, positions = attributes.get("group", 1), windows.shape[1 : 1 + len(kernel)]
        each = channels // groups
        bias = self._constant(node, 2) if len(node.input) > 2 else np.zeros(channels)
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
        windows = self._windows(node, attributes, kernel)
        rows = windows.reshape(-1, int(np.prod(kernel)))
        counted = np.ones(rows.shape) if attributes.get("count_include_pad") else (rows >= 0)
        weight = np.broadcast_to(1.0 / counted.sum(axis=1, keepdims=True), rows.shape)
        made = self.network.sparse(rows, weight, np.zeros(rows.shape[0]))
        return made.reshape(1, *windows.shape[: 1 + len(kernel)])

    def _globalaveragepool(self, node: NodeProto, _: dict[str, Any]) -> Places:
        places = self.places[node.input[0]]
        rows = places.reshape(places.shape[0] * places.shape[1], -1)
        made = self.network.sparse(rows, np.full(rows.shape, 1.0 / rows.shape[1]), np.zeros(rows.shape[0]))
        return made.reshape(*places.shape[:2], *(1,) * (places.ndim - 2))

    def _windows(self, node: NodeProto, attributes: dict[str, Any], kernel: tuple[int, ...]) -> Places:
        """The places under each position of a kernel, -1 outside: (channels, *positions, *kernel)."""
        places = self.places[node.input[0]]
        rank = len(kernel)
        strides = attributes.get("strides", [1] * rank)
        dilations = attributes.get("dilations", [1] * rank)
        pads = list(attributes.get("pads", [0] * 2 * rank))
        mode = attributes.get("auto_pad", b"NOTSET")
        odd = places.shape[0] != 1 or places.ndim != rank + 2 or attributes.get("ceil_mode")
        if mode not in (b"NOTSET", b"VALID") or odd:
            raise self._refuse(node)
        padded = np.pad(places[0], [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=-1)
        reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
        views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(1, rank + 1)))
        steps = [slice(None, None, step) for step in (1, *strides, *dilations)]
        return np.asarray(views[tuple(steps)])


def read_network(path: str | Path) -> tuple[Network, bytes]:
    """The network of an ONNX file, plain or gzipped, and the file's uncompressed bytes.

    Raises:
        ModelError: the file cannot be read.
        UnsupportedOperatorError: an operator that the checker does not know.
    """
    try:
        source = Path(path).read_bytes()
        source = gzip.decompress(source) if source[:2] == b"\x1f\x8b" else source
        model = onnx.load_model_from_string(source)
    except Exception as error:
        raise ModelError(f"{path}: is not an ONNX file that can be read: {error}") from error
    return _Reader(model).network, source
