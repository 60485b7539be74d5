"""Branch and bound on the phases of ReLUs, and on points of S-shaped activations, with any bound method for the
subdomains.

A subdomain puts split constraints on some pre-activations. Its pre-activation bounds are its parent's, cut at 0 where
it is split, and intersected with what the method finds on them. A zonotope's propagation tightens the layers behind a
split, and its symbols are constrained by split constraints and the unsafe set (`SplitConstraints`); the host's methods
take pre-activation bounds as they are, and know no more of a split. One backward pass over the pre-activation bounds
scores the splits and finds points to try.

S-shaped activations are split too: at 0, where they turn, and then in the middle of their inputs' bounds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.branching.activations import ActivationFacts, activation_rule, unstable_scores
from zonoplug.verify.constraints.symbols import SplitConstraints
from zonoplug.verify.observer import Observer
from zonoplug.verify.problem.problem import Objective, Problem
from zonoplug.verify.problem.row_bounds import RowBounds
from zonoplug.verify.search.base import STEP_BYTES, BoxwiseSearch, SearchResult
from zonoplug.verify.subdomains.batch import take
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout
from zonoplug.verify.subdomains.relu_phases import ReluSubdomains, split_relus

if TYPE_CHECKING:
    from zonoplug.lirpa.forward.propagation import Propagation
    from zonoplug.lirpa.methods import BoundMethod

MAX_BATCH = 64
DUAL_STEPS = 20
STRAIGHT = 1e-5  # a deviation of an S-shaped activation from its chord that is not worth a split


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """One disjunct of one input box.

    Attributes:
        objective: with this disjunct alone.
        box: (1, *input_shape).
        number, disjunct: their places in the objective.
    """

    objective: Objective
    box: Box
    number: int
    disjunct: int

    def group(self, count: int) -> Tensor:
        return torch.full((count,), self.number, dtype=torch.int64, device=self.box.lower.device)


class MethodSearch(BoxwiseSearch):
    """Proves disjuncts one after another by splitting on the phases of ReLUs, and S-shaped activations at points.

    Args:
        problem, bounder, attack, observer, without: see `Search`.
        method: a bound method that makes use of known pre-activation bounds, see `BoundMethod.takes_preactivations`.
        branching: which neuron to split: a name in `ACTIVATION_RULES`, or "auto".
    Raises:
        UnknownNameError: no rule is called so.
        UnsupportedOperatorError: backward bounds do not apply to the network, or it has no such activations; or leaves
            are recorded, which cannot tell of points.
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
    ) -> None:
        from zonoplug.lirpa.methods import BoundMethod

        if bounder.backward is None or not (bounder.backward.relus or bounder.backward.curves):
            raise UnsupportedOperatorError(
                "Activations are split only where backward bounds apply, and ReLUs or S-shaped ones are there."
            )
        if bounder.backward.curves and observer is not None and observer.record is not None:
            raise UnsupportedOperatorError("Certificates tell no splits of S-shaped activations.")
        super().__init__(problem, bounder, attack, observer, without)
        self._method = method
        self._backward = bounder.backward
        self._rule = activation_rule(branching, "gap")  # slopes are not optimised here
        self._random = torch.Generator().manual_seed(0)
        self._parsed = BoundMethod.parse(method)
        own = replace(self._parsed, backward=None, alpha=False)
        self._constrained = own if self._parsed.zonotope else None

    def _search_box(self, objective: Objective, deadline: Deadline, result: SearchResult) -> bool:
        for disjunct in objective.exists[self._box_number].nonzero().flatten().tolist():
            others = torch.ones_like(objective.exists)
            others[self._box_number, disjunct] = False
            task = _Task(objective.without(others), self._box, self._box_number, disjunct)
            if not self._prove(task, deadline, result):
                return False
        return True

    def _prove(self, task: _Task, deadline: Deadline, result: SearchResult) -> bool:
        self._preactivations = self._bounder.preactivations(task.box)
        self._layout = NeuronLayout(self._backward, self._preactivations, curves=True)
        queue, batch = [self._layout.root(self._preactivations)], 1
        closed: list[ReluSubdomains] = []
        while queue:
            if deadline.passed:
                return False
            part = take(queue, batch)
            open_, scores, largest = self._bound(task, part)
            result.subdomains += len(part)
            self._observer.phases(part, open_, part.bound, sum(map(len, queue)))
            if self._observer.record is not None:
                closed.append(part.pick(~open_))
            batch = max(1, min(2 * batch, MAX_BATCH, int(STEP_BYTES * len(part) / max(largest, 1))))
            if not bool(open_.any()):
                continue
            if self._attacked(self._minimisers[open_], task.number, result):
                return False
            pieces, stuck = split_relus(part.pick(open_), scores[open_], batch - sum(map(len, queue)))
            result.stuck += stuck
            self._observer.split("activation", len(pieces) - int(open_.sum()) + stuck)
            if stuck:
                return False
            queue.append(pieces)
        for part in closed:
            disjuncts = torch.full((len(part),), task.disjunct)
            self._observer.relu_leaves(task.number, disjuncts, part, self._layout.sizes)
        return True

    def _bound(self, task: _Task, part: ReluSubdomains) -> tuple[Tensor, Tensor, int]:
        """Which subdomains are open, scores for their splits, and the bytes that bounding took at the most.

        Pre-activation bounds, multipliers and bounds in `part` are replaced by the new ones.
        """
        count = len(part)
        box, group, objective = task.box.expanded(count), task.group(count), task.objective
        preactivations = self._layout.preactivations(part.lower, part.upper, self._preactivations)
        largest, propagation = 0, None
        lower = box.lower.new_full((count, objective.bound.shape[1]), -torch.inf)
        if self._constrained is not None:
            propagation, lower = self._bound_constrained(self._constrained, task, part, preactivations)
            largest, preactivations = propagation.largest * lower.element_size(), propagation.preactivations
        if self._constrained != self._parsed:
            plain, propagated = self._bounder.plain_bound(self._method, box, group, objective, preactivations)
            lower, largest = torch.fmax(lower, plain.lower), max(largest, plain.largest)
            propagation, preactivations = (
                propagated or propagation,
                preactivations if propagated is None else propagated.preactivations,
            )
        bounds = RowBounds(lower)
        nowhere = torch.zeros(count, dtype=torch.bool, device=group.device)
        for at in self._layout.places:
            low, high = (side.detach().flatten(1) for side in preactivations[at.source])
            error = 256 * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs()).amax(dim=1, keepdim=True)
            nowhere |= (low > high + error).any(dim=1)  # no point of the box has these signs
            part.lower[:, at.section], part.upper[:, at.section] = torch.minimum(low, high), torch.maximum(low, high)
        margins = objective.margins(bounds.lower, group)
        part.bound = torch.where(nowhere, torch.inf, objective.best(margins, group)[:, task.disjunct])
        open_ = ~(objective.excluded(margins, group).all(dim=1) | nowhere)
        return open_, self._scores(task, part, margins, preactivations), largest

    def _bound_constrained(
        self, method: BoundMethod, task: _Task, part: ReluSubdomains, preactivations: Mapping[str, Interval]
    ) -> tuple[Propagation, Tensor]:
        """A propagation of zonotopes, and bounds of the rows; of the one nearest to a proof under all constraints."""
        from zonoplug.lirpa.module import forward_propagation

        count = len(part)
        box, group = task.box.expanded(count), task.group(count)
        relus, curves = self._layout.of_relus, self._layout.of_curves
        ends = {at.relu: (part.lower[:, at.section], part.upper[:, at.section]) for at in curves}
        constraints = SplitConstraints({at.relu: part.sign[:, at.section] for at in relus}, ends)
        goal = task.objective.goal(group).expand(count, -1)
        with torch.no_grad():
            propagation = forward_propagation(
                self._bounder.module,
                [box],
                method,
                task.objective.rows(group),
                known=preactivations,
                observe=constraints.observe,
                rounding="inference",
            )
            lower = propagation.bounds.lower
            row = self._nearest_row(lower - goal)
            start = {at.relu: part.beta[:, at.section] for at in self._layout.places}
            limit = goal.masked_fill(goal.isneginf(), torch.inf)
            least, multipliers = constraints.bound(propagation.output, limit, row, start, DUAL_STEPS)
        for at in self._layout.places:
            if at.relu in multipliers:
                part.beta[:, at.section] = multipliers[at.relu]
        return propagation, lower.scatter_reduce(1, row.unsqueeze(1), least.unsqueeze(1), "amax")

    @staticmethod
    def _nearest_row(margins: Tensor) -> Tensor:
        """The row (n,) with the largest margin (n, rows), padding and NaN aside."""
        return margins.nan_to_num(nan=-torch.inf, posinf=-torch.inf).argmax(dim=1)

    def _scores(
        self, task: _Task, part: ReluSubdomains, margins: Tensor, preactivations: Mapping[str, Interval]
    ) -> Tensor:
        """Scores of splits, (n, neurons), by the row that is nearest to a proof; notes where its bound is least."""
        from zonoplug.lirpa.backward.refinement import first_alpha

        count = len(part)
        box, group = task.box.expanded(count), task.group(count)
        row = self._nearest_row(margins.masked_fill(task.objective.goal(group).isneginf(), torch.nan))
        rows = task.objective.rows(group).expand(count, -1, -1)[torch.arange(count, device=row.device), row]
        with torch.no_grad():
            passed = self._backward.bound(box, preactivations, rows.unsqueeze(1))
        self._minimisers = torch.where(passed.inputs[:, 0] > 0, box.lower, box.upper)
        coefficients = self._layout.coefficients(passed)
        part.alpha = first_alpha(Interval(part.lower, part.upper))
        values = partial(self._layout.values, self._bounder.module, self._minimisers)
        open_ = part.unstable_neurons
        open_[:, self._layout.relu_neurons :] = False
        facts = ActivationFacts(part.lower, part.upper, coefficients, part.alpha, open_, values, self._random)
        scores = unstable_scores(self._rule, facts)
        strays = self._layout.deviations(part.lower, part.upper)
        return torch.where(strays > STRAIGHT, coefficients.abs() * strays, scores)
