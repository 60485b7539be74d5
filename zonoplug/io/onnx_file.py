"""Read an ONNX file and find out what goes in and what comes out."""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, defs

from zonoplug.errors import ModelError
from zonoplug.io.graph_facts import needed_inputs

_DTYPES = {int(TensorProto.FLOAT): "float32", int(TensorProto.DOUBLE): "float64"}
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
LONGEST_REASON = 150  # characters of what another library says


@dataclass(frozen=True)
class Interface:
    """The one input that matters and the output that is bounded.

    Attributes:
        declared_shape: of the input, with 1 for an open first axis.
        has_batch: axis 0 of the input is a batch: there are more axes, and it is open or of size one.
        dtype: "float32" or "float64".
        unused_inputs: zeros for inputs that the output does not depend on, but which ONNX Runtime wants to be given.
    """

    input_name: str
    output_name: str
    declared_shape: tuple[int, ...]
    has_batch: bool
    dtype: str
    unused_inputs: dict[str, NDArray[Any]]


def read_model(path: Path) -> tuple[ModelProto, bytes, Interface]:
    """The model, its uncompressed bytes with all weights inside, and its interface.

    Raises:
        ModelError: the file is missing, damaged, not ONNX, lacks weights, or is of a kind that is not supported.
    """
    source = _read_bytes(path)
    proto = _parse(path, source)
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        try:
            onnx.load_external_data_for_model(proto, str(path.parent))
        except Exception as error:
            raise ModelError(f"{path}: weights in another file cannot be read: {first_line(error)}") from error
        source = proto.SerializeToString()
    return proto, source, _interface(path, proto)


def with_static_input(proto: ModelProto, interface: Interface) -> ModelProto:
    """`proto`, changed: one input of static shape, one output, initializers not among the inputs, no stale shapes."""
    graph = proto.graph
    for value in list(graph.input):
        if value.name != interface.input_name:
            graph.input.remove(value)
    for value in list(graph.output):
        if value.name != interface.output_name:
            graph.output.remove(value)
    kind = graph.input[0].type.tensor_type
    del kind.shape.dim[:]
    for size in interface.declared_shape:
        kind.shape.dim.add().dim_value = size
    del graph.value_info[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    needed = needed_inputs(proto, interface.output_name)
    for node in list(graph.node):
        if not needed.intersection(node.output):
            graph.node.remove(node)
    imports = {entry.domain: entry.version for entry in proto.opset_import}
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in imports.items())
    proto.ir_version = max(proto.ir_version, 8)
    return proto


def first_line(error: Exception) -> str:
    """The first line of what an error says, without where in a runtime's source it was said; its kind if nothing."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ ?", "", str(error).strip())
    text = re.sub(r"^[^.]*?::[^.]*?\)\s+(?=[A-Z])", "", text)  # the signature of a function of the runtime
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = f"no value is called {lines[0]}" if isinstance(error, KeyError) else lines[0]
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 3]}..."


def _read_bytes(path: Path) -> bytes:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    if source[:2] == b"\x1f\x8b":
        try:
            source = gzip.decompress(source)
        except (OSError, EOFError, zlib.error) as error:
            raise ModelError(f"{path}: damaged gzip data: {error}") from error
    return source


def _parse(path: Path, source: bytes) -> ModelProto:
    if source.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path}: is a Git LFS pointer, not the model itself: fetch the real file (git lfs pull)")
    try:
        proto = onnx.load_model_from_string(source)
    except Exception as error:
        raise ModelError(f"{path}: is not an ONNX file, or is cut short") from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{path}: is not an ONNX file: it holds no operators")
    known = {entry.domain: entry.version for entry in proto.opset_import}
    for node in proto.graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in _DOMAINS or (domain == "" and not defs.has(node.op_type)):
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ModelError(f"{path}: unknown operator {name} (node {node.name or node.output[0]!r})")
    newest = defs.onnx_opset_version()
    if known.get("", known.get("ai.onnx", 1)) > newest:
        raise ModelError(f"{path}: uses operator set {known.get('')}, the installed onnx knows up to {newest}")
    return proto


def _interface(path: Path, proto: ModelProto) -> Interface:
    initializers = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in initializers]
    output = proto.graph.output[0].name
    needed = needed_inputs(proto, output)
    used = [value for value in inputs if value.name in needed]
    if len(used) != 1:
        names = ", ".join(value.name for value in used) or "none"
        raise ModelError(f"{path}: its output {output!r} depends on {len(used)} inputs ({names}); one is supported")
    value = used[0]
    kind = _DTYPES.get(value.type.tensor_type.elem_type)
    if kind is None:
        try:
            name = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        except ValueError:
            name = "unknown"
        raise ModelError(f"{path}: input {value.name!r} is of type {name}; FLOAT and DOUBLE are supported")
    sizes = _sizes(path, value)
    has_batch = len(sizes) > 1 and sizes[0] in (None, 1)
    if any(size is None for size in sizes[1:]):
        shown = [size or "?" for size in sizes]
        raise ModelError(f"{path}: input {value.name!r} has shape {shown}; only the batch (axis 0) may be open")
    unused = {other.name: _zeros(path, other) for other in inputs if other is not value}
    return Interface(value.name, output, tuple(size or 1 for size in sizes), has_batch, kind, unused)


def _sizes(path: Path, value: ValueInfoProto) -> list[int | None]:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise ModelError(f"{path}: input {value.name!r} declares no shape")
    return [dimension.dim_value if dimension.dim_value > 0 else None for dimension in kind.shape.dim]


def _zeros(path: Path, value: ValueInfoProto) -> NDArray[Any]:
    shape = [size or 1 for size in _sizes(path, value)]
    return np.zeros(shape, dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
