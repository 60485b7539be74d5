"""Gradient ascent on bounds of the margin, for a batch of subdomains with split constraints.

    max over weights w >= 0 of sum 1, alpha, beta  of  the lower bound of  w . (rows y - goal)

Each choice gives a sound bound. If some point of a subdomain met every row, no mixture of them could be above 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.rounding import gamma
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.local_errors import LocalErrors
    from zonoplug.lirpa.backward.passes import Backward, LinearBounds

ALPHA_RATE, BETA_RATE, WEIGHT_RATE = 0.15, 0.05, 0.3
DECAY = 0.96
MEAN_SHARE = 0.2  # of each step in the mean of the points where the bound is least


@dataclass(frozen=True, slots=True, eq=False)
class Ascended:
    """What an ascent found.

    Attributes:
        bound: (n,) the best of the steps' lower bounds of the margin, each less what rounding may do; -inf for NaN.
        weights: (n, rows) of the rows, before a softmax.
        box: (n, *input_shape) of the subdomains.
        last: the linear bounds of the last step.
        margin, error: (n,) the last step's lower bound of the margin, and what rounding may do to it.
        at_lower: (n, *input_shape) the mean share of steps that used an input's lower end, the later ones most.
    """

    bound: Tensor
    weights: Tensor
    box: Box
    last: LinearBounds
    margin: Tensor
    error: Tensor
    at_lower: Tensor

    @property
    def slopes(self) -> Tensor:
        """Of the last step's bound in the inputs, (n, *input_shape)."""
        return self.last.inputs[:, 0].detach()

    @property
    def minimiser(self) -> Tensor:
        """Where the last step's bound is least, (n, *input_shape)."""
        return torch.where(self.slopes > 0, self.box.lower, self.box.upper)

    @property
    def point(self) -> Tensor:
        """The mean of such places over the steps, which comes close to the minimiser of the relaxation."""
        return self.box.upper - self.at_lower * (self.box.upper - self.box.lower)


class DualAscent:
    """Optimises multipliers.

    Args:
        backward: bounds.
        layout: of the neurons.
        enough: a margin above this gains nothing more: the steps are for the others.
        keeps_best: whether each subdomain ends with the multipliers of its best step, or with those of the last one.
    """

    def __init__(self, backward: Backward, layout: NeuronLayout, enough: float = inf, keeps_best: bool = False) -> None:
        self._backward, self._layout = backward, layout
        self._enough, self._keeps_best = enough, keeps_best

    def climb(
        self,
        part: ReluSubdomains,
        box: Box,
        preactivations: Mapping[str, Interval],
        properties: Properties,
        weights: Tensor,
        steps: int,
        errors: LocalErrors,
    ) -> Ascended:
        """Go up from the multipliers in `part`, which are replaced. Ends early where all margins are above 0.

        Args:
            box, preactivations: (n, *input_shape), and (n, *shape) by node name: of the subdomains.
            properties: one for each subdomain, or one for all.
            weights: to start from, (n, rows).
            errors: the local errors on the boxes, or on one around them all.
        """
        from zonoplug.lirpa.ascent import Adam

        triangles = self._backward.triangles(preactivations)
        kept = [part.alpha, part.beta, weights]
        free = alpha, beta, weights = [value.clone().requires_grad_(True) for value in kept]
        climber = Adam(free, [ALPHA_RATE, BETA_RATE, WEIGHT_RATE], DECAY)
        best = part.bound.new_full((len(part),), -inf)
        at_lower = torch.zeros_like(box.lower)
        for step in range(steps + 1):
            with torch.enable_grad():
                mixture = mixture_of(weights, properties)
                rows = mixture @ properties.rows
                multipliers = self._layout.multipliers(alpha, beta, part.sign)
                passed = self._backward.bound(box, preactivations, rows, multipliers, triangles, errors)
                margin = passed.lower[:, 0] - (mixture @ properties.goal.unsqueeze(2))[:, 0, 0]
                gain = margin.clamp(max=self._enough).sum()
            with torch.no_grad():
                allowed = passed.error[:, 0] + self._mixture_error(mixture, properties, errors)  # each step has its own
                safe = margin - allowed
                if self._keeps_best:
                    better = (safe > best).unsqueeze(1)
                    kept = [torch.where(better, now, before) for now, before in zip(free, kept, strict=True)]
                best = torch.fmax(best, safe)
                low = (passed.inputs[:, 0] > 0).to(margin.dtype)
                at_lower = at_lower + (MEAN_SHARE if step else 1.0) * (low - at_lower)
            if step == steps or bool((best > 0).all()):
                break
            climber.climb(gain)
            with torch.no_grad():
                alpha.clamp_(0, 1)
                beta.clamp_(min=0)
        part.alpha, part.beta, weights = kept if self._keeps_best else [value.detach() for value in free]
        return Ascended(best, weights, box, passed, margin.detach(), allowed, at_lower)

    def _mixture_error(self, mixture: Tensor, properties: Properties, errors: LocalErrors) -> Tensor:
        """What the rounding of mixtures of rows and goals may do to a margin, (n,)."""
        size = self._backward.output_size(errors)
        count = mixture.shape[2] + 4
        moved = (mixture @ (properties.rows.abs() @ size.unsqueeze(2) + properties.goal.abs().unsqueeze(2)))[:, 0, 0]
        return moved * (1.01 * gamma(count, moved.dtype)) + count * torch.finfo(moved.dtype).tiny


def mixture_of(weights: Tensor, properties: Properties) -> Tensor:
    """The shares of rows, (n, 1, rows), that are at least 0 and of sum 1, from weights (n, rows)."""
    return weights.masked_fill(~properties.there, -inf).softmax(dim=1).unsqueeze(1)
