"""Shares of linear bounds that suit what is to be proved on a box."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.ascent import Adam
from zonoplug.lirpa.backward.passes import Backward
from zonoplug.lirpa.backward.refinement import first_slopes
from zonoplug.lirpa.backward.triangle import Multipliers

STEPS = 16
RATE = 0.1


def tune_parameters(
    passes: Backward,
    box: Box,
    preactivations: Mapping[str, Interval],
    rows: Tensor,
    goal: Tensor,
    deadline: Deadline,
    steps: int = STEPS,
) -> None:
    """Choose `passes.parameters` by gradient, so that lower bounds of C y which miss their goal come nearer to it.

    Slopes of ReLUs move along and are not kept. All rows have the same shares.

    Args:
        box: one input box, (1, *input_shape).
        preactivations: as for `Backward.bound`.
        rows, goal: C (1, rows, outputs) and the lower bounds that are enough (1, rows).
        deadline: once it has passed, the shares stay where they are.
    """
    relaxations = passes.relaxations(preactivations)
    if not relaxations:
        return
    parameters = {
        name: passes.parameters.get(name, one.parameters()).clone().requires_grad_(True)
        for name, one in relaxations.items()
    }
    slopes = {
        name: value.clone().requires_grad_(True) for name, value in first_slopes(passes, preactivations, 1).items()
    }
    chosen = slopes | parameters
    climber, triangles = Adam(list(chosen.values()), [RATE] * len(chosen), decay=0.95), passes.triangles(preactivations)
    best = -torch.inf
    for _ in range(steps + 1):
        with torch.enable_grad():
            missing = (
                (passes.bound(box, preactivations, rows, Multipliers(chosen), triangles).lower - goal)
                .clamp(max=0)
                .sum()
            )
        total = float(missing.detach())
        if total > best:
            best = total
            passes.parameters = {name: value.detach().clone() for name, value in parameters.items()}
        if deadline.passed or not missing.requires_grad or not total < 0:
            return
        climber.climb(missing)
        with torch.no_grad():
            for value in chosen.values():
                value.clamp_(0, 1)
