"""Bounds of the specification's rows on subdomains, and the check that keeps wrong bounds out of verdicts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.errors import ZonoplugError
from zonoplug.verify.problem import Objective, Problem

if TYPE_CHECKING:
    from zonoplug.lirpa.propagate import Propagation


GRAPH_POINTS = 3


class BrokenMethodError(ZonoplugError):
    """A method's bounds exclude a point that the model reaches: the method is not to be believed on this model."""


@dataclass(frozen=True, slots=True, eq=False)
class RowBounds:
    """Lower bounds of a . y for each row on a batch of subdomains.

    Attributes:
        lower: (n, rows); NaN where nothing is known.
        propagation: the walk behind them, None for methods of the host.
    """

    lower: Tensor
    propagation: Propagation | None

    def influence(self, weights: Tensor, num_inputs: int) -> Tensor | None:
        """How far each input's symbol moves the rows: (n, inputs), the weighted sum of |generator| over rows.

        Args:
            weights: (n, rows).
        """
        if self.propagation is None:
            return None
        origin, generators = self._input_generators(self.propagation)
        moved = torch.einsum("nkr,nr->nk", generators.abs(), weights).nan_to_num()
        return moved.new_zeros(moved.shape[0], num_inputs).scatter_add(1, origin, moved)

    def lowest_vertex(self, row: Tensor, num_inputs: int) -> Tensor | None:
        """The corner of each input box where row `row` (n,) is least on the zonotope: (n, inputs) in {-1, 0, 1}."""
        if self.propagation is None:
            return None
        origin, generators = self._input_generators(self.propagation)
        chosen = generators.gather(2, row[:, None, None].expand(-1, generators.shape[1], 1)).squeeze(2)
        signs = -chosen.sign().nan_to_num()
        return signs.new_zeros(signs.shape[0], num_inputs).scatter_add(1, origin, signs)

    @staticmethod
    def _input_generators(propagation: Propagation) -> tuple[Tensor, Tensor]:
        if not propagation.symbols.origins:
            batch, rows = propagation.output.center.shape
            empty = propagation.output.center.new_zeros(batch, 0, rows)
            return torch.zeros(batch, 0, dtype=torch.int64, device=empty.device), empty
        origin = propagation.symbols.origins[0]
        ids = torch.arange(origin.first, origin.first + origin.count)
        return origin.index, propagation.output.generators(ids)


class Bounder:
    """Builds the host's graph of a problem's model once, and bounds subdomains by any method.

    Args:
        problem: model and specification.
    Raises:
        HostError: the host cannot build the model, or its graph computes something else.
    """

    def __init__(self, problem: Problem) -> None:
        from zonoplug.lirpa.compat import check_graph, takes_batches
        from zonoplug.lirpa.module import build

        self._problem = problem
        self.module = build(problem.model.module, problem.box.lower[:1], problem.device)
        points = problem.box.sample(GRAPH_POINTS, torch.Generator().manual_seed(0))[:, 0]
        check_graph(self.module, problem.model.module, points)
        self.takes_batches = takes_batches(self.module, problem.model.module, points)
        self.warnings: list[str] = []

    def bound(self, method: str, box: Box, group: Tensor, objective: Objective) -> RowBounds:
        """Lower bounds of the objective's rows on subdomains (n, *input_shape) of the boxes `group` (n,)."""
        from zonoplug.lirpa.methods import BoundMethod
        from zonoplug.lirpa.module import bound_box

        if not self.takes_batches and group.shape[0] > 1:
            singles = [
                self.bound(method, Box(box.lower[i : i + 1], box.upper[i : i + 1]), group[i : i + 1], objective)
                for i in range(group.shape[0])
            ]
            return RowBounds(torch.cat([single.lower for single in singles]), None)
        parsed = BoundMethod.parse(method)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.enable_grad() if parsed.needs_gradients else torch.no_grad():
                bounds, propagation = bound_box(
                    self.module, box, parsed, objective.rows(group), goal=objective.goal(group)
                )
        for warning in caught:
            text = str(warning.message)
            if "bounded by intervals" in text and text not in self.warnings:
                self.warnings.append(text)
        return RowBounds(bounds.lower, propagation)


def check_bounds(method: str, bounds: RowBounds, values: Tensor, group: Tensor, objective: Objective) -> None:
    """Raise BrokenMethodError if a value (n, rows), reached in subdomain i of box group[i], lies below its bound i."""
    escapes = objective.escapes(values, bounds.lower, group)
    if bool(escapes.any()):
        gap = float((bounds.lower - values)[escapes].max())
        raise BrokenMethodError(
            f"method {method} is broken on this model: a sampled point lies {gap:.3g} below its bound"
        )
