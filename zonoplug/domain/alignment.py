"""Which symbols stand together in blocks, and sums of blocks: by id, never by position.

A symbol is a member of at most one unit ball. An ordinary block that names it, because some operator did not know the
ball, claims more values than the symbol has; so a sum may count its columns into the ball again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import torch
from torch import Tensor

from zonoplug.domain.blocks import DenseBlock, GeneratorBlock, sum_local
from zonoplug.domain.symbols import SymbolIds, merge_ids

Blocks = Sequence[GeneratorBlock]


def symbol_groups(blocks: Blocks) -> list[tuple[SymbolIds, float]]:
    """The symbols of some blocks: sorted ids and norm of each unit ball, and last those in none, if there are any.

    Blocks of a ball that share a symbol are parts of the same ball.
    """
    balls: list[tuple[SymbolIds, float]] = []
    for block in blocks:
        if block.norm == inf:
            continue
        ids = block.symbols
        same = [ball for ball in balls if ball[1] == block.norm and bool(torch.isin(ball[0], ids).any())]
        balls = [ball for ball in balls if all(ball is not other for other in same)]
        balls.append((merge_ids(*(ball[0] for ball in same), ids), block.norm))
    rest = merge_ids(*(block.symbols for block in blocks))
    for ids, _ in balls:
        rest = rest[~torch.isin(rest, ids)]
    return [*balls, (rest, inf)] if rest.numel() else balls


def grouped(blocks: Blocks, columns: Callable[[SymbolIds], Tensor]) -> tuple[DenseBlock, ...]:
    """Dense blocks for the symbols of `blocks`, one for each ball and one for those in none.

    Args:
        blocks: say which symbols there are, and in which balls.
        columns: sorted ids (k,) -> generators (batch, k, *shape).
    """
    return tuple(DenseBlock(ids, columns(ids), norm) for ids, norm in symbol_groups(blocks))


def sum_columns(blocks: Blocks, ids: SymbolIds) -> Tensor:
    """(batch, k, *shape): the sum of the blocks' generators of `ids`, sorted, (k,); 0 where no block has a symbol."""
    first = blocks[0].dense()
    total = first.new_zeros(first.shape[0], ids.shape[0], *first.shape[2:])
    for block in blocks:
        place = torch.searchsorted(ids, block.symbols).clamp(max=max(ids.shape[0] - 1, 0))
        found = ids[place] == block.symbols if ids.numel() else torch.zeros_like(place, dtype=torch.bool)
        if not bool(found.any()):
            continue
        columns = block.dense()
        if not bool(found.all()):
            place, columns = place[found], columns[:, found.to(columns.device)]
        if torch.equal(place, torch.arange(int(place[0]), int(place[0]) + place.shape[0])):
            total[:, int(place[0]) : int(place[0]) + place.shape[0]] += columns
        else:
            total.index_add_(1, place.to(total.device), columns)
    return total


def align_sum(left: Blocks, right: Blocks) -> tuple[GeneratorBlock, ...]:
    """Blocks of a sum: those whose symbols one side alone has stay as they are, and so do windows of the same symbols.

    The others become dense blocks.
    """
    sums, left, right = _sum_pairs(left, right)
    left_ids, right_ids = (merge_ids(*(b.symbols for b in blocks)) for blocks in (left, right))
    only_left = [b for b in left if not bool(torch.isin(b.symbols, right_ids).any())]
    only_right = [b for b in right if not bool(torch.isin(b.symbols, left_ids).any())]
    shared = [b for b in (*left, *right) if all(b is not other for other in (*only_left, *only_right))]
    if not shared:
        return (*sums, *only_left, *only_right)
    return (*reversed(grouped(shared, lambda ids: sum_columns(shared, ids))), *sums, *only_left, *only_right)


def _sum_pairs(left: Blocks, right: Blocks) -> tuple[list[GeneratorBlock], list[GeneratorBlock], list[GeneratorBlock]]:
    """Sums of a block of each side that keep their structure, and what is left of both sides."""
    sums, rest_left, rest_right = [], list(left), list(right)
    for one in left:
        for other in rest_right:
            beside = [*(b for b in left if b is not one), *(b for b in right if b is not other)]
            if any(bool(torch.isin(one.symbols, b.symbols).any()) for b in beside):
                continue
            total = sum_local(one, other)
            if total is not None:
                sums.append(total)
                rest_left = [b for b in rest_left if b is not one]
                rest_right = [b for b in rest_right if b is not other]
                break
    return sums, rest_left, rest_right
