"""Linear operators that work axis by axis, read off ONNX Runtime's own answers.

Resize has dozens of forms and AveragePool several, but with all settings constant each is one matrix per axis. The
matrix is what the operator makes of unit vectors. Random tensors then show that the operator is that product of
matrices: two linear maps that agree on a random tensor are the same, up to the precision of the comparison.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from zonoplug.io.constants import session_of

_ROUNDINGS = 64.0  # units roundoff of the sum of absolute values by which the product may differ from the operator
_KINDS = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.float64): onnx.TensorProto.DOUBLE}


class NotSeparableError(Exception):
    """An operator that is no product of one matrix per axis."""


def run_node(
    node: NodeProto, values: NDArray[Any], constants: dict[int, NDArray[Any]], opset: int, outputs: int = 1
) -> NDArray[Any]:
    """What ONNX Runtime makes of one operator alone.

    Args:
        node: for its operator and attributes.
        values: its first input.
        constants: its other inputs by position.
    """
    last = max(constants, default=0)
    names = ["x", *(f"c{position}" if position in constants else "" for position in range(1, last + 1))]
    alone = helper.make_node(node.op_type, names, ["y"], domain=node.domain)
    alone.attribute.extend(node.attribute)
    graph = helper.make_graph(
        [alone],
        "node",
        [helper.make_tensor_value_info("x", _KINDS[values.dtype], values.shape)],
        [helper.make_tensor_value_info("y", _KINDS[values.dtype], None)],
        [numpy_helper.from_array(value, f"c{position}") for position, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    result: NDArray[Any] = session_of(model.SerializeToString()).run(None, {"x": values})[0]
    return result


def with_attributes(node: NodeProto, **values: Any) -> NodeProto:
    """A copy with some attributes set, or dropped where the value is None."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for name, value in values.items():
        for attribute in list(copy.attribute):
            if attribute.name == name:
                copy.attribute.remove(attribute)
        if value is not None:
            copy.attribute.append(helper.make_attribute(name, value))
    return copy


def resize_matrices(
    node: NodeProto, shape: list[int], constants: dict[int, NDArray[Any]], opset: int, dtype: Any
) -> dict[int, NDArray[Any]]:
    """(new size, size) for every axis that Resize changes.

    Args:
        constants: scales by position 2, or sizes by position 3; of the axes it names.
    Raises:
        NotSeparableError: a region of interest, or another form that no matrices give.
    """
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    rank = len(shape)
    axes = [int(axis) % rank for axis in attributes.get("axes", range(rank))]
    position = 3 if constants.get(3) is not None and constants[3].size else 2
    if attributes.get("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        raise NotSeparableError("a region of interest")
    given = dict(zip(axes, constants[position].tolist(), strict=True))
    changed = [axis for axis in sorted(given) if given[axis] != (shape[axis] if position == 3 else 1)]
    plain = with_attributes(node, axes=None)
    found = {}
    for axis in changed:
        carrier = next((other for other in range(rank) if other != axis), None)
        if carrier is None:
            raise NotSeparableError("one axis only")
        if carrier == 0 and rank > 2:
            carrier = next(other for other in range(1, rank) if other != axis)
        probe = [1] * rank
        probe[axis] = probe[carrier] = shape[axis]
        target = np.asarray(probe if position == 3 else [1.0] * rank, constants[position].dtype)
        target[axis] = given[axis]
        unit = np.zeros(probe, dtype)
        np.einsum("ii->i", np.moveaxis(unit, (carrier, axis), (0, 1)).reshape(shape[axis], shape[axis]))[:] = 1
        result = run_node(plain, unit, {position: target}, opset)
        found[axis] = np.moveaxis(result, (carrier, axis), (1, 0)).reshape(-1, shape[axis])
    confirm(lambda x: run_node(node, x, {k: v for k, v in constants.items() if v.size}, opset), shape, found, dtype)
    return found


def pool_matrices(node: NodeProto, shape: list[int], opset: int, dtype: Any) -> dict[int, NDArray[Any]]:
    """(windows, size) for every spatial axis of AveragePool. Raises NotSeparableError if it is no such product."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    rank = len(shape) - 2
    kernel = attributes["kernel_shape"]
    strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    pads = attributes.get("pads", [0] * 2 * rank)
    found = {}
    for axis in range(rank):

        def only(values: Any, otherwise: int, at: int = axis) -> list[int]:
            return [int(values[i]) if i % rank == at else otherwise for i in range(len(values))]

        settings: dict[str, Any] = {"kernel_shape": only(kernel, 1), "strides": only(strides, 1)}
        if "dilations" in attributes:
            settings["dilations"] = only(dilations, 1)
        if "pads" in attributes:
            settings["pads"] = only(pads, 0)
        size = shape[axis + 2]
        probe = [1, size, *(size if i == axis else 1 for i in range(rank))]
        unit = np.eye(size, dtype=dtype).reshape(probe)
        result = run_node(with_attributes(node, **settings), unit, {}, opset)
        found[axis + 2] = result.reshape(size, -1).T
    confirm(lambda x: run_node(node, x, {}, opset), shape, found, dtype)
    return found


def confirm(operator: Any, shape: list[int], matrices: dict[int, NDArray[Any]], dtype: Any) -> None:
    """Raise NotSeparableError unless an operator is the product of matrices along axes, and maps 0 to 0."""
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=shape), 1e3 * rng.normal(size=shape), np.zeros(shape)):
        x = x.astype(dtype)
        expected, size = x.astype(np.float64), np.abs(x).astype(np.float64)
        for axis, matrix in matrices.items():
            wide = matrix.astype(np.float64)
            expected = np.moveaxis(np.tensordot(wide, expected, (1, axis)), 0, axis)
            size = np.moveaxis(np.tensordot(np.abs(wide), size, (1, axis)), 0, axis)
        got = operator(x)
        allowed = _ROUNDINGS * np.finfo(dtype).eps * size
        if got.shape != expected.shape or not (np.abs(got - expected) <= allowed).all():
            raise NotSeparableError("in this form")
