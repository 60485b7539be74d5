"""The propagation over the host's graph: input zonotopes in, output zonotope and pre-activation bounds out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain import rounding as rounded
from zonoplug.domain.rounding import rounding
from zonoplug.domain.streaming import memory_limit
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.forward.influence import Influences
from zonoplug.lirpa.forward.interval_images import interval_image, rows_image
from zonoplug.lirpa.forward.neuron_merging import merge_neurons
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.reducing import Reducer, is_exact
from zonoplug.lirpa.fusion.plan import NEURON_LAYERS, GraphPlan, constant_value, coordinates, plan_for
from zonoplug.lirpa.host import HOST_VERSION
from zonoplug.lirpa.operators.all import Call, NotApplicableError, entry_for, refuse
from zonoplug.lirpa.operators.table import Entry, Transformer, inner_name
from zonoplug.lirpa.runtime_errors import accuracy_of, evaluated, largest, widened
from zonoplug.lirpa.trust import is_ours, is_trusted
from zonoplug.reduction import ReductionReport
from zonoplug.transformers.affine import Operand, specification
from zonoplug.transformers.elementwise import name_box
from zonoplug.transformers.enclosure import Enclosure
from zonoplug.transformers.interval import from_interval

Observer = Callable[[Transformer, Call], None]


@dataclass(slots=True)
class Propagation:
    """What one propagation found.

    Attributes:
        output: zonotope of the final node, or of C y; (batch, *out_shape) or (batch, rows).
        bounds: its interval hull, rounded as the options say.
        preactivations: node name -> bounds of the inputs of every non-exact operator, and of what compositions give; by
            `inner_name`, of values inside one.
        symbols: the ids given out, with their origins.
        largest: the most generator entries that one value held, over all batch elements.
        kept: activation -> how many neurons of each batch element stayed unmerged, where neurons are merged.
        reductions: what each reduction did, in the order of the propagation.
    """

    output: Zonotope
    bounds: Interval
    preactivations: dict[str, Interval]
    symbols: SymbolSource
    largest: int
    kept: dict[str, Tensor] = field(default_factory=dict)
    reductions: list[ReductionReport] = field(default_factory=list)

    @property
    def reduced_by(self) -> str:
        """The symbols that were left at each reduction, such as "128/64 symbols"; "" if nothing was reduced."""
        left = "/".join(str(report.symbols_after) for report in self.reductions)
        return f"{left} symbols" if left else ""


def propagate(
    module: Any,
    inputs: Mapping[str, Operand],
    symbols: SymbolSource,
    options: PropagationOptions,
    rows: Tensor | None = None,
    final: str | None = None,
    known: Mapping[str, Interval] | None = None,
    slopes: Mapping[str, Tensor] | None = None,
    observe: Observer | None = None,
) -> Propagation:
    """Propagate zonotopes through the host's graph.

    Args:
        module: a BoundedModule.
        inputs: name of each input node -> zonotope, or tensor where nothing is perturbed, (batch, *shape).
        symbols: the source that the input zonotopes' ids came from.
        options: reduction, schedule, fallback and the rest.
        rows: specification matrix C (batch or 1, rows, outputs), applied to the flattened output.
        final: name of the node to bound; the module's output by default.
        known: bounds of nodes that hold for all points of the input set, to be intersected with the pre-activation
            bounds. A relaxation on the intersection is sound: the noise values that stand for a point of the input set
            give each node that point's own value, which lies in both.
        slopes: node name -> slope (batch, *shape) for the relaxation at that node, instead of its own choice.
        observe: is shown each relaxation with its operands before it is used.
    Raises:
        UnsupportedOperatorError: an operator has no transformer and `options.fallback` is "error", or the host
            cannot bound it either.
    """
    plan = plan_for(module, final or module.final_name, patterns=True)
    chosen, limits = slopes or {}, known or {}

    def forward_propagation(scoring: Influences | None = None, measuring: Influences | None = None) -> Propagation:
        source = symbols.copy()
        reducer = Reducer(plan, module, inputs, source, options, scoring, measuring)
        return _Run(plan, module, inputs, source, options, limits, chosen, observe, reducer).run(rows)

    def influences(found: Propagation) -> Influences:
        return Influences(plan, module, inputs, rows, _detached(found.preactivations), chosen)

    named = options.named and options.reduction is None and options.merging is None
    with rounding(options.rounding, named), memory_limit(options.limit_bytes):
        found, scoring = forward_propagation(), None
        if not found.reductions:
            return found
        if options.reduction is not None and options.reduction.needs_influence:
            limits = {**limits, **_detached(found.preactivations)}
            scoring = influences(found)
            found = forward_propagation(scoring)
        return forward_propagation(scoring, influences(found)) if options.measure else found


class _Run:
    """One propagation, and what it knows so far: values still to be read, bounds that were asked for, intervals."""

    def __init__(
        self,
        plan: GraphPlan,
        module: Any,
        inputs: Mapping[str, Operand],
        symbols: SymbolSource,
        options: PropagationOptions,
        known: Mapping[str, Interval],
        slopes: Mapping[str, Tensor],
        observe: Observer | None,
        reducer: Reducer,
    ) -> None:
        self._plan, self._module, self._inputs = plan, module, inputs
        self._symbols, self._options, self._known, self._slopes = symbols, options, known, slopes
        self._observe, self._reducer = observe, reducer
        self._values: dict[str, Operand] = {}
        self._preactivations: dict[str, Interval] = {}
        self._intervals: dict[str, Interval] = {}
        self._kept: dict[str, Tensor] = {}

    def run(self, rows: Tensor | None) -> Propagation:
        """Visit every node. `rows` as in `propagate`."""
        left, largest = dict(self._plan.readers), 0
        values, last = self._values, self._plan.order[-1]
        of_rows: Interval | None = None
        for place, node in enumerate(self._plan.order):
            operands = [self._operand(node, parent) for parent in node.inputs]
            if node.name in self._inputs:
                values[node.name] = self._inputs[node.name]
            elif not any(isinstance(operand, Zonotope) for operand in operands):
                values[node.name] = constant_value(self._module, node, operands)
            elif type(node).__name__ == "BoundShape":
                values[node.name] = torch.tensor(operands[0].center.shape)  # type: ignore[union-attr]
            else:
                of_rows = self._visit(node, operands, rows if node is last else None)
            for parent in node.inputs:
                left[parent.name] -= 1
                if not left[parent.name]:
                    del values[parent.name]
                    self._intervals.pop(parent.name, None)
            if node.name in self._inputs or _adds_symbols(node, operands):
                values[node.name] = self._reducer.reduce(place, values)
            value = values[node.name]
            if isinstance(value, Zonotope):
                largest = max(largest, value.num_symbols * value.center.numel())
        output = values[last.name]
        output = Zonotope(output) if isinstance(output, Tensor) else output
        final = output if rows is None else specification(output, rows)
        hull = final.interval_hull()
        outer = (self._intervals.get(last.name), self._known.get(last.name)) if rows is None else (of_rows,)
        for bounds in outer:
            hull = hull if bounds is None else intersect(hull, bounds)
        return Propagation(final, hull, self._preactivations, self._symbols, largest, self._kept, self._reducer.reports)

    def _visit(self, node: Any, operands: list[Operand], rows: Tensor | None) -> Interval | None:
        """Find a node's value and what intervals tell of it. Returns their bounds of `rows` times the value."""
        image, bounds, exact = self._image(node, operands)
        self._values[node.name] = image
        of_rows = None
        if self._options.intervals and (not exact or any(self._narrowed(parent.name) for parent in node.inputs)):
            sources = [self._nearest(parent.name) for parent in node.inputs]
            if bounds is None:
                with rounded.evaluating(self._accuracy(node, entry_for(node))):
                    bounds = interval_image(node, operands, sources, image.shape)
                if bounds is not None and not exact:
                    bounds = widened(bounds, node, sources, operands)
            if rows is not None and bounds is not None:
                outer = intersect(bounds, self._known[node.name]) if node.name in self._known else bounds
                of_rows = rows_image(node, operands, sources, outer, rows)
        if bounds is not None:
            self._intervals[node.name] = bounds
        entry = entry_for(node)
        if entry is None or entry.kind == "composition":
            self._hull_of(node.name)  # passes backward may take the value for a constant in its bounds
        return of_rows

    def _operand(self, node: Any, parent: Any) -> Operand:
        """A node's operand, with symbols for its box where the node makes more coordinates of few: a bottleneck."""
        value, later = self._values[parent.name], self._plan.largest[node.name]
        if isinstance(value, Zonotope) and 2 * prod(value.shape) <= coordinates(node):
            self._values[parent.name] = value = name_box(value, later, self._symbols, parent.name)
        return value

    def _hull_of(self, name: str) -> Interval | None:
        value = self._values[name]
        if isinstance(value, Tensor):
            return None
        if name not in self._preactivations:
            hull = value.interval_hull()
            for outer in (self._known.get(name), self._intervals.get(name)):
                hull = hull if outer is None else intersect(hull, outer)
            self._preactivations[name] = hull
        return self._preactivations[name]

    def _nearest(self, name: str) -> Interval | None:
        """Good bounds of a value without much work: its hull where that was asked for, else its interval."""
        quick = name in self._intervals and name not in self._preactivations and name not in self._known
        return self._intervals[name] if quick else self._hull_of(name)

    def _narrowed(self, name: str) -> bool:
        """Whether a value may have tighter bounds than its zonotope's hull."""
        return name in self._intervals or (name in self._known and name not in self._inputs)

    def _image(self, node: Any, operands: list[Operand]) -> tuple[Zonotope, Interval | None, bool]:
        """The image of a node, bounds of it that may be tighter than the image's hull, whether the image is exact."""
        entry = entry_for(node)
        while entry is not None:
            exact = entry.kind == "exact"
            preactivations = () if exact else tuple(self._hull_of(parent.name) for parent in node.inputs)
            slope, options = self._slopes.get(node.name), self._options
            call = Call(node, operands, self._symbols, preactivations, slope, options.form, options.sum_to_one)
            try:
                with rounded.evaluating(self._accuracy(node, entry)):
                    if self._observe is not None and entry.kind == "relaxation":
                        self._observe(entry.transformer, call)
                    result = entry.transformer(call)
            except NotApplicableError:
                entry = entry.otherwise
                continue
            image, bounds = result if isinstance(result, Enclosure) else (result, None)
            if not exact:
                image, bounds = evaluated(image, bounds, node, preactivations, operands)
            self._preactivations |= {inner_name(node.name, name): inner for name, inner in call.inner.items()}
            return (image if exact else self._merged(node, image, preactivations[0])), bounds, exact
        if self._options.fallback == "error":
            raise refuse(node, operands)
        return self._interval_image(node, operands), None, False

    def _accuracy(self, node: Any, entry: Entry | None) -> rounded.Accuracy:
        """How well the network evaluates a node's function, where that is to be covered."""
        return accuracy_of(node, entry) if rounded.covers_inference() else rounded.EXACT

    def _merged(self, node: Any, image: Zonotope, before: Interval | None) -> Zonotope:
        merging = self._options.merging
        if merging is None or type(node).__name__ not in NEURON_LAYERS:
            return image
        last = node.name == self._plan.last_neurons
        image, self._kept[node.name] = merge_neurons(node, image, before, merging, self._symbols, last)
        return image

    def _interval_image(self, node: Any, operands: list[Operand]) -> Zonotope:
        """The host's interval bounds of one operator, as a zonotope, if they are believed."""
        kind, accuracy = type(node).__name__, self._accuracy(node, None)
        if not is_ours(node) and not is_trusted(node, "ibp"):
            raise UnsupportedOperatorError(
                f"{refuse(node, operands)} The interval bounds of auto_LiRPA {HOST_VERSION} did not pass the tests"
                f" for {kind}, so that they are not used."
            )
        warnings.warn(f"{kind} is bounded by intervals: it has no transformer for this use.", stacklevel=2)
        preactivations = [self._hull_of(parent.name) for parent in node.inputs]
        intervals = [
            (operand, operand) if hull is None else tuple(hull)
            for hull, operand in zip(preactivations, operands, strict=True)
        ]
        try:
            lower, upper = node.interval_propagate(*intervals)[:2]
        except Exception as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise UnsupportedOperatorError(
                f"{refuse(node, operands)} The host's interval bounds failed too: {type(error).__name__}: {reason}"
            ) from error
        image = Interval(lower, upper)
        with rounded.evaluating(accuracy):
            room = rounded.evaluation_error(largest(image), _reach(preactivations))
        bounds = widened(Interval(lower - room, upper + room), node, preactivations, operands)
        return from_interval(bounds, self._symbols, node.name)


def _reach(preactivations: Iterable[Interval | None]) -> Tensor:
    """The largest |x| of several operands, (batch, 1 ...) or a number."""
    sizes = [largest(hull).max() for hull in preactivations if hull is not None and hull.lower.numel()]
    return torch.stack(sizes).max()


def intersect(hull: Interval, outer: Interval) -> Interval:
    """The intersection of two bounds that both hold; where one is NaN, the other."""
    return Interval(torch.fmax(hull.lower, outer.lower), torch.fmin(hull.upper, outer.upper))


def _detached(preactivations: Mapping[str, Interval]) -> dict[str, Interval]:
    return {name: Interval(hull.lower.detach(), hull.upper.detach()) for name, hull in preactivations.items()}


def _adds_symbols(node: Any, operands: list[Operand]) -> bool:
    """Whether the image may have more symbols than each operand: new ones, or those of several together."""
    return sum(isinstance(operand, Zonotope) for operand in operands) > is_exact(node)
