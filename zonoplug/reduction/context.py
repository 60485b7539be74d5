"""What a reduction may know beside the zonotope: where it stands in the network, and what matters behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope

Ahead = Callable[[Zonotope], Zonotope]


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """How a value moves the rows of the specification, with every relaxation behind it fixed.

        radius of row d  =  sum_j |linear_d . g_j|  +  absolute_d . box      (g_j, box: the value's own)

    Attributes:
        linear: (batch, rows, n), how a named symbol's generator reaches each row: signs cancel on the way.
        absolute: (batch, rows, n), how the box does, if it stays a box to the end: absolute values all the way. Never
            below |linear|.
    """

    linear: Tensor
    absolute: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LiveValue:
    """Another value of the graph that is still to be read, and how what is left of its readers moves the rows."""

    zonotope: Zonotope
    influence: Influence | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ReductionContext:
    """The surroundings of one reduction. Every piece may be absent; rules that need it fall back as they say.

    Attributes:
        node: name of the graph node whose value is reduced.
        layer: how many reductions the walk could have made before, counted from 1 behind the inputs; 0 at an input.
        source: gives ids to fresh symbols; merging rules need it.
        influence: of this value on the rows.
        elsewhere: the other live values that share symbols with this one.
        ahead: the exact operators that follow, up to the next that is not, one function for each reader.
        widest: the most coordinates of a value from here to the next operator that is not exact; 0 if unknown.
        introduced: how many symbols inputs and operators have introduced so far; 0 if unknown.
    """

    node: str = ""
    layer: int = 1
    source: SymbolSource | None = None
    influence: Influence | None = None
    elsewhere: tuple[LiveValue, ...] = ()
    ahead: tuple[Ahead, ...] = ()
    widest: int = 0
    introduced: int = 0


ALONE = ReductionContext()
