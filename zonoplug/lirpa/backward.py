"""Linear bounds backward through the host's graph, over the zonotope's hulls.

    lower bound of  C y  =  C f(x)  >=  A x + const  on the input box, from the last node to the first

Exact operators of the table pass A by the transpose of their linear part, whatever they are, so nothing is written
twice. A ReLU gets the two sides of its triangle: the slope of the lower side is free in [0, 1] (alpha), the upper side
is the chord. Signs of pre-activations that a search has fixed enter by multipliers (beta): where s z >= 0 is known,
min A z >= min (A - beta s) z for every beta >= 0. Other relaxations pass their band. Every alpha and beta >= 0 is
sound.

Source: Zhang et al., NeurIPS 2018 (CROWN); Xu et al., ICLR 2021 (alpha); Wang et al., NeurIPS 2021 (beta).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.linear_maps import LinearMap
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.interval_images import interval_image
from zonoplug.lirpa.operators import Call, NotApplicableError, entry_for
from zonoplug.lirpa.patterns import Pattern
from zonoplug.lirpa.plan import constant_value, plan_for
from zonoplug.lirpa.rounding_allowance import rounding_allowance
from zonoplug.relaxations import relu


@dataclass(slots=True)
class Multipliers:
    """What may be chosen freely in a backward pass, by name of the ReLU node.

    Attributes:
        alpha: lower slopes in [0, 1], (batch, *shape).
        beta: multipliers >= 0 of fixed signs, (batch, *shape).
        sign: the fixed signs, (batch, *shape): 1, -1, or 0 where the sign is open.
    """

    alpha: dict[str, Tensor] = field(default_factory=dict)
    beta: dict[str, Tensor] = field(default_factory=dict)
    sign: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class LinearBounds:
    """The result of a backward pass.

    Attributes:
        lower: (batch, rows) lower bounds.
        inputs: A at the input, (batch, rows, *input_shape).
        coefficients: A behind each ReLU, by the node's name, (batch, rows, *shape).
    """

    lower: Tensor
    inputs: Tensor
    coefficients: dict[str, Tensor]


class Backward:
    """Backward passes over one module with one perturbed input.

    Args:
        module: the host's module.
        final: the node whose flattened value is bounded; the module's output by default.
    Raises:
        UnsupportedOperatorError: an operator between the input and `final` is neither exact nor of one variable.
    """

    def __init__(self, module: Any, final: str | None = None) -> None:
        self._module = module
        self._final = final or module.final_name
        self._input = next(
            name for name, index in zip(module.input_name, module.input_index, strict=True) if index is not None
        )
        order = plan_for(module, self._final).order
        if any(isinstance(node, Pattern) for node in plan_for(module, self._final, patterns=True).order):
            raise UnsupportedOperatorError("No backward bounds where a walk bounds several nodes as one.")
        perturbed = {self._input}
        self._constants: dict[str, Tensor] = {}
        self._nodes = []
        self._maps: dict[str, tuple[LinearMap | None, Tensor | None, Sequence[int]]] = {}
        for node in order:
            if any(parent.name in perturbed for parent in node.inputs):
                perturbed.add(node.name)
                self._nodes.append(node)
                self._require(node, perturbed)
            elif node.name != self._input:
                self._constants[node.name] = constant_value(
                    module, node, [self._constants[parent.name] for parent in node.inputs]
                )
        self._perturbed = perturbed

    @property
    def relus(self) -> list[Any]:
        """The ReLU nodes on the way, in topological order."""
        return [node for node in self._nodes if type(node).__name__ == "BoundRelu"]

    @property
    def is_affine(self) -> bool:
        """Whether every node on the way is exact, so that no hulls are needed."""
        return all(entry_for(node).kind == "exact" for node in self._nodes)  # type: ignore[union-attr]

    @property
    def size(self) -> int:
        """How many numbers the bounded value has."""
        return prod(self._shape(self._final))

    def source(self, relu: str) -> str:
        """The name of a ReLU's input."""
        name: str = self._module[relu].inputs[0].name
        return name

    def sides(self, hulls: Mapping[str, Interval]) -> dict[str, Sides]:
        """The triangles of all ReLUs over given hulls, by the node's name."""
        return {node.name: relu_sides(hulls[node.inputs[0].name]) for node in self.relus}

    def magnitudes(self, box: Box, hulls: Mapping[str, Interval]) -> dict[str, Tensor]:
        """By ReLU, the sum of absolute terms that its input consists of, (batch, *shape); under "" that of the output.

        Args:
            box, hulls: as for `bound`.
        Raises:
            UnsupportedOperatorError: an operator's range is not known.
        """
        found: dict[str, Tensor] = {}
        largest = {self._input: torch.maximum(box.lower.abs(), box.upper.abs())}
        for node in self._nodes:
            names = [parent.name for parent in node.inputs]
            operands = [Zonotope(largest[n]) if n in self._perturbed else self._constants[n] for n in names]
            if entry_for(node).kind == "exact":  # type: ignore[union-attr]
                ranges = [Interval(-largest[n], largest[n]) if n in self._perturbed else None for n in names]
            else:
                ranges = [hulls[n] if n in self._perturbed else None for n in names]
                if type(node).__name__ == "BoundRelu":
                    found[node.name] = largest[names[0]]
            image = interval_image(node, operands, ranges, tuple(self._shape(node.name)))
            if image is None:
                raise UnsupportedOperatorError(f"No range of {type(node).__name__} (node {node.name!r}) is known.")
            largest[node.name] = torch.maximum(image.lower.abs(), image.upper.abs())
        return found | {"": largest[self._final]}

    def allowance(
        self, bounds: LinearBounds, rows: Tensor, hulls: Mapping[str, Interval], magnitudes: Mapping[str, Tensor]
    ) -> Tensor:
        """How far rounding may move the rows, (batch, rows); see `rounding_allowance`."""
        by_relu = {node.name: hulls[node.inputs[0].name] for node in self.relus}
        return rounding_allowance(bounds, rows, by_relu, magnitudes)

    def bound(
        self,
        box: Box,
        hulls: Mapping[str, Interval],
        rows: Tensor,
        multipliers: Multipliers | None = None,
        sides: Mapping[str, Sides] | None = None,
    ) -> LinearBounds:
        """Lower bounds of C y.

        Args:
            box: the inputs, (batch, *input_shape).
            hulls: bounds of the inputs of every non-exact operator, (batch, *shape).
            rows: C, (batch, rows, outputs).
            multipliers: alpha, beta and signs; the default alpha follows the chord's slope.
            sides: what `sides(hulls)` gives, for a caller who uses the same hulls many times.
        """
        chosen = multipliers or Multipliers()
        sides = self.sides(hulls) if sides is None else sides
        batch, count = rows.shape[:2]
        pending: dict[str, Tensor] = {self._final: rows.flatten(0, 1)}  # (batch * rows, *shape) throughout
        constant = rows.new_zeros(batch, count)
        coefficients = {}
        for node in reversed(self._nodes):
            a = pending.pop(node.name, None)
            if a is None:
                continue
            if entry_for(node).kind == "exact":  # type: ignore[union-attr]
                parts, shift = self._through_exact(node, a)
                constant = constant + shift.reshape(batch, count)
            else:
                a = a.reshape(batch, count, *hulls[node.inputs[0].name].lower.shape[1:])
                if type(node).__name__ == "BoundRelu":
                    coefficients[node.name] = a
                    image, shift = _through_relu(a, sides[node.name], node.name, chosen)
                else:
                    image, shift = self._through_band(node, a, hulls[node.inputs[0].name])
                constant = constant + shift
                parts = [(node.inputs[0].name, image.flatten(0, 1))]
            for name, part in parts:
                pending[name] = pending[name] + part if name in pending else part
        at_input = pending[self._input].reshape(batch, count, *box.lower.shape[1:])
        center = box.lower + (box.upper - box.lower) / 2
        radius = torch.maximum(box.upper - center, center - box.lower)
        flat = at_input.flatten(2)
        lower = constant + torch.bmm(flat, center.flatten(1).unsqueeze(2)).squeeze(2)
        lower = lower - torch.bmm(flat.abs(), radius.flatten(1).unsqueeze(2)).squeeze(2)
        return LinearBounds(lower, at_input, coefficients)

    def _through_exact(self, node: Any, a: Tensor) -> tuple[list[tuple[str, Tensor]], Tensor]:
        """A at each perturbed operand, and A times the operator's offset: (batch * rows,)."""
        names = [parent.name for parent in node.inputs]
        moving = [place for place, name in enumerate(names) if name in self._perturbed]
        if len(moving) == 1:
            name = names[moving[0]]
            linear, offset, shape = self._single_map(node, name, moving[0], a)
            if linear is not None:
                a = a.reshape(a.shape[0], *shape)
                shift = a.new_zeros(a.shape[0]) if offset is None else (a * offset).flatten(1).sum(dim=1)
                return [(name, linear.transpose(a, tuple(self._shape(name))))], shift

        with torch.enable_grad():
            zeros = [a.new_zeros(a.shape[0], *self._shape(names[place])).requires_grad_(True) for place in moving]
            operands: list[Any] = [self._constants.get(name) for name in names]
            for place, value in zip(moving, zeros, strict=True):
                operands[place] = Zonotope(value)
            image = _image(node, Call(node, operands, SymbolSource())).center
            a = a.reshape(image.shape)
            # A scalar, since torch would import a computer algebra system to check grad_outputs.
            parts = torch.autograd.grad((image * a).sum(), zeros, create_graph=a.requires_grad, allow_unused=True)
        shift = (a * image[:1].detach()).flatten(1).sum(dim=1)
        found = [(names[place], part) for place, part in zip(moving, parts, strict=True) if part is not None]
        return found, shift

    def _single_map(
        self, node: Any, name: str, place: int, like: Tensor
    ) -> tuple[LinearMap | None, Tensor | None, Sequence[int]]:
        """The linear map and offset that an operator of one operand consists of (None if it is not one map)."""
        if node.name not in self._maps:
            operands: list[Any] = [self._constants.get(parent.name) for parent in node.inputs]
            operands[place] = _Probe(like.new_zeros(1, *self._shape(name)))
            _Probe.noted.clear()
            with torch.no_grad():
                image = _image(node, Call(node, operands, SymbolSource()))
            alone = len(_Probe.noted) == 1 and _Probe.noted[0][2] is image
            linear, offset = _Probe.noted[0][:2] if alone else (None, None)
            self._maps[node.name] = linear, offset, tuple(image.center.shape[1:])
        return self._maps[node.name]

    def _through_band(self, node: Any, a: Tensor, hull: Interval) -> tuple[Tensor, Tensor]:
        """Through an operator of one variable:  y in slope x + offset +/- radius."""
        source = SymbolSource()
        batch = hull.lower.shape[0]
        center = hull.lower + (hull.upper - hull.lower) / 2
        operands: list[Any] = [
            Zonotope(center) if parent.name in self._perturbed else self._constants[parent.name]
            for parent in node.inputs
        ]
        hulls = [hull if parent.name in self._perturbed else None for parent in node.inputs]
        zero, one = Zonotope(torch.zeros_like(center)), Zonotope(torch.ones_like(center))
        image = _image(node, Call(node, operands, source, hulls))
        probe = _image(node, Call(node, [zero, *operands[1:]], source, hulls))
        ones = _image(node, Call(node, [one, *operands[1:]], source, hulls))
        slope, offset, radius = ones.center - probe.center, probe.center, image.radius()
        shift = (a * offset.unsqueeze(1) - a.abs() * radius.unsqueeze(1)).reshape(batch, a.shape[1], -1).sum(dim=2)
        return a * slope.unsqueeze(1), shift

    def _shape(self, name: str) -> Sequence[int]:
        shape = self._module[name].output_shape if name != self._input else self._module[name].value.shape
        return tuple(shape[1:])

    def _require(self, node: Any, perturbed: set[str]) -> None:
        entry = entry_for(node)
        moving = [parent for parent in node.inputs if parent.name in perturbed]
        if entry is None or (entry.kind != "exact" and (entry.kind != "relaxation" or len(moving) != 1)):
            raise UnsupportedOperatorError(
                f"No backward bounds through {type(node).__name__} (node {node.name!r}): it is neither exact nor a"
                " function of one variable."
            )


def _image(node: Any, call: Call) -> Zonotope:
    """What the table's transformer makes of a call. Raises UnsupportedOperatorError if it does not apply."""
    entry = entry_for(node)
    assert entry is not None
    try:
        image = entry.transformer(call)
    except NotApplicableError:
        image = None
    if not isinstance(image, Zonotope):
        raise UnsupportedOperatorError(f"No backward bounds through {type(node).__name__} (node {node.name!r}).")
    return image


@dataclass(frozen=True, slots=True)
class Sides:
    """The sides of a ReLU's triangle, each (batch, 1, *shape).

    Attributes:
        slope: of the upper side; of both where the sign is known.
        intercept: of the upper side.
        open: where the sign is not known.
    """

    slope: Tensor
    intercept: Tensor
    open: Tensor


def relu_sides(hull: Interval) -> Sides:
    """The triangle over a ReLU's input bounds."""
    chord = relu(*hull)
    open_ = ~((hull.lower >= 0) | (hull.upper <= 0))
    return Sides(chord.slope.unsqueeze(1), (chord.offset + chord.radius).unsqueeze(1), open_.unsqueeze(1))


def _through_relu(a: Tensor, sides: Sides, name: str, chosen: Multipliers) -> tuple[Tensor, Tensor]:
    """A in front of a ReLU, and what its upper side adds to the constant: (batch, rows)."""
    alpha = chosen.alpha.get(name)
    below = (sides.slope > 0.5).to(a.dtype) if alpha is None else alpha.unsqueeze(1)
    below = torch.where(sides.open, below, sides.slope)
    negative = a.clamp(max=0)
    shift = (negative * sides.intercept).flatten(2).sum(dim=2)
    image = (a - negative) * below + negative * sides.slope
    if name in chosen.beta:
        image = image - (chosen.beta[name] * chosen.sign[name]).unsqueeze(1)
    return image, shift


class _Probe(Zonotope):
    """Notes the linear map that an exact transformer sends its operand through, if it is just one."""

    noted: ClassVar[list[tuple[LinearMap, Tensor | None, Zonotope]]] = []

    def map(self, linear: LinearMap, offset: Tensor | None = None) -> Zonotope:
        image = Zonotope(self.center).map(linear, offset)
        self.noted.append((linear, offset, image))
        return image
