"""Slopes for networks that have none: outputs before a last softmax, and derivatives of steps.

The values are the network's own; only what a descent follows is made up, and every point it finds is confirmed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zonoplug.verify.problem.problem import Objective, Problem

STEPS = {"sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil, "round": torch.round, "trunc": torch.trunc}


class _Step(torch.autograd.Function):
    """A function that is constant between jumps, with a slope of our own.

    sign:  d/dx x / (1 + |x| / s) = 1 / (1 + |x| / s)^2,  s the mean of |x| in the batch's element: large near the jump;
    the others follow x itself: 1.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, name: str) -> Tensor:
        context.name = name
        context.save_for_backward(x)
        return STEPS[name](x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if context.name != "sign":
            return gradient, None
        (x,) = context.saved_tensors
        size = x.abs()
        mean = size.flatten(1).mean(dim=1).reshape(-1, *[1] * (x.dim() - 1)).clamp_min(torch.finfo(x.dtype).tiny)
        return gradient / (1 + size / mean).square(), None


class _Watch(TorchFunctionMode):
    """Gives steps a slope, and notes the inputs of the latest softmax, and whether anything jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: Tensor | None = None
        self.shares: Tensor | None = None
        self.jumps = False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in STEPS and len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].dim():
            self.jumps = True
            return _Step.apply(args[0], name)  # type: ignore[no-untyped-call]
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) and not result.is_floating_point():
            self.jumps = self.jumps or any(isinstance(one, Tensor) and one.is_floating_point() for one in args)
        if name == "softmax" and args and isinstance(args[0], Tensor):
            self.scores, self.shares = args[0], result
        return result


class Followed(NamedTuple):
    """A model's outputs (n, outputs), what a descent should follow in their place, and whether the model jumps."""

    outputs: Tensor
    followed: Tensor
    jumps: bool


def outputs_to_follow(problem: Problem, points: Tensor) -> Followed:
    """The model at points (n, *input_shape), and what a descent should follow in the place of its outputs.

    That is the same, with slopes for steps; or the arguments of a last softmax, if the specification only compares
    outputs with each other: those have the same order, and slopes where the softmax has none left. A model jumps where
    it rounds, compares, counts or takes signs.
    """
    with _Watch() as watch:
        outputs = problem.outputs(points)
    scores, shares = watch.scores, watch.shares
    if scores is None or shares is None or not compares_outputs(problem.objective):
        return Followed(outputs, outputs, watch.jumps)
    if shares.numel() != outputs.numel() or shares.data_ptr() != outputs.data_ptr():
        return Followed(outputs, outputs, watch.jumps)
    return Followed(outputs, scores.flatten(1), watch.jumps)


def compares_outputs(objective: Objective) -> bool:
    """Whether every row has the form  y_i - y_j <= 0, or a multiple of it."""
    there = ~objective.padding
    rows = objective.coefficients[there]
    two = ((rows != 0).sum(dim=1) == 2) & (rows.sum(dim=1) == 0)
    return bool(two.all()) and not bool(objective.bound[there].any())
