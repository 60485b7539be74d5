"""What is bounded over affine forms: for each subdomain a mixture of the forms of some rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.lirpa.backward.unstable_network import Forms
from zonoplug.verify.subdomains.batch import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Targets(Batch):
    """What is bounded: for each subdomain a mixture of the affine forms of some rows.

    Attributes:
        inputs: (n, rows, inputs).
        before: (n, rows, neurons).
        constant, error: (n, rows).
        there: (n, rows) False where one has fewer rows than another.
    """

    inputs: Tensor
    before: Tensor
    constant: Tensor
    error: Tensor
    there: Tensor

    @staticmethod
    def of(forms: Forms, side: Tensor) -> Targets:
        """One row each: forms times `side`, (n, 1) of 1 or -1."""
        parts = (forms.inputs, forms.before, forms.constant.unsqueeze(1))
        inputs, before, constant = (part * side for part in parts)
        there = torch.ones_like(constant, dtype=torch.bool)
        return Targets(inputs.unsqueeze(1), before.unsqueeze(1), constant, forms.error.unsqueeze(1), there)
