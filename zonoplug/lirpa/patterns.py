"""Functions that arrive as several nodes of the host's graph, recognised and bounded as the one that they are.

Exporters write GELU, SiLU, Mish, hard swish as products of x with a gate, and norms and softmax as quotients. Node by
node, the operands of those products would be bounded as if they could vary apart. A pattern stands for its last node
and reads what the first ones read; nodes in between belong to it, and nobody else may read them.

Numbers are compared up to rounding in the network's type, so patterns are left out where bounds are to cover rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zonoplug.lirpa import formulas
from zonoplug.lirpa.formulas import ACTIVATIONS
from zonoplug.lirpa.host_bases import constant, is_constant
from zonoplug.lirpa.node_formulas import as_number, in_terms_of

LARGEST = 16  # nodes of one pattern
Varying = Collection[str]  # names of the nodes that the network's input reaches


@dataclass(frozen=True, eq=False)
class Pattern:
    """Several nodes of the host's graph as one; what it does not have itself is its last node's.

    Attributes:
        last: the node whose value it has.
        inputs: the nodes that it reads.
        inside: the nodes that it replaces, the last one not counted.
        attr: numbers, as host nodes have them.
    """

    last: Any
    inputs: Sequence[Any]
    inside: Sequence[Any]
    attr: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.last.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.last, name)

    def forward(self, *values: Tensor) -> Tensor:
        """The value of the last node, from those of the inputs."""
        known: dict[str, Tensor] = dict(zip((node.name for node in self.inputs), values, strict=True))

        def value(node: Any) -> Tensor:
            if node.name not in known:
                known[node.name] = torch.as_tensor(node.forward(*(value(parent) for parent in node.inputs)))
            return known[node.name]

        return value(self.last)

    def interval_propagate(self, *_: Any) -> Any:
        """No bounds by the host, whose last node reads something else."""
        raise NotImplementedError(f"{type(self).__name__} made of several nodes")


def _kind(name: str) -> type[Pattern]:
    """A pattern that is found in the operator table under `name`."""
    return type(name, (Pattern,), {"__module__": __name__})


_ACTIVATIONS = {name: _kind(name) for name in ACTIVATIONS}
_QUOTIENT, _NORMALIZATION = _kind("BoundDiv"), _kind("BoundNormalization")
_SOFTMAX, _LOG_SOFTMAX = _kind("BoundSoftmax"), _kind("BoundLogSoftmax")

_GATES = ("Clip", "Erf", "Exp", "HardSigmoid", "HardTanh", "Relu", "Sigmoid", "Tanh")  # each activation has one


def _activation(last: Any, varying: Varying) -> Iterator[Pattern]:
    """An activation of one variable, written in any way."""
    above = _nodes_above(last, varying) if _is(last, "Add", "Mul", "Div", "Log") else []
    if not any(_is(node, *_GATES) for node in above):
        return
    epsilon = 4 * torch.finfo(_dtype(last)).eps
    for source in above:
        if tuple(source.output_shape) != tuple(last.output_shape):
            continue
        inside: list[Any] = []
        try:
            formula = in_terms_of(source, last, inside, varying)
        except formulas.TooLargeError:
            continue
        for name, wanted in ACTIVATIONS.items():
            if formula is not None and formulas.same(formula, wanted, epsilon):
                yield _ACTIVATIONS[name](last, [source], inside[:-1])


def _nodes_above(last: Any, varying: Varying) -> list[Any]:
    """The perturbed nodes before `last`, nearest first."""
    found: list[Any] = []
    queue = [last]
    while queue and len(found) < LARGEST:
        for parent in queue.pop(0).inputs:
            if parent.name in varying and all(parent is not other for other in found):
                found.append(parent)
                queue.append(parent)
    return found


def _dtype(node: Any) -> torch.dtype:
    """The type in which a graph computes: that of its constants near a node."""
    seen, queue = 0, [node]
    while queue and seen < 4 * LARGEST:
        current = queue.pop(0)
        seen += 1
        value = getattr(current, "param", None)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
        queue.extend(current.inputs)
    return torch.get_default_dtype()


def _is(node: Any, *names: str) -> bool:
    return type(node).__name__ in [f"Bound{name}" for name in names]


def _fraction(node: Any, varying: Varying) -> tuple[Any, Any, list[Any]] | None:
    """Numerator, denominator and the nodes between, of x / y and of x (1 / y); both perturbed."""
    if _is(node, "Div") and all(parent.name in varying for parent in node.inputs):
        return (*node.inputs, [])
    if _is(node, "Mul") and all(parent.name in varying for parent in node.inputs):
        for left, right in (node.inputs, reversed(node.inputs)):
            between = _reciprocal(right, varying)
            if between is not None:
                return left, between[0].inputs[-1], between
    return None


def _reciprocal(node: Any, varying: Varying) -> list[Any] | None:
    """The nodes of 1 / y, the one that reads y (as its last input) first."""
    if _is(node, "Reciprocal"):
        return [node]
    if _is(node, "Div", "Mul") and node.inputs[0].name not in varying and as_number(node.inputs[0]) == {(): 1.0}:
        return [node] if _is(node, "Div") else [node.inputs[1], node] if _is(node.inputs[1], "Reciprocal") else None
    return None


def _axes(node: Any) -> list[int] | None:
    """The axes that a reduction node drops or keeps with length 1."""
    axes = node.attr.get("axes") if len(node.inputs) < 2 else constant(node.inputs[1]).reshape(-1).tolist()
    if axes is None or getattr(node.inputs[0], "output_shape", None) is None:
        return None
    rank = len(node.inputs[0].output_shape)
    return sorted(int(axis) % rank for axis in ([axes] if isinstance(axes, int) else axes))


def _keeps(node: Any) -> bool:
    return bool((node.attr or {}).get("keepdims", 1))


def _normalization(last: Any, varying: Varying) -> Iterator[Pattern]:
    """d / sqrt(mean of d^2 + epsilon):  a layer, group or RMS normalisation.

    Where d is x less its mean, x is a second input: rounding depends on it where the runtime fuses the two.
    """
    fraction = _fraction(last, varying)
    if fraction is None or not _is(fraction[1], "Sqrt") or not _is(fraction[1].inputs[0], "Add"):
        return
    deviation, root, between = fraction
    total = root.inputs[0]
    for mean, offset in (total.inputs, reversed(total.inputs)):
        if not _is(mean, "ReduceMean") or mean.name not in varying or offset.name in varying or not _keeps(mean):
            continue
        square, epsilon, axes = mean.inputs[0], as_number(offset), _axes(mean)
        value = None if epsilon is None else formulas.constant_of(epsilon)
        if not _is_square_of(square, deviation) or not axes or 0 in axes or value is None or not value > 0:
            continue
        inside = [square, mean, total, root, *between]
        centered = _is_centered(deviation, axes)
        attributes = {"axes": axes, "epsilon": value, "centered": centered}
        yield _NORMALIZATION(last, [deviation, *deviation.inputs[: int(centered)]], inside, attributes)


def _is_square_of(node: Any, base: Any) -> bool:
    if _is(node, "Mul", "Sqr"):
        return all(parent is base for parent in node.inputs)
    return _is(node, "Pow") and node.inputs[0] is base and float(constant(node.inputs[1]).max()) == 2.0


def _is_centered(node: Any, axes: list[int]) -> bool:
    """Whether a node is x less its mean over the axes."""
    if not _is(node, "Sub") or not _is(node.inputs[1], "ReduceMean"):
        return False
    return node.inputs[1].inputs[0] is node.inputs[0] and _axes(node.inputs[1]) == axes and _keeps(node.inputs[1])


def _softmax(last: Any, varying: Varying) -> Iterator[Pattern]:
    """exp(x) / sum of exp(x)."""
    fraction = _fraction(last, varying)
    if fraction is None or not _is(fraction[0], "Exp"):
        return
    exponential, total, between = fraction
    if not _is(total, "ReduceSum") or total.inputs[0] is not exponential or not _keeps(total):
        return
    axes = _axes(total)
    if axes is not None and len(axes) == 1 and axes[0] != 0:
        source, shift = _unshifted(exponential.inputs[0], axes)
        yield _SOFTMAX(last, [source], [*shift, exponential, total, *between], {"axis": axes[0]})


def _log_softmax(last: Any, varying: Varying) -> Iterator[Pattern]:
    """log softmax(x), and x - log sum of exp(x)."""
    if _is(last, "Log") and (_is(last.inputs[0], "Softmax")):
        softmax = last.inputs[0]
        axis = int(softmax.axis) % len(softmax.output_shape)
        if axis != 0:
            yield _LOG_SOFTMAX(last, softmax.inputs, [softmax], {"axis": axis})
    if not _is(last, "Sub") or not all(parent.name in varying for parent in last.inputs):
        return
    source, total = last.inputs
    nodes = [total]
    if _is(total, "Log") and _is(total.inputs[0], "ReduceSum") and _is(total.inputs[0].inputs[0], "Exp"):
        nodes = [total.inputs[0].inputs[0], total.inputs[0], total]
    elif not _is(total, "ReduceLogSumExp"):
        return
    reduction = nodes[-2] if len(nodes) > 1 else total
    axes = _axes(reduction)
    if nodes[0].inputs[0] is source and axes is not None and len(axes) == 1 and axes[0] != 0 and _keeps(reduction):
        origin, shift = _unshifted(source, axes)
        yield _LOG_SOFTMAX(last, [origin], [*shift, *nodes], {"axis": axes[0]})


def _unshifted(node: Any, axes: list[int]) -> tuple[Any, list[Any]]:
    """x and the nodes between, where the node is x less its maximum over the axes; else the node."""
    if _is(node, "Sub") and _is(node.inputs[1], "ReduceMax") and node.inputs[1].inputs[0] is node.inputs[0]:
        if _axes(node.inputs[1]) == axes and _keeps(node.inputs[1]):
            return node.inputs[0], [node.inputs[1], node]
    return node, []


def _quotient(last: Any, varying: Varying) -> Iterator[Pattern]:
    """x (1 / y)  as one quotient, in which shared symbols cancel."""
    fraction = _fraction(last, varying)
    if fraction is not None and fraction[2]:
        yield _QUOTIENT(last, list(fraction[:2]), fraction[2])


_RULES: Sequence[Callable[[Any, Varying], Iterator[Pattern]]] = (
    _activation, _normalization, _softmax, _log_softmax, _quotient,
)  # fmt: skip


def find_patterns(order: Sequence[Any]) -> list[Any]:
    """The nodes of a graph in topological order, with patterns in place of the nodes that they replace.

    Args:
        order: the host's nodes that lead to the last of them, in topological order.
    """
    readers: dict[str, list[str]] = {}
    for node in order:
        for parent in node.inputs:
            readers.setdefault(parent.name, []).append(node.name)
    varying: set[str] = set()
    for node in order:
        if any(parent.name in varying for parent in node.inputs) or (not node.inputs and not is_constant(node)):
            varying.add(node.name)
    replaced: dict[str, Pattern | None] = {}
    for node in reversed(order):
        if node.name not in varying or node.name in replaced:
            continue
        for pattern in (pattern for rule in _RULES for pattern in rule(node, varying)):
            members = {member.name for member in pattern.inside}
            private = all(set(readers[name]) <= members | {node.name} for name in members)
            if private and not members & set(replaced):
                replaced |= dict.fromkeys(members)
                replaced[node.name] = pattern
                break
    kept = [replaced.get(node.name, node) for node in order]
    return [node for node in kept if node is not None]
