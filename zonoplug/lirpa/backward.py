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
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.linear_maps import LinearMap
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa import planes_quotient, planes_softmax  # noqa: F401 - they file their planes
from zonoplug.lirpa.interval_images import interval_image
from zonoplug.lirpa.operators import Call, NotApplicableError, entry_for
from zonoplug.lirpa.plan import constant_value, plan_for
from zonoplug.lirpa.planes import PLANES, Planes
from zonoplug.lirpa.relu_sides import Multipliers, relu_sides, through_relu
from zonoplug.lirpa.rounding_allowance import FACTOR, rounding_allowance

ROUNDINGS = 2 * FACTOR  # each is half a unit in the last place


@dataclass(slots=True)
class LinearBounds:
    """The result of a backward pass.

    Attributes:
        lower: (batch, rows) lower bounds.
        inputs: A at the input, (batch, rows, *input_shape).
        coefficients: A behind each ReLU, by the node's name, (batch, rows, *shape).
        others: A at the operands of each operator bounded by planes, by `_operand`.
    """

    lower: Tensor
    inputs: Tensor
    coefficients: dict[str, Tensor]
    others: dict[str, Tensor] = field(default_factory=dict)


class Started(NamedTuple):
    """A backward pass on its way:  sum of pending . value  +  constant.

    Attributes:
        pending: by node name, (batch * rows, *shape).
        constant: (batch, rows).
    """

    pending: dict[str, Tensor]
    constant: Tensor


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
        self._module = module
        self._final = final or module.final_name
        self._input = next(
            name for name, index in zip(module.input_name, module.input_index, strict=True) if index is not None
        )
        order = plan_for(module, self._final, patterns=True).order  # as the walk that gives the hulls does
        self.shares: dict[str, Tensor] = {}
        self._with_planes: set[str] = set()
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
        names = {n.name for node in self._nodes if node.name in self._with_planes for n in node.inputs} & perturbed
        zeros = {name: torch.zeros(1, *self._shape(name)) for name in names}
        self.planes({name: Interval(zero, zero) for name, zero in zeros.items()})  # refuses what does not fit them

    @property
    def relus(self) -> list[Any]:
        """The ReLU nodes on the way, in topological order."""
        return [node for node in self._nodes if type(node).__name__ == "BoundRelu"]

    @property
    def uses_planes(self) -> bool:
        """Whether operators of several variables are on the way."""
        return bool(self._with_planes)

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

    def sides(self, hulls: Mapping[str, Interval]) -> dict[str, Any]:
        """The triangles of all ReLUs over given hulls, and the planes of other operators, by the node's name."""
        return {node.name: relu_sides(hulls[node.inputs[0].name]) for node in self.relus} | self.planes(hulls)

    def planes(self, hulls: Mapping[str, Interval]) -> dict[str, Planes]:
        """The planes of operators of several variables over given hulls, by the node's name."""
        nodes = [node for node in self._nodes if node.name in self._with_planes]
        names = {node.name: [parent.name for parent in node.inputs] for node in nodes}
        ranges = {
            name: [hulls[n] if n in self._perturbed else self._constants[n] for n in many]
            for name, many in names.items()
        }
        return {node.name: PLANES[type(node).__name__](node, ranges[node.name], hulls) for node in nodes}

    def magnitudes(self, box: Box, hulls: Mapping[str, Interval]) -> dict[str, Tensor]:
        """By ReLU, the sum of absolute terms that its input consists of, (batch, *shape); under "" that of the output.

        The same of operands of operators bounded by planes, under the names of `LinearBounds.others`; less where they
        come from few rounded numbers, so that their errors can be added up.

        Args:
            box, hulls: as for `bound`.
        Raises:
            UnsupportedOperatorError: an operator's range is not known.
        """
        found: dict[str, Tensor] = {}
        largest = {self._input: torch.maximum(box.lower.abs(), box.upper.abs())}
        errors = {self._input: torch.zeros_like(largest[self._input])}
        for node in self._nodes:
            names = [parent.name for parent in node.inputs]
            operands = [Zonotope(largest[n]) if n in self._perturbed else self._constants[n] for n in names]
            if node.name in self._with_planes:
                moving = [(place, n) for place, n in enumerate(names) if n in self._perturbed]
                found |= {_operand(node, place): errors[n] / ROUNDINGS for place, n in moving}
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
            if self._with_planes:
                errors[node.name] = self._errors(node, operands, errors, largest[node.name])
        return found | {"": largest[self._final]}

    def _errors(self, node: Any, operands: Sequence[Any], errors: Mapping[str, Tensor], largest: Tensor) -> Tensor:
        """Roundings of a node's value since the last operator that is not exact, (batch, *shape).

        In halves of a unit in the last place of 1: each rounded number adds its magnitude, and at most `ROUNDINGS` of
        the value's own `largest` count.
        """
        names, kind = [parent.name for parent in node.inputs], type(node).__name__
        if node.name in self._with_planes:
            return largest * (1 if kind == "BoundMul" else ROUNDINGS)
        moving = [place for place, name in enumerate(names) if name in self._perturbed]
        new = 1
        if entry_for(node).kind != "exact":  # type: ignore[union-attr]
            return largest * ROUNDINGS
        if kind not in ("BoundAdd", "BoundSub", "BoundMul", "BoundDiv", "BoundConcat"):
            if len(moving) != 1:
                return largest * ROUNDINGS
            linear, offset, _ = self._single_map(node, names[moving[0]], moving[0], largest)
            if linear is None:
                return largest * ROUNDINGS
            new = linear.terms(tuple(self._shape(names[moving[0]]))) + (offset is not None)
        ranges = [Interval(-errors[n], errors[n]) if n in self._perturbed else None for n in names]
        inherited = interval_image(node, operands, ranges, tuple(self._shape(node.name)))
        if inherited is None:
            return largest * ROUNDINGS
        return torch.fmin((inherited.upper - inherited.lower) / 2 + new * largest, largest * ROUNDINGS)

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
        also: Started | None = None,
    ) -> LinearBounds:
        """Lower bounds of C y.

        Args:
            box: the inputs, (batch, *input_shape).
            hulls: bounds of the inputs of every non-exact operator, (batch, *shape).
            rows: C, (batch, rows, outputs).
            multipliers: alpha, beta and signs; the default alpha follows the chord's slope.
            sides: what `sides(hulls)` gives, for a caller who uses the same hulls many times.
            also: what is bounded together with C y, as a sum.
        """
        chosen = multipliers or Multipliers()
        sides = self.sides(hulls) if sides is None else sides
        batch, count = rows.shape[:2]
        pending: dict[str, Tensor] = {self._final: rows.flatten(0, 1)}  # (batch * rows, *shape) throughout
        constant = rows.new_zeros(batch, count)
        if also is not None:
            for name, part in also.pending.items():
                pending[name] = pending[name] + part.flatten(1) if name == self._final else part
            constant = constant + also.constant
        constant, coefficients, others = self._walk(self._nodes, pending, constant, hulls, chosen, sides)
        at_input = pending[self._input].reshape(batch, count, *box.lower.shape[1:])
        center = box.lower + (box.upper - box.lower) / 2
        radius = torch.maximum(box.upper - center, center - box.lower)
        flat = at_input.flatten(2)
        lower = constant + torch.bmm(flat, center.flatten(1).unsqueeze(2)).squeeze(2)
        lower = lower - torch.bmm(flat.abs(), radius.flatten(1).unsqueeze(2)).squeeze(2)
        return LinearBounds(lower, at_input, coefficients, others)

    def started(
        self, behind: Backward, hulls: Mapping[str, Interval], rows: Tensor, multipliers: Multipliers
    ) -> Started:
        """Lower bounds of C y, rows (batch, 1, outputs), as far as the values that `behind` passes."""
        passed = {node.name for node in behind._nodes}
        pending = {self._final: rows.flatten(0, 1)}
        later = [node for node in self._nodes if node.name not in passed]
        none = rows.new_zeros(rows.shape[:2])
        constant, *_ = self._walk(later, pending, none, hulls, multipliers, self.sides(hulls))
        return Started(pending, constant)

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
            if node.name in self._with_planes:
                a = a.reshape(batch, count, *self._shape(node.name))
                shares = chosen.alpha.get(node.name, self.shares.get(node.name, sides[node.name].shares()))
                images, shift = sides[node.name].through(a, shares)
                moving = [place for place, parent in enumerate(node.inputs) if parent.name in self._perturbed]
                others |= {_operand(node, place): image for place, image in zip(moving, images, strict=True)}
                constant = constant + shift
                names = [node.inputs[place].name for place in moving]
                parts = [(n, i.reshape(-1, *self._shape(n))) for n, i in zip(names, images, strict=True)]
            elif entry_for(node).kind == "exact":  # type: ignore[union-attr]
                parts, shift = self._through_exact(node, a)
                constant = constant + shift.reshape(batch, count)
            else:
                a = a.reshape(batch, count, *hulls[node.inputs[0].name].lower.shape[1:])
                if type(node).__name__ == "BoundRelu":
                    coefficients[node.name] = a
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
        kind = type(node).__name__
        divides = kind == "BoundDiv" and node.inputs[1].name in perturbed
        if kind in PLANES and entry is not None and (entry.kind != "exact" or len(moving) > 1 or divides):
            self._with_planes.add(node.name)
            return
        if entry is None or (entry.kind != "exact" and (entry.kind != "relaxation" or len(moving) != 1)):
            raise UnsupportedOperatorError(
                f"No backward bounds through {type(node).__name__} (node {node.name!r}): it is neither exact nor a"
                " function of one variable, and has no planes."
            )


def _operand(node: Any, place: int) -> str:
    """Under which name others hold the coefficients at an operand."""
    return f"operand {place} of {node.name}"


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


class _Probe(Zonotope):
    """Notes the linear map that an exact transformer sends its operand through, if it is just one."""

    noted: ClassVar[list[tuple[LinearMap, Tensor | None, Zonotope]]] = []

    def map(self, linear: LinearMap, offset: Tensor | None = None) -> Zonotope:
        image = Zonotope(self.center).map(linear, offset)
        self.noted.append((linear, offset, image))
        return image
