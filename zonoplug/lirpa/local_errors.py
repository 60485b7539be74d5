"""Rounding in passes backward: the error of every node, on a box, which a bound carries with its coefficients.

The values that a network's evaluation computes are those of a perturbed network, in which each node adds an error e of
its own, |e| <= d, to what its computed operands make of it. A linear bound that has the coefficients A at the node's
output is moved by at most |A| d. Coefficients themselves are rounded on their way: where A W is computed with an error
of gamma(m) |A| |W|, that moves the bound by at most gamma(m) |A| (|W| |h| + |b|), the same form. So both are covered by

    error of a bound  =  sum over nodes of  |A| . d,    d = gamma(terms) (|W| |h| + |b|)

for sums of products, and by the function's accuracy and the relaxation's own rounding elsewhere. Constants of a bound
are summed in double precision.

Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.rounding import FOLDED, function_error, gamma, gammas, overflowing, units
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.interval_images import interval_image
from zonoplug.lirpa.perturbed_graph import PerturbedGraph, is_exact, is_relu
from zonoplug.lirpa.propagate import intersect
from zonoplug.lirpa.runtime_errors import accuracy_of, composed_error, largest
from zonoplug.lirpa.table import entry_for


@dataclass(slots=True)
class LocalErrors:
    """Errors of the nodes of a graph on a box.

    Attributes:
        ranges: of each node's computed values, (batch, *shape) by name.
        behind: d of each node that has any, for coefficients at its output, (batch, *shape) by name.
        front: the same of ReLUs for coefficients at their inputs, which multipliers of split constraints enlarge.
    """

    ranges: dict[str, Interval] = field(default_factory=dict)
    behind: dict[str, Tensor] = field(default_factory=dict)
    front: dict[str, Tensor] = field(default_factory=dict)

    def size(self, name: str) -> Tensor:
        """The largest |h| of a node, (batch, *shape)."""
        return largest(self.ranges[name])


def local_errors(graph: PerturbedGraph, box: Box, hulls: Mapping[str, Interval], network: torch.dtype) -> LocalErrors:
    """The errors of all nodes: of the network's evaluation in its own type, and of passes in that of the box.

    Args:
        network: the type in which the network is evaluated.
        box: the inputs, (batch, *input_shape).
        hulls: bounds of the computed inputs of every non-exact operator, (batch, *shape).
    Raises:
        UnsupportedOperatorError: an operator's range, or how the runtime rounds in it, is not known.
    """
    found = LocalErrors({graph.input: Interval(box.lower, box.upper)})
    for node in graph.nodes:
        if graph.is_cut(node):
            found.ranges[node.name] = hulls[node.name]
            continue
        exact = is_exact(node) and not graph.has_planes(node)
        known = found.ranges if exact else hulls
        ranges = [known[parent.name] if graph.depends(parent.name) else None for parent in node.inputs]
        operands = [
            graph.constants[parent.name] if hull is None else Zonotope(hull.upper)
            for parent, hull in zip(node.inputs, ranges, strict=True)
        ]
        image = interval_image(node, operands, ranges, graph.shape(node.name))
        if image is None:
            raise UnsupportedOperatorError(f"No range of {type(node).__name__} (node {node.name!r}) is known.")
        if exact:
            error = _of_sum(graph, node, operands, ranges, network)
            if error is not None:
                found.behind[node.name] = error
                image = Interval(image.lower - error, image.upper + error)
        elif is_relu(node):
            found.front[node.name] = units(largest(hulls[node.inputs[0].name]), 8)
        else:
            error = found.behind[node.name] = _of_function(node, ranges, operands, image, network)
            image = Interval(image.lower - error, image.upper + error)
            if graph.has_planes(node):
                found.behind[node.name] = error + _of_planes(graph, node, hulls)
        hull = hulls.get(node.name)
        found.ranges[node.name] = image if hull is None else intersect(image, hull)
    return found


def _of_sum(
    graph: PerturbedGraph, node: Any, operands: list[Any], ranges: list[Interval | None], network: torch.dtype
) -> Tensor | None:
    """Of an exact operator: sums of products. None where nothing is rounded.

    Partial sums, in any order, lie between the sums P of all positive terms and -N of all negative ones, so that the
    network's evaluation is off by at most  gamma(n) max(P, N)  for n terms that are not 0, with one more unit of P + N
    for the products; the pass backward by gamma (P + N) of its own number of terms.
    """
    moving = graph.moving(node)
    first = ranges[moving[0]]
    assert first is not None
    terms = graph.terms(node, first.lower)
    if not terms:
        return None
    linear, offset, _ = graph.single_map(node, moving[0], first.lower) if len(moving) == 1 else (None, None, ())
    tiny = torch.finfo(network).tiny
    if linear is None:
        size = _size_of_sum(graph, node, operands, ranges)
        both = gamma(terms + FOLDED, size.dtype) + gamma(terms + FOLDED, network)
        return overflowing(size, size * (1.01 * both) + 2 * terms * tiny, network)
    shape = tuple(first.lower.shape[1:])
    low, high = first.lower.clamp(max=0), first.upper.clamp(min=0)
    middle, reach = linear.apply((low + high) / 2), linear.apply_absolute((high - low) / 2)
    constant = torch.zeros_like(middle) if offset is None else offset.expand_as(middle)
    positive, negative = reach + middle + constant.clamp(min=0), reach - middle - constant.clamp(max=0)
    count = linear.count(largest(first) > 0)
    count = torch.as_tensor(count, dtype=middle.dtype, device=middle.device)
    spread = positive + negative
    own = linear.transposed_terms(shape, tuple(middle.shape[1:]))
    partial = gammas(count + FOLDED, network) * torch.maximum(positive, negative)
    products = gamma(FOLDED, network) + gamma(own + FOLDED, spread.dtype)
    return overflowing(spread, 1.01 * (partial + spread * products) + 2 * terms * tiny, network)


def _size_of_sum(graph: PerturbedGraph, node: Any, operands: list[Any], ranges: list[Interval | None]) -> Tensor:
    """What the absolute terms of an exact operator add up to."""
    around = [None if hull is None else Interval(-largest(hull), largest(hull)) for hull in ranges]
    values = [operand if hull is None else Zonotope(hull.upper) for operand, hull in zip(operands, around, strict=True)]
    image = interval_image(node, values, around, graph.shape(node.name))
    assert image is not None
    size = largest(image)
    if type(node).__name__ == "BoundBatchNormalization":  # where constants may cancel
        weight, _, mean, variance = (graph.constants[parent.name] for parent in node.inputs[1:])
        shift = (mean * weight).abs() / torch.sqrt(variance + node.eps)
        size = size + 2 * shift.reshape(1, -1, *[1] * (size.dim() - 2))
    return size


def _of_function(
    node: Any, ranges: list[Interval | None], operands: list[Any], image: Interval, network: torch.dtype
) -> Tensor:
    """What the network's evaluation of an operator adds that is not exact; the pass adds its own arithmetic."""
    size = largest(image)
    error = function_error(accuracy_of(node, entry_for(node)), size, _operand(ranges, size), network)
    values = [operand if isinstance(operand, Tensor) else None for operand in operands]
    composed = composed_error(node, ranges, values, image, network)
    return error if composed is None else error + composed


def _operand(ranges: list[Interval | None], size: Tensor) -> Tensor | float:
    """|x| of the one perturbed operand where it has the image's shape, else the largest of all."""
    perturbed = [hull for hull in ranges if hull is not None]
    if len(perturbed) == 1 and perturbed[0].lower.shape == size.shape:
        return largest(perturbed[0])
    return max(float(largest(hull).max()) for hull in perturbed)


def _of_planes(graph: PerturbedGraph, node: Any, hulls: Mapping[str, Interval]) -> Tensor:
    """The pass's own arithmetic in the planes of an operator."""
    shape = graph.shape(node.name)
    sizes = [graph.shape(node.inputs[place].name) for place in graph.moving(node)]
    folded = sum(sum(size[-2:]) + -(-prod(shape) // max(prod(size), 1)) for size in sizes) + sum(shape[-2:])
    magnitude = graph.planes_of(node, hulls).magnitude()
    return magnitude * (1.01 * gamma(64 + 4 * folded, magnitude.dtype)) + folded * torch.finfo(magnitude.dtype).tiny
