"""Which operators of the hosts' graphs are tried, and in which networks: class name -> makers of networks around it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from host_laws_cases import (
    Core,
    Maker,
    average_pool,
    batch_norm,
    conv,
    conv_transpose,
    image,
    matrix,
    max_pool,
    on_axis,
    pair,
    plain_pool,
    reduction,
    slopes,
    unary,
    vector,
    with_constant,
)
from host_laws_shapes import (
    concat,
    expand,
    flatten,
    gather,
    gather_elements,
    linear,
    pad,
    piece,
    reshape,
    reshape_before_convolution,
    resize,
    split,
    squeeze,
    tile,
    transpose,
    unsqueeze,
)
from torch import Tensor, nn
from torch.nn import functional

from zonoplug.testing import Function


def where(r: Random) -> Core:
    shape = vector(r)
    mask = torch.rand(1, *shape) < 0.5
    return Core(lambda x: torch.where(mask, x, -0.5 * x), shape)


def compared(function: object) -> Maker:
    """A comparison of two perturbed values, as a number."""
    return lambda r: Core(
        Function(lambda x, a, b: function(a(x), b(x)).to(x.dtype), a=nn.Linear(3, 3), b=nn.Linear(3, 3)), (3,)
    )


def logical(function: object) -> Maker:
    return lambda r: Core(
        Function(lambda x, a, b: function(a(x) > 0, b(x) < 0.1).to(x.dtype), a=nn.Linear(3, 3), b=nn.Linear(3, 3)),
        (3,),
    )


def choice(r: Random) -> Core:
    return Core(
        Function(lambda x, a, b: torch.where(a(x) > 0, b(x), -2 * x), a=nn.Linear(3, 3), b=nn.Linear(3, 3)), (3,)
    )


def cast(r: Random) -> Core:
    return Core(lambda x: (x > 0.2).to(x.dtype), vector(r))


def to_integer(r: Random) -> Core:
    return Core(lambda x: (2 * x).to(torch.int64).to(x.dtype), vector(r))


def place_of_largest(r: Random) -> Core:
    keep = r.random() < 0.5
    return Core(lambda x: torch.argmax(x, 2, keepdim=keep).to(x.dtype), (2, 3))


def product_by_constant(r: Random) -> Core:
    rows, columns = matrix(r)
    if r.random() < 0.5:
        return Core(Function(lambda x, c: torch.matmul(x, c), c=torch.randn(columns, 2)), (rows, columns))
    return Core(Function(lambda x, c: torch.matmul(c, x), c=torch.randn(2, rows)), (rows, columns))


def product_of_two(r: Random) -> Core:
    rows, columns = matrix(r)
    layers = {"a": nn.Linear(columns, 2), "b": nn.Linear(columns, 2)}
    if r.random() < 0.4:
        return Core(lambda x: torch.matmul(x, x.transpose(1, 2)), (rows, columns))
    return Core(Function(lambda x, a, b: torch.matmul(a(x), b(x).transpose(1, 2)), **layers), (rows, columns))


def attention(r: Random) -> Core:
    layers = {name: nn.Linear(3, 3) for name in "qkv"}
    return Core(
        Function(
            lambda x, q, k, v: torch.matmul(torch.softmax(torch.matmul(q(x), k(x).transpose(1, 2)), -1), v(x)), **layers
        ),
        (3, 3),
    )


def layer_norm(r: Random) -> Core:
    shape = r.choice([(4,), (2, 4)])
    layer = nn.LayerNorm(4, eps=r.choice([1e-5, 1e-2]))
    nn.init.normal_(layer.weight)
    return Core(layer, shape)


def on_images(function: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    """A function of an image and of another that a convolution and a ReLU make of it."""

    def make(r: Random) -> Core:
        shape = image(r)
        layer = nn.Conv2d(shape[0], shape[0], 3, padding=1) if r.random() < 0.6 else nn.Conv2d(shape[0], shape[0], 1)
        return Core(Function(lambda x, a: function(x, torch.relu(a(x))), a=layer), shape)

    return make


def power(r: Random) -> Core:
    exponent = r.choice([2, 2, 3, 4, 5, 0.5, 1.5, -1, -2, -3])
    shift = 0.0 if exponent in (2, 3, 4, 5) else r.choice([3.0, 4.0]) * (1 if exponent % 1 else r.choice([1, -1]))
    return Core(lambda x: x**exponent, vector(r), shift)


def limits(r: Random) -> Core:
    low, width = r.choice([-1.0, -0.3, 0.0, 0.2]), r.choice([0.1, 0.5, 6.0])
    return Core(lambda x: torch.clamp(x, low, low + width), vector(r))


def heaviside(r: Random) -> Core:
    at_zero = torch.tensor([r.choice([0.0, 1.0])])
    return Core(lambda x: torch.heaviside(x, at_zero.to(x.dtype)), vector(r))


def cumulative(r: Random) -> Core:
    shape = r.choice([(4,), (2, 3)])
    return Core(lambda x: torch.cumsum(x, len(shape)), shape)


def global_pool(r: Random) -> Core:
    return Core(nn.AdaptiveAvgPool2d(1), image(r))


SLOPES = [0.01, 0.1, 0.5, 0.99, 1.0, 1.01, 1.7, 4.0, -0.5, 0.0]

FAMILIES: dict[str, list[Maker]] = {
    "BoundLinear": [linear],
    "BoundRelu": [unary(torch.relu)],
    "BoundAdd": [pair(torch.add), with_constant(lambda x, c: c + x), on_images(torch.add)],
    "BoundSub": [
        pair(torch.sub),
        with_constant(lambda x, c: c - x),
        on_images(lambda x, y: y - x),
        with_constant(lambda x, c: x - c),
    ],
    "BoundNeg": [unary(torch.neg)],
    "BoundConv": [conv, conv, lambda r: conv(r, 1), lambda r: conv(r, r.choice([1, 3]))],
    "BoundLeakyRelu": [slopes(nn.LeakyReLU, SLOPES)],
    "BoundPRelu": [lambda r: Core(nn.PReLU(init=r.choice(SLOPES)), vector(r))],
    "BoundElu": [slopes(nn.ELU, [0.3, 1.0, 1.0, 2.5])],
    "BoundCelu": [slopes(nn.CELU, [0.3, 1.0, 2.5])],
    "BoundSelu": [unary(torch.selu)],
    "BoundHardSigmoid": [unary(lambda x: functional.hardsigmoid(3 * x))],
    "BoundHardTanh": [
        lambda r: Core(nn.Hardtanh(-r.choice([0.3, 1.0]), r.choice([0.2, 1.0, 6.0])), vector(r)),
        unary(nn.ReLU6()),
    ],
    "BoundClip": [limits],
    "BoundSoftplus": [unary(functional.softplus)],
    "BoundGelu": [unary(functional.gelu)],
    "BoundErf": [unary(torch.erf)],
    "BoundSigmoid": [unary(torch.sigmoid), unary(lambda x: torch.sigmoid(4 * x))],
    "BoundTanh": [unary(torch.tanh), unary(lambda x: torch.tanh(4 * x))],
    "BoundAtan": [unary(torch.atan), unary(lambda x: torch.atan(5 * x))],
    "BoundSin": [unary(torch.sin), unary(lambda x: torch.sin(3 * x))],
    "BoundCos": [unary(torch.cos), unary(lambda x: torch.cos(3 * x))],
    "BoundExp": [unary(torch.exp)],
    "BoundLog": [unary(torch.log, 4.0), unary(torch.log, 8.0), unary(lambda x: torch.log(functional.softplus(x)))],
    "BoundSqrt": [unary(torch.sqrt, 4.0), unary(torch.sqrt, 8.0)],
    "BoundReciprocal": [unary(torch.reciprocal, 4.0), unary(torch.reciprocal, -5.0)],
    "BoundPow": [power],
    "BoundConvTranspose": [conv_transpose],
    "BoundBatchNormalization": [batch_norm],
    "BoundAveragePool": [average_pool, plain_pool(nn.AvgPool2d, True)],
    "BoundGlobalAveragePool": [global_pool],
    "BoundMaxPool": [max_pool, plain_pool(nn.MaxPool2d, True)],
    "BoundReshape": [reshape, reshape_before_convolution],
    "BoundFlatten": [flatten],
    "BoundTranspose": [transpose],
    "BoundSqueeze": [squeeze],
    "BoundUnsqueeze": [unsqueeze],
    "BoundConcat": [concat],
    "BoundSplit": [split],
    "BoundSlice": [piece],
    "BoundGather": [gather],
    "BoundExpand": [expand],
    "BoundTile": [tile],
    "BoundPad": [pad],
    "BoundResize": [resize],
    "BoundWhere": [where],
    "BoundMul": [pair(torch.mul), with_constant(lambda x, c: x * c), with_constant(lambda x, c: c * x)],
    "BoundDiv": [
        pair(torch.div, on_second=4.0),
        pair(torch.div, on_second=-4.0),
        with_constant(lambda x, c: x / c),
        with_constant(lambda x, c: x / c),
    ],
    "BoundMatMul": [product_by_constant, product_of_two],
    "BoundSoftmax": [on_axis(lambda x, axis: torch.softmax(2 * x, axis)), attention],
    "BoundLogSoftmax": [on_axis(torch.log_softmax)],
    "BoundReduceMean": [reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep))],
    "BoundReduceSum": [reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep))],
    "BoundReduceMax": [reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep))],
    "BoundReduceMin": [reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep))],
    "BoundReduceProd": [reduction(lambda x, axis, keep: x.prod(axis, keepdim=keep), False)],
    "BoundReduceL1": [reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 1, axes, keep))],
    "BoundReduceL2": [reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep))],
    "BoundReduceLogSumExp": [reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keep))],
    "BoundMax": [pair(torch.maximum), with_constant(torch.maximum)],
    "BoundMin": [pair(torch.minimum), with_constant(torch.minimum)],
    "BoundLayerNormalization": [layer_norm],
    "BoundCumSum": [cumulative],
    "BoundSqr": [unary(lambda x: x * x)],
    "BoundAbs": [unary(torch.abs)],
    "BoundSign": [unary(torch.sign)],
    "BoundSignMerge": [unary(torch.sign)],
    "BoundChoice": [choice],
    "BoundCast": [cast],
    "BoundCastToInteger": [to_integer],
    "BoundArgMax": [place_of_largest],
    "BoundLess": [compared(torch.lt)],
    "BoundGreater": [compared(torch.gt)],
    "BoundEqual": [compared(torch.eq)],
    "BoundNot": [compared(torch.le), compared(torch.ge)],
    "BoundAnd": [logical(torch.logical_and)],
    "BoundOr": [logical(torch.logical_or)],
    "BoundXor": [logical(torch.logical_xor)],
    "BoundGatherElements": [gather_elements],
    "BoundTan": [unary(torch.tan), unary(lambda x: torch.tan(0.2 * x))],
    "BoundSec": [unary(lambda x: 1 / torch.cos(0.2 * x))],
    "BoundATenHeaviside": [heaviside],
    "BoundATenUnflatten": [lambda r: Core(nn.Unflatten(1, (2, 3)), (6,))],
    "BoundATenDiagonal": [lambda r: Core(lambda x: torch.diagonal(x, 0, 1, 2) + 0.0, (3, 3))],
    "BoundFloor": [unary(torch.floor)],
    "BoundCeil": [unary(torch.ceil)],
    "BoundRound": [unary(torch.round)],
    "BoundIdentity": [unary(nn.Identity())],
    "BoundDropout": [unary(nn.Dropout())],
}
