"""Bounds of the specification's rows on subdomains, and the check that keeps wrong bounds out of verdicts."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import HostError, UnsupportedOperatorError, ZonoplugError
from zonoplug.verify.bounds.sound_bounds import SoundBounds, backward_or_none
from zonoplug.verify.problem.problem import Objective, Problem
from zonoplug.verify.problem.referee import Referee
from zonoplug.verify.problem.row_bounds import RowBounds

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.passes import Backward
    from zonoplug.lirpa.forward.propagation import Propagation


GRAPH_POINTS = 3
SLICE = 1024
PRECISE_WEIGHTS = 2**25
CHECKED_POINTS = 4
FEW_COORDINATES = 2**13


class BrokenMethodError(ZonoplugError):
    """A method's bounds exclude a point that the model reaches: the method is not to be believed on this model."""


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
        believed_only: as for `SoundBounds`.

    Attributes:
        takes_batches: whether the graph takes several points at a time.
        reduced_by: how many symbols each reduction of the latest bound left; "" without any.
    Raises:
        HostError: the host cannot build the model, or its graph computes something else.
    """

    def __init__(self, problem: Problem, believed_only: bool = True) -> None:
        from zonoplug.lirpa.compat import check_graph, takes_batches
        from zonoplug.lirpa.module import build

        self._problem = problem
        self.module = build(problem.model.module, problem.box.lower[:1], problem.device)
        points = problem.box.sample(GRAPH_POINTS, torch.Generator().manual_seed(0))[:, 0]
        check_graph(self.module, problem.model.module, points)
        self.takes_batches = takes_batches(self.module, problem.model.module, points)
        self.reduced_by = ""
        self._sound = SoundBounds(self.module, self.takes_batches, believed_only)
        self._said: list[str] = []
        self._backward: list[Backward | None] = []
        self._propagated: tuple[Box, dict[str, Interval]] | None = None

    def check_points(self, referee: Referee) -> None:
        """Compare bounds of single points with what ONNX Runtime computes there: they hold whatever it rounds.

        In large networks one point is enough, and the errors of inner values get no symbols: they would take as long as
        a bound of the whole box.

        Raises:
            BrokenMethodError: a point's bounds exclude it, so that the loaded network is not the file's.
        """
        from zonoplug.lirpa.fusion.plan import coordinates, plan_for
        from zonoplug.lirpa.methods import BoundMethod

        values = plan_for(self.module, self.module.final_name, patterns=True).order
        small = sum(map(coordinates, values)) <= FEW_COORDINATES
        choices: dict[str, Any] = {} if small else {"named": False, "products": "fast"}
        for place in range(min(CHECKED_POINTS if small else 1, referee.points.shape[0])):
            point, expected = referee.points[place : place + 1], referee.outputs[place]
            try:
                found = self._sound.forward_propagation(BoundMethod.parse("zonotope"), Box(point, point), **choices)
            except UnsupportedOperatorError as error:
                self._said.append(str(error))
                return
            lower, upper = (side.flatten().double() for side in found.bounds)
            outside = torch.maximum(lower - expected, expected - upper)
            if bool((outside > 0).any()):
                worst = int(outside.nan_to_num(nan=-torch.inf).argmax())
                raise BrokenMethodError(
                    f"the loaded network is not the file's: at a point, output {worst} is within"
                    f" [{float(lower[worst]):.9g}, {float(upper[worst]):.9g}] for any rounding,"
                    f" ONNX Runtime computes {float(expected[worst]):.9g}"
                )

    def distrust(self, method: str) -> str:
        """Why the host's part of a method is not believed on this network; "" if it is, or has no part."""
        from zonoplug.lirpa.methods import BoundMethod

        return self._sound.distrust(BoundMethod.parse(method))

    @property
    def notes(self) -> list[str]:
        """What a user should know: operators bounded by intervals, bounds that are estimates or are not believed."""
        return [*self._said, *self._sound.notes]

    def bound(self, method: str, box: Box, group: Tensor, objective: Objective) -> RowBounds:
        """Lower bounds of the objective's rows on subdomains (n, *input_shape) of the boxes `group` (n,).

        They hold for what the network's evaluation computes.

        Raises:
            UnsupportedOperatorError: an operator is met of which too little is known.
        """
        if method == "zonotope+crown" and self.takes_batches:
            return self._both_ways(box, group, objective)
        bounds, _ = self.plain_bound(method, box, group, objective)
        return bounds

    def plain_bound(
        self,
        method: str,
        box: Box,
        group: Tensor,
        objective: Objective,
        known: Mapping[str, Interval] | None = None,
    ) -> tuple[RowBounds, Propagation | None]:
        """As `bound`, by the propagation or the host; and the propagation behind them, if there was one.

        Args:
            known: bounds of inner nodes, as for `bound_set`.
        """
        from zonoplug.lirpa.methods import BoundMethod

        if not self.takes_batches and group.shape[0] > 1:
            singles = [
                self.plain_bound(method, box.pick(one), group[one], objective)
                for one in (slice(i, i + 1) for i in range(group.shape[0]))
            ]
            return RowBounds(torch.cat([single.lower for single, _ in singles])), None
        rows, goal = objective.rows(group), objective.goal(group)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lower, found = self._sound.lower(BoundMethod.parse(method), box, rows, goal, known)
        for warning in caught:
            text = str(warning.message)
            if "bounded by intervals" in text and text not in self._said:
                self._said.append(text)
        self.reduced_by = "" if found is None else found.reduced_by
        if found is not None and box.lower.shape[0] == 1 and known is None and not self.reduced_by:
            preactivations = {
                name: Interval(preactivation.lower.detach(), preactivation.upper.detach())
                for name, preactivation in found.preactivations.items()
            }
            self._propagated = box, preactivations
        return self._described(lower, found, box), found

    def preactivations(self, box: Box) -> dict[str, Interval]:
        """The zonotope's pre-activation bounds on one box (1, *input_shape), by node name.

        Those of the latest propagation if it was there.
        """
        from zonoplug.lirpa.methods import BoundMethod

        known = self._known_bounds(box)
        if known is None:
            known = self._sound.forward_propagation(BoundMethod.parse("zonotope"), box).preactivations
            self._propagated = box, known
        return dict(known)

    def _known_bounds(self, box: Box) -> dict[str, Interval] | None:
        if self._propagated is None or box.lower.shape[0] != 1:
            return None
        last, preactivations = self._propagated
        same = torch.equal(last.lower, box.lower) and torch.equal(last.upper, box.upper)
        return preactivations if same else None

    def bound_in_slices(
        self, method: str, box: Box, group: Tensor, objective: Objective, load: Tensor | None = None
    ) -> RowBounds:
        """As `bound`, for many subdomains: in slices of similar load.

        A zonotope of a batch has as many symbols as its element with the most, so that equal loads save work.
        """
        if group.shape[0] <= SLICE or load is None:
            return RowBounds.join(
                [
                    self.bound(method, box.pick(part), group[part], objective)
                    for part in torch.arange(group.shape[0], device=group.device).split(SLICE)
                ]
            )
        order = load.argsort()
        slices = [self.bound(method, box.pick(part), group[part], objective) for part in order.split(SLICE)]
        return RowBounds.join(slices).pick(order.argsort())

    def _both_ways(self, box: Box, group: Tensor, objective: Objective) -> RowBounds:
        """The zonotope's bounds and, over its pre-activation bounds, backward ones: for each row the better."""
        linear, found = self._sound.both_ways(box, objective.rows(group), self._known_bounds(box))
        radius = ((box.upper - box.lower) / 2).flatten(1).unsqueeze(1)
        slopes = linear.inputs.flatten(2) * radius
        # Slopes and floor are used together, in sums that differ a little from those of the bound.
        floor = linear.sound - slopes.abs().sum(dim=2) * (4 * torch.finfo(slopes.dtype).eps)
        if found is None:
            return RowBounds(linear.sound, floor, slopes)
        bounds = self._described(found.bounds.lower, found, box)
        better = ~(bounds.lower > linear.sound) & ~linear.sound.isnan()
        if bounds.slopes is not None and bounds.floor is not None:  # which may lie below the zonotope's other bounds
            slopes = torch.where(better.unsqueeze(2), slopes, bounds.slopes)
            floor = torch.where(better, floor, bounds.floor)
        return replace(bounds, lower=torch.where(better, linear.sound, bounds.lower), floor=floor, slopes=slopes)

    @functools.cached_property
    def precise_module(self) -> Any:
        """The graph in double precision, for sums whose own rounding is not to count; None for large networks."""
        from zonoplug.lirpa.module import build

        model = self._problem.model
        size = sum(value.numel() for value in (*model.module.parameters(), *model.module.buffers()))
        if self._problem.dtype == torch.float64 or size > PRECISE_WEIGHTS:
            return None
        try:
            example = self._problem.box.lower[:1].double()
            precise = build(copy.deepcopy(model.module).double(), example, self._problem.device)
        except HostError as error:
            self._said.append(f"the graph is not built in double precision: {error}")
            return None
        return precise if list(precise._modules) == list(self.module._modules) else None

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
        for preactivation in propagation.preactivations.values():
            load = load + ((preactivation.lower < 0) & (preactivation.upper > 0)).flatten(1).sum(dim=1)
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
