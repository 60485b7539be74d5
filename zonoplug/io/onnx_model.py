"""Load an ONNX file into a torch module that a host can bound, and compare the two."""

from __future__ import annotations

import copy
import functools
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx.inliner import inline_local_functions
from onnx.shape_inference import infer_shapes
from torch import Tensor, nn

from zonoplug.errors import ModelError, ModelMismatchError
from zonoplug.io import converters
from zonoplug.io.constant_errors import constant_obstacle
from zonoplug.io.graph_facts import computed_structure
from zonoplug.io.normalise import normalise
from zonoplug.io.number_types import type_obstacle
from zonoplug.io.onnx_file import Interface, first_line, read_model, with_static_input
from zonoplug.io.torch_arithmetic import Cast
from zonoplug.io.torchvision_stub import import_onnx2torch

_SAME = 1e-7  # of an output's size: what float64 may lose by another order of summation where terms cancel


@dataclass(frozen=True)
class OnnxModel:
    """A network read from an ONNX file.

    Attributes:
        path: the file.
        module: the network in torch, (N, *input_shape) to (N, *output_shape), in eval mode, without gradients.
        input_name, output_name: of the tensors that `input_shape` and `output_shape` describe.
        input_shape, output_shape: without the batch axis.
        declared_shape: of the input as the file declares it, with 1 for an open batch; one point fills such a tensor.
        dtype: torch.float32 or torch.float64, of input and weights.
        batchable: the network itself takes a batch; if not, the module goes through it point by point, and a host's
            graph of it takes one point only.
        obstacle: why nothing can be proved, in words: the module cannot be traced into a host's graph, or computes in
            other numbers than the file; None if neither. It can be attacked all the same.
    """

    path: Path
    module: nn.Module
    input_name: str
    output_name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    declared_shape: tuple[int, ...]
    dtype: torch.dtype
    batchable: bool
    obstacle: str | None
    source: bytes = field(repr=False)
    unused_inputs: dict[str, NDArray[Any]] = field(repr=False)

    @property
    def num_inputs(self) -> int:
        return int(np.prod(self.input_shape, dtype=np.int64))

    @property
    def num_outputs(self) -> int:
        return int(np.prod(self.output_shape, dtype=np.int64))

    @functools.cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        try:
            return onnxruntime.InferenceSession(self.source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{self.path}: ONNX Runtime cannot run it: {first_line(error)}") from error

    def evaluate(self, points: NDArray[Any]) -> NDArray[Any]:
        """What ONNX Runtime on the CPU computes from the file itself, one point after the other.

        Args:
            points: (N, inputs), any float type; rounded to the model's type.
        Returns:
            (N, outputs) in the model's type.
        Raises:
            ModelError: ONNX Runtime fails on the file or on a point.
        """
        kind = np.float32 if self.dtype == torch.float32 else np.float64
        points = np.ascontiguousarray(points, dtype=kind).reshape(-1, self.num_inputs)
        results = np.empty((points.shape[0], self.num_outputs), dtype=kind)
        session = self._session
        for index, point in enumerate(points):
            fed = {self.input_name: point.reshape(self.declared_shape), **self.unused_inputs}
            try:
                value = np.asarray(session.run([self.output_name], fed)[0]).reshape(-1)
            except Exception as error:
                raise ModelError(f"{self.path}: ONNX Runtime fails on a point: {first_line(error)}") from error
            if value.size != self.num_outputs:
                raise ModelMismatchError(
                    f"{self.path}: the loaded model gives {self.num_outputs} outputs, ONNX Runtime {value.size}"
                )
            results[index] = value
        return results


class PointByPoint(nn.Module):
    """A network that takes a batch of any size, around one that may take a single point only.

    Args:
        inner: the converted graph.
        point_shape: shape of what `inner` takes as one point; None if it takes a batch.
        output_shape: of one point's output.
        batchable: `inner` takes a batch of any size.
        obstacle: why tracing would give a wrong graph; None if it would not.
    """

    def __init__(
        self,
        inner: nn.Module,
        point_shape: tuple[int, ...] | None,
        output_shape: tuple[int, ...],
        batchable: bool,
        obstacle: str | None,
    ) -> None:
        super().__init__()
        self.inner, self.point_shape, self.output_shape = inner, point_shape, output_shape
        self.batchable, self.obstacle = batchable, obstacle

    def forward(self, x: Tensor) -> Tensor:
        if self.obstacle is not None and torch._C._get_tracing_state() is not None:
            raise RuntimeError(self.obstacle)
        if not self.batchable and x.shape[0] != 1:
            return torch.cat([self(point) for point in x.split(1)]) if len(x) else x.new_empty(0, *self.output_shape)
        result: Tensor = first_output(self.inner(x if self.point_shape is None else x.reshape(self.point_shape)))
        return result.reshape(-1, *self.output_shape)


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module that computes in another floating-point type wherever the module computes in its own."""
    other = copy.deepcopy(module).to(dtype)
    for part in other.modules():
        if isinstance(part, Cast):
            part.follow(dtype)
    return other


def first_output(result: Any) -> Tensor:
    """The tensor itself, or the first of several."""
    output: Tensor = result[0] if isinstance(result, list | tuple) else result
    return output


def load_model(path: str | Path) -> OnnxModel:
    """Read an ONNX file, plain or gzipped, into an OnnxModel.

    Raises:
        ModelError: the file is missing, is not ONNX, or holds something that cannot be converted; one line says what.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings(record=True):
            return _load(path)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: cannot be converted: {_reason(error)}") from error


def _load(path: Path) -> OnnxModel:
    proto, source, interface = read_model(path)
    shape = interface.declared_shape
    converters.install()
    static = with_static_input(proto, interface)
    inferred = infer_shapes(inline_local_functions(static) if static.functions else static)
    types, constants = type_obstacle(inferred, interface.input_name), constant_obstacle(inferred)
    graph, has_batch = normalise(static, not interface.has_batch)
    obstacle = computed_structure(graph) or types or constants
    inner = import_onnx2torch().convert(graph).eval().requires_grad_(False)
    point_shape = shape[1:] if interface.has_batch else shape
    dtype = {"float32": torch.float32, "float64": torch.float64}[interface.dtype]
    module, batchable = _with_batch(path, inner, interface, has_batch, dtype, obstacle)
    with torch.no_grad():
        output = module(torch.zeros(1, *point_shape, dtype=dtype))
    if not output.numel():
        raise ModelError(f"{path}: its output {interface.output_name!r} is empty")
    if not batchable and not interface.has_batch and obstacle is None:
        obstacle = f"its input of shape {list(shape)} has no batch axis, and none can be added"
        module = PointByPoint(inner, shape, tuple(output.shape[1:]), False, obstacle)
    return OnnxModel(
        path,
        module,
        interface.input_name,
        interface.output_name,
        point_shape,
        tuple(output.shape[1:]),
        shape,
        dtype,
        batchable,
        obstacle,
        source,
        interface.unused_inputs,
    )


def _with_batch(
    path: Path, inner: nn.Module, interface: Interface, has_batch: bool, dtype: torch.dtype, obstacle: str | None
) -> tuple[nn.Module, bool]:
    """The module around the converted graph, as thin as possible, and whether the graph takes batches.

    Raises ModelError if the graph fails on a point.
    """
    shape = interface.declared_shape
    point_shape = shape[1:] if interface.has_batch else shape
    points = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (2, *point_shape))).to(dtype)
    plain = has_batch or interface.has_batch
    with torch.no_grad():
        try:
            single = [first_output(inner(point if plain else point.reshape(shape))) for point in points.split(1)]
        except Exception as error:
            raise ModelError(f"{path}: cannot be evaluated once converted: {_reason(error)}") from error
    size = tuple(single[0].shape)
    output_shape = (size[1:] if plain and size[:1] == (1,) else size) or (1,)
    batchable = plain and _takes_batches(inner, points)
    if batchable and obstacle is None and size == (1, *output_shape):
        return inner, True
    return PointByPoint(inner, None if plain else shape, output_shape, batchable, obstacle), batchable


def _takes_batches(inner: nn.Module, points: Tensor) -> bool:
    """Whether two points together give what they give apart, in float64, where order of summation hardly matters."""
    wide = in_precision(inner, torch.float64)
    points = points.double()
    with torch.no_grad():
        try:
            apart = [first_output(wide(point)) for point in points.split(1)]
            together = first_output(wide(points))
        except Exception:
            return False
    if not together.dim() or together.shape[0] != 2 or together.numel() != 2 * apart[0].numel():
        return False
    expected = torch.stack([value.reshape(-1) for value in apart]).double()
    scale = torch.where(expected.isfinite(), expected, 0).abs().amax(0)
    got = together.reshape(expected.shape).double()
    near = (got - expected).abs() <= _SAME * scale
    return bool((near | (got == expected) | (got.isnan() & expected.isnan())).all())


def _reason(error: Exception) -> str:
    """The first line of an error, with what onnx2torch says about a missing operator in plain words."""
    missing = re.search(r"operation_type='(\w+)', version=(\d+)", str(error))
    return f"no converter for the operator {missing[1]} (version {missing[2]})" if missing else first_line(error)
