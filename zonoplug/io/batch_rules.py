"""How single ONNX operators take up a batch on axis 0; see `batch_axis`.

A rule changes its node and says what the node's outputs are: "open", "bare" or "turned".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zonoplug.io.graph_facts import constants_of, shapes_of


class CannotCarryBatchError(Exception):
    """An operator for which it is not known how to add the batch."""


class BatchGraph:
    """A graph on its way to a batch, as rules see it: constants folded, shapes inferred, who has a batch and where."""

    def __init__(self, model: ModelProto, input_is_bare: bool) -> None:
        self.graph = model.graph
        self.constants = constants_of(model)
        self.shapes = shapes_of(model)
        self.bare: set[str] = set()
        self.open: set[str] = set()
        self.turned: set[str] = set()
        (self.bare if input_is_bare else self.open).add(self.graph.input[0].name)
        self.nodes: list[NodeProto] = []

    def rank(self, name: str) -> int:
        return len(self.shape(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the file, before any axis was added."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        if name not in self.shapes:
            raise CannotCarryBatchError(f"unknown shape of {name}")
        return self.shapes[name]

    def value(self, name: str) -> NDArray[Any]:
        """The value of a constant."""
        array: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return array

    def constant(self, node: NodeProto, position: int) -> NDArray[np.int64] | None:
        """An integer list given as a constant input; None if there is none."""
        if position >= len(node.input) or not node.input[position]:
            return None
        if node.input[position] not in self.constants:
            raise CannotCarryBatchError(f"{node.op_type} with a computed argument")
        return np.atleast_1d(numpy_helper.to_array(self.constants[node.input[position]])).astype(np.int64)

    def store(self, values: NDArray[Any] | Sequence[int], near: str) -> str:
        """A new initializer; its name."""
        array = np.asarray(values, dtype=None if isinstance(values, np.ndarray | np.generic) else np.int64)
        name = f"{near}__{len(self.graph.initializer)}"
        tensor: TensorProto = numpy_helper.from_array(array, name)
        self.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def become_reshape(self, node: NodeProto, target: Sequence[int]) -> None:
        shape = self.store([-1, *target], node.output[0])
        node.CopyFrom(helper.make_node("Reshape", [node.input[0], shape], list(node.output), name=node.name))


def integer(node: NodeProto, name: str, default: int) -> int:
    """The value of an integer attribute."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def set_integer(node: NodeProto, name: str, value: int) -> None:
    """Give an integer attribute a value."""
    for attribute in list(node.attribute):
        if attribute.name == name:
            node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def shifted(axis: int) -> int:
    """An axis number after an axis was put in front; numbers from the end stay."""
    return axis + 1 if axis >= 0 else axis


def _reshape(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    target, source = carrier.constant(node, 1), carrier.shape(node.input[0])
    if target is None or node.input[1] not in carrier.constants:
        raise CannotCarryBatchError("Reshape to a computed shape")
    sizes = [source[axis] if size == 0 else int(size) for axis, size in enumerate(target)]
    if sizes.count(-1) == 1:
        rest = int(np.prod([size for size in sizes if size != -1], dtype=np.int64))
        sizes[sizes.index(-1)] = int(np.prod(source, dtype=np.int64)) // max(rest, 1)
    becomes_open = sizes[:1] == [1] and (not bare or len(sizes) > 1)
    carrier.become_reshape(node, sizes[1:] if becomes_open else sizes)
    return "open" if becomes_open else "bare"


def _flatten(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    source = carrier.shape(node.input[0])
    axis = integer(node, "axis", 1)
    axis = axis + len(source) if axis < 0 else axis
    if not bare and axis == 1:
        return "open"
    rows, columns = (int(np.prod(part, dtype=np.int64)) for part in (source[:axis], source[axis:]))
    carrier.become_reshape(node, [columns] if rows == 1 else [rows, columns])
    return "open" if rows == 1 else "bare"


def _squeeze(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    source, given = carrier.shape(node.input[0]), carrier.constant(node, 1)
    axes = [axis for axis, size in enumerate(source) if size == 1] if given is None else [int(a) for a in given]
    kept = [size for axis, size in enumerate(source) if axis not in {axis % len(source) for axis in axes}]
    loses_batch = not bare and 0 in {axis % len(source) for axis in axes}
    carrier.become_reshape(node, kept if bare or loses_batch else kept[1:])
    return "bare" if bare or loses_batch else "open"


def _unsqueeze(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    given = carrier.constant(node, 1)
    if given is None:
        raise CannotCarryBatchError("Unsqueeze without axes")
    sizes, rank = list(carrier.shape(node.input[0])), carrier.rank(node.input[0]) + len(given)
    for axis in sorted(int(axis) % rank for axis in given):
        sizes.insert(axis, 1)
    becomes_open = sizes[:1] == [1] and (not bare or 0 in given or -rank in given)
    carrier.become_reshape(node, sizes[1:] if becomes_open else sizes)
    return "open" if becomes_open else "bare"


def _concat(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    if not bare:
        return "open"
    if any(name in carrier.open for name in node.input):
        raise CannotCarryBatchError("Concat of activations with and without a batch")
    set_integer(node, "axis", shifted(integer(node, "axis", 0)))
    for position, name in enumerate(node.input):
        if name in carrier.constants:
            node.input[position] = carrier.store(numpy_helper.to_array(carrier.constants[name])[None], name)
    return "bare"


def _slice(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    if bare:
        starts, axes = carrier.constant(node, 1), carrier.constant(node, 3)
        if starts is None:
            raise CannotCarryBatchError("Slice without limits")
        moved = [shifted(int(axis)) for axis in (range(len(starts)) if axes is None else axes)]
        while len(node.input) < 4:
            node.input.append("")
        node.input[3] = carrier.store(moved, node.output[0])
    return "bare" if bare else "open"


def _transpose(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    if not bare and carrier.rank(node.input[0]) == 2 and _order(carrier, node) == [1, 0]:
        node.CopyFrom(helper.make_node("Identity", list(node.input), list(node.output), name=node.name))
        return "turned"
    if bare:
        order = _order(carrier, node)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("perm", [0, *(axis + 1 for axis in order)]))
    return "bare" if bare else "open"


def _order(carrier: BatchGraph, node: NodeProto) -> list[int]:
    given = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    return given[0] if given else list(reversed(range(carrier.rank(node.input[0]))))


def _gather(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    """The one row of the file's batch leaves the values bare, and nothing is picked."""
    axis = integer(node, "axis", 0) % carrier.rank(node.input[0])
    if bare:
        set_integer(node, "axis", axis + 1)
        return "bare"
    if axis != 0:
        return "open"
    if node.input[1] not in carrier.constants or carrier.value(node.input[1]).tolist() not in (0, -1):
        raise CannotCarryBatchError("Gather along the batch")
    node.CopyFrom(helper.make_node("Identity", [node.input[0]], list(node.output), name=node.name))
    return "bare"


def _one_hot(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    axis = integer(node, "axis", -1)
    if not bare and axis % (carrier.rank(node.input[0]) + 1) == 0:
        raise CannotCarryBatchError("OneHot in front of the batch")
    if bare:
        set_integer(node, "axis", shifted(axis))
    return "bare" if bare else "open"


def _matmul(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    left, right = node.input
    if right in carrier.constants and carrier.rank(right) == 1:
        column = carrier.store(carrier.value(right)[:, None], right)
        between = f"{node.output[0]}__column"
        carrier.nodes.append(helper.make_node("MatMul", [left, column], [between], name=f"{node.name}_column"))
        kept = carrier.shape(node.output[0])
        shape = carrier.store([-1, *(kept if bare else kept[1:])], node.output[0])
        node.CopyFrom(helper.make_node("Reshape", [between, shape], list(node.output), name=node.name))
    elif bare and left in carrier.constants and carrier.rank(right) == 1:
        weight = carrier.store(np.ascontiguousarray(carrier.value(left).T), left)
        del node.input[:]
        node.input.extend([right, weight])
    elif bare and left not in carrier.constants and right not in carrier.constants:
        raise CannotCarryBatchError("MatMul of two activations without a batch")
    elif bare and right in carrier.constants and carrier.rank(right) != 2:
        raise CannotCarryBatchError("MatMul with a constant that is no matrix")
    return "bare" if bare else "open"


def _gemm(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    """alpha A B + beta C with A (rows, n) per point becomes a product and a sum, which take any rank."""
    if not bare:
        return "open"
    if node.input[0] not in carrier.bare or node.input[1] not in carrier.constants or integer(node, "transA", 0):
        raise CannotCarryBatchError("Gemm in this form")
    factors = {attribute.name: attribute.f for attribute in node.attribute if attribute.name in ("alpha", "beta")}
    weight = numpy_helper.to_array(carrier.constants[node.input[1]])
    weight = weight.T if integer(node, "transB", 0) else weight
    product = carrier.store(np.ascontiguousarray(weight * weight.dtype.type(factors.get("alpha", 1.0))), node.input[1])
    if len(node.input) < 3 or not node.input[2]:
        node.CopyFrom(helper.make_node("MatMul", [node.input[0], product], list(node.output), name=node.name))
        return "bare"
    if node.input[2] not in carrier.constants:
        raise CannotCarryBatchError("Gemm with a computed bias")
    bias = numpy_helper.to_array(carrier.constants[node.input[2]])
    offset = carrier.store(bias * bias.dtype.type(factors.get("beta", 1.0)), node.input[2])
    between = f"{node.output[0]}__product"
    carrier.nodes.append(helper.make_node("MatMul", [node.input[0], product], [between], name=f"{node.name}_product"))
    node.CopyFrom(helper.make_node("Add", [between, offset], list(node.output), name=node.name))
    return "bare"


def reduce_rule(carrier: BatchGraph, node: NodeProto, bare: bool) -> str:
    """Sums, means and extremes never run over the batch."""
    rank = carrier.rank(node.input[0])
    given = [list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"]
    listed = carrier.constant(node, 1) if len(node.input) > 1 else (given[0] if given else None)
    if (listed is None or len(listed) == 0) and integer(node, "noop_with_empty_axes", 0):
        return "bare" if bare else "open"
    axes = {int(axis) % rank for axis in (range(rank) if listed is None or len(listed) == 0 else listed)}
    moved = sorted(axis + 1 for axis in axes) if bare else sorted(axes - {0})
    if not moved:
        raise CannotCarryBatchError(f"{node.op_type} over the batch alone")
    if len(node.input) > 1:
        node.input[1] = carrier.store(moved, node.output[0])
    else:
        keep = integer(node, "keepdims", 1)
        del node.attribute[:]
        node.attribute.extend([helper.make_attribute("axes", moved), helper.make_attribute("keepdims", keep)])
    return "bare" if bare or (0 in axes and not integer(node, "keepdims", 1)) else "open"


SPECIAL: dict[str, Callable[[BatchGraph, NodeProto, bool], str]] = {
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "ReduceMax": reduce_rule,
    "ReduceMean": reduce_rule,
    "ReduceMin": reduce_rule,
    "ReduceSum": reduce_rule,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
