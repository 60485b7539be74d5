"""Finds a tree of splits for a list of leaves, so that a search need not keep its tree.

Leaves may stand for less than the whole: regions that no leaf covers become leaves of their own, without a method.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zonoplug.certificates.certificate import Floats, InputSplit, Leaf, Node, ReluSplit

Ints = NDArray[np.int64]
MAX_NODES = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class LeafTable:
    """Leaves side by side.

    Attributes:
        lower, upper: their boxes, (leaves, inputs).
        phases: of each, the split neurons: code + 1 where it is >= 0, -(code + 1) where it is <= 0.
        layers: (layers,) the first code of each ReLU layer.
        leaves: what is written for each.
    """

    lower: Floats
    upper: Floats
    phases: list[Ints]
    layers: Ints
    leaves: list[Leaf]


def find_tree(table: LeafTable, lower: Floats, upper: Floats) -> list[Node]:
    """A tree in preorder over the box [lower, upper] (inputs,) each, whose leaves are those of the table.

    At each step a cut is looked for that no leaf lies across: a coordinate and a value, or a neuron whose phase all
    leaves fix. Where leaves overlap and no cut exists, the first of them stands for all.
    """
    nodes: list[Node] = []
    stack = [(lower, upper, np.arange(len(table.leaves)), frozenset[int]())]
    while stack:
        if len(nodes) > MAX_NODES:
            raise ValueError("the leaves make no tree")
        low, high, members, known = stack.pop()
        cut = _cut(table, low, high, members)
        if cut is not None:
            axis, at = cut
            nodes.append(InputSplit(axis, at))
            below = members[table.upper[members, axis] <= at]
            above = members[table.lower[members, axis] >= at]
            middle_high, middle_low = high.copy(), low.copy()
            middle_high[axis] = middle_low[axis] = at
            stack += [(middle_low, high, above, known), (low, middle_high, below, known)]
            continue
        neuron = _common_neuron(table, members, known)
        if neuron is not None:
            layer = int(np.searchsorted(table.layers, neuron, side="right")) - 1
            nodes.append(ReluSplit(layer, neuron - int(table.layers[layer])))
            code, known = neuron + 1, known | {neuron}
            positive = np.array([member for member in members if code in table.phases[member]], np.int64)
            negative = np.array([member for member in members if -code in table.phases[member]], np.int64)
            stack += [(low, high, negative, known), (low, high, positive, known)]
            continue
        nodes.append(table.leaves[members[0]] if members.size else Leaf(""))
    return nodes


def _cut(table: LeafTable, low: Floats, high: Floats, members: Ints) -> tuple[int, float] | None:
    """The cut that leaves the sides most even: a coordinate and a value inside the cell that no member lies across."""
    if not members.size:
        return None
    lower, upper = table.lower[members], table.upper[members]
    if (lower == lower[0]).all() and (upper == upper[0]).all():
        return _face(lower[0], upper[0], low, high)
    order = lower.argsort(axis=0, kind="stable")
    starts = np.take_along_axis(lower, order, axis=0)
    reached = np.maximum.accumulate(np.take_along_axis(upper, order, axis=0), axis=0)
    free = (starts[1:] >= reached[:-1]) & (starts[1:] > low) & (starts[1:] < high)
    if free.any():
        balance = np.minimum(np.arange(1, members.size), np.arange(members.size - 1, 0, -1))[:, None]
        row, axis = divmod(int(np.where(free, balance, -1).argmax()), lower.shape[1])
        return axis, float(starts[row + 1, axis])
    return _face(lower.min(axis=0), upper.max(axis=0), low, high)


def _face(lower: Floats, upper: Floats, low: Floats, high: Floats) -> tuple[int, float] | None:
    """A face of the box [lower, upper] that lies inside the cell [low, high]."""
    for ends in (lower, upper):
        inside = (ends > low) & (ends < high)
        if inside.any():
            axis = int(inside.argmax())
            return axis, float(ends[axis])
    return None


def _common_neuron(table: LeafTable, members: Ints, known: frozenset[int]) -> int | None:
    """A neuron, not yet split on here, whose phase every member fixes; the most even one."""
    if not members.size:
        return None
    phases = np.concatenate([table.phases[member] for member in members])
    neurons, counts = np.unique(np.abs(phases), return_counts=True)
    shared = [int(neuron) for neuron in neurons[counts == members.size] if int(neuron) - 1 not in known]
    if not shared:
        return None
    return max(shared, key=lambda neuron: -abs(members.size - 2 * int((phases == neuron).sum()))) - 1
