"""Constraints on noise symbols: which values of them meet  A e <= b,  and bounds of linear functions over those.

Activation splits and the negated specification are half-spaces of the same symbols that span input and output. Interval
constraint propagation shrinks the symbols' ranges by them, and the Lagrangian dual bounds linear functions over them:

    min { d . e : A e <= b, l <= e <= u }  >=  max_{y >= 0}  -y . b + min_{l <= e <= u} (d + A' y) . e

Every y >= 0 gives a sound bound, so a few gradient steps do.

Source: Scott et al., Automatica 69, 2016 (constrained zonotopes); Koller, Ladner, Althoff, arXiv 2505.17854 (the unsafe
set as constraints on symbols).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval, Zonotope

WIDENED = 1e-5  # share of a symbol's range by which contracted ends stay outside, for rounding in float32


@dataclass(frozen=True, slots=True, eq=False)
class SymbolConstraints:
    """The values e in [lower, upper] of k noise symbols that meet  A e <= b, for each element of a batch.

    Attributes:
        matrix: A, (batch, m, k).
        bound: b, (batch, m); +inf where a row does not constrain anything.
        lower, upper: ranges of the symbols, (batch, k), within [-1, 1].
    """

    matrix: Tensor
    bound: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def on_unit_cube(cls, matrix: Tensor, bound: Tensor) -> SymbolConstraints:
        """Constraints on symbols that range over all of [-1, 1]."""
        one = torch.ones_like(matrix[:, 0])
        return cls(matrix, bound, -one, one)

    @property
    def empty(self) -> Tensor:
        """(batch,): True where interval reasoning has found that no value of the symbols meets the constraints."""
        return (self.lower > self.upper).any(dim=1)

    @property
    def _rounding(self) -> float:
        """More than the relative error of a sum over symbols, and then over rows."""
        return float((sum(self.matrix.shape[1:]) + 8) * torch.finfo(self.matrix.dtype).eps)

    def contracted(self, rounds: int = 2) -> SymbolConstraints:
        """The constraints with smaller ranges that still hold every value that meets them.

        Each row is solved for each symbol, with the other symbols at their most helpful ends:

            A_ij e_j  <=  b_i - sum_{l != j} min A_il e_l

        Ends stay outside by a share of the range for rounding. Where nothing is left, lower exceeds upper.
        NaN and infinite coefficients contract nothing.

        Args:
            rounds: how often all rows are used; each round works on the ranges of the one before.
        """
        lower, upper = self.lower, self.upper
        end_error = 4 * torch.finfo(lower.dtype).eps
        row_error = self._rounding * (self.bound.abs() + self.matrix.abs().sum(dim=2)).nan_to_num(posinf=0.0)
        for _ in range(rounds):
            width = (upper - lower).clamp(min=0)
            center = lower + width / 2
            reach = self.matrix.abs() * width.unsqueeze(1)  # how far a row moves over a symbol's range
            least = torch.einsum("bmk,bk->bm", self.matrix, center) - reach.sum(dim=2) / 2
            share = (self.bound + row_error - least).unsqueeze(2) / reach.clamp(min=torch.finfo(reach.dtype).tiny)
            # e_j may move by at most this share of its range from the end where its row is least.
            share = torch.where(share.isnan(), torch.inf, share) * (1 + WIDENED) + WIDENED
            rising, falling = self.matrix > 0, self.matrix < 0
            from_below = torch.where(rising, share, torch.inf).amin(dim=1).clamp(max=1)
            from_above = torch.where(falling, share, torch.inf).amin(dim=1).clamp(max=1)
            old_lower, old_upper = lower, upper
            upper = torch.where(from_below < 1, old_lower + from_below * width + end_error, old_upper)
            lower = torch.where(from_above < 1, old_upper - from_above * width - end_error, old_lower)
            hopeless = (self.bound + row_error < least).any(dim=1, keepdim=True)
            lower, upper = torch.where(hopeless, 1.0, lower), torch.where(hopeless, -1.0, upper)
        return replace(self, lower=lower, upper=upper)

    def least(self, direction: Tensor, steps: int = 20, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lower bounds of  d . e  over the values that meet the constraints, by the dual.

        Args:
            direction: d, (batch, k).
            steps: gradient steps on the multipliers.
            start: multipliers >= 0 to start from, (batch, m); zero by default, which is the bound over the ranges.
        Returns:
            bounds (batch,), which grow without limit where no value meets the constraints, and the multipliers behind
            them, (batch, m).
        """
        used = self.bound.isfinite()
        bound = torch.where(used, self.bound, 0.0)
        matrix = torch.where(used.unsqueeze(2), self.matrix, 0.0)
        center, radius = (self.lower + self.upper) / 2, (self.upper - self.lower).clamp(min=0) / 2
        # Steps are measured in the size of the objective and of each row, so that scales do not matter.
        norm = (matrix.abs() * radius.unsqueeze(1)).sum(dim=2)
        size = (direction.abs() * radius).sum(dim=1, keepdim=True).clamp(min=torch.finfo(bound.dtype).tiny)
        y = torch.zeros_like(bound) if start is None else start
        best, best_y = bound.new_full((bound.shape[0],), -torch.inf), y
        first, second = torch.zeros_like(y), torch.zeros_like(y)
        for step in range(steps + 1):
            slope = direction + torch.einsum("bm,bmk->bk", y, matrix)
            value = (slope * center - slope.abs() * radius).sum(dim=1) - (y * bound).sum(dim=1)
            better = value > best
            best, best_y = torch.where(better, value, best), torch.where(better.unsqueeze(1), y, best_y)
            point = center - slope.sign() * radius
            gradient = torch.einsum("bmk,bk->bm", matrix, point) - bound
            scaled = gradient / norm.clamp(min=torch.finfo(bound.dtype).tiny)
            first, second = 0.8 * first + 0.2 * scaled, 0.95 * second + 0.05 * scaled.square()
            ratio = (first / (1 - 0.8 ** (step + 1))) / ((second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-9)
            rate = 0.3 * size / norm.clamp(min=torch.finfo(bound.dtype).tiny) * 0.93**step
            y = (y + rate * ratio).clamp(min=0).nan_to_num(nan=0.0, posinf=0.0)
        return best, best_y

    def infeasible(self, steps: int = 10) -> Tensor:
        """(batch,): True where some mixture of the rows, weights w >= 0 of sum 1, is above its bound over all ranges.

            max_w  min_{l <= e <= u}  w . (A e - b)  >  0, by more than rounding

        Then no value of the symbols meets all rows. Weights move by mirror ascent.
        """
        used = self.bound.isfinite()
        bound = torch.where(used, self.bound, 0.0)
        matrix = torch.where(used.unsqueeze(2), self.matrix, 0.0)
        center, radius = (self.lower + self.upper) / 2, (self.upper - self.lower).clamp(min=0) / 2
        norm = (matrix.abs() * radius.unsqueeze(1)).sum(dim=2).clamp(min=torch.finfo(bound.dtype).tiny)
        weight = used.to(bound.dtype)
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1)
        error = self._rounding * (bound.abs() + matrix.abs().sum(dim=2)).amax(dim=1)
        found = torch.zeros_like(self.empty)
        for step in range(steps + 1):
            slope = torch.einsum("bm,bmk->bk", weight, matrix)
            value = (slope * center - slope.abs() * radius).sum(dim=1) - (weight * bound).sum(dim=1)
            found = found | ((value > error) & used.any(dim=1))
            point = center - slope.sign() * radius
            gradient = (torch.einsum("bmk,bk->bm", matrix, point) - bound) / norm.amax(dim=1, keepdim=True)
            logits = weight.log() + 2.0 / (1 + 0.2 * step) * gradient
            weight = logits.nan_to_num(nan=-torch.inf).masked_fill(~used, -torch.inf).softmax(dim=1).nan_to_num()
        return found


@dataclass(frozen=True, slots=True, eq=False)
class ConstrainedZonotope:
    """The points of a zonotope whose noise symbols meet constraints.

    Attributes:
        zonotope: its named symbols, in the order of `zonotope.symbols`, are those of the constraints.
        constraints: A e <= b.
    """

    zonotope: Zonotope
    constraints: SymbolConstraints

    def interval_hull(self, steps: int = 20) -> Interval:
        """Bounds of each coordinate, (batch, *shape), by propagation of intervals and then the dual."""
        tight = replace(self, constraints=self.constraints.contracted())
        shape = self.zonotope.center.shape
        count = self.zonotope.center[0].numel()
        unit = torch.eye(count, dtype=self.zonotope.center.dtype, device=self.zonotope.center.device)
        lower = torch.stack([tight.least(row, steps) for row in unit], dim=1)
        upper = torch.stack([-tight.least(-row, steps) for row in unit], dim=1)
        return Interval(lower.reshape(shape), upper.reshape(shape))

    def least(self, direction: Tensor, steps: int = 20) -> Tensor:
        """Lower bounds of  d . x,  (batch,), for one direction d (n,)."""
        offset, symbols = self._along(direction)
        return offset + self.constraints.least(symbols, steps)[0]

    def exact_least(self, direction: Tensor) -> Tensor:
        """The least  d . x,  (batch,), by an exact linear program in float64; +inf where no point is left.

        Needs SciPy, whose HiGHS solves one program for each element: for tests and a last few subdomains.
        """
        from scipy.optimize import linprog

        offset, symbols = self._along(direction)
        values = []
        facts = self.constraints
        for place in range(offset.shape[0]):
            used = facts.bound[place].isfinite()
            pairs = torch.stack([facts.lower[place], facts.upper[place]], dim=1).double().tolist()
            answer = linprog(
                symbols[place].double().numpy(),
                A_ub=facts.matrix[place][used].double().numpy(),
                b_ub=facts.bound[place][used].double().numpy(),
                bounds=pairs,
                method="highs",
            )
            values.append(float(offset[place]) + answer.fun if answer.status == 0 else torch.inf)
        return torch.tensor(values, dtype=torch.float64)

    def _along(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """d . x as an offset (batch,), the box at its lowest, and coefficients of the symbols (batch, k)."""
        flat = self.zonotope.center.flatten(1)
        offset = flat @ direction
        if self.zonotope.box is not None:
            offset = offset - self.zonotope.box.flatten(1) @ direction.abs()
        return offset, self.zonotope.generators().flatten(2) @ direction
