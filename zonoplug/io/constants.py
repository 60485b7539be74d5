"""Folding the constant parts of an ONNX graph, and finding out where folding loses what the constants say.

ONNX Runtime folds in the file's own number type. Where terms cancel, as in 1e8 + 1 - 1e8, its constant is not that of
the real function, and no bound computed from one of them holds for the other.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zonoplug.io.graph_facts import captured

ROUNDINGS = 4.0  # units roundoff by which a folded constant may differ: bounds allow for that in every product
_NARROWED_ROUNDINGS = 16.0  # the same where the terms too were rounded to the narrower type
_KINDS = {TensorProto.FLOAT: TensorProto.DOUBLE, TensorProto.DOUBLE: TensorProto.FLOAT}
# What moves constants about, or makes them, without arithmetic on floating-point values.
_EXACT = frozenset(
    "Cast CastLike Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements"
    " GatherND Identity NonZero OneHot Pad Reshape ScatterElements ScatterND Shape Size Slice SpaceToDepth Split"
    " Squeeze Tile Transpose Trilu Unsqueeze Where".split()
)
# Rewritings of ONNX Runtime that compute new constants in the file's type, or change what is rounded and where.
UNWANTED = [
    "CastChainElimination", "CastElimination", "ConvAddFusion", "ConvBNFusion", "ConvMulFusion", "DivMulFusion",
    "FuseFp16InitializerToFp32NodeTransformer", "GeluFusionL1", "GemmSumFusion", "LayerNormFusionL1", "MatMulAddFusion",
    "MatMul_BatchNormalization_Fusion", "RemoveDuplicateCastTransformer", "SimplifiedLayerNormFusion",
]  # fmt: skip


def session_of(source: bytes, optimised: str | None = None) -> Any:
    """An ONNX Runtime session on one thread that changes nothing, or that writes its basic optimisation to a file."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # kernels warn of old attributes, once for each session
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if optimised is None else levels.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    unwanted = None
    if optimised is not None:
        options.optimized_model_filepath, unwanted = optimised, UNWANTED
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted
    )


def fold_constants(model: ModelProto) -> ModelProto:
    """Let ONNX Runtime fold constants and drop what is redundant; operators on values of the input stay as they are."""
    handle, name = tempfile.mkstemp(suffix=".onnx")
    os.close(handle)
    try:
        session_of(model.SerializeToString(), optimised=name)
        return onnx.load(name)
    finally:
        Path(name).unlink(missing_ok=True)


def constant_obstacle(model: ModelProto) -> str | None:
    """Which folded constant differs from what float64 arithmetic makes of the same terms, in words; None for none.

    Args:
        model: with one input of static shape; its constants not yet folded.
    """
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    live = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and live.intersection([*node.input, *captured(node)]):
            live.update(node.output)
    read = {name for node in graph.node if live.intersection(node.output) for name in node.input}
    read |= {value.name for value in graph.output}
    wanted = sorted(name for name in read - live if name in made and not _all_exact(name, made))
    if not wanted:
        return None
    values, others = _run(_part(model, made, wanted)), None
    for evaluate in (_run, _run_by_reference):
        try:
            others = others or evaluate(_in_other_precision(_part(model, made, wanted)))
        except Exception:  # one of them lacks the operator in that type
            continue
    for position, name in enumerate(wanted):
        if others is None and not np.issubdtype(values[position].dtype, np.floating):
            continue
        if others is None or not _close(values[position], others[position]):
            node = made[name]
            what = "cannot be computed in another precision" if others is None else "loses digits where it is folded"
            return f"the constant that {node.op_type} (node {node.name or name!r}) gives {what}"
    return None


def _close(values: NDArray[Any], others: NDArray[Any]) -> bool:
    """Whether two evaluations, one in float32 and one in float64, differ as if nothing had cancelled."""
    if not np.issubdtype(values.dtype, np.floating):
        return bool(np.array_equal(values, others))
    roundings = ROUNDINGS if values.dtype == np.float32 else _NARROWED_ROUNDINGS
    allowed = roundings * float(np.finfo(np.float32).eps) / 2
    left, right = values.astype(np.float64), others.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(left - right) <= allowed * np.maximum(np.abs(left), np.abs(right))
    return bool((near | (left == right) | (np.isnan(left) & np.isnan(right))).all())


def _is_exact(node: NodeProto) -> bool:
    """Whether a node only moves constants, or computes with small integers: casts to narrow types do neither."""
    if node.op_type not in _EXACT:
        return False
    to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), TensorProto.FLOAT)
    return node.op_type != "CastLike" and to not in (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def _all_exact(name: str, made: dict[str, NodeProto]) -> bool:
    """Whether only exact operators lie above a constant."""
    return all(_is_exact(node) for node in _above([name], made, through_shapes=False))


def _above(names: list[str], made: dict[str, NodeProto], through_shapes: bool) -> list[NodeProto]:
    """The nodes from which names are computed."""
    waiting, found = list(names), {}
    while waiting:
        name = waiting.pop()
        node = made.get(name)
        if node is not None and id(node) not in found:
            found[id(node)] = node
            if through_shapes or node.op_type not in ("Shape", "Size"):
                waiting.extend([*node.input, *captured(node)])
    return list(found.values())


def _part(model: ModelProto, made: dict[str, NodeProto], outputs: list[str]) -> ModelProto:
    """What computes some constants, as a model of its own; it has the input too, of which shapes may be taken."""
    part = ModelProto()
    part.CopyFrom(model)
    kinds = {value.name: value.type for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    chosen = {id(node) for node in _above(outputs, made, through_shapes=True)}
    nodes = [node for node in model.graph.node if id(node) in chosen]
    del part.graph.node[:], part.graph.output[:], part.graph.value_info[:]
    part.graph.node.extend(nodes)
    read = {name for node in nodes for name in [*node.input, *captured(node)]}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del part.graph.initializer[:]
    part.graph.initializer.extend(kept)
    for name in outputs:
        kind = kinds[name].tensor_type.elem_type if name in kinds else TensorProto.FLOAT
        part.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return part


def _in_other_precision(model: ModelProto) -> ModelProto:
    """The same in float64 wherever it is in float32, and the other way round; `model` is changed."""
    graph = model.graph
    for tensor in graph.initializer:
        _swap(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _swap(attribute.t)
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = np.asarray(helper.get_attribute_value(attribute), dtype=np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(values)))
            elif attribute.name in ("to", "dtype") and attribute.type == AttributeProto.INT:
                attribute.i = _KINDS.get(attribute.i, attribute.i)
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    for value in [*graph.input, *graph.output]:
        kind = value.type.tensor_type
        kind.elem_type = _KINDS.get(kind.elem_type, kind.elem_type)
    del graph.value_info[:]
    return model


def _swap(tensor: TensorProto) -> None:
    if tensor.data_type in _KINDS:
        other = np.float64 if tensor.data_type == TensorProto.FLOAT else np.float32
        with np.errstate(over="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(other), tensor.name))


def _run(model: ModelProto) -> list[NDArray[Any]]:
    values: list[NDArray[Any]] = session_of(model.SerializeToString()).run(None, _zeros(model))
    return values


def _run_by_reference(model: ModelProto) -> list[NDArray[Any]]:
    from onnx.reference import ReferenceEvaluator

    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, _zeros(model))]


def _zeros(model: ModelProto) -> dict[str, NDArray[Any]]:
    """A point for the input, whose shape alone matters."""
    (value,) = model.graph.input
    kind = value.type.tensor_type
    shape = [dimension.dim_value for dimension in kind.shape.dim]
    return {value.name: np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))}
