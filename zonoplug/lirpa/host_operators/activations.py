"""Elementwise operators that the host lacks, or bounds without a slope: their bounds come from our relaxations."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import zonoplug.relaxations as relaxations
from zonoplug.lirpa.host_operators.bases import constant
from zonoplug.lirpa.host_operators.curves import Curve, Lines
from zonoplug.relaxations import Relaxation

_logger = logging.getLogger("auto_LiRPA.utils")
_operators = importlib.import_module("auto_LiRPA.operators")


class Activation(Curve):
    """An elementwise function that does not decrease, between the two lines of its relaxation."""

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        """The band around the function on [lower, upper]."""
        raise NotImplementedError

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.value(x)

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        lower, upper = intervals[0]
        return self.value(lower), self.value(upper)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        low, high = self.image((lower, upper))
        slope, offset, radius = self.relaxation(lower, upper)
        known = radius.isfinite() & slope.isfinite() & offset.isfinite()
        slope = torch.where(known, slope, torch.zeros_like(slope))
        return Lines(slope, torch.where(known, offset - radius, low), slope, torch.where(known, offset + radius, high))

    def _number(self, name: str, default: float) -> float:
        return float((self.attr or {}).get(name, default))


class BoundElu(Activation):
    """x for x >= 0, alpha (exp(x) - 1) for x < 0."""

    def value(self, x: Tensor) -> Tensor:
        return functional.elu(x, self._number("alpha", 1.0))

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        return relaxations.elu(lower, upper, self._number("alpha", 1.0))


class BoundCelu(Activation):
    """x for x >= 0, alpha (exp(x / alpha) - 1) for x < 0; alpha is an attribute or the second input."""

    @property
    def alpha(self) -> float:
        return float(constant(self.inputs[1])) if len(self.inputs) > 1 else self._number("alpha", 1.0)

    def value(self, x: Tensor) -> Tensor:
        return functional.celu(x, self.alpha)

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        return relaxations.celu(lower, upper, self.alpha)


class BoundSelu(Activation):
    """gamma x for x >= 0, gamma alpha (exp(x) - 1) for x < 0."""

    @property
    def numbers(self) -> tuple[float, float]:
        """alpha and gamma."""
        return self._number("alpha", relaxations.SELU_ALPHA), self._number("gamma", relaxations.SELU_GAMMA)

    def value(self, x: Tensor) -> Tensor:
        alpha, gamma = self.numbers
        return gamma * functional.elu(x, alpha)

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        return relaxations.selu(lower, upper, *self.numbers)


class BoundHardSigmoid(Activation):
    """min(max(alpha x + beta, 0), 1)."""

    def value(self, x: Tensor) -> Tensor:
        return (x * self._number("alpha", 0.2) + self._number("beta", 0.5)).clamp(0, 1)

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        return relaxations.hard_sigmoid(lower, upper, self._number("alpha", 0.2), self._number("beta", 0.5))


class BoundErf(Activation):
    """The error function."""

    def value(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        return relaxations.erf(lower, upper)


class BoundClip(Activation):
    """min(max(x, low), high); the limits are attributes or further inputs, constant ones."""

    def forward(self, x: Tensor, *limits: Tensor) -> Tensor:
        low, high = (*limits, torch.inf)[:2] if limits else self._limits()
        return torch.minimum(torch.maximum(x, torch.as_tensor(low).to(x)), torch.as_tensor(high).to(x))

    def value(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def _limits(self) -> tuple[Any, Any]:
        if len(self.inputs) > 1:
            given = [constant(node) for node in self.inputs[1:]]
            return given[0], given[1] if len(given) > 1 else torch.inf
        low, high = (self.attr or {}).get("min"), (self.attr or {}).get("max")
        return -torch.inf if low is None else low, torch.inf if high is None else high

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        return relaxations.clip(lower, upper, *self._limits())


class BoundLeakyRelu(Activation):
    """x for x > 0, alpha x for x < 0, with alpha of any sign and size."""

    def value(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, self._number("alpha", 0.01))

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return _image_with_kink(self.value, *intervals[0])

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        return relaxations.leaky_relu(lower, upper, self._number("alpha", 0.01))


def _image_with_kink(value: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of a function with f(0) = 0 that is linear on each side of 0."""
    at_lower, at_upper = value(lower), value(upper)
    inside = torch.where((lower < 0) & (upper > 0), torch.zeros_like(lower), at_upper)
    low = torch.minimum(torch.minimum(at_lower, at_upper), inside)
    return low, torch.maximum(torch.maximum(at_lower, at_upper), inside)


class BoundPRelu(Activation):
    """x for x > 0, weight x for x < 0; the weight, of either sign, is the second input."""

    def forward(self, x: Tensor, *weight: Tensor) -> Tensor:
        return torch.where(x > 0, x, (weight[0] if weight else constant(self.inputs[1])) * x)

    def value(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return _image_with_kink(self.value, *intervals[0])

    def relaxation(self, lower: Tensor, upper: Tensor) -> Relaxation:
        return relaxations.prelu(lower, upper, constant(self.inputs[1]))


def _jumping(name: str, function: Callable[[Tensor], Tensor], rule: Callable[..., Relaxation]) -> type:
    """The class of a function without numbers."""
    return type(
        f"Bound{name}",
        (Activation,),
        {
            "value": lambda self, x: function(x),
            "relaxation": lambda self, lower, upper: rule(lower, upper),
            "__module__": __name__,
            "__doc__": f"{name}, elementwise.",
        },
    )


_Round = _jumping("Round", torch.round, relaxations.nearest)
_ATEN: dict[str, Any] = {"celu": BoundCelu, "round": _Round}


def _aten_class(attr: Any, inputs: Any, output_index: int, options: Any) -> Any:
    """An operator that torch's exporter leaves as it is, under the name in its attribute."""
    operator = str(attr["operator"])
    chosen = _ATEN.get(operator) or getattr(_operators, f"BoundATen{operator.capitalize()}", None)
    if chosen is None:  # reported as the host reports an operator that it lacks
        _logger.error("The node has an unsupported operation: %s", SimpleNamespace(op="aten::ATen", attr=attr))
        raise NotImplementedError(f"no class for aten::{operator}")
    return chosen(attr, inputs, output_index, options)


def _leaky_class(attr: Any, inputs: Any, output_index: int, options: Any) -> Any:
    """The host's bounds hold for slopes between 0 and 1 only."""
    chosen = _operators.BoundLeakyRelu if 0 <= float(attr.get("alpha", 0.01)) <= 1 else BoundLeakyRelu
    return chosen(attr, inputs, output_index, options)


def custom_activations() -> dict[str, Any]:
    """Operator name, as the host's parser spells it, to the class that serves it where the host has none or errs."""
    ours: dict[str, Any] = {
        "onnx::Ceil": _jumping("Ceil", torch.ceil, relaxations.ceil),
        "onnx::Celu": BoundCelu,
        "onnx::Elu": BoundElu,
        "onnx::Erf": BoundErf,
        "onnx::Floor": _jumping("Floor", torch.floor, relaxations.floor),
        "onnx::HardSigmoid": BoundHardSigmoid,
        "onnx::PRelu": BoundPRelu,
        "onnx::Round": _Round,
        "onnx::Selu": BoundSelu,
        "onnx::Sign": _jumping("Sign", torch.sign, relaxations.sign),
    }
    ours = {name: made for name, made in ours.items() if not hasattr(_operators, f"Bound{name[6:]}")}
    return ours | {"onnx::Clip": BoundClip, "onnx::LeakyRelu": _leaky_class, "aten::ATen": _aten_class}
