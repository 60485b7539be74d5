"""The operators between a module's perturbed input and one of its nodes, as passes backward see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from zonoplug.domain.linear_maps import LinearMap
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa import planes_quotient, planes_softmax  # noqa: F401 - they file their planes
from zonoplug.lirpa.operators import Call, NotApplicableError, entry_for
from zonoplug.lirpa.plan import constant_value, plan_for
from zonoplug.lirpa.planes import PLANES, Planes

CURVES = ("BoundSigmoid", "BoundTanh", "BoundAtan")


class PerturbedGraph:
    """What depends on the one perturbed input of a module, as far as one node.

    Args:
        module: the host's module.
        final: the name of the last node; the module's output by default.
    Raises:
        UnsupportedOperatorError: an operator on the way is neither exact nor of one variable, and has no planes.

    Attributes:
        input, final: names of the first and the last node.
        nodes: that depend on the input, in topological order, without the input itself.
        constants: values of the nodes in front of them that do not, by name.
    """

    def __init__(self, module: Any, final: str | None = None) -> None:
        self._module = module
        self.final: str = final or module.final_name
        self.input: str = next(
            name for name, index in zip(module.input_name, module.input_index, strict=True) if index is not None
        )
        self.nodes: list[Any] = []
        self.constants: dict[str, Tensor] = {}
        self._perturbed = {self.input}
        self._with_planes: set[str] = set()
        self._maps: dict[str, tuple[LinearMap | None, Tensor | None, Sequence[int]]] = {}
        for node in plan_for(module, self.final, patterns=True).order:  # as the walk that gives the hulls does
            if any(parent.name in self._perturbed for parent in node.inputs):
                self._perturbed.add(node.name)
                self.nodes.append(node)
                self._require(node)
            elif node.name != self.input:
                values = [self.constants[parent.name] for parent in node.inputs]
                self.constants[node.name] = constant_value(module, node, values)
        operands = {node.inputs[at].name for node in self.nodes if self.has_planes(node) for at in self.moving(node)}
        zeros = {name: torch.zeros(1, *self.shape(name)) for name in operands}
        self.planes({name: Interval(zero, zero) for name, zero in zeros.items()})  # refuses what does not fit them

    @property
    def curves(self) -> list[Any]:
        """The S-shaped nodes, in topological order."""
        return [node for node in self.nodes if is_curve(node)]

    @property
    def relus(self) -> list[Any]:
        """The ReLU nodes, in topological order."""
        return [node for node in self.nodes if is_relu(node)]

    @property
    def uses_planes(self) -> bool:
        """Whether some node has planes."""
        return bool(self._with_planes)

    def has_planes(self, node: Any) -> bool:
        """Whether a node is bounded by planes."""
        return node.name in self._with_planes

    def source(self, relu: str) -> str:
        """The name of a ReLU's input."""
        name: str = self._module[relu].inputs[0].name
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a node's value, without the batch axis."""
        shape = self._module[name].output_shape if name != self.input else self._module[name].value.shape
        return tuple(shape[1:])

    def depends(self, name: str) -> bool:
        """Whether a node depends on the input; the input itself does."""
        return name in self._perturbed

    def moving(self, node: Any) -> list[int]:
        """The places of a node's operands that depend on the input."""
        return [place for place, parent in enumerate(node.inputs) if parent.name in self._perturbed]

    def planes(self, hulls: Mapping[str, Interval]) -> dict[str, Planes]:
        """The planes of nodes that have them over given hulls, by name."""
        found = {}
        for node in self.nodes:
            if self.has_planes(node):
                names = [parent.name for parent in node.inputs]
                ranges = [hulls[n] if self.depends(n) else self.constants[n] for n in names]
                found[node.name] = PLANES[type(node).__name__](node, ranges, hulls)
        return found

    def single_map(self, node: Any, place: int, like: Tensor) -> tuple[LinearMap | None, Tensor | None, Sequence[int]]:
        """The linear map and offset that an exact operator with one moving operand consists of.

        Args:
            place: of that operand.
            like: of the dtype and on the device to compute with.
        Returns:
            map (None if it is not one map), offset (None if there is none), shape of the operator's value.
        """
        if node.name not in self._maps:
            operands: list[Any] = [self.constants.get(parent.name) for parent in node.inputs]
            operands[place] = _Probe(like.new_zeros(1, *self.shape(node.inputs[place].name)))
            _Probe.noted.clear()
            with torch.no_grad():
                image = image_of(Call(node, operands, SymbolSource()))
            alone = len(_Probe.noted) == 1 and _Probe.noted[0][2] is image
            linear, offset = _Probe.noted[0][:2] if alone else (None, None)
            self._maps[node.name] = linear, offset, tuple(image.center.shape[1:])
        return self._maps[node.name]

    def _require(self, node: Any) -> None:
        entry, moving = entry_for(node), self.moving(node)
        kind = type(node).__name__
        divides = kind == "BoundDiv" and 1 in moving
        if kind in PLANES and entry is not None and (entry.kind != "exact" or len(moving) > 1 or divides):
            self._with_planes.add(node.name)
            return
        if entry is None or (entry.kind != "exact" and (entry.kind != "relaxation" or len(moving) != 1)):
            raise UnsupportedOperatorError(
                f"No backward bounds through {kind} (node {node.name!r}): it is neither exact nor a"
                " function of one variable, and has no planes."
            )


def is_exact(node: Any) -> bool:
    """Whether the table's transformer of a node adds no error."""
    entry = entry_for(node)
    return entry is not None and entry.kind == "exact"


def is_relu(node: Any) -> bool:
    """Whether a node is a ReLU."""
    return type(node).__name__ == "BoundRelu"


def is_curve(node: Any) -> bool:
    """Whether a node is S-shaped, and turns at 0."""
    return type(node).__name__ in CURVES


def operand_name(node: Any, place: int) -> str:
    """Under which name `LinearBounds.others` holds the coefficients at an operand."""
    return f"operand {place} of {node.name}"


def image_of(call: Call) -> Zonotope:
    """What the table's transformer makes of a call. Raises UnsupportedOperatorError if it does not apply."""
    entry = entry_for(call.node)
    assert entry is not None
    try:
        image = entry.transformer(call)
    except NotApplicableError:
        image = None
    if not isinstance(image, Zonotope):
        kind = type(call.node).__name__
        raise UnsupportedOperatorError(f"No backward bounds through {kind} (node {call.node.name!r}).")
    return image


class _Probe(Zonotope):
    """Notes the linear map that an exact transformer sends its operand through, if it is just one."""

    noted: ClassVar[list[tuple[LinearMap, Tensor | None, Zonotope]]] = []

    def map(self, linear: LinearMap, offset: Tensor | None = None) -> Zonotope:
        image = Zonotope(self.center).map(linear, offset)
        self.noted.append((linear, offset, image))
        return image
