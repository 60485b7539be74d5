"""Subdomains that are a smaller box and fixed signs of ReLU inputs at once, and their pieces."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from zonoplug.verify.activation_branching import relaxation_cost


@dataclass(frozen=True, slots=True, eq=False)
class Margins:
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

    def pick(self, index: Tensor) -> Margins:
        parts = (getattr(self, field.name) for field in fields(self))
        return Margins(*(value[index] for value in parts))


@dataclass(slots=True)
class MixedSubdomains:
    """A batch of subdomains of one input box; inputs flattened, neurons of all ReLU layers side by side.

    Attributes:
        box_lower, box_upper: (n, inputs).
        lower, upper: bounds of pre-activations, (n, neurons).
        sign: fixed signs, (n, neurons) in {-1, 0, 1}.
        alpha, beta: the multipliers to start from, (n, neurons).
        weights: of the rows, before a softmax, (n, rows).
        bound: a lower bound of the margin, (n,).
        share: (n,) of the whole tree, halved by each split.
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

    def __len__(self) -> int:
        return int(self.bound.shape[0])

    def parts(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def pick(self, index: Tensor | slice) -> MixedSubdomains:
        return MixedSubdomains(*(part[index] for part in self.parts()))

    def copy(self) -> MixedSubdomains:
        return MixedSubdomains(*(part.clone() for part in self.parts()))

    @property
    def open_neurons(self) -> Tensor:
        """(n, neurons) True where the sign is not known."""
        return (self.lower < 0) & (self.upper > 0) & (self.sign == 0)

    def relaxation_costs(self, coefficients: Tensor) -> Tensor:
        """What each open neuron's relaxation can cost a bound with these coefficients behind ReLUs; else -1."""
        costs = relaxation_cost(coefficients, self.lower, self.upper, self.alpha)
        return costs.masked_fill(~self.open_neurons, -1.0)

    @property
    def bytes_each(self) -> int:
        return sum(part[:1].numel() * part.element_size() for part in self.parts())

    @staticmethod
    def join(many: list[MixedSubdomains]) -> MixedSubdomains:
        return MixedSubdomains(*(torch.cat(parts) for parts in zip(*(one.parts() for one in many), strict=True)))


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


def take(queue: list[MixedSubdomains], count: int) -> MixedSubdomains:
    """Remove and join the last `count` subdomains of a queue, or all if there are fewer."""
    taken: list[MixedSubdomains] = []
    while queue and count > 0:
        chunk = queue.pop()
        if len(chunk) > count:
            rest = chunk.pick(slice(0, len(chunk) - count))
            queue.append(rest)
            chunk = chunk.pick(slice(len(chunk) - count, None))
        taken.append(chunk)
        count -= len(chunk)
    return MixedSubdomains.join(taken)
