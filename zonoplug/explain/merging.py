"""Hierarchical merging of symbols: the tree of groups that lose least by sharing one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-9  # of the mass involved: where nothing is lost, small groups merge first


@dataclass(frozen=True, slots=True)
class Merge:
    """One step: two groups become one.

    Attributes:
        left, right: groups below the number of leaves, or earlier steps counted on from it.
        loss: mass that loses its name in this step, the mean over margins.
        height: the same for all steps up to this one.
        members: the leaves below.
    """

    left: int
    right: int
    loss: float
    height: float
    members: tuple[int, ...]


def merge_tree(effects: Tensor, touching: Tensor | None = None) -> list[Merge]:
    """Merge groups two by two, always where the least is lost, down to one.

    Two symbols with effects a and b on the margins, of sizes alpha = |a|_1 and beta = |b|_1, share one symbol
    t = (alpha e_1 + s beta e_2) / (alpha + beta):

        a e_1 + b e_2  in  (a + s b) t  +/-  2 alpha beta / (alpha + beta) |a / alpha - s b / beta|,    s = +1 or -1

    The last term is mass that no longer has a name. It is 0 where both move all margins in the same proportions; the
    sign s is the one that loses less.

    Args:
        effects: (groups, rivals) signed influence of each group.
        touching: (groups, groups) bool; only groups that touch merge, until none do. All may by default.
    Returns:
        groups - 1 merges.
    """
    count = effects.shape[0]
    size = 2 * count - 1
    effects = effects.detach().double().cpu()
    effect = effects.new_zeros(size, effects.shape[1])
    effect[:count] = effects
    near = torch.zeros(size, size, dtype=torch.bool)
    near[:count, :count] = True if touching is None else touching.cpu()
    alive = torch.zeros(size, dtype=torch.bool)
    alive[:count] = True
    members: list[tuple[int, ...]] = [(group,) for group in range(count)]
    merges: list[Merge] = []
    height = 0.0
    loss = torch.full((size, size), torch.inf, dtype=torch.float64)
    sign = torch.ones(size, size, dtype=torch.float64)
    for group in range(count):
        _compare(group, effect, loss, sign)
    for fresh in range(count, size):
        pairs = alive[:, None] & alive[None, :] & ~torch.eye(size, dtype=torch.bool)
        allowed = pairs & near
        costs = loss.masked_fill(~(allowed if bool(allowed.any()) else pairs), torch.inf)
        left, right = divmod(int(costs.argmin()), size)
        lost = float(loss[left, right])
        height += lost
        effect[fresh] = effect[left] + sign[left, right] * effect[right]
        near[fresh] = near[left] | near[right]
        near[:, fresh] = near[fresh]
        alive[left] = alive[right] = False
        alive[fresh] = True
        members.append(members[left] + members[right])
        merges.append(Merge(left, right, lost, height, members[fresh]))
        _compare(fresh, effect, loss, sign)
    return merges


def cut(merges: list[Merge], count: int) -> Tensor:
    """The groups (leaves,) that are left when merging stops at `count` of them, numbered without gaps."""
    leaves = len(merges) + 1
    labels = torch.arange(leaves)
    for step, merge in enumerate(merges[: max(leaves - count, 0)]):
        labels[list(merge.members)] = leaves + step
    numbered: Tensor = torch.unique(labels, return_inverse=True)[1]
    return numbered


def _compare(group: int, effect: Tensor, loss: Tensor, sign: Tensor) -> None:
    """Fill in what merging `group` with each other one loses."""
    sizes = effect.abs().sum(dim=1)
    unit = effect / sizes.clamp(min=torch.finfo(effect.dtype).tiny)[:, None]
    total = sizes[group] + sizes
    weight = 2 * sizes[group] * sizes / total.clamp(min=torch.finfo(effect.dtype).tiny)
    same = weight * (unit[group] - unit).abs().mean(dim=1)
    opposite = weight * (unit[group] + unit).abs().mean(dim=1)
    loss[group] = torch.minimum(same, opposite) + TIE * total
    loss[:, group] = loss[group]
    sign[group] = torch.where(same <= opposite, 1.0, -1.0)
    sign[:, group] = sign[group]
