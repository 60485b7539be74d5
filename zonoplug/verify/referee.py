"""What ONNX Runtime computes at points: the referee wherever bounds are compared with points.

The loaded module does not vouch for itself: a wrong conversion would give wrong bounds and the same wrong points.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from zonoplug.verify.attack import Attack
from zonoplug.verify.problem import Problem

POINTS = 24
FEWEST = 8
SECONDS = 0.3  # for more than the fewest


class Referee:
    """Points that the attack has tried, with ONNX Runtime's outputs: some at random, and those nearest to violations.

    Args:
        problem, attack: the attack has tried points.

    Attributes:
        points: (n, *input_shape).
        groups: (n,) the input box of each.
        outputs: (n, outputs) in double precision.
    """

    def __init__(self, problem: Problem, attack: Attack) -> None:
        self._problem = problem
        margins = problem.point_margins(attack.outputs, attack.groups).amin(dim=1)
        lowest = margins.nan_to_num(nan=torch.inf).argsort()[: POINTS // 2].tolist()
        chosen = list(dict.fromkeys([*range(min(POINTS // 2, len(margins))), *lowest]))
        start, found = time.monotonic(), []
        for place in chosen:
            if len(found) >= FEWEST and time.monotonic() - start > SECONDS:
                break
            found.append(self.outputs_at(attack.points[place : place + 1]))
        chosen = chosen[: len(found)]
        self.points, self.groups = attack.points[chosen], attack.groups[chosen]
        self.outputs = torch.cat(found) if found else torch.zeros(0, problem.specification.num_outputs).double()

    def outputs_at(self, points: Tensor) -> Tensor:
        """ONNX Runtime's outputs (n, outputs) at points (n, *input_shape), in double precision."""
        values = self._problem.model.evaluate(points.flatten(1).cpu().numpy())
        return torch.as_tensor(values, dtype=torch.float64, device=points.device)
