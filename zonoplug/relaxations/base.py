"""What a relaxation is, and the registry of those known by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from zonoplug.registry import Registry


class Relaxation(NamedTuple):
    """f(x) lies in  slope * x + offset +/- radius  for every x in [lower, upper].

    All three have the shape of the bounds. f is the mathematical function: how a network's own evaluation rounds is not
    covered. NaN means that nothing is known: so it is where a bound is NaN, where f is not defined on all of
    [lower, upper], and where it is too large for the type. Infinite bounds give NaN unless f is bounded there.
    """

    slope: Tensor
    offset: Tensor
    radius: Tensor


RelaxationRule = Callable[[Tensor, Tensor], Relaxation]

RELAXATIONS: Registry[RelaxationRule] = Registry("relaxation", "zonoplug.relaxations")
