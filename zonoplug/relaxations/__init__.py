"""Linear relaxations of functions of one variable: pure mathematics, (lower, upper) -> Relaxation."""

from zonoplug.relaxations.base import RELAXATIONS, Relaxation, RelaxationRule
from zonoplug.relaxations.convex import SELU_ALPHA, SELU_GAMMA, celu, elu, exp, log, log_sigmoid, selu, softplus
from zonoplug.relaxations.periodic import cos, sin
from zonoplug.relaxations.piecewise_linear import (
    absolute,
    clip,
    hard_sigmoid,
    hardtanh,
    leaky_relu,
    prelu,
    relu,
    relu6,
    triangle_height,
)
from zonoplug.relaxations.powers import power, reciprocal, rsqrt, sqrt, square
from zonoplug.relaxations.s_shaped import arctan, erf, sigmoid, tanh
from zonoplug.relaxations.smooth import gelu, gelu_tanh, hard_swish, mish, silu
from zonoplug.relaxations.steps import ceil, floor, nearest, sign, step

__all__ = [
    "RELAXATIONS",
    "SELU_ALPHA",
    "SELU_GAMMA",
    "Relaxation",
    "RelaxationRule",
    "absolute",
    "arctan",
    "ceil",
    "celu",
    "clip",
    "cos",
    "elu",
    "erf",
    "exp",
    "floor",
    "gelu",
    "gelu_tanh",
    "hard_sigmoid",
    "hard_swish",
    "hardtanh",
    "leaky_relu",
    "log",
    "log_sigmoid",
    "mish",
    "nearest",
    "power",
    "prelu",
    "reciprocal",
    "relu",
    "relu6",
    "rsqrt",
    "selu",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "sqrt",
    "square",
    "step",
    "tanh",
    "triangle_height",
]
