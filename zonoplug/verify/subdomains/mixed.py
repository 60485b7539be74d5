"""Subdomains that are a smaller box and split constraints of ReLU inputs at once, and their pieces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.verify.subdomains.batch import Batch
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains, relaxation_cost


@dataclass(frozen=True, slots=True, eq=False)
class Margins(Batch):
    """What was found about a batch of subdomains.

    Attributes:
        bound: lower bounds of the margin, (n,).
        slopes, floor, center: an unsafe point x of the subdomain has  floor + slopes . (x - center) <= 0;
            (n, inputs), (n,), (n, inputs).
        coefficients: of the bound behind each neuron, (n, neurons).
        minimiser: where in the box the linear bound is least, (n, inputs).
        point: the mean of such places over the steps, which comes close to the minimiser of the relaxation.
    """

    bound: Tensor
    slopes: Tensor
    floor: Tensor
    center: Tensor
    coefficients: Tensor
    minimiser: Tensor
    point: Tensor

    def room(self, place: Tensor) -> Tensor:
        """How far the linear bound may rise from a place (n, inputs): an unsafe x has  slopes . (x - place) <= room."""
        return -(self.floor + (self.slopes * (place - self.center)).sum(dim=1))


@dataclass(slots=True)
class MixedSubdomains(ReluSubdomains):
    """A batch of subdomains of one input box, of several disjuncts, that have smaller boxes besides; inputs flattened.

    Attributes:
        box_lower, box_upper: (n, inputs).
        weights: of the rows, before a softmax, (n, rows).
        share: (n,) of the whole tree, bisected by each split; in float64, for trees deeper than 149.
        target: (n,) number of the disjunct, a place in the search's properties.
    """

    box_lower: Tensor
    box_upper: Tensor
    weights: Tensor
    share: Tensor
    target: Tensor

    @classmethod
    def whole(cls, phases: ReluSubdomains, box: Box, properties: Properties) -> MixedSubdomains:
        """A box (1, *input_shape) as a whole, once for each property; `phases` has as many elements."""
        lower, upper = (end.flatten(1).clone() for end in box.expanded(len(properties)).interval_hull())
        weights = torch.zeros_like(properties.goal)
        share = torch.ones(len(properties), dtype=torch.float64, device=weights.device)
        return cls._of(
            (*phases.parts(), lower, upper, weights, share, torch.arange(len(properties), device=weights.device))
        )

    def relaxation_costs(self, coefficients: Tensor) -> Tensor:
        """What each unstable neuron's relaxation can cost a bound with these coefficients behind ReLUs; else -1."""
        costs = relaxation_cost(coefficients, self.lower, self.upper, self.alpha)
        return costs.masked_fill(~self.unstable_neurons, -1.0)


def pieces_of(part: MixedSubdomains, places: Tensor) -> tuple[MixedSubdomains, MixedSubdomains]:
    """Both pieces of each subdomain, split at a neuron or in the middle of an input.

    Args:
        places: (n,) a neuron, or the number of neurons plus an input.
    """
    neurons = part.sign.shape[1]
    at = torch.arange(len(part), device=places.device)
    by_sign = places < neurons
    rows, neuron = at[by_sign], places[by_sign]
    bisected, axis = at[~by_sign], places[~by_sign] - neurons
    above, below = part.copy(), part.copy()
    above.share, below.share = above.share / 2, below.share / 2
    above.lower[rows, neuron], below.upper[rows, neuron] = 0.0, 0.0
    above.sign[rows, neuron], below.sign[rows, neuron] = 1.0, -1.0
    low, high = part.box_lower[bisected, axis], part.box_upper[bisected, axis]
    middle = low + (high - low) / 2
    above.box_lower[bisected, axis], below.box_upper[bisected, axis] = middle, middle
    return above, below
