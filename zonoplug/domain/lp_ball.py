"""Balls of the l1, l2 and other norms: multi-norm zonotopes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from zonoplug.domain.blocks import DiagonalBlock
from zonoplug.domain.input_sets import Box, InputSet
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope, compress
from zonoplug.errors import SettingError


@dataclass(frozen=True, slots=True, eq=False)
class LpBall(InputSet):
    """All x with  ||(x - center) / radius||_p <= 1,  and  lower <= x <= upper  if those are given.

    Attributes:
        center: (batch, *shape), between the limits.
        radius: >= 0, a number, or a tensor that broadcasts against the center: then one for each element, or for each
            coordinate (an ellipsoid with axes of its own).
        p: 1 <= p; for p = inf use `Box`.
        lower, upper: limits that broadcast against the center, or None.
    Raises:
        SettingError: p or the radius is outside its range, something is not finite, or the center is outside its
            limits.

    Source: Bonaert, Dimitrov, Baader, Vechev, PLDI 2021 (multi-norm zonotopes).
    """

    center: Tensor
    radius: float | Tensor
    p: float
    lower: Tensor | float | None = None
    upper: Tensor | float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.p < inf:
            raise SettingError(
                f"LpBall: p is {self.p}, and must be a finite number of at least 1; for p = inf use Box."
            )
        radii = torch.as_tensor(self.radius)
        if not bool((radii >= 0).all() & radii.isfinite().all() & self.center.isfinite().all()):
            raise SettingError("LpBall: the radius must be at least 0, and it and the center finite, without NaN.")
        low, high = self._limits()
        if not bool((low <= self.center).all() & (self.center <= high).all()):
            raise SettingError("LpBall: the center must lie between the lower and upper limits.")

    @property
    def clipped(self) -> bool:
        """Whether the ball has limits."""
        return self.lower is not None or self.upper is not None

    def radii(self) -> Tensor:
        """The radius of each coordinate, (batch, *shape)."""
        return torch.as_tensor(self.radius).to(self.center).expand_as(self.center)

    def to_zonotope(self, source: SymbolSource, node: str) -> Zonotope:
        """One symbol for each coordinate with room to move, all in one unit ball of the norm.

        A coordinate whose limits leave no room gets none. Other limits are left out, as a zonotope centered on the ball
        cannot express them; but the limits' box is taken, for the whole batch, where it is tighter in every direction:
        where what it reaches from the center, summed over coordinates, is at most the ball's least radius.
        """
        hull = self.interval_hull()
        moves = hull.upper > hull.lower
        radius = torch.nextafter(self.radii(), torch.full_like(self.center, inf)).masked_fill(~moves, 0).flatten(1)
        needed = radius > 0
        count = int(needed.sum(dim=1).max()) if needed.numel() else 0
        if count == 0:
            return Zonotope(self.center)
        reach = torch.maximum(hull.upper - self.center, self.center - hull.lower).flatten(1).sum(dim=1)
        if self.clipped and bool((reach <= radius.masked_fill(~needed, inf).amin(dim=1)).all()):
            return Box(*hull).to_zonotope(source, node)
        values, index = compress(radius, needed, count)
        shape = tuple(self.center.shape[1:])
        block = DiagonalBlock(source.fresh(node, index), values, index, shape, float(self.p))
        return Zonotope(self.center, (block,))

    def interval_hull(self) -> Interval:
        low, high = self._limits()
        radius = self.radii()
        lower = torch.nextafter(self.center - radius, torch.full_like(radius, -inf))
        upper = torch.nextafter(self.center + radius, torch.full_like(radius, inf))
        moves = radius > 0
        lower = torch.maximum(torch.where(moves, lower, self.center), low)
        return Interval(lower, torch.minimum(torch.where(moves, upper, self.center), high))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` points per element: on the sphere, near its axes, and inside; clipped to the limits.

        For normal z the point  sign(z) (|z| / ||z||_2)^(2/p)  lies on the unit sphere. Clipping a coordinate moves it
        towards the center, so it stays in the ball.
        """
        z = torch.randn(count, *self.center.shape, generator=generator, dtype=torch.float64).flatten(2)
        share = torch.rand(count, *z.shape[1:], generator=generator, dtype=torch.float64)
        z[1::3] *= share[1::3] > share[1::3].sort(dim=2).values[:, :, [-min(4, z.shape[2])]]
        length = torch.linalg.vector_norm(z, dim=2, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        unit = z.sign() * (z.abs() / length) ** (2 / self.p)
        unit[2::3] *= share[2::3, :, :1]
        step = unit.reshape(count, *self.center.shape).to(self.center)
        hull = self.interval_hull()
        return torch.minimum(torch.maximum(self.center + step * self.radii(), hull.lower), hull.upper)

    def contains(self, points: Tensor, tolerance: float = 0.0) -> Tensor:
        """Which points (..., batch, *shape) lie inside: (..., batch), bool.

        Args:
            tolerance: relative to the radius.
        """
        low, high = self._limits()
        away = (points - self.center).abs()
        radius = self.radii()
        share = torch.where(radius > 0, away / radius, torch.where(away > 0, torch.full_like(away, inf), away))
        axis = points.dim() - len(self.center.shape) + 1
        inside: Tensor = torch.linalg.vector_norm(share.flatten(axis), ord=self.p, dim=-1) <= 1 + tolerance
        within = (points >= low) & (points <= high)
        return inside & within.flatten(axis).all(dim=-1)

    def _limits(self) -> tuple[Tensor, Tensor]:
        low = torch.as_tensor(-inf if self.lower is None else self.lower).to(self.center)
        high = torch.as_tensor(inf if self.upper is None else self.upper).to(self.center)
        return low, high
