"""The exact loss through the layer that follows."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.domain.blocks import DenseBlock, DiagonalBlock
from zonoplug.domain.zonotope import Zonotope
from zonoplug.reduction.base import REDUCTIONS, BoxReduction
from zonoplug.reduction.columns import Columns
from zonoplug.reduction.context import Ahead, ReductionContext


@REDUCTIONS.register("gap")
class Gap(BoxReduction):
    """Box what widens the next layer's hull least: score  sum_d (|d| |g| - |d . g|),  d the rows of its weights W.

    The exact operators that follow are taken together as W, for each reader of the value. An axis-aligned generator
    loses nothing there, so fresh symbols score 0. Where nothing follows the score is Girard's.
    """

    source: ClassVar[str] = "the loss of boxing a generator, in the directions of the next layer's weights"
    looks_ahead: ClassVar[bool] = True

    def score(self, generators: Tensor) -> Tensor:
        lengths = generators.abs()
        return lengths.sum(dim=2) - lengths.amax(dim=2)

    def rank(self, columns: Columns, context: ReductionContext) -> Tensor:
        if not context.ahead:
            return self.score(columns.compact)
        return next_layer_loss(columns, context)


def next_layer_loss(columns: Columns, context: ReductionContext) -> Tensor:
    """By how much boxing each generator widens the hulls behind the exact operators that follow.

        sum_d (|W_d| |g_j| - |W_d g_j|)

    Returns:
        (batch, k), never below 0.
    """
    if isinstance(columns.block, DiagonalBlock):
        return torch.zeros_like(columns.lengths)  # |W| |g| = |W g| for one entry
    generators = columns.here
    total = generators.new_zeros(generators.shape[:2])
    for ahead in context.ahead:
        reach = _images(ahead, columns).abs().sum(dim=2)
        box = (generators.abs() @ _absolute_transpose(ahead, columns).unsqueeze(2)).squeeze(2)
        total = total + (box - reach).clamp(min=0)
    return total


def _images(ahead: Ahead, columns: Columns) -> Tensor:
    """W g for each generator: (batch, k, n')."""
    shaped = columns.here.reshape(*columns.here.shape[:2], *columns.block.shape)
    block = DenseBlock(torch.arange(shaped.shape[1]), shaped)
    image = ahead(Zonotope(torch.zeros_like(shaped[:, 0]), (block,)))
    return image.generators(block.symbols).flatten(2)


def _absolute_transpose(ahead: Ahead, columns: Columns) -> Tensor:
    """The column sums of |W|: (batch, n)."""
    with torch.enable_grad():
        box = columns.here.new_zeros(columns.here.shape[0], *columns.block.shape).requires_grad_(True)
        image = ahead(Zonotope(torch.zeros_like(box), (), box)).box
        assert image is not None
        (cost,) = torch.autograd.grad(image.sum(), box)
    return cost.flatten(1)
