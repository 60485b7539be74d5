"""Host operators of one variable, through linear relaxations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

import zonoplug.relaxations as relaxations
from zonoplug.domain.zonotope import Zonotope
from zonoplug.lirpa.operators.table import TRANSFORMERS, Call, Entry, NotApplicableError, transforms
from zonoplug.relaxations import Relaxation, RelaxationRule
from zonoplug.relaxations.steps import jump
from zonoplug.transformers.elementwise import relax


def _elementwise(rule: Callable[..., Relaxation], call: Call) -> Zonotope:
    (hull, *_) = call.preactivations
    assert hull is not None
    if call.slope is not None:
        rule = partial(rule, slope=call.slope)
    return relax(call.zonotope, rule, hull, call.source, call.node.name)


_PLAIN: Mapping[str, RelaxationRule] = {
    "BoundAbs": relaxations.absolute,
    "BoundAtan": relaxations.arctan,
    "BoundCeil": relaxations.ceil,
    "BoundCos": relaxations.cos,
    "BoundErf": relaxations.erf,
    "BoundExp": relaxations.exp,
    "BoundFloor": relaxations.floor,
    "BoundGelu": relaxations.gelu,
    "BoundGeluTanh": relaxations.gelu_tanh,
    "BoundHardSwish": relaxations.hard_swish,
    "BoundLog": relaxations.log,
    "BoundLogSigmoid": relaxations.log_sigmoid,
    "BoundMish": relaxations.mish,
    "BoundReciprocal": relaxations.reciprocal,
    "BoundRelu": relaxations.relu,
    "BoundRound": relaxations.nearest,
    "BoundSigmoid": relaxations.sigmoid,
    "BoundSign": relaxations.sign,
    "BoundSilu": relaxations.silu,
    "BoundSin": relaxations.sin,
    "BoundSoftplus": relaxations.softplus,
    "BoundSqr": relaxations.square,
    "BoundSqrt": relaxations.sqrt,
    "BoundTanh": relaxations.tanh,
}
for _name, _rule in _PLAIN.items():
    TRANSFORMERS[_name] = Entry(partial(_elementwise, _rule), "relaxation")

# Operators with numbers as attributes: the relaxation, and the name and default of each number.
_WITH_NUMBERS: Mapping[str, tuple[Callable[..., Relaxation], Mapping[str, tuple[str, float]]]] = {
    "BoundElu": (relaxations.elu, {"alpha": ("alpha", 1.0)}),
    "BoundHardSigmoid": (relaxations.hard_sigmoid, {"alpha": ("alpha", 0.2), "beta": ("beta", 0.5)}),
    "BoundLeakyRelu": (relaxations.leaky_relu, {"negative_slope": ("alpha", 0.01)}),
    "BoundSelu": (
        relaxations.selu,
        {"alpha": ("alpha", relaxations.SELU_ALPHA), "gamma": ("gamma", relaxations.SELU_GAMMA)},
    ),
}


def with_numbers(host_class: str, attributes: Mapping[str, Any] | None) -> RelaxationRule:
    """The relaxation of a host class that keeps numbers as attributes, with those of one node."""
    rule, numbers = _WITH_NUMBERS[host_class]
    return partial(
        rule, **{name: float((attributes or {}).get(key, default)) for name, (key, default) in numbers.items()}
    )


def _file_with_numbers(host_class: str) -> None:
    @transforms(host_class, kind="relaxation")
    def transformer(call: Call) -> Zonotope:
        return _elementwise(with_numbers(host_class, call.node.attr), call)


for _name in _WITH_NUMBERS:
    _file_with_numbers(_name)


@transforms("BoundCelu", kind="relaxation")
def _celu(call: Call) -> Zonotope:
    alpha = float(call.constants[0]) if call.constants else float((call.node.attr or {}).get("alpha", 1.0))
    return _elementwise(partial(relaxations.celu, alpha=alpha), call)


@transforms("BoundPRelu", kind="relaxation")
def _prelu(call: Call) -> Zonotope:
    (negative_slope,) = _broadcastable(call, call.constants)
    return _elementwise(partial(relaxations.prelu, negative_slope=negative_slope), call)


@transforms("BoundPow", kind="relaxation")
def _power(call: Call) -> Zonotope:
    (exponents,) = call.constants
    exponent = exponents.reshape(-1)[0]
    if not bool((exponents == exponent).all()):
        raise NotApplicableError
    return _elementwise(partial(relaxations.power, exponent=float(exponent)), call)


@transforms("BoundATenHeaviside", kind="relaxation")
def _step(call: Call) -> Zonotope:
    (at_zero,) = _broadcastable(call, call.constants)
    return _elementwise(partial(relaxations.step, at_zero=at_zero), call)


@transforms("BoundSignMerge", kind="relaxation")
def _sign_without_zero(call: Call) -> Zonotope:
    """-1 for x < 0, 1 for x >= 0."""
    return _elementwise(partial(jump, left=-1.0, at_zero=1.0, right=1.0, slope=None), call)


@transforms("BoundClip", "BoundHardTanh", kind="relaxation")
def _clip(call: Call) -> Zonotope:
    attributes = call.node.attr or {}
    limits: list[Any] = list(_broadcastable(call, call.constants))
    low, high = [*limits, None][:2] if limits else (attributes.get("min"), attributes.get("max"))
    return _clipped(call, -math.inf if low is None else low, math.inf if high is None else high)


@transforms("BoundMax", kind="relaxation")
def _maximum(call: Call) -> Zonotope:
    return _clipped(call, reduce(torch.maximum, _broadcastable(call, _others(call))), math.inf)


@transforms("BoundMin", kind="relaxation")
def _minimum(call: Call) -> Zonotope:
    return _clipped(call, -math.inf, reduce(torch.minimum, _broadcastable(call, _others(call))))


def _clipped(call: Call, low: float | Tensor, high: float | Tensor) -> Zonotope:
    position = next(i for i, operand in enumerate(call.operands) if isinstance(operand, Zonotope))
    first = Call(call.node, [call.operands[position]], call.source, [call.preactivations[position]], call.slope)
    return _elementwise(partial(relaxations.clip, low=low, high=high), first)


def _others(call: Call) -> list[Tensor]:
    """The constants among the operands of a symmetric operator, of which one is perturbed."""
    constants = [operand for operand in call.operands if isinstance(operand, Tensor)]
    if len(constants) != len(call.operands) - 1:
        raise NotApplicableError
    return constants


def _broadcastable(call: Call, constants: list[Tensor]) -> list[Tensor]:
    """The constants, found to fit the perturbed operand without changing its shape."""
    shape = next(operand.center.shape for operand in call.operands if isinstance(operand, Zonotope))
    if any(torch.broadcast_shapes(shape, constant.shape) != shape for constant in constants):
        raise NotApplicableError
    return constants
