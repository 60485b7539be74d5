"""Linear bounds of softmax, in terms of the differences of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.backward.linear_relaxations import (
    LinearRelaxation,
    by_sign,
    place_of,
    relaxations,
    shared,
    shared_product,
)
from zonoplug.lirpa.operators.table import inner_name


class SoftmaxRelaxation(LinearRelaxation):
    """Linear bounds of  y_i = 1 / s_i,  s_i = sum_j exp(d_ij),  d_ij = x_j - x_i,  along one axis of length n.

        y_i >= 2 / t - S / t^2         S  = sum_j (chord of exp over the bounds of d_ij) >= s_i,   any t > 0
        y_i <= 1 / l + 1 / u - T / (l u)   T = sum_j (tangent of exp at p_ij) <= s_i,              l <= s_i <= u

    The shares place t between l and u, and p_ij between the bounds of d_ij. Where exponentials are too large for the
    type, 0 <= y_i <= 1 / l.

    Args:
        differences: bounds of d_ij, (batch, *rows, n, n), i before j.
        axis: counted with the batch axis.

    Source: the bounds that Wei, Wu, Wu, Chen, Barrett, Farchi, AISTATS 2023, section 4.1, call ER, with free tangents.
    """

    def __init__(self, differences: Interval, axis: int) -> None:
        self._axis = axis
        low, high = differences
        largest = torch.finfo(low.dtype).max
        self._fits = (high <= log(largest) / 4).all(-1)
        safe = self._fits.unsqueeze(-1)
        self._bound = 1 / low.exp().sum(-1).clamp(max=largest)
        self._low, self._high = torch.where(safe, low, 0), torch.where(safe, high, 0)
        gap = self._high - self._low
        least, rise = self._low.exp(), torch.expm1(gap)
        self._slope = least * torch.where(gap > 0, rise / torch.where(gap > 0, gap, 1), 1)
        self._offset = (least - self._slope * self._low).sum(-1)
        self._least, self._most = least.sum(-1), (least + least * rise).sum(-1)

    def parameters(self) -> Tensor:
        """Where the lower plane touches at the geometric mean of l and u, and tangents are parallel to chords."""
        t = place_of((self._least * self._most).sqrt(), self._least, self._most)
        tangents = place_of(self._slope.log(), self._low, self._high)
        return torch.cat([t.unsqueeze(-1), tangents], dim=-1)

    def magnitude(self) -> Tensor:
        reach = torch.maximum(self._low.abs(), self._high.abs())
        chords = (2 * self._slope * reach).sum(-1) + self._least
        tangents = (self._high.exp() * (1 + 2 * reach)).sum(-1)
        lower = chords / (self._least * self._least) + 2 / self._least
        upper = tangents / (self._least * self._most) + 1 / self._least + 1 / self._most
        flat = torch.where(self._fits, torch.maximum(lower, upper), self._bound)
        return 4 * flat.movedim(-1, self._axis)

    def pass_backward(self, a: Tensor, parameters: Tensor) -> tuple[list[Tensor], Tensor]:
        above, below = by_sign(a.movedim(self._axis + 1, -1))
        t = self._least + parameters[..., 0] * (self._most - self._least)
        touching = self._low + parameters[..., 1:] * (self._high - self._low)
        tangent, product = touching.exp(), self._least * self._most
        lower = -self._slope / (t * t).unsqueeze(-1), 2 / t - self._offset / (t * t)
        rest = (tangent * (1 - touching)).sum(-1)
        upper = -tangent / product.unsqueeze(-1), 1 / self._least + 1 / self._most - rest / product
        flat = torch.zeros_like(self._bound), self._bound
        result, constant = torch.zeros_like(above), above.new_zeros(a.shape[:2])
        for part, (slope, offset), bound in zip((above, below), (lower, upper), flat, strict=True):
            slope = torch.where(self._fits.unsqueeze(-1), slope, 0)
            offset = torch.where(self._fits, offset, bound)
            image = shared_product(part.movedim(1, -2), slope, slope.shape[0]).movedim(-2, 1)
            result = result + image - part * slope.sum(-1).unsqueeze(1)
            constant = constant + (part * offset.unsqueeze(1)).flatten(2).sum(2, dtype=torch.float64)
        return [result.movedim(-1, self._axis + 1)], constant


@relaxations("BoundSoftmax")
def _softmax(
    node: Any, operands: Sequence[Interval | Tensor], preactivations: Mapping[str, Interval]
) -> LinearRelaxation:
    (preactivation,) = operands
    assert isinstance(preactivation, Interval)
    axis = int((node.attr or {}).get("axis", -1)) % preactivation.lower.dim()
    lower, upper = (side.movedim(axis, -1) for side in shared(preactivation))
    apart = 1 - torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    low = (lower.unsqueeze(-2) - upper.unsqueeze(-1)) * apart
    high = (upper.unsqueeze(-2) - lower.unsqueeze(-1)) * apart
    from_propagation = preactivations.get(inner_name(node.name, "differences"))  # tighter, as symbols cancel in them
    if from_propagation is not None:
        from_propagation = shared(from_propagation)
        low, high = torch.fmax(low, from_propagation.lower), torch.fmin(high, from_propagation.upper)
    return SoftmaxRelaxation(Interval(low, torch.maximum(low, high)), axis)
