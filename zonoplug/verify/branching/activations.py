"""Which neuron to split: rules that score the unstable neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.registry import Registry
from zonoplug.relaxations import triangle_height
from zonoplug.verify.subdomains.relu_phases import relaxation_cost

LOWER_SHARE = 0.01  # of what a lower side can cost, beside chords
FAR_SHARE, FAR_LOWER_SHARE = 0.02, 1e-4  # of what sides cost anywhere, beside what chords cost at one point


@dataclass(frozen=True, slots=True, eq=False)
class ActivationFacts:
    """What a rule may look at: a batch of subdomains that was bounded; neurons of all ReLU layers side by side.

    Attributes:
        lower, upper: bounds of pre-activations, (n, neurons).
        coefficients: of the margin's linear bound behind each ReLU, (n, neurons).
        alpha: slopes of the ReLUs' lower sides, (n, neurons).
        unstable: where the neuron is unstable, (n, neurons).
        values: of the neurons, (n, neurons), at the points where the bounds are about least.
        random: the search's random numbers.
    """

    lower: Tensor
    upper: Tensor
    coefficients: Tensor
    alpha: Tensor
    unstable: Tensor
    values: Callable[[], Tensor]
    random: torch.Generator

    @property
    def height(self) -> Tensor:
        """Of each ReLU's triangle, (n, neurons)."""
        return triangle_height(self.lower, self.upper)


def cost_at(values: Tensor, coefficients: Tensor, lower: Tensor, upper: Tensor, alpha: Tensor) -> Tensor:
    """What a relaxation costs a bound where the neuron has some value, and a little of `relaxation_cost`.

        -a (chord(z) - relu(z))  where the bound used the chord

    Args:
        values: z; all (n, neurons).
    """
    values = values.clamp(lower, upper)
    width = (upper - lower).clamp(min=torch.finfo(values.dtype).tiny)
    above = upper * (values - lower) / width - values.clamp(min=0)
    far = relaxation_cost(coefficients, lower, upper, alpha)
    return torch.where(coefficients < 0, -coefficients * above + FAR_SHARE * far, FAR_LOWER_SHARE * far)


ActivationRule = Callable[[ActivationFacts], Tensor]
"""Scores of neurons, (n, neurons) >= 0; only their ratios within a subdomain count, and only of unstable neurons."""

ACTIVATION_RULES: Registry[ActivationRule] = Registry(
    "activation branching rule", "zonoplug.activation_branching_rules"
)


@ACTIVATION_RULES.register("gap")
def gap(facts: ActivationFacts) -> Tensor:
    """What the relaxation costs the bound: |a| times the largest gap between the ReLU and the side that was used.

    Source: after Bunel et al., JMLR 2020 (BaBSR); De Palma et al., arXiv 2104.06718 (FSB).
    """
    return relaxation_cost(facts.coefficients, facts.lower, facts.upper, facts.alpha)


@ACTIVATION_RULES.register("chord")
def chord(facts: ActivationFacts) -> Tensor:
    """What chords cost the bound: -a times the triangle's height where the bound used the chord.

    And a little of `gap` elsewhere: once their slopes are optimised, lower sides cost little.
    """
    cost = facts.coefficients.abs() * facts.height
    return torch.where(facts.coefficients < 0, cost, LOWER_SHARE * gap(facts))


@ACTIVATION_RULES.register("primal")
def primal(facts: ActivationFacts) -> Tensor:
    """What each neuron's relaxation costs at the point where the bound is about least.

        |a| (chord(z) - relu(z))  where the bound used the chord,  z the neuron at that point

    and a little of `gap`, for neurons whose relaxation happens to be exact there.
    """
    return cost_at(facts.values(), facts.coefficients, facts.lower, facts.upper, facts.alpha)


@ACTIVATION_RULES.register("widest")
def widest(facts: ActivationFacts) -> Tensor:
    """The width of the pre-activation."""
    return facts.upper - facts.lower


@ACTIVATION_RULES.register("radius")
def radius(facts: ActivationFacts) -> Tensor:
    """The zonotope's radius of the pre-activation times its downstream coefficient."""
    return facts.coefficients.abs() * (facts.upper - facts.lower) / 2


@ACTIVATION_RULES.register("influence")
def influence(facts: ActivationFacts) -> Tensor:
    """How far the noise symbol that is introduced at the ReLU moves the margin: |a| h / 2, h the triangle's height.

    Source: Durand et al., ReCIPH, WFVML 2022.
    """
    return facts.coefficients.abs() * facts.height / 2


@ACTIVATION_RULES.register("random")
def random(facts: ActivationFacts) -> Tensor:
    """A random neuron."""
    return torch.rand(facts.lower.shape, generator=facts.random).to(facts.lower)


def activation_rule(name: str, own: str = "chord") -> ActivationRule:
    """The rule of that name; "auto" is a search's own choice.

    Raises:
        UnknownNameError: no rule is called so; it lists those that are known.
    """
    return ACTIVATION_RULES.get(own if name == "auto" else name)


def unstable_scores(rule: ActivationRule, facts: ActivationFacts) -> Tensor:
    """A rule's scores, (n, neurons), at least 0 where the neuron is unstable and -1 where it is known.

    NaN counts as 0.
    """
    return rule(facts).nan_to_num(nan=0.0).clamp(min=0).masked_fill(~facts.unstable, -1.0)
