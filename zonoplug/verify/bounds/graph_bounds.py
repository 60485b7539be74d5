"""The dual of the margin over pre-activation bounds, optimised for a batch of subdomains with split constraints."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.bounds.dual_ascent import DualAscent
from zonoplug.verify.branching.activations import ActivationFacts, ActivationRule, unstable_scores
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.local_errors import LocalErrors
    from zonoplug.lirpa.backward.passes import Backward

BATCH = 64
LAST_STEPS = 200
ENOUGH = 0.1  # a margin that needs no further steps


class GraphBounds:
    """Bounds subdomains of one input box.

    Args:
        module: the host's.
        backward: its backward bounds.
        box: (1, *input_shape).
        preactivations: on the box, (1, *shape) by node name.
        rule: scores neurons for splits.

    Attributes:
        preactivations: may be replaced by narrower ones.
        layout: of the neurons.
        minimisers, batch: see `relu_tree.Bounds`.
    """

    batch = BATCH

    def __init__(
        self, module: Any, backward: Backward, box: Box, preactivations: dict[str, Interval], rule: ActivationRule
    ) -> None:
        self.module, self.box, self.preactivations = module, box, preactivations
        self.layout = NeuronLayout(backward, preactivations)
        self.minimisers = box.lower
        self._backward, self._rule = backward, rule
        self._ascent = DualAscent(backward, self.layout, ENOUGH, keeps_best=True)
        self._random = torch.Generator().manual_seed(0)
        self._errors: LocalErrors | None = None

    def bound(self, part: ReluSubdomains, properties: Properties, steps: int) -> tuple[Tensor, Tensor]:
        """Margins of the best mixture of rows, (n,), and scores for splits, (n, neurons). Updates the multipliers.

        Args:
            properties: one for each subdomain, or one for all.
        """
        preactivations = self.layout.preactivations(part.lower, part.upper, self.preactivations)
        weights = properties.goal.new_zeros(len(part), properties.goal.shape[1])
        found = self._ascent.climb(
            part, self.box.expanded(len(part)), preactivations, properties, weights, steps, self.errors
        )
        self.minimisers = found.minimiser
        coefficients = self.layout.coefficients(found.last)
        values = partial(self.layout.values, self.module, found.point)
        facts = ActivationFacts(
            part.lower, part.upper, coefficients, part.alpha, part.unstable_neurons, values, self._random
        )
        return found.bound, unstable_scores(self._rule, facts)

    def last(self, part: ReluSubdomains, properties: Properties) -> Tensor:
        """As `relu_tree.Bounds`, by many gradient steps."""
        return self.bound(part, properties, LAST_STEPS)[0]

    @property
    def errors(self) -> LocalErrors:
        """The local errors on the whole box."""
        if self._errors is None:
            self._errors = self._backward.errors(self.box, self.preactivations)
        return self._errors
