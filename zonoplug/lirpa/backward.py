"""Linear bounds backward through the host's graph, over the zonotope's hulls.

    lower bound of  C y  =  C f(x)  >=  A x + const  on the input box, from the last node to the first

Exact operators of the table pass A by the transpose of their linear part, whatever they are, so nothing is written
twice. A ReLU gets the two sides of its triangle: the slope of the lower side is free in [0, 1] (alpha), the upper side
is the chord. Products and softmax get planes with free shares in [0, 1] (`planes`). Signs of pre-activations that a
search has fixed enter by multipliers (beta): where s z >= 0 is known, min A z >= min (A - beta s) z for every
beta >= 0. Other relaxations pass their band. Every alpha, share and beta >= 0 is sound.

Source: Zhang et al., NeurIPS 2018 (CROWN); Xu et al., ICLR 2021 (alpha); Wang et al., NeurIPS 2021 (beta).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.lirpa.magnitudes import magnitudes
from zonoplug.lirpa.operators import Call
from zonoplug.lirpa.perturbed_graph import PerturbedGraph, image_of, is_curve, is_exact, is_relu, operand_name
from zonoplug.lirpa.planes import Planes
from zonoplug.lirpa.relu_sides import Multipliers, relu_sides, through_relu
from zonoplug.lirpa.rounding_allowance import rounding_allowance


@dataclass(slots=True)
class LinearBounds:
    """The result of a backward pass.

    Attributes:
        lower: (batch, rows) lower bounds.
        inputs: A at the input, (batch, rows, *input_shape).
        coefficients: A behind each ReLU, by the node's name, (batch, rows, *shape).
        curves: A behind each S-shaped node, as `coefficients`.
        others: A at the operands of each operator bounded by planes, by `operand_name`.
    """

    lower: Tensor
    inputs: Tensor
    coefficients: dict[str, Tensor]
    others: dict[str, Tensor] = field(default_factory=dict)
    curves: dict[str, Tensor] = field(default_factory=dict)


class Backward:
    """Backward passes over one module with one perturbed input.

    Args:
        module: the host's module.
        final: the node whose flattened value is bounded; the module's output by default.
    Raises:
        UnsupportedOperatorError: an operator between the input and `final` is neither exact nor of one variable, and
            has no planes.

    Attributes:
        shares: of planes, (1, ...) by the node's name, for passes that choose none.
    """

    def __init__(self, module: Any, final: str | None = None) -> None:
        self._graph = PerturbedGraph(module, final)
        self.shares: dict[str, Tensor] = {}

    @property
    def curves(self) -> list[Any]:
        """The S-shaped nodes on the way, in topological order."""
        return self._graph.curves

    @property
    def relus(self) -> list[Any]:
        """The ReLU nodes on the way, in topological order."""
        return self._graph.relus

    @property
    def uses_planes(self) -> bool:
        """Whether operators of several variables are on the way."""
        return self._graph.uses_planes

    @property
    def is_affine(self) -> bool:
        """Whether every node on the way is exact, so that no hulls are needed."""
        return all(is_exact(node) for node in self._graph.nodes)

    @property
    def only_relus(self) -> bool:
        """Whether every node on the way is exact or a ReLU."""
        return all(is_exact(node) or is_relu(node) for node in self._graph.nodes) and not self.uses_planes

    @property
    def size(self) -> int:
        """How many numbers the bounded value has."""
        return prod(self._graph.shape(self._graph.final))

    def source(self, relu: str) -> str:
        """The name of a ReLU's input."""
        return self._graph.source(relu)

    def sides(self, hulls: Mapping[str, Interval]) -> dict[str, Any]:
        """The triangles of all ReLUs over given hulls, and the planes of other operators, by the node's name."""
        return {node.name: relu_sides(hulls[node.inputs[0].name]) for node in self.relus} | self.planes(hulls)

    def planes(self, hulls: Mapping[str, Interval]) -> dict[str, Planes]:
        """The planes of operators of several variables over given hulls, by the node's name."""
        return self._graph.planes(hulls)

    def magnitudes(self, box: Box, hulls: Mapping[str, Interval]) -> dict[str, Tensor]:
        """What rounding errors on a box scale with; see the module `magnitudes`."""
        return magnitudes(self._graph, box, hulls)

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
        sides: Mapping[str, Any] | None = None,
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
        pending: dict[str, Tensor] = {self._graph.final: rows.flatten(0, 1)}  # (batch * rows, *shape) throughout
        constant = rows.new_zeros(batch, count)
        constant, coefficients, others = self._walk(self._graph.nodes, pending, constant, hulls, chosen, sides)
        at_input = pending[self._graph.input].reshape(batch, count, *box.lower.shape[1:])
        center = box.lower + (box.upper - box.lower) / 2
        radius = torch.maximum(box.upper - center, center - box.lower)
        flat = at_input.flatten(2)
        lower = constant + torch.bmm(flat, center.flatten(1).unsqueeze(2)).squeeze(2)
        lower = lower - torch.bmm(flat.abs(), radius.flatten(1).unsqueeze(2)).squeeze(2)
        curves = {node.name: coefficients.pop(node.name) for node in self.curves if node.name in coefficients}
        return LinearBounds(lower, at_input, coefficients, others, curves)

    def _walk(
        self,
        nodes: Sequence[Any],
        pending: dict[str, Tensor],
        constant: Tensor,
        hulls: Mapping[str, Interval],
        chosen: Multipliers,
        sides: Mapping[str, Any],
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Take `pending` from behind `nodes` to their front.

        Returns:
            the constant, and the coefficients behind each ReLU, and at the operands of planes.
        """
        batch, count = constant.shape
        coefficients: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        for node in reversed(nodes):
            a = pending.pop(node.name, None)
            if a is None:
                continue
            if self._graph.has_planes(node):
                a = a.reshape(batch, count, *self._graph.shape(node.name))
                shares = chosen.alpha.get(node.name, self.shares.get(node.name, sides[node.name].shares()))
                images, shift = sides[node.name].through(a, shares)
                moving = self._graph.moving(node)
                others |= {operand_name(node, place): image for place, image in zip(moving, images, strict=True)}
                constant = constant + shift
                names = [node.inputs[place].name for place in moving]
                parts = [(n, i.reshape(-1, *self._graph.shape(n))) for n, i in zip(names, images, strict=True)]
            elif is_exact(node):
                parts, shift = self._through_exact(node, a)
                constant = constant + shift.reshape(batch, count)
            else:
                a = a.reshape(batch, count, *hulls[node.inputs[0].name].lower.shape[1:])
                if is_relu(node) or is_curve(node):
                    coefficients[node.name] = a
                if is_relu(node):
                    image, shift = through_relu(a, sides[node.name], node.name, chosen)
                else:
                    image, shift = self._through_band(node, a, hulls[node.inputs[0].name])
                constant = constant + shift
                parts = [(node.inputs[0].name, image.flatten(0, 1))]
            for name, part in parts:
                pending[name] = pending[name] + part if name in pending else part
        return constant, coefficients, others

    def _through_exact(self, node: Any, a: Tensor) -> tuple[list[tuple[str, Tensor]], Tensor]:
        """A at each perturbed operand, and A times the operator's offset: (batch * rows,)."""
        names, moving = [parent.name for parent in node.inputs], self._graph.moving(node)
        if len(moving) == 1:
            name = names[moving[0]]
            linear, offset, shape = self._graph.single_map(node, moving[0], a)
            if linear is not None:
                a = a.reshape(a.shape[0], *shape)
                shift = a.new_zeros(a.shape[0]) if offset is None else (a * offset).flatten(1).sum(dim=1)
                return [(name, linear.transpose(a, self._graph.shape(name)))], shift

        with torch.enable_grad():
            shapes = [self._graph.shape(names[place]) for place in moving]
            zeros = [a.new_zeros(a.shape[0], *shape).requires_grad_(True) for shape in shapes]
            operands: list[Any] = [self._graph.constants.get(name) for name in names]
            for place, value in zip(moving, zeros, strict=True):
                operands[place] = Zonotope(value)
            image = image_of(Call(node, operands, SymbolSource())).center
            a = a.reshape(image.shape)
            # A scalar, since torch would import a computer algebra system to check grad_outputs.
            parts = torch.autograd.grad((image * a).sum(), zeros, create_graph=a.requires_grad, allow_unused=True)
        shift = (a * image[:1].detach()).flatten(1).sum(dim=1)
        found = [(names[place], part) for place, part in zip(moving, parts, strict=True) if part is not None]
        return found, shift

    def _through_band(self, node: Any, a: Tensor, hull: Interval) -> tuple[Tensor, Tensor]:
        """Through an operator of one variable:  y in slope x + offset +/- radius."""
        source = SymbolSource()
        batch = hull.lower.shape[0]
        center = hull.lower + (hull.upper - hull.lower) / 2
        operands: list[Any] = [
            Zonotope(center) if self._graph.depends(parent.name) else self._graph.constants[parent.name]
            for parent in node.inputs
        ]
        hulls = [hull if self._graph.depends(parent.name) else None for parent in node.inputs]
        zero, one = Zonotope(torch.zeros_like(center)), Zonotope(torch.ones_like(center))
        image = image_of(Call(node, operands, source, hulls))
        probe = image_of(Call(node, [zero, *operands[1:]], source, hulls))
        ones = image_of(Call(node, [one, *operands[1:]], source, hulls))
        slope, offset, radius = ones.center - probe.center, probe.center, image.radius()
        shift = (a * offset.unsqueeze(1) - a.abs() * radius.unsqueeze(1)).reshape(batch, a.shape[1], -1).sum(dim=2)
        return a * slope.unsqueeze(1), shift
