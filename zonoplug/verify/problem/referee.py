"""What ONNX Runtime computes at points: the referee wherever bounds are compared with points.

The loaded module does not vouch for itself: a wrong conversion would give wrong bounds and the same wrong points.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.verify.problem.problem import Problem

POINTS = 24
FEWEST = 8
SECONDS = 0.3  # for more than the fewest


class Referee(NamedTuple):
    """Points, with ONNX Runtime's outputs.

    Attributes:
        points: (n, *input_shape).
        groups: (n,) the input box of each.
        outputs: (n, outputs) in double precision.
    """

    points: Tensor
    groups: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, problem: Problem, points: Tensor, groups: Tensor, losses: Tensor) -> Referee:
        """Some of the points: the first ones, and those of the lowest losses (n,), as many as there is time for."""
        lowest = losses.nan_to_num(nan=torch.inf).argsort()[: POINTS // 2].tolist()
        chosen = list(dict.fromkeys([*range(min(POINTS // 2, len(losses))), *lowest]))
        start, found = time.monotonic(), [torch.zeros(0, problem.specification.num_outputs).double().to(points.device)]
        for place in chosen:
            if len(found) > FEWEST and time.monotonic() - start > SECONDS:
                break
            found.append(runtime_outputs(problem, points[place : place + 1]))
        chosen = chosen[: len(found) - 1]
        return cls(points[chosen], groups[chosen], torch.cat(found))

    def of_box(self, number: int) -> Tensor:
        """The outputs at points of one input box."""
        return self.outputs[self.groups == number]


def runtime_outputs(problem: Problem, points: Tensor) -> Tensor:
    """ONNX Runtime's outputs (n, outputs) at points (n, *input_shape), in double precision."""
    values = problem.model.evaluate(points.flatten(1).cpu().numpy())
    return torch.as_tensor(values, dtype=torch.float64, device=points.device)
