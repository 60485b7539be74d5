"""Elementwise operators, with references in higher precision: for the test and the benchmark of what is assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as exceptions
from scipy import special

from zonoplug.io.runtime import FORMATS, LEVELS, accuracy_of

WIDER = {"float32": np.float64, "float64": np.longdouble}
TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True)
class Case:
    """An operator with attributes or constants; `reference` maps numbers of the wider type to f(x)."""

    operator: str
    reference: Callable
    low: float = -np.inf
    high: float = np.inf
    attributes: dict = field(default_factory=dict)
    constants: tuple = ()
    opset: int = 21
    domain: str = ""
    assumed_as: str = ""

    @property
    def name(self):
        said = [f"{key} = {value}" for key, value in self.attributes.items()]
        said += [f"{np.asarray(value).reshape(-1)[0]:g}" for value in self.constants]
        return f"{self.domain}{'.' if self.domain else ''}{self.operator}" + (f" ({', '.join(said)})" if said else "")

    def accuracy(self, kind):
        return accuracy_of(self.assumed_as or self.operator, self.attributes, kind)


def sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(x):
    return x * special.erfc(-x / np.sqrt(2.0)) / 2


def gelu_tanh(x):
    return x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def selu(x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875):
    return gamma * elu(x, float(np.float32(alpha)))


def power(exponent):
    return lambda x: np.power(x, x.dtype.type(exponent))


def single(value):
    return float(np.float32(value))


FAST = dict(domain="com.microsoft")
CASES = [
    Case("Exp", np.exp),
    Case("Log", np.log, low=0),
    Case("Sqrt", np.sqrt, low=0),
    Case("Reciprocal", lambda x: 1 / x),
    Case("Sigmoid", sigmoid),
    Case("Tanh", np.tanh),
    Case("Erf", special.erf),
    Case("Softplus", softplus),
    Case("Softsign", lambda x: x / (1 + np.abs(x))),
    Case("Elu", elu),
    Case("Elu", lambda x: elu(x, -2.5), attributes={"alpha": -2.5}),
    Case("Selu", selu),
    Case("Selu", lambda x: selu(x, 30, 2), attributes={"alpha": 30.0, "gamma": 2.0}),
    Case("Celu", elu),
    Case("Celu", lambda x: np.where(x > 0, x, 7 * np.expm1(np.minimum(x, 0) / 7)), attributes={"alpha": 7.0}),
    Case("HardSigmoid", lambda x: np.clip(single(0.2) * x + 0.5, 0, 1)),
    Case("HardSigmoid", lambda x: np.clip(7 * x - 40, 0, 1), attributes={"alpha": 7.0, "beta": -40.0}),
    Case("HardSwish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    Case("Mish", lambda x: x * np.tanh(softplus(x))),
    Case("Gelu", gelu),
    Case("Gelu", gelu_tanh, attributes={"approximate": "tanh"}),
    Case("Swish", lambda x: x * sigmoid(x), opset=24),
    Case("Gelu", gelu, **FAST),
    Case("FastGelu", gelu_tanh, assumed_as="Gelu:tanh", **FAST),
    Case("QuickGelu", lambda x: x * sigmoid(single(1.702) * x), assumed_as="Swish", **FAST),
    Case("Sin", np.sin),
    Case("Cos", np.cos),
    Case("Tan", np.tan),
    Case("Asin", np.arcsin, -1, 1),
    Case("Acos", np.arccos, -1, 1),
    Case("Atan", np.arctan),
    Case("Sinh", np.sinh),
    Case("Cosh", np.cosh),
    Case("Asinh", np.arcsinh),
    Case("Acosh", np.arccosh, low=1),
    Case("Atanh", np.arctanh, -1, 1),
    *(
        Case("Pow", power(e), -np.inf if float(e).is_integer() else 0, constants=(e,))
        for e in (2, 3, 4, 7, -1, -2, -5, 1, 0, 0.5, 1.75, -0.375, 13.25)
    ),
    Case("PRelu", lambda x: np.where(x > 0, x, -1.625 * x), constants=(-1.625,)),
    Case("LeakyRelu", lambda x: np.where(x > 0, x, single(0.3) * x), attributes={"alpha": 0.3}),
    Case("ThresholdedRelu", lambda x: np.where(x > single(0.3), x, 0), attributes={"alpha": 0.3}),
    Case("Abs", np.abs),
    Case("Neg", np.negative),
    Case("Relu", lambda x: np.maximum(x, 0)),
    Case("Floor", np.floor),
    Case("Ceil", np.ceil),
    Case("Round", np.round),
    Case("Sign", np.sign),
    Case("Identity", lambda x: x),
    Case("Clip", lambda x: np.clip(x, -0.75, 1e4), constants=(-0.75, 1e4)),
    Case("Max", lambda x: np.maximum(x, 0.375), constants=(0.375,)),
    Case("Min", lambda x: np.minimum(x, 0.375), constants=(0.375,)),
    Case("Mod", lambda x: np.fmod(x, x.dtype.type(0.375)), attributes={"fmod": 1}, constants=(0.375,)),
    Case("Add", lambda x: x + 0.7109375, constants=(0.7109375,)),
    Case("Sub", lambda x: x - 0.7109375, constants=(0.7109375,)),
    Case("Mul", lambda x: x * 0.7109375, constants=(0.7109375,)),
    Case("Div", lambda x: x / 11, constants=(11,)),
]


def model_of(operator, shape, kind, constants=(), opset=21, domain="", **attributes):
    """A model of one node, its first operand the input; constants that are not integers take the type of the input."""
    names, initializers = ["x"], []
    for index, value in enumerate(constants):
        names.append("" if value is None else f"c{index}")
        if value is not None:
            array = np.asarray(value)
            array = array if array.dtype == np.int64 else array.astype(kind)
            initializers.append(numpy_helper.from_array(array, f"c{index}"))
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    ends = [helper.make_tensor_value_info(name, TYPES[kind], size) for name, size in (("x", shape), ("y", None))]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], initializers)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


@lru_cache(512)
def session_of(source, level):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def case_session(case, kind, level):
    constants = [np.asarray(value, kind) for value in case.constants]
    source = model_of(case.operator, ["N"], kind, constants, case.opset, case.domain, **case.attributes)
    return session_of(source, level)


def is_known(case, kind):
    """Whether the installed runtime has a kernel for the case."""
    try:
        case_session(case, kind, LEVELS[-1])
    except (exceptions.NotImplemented, exceptions.Fail):
        return False
    return True


def points(case, kind, count, seed=0):
    """Numbers of every exponent and both signs, near 0, 1, poles and the limits of exp, within the case's domain."""
    random = np.random.default_rng(seed)
    bits = {"float32": np.uint32, "float64": np.uint64}[kind]
    parts = [random.integers(0, np.iinfo(bits).max, count, dtype=bits, endpoint=True).view(kind)]
    limit = 104 if kind == "float32" else 745
    parts += [random.uniform(-width, width, count) for width in (1, 6, 20, limit)]
    parts += [random.choice([-1, 1], count) * 2.0 ** random.uniform(-40, 30, count)]
    for pole in (1, -1, np.pi / 2, np.pi, -5.5, 9, -18, 0.9 * limit):
        parts.append(pole + random.choice([-1, 1], count // 8) * 2.0 ** random.uniform(-30, 0, count // 8))
    x = np.concatenate([part.astype(kind) for part in parts])
    inside = np.isfinite(x) & (x >= case.low) & (x <= case.high)
    normal = (np.abs(x) >= FORMATS[kind].tiny) | (x == 0)  # others may be flushed: what is assumed is at 0 or at them
    return x[inside & normal]


def load(case, kind, x, computed):
    """How much of the assumed error is used, at most, and where: wherever f(x) is at most half the largest number."""
    form = FORMATS[kind]
    wide = x.astype(WIDER[kind])
    with np.errstate(all="ignore"):
        exact = np.asarray(case.reference(wide))
        allowed = case.accuracy(kind).error(kind, np.abs(exact), np.abs(wide))
        counted = np.isfinite(exact) & (np.abs(exact) <= form.largest / 2)
        error = np.abs(computed.astype(WIDER[kind]) - exact)
    ratio = np.where(counted, np.where(np.isnan(error), np.inf, error) / np.where(counted, allowed, 1), 0)
    worst = int(ratio.argmax())
    return float(ratio[worst]), float(x[worst])


def share(computed, exact, allowed):
    """How much of the assumed error is used, at most: infinity for a wrong number where something is assumed."""
    with np.errstate(all="ignore"):
        counted = np.isfinite(allowed) & np.isfinite(exact)
        error = np.abs(computed.astype(exact.dtype) - exact)
        error = np.where(np.isnan(error), np.inf, error)
        ratio = np.where(error == 0, 0, error / np.where(allowed == 0, np.finfo(np.float64).tiny, allowed))
    return float(np.where(counted, ratio, 0).max(initial=0))


def run_trial(trial, level):
    """The computed result of a composed operator at one level."""
    kind = trial.x.dtype.name
    source = model_of(
        trial.operator, trial.x.shape, kind, trial.constants, trial.opset, trial.domain, **trial.attributes
    )
    return session_of(source, level).run(None, {"x": trial.x})[0]
