"""What can be read off an ONNX graph without running it: constants, shapes, what depends on the input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

# Inputs that shape a computation: if one is computed from the network's input, so is the structure of the network.
_STRUCTURAL = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}
_STRUCTURE_FROM_VALUES = frozenset(("If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "Unique"))


def constants_of(model: ModelProto) -> dict[str, TensorProto]:
    """Initializers and Constant nodes by name."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
                elif attribute.name in ("value_int", "value_ints"):
                    value = np.asarray(helper.get_attribute_value(attribute), dtype=np.int64)
                    constants[node.output[0]] = numpy_helper.from_array(value)
    return constants


def shapes_of(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of activations, as far as they are known."""
    shapes = {}
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dimension.HasField("dim_value") for dimension in kind.shape.dim):
            shapes[value.name] = tuple(dimension.dim_value for dimension in kind.shape.dim)
    return shapes


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captured(node: NodeProto) -> set[str]:
    """Names that the subgraphs of a node read, their own among them."""
    names: set[str] = set()
    for inner in subgraphs(node):
        names.update(value.name for value in inner.output)
        for part in inner.node:
            names.update(part.input)
            names |= captured(part)
    return names


def needed_inputs(model: ModelProto, output: str) -> set[str]:
    """Names from which `output` is computed: graph inputs, initializers and what lies between."""
    makers = {name: node for node in model.graph.node for name in node.output}
    needed: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            if name in makers:
                waiting.extend([*makers[name].input, *captured(makers[name])])
    return needed


def computed_structure(model: ModelProto) -> str | None:
    """Which operator's shape, indices or control flow are computed from the network's input, in words; None for none.

    A graph traced at one point would be wrong at others.
    """
    live = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if not live.intersection([*node.input, *captured(node)]):
            continue
        if node.op_type in _STRUCTURE_FROM_VALUES:
            return f"what {node.op_type} gives depends on the values of the input"
        for position in _STRUCTURAL.get(node.op_type, ()):
            if position < len(node.input) and node.input[position] in live:
                return f"{node.op_type} takes its shape, limits or indices from the values of the input"
        if node.op_type != "Shape":
            live.update(node.output)
    return None
