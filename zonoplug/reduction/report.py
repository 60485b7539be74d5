"""What each reduction reports: where, from how many symbols to how many, and what it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.domain.alignment import symbol_groups
from zonoplug.domain.blocks import DiagonalBlock, GeneratorBlock, dual_norm
from zonoplug.domain.symbols import SymbolIds, merge_ids
from zonoplug.domain.zonotope import Zonotope
from zonoplug.reduction.base import NO_SYMBOLS, Reduction
from zonoplug.reduction.context import ALONE, Influence, LiveValue, ReductionContext


@dataclass(frozen=True, slots=True, eq=False)
class ReductionReport:
    """One reduction of one value.

    Attributes:
        node, layer: where: the graph node, and its number among those where a reduction could be made.
        symbols_before, symbols_after: named symbols.
        bytes_before, bytes_after: of the generators as they are stored.
        seconds: that the reduction took.
        loss: (batch, rows) by how much it lowers the lower bound of each row, and raises the upper one, with every
            relaxation behind fixed and nothing reduced later; None where the influence on the rows is not known.
        error_bound: (batch,) on the Hausdorff distance, from rules that promise one.
    """

    node: str
    layer: int
    symbols_before: int
    symbols_after: int
    bytes_before: int
    bytes_after: int
    seconds: float
    loss: Tensor | None = None
    error_bound: Tensor | None = None


def reduce_with_report(
    reduction: Reduction,
    zonotope: Zonotope,
    max_symbols: int,
    protect: SymbolIds = NO_SYMBOLS,
    context: ReductionContext = ALONE,
    measured_in: ReductionContext | None = None,
) -> tuple[Zonotope, ReductionReport | None]:
    """`reduction.reduce(...)`, and what it did; None if it changed nothing.

    Args:
        measured_in: the surroundings in which the loss is measured, at the price of one product of all generators with
            the rows; `context` by default.
    """
    start = time.perf_counter()
    reduced = reduction.reduce(zonotope, max_symbols, protect, context)
    seconds = time.perf_counter() - start
    if reduced is zonotope:
        return zonotope, None
    around = context if measured_in is None else measured_in
    report = ReductionReport(
        context.node,
        context.layer,
        zonotope.num_symbols,
        reduced.num_symbols,
        stored_bytes(zonotope.blocks),
        stored_bytes(reduced.blocks),
        seconds,
        row_loss(zonotope, reduced, around.influence, around.elsewhere),
        reduction.error_bound(zonotope, reduced),
    )
    return reduced, report


def stored_bytes(blocks: tuple[GeneratorBlock, ...]) -> int:
    """The size of some blocks' numbers in bytes."""
    total = 0
    for block in blocks:
        for tensor in (block.values, block.index) if isinstance(block, DiagonalBlock) else (block.dense(),):
            total += tensor.numel() * tensor.element_size()
    return total


def row_loss(
    before: Zonotope, after: Zonotope, influence: Influence | None, elsewhere: tuple[LiveValue, ...] = ()
) -> Tensor | None:
    """By how much the radius of each row grows if `after` takes the place of `before`: (batch, rows).

        sum_d:  |A_d . g_j + B_dj| over the named symbols, and M_d . box        (see `Influence`)

    B is what the other live values contribute through the symbols that they share. For a boxing rule on a value alone,
    with A = d and M = |d|, it is  sum_i |d_i| sum_R |g_ij| - sum_R |d . g_j|  over the boxed symbols R.

    Returns:
        None if the influence of the value, or of another that shares a symbol, is not known.
    """
    if influence is None:
        return None
    known = merge_ids(before.symbols, after.symbols)
    away = _projected((), influence, known)
    for live in elsewhere:
        if bool(torch.isin(live.zonotope.symbols, known).any()):
            if live.influence is None:
                return None
            away = away + _projected(live.zonotope.blocks, live.influence, known)
    groups = symbol_groups(before.blocks)
    groups.append((known[~torch.isin(known, before.symbols)], float("inf")))

    def radius(zonotope: Zonotope) -> Tensor:
        reach = _projected(zonotope.blocks, influence, known) + away
        total = reach.new_zeros(reach.shape[0], reach.shape[2])
        for ids, norm in groups:
            total = total + dual_norm(reach[:, torch.isin(known, ids).to(reach.device)], norm)
        if zonotope.box is not None:
            total = total + torch.bmm(influence.absolute, zonotope.box.flatten(1).unsqueeze(2)).squeeze(2)
        return total

    return radius(after) - radius(before)


def _projected(blocks: tuple[GeneratorBlock, ...], influence: Influence, ids: SymbolIds) -> Tensor:
    """A_d . g_j for the symbols `ids` (sorted): (batch, k, rows); 0 where no block knows one."""
    rows = influence.linear
    total = rows.new_zeros(rows.shape[0], ids.shape[0], rows.shape[1])
    for block in blocks:
        found = torch.isin(block.symbols, ids)
        if bool(found.any()):
            place = torch.searchsorted(ids, block.symbols[found]).to(rows.device)
            total.index_add_(1, place, block.contract(rows).dense()[:, found.to(rows.device)])
    return total
