"""Bases for operators that the host lacks: all its bounds from one description, in the host's own conventions.

The host builds an operator as `Class(attr, inputs, output_index, options)`; values have shape (batch, *shape), and
coefficients of backward bounds (spec, batch, *shape).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zonoplug.lirpa import host  # noqa: F401 - it finds auto_LiRPA, whose modules are imported below

_base = importlib.import_module("auto_LiRPA.operators.base")
_leaf = importlib.import_module("auto_LiRPA.operators.leaf")
linear_bound: Any = importlib.import_module("auto_LiRPA.linear_bound").LinearBound
_Patches = importlib.import_module("auto_LiRPA.patches").Patches
_Bound: Any = _base.Bound
_Interval: Any = _base.Interval
make_interval: Any = _Interval.make_interval


def constant(node: Any) -> Tensor:
    """The value of a node that no perturbed input reaches."""
    return torch.as_tensor(node.forward(*[constant(parent) for parent in node.inputs]))


def is_constant(node: Any) -> bool:
    """Whether no input of the model leads to a node, weights and buffers aside."""
    if isinstance(node, _leaf.BoundInput):
        return isinstance(node, _leaf.BoundParams | _leaf.BoundBuffers) and node.perturbation is None
    return all(is_constant(parent) for parent in node.inputs)


def dense(coefficients: Any, shape: torch.Size) -> Tensor | None:
    """Coefficients (spec, batch, *shape) as a tensor, whichever form the host keeps them in.

    Where an operator is a network's last, 0.3 starts with coefficients of its flattened output.
    """
    if coefficients is None:
        return None
    if isinstance(coefficients, Tensor):
        return coefficients.reshape(*coefficients.shape[:2], *shape[1:])
    if isinstance(coefficients, _Patches) and not coefficients.identity:
        matrix: Tensor = coefficients.to_matrix(shape)
        return matrix.transpose(0, 1)
    raise NotImplementedError(f"coefficients of type {type(coefficients).__name__}")


def box_of(given: Any) -> Any:
    """An operand's interval, as the host hands it over. Raises NotImplementedError if it stands for another set."""
    if _Interval.get_perturbation(given)[0] != float("inf"):
        raise NotImplementedError("an operator of an input that is not a box")
    return given


class LinearOperator(_Bound):  # type: ignore[misc]
    """x -> W x + offset, where one of the operator's inputs may be perturbed and the others are constants.

    A subclass gives `linear_part`; all bounds follow from it. Row b of the result may depend on row b of x only.
    """

    position = 0  # of the input that may be perturbed
    nonnegative = True  # no weight is below zero: bounds are the images of bounds, without further rounding

    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.is_linear_op = True

    def linear_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        """W x."""
        raise NotImplementedError

    def absolute_part(self, x: Tensor, *constants: Tensor) -> Tensor:
        """|W| x; the same as `linear_part` unless a subclass has negative weights."""
        return self.linear_part(x, *constants)

    def offset(self, *constants: Tensor) -> Tensor | None:
        """What is added to W x, broadcastable to the output; None for nothing."""
        return None

    def forward(self, *inputs: Any) -> Tensor:
        return self._image(torch.as_tensor(inputs[self.position]), self._others(inputs))

    def _image(self, x: Tensor, constants: Sequence[Tensor]) -> Tensor:
        result = self.linear_part(x, *constants)
        offset = self.offset(*constants)
        return result if offset is None else result + offset

    def _others(self, items: Sequence[Any]) -> list[Any]:
        return [item for position, item in enumerate(items) if position != self.position]

    def _constants(self) -> list[Tensor]:
        others = self._others(self.inputs)
        if any(node.perturbed for node in others):
            raise NotImplementedError(f"{type(self).__name__} with more than one perturbed input")
        return [constant(node) for node in others]

    def interval_propagate(self, *v: Any) -> Any:
        given = box_of(v[self.position])
        lower, upper = given[0], given[1]
        constants = self._constants()
        if lower is upper:
            value = self._image(lower, constants)
            return make_interval(value, value, given)
        if self.nonnegative:
            return make_interval(self._image(lower, constants), self._image(upper, constants), given)
        middle = self._image((lower + upper) / 2, constants)
        radius = self.absolute_part((upper - lower) / 2, *constants)
        return make_interval(middle - radius, middle + radius, given)

    def bound_backward(self, last_lA: Any, last_uA: Any, *x: Any, **_: Any) -> Any:
        constants = self._constants()
        offset = self.offset(*constants)
        lower, lower_bias = self._backward(last_lA, constants, offset)
        upper, upper_bias = self._backward(last_uA, constants, offset)
        coefficients: list[Any] = [(None, None)] * len(self.inputs)
        coefficients[self.position] = (lower, upper)
        return coefficients, lower_bias, upper_bias

    def _backward(self, last: Any, constants: list[Tensor], offset: Tensor | None) -> tuple[Tensor | None, Any]:
        """A W and A offset, for A of shape (spec, batch, *output shape); W^T by the vector-Jacobian product."""
        last = dense(last, self.output_shape)
        if last is None:
            return None, 0
        rows = last.shape[0] * last.shape[1]
        origin = last.new_zeros(rows, *self.inputs[self.position].output_shape[1:]).requires_grad_()
        with torch.enable_grad():
            image = self.linear_part(origin, *constants)
        given = last.reshape(rows, *last.shape[2:])
        (result,) = torch.autograd.grad(image, origin, given, create_graph=last.requires_grad)
        bias = last.new_zeros(last.shape[:2]) if offset is None else (last * offset).flatten(2).sum(2)
        return result.reshape(*last.shape[:2], *result.shape[1:]).contiguous(), bias

    def bound_forward(self, dim_in: int, *inputs: Any) -> Any:
        x, constants = inputs[self.position], self._constants()

        def rows(function: Callable[..., Tensor], weights: Tensor) -> Tensor:
            result = function(weights.flatten(0, 1), *constants)
            return result.reshape(*weights.shape[:2], *result.shape[1:])

        middle_weight, radius_weight = (x.lw + x.uw) / 2, (x.uw - x.lw) / 2
        middle, radius = rows(self.linear_part, middle_weight), rows(self.absolute_part, radius_weight)
        center = self._image((x.lb + x.ub) / 2, constants)
        width = self.absolute_part((x.ub - x.lb) / 2, *constants)
        return linear_bound(middle - radius, center - width, middle + radius, center + width)


class IntervalOperator(_Bound):  # type: ignore[misc]
    """An operator bounded by an interval that follows from the intervals of its inputs; no slope is kept."""

    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.requires_input_bounds = list(range(len(inputs)))

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the output, given those of the inputs."""
        raise NotImplementedError

    def interval_propagate(self, *v: Any) -> Any:
        return self.image(*[(pair[0], pair[1]) for pair in v])

    def bound_backward(self, last_lA: Any, last_uA: Any, *x: Any, **_: Any) -> Any:
        lower, upper = self.image(*[(node.lower, node.upper) for node in x])
        last_lA, last_uA = dense(last_lA, self.output_shape), dense(last_uA, self.output_shape)
        lower_bias = 0 if last_lA is None else self._worst(last_lA, lower, upper)
        upper_bias = 0 if last_uA is None else self._worst(last_uA, upper, lower)

        def nothing(last: Tensor | None, node: Any) -> Tensor | None:
            return None if last is None else last.new_zeros(*last.shape[:2], *node.output_shape[1:])

        zeros = [(nothing(last_lA, node), nothing(last_uA, node)) if node.perturbed else (None, None) for node in x]
        return zeros, lower_bias, upper_bias

    @staticmethod
    def _worst(last: Tensor, for_positive: Tensor, for_negative: Tensor) -> Tensor:
        return (last.clamp(min=0) * for_positive + last.clamp(max=0) * for_negative).flatten(2).sum(2)

    def bound_forward(self, dim_in: int, *x: Any) -> Any:
        lower, upper = self.image(*[(bound.lower, bound.upper) for bound in x])
        weight = lower.new_zeros(lower.shape[0], dim_in, *lower.shape[1:])
        return linear_bound(weight, lower, weight, upper)


class Monotone(IntervalOperator):
    """An operator that does not decrease when any of its inputs grows."""

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.forward(*[pair[0] for pair in intervals]), self.forward(*[pair[1] for pair in intervals])
