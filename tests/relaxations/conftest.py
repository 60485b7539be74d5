"""Every relaxation with the function it must enclose, and intervals that are hard on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional

from zonoplug import relaxations
from zonoplug.relaxations import RELAXATIONS


class Case(NamedTuple):
    """A relaxation, its function in double precision, and where the function is defined and finite in float32."""

    name: str
    rule: Callable
    function: Callable
    low: float = -math.inf
    high: float = math.inf
    slack: float = 0.0  # relative: what rounding the function's parameters to float32 may cost
    size: Callable = lambda x, y: y.abs()  # a magnitude: the radius of a short interval is some units in its last place


def heaviside(x, at_zero=0.0):
    return torch.heaviside(x, torch.full((), at_zero, dtype=x.dtype))


def tail_size(x, y):
    return (1 + x**2) * y.abs()


def softplus(x):
    return torch.logaddexp(x, torch.zeros_like(x))


def gelu_tanh(x):
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def hard_swish(x):
    return x * (x + 3).clamp(0, 6) / 6


def registered(name, function, *args, **kwargs):
    return Case(name, RELAXATIONS.get(name), function, *args, **kwargs)


TINY = 1e-37
REGISTERED = [
    registered("relu", torch.relu),
    registered("leaky_relu", partial(functional.leaky_relu, negative_slope=0.01), slack=1e-7),
    registered("prelu", partial(functional.leaky_relu, negative_slope=0.25)),
    registered("abs", torch.abs),
    registered("clip", lambda x: x.clamp(0, 1)),
    registered("relu6", lambda x: x.clamp(0, 6)),
    registered("hardtanh", lambda x: x.clamp(-1, 1)),
    registered("hard_sigmoid", lambda x: (x / 6 + 0.5).clamp(0, 1), slack=1e-7),
    registered("hard_swish", hard_swish),
    registered("sign", torch.sign),
    registered("step", heaviside),
    registered("floor", torch.floor),
    registered("ceil", torch.ceil),
    registered("round", torch.round),
    registered("sigmoid", torch.sigmoid),
    registered("tanh", torch.tanh),
    registered("erf", torch.erf),
    registered("arctan", torch.arctan),
    registered("exp", torch.exp, high=88.0),
    registered("log", torch.log, low=TINY),
    registered("softplus", softplus, size=lambda x, y: y.abs() + 1e7),
    registered("log_sigmoid", lambda x: -softplus(-x), size=lambda x, y: y.abs() + 1e7),
    registered("elu", functional.elu),
    registered("celu", functional.celu),
    registered("selu", functional.selu, slack=1e-7),
    registered("power", lambda x: x**3, -1e12, 1e12),
    registered("square", torch.square, -1e18, 1e18),
    registered("reciprocal", torch.reciprocal, low=TINY),
    registered("sqrt", torch.sqrt, low=0.0),
    registered("rsqrt", torch.rsqrt, low=TINY),
    registered("sin", torch.sin, size=lambda x, y: x.abs() + y.abs()),
    registered("cos", torch.cos, size=lambda x, y: x.abs() + y.abs()),
    registered("gelu", lambda x: x * torch.special.log_ndtr(x).exp(), size=tail_size),
    registered("gelu_tanh", gelu_tanh, size=tail_size),
    registered("silu", functional.silu, size=tail_size),
    registered("mish", functional.mish, size=tail_size),
]
WITH_PARAMETERS = [
    Case("leaky_relu of negative slope", partial(relaxations.leaky_relu, negative_slope=-0.5),
         partial(functional.leaky_relu, negative_slope=-0.5)),
    Case("leaky_relu of slope 2", partial(relaxations.leaky_relu, negative_slope=2.0),
         partial(functional.leaky_relu, negative_slope=2.0), -1e38),
    Case("clip from below", partial(relaxations.clip, low=-0.25, high=math.inf), lambda x: x.clamp(min=-0.25)),
    Case("clip from above", partial(relaxations.clip, low=-math.inf, high=torch.tensor(0.5)),
         lambda x: x.clamp(max=0.5)),
    Case("clip to nothing", partial(relaxations.clip, low=2.0, high=1.0), torch.ones_like),
    Case("hard_sigmoid of ONNX", partial(relaxations.hard_sigmoid, alpha=0.25), lambda x: (x / 4 + 0.5).clamp(0, 1)),
    Case("step with 2 at zero", partial(relaxations.step, at_zero=2.0), partial(heaviside, at_zero=2.0)),
    Case("elu of 0.5", partial(relaxations.elu, alpha=0.5), partial(functional.elu, alpha=0.5)),
    Case("elu of 2", partial(relaxations.elu, alpha=2.0), partial(functional.elu, alpha=2.0)),
    Case("celu of 0.25", partial(relaxations.celu, alpha=0.25), partial(functional.celu, alpha=0.25)),
    Case("power 0", partial(relaxations.power, exponent=0.0), torch.ones_like),
    Case("power 1", partial(relaxations.power, exponent=1.0), lambda x: x),
    Case("power 4", partial(relaxations.power, exponent=4.0), lambda x: x**4, -1e9, 1e9),
    Case("power 7", partial(relaxations.power, exponent=7.0), lambda x: x**7, -1e5, 1e5),
    Case("power 1.5", partial(relaxations.power, exponent=1.5), lambda x: x**1.5, 0.0, 1e25),
    Case("power 0.25", partial(relaxations.power, exponent=0.25), lambda x: x**0.25, 0.0),
    Case("power -2", partial(relaxations.power, exponent=-2.0), lambda x: x**-2, 1e-18),
    Case("power -3", partial(relaxations.power, exponent=-3.0), lambda x: x**-3, 1e-12),
    Case("power -1 left of 0", partial(relaxations.power, exponent=-1.0), torch.reciprocal, high=-TINY),
    Case("power -2 left of 0", partial(relaxations.power, exponent=-2.0), lambda x: x**-2, high=-1e-18),
    Case("power -3 left of 0", partial(relaxations.power, exponent=-3.0), lambda x: x**-3, high=-1e-12),
]  # fmt: skip
CASES = {case.name: case for case in (*REGISTERED, *WITH_PARAMETERS)}

_LANDMARKS = [
    0,
    1e-300,
    1e-40,
    1e-30,
    1e-10,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    1.2,
    1.4,
    1.5,
    2,
    2.4,
    3,
    4,
    5,
    6,
    8,
    10,
    15,
    20,
    21,
]
_LANDMARKS += [25, 40, 88, 100, 700, 1e6, 1e15, 1e30, math.pi / 2, math.pi, 2 * math.pi, 100 * math.pi]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def cases():
    return CASES


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def inside():
    """Moves intervals into the domain of a case."""

    def move(case, lower, upper):
        low, high = max(case.low, -3e38), min(case.high, 3e38)
        return lower.clamp(low, high), upper.clamp(low, high)

    return move


@pytest.fixture
def points():
    """Points of [lower, upper], in double precision: spread, crowded at both ends and at 0, and at known kinks."""

    def spread(lower, upper):
        low, high = lower.double(), upper.double()
        away = 10 ** torch.linspace(-17, 0, 60, dtype=torch.float64)
        share = torch.cat([torch.linspace(0, 1, 101, dtype=torch.float64), away, 1 - away])[:, None]
        marks = torch.tensor(_LANDMARKS, dtype=torch.float64)
        near = torch.cat([marks, marks * (1 - 1e-9), marks * (1 + 1e-9)])
        everywhere = torch.cat([near, -near])[:, None].expand(-1, lower.numel())
        x = torch.cat([low * (1 - share) + high * share, everywhere])
        return torch.minimum(torch.maximum(x, low), high)

    return spread
