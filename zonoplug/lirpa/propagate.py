"""The walk over the host's graph: input zonotopes in, output zonotope and interval hulls out."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from zonoplug.domain.rounding import Rounding, rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.interval_images import interval_image, needs_intervals
from zonoplug.lirpa.operators import Call, NotApplicableError, entry_for, refuse
from zonoplug.lirpa.patterns import find_patterns
from zonoplug.reduction import Never, Reduction, Schedule
from zonoplug.transformers.affine import Operand, specification
from zonoplug.transformers.bilinear import Form
from zonoplug.transformers.enclosure import Enclosure
from zonoplug.transformers.interval import from_interval

Fallback = Literal["interval", "error"]
Products = Literal["auto", "precise", "fast"]
PRODUCTS: tuple[Products, ...] = ("auto", "precise", "fast")


@dataclass(frozen=True, slots=True)
class WalkOptions:
    """How to propagate.

    Attributes:
        reduction: encloses zonotopes in smaller ones; None for never.
        schedule: when it is applied, and to how many symbols.
        fallback: what happens at an operator without a transformer: the host's interval bounds, or an error.
        rounding: what the bounds cover: exact arithmetic on real numbers ("nearest"), the rounding of this propagation
            ("outward"), or that of the network's own evaluation in the same precision too ("inference").
        products: how products, quotients and matrix products of two perturbed operands are bounded: "fast", in time
            linear in the symbols; "precise", in more time and memory; "auto", precise where the work is small.
        sum_to_one: whether a softmax uses that its outputs sum to one; tighter, and shared symbols are dense behind it.
    """

    reduction: Reduction | None = None
    schedule: Schedule = field(default_factory=Never)
    fallback: Fallback = "interval"
    rounding: Rounding = "nearest"
    products: Products = "auto"
    sum_to_one: bool = False

    @property
    def form(self) -> Form | None:
        """The form of products, None for the one that the work allows."""
        return None if self.products == "auto" else self.products


@dataclass(slots=True)
class Propagation:
    """What one walk found.

    Attributes:
        output: zonotope of the final node, or of C y; (batch, *out_shape) or (batch, rows).
        bounds: its interval hull, rounded as the options say.
        hulls: node name -> bounds of the inputs of every non-exact operator.
        symbols: the ids given out, with their origins.
        largest: the most generator entries that one value held, over all batch elements.
    """

    output: Zonotope
    bounds: Interval
    hulls: dict[str, Interval]
    symbols: SymbolSource
    largest: int


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """The part of a graph that leads to one node.

    Attributes:
        order: its nodes, in topological order; patterns stand for the nodes that they replace.
        readers: how often each value is read, by node name.
        with_intervals: whether interval bounds are worth keeping beside the zonotopes.
    """

    order: tuple[Any, ...]
    readers: Mapping[str, int]
    with_intervals: bool


_plans: weakref.WeakKeyDictionary[Any, dict[tuple[str, bool], GraphPlan]] = weakref.WeakKeyDictionary()


def plan_for(module: Any, final: str, patterns: bool = False) -> GraphPlan:
    """The plan for `module` up to the node named `final`, with patterns or without; made once per module and node."""
    plans = _plans.setdefault(module, {})
    if (final, patterns) not in plans:
        order: list[Any] = []
        seen: set[str] = set()
        stack = [(module[final], False)]
        while stack:
            node, inputs_done = stack.pop()
            if inputs_done:
                order.append(node)
            elif node.name not in seen:
                seen.add(node.name)
                stack.append((node, True))
                stack.extend((parent, False) for parent in reversed(node.inputs))
        order = find_patterns(order) if patterns else order
        readers = Counter(parent.name for node in order for parent in node.inputs)
        plans[final, patterns] = GraphPlan(tuple(order), readers, any(needs_intervals(node) for node in order))
    return plans[final, patterns]


def propagate(
    module: Any,
    inputs: Mapping[str, Operand],
    symbols: SymbolSource,
    options: WalkOptions,
    rows: Tensor | None = None,
    final: str | None = None,
    known: Mapping[str, Interval] | None = None,
    slopes: Mapping[str, Tensor] | None = None,
) -> Propagation:
    """Propagate zonotopes through the host's graph.

    Args:
        module: a BoundedModule.
        inputs: name of each input node -> zonotope, or tensor where nothing is perturbed, (batch, *shape).
        symbols: the source that the input zonotopes' ids came from.
        options: reduction, schedule, fallback.
        rows: specification matrix C (batch or 1, rows, outputs), applied to the flattened output.
        final: name of the node to bound; the module's output by default.
        known: bounds of nodes that hold for all points of the input set, to be intersected with the hulls. A relaxation
            on the intersection is sound: the noise values that stand for a point of the input set give each node
            that point's own value, which lies in both.
        slopes: node name -> slope (batch, *shape) for the relaxation at that node, instead of its own choice.
    Raises:
        UnsupportedOperatorError: an operator has no transformer and `options.fallback` is "error", or the host
            cannot bound it either.
    """
    with rounding(options.rounding):
        plan = plan_for(module, final or module.final_name, patterns=options.rounding == "nearest")
        return _walk(plan, module, inputs, symbols, options, rows, known or {}, slopes or {})


def _walk(
    plan: GraphPlan,
    module: Any,
    inputs: Mapping[str, Operand],
    symbols: SymbolSource,
    options: WalkOptions,
    rows: Tensor | None,
    known: Mapping[str, Interval],
    slopes: Mapping[str, Tensor],
) -> Propagation:
    left = dict(plan.readers)
    values: dict[str, Operand] = {}
    hulls: dict[str, Interval] = {}
    intervals: dict[str, Interval] = {}
    largest = 0

    def hull_of(name: str) -> Interval | None:
        value = values[name]
        if isinstance(value, Tensor):
            return None
        if name not in hulls:
            hull = value.interval_hull()
            for outer in (known.get(name), intervals.get(name)):
                hull = hull if outer is None else intersect(hull, outer)
            hulls[name] = hull
        return hulls[name]

    for node in plan.order:
        if node.name in inputs:
            values[node.name] = inputs[node.name]
            continue
        operands = [values[parent.name] for parent in node.inputs]
        if not any(isinstance(operand, Zonotope) for operand in operands):
            values[node.name] = constant_value(module, node, operands)
        elif type(node).__name__ == "BoundShape":
            values[node.name] = torch.tensor(operands[0].center.shape)  # type: ignore[union-attr]
        else:
            image, bounds = _step(node, operands, symbols, options, hull_of, slopes.get(node.name))
            if bounds is None and plan.with_intervals:
                nearest = [intervals.get(parent.name) or hull_of(parent.name) for parent in node.inputs]
                bounds = interval_image(node, operands, nearest)
            if bounds is not None:
                intervals[node.name] = bounds
            values[node.name] = image
            largest = max(largest, image.num_symbols * image.center.numel())
        for parent in node.inputs:
            left[parent.name] -= 1
            if not left[parent.name]:
                del values[parent.name]
                intervals.pop(parent.name, None)
    output = values[plan.order[-1].name]
    if isinstance(output, Tensor):
        output = Zonotope(output)
    final = output if rows is None else specification(output, rows)
    hull, name = final.interval_hull(), plan.order[-1].name
    hull = intersect(hull, intervals[name]) if rows is None and name in intervals else hull
    return Propagation(final, hull, hulls, symbols, largest)


def intersect(hull: Interval, outer: Interval) -> Interval:
    """The intersection of two bounds that both hold; where one is NaN, the other."""
    return Interval(torch.fmax(hull.lower, outer.lower), torch.fmin(hull.upper, outer.upper))


def _step(
    node: Any,
    operands: list[Operand],
    symbols: SymbolSource,
    options: WalkOptions,
    hull_of: Any,
    slope: Tensor | None = None,
) -> tuple[Zonotope, Interval | None]:
    """The image of one node, and bounds of it that may be tighter than the image's hull."""
    entry = entry_for(node)
    while entry is not None:
        exact = entry.kind == "exact"
        hulls = () if exact else tuple(hull_of(parent.name) for parent in node.inputs)
        try:
            result = entry.transformer(Call(node, operands, symbols, hulls, slope, options.form, options.sum_to_one))
        except NotApplicableError:
            entry = entry.otherwise
            continue
        image, bounds = result if isinstance(result, Enclosure) else (result, None)
        return (image if exact else _reduced(image, options)), bounds
    if options.fallback == "error":
        raise refuse(node, operands)
    return _reduced(_interval_image(node, operands, symbols, hull_of), options), None


def _reduced(zonotope: Zonotope, options: WalkOptions) -> Zonotope:
    budget = options.schedule.budget(zonotope)
    if options.reduction is None or budget is None:
        return zonotope
    return options.reduction.reduce(zonotope, budget)


def _interval_image(node: Any, operands: list[Operand], symbols: SymbolSource, hull_of: Any) -> Zonotope:
    """The host's interval bounds of one operator, as a zonotope."""
    kind = type(node).__name__
    warnings.warn(f"{kind} is bounded by intervals: it has no transformer for this use.", stacklevel=2)
    intervals = [
        tuple(hull_of(parent.name)) if isinstance(operand, Zonotope) else (operand, operand)
        for parent, operand in zip(node.inputs, operands, strict=True)
    ]
    try:
        lower, upper = node.interval_propagate(*intervals)[:2]
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UnsupportedOperatorError(
            f"{refuse(node, operands)} The host's interval bounds failed too: {type(error).__name__}: {reason}"
        ) from error
    return from_interval(Interval(lower, upper), symbols, node.name)


def constant_value(module: Any, node: Any, operands: list[Operand]) -> Tensor:
    """The value of a node that no perturbed input reaches."""
    value = node.forward(*operands)
    return value if isinstance(value, Tensor) else torch.as_tensor(value, device=module.device)
