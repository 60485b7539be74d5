"""How each value of the graph moves the specification's rows, with the relaxations fixed on given pre-activation
bounds.

One pass forward of a center and a box without any symbols, and for each row one gradient back: the gradient at the
center is how a named symbol reaches the row, that at the box how the box does. Exact where the operators are exact or
have one variable; of first order through products; not known in front of operators that are bounded by intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.rounding import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.lirpa.operators.all import Call, NotApplicableError, entry_for
from zonoplug.reduction.context import Influence
from zonoplug.transformers.affine import Operand, specification
from zonoplug.transformers.enclosure import Enclosure

if TYPE_CHECKING:
    from zonoplug.lirpa.fusion.plan import GraphPlan

MAX_OUTPUTS = 64


class Influences:
    """The influence of values on the rows, by where they are read.

    Args:
        plan: the graph.
        module: the host's module.
        inputs: as in `propagate`.
        rows: specification matrix C (batch or 1, rows, outputs); each output by default, if there are at most 64.
        preactivations: bounds of the inputs of every non-exact operator.
        slopes: node name -> slope, as in `propagate`.
    """

    def __init__(
        self,
        plan: GraphPlan,
        module: Any,
        inputs: Mapping[str, Operand],
        rows: Tensor | None,
        preactivations: Mapping[str, Interval],
        slopes: Mapping[str, Tensor],
    ) -> None:
        self._constants = constants_of(plan, module, inputs)
        self._cut = -1  # the last operator that no gradient passes
        self._edges: list[tuple[str, int, Zonotope]] = []
        self._known: dict[tuple[str, int], Influence] = {}
        with torch.enable_grad(), rounding("nearest"):
            image = self._forward(plan, inputs, preactivations, slopes)
            outputs = image.center[0].numel()
            if rows is None and outputs <= MAX_OUTPUTS:
                rows = torch.eye(outputs).to(image.center).unsqueeze(0)
            if rows is not None:
                self._backward(specification(image, rows))
        self._edges.clear()

    def of(self, name: str, after: int) -> Influence | None:
        """The influence of a value through those of its readers whose place in the order is behind `after`."""
        found = None
        for (parent, place), part in self._known.items():
            if parent == name and place > after:
                if place <= self._cut:
                    return None
                found = part if found is None else Influence(found.linear + part.linear, found.absolute + part.absolute)
        return found

    def _forward(
        self,
        plan: GraphPlan,
        inputs: Mapping[str, Operand],
        preactivations: Mapping[str, Interval],
        slopes: Mapping[str, Tensor],
    ) -> Zonotope:
        values: dict[str, Operand] = dict(self._constants)
        for place, node in enumerate(plan.order):
            name = node.name
            if name in inputs:
                value = inputs[name]
                values[name] = _leaf(value.center) if isinstance(value, Zonotope) else value
            elif type(node).__name__ == "BoundShape" and name not in values:
                operand = values[node.inputs[0].name]
                values[name] = torch.tensor(operand.center.shape)  # type: ignore[union-attr]
            elif name not in values:
                operands = [self._read(values[parent.name], parent.name, place) for parent in node.inputs]
                call_bounds = [preactivations.get(parent.name) for parent in node.inputs]
                image = _image(Call(node, operands, SymbolSource(), call_bounds, slopes.get(name)))
                if image is None:
                    self._cut = place
                    plain = [operand.center if isinstance(operand, Zonotope) else operand for operand in operands]
                    image = _leaf(node.forward(*plain))
                values[name] = image
        final = self._read(values[plan.order[-1].name], plan.order[-1].name, len(plan.order))
        assert isinstance(final, Zonotope)
        return final

    def _read(self, value: Operand, name: str, place: int) -> Operand:
        """The value as one reader sees it, with gradients of its own."""
        if isinstance(value, Tensor):
            return value
        box = torch.zeros_like(value.center) if value.box is None else value.box
        seen = Zonotope(value.center.view_as(value.center), (), box.view_as(box))
        if seen.center.requires_grad:
            self._edges.append((name, place, seen))
        return seen

    def _backward(self, image: Zonotope) -> None:
        assert image.box is not None
        centers = [seen.center for _, _, seen in self._edges]
        boxes = [seen.box for _, _, seen in self._edges if seen.box is not None]
        if not (image.center.requires_grad and image.box.requires_grad):
            return
        rows = range(image.center.shape[1])
        linears = [_gradients(image.center[:, row].sum(), centers) for row in rows]
        absolutes = [_gradients(image.box[:, row].sum(), boxes) for row in rows]
        if not linears:
            return
        for number, (name, place, _) in enumerate(self._edges):
            linear = torch.stack([parts[number].flatten(1) for parts in linears], dim=1)
            absolute = torch.stack([parts[number].flatten(1) for parts in absolutes], dim=1)
            influence = Influence(linear.detach(), torch.maximum(absolute, linear.abs()).detach())
            before = self._known.get((name, place))
            if before is not None:  # one operator that reads a value twice
                influence = Influence(before.linear + influence.linear, before.absolute + influence.absolute)
            self._known[name, place] = influence


def _gradients(source: Tensor, targets: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(source, targets, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, targets, strict=True)]


def constants_of(plan: GraphPlan, module: Any, inputs: Mapping[str, Operand]) -> dict[str, Tensor]:
    """The values of all nodes that no perturbed input reaches, by name."""
    from zonoplug.lirpa.fusion.plan import constant_value

    known = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    for node in plan.order:
        if node.name not in inputs and all(parent.name in known for parent in node.inputs):
            known[node.name] = constant_value(module, node, [known[parent.name] for parent in node.inputs])
    return known


def _leaf(center: Tensor) -> Zonotope:
    center = center.detach().clone().requires_grad_(True)
    return Zonotope(center, (), torch.zeros_like(center).requires_grad_(True))


def _image(call: Call) -> Zonotope | None:
    """The image of a center and a box; None where only intervals would do."""
    entry = entry_for(call.node)
    while entry is not None:
        try:
            result = entry.transformer(call)
        except NotApplicableError:
            entry = entry.otherwise
            continue
        image = result.zonotope if isinstance(result, Enclosure) else result
        return Zonotope(image.center, (), image.box) if image.center.requires_grad else None
    return None
