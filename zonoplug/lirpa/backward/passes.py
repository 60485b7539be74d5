"""Linear bounds backward through the host's graph, over the zonotope's pre-activation bounds.

    lower bound of  C y  =  C f(x)  >=  A x + const  on the input box, from the last node to the first

Exact operators of the table pass A by the transpose of their linear part, whatever they are, so nothing is written
twice. A ReLU gets the two sides of its triangle: the slope of the lower side is free in [0, 1] (alpha), the upper side
is the chord. Products and softmax get linear bounds with free shares in [0, 1] (`relaxations`). Signs of
pre-activations that a search has fixed enter by multipliers (beta): where s z >= 0 is known, min A z >= min (A - beta
s) z for every beta >= 0. Other relaxations pass their band. Every alpha, share and beta >= 0 is sound.

What rounding may do, in the network's evaluation and in the pass itself, is the sum over nodes of |A| times each node's
local error; `LinearBounds.error` is taken off before a bound counts.

Source: Zhang et al., NeurIPS 2018 (CROWN); Xu et al., ICLR 2021 (alpha); Wang et al., NeurIPS 2021 (beta).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.rounding import gamma, unit
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.lirpa.backward.graph import PerturbedGraph, image_of, is_curve, is_exact, is_relu, operand_name
from zonoplug.lirpa.backward.linear_relaxations import LinearRelaxation
from zonoplug.lirpa.backward.local_errors import LocalErrors, local_errors
from zonoplug.lirpa.backward.triangle import Multipliers, backward_relu, relu_triangle
from zonoplug.lirpa.operators.all import Call


@dataclass(slots=True)
class LinearBounds:
    """The result of a backward pass.

    Attributes:
        lower: (batch, rows) lower bounds, as if nothing was rounded.
        error: (batch, rows) how far rounding may move them, NaN where that is not known.
        inputs: A at the input, (batch, rows, *input_shape).
        coefficients: A behind each ReLU, by the node's name, (batch, rows, *shape).
        curves: A behind each S-shaped node, as `coefficients`.
        others: A at the operands of each operator bounded by linear bounds, by `operand_name`.
    """

    lower: Tensor
    error: Tensor
    inputs: Tensor
    coefficients: dict[str, Tensor]
    others: dict[str, Tensor] = field(default_factory=dict)
    curves: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sound(self) -> Tensor:
        """(batch, rows) lower bounds of what the network's evaluation computes."""
        return self.lower.detach() - self.error


@dataclass(slots=True)
class _Sums:
    """What a pass has added up so far, (batch, rows) each, in double precision: the constant and the error."""

    constant: Tensor
    error: Tensor

    def add(self, constant: Tensor) -> None:
        self.constant = self.constant + constant

    def err(self, a: Tensor, error: Tensor) -> None:
        """|a| . error for a (batch, rows, *shape) and error (batch or 1, *shape), which shares no storage with a."""
        size, flat = a.detach().abs().flatten(2), error.flatten(1)
        moved = size @ flat[0] if flat.shape[0] == 1 else torch.bmm(size, flat.unsqueeze(2)).squeeze(2)
        self.error = self.error + moved.double() * (1 + 2 * gamma(flat.shape[1] + 8, flat.dtype))


class Backward:
    """Backward passes over one module with one perturbed input.

    Args:
        module: the host's module.
        final: the node whose flattened value is bounded; the module's output by default.
        cuts: whether an operator that is neither exact nor of one variable, and has no linear bounds, is taken for a
            constant in its bounds, which `preactivations` then have to name too.
        network: the type in which the network is evaluated, where that is not the module's.
    Raises:
        UnsupportedOperatorError: there is such an operator between the input and `final`, and it is not to be cut.

    Attributes:
        dtype: of the module, in which boxes, pre-activation bounds and rows are to be.
        parameters: of linear bounds, (1, ...) by the node's name, for passes that choose none.
    """

    def __init__(
        self, module: Any, final: str | None = None, cuts: bool = False, network: torch.dtype | None = None
    ) -> None:
        self._graph = PerturbedGraph(module, final, cuts)
        weights = [value for value in self._graph.constants.values() if value.is_floating_point()]
        self.dtype = weights[0].dtype if weights else torch.get_default_dtype()
        self._network = network
        self.parameters: dict[str, Tensor] = {}

    @property
    def curves(self) -> list[Any]:
        """The S-shaped nodes on the way, in topological order."""
        return self._graph.curves

    @property
    def relus(self) -> list[Any]:
        """The ReLU nodes on the way, in topological order."""
        return self._graph.relus

    @property
    def uses_relaxations(self) -> bool:
        """Whether operators of several variables are on the way."""
        return self._graph.uses_relaxations

    @property
    def has_cuts(self) -> bool:
        """Whether passes end at some node before the input."""
        return any(self._graph.is_cut(node) for node in self._graph.nodes)

    @property
    def is_affine(self) -> bool:
        """Whether every node on the way is exact, so that no pre-activation bounds are needed."""
        return all(is_exact(node) for node in self._graph.nodes)

    @property
    def only_relus(self) -> bool:
        """Whether every node on the way is exact or a ReLU."""
        plain = all(is_exact(node) or is_relu(node) for node in self._graph.nodes)
        return plain and not self.uses_relaxations and not self.has_cuts

    @property
    def size(self) -> int:
        """How many numbers the bounded value has."""
        return prod(self._graph.shape(self._graph.final))

    def source(self, relu: str) -> str:
        """The name of a ReLU's input."""
        return self._graph.source(relu)

    def triangles(self, preactivations: Mapping[str, Interval]) -> dict[str, Any]:
        """The triangles of all ReLUs over given pre-activation bounds, and the linear bounds of other operators, by
        the node's name.
        """
        return {
            node.name: relu_triangle(preactivations[node.inputs[0].name]) for node in self.relus
        } | self.relaxations(preactivations)

    def relaxations(self, preactivations: Mapping[str, Interval]) -> dict[str, LinearRelaxation]:
        """The linear bounds of operators of several variables over given pre-activation bounds, by the node's name."""
        return self._graph.relaxations(preactivations)

    def errors(self, box: Box, preactivations: Mapping[str, Interval]) -> LocalErrors:
        """The local errors of all nodes on a box, for passes on it and on parts of it; see `local_errors`."""
        with torch.no_grad():
            return local_errors(self._graph, box, preactivations, self._network or box.lower.dtype)

    def output_size(self, errors: LocalErrors) -> Tensor:
        """The largest |y| of each output on the errors' boxes, (batch, outputs)."""
        return errors.size(self._graph.final).flatten(1)

    def bound(
        self,
        box: Box,
        preactivations: Mapping[str, Interval],
        rows: Tensor,
        multipliers: Multipliers | None = None,
        triangles: Mapping[str, Any] | None = None,
        errors: LocalErrors | None = None,
    ) -> LinearBounds:
        """Lower bounds of C y.

        Args:
            box: the inputs, (batch, *input_shape).
            preactivations: bounds of the inputs of every non-exact operator, (batch, *shape).
            rows: C, (batch, rows, outputs); a number of at most one unit roundoff from what it stands for.
            multipliers: alpha, beta and signs; the default alpha follows the chord's slope.
            triangles: what `triangles(pre-activation bounds)` gives, for a caller who uses the same pre-activation
                bounds many times.
            errors: what `errors` gives for the box or one around it; without them errors are not known.
        """
        chosen = multipliers or Multipliers()
        triangles = self.triangles(preactivations) if triangles is None else triangles
        batch, count = rows.shape[:2]
        pending: dict[str, Tensor] = {self._graph.final: rows.flatten(0, 1)}  # (batch * rows, *shape) throughout
        zero = torch.zeros(batch, count, dtype=torch.float64, device=rows.device)
        sums = _Sums(zero, zero if errors is not None else torch.full_like(zero, torch.nan))
        if errors is not None:
            size = errors.size(self._graph.final)
            sums.err(rows, size * (4 * unit(size.dtype)) + torch.finfo(size.dtype).tiny)
        coefficients, others = self._pass(pending, sums, preactivations, chosen, triangles, errors)
        at_input = (
            pending[self._graph.input]
            if self._graph.input in pending
            else box.lower.new_zeros(batch * count, *box.lower.shape[1:])
        )
        at_input = at_input.reshape(batch, count, *box.lower.shape[1:])
        lower, error = sums.constant + _least(at_input, box), sums.error
        if errors is not None:
            error = error + (lower.detach().abs() + 1e-30) * 1e-12  # of the sums in double precision
        if lower.dtype != rows.dtype:
            error = error + lower.detach().abs() * (2 * unit(rows.dtype)) + torch.finfo(rows.dtype).tiny
        curves = {node.name: coefficients.pop(node.name) for node in self.curves if node.name in coefficients}
        return LinearBounds(lower.to(rows.dtype), _up(error, rows.dtype), at_input, coefficients, others, curves)

    def _pass(
        self,
        pending: dict[str, Tensor],
        sums: _Sums,
        preactivations: Mapping[str, Interval],
        chosen: Multipliers,
        triangles: Mapping[str, Any],
        errors: LocalErrors | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Take `pending` from the last node to the input.

        Returns:
            the coefficients behind each ReLU, and at the operands of linear bounds.
        """
        batch, count = sums.constant.shape
        coefficients: dict[str, Tensor] = {}
        others: dict[str, Tensor] = {}
        for node in reversed(self._graph.nodes):
            a = pending.pop(node.name, None)
            if a is None:
                continue
            shaped = a.reshape(batch, count, *self._graph.shape(node.name))
            if errors is not None and node.name in errors.behind:
                sums.err(shaped, errors.behind[node.name])
            if self._graph.is_cut(node):
                sums.add(_least(shaped, preactivations[node.name]))
                continue
            if self._graph.has_relaxation(node):
                parameters = chosen.alpha.get(
                    node.name, self.parameters.get(node.name, triangles[node.name].parameters())
                )
                images, shift = triangles[node.name].pass_backward(shaped, parameters)
                perturbed = self._graph.perturbed(node)
                others |= {operand_name(node, place): image for place, image in zip(perturbed, images, strict=True)}
                names = [node.inputs[place].name for place in perturbed]
                parts = [(n, i.reshape(-1, *self._graph.shape(n))) for n, i in zip(names, images, strict=True)]
            elif is_exact(node):
                parts, shift = self._through_exact(node, a)
                shift = shift.reshape(batch, count)
            else:
                if is_relu(node) or is_curve(node):
                    coefficients[node.name] = shaped
                if is_relu(node):
                    image, shift = backward_relu(shaped, triangles[node.name], node.name, chosen)
                    if errors is not None:  # each of what is added up is rounded
                        sums.err(image.abs() + shaped.abs(), errors.front[node.name])
                else:
                    image, shift = self._through_band(node, shaped, preactivations[node.inputs[0].name])
                parts = [(node.inputs[0].name, image.flatten(0, 1))]
            sums.add(shift)
            for name, part in parts:
                if name in pending:
                    part = pending[name] + part
                    if errors is not None:
                        size = errors.size(name)
                        sums.err(part.reshape(batch, count, *size.shape[1:]), size * (2 * unit(size.dtype)))
                pending[name] = part
        return coefficients, others

    def _through_exact(self, node: Any, a: Tensor) -> tuple[list[tuple[str, Tensor]], Tensor]:
        """A at each perturbed operand, and A times the operator's offset: (batch * rows,)."""
        names, perturbed = [parent.name for parent in node.inputs], self._graph.perturbed(node)
        if len(perturbed) == 1:
            name = names[perturbed[0]]
            linear, offset, shape = self._graph.single_map(node, perturbed[0], a)
            if linear is not None:
                a = a.reshape(a.shape[0], *shape)
                shift = a.new_zeros(a.shape[0]) if offset is None else _total(a * offset, 1)
                return [(name, linear.transpose(a, self._graph.shape(name)))], shift

        with torch.enable_grad():
            shapes = [self._graph.shape(names[place]) for place in perturbed]
            zeros = [a.new_zeros(a.shape[0], *shape).requires_grad_(True) for shape in shapes]
            operands: list[Any] = [self._graph.constants.get(name) for name in names]
            for place, value in zip(perturbed, zeros, strict=True):
                operands[place] = Zonotope(value)
            image = image_of(Call(node, operands, SymbolSource())).center
            a = a.reshape(image.shape)
            # A scalar, since torch would import a computer algebra system to check grad_outputs.
            parts = torch.autograd.grad((image * a).sum(), zeros, create_graph=a.requires_grad, allow_unused=True)
        shift = _total(a * image[:1].detach(), 1)
        found = [(names[place], part) for place, part in zip(perturbed, parts, strict=True) if part is not None]
        return found, shift

    def _through_band(self, node: Any, a: Tensor, preactivation: Interval) -> tuple[Tensor, Tensor]:
        """Through an operator of one variable:  y in slope x + offset +/- radius."""
        source = SymbolSource()
        center = preactivation.lower + (preactivation.upper - preactivation.lower) / 2
        operands: list[Any] = [
            Zonotope(center) if self._graph.depends(parent.name) else self._graph.constants[parent.name]
            for parent in node.inputs
        ]
        preactivations = [preactivation if self._graph.depends(parent.name) else None for parent in node.inputs]
        zero, one = Zonotope(torch.zeros_like(center)), Zonotope(torch.ones_like(center))
        image = image_of(Call(node, operands, source, preactivations))
        probe = image_of(Call(node, [zero, *operands[1:]], source, preactivations))
        ones = image_of(Call(node, [one, *operands[1:]], source, preactivations))
        slope, offset, radius = ones.center - probe.center, probe.center, image.radius()
        reach = torch.maximum(preactivation.lower.abs(), preactivation.upper.abs())
        own = (slope.abs() + offset.abs()) * (reach + 1) + radius  # the slope was found as a difference
        radius = radius + own * (32 * unit(own.dtype))
        return a * slope.unsqueeze(1), _total(a * offset.unsqueeze(1) - a.abs() * radius.unsqueeze(1), 2)


def _total(terms: Tensor, dim: int) -> Tensor:
    """The sum over all axes from `dim` on, in double precision."""
    return terms.flatten(dim).sum(dim=dim, dtype=torch.float64)


def _least(a: Tensor, box: Box | Interval) -> Tensor:
    """The least of  a . x  on boxes, for a (batch, rows, *shape): (batch, rows), in double precision."""
    lower, upper = (side.flatten(1).double() for side in (box.lower, box.upper))
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    flat = a.flatten(2).double()
    return torch.bmm(flat, center.unsqueeze(2)).squeeze(2) - torch.bmm(flat.abs(), radius.unsqueeze(2)).squeeze(2)


def _up(error: Tensor, dtype: torch.dtype) -> Tensor:
    """An error in a narrower type, not smaller than it was."""
    return (error * (1 + 4 * unit(dtype)) + torch.finfo(dtype).tiny).to(dtype)
