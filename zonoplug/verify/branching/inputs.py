"""Which input to bisect: rules that score inputs, and the choice among rules by measured progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.registry import Registry
from zonoplug.verify.problem.row_bounds import RowBounds

GRADIENT_POINTS = 4
WIDTH_SHARE = 0.3  # keeps an input alive whose effect a relaxation or a sample does not see
TRIED_TOGETHER = ("gradient", "influence")
TRIAL_PIECES = 256


@dataclass(frozen=True, slots=True, eq=False)
class InputFacts:
    """What a rule may look at: a batch of open subdomains that was bounded.

    Attributes:
        box: (n, *input_shape).
        bounds: of the rows, on those.
        weights: (n, rows) which rows' margins matter.
        gradients: points (n, *input_shape), one in each subdomain -> gradients there of the weighted sum of rows.
        random: the search's random numbers.
    """

    box: Box
    bounds: RowBounds
    weights: Tensor
    gradients: Callable[[Tensor], Tensor]
    random: torch.Generator

    @property
    def width(self) -> Tensor:
        """(n, inputs)."""
        return (self.box.upper - self.box.lower).flatten(1)


InputRule = Callable[[InputFacts], Tensor]
"""Scores of inputs, (n, inputs) >= 0; only their ratios within a subdomain count."""

INPUT_RULES: Registry[InputRule] = Registry("input branching rule", "zonoplug.input_branching_rules")


@INPUT_RULES.register("widest")
def widest(facts: InputFacts) -> Tensor:
    """The width."""
    return facts.width


@INPUT_RULES.register("random")
def random(facts: InputFacts) -> Tensor:
    """A random input of those that can be bisected."""
    width = facts.width
    return torch.rand(width.shape, generator=facts.random).to(width) * (width > 0)


@INPUT_RULES.register("influence")
def influence(facts: InputFacts) -> Tensor:
    """How far an input's symbol moves the linear bound of the rows. Source: Durand et al., ReCIPH, WFVML 2022."""
    moved = facts.bounds.influence(facts.weights)
    return _with_width(facts.width if moved is None else moved, facts)


@INPUT_RULES.register("gradient")
def gradient(facts: InputFacts) -> Tensor:
    """Mean |gradient| of the rows at random points, times the width.

    Unlike the slopes of one linear bound it sees every piece of the function that the points meet.
    Source: the smear of interval Newton methods, with samples for the interval; Wang et al., USENIX Security 2018.
    """
    box, total = facts.box, torch.zeros_like(facts.width)
    for _ in range(GRADIENT_POINTS):
        noise = torch.rand(box.lower.shape, generator=facts.random).to(box.lower)
        total += facts.gradients(box.lower + noise * (box.upper - box.lower)).flatten(1).abs()
    return _with_width(total.nan_to_num() * facts.width, facts)


def _with_width(scores: Tensor, facts: InputFacts) -> Tensor:
    tiny = torch.finfo(scores.dtype).tiny
    width = facts.width / facts.width.sum(dim=1, keepdim=True).clamp(min=tiny)
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=tiny) + WIDTH_SHARE * width


class RuleChoice:
    """Chooses a rule for each batch of splits, by the progress that its splits made so far.

        progress of a piece  =  (its margin - its parent's) / |its parent's|

    Args:
        name: a rule, or "auto" to try several on the first splits and stay with the best.
    """

    def __init__(self, name: str = "auto") -> None:
        self.names = TRIED_TOGETHER if name == "auto" else (name,)
        self._rules = [INPUT_RULES.get(name) for name in self.names]
        self._progress = [0.0] * len(self._rules)
        self._pieces = [0] * len(self._rules)

    def next_rule(self) -> tuple[int, InputRule]:
        """The rule for the next splits, and its number."""
        trial = [number for number, pieces in enumerate(self._pieces) if pieces < TRIAL_PIECES]
        if trial:
            number = min(trial, key=lambda number: self._pieces[number])
        else:
            mean = [total / count for total, count in zip(self._progress, self._pieces, strict=True)]
            number = max(range(len(mean)), key=lambda number: mean[number])
        return number, self._rules[number]

    def learn(self, rule: Tensor, before: Tensor, after: Tensor) -> None:
        """Note margins of pieces after bounding, and of their parents before; `rule` (n,) the rule of each, or -1."""
        gain = ((after - before) / before.abs().clamp(min=torch.finfo(before.dtype).tiny)).clamp(-1, 1).nan_to_num()
        for number in range(len(self._rules)):
            mine = rule == number
            self._pieces[number] += int(mine.sum())
            self._progress[number] += float(gain[mine].sum())
