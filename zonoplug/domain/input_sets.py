"""Sets of inputs, and the zonotopes that enclose them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import SettingError


class InputSet(ABC):
    """A set of points (batch, *shape) for each element of a batch.

    A member supplies a zonotope around itself, its interval hull, and points inside. Bounds over the set are bounds
    over that zonotope, by our methods and by the host's.
    """

    __slots__ = ()

    @abstractmethod
    def to_zonotope(self, source: SymbolSource, node: str) -> Zonotope:
        """A zonotope that contains the set, and whose interval hull does so in floating point too.

        Args:
            source: where the symbols get their ids.
            node: name under which the symbols' origin is recorded.
        """

    @abstractmethod
    def interval_hull(self) -> Interval:
        """Bounds of each coordinate, (batch, *shape); the smallest, up to rounding outwards."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` points per element, (count, batch, *shape), inside up to rounding: extremes and points between."""


@dataclass(frozen=True, slots=True, eq=False)
class Box(InputSet):
    """All points between `lower` and `upper`, each (batch, *shape).

    Raises:
        SettingError: shapes differ, or a bound is NaN or infinite, or lower > upper somewhere.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise SettingError(f"Box: lower has shape {tuple(self.lower.shape)}, upper {tuple(self.upper.shape)}.")
        if not bool((self.lower <= self.upper).all()):
            raise SettingError("Box: lower must be at most upper everywhere, without NaN.")
        if not bool((self.upper.isfinite() & self.lower.isfinite()).all()):
            raise SettingError("Box: every coordinate needs a finite lower and upper bound.")

    @classmethod
    def ball(cls, center: Tensor, radius: float | Tensor) -> Box:
        """The l-infinity ball around `center` (batch, *shape)."""
        return cls(center - radius, center + radius)

    def pick(self, index: Tensor | slice) -> Box:
        """The boxes at an index of the batch axis."""
        return Box(self.lower[index], self.upper[index])

    def expanded(self, count: int) -> Box:
        """One box (1, *shape) for each of `count` elements, in the same memory."""
        return Box(*self.interval_hull().expanded(count))

    def to_zonotope(self, source: SymbolSource, node: str) -> Zonotope:
        """One symbol for each coordinate with room to move. Covers the box in floating point too."""
        center = self.lower + (self.upper - self.lower) / 2
        radius = torch.maximum(self.upper - center, center - self.lower)
        outward = torch.nextafter(radius, torch.full_like(radius, torch.inf))
        radius = torch.where(self.upper > self.lower, outward, torch.zeros_like(radius))
        return Zonotope(center).with_fresh_symbols(radius, source, node)

    def interval_hull(self) -> Interval:
        return Interval(self.lower, self.upper)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` points per element, (count, batch, *shape): half uniform, half corners."""
        noise = torch.rand(count, *self.lower.shape, generator=generator, dtype=self.lower.dtype).to(self.lower.device)
        noise[::2] = noise[::2].round()
        points = self.lower + noise * (self.upper - self.lower)
        return torch.minimum(torch.maximum(points, self.lower), self.upper)
