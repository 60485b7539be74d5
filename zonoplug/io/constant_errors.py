"""How far the constants that a runtime folds may be from what the file's constants say.

ONNX Runtime folds in the file's own number type. Where terms cancel, as in 1e8 + 1 - 1e8, its constant is not that of
the real function, and no bound computed from one of them holds for the other. Each operator on constants is evaluated
in the file's type and in float64, and again with its operands moved by their errors so far: that shows by how much it
magnifies them, and so whether float64 is to be believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zonoplug.io.constants import session_of
from zonoplug.io.graph_facts import captured, constants_of, shapes_of

ROUNDINGS = 4.0  # units roundoff by which a folded constant may differ: bounds allow for that in every product
_TRUSTED = 2.0**20  # units roundoff of float32 to which errors may grow where float64 is to be believed
_UNCHECKED = 16.0  # units roundoff to which errors may grow in float64 files, which nothing more precise checks
_DRAWS = 6  # random signs of the errors of operands
_STEP = 1024.0  # errors are magnified by this before they are added, so that float64 shows them
# What moves constants about, or makes them, without arithmetic on floating-point values.
_EXACT = frozenset(
    "Cast CastLike Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements"
    " GatherND Identity NonZero OneHot Pad Reshape ScatterElements ScatterND Shape Size Slice SpaceToDepth Split"
    " Squeeze Tile Transpose Trilu Unsqueeze Where".split()
)
# Sums, inside which terms may cancel: their error is that of the sum of absolute values.
_SUMS = frozenset("Add AveragePool Conv CumSum Einsum Gemm MatMul Mean ReduceMean ReduceSum Sub Sum".split())
_INTEGERS = (TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class _Known:
    """A constant in float64, or of its integer type, and as it is folded.

    Attributes:
        error: an estimate of what rounding to the file's type may do to it on the way; None for integers.
    """

    value: NDArray[Any]
    folded: NDArray[Any]
    error: NDArray[Any] | None


class _UnknownError(Exception):
    """An operator that cannot be evaluated here."""


def constant_obstacle(model: ModelProto) -> str | None:
    """Which folded constant may be further from the real one than bounds allow for, in words; None for none.

    Args:
        model: with one input of static shape, and shapes inferred; its constants not yet folded.
    """
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    live = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and live.intersection([*node.input, *captured(node)]):
            live.update(node.output)
    read = {name for node in graph.node if live.intersection(node.output) for name in [*node.input, *captured(node)]}
    read |= {value.name for value in graph.output}
    folder = _Folder(model, made)
    for name in sorted(read - live):
        if name not in made or folder.is_exact(name):
            continue
        node = made[name]
        who = f"the constant that {node.op_type} (node {node.name or name!r}) gives"
        try:
            known = folder.of(name)
        except (_UnknownError, RecursionError):
            return f"{who} cannot be computed in another precision"
        if not _is_close(known, folder.unit):
            return f"{who} loses digits where it is folded"
    return None


def _is_close(known: _Known, unit: float) -> bool:
    if known.error is None:
        return bool(np.array_equal(known.value, known.folded))
    value, folded = known.value, known.folded.astype(np.float64)
    narrow = known.folded.dtype == np.float32
    with np.errstate(invalid="ignore"):
        near = np.abs(value - folded) <= ROUNDINGS * unit * np.abs(value)
        near &= known.error <= (_TRUSTED if narrow else _UNCHECKED) * unit * np.abs(value)
    return bool((near | ~np.isfinite(value) & ((value == folded) | (np.isnan(value) & np.isnan(folded)))).all())


class _Folder:
    """Constants of one model, computed as they are asked for."""

    def __init__(self, model: ModelProto, made: dict[str, NodeProto]) -> None:
        self._model, self._made, self._shapes = model, made, shapes_of(model)
        self._kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]
        }
        self._kinds.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
        self._opset = [(entry.domain, entry.version) for entry in model.opset_import]
        kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
        self.unit = float(np.finfo(np.float64 if TensorProto.DOUBLE in kinds else np.float32).eps) / 2
        self._known: dict[str, _Known] = {}
        for name, tensor in constants_of(model).items():
            value = numpy_helper.to_array(tensor)
            is_float = np.issubdtype(value.dtype, np.floating)
            wide = value.astype(np.float64) if is_float else value
            self._known[name] = _Known(wide, value, np.zeros(value.shape) if is_float else None)
        self._rng = np.random.default_rng(0)

    def is_exact(self, name: str) -> bool:
        """Whether only operators that move constants lie above one."""
        waiting, seen = [name], set()
        while waiting:
            node = self._made.get(waiting.pop())
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
            if (node.op_type not in _EXACT or to in _HALVES) and not self._is_of_integers(node):
                return False
            waiting.extend(node.input if node.op_type not in ("Shape", "Size") else ())
        return True

    def _is_of_integers(self, node: NodeProto) -> bool:
        """Whether an operator neither reads nor gives floating-point values."""
        return all(self._kinds.get(name, 0) in _INTEGERS for name in [*node.input, *node.output] if name)

    def of(self, name: str) -> _Known:
        """A constant by name. Raises _UnknownError."""
        if name not in self._known:
            if name not in self._made:
                raise _UnknownError
            self._evaluate(self._made[name])
        return self._known[name]

    def _evaluate(self, node: NodeProto) -> None:
        if node.op_type in ("Shape", "Size"):
            shape = self._shape(node)
            self._known[node.output[0]] = _Known(shape, shape, None)
            return
        if captured(node):
            raise _UnknownError
        names = [name for name in node.input if name]
        operands = [self.of(name) for name in names]
        outputs = self._run(node, names, [operand.value for operand in operands])
        folded = self._run(node, names, [operand.folded for operand in operands], widen=False)
        moved = [self._moved(node, names, operands) for _ in range(_DRAWS)]
        sizes = outputs
        if node.op_type in _SUMS:
            absolute = [abs(operand.value) if operand.error is not None else operand.value for operand in operands]
            sizes = self._run(_with_plus(node), names, absolute)
        for position, name in enumerate(name for name in node.output if name):
            value = outputs[position]
            if not np.issubdtype(value.dtype, np.floating):
                if any(not np.array_equal(values[position], value) for values in moved):
                    raise _UnknownError  # an integer that rounding may change
                self._known[name] = _Known(value, folded[position], None)
                continue
            with np.errstate(invalid="ignore", over="ignore"):
                carried = np.max([np.abs(values[position] - value) for values in moved], axis=0) / _STEP
                local = 0.0 if node.op_type in _EXACT else self.unit * np.abs(sizes[position])
                error = np.where(np.isfinite(value), np.nan_to_num(carried, nan=0.0) + local, 0.0)
            self._known[name] = _Known(value, folded[position], error)

    def _moved(self, node: NodeProto, names: list[str], operands: list[_Known]) -> list[NDArray[Any]]:
        """The node's outputs for operands that differ by their magnified errors."""
        values = []
        for operand in operands:
            if operand.error is None:
                values.append(operand.value)
            else:
                signs = self._rng.choice([-1.0, 1.0], operand.value.shape)
                values.append(operand.value + _STEP * operand.error * signs)
        return self._run(node, names, values)

    def _shape(self, node: NodeProto) -> NDArray[Any]:
        """What Shape or Size gives: the input's own shape settles it."""
        name = node.input[0]
        shape = self._known[name].value.shape if name in self._known else self._shapes.get(name)
        if shape is None:
            return self._by_running(node.output[0])
        if node.op_type == "Size":
            return np.asarray(int(np.prod(shape, dtype=np.int64)))
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        return np.asarray(shape[ends.get("start", 0) : ends.get("end", len(shape))], dtype=np.int64)

    def _by_running(self, name: str) -> NDArray[Any]:
        """A value that does not depend on the input's, from a run of the whole model. Raises _UnknownError."""
        model = ModelProto()
        model.CopyFrom(self._model)
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
        kind = model.graph.input[0].type.tensor_type
        zeros = np.zeros([axis.dim_value for axis in kind.shape.dim], helper.tensor_dtype_to_np_dtype(kind.elem_type))
        try:
            return np.asarray(session_of(model.SerializeToString()).run(None, {model.graph.input[0].name: zeros})[0])
        except Exception as error:
            raise _UnknownError from error

    def _run(
        self, node: NodeProto, names: list[str], values: list[NDArray[Any]], widen: bool = True
    ) -> list[NDArray[Any]]:
        """One operator, in float64 or as it is. Raises _UnknownError."""
        inputs = dict(zip(names, values, strict=True))
        copy = NodeProto()
        copy.CopyFrom(node)
        for attribute in copy.attribute if widen else ():
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
        graph = helper.make_graph(
            [copy],
            "node",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in inputs.items()
            ],
            [helper.make_empty_tensor_value_info(name) for name in copy.output if name],
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in self._opset]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        for evaluate in (_by_runtime, _by_reference):
            try:
                return [np.asarray(value) for value in evaluate(model, inputs)]
            except Exception:  # it lacks the operator in float64
                continue
        raise _UnknownError


def _with_plus(node: NodeProto) -> NodeProto:
    """The operator whose value at absolute values is the sum of the absolute terms."""
    copy = NodeProto()
    copy.CopyFrom(node)
    if node.op_type == "Sub":
        copy.op_type = "Add"
    for attribute in copy.attribute:
        if attribute.name in ("alpha", "beta"):
            attribute.f = abs(attribute.f)
    return copy


def _by_runtime(model: ModelProto, inputs: dict[str, NDArray[Any]]) -> Any:
    return session_of(model.SerializeToString()).run(None, inputs)


def _by_reference(model: ModelProto, inputs: dict[str, NDArray[Any]]) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, inputs)
