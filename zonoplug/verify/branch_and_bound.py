"""Branch and bound on the input: bound a batch of subdomains, split what stays open, until nothing does."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.verify.attack import Attack
from zonoplug.verify.bounding import Bounder, RowBounds, check_bounds
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Counterexample
from zonoplug.verify.problem import Objective, Problem
from zonoplug.verify.split import bisect, influence_scores

STEP_SECONDS = 0.25
STEP_BYTES = 512 * 2**20
MAX_BATCH = 8192
MAX_BISECTIONS = 6


@dataclass(slots=True)
class SearchResult:
    """How a search ended.

    Attributes:
        proved: every subdomain was excluded.
        counterexample: a confirmed one, or None.
        subdomains: how many were bounded.
        stuck: subdomains that could be neither excluded nor split further.
    """

    proved: bool = False
    counterexample: Counterexample | None = None
    subdomains: int = 0
    stuck: int = 0


@dataclass(slots=True)
class _Queue:
    """Open subdomains, depth first: the pieces of a split come out before older ones, the worst margin first."""

    chunks: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def push(self, box: Box, group: Tensor) -> None:
        if group.shape[0]:
            self.chunks.append((box.lower, box.upper, group))

    def pop(self, count: int) -> tuple[Box, Tensor]:
        taken: list[tuple[Tensor, Tensor, Tensor]] = []
        missing = count
        while self.chunks and missing > 0:
            chunk = self.chunks.pop()
            if chunk[2].shape[0] > missing:
                self.chunks.append(tuple(part[:-missing] for part in chunk))  # type: ignore[arg-type]
                chunk = tuple(part[-missing:] for part in chunk)  # type: ignore[assignment]
            taken.append(chunk)
            missing -= chunk[2].shape[0]
        lower, upper, group = (torch.cat(parts) for parts in zip(*taken, strict=True))
        return Box(lower, upper), group

    def __len__(self) -> int:
        return sum(chunk[2].shape[0] for chunk in self.chunks)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """A batch of subdomains that was bounded.

    Attributes:
        box, group: the subdomains (n, *input_shape) and the input box of each (n,).
        margins: lower bounds of the rows' margins (n, rows).
        open: (n,) True where some disjunct is still in reach.
    """

    box: Box
    group: Tensor
    bounds: RowBounds
    margins: Tensor
    open: Tensor


class BranchAndBound:
    """Splits input boxes until each piece is excluded, a counterexample is found, or the time is up.

    Args:
        problem, bounder, attack: what is verified, and with what.
        method: a zonotope bound method; its symbols also choose the coordinate to split and a vertex to attack.
        observer: told of every step.
        without: names of INGREDIENTS to leave out.
    """

    def __init__(
        self,
        problem: Problem,
        bounder: Bounder,
        attack: Attack,
        method: str,
        observer: Observer | None = None,
        without: Collection[str] = (),
    ) -> None:
        self._problem = problem
        self._bounder = bounder
        self._attack = attack
        self._method = method
        self._observer = observer or Observer()
        self._without = without

    def run(self, objective: Objective, deadline: Deadline) -> SearchResult:
        """Search.

        Args:
            objective: the rows, without disjuncts that are out of reach already.
        Raises:
            BrokenMethodError: a bound excluded a point that the model reaches.
        """
        result = SearchResult()
        queue = _Queue()
        box = self._problem.box
        needed = objective.exists.any(dim=1)
        queue.push(Box(box.lower[needed], box.upper[needed]), needed.nonzero().flatten())
        self._observer.search_starts(len(queue), box)
        batch = 32
        while len(queue) and not deadline.passed:
            start = time.monotonic()
            step = self._bound(*queue.pop(batch), objective)
            result.subdomains += step.group.shape[0]
            worst = objective.best(step.margins, step.group).amin(dim=1)
            self._observer.boxes(step.box, step.group, step.open, worst, len(queue))
            if bool(step.open.any()):
                result.counterexample = self._try(step, objective)
                if result.counterexample is not None:
                    return result
                result.stuck += self._split(step, objective, queue, batch)
            batch = self._next_batch(batch, step, time.monotonic() - start)
        result.proved = not len(queue) and not result.stuck
        return result

    def _bound(self, box: Box, group: Tensor, objective: Objective) -> _Step:
        bounds = self._bounder.bound(self._method, box, group, objective)
        middle = box.lower + (box.upper - box.lower) / 2
        with torch.no_grad():
            values = objective.values(self._problem.outputs(middle), group)
        check_bounds(self._method, bounds, values, group, objective)
        margins = objective.margins(bounds.lower, group)
        return _Step(box, group, bounds, margins, ~objective.excluded(margins, group).all(dim=1))

    def _try(self, step: _Step, objective: Objective) -> Counterexample | None:
        """Evaluate the middle of each open subdomain, and the corner where the zonotope is lowest."""
        if "inner-attack" in self._without:
            return None
        low, high = step.box.lower[step.open], step.box.upper[step.open]
        middle = low + (high - low) / 2
        found = self._attack.try_points(middle, step.group[step.open])
        worst = _row_weights(objective, step.margins, step.group).argmax(dim=1)
        signs = step.bounds.lowest_vertex(worst, low[0].numel())
        if found is not None or signs is None:
            return found
        side = signs[step.open].unflatten(1, low.shape[1:])
        vertex = torch.where(side > 0, high, torch.where(side < 0, low, middle))
        return self._attack.try_points(vertex, step.group[step.open])

    def _split(self, step: _Step, objective: Objective, queue: _Queue, batch: int) -> int:
        """Push the pieces of the open subdomains. Returns how many were too narrow to split."""
        box, group = Box(step.box.lower[step.open], step.box.upper[step.open]), step.group[step.open]
        count = group.shape[0]
        influence = step.bounds.influence(_row_weights(objective, step.margins, step.group), box.lower[0].numel())
        blind = influence is None or "influence" in self._without
        scores = influence_scores(None if blind else influence[step.open], box)  # type: ignore[index]
        times = 1
        while len(queue) + count * 2 ** (times + 1) <= batch and times < MAX_BISECTIONS:
            times += 1
        pieces, parent = bisect(box, scores, times)
        split = (torch.bincount(parent, minlength=count) > 1)[parent]
        pieces, parent = Box(pieces.lower[split], pieces.upper[split]), parent[split]
        worst = objective.best(step.margins, step.group).amin(dim=1)[step.open]
        order = worst[parent].argsort(descending=True)
        queue.push(Box(pieces.lower[order], pieces.upper[order]), group[parent[order]])
        parents = int(parent.unique().shape[0])
        self._observer.split("input", parent.shape[0] - parents)
        return count - parents

    @staticmethod
    def _next_batch(batch: int, step: _Step, seconds: float) -> int:
        if step.group.shape[0] < batch:
            return batch
        propagation = step.bounds.propagation
        largest = 0 if propagation is None else propagation.largest * step.bounds.lower.element_size()
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
