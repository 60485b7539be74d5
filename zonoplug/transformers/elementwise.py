"""Functions of one variable, through a linear relaxation."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from zonoplug.domain import rounding
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.relaxations import Relaxation, relu
from zonoplug.relaxations.base import RelaxationRule
from zonoplug.relaxations.piecewise_linear import two_pieces
from zonoplug.transformers.box_slopes import flat_beside_box

NAMED_ENTRIES = 2**22  # generators of errors that are few enough to keep

_last: WeakIdKeyDictionary = WeakIdKeyDictionary()  # lower bounds -> upper bounds, what was asked, the relaxation


def relax(zonotope: Zonotope, rule: RelaxationRule, bounds: Interval, source: SymbolSource, node: str) -> Zonotope:
    """Enclose f(x) for every x in the zonotope.

        y = slope * x + offset + radius * e  with one fresh symbol e for each coordinate whose radius is not 0.

    Args:
        rule: the relaxation of f. A ReLU's slope may give way to a flat one beside a box, see `box_slopes`.
        bounds: lower and upper bounds (batch, *shape) that hold for every x of interest: the interval hull, or
            tighter bounds from elsewhere that hold for the concrete inputs.
        source, node: where the fresh symbols get their ids, and their origin.
    """
    slope = flat_beside_box(zonotope, bounds) if rule is relu else None
    chosen = rule if slope is None else lambda lower, upper: two_pieces(lower, upper, 0.0, 1.0, slope)
    return apply_relaxation(zonotope, covering(chosen, bounds), source, node)


def covering(rule: RelaxationRule, bounds: Interval) -> Relaxation:
    """The relaxation of a function on `bounds`; it covers its own rounding while that is asked for."""
    relaxation = _relaxation(rule, bounds)
    if not rounding.active():
        return relaxation
    own, network = rounding.relaxation_error(*relaxation, torch.maximum(bounds.lower.abs(), bounds.upper.abs()))
    return relaxation._replace(radius=relaxation.radius + own.masked_fill(exact(relaxation), 0) + network)


def _relaxation(rule: RelaxationRule, bounds: Interval) -> Relaxation:
    """What a rule finds on bounds; kept for the same tensors, as passes backward ask for it again, and often.

    What carries gradients is not kept.
    """
    lower, upper = bounds
    asked = (rule, lower._version, upper._version, torch.is_grad_enabled())
    last = _last.get(lower)
    if last is not None and last[0] is upper and last[1] == asked:
        kept: Relaxation = last[2]
        return kept
    found = rule(lower, upper)
    if not any(part.requires_grad for part in (lower, upper, *found)):
        _last[lower] = (upper, asked, found)
    return found


def exact(relaxation: Relaxation) -> Tensor:
    """Where the relaxation is the identity or zero, so that nothing was rounded: a stable ReLU's two cases."""
    plain = (relaxation.slope == 0) | (relaxation.slope == 1)
    return plain & (relaxation.offset == 0) & (relaxation.radius == 0)


def apply_relaxation(zonotope: Zonotope, relaxation: Relaxation, source: SymbolSource, node: str) -> Zonotope:
    """slope * x + offset +/- radius, the radius as fresh symbols, joined with the box where boxes get names."""
    scaled = zonotope.scale(relaxation.slope, relaxation.offset)
    if scaled.box is not None and rounding.names_boxes() and _count(scaled.box) * scaled.box.numel() <= NAMED_ENTRIES:
        radius = rounding.up(relaxation.radius + scaled.box)
        return Zonotope(scaled.center, scaled.blocks).with_fresh_symbols(radius, source, node)
    return scaled.with_fresh_symbols(relaxation.radius, source, node)


def name_box(zonotope: Zonotope, later: int, source: SymbolSource, node: str) -> Zonotope:
    """The same set with symbols for what is in the box, where boxes get names and these take little memory.

    Args:
        later: the most coordinates that an image of the zonotope will have.
    """
    box = zonotope.box
    if box is None or not rounding.names_boxes() or _count(box) * max(later, prod(zonotope.shape)) > NAMED_ENTRIES:
        return zonotope
    return replace(zonotope, box=None).with_fresh_symbols(box, source, node)


def _count(box: Tensor) -> int:
    """How many symbols a box needs."""
    return int((box.flatten(1) > 0).sum(dim=1).max()) if box.numel() else 0
