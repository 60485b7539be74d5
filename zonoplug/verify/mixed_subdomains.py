"""Subdomains that are a smaller box and fixed signs of ReLU inputs at once, and their pieces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.verify.activation_branching import relaxation_cost
from zonoplug.verify.batch import Batch


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
class MixedSubdomains(Batch):
    """A batch of subdomains of one input box; inputs flattened, neurons of all ReLU layers side by side.

    Attributes:
        box_lower, box_upper: (n, inputs).
        lower, upper: bounds of pre-activations, (n, neurons).
        sign: fixed signs, (n, neurons) in {-1, 0, 1}.
        alpha, beta: the multipliers to start from, (n, neurons).
        weights: of the rows, before a softmax, (n, rows).
        bound: a lower bound of the margin, (n,).
        share: (n,) of the whole tree, halved by each split; in float64, for trees deeper than 149.
        aim: (n,) number of the disjunct, a place in the search's aims.
    """

    box_lower: Tensor
    box_upper: Tensor
    lower: Tensor
    upper: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    weights: Tensor
    bound: Tensor
    share: Tensor
    aim: Tensor

    @property
    def open_neurons(self) -> Tensor:
        """(n, neurons) True where the sign is not known."""
        return (self.lower < 0) & (self.upper > 0) & (self.sign == 0)

    def relaxation_costs(self, coefficients: Tensor) -> Tensor:
        """What each open neuron's relaxation can cost a bound with these coefficients behind ReLUs; else -1."""
        costs = relaxation_cost(coefficients, self.lower, self.upper, self.alpha)
        return costs.masked_fill(~self.open_neurons, -1.0)


def pieces_of(part: MixedSubdomains, places: Tensor) -> tuple[MixedSubdomains, MixedSubdomains]:
    """Both pieces of each subdomain, split at a neuron's sign or in the middle of an input.

    Args:
        places: (n,) a neuron, or the number of neurons plus an input.
    """
    neurons = part.sign.shape[1]
    at = torch.arange(len(part), device=places.device)
    by_sign = places < neurons
    rows, neuron = at[by_sign], places[by_sign]
    halved, axis = at[~by_sign], places[~by_sign] - neurons
    above, below = part.copy(), part.copy()
    above.share, below.share = above.share / 2, below.share / 2
    above.lower[rows, neuron], below.upper[rows, neuron] = 0.0, 0.0
    above.sign[rows, neuron], below.sign[rows, neuron] = 1.0, -1.0
    low, high = part.box_lower[halved, axis], part.box_upper[halved, axis]
    middle = low + (high - low) / 2
    above.box_lower[halved, axis], below.box_upper[halved, axis] = middle, middle
    return above, below
