"""Bounds that a caller supplies for nodes of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.errors import SettingError
from zonoplug.lirpa.forward.propagation import intersect

KnownBounds = Mapping[str, Sequence[Tensor]]


def checked_bounds(module: Any, *several: KnownBounds | None) -> dict[str, Interval]:
    """Node name -> bounds, intersected where a node has several.

    Args:
        module: a BoundedModule.
        several: node name -> (lower, upper), each (batch, *shape).
    Raises:
        SettingError: a name that the graph lacks, or a shape that is not the node's.
    """
    known: dict[str, Interval] = {}
    for given in several:
        for name, bounds in (given or {}).items():
            if name not in module._modules:
                possible = ", ".join(module._modules)
                raise SettingError(f"Bounds are given for node {name!r}, which the graph lacks. It has: {possible}.")
            lower, upper = bounds[0].detach(), bounds[1].detach()
            shape = module[name].output_shape
            if lower.shape != upper.shape or (shape is not None and tuple(lower.shape[1:]) != tuple(shape[1:])):
                raise SettingError(
                    f"Bounds given for node {name!r} have shapes {tuple(lower.shape)} and {tuple(upper.shape)};"
                    f" its values are (batch, {', '.join(map(str, (shape or ())[1:]))})."
                )
            known[name] = within(known.get(name), Interval(lower, upper))
    return known


def within(limit: Interval | None, bounds: Interval) -> Interval:
    """The bounds, intersected with a limit if there is one."""
    return bounds if limit is None else intersect(limit, bounds)
