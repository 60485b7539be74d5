"""What the installed ONNX Runtime does where versions differ, found out by running it on a few numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from zonoplug.io.runtime_formulas import normalization_error

_LENGTHS = (7, 64, 1000)
_FAR = 2.0**13  # the mean, in standard deviations: its square has no digit left for the variance in float32


@cache
def variance_cancels(operator: str) -> bool:
    """Whether a normalization may compute a variance as the mean square less the square of the mean.

    Then nothing is left of it where the mean is large. The installed runtime is run once on numbers far from 0, of the
    three lengths above; an operator that it does not know counts as one that cancels.

    Args:
        operator: "LayerNormalization" (with com.microsoft.SkipLayerNormalization, which replaces it),
            "InstanceNormalization" or "GroupNormalization".
    """
    operators = [operator]
    if operator == "LayerNormalization":
        operators.append("SkipLayerNormalization")
    return any(_far_off(name, length) for name in operators for length in _LENGTHS)


def _far_off(operator: str, length: int) -> bool:
    values = (_FAR + np.random.default_rng(length).normal(size=(1, 1, length))).astype(np.float32)
    try:
        computed = _run(operator, values)
    except Exception:  # ONNX Runtime raises classes of its own
        return True
    exact = values.astype(np.float64)
    centred = exact - exact.mean()
    least = (centred**2).mean() + np.float64(np.float32(1e-5))
    value, mean_square = centred / np.sqrt(least), (exact**2).mean()
    parts = mean_square, mean_square / least, np.abs(value), least
    allowed = normalization_error("float32", length, *parts, scale=1.0, bias=0.0, cancels=False)
    return not bool((np.abs(computed - value) <= allowed).all())


def _run(operator: str, values: NDArray[np.float32]) -> NDArray[Any]:
    length = values.shape[-1]
    width = length if operator.endswith("LayerNormalization") else 1
    feeds = {"x": values, "scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    names = ["x", "scale", "bias"]
    attributes: dict[str, Any] = {"epsilon": 1e-5}
    domain = ""
    if operator == "SkipLayerNormalization":
        domain, names = "com.microsoft", ["x", "skip", "scale", "bias"]
        feeds["skip"] = np.zeros_like(values)
    if operator == "GroupNormalization":
        attributes["num_groups"] = 1
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in feeds.items()]
    graph = helper.make_graph([node], "probe", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, feeds)[0]
    return result
