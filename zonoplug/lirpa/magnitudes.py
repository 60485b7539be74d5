"""How large the terms are that a network's values are summed from, on a box: what their rounding errors scale with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.interval_images import interval_image
from zonoplug.lirpa.perturbed_graph import PerturbedGraph, is_exact, is_relu, operand_name
from zonoplug.lirpa.rounding_allowance import FACTOR

ROUNDINGS = 2 * FACTOR  # each is half a unit in the last place


def magnitudes(graph: PerturbedGraph, box: Box, hulls: Mapping[str, Interval]) -> dict[str, Tensor]:
    """By ReLU, the sum of absolute terms that its input consists of, (batch, *shape); under "" that of the last node.

    The same of operands of operators bounded by planes, under the names of `LinearBounds.others`; less where they
    come from few rounded numbers, so that their errors can be added up.

    Args:
        box: the inputs, (batch, *input_shape).
        hulls: bounds of the inputs of every non-exact operator, (batch, *shape).
    Raises:
        UnsupportedOperatorError: an operator's range is not known.
    """
    found: dict[str, Tensor] = {}
    largest = {graph.input: torch.maximum(box.lower.abs(), box.upper.abs())}
    errors = {graph.input: torch.zeros_like(largest[graph.input])}
    for node in graph.nodes:
        names = [parent.name for parent in node.inputs]
        operands = [Zonotope(largest[n]) if graph.depends(n) else graph.constants[n] for n in names]
        if graph.has_planes(node):
            found |= {operand_name(node, place): errors[names[place]] / ROUNDINGS for place in graph.moving(node)}
        if is_exact(node):
            ranges = [Interval(-largest[n], largest[n]) if graph.depends(n) else None for n in names]
        else:
            ranges = [hulls[n] if graph.depends(n) else None for n in names]
            if is_relu(node):
                found[node.name] = largest[names[0]]
        image = interval_image(node, operands, ranges, graph.shape(node.name))
        if image is None:
            raise UnsupportedOperatorError(f"No range of {type(node).__name__} (node {node.name!r}) is known.")
        largest[node.name] = torch.maximum(image.lower.abs(), image.upper.abs())
        if graph.uses_planes:
            errors[node.name] = _errors(graph, node, operands, errors, largest[node.name])
    return found | {"": largest[graph.final]}


def _errors(
    graph: PerturbedGraph, node: Any, operands: Sequence[Any], errors: Mapping[str, Tensor], largest: Tensor
) -> Tensor:
    """Roundings of a node's value since the last operator that is not exact, (batch, *shape).

    In halves of a unit in the last place of 1: each rounded number adds its magnitude, and at most `ROUNDINGS` of
    the value's own `largest` count.
    """
    names, kind, new = [parent.name for parent in node.inputs], type(node).__name__, 1
    if graph.has_planes(node):
        return largest * (1 if kind == "BoundMul" else ROUNDINGS)
    if not is_exact(node):
        return largest * ROUNDINGS
    if kind not in ("BoundAdd", "BoundSub", "BoundMul", "BoundDiv", "BoundConcat"):
        moving = graph.moving(node)
        if len(moving) != 1:
            return largest * ROUNDINGS
        linear, offset, _ = graph.single_map(node, moving[0], largest)
        if linear is None:
            return largest * ROUNDINGS
        new = linear.terms(graph.shape(names[moving[0]])) + (offset is not None)
    ranges = [Interval(-errors[n], errors[n]) if graph.depends(n) else None for n in names]
    inherited = interval_image(node, operands, ranges, graph.shape(node.name))
    if inherited is None:
        return largest * ROUNDINGS
    return torch.fmin((inherited.upper - inherited.lower) / 2 + new * largest, largest * ROUNDINGS)
