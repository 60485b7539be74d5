"""Rewrite an ONNX graph into an equal one that the converter and the host can take, with a batch on axis 0."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from zonoplug.io.batch_axis import BatchCarrier
from zonoplug.io.batch_rules import CannotCarryBatchError
from zonoplug.io.constants import fold_constants
from zonoplug.io.graph_facts import constants_of, shapes_of

MIN_OPSET = 13
_SEVERAL = ("Split", "TopK")  # operators whose modules give all their outputs


def normalise(model: ModelProto, input_is_bare: bool) -> tuple[ModelProto, bool]:
    """A graph that computes what `model` does, and whether it has a batch on axis 0 throughout.

    Constants are folded, dead nodes go; the operator set is at least 13; a matrix product followed by a bias is one
    Gemm if its operands are matrices, and stays apart otherwise. Nothing is merged that is rounded apart in the file.

    Args:
        model: with one input of static shape; changed.
        input_is_bare: the input has no batch axis; it gains one, if that is possible.
    """
    model = infer_shapes(_raise_opset(fold_constants(model)))
    carried = ModelProto()
    carried.CopyFrom(model)
    try:
        BatchCarrier(carried, input_is_bare).run()
    except CannotCarryBatchError:
        has_batch = False
    else:
        model, has_batch = infer_shapes(carried), True
    _fuse_matmul_add(model)
    _drop_unused_outputs(model)
    _copy_output(model)
    return model, has_batch


def _drop_unused_outputs(model: ModelProto) -> None:
    """Leave one output to nodes whose other outputs nobody reads: a converter's module gives one tensor for them.

    Raises NotImplementedError where another one is read.
    """
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type in _SEVERAL or len(node.output) == 1:
            continue
        others = [name for name in node.output[1:] if name in read]
        if others:
            raise NotImplementedError(
                f"{node.op_type} (node {node.name or node.output[0]!r}) with output {others[0]!r}"
            )
        del node.output[1:]


def _copy_output(model: ModelProto) -> None:
    """Let the output be a copy where it is one of several outputs of a node: a converter gives all of them."""
    graph = model.graph
    name = graph.output[0].name
    maker = next((node for node in graph.node if name in node.output), None)
    if maker is None or len(maker.output) == 1:
        return
    inner = f"{name}__of_several"
    for node in graph.node:
        for names in (node.input, node.output):
            for position, used in enumerate(names):
                if used == name:
                    names[position] = inner
    graph.node.append(helper.make_node("Identity", [inner], [name], name=f"{inner}__copy"))


def _raise_opset(model: ModelProto) -> ModelProto:
    version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if version >= MIN_OPSET:
        return model
    from onnx import version_converter

    scaled = {node.output[0]: node for node in model.graph.node if node.op_type == "Upsample"}
    raised = version_converter.convert_version(model, MIN_OPSET)
    for node in raised.graph.node:
        if node.op_type == "Resize" and node.output[0] in scaled:
            kept = [attribute for attribute in scaled[node.output[0]].attribute if attribute.name == "mode"]
            del node.attribute[:]
            node.attribute.extend(kept)  # the converter drops it
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
    return raised


def _fuse_matmul_add(model: ModelProto) -> None:
    """(batch, n) @ W + b with constant W and b becomes one Gemm; products of higher rank stay apart."""
    graph = model.graph
    constants, shapes = constants_of(model), shapes_of(model)
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fused = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.output[0] in outputs or len(readers.get(node.output[0], [])) != 1:
            continue
        add = readers[node.output[0]][0]
        weight = constants.get(node.input[1])
        if weight is None or len(weight.dims) != 2 or len(shapes.get(node.input[0], ())) != 2 or add.op_type != "Add":
            continue
        bias_name = add.input[1] if add.input[0] == node.output[0] else add.input[0]
        if bias_name not in constants:
            continue
        value = numpy_helper.to_array(constants[bias_name])
        if value.size not in (1, weight.dims[1]) or any(size != 1 for size in value.shape[:-1]) or value.ndim > 2:
            continue
        name = f"{add.output[0]}__bias"
        vector = np.ascontiguousarray(np.broadcast_to(value.reshape(-1), (weight.dims[1],)))
        graph.initializer.append(numpy_helper.from_array(vector, name))
        add.CopyFrom(helper.make_node("Gemm", [*node.input, name], list(add.output), name=add.name or node.name))
        fused.append(node)
    for node in fused:
        graph.node.remove(node)
