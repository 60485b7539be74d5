"""Bounds of the specification's rows on subdomains, and the check that keeps wrong bounds out of verdicts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import UnsupportedOperatorError, ZonoplugError
from zonoplug.verify.allowances import backward_or_none, row_allowance
from zonoplug.verify.problem import Objective, Problem

if TYPE_CHECKING:
    from zonoplug.lirpa.backward import Backward
    from zonoplug.lirpa.propagate import Propagation


GRAPH_POINTS = 3
SLICE = 1024


class BrokenMethodError(ZonoplugError):
    """A method's bounds exclude a point that the model reaches: the method is not to be believed on this model."""


@dataclass(frozen=True, slots=True, eq=False)
class RowBounds:
    """Lower bounds of a . y for each row on a batch of subdomains, and how they vary over a subdomain.

        a . y  >=  floor + sum_i (|slope_i| + slope_i e_i),  e_i in [-1, 1] the place of input i between its bounds

    Attributes:
        lower: (n, rows); NaN where nothing is known.
        floor: (n, rows) the bound that belongs to the slopes, at most `lower`.
        slopes: (n, rows, inputs), or None for methods that do not tell.
        load: (n,) how many neurons' signs are open, for the order of later work; None where it is not known.
        largest: bytes of the generators that one value of the walk held, at most.
    """

    lower: Tensor
    floor: Tensor | None = None
    slopes: Tensor | None = None
    load: Tensor | None = None
    largest: int = 0

    def influence(self, weights: Tensor) -> Tensor | None:
        """How far each input moves the rows: (n, inputs), the weighted sum of |slope| over rows.

        Args:
            weights: (n, rows).
        """
        return None if self.slopes is None else torch.einsum("nrk,nr->nk", self.slopes.abs(), weights).nan_to_num()

    def lowest_vertex(self, row: Tensor) -> Tensor | None:
        """The corner of each input box where row `row` (n,) is least: (n, inputs) in {-1, 0, 1}."""
        if self.slopes is None:
            return None
        chosen = self.slopes.gather(1, row[:, None, None].expand(-1, 1, self.slopes.shape[2])).squeeze(1)
        return -chosen.sign().nan_to_num()

    @staticmethod
    def join(many: list[RowBounds]) -> RowBounds:
        """The bounds of several batches as one."""
        parts = zip(*((one.lower, one.floor, one.slopes, one.load) for one in many), strict=True)
        joined = [None if any(part is None for part in column) else torch.cat(column) for column in parts]
        return RowBounds(*joined, largest=max(one.largest for one in many))  # type: ignore[arg-type, misc]

    def pick(self, index: Tensor) -> RowBounds:
        """The bounds of some subdomains."""
        parts = (self.lower, self.floor, self.slopes, self.load)
        picked = [None if part is None else part[index] for part in parts]
        return RowBounds(*picked, largest=self.largest)  # type: ignore[arg-type, misc]


def _symbol_slopes(propagation: Propagation, num_inputs: int) -> Tensor:
    """Generators of the inputs' symbols as slopes, (n, rows, inputs)."""
    batch, rows = propagation.output.center.shape
    slopes = propagation.output.center.new_zeros(batch, num_inputs, rows)
    if propagation.symbols.origins:
        origin = propagation.symbols.origins[0]
        generators = propagation.output.generators(torch.arange(origin.first, origin.first + origin.count))
        slopes = slopes.scatter_add(1, origin.index.unsqueeze(2).expand(-1, -1, rows), generators)
    return slopes.transpose(1, 2)


class Bounder:
    """Builds the host's graph of a problem's model once, and bounds subdomains by any method.

    Args:
        problem: model and specification.

    Attributes:
        takes_batches: whether the graph takes several points at a time.
        warnings: what was said about operators bounded by intervals.
        reduced_by: how many symbols each reduction of the latest bound left; "" without any.
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
        self.reduced_by = ""
        self._backward: list[Backward | None] = []
        self._walked: tuple[Box, dict[str, Interval]] | None = None

    def bound(self, method: str, box: Box, group: Tensor, objective: Objective) -> RowBounds:
        """Lower bounds of the objective's rows on subdomains (n, *input_shape) of the boxes `group` (n,).

        They are lowered by what rounding may move the rows, where that can be told.
        """
        if method == "zonotope+crown" and self.backward is not None:
            if self._known_hulls(box) is not None:
                return self._over_hulls(box, group, objective)
            if self.backward.uses_planes:
                return self._bound_slice(method, box, group, objective)
        bounds, propagation = self.plain_bound(method, box, group, objective)
        return self.lowered(bounds, propagation, box, objective.rows(group))

    def plain_bound(
        self,
        method: str,
        box: Box,
        group: Tensor,
        objective: Objective,
        known: Mapping[str, Interval] | None = None,
    ) -> tuple[RowBounds, Propagation | None]:
        """As `bound`, as the method gives them: for `lowered`. And the walk behind them, if there was one.

        Args:
            known: bounds of inner nodes, as for `bound_set`.
        """
        from zonoplug.lirpa.methods import BoundMethod
        from zonoplug.lirpa.module import bound_box

        if not self.takes_batches and group.shape[0] > 1:
            singles = [
                self.plain_bound(method, box.pick(one), group[one], objective)
                for one in (slice(i, i + 1) for i in range(group.shape[0]))
            ]
            return RowBounds(torch.cat([single.lower for single, _ in singles])), None
        parsed = BoundMethod.parse(method)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.enable_grad() if parsed.needs_gradients else torch.no_grad():
                bounds, propagation = bound_box(
                    self.module, box, parsed, objective.rows(group), goal=objective.goal(group), known=known
                )
        for warning in caught:
            text = str(warning.message)
            if "bounded by intervals" in text and text not in self.warnings:
                self.warnings.append(text)
        self.reduced_by = "" if propagation is None else propagation.reduced_by
        if propagation is not None and box.lower.shape[0] == 1 and known is None and not self.reduced_by:
            hulls = {
                name: Interval(hull.lower.detach(), hull.upper.detach()) for name, hull in propagation.hulls.items()
            }
            self._walked = box, hulls
        return self._described(bounds.lower, propagation, box), propagation

    def lowered(self, bounds: RowBounds, propagation: Propagation | None, box: Box, rows: Tensor) -> RowBounds:
        """Bounds less what rounding may move the rows (n or 1, rows, outputs) on the boxes."""
        try:
            allowance = row_allowance(self.module, self.backward, box, rows, propagation)
        except UnsupportedOperatorError:  # by an operator whose use, not its kind, is not covered
            self._backward, allowance = [None], 0.0
        floor = None if bounds.floor is None else bounds.floor - allowance
        return replace(bounds, lower=bounds.lower - allowance, floor=floor)

    def hulls(self, box: Box) -> dict[str, Interval]:
        """The zonotope's hulls on one box (1, *input_shape), by node name; those of the latest walk if it was there."""
        from zonoplug.lirpa.methods import BoundMethod
        from zonoplug.lirpa.module import walk

        known = self._known_hulls(box)
        if known is None:
            with torch.no_grad():
                known = walk(self.module, [box], BoundMethod.parse("zonotope")).hulls
            self._walked = box, known
        return dict(known)

    def _known_hulls(self, box: Box) -> dict[str, Interval] | None:
        if self._walked is None or box.lower.shape[0] != 1:
            return None
        last, hulls = self._walked
        same = torch.equal(last.lower, box.lower) and torch.equal(last.upper, box.upper)
        return hulls if same else None

    def _over_hulls(self, box: Box, group: Tensor, objective: Objective) -> RowBounds:
        """Backward bounds alone, over the hulls of the latest walk."""
        hulls, backward = self.hulls(box), self.backward
        assert backward is not None
        rows = objective.rows(group).expand(1, -1, -1)
        with torch.no_grad():
            linear = backward.bound(box, hulls, rows)
            lower = linear.lower - backward.allowance(linear, rows, hulls, backward.magnitudes(box, hulls))
        return RowBounds(lower, lower, linear.inputs.flatten(2) * ((box.upper - box.lower) / 2).flatten(1).unsqueeze(1))

    def bound_in_slices(
        self, method: str, box: Box, group: Tensor, objective: Objective, load: Tensor | None = None
    ) -> RowBounds:
        """As `bound`, for many subdomains: in slices of similar load, with our own backward bounds for the host's.

        A zonotope of a batch has as many symbols as its element with the most, so that equal loads save work.
        """
        if group.shape[0] <= SLICE or load is None:
            return RowBounds.join(
                [
                    self._bound_slice(method, box.pick(part), group[part], objective)
                    for part in torch.arange(group.shape[0], device=group.device).split(SLICE)
                ]
            )
        order = load.argsort()
        slices = [self._bound_slice(method, box.pick(part), group[part], objective) for part in order.split(SLICE)]
        return RowBounds.join(slices).pick(order.argsort())

    def _bound_slice(self, method: str, box: Box, group: Tensor, objective: Objective) -> RowBounds:
        backward = self.backward
        if method != "zonotope+crown" or backward is None:
            return self.bound(method, box, group, objective)
        from zonoplug.lirpa.methods import BoundMethod
        from zonoplug.lirpa.module import walk

        with torch.no_grad():
            propagation = walk(self.module, [box], BoundMethod.parse("zonotope"), objective.rows(group))
            rows = objective.rows(group).expand(group.shape[0], -1, -1)
            linear = backward.bound(box, propagation.hulls, rows)
        bounds = self._described(propagation.bounds.lower, propagation, box)
        better = ~(bounds.lower > linear.lower) & ~linear.lower.isnan()
        radius = ((box.upper - box.lower) / 2).flatten(1).unsqueeze(1)
        slopes, floor = linear.inputs.flatten(2) * radius, linear.lower
        if bounds.slopes is not None and bounds.floor is not None:  # which may lie below the zonotope's other bounds
            slopes = torch.where(better.unsqueeze(2), slopes, bounds.slopes)
            floor = torch.where(better, floor, bounds.floor)
        lower = torch.where(better, linear.lower, bounds.lower)
        allowance = backward.allowance(linear, rows, propagation.hulls, backward.magnitudes(box, propagation.hulls))
        return replace(bounds, lower=lower - allowance, floor=floor - allowance, slopes=slopes)

    @property
    def backward(self) -> Backward | None:
        """Our backward bounds on the whole network, None where they do not apply."""
        if not self._backward:
            self._backward.append(backward_or_none(self.module) if self.takes_batches else None)
        return self._backward[0]

    @staticmethod
    def _described(lower: Tensor, propagation: Propagation | None, box: Box) -> RowBounds:
        if propagation is None:
            return RowBounds(lower)
        load = lower.new_zeros(lower.shape[0])
        for hull in propagation.hulls.values():
            load = load + ((hull.lower < 0) & (hull.upper > 0)).flatten(1).sum(dim=1)
        largest = propagation.largest * lower.element_size()
        floor = propagation.output.interval_hull().lower.detach()
        slopes = _symbol_slopes(propagation, box.lower[0].numel()).detach()
        return RowBounds(lower, floor, slopes, load, largest)


def check_bounds(method: str, bounds: RowBounds, values: Tensor, group: Tensor, objective: Objective) -> None:
    """Raise BrokenMethodError if a value (n, rows), reached in subdomain i of box group[i], lies below its bound i."""
    escapes = objective.escapes(values, bounds.lower, group)
    if bool(escapes.any()):
        gap = float((bounds.lower - values)[escapes].max())
        raise BrokenMethodError(
            f"method {method} is broken on this model: a sampled point lies {gap:.3g} below its bound"
        )
