"""Number types inside a graph: where values that depend on the input leave the type that bounds are computed for."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from zonoplug.io.graph_facts import captured, constants_of, shapes_of, subgraphs

Range = tuple[int, int]

_INTEGERS: dict[int, Range] = {
    TensorProto.INT8: (-(2**7), 2**7 - 1),
    TensorProto.INT16: (-(2**15), 2**15 - 1),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.INT64: (-(2**63), 2**63 - 1),
    TensorProto.UINT8: (0, 2**8 - 1),
    TensorProto.UINT16: (0, 2**16 - 1),
    TensorProto.UINT32: (0, 2**32 - 1),
    TensorProto.UINT64: (0, 2**64 - 1),
}
# Operators whose integer results lie among those of the operands at these positions (all where it is empty), or are 0.
_MOVES: dict[str, tuple[int, ...]] = {
    "Compress": (0,), "Concat": (), "DepthToSpace": (0,), "Expand": (0,), "Flatten": (0,), "Gather": (0,),
    "GatherElements": (0,), "GatherND": (0,), "Identity": (), "Max": (), "Min": (), "OneHot": (2,), "Pad": (0, 2),
    "ReduceMax": (0,), "ReduceMin": (0,), "Reshape": (0,), "ScatterElements": (0, 2), "ScatterND": (0, 2),
    "Slice": (0,), "SpaceToDepth": (0,), "Split": (0,), "Squeeze": (0,), "Tile": (0,), "Transpose": (0,),
    "Trilu": (0,), "Unsqueeze": (0,), "Where": (1, 2),
}  # fmt: skip


def type_obstacle(model: ModelProto, source: str) -> str | None:
    """Why nothing is proved: a live value of a type in which the real function is not what is computed; None if none.

    Values of half precision and narrower round at every step and overflow early, and a change between FLOAT and DOUBLE
    rounds where no bound looks for it. Integers are what they are taken for as long as they cannot wrap around; a cast
    to integers may, and is bounded by the range of its type.

    Args:
        model: with shapes inferred, its constants not yet folded: a runtime drops some pairs of casts.
        source: the name of its input.
    """
    kinds = _kinds(model.graph)
    ranges = _Ranges(model, kinds)
    own, live = kinds[source], {source}
    for node in _every_node(model.graph):
        if node.op_type in ("Shape", "Size") or not live.intersection([*node.input, *captured(node)]):
            continue
        outputs = [name for name in node.output if name]
        live.update(outputs)
        for name in outputs:
            trouble = ranges.trouble(node, name) if kinds.get(name) in _INTEGERS else _trouble(kinds.get(name), own)
            if trouble is not None:
                return f"{node.op_type} (node {node.name or outputs[0]!r}) {trouble}"
    return None


def _trouble(kind: int | None, own: int) -> str | None:
    if kind is None:
        return "gives values of a number type that is not known"
    if kind in (own, TensorProto.BOOL):
        return None
    name = TensorProto.DataType.Name(kind)
    if kind in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return f"takes values of the input from {TensorProto.DataType.Name(own)} to {name}"
    return f"rounds values of the input to {name}"


class _Ranges:
    """Ranges of integers that depend on the input, by name, found node by node in their order."""

    def __init__(self, model: ModelProto, kinds: dict[str, int]) -> None:
        self._kinds, self._shapes, self._constants = kinds, shapes_of(model), constants_of(model)
        self._found: dict[str, Range] = {}

    def trouble(self, node: NodeProto, name: str) -> str | None:
        """Why an integer output may not be what its operator says in exact arithmetic; None, and filed, if it is."""
        kind = self._kinds[name]
        least, most = _INTEGERS[kind]
        found = self._range(node, name)
        if found is None or found[0] < least or found[1] > most:
            return f"computes values of the input in {TensorProto.DataType.Name(kind)}, which may wrap or saturate"
        self._found[name] = found
        return None

    def _range(self, node: NodeProto, name: str) -> Range | None:
        full = _INTEGERS[self._kinds[name]]
        operator = node.op_type
        if operator in ("ArgMax", "ArgMin", "TopK"):
            return 0, max(self._shapes.get(node.input[0], (2**31,)))
        if operator in ("Cast", "CastLike"):
            given = self._of(node.input[0])
            return full if given is None or given[0] < full[0] or given[1] > full[1] else given
        if operator in _MOVES:
            chosen = [node.input[at] for at in _MOVES[operator] if at < len(node.input)] or list(node.input)
            return _hull([(0, 0), *(self._of(other) for other in chosen if other)])
        operands = [self._of(other) for other in node.input[: 1 if operator == "ReduceSum" else None]]
        if any(operand is None for operand in operands):
            return None
        return self._computed(node, [operand for operand in operands if operand is not None])

    def _computed(self, node: NodeProto, operands: list[Range]) -> Range | None:
        if node.op_type == "ReduceSum":
            count = prod(self._shapes.get(node.input[0], (2**63,)))
            return min(count * operands[0][0], 0), max(count * operands[0][1], 0)
        (a, b), *rest = operands
        if node.op_type == "Neg":
            return -b, -a
        if len(rest) != 1:
            return None
        ((c, d),) = rest
        products = (a * c, a * d, b * c, b * d)
        known = {"Add": (a + c, b + d), "Sub": (a - d, b - c), "Mul": (min(products), max(products))}
        return known.get(node.op_type)

    def _of(self, name: str) -> Range | None:
        """The range of a value; None for what is no integer."""
        if name in self._constants:
            values = numpy_helper.to_array(self._constants[name])
            integers = np.issubdtype(values.dtype, np.integer) or values.dtype == np.bool_
            return (int(values.min()), int(values.max())) if integers and values.size else None
        if self._kinds.get(name) == TensorProto.BOOL:
            return 0, 1
        kind = self._kinds.get(name)
        return self._found.get(name, _INTEGERS.get(kind) if kind is not None else None)


def _hull(ranges: list[Range | None]) -> Range | None:
    known = [one for one in ranges if one is not None]
    if len(known) != len(ranges):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _kinds(graph: onnx.GraphProto) -> dict[str, int]:
    """Element types by name, of everything that has one, subgraphs included."""
    kinds = {
        value.name: int(value.type.tensor_type.elem_type)
        for value in [*graph.input, *graph.value_info, *graph.output]
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type
    }
    kinds.update({tensor.name: int(tensor.data_type) for tensor in graph.initializer})
    for node in graph.node:
        for inner in subgraphs(node):
            kinds.update(_kinds(inner))
    return kinds


def _every_node(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """The nodes in their order, those of subgraphs before the node that holds them."""
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _every_node(inner)
        yield node
