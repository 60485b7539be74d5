"""Products and quotients of two zonotopes, coordinate by coordinate, with what their shared symbols give.

Around the centers c and d of x and y,

    x y = c y + d x - c d + (x - c) (y - d):

the first three terms are affine, and the last one is enclosed by the tightest of several ranges (`product_ranges`) and
gets one fresh symbol for each coordinate. Boxes take part as independent symbols without names.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zonoplug.domain.linear_maps import Shape
from zonoplug.domain.symbols import SymbolSource, merge_ids
from zonoplug.domain.zonotope import Interval, Zonotope, add_zonotopes
from zonoplug.relaxations import Relaxation, reciprocal, square
from zonoplug.transformers import product_ranges as ranges
from zonoplug.transformers.affine import Operand, expand, multiply
from zonoplug.transformers.elementwise import covering, relax
from zonoplug.transformers.enclosure import Enclosure, enclose, half_width

Form = Literal["fast", "precise"]
Bounds = tuple[Interval | None, Interval | None]
LIMIT_BYTES = 2**28


class Factor(NamedTuple):
    """An operand: its zonotope, and bounds that may be tighter than its hull.

    Deviations are seen from the zonotope's center even where that is not the middle of the bounds: from there the
    affine part spreads least. On small transformers and gated networks that gave outputs up to 25 % narrower.

    Attributes:
        zonotope: of the shape of the result.
        bounds: of x, inside the zonotope's hull.
        magnitude: the largest |x| of the zonotope's own hull.
    """

    zonotope: Zonotope
    bounds: Interval
    magnitude: Tensor

    @classmethod
    def of(cls, zonotope: Zonotope, bounds: Interval | None, shape: Shape) -> Factor:
        """The factor for a zonotope that is broadcast to `shape`, within its hull and `bounds`."""
        zonotope = expand(zonotope, shape)
        own = zonotope.interval_hull()
        magnitude = torch.maximum(own.upper, -own.lower)
        if bounds is None:
            return cls(zonotope, own, magnitude)
        hull = ranges.meet(own, Interval(*(side.expand_as(own.lower) for side in bounds)))
        return cls(zonotope, hull, magnitude)

    @property
    def deviation(self) -> Interval:
        """Bounds of x - c for the center c."""
        return Interval(self.bounds.lower - self.zonotope.center, self.bounds.upper - self.zonotope.center)

    @property
    def unit(self) -> Tensor:
        """The largest |x - c|, or 1 where it is 0."""
        radius = torch.maximum(self.deviation.upper, -self.deviation.lower)
        return torch.where(radius > 0, radius, torch.ones_like(radius))


def product(
    left: Zonotope,
    right: Zonotope,
    source: SymbolSource,
    node: str,
    form: Form | None = None,
    bounds: Bounds = (None, None),
) -> Enclosure:
    """Enclose x y. The same object twice gives the square.

    Args:
        left, right: zonotopes of shapes that broadcast as in torch.
        source, node: where the fresh symbols get their ids, and their origin.
        form: how (x - c) (y - d) is bounded: "fast" by a difference of squares, "precise" exactly; None is precise
            where that takes at most `LIMIT_BYTES`.
        bounds: bounds of x and of y, of their own shapes, that hold for all points of interest.
    Cost: O(batch k n) time and memory, a factor log k more time for the precise form.
    """
    shape = tuple(torch.broadcast_shapes(left.center.shape, right.center.shape)[1:])
    x = Factor.of(left, bounds[0], shape)
    if left is right:
        return Enclosure(relax(left, square, x.bounds, source, node), ranges.squares(x.bounds))
    y = Factor.of(right, bounds[1], shape)
    c, d = x.zonotope.center, y.zonotope.center
    linear = add_zonotopes(x.zonotope.scale(d), y.zonotope.scale(c)).shift(-c * d)
    remainder, total, terms = _product_ranges(x, y, form)
    return enclose(linear, remainder, total, source, node, terms, x.magnitude * y.magnitude)


def divide(
    numerator: Operand,
    denominator: Zonotope,
    source: SymbolSource,
    node: str,
    form: Form | None = None,
    bounds: Bounds = (None, None),
) -> Enclosure:
    """Enclose x / y for y of one sign. NaN where y may be 0: nothing is known.

        x / y = q + (x - q y) (1 / y)  for any q. With  q = x / y at the midpoints, shared symbols cancel and the error
        of 1 / y is multiplied with something small; with  q = 0  nothing is added. The narrower one is taken.

    Args:
        numerator: a zonotope, or a constant, whose shape broadcasts against the denominator's.
        source, node: where the fresh symbols get their ids, and their origin.
        form: how (x - q y) (1 / y) is bounded, as in `product`.
        bounds: bounds of x and of y, of their own shapes, that hold for all points of interest.
    Cost: three times that of `product`.
    """
    shape = tuple(torch.broadcast_shapes(_center(numerator).shape, denominator.center.shape)[1:])
    y = Factor.of(denominator, bounds[1], shape)
    one_sign = (y.bounds.lower > 0) | (y.bounds.upper < 0)
    inverse = Interval(*(torch.where(one_sign, 1 / side, torch.nan) for side in reversed(y.bounds)))
    if isinstance(numerator, Tensor):
        result = multiply(relax(y.zonotope, reciprocal, y.bounds, source, node), numerator)
        return Enclosure(result, ranges.corners(inverse, Interval(numerator, numerator)))
    x = Factor.of(numerator, bounds[0], shape)
    relaxation, ratio = covering(reciprocal, y.bounds), _twice_middle(x.bounds) / _twice_middle(y.bounds)
    corners = ranges.corners(x.bounds, inverse)
    radii = []
    for q in (ratio, torch.zeros_like(ratio)):
        linear, remainder, total, _ = _quotient(x, y, q, relaxation, inverse, form)
        radii.append(torch.minimum(linear.radius() + half_width(remainder), half_width(ranges.meet(total, corners))))
    q = ratio * (radii[0] <= radii[1])
    linear, remainder, total, terms = _quotient(x, y, q, relaxation, inverse, form)
    magnitude = 4 * x.magnitude * torch.maximum(inverse.upper, -inverse.lower)
    return enclose(linear, remainder, ranges.meet(total, corners), source, node, terms + 8, magnitude)


def _quotient(
    x: Factor, y: Factor, q: Tensor, relaxation: Relaxation, inverse: Interval, form: Form | None
) -> tuple[Zonotope, Interval, Interval, int]:
    """Affine part and remainder of  q + (x - q y) (1 / y),  its range, and the terms of sums behind these."""
    line = y.zonotope.scale(relaxation.slope, relaxation.offset)
    rest = Factor.of(add_zonotopes(x.zonotope, y.zonotope.scale(-q)), None, y.zonotope.shape)
    one_over_y = Factor.of(line.widen(relaxation.radius), inverse, y.zonotope.shape)
    c, d = rest.zonotope.center, line.center
    linear = add_zonotopes(rest.zonotope.scale(d), line.scale(c)).shift(q - c * d)
    (deviation, total, terms), error = _product_ranges(rest, one_over_y, form), c.abs() * relaxation.radius
    remainder = Interval(deviation.lower - error, deviation.upper + error)
    return linear, remainder, Interval(q + total.lower, q + total.upper), terms


def _product_ranges(x: Factor, y: Factor, form: Form | None) -> tuple[Interval, Interval, int]:
    """Ranges of (x - c) (y - d) and of x y, and how many rounded numbers are summed for one.

    Radii are sums over symbols that cover their own rounding.
    """
    scale = x.unit * y.unit
    first, second = (factor.zonotope.scale(1 / factor.unit) for factor in (x, y))
    plus = add_zonotopes(first, second).radius()
    minus = add_zonotopes(first, second.scale(-torch.ones_like(scale))).radius()
    differences = ranges.difference_of_squares(scale, within_two(plus), within_two(minus))
    remainder = ranges.meet(ranges.corners(x.deviation, y.deviation), differences)
    total = ranges.corners(x.bounds, y.bounds)
    symbols = merge_ids(x.zonotope.symbols, y.zonotope.symbols)
    terms = 8
    size = 10 * (symbols.shape[0] + 2) * scale.numel() * scale.element_size()
    if form == "precise" or (form is None and size <= LIMIT_BYTES):
        g, h = _with_box(x.zonotope, symbols, 0), _with_box(y.zonotope, symbols, 1)
        zero = torch.zeros_like(scale)
        exact = ranges.zonogon(g, h, [(zero, zero), (x.zonotope.center, y.zonotope.center)])
        remainder, total = ranges.meet(remainder, exact[0]), ranges.meet(total, exact[1])
        terms += symbols.shape[0] + 2
    return remainder, total, terms


def within_two(radius: Tensor) -> Interval:
    """+/- radius, allowing for rounding, inside [-2, 2], where sums of two scaled deviations are."""
    radius = (radius * (1 + 8 * torch.finfo(radius.dtype).eps)).clamp(max=2)
    return Interval(-radius, radius)


def _with_box(zonotope: Zonotope, symbols: Tensor, place: int) -> Tensor:
    """Generators (batch, k + 2, *shape): those of `symbols`, then the box at `place` of two symbols of its own."""
    extra = zonotope.center.new_zeros(zonotope.batch, 2, *zonotope.shape)
    if zonotope.box is not None:
        extra[:, place] = zonotope.box
    return torch.cat([zonotope.generators(symbols), extra], dim=1)


def _twice_middle(bounds: Interval) -> Tensor:
    return bounds.lower + bounds.upper


def _center(operand: Operand) -> Tensor:
    return operand if isinstance(operand, Tensor) else operand.center
