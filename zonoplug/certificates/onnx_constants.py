"""The constant part of an ONNX graph: what the checker may evaluate itself, and how exact that is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
MOVING = frozenset(
    "Concat Expand Flatten Gather Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze".split()
)  # what only moves numbers about
EXACT = MOVING | {"Constant", "ConstantOfShape", "Shape", "Neg", "Abs"}
ROUNDED = frozenset({"Add", "Sub", "Mul", "Div", "Sqrt"})  # correctly rounded by every evaluation


def evaluate(node: NodeProto, operands: dict[str, Array], opsets: list[Any]) -> dict[str, Array]:
    """The onnx package's own evaluation of one node: its outputs by name."""
    kind = TensorProto.FLOAT  # not looked at
    values = [helper.make_tensor_value_info(name, kind, None) for name in operands]
    names = [name for name in node.output if name]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in names]
    model = helper.make_model(helper.make_graph([node], "one", values, outputs), opset_imports=opsets)
    found = ReferenceEvaluator(model).run(None, operands)
    return {name: np.asarray(value) for name, value in zip(names, found, strict=True)}


def constant_outputs(
    node: NodeProto, operands: dict[str, Array], rounded: Collection[str], opsets: list[Any]
) -> tuple[dict[str, Array], bool] | None:
    """The outputs of a node of constants, and whether they are off by a rounding; None if it is not to be trusted.

    Args:
        operands: by name.
        rounded: names of constants that are off by a rounding already: they may be moved, and no more.
    """
    off = any(name in rounded for name in operands)
    if node.op_type in EXACT and not (off and node.op_type not in MOVING):
        return evaluate(node, operands, opsets), off
    if node.op_type == "Cast":
        return _cast(node, operands, off)
    if node.op_type in ROUNDED and not off:
        found = evaluate(node, operands, opsets)
        kinds = {value.dtype.kind for value in (*operands.values(), *found.values())}
        if kinds == {"f"}:
            return found, True
        if kinds == {"i"} and node.op_type in ("Add", "Sub", "Mul") and _is_small(operands, found):
            return found, False
    return None


def _cast(node: NodeProto, operands: dict[str, Array], off: bool) -> tuple[dict[str, Array], bool] | None:
    """Casts that change no number, or round float64 to float32."""
    (value,) = operands.values()
    target = helper.tensor_dtype_to_np_dtype(helper.get_node_attr_value(node, "to"))
    if value.dtype.kind not in "fiu" or target.kind not in "fiu":
        return None
    with np.errstate(all="ignore"):
        made = value.astype(target)
    same = bool((made.astype(np.float64) == value.astype(np.float64)).all()) and bool(
        np.abs(value).max(initial=0) < 2**52
    )
    if not same and not (value.dtype == np.float64 and target == np.float32 and not off):
        return None
    return {node.output[0]: made}, off


def _is_small(operands: dict[str, Array], found: dict[str, Array]) -> bool:
    """Whether whole numbers are so small that nothing wrapped."""
    return all(
        bool((np.abs(value.astype(np.float64)) < 2**31).all()) for value in (*operands.values(), *found.values())
    )
