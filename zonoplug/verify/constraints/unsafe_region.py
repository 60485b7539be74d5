"""The part of a subdomain where the unsafe set is in reach: the negated specification as constraints on inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from zonoplug.domain.constrained import SymbolConstraints
from zonoplug.domain.input_sets import Box
from zonoplug.verify.constraints.half_spaces import cut
from zonoplug.verify.problem.problem import Objective
from zonoplug.verify.problem.row_bounds import RowBounds

MIXTURE_STEPS = 8
ENTRIES = 2**25  # coefficients in one batch of constraints


def shrink(
    box: Box, group: Tensor, bounds: RowBounds, open_: Tensor, objective: Objective, rows: Tensor
) -> tuple[Box, Tensor]:
    """Smaller boxes that keep every point whose outputs may be unsafe.

    A point is unsafe in a disjunct only if all its rows are at most their bound b. With the linear bounds of the rows:

        sum_i slope_i e_i  <=  b - floor - sum_i |slope_i|

    The result is the hull over disjuncts.

    Args:
        box: subdomains (n, *shape), of the boxes `group` (n,).
        bounds: with slopes, on those.
        open_: (n, disjuncts) disjuncts that are not excluded.
        rows: `objective.members()`.
    Returns:
        the boxes, (n, *shape), never larger, and which disjuncts remain in reach, (n, disjuncts). A box without any is
        returned as it was.
    Source: Koller, Ladner, Althoff, arXiv 2505.17854.
    """
    place, disjunct = open_.nonzero(as_tuple=True)
    if bounds.slopes is None or bounds.floor is None or place.numel() * rows.shape[2] * box.lower[0].numel() > ENTRIES:
        return box, open_
    # One more row, without effect, stands where a disjunct has fewer rows than another.
    matrix = torch.cat([bounds.slopes, torch.zeros_like(bounds.slopes[:, :1])], dim=1)
    limit = -objective.margins(bounds.floor, group) - bounds.slopes.abs().sum(dim=2)
    limit = torch.cat([limit, torch.full_like(limit[:, :1], torch.inf)], dim=1)
    limit = limit.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
    member = rows[group[place] if objective.num_boxes > 1 else torch.zeros_like(place), disjunct]
    unsafe = SymbolConstraints.on_unit_cube(matrix[place.unsqueeze(1), member], limit[place.unsqueeze(1), member])
    unsafe = unsafe.contracted()
    gone = unsafe.empty
    if member.shape[1] > 1:
        gone = gone | unsafe.infeasible(steps=MIXTURE_STEPS)
    remains = open_.clone()
    remains[place[gone], disjunct[gone]] = False
    low, high = _preactivation(unsafe, gone, place, open_.shape[0])
    lower, upper = cut(box.lower.flatten(1), box.upper.flatten(1), low, high)
    return Box(lower.unflatten(1, box.lower.shape[1:]), upper.unflatten(1, box.lower.shape[1:])), remains


def _preactivation(unsafe: SymbolConstraints, gone: Tensor, place: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ranges of the symbols over all disjuncts of each subdomain; all of [-1, 1] where none is left."""
    index = place[~gone].unsqueeze(1).expand(-1, unsafe.lower.shape[1])
    low = unsafe.lower.new_full((count, unsafe.lower.shape[1]), torch.inf)
    low = low.scatter_reduce(0, index, unsafe.lower[~gone], "amin")
    high = torch.full_like(low, -torch.inf).scatter_reduce(0, index, unsafe.upper[~gone], "amax")
    known = low <= high
    return torch.where(known, low, -1.0), torch.where(known, high, 1.0)
