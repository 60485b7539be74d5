"""Number types inside a graph: where values that depend on the input leave the type that bounds are computed for."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import ModelProto, NodeProto, TensorProto

_INTEGERS = frozenset(
    (TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16,
     TensorProto.UINT32, TensorProto.UINT64)
)  # fmt: skip
# What makes integers of values soundly: places, and casts, whose images stay in the type's range whatever wraps.
_MAKE_INTEGERS = frozenset(("ArgMax", "ArgMin", "Cast", "CastLike", "TopK"))
# What moves, picks or compares integers and computes nothing that could wrap around.
_MOVE_INTEGERS = frozenset(
    "Compress Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Max Min OneHot Pad ReduceMax"
    " ReduceMin Reshape ScatterElements ScatterND Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze"
    " Where".split()
)


def type_obstacle(model: ModelProto, live_inputs: set[str]) -> str | None:
    """Why nothing is proved: a live value of a type in which the real function is not what is computed; None if none.

    Values of half precision and narrower round at every step and overflow early, integers wrap around, and a change
    between FLOAT and DOUBLE rounds where no bound looks for it. Casts to integers are bounded by their range.

    Args:
        model: as it is in the file, its constants not yet folded: a runtime drops some pairs of casts.
        live_inputs: names of graph inputs that are not constant.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = _kinds(inferred)
    own = next(kinds[name] for name in live_inputs)
    live = set(live_inputs)
    for node in _every_node(inferred.graph):
        if node.op_type in ("Shape", "Size") or not live.intersection(_reads(node)):
            continue
        outputs = [name for name in node.output if name]
        live.update(outputs)
        for name in outputs:
            trouble = _trouble(node, kinds.get(name), own)
            if trouble is not None:
                return f"{node.op_type} (node {node.name or outputs[0]!r}) {trouble}"
    return None


def _trouble(node: NodeProto, kind: int | None, own: int) -> str | None:
    if kind is None:
        return "gives values of a number type that is not known"
    if kind in (own, TensorProto.BOOL):
        return None
    name = TensorProto.DataType.Name(kind)
    if kind in _INTEGERS:
        if node.op_type in _MAKE_INTEGERS | _MOVE_INTEGERS:
            return None
        return f"computes values of the input in {name}, which may wrap around or saturate"
    if kind in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return f"takes values of the input from {TensorProto.DataType.Name(own)} to {name}"
    return f"rounds values of the input to {name}"


def _kinds(model: ModelProto) -> dict[str, int]:
    """Element types by name, of everything that has one."""
    kinds: dict[str, int] = {}

    def read(graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.value_info, *graph.output]:
            if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
                kinds[value.name] = value.type.tensor_type.elem_type
        kinds.update({tensor.name: tensor.data_type for tensor in graph.initializer})
        for node in graph.node:
            for inner in _subgraphs(node):
                read(inner)

    read(model.graph)
    return kinds


def _every_node(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """The nodes in their order, those of subgraphs before the node that holds them."""
    for node in graph.node:
        for inner in _subgraphs(node):
            yield from _every_node(inner)
        yield node


def _reads(node: NodeProto) -> Iterator[str]:
    """What a node reads, its subgraphs included."""
    yield from node.input
    for inner in _subgraphs(node):
        for part in _every_node(inner):
            yield from part.input
        yield from (value.name for value in inner.output)


def _subgraphs(node: NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
