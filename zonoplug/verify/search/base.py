"""What all searches have in common: what they are given, how they end, and that points are tried on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Counterexample
from zonoplug.verify.problem.problem import Objective, Problem
from zonoplug.verify.subdomains.relu_phases import Properties

STEP_BYTES = 512 * 2**20  # of the generators that one value holds: a step takes fewer subdomains beyond


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


class Search(ABC):
    """Branch and bound with one kind of split.

    Args:
        problem, bounder, attack: what is verified, and with what.
        observer: told of every step.
        without: names of COMPONENTS to leave out.
    """

    def __init__(
        self,
        problem: Problem,
        bounder: Bounder,
        attack: Attack,
        observer: Observer | None = None,
        without: Collection[str] = (),
    ) -> None:
        self._problem = problem
        self._bounder = bounder
        self._attack = attack
        self._observer = observer or Observer()
        self._without = without

    @abstractmethod
    def run(self, objective: Objective, deadline: Deadline) -> SearchResult:
        """Search all boxes and disjuncts that are open in an objective.

        Raises:
            BrokenMethodError: a bound excluded a point that the model reaches.
        """

    def _attacked(self, points: Tensor, number: int | Tensor, result: SearchResult) -> bool:
        """Try points (n, *input_shape) as counterexamples, unless that is to be left out.

        Args:
            number: of their input box, or of the box of each, (n,).
            result: takes the counterexample.
        Returns:
            whether there is one.
        """
        if "inner-attack" in self._without:
            return False
        group = torch.as_tensor(number, device=points.device).expand(points.shape[0])
        result.counterexample = self._attack.try_points(points, group)
        return result.counterexample is not None


class BoxwiseSearch(Search):
    """A search that takes the input boxes one after another, until one is not proved."""

    _box_number: int

    def run(self, objective: Objective, deadline: Deadline) -> SearchResult:
        result = SearchResult(proved=True)
        self._observer.search_starts(int(objective.exists.sum()))
        for number in objective.exists.any(dim=1).nonzero().flatten().tolist():
            self._box_number = number
            result.proved = self._search_box(objective, deadline, result)
            if not result.proved:
                break
        return result

    @abstractmethod
    def _search_box(self, objective: Objective, deadline: Deadline, result: SearchResult) -> bool:
        """Search the disjuncts of the box `_box_number`. Returns whether all are proved."""

    @property
    def _box(self) -> Box:
        """The input box that is searched, (1, *input_shape)."""
        return self._problem.box.pick(slice(self._box_number, self._box_number + 1))

    def _check_root(self, bound: Tensor, properties: Properties) -> None:
        """A bound on a whole box that lies above what a sampled point of it reaches on every row is wrong.

        Args:
            bound: of the margins, (n,), one for each property.
        """
        outputs = self._attack.referee.of_box(self._box_number)
        if outputs.shape[0]:
            values = torch.einsum("po,amo->pam", outputs, properties.rows.double()) - properties.goal.double()
            reached = values.masked_fill(~properties.there, -torch.inf).amax(dim=2).amin(dim=0)
            if bool((bound > reached + 1e-12 * reached.abs()).any()):
                raise BrokenMethodError(
                    "backward bounds are broken on this model: a sampled point lies below its bound"
                )
