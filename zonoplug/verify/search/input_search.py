"""Branch and bound on the input: bound a batch of subdomains, split what stays open, until nothing does."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, check_bounds
from zonoplug.verify.branching.inputs import InputFacts, RuleChoice
from zonoplug.verify.constraints.unsafe_region import shrink
from zonoplug.verify.observer import Observer
from zonoplug.verify.problem.problem import Objective, Problem
from zonoplug.verify.problem.referee import runtime_outputs
from zonoplug.verify.problem.row_bounds import RowBounds
from zonoplug.verify.search.base import STEP_BYTES, Search, SearchResult
from zonoplug.verify.subdomains.bisection import bisect
from zonoplug.verify.subdomains.boxes import Boxes, BoxQueue

STEP_SECONDS = 0.25
QUEUE_BYTES = 2**30
MAX_BATCH = 8192
ATTACK_SHARE = 0.1  # of the search's time, for many short descents from anywhere
ATTACK_STARTS = 4096
ATTACK_STEPS = 8
MAX_BISECTIONS = 6
CHECKED = 2  # subdomains of each batch whose bounds are compared with ONNX Runtime in their middle
TRIAL_SUBDOMAINS = 128  # so few say nothing about a search, however long they take


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A batch of subdomains that was bounded.

    Attributes:
        box, group: the subdomains (n, *input_shape) and the input box of each (n,).
        margins: lower bounds of the rows' margins (n, rows).
        reachable: (n, disjuncts) True where a disjunct is still in reach.
    """

    box: Box
    group: Tensor
    bounds: RowBounds
    margins: Tensor
    reachable: Tensor

    @property
    def open(self) -> Tensor:
        """(n,) True where some disjunct is still in reach."""
        return self.reachable.any(dim=1)


class BranchAndBound(Search):
    """Splits input boxes until each piece is excluded, a counterexample is found, or the time is up.

    Args:
        problem, bounder, attack, observer, without: see `Search`.
        method: a zonotope bound method; its linear bounds also choose a vertex to attack.
        branching: which input to bisect: a name in `INPUT_RULES`, or "auto".
        trial: after which the search gives up, unless it is slow, but proves the volume of its boxes in time.
    """

    def __init__(
        self,
        problem: Problem,
        bounder: Bounder,
        attack: Attack,
        method: str,
        observer: Observer | None = None,
        without: Collection[str] = (),
        branching: str = "auto",
        trial: Deadline | None = None,
    ) -> None:
        super().__init__(problem, bounder, attack, observer, without)
        self._method = method
        self._choice = RuleChoice("widest" if "influence" in without else branching)
        self._trial = trial
        self._random = torch.Generator().manual_seed(0)

    def run(self, objective: Objective, deadline: Deadline) -> SearchResult:
        result = SearchResult()
        box = self._problem.box
        needed = objective.exists.any(dim=1)
        queue = BoxQueue(QUEUE_BYTES)
        group = needed.nonzero().flatten()
        none = torch.zeros(group.shape[0], dtype=box.lower.dtype, device=group.device)
        queue.push(Boxes(box.lower[needed], box.upper[needed], group, none, none, torch.full_like(group, -1)))
        self._observer.search_starts(len(queue), box)
        members = objective.members()
        batch = 32
        first, attacked = time.monotonic(), 0.0
        restarts = max(1, ATTACK_STARTS // max(int(objective.exists.sum()), 1))
        while len(queue) and not deadline.passed and not self._gives_up(deadline, result):
            start = time.monotonic()
            if "inner-attack" not in self._without and attacked < ATTACK_SHARE * (start - first) - STEP_SECONDS:
                result.counterexample = self._attack.descend(
                    restarts, ATTACK_STEPS, Deadline(STEP_SECONDS), ~objective.exists, ATTACK_STARTS
                )
                if result.counterexample is not None:
                    return result
                attacked += time.monotonic() - start
                start = time.monotonic()
            step = self._bound(queue.pop(batch), objective)
            result.subdomains += step.group.shape[0]
            worst = objective.best(step.margins, step.group).amin(dim=1)
            self._observer.boxes(step.box, step.group, step.open, worst, len(queue))
            if bool(step.open.any()):
                if self._attacked_inside(step, objective, result):
                    return result
                result.stuck += self._split(self._shrink(step, objective, members), objective, queue, batch)
            batch = self._next_batch(batch, step, time.monotonic() - start)
        result.proved = not len(queue) and not result.stuck
        return result

    def _gives_up(self, deadline: Deadline, result: SearchResult) -> bool:
        """Whether a trial is over: it has bounded enough, or proved less of the volume than it used of the time."""
        if self._trial is None or not self._trial.passed or not result.subdomains:
            return False
        used = 1 - max(deadline.left_seconds, 0.0) / (deadline.left_seconds + deadline.elapsed_seconds)
        return result.subdomains >= TRIAL_SUBDOMAINS or self._observer.statistics.volume_proved < used

    def _bound(self, part: Boxes, objective: Objective) -> _Step:
        box, group = Box(part.lower, part.upper), part.group
        bounds = self._bounder.bound_in_slices(self._method, box, group, objective, part.load)
        checked = torch.linspace(0, group.shape[0] - 1, min(CHECKED, group.shape[0])).long().to(group.device)
        middle = (box.lower + (box.upper - box.lower) / 2)[checked]
        values = objective.exact_values(runtime_outputs(self._problem, middle), group[checked])
        check_bounds(self._method, bounds.pick(checked), values, group[checked], objective)
        margins = objective.margins(bounds.lower, group)
        self._choice.learn(part.rule, part.margin, objective.best(margins, group).amin(dim=1))
        return _Step(box, group, bounds, margins, ~objective.excluded(margins, group))

    def _attacked_inside(self, step: _Step, objective: Objective, result: SearchResult) -> bool:
        """Try the middle of each open subdomain, and the corner where the linear bound is lowest."""
        low, high = step.box.lower[step.open], step.box.upper[step.open]
        middle = low + (high - low) / 2
        if self._attacked(middle, step.group[step.open], result):
            return True
        worst = _row_weights(objective, step.margins, step.group).argmax(dim=1)
        vertex = step.bounds.lowest_vertex(worst)
        if vertex is None:
            return False
        side = vertex[step.open].unflatten(1, low.shape[1:])
        vertex = torch.where(side > 0, high, torch.where(side < 0, low, middle))
        return self._attacked(vertex, step.group[step.open], result)

    def _shrink(self, step: _Step, objective: Objective, members: Tensor) -> _Step:
        """Cut off what cannot be unsafe."""
        if "contraction" in self._without:
            return step
        box, reachable = shrink(step.box, step.group, step.bounds, step.reachable, objective, members)
        return replace(step, box=box, reachable=reachable)

    def _split(self, step: _Step, objective: Objective, queue: BoxQueue, batch: int) -> int:
        """Push the pieces of the open subdomains. Returns how many were too narrow to split."""
        open_ = step.open
        box, group = step.box.pick(open_), step.group[open_]
        count = group.shape[0]
        if not count:
            return 0
        bounds = step.bounds.pick(open_)
        weights = _row_weights(objective, step.margins, step.group)[open_]
        number, rule = self._choice.next_rule()
        scores = rule(InputFacts(box, bounds, weights, self._gradients(objective, group, weights), self._random))
        times = 1
        while len(queue) + count * 2 ** (times + 1) <= batch and times < MAX_BISECTIONS:
            times += 1
        pieces, parent = bisect(box, scores, times)
        split = (torch.bincount(parent, minlength=count) > 1)[parent]
        parent = parent[split]
        worst = objective.best(step.margins, step.group).masked_fill(~step.reachable, torch.inf).amin(dim=1)[open_]
        load = worst if bounds.load is None else bounds.load
        used = torch.full_like(group[parent], number)
        queue.push(Boxes(pieces.lower[split], pieces.upper[split], group[parent], worst[parent], load[parent], used))
        parents = int(parent.unique().shape[0])
        self._observer.split("input", parent.shape[0] - parents)
        return count - parents

    def _gradients(self, objective: Objective, group: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
        def gradients(points: Tensor) -> Tensor:
            points = points.detach().requires_grad_(True)
            with torch.enable_grad():
                values = objective.values(self._problem.outputs(points), group)
                if not values.requires_grad:
                    return torch.zeros_like(points)
                (found,) = torch.autograd.grad((values * weights).sum(), points)
            return found

        return gradients

    @staticmethod
    def _next_batch(batch: int, step: _Step, seconds: float) -> int:
        if step.group.shape[0] < batch:
            return batch
        largest = step.bounds.largest
        if seconds > 2 * STEP_SECONDS or largest > STEP_BYTES:
            return max(batch // 2, 1)
        if seconds < STEP_SECONDS and 2 * largest < STEP_BYTES:
            return min(2 * batch, MAX_BATCH)
        return batch


def _row_weights(objective: Objective, margins: Tensor, group: Tensor) -> Tensor:
    """1 for the best row of each disjunct that is still open, else 0: (n, rows)."""
    best = objective.best(margins, group)
    disjunct = objective.disjunct if objective.num_boxes == 1 else objective.disjunct[group]
    own = best.gather(1, disjunct.expand_as(margins))
    open_ = ~objective.excluded(margins, group).gather(1, disjunct.expand_as(margins))
    return ((margins >= own) & open_).to(margins.dtype)
