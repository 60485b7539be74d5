"""The lazy box with its budget divided by the loss of margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Zonotope
from zonoplug.reduction.base import REDUCTIONS, marks_of
from zonoplug.reduction.columns import divide, total_radius
from zonoplug.reduction.promote import Promote

DIVISIONS = 16


@REDUCTIONS.register("lazy")
@dataclass(frozen=True)
class Lazy(Promote):
    """Box what costs the specification least, then name the entries that gain most, both counted in margin.

    As `promote`, with the rule `margin`. How much of the budget goes to kept generators and how much to named
    entries is tried in sixteenths: keeping m generators and naming the rest costs

        sum over boxed j of score_j  -  sum over named i of  (M_i - |A_i|) * box_i

    in the words of `margin`, and the cheapest m is taken. Where the influence is not known the two halves are equal.
    """

    source: ClassVar[str] = "this project: promotion and boxing weighed against each other by loss of margin"
    needs_influence = True
    base: str = "margin"

    def division(self, mixed: Zonotope, best: Tensor, scores: Tensor, free: int, weight: Tensor) -> int:
        if not bool((weight != 1).any()):
            return super().division(mixed, best, scores, free, weight)
        protected = int((scores == torch.inf).sum())
        count = best.shape[0] - protected
        lost = scores[protected:].flip(0).cumsum(0).flip(0)  # lost[m]: what boxing all but the best m costs
        choices = sorted({min(round(free * step / DIVISIONS), count) for step in range(DIVISIONS + 1)}, reverse=True)
        radius = torch.zeros_like(mixed.center) if mixed.box is None else mixed.box
        cheapest, choice, last = float("inf"), 0, count
        for kept in choices:
            _, gone = divide(mixed, ~marks_of(best[protected + kept : protected + last], best.shape[0]))
            radius, last = radius + total_radius(mixed, gone), kept
            worth = (radius.flatten(1) * weight).nan_to_num(nan=0.0, posinf=0.0)
            gain = float(worth.topk(min(free - kept, worth.shape[1]), dim=1).values.sum())
            cost = (float(lost[kept]) if kept < count else 0.0) - gain
            if cost < cheapest:
                cheapest, choice = cost, kept
        return choice
