"""Linear relaxations of functions of one variable: pure mathematics, (lower, upper) -> Relaxation."""

from zonoplug.relaxations.base import RELAXATIONS, Relaxation
from zonoplug.relaxations.piecewise_linear import absolute, leaky_relu, relu
from zonoplug.relaxations.s_shaped import sigmoid, tanh

__all__ = ["RELAXATIONS", "Relaxation", "absolute", "leaky_relu", "relu", "sigmoid", "tanh"]
