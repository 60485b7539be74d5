"""The order in which the propagation visits the host's graph."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from zonoplug.lirpa.fusion.patterns import find_patterns

# Operators whose outputs are neurons: host class to activation.
NEURON_LAYERS = {
    "BoundRelu": "relu",
    "BoundSigmoid": "sigmoid",
    "BoundTanh": "tanh",
    "BoundLeakyRelu": "leaky_relu",
    "BoundPRelu": "prelu",
    "BoundElu": "elu",
    "BoundSelu": "selu",
    "BoundCelu": "celu",
    "BoundGelu": "gelu",
    "BoundSoftplus": "softplus",
    "BoundHardSwish": "hard_swish",
    "BoundMish": "mish",
    "BoundHardSigmoid": "hard_sigmoid",
    "BoundHardTanh": "hardtanh",
    "BoundAtan": "arctan",
    "BoundErf": "erf",
}


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """The part of a graph that leads to one node.

    Attributes:
        order: its nodes, in topological order; patterns stand for the nodes that they replace.
        readers: how often each value is read, by node name.
        last_neurons: the last activation's name, None without any.
        largest: by node name, the most coordinates that a node's value or a later one has.
    """

    order: tuple[Any, ...]
    readers: Mapping[str, int]
    last_neurons: str | None
    largest: Mapping[str, int]


_plans: weakref.WeakKeyDictionary[Any, dict[tuple[str, bool], GraphPlan]] = weakref.WeakKeyDictionary()


def plan_for(module: Any, final: str, patterns: bool = False) -> GraphPlan:
    """The plan for `module` up to the node named `final`, with patterns or without; made once per module and node."""
    plans = _plans.setdefault(module, {})
    if (final, patterns) not in plans:
        order = _in_order(module[final])
        order = find_patterns(order) if patterns else order
        readers = Counter(parent.name for node in order for parent in node.inputs)
        neurons = [node.name for node in order if type(node).__name__ in NEURON_LAYERS]
        largest, most = {}, 0
        for node in reversed(order):
            largest[node.name] = most = max(most, coordinates(node))
        plans[final, patterns] = GraphPlan(tuple(order), readers, neurons[-1] if neurons else None, largest)
    return plans[final, patterns]


def coordinates(node: Any) -> int:
    """How many coordinates a node has, without the batch; 1 where the host does not say."""
    return prod((getattr(node, "output_shape", None) or ())[1:])


def _in_order(final: Any) -> list[Any]:
    order: list[Any] = []
    seen: set[str] = set()
    stack = [(final, False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            order.append(node)
        elif node.name not in seen:
            seen.add(node.name)
            stack.append((node, True))
            stack.extend((parent, False) for parent in reversed(node.inputs))
    return order


def constant_value(module: Any, node: Any, operands: list[Any]) -> Tensor:
    """The value of a node that no perturbed input reaches."""
    value = node.forward(*operands)
    return value if isinstance(value, Tensor) else torch.as_tensor(value, device=module.device)
