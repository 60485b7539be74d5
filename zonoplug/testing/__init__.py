"""The laws, public: what must hold for every relaxation, reduction, input set and method, as functions that raise.

Each raises AssertionError with a sentence that says what was broken, so a test of a new member is one call.
"""

from zonoplug.testing.input_sets import check_input_set
from zonoplug.testing.operators import Forked, Function, check_gradient_reaches_slopes, check_operator
from zonoplug.testing.relaxations import check_relaxation, check_relaxation_is_consistent, check_slope_gradient
from zonoplug.testing.requirements import SAMPLES, tolerance
from zonoplug.testing.zonotopes import check_contains_samples, check_encloses, check_reduction, dense_copy

__all__ = [
    "SAMPLES",
    "Forked",
    "Function",
    "check_contains_samples",
    "check_encloses",
    "check_gradient_reaches_slopes",
    "check_input_set",
    "check_operator",
    "check_reduction",
    "check_relaxation",
    "check_relaxation_is_consistent",
    "check_slope_gradient",
    "dense_copy",
    "tolerance",
]
