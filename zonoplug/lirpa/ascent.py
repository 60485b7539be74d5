"""Gradient ascent on bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Adam:
    """Adam, climbing. torch.optim has one, but importing it costs over a second, more than many instances take.

    Args:
        values: leaf tensors that require gradients; changed in place.
        rates: step size of each.
        decay: factor on all rates after each step.
        warm_up: over how many steps the rates grow to their size: the first steps of Adam are as long for values that
            hardly matter as for others.
    Source: Kingma, Ba, ICLR 2015.
    """

    def __init__(self, values: Sequence[Tensor], rates: Sequence[float], decay: float = 1.0, warm_up: int = 1) -> None:
        self._values = list(values)
        self._rates = list(rates)
        self._decay = decay
        self._warm_up = warm_up
        self._first = [torch.zeros_like(value) for value in self._values]
        self._second = [torch.zeros_like(value) for value in self._values]
        self._steps = 0

    def climb(self, objective: Tensor) -> None:
        """One step up the gradient of a scalar. Values that it does not depend on stay as they are."""
        self.step(torch.autograd.grad(objective, self._values, allow_unused=True))

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One step, where the gradients are known."""
        self._steps += 1
        first_scale = 1 - 0.9**self._steps
        second_scale = 1 - 0.999**self._steps
        factor = self._decay ** (self._steps - 1) * min(1.0, self._steps / self._warm_up)
        with torch.no_grad():
            for place, gradient in enumerate(gradients):
                if gradient is None:
                    continue
                gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                first = self._first[place].mul_(0.9).add_(gradient, alpha=0.1)
                second = self._second[place].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                move = (first / first_scale) / ((second / second_scale).sqrt() + 1e-12)
                self._values[place].add_(move, alpha=self._rates[place] * factor)
