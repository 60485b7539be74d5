"""The search for a counterexample: random points, then projected gradient descent on the margins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.verify.outcome import Counterexample
from zonoplug.verify.problem import Problem

KEPT_POINTS = 4096
POINTS_ENTRIES = 4_000_000  # numbers in one batch of points: a large network's activations take many times as much
KEPT_BYTES = 256 * 2**20
CONFIRMATIONS = 4
LATTICE_INPUTS = 2
LATTICE_POINTS = 64  # along each input


class Attack:
    """Attacks all disjuncts of a problem together, and keeps points it saw as evidence against wrong bounds.

    Args:
        problem: what to attack.
        seed: of the random numbers; the same seed gives the same points.

    Attributes:
        points: (n, *input_shape) a sample of the points tried, inside the input boxes.
        groups: (n,) the box of each.
        outputs: (n, outputs) the loaded model's outputs there.
        points_tried: how many points were evaluated.
    """

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self._problem = problem
        self.points_tried = 0
        self._random = torch.Generator().manual_seed(seed)
        shape = problem.model.input_shape
        self._most = max(4, POINTS_ENTRIES // max(problem.specification.num_inputs, 1))
        self.points = torch.zeros(0, *shape, dtype=problem.dtype, device=problem.device)
        self.groups = torch.zeros(0, dtype=torch.int64, device=problem.device)
        self.outputs = torch.zeros(0, problem.specification.num_outputs, dtype=problem.dtype, device=problem.device)

    def random_points(self, count: int) -> Counterexample | None:
        """Try up to `count` points spread over the boxes: uniform ones and corners; fewer where inputs are large."""
        groups = torch.arange(min(count, self._most)) % self._problem.objective.num_boxes
        return self.try_points(self._starts(groups), groups)

    def try_points(self, points: Tensor, groups: Tensor) -> Counterexample | None:
        """Evaluate points (n, *input_shape) of the boxes `groups` (n,); the first confirmed counterexample, or None."""
        with torch.no_grad():
            outputs = self._problem.outputs(points)
        self._remember(points, groups, outputs)
        margins = self._problem.point_margins(outputs, groups).amin(dim=1)
        return self._confirm(points, groups, margins)

    def descend(
        self, restarts: int, steps: int, deadline: Deadline, excluded: Tensor | None = None, max_batch: int = 512
    ) -> Counterexample | None:
        """Signed projected gradient descent on the largest margin of each disjunct.

        Args:
            restarts: random starts for each disjunct.
            steps: gradient steps for each start; the step shrinks from a quarter of the box to a hundredth.
            excluded: (boxes, disjuncts) True where a disjunct is known to be out of reach.
            max_batch: starts run together.
        """
        open_disjuncts = self._problem.objective.exists.clone()
        if excluded is not None:
            open_disjuncts &= ~excluded
        targets = open_disjuncts.nonzero()
        if not targets.shape[0]:
            return None
        targets = targets[torch.randperm(targets.shape[0], generator=self._random)].repeat(restarts, 1)
        for chunk in targets.split(min(max_batch, self._most)):
            found = self._descend_from(chunk[:, 0], chunk[:, 1], steps, deadline)
            if found is not None or deadline.passed:
                return found
        return None

    def scan(self, deadline: Deadline) -> Counterexample | None:
        """Evaluate lattices over boxes with one or two perturbed inputs, by ONNX Runtime, point by point.

        Whole numbers where an input spans some: networks that round an input have no gradient along it.
        """
        box = self._problem.attack_box
        for number in range(self._problem.objective.num_boxes):
            low, high = box.lower[number], box.upper[number]
            moving = (high > low).flatten().nonzero().flatten()
            if not 1 <= moving.shape[0] <= LATTICE_INPUTS:
                continue
            axes = [_lattice(float(low.flatten()[i]), float(high.flatten()[i])).to(low) for i in moving]
            places = torch.cartesian_prod(*axes).reshape(-1, len(axes))
            places = places[torch.randperm(places.shape[0], generator=self._random)]
            for place in places:
                if deadline.passed:
                    return None
                point = low.clone().flatten()
                point[moving] = place
                found = self._problem.confirm(point.reshape(low.shape), number)
                self.points_tried += 1
                if found is not None:
                    return found
        return None

    def _descend_from(self, groups: Tensor, disjuncts: Tensor, steps: int, deadline: Deadline) -> Counterexample | None:
        box = self._problem.attack_box
        low, high = box.lower[groups], box.upper[groups]
        points = self._starts(groups)
        for step in range(steps):
            points = points.detach().requires_grad_(True)
            outputs = self._problem.outputs(points)
            margins = self._problem.point_margins(outputs, groups)
            found = self._confirm(points.detach(), groups, margins.detach().amin(dim=1))
            if found is not None or deadline.passed:
                return found
            if step == steps - 1:
                self._remember(points.detach(), groups, outputs.detach())
                break
            aimed = margins.gather(1, disjuncts[:, None])
            if not aimed.requires_grad:  # the network rounds its inputs: there is no slope to go down
                return None
            (gradient,) = torch.autograd.grad(aimed.sum(), points)
            size = 0.25 * 0.04 ** (step / max(steps - 1, 1))
            moved = points.detach() - size * (high - low) * gradient.sign().nan_to_num()
            points = torch.minimum(torch.maximum(moved, low), high)
        return None

    def _starts(self, groups: Tensor) -> Tensor:
        box = self._problem.attack_box
        low, high = box.lower[groups], box.upper[groups]
        noise = torch.rand(low.shape, generator=self._random, dtype=low.dtype).to(low.device)
        noise[::2] = noise[::2].round()
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
