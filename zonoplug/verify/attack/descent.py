"""Descents in a box by signed gradients: with steps that shrink by a plan, or with momentum and steps that adapt."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

LARGEST_STEP = 0.5  # of the box's width
SMALLEST_STEP = 0.002
MOMENTUM = 0.25
FIRST_STEP = 0.25  # by plan
LAST_STEP = 0.01
SHORT = 20  # steps: too few to adapt to


class Descent:
    """Walks of many points at once, each in its own box.

        z = clip(x - s w sign(g)),   x' = clip(x + 0.75 (z - x) + 0.25 (x - x_before)),   w the widths of the box

    Every few steps a point that found nothing lower since the last check goes back to its lowest place, with half the
    step s; a step that has become too small starts again as the largest. Every second point, and in short descents
    each, goes without all that: x' = z with a step that shrinks by a plan, from a quarter of the box to a hundredth.

    Args:
        points, low, high: (n, *shape) starts and their boxes.
        steps: how many are planned: checks are the square root of it apart.

    Attributes:
        points: (n, *shape) where to evaluate next.
        lowest: (n, *shape) the lowest places so far.
        losses, gradients: (n,) and (n, *shape) there; no slopes where none was ever given.

    Source: after Auto-PGD of Croce and Hein, ICML 2020, section 3.
    """

    def __init__(self, points: Tensor, low: Tensor, high: Tensor, steps: int) -> None:
        count = points.shape[0]
        self._low, self._high = low, high
        self._steps, self._every = steps, max(isqrt(steps), 2)
        self._planned = torch.ones(count, dtype=torch.bool, device=points.device)
        if steps >= SHORT:
            self._planned[::2] = False
        self._taken = 0
        self._size = points.new_full((count,), LARGEST_STEP)
        self._before = points
        self.gradients: Tensor | None = None
        self.points = self.lowest = points
        self.losses = points.new_full((count,), torch.inf)
        self._checked = self.losses

    def record(self, losses: Tensor) -> Tensor:
        """Note the losses (n,) at `points`; returns where they are the lowest so far, (n,). NaN never is."""
        better = losses < self.losses
        self.losses = torch.where(better, losses, self.losses)
        self.lowest = torch.where(self._wide(better), self.points, self.lowest)
        return better

    def move(self, better: Tensor, gradient: Tensor) -> None:
        """Go on from `points`, by the gradient of the losses there (n, *shape); `better` as `record` returned it."""
        gradient = gradient.nan_to_num()
        kept = gradient if self.gradients is None else self.gradients
        self.gradients = torch.where(self._wide(better), gradient, kept)
        self._taken += 1
        points, before = self.points, self._before
        if self._taken % self._every == 0:
            stuck = ~(self.losses < self._checked) & ~self._planned
            self._checked = self.losses
            size = torch.where(stuck, self._size / 2, self._size)
            self._size = size.masked_fill(size < SMALLEST_STEP, LARGEST_STEP)
            back = self._wide(stuck)
            points = torch.where(back, self.lowest, points)
            before = torch.where(back, self.lowest, before)
            gradient = torch.where(back, self.gradients, gradient)
        plan = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** ((self._taken - 1) / max(self._steps - 1, 1))
        size = self._wide(torch.where(self._planned, plan, self._size))
        target = self._clip(points - size * (self._high - self._low) * gradient.sign())
        adapted = self._clip(points + (1 - MOMENTUM) * (target - points) + MOMENTUM * (points - before))
        self.points = torch.where(self._wide(self._planned), target, adapted)
        self._before = points

    def _clip(self, points: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(points, self._low), self._high)

    def _wide(self, each: Tensor) -> Tensor:
        return each.reshape(-1, *[1] * (self.points.dim() - 1))


def changed_in_part(
    points: Tensor, low: Tensor, high: Tensor, gradients: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Points (n, *shape) of which a random part has moved to a corner of the box: from one input to all of them.

    The share of inputs is drawn for each point, small ones as often as large ones (uniform in its logarithm); the
    corner is the one against the gradients, and for every second point, or without gradients, a random one.
    """
    count, inputs = points.shape[0], points[0].numel()
    share = float(inputs) ** -torch.rand(count, generator=generator, dtype=points.dtype)
    chosen = torch.rand(count, inputs, generator=generator, dtype=points.dtype) < share[:, None]
    side = torch.rand(points.shape, generator=generator, dtype=points.dtype).to(points.device) < 0.5
    if gradients is not None:
        side[::2] = gradients[::2] > 0
    corner = torch.where(side, low, high)
    return torch.where(chosen.reshape(points.shape).to(points.device), corner, points)
