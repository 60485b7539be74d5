"""The walk over the host's graph: input zonotopes in, output zonotope and interval hulls out."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from zonoplug.domain.rounding import Rounding, rounding
from zonoplug.domain.streaming import memory_limit
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.interval_images import interval_image, rows_image
from zonoplug.lirpa.merged_walk import NEURON_LAYERS, merge_neurons
from zonoplug.lirpa.operators import Call, NotApplicableError, entry_for, refuse
from zonoplug.lirpa.table import Transformer
from zonoplug.reduction import Never, Reduction, Schedule
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.transformers.affine import Operand, specification
from zonoplug.transformers.enclosure import Enclosure
from zonoplug.transformers.interval import from_interval

Fallback = Literal["interval", "error"]
Observer = Callable[[Transformer, Call], None]


@dataclass(frozen=True, slots=True)
class WalkOptions:
    """How to propagate.

    Attributes:
        reduction: encloses zonotopes in smaller ones; None for never.
        schedule: when it is applied, and to how many symbols.
        fallback: what happens at an operator without a transformer: the host's interval bounds, or an error.
        rounding: what the bounds cover: exact arithmetic on real numbers ("nearest"), the rounding of this propagation
            ("outward"), or that of the network's own evaluation in the same precision too ("inference").
        limit_bytes: memory for generators; layers that need more are streamed in chunks of symbols, with the same
            bounds, in more time. None for no limit. See `zonoplug.domain.streaming`.
        intervals: whether interval bounds are kept beside the zonotopes and intersected with their hulls
            (`interval_images` says why that is sound), so that no bound is looser than interval arithmetic's.
        merging: which neurons give up their correlation behind each activation, before any reduction; None for none.
    """

    reduction: Reduction | None = None
    schedule: Schedule = field(default_factory=Never)
    fallback: Fallback = "interval"
    rounding: Rounding = "nearest"
    limit_bytes: int | None = None
    intervals: bool = True
    merging: NeuronMerging | None = None


@dataclass(slots=True)
class Propagation:
    """What one walk found.

    Attributes:
        output: zonotope of the final node, or of C y; (batch, *out_shape) or (batch, rows).
        bounds: its interval hull, rounded as the options say.
        hulls: node name -> bounds of the inputs of every non-exact operator.
        symbols: the ids given out, with their origins.
        largest: the most generator entries that one value held, over all batch elements.
        kept: activation's name -> how many of its neurons were not merged, (batch,); empty without merging.
    """

    output: Zonotope
    bounds: Interval
    hulls: dict[str, Interval]
    symbols: SymbolSource
    largest: int
    kept: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """The part of a graph that leads to one node.

    Attributes:
        order: its nodes, in topological order.
        readers: how often each value is read, by node name.
        last_neurons: the last activation's name, None without any.
    """

    order: tuple[Any, ...]
    readers: Mapping[str, int]
    last_neurons: str | None


_plans: weakref.WeakKeyDictionary[Any, dict[str, GraphPlan]] = weakref.WeakKeyDictionary()


def plan_for(module: Any, final: str) -> GraphPlan:
    """The plan for `module` up to the node named `final`; made once per module and node."""
    plans = _plans.setdefault(module, {})
    if final not in plans:
        order: list[Any] = []
        readers: dict[str, int] = {}
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
                for parent in node.inputs:
                    readers[parent.name] = readers.get(parent.name, 0) + 1
        neurons = [node.name for node in order if type(node).__name__ in NEURON_LAYERS]
        plans[final] = GraphPlan(tuple(order), readers, neurons[-1] if neurons else None)
    return plans[final]


def propagate(
    module: Any,
    inputs: Mapping[str, Operand],
    symbols: SymbolSource,
    options: WalkOptions,
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
        options: reduction, schedule, fallback.
        rows: specification matrix C (batch or 1, rows, outputs), applied to the flattened output.
        final: name of the node to bound; the module's output by default.
        known: bounds of nodes that hold for all points of the input set, to be intersected with the hulls. A relaxation
            on the intersection is sound: the noise values that stand for a point of the input set give each node
            that point's own value, which lies in both.
        slopes: node name -> slope (batch, *shape) for the relaxation at that node, instead of its own choice.
        observe: is shown each relaxation with its operands before it is used.
    Raises:
        UnsupportedOperatorError: an operator has no transformer and `options.fallback` is "error", or the host
            cannot bound it either.
    """
    with rounding(options.rounding), memory_limit(options.limit_bytes):
        plan = plan_for(module, final or module.final_name)
        return _walk(plan, module, inputs, symbols, options, rows, known or {}, slopes or {}, observe)


def _walk(
    plan: GraphPlan,
    module: Any,
    inputs: Mapping[str, Operand],
    symbols: SymbolSource,
    options: WalkOptions,
    rows: Tensor | None,
    known: Mapping[str, Interval],
    slopes: Mapping[str, Tensor],
    observe: Observer | None,
) -> Propagation:
    left = dict(plan.readers)
    values: dict[str, Operand] = {}
    hulls: dict[str, Interval] = {}
    intervals: dict[str, Interval] = {}
    kept: dict[str, Tensor] = {}
    largest = 0
    rows_bounds: Interval | None = None

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

    def nearest(name: str) -> Interval | None:
        """Good bounds of a value without much work: its hull where that was asked for, else its interval."""
        return intervals[name] if name in intervals and name not in hulls and name not in known else hull_of(name)

    def narrowed(name: str) -> bool:
        """Whether a value may have tighter bounds than its zonotope's hull."""
        return name in intervals or (name in known and name not in inputs)

    def merge(node: Any, image: Zonotope, before: Interval | None) -> Zonotope:
        if options.merging is not None:
            last = node.name == plan.last_neurons
            image, kept[node.name] = merge_neurons(node, image, before, options.merging, symbols, last)
        return image

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
            image, bounds, exact = _step(
                node, operands, symbols, options, hull_of, merge, slopes.get(node.name), observe
            )
            if options.intervals and (not exact or any(narrowed(parent.name) for parent in node.inputs)):
                sources = [nearest(parent.name) for parent in node.inputs]
                bounds = interval_image(node, operands, sources, image.shape) if bounds is None else bounds
                if rows is not None and bounds is not None and node is plan.order[-1]:
                    outer = intersect(bounds, known[node.name]) if node.name in known else bounds
                    rows_bounds = rows_image(node, operands, sources, outer, rows)
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
    others = (intervals.get(name), known.get(name)) if rows is None else (rows_bounds,)
    for other in others:
        hull = hull if other is None else intersect(hull, other)
    return Propagation(final, hull, hulls, symbols, largest, kept)


def intersect(hull: Interval, outer: Interval) -> Interval:
    """The intersection of two bounds that both hold; where one is NaN, the other."""
    return Interval(torch.fmax(hull.lower, outer.lower), torch.fmin(hull.upper, outer.upper))


def _step(
    node: Any,
    operands: list[Operand],
    symbols: SymbolSource,
    options: WalkOptions,
    hull_of: Any,
    merge: Callable[[Any, Zonotope, Interval | None], Zonotope],
    slope: Tensor | None = None,
    observe: Observer | None = None,
) -> tuple[Zonotope, Interval | None, bool]:
    """The image of one node, bounds of it that may be tighter than the image's hull, and whether the image is exact."""
    entry = entry_for(node)
    while entry is not None:
        exact = entry.kind == "exact"
        hulls = () if exact else tuple(hull_of(parent.name) for parent in node.inputs)
        call = Call(node, operands, symbols, hulls, slope)
        try:
            if observe is not None and entry.kind == "relaxation":
                observe(entry.transformer, call)
            result = entry.transformer(call)
        except NotApplicableError:
            entry = entry.otherwise
            continue
        image, bounds = result if isinstance(result, Enclosure) else (result, None)
        if type(node).__name__ in NEURON_LAYERS:
            image = merge(node, image, hulls[0])
        return (image if exact else _reduced(image, options)), bounds, exact
    if options.fallback == "error":
        raise refuse(node, operands)
    return _reduced(_interval_image(node, operands, symbols, hull_of), options), None, False


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
