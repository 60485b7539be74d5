"""What a relaxation is, and the registry of those known by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from zonoplug.registry import Registry


class Relaxation(NamedTuple):
    """f(x) lies in  slope * x + offset +/- radius  for every x in [lower, upper].

    All three have the shape of the bounds. NaN or infinite bounds give NaN: nothing is known.
    """

    slope: Tensor
    offset: Tensor
    radius: Tensor


RelaxationRule = Callable[[Tensor, Tensor], Relaxation]

RELAXATIONS: Registry[RelaxationRule] = Registry("relaxation", "zonoplug.relaxations")
