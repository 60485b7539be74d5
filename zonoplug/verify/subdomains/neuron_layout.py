"""Where the neurons of each ReLU stand when those of all stand side by side, and the way there and back.

S-shaped nodes may have places too, behind all ReLUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.verify.subdomains.relu_phases import ReluSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.passes import Backward, LinearBounds
    from zonoplug.lirpa.backward.triangle import Multipliers

CHORD_POINTS = 9


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where the neurons of one ReLU, or of one S-shaped node, stand.

    Attributes:
        relu, source: names of the node and of its input.
        section: among all neurons.
        shape: of its input, without the batch axis.
    """

    relu: str
    source: str
    section: slice
    shape: tuple[int, ...]

    def shaped(self, values: Tensor) -> Tensor:
        """Its own part (n, *shape) of values of all neurons, (n, neurons)."""
        own: Tensor = values[:, self.section].unflatten(1, self.shape)
        return own


class NeuronLayout:
    """The neurons of all ReLUs that a backward pass meets, side by side.

    Args:
        backward: the pass.
        preactivations: of the ReLUs' inputs at least, by node name.
        curves: whether S-shaped nodes have places too.

    Attributes:
        places: of all nodes, those of each kind in topological order.
        of_relus, of_curves: of the ReLUs, and of the S-shaped nodes.
        relu_neurons: how many neurons ReLUs have; those of S-shaped nodes follow.
    """

    def __init__(self, backward: Backward, preactivations: Mapping[str, Interval], curves: bool = False) -> None:
        self.places: list[Place] = []
        self._curves = backward.curves if curves else []
        start = 0
        for relu in [*backward.relus, *self._curves]:
            source = backward.source(relu.name)
            shape = tuple(preactivations[source].lower.shape[1:])
            end = start + prod(shape)
            self.places.append(Place(relu.name, source, slice(start, end), shape))
            start = end
        self.of_relus, self.of_curves = self.places[: len(backward.relus)], self.places[len(backward.relus) :]
        self.relu_neurons = sum(self.sizes[: len(self.of_relus)])

    def deviations(self, lower: Tensor, upper: Tensor) -> Tensor:
        """How far S-shaped nodes stray from their chords between bounds (n, neurons): (n, neurons), 0 for ReLUs."""
        found = torch.zeros_like(lower)
        for node, at in zip(self._curves, self.of_curves, strict=True):
            low, high = lower[:, at.section], upper[:, at.section]
            share = torch.linspace(0, 1, CHORD_POINTS, dtype=low.dtype, device=low.device)[:, None, None]
            values = node.forward(low + share * (high - low))
            chord = values[0] + share * (values[-1] - values[0])
            found[:, at.section] = (values - chord).abs().amax(dim=0)
        return found

    @property
    def sizes(self) -> list[int]:
        """How many neurons each node has."""
        return [at.section.stop - at.section.start for at in self.places]

    def root(self, preactivations: Mapping[str, Interval], count: int = 1) -> ReluSubdomains:
        """Some subdomains, all the same, without split constraints; pre-activation bounds (1, *shape) by node name."""
        from zonoplug.lirpa.backward.refinement import first_alpha

        lower, upper = (
            torch.cat([end.flatten(1) for end in ends], dim=1).expand(count, -1)
            for ends in zip(*(preactivations[at.source] for at in self.places), strict=True)
        )
        zero, alpha = torch.zeros_like(lower), first_alpha(Interval(lower, upper))
        return ReluSubdomains(lower, upper, zero, alpha, zero.clone(), lower.new_full((count,), -torch.inf))

    def preactivations(self, lower: Tensor, upper: Tensor, others: Mapping[str, Interval]) -> dict[str, Interval]:
        """By node name, (n, *shape): of the ReLUs' inputs from (n, neurons), of other nodes from (1, *shape)."""
        found = {at.source: Interval(at.shaped(lower), at.shaped(upper)) for at in self.places}
        for name, preactivation in others.items():
            if name not in found:
                found[name] = preactivation.expanded(lower.shape[0])
        return found

    def multipliers(self, alpha: Tensor, beta: Tensor, sign: Tensor) -> Multipliers:
        """For a backward pass, from (n, neurons)."""
        from zonoplug.lirpa.backward.triangle import Multipliers

        return Multipliers(*({at.relu: at.shaped(values) for at in self.places} for values in (alpha, beta, sign)))

    def values(self, module: Any, points: Tensor) -> Tensor:
        """The nodes' inputs, (n, neurons), at points (n, *input_shape) of the host's module."""
        with torch.no_grad():
            return torch.cat([module(points, final_node_name=at.source).flatten(1) for at in self.places], dim=1)

    def coefficients(self, bounds: LinearBounds) -> Tensor:
        """The coefficients behind each neuron, (n, neurons), of bounds of one row each."""
        known = bounds.coefficients | bounds.curves
        return torch.cat([known[at.relu].detach()[:, 0].flatten(1) for at in self.places], dim=1)
