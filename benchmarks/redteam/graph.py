"""Writes ONNX graphs, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Operand = str | Array | float | int | Sequence[float]


class SkipError(Exception):
    """This draw gives no instance: ONNX Runtime cannot run the graph, or nothing finite comes out."""


class Graph:
    """A graph with one input X.

    Args:
        shape: of X, batch axis of size 1 included.
        dtype: np.float32 or np.float64, of X, of Y and of plain numbers among the operands.
        opset: version of the operator set.
    """

    def __init__(self, shape: Sequence[int], dtype: Any = np.float32, opset: int = 17) -> None:
        self.shape, self.dtype, self.opset = tuple(shape), np.dtype(dtype), opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    @property
    def count(self) -> int:
        return int(np.prod(self.shape))

    def const(self, value: Any, dtype: Any = None) -> str:
        """The name of a constant; floats take the graph's type unless another is given, whole numbers int64."""
        array = np.asarray(value)
        if dtype is None:
            dtype = self.dtype if array.dtype.kind == "f" else np.int64 if array.dtype.kind == "i" else array.dtype
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, dtype=dtype, order="C"), name))
        return name

    def add(self, kind: str, *operands: Operand, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Append a node. Returns the name of its output, or a list of names."""
        names = [item if isinstance(item, str) else self.const(item) for item in operands]
        made = [f"v{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def reduce(self, kind: str, x: str, axes: Sequence[int] | None, keepdims: int = 1) -> str:
        """A reduction; its axes stand where this operator set wants them."""
        as_input = self.opset >= (13 if kind == "ReduceSum" else 18)
        if axes is None:
            return str(self.add(kind, x, keepdims=keepdims))
        if as_input:
            return str(self.add(kind, x, np.array(axes), keepdims=keepdims))
        return str(self.add(kind, x, axes=list(axes), keepdims=keepdims))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, as ONNX Runtime computes it. Raises SkipError if it cannot."""
        try:
            session = onnxruntime.InferenceSession(self.model(name, name), quiet(), providers=["CPUExecutionProvider"])
            return tuple(session.run(None, {"X": np.full(self.shape, 0.25, self.dtype)})[0].shape)
        except Exception as error:
            raise SkipError(str(error)) from error

    def rows(self, name: str) -> str:
        """The tensor as one row (1, n)."""
        return str(self.add("Reshape", name, np.array([1, -1])))

    def model(self, output: str, name: str = "Y") -> bytes:
        """The graph as ONNX, with one output Y."""
        kind = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[self.dtype.name]
        nodes, constants = self._needed(output)
        if name != output:
            nodes.append(helper.make_node("Identity", [output], [name]))
        result = helper.make_tensor_value_info(name, kind, None)
        if name == output:  # of any type: only its shape is wanted
            result = helper.make_empty_tensor_value_info(name)
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("X", kind, self.shape)], [result], constants
        )
        imports = [helper.make_opsetid("", self.opset)]
        if any(node.domain == "com.microsoft" for node in nodes):
            imports.append(helper.make_opsetid("com.microsoft", 1))
        model: onnx.ModelProto = helper.make_model(
            graph, opset_imports=imports, ir_version=8 if self.opset < 19 else 10
        )
        return bytes(model.SerializeToString())

    def _needed(self, output: str) -> tuple[list[Any], list[Any]]:
        """Nodes and constants that a tensor depends on, in their order."""
        wanted, kept = {output}, []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        return kept[::-1], [tensor for tensor in self.constants if tensor.name in wanted]


def quiet(level: Any = None) -> onnxruntime.SessionOptions:
    """Options of a session that says nothing and takes one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if level is not None:
        options.graph_optimization_level = level
    return options
