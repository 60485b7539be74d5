"""Comparing a loaded module with ONNX Runtime, output by output, by what rounding allows that output.

The module is evaluated in its own number type and in float64. For each output the largest difference of the two over
the points is what rounding does to it, whatever cancels on the way; ONNX Runtime sums in another order and with other
elementary functions, so it may differ from the float64 values by a multiple of that, and of one rounding of the value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from zonoplug.errors import ModelError, ModelMismatchError
from zonoplug.io.onnx_file import first_line
from zonoplug.io.onnx_model import OnnxModel, in_precision

FACTOR = 64.0  # how many times the rounding seen may be exceeded
EXTRA_POINTS = 4  # random ones, and as many corners
_SINGLE_TO_DOUBLE = 2.0**-29  # unit roundoff of float64 in that of float32
# Bounded functions for which ONNX Runtime's error is absolute: it cuts their tails off.
_BOUNDED = frozenset(
    (torch.sigmoid, Tensor.sigmoid, functional.sigmoid, torch.tanh, Tensor.tanh, functional.tanh, torch.erf, Tensor.erf,
     torch.softmax, Tensor.softmax, functional.softmax, functional.gelu, functional.softplus)
)  # fmt: skip


class _Noise(TorchFunctionMode):
    """Adds what the error of ONNX Runtime's bounded functions may be, with random signs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _BOUNDED or not isinstance(result, Tensor):
            return result
        return result + 2.0**-24 * (2 * torch.randint(0, 2, result.shape, device=result.device) - 1).to(result.dtype)


def check_agreement(model: OnnxModel, points: NDArray[Any]) -> None:
    """Compare the module with ONNX Runtime on points, one at a time and all as one batch.

    Output j may differ at a point by 64 (r_j + u |y_j|), where y_j is its value in float64, u the spacing of numbers
    near 1 and r_j the largest error of the module's own evaluation of it over the points, by comparison with float64.
    Random points and corners of the box that the points span are added where the network is one that can be bounded.

    Args:
        points: (N, inputs), N >= 1.
    Raises:
        ModelMismatchError: an output differs by more, is not finite where ONNX Runtime's is, or the other way round.
        ModelError: ONNX Runtime or the module fails on a point.
    """
    points = np.asarray(points).reshape(-1, model.num_inputs)
    points, expected = _with_more(model, points, model.evaluate(points).astype(np.float64))
    if not expected.size:
        raise ModelError(f"{model.path}: no point to compare the loaded model at, or no output")
    try:
        own, exact, error = _evaluations(model, points)
    except Exception as reason:
        raise ModelError(f"{model.path}: the loaded model fails on a point: {first_line(reason)}") from reason
    for how, values in exact.items():
        if values.shape != expected.shape:
            raise ModelMismatchError(
                f"{model.path}: {how}: the loaded model gives {values.size} values, ONNX Runtime {expected.size}"
            )
        _compare(model, how, own[how], values, expected, error)


def _with_more(model: OnnxModel, points: NDArray[Any], expected: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The points and some of the box around them, with ONNX Runtime's values."""
    kind = np.float32 if model.dtype == torch.float32 else np.float64
    points = points.astype(kind)
    if model.obstacle is not None or len(points) < 2:
        return points, expected
    lower, upper = points.min(axis=0), points.max(axis=0)
    rng = np.random.default_rng(len(points))
    shares = rng.uniform(size=(EXTRA_POINTS, points.shape[1]))
    inside = np.clip((lower + shares * (upper.astype(np.float64) - lower)).astype(kind), lower, upper)
    corners = np.where(rng.integers(0, 2, (EXTRA_POINTS, points.shape[1])) == 1, upper, lower)
    corners[:2] = lower, upper
    more = np.concatenate([inside, corners])
    return np.concatenate([points, more]), np.concatenate([expected, model.evaluate(more).astype(np.float64)])


def _evaluations(
    model: OnnxModel, points: NDArray[Any]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], NDArray[Any]]:
    """(N, outputs) in the model's own type and in float64, each by how it was computed, and r_j (outputs,).

    A float64 model is compared with itself in float32, and the difference scaled to float64.
    """
    wide = model.dtype == torch.float64
    other = in_precision(model.module, torch.float32 if wide else torch.float64)
    own = _values(model.module, model, points, model.dtype)
    second = _values(other, model, points, torch.float32 if wide else torch.float64)
    narrow, exact = (second, own) if wide else (own, second)
    device = _device(model.module)
    batch = torch.tensor(points, dtype=model.dtype, device=device).reshape(-1, *model.input_shape)
    with torch.no_grad(), _Noise(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noisy = model.module(batch).double().cpu().numpy().reshape(len(points), -1)
    error = np.zeros(exact["as a batch"].shape[1])
    pairs = [(narrow[how], values, _SINGLE_TO_DOUBLE if wide else 1.0) for how, values in exact.items()]
    for rough, values, scale in [*pairs, (noisy, exact["as a batch"], 1.0)]:
        if rough.shape == values.shape:
            error = np.maximum(error, scale * _finite_difference(rough, values).max(axis=0, initial=0))
    return own, exact, error


def _finite_difference(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    finite = np.isfinite(left) & np.isfinite(right)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(finite, np.abs(left - right), 0.0)


def _values(module: nn.Module, model: OnnxModel, points: NDArray[Any], dtype: torch.dtype) -> dict[str, NDArray[Any]]:
    batch = torch.tensor(points, dtype=dtype, device=_device(module)).reshape(-1, *model.input_shape)
    with torch.no_grad():
        single = torch.cat([module(point[None]) for point in batch])
        results = {"one by one": single, "as a batch": module(batch)}
    return {how: values.double().cpu().numpy().reshape(len(points), -1) for how, values in results.items()}


def _device(module: nn.Module) -> torch.device | None:
    return next((value.device for value in [*module.parameters(), *module.buffers()]), None)


def _compare(
    model: OnnxModel,
    how: str,
    own: NDArray[Any],
    exact: NDArray[Any],
    expected: NDArray[Any],
    error: NDArray[Any],
) -> None:
    """Raise ModelMismatchError at the output that exceeds what it is allowed the most."""
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = FACTOR * (error + torch.finfo(model.dtype).eps * np.abs(exact))
        difference = np.abs(exact - expected)
        fits = np.isfinite(expected) & np.isfinite(own) & (difference <= allowed)
        excess = np.where(np.isfinite(difference), difference / np.maximum(allowed, np.finfo(np.float64).tiny), np.inf)
    fits |= (own == expected) | (np.isnan(own) & np.isnan(expected))
    if fits.all():
        return
    point, output = np.unravel_index(np.argmax(np.where(fits, -1.0, excess)), fits.shape)
    got = own if not np.isfinite(own[point, output]) else exact
    raise ModelMismatchError(
        f"{model.path}: point {point}, output {output}, {how}: the loaded model gives {got[point, output]:.7g}, "
        f"ONNX Runtime {expected[point, output]:.7g} (allowed difference {allowed[point, output]:.2g})"
    )
