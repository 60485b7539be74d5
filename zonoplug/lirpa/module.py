"""Zonotope bounds as methods of the host's BoundedModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import SettingError
from zonoplug.lirpa import compat
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.perturbations import bounded_input, input_set
from zonoplug.lirpa.propagate import Fallback, Propagation, intersect, propagate
from zonoplug.transformers.affine import Operand

Bounds = tuple[Tensor | None, Tensor | None]
ComputeBounds = Callable[..., Any]


class ZonotopeModule(compat.BoundedModule):  # type: ignore[misc]
    """A BoundedModule that also knows the zonotope methods; all others go to auto_LiRPA.

    `compute_bounds(x=(x,), method="zonotope", C=C)` takes and returns what the host's methods do.
    """

    def compute_bounds(self, x: Any = None, aux: Any = None, C: Tensor | None = None, method: Any = "backward",
                       *args: Any, **kwargs: Any) -> Any:
        """Bounds of the output, or of C y, by any method of zonoplug or of the host.

        Args:
            x: tuple of inputs (batch, *shape), BoundedTensors where perturbed.
            C: specification matrix (batch, rows, outputs).
            method: such as "zonotope", "zonotope[girard,512]", "zonotope+crown", "CROWN".
        Returns:
            (lower, upper), each (batch, *out_shape) or (batch, rows); NaN where nothing is known.
        """
        return _compute_bounds(super().compute_bounds, self, x, aux, C, method, *args, **kwargs)


def register() -> None:
    """Give the zonotope methods to every BoundedModule, also those that someone else builds."""
    host = compat.BoundedModule
    if getattr(host.compute_bounds, "original", None) is None:
        original = host.compute_bounds

        def compute_bounds(self: Any, x: Any = None, aux: Any = None, C: Tensor | None = None,
                           method: Any = "backward", *args: Any, **kwargs: Any) -> Any:
            return _compute_bounds(original.__get__(self), self, x, aux, C, method, *args, **kwargs)

        compute_bounds.original = original  # type: ignore[attr-defined]
        host.compute_bounds = compute_bounds


def unregister() -> None:
    """Take back what `register` gave."""
    original = getattr(compat.BoundedModule.compute_bounds, "original", None)
    if original is not None:
        compat.BoundedModule.compute_bounds = original


def _compute_bounds(original: ComputeBounds, module: Any, x: Any, aux: Any, C: Tensor | None, method: Any,
                    *args: Any, **kwargs: Any) -> Any:
    if not BoundMethod.is_ours(method):
        return original(x, aux, C, method, *args, **kwargs)
    options = {"bound_lower": True, "bound_upper": True, "final_node_name": None, "fallback": "interval"}
    unknown = sorted(set(kwargs) - set(options))
    if args or unknown or aux is not None:
        what = ", ".join(unknown) or "positional arguments after method"
        raise SettingError(f"Method {method!r} does not take {what}; it takes x, C, {', '.join(options)}.")
    if x is None:
        raise SettingError(f"Method {method!r} needs x, the tuple of (bounded) inputs.")
    options |= kwargs
    values = (x,) if isinstance(x, Tensor) else tuple(x)
    bounds = zonotope_bounds(
        module, values, BoundMethod.parse(method), C, options["final_node_name"],
        options["fallback"], original, bool(options["bound_upper"]))
    return (bounds.lower if options["bound_lower"] else None, bounds.upper if options["bound_upper"] else None)


def zonotope_bounds(module: Any, x: tuple[Any, ...], method: BoundMethod, rows: Tensor | None, final: str | None,
                    fallback: Fallback, original: ComputeBounds, bound_upper: bool) -> Interval:
    """Bounds by our walk and, where the method says so, by the host's backward pass over the walk's hulls."""
    sets = [input_set(value) for value in x]
    propagation = walk(module, [box if box is not None else value for box, value in zip(sets, x, strict=True)],
                       method, rows, final, fallback)
    bounds = propagation.output.interval_hull()
    if method.backward is None:
        return bounds
    interm = {compat.intermediate_bounds_argument(): {n: tuple(h) for n, h in propagation.hulls.items()}}
    host_method = {"crown": "CROWN", "alpha-crown": "CROWN-Optimized"}[method.backward]
    lower, upper = original(x, None, rows, host_method, bound_upper=bound_upper, final_node_name=final, **interm)
    return intersect(bounds, Interval(bounds.lower if lower is None else lower.detach(),
                                      bounds.upper if upper is None else upper.detach()))


def walk(module: Any, inputs: list[Box | Tensor], method: BoundMethod, rows: Tensor | None = None,
         final: str | None = None, fallback: Fallback = "interval",
         known: Mapping[str, Interval] | None = None) -> Propagation:
    """Our walk over a host module, from input sets (or plain tensors where nothing is perturbed)."""
    symbols = SymbolSource()
    operands: dict[str, Operand] = {}
    for name, index in zip(module.input_name, module.input_index, strict=True):
        if index is not None:
            value = inputs[index]
            operands[name] = value.to_zonotope(symbols, name) if isinstance(value, Box) else value
    return propagate(module, operands, symbols, method.walk_options(fallback), rows, final, known)


def host_bounds(module: Any, box: Box, method: BoundMethod, rows: Tensor | None = None,
                bound_upper: bool = True) -> Interval:
    """Bounds of a box by any method, ours or the host's: (batch, rows) or (batch, *out_shape)."""
    lower, upper = module.compute_bounds((bounded_input(box),), None, rows, str(method), bound_upper=bound_upper)
    return Interval(lower.detach(), torch.full_like(lower, torch.inf) if upper is None else upper.detach())
