"""Which operators ONNX Runtime executes for a model at each optimisation level, and whether their rounding is known."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from zonoplug.io.runtime_accuracy import ACCURACY
from zonoplug.io.runtime_probe import variance_cancels

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
LARGEST_MODEL = 1_500_000_000
"""Bytes. Optimised models are written with their weights inside, which a file of 2 GiB cannot hold."""

# Results are numbers that were there already, integers, or truth values.
_MOVED = frozenset(
    "And ArgMax ArgMin CastLike Compress Concat Constant ConstantOfShape DepthToSpace Equal Expand EyeLike Flatten"
    " Gather GatherElements GatherND GlobalMaxPool Greater GreaterOrEqual Hardmax IsInf IsNaN Less LessOrEqual MaxPool"
    " NonZero Not OneHot Or Pad Range ReduceMax ReduceMin Reshape ReverseSequence ScatterElements ScatterND Shape Size"
    " Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unsqueeze Xor".split()
)
_COMPOSED = frozenset(
    "AveragePool BatchNormalization Conv ConvTranspose CumSum Einsum Gemm GlobalAveragePool GlobalLpPool"
    " GroupNormalization InstanceNormalization LayerNormalization LogSoftmax LpNormalization LpPool MatMul Mean"
    " RMSNormalization ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare"
    " Resize SimplifiedLayerNormalization Softmax Sum Upsample".split()
)
# What the optimiser makes. Sums come in another order, weights with a few more roundings; activations inside are the
# same functions. A fused expression stays within the sum of its parts under the conditions that check_runtime tests.
_FUSED = frozenset(
    f"com.microsoft.{name}"
    for name in "FusedConv FusedGemm FusedMatMul nchwc.AveragePool nchwc.Conv nchwc.GlobalAveragePool"
    " nchwc.GlobalMaxPool nchwc.MaxPool nchwc.ReorderInput nchwc.ReorderOutput nchwc.Upsample BiasGelu BiasSoftmax"
    " FastGelu Gelu QuickGelu SkipLayerNormalization SkipSimplifiedLayerNormalization".split()
)
UNDERSTOOD: frozenset[str] = frozenset(ACCURACY) - {"Gelu:tanh"} | _MOVED | _COMPOSED | _FUSED
"""Operator types whose local error the tables cover, with a domain unless it is ONNX's own."""

# Single nodes that the optimiser makes out of several of the file's, and the constants that it recognises them by: one
# that differs by a relative 1e-5 is taken for the pattern's, which is another function.
_EXPRESSIONS = frozenset(
    "Gelu LayerNormalization RMSNormalization SimplifiedLayerNormalization com.microsoft.BiasGelu"
    " com.microsoft.FastGelu com.microsoft.Gelu com.microsoft.QuickGelu".split()
)
_EXACT_CONSTANTS = (0.5, 1.0, 2.0, 3.0)
_ROUNDED_CONSTANTS = (math.sqrt(2.0), math.sqrt(0.5), math.sqrt(2.0 / math.pi), 0.044715, 0.044715 * 0.7978845608)
_NEAR = 1e-3  # relative: far more than the optimiser's tolerance
_FACTORS = ("Mul", "Div", "BatchNormalization")
_LARGEST_FACTOR, _LEAST_ALPHA = 2.0**30, 2.0**-60  # see HEADROOM in runtime_formulas
_SCALES = {  # where the scales of normalizations are among the inputs
    **{f"{name}Normalization": 1 for name in ("Group", "Instance", "Layer", "RMS", "SimplifiedLayer")},
    **{f"{name}Normalization": 2 for name in ("SkipLayer", "SkipSimplifiedLayer")},
}
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Optimised:
    """A model as ONNX Runtime executes it at one optimisation level; `count` says how often each operator occurs."""

    model: ModelProto
    count: Counter[str]


def runtime_operators(source: bytes) -> frozenset[str]:
    """The types of operators that ONNX Runtime's CPU provider executes for a model, at any of the four levels.

    Args:
        source: the model as ONNX bytes, weights inside, smaller than LARGEST_MODEL. For each level a session is made
            and the optimised model written to a temporary folder: 10 ms each for a small model, 3 s of processor
            time and the model's size on disk for one of 500 MB.
    """
    return frozenset(name for optimised in _at_all_levels(source) for name in optimised.count)


def check_runtime(source: bytes) -> str | None:
    """Why nothing can be proved about what ONNX Runtime computes for a model, in one sentence; None if it can be.

    Everything that is executed at some level must be in UNDERSTOOD; what is fused must be the function of the file
    (not one with constants nearby, nor, in float64, with constants rounded to float32), and factors that are
    multiplied into weights, or into what normalizations divide, must leave them inside the range of the format.
    """
    if len(source) > LARGEST_MODEL:
        return f"the model is larger than {LARGEST_MODEL / 1e9:.1f} GB, so what the runtime makes of it is not known"
    levels = _at_all_levels(source)
    if not levels:
        return "ONNX Runtime refuses the model at every optimisation level"
    for optimised in levels:
        for name in sorted(optimised.count):
            if name not in UNDERSTOOD:
                return f"ONNX Runtime executes {name}, whose rounding is not known"
    plain = levels[0]
    for optimised in levels[1:]:
        problem = _fused_expression(plain, optimised) or _fused_scale(optimised) or _folded(plain, optimised)
        problem = problem or _scale_of_normalization(optimised)
        if problem:
            return problem
    return None


def _at_all_levels(source: bytes) -> list[Optimised]:
    """From the plainest on; a level at which ONNX Runtime refuses the model computes nothing and is left out."""
    found = []
    for level in LEVELS:
        model = _optimise(source, level)
        if model is not None:
            count = Counter(_full_name(node) for node in _nodes(model.graph))
            found.append(Optimised(model, count))
    return found


def _optimise(source: bytes, level: str) -> ModelProto | None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")  # the session is not run
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception:  # ONNX Runtime raises classes of its own
            return None
        return onnx.load(path)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _full_name(node: NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _fused_expression(plain: Optimised, optimised: Optimised) -> str | None:
    """Whether an expression was fused into another function than the file's."""
    made = sorted(name for name in _EXPRESSIONS if optimised.count[name] > plain.count[name])
    if not made:
        return None
    fuses = f"ONNX Runtime fuses {made[0]} out of the model's operators"
    if _has_double(plain.model):
        return f"{fuses}, with float32 constants in a float64 model"
    if "LayerNormalization" in made and variance_cancels("LayerNormalization"):
        return f"{fuses}, and computes the variance as a difference"
    if _computed(plain.model.graph, floats=True):
        return f"{fuses}, out of constants that it computes first"
    for tensor in _constants(plain.model.graph).values():
        if tensor.data_type in _FLOATS and math.prod(tensor.dims) == 1:
            value = float(numpy_helper.to_array(tensor).reshape(()))
            if _nearly(value):
                return f"{fuses}, taking the constant {value:.9g} for a number nearby"
    return None


def _nearly(value: float) -> bool:
    """Whether a constant is close to one that the optimiser looks for, without being it."""
    exactly = any(0 < abs(value - known) <= _NEAR * known for known in _EXACT_CONSTANTS)
    unit = 2.0**-23
    return exactly or any(unit * known < abs(value - known) <= _NEAR * known for known in _ROUNDED_CONSTANTS)


def _fused_scale(optimised: Optimised) -> str | None:
    """Whether the scale of a fused product may leave the range of the format, or is rounded to float32."""
    double = _has_double(optimised.model)
    for node in _nodes(optimised.model.graph):
        if _full_name(node) == "com.microsoft.FusedMatMul":
            alpha = next((attribute.f for attribute in node.attribute if attribute.name == "alpha"), 1.0)
            if double and alpha != 1.0:
                return f"ONNX Runtime fuses com.microsoft.FusedMatMul, with a float32 factor ({alpha:.9g}) in float64"
            if not _LEAST_ALPHA <= abs(alpha) <= _LARGEST_FACTOR:
                return f"ONNX Runtime fuses com.microsoft.FusedMatMul, with a factor of {alpha:.9g}, which may overflow"
    return None


def _folded(plain: Optimised, optimised: Optimised) -> str | None:
    """Whether a factor that may be multiplied into weights is so large that they leave the range of the format."""
    graph = plain.model.graph
    constants, computed = _constants(graph), _computed(graph)
    live = [node for node in _nodes(graph) if not computed.issuperset(node.output)]
    count = Counter(_full_name(node) for node in live)
    if all(optimised.count[name] >= count[name] for name in _FACTORS):
        return None
    for node in live:
        if _full_name(node) in _FACTORS:
            if computed.intersection(node.input):
                return f"ONNX Runtime folds {node.op_type} into weights, with a factor that it computes first"
            largest = _largest_factor(node, constants)
            if not largest <= _LARGEST_FACTOR:
                return f"ONNX Runtime folds {node.op_type} into weights, with a factor of {largest:.3g}"
    return None


def _largest_factor(node: NodeProto, constants: dict[str, TensorProto]) -> float:
    """The largest factor, in absolute value, that a node may put into weights; 0 if it has no constant."""
    values = [
        np.abs(numpy_helper.to_array(constants[name]).astype(np.float64)) if name in constants else None
        for name in node.input
    ]
    with np.errstate(all="ignore"):
        if node.op_type == "BatchNormalization":
            scale, variance = values[1], values[4]
            if scale is None or variance is None:
                return 0.0
            epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
            factor = scale / np.sqrt(variance + epsilon)
        else:
            known = [value for value in values if value is not None]
            if not known:
                return 0.0
            last = values[1] is not None
            factor = np.maximum(1.0 / known[-1] if node.op_type == "Div" and last else known[-1], 0.0)
    return float(factor.max(initial=0.0))


def _scale_of_normalization(optimised: Optimised) -> str | None:
    """Whether a kernel that normalizes may overflow, or lose numbers, where it multiplies by its scale first."""
    constants = _constants(optimised.model.graph)
    for node in _nodes(optimised.model.graph):
        name = _full_name(node)
        place = _SCALES.get(name.removeprefix("com.microsoft."))
        if place is not None:
            if node.input[place] not in constants:
                return f"ONNX Runtime executes {name}, with a scale that it computes first"
            scale = np.abs(numpy_helper.to_array(constants[node.input[place]]).astype(np.float64))
            strange = scale[~((scale == 0) | ((scale >= _LEAST_ALPHA) & (scale <= _LARGEST_FACTOR)))]
            if strange.size:
                return f"ONNX Runtime executes {name}, with a scale of {strange[0]:.3g}"
    return None


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Initializers and Constant nodes by name, those of graphs inside included."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found.update(_constants(attribute.g))
            elif node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                value = np.asarray(helper.get_attribute_value(attribute), dtype=np.float32)
                found[node.output[0]] = numpy_helper.from_array(value)
    return found


def _computed(graph: GraphProto, floats: bool = False) -> set[str]:
    """Names of values that are computed from constants alone, and known only after a run.

    Args:
        graph: of the model as it is.
        floats: only those with a number among what they are computed from that is not an integer.
    """
    constants = _constants(graph)
    fractional = {name for name, tensor in constants.items() if tensor.data_type in _FLOATS}
    known, computed = set(constants), set()
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type != "Constant" and inputs and known.issuperset(inputs):
            known.update(node.output)
            if fractional.intersection(inputs):
                fractional.update(node.output)
            if not floats or fractional.intersection(inputs):
                computed.update(node.output)
    return computed


def _has_double(model: ModelProto) -> bool:
    """Whether anything may be float64: the input, a constant, or the result of a Cast."""
    kinds = [value.type.tensor_type.elem_type for value in model.graph.input]
    kinds += [tensor.data_type for tensor in _constants(model.graph).values()]
    casts = (node.attribute for node in _nodes(model.graph) if node.op_type == "Cast")
    kinds += [attribute.i for attributes in casts for attribute in attributes if attribute.name == "to"]
    return TensorProto.DOUBLE in kinds
