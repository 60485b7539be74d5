"""Zonotope bounds as methods of the host's BoundedModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box, InputSet
from zonoplug.domain.rounding import ROUNDINGS, Rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import SettingError
from zonoplug.lirpa import compat
from zonoplug.lirpa.forward.alpha import optimise_slopes
from zonoplug.lirpa.forward.backoff import back_off
from zonoplug.lirpa.forward.options import PRODUCTS, Fallback, Products, PropagationOptions
from zonoplug.lirpa.forward.propagation import Observer, Propagation, intersect, propagate
from zonoplug.lirpa.methods import HOST_SPELLING, BoundMethod
from zonoplug.lirpa.perturbations import InputSetPerturbation, bounded_input, input_set
from zonoplug.lirpa.supplied_bounds import KnownBounds, checked_bounds, within
from zonoplug.reduction import Backoff
from zonoplug.transformers.affine import Operand

ComputeBounds = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class _Options:
    """What compute_bounds takes beside x, C and method when the method is ours; the host's names."""

    bound_lower: bool = True
    bound_upper: bool = True
    final_node_name: str | None = None
    fallback: Fallback = "interval"
    rounding: Rounding = "nearest"
    products: Products = "auto"
    sum_to_one: bool = False
    limit_bytes: int | None = None
    reference_bounds: KnownBounds | None = None
    intermediate_bounds: KnownBounds | None = None

    def choices(self) -> dict[str, Any]:
        """What goes into the options of the propagation."""
        return {name: getattr(self, name) for name in ("fallback", "rounding", "products", "sum_to_one", "limit_bytes")}


class ZonotopeModule(compat.BoundedModule):  # type: ignore[misc]
    """A BoundedModule that also knows the zonotope methods; all others go to auto_LiRPA.

    `compute_bounds(x=(x,), method="zonotope", C=C)` takes and returns what the host's methods do.
    """

    def compute_bounds(
        self,
        x: Any = None,
        aux: Any = None,
        C: Tensor | None = None,
        method: Any = "backward",
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Bounds of the output, or of C y, by any method of zonoplug or of the host.

        Args:
            x: tuple of inputs (batch, *shape), BoundedTensors where perturbed.
            C: specification matrix (batch, rows, outputs).
            method: such as "zonotope", "zonotope[girard,512]", "zonotope+crown", "CROWN".
            kwargs: for a method of the host what that takes. For ours bound_lower, bound_upper, final_node_name,
                fallback, rounding, products, sum_to_one, limit_bytes (see `PropagationOptions`); and reference_bounds
                or the host's intermediate bounds (`interm_bounds` in 0.7, `intermediate_layer_bounds` in 0.3): node
                name
                -> (lower, upper), each (batch, *shape), that hold for all points of the input set. Under either name
                they are used where they are tighter than our own, so looser ones do no harm; the host's methods let
                the second kind replace what they would compute.
        Returns:
            (lower, upper), each (batch, *out_shape) or (batch, rows); NaN where nothing is known.
        """
        return _compute_bounds(super().compute_bounds, self, x, aux, C, method, *args, **kwargs)

    def check_IBP_first_linear(self, node: Any) -> bool:
        """Whether interval bounds of a layer behind the input are as tight as CROWN's: only for boxes."""
        perturbations = (getattr(parent, "perturbation", None) for parent in node.inputs)
        if any(isinstance(perturbation, InputSetPerturbation) for perturbation in perturbations):
            return False
        return bool(super().check_IBP_first_linear(node))


def build(module: nn.Module, example: Tensor, device: str | torch.device | None = None) -> ZonotopeModule:
    """A torch module as a ZonotopeModule, on any supported host.

    Args:
        module: maps (batch, *input_shape) to (batch, *output_shape); put into eval mode.
        example: an input, (1, *input_shape), of the module's type.
        device: where to compute; the example's device by default.
    Raises:
        HostError: auto_LiRPA cannot build the module; the message names the operators that it lacks.
    """
    # The host's patches mode was seen to give wrong bounds behind transposed convolutions.
    transposed = any(type(layer).__name__.startswith("ConvTranspose") for layer in module.modules())
    mode = "matrix" if transposed else "patches"
    built: ZonotopeModule = compat.build(module, example, mode, device, module_class=ZonotopeModule)
    return built


def register() -> None:
    """Give the zonotope methods to every BoundedModule, also those that someone else builds."""
    host = compat.BoundedModule
    if getattr(host.compute_bounds, "original", None) is None:
        original = host.compute_bounds

        def compute_bounds(
            self: Any,
            x: Any = None,
            aux: Any = None,
            C: Tensor | None = None,
            method: Any = "backward",
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            return _compute_bounds(original.__get__(self), self, x, aux, C, method, *args, **kwargs)

        compute_bounds.original = original  # type: ignore[attr-defined]
        host.compute_bounds = compute_bounds


def unregister() -> None:
    """Take back what `register` gave."""
    original = getattr(compat.BoundedModule.compute_bounds, "original", None)
    if original is not None:
        compat.BoundedModule.compute_bounds = original


def _compute_bounds(
    original: ComputeBounds, module: Any, x: Any, aux: Any, C: Tensor | None, method: Any, *args: Any, **kwargs: Any
) -> Any:
    if not BoundMethod.is_ours(method):
        return original(x, aux, C, method, *args, **kwargs)
    names = {field.name: field.name for field in fields(_Options)}
    names[compat.intermediate_bounds_argument()] = names.pop("intermediate_bounds")
    unknown = sorted(set(kwargs) - set(names))
    if args or unknown or aux is not None:
        what = ", ".join(unknown) or "positional arguments after method"
        raise SettingError(f"Method {method!r} does not take {what}; it takes x, C, {', '.join(names)}.")
    if x is None:
        raise SettingError(f"Method {method!r} needs x, the tuple of (bounded) inputs.")
    options = _Options(**{names[name]: value for name, value in kwargs.items()})
    values = (x,) if isinstance(x, Tensor) else tuple(x)
    sets = [input_set(value) for value in values]
    inputs = [value if known is None else known for known, value in zip(sets, values, strict=True)]
    parsed = BoundMethod.parse(method)
    _check_rounding(parsed, options.rounding)
    if options.products not in PRODUCTS:
        raise SettingError(f"Products {options.products!r} is unknown. Known: {', '.join(PRODUCTS)}.")
    known = checked_bounds(module, options.reference_bounds, options.intermediate_bounds)
    propagation = forward_propagation(
        module, inputs, parsed, C, options.final_node_name, known=known, **options.choices()
    )
    propagation.preactivations = {**known, **propagation.preactivations}
    bounds = propagation.bounds
    if parsed.backward is not None:
        bounds = _backward(original, module, values, parsed.backward, bounds, propagation, C, options)
    return (bounds.lower if options.bound_lower else None, bounds.upper if options.bound_upper else None)


def _check_rounding(method: BoundMethod, rounding: Rounding) -> None:
    if rounding not in ROUNDINGS:
        raise SettingError(f"Rounding {rounding!r} is unknown. Known: {', '.join(ROUNDINGS)}.")
    if rounding != "nearest" and method.backward is not None:
        raise SettingError(
            f"Method {str(method)!r} cannot cover rounding errors: the host computes in round-to-nearest."
            ' Use a zonotope method without "+", or rounding="nearest".'
        )


def _backward(
    original: ComputeBounds,
    module: Any,
    values: tuple[Any, ...],
    method: str,
    bounds: Interval,
    propagation: Propagation,
    rows: Tensor | None,
    options: _Options,
) -> Interval:
    """The propagation's bounds, intersected with the host's backward bounds over the propagation's pre-activation
    bounds.
    """
    argument = "reference_bounds" if method.startswith("full-") else compat.intermediate_bounds_argument()
    preactivations = {name: tuple(hull) for name, hull in propagation.preactivations.items() if name in module._modules}
    with compat.working_in(bounds.lower.dtype):
        lower, upper = original(
            values,
            None,
            rows,
            HOST_SPELLING[method],
            bound_lower=options.bound_lower,
            bound_upper=options.bound_upper,
            final_node_name=options.final_node_name,
            **{argument: preactivations},
        )
    return intersect(
        bounds,
        Interval(bounds.lower if lower is None else lower.detach(), bounds.upper if upper is None else upper.detach()),
    )


def forward_propagation(
    module: Any,
    inputs: list[InputSet | Tensor],
    method: BoundMethod,
    rows: Tensor | None = None,
    final: str | None = None,
    goal: Tensor | None = None,
    known: Mapping[str, Interval] | None = None,
    observe: Observer | None = None,
    **choices: Any,
) -> Propagation:
    """Our propagation over a host module, from input sets (or plain tensors where nothing is perturbed).

    Args:
        final: name of the node to bound; the output by default.
        goal: (batch or 1, rows) lower bounds that are enough; where slopes are optimised or budgets raised, it stops
            there.
        known: node name -> bounds (batch, *shape) from elsewhere that hold for all points of the input sets; used
            wherever they are tighter than the zonotope's own.
        observe: is shown each relaxation with its operands; not where slopes are optimised.
        choices: fields of `PropagationOptions` that the method leaves open.
    """
    options = replace(method.propagation_options(), **choices)
    places = zip(module.input_name, module.input_index, strict=True)
    sets = {name: inputs[index] for name, index in places if index is not None}
    limits = {name: value.interval_hull() for name, value in sets.items() if isinstance(value, InputSet)}
    outer = {**limits, **{name: within(limits.get(name), bounds) for name, bounds in (known or {}).items()}}

    def propagate_with(options: PropagationOptions) -> Propagation:
        def once(
            slopes: Mapping[str, Tensor], known: Mapping[str, Interval], observe: Observer | None = None
        ) -> Propagation:
            symbols = SymbolSource()
            operands: dict[str, Operand] = {
                name: value.to_zonotope(symbols, name) if isinstance(value, InputSet) else value
                for name, value in sets.items()
            }
            return propagate(module, operands, symbols, options, rows, final, {**outer, **known}, slopes, observe)

        return optimise_slopes(once, goal) if method.alpha else once({}, {}, observe)

    if isinstance(options.schedule, Backoff):
        return back_off(propagate_with, options, options.schedule, goal)
    return propagate_with(options)


def bound_set(
    module: ZonotopeModule,
    inputs: InputSet,
    method: BoundMethod,
    rows: Tensor | None = None,
    rounding: Rounding = "nearest",
    goal: Tensor | None = None,
    measure: bool = False,
    known: Mapping[str, Interval] | None = None,
) -> tuple[Interval, Propagation | None]:
    """Bounds over an input set by any method, ours or the host's, and the propagation behind them if there was one.

    Args:
        inputs: a box or another set, (batch, *input_shape).
        rows: specification matrix C (batch or 1, rows, outputs); with one, only lower bounds are asked of the host.
        rounding: what the bounds cover beyond exact arithmetic; zonotopes alone can cover any.
        goal: (batch or 1, rows) lower bounds that are enough, where a zonotope's slopes are optimised or its budgets
            raised.
        measure: whether each reduction's loss in the rows is reported, in the propagation's `reductions`.
        known: node name -> bounds (batch, *shape) from elsewhere, intersected with those that a zonotope finds; for the
            host's methods instead of those that they would compute. Bounds that hold for a part of the input set only,
            such as the points with some sign, give bounds that hold for that part.
    Returns:
        bounds (batch, rows), or (batch, *out_shape) without `rows`; upper is +inf where it was not computed.
    Raises:
        SettingError: rounding is to be covered, and the method uses the host's backward bounds, which do not.
    """
    _check_rounding(method, rounding)
    like = inputs.interval_hull().lower
    full = rows if rows is None or rows.shape[0] == like.shape[0] else rows.expand(like.shape[0], -1, -1)
    options = _Options(bound_upper=rows is None)
    values = (bounded_input(inputs),) if method.backward else ()
    host = super(ZonotopeModule, module).compute_bounds
    if not method.zonotope:
        given = {}
        if known is not None:
            given[compat.intermediate_bounds_argument()] = {name: tuple(bounds) for name, bounds in known.items()}
        with compat.working_in(like.dtype):
            lower, upper = host(values, None, full, HOST_SPELLING[str(method)], bound_upper=rows is None, **given)
        return Interval(lower.detach(), torch.full_like(lower, torch.inf) if upper is None else upper.detach()), None
    propagation = forward_propagation(
        module, [inputs], method, rows, goal=goal, known=known, rounding=rounding, measure=measure
    )
    propagation.preactivations = {**(known or {}), **propagation.preactivations}
    bounds = propagation.bounds
    if method.backward is not None:
        bounds = _backward(host, module, values, method.backward, bounds, propagation, full, options)
    return bounds, propagation


def host_bound(
    module: ZonotopeModule, box: Box, method: BoundMethod, rows: Tensor, preactivations: Mapping[str, Interval] | None
) -> Tensor:
    """Lower bounds of C y, (batch, rows), by the host's part of a method, as the host gives them.

    Args:
        box: (batch, *input_shape).
        rows: C, (batch or 1, rows, outputs).
        preactivations: node name -> bounds (batch, *shape) that a method with a propagation of ours, or one that takes
            bounds of inner nodes, uses instead of what the host would compute; "full" methods intersect them.
    """
    name = method.backward or ""
    argument = "reference_bounds" if name.startswith("full-") else compat.intermediate_bounds_argument()
    given = {name: tuple(hull) for name, hull in (preactivations or {}).items() if name in module._modules}
    options: dict[str, Any] = {argument: given} if given and method.takes_preactivations else {}
    with compat.working_in(box.lower.dtype):
        host = super(ZonotopeModule, module).compute_bounds
        full = rows.expand(box.lower.shape[0], -1, -1)
        lower, _ = host((bounded_input(box),), None, full, HOST_SPELLING[name], bound_upper=False, **options)
    result: Tensor = lower.detach()
    return result


bound_box = bound_set  # the name from before there were other sets than boxes
