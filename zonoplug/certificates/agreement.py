"""Compares the checker's network with ONNX Runtime: its outputs at points must lie within the checker's own bounds."""

from __future__ import annotations

import numpy as np

from zonoplug.certificates.network import Floats, Network
from zonoplug.certificates.rounded_bounds import Bounds
from zonoplug.errors import ModelError, ModelMismatchError
from zonoplug.specification import Specification

MOST_POINTS = 4  # of each kind: inside, at corners, and anywhere
POINT_PLACES = 2**17  # places of the network, for all points of a kind together
TOGETHER = 2**15  # the same for points that are bounded together
ENTRIES = 2**24


def require_agreement(network: Network, source: bytes, spec: Specification) -> None:
    """Points inside the input boxes, at corners of them, and anywhere, at the runtime's lowest and highest effort.

    A bound of a single point is as wide as rounding may make it, for each output by itself: no tolerance is needed.

    Raises:
        ModelError: ONNX Runtime does not run the network.
        ModelMismatchError: an output lies outside of its bounds.
    """
    random = np.random.default_rng(0)
    count = int(np.clip(POINT_PLACES // (3 * network.size), 1, MOST_POINTS))
    boxes = random.integers(spec.num_boxes, size=2 * count)
    lower, upper = spec.lower[boxes], spec.upper[boxes]
    share = random.uniform(size=lower.shape)
    share[count:] = share[count:] < 0.5
    inside = lower + share * (upper - lower)
    outside = random.normal(size=(count, spec.num_inputs)) * np.array([1.0, 1.0, 10.0, 0.1])[:count, None]
    points, computed = runtime_outputs(source, np.concatenate([inside, outside]))
    with np.errstate(all="ignore"):
        low, high = point_bounds(network, points)
    for outputs in computed:
        agrees = (low <= outputs) & (outputs <= high)
        if not (agrees | (np.isnan(outputs) & np.isinf(low) & np.isinf(high))).all():
            raise ModelMismatchError(
                "The checker's reading of the network disagrees with ONNX Runtime: it has no say here."
            )


def point_bounds(network: Network, points: Floats) -> tuple[Floats, Floats]:
    """Bounds of the outputs at points (n, inputs): (n, outputs) each."""
    together = max(1, TOGETHER // network.size)
    parts = [_point_bounds(network, points[at : at + together]) for at in range(0, len(points), together)]
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])


def _point_bounds(network: Network, points: Floats) -> tuple[Floats, Floats]:
    bounds = Bounds(network, points, points)
    bounds.run({}, ("adaptive",))
    bounds.make_lines("adaptive")
    count = network.outputs.size
    sides: list[Floats] = []
    most = max(1, ENTRIES // (2 * points.shape[0] * network.size))
    for first in range(0, count, most):
        unit = np.eye(count)[first : first + most]
        found = bounds.rows_below(network.outputs, np.concatenate([unit, -unit])).lower
        sides.append(np.stack(np.split(found, 2, axis=1)))
    below, above = np.concatenate(sides, axis=2)
    return np.where(np.isnan(below), -np.inf, below), np.where(np.isnan(above), np.inf, -above)


def runtime_outputs(source: bytes, points: Floats) -> tuple[Floats, list[Floats]]:
    """The points (n, inputs) as the network's number type has them, and its first output there, at two efforts.

    Raises:
        ModelError: ONNX Runtime does not run the network.
    """
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    found: list[Floats] = []
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = level
        try:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            fed = session.get_inputs()[0]
            points = points.astype(np.float64 if fed.type == "tensor(double)" else np.float32)
            shape = [size if isinstance(size, int) and size > 0 else 1 for size in fed.shape]
            name = session.get_outputs()[0].name
            rows = [session.run([name], {fed.name: point.reshape(shape)})[0].reshape(-1) for point in points]
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"ONNX Runtime does not run the network: {reason}") from error
        found.append(np.stack(rows).astype(np.float64))
    return points.astype(np.float64), found
