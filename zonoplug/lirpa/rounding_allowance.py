"""How far rounding to nearest may move a network's outputs, and linear bounds of them, on a box: an estimate.

A sum  z = W h + b  is computed with an error of a few units of  m = |W| |h| + |b|,  however small z itself is, and an
error behind which the linear bound has the coefficient A moves the bound by up to |A| times it:

    allowance  =  FACTOR eps (sum over sums z of |A| . m)

Worst cases grow with the number of terms; the factor is what sums of random signs stay below by far. Bounds from below
are lowered by it before they count against what the network is seen to compute in floating point. Source of the error
model: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.domain.zonotope import Interval

if TYPE_CHECKING:
    from zonoplug.lirpa.backward import LinearBounds

FACTOR = 4.0


def rounding_allowance(
    bounds: LinearBounds, rows: Tensor, hulls: Mapping[str, Interval], magnitudes: Mapping[str, Tensor]
) -> Tensor:
    """The allowance for each row, (batch, rows).

    Args:
        bounds: of the rows.
        rows: C, (batch, rows, outputs).
        hulls: by the name of each inexact node, bounds of its input, (batch or 1, *shape).
        magnitudes: what `Backward.magnitudes` gives.
    """
    last = magnitudes[""].flatten(1).unsqueeze(1)
    total = (rows.abs() * last).sum(dim=2)
    for name, a in bounds.coefficients.items():
        reached = magnitudes[name] * (hulls[name].upper > 0)
        total = total + (a.detach().abs() * reached.unsqueeze(1)).flatten(2).sum(dim=2)
    for name, a in bounds.others.items():
        total = total + (a.detach().abs() * magnitudes[name].unsqueeze(1)).flatten(2).sum(dim=2)
    return FACTOR * torch.finfo(total.dtype).eps * total
