"""Operators composed of sums and functions, with references in higher precision and the errors that are assumed.

Each function takes rows x (rows, n) of one format and gives the node, the exact result and the largest error.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from zonoplug.io import runtime

LAST, FIRST = np.array([-1]), np.array([0])


@dataclass
class Trial:
    """A node on an input, the exact result and what is allowed; arrays that broadcast to the result's shape."""

    operator: str
    x: np.ndarray
    exact: np.ndarray
    allowed: np.ndarray
    constants: tuple = ()
    opset: int = 21
    domain: str = ""
    attributes: dict = field(default_factory=dict)


def wide(x):
    return x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)


def last_axis(values, keepdims=True, how=np.sum):
    return how(values, axis=-1, keepdims=keepdims)


def softmax_parts(x):
    shifted = wide(x) - last_axis(wide(x), how=np.max)
    total = last_axis(np.exp(shifted))
    return shifted, total


def softmax(x):
    kind, n = x.dtype.name, x.shape[-1]
    shifted, total = softmax_parts(x)
    y = np.exp(shifted) / total
    allowed = runtime.softmax_accuracy(n).error(kind, y)
    yield Trial("Softmax", x, y, allowed, attributes={"axis": -1})
    yield Trial("Softmax", x, y, allowed, attributes={"axis": 1}, opset=11)
    yield Trial("Softmax", np.ascontiguousarray(x.T), y.T, allowed.T, attributes={"axis": 0})


def log_softmax(x):
    kind, n = x.dtype.name, x.shape[-1]
    shifted, total = softmax_parts(x)
    y = shifted - np.log(total)
    allowed = runtime.log_softmax_accuracy(n).error(kind, np.abs(y))
    yield Trial("LogSoftmax", x, y, allowed, attributes={"axis": -1})
    yield Trial("LogSoftmax", np.ascontiguousarray(x.T), y.T, allowed.T, attributes={"axis": 0})


def reductions(x):
    kind, n, exact = x.dtype.name, x.shape[-1], wide(x)
    size = last_axis(np.abs(exact))
    norm = np.sqrt(last_axis(exact**2))
    _, total = softmax_parts(x)
    peak = last_axis(exact, how=np.max) + np.log(total)
    mean = last_axis(exact) / n
    product = last_axis(exact, how=np.prod)
    partial = last_axis(np.maximum(np.abs(exact), 1), how=np.prod)
    logarithm = np.log(size)
    found = {
        "ReduceSum": (last_axis(exact), runtime.sum_error(kind, size, n)),
        "ReduceMean": (mean, runtime.mean_error(kind, size, n)),
        "ReduceL1": (size, runtime.sum_error(kind, size, n)),
        "ReduceL2": (norm, runtime.norm_error(kind, norm, n)),
        "ReduceSumSquare": (norm**2, runtime.square_sum_error(kind, norm**2, n)),
        "ReduceProd": (product, runtime.product_error(kind, np.abs(product), partial, n)),
        "ReduceLogSumExp": (peak, runtime.log_sum_exp_accuracy(n).error(kind, np.abs(peak))),
        "ReduceMax": (last_axis(exact, how=np.max), exact[..., :1] * 0),
        "ReduceMin": (last_axis(exact, how=np.min), exact[..., :1] * 0),
        "ReduceLogSum": (logarithm, runtime.log_sum_error(kind, np.abs(logarithm), size, size, n)),
    }
    for operator, (result, allowed) in found.items():
        values = np.abs(x) if operator == "ReduceLogSum" else x
        yield Trial(operator, values, result, allowed, (LAST,))
        yield Trial(operator, np.ascontiguousarray(values.T), result.T, allowed.T, (FIRST,))
        block = np.ascontiguousarray(np.stack([values, values], 1))
        both = np.repeat(result, 2, axis=1)[..., None], np.repeat(allowed, 2, axis=1)[..., None]
        yield Trial(operator, block, *both, (np.array([2]),))
        middle = np.ascontiguousarray(np.stack([values, values], 2))
        both = np.repeat(result, 2, axis=1)[:, None], np.repeat(allowed, 2, axis=1)[:, None]
        yield Trial(operator, middle, *both, (np.array([1]),))
    running = np.cumsum(exact, axis=-1), runtime.sum_error(kind, np.cumsum(np.abs(exact), axis=-1), n)
    yield Trial("CumSum", x, *running, (np.array(1),))


def normalizations(x):
    kind, n, exact = x.dtype.name, x.shape[-1], wide(x)
    epsilon = exact.dtype.type(np.float32(1e-5))
    mean_square = last_axis(exact**2) / n
    centred = exact - last_axis(exact) / n
    least = last_axis(centred**2) / n + epsilon
    y = centred / np.sqrt(least)
    scale = np.linspace(0.5, 3, n, dtype=x.dtype)
    bias = np.linspace(-1, 2, n, dtype=x.dtype)

    def allowed(operator, scale, bias):
        cancels = runtime.variance_cancels(operator)
        parts = mean_square, mean_square / least, np.abs(y), least, np.abs(wide(scale)), np.abs(wide(bias))
        return runtime.normalization_error(kind, n, *parts, cancels=cancels)

    affine = y * wide(scale) + wide(bias), allowed("LayerNormalization", scale, bias)
    yield Trial("LayerNormalization", x, *affine, (scale, bias), attributes={"epsilon": 1e-5})
    if kind == "float32":
        zero, fast = np.zeros_like(x)[None], dict(domain="com.microsoft", attributes={"epsilon": 1e-5})
        yield Trial("SkipLayerNormalization", x[None], *(value[None] for value in affine), (zero, scale, bias), **fast)
        rows = np.linspace(0.5, 3, len(x), dtype=x.dtype)[:, None]
        for operator in ("InstanceNormalization", "GroupNormalization"):
            groups = {"num_groups": len(x)} if operator.startswith("Group") else {}
            affine = (y * wide(rows) - wide(rows))[None], allowed(operator, rows, rows)[None]
            yield Trial(operator, x[None], *affine, (rows[:, 0], -rows[:, 0]), attributes=groups)
    root = np.sqrt(mean_square + epsilon)
    value = exact / root * wide(scale)
    parts = mean_square, np.abs(value), mean_square + epsilon, np.abs(wide(scale))
    error = runtime.rms_normalization_error(kind, n, *parts)
    yield Trial("RMSNormalization", x, value, error, (scale,), opset=23)
    norm = np.sqrt(last_axis(exact**2))
    with np.errstate(all="ignore"):
        yield Trial("LpNormalization", x, exact / norm, runtime.lp_normalization_error(kind, n, norm, norm))


def batch_normalization(x):
    kind, exact = x.dtype.name, wide(x)
    random = np.random.default_rng(0)
    scale, bias, mean = (random.normal(size=len(x)).astype(x.dtype) for _ in range(3))
    variance = np.abs(random.normal(size=len(x))).astype(x.dtype) ** 4
    mean = mean + x.mean(axis=-1)
    factor = wide(scale) / np.sqrt(wide(variance) + exact.dtype.type(np.float32(1e-5)))
    product, shift = factor[:, None] * exact, (factor * wide(mean))[:, None]
    result = product - shift + wide(bias)[:, None]
    parts = np.abs(product), np.abs(shift), np.abs(wide(bias))[:, None]
    error = runtime.batch_normalization_error(kind, *parts)
    yield Trial("BatchNormalization", x[None], result[None], error[None], (scale, bias, mean, variance))


def pools(x):
    if x.dtype != np.float32 or x.shape[-1] < 3:
        return
    exact = wide(x)[None]
    windows = np.stack([exact[..., :-2], exact[..., 1:-1], exact[..., 2:]], axis=-1)
    window = {"kernel_shape": [3]}
    error = runtime.mean_error("float32", last_axis(np.abs(windows), keepdims=False), 3)
    yield Trial("AveragePool", x[None], windows.mean(-1), error, attributes=window)
    whole = runtime.mean_error("float32", last_axis(np.abs(exact)), x.shape[-1])
    yield Trial("GlobalAveragePool", x[None], exact.mean(-1, keepdims=True), whole)
    for p in (1, 2, 3, 5):
        norm = last_axis(np.abs(windows) ** p, keepdims=False) ** (1 / p)
        error = runtime.norm_error("float32", norm, 3, p)
        yield Trial("LpPool", x[None], norm, error, attributes={**window, "p": p})
        norm = last_axis(np.abs(exact) ** p) ** (1 / p)
        yield Trial(
            "GlobalLpPool", x[None], norm, runtime.norm_error("float32", norm, x.shape[-1], p), attributes={"p": p}
        )


def products(x):
    kind, n, exact = x.dtype.name, x.shape[-1], wide(x)
    random = np.random.default_rng(n)
    weights, bias = random.normal(size=(n, 5)).astype(x.dtype), random.normal(size=5).astype(x.dtype)
    result, size = exact @ wide(weights), np.abs(exact) @ np.abs(wide(weights))
    operands = last_axis(np.abs(exact))
    error = runtime.product_sum_error(kind, size, n, operands)
    yield Trial("MatMul", x, result, error, (weights,))
    yield Trial("Einsum", x, result, error, (weights,), attributes={"equation": "ij,jk->ik"})
    error = runtime.product_sum_error(kind, size + np.abs(wide(bias)), n, operands)
    yield Trial("Gemm", x, result + wide(bias), error, (weights, bias))
    if kind == "float32":
        kernels = np.ascontiguousarray(weights.T)[..., None]
        affine = (result + wide(bias))[..., None], error[..., None]
        yield Trial("Conv", x[..., None], *affine, (kernels, bias))
        yield Trial("ConvTranspose", x[..., None], *affine, (weights[..., None], bias))


def resize(x):
    if x.dtype != np.float32 or x.shape[-1] < 3:
        return
    exact, length = wide(x), x.shape[-1]
    for factor in (0.6, 1.7, 3.0):
        scale = np.float32(factor)
        size = int(np.floor(np.float64(scale) * length))
        for mode in ("half_pixel", "asymmetric", "align_corners"):
            if size > 1:
                place = _places(mode, np.arange(size, dtype=np.float64), np.float64(scale), length, size)
                left = np.clip(np.floor(place).astype(int), 0, length - 1)
                right = np.minimum(left + 1, length - 1)
                weight = np.clip(place, 0, length - 1) - left
                near = [np.clip(left + k, 0, length - 1) for k in (-1, 0, 1, 2)]
                step = np.max([np.abs(exact[:, a] - exact[:, b]) for a, b in itertools.pairwise(near)], axis=0)
                top = np.max([np.abs(exact[:, a]) for a in near], axis=0)
                error = runtime.resize_linear_error("float32", top, step, (max(length, size),))
                result = exact[:, left] * (1 - weight) + exact[:, right] * weight
                constants = (None, np.array([1, 1, 1, scale], np.float32))
                attributes = {"mode": "linear", "coordinate_transformation_mode": mode}
                shape = (1, 1, *x.shape)
                trial = Trial("Resize", x.reshape(shape), result[None, None], error[None, None], constants)
                trial.attributes = attributes
                yield trial


def _places(mode, index, scale, length, size):
    if mode == "half_pixel":
        return (index + 0.5) / scale - 0.5
    return index / scale if mode == "asymmetric" else index * (length - 1) / (size - 1)


COMPOSED = (softmax, log_softmax, reductions, normalizations, batch_normalization, pools, products, resize)


def scaled_rows(kind, n, seed=0):
    """Rows (3, n) near 0 and far from it, tiny, huge, flat and of mixed scales, by the name of the scale."""
    random = np.random.default_rng([seed, n])
    plain = random.normal(size=(3, n))
    rows = {
        "1": plain,
        "1e4 + 1": 1e4 + plain,
        "1e6 + 1": 1e6 + plain,
        "1 + 1e-6": 1 + 1e-6 * plain,
        "1e-6": 1e-6 * plain,
        "1e-25": 1e-25 * plain,
        "1e-37": 1e-37 * plain,
        "1e10": 1e10 * plain,
        "1e18": 1e18 * plain,
        "1e36": 1e36 * plain,
        "mixed": plain * 2.0 ** random.uniform(-40, 20, plain.shape),
        "flat": 0 * plain + 0.1,
    }
    return {name: values.astype(kind) for name, values in rows.items()}
