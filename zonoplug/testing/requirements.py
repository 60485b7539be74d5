"""What the laws share: how they fail, and what rounding may cost."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLES = 257


def require(condition: bool, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def tolerance(*tensors: Tensor) -> float:
    """What rounding to nearest may cost at the scale of these tensors: 64 units in the last place of the largest."""
    scale = max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)
    return 64 * torch.finfo(tensors[0].dtype).eps * max(scale, torch.finfo(tensors[0].dtype).tiny)
