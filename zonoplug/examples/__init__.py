"""Bundled example: networks for scikit-learn's 8 x 8 digits and two properties, made by benchmarks/train_digits.py.

Both properties ask about the same test image x, with pixels scaled to [0, 1]: does every image in
{z in [0, 1]^64 : |z_i - x_i| <= radius} keep the class of x? It holds for the small radius and is violated for the
large one. The files are VNN-LIB 1.0: a holding property is `unsat`, a violated one `sat`.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def digits_model() -> Path:
    """The path of a ReLU network 64-64-64-10 in ONNX; input (1, 64), output (1, 10)."""
    return _FOLDER / "digits.onnx"


def digits_conv_model() -> Path:
    """The path of a small residual convolutional network in ONNX; input (1, 1, 8, 8), output (1, 10).

    Its operators: Conv, BatchNormalization, Relu, Add, Flatten, Gemm. The two properties fit it too: their 64 input
    variables are its pixels in row order.
    """
    return _FOLDER / "digits_conv.onnx"


def digits_holds() -> Path:
    """The path of a property of `digits_model` that holds, and that one zonotope pass proves."""
    return _FOLDER / "digits_holds.vnnlib"


def digits_violated() -> Path:
    """The path of a property of `digits_model` that has a counterexample."""
    return _FOLDER / "digits_violated.vnnlib"
