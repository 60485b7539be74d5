"""The operators between a module's perturbed input and one of its nodes, as passes backward see them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from zonoplug.domain.linear_maps import LinearMap, Shape
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.backward import quotient as quotient
from zonoplug.lirpa.backward import softmax as softmax
from zonoplug.lirpa.backward.linear_relaxations import LINEAR_RELAXATIONS, LinearRelaxation
from zonoplug.lirpa.fusion.plan import constant_value, plan_for
from zonoplug.lirpa.operators.all import Call, NotApplicableError, entry_for

_REDUCTIONS = ("BoundGlobalAveragePool", "BoundReduceMean", "BoundReduceSum")
_ARITHMETIC = tuple(f"Bound{name}" for name in ("Add", "BatchNormalization", "Div", "Mul", "Neg", "Sub", "Where"))
_terms: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()
CURVES = ("BoundSigmoid", "BoundTanh", "BoundAtan")


class PerturbedGraph:
    """What depends on the one perturbed input of a module, as far as one node.

    Args:
        module: the host's module.
        final: the name of the last node; the module's output by default.
        cuts: whether operators that are neither exact nor of one variable, and have no linear bounds, are taken for
            constants in their bounds: passes backward end there.
    Raises:
        UnsupportedOperatorError: there is such an operator, and they are not to be cut.

    Attributes:
        input, final: names of the first and the last node.
        nodes: that depend on the input, in topological order, without the input itself.
        constants: values of the nodes in front of them that do not, by name.
    """

    def __init__(self, module: Any, final: str | None = None, cuts: bool = False) -> None:
        self._module = module
        self._cut: set[str] | None = set() if cuts else None
        self.final: str = final or module.final_name
        self.input: str = next(
            name for name, index in zip(module.input_name, module.input_index, strict=True) if index is not None
        )
        self.nodes: list[Any] = []
        self.constants: dict[str, Tensor] = {}
        self._perturbed = {self.input}
        self._relaxed: set[str] = set()
        self._maps: dict[str, tuple[LinearMap | None, Tensor | None, Sequence[int]]] = {}
        for node in plan_for(module, self.final, patterns=True).order:  # as the propagation forward does
            if any(parent.name in self._perturbed for parent in node.inputs):
                self._perturbed.add(node.name)
                self.nodes.append(node)
                self._require(node)
            elif node.name != self.input:
                values = [self.constants[parent.name] for parent in node.inputs]
                self.constants[node.name] = constant_value(module, node, values)
        for node in self.nodes:
            if self.has_relaxation(node):
                self._require_relaxation(node)

    @property
    def curves(self) -> list[Any]:
        """The S-shaped nodes, in topological order."""
        return [node for node in self.nodes if is_curve(node)]

    @property
    def relus(self) -> list[Any]:
        """The ReLU nodes, in topological order."""
        return [node for node in self.nodes if is_relu(node)]

    @property
    def uses_relaxations(self) -> bool:
        """Whether some node has linear bounds."""
        return bool(self._relaxed)

    def is_cut(self, node: Any) -> bool:
        """Whether passes backward end at a node, with its bounds."""
        return self._cut is not None and node.name in self._cut

    def has_relaxation(self, node: Any) -> bool:
        """Whether a node is bounded by linear bounds."""
        return node.name in self._relaxed

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

    def perturbed(self, node: Any) -> list[int]:
        """The places of a node's operands that depend on the input."""
        return [place for place, parent in enumerate(node.inputs) if parent.name in self._perturbed]

    def relaxations(self, preactivations: Mapping[str, Interval]) -> dict[str, LinearRelaxation]:
        """The linear bounds of nodes that have them over given pre-activation bounds, by name."""
        return {node.name: self.relaxation_of(node, preactivations) for node in self.nodes if self.has_relaxation(node)}

    def relaxation_of(self, node: Any, preactivations: Mapping[str, Interval]) -> LinearRelaxation:
        """The linear bounds of one node over given pre-activation bounds."""
        names = [parent.name for parent in node.inputs]
        ranges = [preactivations[n] if self.depends(n) else self.constants[n] for n in names]
        return LINEAR_RELAXATIONS[type(node).__name__](node, ranges, preactivations)

    def single_map(self, node: Any, place: int, like: Tensor) -> tuple[LinearMap | None, Tensor | None, Sequence[int]]:
        """The linear map and offset that an exact operator with one perturbed operand consists of.

        Args:
            place: of that operand.
            like: of the dtype and on the device to compute with.
        Returns:
            map (None if it is not one map), offset (None if there is none), shape of the operator's value.
        """
        if node.name not in self._maps:
            maps, image = self._maps_of(node, place, like)
            alone = len(maps) == 1 and maps[0].image is image and not _Probe.reshaped
            linear, offset = maps[0][:2] if alone else (None, None)
            self._maps[node.name] = linear, offset, tuple(image.center.shape[1:])
        return self._maps[node.name]

    def terms(self, node: Any, like: Tensor) -> int:
        """How many products an exact operator, and a pass backward through it, sum for one coordinate; 0 for none.

        Args:
            like: of the dtype and on the device to compute with.
        """
        known = _terms.setdefault(self._module, {})
        if node.name not in known:
            known[node.name] = self._count_terms(node, like)
        return known[node.name]

    def _count_terms(self, node: Any, like: Tensor) -> int:
        kind, perturbed = type(node).__name__, self.perturbed(node)
        size, shapes = prod(self.shape(node.name)), [self.shape(node.inputs[place].name) for place in perturbed]
        copies = max(-(-size // max(prod(shape), 1)) for shape in shapes)
        if kind in _REDUCTIONS:
            return 1 + max(-(-prod(shape) // max(size, 1)) for shape in shapes)
        if len(perturbed) > 1 or kind in _ARITHMETIC:
            return 4 * len(node.inputs) + (copies if copies > 1 else 0)
        maps, _ = self._maps_of(node, perturbed[0], like)
        return sum(
            (one.linear.terms(one.shape) + one.linear.transposed_terms(one.shape, one.out) for one in maps), start=0
        )

    def _maps_of(self, node: Any, place: int, like: Tensor) -> tuple[list[_Noted], Zonotope]:
        """The linear maps that an exact operator sends its one perturbed operand through in turn, and what it gives."""
        operands: list[Any] = [self.constants.get(parent.name) for parent in node.inputs]
        operands[place] = _Probe(like.new_zeros(1, *self.shape(node.inputs[place].name)))
        _Probe.noted.clear()
        _Probe.reshaped.clear()
        with torch.no_grad():
            image = image_of(Call(node, operands, SymbolSource()))
        return list(_Probe.noted), image

    def _require_relaxation(self, node: Any) -> None:
        """Refuse, or cut, what does not fit the linear bounds of a node."""
        names = [parent.name for parent in node.inputs]
        zeros = {name: torch.zeros(1, *self.shape(name)) for name in names if self.depends(name)}
        preactivations = {name: Interval(zero, zero) for name, zero in zeros.items()}
        try:
            LINEAR_RELAXATIONS[type(node).__name__](
                node, [preactivations[n] if n in preactivations else self.constants[n] for n in names], preactivations
            )
        except UnsupportedOperatorError:
            if self._cut is None:
                raise
            self._relaxed.discard(node.name)
            self._cut.add(node.name)

    def _require(self, node: Any) -> None:
        entry, perturbed = entry_for(node), self.perturbed(node)
        kind = type(node).__name__
        divides = kind == "BoundDiv" and 1 in perturbed
        if (
            kind in LINEAR_RELAXATIONS
            and entry is not None
            and (entry.kind != "exact" or len(perturbed) > 1 or divides)
        ):
            self._relaxed.add(node.name)
            return
        if entry is None or (entry.kind != "exact" and (entry.kind != "relaxation" or len(perturbed) != 1)):
            if self._cut is not None:
                self._cut.add(node.name)
                return
            raise UnsupportedOperatorError(
                f"No backward bounds through {kind} (node {node.name!r}): it is neither exact nor a"
                " function of one variable, and has no linear bounds."
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


class _Noted(NamedTuple):
    """A linear map and offset, what they make of a probe, and the shapes that they take and give."""

    linear: LinearMap
    offset: Tensor | None
    image: Zonotope
    shape: Shape
    out: Shape


class _Probe(Zonotope):
    """Notes the linear maps that an exact transformer sends its operand through."""

    noted: ClassVar[list[_Noted]] = []
    reshaped: ClassVar[list[bool]] = []

    def reshape(self, shape: tuple[int, ...]) -> Zonotope:
        self.reshaped.append(True)
        return _Probe(self.center.reshape(-1, *shape))

    def map(self, linear: LinearMap, offset: Tensor | None = None) -> Zonotope:
        image = _Probe(Zonotope(self.center).map(linear, offset).center)
        self.noted.append(_Noted(linear, offset, image, self.shape, image.shape))
        return image
