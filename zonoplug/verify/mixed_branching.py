"""Which sign or input to split: rules that score both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.registry import Registry
from zonoplug.verify.mixed_bounds import Margins
from zonoplug.verify.mixed_subdomains import MixedSubdomains
from zonoplug.verify.sign_subdomains import split_scores


@dataclass(frozen=True, slots=True, eq=False)
class MixedFacts:
    """A batch of open subdomains that was bounded, and what was found."""

    part: MixedSubdomains
    found: Margins
    values: Tensor


MixedRule = Callable[[MixedFacts], Tensor]
"""Scores (n, neurons + inputs); -1 where nothing can be split."""

MIXED_RULES: Registry[MixedRule] = Registry("mixed branching rule", "zonoplug.mixed_branching_rules")


@MIXED_RULES.register("gap")
def gap(facts: MixedFacts) -> Tensor:
    """What each neuron's relaxation costs the bound; inputs by the width that the neurons' gaps owe to them."""
    part, found = facts.part, facts.found
    signs = split_scores(found.coefficients, part.lower, part.upper, part.alpha, part.sign)
    return torch.cat([signs, torch.full_like(part.box_lower, -1.0)], dim=1)


@MIXED_RULES.register("primal")
def primal(facts: MixedFacts) -> Tensor:
    """How far each neuron's relaxation lies from the neuron at the point where the relaxation is least."""
    part, found = facts.part, facts.found
    lower, upper, value = part.lower, part.upper, facts.values.clamp(part.lower, part.upper)
    width = (upper - lower).clamp(min=torch.finfo(lower.dtype).tiny)
    exact = value.clamp(min=0)
    above = upper * (value - lower) / width - exact
    below = exact - part.alpha * value
    cost = found.coefficients.abs() * torch.where(found.coefficients < 0, above, BELOW*below)
    cost = cost + FAR * split_scores(found.coefficients, lower, upper, part.alpha, part.sign).clamp(min=0)*(found.coefficients<0)
    signs = cost.masked_fill(~part.open_neurons, -1.0)
    return torch.cat([signs, torch.full_like(part.box_lower, -1.0)], dim=1)
BELOW=0.0
FAR=0.02
