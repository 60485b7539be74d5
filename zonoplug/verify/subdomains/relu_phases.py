"""Subdomains with split constraints on some ReLUs, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.relaxations import triangle_height
from zonoplug.verify.problem.problem import Objective
from zonoplug.verify.subdomains.batch import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Properties(Batch):
    """What is to be proved of subdomains: no point of it meets all rows of a disjunct.

    Attributes:
        rows: (n, m, outputs), one disjunct for each subdomain.
        goal: (n, m) a row is out of reach where rows . y exceeds it.
        there: (n, m) False where a disjunct has fewer rows than another.
        number: (n,) of the disjunct in its input box.
    """

    rows: Tensor
    goal: Tensor
    there: Tensor
    number: Tensor

    @staticmethod
    def of(objective: Objective, box_number: int) -> Properties:
        """The disjuncts of one input box that are open in an objective."""
        members = objective.members()[0 if objective.num_boxes == 1 else box_number]
        members = members[objective.exists[box_number]]
        there = members < objective.bound.shape[1]
        members = members.masked_fill(~there, 0)
        goal = objective.bound[box_number, members]
        number = objective.exists[box_number].nonzero().flatten()
        return Properties(objective.coefficients[box_number, members], goal, there, number)

    @property
    def all_rows(self) -> Tensor:
        """The rows of all disjuncts as one specification matrix, (1, rows, outputs)."""
        return self.rows.flatten(0, 1).unsqueeze(0)


@dataclass(slots=True)
class ReluSubdomains(Batch):
    """A batch of subdomains of one box and disjunct; neurons of all ReLU layers side by side.

    Attributes:
        lower, upper: bounds of pre-activations, (n, neurons).
        sign: split constraints, (n, neurons) in {-1, 0, 1}.
        alpha, beta: the multipliers to start from, (n, neurons).
        bound: a lower bound of the margin, (n,); the parent's, until there is one.
    """

    lower: Tensor
    upper: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    bound: Tensor

    @property
    def unstable_neurons(self) -> Tensor:
        """(n, neurons) True where the neuron is unstable."""
        return (self.lower < 0) & (self.upper > 0) & (self.sign == 0)


def split_relus(part: ReluSubdomains, scores: Tensor, room: int) -> tuple[ReluSubdomains, int]:
    """Split each subdomain on the phases of its best-scored neurons: 2 pieces, or 4, 8, ... while they fit in `room`.

    A stable neuron, which only S-shaped functions have scores for, is split in the middle of its bounds.

    Returns the pieces, the worst bounds last, and how many subdomains had no unstable neuron left.
    """
    splittable = (scores > -1).any(dim=1)
    stuck = int((~splittable).sum())
    part, scores = part.pick(splittable), scores[splittable]
    if not len(part):
        return part, stuck
    times = 1
    while len(part) * 2 ** (times + 1) <= room and times < 6:
        times += 1
    for _ in range(times):
        value, neuron = scores.max(dim=1, keepdim=True)
        known = value > -1
        low, high = part.lower.gather(1, neuron), part.upper.gather(1, neuron)
        straddles = (low < 0) & (high > 0)
        point = torch.where(straddles, 0.0, low + (high - low) / 2)
        pieces = []
        for side in (1.0, -1.0):
            copy = part.copy()
            bound = copy.lower if side > 0 else copy.upper
            end = bound.gather(1, neuron)
            bound.scatter_(1, neuron, torch.where(known, point, end))
            copy.sign.scatter_(1, neuron, torch.where(known & straddles, side, copy.sign.gather(1, neuron)))
            pieces.append(copy if side > 0 else copy.pick((value > -1).squeeze(1)))
        scores = scores.scatter(1, neuron, -1.0)
        scores = torch.cat([scores, scores[(value > -1).squeeze(1)]])
        part = ReluSubdomains.join(pieces)
    return part.pick(part.bound.argsort(descending=True)), stuck


def relaxation_cost(coefficients: Tensor, lower: Tensor, upper: Tensor, alpha: Tensor) -> Tensor:
    """|a| times the largest gap between a ReLU and the side of its triangle that a bound used; all (n, neurons)."""
    above = triangle_height(lower, upper)
    below = torch.maximum(-alpha * lower, (1 - alpha) * upper)
    return coefficients.abs() * torch.where(coefficients < 0, above, below)
