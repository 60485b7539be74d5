"""Which neuron or input to split: rules that score both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.registry import Registry
from zonoplug.verify.branching.activations import cost_at
from zonoplug.verify.subdomains.mixed import Margins, MixedSubdomains


@dataclass(frozen=True, slots=True, eq=False)
class MixedFacts:
    """What a rule may look at: a batch of open subdomains that was bounded.

    Attributes:
        part: the subdomains.
        found: about their margins.
        values: of the neurons, (n, neurons), at the points where the bounds are about least.
    """

    part: MixedSubdomains
    found: Margins
    values: Tensor


MixedRule = Callable[[MixedFacts], Tensor]
"""Scores (n, neurons + inputs); -1 where nothing can be split."""

MIXED_RULES: Registry[MixedRule] = Registry("mixed branching rule", "zonoplug.mixed_branching_rules")


@MIXED_RULES.register("gap")
def gap(facts: MixedFacts) -> Tensor:
    """The most that a neuron's relaxation can cost: its coefficient times the largest gap. Splits ReLUs alone."""
    part = facts.part
    neurons = part.relaxation_costs(facts.found.coefficients)
    return torch.cat([neurons, torch.full_like(part.box_lower, -1.0)], dim=1)


@MIXED_RULES.register("inputs")
def inputs(facts: MixedFacts) -> Tensor:
    """How far an input moves the linear bound over its width. Splits inputs alone."""
    part = facts.part
    width = part.box_upper - part.box_lower
    moved = facts.found.slopes.abs() * width
    scores = moved / moved.sum(dim=1, keepdim=True).clamp(min=torch.finfo(width.dtype).tiny)
    scores = scores + 0.3 * width / width.sum(dim=1, keepdim=True).clamp(min=torch.finfo(width.dtype).tiny)
    middle = part.box_lower + width / 2
    divisible = (middle > part.box_lower) & (middle < part.box_upper)
    return torch.cat([torch.full_like(part.lower, -1.0), scores.masked_fill(~divisible, -1.0)], dim=1)


@MIXED_RULES.register("primal")
def primal(facts: MixedFacts) -> Tensor:
    """What each neuron's relaxation costs at the point where the bound is about least. Splits ReLUs alone.

        |a| (chord(z) - relu(z))  where the bound used the chord,  z the neuron at that point,

    and a little of `gap`, for neurons whose relaxation happens to be exact there. The lower sides cost nothing once
    their slopes are optimised, unless layers follow.
    """
    part, found = facts.part, facts.found
    cost = cost_at(facts.values, found.coefficients, part.lower, part.upper, part.alpha)
    neurons = cost.masked_fill(~part.unstable_neurons, -1.0)
    return torch.cat([neurons, torch.full_like(part.box_lower, -1.0)], dim=1)


@MIXED_RULES.register("trial")
def trial(facts: MixedFacts) -> Tensor:
    """The best neurons and the best inputs, each by its own rule; for a search that tries out several."""
    count = facts.part.lower.shape[1]
    neurons, axes = primal(facts), inputs(facts)
    neurons = neurons / neurons.amax(dim=1, keepdim=True).clamp(min=torch.finfo(neurons.dtype).tiny)
    axes = axes / axes.amax(dim=1, keepdim=True).clamp(min=torch.finfo(axes.dtype).tiny)
    return torch.cat([neurons[:, :count], axes[:, count:]], dim=1)


def mixed_rule(name: str) -> MixedRule:
    """The rule of that name; "auto" is `primal`.

    Raises:
        UnknownNameError: no rule is called so; it lists those that are known.
    """
    return MIXED_RULES.get("primal" if name == "auto" else name)
