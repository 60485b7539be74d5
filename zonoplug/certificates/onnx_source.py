"""Opens an ONNX file for the checker, and refuses what it might misread: foreign operators, old sets, other types."""

from __future__ import annotations

import gzip
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, defs, helper

from zonoplug.errors import ModelError, UnsupportedOperatorError

OLDEST_OPSET = 7  # before it, operators broadcast by attributes
DTYPES = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}


def read_source(path: str | Path) -> tuple[ModelProto, bytes]:
    """A model, and the uncompressed bytes of its file, plain or gzipped.

    Raises:
        ModelError: the file cannot be read.
        UnsupportedOperatorError: something that the checker does not know how to read.
    """
    try:
        source = Path(path).read_bytes()
        source = gzip.decompress(source) if source[:2] == b"\x1f\x8b" else source
        model = onnx.load_model_from_string(source)
    except Exception as error:
        raise ModelError(f"{path}: is not an ONNX file that can be read: {error}") from error
    if not model.graph.output:
        raise ModelError(f"{path}: is not an ONNX file: it has no output")
    _require_known_operators(model)
    _require_single_assignment(path, model.graph)
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise UnsupportedOperatorError("The checker does not read networks whose weights are in another file.")
    if model.graph.sparse_initializer:
        raise UnsupportedOperatorError("The checker does not read networks with sparse weights.")
    return model, source


def input_of(graph: GraphProto) -> tuple[ValueInfoProto, str]:
    """The network's one input, and its number type: "float32" or "float64"."""
    known = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in known]
    if len(inputs) != 1:
        raise UnsupportedOperatorError(f"The checker reads networks with one input; this one has {len(inputs)}.")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in DTYPES:
        name = helper.tensor_dtype_to_string(kind).rpartition(".")[2] if kind else "of no type"
        raise UnsupportedOperatorError(f"The checker reads networks in float32 or float64; this one's input is {name}.")
    return inputs[0], DTYPES[kind]


def _require_known_operators(model: ModelProto) -> None:
    """Only ONNX's own operators, in one operator set that is neither too old nor too new."""
    versions = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    newest = defs.onnx_opset_version()
    if len(versions) != 1 or not OLDEST_OPSET <= min(versions) <= newest:
        shown = ", ".join(map(str, sorted(versions))) or "none"
        raise UnsupportedOperatorError(
            f"The checker reads networks of one operator set from {OLDEST_OPSET} to {newest}; this one has {shown}."
        )
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOperatorError(
                f"The checker of certificates does not know the operator {node.domain}.{node.op_type}."
            )
    for function in model.functions:
        if function.domain in ("", "ai.onnx"):
            raise UnsupportedOperatorError(f"The checker does not read networks that redefine {function.name}.")


def _require_single_assignment(path: str | Path, graph: GraphProto) -> None:
    """Each name is given to one tensor, before it is used."""
    given = [value.name for value in graph.input] + [name for node in graph.node for name in node.output if name]
    given += {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    if len(set(given)) < len(given) or len({t.name for t in graph.initializer}) < len(graph.initializer):
        raise ModelError(f"{path}: a name stands for two tensors.")
