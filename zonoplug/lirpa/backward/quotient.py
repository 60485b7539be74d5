"""Linear bounds of quotients: of the reciprocal of the denominator, and of its product with the numerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.backward.linear_relaxations import (
    LinearRelaxation,
    ProductRelaxation,
    by_sign,
    place_of,
    relaxations,
    same_rank,
)


class QuotientRelaxation(LinearRelaxation):
    """Linear bounds of x / y, for y of one sign; NaN where y may be 0.

        between  2 / p - y / p^2  (any p among the bounds of y)  and  1 / l + 1 / u - y / (l u)  lies  1 / y,

    the tangent below it for y > 0 and above it for y < 0. The shares are those of the product and the place of p.

    Args:
        numerator: bounds of x, or a constant.
        denominator: bounds of y.
    """

    def __init__(self, numerator: Interval | Tensor, denominator: Interval) -> None:
        low, high = denominator
        one_sign = (low > 0) | (high < 0)
        self._low, self._high = (torch.where(one_sign, side, torch.nan) for side in (low, high))
        self._constant = numerator if isinstance(numerator, Tensor) else low.new_zeros(())
        inverse = Interval(1 / self._high, 1 / self._low)
        self._product = None if isinstance(numerator, Tensor) else ProductRelaxation(numerator, inverse)
        if not isinstance(numerator, Tensor):
            self._numerator = torch.maximum(numerator.lower.abs(), numerator.upper.abs())

    def parameters(self) -> Tensor:
        """(batch, all in a row): the product's, then where p lies."""
        middle = (
            self._low.abs().sqrt() * self._high.abs().sqrt() * self._low.sign()
        )  # there it is parallel to the chord
        place = place_of(middle, self._low, self._high).nan_to_num(0.5).flatten(1)
        return place if self._product is None else torch.cat([self._product.parameters().flatten(1), place], dim=1)

    def magnitude(self) -> Tensor:
        """1 / y is below 4 / |l| for the bound l that is nearer to 0, and so are the terms of its lines."""
        sizes = torch.maximum(self._low.abs(), self._high.abs()), torch.minimum(self._low.abs(), self._high.abs())
        lines = 4 / sizes[1] + sizes[0] / (sizes[1] * sizes[1])
        if self._product is None:
            return 16 * lines * self._constant.abs().amax(1)
        return 16 * (lines * self._numerator + self._product.magnitude())

    def pass_backward(self, a: Tensor, parameters: Tensor) -> tuple[list[Tensor], Tensor]:
        size = torch.Size((*a.shape[:2], *self._low.shape[1:]))
        of_product, place = parameters.tensor_split([parameters.shape[1] - self._low[0].numel()], dim=1)
        images, constant = [], a.new_zeros(a.shape[:2])
        if self._product is None:
            of_inverse = (a * self._constant).sum_to_size(size)
        else:
            (of_x, of_inverse), constant = self._product.pass_backward(
                a, of_product.unflatten(1, self._product.parameters().shape[1:])
            )
            images = [of_x]
        low, high = self._low.unsqueeze(1), self._high.unsqueeze(1)
        at = low + place.unflatten(1, self._low.shape[1:]).unsqueeze(1) * (high - low)
        tangent, chord = (-1 / (at * at), 2 / at), (-1 / (low * high), 1 / low + 1 / high)
        above, below = by_sign(of_inverse)
        slope, offset = (
            above * torch.where(low > 0, t, c) + below * torch.where(low > 0, c, t)
            for t, c in zip(tangent, chord, strict=True)
        )
        return [*images, slope], constant + offset.flatten(2).sum(2, dtype=torch.float64)


@relaxations("BoundDiv")
def _quotient(
    node: Any, operands: Sequence[Interval | Tensor], preactivations: Mapping[str, Interval]
) -> LinearRelaxation:
    numerator, denominator = same_rank(operands)
    assert isinstance(denominator, Interval)
    return QuotientRelaxation(numerator, denominator)
