"""Host perturbation <-> input set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.errors import SettingError
from zonoplug.lirpa.compat import BoundedTensor, PerturbationLpNorm


def bounded_input(box: Box) -> Any:
    """The host's bounded tensor for a box, (batch, *shape)."""
    center = box.lower + (box.upper - box.lower) / 2
    return BoundedTensor(center, PerturbationLpNorm(norm=torch.inf, x_L=box.lower, x_U=box.upper))


def input_set(value: Tensor) -> Box | None:
    """The input set of a host's bounded tensor; None for a plain tensor.

    Raises:
        SettingError: a perturbation other than the l-infinity norm.
    """
    perturbation = getattr(value, "ptb", None)
    if perturbation is None:
        return None
    if not isinstance(perturbation, PerturbationLpNorm) or perturbation.norm != torch.inf:
        raise SettingError(f"Zonotope methods take l-infinity perturbations; got {perturbation}.")
    center = torch.Tensor(value.data)
    lower = center - perturbation.eps if perturbation.x_L is None else perturbation.x_L
    upper = center + perturbation.eps if perturbation.x_U is None else perturbation.x_U
    return Box(lower.expand_as(center), upper.expand_as(center))
