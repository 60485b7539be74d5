"""What rounding may do to bounds, as estimates: taken off before a bound counts as a proof, by whoever proves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.errors import UnsupportedOperatorError

if TYPE_CHECKING:
    from zonoplug.lirpa.backward import Backward

ROUNDING_UNITS = 256


def rounding_slack(rows: Tensor, bound: Tensor, outputs: Tensor) -> Tensor:
    """How far above 0 a margin  a . y - b  must be to count.

        256 eps (|a| . s + |b|),  s = 2 max |y|

    A measured safety factor, not a proof: the round-to-nearest errors that we saw stay far below it.

    Args:
        rows: a, (..., outputs).
        bound: b, (...).
        outputs: y that were seen, (n, outputs).
    """
    size = rows.abs() @ (2 * outputs.abs().amax(dim=0)) + bound.abs()
    return ROUNDING_UNITS * torch.finfo(rows.dtype).eps * size


def backward_or_none(module: Any) -> Backward | None:
    """Our backward bounds on the whole network, None where they do not apply."""
    from zonoplug.lirpa.backward import Backward

    try:
        return Backward(module)
    except UnsupportedOperatorError:
        return None
