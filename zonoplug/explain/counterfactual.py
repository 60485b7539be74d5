"""Counterfactual sets: few features whose change flips the decision, found by attack.

A sufficient set holds the decision whatever the others do, so it shares a feature with every counterfactual set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box
from zonoplug.explain.decision import Decision
from zonoplug.explain.region import Region


@dataclass(frozen=True, slots=True, eq=False)
class AttackResult:
    """Where an attack on several boxes ended.

    Attributes:
        points: (m, *shape) the point with the least margin found in each box.
        violated: (m,) whether some margin there is at most 0, as the network computes it.
    """

    points: Tensor
    violated: Tensor


def attack_boxes(
    network: nn.Module, boxes: Box, decision: Decision, steps: int = 20, restarts: int = 2, seed: int = 0
) -> AttackResult:
    """Signed projected gradient descent on the least margin, in all boxes at once.

    Args:
        network: (m, *shape) to (m, *outputs).
        boxes: (m, *shape).
        decision: one element for all boxes.
        steps: gradient steps; the step shrinks from a quarter of the box to a hundredth.
        restarts: the first starts in the middle, the others at random points.
    """
    random = torch.Generator().manual_seed(seed)
    best = torch.full((boxes.lower.shape[0],), torch.inf, dtype=boxes.lower.dtype, device=boxes.lower.device)
    width = boxes.upper - boxes.lower
    kept = boxes.lower + width / 2

    def keep(points: Tensor, least: Tensor) -> None:
        nonlocal best, kept
        better = least < best
        best = torch.where(better, least, best)
        kept = torch.where(better.reshape(-1, *[1] * (points.dim() - 1)), points, kept)

    for restart in range(restarts):
        noise = torch.rand(width.shape, generator=random, dtype=width.dtype).to(width.device)
        points = boxes.lower + (0.5 if restart == 0 else noise) * width
        for step in range(steps + 1):
            points = torch.minimum(torch.maximum(points, boxes.lower), boxes.upper).detach().requires_grad_(True)
            with torch.enable_grad():
                least = decision.margins(network(points).flatten(1)).amin(dim=1)
                (gradient,) = torch.autograd.grad(least.sum(), points)
            keep(points.detach(), least.detach())
            size = 0.25 * 0.04 ** (step / max(steps, 1))
            points = points.detach() - size * width * gradient.sign().nan_to_num()
        if bool((best <= 0).all()):
            break
    return AttackResult(kept, best <= 0)


def counterfactual_set(
    network: nn.Module, region: Region, decision: Decision, found: Tensor, importance: Tensor
) -> tuple[Tensor, Tensor]:
    """Few features of a counterexample that flip the decision alone, the others put back to where they were.

    Features are put back least important first, in runs that halve where the decision would return. Costs evaluations
    of the network only. The result is minimal: putting back any single feature of it restores the decision.

    Args:
        found: (1, *shape) a point in the region's box where some margin is at most 0.
        importance: (features,).
    Returns:
        the features (features,) bool, and the point (1, *shape) that changes only these.
    """
    changed = region.per_feature((found != region.point).to(found.dtype))[0] > 0
    order = [int(f) for f in importance.argsort(stable=True) if bool(changed[f])]

    def flips(features: Tensor) -> bool:
        with torch.no_grad():
            point = torch.where(region.mask(features), found, region.point)
            return bool((decision.margins(network(point).flatten(1)) <= 0).any())

    settled = False
    while not settled:  # a feature that was needed before others were put back may not be any more
        settled, place, step = True, 0, max(len(order) // 2, 1)
        while place < len(order):
            run = order[place : place + step]
            without = changed.clone()
            without[run] = False
            if flips(without):
                changed, settled = without, False
                place, step = place + len(run), 2 * step
            elif len(run) == 1:
                place += 1
            else:
                step = len(run) // 2
        order = [feature for feature in order if bool(changed[feature])]
    return changed, torch.where(region.mask(changed), found, region.point)
