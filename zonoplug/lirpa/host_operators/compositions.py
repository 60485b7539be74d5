"""Operators that the host lacks, or has for few cases only, and that `operators_bilinear` passes whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.lirpa.host_operators.bases import IntervalOperator, Monotone
from zonoplug.lirpa.operators.table import reduced
from zonoplug.transformers.pooling import windows


class _Norm(IntervalOperator):
    """A norm along axes: it grows with each |x|."""

    power: int

    def forward(self, x: Tensor, *axes: Tensor) -> Tensor:
        along, keeps = reduced(self.attr, x, *axes)
        result: Tensor = torch.linalg.vector_norm(x, self.power, along, keepdim=keeps)
        return result

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (lower, upper), *axes = intervals
        near, far = torch.maximum(lower, -upper).clamp(min=0), torch.maximum(upper, -lower)
        return self.forward(near, *(axis for axis, _ in axes)), self.forward(far, *(axis for axis, _ in axes))


class BoundReduceL1(_Norm):
    """The sum of absolute values."""

    power = 1


class BoundReduceL2(_Norm):
    """The root of the sum of squares."""

    power = 2


class BoundReduceProd(IntervalOperator):
    """The product along axes."""

    def forward(self, x: Tensor, *axes: Tensor) -> Tensor:
        along, keeps = reduced(self.attr, x, *axes)
        for axis in sorted((axis % x.dim() for axis in along), reverse=True):
            x = x.prod(axis, keepdim=keeps)
        return x

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (lower, upper), *axes = intervals
        along, keeps = reduced(self.attr, lower, *(axis for axis, _ in axes))
        for axis in sorted((axis % lower.dim() for axis in along), reverse=True):
            low, high = torch.ones_like(lower.select(axis, 0)), torch.ones_like(lower.select(axis, 0))
            for place in range(lower.shape[axis]):
                ends = [a * b for a in (low, high) for b in (lower.select(axis, place), upper.select(axis, place))]
                low, high = torch.stack(ends).amin(0), torch.stack(ends).amax(0)
            lower, upper = (side.unsqueeze(axis) if keeps else side for side in (low, high))
        return lower, upper


class _RowWise(IntervalOperator):
    """A function of the differences x_j - x_i of the entries of one axis. Cost: the square of the axis' length."""

    @property
    def axis(self) -> int:
        return int(self.attr.get("axis", -1))

    def of_differences(self, gaps: Tensor) -> Tensor:
        """y_i from x_j - x_i for all j along the last axis; it does not increase with any of them."""
        raise NotImplementedError

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        lower, upper = (side.movedim(self.axis, -1) for side in intervals[0])

        def of(own: Tensor, others: Tensor) -> Tensor:
            gaps = others.unsqueeze(-2) - own.unsqueeze(-1)
            gaps = torch.diagonal_scatter(gaps, torch.zeros_like(own), dim1=-2, dim2=-1)
            return self.of_differences(gaps).movedim(-1, self.axis)

        return of(lower, upper), of(upper, lower)


class BoundSoftmax(_RowWise):
    """Softmax along one axis, 1 / sum over j of exp(x_j - x_i); kept whole, so that it can be recognised.

    lower_i = 1 / (1 + sum over j != i of exp(u_j - l_i)), upper_i = 1 / (1 + sum over j != i of exp(l_j - u_i)).
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(x, dim=self.axis)

    def of_differences(self, gaps: Tensor) -> Tensor:
        return 1 / gaps.exp().sum(-1)


class BoundLogSoftmax(_RowWise):
    """Log-softmax along one axis: the logarithm of softmax, and so are its bounds."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.log_softmax(x, dim=self.axis)

    def of_differences(self, gaps: Tensor) -> Tensor:
        return -gaps.logsumexp(-1)


class BoundMaxPool(Monotone):
    """Max-pooling over any number of axes, with any padding and dilation, and with windows that reach over the end."""

    def forward(self, x: Tensor) -> Tensor:
        rank = len(self.attr["kernel_shape"])
        ones, pads = [1] * rank, list(self.attr.get("pads") or [0] * 2 * rank)
        index, spatial = windows(
            x.shape[2:],
            self.attr["kernel_shape"],
            self.attr.get("strides") or ones,
            list(zip(pads[:rank], pads[rank:], strict=True)),
            self.attr.get("dilations") or ones,
            bool(self.attr.get("ceil_mode", 0)),
        )
        index = index.to(x.device)
        values = torch.where(index >= 0, x.flatten(2)[..., index.clamp(min=0)], -torch.inf)
        return values.amax(-1).reshape(*x.shape[:2], *spatial)
