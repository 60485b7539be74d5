"""All that is assumed of ONNX Runtime's CPU provider, in one place.

A proof is about what the runtime may compute, not about the real function alone. What it may compute is assumed here,
and tests/io/test_runtime.py holds the assumptions against the installed runtime at each of its optimisation levels:

- `ACCURACY`, `accuracy_of`: elementwise operators, in units of the last place.
- The functions `..._error` and `..._accuracy`: sums, products and what is composed of them, for any order of
  summation, with or without fused multiply-add, subnormal numbers flushed or not.
- `check_runtime`: whether all that the runtime executes for a model is among these; nothing is proved otherwise.
- Those of `runtime_expressions`: the same where several operators of the file are bounded as one function.
- `variance_cancels`: what the installed runtime does where versions differ.

All of it is about operands as the runtime has them; how an error is carried on is not decided here.
"""

from __future__ import annotations

from zonoplug.io.runtime_accuracy import ACCURACY, DOUBLE, FORMATS, Accuracy, Format, accuracy_of
from zonoplug.io.runtime_expressions import (
    factor_error,
    less_log_sum_error,
    log_of_softmax_error,
    plain_softmax_error,
    quotient_error,
)
from zonoplug.io.runtime_formulas import (
    FOLDED,
    HEADROOM,
    batch_normalization_error,
    gamma,
    log_softmax_accuracy,
    log_sum_error,
    log_sum_exp_accuracy,
    logarithm_error,
    lp_normalization_error,
    mean_error,
    norm_error,
    normalization_error,
    product_error,
    product_sum_error,
    resize_linear_error,
    rms_normalization_error,
    softmax_accuracy,
    square_sum_error,
    sum_error,
)
from zonoplug.io.runtime_graph import LARGEST_MODEL, LEVELS, UNDERSTOOD, check_runtime, runtime_operators
from zonoplug.io.runtime_probe import variance_cancels

__all__ = [
    "ACCURACY",
    "DOUBLE",
    "FOLDED",
    "FORMATS",
    "HEADROOM",
    "LARGEST_MODEL",
    "LEVELS",
    "UNDERSTOOD",
    "Accuracy",
    "Format",
    "accuracy_of",
    "batch_normalization_error",
    "check_runtime",
    "factor_error",
    "gamma",
    "less_log_sum_error",
    "log_of_softmax_error",
    "log_softmax_accuracy",
    "log_sum_error",
    "log_sum_exp_accuracy",
    "logarithm_error",
    "lp_normalization_error",
    "mean_error",
    "norm_error",
    "normalization_error",
    "plain_softmax_error",
    "product_error",
    "product_sum_error",
    "quotient_error",
    "resize_linear_error",
    "rms_normalization_error",
    "runtime_operators",
    "softmax_accuracy",
    "square_sum_error",
    "sum_error",
    "variance_cancels",
]
