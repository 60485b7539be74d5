"""The search for a counterexample: random points, descents on the margins, and changes of the lowest points found."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.verify.attack.descent import Descent, changed_in_part
from zonoplug.verify.attack.surrogate_gradients import Followed, outputs_to_follow
from zonoplug.verify.outcome import Counterexample
from zonoplug.verify.problem.problem import Problem
from zonoplug.verify.problem.referee import Referee

KEPT_POINTS = 4096
POINTS_ENTRIES = 4_000_000  # numbers in one batch of points: a large network's activations take many times as much
KEPT_BYTES = 256 * 2**20
CONFIRMATIONS = 4
LATTICE_INPUTS = 2
LATTICE_POINTS = 64  # along each input
FEWEST_STARTS = 8
POOL = 16
GRADIENT_COST = 3  # of a value with its gradient, in values
ANY = -1


class _Look(NamedTuple):
    """What points are like: a confirmed counterexample, outputs (n, outputs), losses (n,), and slopes or None."""

    found: Counterexample | None
    outputs: Tensor
    losses: Tensor
    gradients: Tensor | None


class _Pool(NamedTuple):
    """Points (n, *shape) with their boxes (n,), what they are meant to reach (n,), losses (n,) and slopes, or None."""

    points: Tensor
    groups: Tensor
    disjuncts: Tensor
    losses: Tensor
    gradients: Tensor | None

    def lowest(self, count: int) -> _Pool:
        """The `count` points with the lowest losses."""
        best = self.losses.argsort()[:count]
        return _Pool(*(None if part is None else part[best] for part in self))  # type: ignore[arg-type]

    def joined(self, other: _Pool) -> _Pool:
        """Both together."""
        pairs = zip(self, other, strict=True)
        return _Pool(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))  # type: ignore[arg-type]


class Attack:
    """Attacks all disjuncts of a problem together, and keeps points it saw as evidence against wrong bounds.

    Args:
        problem: what to attack.
        seed: of the random numbers; the same seed gives the same points.
        without: names of COMPONENTS to leave out.

    Attributes:
        points: (n, *input_shape) a sample of the points tried, inside the input boxes.
        groups: (n,) the box of each.
        outputs: (n, outputs) the loaded model's outputs there.
        points_tried: how many points were evaluated.
        jumps: whether the model rounds, compares, counts or takes signs, as far as seen.
    """

    def __init__(self, problem: Problem, seed: int = 0, without: Collection[str] = ()) -> None:
        self._problem = problem
        self._without = without
        self.points_tried = 0
        self.jumps = False
        self._random = torch.Generator().manual_seed(seed)
        shape = problem.model.input_shape
        self._open = problem.objective.exists & problem.has_points[:, None]
        self._promise = torch.full_like(self._open, torch.inf, dtype=problem.dtype)  # lowest margins seen
        self._pool: _Pool | None = None
        self._point_seconds = 0.0
        self._turns = 0
        self._most = max(4, POINTS_ENTRIES // max(problem.specification.num_inputs, 1))
        self.points = torch.zeros(0, *shape, dtype=problem.dtype, device=problem.device)
        self.groups = torch.zeros(0, dtype=torch.int64, device=problem.device)
        self.outputs = torch.zeros(0, problem.specification.num_outputs, dtype=problem.dtype, device=problem.device)

    @functools.cached_property
    def referee(self) -> Referee:
        """Some of the points that were tried so far, as ONNX Runtime sees them; made once."""
        losses = self._problem.point_margins(self.outputs, self.groups).amin(dim=1)
        return Referee.of(self._problem, self.points, self.groups, losses)

    def random_points(self, count: int) -> Counterexample | None:
        """Try up to `count` points spread over the boxes: uniform ones and corners; fewer where inputs are large."""
        groups = torch.arange(min(count, self._most)) % self._problem.objective.num_boxes
        return self.try_points(self._starts(groups), groups)

    def try_points(self, points: Tensor, groups: Tensor) -> Counterexample | None:
        """Evaluate points (n, *input_shape) of the boxes `groups` (n,); the first confirmed counterexample, or None."""
        start = time.monotonic()
        with torch.no_grad():
            outputs, followed, self.jumps = self._outputs_to_follow(points)
        if not points.shape[0]:
            return None
        self._point_seconds = (time.monotonic() - start) / points.shape[0]
        self._remember(points, groups, outputs)
        lowest = margins = self._problem.point_margins(outputs, groups)
        if followed is not outputs:
            lowest = self._problem.point_margins(followed, groups)
        index = groups.to(lowest.device)[:, None].expand_as(lowest)
        self._promise.scatter_reduce_(0, index, lowest, "amin")
        return self._confirm(points, groups, margins.amin(dim=1))

    def descend(
        self, restarts: int, steps: int, deadline: Deadline, excluded: Tensor | None = None, max_batch: int = 512
    ) -> Counterexample | None:
        """Signed gradient descent on the largest margin of each disjunct, and of the lowest disjunct of each box.

        Args:
            restarts: random starts for each.
            steps: gradient steps for each start.
            excluded: (boxes, disjuncts) True where a disjunct is known to be out of reach.
            max_batch: starts run together; fewer where the time is short, the most promising disjuncts first.
        """
        targets = self._targets(excluded).repeat(restarts, 1)
        place = 0
        while place < targets.shape[0]:
            chunk = targets[place : place + self._affordable(steps, deadline, min(max_batch, self._most))]
            found = self._descend_from(chunk[:, 0], chunk[:, 1], steps, deadline)
            if found is not None or deadline.passed:
                return found
            place += chunk.shape[0]
        return None

    def change_parts(self, deadline: Deadline, rounds: int | None = None) -> Counterexample | None:
        """A local search that needs no slope: change parts of the lowest points that descents have found.

        A random part of a point, from one input to all, moves to the corner where the gradient is lowest, or to a
        random one; what is lower is kept. Ends with the deadline, or after some rounds, or at once if no descent has
        been made.
        """
        pool = self._pool
        if pool is None or "local-changes" in self._without:
            return None
        box = self._problem.attack_box
        low, high = box.lower[pool.groups], box.upper[pool.groups]
        while not deadline.passed and rounds != 0:
            rounds = None if rounds is None else rounds - 1
            points = changed_in_part(pool.points, low, high, pool.gradients, self._random)
            step = self._look(points, pool.groups, pool.disjuncts, pool.gradients is not None)
            if step.found is not None:
                return step.found
            better = step.losses < pool.losses
            wide = better.reshape(-1, *[1] * (points.dim() - 1))
            slopes = pool.gradients
            if slopes is not None and step.gradients is not None:
                slopes = torch.where(wide, step.gradients, slopes)
            pool = pool._replace(
                points=torch.where(wide, points, pool.points),
                losses=torch.where(better, step.losses, pool.losses),
                gradients=slopes,
            )
            self._pool = pool
        return None

    def scan(self, deadline: Deadline) -> Counterexample | None:
        """Evaluate lattices over boxes with one or two perturbed inputs, by ONNX Runtime, point by point.

        Whole numbers where an input spans some: networks that round an input have no gradient along it.
        """
        box = self._problem.attack_box
        for number in self._problem.has_points.nonzero().flatten().tolist():
            low, high = box.lower[number], box.upper[number]
            varying = (high > low).flatten().nonzero().flatten()
            if not 1 <= varying.shape[0] <= LATTICE_INPUTS:
                continue
            axes = [_lattice(float(low.flatten()[i]), float(high.flatten()[i])).to(low) for i in varying]
            places = torch.cartesian_prod(*axes).reshape(-1, len(axes))
            places = places[torch.randperm(places.shape[0], generator=self._random)]
            for place in places:
                if deadline.passed:
                    return None
                point = low.clone().flatten()
                point[varying] = place
                found = self._problem.confirm(point.reshape(low.shape), number)
                self.points_tried += 1
                if found is not None:
                    return found
        return None

    def _targets(self, excluded: Tensor | None) -> Tensor:
        """Boxes and disjuncts to go for, (n, 2): by the lowest margins seen, or in turn in a random order.

        Where a box has several disjuncts, each comes with ANY of them.
        """
        open_ = self._problem.objective.exists & self._problem.has_points[:, None]
        open_ = open_ if excluded is None else open_ & ~excluded
        self._open = open_
        targets = open_.nonzero()
        targets = targets[torch.randperm(targets.shape[0], generator=self._random)]
        self._turns += 1
        if self._turns % 2:
            targets = targets[self._promise[targets[:, 0], targets[:, 1]].argsort(stable=True)]
        if open_.shape[1] > 2 and targets.shape[0]:
            any_ = torch.stack([targets[:, 0], torch.full_like(targets[:, 0], ANY)], dim=1)
            targets = torch.stack([any_, targets], dim=1).flatten(0, 1)
        return targets

    def _affordable(self, steps: int, deadline: Deadline, most: int) -> int:
        """How many starts can make all their steps in time."""
        each = GRADIENT_COST * self._point_seconds * steps
        return most if each <= 0 else max(FEWEST_STARTS, min(most, int(deadline.left_seconds / each)))

    def _descend_from(self, groups: Tensor, disjuncts: Tensor, steps: int, deadline: Deadline) -> Counterexample | None:
        box = self._problem.attack_box
        descent = Descent(self._starts(groups), box.lower[groups], box.upper[groups], steps)
        for step in range(steps):
            last = step == steps - 1
            now = self._look(descent.points, groups, disjuncts, gradients=True)
            if now.found is not None:
                return now.found
            better = descent.record(now.losses)
            if last:
                self._remember(descent.points, groups, now.outputs)
            elif now.gradients is None:  # the network rounds its inputs: there is no slope to go down
                break
            else:
                descent.move(better, now.gradients)
            if deadline.passed:
                break
        self._keep(_Pool(descent.lowest, groups, disjuncts, descent.losses, descent.gradients))
        return None

    def _look(self, points: Tensor, groups: Tensor, disjuncts: Tensor, gradients: bool) -> _Look:
        """Evaluate points, each with its disjunct or ANY."""
        points = points.detach().requires_grad_(gradients)
        with torch.set_grad_enabled(gradients):
            outputs, followed, self.jumps = self._outputs_to_follow(points)
            margins = self._problem.point_margins(outputs.detach(), groups)
            found = self._confirm(points.detach(), groups, margins.amin(dim=1))
            margins = self._problem.point_margins(followed, groups)
            shut = ~(self._open if self._open.shape[0] == 1 else self._open[groups])
            lowest = margins.masked_fill(shut, torch.inf).amin(dim=1)
            one = margins.gather(1, disjuncts.clamp_min(0)[:, None]).squeeze(1)
            losses = torch.where(disjuncts == ANY, lowest, one)
        slopes = None
        if found is None and losses.requires_grad:
            (slopes,) = torch.autograd.grad(losses.sum(), points)
        return _Look(found, outputs.detach(), losses.detach(), slopes)

    def _outputs_to_follow(self, points: Tensor) -> Followed:
        found = outputs_to_follow(self._problem, points)
        if "surrogate-gradients" in self._without:
            outputs = self._problem.outputs(points)
            return Followed(outputs, outputs, found.jumps)
        return found

    def _keep(self, new: _Pool) -> None:
        """Take the lowest of some points into the pool of points to change."""
        new = new.lowest(POOL)
        self._pool = new if self._pool is None else self._pool.joined(new).lowest(POOL)

    def _starts(self, groups: Tensor) -> Tensor:
        box = self._problem.attack_box
        low, high = box.lower[groups], box.upper[groups]
        noise = torch.rand(low.shape, generator=self._random, dtype=low.dtype).to(low.device)
        corners = torch.rand(noise.shape[0], generator=self._random) < 0.5
        noise[corners] = noise[corners].round()
        if noise.shape[0]:
            noise[0] = 0.5
        return torch.minimum(torch.maximum(low + noise * (high - low), low), high)

    def _confirm(self, points: Tensor, groups: Tensor, margins: Tensor) -> Counterexample | None:
        self.points_tried += points.shape[0]
        candidates = torch.nonzero(margins <= 0).flatten()
        for place in candidates[margins[candidates].argsort()][:CONFIRMATIONS].tolist():
            found = self._problem.confirm(points[place], int(groups[place]))
            if found is not None:
                return found
        return None

    def _remember(self, points: Tensor, groups: Tensor, outputs: Tensor) -> None:
        bytes_each = points[0].numel() * points.element_size() if points.shape[0] else 1
        room = min(KEPT_POINTS, max(KEPT_BYTES // bytes_each, 16)) - self.points.shape[0]
        if room > 0:
            self.points = torch.cat([self.points, points[:room]])
            self.groups = torch.cat([self.groups, groups[:room].to(self.groups.device)])
            self.outputs = torch.cat([self.outputs, outputs[:room]])


def _lattice(low: float, high: float) -> Tensor:
    """Places between two ends: the whole numbers if there are some and not too many, else evenly spaced ones."""
    first, last = math.ceil(low), math.floor(high)
    if 1 <= last - first < LATTICE_POINTS:
        return torch.arange(first, last + 1, dtype=torch.float64)
    return torch.linspace(low, high, LATTICE_POINTS, dtype=torch.float64)
