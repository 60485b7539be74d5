"""What the unsafe half-space and split constraints leave of a subdomain: smaller box, tighter pre-activation bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from zonoplug.verify.constraints.half_spaces import contract, least_in_half_space, middle_of
from zonoplug.verify.subdomains.mixed import Margins, MixedSubdomains
from zonoplug.verify.subdomains.relu_layers import ReluLayers

CLIPPED = 128  # neurons of a layer, at most


@torch.no_grad()
def contract_boxes(layers: ReluLayers, part: MixedSubdomains, found: Margins) -> Tensor:
    """Cut off, in place, what cannot be unsafe or violates a split constraint. Returns where no point is left, (n,).

    Rows: the linear bound of the margin is <= 0, and  s z >= 0  for the signs s of split constraints on neurons that
        are affine in the
    input.

    Args:
        found: about the margins, on these boxes or on larger ones.
    """
    center, _ = middle_of(part.box_lower, part.box_upper)
    rows, room = [found.slopes.unsqueeze(1)], [found.room(center).unsqueeze(1)]
    for layer, matrix, middle in layers.affine:
        sign = part.sign[:, layer.section]
        most = int((sign != 0).sum(dim=1).max())
        if not most:
            continue
        index = sign.abs().topk(most, dim=1).indices
        chosen, picked = sign.gather(1, index), matrix[index]
        value = middle[index] + torch.einsum("nmk,nk->nm", picked, center - layers.center)
        rows.append(-chosen.unsqueeze(2) * picked)
        room.append(torch.where(chosen != 0, chosen * value + layer.error[index], torch.inf))
    part.box_lower, part.box_upper, gone = contract(
        part.box_lower, part.box_upper, torch.cat(rows, dim=1), torch.cat(room, dim=1)
    )
    return gone


@torch.no_grad()
def clip_bounds(layers: ReluLayers, part: MixedSubdomains, found: Margins) -> Tensor:
    """Tighten, in place, pre-activation bounds of unstable neurons that are affine in the input. Returns where no point
    is left, (n,).

    Each end is a bound over the part of the box where the margin's linear bound is <= 0: the pre-activation bounds hold
    for unsafe points alone.

    Args:
        found: about the margins, on these boxes or on larger ones.
    Source: Zhou et al., Clip-and-Verify, NeurIPS 2025.
    """
    gone = torch.zeros(len(part), dtype=torch.bool, device=part.bound.device)
    center, radius = middle_of(part.box_lower, part.box_upper)
    room, slope = found.room(center), found.slopes * radius
    wanted = torch.where(part.unstable_neurons, -found.coefficients, 0.0).clamp(min=0)
    for layer, matrix, middle in layers.affine:
        score = wanted[:, layer.section]
        count = min(CLIPPED, int((score > 0).sum(dim=1).max()))
        if not count:
            continue
        index = score.topk(count, dim=1).indices
        picked = matrix[index]
        value = middle[index] + torch.einsum("nmk,nk->nm", picked, center - layers.center)
        direction = picked * radius.unsqueeze(1)
        below, above = least_in_half_space(torch.cat([direction, -direction], dim=1), slope, room).chunk(2, dim=1)
        error = layer.error[index]
        lower, upper = part.lower[:, layer.section], part.upper[:, layer.section]
        low = torch.fmax(lower.gather(1, index), value + below - error)
        high = torch.fmin(upper.gather(1, index), value - above + error)
        gone |= (low > high).any(dim=1)
        lower.scatter_(1, index, torch.minimum(low, high))
        upper.scatter_(1, index, torch.maximum(low, high))
    return gone
