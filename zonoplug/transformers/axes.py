"""Functions that take some axes together, written for the last axis alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.transformers.affine import rearrange
from zonoplug.transformers.enclosure import Enclosure


def along_axes(
    along_last: Callable[[Zonotope, Interval | None], Enclosure],
    zonotope: Zonotope,
    axes: Sequence[int],
    keepdims: bool,
    bounds: Interval | None,
) -> Enclosure:
    """Enclose along `axes` what `along_last` encloses along the last one.

    Args:
        along_last: from a zonotope (batch, *others, n) and bounds of it, the result for each of the others.
        axes: counted with the batch axis, which is not among them.
        keepdims: whether the axes stay, with length 1.
        bounds: bounds of the zonotope that hold for all points of interest.
    """
    outer = bounds and Interval(*(_with_axes_last(Zonotope(side), axes).center for side in bounds))
    result = along_last(_with_axes_last(zonotope, axes), outer)
    shape = _without_axes(zonotope.center.shape, axes, keepdims)
    return Enclosure(result.zonotope.reshape(shape), Interval(*(side.reshape(-1, *shape) for side in result.bounds)))


def _with_axes_last(zonotope: Zonotope, axes: Sequence[int]) -> Zonotope:
    """The zonotope with `axes` as one axis, the last."""
    rank = zonotope.center.dim()
    gone = sorted(axis % rank for axis in axes)
    kept = [axis for axis in range(1, rank) if axis not in gone]
    return rearrange(zonotope, lambda x: x.permute(0, *kept, *gone).flatten(len(kept) + 1), moves_only=True)


def _without_axes(shape: Sequence[int], axes: Sequence[int], keepdims: bool) -> tuple[int, ...]:
    """The shape (batch, ...) less its batch axis and `axes`; those have length 1 with `keepdims`."""
    gone = {axis % len(shape) for axis in axes}
    return tuple(1 if axis in gone else shape[axis] for axis in range(1, len(shape)) if keepdims or axis not in gone)
