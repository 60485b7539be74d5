"""Operators that the host lacks and that `operators_bilinear` passes whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.lirpa.host_bases import IntervalOperator


class BoundLogSoftmax(IntervalOperator):
    """Log-softmax along one axis.

    lower_i = -log(1 + sum over j != i of exp(u_j - l_i)), upper_i = -log(1 + sum over j != i of exp(l_j - u_i)).
    Cost: the square of the axis' length.
    """

    @property
    def axis(self) -> int:
        return int(self.attr.get("axis", -1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.log_softmax(x, dim=self.axis)

    def image(self, *intervals: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        lower, upper = (side.movedim(self.axis, -1) for side in intervals[0])

        def share(own: Tensor, others: Tensor) -> Tensor:
            gaps = others.unsqueeze(-2) - own.unsqueeze(-1)
            gaps = torch.diagonal_scatter(gaps, torch.zeros_like(own), dim1=-2, dim2=-1)
            return -gaps.logsumexp(-1).movedim(-1, self.axis)

        return share(lower, upper), share(upper, lower)


def custom_compositions() -> dict[str, Any]:
    """ONNX operator name, as the host spells it, to the class that serves it."""
    return {"onnx::LogSoftmax": BoundLogSoftmax}
