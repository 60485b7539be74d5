"""Bounds of subdomains that fix signs: the dual of the margin over hulls, optimised for a batch at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.activation_branching import ActivationFacts, ActivationRule, open_scores
from zonoplug.verify.neuron_layout import NeuronLayout
from zonoplug.verify.sign_subdomains import Aims, SignSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward import Backward, LinearBounds
    from zonoplug.lirpa.clipped_hulls import UnsafeRow

ALPHA_RATE = 0.15
BETA_RATE = 0.05
MEAN_SHARE = 0.2  # of each step in the mean of the points where the bound is least


class SignBounds:
    """Bounds subdomains of one input box.

    Args:
        module: the host's.
        backward: its backward bounds.
        box: (1, *input_shape).
        hulls: on the box, (1, *shape) by node name.
        rule: scores neurons for splits.

    Attributes:
        hulls: may be replaced by narrower ones.
        layout: of the neurons.
        minimisers: (n, *input_shape) the inputs at which the latest bounds were least.
    """

    def __init__(
        self, module: Any, backward: Backward, box: Box, hulls: dict[str, Interval], rule: ActivationRule
    ) -> None:
        self.module, self.box, self.hulls = module, box, hulls
        self.layout = NeuronLayout(backward, hulls)
        self.minimisers = box.lower
        self._backward, self._rule = backward, rule
        self._random = torch.Generator().manual_seed(0)
        self._magnitudes: dict[str, Tensor] | None = None

    def bound(self, part: SignSubdomains, aims: Aims, steps: int) -> tuple[Tensor, Tensor]:
        """Margins of the best mixture of rows, (n,), and scores for splits, (n, neurons). Updates the multipliers.

            max over weights w >= 0 of sum 1, alpha, beta  of  the lower bound of  w . (rows y - goal)

        If some point of the subdomain met every row, no mixture could be above 0.

        Args:
            aims: one for each subdomain, or one for all.
        """
        from zonoplug.lirpa.ascent import Adam

        count = len(part)
        many = self.box.expanded(count)
        hulls = self.layout.hulls(part.lower, part.upper, self.hulls)
        sides = self._backward.sides(hulls)
        alpha, beta = (value.clone().requires_grad_(True) for value in (part.alpha, part.beta))
        weights = aims.goal.new_zeros(count, aims.goal.shape[1]).requires_grad_(True)
        climber = Adam([alpha, beta, weights], [ALPHA_RATE, BETA_RATE, 0.3], decay=0.96)
        best = aims.goal.new_full((count,), -torch.inf)
        at_lower = torch.zeros_like(
            many.lower
        )  # the mean share of steps that used an input's lower end, the later ones most
        kept_alpha, kept_beta, kept_weights = part.alpha, part.beta, weights.detach()
        for step in range(steps + 1):
            with torch.enable_grad():
                mixture = weights.masked_fill(~aims.there, -torch.inf).softmax(dim=1).unsqueeze(1)
                chosen = self.layout.multipliers(alpha, beta, part.sign)
                rows = mixture @ aims.rows
                passed = self._backward.bound(many, hulls, rows, chosen, sides)
                margin = passed.lower[:, 0] - (mixture @ aims.goal.unsqueeze(2))[:, 0, 0]
                gain = margin.clamp(max=0.1).sum()
            with torch.no_grad():
                safe = margin - self.allowance(passed, rows)[:, 0]  # each step has an allowance of its own
                better = (safe > best).unsqueeze(1)
                kept_alpha, kept_beta = (
                    torch.where(better, now, kept) for now, kept in ((alpha, kept_alpha), (beta, kept_beta))
                )
                kept_weights = torch.where(better, weights, kept_weights)
            best = torch.fmax(best, safe)
            low = (passed.inputs[:, 0].detach() > 0).to(margin.dtype)
            at_lower = at_lower + (MEAN_SHARE if step else 1.0) * (low - at_lower)
            if step == steps or bool((best > 0).all()):
                break
            climber.climb(gain)
            with torch.no_grad():
                alpha.clamp_(0, 1)
                beta.clamp_(min=0)
        part.alpha, part.beta, self._weights = kept_alpha, kept_beta, kept_weights
        at_input = passed.inputs[:, 0].detach()
        self.minimisers = torch.where(at_input > 0, many.lower, many.upper)
        coefficients = self.layout.coefficients(passed)
        point = many.upper - at_lower * (many.upper - many.lower)
        values = partial(self.layout.values, self.module, point)
        facts = ActivationFacts(
            part.lower, part.upper, coefficients, part.alpha, part.open_neurons, values, self._random
        )
        return best, open_scores(self._rule, facts)

    def unsafe(self, part: SignSubdomains, aim: Aims) -> UnsafeRow:
        """Where one aim may fail, after `bound` has optimised its multipliers: the constraint that clips hulls."""
        from zonoplug.lirpa.clipped_hulls import UnsafeRow

        with torch.no_grad():
            weights = self._weights.masked_fill(~aim.there, -torch.inf).softmax(dim=1).unsqueeze(1)
            row = weights @ aim.rows
            chosen = self.layout.multipliers(part.alpha, part.beta, part.sign)
            hulls = self.layout.hulls(part.lower, part.upper, self.hulls)
            passed = self._backward.bound(self.box, hulls, row, chosen)
            goal = weights @ aim.goal.unsqueeze(2)
        return UnsafeRow(self._backward, row, goal[:, :, 0] + self.allowance(passed, row), chosen)

    def allowance(self, passed: LinearBounds, rows: Tensor) -> Tensor:
        """What rounding may move the rows, (n, rows), with the magnitudes on the whole box."""
        if self._magnitudes is None:
            self._magnitudes = self._backward.magnitudes(self.box, self.hulls)
        return self._backward.allowance(
            passed, rows.expand(passed.lower.shape[0], -1, -1), self.hulls, self._magnitudes
        )
